//! A superblock and the root in it: see `gemel::store::fuzzing::superblock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gemel::store::fuzzing::superblock(data));
