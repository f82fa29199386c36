//! Builds the kernel programs.

use std::{env, fs, path::Path};

use aya_build::{Package, Toolchain, build_ebpf};

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../format-guard-common/src");
    println!("cargo:rerun-if-env-changed=FORMAT_GUARD_WITHOUT_PROGRAMS");
    // Fuzzers load none: a minute is saved.
    if env::var_os("FORMAT_GUARD_WITHOUT_PROGRAMS").is_some() {
        let object = Path::new(&env::var("OUT_DIR")?).join("format-guard-ebpf");
        return Ok(fs::write(object, [])?);
    }
    // SAFETY: a build script's main thread, before any other exists. Building core for the BPF target wants
    // an unstable flag of cargo; only the inner build sees this.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    // SAFETY: as above. What the inner build prints would come out as warnings.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    build_ebpf(
        [Package {
            name: "format-guard-ebpf",
            root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../format-guard-ebpf"),
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
}
