//! PDUs of both directions: see `gemel::iscsi::fuzzing::pdu`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gemel::iscsi::fuzzing::pdu(data));
