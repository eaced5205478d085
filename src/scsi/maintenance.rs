//! MAINTENANCE IN (SPC-4 sections 6.35 to 6.37): which commands and task management functions there are,
//! and by which ports the logical unit is reached. SET TARGET PORT GROUPS is not supported: the states
//! follow from which node serves.

use super::cdb::Cdb;
use super::command::{Outcome, Reply};
use super::identity::TargetPort;
use super::logical_unit::LogicalUnit;
use super::operation::Operation;
use super::sense::Sense;
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// REPORT TARGET PORT GROUPS: each portal group is a target port group, active/optimized.
    pub(super) fn report_target_port_groups(&self, cdb: &Cdb) -> Outcome {
        let extended = match cdb.byte(1) >> 5 {
            0 => false,
            1 => true,
            _ => return Err(Sense::invalid_cdb_bit(1, 7).into()),
        };
        let mut data = vec![0; 4];
        if extended {
            data.extend_from_slice(&[0x10, IMPLICIT_TRANSITION_SECONDS, 0, 0]);
        }
        let mut ports = self.identity().target_ports.clone();
        ports.sort_unstable_by_key(|port| (port.portal_group, port.relative_id));
        for group in ports.chunk_by(|one, other| one.portal_group == other.portal_group) {
            append_group(&mut data, group);
        }
        let length = u32::try_from(data.len() - 4).expect("a handful of ports");
        data[0..4].copy_from_slice(&length.to_be_bytes());
        Ok(Reply::parameters(data, allocation_length(cdb)))
    }

    /// REPORT SUPPORTED OPERATION CODES.
    pub(super) fn report_supported_operation_codes(&self, cdb: &Cdb) -> Outcome {
        let timeouts = cdb.bit(2, 7); // RCTD
        let opcode = cdb.byte(3);
        let service_action = cdb.u16(4);
        let mut of_opcode = Operation::all().iter().filter(|entry| entry.opcode == opcode);
        let with_actions = of_opcode.clone().any(|entry| entry.service_action.is_some());
        let exact = of_opcode.clone().find(|entry| entry.service_action == Some(service_action));
        let data = match cdb.byte(2) & 7 {
            0 => all_commands(timeouts),
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

fn append_group(data: &mut Vec<u8>, ports: &[TargetPort]) {
    let [high, low] = ports[0].portal_group.to_be_bytes();
    let count = u8::try_from(ports.len()).unwrap_or(u8::MAX);
    // Active/optimized; only that state is supported for now; status: no change so far.
    data.extend_from_slice(&[0x00, 0x01, high, low, 0, 0, 0, count]);
    for port in ports.iter().take(usize::from(count)) {
        let [high, low] = port.relative_id.to_be_bytes();
        data.extend_from_slice(&[0, 0, high, low]);
    }
}

fn all_commands(timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for entry in Operation::all() {
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
/// How long a host may have to wait for a takeover, in seconds.
const IMPLICIT_TRANSITION_SECONDS: u8 = 15;
