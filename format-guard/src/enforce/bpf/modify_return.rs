//! Attaches the programs of the object to the kernel's `security_*` functions (`fmod_ret`), for kernels whose
//! list of security modules lacks bpf: the value such a program returns replaces the function's own.
//!
//! aya (0.14) has no such program type. This module supplies that type only, over the maps that aya made, and
//! goes when aya has the type.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{OwnedFd, RawFd},
};

use aya::{Btf, BtfError};
use aya_obj::{
    Object, ParseError,
    btf::BtfKind,
    generated::{bpf_attach_type, bpf_cmd, bpf_prog_type},
    relocation::EbpfRelocationError,
};

use super::{
    syscall::{call, descriptor, empty, made},
    verifier_log::end_of,
};

/// Room for the verifier's log, in bytes.
const LOG: usize = 1 << 20;

/// Why a program is not attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModifyReturnError {
    /// The embedded object cannot be read.
    #[error("cannot read the embedded object: {0}")]
    Object(#[from] ParseError),
    /// A map or function that a program refers to is missing.
    #[error("cannot read the embedded object: {0}")]
    Relocation(#[from] EbpfRelocationError),
    /// Type information is missing.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The object has no such program.
    #[error("the embedded object has no such program")]
    NoProgram,
    /// The kernel refuses.
    #[error("{call}: {error}{log}")]
    Kernel {
        /// What was asked of it.
        call: &'static str,
        /// What it says.
        error: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
}

/// The object, ready to be loaded.
pub(super) struct Programs {
    object: Object,
    btf: Option<OwnedFd>,
}

impl Programs {
    /// Reads the object; `map` finds the descriptor of a map by its name.
    pub(super) fn parse(
        bytes: &[u8],
        map: impl Fn(&str) -> Option<RawFd>,
    ) -> Result<Self, ModifyReturnError> {
        let mut object = Object::parse(bytes)?;
        let features = aya::features();
        let types = match features.btf() {
            Some(features) => object.fixup_and_sanitize_btf(features)?.map(Btf::to_bytes),
            None => None,
        };
        let btf = types.map(|bytes| load_types(&bytes)).transpose()?;
        let maps: HashMap<String, aya_obj::Map> = object.maps.drain().collect();
        let found = maps.iter().filter_map(|(name, found)| Some((name.as_str(), map(name)?, found)));
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(found, &text)?;
        object.relocate_calls(&text)?;
        object.sanitize_functions(features);
        Ok(Self { object, btf })
    }

    /// Attaches a program to a kernel function; detached when the descriptor is closed and no pin holds it.
    pub(super) fn attach(
        &self,
        program: &str,
        function: &str,
        kernel: &Btf,
    ) -> Result<OwnedFd, ModifyReturnError> {
        let program = self.load(program, function, kernel)?;
        let mut attr = empty();
        // SAFETY: the part of the union that BPF_RAW_TRACEPOINT_OPEN reads; no name: the program itself says
        // where.
        unsafe { &mut attr.raw_tracepoint }.prog_fd = descriptor(&program);
        made(call(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)).map_err(refused("attach"))
    }

    fn load(&self, name: &str, function: &str, kernel: &Btf) -> Result<OwnedFd, ModifyReturnError> {
        let program = self.object.programs.get(name).ok_or(ModifyReturnError::NoProgram)?;
        let code = self.object.functions.get(&program.function_key()).ok_or(ModifyReturnError::NoProgram)?;
        let (functions, lines) = (code.func_info.func_info_bytes(), code.line_info.line_info_bytes());
        let mut attr = empty();
        // SAFETY: the part of the union that BPF_PROG_LOAD reads.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        // The kernel keeps 15 bytes of it.
        for (to, from) in load.prog_name.iter_mut().take(15).zip(name.bytes()) {
            *to = from.cast_signed();
        }
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
        load.expected_attach_type = bpf_attach_type::BPF_MODIFY_RETURN as u32;
        load.attach_btf_id = kernel.id_by_type_name_kind(function, BtfKind::Func)?;
        load.insns = code.instructions.as_ptr() as u64;
        load.insn_cnt = length(code.instructions.len());
        load.license = program.license.as_ptr() as u64;
        if let Some(btf) = &self.btf {
            load.prog_btf_fd = descriptor(btf);
            load.func_info = functions.as_ptr() as u64;
            load.func_info_cnt = length(code.func_info.len());
            load.func_info_rec_size = length(code.func_info_rec_size);
            load.line_info = lines.as_ptr() as u64;
            load.line_info_cnt = length(code.line_info.len());
            load.line_info_rec_size = length(code.line_info_rec_size);
        }
        made(call(bpf_cmd::BPF_PROG_LOAD, &mut attr)).or_else(|error| {
            // Once more, for the verifier's reasons.
            let mut log = vec![0_u8; LOG];
            // SAFETY: as above.
            let load = unsafe { &mut attr.__bindgen_anon_3 };
            (load.log_level, load.log_buf, load.log_size) = (1, log.as_mut_ptr() as u64, length(log.len()));
            made(call(bpf_cmd::BPF_PROG_LOAD, &mut attr)).map_err(|_| {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                let log = end_of(&String::from_utf8_lossy(&log[..end]));
                ModifyReturnError::Kernel { call: "load", error, log }
            })
        })
    }
}

fn load_types(bytes: &[u8]) -> Result<OwnedFd, ModifyReturnError> {
    let mut attr = empty();
    // SAFETY: the part of the union that BPF_BTF_LOAD reads.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    (load.btf, load.btf_size) = (bytes.as_ptr() as u64, length(bytes.len()));
    made(call(bpf_cmd::BPF_BTF_LOAD, &mut attr)).map_err(refused("load the types"))
}

/// Nothing here has four thousand million of anything.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn refused(call: &'static str) -> impl FnOnce(io::Error) -> ModifyReturnError {
    move |error| ModifyReturnError::Kernel { call, error, log: String::new() }
}
