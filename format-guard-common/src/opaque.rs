//! Values that the kernel's verifier must see as unknown, so that it does not verify every path to them
//! apart.

/// The same `value`, of which the compiler and the kernel's verifier forget what they knew.
///
/// The verifier follows every combination of known values through a loop of checks and gives up after a
/// million instructions (`BPF_COMPLEXITY_LIMIT_INSNS`, kernel/bpf/verifier.c). Folding a value that it does
/// not know in and out again makes all of those combinations look alike, which prunes them. `unknown` must
/// come from a map value.
#[inline(always)]
#[must_use]
pub fn opaque(value: u64, unknown: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: two exclusive-ors of two registers; no memory, no stack.
        unsafe {
            core::arch::asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) value, in(reg) unknown, options(pure, nomem, nostack));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = unknown;
        value
    }
}
