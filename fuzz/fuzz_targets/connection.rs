//! A byte stream into a connection: see `gemel::iscsi::fuzzing::connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gemel::iscsi::fuzzing::connection(data));
