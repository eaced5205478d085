//! Text of login, through a whole login: see `gemel::iscsi::fuzzing::login_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gemel::iscsi::fuzzing::login_text(data));
