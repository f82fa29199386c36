//! What the `LD_PRELOAD` library asks and tells the agent over its Unix socket: one [`PreloadRequest`], one
//! [`Answer`], and the connection is over. Who asks, the kernel tells the agent (`SO_PEERCRED`).

use crate::snapshot::Plain;

/// Name of the socket in the agent's run directory.
pub const SOCKET: &str = "preload.sock";
/// What a question begins with; changes with the layout or the meaning of anything in it.
pub const MAGIC: u32 = 0x3271_6766;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ask {
    /// Is there an agent, and is the caller the process that formats `dev`?
    Owner = 1,
    /// May the caller begin to format `dev`? From the answer on it is the process that does.
    Begin = 2,
    /// The caller, who formats `dev`, has written to it.
    Wrote = 3,
    /// It was refused; `reason` says why.
    Denied = 4,
    /// Audit: it would have been refused.
    WouldDeny = 5,
    /// A re-labelling tool changes the UUID.
    Relabelled = 6,
    /// The owner of a logical volume wipes an old signature.
    OwnerWiped = 7,
}

impl Ask {
    /// The question with this number, if there is one.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Owner,
            2 => Self::Begin,
            3 => Self::Wrote,
            4 => Self::Denied,
            5 => Self::WouldDeny,
            6 => Self::Relabelled,
            7 => Self::OwnerWiped,
            _ => return None,
        })
    }
}

/// One question. Integers are of native byte order; fields that mean nothing to it are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PreloadRequest {
    /// [`MAGIC`].
    pub magic: u32,
    /// An [`Ask`].
    pub ask: u32,
    /// A [`crate::Reason`], or zero; of a format that begins, bits of [`crate::event::wrote`].
    pub reason: u32,
    /// A [`crate::Operation`].
    pub operation: u32,
    /// Kernel `dev_t`.
    pub dev: u32,
    /// Kernel `dev_t` of the device below through which it was tried; else zero.
    pub through: u32,
    /// The attachment.
    pub diskseq: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes in the range.
    pub length: u64,
}

/// What is answered: one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// No.
    No = 0,
    /// Yes.
    Yes = 1,
}

// SAFETY: repr(C), integers only, no padding.
unsafe impl Plain for PreloadRequest {}

impl PreloadRequest {
    /// The question in these bytes, if they are one.
    #[must_use]
    pub fn read(bytes: &[u8; size_of::<Self>()]) -> Option<(Ask, Self)> {
        // SAFETY: as many bytes as the structure has, integers only, read without alignment.
        let question = unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() };
        (question.magic == MAGIC).then_some((Ask::from_raw(question.ask)?, question))
    }
}

const _: () = assert!(size_of::<PreloadRequest>() == 6 * 4 + 3 * 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::bytes;

    #[test]
    fn only_what_is_known_is_a_question() {
        let of = |magic, ask| {
            let question = PreloadRequest { magic, ask, dev: 7, ..PreloadRequest::default() };
            let mut raw = [0; size_of::<PreloadRequest>()];
            raw.copy_from_slice(bytes(&question));
            PreloadRequest::read(&raw).map(|(ask, question)| (ask, question.dev))
        };
        assert_eq!(of(MAGIC, 2), Some((Ask::Begin, 7)));
        assert_eq!([of(MAGIC, 0), of(MAGIC, 8), of(0, 2)], [None; 3]);
    }
}
