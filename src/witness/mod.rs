//! The witness, the third vote of a mirrored pair. There is no pair yet, so there is nothing to
//! witness: the program says so and fails, rather than look like a service that works.

use std::process::ExitCode;

/// Exit code of a service that is not available (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

/// Says that there is no mirrored pair yet.
#[must_use]
pub fn run() -> ExitCode {
    eprintln!(
        "gemel-witness: this version has no mirrored pair, so there is nothing to witness; \
         a single node needs none: stop and disable this service"
    );
    ExitCode::from(UNAVAILABLE)
}
