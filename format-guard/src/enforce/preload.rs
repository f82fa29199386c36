//! The tier `preload`: publishes the rules for the `LD_PRELOAD` library, and keeps what the other tiers'
//! kernel programs keep in maps: who formats, and who was refused.
//!
//! It decides nothing: the library does, by the same `decide()`; a first format it begins by the agent's word
//! alone, which comes after the record was stored (the rule says so) and before anything is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use format_guard_common::{
    Rule, State, Windows,
    claim::Lease,
    event::{EventKind, FormatOwner, KernelEvent, Process, wrote},
    preload_request::{Ask, PreloadRequest},
    program,
    snapshot::{self, Entry, FILE, Header, Known, SUPERSEDED},
};

use super::{
    Counts, Enforcer,
    canary::{self, CanaryError, Node},
    error::{LoadError, MapError, PreloadError, ProgramStatus, ProtectionError},
    programs::known_programs,
    rule,
};
use crate::{tier::Tier, volume::Dev};

/// The library's file name.
pub const LIBRARY: &str = "libformat_guard_preload.so";
/// Where packages put it.
const INSTALLED: [&str; 2] = ["/usr/lib/format-guard", "/usr/local/lib/format-guard"];
/// Refusals that are remembered at most, to be counted when they are forgotten.
const MAX_REFUSED: usize = 4096;

/// Where the library is: beside this program, or where packages put it.
pub fn library() -> Result<PathBuf, PreloadError> {
    let program = env::current_exe().and_then(fs::canonicalize).unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new("/")).to_owned();
    let places = [beside.clone()].into_iter().chain(INSTALLED.map(PathBuf::from));
    let mut libraries = places.map(|place| place.join(LIBRARY));
    libraries.find(|path| path.is_file()).ok_or_else(|| PreloadError::NoLibrary {
        name: LIBRARY,
        installed: INSTALLED.join(" or "),
        beside,
    })
}

/// Has the library let everything pass: the kernel refuses on this host, whoever asks.
pub fn publish_that_all_passes(run_dir: &Path) -> Result<(), PreloadError> {
    Published { in_force: true, passes: true, ..Published::nothing(run_dir) }.publish()
}

/// A process and the refusals on a device that cut it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RefusedOn {
    dev: u32,
    diskseq: u64,
    tgid: u32,
    started: u64,
}

/// What is published, and what the library tells.
struct Published {
    file: PathBuf,
    /// Nothing is published before every rule is there.
    in_force: bool,
    /// The library lets everything pass.
    passes: bool,
    rules: BTreeMap<u32, (Rule, Windows)>,
    unknown: Rule,
    /// By the device that leads.
    owners: BTreeMap<u32, FormatOwner>,
    refused: BTreeSet<RefusedOn>,
    /// How often the refusals on a device were forgotten.
    forgotten: BTreeMap<u32, u64>,
    programs: BTreeMap<[u8; 16], program::Class>,
    lease: Lease,
    judged: u64,
}

impl Published {
    fn nothing(run_dir: &Path) -> Self {
        Self {
            file: run_dir.join(FILE),
            in_force: false,
            passes: false,
            rules: BTreeMap::new(),
            unknown: rule::unknown(false),
            owners: BTreeMap::new(),
            refused: BTreeSet::new(),
            forgotten: BTreeMap::new(),
            programs: BTreeMap::new(),
            lease: Lease::default(),
            judged: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut windows = Vec::new();
        let entries: Vec<Entry> = self
            .rules
            .values()
            .map(|(rule, of_rule)| {
                if of_rule.count > 0 {
                    windows.push(*of_rule);
                }
                let owner =
                    self.owners.get(&rule.lock_dev).filter(|entry| entry.diskseq == rule.lock_diskseq);
                Entry {
                    rule: *rule,
                    owner: owner.copied().unwrap_or_default(),
                    forgotten: self.forgotten.get(&rule.dev).copied().unwrap_or(0),
                    windows: if of_rule.count > 0 { windows.len() as u32 } else { 0 },
                    zero: 0,
                }
            })
            .collect();
        let mut body = snapshot::bytes(&self.unknown).to_vec();
        body.extend(entries.iter().flat_map(snapshot::bytes));
        body.extend(windows.iter().flat_map(snapshot::bytes));
        for (comm, class) in &self.programs {
            body.extend(snapshot::bytes(&Known { comm: *comm, class: class.0, zero: 0 }));
        }
        let counts = [entries.len(), windows.len(), self.programs.len()].map(|count| count as u32);
        let header = Header::of(&body, counts, self.passes, self.lease);
        [snapshot::bytes(&header), &body].concat()
    }

    /// Puts what is known in force. The old file is marked before the new one has its name: who reads it
    /// meanwhile looks for a newer one until there is one.
    fn publish(&self) -> Result<(), PreloadError> {
        if !self.in_force {
            return Ok(());
        }
        let failed = |source| PreloadError::Publish { path: self.file.clone(), source };
        let new = self.file.with_extension("new");
        fs::write(&new, self.bytes()).map_err(failed)?;
        fs::set_permissions(&new, Permissions::from_mode(0o644)).map_err(failed)?;
        match OpenOptions::new().write(true).open(&self.file) {
            Ok(old) => old.write_all_at(&1_u32.to_ne_bytes(), SUPERSEDED).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        fs::rename(&new, &self.file).map_err(failed)
    }

    fn publish_for(&self, what: &'static str, dev: u32) -> Result<(), MapError> {
        self.publish().map_err(|error| MapError { what, dev, reason: error.to_string() })
    }

    /// Makes a process the one that formats a device; false where it may not. As the kernel programs do it.
    fn begin(&mut self, question: &PreloadRequest, caller: &Caller) -> bool {
        const BLANK: u32 = State::Blank as u32;
        const PERMITTED: u32 = State::Permitted as u32;

        let Some((rule, _)) = self.rules.get(&question.dev) else { return false };
        let (lock_dev, diskseq) = (rule.lock_dev, rule.lock_diskseq);
        if rule.diskseq != question.diskseq || !matches!(rule.state, BLANK | PERMITTED) {
            return false;
        }
        if let Some(entry) = self.owners.get(&lock_dev).filter(|entry| entry.diskseq == diskseq) {
            return entry.process == caller.process;
        }
        let entry = FormatOwner {
            process: caller.process,
            diskseq,
            dev: question.dev,
            wrote: question.reason,
            mounted: 0,
            comm: caller.comm,
            cgroup: caller.cgroup,
        };
        self.owners.insert(lock_dev, entry);
        // What is not published is not begun: others would begin beside it.
        if let Err(error) = self.publish() {
            tracing::error!("{error}");
            self.owners.remove(&lock_dev);
            return false;
        }
        true
    }

    /// The owner of the format on the device whose bytes this one shares, if the process is that owner.
    fn held_by(&mut self, dev: u32, process: Process) -> Option<&mut FormatOwner> {
        let (rule, _) = self.rules.get(&dev)?;
        let diskseq = rule.lock_diskseq;
        let entry = self.owners.get_mut(&rule.lock_dev)?;
        (entry.process == process && entry.diskseq == diskseq).then_some(entry)
    }

    fn refuse(&mut self, question: &PreloadRequest, process: Process) {
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_first();
        }
        self.refused.insert(RefusedOn {
            dev: question.dev,
            diskseq: question.diskseq,
            tgid: process.tgid,
            started: process.started,
        });
    }
}

/// Who asks, as the kernel tells.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The process.
    pub process: Process,
    /// Its name.
    pub comm: [u8; 16],
    /// Its control group; zero where that is not known.
    pub cgroup: u64,
}

/// The agent's side of what the library asks and tells.
#[derive(Clone)]
pub struct Questions(Arc<Mutex<Published>>);

impl Questions {
    /// The answer to one question, and what is to be told of it.
    #[must_use]
    pub fn answer(
        &self,
        ask: Ask,
        question: &PreloadRequest,
        caller: &Caller,
    ) -> (bool, Option<KernelEvent>) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        published.judged += 1;
        let (answer, kind) = match ask {
            Ask::Owner => (published.held_by(question.dev, caller.process).is_some(), None),
            Ask::Begin => {
                let held = published.held_by(question.dev, caller.process).is_some();
                let begun = published.begin(question, caller);
                (begun, (begun && !held).then_some(EventKind::FormatBegan))
            }
            Ask::Wrote => {
                let entry = published.held_by(question.dev, caller.process);
                (entry.map(|entry| entry.wrote |= wrote::BYTES).is_some(), None)
            }
            Ask::Denied => {
                published.refuse(question, caller.process);
                (true, Some(EventKind::Denied))
            }
            Ask::WouldDeny => (true, Some(EventKind::WouldDeny)),
            Ask::Relabelled => (true, Some(EventKind::Relabelled)),
            Ask::OwnerWiped => (true, Some(EventKind::OwnerWiped)),
        };
        let told = kind.map(|kind| KernelEvent {
            kind: kind as u32,
            reason: question.reason,
            operation: question.operation,
            dev: question.dev,
            diskseq: question.diskseq,
            offset: question.offset,
            length: question.length,
            process: caller.process,
            cgroup: caller.cgroup,
            at: u64::try_from(super::since_boot().as_nanos()).unwrap_or(u64::MAX),
            status: 0,
            through: question.through,
            comm: caller.comm,
        });
        (answer, told)
    }
}

/// The enforcement by the library.
pub struct PreloadEnforcer {
    published: Arc<Mutex<Published>>,
    library: PathBuf,
}

impl PreloadEnforcer {
    /// Looks for the library. Nothing is published yet, so that rules can be put first; what an earlier agent
    /// has published stays in force.
    pub fn new(run_dir: &Path, trusted: &[String], audit: bool) -> Result<Self, PreloadError> {
        let library = library()?;
        let published = Published {
            unknown: rule::unknown(audit),
            programs: known_programs(trusted),
            ..Published::nothing(run_dir)
        };
        Ok(Self { published: Arc::new(Mutex::new(published)), library })
    }

    /// What answers the library.
    #[must_use]
    pub fn questions(&self) -> Questions {
        Questions(Arc::clone(&self.published))
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn canary_failed(&self, reason: impl Into<String>) -> PreloadError {
        PreloadError::Canary { library: self.library.clone(), reason: reason.into() }
    }

    fn run_canary(&self, node: &Node) -> Result<(), LoadError> {
        let run_dir = self.published().file.parent().map(Path::to_owned).unwrap_or_default();
        let ran = Command::new(crate::process::OURSELVES)
            .arg("canary")
            .arg(node.path())
            .env_clear()
            .env("LD_PRELOAD", &self.library)
            .env("FORMAT_GUARD_RUN_DIR", run_dir)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| self.canary_failed(error.to_string()))?;
        let tried: canary::Tried = serde_json::from_slice(&ran.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&ran.stderr);
            self.canary_failed(format!("it ended with {}: {}", ran.status, said.trim()))
        })?;
        tried.judge().map_err(|error| match error {
            CanaryError::NotEnforced(errno) => {
                self.canary_failed(format!("a write that it must refuse gave {errno}")).into()
            }
            other => other.into(),
        })
    }
}

impl Enforcer for PreloadEnforcer {
    fn attach(&mut self) -> Result<Vec<ProgramStatus>, LoadError> {
        // Published with the canary's rule, and once more without it.
        self.published().in_force = true;
        self.prove()?;
        Ok(vec![ProgramStatus {
            program: LIBRARY.to_owned(),
            attached: true,
            open: String::new(),
            skipped: 0,
        }])
    }

    fn prove(&mut self) -> Result<(), LoadError> {
        let node = Node::make()?;
        let dev = node.dev().to_kernel();
        self.put_rule(&Rule::new(dev, 0, State::Formatted), &Windows::new())?;
        let proof = self.run_canary(&node);
        self.remove_rule(node.dev())?;
        let told = {
            let mut published = self.published();
            let before = published.refused.len();
            published.refused.retain(|refused| refused.dev != dev);
            before > published.refused.len()
        };
        proof?;
        if !told {
            return Err(self.canary_failed("the library did not report the refusal to this agent").into());
        }
        Ok(())
    }

    fn put_rule(&mut self, rule: &Rule, windows: &Windows) -> Result<(), MapError> {
        let mut published = self.published();
        let new = (*rule, Windows { dev: rule.dev, ..*windows });
        if published.rules.insert(rule.dev, new) == Some(new) {
            return Ok(());
        }
        published.publish_for("put the rule", rule.dev)
    }

    fn lease(&self) -> Lease {
        self.published().lease
    }

    /// The file is replaced as a whole.
    fn put_lease(&mut self, lease: &Lease) -> Result<(), MapError> {
        let mut published = self.published();
        published.lease = *lease;
        published.publish_for("put the lease", 0)
    }

    fn put_unknown(&mut self, rule: &Rule) -> Result<(), MapError> {
        let mut published = self.published();
        published.unknown = *rule;
        published.publish_for("put the rule for unknown devices", 0)
    }

    fn remove_rule(&mut self, dev: Dev) -> Result<(), MapError> {
        let dev = dev.to_kernel();
        let mut published = self.published();
        published.rules.remove(&dev);
        published.publish_for("remove the rule", dev)
    }

    fn ruled(&self) -> Vec<Dev> {
        self.published().rules.keys().copied().map(Dev::from_kernel).collect()
    }

    fn rule(&self, dev: Dev) -> Option<Rule> {
        self.published().rules.get(&dev.to_kernel()).map(|(rule, _)| *rule)
    }

    fn owner(&self, lock_dev: Dev) -> Option<FormatOwner> {
        self.published().owners.get(&lock_dev.to_kernel()).copied()
    }

    fn owners(&self) -> Vec<(Dev, FormatOwner)> {
        let published = self.published();
        published.owners.iter().map(|(lock_dev, entry)| (Dev::from_kernel(*lock_dev), *entry)).collect()
    }

    fn release_owner(&mut self, lock_dev: Dev) -> Result<(), MapError> {
        let lock_dev = lock_dev.to_kernel();
        let mut published = self.published();
        if published.owners.remove(&lock_dev).is_none() {
            return Ok(());
        }
        published.publish_for("release the formatter", lock_dev)
    }

    fn untaint(&mut self, dev: Dev, diskseq: u64) -> Result<u64, MapError> {
        let dev = dev.to_kernel();
        let mut published = self.published();
        let before = published.refused.len();
        published.refused.retain(|refused| (refused.dev, refused.diskseq) != (dev, diskseq));
        let count = (before - published.refused.len()) as u64;
        *published.forgotten.entry(dev).or_default() += 1;
        published.publish_for("forget a refusal", dev)?;
        Ok(count)
    }

    fn protect(&mut self, until: u64) -> Result<(), ProtectionError> {
        if until == 0 { Ok(()) } else { Err(ProtectionError::NoKernel) }
    }

    fn tier(&self) -> Tier {
        Tier::Preload
    }

    fn counts(&self) -> Counts {
        Counts { judged: self.published().judged, ..Counts::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enforcer(directory: &Path) -> PreloadEnforcer {
        let published =
            Published { in_force: true, programs: known_programs(&[]), ..Published::nothing(directory) };
        PreloadEnforcer { published: Arc::new(Mutex::new(published)), library: PathBuf::new() }
    }

    fn caller(tgid: u32) -> Caller {
        Caller {
            process: Process { tgid, started: 10, zero: 0 },
            comm: program::comm("mkfs.ext4"),
            cgroup: 0,
        }
    }

    /// The words of a snapshot, where they are aligned.
    fn read<T>(directory: &Path, then: impl FnOnce(&snapshot::Snapshot<'_>) -> T) -> T {
        let bytes = fs::read(directory.join(FILE)).expect("published");
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        for (to, from) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..from.len()].copy_from_slice(from);
            *to = u64::from_ne_bytes(word);
        }
        // SAFETY: as many bytes as were read, in an array that is longer.
        let aligned = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), bytes.len()) };
        then(&snapshot::Snapshot::read(aligned).expect("whole"))
    }

    #[test]
    fn what_is_put_is_published_and_the_file_before_it_is_marked() {
        let directory = tempfile::tempdir().expect("directory");
        let mut enforcer = enforcer(directory.path());
        let windows = Windows { count: 1, ..Windows::new() };
        enforcer.put_rule(&Rule::new(7, 3, State::Formatted), &windows).expect("put");
        let before = fs::File::open(directory.path().join(FILE)).expect("published");
        enforcer.put_rule(&Rule::new(5, 4, State::Blank), &Windows::new()).expect("put");
        let mut superseded = [0; 4];
        before.read_exact_at(&mut superseded, SUPERSEDED).expect("read");
        assert_eq!(u32::from_ne_bytes(superseded), 1);
        read(directory.path(), |snapshot| {
            let state = |dev| snapshot.entry(dev).map(|entry| entry.rule.state);
            assert_eq!(
                [5, 6, 7].map(state),
                [Some(State::Blank as u32), None, Some(State::Formatted as u32)]
            );
            let of = |dev| snapshot.windows(snapshot.entry(dev).expect("a rule")).map(|windows| windows.dev);
            assert_eq!([5, 7].map(of), [None, Some(7)]);
            assert!(snapshot.class(program::comm("mkfs.xfs")).is(program::Class::FORMATTER));
        });
        enforcer.remove_rule(Dev::from_kernel(7)).expect("removed");
        assert!(read(directory.path(), |snapshot| snapshot.entry(7).is_none()));
    }

    #[test]
    fn one_process_begins_to_format_a_blank_volume_and_nobody_beside_it() {
        let directory = tempfile::tempdir().expect("directory");
        let mut enforcer = enforcer(directory.path());
        let questions = enforcer.questions();
        let ask = |ask, dev, tgid| {
            let question = PreloadRequest { dev, diskseq: 3, operation: 1, ..PreloadRequest::default() };
            let (answer, told) = questions.answer(ask, &question, &caller(tgid));
            (answer, told.map(|event| event.kind))
        };
        let began = Some(EventKind::FormatBegan as u32);
        assert_eq!(ask(Ask::Begin, 7, 1), (false, None), "no rule");
        enforcer.put_rule(&Rule::new(7, 3, State::Formatted), &Windows::new()).expect("put");
        assert_eq!(ask(Ask::Begin, 7, 1), (false, None), "it holds a format");
        enforcer.put_rule(&Rule::new(7, 4, State::Blank), &Windows::new()).expect("put");
        assert_eq!(ask(Ask::Begin, 7, 1), (false, None), "another medium");
        enforcer.put_rule(&Rule::new(7, 3, State::Blank), &Windows::new()).expect("put");
        assert_eq!(ask(Ask::Begin, 7, 1), (true, began));
        assert_eq!(ask(Ask::Begin, 7, 1), (true, None), "the same once more");
        assert_eq!(ask(Ask::Begin, 7, 2), (false, None), "another");
        assert_eq!((ask(Ask::Owner, 7, 1).0, ask(Ask::Owner, 7, 2).0), (true, false));
        assert_eq!(
            read(directory.path(), |snapshot| snapshot.entry(7).expect("a rule").owner.process.tgid),
            1
        );
        assert_eq!(enforcer.owner(Dev::from_kernel(7)).map(|entry| entry.wrote), Some(0));
        assert!(ask(Ask::Wrote, 7, 1).0 && !ask(Ask::Wrote, 7, 2).0);
        assert_eq!(enforcer.owner(Dev::from_kernel(7)).map(|entry| entry.wrote), Some(1));
        enforcer.release_owner(Dev::from_kernel(7)).expect("released");
        assert_eq!(ask(Ask::Begin, 7, 2), (true, began), "the first has ended");
    }

    #[test]
    fn refusals_are_counted_and_forgotten_for_every_process() {
        let directory = tempfile::tempdir().expect("directory");
        let mut enforcer = enforcer(directory.path());
        let questions = enforcer.questions();
        enforcer.put_rule(&Rule::new(7, 3, State::Formatted), &Windows::new()).expect("put");
        for (tgid, diskseq) in [(1, 3), (2, 3), (2, 3), (3, 2)] {
            let question = PreloadRequest { dev: 7, diskseq, ..PreloadRequest::default() };
            let (_, told) = questions.answer(Ask::Denied, &question, &caller(tgid));
            assert_eq!(told.map(|event| event.kind), Some(EventKind::Denied as u32));
        }
        assert_eq!(enforcer.untaint(Dev::from_kernel(7), 3).expect("forgotten"), 2);
        assert_eq!(read(directory.path(), |snapshot| snapshot.entry(7).expect("a rule").forgotten), 1);
    }
}
