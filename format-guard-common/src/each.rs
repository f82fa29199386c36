//! A loop whose body the kernel's verifier follows once, whatever the number of turns.
//!
//! A plain loop over a rule's checks is followed turn by turn, with every combination of branches that cannot
//! be pruned: hundreds of thousands of instructions of the million that it allows
//! (`BPF_COMPLEXITY_LIMIT_INSNS`, kernel/bpf/verifier.c).

/// One turn: its number, and what all turns share. Zero goes on, one ends the loop.
pub type Turn<T> = extern "C" fn(u32, *mut T) -> i64;

/// Does `turn` for every number below `count`, until one ends it.
#[inline(always)]
pub fn each<T>(count: u32, shared: &mut T, turn: Turn<T>) {
    let shared: *mut T = shared;
    #[cfg(target_arch = "bpf")]
    {
        // bpf_loop, include/uapi/linux/bpf.h: from Linux 5.17.
        const BPF_LOOP: usize = 181;
        type Loop<T> = unsafe extern "C" fn(u32, Turn<T>, *mut T, u64) -> i64;
        // SAFETY: the address of a helper is its number; its signature is the one above.
        let bpf_loop = unsafe { core::mem::transmute::<usize, Loop<T>>(BPF_LOOP) };
        // SAFETY: `shared` outlives the call, and nothing else uses it meanwhile.
        let _ = unsafe { bpf_loop(count, turn, shared, 0) };
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ended = (0..count).any(|number| turn(number, shared) != 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn add(number: u32, sum: *mut u32) -> i64 {
        // SAFETY: `each` passes what it was given.
        let sum = unsafe { &mut *sum };
        *sum += number;
        i64::from(*sum >= 10)
    }

    #[test]
    fn every_turn_is_done_until_one_ends_it() {
        let sum = |count| {
            let mut sum = 0;
            each(count, &mut sum, add);
            sum
        };
        assert_eq!([0, 1, 4, 5, 9].map(sum), [0, 0, 6, 10, 10]);
    }
}
