//! Where the kernel objects are pinned, so that enforcement outlives the agent.
//!
//! The directory carries the version of the maps' layout: an agent of another layout never reads these maps.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Version of the layout of every pinned map. Raise it with any change to a structure that a map holds.
const LAYOUT: &str = "v1";

/// The pin directories.
#[derive(Clone, Debug)]
pub struct Pins {
    maps: PathBuf,
    links: PathBuf,
}

impl Pins {
    /// Makes the directories below `root`, which must be on a bpf file system.
    pub fn create(root: &Path) -> io::Result<Self> {
        let layout = root.join(LAYOUT);
        let pins = Self { maps: layout.join("maps"), links: layout.join("links") };
        fs::create_dir_all(&pins.maps)?;
        fs::create_dir_all(&pins.links)?;
        Ok(pins)
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
