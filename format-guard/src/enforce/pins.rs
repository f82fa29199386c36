//! Where the kernel objects are pinned, so that enforcement outlives the agent.
//!
//! The directory carries the version of the maps' layout: an agent of another layout never reads these maps.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Version of the layout of every pinned map. Raise it with any change to a structure that a map holds.
const LAYOUT: &str = "v7";

/// The pin directories.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    maps: PathBuf,
    links: PathBuf,
}

impl Pins {
    /// Makes the directories below `root`, which must be on a bpf file system.
    pub fn create(root: &Path) -> io::Result<Self> {
        let layout = root.join(LAYOUT);
        let pins = Self { root: root.to_owned(), maps: layout.join("maps"), links: layout.join("links") };
        fs::create_dir_all(&pins.maps)?;
        fs::create_dir_all(&pins.links)?;
        Ok(pins)
    }

    /// Takes away what agents of other layouts pinned. Nobody keeps their rules any more: every device that is new since
    /// would be unknown to them for good.
    pub fn retire_other_layouts(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix('v'));
            let is_layout = number.is_some_and(|number| number.parse::<u32>().is_ok());
            if is_layout && name != LAYOUT {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Where maps are pinned.
    #[must_use]
    pub fn maps(&self) -> &Path {
        &self.maps
    }

    /// Where the link of `program` is pinned.
    #[must_use]
    pub fn link(&self, program: &str) -> PathBuf {
        self.links.join(program)
    }

    /// Where it is pinned until it takes the place of an earlier agent's. bpf file systems refuse a name with a dot.
    #[must_use]
    pub fn new_link(&self, program: &str) -> PathBuf {
        self.links.join(format!("next-{program}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_layout_is_taken_away_and_nothing_else() {
        let root = tempfile::tempdir().expect("directory");
        let pins = Pins::create(root.path()).expect("pins");
        for other in ["v1/links", "v99/maps", "vault", "other"] {
            fs::create_dir_all(root.path().join(other)).expect("directory");
        }
        pins.retire_other_layouts().expect("retired");
        let mut left: Vec<_> = fs::read_dir(root.path())
            .expect("directory")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["other", LAYOUT, "vault"]);
    }
}
