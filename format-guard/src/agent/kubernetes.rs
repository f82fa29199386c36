//! What a node's own directories tell of a volume in Kubernetes' words, for whoever reads of a refusal. No
//! API is asked.
//!
//! kubelet keeps a directory for each volume of each pod (`pods/UID/volumes/kubernetes.io~csi/PV`, and
//! `volumeDevices` for raw block volumes: pkg/volume/csi, pkg/kubelet/config in Kubernetes 1.34); container
//! runtimes' logs are below `/var/log/pods/NAMESPACE_POD_UID` (pkg/kubelet/kuberuntime). The name of a claim
//! is in neither; its UID is a part of the name that the provisioner gives the volume (`pvc-UID`,
//! sigs.k8s.io/sig-storage-lib-external-provisioner).

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    record::history::{KubernetesFacts, Pod},
    volume::provisioned,
};

/// Where kubelet has the runtimes put logs.
const POD_LOGS: &str = "/var/log/pods";
/// How long an answer is taken for true: a flood of refusals must not be one of directories read.
const FRESH: Duration = Duration::from_secs(10);
/// Answers and pods that are kept, and directories that are read, at most.
const MAX: usize = 1024;

/// The node's directories.
pub(super) struct Node {
    kubelet: Option<PathBuf>,
    logs: PathBuf,
    known: HashMap<String, (Instant, KubernetesFacts)>,
}

impl Node {
    /// The directories of this host; no kubelet: nothing is known.
    pub(super) fn new(kubelet: Option<PathBuf>) -> Self {
        Self { kubelet, logs: PathBuf::from(POD_LOGS), known: HashMap::new() }
    }

    /// What is known of the volume whose id or origin names a `PersistentVolume`.
    pub(super) fn facts(&mut self, id: &str, origin: &str) -> Option<KubernetesFacts> {
        let kubelet = self.kubelet.as_deref()?;
        let volume = provisioned::name_in(id).or_else(|| provisioned::name_in(origin))?;
        if let Some((at, facts)) = self.known.get(volume)
            && at.elapsed() < FRESH
        {
            return Some(facts.clone());
        }
        let uids = pods_with(kubelet, volume);
        let logs = names_in(&self.logs);
        let facts = KubernetesFacts {
            persistent_volume: volume.to_owned(),
            claim_uid: volume[provisioned::PREFIX.len()..].to_owned(),
            pods: uids.iter().map(|uid| pod(&logs, uid)).collect(),
        };
        if self.known.len() >= MAX {
            self.known.clear();
        }
        self.known.insert(volume.to_owned(), (Instant::now(), facts.clone()));
        Some(facts)
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().take(MAX);
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// UIDs of the pods that use a volume.
fn pods_with(kubelet: &Path, volume: &str) -> Vec<String> {
    let pods = kubelet.join("pods");
    let uses = |uid: &String| {
        ["volumes", "volumeDevices"].iter().any(|kind| {
            pods.join(uid).join(kind).join("kubernetes.io~csi").join(volume).symlink_metadata().is_ok()
        })
    };
    let mut uids: Vec<String> = names_in(&pods).into_iter().filter(uses).collect();
    uids.sort();
    uids
}

/// The pod of a UID: its namespace and name, where one of these directories of logs is its.
fn pod(logs: &[String], uid: &str) -> Pod {
    let named = logs.iter().find_map(|name| {
        let (namespace, rest) = name.strip_suffix(uid)?.strip_suffix('_')?.split_once('_')?;
        Some((namespace.to_owned(), rest.to_owned()))
    });
    let (namespace, name) = named.unzip();
    Pod { uid: uid.to_owned(), namespace, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: &str = "0123abcd-4567-89ab-cdef-0123456789ab";

    #[test]
    fn a_volume_is_named_by_its_target_or_its_node() {
        let name = format!("pvc-{CLAIM}");
        for text in [
            format!("iscsi:iqn.2019-10.io.longhorn:{name},lun=1"),
            format!("longhorn:{name}"),
            format!("rbd:pool/csi-vol-pvc-x-{name}"),
        ] {
            assert_eq!(provisioned::name_in(&text), Some(name.as_str()), "{text}");
        }
        for text in ["pvc-", "iscsi:pvc-0123", "pvc-0123abcd-4567-89ab-cdef-0123456789aZ", "pvc-é123abcd"] {
            assert_eq!(provisioned::name_in(text), None, "{text}");
        }
    }

    #[test]
    fn pods_are_found_by_their_directories_and_named_by_their_logs() {
        let directory = tempfile::tempdir().expect("directory");
        let (kubelet, logs) = (directory.path().join("kubelet"), directory.path().join("logs"));
        let volume = format!("pvc-{CLAIM}");
        for path in [
            format!("kubelet/pods/uid-1/volumes/kubernetes.io~csi/{volume}"),
            format!("kubelet/pods/uid-2/volumeDevices/kubernetes.io~csi/{volume}"),
            "kubelet/pods/uid-3/volumes/kubernetes.io~csi/pvc-of-another".to_owned(),
            "logs/shop_orders-db-0_uid-1".to_owned(),
            "logs/shop_other_uid-3".to_owned(),
        ] {
            fs::create_dir_all(directory.path().join(path)).expect("made");
        }
        let mut node = Node { kubelet: Some(kubelet), logs, known: HashMap::new() };
        let facts = node.facts(&format!("iscsi:iqn.x:{volume},lun=1"), "").expect("known");
        assert_eq!((facts.persistent_volume.as_str(), facts.claim_uid.as_str()), (volume.as_str(), CLAIM));
        let pods: Vec<_> = facts
            .pods
            .iter()
            .map(|pod| (pod.uid.as_str(), pod.namespace.as_deref(), pod.name.as_deref()))
            .collect();
        assert_eq!(pods, [("uid-1", Some("shop"), Some("orders-db-0")), ("uid-2", None, None)]);
        assert_eq!(node.facts("loop:1", "file"), None);
        assert_eq!(Node::new(None).facts(&volume, ""), None);
    }
}
