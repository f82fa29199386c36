//! Builds the kernel programs.

use std::{env, fs, path::Path};

use aya_build::{Package, Toolchain, build_ebpf};

/// The object that `build_ebpf` leaves, by the name of its package.
const OBJECT: &str = "format-guard-ebpf";
/// The one whose programs write lines of their own.
const WITH_LINES: &str = "format-guard-ebpf-lines";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../format-guard-common/src");
    println!("cargo:rerun-if-env-changed=FORMAT_GUARD_WITHOUT_PROGRAMS");
    let directory = env::var("OUT_DIR")?;
    let [object, with_lines] = [OBJECT, WITH_LINES].map(|name| Path::new(&directory).join(name));
    // Fuzzers load none: a minute is saved.
    if env::var_os("FORMAT_GUARD_WITHOUT_PROGRAMS").is_some() {
        fs::write(with_lines, [])?;
        return Ok(fs::write(object, [])?);
    }
    // SAFETY: a build script's main thread, before any other exists. Building core for the BPF target wants
    // an unstable flag of cargo; only the inner build sees this.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    // SAFETY: as above. What the inner build prints would come out as warnings.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    build(&["log"])?;
    fs::rename(&object, with_lines)?;
    build(&[])
}

/// Builds the object with these features of its package.
fn build(features: &[&str]) -> anyhow::Result<()> {
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    build_ebpf(
        [Package {
            name: OBJECT,
            root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../format-guard-ebpf"),
            features,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
}
