//! The one table of supported commands: it drives dispatch, REPORT SUPPORTED OPERATION CODES and the
//! checks for reservations and unit attentions, so these cannot disagree.

use super::cdb::Cdb;

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
}

/// Sorted by operation code, then service action.
static OPERATIONS: &[Operation] = {
    use Access::{Always, Query, Read, Write};
    use Kind as K;
    &[
        op(K::TestUnitReady, Query, &[0x00, 0, 0, 0, 0, 0]),
        op(K::RequestSense, Always, &[0x03, 0x01, 0, 0, 0xff, 0]),
        op(K::Read, Read, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
        op(K::Write, Write, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
        op(K::Inquiry, Always, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
        op(K::ModeSelect6, Write, &[0x15, 0x11, 0, 0, 0xff, 0]),
        op(K::ModeSense6, Read, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
        op(K::ReadCapacity10, Query, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        op(K::Read, Read, &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::Write, Write, &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::WriteAndVerify, Write, &[0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::Verify, Read, &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::SynchronizeCache, Write, &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
        op(K::ModeSelect10, Write, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        op(K::ModeSense10, Read, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
        op(
            K::Read,
            Read,
            &[0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ),
        op(
            K::Write,
            Write,
            &[0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ),
        op(
            K::WriteAndVerify,
            Write,
            &[0x8e, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ),
        op(
            K::Verify,
            Read,
            &[0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ),
        op(
            K::SynchronizeCache,
            Write,
            &[0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ),
        action(K::ReadCapacity16, Query, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::ReportLuns, Always, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Read, Read, &[0xa8, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Write, Write, &[0xaa, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::WriteAndVerify, Write, &[0xae, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        op(K::Verify, Read, &[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
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
