//! Which commands and task management functions there are: REPORT SUPPORTED OPERATION CODES and TASK
//! MANAGEMENT FUNCTIONS (SPC-4 sections 6.35 and 6.36).

use super::cdb::Cdb;
use super::command::{Outcome, Reply};
use super::logical_unit::LogicalUnit;
use super::operation::Operation;
use super::sense::Sense;
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// REPORT SUPPORTED OPERATION CODES.
    pub(super) fn report_supported_operation_codes(&self, cdb: &Cdb) -> Outcome {
        let timeouts = cdb.bit(2, 7); // RCTD
        let opcode = cdb.byte(3);
        let service_action = cdb.u16(4);
        let mut of_opcode = self.operations().filter(|entry| entry.opcode == opcode);
        let with_actions = of_opcode.clone().any(|entry| entry.service_action.is_some());
        let exact = of_opcode.clone().find(|entry| entry.service_action == Some(service_action));
        let data = match cdb.byte(2) & 7 {
            0 => all_commands(self.operations(), timeouts),
            1 if with_actions => return Err(Sense::invalid_cdb_bit(2, 2).into()),
            1 => one_command(of_opcode.next(), timeouts),
            2 if !with_actions && of_opcode.next().is_some() => {
                return Err(Sense::invalid_cdb_bit(2, 2).into());
            }
            2 => one_command(exact, timeouts),
            // Either kind; a service action of a command that has none has to be zero.
            3 if with_actions => one_command(exact, timeouts),
            3 => one_command(of_opcode.next().filter(|_| service_action == 0), timeouts),
            _ => return Err(Sense::invalid_cdb_bit(2, 2).into()),
        };
        Ok(Reply::parameters(data, allocation_length(cdb)))
    }

    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    pub(super) fn report_supported_task_management(&self, cdb: &Cdb) -> Outcome {
        // ATS, ATSS, CTSS, LURS, QTS; TRS (target reset); QTSS.
        let data = if cdb.bit(2, 7) {
            vec![0xda, 0x01, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        } else {
            vec![0xda, 0x01, 0, 0]
        };
        Ok(Reply::parameters(data, allocation_length(cdb)))
    }
}

fn all_commands(operations: impl Iterator<Item = &'static Operation>, timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for entry in operations {
        let [high, low] = entry.service_action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(timeouts) << 1 | u8::from(entry.service_action.is_some());
        let length = u8::try_from(entry.usage.len()).expect("at most 16");
        data.extend_from_slice(&[entry.opcode, 0, high, low, 0, flags, 0, length]);
        if timeouts {
            data.extend_from_slice(&NO_TIMEOUTS);
        }
    }
    let length = u32::try_from(data.len() - 4).expect("some twenty bytes a command");
    data[0..4].copy_from_slice(&length.to_be_bytes());
    data
}

fn one_command(entry: Option<&Operation>, timeouts: bool) -> Vec<u8> {
    let Some(entry) = entry else {
        return vec![0, 0x01, 0, 0]; // not supported
    };
    let length = u8::try_from(entry.usage.len()).expect("at most 16");
    let mut data = vec![0, u8::from(timeouts) << 7 | 0x03, 0, length];
    data.extend_from_slice(entry.usage);
    if timeouts {
        data.extend_from_slice(&NO_TIMEOUTS);
    }
    data
}

fn allocation_length(cdb: &Cdb) -> usize {
    usize::try_from(cdb.u32(6)).unwrap_or(usize::MAX)
}

/// A command timeouts descriptor that recommends nothing.
const NO_TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
