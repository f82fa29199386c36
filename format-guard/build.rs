//! Builds the kernel programs, which the library embeds.

use std::env;

use aya_build::{Package, Toolchain, build_ebpf};

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../format-guard-common/src");
    // SAFETY: a build script's main thread, before any other exists. Building core for the BPF target wants an
    // unstable flag of cargo; only the inner build sees this.
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
