//! Rows of the table of everyday work.

/// A piece of work. `$N` is the node and `$F` the file behind it, `$B` the node of another volume, which is
/// blank, `$M` a directory to mount on, `$K` the key file of the LUKS volumes. Each line is one step: its
/// exit status must be the same.
pub(super) struct Work {
    /// The kind of volume; a blank one where it is empty.
    pub(super) on: &'static str,
    pub(super) name: &'static str,
    pub(super) steps: &'static [&'static str],
    /// The state that its record must come to have.
    pub(super) state: &'static str,
    /// Its last step cannot be told from destruction: it is refused, and the event names the way out.
    pub(super) refused: bool,
}

pub(super) const fn work(on: &'static str, name: &'static str, steps: &'static [&'static str]) -> Work {
    Work { on, name, steps, state: "formatted", refused: false }
}

pub(super) const fn refused(on: &'static str, name: &'static str, steps: &'static [&'static str]) -> Work {
    Work { on, name, steps, state: "formatted", refused: true }
}
