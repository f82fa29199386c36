//! Debian packages that the project unpacks and does not install: kernels for guests, their emulator, rustc's
//! sources.
//!
//! apt does the work, with its state in a directory of the project's own. It uses the configured mirror,
//! verifies indices by signature and packages by checksum, and shows the progress of downloads.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::command::{command, read, show};

/// The variable that names another mirror of Debian, for hosts of another distribution.
const MIRROR_VARIABLE: &str = "DEBIAN_MIRROR";
/// The age at which an index is fetched anew.
const FRESH: Duration = Duration::from_hours(12);

/// The project's cache: everything that it keeps outside the workspace.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    let path = base.join("format-guard");
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// Fills a directory of the cache: afterwards it is there completely, or not at all.
pub(crate) fn fill<T>(directory: &Path, with: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let partial = directory.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let filled = with(&partial)?;
    let _ = fs::remove_dir_all(directory);
    fs::rename(&partial, directory)?;
    Ok(filled)
}

/// An apt of the project's own, for these archives and suites.
pub(crate) struct Archive {
    root: PathBuf,
}

impl Archive {
    /// Reads the indices, if they are not fresh. Each suite is `ARCHIVE/SUITE`, such as
    /// `debian/trixie-backports`.
    pub(crate) fn open(suites: &[&str]) -> Result<Self> {
        let root = cache()?.join("apt");
        let archive = Self { root };
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(archive.root.join(directory))?;
        }
        let sources = sources(suites)?;
        let list = archive.root.join("sources.list");
        let stamp = archive.root.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|stat| stat.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH));
        if !fresh || fs::read_to_string(&list).unwrap_or_default() != sources {
            fs::write(&list, sources)?;
            println!("setup: reading the indices of {}", suites.join(", "));
            show(archive.apt("apt-get", &["update", "-q"]))?;
            fs::write(&stamp, "")?;
        }
        Ok(archive)
    }

    /// Names of the packages that match a regular expression.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let text = read(self.apt("apt-cache", &["search", "--names-only", pattern]))?;
        Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// Versions of a package, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = read(self.apt("apt-cache", &["madison", package]))?;
        Ok(text
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|text| text.trim().to_owned())
            .collect())
    }

    /// Downloads a package (`NAME` or `NAME=VERSION`) and unpacks it, without the paths that match `exclude`.
    pub(crate) fn unpack(&self, package: &str, into: &Path, exclude: &[&str]) -> Result<()> {
        let downloads = tempfile::tempdir_in(&self.root)?;
        let mut download = self.apt("apt-get", &["download", package]);
        download.current_dir(downloads.path());
        show(download)?;
        let deb = fs::read_dir(downloads.path())?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))?;
        let tar = command("dpkg-deb", ["--fsys-tarfile".as_ref(), deb.as_os_str()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("cannot run dpkg-deb")?;
        let mut extract = command("tar", ["-x", "-C"]);
        extract.arg(into).args(exclude.iter().map(|pattern| format!("--exclude={pattern}")));
        extract.stdin(tar.stdout.context("dpkg-deb has no output")?);
        show(extract)
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Command {
        let option = |name: &str, path: &str| format!("-o{name}={}", self.root.join(path).display());
        let mut apt = command(
            program,
            [
                option("Dir::Etc::sourcelist", "sources.list"),
                "-oDir::Etc::sourceparts=-".to_owned(),
                option("Dir::State::lists", "lists"),
                option("Dir::Cache", "cache"),
                "-oDir::State::status=/dev/null".to_owned(),
                "-oAcquire::Languages=none".to_owned(),
                "-oAcquire::Retries=4".to_owned(),
                // apt's own user may be unable to read the project's directory.
                "-oAPT::Sandbox::User=root".to_owned(),
            ],
        );
        apt.args(arguments);
        apt
    }
}

fn sources(suites: &[&str]) -> Result<String> {
    const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing: install the package debian-archive-keyring");
    }
    let mirror = mirror()?;
    let suites: BTreeSet<&&str> = suites.iter().collect();
    let lines: Vec<String> = suites
        .into_iter()
        .filter_map(|each| each.split_once('/'))
        .map(|(archive, suite)| {
            format!("deb [signed-by={KEYRING} arch=amd64] {mirror}/{archive} {suite} main\n")
        })
        .collect();
    Ok(lines.concat())
}

/// The mirror of the archives `debian` and `debian-security`, as apt is configured.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var(MIRROR_VARIABLE) {
        return Ok(mirror.trim_end_matches('/').to_owned());
    }
    let targets = read(command("apt-get", ["indextargets", "--format", "$(REPO_URI)"]))?;
    targets
        .lines()
        .find_map(|uri| uri.trim_end_matches('/').strip_suffix("/debian"))
        .map(str::to_owned)
        .with_context(|| {
            format!("apt knows no mirror of Debian: set {MIRROR_VARIABLE} to the address above its archive 'debian'")
        })
}
