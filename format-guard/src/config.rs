//! The configuration: one TOML file, every key with a default. A malformed file never starts a guard with
//! defaults.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use format_guard_common::{DEVICES, RULES_IN_SEGMENT};
use serde::{Deserialize, Serialize};

use crate::{
    mode::Mode,
    policy::{self, Criteria, Policy},
    tier::{Choice, Tier},
    volume::copies::{MAX_BYTES, Wanted},
};

/// Where the file is looked for when no other is named.
pub const DEFAULT_FILE: &str = "/etc/format-guard/config.toml";
/// Where the agent's socket is unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/format-guard/control.sock";
/// Lines of the history that are kept unless configured otherwise.
pub const HISTORY_LINES: u32 = 20_000;
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Longest wait of a formatter, in milliseconds.
pub const MAX_WAIT: u64 = 10_000;
/// Longest quarantine, in seconds.
const MAX_QUARANTINE: u64 = 86_400;
/// Longest time in days: a century.
const MAX_DAYS: u64 = 36_500;
/// Most devices that may have a rule.
const MAX_DEVICES: u32 = 65_536;
/// Names that [`Config::trusted`] has at most.
const MAX_TRUSTED: usize = 64;

/// The key of the tables that declare policies: the last one of the file.
const POLICY: &str = "policy";

/// Patterns that [`Config::strict`] has at most.
const MAX_PATTERNS: usize = 64;

/// What becomes of commands that may write past the block layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Passthrough {
    /// They go on, and nobody looks at them.
    #[default]
    Allow,
    /// They are refused.
    Refuse,
}

/// Which bytes without a known format are content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RawContent {
    /// What programs other than formatters write to a blank volume.
    #[default]
    Written,
    /// Also what is found on a volume of which nothing is known.
    Found,
    /// None.
    Ignored,
}

/// One key of the file.
pub struct Key {
    /// Its name, with that of its table.
    pub name: &'static str,
    /// What people are told of it.
    doc: &'static str,
    /// A running agent cannot change it.
    restart: bool,
}

impl Key {
    /// What people are told of it.
    #[must_use]
    pub fn doc(&self) -> String {
        if self.restart { format!("{} Needs a restart.", self.doc) } else { self.doc.to_owned() }
    }
}

/// A key that takes effect when the file is read again.
const fn live(name: &'static str, doc: &'static str) -> Key {
    Key { name, doc, restart: false }
}

/// A key that takes effect at the agent's next start.
const fn restart(name: &'static str, doc: &'static str) -> Key {
    Key { name, doc, restart: true }
}

/// Every key, in the order of the file.
pub const KEYS: &[Key] = &[
    live(
        "mode",
        "\"enforce\" carries refusals out, \"audit\" only reports them. A mode that format-guard \
         mode sets on a running agent outranks this.",
    ),
    restart(
        "tier",
        "How the guard refuses: \"lsm\" (the hooks of BPF LSM, which the boot parameter lsm= \
         must list), \"fmod_ret\" (the functions that call them), \"cgroup\" (a program at the \
         root of the control groups), \"preload\" (the LD_PRELOAD library, in programs that load \
         it), or \"auto\", the best of them that is proven. format-guard status says what the \
         tier in force leaves open.",
    ),
    restart(
        "require",
        "The weakest tier with which the guard starts: \"lsm\", \"fmod_ret\", \"cgroup\" or \
         \"preload\". The last two refuse formatters and few writes, so that they must be asked \
         for.",
    ),
    restart(
        "cgroup_dir",
        "The control group (version 2) whose processes tier \"cgroup\" refuses. Empty: all, \
         where the host's control groups are mounted.",
    ),
    restart("state_dir", "The database of volumes. It must be on a disk that is kept."),
    restart("run_dir", "The control socket, control.sock."),
    restart("pin_dir", "The kernel objects that outlive the agent, on a bpf file system."),
    live("probe_deadline", "How long one probe of one device may take, in seconds (1 to 3600)."),
    live(
        "first_format_wait",
        "How long a known formatter waits, at most, if it opens a volume that the agent has not \
         read yet (tier \"lsm\"), in milliseconds (0 to 10000): the agent reads a fresh volume in \
         a moment. 0: the formatter is refused at once.",
    ),
    restart(
        "max_devices",
        "Devices that may be guarded at the same time (64 to 65536). The kernel keeps 64 bytes \
         for each of so many, and 2 KiB for each that is there, in steps of 64.",
    ),
    live("resync_interval", "How often the devices are compared with the records, in seconds (1 to 3600)."),
    restart(
        "quarantine",
        "How long a volume must read blank before it may be formatted, if the host went down \
         without a word while a format was allowed, in seconds (0 to 86400): what fails with the \
         host reads as zeros for a while.",
    ),
    restart(
        "raw_content",
        "Which bytes without a known format are content (a database, the disk of a virtual \
         machine, an object store), over which no formatter goes: \"written\" (what programs \
         other than formatters write to a blank volume), \"found\" (also what is found on a \
         volume of which nothing is known: where new volumes read as zeros), or \"ignored\" \
         (none).",
    ),
    live(
        "copy_limit",
        "Bytes that are copied of each volume that holds a format (0 to 4194304): superblocks, \
         headers, tables, by which format-guard volume rescue makes it findable again. They are \
         in the database, compressed, readable for root alone. 0: none.",
    ),
    live(
        "copy_key_areas",
        "Copy the key areas of LUKS, too. Without them a header that is put back opens nothing; \
         with them a passphrase that was changed or removed opens what is put back, and whoever \
         reads the database may try passphrases on it.",
    ),
    restart(
        "history_lines",
        "Lines of the history that are kept (100 to 10000000), the newest. What operators did \
         (permits, exemptions, modes) is kept for good and not counted; refusals of one program \
         on one volume, of the same kind, are one line a day.",
    ),
    live(
        "forget_after",
        "Days after which the agent forgets a volume that was not attached, never held a format, \
         and that no operator has decided about (1 to 36500). 0: the agent forgets none.",
    ),
    restart(
        "trusted",
        "Programs that may write to strict volumes, besides those that are known to maintain \
         them: by the name that the kernel has for them (its first 15 bytes count).",
    ),
    live(
        "strict",
        "Ids of volumes that are strict from the start; a * at the end stands for anything \
         (\"iscsi:*\", \"longhorn:*\"). For volumes that only the kernel writes to: while a \
         volume holds a format, only the tools of that format and trusted programs may write to \
         it.",
    ),
    restart(
        "passthrough",
        "\"allow\" or \"refuse\" commands that may write past the block layer: SG_IO on any \
         device that takes it, NVMe passthrough. Commands that are known to read only are never \
         refused.",
    ),
    live(
        "protect",
        "While the agent enforces, keep others from taking the guard away: its pins, maps, \
         programs and links, and the agent itself, if process 1 started it. Only the agent's own \
         executable and process 1 may take the guard away. format-guard protect off ends the \
         protection.",
    ),
    live(
        "kernel_log",
        "Write a line for each refusal to the kernel's log (dmesg), where the user of a refused \
         program looks first: at most ten lines a minute, and one a minute for one program on one \
         device.",
    ),
    restart(
        "metrics_listen",
        "Address and port (127.0.0.1:9838) for Prometheus and for probes, /metrics, /healthz and \
         /readyz, over HTTP without a password. Empty: none; on the control socket root reads \
         /metrics all the same.",
    ),
    restart(
        "kubelet_dir",
        "Where kubelet keeps its pods: from there a refusal names the persistent volume and the \
         pods. Empty: it does not.",
    ),
    restart(
        "kubernetes.events",
        "Report refusals to the cluster's API, as Events of the claim and the pods, or else of \
         the node: as the pod's account or KUBECONFIG allows. Many refusals at once become one \
         Event, and nothing waits for it.",
    ),
    restart(
        "store.endpoints",
        "Members of the etcd (3.4 or later) in which nodes share what they know of volumes that \
         each of them may attach, as http://HOST:PORT or https://HOST:PORT. Empty: this node \
         keeps what it knows for itself.",
    ),
    restart(
        "store.kubernetes",
        "Nodes share what they know through the API server of their Kubernetes (1.32 or later) \
         instead, as GuardedVolumes: by the pod's account or KUBECONFIG. The chart makes the kind \
         and the account's rights.",
    ),
    restart("store.prefix", "The path below which all keys in that etcd lie."),
    restart(
        "store.ca_file",
        "Certificates of the authorities that the members' certificates are from (PEM). Empty: \
         none; needed for https.",
    ),
    restart("store.cert_file", "This node's certificate for the members (PEM). Empty: none."),
    restart("store.key_file", "The key of that certificate (PEM)."),
    restart("store.user", "The user name for etcd. Empty: none."),
    restart(
        "store.password_file",
        "The file with that user's password, and nothing else but space around it.",
    ),
    restart(
        "store.timeout",
        "How long a member may take to answer before the agent asks another, in seconds (1 to \
         60).",
    ),
    restart(
        "store.lease",
        "How long a claim on a blank volume outlives a node that is gone, in seconds (5 to \
         3600). A node arms nothing any more when three quarters of it have passed without an \
         answer.",
    ),
    restart(
        "store.required",
        "Whether /readyz says no while the store does not answer. Known formats stay protected \
         either way.",
    ),
    live(
        "longhorn_dir",
        "Block device nodes in this directory name the volumes of devices that have no identity \
         of their own. Empty: none do.",
    ),
    live(
        "policy",
        "What is done with the volumes that match, one table [[policy]] each, at the end of the \
         file: name, action (\"exempt\", \"audit\", \"strict\", \"never-format\", \"ephemeral\" or \
         \"slot\") and match, of which all that is given must match: identity, scheme, gpt_type, \
         partition_label, label. The first that matches holds; format-guard config check \
         explains each.",
    ),
];

/// Every setting.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Enforce or audit.
    pub mode: Mode,
    /// How the guard refuses.
    pub tier: Choice,
    /// The weakest way with which it starts.
    pub require: Tier,
    /// The control group that tier `cgroup` stands at; empty: the root.
    pub cgroup_dir: PathBuf,
    /// The database; must outlive a reboot.
    pub state_dir: PathBuf,
    /// The control socket.
    pub run_dir: PathBuf,
    /// Pinned kernel objects, on a bpf file system.
    pub pin_dir: PathBuf,
    /// How long one probe of one device may take, in seconds.
    pub probe_deadline: u64,
    /// How long a known formatter waits for a volume to be read, in milliseconds.
    pub first_format_wait: u64,
    /// How many devices may be guarded at the same time.
    pub max_devices: u32,
    /// How often the world is compared with the records, in seconds.
    pub resync_interval: u64,
    /// How long a volume that may have been formatted unseen must read blank, in seconds.
    pub quarantine: u64,
    /// Which bytes without a known format are content.
    pub raw_content: RawContent,
    /// Bytes that are copied of each volume; zero: none.
    pub copy_limit: u64,
    /// Copy the key areas of LUKS, too.
    pub copy_key_areas: bool,
    /// Lines of history that are kept beside operators' doings.
    pub history_lines: u32,
    /// After how many days a volume is forgotten that was not seen and never held a format; zero: never.
    pub forget_after: u64,
    /// Programs that may write to strict volumes.
    pub trusted: Vec<String>,
    /// Ids of volumes that are strict, or their beginnings before a `*`.
    pub strict: Vec<String>,
    /// Whether `SG_IO` and `NVMe` passthrough may write.
    pub passthrough: Passthrough,
    /// Whether the guard itself is protected while it enforces.
    pub protect: bool,
    /// Whether refusals are told in the kernel's log.
    pub kernel_log: bool,
    /// Where metrics are served over TCP; empty: nowhere.
    pub metrics_listen: String,
    /// kubelet's directory; empty: none.
    pub kubelet_dir: PathBuf,
    /// What a cluster is told.
    pub kubernetes: Kubernetes,
    /// What nodes share.
    pub store: Store,
    /// Nodes that name volumes without an identity of their own; empty: none.
    pub longhorn_dir: PathBuf,
    /// What is done with volumes that match; the first that matches holds.
    pub policy: Vec<Policy>,
}

/// The store that nodes share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Its members; empty: nothing is shared.
    pub endpoints: Vec<String>,
    /// The API server of a Kubernetes, in its place.
    pub kubernetes: bool,
    /// Below which keys.
    pub prefix: String,
    /// Authorities, as PEM; empty: none.
    pub ca_file: PathBuf,
    /// This node's certificate, as PEM; empty: none.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// The user; empty: none.
    pub user: String,
    /// Where the user's password is.
    pub password_file: PathBuf,
    /// How long an answer may take, in seconds.
    pub timeout: u64,
    /// How long a lease lasts, in seconds.
    pub lease: u64,
    /// Whether a node without it is not ready.
    pub required: bool,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            kubernetes: false,
            prefix: "/format-guard".to_owned(),
            ca_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            user: String::new(),
            password_file: PathBuf::new(),
            timeout: 5,
            lease: 60,
            required: false,
        }
    }
}

impl Store {
    /// What is wrong with it, in a sentence.
    fn check(&self) -> Result<(), String> {
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        let tls = self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        for endpoint in &self.endpoints {
            let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            let sound = rest.is_some_and(|rest| {
                rest.rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            });
            if !sound {
                return Err(format!(
                    "store.endpoints has '{endpoint}': write http://HOST:PORT or https://HOST:PORT"
                ));
            }
        }
        if !self.endpoints.is_empty() && self.kubernetes {
            return Err(
                "store.endpoints names members and store.kubernetes is set: nodes share through one of them"
                    .to_owned(),
            );
        }
        if self.kubernetes && cfg!(not(feature = "kubernetes")) {
            return Err(
                "store.kubernetes is set: this program was built without the feature kubernetes".to_owned()
            );
        }
        if !self.endpoints.is_empty() && cfg!(not(feature = "etcd")) {
            return Err(
                "store.endpoints names members: this program was built without the feature etcd".to_owned()
            );
        }
        if tls && !is_set(&self.ca_file) {
            return Err(
                "store.endpoints has https and store.ca_file is empty: name the authorities' file".to_owned()
            );
        }
        if !tls && (is_set(&self.ca_file) || is_set(&self.cert_file)) {
            return Err(
                "store.ca_file or store.cert_file is set and no endpoint is https: change one of them"
                    .to_owned(),
            );
        }
        if is_set(&self.cert_file) != is_set(&self.key_file) {
            return Err("store.cert_file and store.key_file belong together: set both, or none".to_owned());
        }
        if self.user.is_empty() == is_set(&self.password_file) {
            return Err("store.user and store.password_file belong together: set both, or none".to_owned());
        }
        if !self.prefix.starts_with('/')
            || self.prefix.ends_with('/')
            || self.prefix.chars().any(char::is_control)
        {
            return Err(format!("store.prefix is '{}': write a path like /format-guard", self.prefix));
        }
        for (key, value, bounds) in [("timeout", self.timeout, 1..=60), ("lease", self.lease, 5..=3600)] {
            if !bounds.contains(&value) {
                let (least, most) = bounds.into_inner();
                return Err(format!("store.{key} is {value}: it must be between {least} and {most} seconds"));
            }
        }
        Ok(())
    }
}

/// What a cluster is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// Refusals, as Events.
    pub events: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            tier: Choice::Auto,
            require: Tier::FmodRet,
            cgroup_dir: PathBuf::new(),
            state_dir: PathBuf::from("/var/lib/format-guard"),
            run_dir: PathBuf::from("/run/format-guard"),
            pin_dir: PathBuf::from("/sys/fs/bpf/format-guard"),
            probe_deadline: 10,
            first_format_wait: 250,
            max_devices: DEVICES,
            resync_interval: 5,
            quarantine: 300,
            raw_content: RawContent::Written,
            copy_limit: 1 << 20,
            copy_key_areas: false,
            history_lines: HISTORY_LINES,
            forget_after: 90,
            trusted: ["cryptsetup", "dmsetup", "losetup", "mount"].map(str::to_owned).to_vec(),
            strict: Vec::new(),
            passthrough: Passthrough::Allow,
            protect: true,
            kernel_log: true,
            metrics_listen: String::new(),
            kubelet_dir: PathBuf::from("/var/lib/kubelet"),
            kubernetes: Kubernetes::default(),
            store: Store::default(),
            longhorn_dir: PathBuf::from("/dev/longhorn"),
            policy: Vec::new(),
        }
    }
}

/// What a key is set to, as TOML writes it.
fn value(table: &toml::Table, key: &str) -> String {
    let value = match key.split_once('.') {
        Some((outer, inner)) => table.get(outer).and_then(|table| table.get(inner)),
        None => table.get(key),
    };
    value.map_or_else(String::new, ToString::to_string)
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {path} is wrong: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column and finding.
        reason: String,
    },
}

impl Config {
    /// Reads `file`, or the default file if there is one, or takes the defaults.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let unreadable = |reason| ConfigError::Unreadable { path: path.to_owned(), reason };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => {
                return Ok(Self::default());
            }
            Err(error) => return Err(unreadable(error)),
            Ok(metadata) if metadata.len() > MAX_FILE => {
                return Err(unreadable(io::Error::other("it is larger than 1 MiB")));
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text).map_err(|reason| ConfigError::Malformed { path: path.to_owned(), reason })
    }

    /// Where things are, as far as a file says it that cannot be used as a whole: its directories, and
    /// defaults for all else. With why it cannot be used. For what must be possible whatever the file holds.
    #[must_use]
    pub fn salvaged(file: Option<&Path>) -> (Self, Option<ConfigError>) {
        let error = match Self::read(file) {
            Ok(config) => return (config, None),
            Err(error) => error,
        };
        let mut config = Self::default();
        let text = fs::read(file.unwrap_or(Path::new(DEFAULT_FILE))).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines().take_while(|line| !line.starts_with('[')) {
            let Ok(table) = toml::from_str::<toml::Table>(line) else { continue };
            for (key, directory) in [
                ("state_dir", &mut config.state_dir),
                ("run_dir", &mut config.run_dir),
                ("pin_dir", &mut config.pin_dir),
            ] {
                if let Some(path) = table.get(key).and_then(toml::Value::as_str) {
                    *directory = PathBuf::from(path);
                }
            }
        }
        (config, Some(error))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = toml::from_str(text).map_err(|error| plain(&error))?;
        let of_table = |known: &str, key: &str| known.split_once('.').is_some_and(|(table, _)| table == key);
        let is_known = |key: &str| KEYS.iter().any(|known| known.name == key || of_table(known.name, key));
        if let Some(unknown) = table.keys().find(|key| !is_known(key)) {
            return Err(unknown_key(unknown));
        }
        check_keys_of_policies(&table)?;
        let config: Self = toml::from_str(text).map_err(|error| plain(&error))?;
        for (key, value) in
            [("probe_deadline", config.probe_deadline), ("resync_interval", config.resync_interval)]
        {
            if !(1..=3600).contains(&value) {
                return Err(format!("{key} is {value}: it must be between 1 and 3600 seconds"));
            }
        }
        if config.first_format_wait > MAX_WAIT {
            return Err(format!(
                "first_format_wait is {}: it must be at most {MAX_WAIT} milliseconds",
                config.first_format_wait
            ));
        }
        if !(RULES_IN_SEGMENT..=MAX_DEVICES).contains(&config.max_devices) {
            return Err(format!(
                "max_devices is {}: it must be between {RULES_IN_SEGMENT} and {MAX_DEVICES}",
                config.max_devices
            ));
        }
        if config.quarantine > MAX_QUARANTINE {
            return Err(format!(
                "quarantine is {}: it must be at most {MAX_QUARANTINE} seconds",
                config.quarantine
            ));
        }
        if !(100..=10_000_000).contains(&config.history_lines) {
            return Err(format!(
                "history_lines is {}: it must be between 100 and 10000000",
                config.history_lines
            ));
        }
        if config.copy_limit > MAX_BYTES {
            return Err(format!("copy_limit is {}: it must be at most {MAX_BYTES} bytes", config.copy_limit));
        }
        if config.forget_after > MAX_DAYS {
            return Err(format!(
                "forget_after is {}: it must be at most {MAX_DAYS} days",
                config.forget_after
            ));
        }
        if config.mode == Mode::Strict {
            let way = "format-guard mode strict --volume VOLUME --reason TEXT";
            return Err(format!("mode is strict, which is a mode of single volumes: set it with {way}"));
        }
        if config.trusted.len() > MAX_TRUSTED {
            return Err(format!("trusted has {} names: at most {MAX_TRUSTED}", config.trusted.len()));
        }
        if let Some(name) = config.trusted.iter().find(|name| name.is_empty() || name.contains('/')) {
            return Err(format!("trusted has '{name}': write a program's name, without its directory"));
        }
        if config.strict.len() > MAX_PATTERNS {
            return Err(format!("strict has {} patterns: at most {MAX_PATTERNS}", config.strict.len()));
        }
        let is_pattern =
            |text: &str| text.contains(':') && !text.strip_suffix('*').unwrap_or(text).contains('*');
        if let Some(text) = config.strict.iter().find(|text| !is_pattern(text)) {
            return Err(format!(
                "strict has '{text}': write a volume's id, as format-guard volume list shows it, or its beginning and a *"
            ));
        }
        policy::check(&config.policy)?;
        config.metrics_listen()?;
        config.store.check()?;
        if config.kubernetes.events && cfg!(not(feature = "kubernetes")) {
            return Err(
                "kubernetes.events is true: this program was built without the feature kubernetes".to_owned()
            );
        }
        if config.tiers(None).is_empty() {
            let required = config.require.name();
            return Err(format!(
                "tier is weaker than {required}, which require asks for: change one of them"
            ));
        }
        for (key, path) in
            [("state_dir", &config.state_dir), ("run_dir", &config.run_dir), ("pin_dir", &config.pin_dir)]
        {
            if !path.is_absolute() {
                return Err(format!("{key} is '{}': it must be an absolute path", path.display()));
            }
        }
        Ok(config)
    }

    /// The ways to refuse that are tried where these security modules are active, best first; none weaker
    /// than is required.
    #[must_use]
    pub fn tiers(&self, modules: Option<&str>) -> Vec<Tier> {
        let mut tiers = self.tier.tiers(modules);
        tiers.retain(|tier| *tier <= self.require);
        tiers
    }

    /// Where metrics are served over TCP.
    pub fn metrics_listen(&self) -> Result<Option<SocketAddr>, String> {
        let text = &self.metrics_listen;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            format!("metrics_listen is '{text}': write an address and a port (127.0.0.1:9838), or nothing")
        })
    }

    /// A key that differs and that a running agent cannot change.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Option<&'static str> {
        let (old, new) = (self.table(), new.table());
        let differs = |key: &&Key| key.restart && value(&old, key.name) != value(&new, key.name);
        KEYS.iter().find(differs).map(|key| key.name)
    }

    /// Every key, with its default and what it means.
    pub(crate) fn keys() -> Vec<(&'static str, String, String)> {
        let defaults = Self::default().table();
        KEYS.iter().map(|key| (key.name, value(&defaults, key.name), key.doc())).collect()
    }

    /// The whole configuration as a file, each key with what it means and its default.
    #[must_use]
    pub fn document(&self) -> String {
        let (values, defaults) = (self.table(), Self::default().table());
        let mut text = String::new();
        for key in KEYS {
            for line in wrap(&key.doc(), 76) {
                let _ = writeln!(text, "# {line}");
            }
            let key = key.name;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# default: {}", value(&defaults, key));
            if key == POLICY {
                text.push_str(&self.tables_of_policies());
            } else {
                let _ = writeln!(text, "{key} = {}\n", value(&values, key));
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    /// As tables, so that more of them may follow.
    fn tables_of_policies(&self) -> String {
        if self.policy.is_empty() {
            return String::new();
        }
        let tables = BTreeMap::from([(POLICY, &self.policy)]);
        toml::to_string(&tables).unwrap_or_default()
    }

    fn table(&self) -> toml::Table {
        toml::Table::try_from(self).unwrap_or_default()
    }

    /// The directory whose nodes name volumes, if there is to be one.
    #[must_use]
    pub fn longhorn_dir(&self) -> Option<PathBuf> {
        (!self.longhorn_dir.as_os_str().is_empty()).then(|| self.longhorn_dir.clone())
    }

    /// kubelet's directory, if there is to be one.
    #[must_use]
    pub fn kubelet_dir(&self) -> Option<PathBuf> {
        (!self.kubelet_dir.as_os_str().is_empty()).then(|| self.kubelet_dir.clone())
    }

    /// Where the agent listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// [`Config::first_format_wait`] as a duration.
    #[must_use]
    pub const fn first_format_wait(&self) -> Duration {
        Duration::from_millis(self.first_format_wait)
    }

    /// [`Config::resync_interval`] as a duration.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_secs(self.resync_interval)
    }

    /// What is copied of each volume, if anything is.
    #[must_use]
    pub fn copied(&self) -> Option<Wanted> {
        (self.copy_limit > 0).then_some(Wanted { limit: self.copy_limit, key_areas: self.copy_key_areas })
    }

    /// [`Config::forget_after`] in seconds.
    #[must_use]
    pub const fn forget_after(&self) -> i64 {
        const DAY: i64 = 24 * 3600;
        self.forget_after.cast_signed() * DAY
    }

    /// [`Config::probe_deadline`] as a duration.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        Duration::from_secs(self.probe_deadline)
    }
}

/// The finding in one line: where, and what.
fn plain(error: &toml::de::Error) -> String {
    error.to_string().trim().replace('\n', "\n  ")
}

fn unknown_key(key: &str) -> String {
    // Those of tables are told by the parser.
    if let Some(known) = nearest(key, KEYS.iter().map(|known| known.name).filter(|name| !name.contains('.')))
    {
        return format!("there is no key '{key}': did you mean '{known}'?");
    }
    let known: Vec<&str> = KEYS.iter().map(|known| known.name).collect();
    format!("there is no key '{key}'; there are {}", known.join(", "))
}

/// The one of these words that has most in common with another, if it has much.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below it two words have little in common.
    const ALIKE: f64 = 0.6;
    known
        .map(|known| (strsim::jaro_winkler(known, word), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(alike, _)| *alike > ALIKE)
        .map(|(_, known)| known)
}

/// Keys that no policy has, or that one lacks, are told with the policy: the parser names a line alone.
fn check_keys_of_policies(table: &toml::Table) -> Result<(), String> {
    let Some(toml::Value::Array(policies)) = table.get(POLICY) else { return Ok(()) };
    for (policy, number) in policies.iter().filter_map(toml::Value::as_table).zip(1..) {
        let name = policy.get("name").and_then(toml::Value::as_str).unwrap_or("");
        let criteria = policy.get("match").and_then(toml::Value::as_table);
        let own = policy.keys().map(|key| (key, &Policy::KEYS[..], ""));
        let under_match = criteria
            .into_iter()
            .flat_map(|table| table.keys().map(|key| (key, &Criteria::KEYS[..], " under match")));
        for (key, known, place) in own.chain(under_match) {
            if known.contains(&key.as_str()) {
                continue;
            }
            let way = match nearest(key, known.iter().copied()) {
                Some(known) => format!(": did you mean '{known}'?"),
                None => format!("; there are {}", known.join(", ")),
            };
            return Err(format!("policy {number} ('{name}') has no key '{key}'{place}{way}"));
        }
        if let Some(missing) = Policy::KEYS.into_iter().find(|key| !policy.contains_key(*key)) {
            return Err(format!("policy {number} ('{name}') has no {missing}: every policy needs one"));
        }
    }
    Ok(())
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        for (key, known) in [("mod", "mode"), ("probe_timeout", "probe_deadline"), ("statedir", "state_dir")]
        {
            let error = Config::parse(&format!("{key} = 1")).expect_err("refused");
            assert_eq!(error, format!("there is no key '{key}': did you mean '{known}'?"));
        }
        assert!(
            Config::parse("xyzzy = 1")
                .expect_err("refused")
                .contains("there are mode, tier, require, cgroup_dir, state_dir")
        );
        assert!(Config::parse("[agent]\nmode = 'audit'").is_err(), "a section is no key either");
    }

    #[test]
    fn the_document_names_every_key_and_is_a_configuration() {
        let config = Config { resync_interval: 9, mode: Mode::Audit, ..Config::default() };
        let text = config.document();
        assert_eq!(Config::parse(&text), Ok(config.clone()));
        let values =
            config.table().into_iter().map(|(_, value)| value.as_table().map_or(1, toml::Table::len));
        assert_eq!(values.sum::<usize>(), KEYS.len());
        for key in KEYS {
            let named = text.contains(&format!("\n{} = ", key.name));
            assert_eq!(named, key.name != POLICY, "{}", key.name);
        }
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.contains("# default: 5\nresync_interval = 9\n"), "{text}");
    }

    #[test]
    fn what_is_no_toml_or_of_the_wrong_type_is_refused() {
        for text in [
            "mode",
            "mode = 1",
            "mode = 'off'",
            "probe_deadline = -1",
            "mode = 'strict'",
            "tier = 'best'",
            "require = 'auto'",
            "tier = 'preload'\nrequire = 'lsm'",
            "trusted = ['/usr/bin/qemu']",
            "trusted = ['']",
            "strict = true",
            "strict = ['*']",
            "strict = ['']",
            "strict = ['iscsi:*:x']",
            "passthrough = true",
            "quarantine = 86401",
            "forget_after = 36501",
            "history_lines = 99",
            "copy_limit = 4194305",
            "state_dir = 'state'",
            "metrics_listen = 'localhost:9838'",
            "metrics_listen = '9838'",
            "mode = 'audit'\nmode = 'audit'",
            "store.endpoints = ['etcd:2379']",
            "store.endpoints = ['http://etcd']",
            "store.endpoints = ['https://etcd:2379']",
            "store.endpoints = ['http://etcd:2379']\nstore.ca_file = '/ca.pem'",
            "store.cert_file = '/cert.pem'",
            "store.user = 'guard'",
            "store.prefix = 'guard'",
            "store.lease = 4",
            "store.timeout = 0",
            "store.retries = 3",
            "store.kubernetes = 'yes'",
            "store.kubernetes = true\nstore.endpoints = ['http://etcd:2379']",
            "policy = 'audit'",
            "[policy]\nname = 'x'",
            "[[policy]]\nname = 'x'\naction = 'audit'",
            "[[policy]]\nname = 'x'\naction = 'allow'\nmatch = { label = 'x' }",
            "[[policy]]\nname = 'x'\naction = 'audit'\nmatch = {}",
            "[[policy]]\nname = 'x'\naction = 'audit'\nmatch = { label = 7 }",
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }

    /// `FORMAT_GUARD_WRITE_SCHEMAS=1 cargo test` writes it anew.
    #[test]
    fn the_reference_of_the_documentation_is_what_the_program_prints() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let text = format!(
            "# Configuration\n\nEvery key with what it means and its default, as `format-guard config show` prints it. A file with a \
             mistake\nstarts no guard; SIGHUP reads it again.\n\n```toml\n{}```\n",
            Config::default().document()
        );
        if std::env::var_os("FORMAT_GUARD_WRITE_SCHEMAS").is_some() {
            fs::write(path, &text).expect("written");
        }
        assert!(
            fs::read_to_string(path).unwrap_or_default() == text,
            "{path} is not what the program prints"
        );
    }

    #[test]
    fn the_manifests_for_kubernetes_hold_a_configuration() {
        let text = include_str!("../../deploy/kubernetes/format-guard.yaml");
        let lines = text.lines().skip_while(|line| !line.contains("config.toml: |")).skip(1);
        let file: Vec<&str> = lines.map_while(|line| line.strip_prefix("    ")).collect();
        let config = Config::parse(&file.join("\n")).expect("a configuration");
        assert!(config.metrics_listen().expect("an address").is_some(), "{config:?}");
        let begins = Config { mode: Mode::Audit, ..Config::default() };
        assert_eq!(Config { metrics_listen: String::new(), ..config }, begins);
    }

    #[test]
    fn policies_are_read_and_what_is_wrong_with_one_is_said_of_it() {
        let file = |lines: &str| format!("mode = 'audit'\n[[policy]]\n{lines}\n");
        let text = file("name = 'temp'\naction = 'ephemeral'\nmatch = { label = 'Temporary Storage' }");
        let config = Config::parse(&text).expect("policies");
        assert_eq!((config.policy.len(), config.policy[0].action), (1, policy::Action::Ephemeral));
        let more = "[[policy]]\nname = 'more'\naction = 'slot'\nmatch = { label = 'more' }\n";
        for config in [&Config::default(), &config] {
            assert_eq!(Config::parse(&config.document()).as_ref(), Ok(config));
            let longer = Config::parse(&format!("{}\n{more}", config.document())).expect("more policies");
            assert_eq!(longer.policy.len(), config.policy.len() + 1);
        }
        assert_eq!(config.needs_restart(&Config { mode: Mode::Audit, ..Config::default() }), None);
        for (lines, said) in [
            ("name = 'x'\naktion = 'audit'", "policy 1 ('x') has no key 'aktion': did you mean 'action'?"),
            (
                "name = 'x'\naction = 'audit'\nmatch = { lable = 'x' }",
                "policy 1 ('x') has no key 'lable' under match: did you mean 'label'?",
            ),
            ("name = 'x'\naction = 'audit'", "policy 1 ('x') has no match: every policy needs one"),
        ] {
            assert_eq!(Config::parse(&file(lines)).expect_err("refused"), said);
        }
    }

    #[test]
    fn directories_need_a_restart() {
        let config = Config::default();
        let moved = Config { run_dir: "/run/other".into(), ..Config::default() };
        assert_eq!(config.needs_restart(&moved), Some("run_dir"));
        assert_eq!(config.needs_restart(&Config { probe_deadline: 3, ..Config::default() }), None);
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn a_deadline_of_nothing_is_refused() {
        assert!(Config::parse("probe_deadline = 0").expect_err("refused").contains("between 1 and 3600"));
    }

    #[test]
    fn a_named_file_that_is_missing_is_no_default() {
        assert!(Config::read(Some(Path::new("/nowhere/config.toml"))).is_err());
    }
}
