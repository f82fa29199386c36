//! The bytes that a write carries, wherever they lie in the program's memory.

use format_guard_common::Content;

use crate::system::{copy, words};

/// Pieces of one write at most (`UIO_MAXIOV`, include/uapi/linux/uio.h): the kernel refuses more.
const MAX_PIECES: usize = 1024;

/// Where the bytes of a write are.
#[derive(Clone, Copy)]
pub(crate) enum Bytes {
    /// In one piece at this address.
    Whole(usize),
    /// In as many pieces as this array of `struct iovec` says.
    Pieces(usize, usize),
    /// In another file.
    Elsewhere,
}

/// Address and length of one piece.
fn piece(array: usize, number: usize) -> Option<[u64; 2]> {
    words(array.checked_add(number.checked_mul(size_of::<libc::iovec>())?)?)
}

impl Bytes {
    /// How many the pieces are together: as many as there can be where that cannot be read.
    pub(crate) fn total(self) -> u64 {
        let Self::Pieces(array, count) = self else { return u64::MAX };
        let mut total = 0_u64;
        for number in 0..count.min(MAX_PIECES) {
            let Some([_, length]) = piece(array, number) else { return u64::MAX };
            total = total.saturating_add(length);
        }
        total
    }
}

impl Content for Bytes {
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        let wanted = bytes.get_mut(..usize::try_from(length).ok()?)?;
        match *self {
            Self::Whole(address) => {
                copy(address.checked_add(usize::try_from(at).ok()?)?, wanted).then_some(())?;
            }
            Self::Pieces(array, count) => gather(array, count, at, wanted)?,
            Self::Elsewhere => return None,
        }
        let ([low, high], []) = bytes.as_chunks::<8>() else { return None };
        Some([low, high].map(|word| u64::from_le_bytes(*word)))
    }

    fn is_zero(&self, length: u64) -> Option<bool> {
        match *self {
            Self::Whole(address) => is_zero(address, usize::try_from(length).ok()?),
            Self::Pieces(array, count) => {
                let mut known = Some(true);
                for number in 0..count.min(MAX_PIECES) {
                    let [start, length] = piece(array, number)?.map(usize::try_from);
                    match is_zero(start.ok()?, length.ok()?) {
                        Some(true) => {}
                        Some(false) => return Some(false),
                        None => known = None,
                    }
                }
                known
            }
            Self::Elsewhere => None,
        }
    }
}

/// Whether the bytes at an address are zero, all of them; `None` where they cannot be read.
fn is_zero(address: usize, length: usize) -> Option<bool> {
    let mut done = 0;
    while done < length {
        let mut bytes = [0; 512];
        let wanted = bytes.get_mut(..(length - done).min(512))?;
        copy(address.checked_add(done)?, wanted).then_some(())?;
        if wanted.iter().any(|byte| *byte != 0) {
            return Some(false);
        }
        done += 512;
    }
    Some(true)
}

/// Fills `wanted` with what lies `at` bytes after the start of the pieces.
fn gather(array: usize, count: usize, mut at: u64, mut wanted: &mut [u8]) -> Option<()> {
    for number in 0..count.min(MAX_PIECES) {
        let [start, length] = piece(array, number)?;
        if at >= length {
            at -= length;
            continue;
        }
        let here = usize::try_from(length - at).ok()?.min(wanted.len());
        let (now, rest) = wanted.split_at_mut(here);
        if !copy(usize::try_from(start.checked_add(at)?).ok()?, now) {
            return None;
        }
        if rest.is_empty() {
            return Some(());
        }
        (wanted, at) = (rest, 0);
    }
    None
}
