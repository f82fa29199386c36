//! An etcd whose members have data of their own and end with the value. A test may kill, stop, cut off and
//! fill its members.

use std::{
    iter,
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, prlimit};

use crate::{network::Network, server::Server};

pub mod network;
pub mod server;

/// How long members may take to come up.
const PATIENCE: Duration = Duration::from_mins(1);

/// How members are started.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The number of members.
    pub members: usize,
    /// The scheme of the clients' addresses: `http` or `https`.
    pub scheme: &'a str,
    /// Options of each member, without their dashes, and their values.
    pub options: &'a [(&'a str, &'a str)],
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self { members: 1, scheme: "http", options: &[] }
    }
}

/// One member.
pub struct Member {
    /// Its process.
    pub process: Server,
    name: String,
    port: u16,
    scheme: String,
}

impl Member {
    /// The address of the member for clients.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The port of [`Self::endpoint`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The name of the member in the network.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes every write to a file fail from now on, as on a full disk. The member does not survive that.
    pub fn fail_writes(&self) -> Result<()> {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        prlimit(Some(self.process.pid()), Resource::Fsize, none)
            .with_context(|| format!("cannot limit {}", self.name))?;
        Ok(())
    }
}

/// An etcd.
pub struct Members {
    /// The members.
    pub members: Vec<Member>,
    /// The network between them.
    pub network: Network,
    _directory: tempfile::TempDir,
}

impl Members {
    /// Starts the members.
    pub fn start(plan: &Plan<'_>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let taken =
            (0..2 * plan.members).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let ports = taken.iter().map(|port| Ok(port.local_addr()?.port())).collect::<Result<Vec<u16>>>()?;
        drop(taken);
        let (peers, clients) = ports.split_at(plan.members);
        let network = Network::default();
        let names: Vec<String> = (0..plan.members).map(|i| format!("m{i}")).collect();
        let links = names
            .iter()
            .zip(peers)
            .map(|(name, port)| network.link_of_peer(name, *port))
            .collect::<Result<Vec<u16>>>()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> =
            names.iter().zip(&links).map(|(name, link)| format!("{name}={}", url(*link))).collect();
        let members = names.into_iter().enumerate().map(|(i, name)| {
            let client = format!("{}://127.0.0.1:{}", plan.scheme, clients[i]);
            let own = [
                ("name", name.clone()),
                ("data-dir", directory.path().join(&name).display().to_string()),
                ("listen-peer-urls", url(peers[i])),
                ("initial-advertise-peer-urls", url(links[i])),
                ("listen-client-urls", client.clone()),
                ("advertise-client-urls", client),
                ("initial-cluster", cluster.join(",")),
            ];
            let own = own.map(|(option, value)| format!("--{option}={value}"));
            let given = plan.options.iter().map(|(option, value)| format!("--{option}={value}"));
            let words = iter::once("etcd".to_owned()).chain(own).chain(given).collect();
            let process = Server::start(words, directory.path().join(format!("{name}.log")))?;
            Ok(Member { process, name, port: clients[i], scheme: plan.scheme.to_owned() })
        });
        Ok(Self { members: members.collect::<Result<_>>()?, network, _directory: directory })
    }

    /// The addresses of the members for clients.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// `etcdctl`, for all members.
    #[must_use]
    pub fn etcdctl(&self, words: &[&str]) -> Command {
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.endpoints().join(",")).args(words);
        etcdctl
    }

    /// The output of `etcdctl`.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let ran = self.etcdctl(words).output().context("etcdctl, of the package etcd-client")?;
        ensure!(ran.status.success(), "etcdctl {words:?}: {}", String::from_utf8_lossy(&ran.stderr).trim());
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    /// Waits until all members are up and agree; from then on one can be cut off from the others.
    pub fn wait_until_healthy(&self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = self.ask(&["endpoint", "health"]) {
            ensure!(start.elapsed() < PATIENCE, "the members never come up: {error}");
            thread::sleep(Duration::from_millis(50));
        }
        let list: serde_json::Value = serde_json::from_str(&self.ask(&["member", "list", "-w", "json"])?)?;
        for member in list["members"].as_array().context("no members")? {
            let (id, name) = (member["ID"].as_u64().context("no id")?, member["name"].as_str());
            self.network.name(&format!("{id:x}"), name.context("no name")?);
        }
        Ok(())
    }

    /// The member that leads, if it is among those that answer.
    pub fn leader(&self) -> Result<Option<usize>> {
        let ran = self.etcdctl(&["endpoint", "status", "-w", "json", "--command-timeout=1s"]).output()?;
        let status: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
        let leads = |each: &&serde_json::Value| {
            each["Status"]["leader"].is_u64()
                && each["Status"]["leader"] == each["Status"]["header"]["member_id"]
        };
        let leader = status.as_array().and_then(|all| all.iter().find(leads));
        let endpoint = leader.and_then(|leader| leader["Endpoint"].as_str());
        Ok(self.members.iter().position(|member| Some(member.endpoint().as_str()) == endpoint))
    }

    /// Defragments each member, which frees what compaction left.
    pub fn defragment(&self) -> Result<()> {
        self.ask(&["defrag"]).map(drop)
    }

    /// Compacts the history: only the present value of each key stays.
    pub fn compact(&self) -> Result<()> {
        let status: serde_json::Value = serde_json::from_str(&self.ask(&["get", "none", "-w", "json"])?)?;
        let revision = status["header"]["revision"].as_u64().context("no revision")?;
        self.ask(&["compact", &revision.to_string()]).map(drop)
    }
}
