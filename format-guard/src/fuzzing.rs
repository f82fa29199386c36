//! Entrances for fuzzers to what reads input that is not trusted. They are there in builds with the feature
//! `fuzzing` alone.
#![allow(clippy::missing_panics_doc, reason = "a panic is what a fuzzer looks for")]

use std::collections::BTreeSet;

use axum::{extract::Query, http::Uri};
use format_guard_common::{
    preload_request::{self, PreloadRequest},
    snapshot::{self, Snapshot},
};

use crate::{
    agent::{kernel_events, uevents},
    api::{AdoptRequest, EventsQuery, ModeRequest, PermitRequest, ProtectRequest, ReasonRequest, Selector},
    config::Config,
    enforce::bpf::offsets::KernelTypes,
    record::shared::{self, Desired, Format, NodeLease, Observed, Shared},
    volume::probe,
};

/// The configuration file.
pub fn configuration(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(config) = Config::parse(text)
    {
        assert!(config.probe_deadline > 0 && config.resync_interval > 0, "{config:?}");
    }
}

/// Bodies and queries of the control API.
pub fn request(bytes: &[u8]) {
    let _ = serde_json::from_slice::<PermitRequest>(bytes);
    let _ = serde_json::from_slice::<ReasonRequest>(bytes);
    let _ = serde_json::from_slice::<ModeRequest>(bytes);
    let _ = serde_json::from_slice::<ProtectRequest>(bytes);
    let _ = serde_json::from_slice::<Selector>(bytes);
    let _ = serde_json::from_slice::<AdoptRequest>(bytes);
    if let Ok(uri) = Uri::try_from(bytes) {
        let _ = Query::<EventsQuery>::try_from_uri(&uri);
        let _ = Query::<Selector>::try_from_uri(&uri);
    }
}

/// A message of the kernel's uevent socket.
pub fn uevent(bytes: &[u8]) {
    if let Some((name, _)) = uevents::parse(bytes) {
        assert!(!name.contains('/') && name != "..", "{name} leads out of its directory");
    }
}

/// A record of the ring buffer.
pub fn kernel_record(bytes: &[u8]) {
    if let Ok(event) = kernel_events::parse(bytes) {
        let _ = format!("{event:?}");
    }
}

/// What the `LD_PRELOAD` library and the agent tell each other: a question, and a file of rules that is whole
/// by its head.
pub fn library(bytes: &[u8]) {
    if let Some(question) = bytes.first_chunk()
        && let Some((_, question)) = PreloadRequest::read(question)
    {
        assert_eq!(question.magic, preload_request::MAGIC);
    }
    // Where a mapping lies, too.
    let mut words = vec![0_u64; bytes.len() / 8];
    for (to, from) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *to = u64::from_ne_bytes(*from);
    }
    let length = words.len() as u64 * 8;
    if let [magic, version, said, ..] = words.as_mut_slice() {
        (*magic, *version, *said) =
            (u64::from_ne_bytes(snapshot::MAGIC), u64::from(snapshot::VERSION), length);
    }
    // SAFETY: any word is eight bytes.
    let (_, bytes, _) = unsafe { words.align_to::<u8>() };
    let Ok(snapshot) = Snapshot::of_whole(bytes) else { return };
    for dev in [0, 7 << 20, u32::MAX] {
        if let Some(entry) = snapshot.entry(dev) {
            assert_eq!(entry.rule.dev, dev);
            let _ = entry.rule.checks();
            let _ = snapshot.windows(entry).map(|windows| windows.place(entry.rule.low, entry.rule.high));
        }
    }
    let _ = snapshot.class([7; 16]);
}

/// What is on a device, as patches to one of 4 MiB that is blank: three bytes of offset, one of length, and
/// the bytes.
pub fn content(bytes: &[u8]) {
    const SIZE: usize = 4 << 20;
    let mut device = vec![0; SIZE];
    let mut rest = bytes;
    while let [low, middle, high, length, patch @ ..] = rest {
        let offset = usize::from(*low) | usize::from(*middle) << 8 | usize::from(*high) << 16;
        let (patch, left) = patch.split_at(patch.len().min((*length).into()));
        if let Some(place) = device.get_mut(offset..offset + patch.len()) {
            place.copy_from_slice(patch);
        }
        rest = left;
    }
    if let Ok(probe::Finding::Holds { marks, .. }) = probe::of_content(&device) {
        for mark in marks {
            let end = mark.offset + mark.bytes.len() as u64;
            assert!(!mark.bytes.is_empty() && end <= SIZE as u64, "{mark:?}");
        }
    }
}

/// What the store that nodes share has of a volume: whatever it is, a node knows what to do.
pub fn shared_record(bytes: &[u8]) {
    let Ok(shared) = Shared::read(bytes) else { return };
    let lease = shared.armed.as_ref().map_or(1, |armed| armed.lease);
    let format = Format { generation: 2, content: None, marks: Vec::new(), node: "b".to_owned(), at: 0 };
    let desired_claims = [
        Desired::Nothing,
        Desired::Watch { doubted: false },
        Desired::Claim { doubted: false },
        Desired::Permitted,
        Desired::Formatting,
        Desired::Formatted(format.clone()),
        Desired::Gone { clean: true, format: None },
        Desired::Gone { clean: false, format: Some(format) },
    ];
    let known = shared.format.as_ref().map_or(0, |format| format.generation);
    for claim in [None, Some(shared::Claim { lease, node: "a".to_owned(), revision: 1 })] {
        let observed = Observed { shared: Some(shared.clone()), revision: 1, claim };
        for desired in &desired_claims {
            let me = NodeLease { node: "a", lease: Some(lease) };
            let (Some(write), _) = shared::plan(&observed, desired, me, 0) else { continue };
            let after = write.shared.as_ref().and_then(|shared| shared.format.as_ref());
            assert!(after.map_or(0, |format| format.generation) >= known, "{desired:?} lowers {shared:?}");
        }
    }
}

/// The kernel's BTF.
pub fn kernel_types(bytes: &[u8]) {
    const FUNCTION: &str = "bpf_lsm_file_open";
    if let Ok(types) = KernelTypes::of(bytes, &BTreeSet::from([FUNCTION.to_owned()])) {
        let _ = types.offsets();
        let _ = types.has_function(FUNCTION);
    }
}
