//! The header of a batch: see `gemel::store::fuzzing::batch_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gemel::store::fuzzing::batch_header(data));
