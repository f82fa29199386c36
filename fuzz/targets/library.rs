//! Records of the kernel programs' ring buffer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| format_guard::fuzzing::library(bytes));
