//! Third-party copy: EXTENDED COPY (LID1) and RECEIVE COPY RESULTS.

use std::rc::Rc;

use super::identity::InitiatorPort;
use super::logical_unit::LogicalUnit;

/// Finds the logical units that a copy may name.
pub trait CopyResolver<D> {
    /// The logical unit whose NAA designator is `naa`, if `initiator` may reach it.
    fn resolve(&self, initiator: &InitiatorPort, naa: &[u8; 16]) -> Option<Rc<LogicalUnit<D>>>;
}

/// A resolver for copies inside a single logical unit only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOthers;

impl<D> CopyResolver<D> for NoOthers {
    fn resolve(&self, _: &InitiatorPort, _: &[u8; 16]) -> Option<Rc<LogicalUnit<D>>> {
        None
    }
}
