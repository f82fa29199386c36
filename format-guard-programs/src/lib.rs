//! The kernel programs as they are loaded, apart from what loads them: that is built with one set of features
//! and another, and they take a minute each time. Nothing else may be in here.

/// The object file: ELF of 64-bit little-endian BPF, with BTF. Empty where it was built with
/// `FORMAT_GUARD_WITHOUT_PROGRAMS`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/format-guard-ebpf"));

/// The same programs with lines of their own (aya-log): larger, slower, and not taken by every kernel's
/// verifier.
pub static OBJECT_WITH_LINES: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/format-guard-ebpf-lines"));
