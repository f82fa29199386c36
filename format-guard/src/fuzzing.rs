//! Entrances for fuzzers to what reads input that is not trusted. They are there in builds with the feature `fuzzing` alone.
#![allow(clippy::missing_panics_doc, reason = "a panic is what a fuzzer looks for")]

use axum::{extract::Query, http::Uri};

use crate::{
    agent::{kernel_events, uevents},
    api::{EventsQuery, ModeRequest, PermitRequest, ProtectRequest, ReasonRequest, Selector},
    config::Config,
    enforce::offsets::KernelTypes,
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
    if let Some(event) = kernel_events::parse(bytes) {
        let _ = format!("{event:?}");
    }
}

/// What is on a device, as patches to one of 4 MiB that is blank: three bytes of offset, one of length, and the bytes.
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

/// The kernel's BTF.
pub fn kernel_types(bytes: &[u8]) {
    if let Ok(types) = KernelTypes::of(bytes) {
        let _ = types.offsets();
        let _ = types.has_function("bpf_lsm_file_open");
    }
}
