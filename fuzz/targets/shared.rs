//! Values of the store that nodes share.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| format_guard::fuzzing::shared_record(bytes));
