//! Many sessions in bounded memory: nothing exceeds the budget, nobody starves.

use bytes::Bytes;

use super::initiator::*;
use crate::iscsi::budget::DataBudget;
use crate::iscsi::connection::full_feature::FullFeature;
use crate::iscsi::connection::{Connection, Event, ScsiResult};
use crate::iscsi::pdu::*;
use crate::iscsi::settings::TargetSettings;

const SESSIONS: usize = 50;
const COMMANDS: u32 = 24;
const LIMIT_BYTES: u64 = 4 << 20;
const LENGTH: u32 = 65536;

/// Answers everything that one wire has waiting; gives how many commands ended, and whether
/// anything happened.
fn turn(wire: &mut Wire, budget: &DataBudget) -> (u32, bool) {
    let (mut ended, mut any) = (0, false);
    if wire.woken.replace(0) > 0 {
        wire.connection.handle_wake(wire.now);
    }
    while let Some(event) = wire.event() {
        let Event::Command(command) = event else { panic!("{event:?}") };
        assert!(budget.used_bytes() <= LIMIT_BYTES);
        let data_in = vec![Bytes::from(vec![0; command.expected_in as usize])];
        let transfer_length = u64::from(command.expected_in + command.expected_out);
        let result = ScsiResult { data_in, transfer_length, ..ScsiResult::default() };
        wire.connection.complete_command(command.task, result, wire.now);
        any = true;
    }
    for answer in wire.answers() {
        any = true;
        match answer.pdu {
            TargetPdu::ReadyToTransfer(r2t) => {
                let tag = r2t.initiator_task_tag.0;
                let pdu = wire.data_out(tag, r2t.target_transfer_tag.0, 0, r2t.buffer_offset);
                let data = vec![0; r2t.desired_data_transfer_length as usize];
                wire.send(&pdu.emit(), &[], &data);
            }
            TargetPdu::ScsiResponse(response) => {
                assert!(matches!(response.status, 0 | 0x28), "good, or task set full");
                ended += 1;
            }
            TargetPdu::DataIn(data) => ended += u32::from(data.status.is_some()),
            other => panic!("{other:?}"),
        }
    }
    (ended, any)
}

#[test]
fn many_sessions_share_bounded_memory_and_all_get_done() {
    let budget = DataBudget::new(LIMIT_BYTES, 16 << 10);
    let settings = TargetSettings { transfer_length: 1 << 20, ..TargetSettings::default() };
    let setup = || Setup { budget: budget.clone(), settings: settings.clone(), ..Setup::default() };
    let mut wires: Vec<_> = (0..SESSIONS).map(|_| Wire::logged_in(setup())).collect();
    for wire in &mut wires {
        for tag in 0..COMMANDS {
            let (kind, data) = match tag % 3 {
                0 => (Kind::Read(LENGTH), 0),
                1 => (Kind::Write(LENGTH), 0),
                _ => (Kind::Write(8192), 8192),
            };
            let command = wire.command(tag, kind);
            wire.send_command(&command, &vec![0; data]);
            assert!(budget.used_bytes() <= LIMIT_BYTES);
        }
    }
    let mut open = COMMANDS * SESSIONS as u32;
    while open > 0 {
        let mut any = false;
        for wire in &mut wires {
            let (ended, has_worked) = turn(wire, &budget);
            open -= ended;
            any |= has_worked;
        }
        assert!(any, "{open} commands starve");
    }
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn an_idle_session_is_small() {
    let bytes = size_of::<Connection>() + size_of::<FullFeature>();
    assert!(bytes < 2048, "{bytes} bytes");
}
