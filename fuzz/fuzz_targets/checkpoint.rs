//! The byte stream of a checkpoint: see `gemel::store::fuzzing::checkpoint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gemel::store::fuzzing::checkpoint(data));
