//! Rows of the table of everyday work.

/// A piece of work. `$N` is the node and `$F` the file behind it, `$B` the node of another, blank volume,
/// `$M` a directory to mount on, `$K` the key file of the LUKS volumes. Each line is one step, whose exit
/// status must be the same as without the guard.
pub(super) struct Work {
    /// The kind of volume; empty for a blank one.
    pub(super) on: &'static str,
    pub(super) name: &'static str,
    pub(super) steps: &'static [&'static str],
    /// The state that the volume's record must reach.
    pub(super) state: &'static str,
    /// The guard cannot tell the last step from destruction: the step is refused, and the event names the way
    /// out.
    pub(super) refused: bool,
}

pub(super) const fn work(on: &'static str, name: &'static str, steps: &'static [&'static str]) -> Work {
    Work { on, name, steps, state: "formatted", refused: false }
}

pub(super) const fn refused(on: &'static str, name: &'static str, steps: &'static [&'static str]) -> Work {
    Work { on, name, steps, state: "formatted", refused: true }
}
