//! A guard with its own state, socket and pins, beside whatever runs on the host. Scenarios share one guard,
//! or start one that they may stop, kill and reconfigure.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{Read, Write},
    iter,
    ops::Deref,
    os::unix::{net::UnixStream, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use format_guard::enforce::{bpf::pins, canary};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::{
    device::device_number,
    schema,
    tool::{Ran, open_as_formatter},
    wait_for, wait_within,
};

/// The program under test.
///
/// # Errors
/// When `FORMAT_GUARD_BINARY` does not name it.
pub fn binary() -> Result<PathBuf> {
    env::var_os("FORMAT_GUARD_BINARY")
        .map(PathBuf::from)
        .context("FORMAT_GUARD_BINARY names the program under test")
}

/// Checks the database below a state directory that no agent uses, by `SQLite`'s own check.
///
/// # Errors
/// When it finds something, or cannot be made.
pub fn database_is_sound(state: &Path) -> Result<()> {
    let path = state.join("volumes.sqlite3");
    let database = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let said: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(said == "ok", "{}: {said}", path.display());
    Ok(())
}

/// The tier that needs no kernel support.
pub const PRELOAD: &str = "preload";

/// The tier in which known formatters wait for a volume to be read.
pub const LSM: &str = "lsm";

/// Guests are emulated, and work of milliseconds takes a hundred times as long there: formatters may wait for
/// the longest time that the configuration allows.
pub const PATIENT: &str = "first_format_wait = 10000";

/// The unit's limit for a start (`TimeoutStartSec`): an emulated processor that others share takes minutes to
/// verify the programs and to patch them into its kernel.
const START: Duration = Duration::from_mins(5);

/// The tier that judges opens only.
pub const CGROUP: &str = "cgroup";

/// The tier of this run.
#[must_use]
pub fn tier() -> String {
    env::var("FORMAT_GUARD_TIER").unwrap_or_else(|_| LSM.to_owned())
}

/// The directory of pinned maps and links. The shared guard's pins stay when a scenario is over: an agent of
/// the same build keeps the programs, and loading new ones takes longer under emulation than most scenarios.
pub const PINS: &str = "/sys/fs/bpf/fg-tests";

/// An agent and the enforcement that it leaves.
pub struct Guard {
    root: PathBuf,
    /// The agent's run directory.
    run: PathBuf,
    agent: Option<Child>,
    audit: bool,
    /// The state directory is new, although another guard's pins may exist: that is no loss of records.
    fresh: bool,
    /// Variables of the agent's environment.
    variables: Vec<(&'static str, OsString)>,
    /// Events up to this number belong to an earlier scenario.
    since: i64,
}

/// The shared guard while no scenario uses it. Only one guard exists at a time: a scenario would mistake
/// another guard's refusals for its own.
static SHARED: Mutex<Option<Guard>> = Mutex::new(None);

/// The shared guard, lent to one scenario.
pub struct Shared(Option<Guard>);

impl Deref for Shared {
    type Target = Guard;

    fn deref(&self) -> &Guard {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        *SHARED.lock().unwrap_or_else(PoisonError::into_inner) = self.0.take();
    }
}

impl Guard {
    /// The shared guard, proven to be in force. The devices of earlier scenarios are gone, and it returns
    /// only this scenario's events.
    ///
    /// # Errors
    /// As of [`Guard::start`].
    pub fn shared() -> Result<Shared> {
        let free = SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut guard = match free {
            Some(guard) if guard.json("status").is_ok_and(|status| status["mode"] == "enforce") => guard,
            _ => Self::patient()?,
        };
        let newest = guard.fetch("/v1/events?limit=1")?;
        guard.since = newest["events"][0]["id"].as_i64().unwrap_or(0);
        Ok(Shared(Some(guard)))
    }

    /// A guard with a state directory of its own, proven to be in force.
    ///
    /// # Errors
    /// When it does not come to be in force: with its log.
    pub fn start() -> Result<Self> {
        Self::make(None, false)
    }

    /// A guard that lets formatters wait for the longest time.
    ///
    /// # Errors
    /// As of [`Guard::start`].
    pub fn patient() -> Result<Self> {
        let mut guard = Self::unstarted(None)?;
        guard.start_agent()?;
        guard.forget_what_was_before()?;
        guard.configure(PATIENT)?;
        Ok(guard)
    }

    /// What a script does before it formats a fresh device: nothing in a tier where a formatter waits.
    ///
    /// # Errors
    /// When the device is not read in time.
    pub fn before_format(&self, device: &Path) -> Result<()> {
        if tier() != LSM {
            self.json(&format!("settle {} --timeout 50s", device.display()))?;
        }
        Ok(())
    }

    /// A guard that refuses nothing.
    ///
    /// # Errors
    /// As of [`Guard::start`].
    pub fn audit() -> Result<Self> {
        Self::make(None, true)
    }

    /// A guard over an existing state directory.
    ///
    /// # Errors
    /// As of [`Guard::start`].
    pub fn on_state(state: &Path) -> Result<Self> {
        Self::make(Some(state), false)
    }

    /// A guard over this state directory, or over a new one, whose agent is not started yet.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn unstarted(state: Option<&Path>) -> Result<Self> {
        Self::prepare(state, false)
    }

    /// A guard over this state directory, or over a new one.
    fn make(state: Option<&Path>, audit: bool) -> Result<Self> {
        let mut guard = Self::prepare(state, audit)?;
        guard.start_agent()?;
        Ok(guard)
    }

    fn prepare(state: Option<&Path>, audit: bool) -> Result<Self> {
        drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
        let root = tempfile::Builder::new().prefix("fg-").tempdir_in("/run")?.keep();
        let state = state.map_or_else(|| root.join("state"), Path::to_owned);
        // The library that is loaded into the tests looks there.
        let published = (tier() == PRELOAD).then(|| env::var_os("FORMAT_GUARD_RUN_DIR").map(PathBuf::from));
        let run = published.flatten().unwrap_or_else(|| root.join("run"));
        let mut config = format!(
            "state_dir = '{}'\nrun_dir = '{}'\npin_dir = '{}'\nresync_interval = 1\nquarantine = 5\n\
             protect = false\n",
            state.display(),
            run.display(),
            PINS
        );
        match tier().as_str() {
            PRELOAD => config.push_str("tier = 'preload'\nrequire = 'preload'\n"),
            CGROUP => {
                let group = env::var("FORMAT_GUARD_CGROUP").context("FORMAT_GUARD_CGROUP names a group")?;
                config = format!("{config}tier = 'cgroup'\nrequire = 'cgroup'\ncgroup_dir = '{group}'\n");
            }
            _ => {}
        }
        fs::write(root.join("config.toml"), config)?;
        let fresh = !state.join("volumes.sqlite3").exists();
        Ok(Self { root, run, agent: None, audit, fresh, variables: Vec::new(), since: 0 })
    }

    /// Adds lines to the configuration; they hold from the agent's next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add_to_configuration(&self, lines: &str) -> Result<()> {
        let mut file = fs::OpenOptions::new().append(true).open(self.config())?;
        Ok(file.write_all(lines.as_bytes())?)
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// When there is one, or it cannot be started.
    pub fn spawn_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        self.agent = Some(self.command()?.spawn().context("cannot start the agent")?);
        Ok(())
    }

    /// Starts the agent and waits until it says that it is in force.
    ///
    /// # Errors
    /// When it ends, or its canary has not proven it.
    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        let status = wait_within(START, "the agent to be in force", || {
            if let Some(ended) = self.agent.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("the agent ended with {ended}:\n{}", self.log());
            }
            let status = self.ask("status")?;
            Ok((status.status == 0).then_some(status))
        })
        .with_context(|| self.log())?;
        let status: Value = serde_json::from_str(&status.text)?;
        ensure!(status["proven"] == true, "the canary has not proven the guard: {status}");
        // Another tier than this run's would prove nothing of it.
        let tier = tier();
        ensure!(status["tier"] == tier.as_str(), "the guard is not of tier {tier}: {status}");
        if std::mem::take(&mut self.fresh) && !status["records_lost"].is_null() {
            self.json("loss end --reason a-state-directory-of-its-own")?;
        }
        Ok(())
    }

    /// Forgets earlier events. An agent that takes over from another one also gets the refusals of the time
    /// without an agent.
    ///
    /// # Errors
    /// When it is not told in time of what is refused here.
    pub fn forget_what_was_before(&mut self) -> Result<()> {
        if tier() == PRELOAD {
            return Ok(());
        }
        let node = canary::Node::make()?;
        let _ = open_as_formatter(node.path());
        let device = node.dev().to_string();
        self.since = wait_for("the agent to be told of what was refused before", || {
            let events = self.fetch("/v1/events?limit=10000")?;
            let events = events["events"].as_array().context("no events")?;
            let ours = events.iter().find(|event| event["refusal"]["device"] == device.as_str());
            Ok(ours.and_then(|event| event["id"].as_i64()))
        })?;
        Ok(())
    }

    /// The agent, not started yet.
    fn command(&self) -> Result<Command> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("log"))?;
        let mut agent = Command::new(binary()?);
        agent.arg("agent").arg("--config").arg(self.config());
        if self.audit {
            agent.arg("--audit");
        }
        agent.envs(self.variables.iter().map(|(name, value)| (name, value)));
        agent.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(agent)
    }

    /// Sets an environment variable for agents that are started from now on.
    pub fn set_variable(&mut self, name: &'static str, value: &OsStr) {
        self.variables.push((name, value.to_owned()));
    }

    /// Starts an agent that is killed when it reaches this point of `format_guard::fault` for the given
    /// number of times.
    ///
    /// # Errors
    /// When there is one, or it cannot be started.
    pub fn start_doomed(&mut self, point: &str, time: u32) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        let mut agent = self.command()?;
        agent.env("FORMAT_GUARD_FAULT", format!("{point}:{time}"));
        self.agent = Some(agent.spawn().context("cannot start the agent")?);
        Ok(())
    }

    /// Whether the agent has been killed.
    ///
    /// # Errors
    /// When it has ended otherwise.
    pub fn is_dead(&mut self) -> Result<bool> {
        let Some(agent) = self.agent.as_mut() else { return Ok(true) };
        let Some(status) = agent.try_wait()? else { return Ok(false) };
        self.agent = None;
        ensure!(status.signal() == Some(libc::SIGKILL), "the agent ended with {status}:\n{}", self.log());
        Ok(true)
    }

    /// Kills the agent with SIGKILL; enforcement must go on without it.
    ///
    /// # Errors
    /// When there is none, or it has ended by itself.
    pub fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill()?;
        let status = agent.wait()?;
        ensure!(status.signal() == Some(libc::SIGKILL), "the agent ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Removes the guard: the agent, and every pin. Nothing is refused once this has returned.
    ///
    /// # Errors
    /// When a pin cannot be removed, or the kernel does not detach a program.
    pub fn remove(&mut self) -> Result<()> {
        if self.agent.is_some() {
            self.kill_agent()?;
        }
        pins::take_away(Path::new(PINS)).context("cannot take the guard away")?;
        match fs::remove_dir(PINS) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Stops the agent as a service manager does, and returns how long that took. Enforcement goes on.
    ///
    /// # Errors
    /// When there is none, or it does not stop.
    pub fn stop_agent(&mut self) -> Result<Duration> {
        let mut agent = self.agent.take().context("no agent runs")?;
        let start = Instant::now();
        crate::tool::must(&format!("kill -TERM {}", agent.id()))?;
        let status = wait_for("the agent to stop", || Ok(agent.try_wait()?))?;
        ensure!(status.success(), "the agent stopped with {status}:\n{}", self.log());
        Ok(start.elapsed())
    }

    /// Suspends the agent: it reacts to nothing until [`Guard::resume_agent`].
    ///
    /// # Errors
    /// When there is none.
    pub fn pause_agent(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets a suspended agent go on.
    ///
    /// # Errors
    /// When there is none.
    pub fn resume_agent(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        crate::tool::must(&format!("kill -{name} {}", self.agent_id()?)).map(drop)
    }

    /// Process id of the agent.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent_id(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.id())
    }

    /// Has the agent read its configuration again.
    ///
    /// # Errors
    /// When there is none.
    pub fn hang_up(&self) -> Result<()> {
        self.signal("HUP")
    }

    /// Adds a line to the configuration, and waits until it is in force.
    ///
    /// # Errors
    /// When it does not come to be.
    pub fn configure(&self, line: &str) -> Result<()> {
        self.add_to_configuration(&format!("{line}\n"))?;
        let read = self.events("reloaded")?.len();
        self.hang_up()?;
        wait_for("the configuration to be read", || Ok((self.events("reloaded")?.len() > read).then_some(())))
    }

    /// Sets a key of the configuration to this TOML, for the next start.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn replace(&self, key: &str, value: &str) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        let line = format!("{key} = {value}\n");
        let mut lines: Vec<&str> =
            text.lines().filter(|line| !line.starts_with(&format!("{key} ="))).collect();
        lines.push(&line);
        Ok(fs::write(self.config(), lines.join("\n"))?)
    }

    /// Runs an agent that must fail with this exit status, of another program if one is named, and returns
    /// its output.
    ///
    /// # Errors
    /// When it cannot be started, or does not fail.
    pub fn start_in_vain(&self, by: &str, status: i32) -> Result<String> {
        let config = self.config();
        let line = format!("{by} timeout 50 {} agent --config {}", binary()?.display(), config.display());
        let ran = crate::tool::run(&line)?;
        ensure!(ran.status == status, "{ran:?}");
        Ok(ran.text)
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// What the agent has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// Runs the command line with these words and `--json`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ask(&self, line: &str) -> Result<Ran> {
        let ran = crate::tool::run(&format!("{} --json", self.line(line)?))?;
        if ran.status == 0 {
            schema::hold(line, &ran.text)?;
        }
        Ok(ran)
    }

    /// Runs the command line as a person would.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn say(&self, line: &str) -> Result<Ran> {
        crate::tool::run(&self.line(line)?)
    }

    /// The command line with these words.
    ///
    /// # Errors
    /// When the program under test is not named.
    pub fn line(&self, line: &str) -> Result<String> {
        Ok(format!("{} --socket {} {line}", binary()?.display(), self.socket().display()))
    }

    /// The JSON that a command prints; it must succeed.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, line: &str) -> Result<Value> {
        let ran = self.ask(line)?;
        ensure!(ran.status == 0, "{} ended with {}: {}", ran.line, ran.status, ran.text);
        serde_json::from_str(&ran.text).with_context(|| ran.text)
    }

    /// The agent's answer to a request, without the command line in between: for requests that are repeated
    /// often.
    ///
    /// # Errors
    /// When it does not answer.
    fn fetch(&self, path: &str) -> Result<Value> {
        let body = self.get(path)?;
        serde_json::from_str(&body).with_context(|| body.clone())
    }

    /// The agent's answer to a request on its socket.
    ///
    /// # Errors
    /// When there is no agent.
    pub fn get(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket()).context("no agent answers")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: format-guard\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        Ok(body.to_owned())
    }

    /// The agent's view of the volume in a device, or the failure that it answers.
    ///
    /// # Errors
    /// When there is no such device, or no agent.
    pub fn shown(&self, device: &Path) -> Result<Value> {
        self.fetch(&format!("/v1/volume?volume=dev%3D{}", device_number(device)?.replace(':', "%3A")))
    }

    /// The agent's view of the volume of this id, or the failure that it answers.
    ///
    /// # Errors
    /// When there is no agent.
    pub fn shown_id(&self, id: &str) -> Result<Value> {
        // Escapes the characters of ids that mean something in a query.
        let id = ["%", "&", "+", "#", "=", " "].iter().fold(id.to_owned(), |id, character| {
            id.replace(character, &format!("%{:02X}", character.as_bytes()[0]))
        });
        self.fetch(&format!("/v1/volume?volume={id}"))
    }

    /// The volume in a device, by the command line.
    ///
    /// # Errors
    /// When nothing is.
    pub fn volume(&self, device: &Path) -> Result<Value> {
        self.json(&format!("volume show {}", device.display()))
    }

    /// Waits until the volume in a device is in this state, and returns the volume.
    ///
    /// # Errors
    /// When it does not come to be.
    pub fn wait_for_state(&self, device: &Path, state: &str) -> Result<Value> {
        self.wait_for_volume(device, state, |volume| volume["state"] == state)
    }

    /// Waits until the volume in a device is as wanted, and returns it.
    ///
    /// # Errors
    /// When it does not come to be.
    pub fn wait_for_volume(
        &self,
        device: &Path,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        wait_for(&format!("{} to be {what}", device.display()), || {
            // The device may be gone for a moment.
            if !device.exists() {
                return Ok(None);
            }
            last = self.shown(device)?;
            // A failure has no state: the agent does not know the volume yet.
            Ok((last["state"].is_string() && wanted(&last)).then(|| last.clone()))
        })
        // The expectation comes before the log, since a reader may see only the beginning.
        .map_err(|error| anyhow!("{error:#}: {last}\n{}", self.log()))
    }

    /// Number of the newest refusal, zero before the first.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn newest_refusal(&self) -> Result<i64> {
        // Some other events of a formatter come after the refusal of the one before it.
        let events = self.fetch("/v1/events?limit=10")?;
        let newest = events["events"].as_array().and_then(|events| {
            events
                .iter()
                .filter(|event| event["kind"] == "denied")
                .filter_map(|event| event["id"].as_i64())
                .max()
        });
        Ok(newest.unwrap_or(0))
    }

    /// Every event of this kind in this scenario, oldest first; a line of the history that counts several is
    /// repeated as often.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn events(&self, kind: &str) -> Result<Vec<Value>> {
        let events = self.fetch("/v1/events?limit=10000")?;
        let events = events["events"].as_array().cloned().unwrap_or_default();
        let ours = |event: &Value| event["kind"] == kind && event["id"].as_i64() > Some(self.since);
        let count =
            |event: &Value| usize::try_from(event["count"].as_u64().unwrap_or(1)).unwrap_or(usize::MAX);
        Ok(events
            .into_iter()
            .filter(ours)
            .flat_map(|event| iter::repeat_n(event.clone(), count(&event)))
            .collect())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.agent.is_some()
            && let Err(error) = self.kill_agent()
        {
            eprintln!("the agent cannot be killed: {error:#}");
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}
