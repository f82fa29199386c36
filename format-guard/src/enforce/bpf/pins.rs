//! Where the kernel objects are pinned, so that enforcement outlives the agent.
//!
//! The directory carries the version of the maps' layout, and for how many devices they are made: an agent of
//! another layout, or of another `max_devices`, never reads these maps.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    links::{FdLink, PinnedLink},
    loaded_programs,
};

use crate::fault::{self, Point};

/// Version of the layout of every pinned map. Raise it with any change to a structure that a map holds.
const LAYOUT: u32 = 13;
/// The directory of a layout that holds maps; all others hold links.
const MAPS: &str = "maps";
/// How long the kernel may take to detach what nobody holds any more. Twenty programs took seconds under
/// emulation.
const DETACHED_WITHIN: Duration = Duration::from_secs(30);

/// The pin directories.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    layout: PathBuf,
    maps: PathBuf,
}

impl Pins {
    /// Makes the directories of maps for this many devices below `root`, which must be on a bpf file system.
    pub fn create(root: &Path, devices: u32) -> io::Result<Self> {
        // Agents of all versions take what is called by a number for a layout.
        let layout = root.join(format!("v{LAYOUT}{devices:05}"));
        let pins = Self { root: root.to_owned(), maps: layout.join(MAPS), layout };
        fs::create_dir_all(&pins.maps)?;
        Ok(pins)
    }

    /// Takes away what agents of other layouts pinned. Nobody keeps their rules any more: every device that
    /// is new since would be unknown to them for good.
    fn retire_other_layouts(&self) -> io::Result<()> {
        layouts(&self.root)?.into_iter().filter(|path| *path != self.layout).try_for_each(fs::remove_dir_all)
    }

    /// Where pins of every layout are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where those of this layout are.
    #[must_use]
    pub fn layout(&self) -> &Path {
        &self.layout
    }

    /// Where maps are pinned.
    #[must_use]
    pub fn maps(&self) -> &Path {
        &self.maps
    }

    /// Where the links of the programs of this build are pinned. bpf file systems refuse a name with a dot.
    #[must_use]
    pub fn links(&self, build: u64) -> PathBuf {
        self.layout.join(format!("links-{build:016x}"))
    }

    /// An empty directory for links that are not proven yet; what another agent left there unproven is taken
    /// away.
    pub fn unproven_links(&self) -> io::Result<PathBuf> {
        let path = self.layout.join("unproven");
        absent_is_done(fs::remove_dir_all(&path))?;
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Puts proven links in the place of every other agent's, which stay in force until then.
    pub fn take_over(&self, proven: &Path, build: u64) -> io::Result<()> {
        let place = self.links(build);
        absent_is_done(fs::rename(&place, self.layout.join("links-old")))?;
        fault::point(Point::AfterLinksAside);
        fs::rename(proven, &place)?;
        fault::point(Point::AfterLinksMoved);
        self.retire_others(build)
    }

    /// Takes away the links of every other build, and what agents of other layouts pinned.
    pub fn retire_others(&self, build: u64) -> io::Result<()> {
        let ours = self.links(build);
        for entry in fs::read_dir(&self.layout)? {
            let path = entry?.path();
            if path != ours && path != self.maps {
                fs::remove_dir_all(path)?;
            }
        }
        self.retire_other_layouts()
    }
}

/// Whether an agent of any version has pinned something below `root`.
pub fn are_there(root: &Path) -> io::Result<bool> {
    Ok(!layouts(root)?.is_empty())
}

/// Whether programs that an agent of any version has pinned below `root` may refuse.
pub fn enforce(root: &Path) -> io::Result<bool> {
    for layout in layouts(root)? {
        for entry in fs::read_dir(layout)? {
            if entry?.file_name().to_string_lossy().starts_with("links") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Takes away what agents of every version pinned below `root`, and returns once the kernel refuses nothing
/// any more.
///
/// The kernel detaches a program some time after the last pin of its link is gone: milliseconds on a quiet
/// machine, seconds under emulation (`bpf_link_put` in kernel/bpf/syscall.c hands the work to a queue). Who
/// formats a volume at once must not be refused by a guard that is said to be gone.
///
/// # Errors
/// When a pin cannot be removed, or a program is still there after 30 seconds.
pub fn take_away(root: &Path) -> io::Result<()> {
    let programs = pinned_programs(root)?;
    layouts(root)?.into_iter().try_for_each(fs::remove_dir_all)?;
    let deadline = Instant::now() + DETACHED_WITHIN;
    while loaded_programs().any(|loaded| loaded.is_ok_and(|program| programs.contains(&program.id()))) {
        if Instant::now() >= deadline {
            let waited = DETACHED_WITHIN.as_secs();
            return Err(io::Error::other(format!(
                "the pins are removed, but the kernel still runs their programs after {waited} s: another process holds them open"
            )));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ids of the programs whose links are pinned below `root`.
fn pinned_programs(root: &Path) -> io::Result<BTreeSet<u32>> {
    let mut programs = BTreeSet::new();
    for layout in layouts(root)? {
        for directory in fs::read_dir(layout)? {
            let directory = directory?.path();
            if directory.file_name().is_none_or(|name| name == MAPS) || !directory.is_dir() {
                continue;
            }
            for link in fs::read_dir(directory)? {
                // What is no link refuses nothing.
                let link = PinnedLink::from_pin(link?.path());
                programs
                    .extend(link.and_then(|link| FdLink::from(link).info()).map(|info| info.program_id()));
            }
        }
    }
    Ok(programs)
}

/// Directories below `root` of each version of the layout.
fn layouts(root: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut layouts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix('v'));
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            layouts.push(entry.path());
        }
    }
    Ok(layouts)
}

fn absent_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_layout_is_taken_away_and_nothing_else() {
        let root = tempfile::tempdir().expect("directory");
        let pins = Pins::create(root.path(), 8192).expect("pins");
        for other in ["v1/links", "v99/maps", "v1209999/maps", "vault", "other"] {
            fs::create_dir_all(root.path().join(other)).expect("directory");
        }
        pins.retire_other_layouts().expect("retired");
        let mut left: Vec<_> = fs::read_dir(root.path())
            .expect("directory")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["other", &format!("v{LAYOUT}08192"), "vault"]);
    }

    #[test]
    fn proven_links_take_the_place_of_all_others_and_the_maps_stay() {
        let root = tempfile::tempdir().expect("directory");
        let pins = Pins::create(root.path(), 8192).expect("pins");
        fs::write(pins.maps().join("RULES"), "").expect("map");
        for build in [1, 2, 2] {
            let unproven = pins.unproven_links().expect("directory");
            fs::write(unproven.join("file_open"), "").expect("link");
            pins.take_over(&unproven, build).expect("taken over");
        }
        fs::write(pins.unproven_links().expect("directory").join("file_open"), "").expect("link");
        assert_eq!(fs::read_dir(pins.unproven_links().expect("directory")).expect("directory").count(), 0);
        pins.retire_others(2).expect("retired");
        let mut left: Vec<_> = fs::read_dir(pins.layout())
            .expect("directory")
            .map(|entry| entry.expect("entry").path())
            .collect();
        left.sort();
        assert_eq!(left, [pins.links(2), pins.maps().to_owned()]);
        assert!(pins.links(2).join("file_open").exists() && pins.maps().join("RULES").exists());
    }
}
