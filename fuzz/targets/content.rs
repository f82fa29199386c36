//! What is on a device, as libblkid and the table of marks read it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| format_guard::fuzzing::content(bytes));
