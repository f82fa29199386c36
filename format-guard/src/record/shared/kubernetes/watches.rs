//! Tells of changes of the volumes that this node wants to know of: one request for some of them, by their
//! names, and none for all that there are.

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use kube::{
    Error,
    api::{PartialObjectMeta, WatchEvent, WatchParams},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Server,
    object::{self, GuardedVolume, NAME_LABEL},
    plain,
};
use crate::{record::shared::store::SharedError, volume::VolumeId};

/// Volumes of one request: their names are in its address, which must not be longer than what is between
/// takes.
const AT_ONCE: usize = 64;
/// How long one lasts: a connection that has died without a word is known to have by then.
const LASTS: Duration = Duration::from_mins(1);
/// What an API server has at hand, and every change since. Without bookmarks: with them it is asked for a
/// list, which an etcd before 3.4.25 has no part in (Kubernetes 1.34, `SetListOptionsDefaults` and
/// `isListWatchRequest`).
const ANY: &str = "0";
/// One that ends sooner is none.
const SHORT: Duration = Duration::from_secs(1);
/// How often it is looked whether a claim of others may have ended.
const TICK: Duration = Duration::from_secs(1);

/// Volumes that are watched by one request.
struct Group {
    ids: BTreeSet<VolumeId>,
    task: tokio::task::AbortHandle,
}

pub(super) async fn run(
    server: Arc<Server>,
    mut wanted: watch::Receiver<BTreeSet<VolumeId>>,
    changed: mpsc::Sender<VolumeId>,
) -> SharedError {
    let nobody = || server.failed("the agent no longer wants to hear of changes");
    let (mut groups, mut tasks) = (Vec::new(), JoinSet::new());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = wanted.borrow_and_update().clone();
        adjust(&server, &mut groups, &mut tasks, &now, &changed);
        loop {
            tokio::select! {
                change = wanted.changed() => match change {
                    Ok(()) => break,
                    Err(_) => return nobody(),
                },
                Some(ended) = tasks.join_next() => match ended {
                    Ok(error) => return error,
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return server.failed(error.to_string()),
                },
                _ = ticks.tick() => for id in server.leases.due() {
                    if changed.send(id).await.is_err() {
                        return nobody();
                    }
                },
            }
        }
    }
}

/// Has every volume watched that is wanted. What is wanted no more is left out when its group changes.
fn adjust(
    server: &Arc<Server>,
    groups: &mut Vec<Group>,
    tasks: &mut JoinSet<SharedError>,
    wanted: &BTreeSet<VolumeId>,
    changed: &mpsc::Sender<VolumeId>,
) {
    for group in groups.iter_mut() {
        group.ids.retain(|id| wanted.contains(id));
    }
    groups.retain(|group| {
        if group.ids.is_empty() {
            group.task.abort();
        }
        !group.ids.is_empty()
    });
    let new = wanted.iter().filter(|id| !groups.iter().any(|group| group.ids.contains(*id)));
    let mut new: BTreeSet<VolumeId> = new.cloned().collect();
    while !new.is_empty() {
        let place = groups.iter().position(|group| group.ids.len() < AT_ONCE);
        let mut ids = BTreeSet::new();
        if let Some(place) = place {
            let group = groups.swap_remove(place);
            group.task.abort();
            ids = group.ids;
        }
        while ids.len() < AT_ONCE
            && let Some(id) = new.pop_first()
        {
            ids.insert(id);
        }
        let task = tasks.spawn(follow(server.clone(), ids.clone(), changed.clone()));
        groups.push(Group { ids, task });
    }
}

/// Watches these until that fails. It begins with all that there is of them: what has changed since they were
/// looked at is told, too.
async fn follow(
    server: Arc<Server>,
    ids: BTreeSet<VolumeId>,
    changed: mpsc::Sender<VolumeId>,
) -> SharedError {
    let names: HashMap<String, VolumeId> = ids.into_iter().map(|id| (object::name(&id), id)).collect();
    let list: Vec<&str> = names.keys().map(String::as_str).collect();
    let selector = format!("{NAME_LABEL} in ({})", list.join(","));
    let seconds = u32::try_from(LASTS.as_secs()).unwrap_or(u32::MAX);
    let later = WatchParams::default().labels(&selector).timeout(seconds);
    let first = later.clone().disable_bookmarks();
    let mut version = ANY.to_owned();
    loop {
        let begun = Instant::now();
        let parameters = if version == ANY { &first } else { &later };
        let stream = match server.ask(server.volumes.watch_metadata(parameters, &version)).await {
            Ok(Ok(stream)) => stream,
            // What it was to go on from is no longer kept.
            Ok(Err(status)) if status.code == 410 && version != ANY => {
                ANY.clone_into(&mut version);
                continue;
            }
            Ok(Err(status)) => return server.failed(super::bounded(&status.message)),
            Err(error) => return error,
        };
        let mut stream = pin!(stream);
        let end = begun + LASTS + Duration::from_secs(server.seconds);
        loop {
            let event = match timeout(end.saturating_duration_since(Instant::now()), stream.next()).await {
                Err(_) => return server.unanswered(),
                Ok(None) if begun.elapsed() < SHORT => return server.failed("it ended a watch at once"),
                Ok(None) => break,
                Ok(Some(Ok(WatchEvent::Error(status)))) => Err(Error::Api(status)),
                Ok(Some(event)) => event,
            };
            let (object, gone): (PartialObjectMeta<GuardedVolume>, bool) = match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, false),
                Ok(WatchEvent::Deleted(object)) => (object, true),
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    version = bookmark.metadata.resource_version;
                    continue;
                }
                Err(Error::Api(status)) if status.code == 410 => {
                    ANY.clone_into(&mut version);
                    break;
                }
                Ok(WatchEvent::Error(status)) => return server.failed(super::bounded(&status.message)),
                Err(error) => return server.failed(plain(&error)),
            };
            let new = object.metadata.resource_version.unwrap_or_default();
            let id = object.metadata.name.as_ref().and_then(|name| names.get(name));
            if let Some(id) = id.filter(|id| gone || server.is_news(id, Some(&new)))
                && changed.send(id.clone()).await.is_err()
            {
                return server.failed("the agent no longer wants to hear of changes");
            }
            version = new;
        }
    }
}
