//! Any sequence of commands with any data.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gemel::scsi::fuzzing::execute_commands(bytes));
