//! Members of an etcd with data of their own, which end with the value: killed, stopped, cut off and filled
//! up as a test wants.

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
    /// How many.
    pub members: usize,
    /// Of the clients' addresses: `http` or `https`.
    pub scheme: &'a str,
    /// Options of each, without their dashes, and their values.
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
    /// Where clients reach it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The port of [`Self::endpoint`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its name, by which the network knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has every write to a file fail from now on, as on a full disk: it does not live through that.
    pub fn fail_writes(&self) -> Result<()> {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        prlimit(Some(self.process.pid()), Resource::Fsize, none)
            .with_context(|| format!("cannot limit {}", self.name))?;
        Ok(())
    }
}

/// An etcd.
pub struct Members {
    /// Them.
    pub members: Vec<Member>,
    /// Between them.
    pub network: Network,
    _directory: tempfile::TempDir,
}

impl Members {
    /// Starts them.
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

    /// Where clients reach each.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// `etcdctl`, of all members.
    #[must_use]
    pub fn etcdctl(&self, words: &[&str]) -> Command {
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.endpoints().join(",")).args(words);
        etcdctl
    }

    /// What `etcdctl` prints.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let ran = self.etcdctl(words).output().context("etcdctl, of the package etcd-client")?;
        ensure!(ran.status.success(), "etcdctl {words:?}: {}", String::from_utf8_lossy(&ran.stderr).trim());
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    /// Waits until all of them are up and agree; from then on one can be cut off from the others.
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

    /// Which one leads, as far as one of these tells that answers.
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

    /// Gives back the room that compaction left, in each of them.
    pub fn defragment(&self) -> Result<()> {
        self.ask(&["defrag"]).map(drop)
    }

    /// Drops everything but what each key is now.
    pub fn compact(&self) -> Result<()> {
        let status: serde_json::Value = serde_json::from_str(&self.ask(&["get", "none", "-w", "json"])?)?;
        let revision = status["header"]["revision"].as_u64().context("no revision")?;
        self.ask(&["compact", &revision.to_string()]).map(drop)
    }
}
