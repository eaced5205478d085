//! Any parameter list, for each command that has one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gemel::scsi::fuzzing::parse_parameter_list(bytes));
