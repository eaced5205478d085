//! Small commands about the unit as a whole: START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, PRE-FETCH,
//! READ DEFECT DATA, SEND DIAGNOSTIC and LOG SENSE.

use super::cdb::Cdb;
use super::command::{Outcome, Reply};
use super::logical_unit::LogicalUnit;
use super::medium::addressed;
use super::sense::Sense;
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// START STOP UNIT (SBC-3 section 5.25). The medium can't be ejected; stopping and power
    /// conditions are accepted and change nothing, since other hosts may be using the same unit.
    pub(super) fn start_stop_unit(&self, cdb: &Cdb) -> Outcome {
        let power_condition = cdb.byte(4) >> 4;
        if power_condition == 0 && cdb.bit(4, 1) {
            return Err(Sense::invalid_cdb_bit(4, 1).into()); // LOEJ
        }
        match power_condition {
            0x0..=0x3 | 0x7 | 0xa | 0xb => Ok(Reply::good()),
            _ => Err(Sense::invalid_cdb_bit(4, 7).into()),
        }
    }

    /// PREVENT ALLOW MEDIUM REMOVAL: the medium stays where it is in both cases.
    pub(super) fn prevent_allow(&self, cdb: &Cdb) -> Outcome {
        match cdb.byte(4) & 3 {
            0 | 1 => Ok(Reply::good()),
            _ => Err(Sense::invalid_cdb_bit(4, 1).into()),
        }
    }

    /// PRE-FETCH (10) and (16). GOOD, not CONDITION MET, says that the blocks do not all fit into a
    /// cache (SBC-3 section 5.8): there is none that would be worth filling.
    pub(super) fn pre_fetch(&self, cdb: &Cdb) -> Outcome {
        self.check_extent(addressed(cdb))?;
        Ok(Reply::good())
    }

    /// READ DEFECT DATA (10) and (12): the array knows of no defects that hosts could see.
    pub(super) fn read_defect_data(&self, cdb: &Cdb) -> Outcome {
        if cdb.opcode() == 0x37 {
            let data = vec![0, cdb.byte(2) & 0x1f, 0, 0];
            Ok(Reply::parameters(data, usize::from(cdb.u16(7))))
        } else {
            let data = vec![0, cdb.byte(1) & 0x1f, 0, 0, 0, 0, 0, 0];
            Ok(Reply::parameters(data, usize::try_from(cdb.u32(6)).unwrap_or(usize::MAX)))
        }
    }

    /// SEND DIAGNOSTIC: the default self-test, which passes while the unit answers.
    pub(super) fn send_diagnostic(&self, cdb: &Cdb) -> Outcome {
        if cdb.byte(1) >> 5 != 0 {
            return Err(Sense::invalid_cdb_bit(1, 7).into()); // extended self-tests
        }
        if cdb.u16(3) != 0 {
            return Err(Sense::invalid_cdb_field(3).into()); // diagnostic pages
        }
        Ok(Reply::good())
    }

    /// LOG SENSE: the list of log pages, which names itself only. The array reports its health and
    /// its space by other means.
    pub(super) fn log_sense(&self, cdb: &Cdb) -> Outcome {
        if cdb.bit(1, 0) {
            return Err(Sense::invalid_cdb_bit(1, 0).into()); // SP
        }
        let data = match (cdb.byte(2) & 0x3f, cdb.byte(3)) {
            (0x00, 0x00) => vec![0x00, 0, 0, 2, 0x00, 0x0c],
            (0x00, 0xff) => vec![0x40, 0xff, 0, 6, 0x00, 0x00, 0x00, 0xff, 0x0c, 0x00],
            (0x0c, 0x00 | 0xff) => self.provisioning_log_page(),
            (0x00 | 0x0c, _) => return Err(Sense::invalid_cdb_field(3).into()),
            _ => return Err(Sense::invalid_cdb_bit(2, 5).into()),
        };
        Ok(Reply::parameters(data, usize::from(cdb.u16(7))))
    }
}
