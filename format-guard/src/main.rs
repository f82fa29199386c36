//! tmp
use format_guard::enforce::lsm::LsmEnforcer;
fn main() {
    let mut e = match LsmEnforcer::load(std::path::Path::new("/sys/fs/bpf/t"), false) { Ok(e) => e, Err(e) => { println!("LOAD {e}"); return } };
    match e.attach() { Ok(r) => { for p in r { println!("{} {} {}", p.program, p.attached, p.open); } println!("PROVEN") }, Err(e) => println!("ATTACH {e}") }
}
