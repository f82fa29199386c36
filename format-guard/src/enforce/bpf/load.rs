//! Makes the object ready, loads its programs and attaches each to its hook.
//!
//! No link is ever removed before its successor is proven.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError as AyaMapError, MapInfo},
    programs::{
        BtfTracePoint, CgroupDevice, FEntry, Lsm, Program, ProgramError, ProgramInfo,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use format_guard_common::RULES_IN_SEGMENT;
use format_guard_programs::{OBJECT, OBJECT_WITH_LINES};

use super::{
    BpfEnforcer,
    hooks::{self, Hook, HookProgram},
    lines,
    modify_return::Programs,
    pins::Pins,
    syscall, verifier_log,
};
use crate::{
    cgroup,
    enforce::{
        Enforcer,
        error::{LoadError, ProgramStatus},
    },
    fault::{self, Point},
    tier::Tier,
};

impl BpfEnforcer {
    pub(super) fn attach_in_tier(&mut self) -> Result<Vec<ProgramStatus>, LoadError> {
        match self.attach_object() {
            Err(error @ LoadError::Program { .. }) if self.lines.is_some() => {
                tracing::warn!(
                    "the kernel programs write no lines: this kernel does not load those that do ({error})"
                );
                self.lines = None;
                self.make_again()?;
                self.attach_object()
            }
            attached => attached,
        }
    }

    /// Makes the programs of the object again, for the tier, over the maps that there are.
    pub(super) fn make_again(&mut self) -> Result<(), EbpfError> {
        let globals = Globals {
            offsets: &self.offsets,
            refuse_passthrough: self.refuse_passthrough,
            may_wait: self.may_wait,
            tier: self.tier,
            lines: self.lines,
        };
        self.ebpf = load_object(&self.pins, self.max_devices, &globals)?;
        self.build = build_of(&globals);
        Ok(())
    }

    fn attach_object(&mut self) -> Result<Vec<ProgramStatus>, LoadError> {
        let parts = self.places()?;
        let reports = hooks::of(self.tier).iter().map(|part| {
            let attached = parts.iter().any(|placed| placed.program == part.program);
            let open = if attached { "" } else { part.without.unwrap_or_default() };
            ProgramStatus { program: part.program.to_owned(), attached, open: open.to_owned(), skipped: 0 }
        });
        let reports = reports.collect();
        let links = self.pins.links(self.build);
        let pin_error = |source| LoadError::Pin { path: links.clone(), source };
        if self.is_attached(&parts, &links) && self.prove().is_ok() {
            self.prove_waiting()?;
            self.pins.retire_others(self.build).map_err(pin_error)?;
            return Ok(reports);
        }
        let unproven = self.pins.unproven_links().map_err(pin_error)?;
        // Read only here, as it takes some megabytes: an agent that keeps the attached programs has returned
        // above.
        let btf = if self.tier == Tier::Cgroup { None } else { Some(Btf::from_sys_fs()?) };
        // Open until the programs that refer to them are loaded.
        let pinned;
        let functions = if self.tier == Tier::FmodRet {
            pinned = self.pinned_maps()?;
            Some(self.programs_of_functions(&pinned)?)
        } else {
            None
        };
        let attached = parts
            .iter()
            .try_for_each(|part| self.attach_program(part, functions.as_ref(), btf.as_ref(), &unproven));
        if let Err(error) = attached.and_then(|()| self.prove()) {
            let _ = fs::remove_dir_all(&unproven);
            return Err(error);
        }
        fault::point(Point::AfterProof);
        self.prove_waiting()?;
        self.pins.take_over(&unproven, self.build).map_err(pin_error)?;
        Ok(reports)
    }

    /// The maps that outlive the agent, by name: those that were taken from the object are among them.
    fn pinned_maps(&self) -> Result<BTreeMap<String, MapData>, LoadError> {
        let pins = fs::read_dir(self.pins.maps())
            .map_err(|source| LoadError::Pin { path: self.pins.maps().to_owned(), source })?;
        let maps = pins.filter_map(|pin| {
            let pin = pin.ok()?;
            Some((pin.file_name().into_string().ok()?, MapData::from_pin(pin.path()).ok()?))
        });
        Ok(maps.collect())
    }

    /// The object for the functions `security_*`, with the maps that there are: its own and these.
    fn programs_of_functions(&self, pinned: &BTreeMap<String, MapData>) -> Result<Programs, LoadError> {
        let descriptor = |name: &str| -> Option<RawFd> {
            let own = || match self.ebpf.map(name)? {
                Map::Array(map) | Map::LruHashMap(map) => Some(map),
                _ => None,
            };
            Some(pinned.get(name).or_else(own)?.fd().as_fd().as_raw_fd())
        };
        Programs::parse(object(self.lines), descriptor)
            .map_err(|error| LoadError::Functions { reason: error.to_string() })
    }

    /// The parts that this kernel has a place for.
    fn places(&self) -> Result<Vec<&'static HookProgram>, LoadError> {
        let mut parts = Vec::new();
        for part in hooks::of(self.tier) {
            let Some(function) = part.hook.function(self.tier) else { continue };
            let there = match part.hook {
                // It needs no function in BTF; aya reports one that is missing.
                Hook::Tracepoint(_) => true,
                // Without the cgroup the tier cannot work; attaching reports that.
                Hook::Cgroup => part.without.is_none() || self.is_cgroup_there(),
                _ => self.functions.contains(&function),
            };
            if there {
                parts.push(part);
            } else if part.without.is_none() {
                return Err(LoadError::NoPlace { program: part.program, place: function });
            }
        }
        Ok(parts)
    }

    /// Whether there is a control group to stand at in which all processes are, or the one that the
    /// configuration names.
    fn is_cgroup_there(&self) -> bool {
        if self.cgroup.as_os_str().is_empty() {
            cgroup::mount().is_some_and(cgroup::is_root)
        } else {
            self.cgroup.is_dir()
        }
    }

    /// Whether each of these is attached by a link in this directory, and all of our maps are theirs. What
    /// cannot be read is not.
    fn is_attached(&self, parts: &[&HookProgram], links: &Path) -> bool {
        let ids: Option<BTreeSet<u32>> = parts
            .iter()
            .map(|part| {
                let link = FdLink::from(PinnedLink::from_pin(links.join(part.program)).ok()?);
                Some(link.info().ok()?.program_id())
            })
            .collect();
        let Some(ids) = ids else { return false };
        let theirs: BTreeSet<u32> = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| ids.contains(&program.id()))
            .filter_map(|program| program.map_ids().ok().flatten())
            .flatten()
            .collect();
        let ours = fs::read_dir(self.pins.maps()).into_iter().flatten();
        let mut ours = ours.map(|pin| MapInfo::from_pin(pin.ok()?.path()).ok().map(|map| map.id()));
        ours.all(|id| id.is_some_and(|id| theirs.contains(&id)))
    }

    fn attach_program(
        &mut self,
        part: &HookProgram,
        functions: Option<&Programs>,
        btf: Option<&Btf>,
        links: &Path,
    ) -> Result<(), LoadError> {
        let place = part.hook.function(self.tier).unwrap_or_default();
        let failed = |reason| LoadError::Program { program: part.program, place: place.clone(), reason };
        let path = links.join(part.program);
        let pinned = match (part.hook, functions, btf) {
            (Hook::Cgroup, ..) | (_, _, None) => syscall::pin(&self.attach_to_cgroup(part)?, &path),
            (Hook::Lsm(_), Some(programs), Some(btf)) => {
                let link = programs.attach(part.program, &place, btf);
                syscall::pin(&link.map_err(|error| failed(error.to_string()))?, &path)
            }
            (_, _, Some(btf)) => {
                let link = self
                    .load_hook_program(part, btf)
                    .map_err(|error| failed(verifier_log::reason(&error)))?;
                link.pin(&path).map(drop).map_err(io::Error::other)
            }
        };
        pinned.map_err(|source| LoadError::Pin { path, source })?;
        fault::point(Point::AfterPin);
        Ok(())
    }

    fn load_hook_program(&mut self, part: &HookProgram, btf: &Btf) -> Result<FdLink, ProgramError> {
        let program = self.ebpf.program_mut(part.program).ok_or_else(|| {
            ProgramError::IOError(io::Error::other("the embedded object has no such program"))
        })?;
        let link = load_program(program, part.hook, btf)?;
        tell_verified(part, program.info());
        Ok(link)
    }

    /// Attaches a program to the control group: beside what service managers and container runtimes attach
    /// below it, each of which must allow an access.
    fn attach_to_cgroup(&mut self, part: &HookProgram) -> Result<OwnedFd, LoadError> {
        let path = match cgroup::mount() {
            Some(root) if self.cgroup.as_os_str().is_empty() => root,
            _ => &self.cgroup,
        };
        let failed = |source| LoadError::Cgroup { path: path.to_owned(), source };
        let cgroup = fs::File::open(path).map_err(failed)?;
        let program = self.ebpf.program_mut(part.program).ok_or_else(|| {
            ProgramError::IOError(io::Error::other("the embedded object has no such program"))
        });
        let loaded = program.and_then(|program| {
            let device: &mut CgroupDevice = program.try_into()?;
            device.load()?;
            tell_verified(part, device.info());
            device.fd()
        });
        let program = loaded.map_err(|error| LoadError::Program {
            program: part.program,
            place: path.display().to_string(),
            reason: verifier_log::reason(&error),
        })?;
        syscall::link_to_cgroup(program.as_fd(), cgroup.as_fd())
            .map_err(|source| LoadError::Cgroup { path: path.to_owned(), source })
    }
}

fn tell_verified(part: &HookProgram, info: Result<ProgramInfo, ProgramError>) {
    if let Ok(info) = info {
        tracing::debug!(
            program = part.program,
            verified = info.verified_instruction_count(),
            "instructions that the verifier followed"
        );
    }
}

/// What is written into an object before it is loaded.
#[derive(Hash)]
pub(super) struct Globals<'a> {
    pub(super) offsets: &'a [(&'static str, u32)],
    pub(super) refuse_passthrough: u32,
    pub(super) may_wait: u32,
    pub(super) tier: Tier,
    /// The lowest level of lines that the programs write; `None`: the object that writes no lines.
    pub(super) lines: Option<u8>,
}

/// The object whose programs write lines, or the one whose programs write none.
fn object(lines: Option<u8>) -> &'static [u8] {
    if lines.is_some() { OBJECT_WITH_LINES } else { OBJECT }
}

/// Stands for the object, its read-only globals and where it is attached.
pub(super) fn build_of(globals: &Globals<'_>) -> u64 {
    let mut build = DefaultHasher::new();
    (object(globals.lines), globals).hash(&mut build);
    build.finish()
}

/// Reads the object with its maps below the pins.
pub(super) fn load_object(pins: &Pins, max_devices: u32, globals: &Globals<'_>) -> Result<Ebpf, EbpfError> {
    let Globals { offsets, refuse_passthrough, may_wait, tier, .. } = *globals;
    let mut loader = EbpfLoader::new();
    // For relocations, which our programs have none of.
    loader.btf(None);
    loader.default_map_pin_directory(pins.maps());
    // A map that is described by types does not say where it is pinned.
    loader.map_pin_path("RULES", pins.maps().join("RULES"));
    loader.map_max_entries("RULES", max_devices.div_ceil(RULES_IN_SEGMENT));
    for map in ["SLOTS", "WINDOWS", "FORMAT_OWNERS", "FORMATTERS"] {
        loader.map_max_entries(map, max_devices);
    }
    for (global, offset) in offsets {
        loader.override_global(global, offset, true);
    }
    let modify_return = u32::from(tier == Tier::FmodRet);
    loader.override_global("REFUSE_PASSTHROUGH", &refuse_passthrough, true);
    loader.override_global("MODIFY_RETURN", &modify_return, true);
    // A program at a function may wait for nothing.
    let may_wait = if tier == Tier::Lsm { may_wait } else { 0 };
    loader.override_global("MAY_WAIT", &may_wait, true);
    lines::prepare(&mut loader, pins.maps(), globals.lines.as_ref());
    loader.load(object(globals.lines))
}

fn load_program(program: &mut Program, hook: Hook, btf: &Btf) -> Result<FdLink, ProgramError> {
    Ok(match hook {
        Hook::Lsm(hook) | Hook::Notice(hook) => {
            let lsm: &mut Lsm = program.try_into()?;
            lsm.load(hook, btf)?;
            let id = lsm.attach()?;
            lsm.take_link(id)?.into()
        }
        Hook::Enter(function) => {
            let enter: &mut FEntry = program.try_into()?;
            enter.load(function, btf)?;
            let id = enter.attach()?;
            enter.take_link(id)?.into()
        }
        Hook::Tracepoint(name) => {
            let tracepoint: &mut BtfTracePoint = program.try_into()?;
            tracepoint.load(name, btf)?;
            let id = tracepoint.attach()?;
            tracepoint.take_link(id)?.into()
        }
        Hook::Cgroup => {
            return Err(ProgramError::IOError(io::Error::other("the program stands at a control group")));
        }
    })
}

/// A map to be filled now; it stays with the object, which needs it to load the programs.
pub(super) fn borrow<'a, T>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(&'a mut Map) -> Result<T, AyaMapError>,
) -> Result<T, LoadError> {
    let map = ebpf.map_mut(name).ok_or_else(|| AyaMapError::InvalidName { name: name.to_owned() });
    map.and_then(convert).map_err(|source| LoadError::Map { name, source })
}

/// A map to be kept open.
pub(super) fn take<T>(
    ebpf: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(Map) -> Result<T, AyaMapError>,
) -> Result<T, LoadError> {
    let map = ebpf.take_map(name).ok_or_else(|| AyaMapError::InvalidName { name: name.to_owned() });
    map.and_then(convert).map_err(|source| LoadError::Map { name, source })
}
