//! The one table of supported commands: it drives dispatch, REPORT SUPPORTED OPERATION CODES and the
//! checks for reservations and unit attentions, so these cannot disagree.

use super::cdb::Cdb;
use super::logical_unit::LogicalUnit;
use crate::volume::device::BlockDevice;

/// A supported command.
#[derive(Debug)]
pub struct Operation {
    /// What executes it.
    pub(super) kind: Kind,
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, for operation codes that have one.
    pub service_action: Option<u16>,
    /// CDB USAGE DATA (SPC-4 section 6.35.3): the operation code and service action themselves, and
    /// a one for each bit that is looked at. Its length is the CDB's.
    pub usage: &'static [u8],
    /// How reservations of other nexuses restrict it.
    pub(super) access: Access,
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// The command, if this unit has it: a unit that stays where it is has no SET TARGET PORT GROUPS.
    pub(super) fn supported<'a>(&self, operation: &'a Operation) -> Result<&'a Operation, Unknown> {
        let is_supported = operation.kind != Kind::SetTargetPortGroups || self.services().access.is_movable();
        if is_supported { Ok(operation) } else { Err(Unknown::OperationCode) }
    }

    /// All commands that this unit has, in ascending order.
    pub(super) fn operations(&self) -> impl Iterator<Item = &'static Operation> + Clone {
        Operation::all().iter().filter(|operation| self.supported(operation).is_ok())
    }
}

impl Operation {
    /// The supported command that `cdb` asks for, or how much of it is unknown.
    pub(super) fn find(cdb: &Cdb) -> Result<&'static Self, Unknown> {
        let mut unknown = Unknown::OperationCode;
        let from = usize::from(FIRST_BY_OPCODE[usize::from(cdb.opcode())]);
        for operation in OPERATIONS[from..].iter().take_while(|entry| entry.opcode == cdb.opcode()) {
            match operation.service_action {
                None => return Ok(operation),
                Some(action) if action == u16::from(cdb.service_action()) => return Ok(operation),
                Some(_) => unknown = Unknown::ServiceAction,
            }
        }
        Err(unknown)
    }

    /// All supported commands in ascending order.
    #[must_use]
    pub fn all() -> &'static [Self] {
        OPERATIONS
    }
}

/// What is not supported about a CDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    OperationCode,
    ServiceAction,
}

/// What a reservation of another nexus does to a command (SPC-4 table 71, SBC-3 table 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Allowed whatever is reserved, SPC-2 reservations included (SPC-2 section 5.5.1).
    Always,
    /// Allowed under every persistent reservation; SPC-2 reservations exclude it.
    Query,
    /// Reads the medium or parameters: write-exclusive reservations allow it.
    Read,
    /// Changes the medium or the logical unit.
    Write,
    /// Decides by itself: the reservation commands, and commands whose fields matter.
    Special,
}

/// Which code executes a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ReportLuns,
    ReadCapacity10,
    ReadCapacity16,
    Read,
    Write,
    WriteAndVerify,
    Verify,
    SynchronizeCache,
    ModeSelect6,
    ModeSense6,
    ModeSelect10,
    ModeSense10,
    Reserve,
    Release,
    StartStopUnit,
    SendDiagnostic,
    PreventAllow,
    PreFetch,
    ReadDefectData,
    WriteSame,
    Unmap,
    Sanitize,
    LogSense,
    PersistentReserveIn,
    PersistentReserveOut,
    ExtendedCopy,
    ReceiveCopyResults,
    CompareAndWrite,
    OrWrite,
    GetLbaStatus,
    ReportTargetPortGroups,
    SetTargetPortGroups,
    ReportSupportedOperationCodes,
    ReportSupportedTaskManagement,
}

impl Kind {
    /// Whether it reads, writes or frees blocks, or waits for those that do: what limits of a volume count.
    pub(super) fn moves_blocks(self) -> bool {
        matches!(
            self,
            Self::Read
                | Self::Write
                | Self::WriteAndVerify
                | Self::Verify
                | Self::SynchronizeCache
                | Self::WriteSame
                | Self::Unmap
                | Self::CompareAndWrite
                | Self::OrWrite
                | Self::ExtendedCopy
        )
    }
}

/// Sorted by operation code, then service action.
#[rustfmt::skip] // one command a line
static OPERATIONS: &[Operation] = {
    use Access::{Always, Query, Read, Special, Write};
    use Kind as K;
    &[
        op(K::TestUnitReady, Query, &[0x00, 0, 0, 0, 0, 0]),
        op(K::RequestSense, Always, &[0x03, 0x01, 0, 0, 0xff, 0]),
        op(K::Read, Read, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
        op(K::Write, Write, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
        op(K::Inquiry, Always, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
        op(K::ModeSelect6, Write, &[0x15, 0x11, 0, 0, 0xff, 0]),
        op(K::Reserve, Special, &[0x16, 0, 0, 0, 0, 0]),
        op(K::Release, Special, &[0x17, 0, 0, 0, 0, 0]),
        op(K::ModeSense6, Read, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
        op(K::StartStopUnit, Special, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0]),
        op(K::SendDiagnostic, Write, &[0x1d, 0xff, 0, 0xff, 0xff, 0]),
        op(K::PreventAllow, Special, &[0x1e, 0, 0, 0, 0x03, 0]),
        op(K::ReadCapacity10, Query, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        op(K::Read, Read, &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::Write, Write, &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::WriteAndVerify, Write, &[0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::Verify, Read, &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::PreFetch, Read, &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::SynchronizeCache, Write, &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::ReadDefectData, Read, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0]),
        op(K::WriteSame, Write, &[0x41, 0x08, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::Unmap, Write, &[0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::Sanitize, Special, &[0x48, 0xa1, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::Sanitize, Special, &[0x48, 0xa2, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::Sanitize, Special, &[0x48, 0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        op(K::LogSense, Query, &[0x4d, 0x01, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
        op(K::ModeSelect10, Write, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        op(K::Reserve, Special, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        op(K::Release, Special, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        op(K::ModeSense10, Read, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::PersistentReserveIn, Special, &[0x5e, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::PersistentReserveIn, Special, &[0x5e, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::PersistentReserveIn, Special, &[0x5e, 0x02, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::PersistentReserveIn, Special, &[0x5e, 0x03, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0x01, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0x02, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0x03, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0x04, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0x05, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0x06, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::PersistentReserveOut, Special, &[0x5f, 0x07, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
        action(K::ExtendedCopy, Write, &[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::ReceiveCopyResults, Write, &[0x84, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::ReceiveCopyResults, Write, &[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::ReceiveCopyResults, Write, &[0x84, 0x04, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Read, Read, &[0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::CompareAndWrite, Write, &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0]),
        op(K::Write, Write, &[0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::OrWrite, Write, &[0x8b, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::WriteAndVerify, Write, &[0x8e, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Verify, Read, &[0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::PreFetch, Read, &[0x90, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::SynchronizeCache, Write, &[0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::WriteSame, Write, &[0x93, 0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::ReadCapacity16, Query, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::GetLbaStatus, Read, &[0x9e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::ReportLuns, Always, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::ReportTargetPortGroups, Query, &[0xa3, 0xea, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::ReportSupportedOperationCodes, Query, &[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::ReportSupportedTaskManagement, Query, &[0xa3, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        action(K::SetTargetPortGroups, Special, &[0xa4, 0x0a, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Read, Read, &[0xa8, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Write, Write, &[0xaa, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::WriteAndVerify, Write, &[0xae, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Verify, Read, &[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::ReadDefectData, Read, &[0xb7, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    ]
};

const fn op(kind: Kind, access: Access, usage: &'static [u8]) -> Operation {
    Operation { kind, opcode: usage[0], service_action: None, usage, access }
}

/// A command whose service action is in byte 1, as its usage data says.
const fn action(kind: Kind, access: Access, usage: &'static [u8]) -> Operation {
    let service_action = Some((usage[1] & 0x1f) as u16);
    Operation { kind, opcode: usage[0], service_action, usage, access }
}

/// Index of the first entry for each operation code; the table's end for those that have none.
static FIRST_BY_OPCODE: [u8; 256] = {
    assert!(OPERATIONS.len() < 256);
    let mut first = [OPERATIONS.len() as u8; 256];
    let mut index = OPERATIONS.len();
    while index > 0 {
        index -= 1;
        first[OPERATIONS[index].opcode as usize] = index as u8;
    }
    first
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_entry_is_found() {
        let key = |entry: &Operation| (entry.opcode, entry.service_action);
        assert!(OPERATIONS.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])));
        for entry in OPERATIONS {
            let found = Operation::find(&Cdb::new(entry.usage)).unwrap();
            assert_eq!((found.opcode, found.service_action), key(entry));
            assert!([6, 10, 12, 16].contains(&entry.usage.len()));
        }
        assert_eq!(Operation::find(&Cdb::new(&[0xff])).err(), Some(Unknown::OperationCode));
        assert_eq!(Operation::find(&Cdb::new(&[0x9e, 0x1f])).err(), Some(Unknown::ServiceAction));
    }
}
