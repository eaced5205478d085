//! Persistent reservations on a real `gemeld` that is killed: with APTPL they are in force again before the first
//! host is back, without it they are gone with the process (SPC-4 section 5.13.5.2, on the loss of power).

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;

use bytes::Bytes;
use gemel::iscsi::initiator::{Command, LoginSettings, Outcome};
use gemel::iscsi::pdu::Isid;
use initiator::{Session, read_command, write_command};
use node::{Node, NodeSettings, target_name};

const HOLDER_KEY: u64 = 0x1122_3344_5566_7788;
const PARTNER_KEY: u64 = 0x99aa_bbcc_ddee_ff00;

#[test]
fn write_exclusive_registrants_only_with_aptpl_is_in_force_after_a_kill() {
    survives_a_kill(ReservationType::WriteExclusiveRegistrantsOnly);
}

#[test]
fn exclusive_access_with_aptpl_is_in_force_after_a_kill() {
    survives_a_kill(ReservationType::ExclusiveAccess);
}

#[test]
fn without_aptpl_nothing_is_left_after_a_kill() {
    let (_folder, mut node) = start();
    reserve(&node, ReservationType::ExclusiveAccess, false);
    node.kill();
    node.restart();
    let mut stranger = Host::Stranger.log_in(&node);
    assert!(keys(&mut stranger).is_empty());
    assert_eq!(reservation(&mut stranger), None);
    assert!(!persists(&mut stranger));
    assert_eq!(write(&mut stranger, 3).status, GOOD);
    assert_eq!(read(&mut Host::Holder.log_in(&node)).data, vec![3; 4096]);
    node.kill();
    node.restart();
    // Nor does the volume count as one that hosts have registered with, which is deleted by force only.
    node.administer(&["volume", "delete", "v"]);
}

#[test]
fn what_was_released_and_unregistered_does_not_come_back() {
    let (_folder, mut node) = start();
    reserve(&node, ReservationType::ExclusiveAccess, true);
    let mut holder = Host::Holder.log_in(&node);
    let release = reserve_out(Action::Release, ReservationType::ExclusiveAccess as u8, HOLDER_KEY, 0, false);
    assert_eq!(execute(&mut holder, &release).status, GOOD);
    let unregister = reserve_out(Action::Register, 0, HOLDER_KEY, 0, true);
    assert_eq!(execute(&mut holder, &unregister).status, GOOD);
    node.kill();
    node.restart();
    let mut stranger = Host::Stranger.log_in(&node);
    assert_eq!(keys(&mut stranger), [PARTNER_KEY]);
    assert_eq!(reservation(&mut stranger), None);
    assert_eq!(write(&mut stranger, 4).status, GOOD);
}

fn survives_a_kill(kind: ReservationType) {
    let (_folder, mut node) = start();
    reserve(&node, kind, true);
    // A second kill, because what the first start has read must have been left there.
    for round in 1..=2 {
        node.kill();
        node.restart();
        // Before the holder is back: it is the nexus that is registered, not a session.
        let mut stranger = Host::Stranger.log_in(&node);
        assert_eq!(keys(&mut stranger), [HOLDER_KEY, PARTNER_KEY], "round {round}");
        assert_eq!(reservation(&mut stranger), Some((HOLDER_KEY, kind as u8)), "round {round}");
        assert!(persists(&mut stranger), "round {round}: PTPL_A");
        assert_eq!(write(&mut stranger, 0xee).status, RESERVATION_CONFLICT, "round {round}");
        let (read_by_stranger, write_by_partner) = match kind {
            ReservationType::WriteExclusiveRegistrantsOnly => (GOOD, GOOD),
            ReservationType::ExclusiveAccess => (RESERVATION_CONFLICT, RESERVATION_CONFLICT),
        };
        assert_eq!(read(&mut stranger).status, read_by_stranger, "round {round}");
        let mut partner = Host::Partner.log_in(&node);
        assert_eq!(write(&mut partner, 0xdd).status, write_by_partner, "round {round}");
        let mut holder = Host::Holder.log_in(&node);
        assert_eq!(write(&mut holder, round).status, GOOD, "round {round}");
        assert_eq!(read(&mut holder).data, vec![round; 4096]);
    }
}

/// The holder and its partner register, the holder reserves; a stranger is kept out.
fn reserve(node: &Node, kind: ReservationType, aptpl: bool) {
    let (mut holder, mut partner) = (Host::Holder.log_in(node), Host::Partner.log_in(node));
    for (session, key) in [(&mut holder, HOLDER_KEY), (&mut partner, PARTNER_KEY)] {
        assert_eq!(execute(session, &reserve_out(Action::Register, 0, 0, key, aptpl)).status, GOOD);
    }
    let reserve = reserve_out(Action::Reserve, kind as u8, HOLDER_KEY, 0, false);
    assert_eq!(execute(&mut holder, &reserve).status, GOOD);
    let mut stranger = Host::Stranger.log_in(node);
    assert_eq!(keys(&mut stranger), [HOLDER_KEY, PARTNER_KEY]);
    assert_eq!(reservation(&mut stranger), Some((HOLDER_KEY, kind as u8)));
    assert_eq!(persists(&mut stranger), aptpl);
    assert_eq!(write(&mut stranger, 0xee).status, RESERVATION_CONFLICT);
}

const GOOD: u8 = 0;
const RESERVATION_CONFLICT: u8 = 0x18;

/// SPC-4 table 166.
#[derive(Clone, Copy)]
enum ReservationType {
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
}

/// Service actions of PERSISTENT RESERVE OUT.
enum Action {
    Register = 0,
    Reserve = 1,
    Release = 2,
}

#[derive(Clone, Copy)]
enum Host {
    Holder = 1,
    Partner,
    Stranger,
}

impl Host {
    /// The same initiator port through the same target port each time.
    fn log_in(self, node: &Node) -> Session {
        let name = format!("iqn.2026-11.io.gemel:host-{}", self as u8);
        let mut settings = LoginSettings::normal(&name, &target_name("v"));
        settings.isid = Isid([0x80, 0, 0, 0, 0, self as u8]);
        Session::open(node.portals[0], settings).expect("an initiator that is allowed logs in")
    }
}

fn start() -> (tempfile::TempDir, Node) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let node = Node::start(folder.path(), NodeSettings { disks: 3, ..NodeSettings::default() });
    node.create_volume("v", "64M");
    (folder, node)
}

/// Executes a command; unit attentions of the login and of what others did come first and are passed over.
fn execute(session: &mut Session, command: &Command) -> Outcome {
    const UNIT_ATTENTION: u8 = 6;
    for _ in 0..8 {
        let outcome = session.execute(command.clone()).expect("a command is answered");
        if outcome.sense_codes().is_none_or(|(key, ..)| key != UNIT_ATTENTION) {
            return outcome;
        }
    }
    panic!("unit attentions without end");
}

fn write(session: &mut Session, value: u8) -> Outcome {
    execute(session, &write_command(0, 64, 8, Bytes::from(vec![value; 4096])))
}

fn read(session: &mut Session) -> Outcome {
    execute(session, &read_command(0, 64, 8, 4096))
}

/// PERSISTENT RESERVE OUT with the basic parameter list (SPC-4 section 6.16.3).
fn reserve_out(action: Action, kind: u8, key: u64, action_key: u64, aptpl: bool) -> Command {
    let mut list = vec![0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&action_key.to_be_bytes());
    list[20] = u8::from(aptpl);
    let cdb = [0x5f, action as u8, kind, 0, 0, 0, 0, 0, 24, 0];
    Command::new(&cdb).with_data_out(Bytes::from(list))
}

/// PERSISTENT RESERVE IN (SPC-4 section 6.15).
fn reserve_in(session: &mut Session, action: u8) -> Vec<u8> {
    let cdb = [0x5e, action, 0, 0, 0, 0, 0, 1, 0, 0];
    let outcome = execute(session, &Command::new(&cdb).with_data_in(256));
    assert!(outcome.is_good(), "{outcome:?}");
    outcome.data
}

/// READ KEYS, in order.
fn keys(session: &mut Session) -> Vec<u64> {
    let data = reserve_in(session, 0);
    let mut keys: Vec<_> = body(&data).chunks(8).map(number).collect();
    keys.sort_unstable();
    keys
}

/// READ RESERVATION: the holder's key, and the scope and type.
fn reservation(session: &mut Session) -> Option<(u64, u8)> {
    let data = reserve_in(session, 1);
    let body = body(&data);
    (!body.is_empty()).then(|| (number(&body[..8]), body[13]))
}

/// REPORT CAPABILITIES: PTPL_A, what is registered now persists through power loss.
fn persists(session: &mut Session) -> bool {
    reserve_in(session, 2)[3] & 1 != 0
}

/// What follows the header, all of which must have been asked for.
fn body(data: &[u8]) -> &[u8] {
    let length = u32::from_be_bytes(data[4..8].try_into().expect("four bytes")) as usize;
    assert_eq!(data.len(), 8 + length);
    &data[8..]
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}
