//! The device level: which logical unit a LUN means, and what is answered where there is none.
//!
//! A target has one logical unit, LUN 0.

use super::command::{Command, Failure, Outcome, Response};
use super::inquiry;
use super::sense::{AdditionalSense, Sense, SenseKey};

/// Where a command goes, by its LUN field (SAM-5 section 4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The target's logical unit.
    LogicalUnit,
    /// Nowhere: answer with [`answer_missing`].
    Missing,
}

/// The route of an eight-byte LUN: zero in peripheral, flat space or simple logical unit addressing.
#[must_use]
pub fn route(lun: [u8; 8]) -> Route {
    let method = lun[0] >> 6;
    let zero = lun[0] & 0x3f == 0 && lun[1..].iter().all(|byte| *byte == 0);
    if zero && method <= 1 { Route::LogicalUnit } else { Route::Missing }
}

/// The answer to a command for a LUN that is not there (SPC-4 section 6.6.1, SAM-5 section 5.12).
#[must_use]
pub fn answer_missing(command: &Command) -> Response {
    let unsupported = Sense::illegal(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
    let outcome: Outcome = match command.cdb.opcode() {
        0x12 => inquiry::missing(&command.cdb),
        0xa0 => inquiry::report_luns(&command.cdb),
        0x03 => Ok(super::command::Reply::parameters(
            Sense::new(SenseKey::IllegalRequest, AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED)
                .encode(command.cdb.bit(1, 0)),
            usize::from(command.cdb.byte(4)),
        )),
        _ => Err(Failure::Check(unsupported)),
    };
    Response::from_outcome(outcome, 0, false).unwrap_or_else(|| Response::check(&unsupported, false))
}
