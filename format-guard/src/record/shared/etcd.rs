//! The store that nodes share, in etcd (API version 3, as etcd 3.4 and later serve it): two keys a volume,
//! readable below the prefix, and one lease a node.
//!
//! One member is asked at a time, and the next one where that fails: a balancer would go on asking one that
//! hangs.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    fs,
    future::Future,
    sync::Arc,
    time::Duration,
};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetResponse, Identity, LeaseGrantOptions,
    PutOptions, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    Claim, ClaimChange, Observed, Shared, VERSION, ValueError, Write,
    store::{Connect, Granted, Session, SharedError, TRIES},
};
use crate::{config::Store as Settings, volume::VolumeId};

/// Operations that etcd takes in one transaction (`--max-txn-ops`, 128), by two of each volume.
const AT_ONCE: usize = 64;
/// gRPC's code of a lease that is not there (rpctypes.ErrLeaseNotFound, etcd 3.4).
const NOT_FOUND: i32 = 5;

/// The value of a claim.
#[derive(Serialize, Deserialize)]
struct ClaimValue {
    version: u32,
    node: String,
}

/// Where the members are, and how they are asked.
pub struct Etcd {
    settings: Settings,
    next: usize,
}

impl Etcd {
    /// By the configuration, which is sound.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, next: 0 }
    }

    fn options(&self, tls: bool) -> Result<ConnectOptions, SharedError> {
        let settings = &self.settings;
        let patience = Duration::from_secs(settings.timeout);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(patience)
            .with_keep_alive(patience, patience)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if !settings.user.is_empty() {
            let password = read("store.password_file", &settings.password_file)?;
            options = options.with_user(&settings.user, String::from_utf8_lossy(&password).trim());
        }
        if tls {
            let mut files = TlsOptions::new();
            if !settings.ca_file.as_os_str().is_empty() {
                files =
                    files.ca_certificate(Certificate::from_pem(read("store.ca_file", &settings.ca_file)?));
            }
            if !settings.cert_file.as_os_str().is_empty() {
                let certificate = read("store.cert_file", &settings.cert_file)?;
                let key = read("store.key_file", &settings.key_file)?;
                files = files.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(files);
        }
        Ok(options)
    }
}

fn read(key: &'static str, path: &std::path::Path) -> Result<Vec<u8>, SharedError> {
    fs::read(path).map_err(|error| SharedError::File {
        key,
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

impl Connect for Etcd {
    type Session = Member;

    async fn connect(&mut self) -> Result<Member, SharedError> {
        let endpoints = &self.settings.endpoints;
        let endpoint = endpoints.get(self.next % endpoints.len().max(1)).cloned().unwrap_or_default();
        self.next = self.next.wrapping_add(1);
        let options = self.options(endpoint.starts_with("https://"))?;
        let seconds = self.settings.timeout;
        let unanswered = || SharedError::Timeout { endpoint: endpoint.clone(), seconds };
        let failed = |error: Error| SharedError::Failed { endpoint: endpoint.clone(), reason: plain(&error) };
        let patience = Duration::from_secs(seconds);
        let client = timeout(patience, Client::connect([&endpoint], Some(options)))
            .await
            .map_err(|_| unanswered())?
            .map_err(failed)?;
        Ok(Member { client, endpoint, seconds, prefix: self.settings.prefix.clone() })
    }
}

/// One member that is asked.
pub struct Member {
    client: Client,
    endpoint: String,
    /// How long an answer may take.
    seconds: u64,
    prefix: String,
}

/// What is wrong, in a sentence; gRPC's errors carry a page.
fn plain(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            text
        }
    }
}

/// An id as a part of a key: what separates the parts is written as URLs write it.
fn in_key(id: &VolumeId) -> String {
    let mut text = String::new();
    for byte in id.as_str().bytes() {
        match byte {
            // Writing to a String cannot fail.
            b'/' | b'%' | 0..=b' ' | 0x7f.. => drop(write!(text, "%{byte:02X}")),
            _ => text.push(char::from(byte)),
        }
    }
    text
}

/// The id of which this is a part of a key.
#[must_use]
pub fn of_key(text: &str) -> Option<VolumeId> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    Some(String::from_utf8(bytes).ok()?.into())
}

impl Member {
    fn key(&self, id: &VolumeId, what: &str) -> String {
        format!("{}/volumes/{}/{what}", self.prefix, in_key(id))
    }

    async fn ask<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Result<T, SharedError> {
        match timeout(Duration::from_secs(self.seconds), question).await {
            Err(_) => Err(SharedError::Timeout { endpoint: self.endpoint.clone(), seconds: self.seconds }),
            Ok(Err(Error::GRpcStatus(status)))
                if status.code() as i32 == NOT_FOUND && status.message().contains("lease") =>
            {
                Err(SharedError::LeaseEnded)
            }
            // What etcd-client (0.21, rpc/lease.rs) makes of an answer that leaves no time.
            Ok(Err(Error::LeaseKeepAliveError(reason))) if reason == "lease not found" => {
                Err(SharedError::LeaseEnded)
            }
            Ok(answer) => answer.map_err(|error| self.failed(plain(&error))),
        }
    }

    fn failed(&self, reason: impl Into<String>) -> SharedError {
        SharedError::Failed { endpoint: self.endpoint.clone(), reason: reason.into() }
    }

    /// Renews the lease; by which term of a leader, at least.
    async fn renew(&self, lease: u64) -> Result<(Granted, Option<u64>), SharedError> {
        let mut client = self.client.lease_client();
        let question = async {
            let (mut keeper, mut answers) = client.keep_alive(lease.cast_signed()).await?;
            keeper.keep_alive().await?;
            answers.message().await
        };
        let answer =
            self.ask(question).await?.ok_or_else(|| self.failed("it ended the renewal of the lease"))?;
        if answer.ttl() <= 0 {
            return Err(SharedError::LeaseEnded);
        }
        let granted = Granted { id: lease, seconds: answer.ttl().unsigned_abs() };
        Ok((granted, answer.header().map(ResponseHeader::raft_term)))
    }

    async fn look_at_some(&self, ids: &[VolumeId]) -> Result<Vec<Result<Observed, ValueError>>, SharedError> {
        let gets =
            ids.iter().flat_map(|id| ["record", "claim"].map(|what| TxnOp::get(self.key(id, what), None)));
        let transaction = Txn::new().and_then(gets.collect::<Vec<_>>());
        let answer = self.ask(self.client.kv_client().txn(transaction)).await?;
        let answers: Vec<GetResponse> = answer
            .op_responses()
            .into_iter()
            .filter_map(|answer| match answer {
                TxnOpResponse::Get(answer) => Some(answer),
                _ => None,
            })
            .collect();
        if answers.len() != 2 * ids.len() {
            return Err(self.failed(format!("{} answers to {} questions", answers.len(), 2 * ids.len())));
        }
        let pairs = answers.chunks(2).map(|pair| match pair {
            [record, claim] => observed(record, claim),
            _ => Ok(Observed::default()),
        });
        Ok(pairs.collect())
    }

    /// Every record that is kept, in the order of the keys, some at a time: those after this one.
    pub async fn records(
        &self,
        after: Option<&VolumeId>,
    ) -> Result<Vec<(VolumeId, Result<Shared, ValueError>)>, SharedError> {
        const PAGE: i64 = 500;
        let all = format!("{}/volumes/", self.prefix);
        let from = match after {
            // The first key after it.
            Some(id) => format!("{}\0", self.key(id, "record")),
            None => all.clone(),
        };
        let end = format!("{}/volumes0", self.prefix);
        let options = etcd_client::GetOptions::new().with_range(end).with_limit(PAGE);
        let answer = self.ask(self.client.kv_client().get(from, Some(options))).await?;
        let mut records = Vec::new();
        for pair in answer.kvs() {
            let name = pair.key_str().ok().and_then(|key| key.strip_prefix(&all));
            let id = name.and_then(|name| name.strip_suffix("/record")).and_then(of_key);
            if let Some(id) = id {
                records.push((id, Shared::read(pair.value())));
            }
        }
        Ok(records)
    }
}

fn observed(record: &GetResponse, claim: &GetResponse) -> Result<Observed, ValueError> {
    let mut observed = Observed::default();
    if let Some(pair) = record.kvs().first() {
        observed.revision = pair.mod_revision();
        observed.shared = Some(Shared::read(pair.value())?);
    }
    if let Some(pair) = claim.kvs().first() {
        let value: ClaimValue =
            serde_json::from_slice(pair.value()).map_err(|error| ValueError::Malformed(error.to_string()))?;
        if value.version != VERSION {
            return Err(ValueError::Version(value.version));
        }
        let node = value.node.chars().filter(|c| !c.is_control()).take(256).collect();
        observed.claim =
            Some(Claim { lease: pair.lease().cast_unsigned(), node, revision: pair.mod_revision() });
    }
    Ok(observed)
}

impl Session for Member {
    async fn grant(&self, seconds: u64) -> Result<Granted, SharedError> {
        let asked = i64::try_from(seconds).unwrap_or(i64::MAX);
        let granted = self.ask(self.client.lease_client().grant(asked, None::<LeaseGrantOptions>)).await?;
        // A longer one is counted as the one that was asked for.
        Ok(Granted { id: granted.id().cast_unsigned(), seconds: granted.ttl().unsigned_abs().min(seconds) })
    }

    /// A leader that was stopped renews leases when it goes on, before it learns that another one leads by
    /// now, which may end them (etcd 3.4.23; <https://github.com/etcd-io/etcd/issues/15247>). A read that all
    /// agree to, of the same term, shows that the one that renewed it led: members tell the term of what they
    /// have applied, and a new leader begins with an entry.
    async fn keep_alive(&self, lease: u64) -> Result<Granted, SharedError> {
        for _ in 0..TRIES {
            let (granted, term) = self.renew(lease).await?;
            let key = format!("{}/volumes/", self.prefix);
            let read = self.ask(self.client.kv_client().get(key, None)).await?;
            if term.is_some() && read.header().map(ResponseHeader::raft_term) == term {
                return Ok(granted);
            }
        }
        Err(self.failed("the leader keeps changing"))
    }

    async fn look(&self, ids: &[VolumeId]) -> Result<Vec<Result<Observed, ValueError>>, SharedError> {
        let mut all = Vec::with_capacity(ids.len());
        for some in ids.chunks(AT_ONCE) {
            all.extend(self.look_at_some(some).await?);
        }
        Ok(all)
    }

    async fn write(
        &self,
        id: &VolumeId,
        observed: &Observed,
        write: &Write,
        node: &str,
    ) -> Result<Option<i64>, SharedError> {
        let (record, claim) = (self.key(id, "record"), self.key(id, "claim"));
        let claimed = observed.claim.as_ref().map_or(0, |claim| claim.revision);
        let compares = [
            Compare::mod_revision(record.clone(), CompareOp::Equal, observed.revision),
            Compare::mod_revision(claim.clone(), CompareOp::Equal, claimed),
        ];
        let mut operations = vec![match &write.shared {
            Some(shared) => TxnOp::put(record, shared.value(), None),
            None => TxnOp::delete(record, None),
        }];
        match write.claim {
            ClaimChange::Keep => {}
            ClaimChange::Drop => operations.push(TxnOp::delete(claim, None)),
            ClaimChange::Take(lease) => {
                let value = ClaimValue { version: VERSION, node: node.to_owned() };
                let value = serde_json::to_vec(&value).map_err(|error| self.failed(error.to_string()))?;
                let options = PutOptions::new().with_lease(lease.cast_signed());
                operations.push(TxnOp::put(claim, value, Some(options)));
            }
        }
        let transaction = Txn::new().when(compares).and_then(operations);
        let answer = self.ask(self.client.kv_client().txn(transaction)).await?;
        // Keys have the revision of the transaction that wrote them (etcd's data model).
        Ok(answer.header().filter(|_| answer.succeeded()).map(ResponseHeader::revision))
    }

    async fn watch(
        self: Arc<Self>,
        mut wanted: watch::Receiver<BTreeSet<VolumeId>>,
        changed: mpsc::Sender<VolumeId>,
    ) -> SharedError {
        let mut watches = Watches::default();
        loop {
            let now = wanted.borrow_and_update().clone();
            if let Err(error) = self.ask(watches.adjust(&self, &now)).await {
                return error;
            }
            tokio::select! {
                change = wanted.changed() => if change.is_err() {
                    return self.failed("the agent no longer wants to hear of changes");
                },
                told = watches.next() => match told {
                    Ok(Some(id)) => if changed.send(id).await.is_err() {
                        return self.failed("the agent no longer wants to hear of changes");
                    },
                    Ok(None) => {}
                    Err(reason) => return self.failed(reason),
                },
            }
        }
    }
}

/// One stream, and in it a watch for each volume.
#[derive(Default)]
struct Watches {
    stream: Option<WatchStream>,
    numbers: HashMap<VolumeId, i64>,
    ids: HashMap<i64, VolumeId>,
    last: i64,
}

impl Watches {
    async fn adjust(&mut self, member: &Member, wanted: &BTreeSet<VolumeId>) -> Result<(), Error> {
        let gone: Vec<VolumeId> = self.numbers.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
        for id in gone {
            if let Some(number) = self.numbers.remove(&id) {
                self.ids.remove(&number);
                if let Some(stream) = &mut self.stream {
                    stream.cancel(number).await?;
                }
            }
        }
        for id in wanted {
            if self.numbers.contains_key(id) {
                continue;
            }
            self.last += 1;
            let (key, number) = (member.key(id, ""), self.last);
            let options = WatchOptions::new().with_prefix().with_watch_id(number);
            if let Some(stream) = &mut self.stream {
                stream.watch(key, Some(options)).await?;
            } else {
                self.stream = Some(member.client.watch_client().watch(key, Some(options)).await?);
            }
            self.numbers.insert(id.clone(), number);
            self.ids.insert(number, id.clone());
        }
        Ok(())
    }

    /// The next volume that changed, or is watched from now on.
    async fn next(&mut self) -> Result<Option<VolumeId>, String> {
        let Some(stream) = &mut self.stream else { return std::future::pending().await };
        let told = match stream.message().await {
            Ok(Some(told)) => told,
            Ok(None) => return Err("it ended the watch".to_owned()),
            Err(error) => return Err(plain(&error)),
        };
        let id = self.ids.get(&told.watch_id()).cloned();
        // One of those that are given up is cancelled, too.
        if told.canceled() && id.is_some() {
            return Err(format!("it gave up a watch: {}", told.cancel_reason()));
        }
        Ok(id.filter(|_| told.created() || !told.events().is_empty()))
    }
}

#[cfg(test)]
mod tests;
