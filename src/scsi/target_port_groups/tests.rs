//! Tests of REPORT and SET TARGET PORT GROUPS, byte by byte.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::asymmetric_access::{ActivationFailed, GroupAccess};
use super::super::command::{Response, Status};
use super::super::testing::{Bench, good, sense_of};
use super::*;

const REPORT: [u8; 12] = [0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0];
const EXTENDED_REPORT: [u8; 12] = [0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0];

fn set(bench: &Bench, list: &[u8]) -> Response {
    let length = list.len() as u8;
    bench.send_data(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, length, 0, 0], list)
}

/// A parameter list of (state, group) descriptors.
fn list(descriptors: &[(u8, u16)]) -> Vec<u8> {
    let bytes = descriptors.iter().flat_map(|(state, group)| [*state, 0, (group >> 8) as u8, *group as u8]);
    [0; 4].into_iter().chain(bytes).collect()
}

/// Has the cluster of `bench` do what it is asked, and gives what it was asked.
fn obliging(bench: &Bench) -> Rc<RefCell<Vec<u16>>> {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let (unit, noted) = (Rc::downgrade(&bench.unit), asked.clone());
    *bench.cluster.on_activate.borrow_mut() = Box::new(move |wanted| {
        noted.borrow_mut().push(wanted);
        let state = |tag| match tag == wanted {
            true => AccessState::ActiveOptimized,
            false => AccessState::Standby,
        };
        let group = |tag| GroupAccess { portal_group: tag, state: state(tag), preferred: tag == 1 };
        unit.upgrade().unwrap().set_access_states(&[group(1), group(2)]);
        Ok(())
    });
    asked
}

#[test]
fn both_headers_report_the_groups_of_both_nodes() {
    let bench = Bench::pair();
    // PREF and active/optimized at home; T, U, S, AN and AO supported; never changed; one port each.
    let groups = [[0x80, 0x8f, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1], [0x02, 0x8f, 0, 2, 0, 2, 0, 1, 0, 0, 0, 2]];
    assert_eq!(good(&bench.send(&REPORT)), [&[0, 0, 0, 24], &groups.concat()[..]].concat());
    let header = [0, 0, 0, 28, 0x10, 15, 0, 0];
    assert_eq!(good(&bench.send(&EXTENDED_REPORT)), [&header, &groups.concat()[..]].concat());
    assert_eq!(sense_of(&bench.send(&[0xa3, 0x4a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0])), (5, 0x2400));
}

#[test]
fn every_state_and_what_changed_it_is_reported() {
    let bench = Bench::pair();
    let states = || {
        let report = good(&bench.send(&REPORT));
        [(report[4], report[9]), (report[16], report[21])]
    };
    bench.set_states(AccessState::Transitioning, AccessState::Transitioning);
    assert_eq!(states(), [(0x8f, 0), (0x0f, 2)], "a transition is no change yet");
    bench.set_states(AccessState::Unavailable, AccessState::ActiveNonOptimized);
    bench.clear_pending(bench.nexus);
    assert_eq!(states(), [(0x83, 2), (0x01, 2)]);
    obliging(&bench);
    assert_eq!(set(&bench, &list(&[(0, 1)])).status, Status::Good);
    assert_eq!(states(), [(0x80, 1), (0x02, 1)], "changed by SET TARGET PORT GROUPS");
}

#[test]
fn a_single_node_has_one_state_and_no_set_target_port_groups() {
    let bench = Bench::new();
    assert_eq!(good(&bench.send(&REPORT))[4..6], [0x00, 0x01]);
    assert_eq!(sense_of(&set(&bench, &list(&[(0, 1)]))), (5, 0x2000));
    assert_eq!(sense_of(&bench.send(&[0xa4, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])), (5, 0x2000));
    assert_eq!(good(&bench.send(&[0x12, 0, 0, 0, 96, 0]))[5], 0x18, "TPGS 01b");
    let pair = Bench::pair();
    assert_eq!(good(&pair.send(&[0x12, 0, 0, 0, 96, 0]))[5], 0x38, "TPGS 11b");
    assert_eq!(sense_of(&pair.send(&[0xa4, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])), (5, 0x2400));
}

#[test]
fn a_move_is_asked_for_and_told_to_the_others() {
    let bench = Bench::pair();
    let other = bench.attach(2);
    let asked = obliging(&bench);
    assert_eq!(set(&bench, &list(&[(0, 2)])).status, Status::Good);
    assert_eq!(*asked.borrow(), [2]);
    // Not served here now; who has asked hears no attention, the other one does.
    assert_eq!(sense_of(&bench.send(&[0; 6])), (2, 0x040b));
    assert_eq!(sense_of(&bench.send_from(other, &[0; 6], &[])), (6, 0x2a06));
    assert_eq!(sense_of(&bench.send_from(other, &[0; 6], &[])), (2, 0x040b));
    // From standby, naming both groups; the device is here still.
    assert_eq!(set(&bench, &list(&[(2, 2), (0, 1)])).status, Status::Good);
    assert_eq!(*asked.borrow(), [2, 1]);
    assert_eq!(bench.send(&[0; 6]).status, Status::Good);
}

#[test]
fn what_is_so_already_is_good() {
    let bench = Bench::pair();
    let asked = obliging(&bench);
    for wanted in [&[][..], &list(&[]), &list(&[(0, 1)]), &list(&[(2, 2)]), &list(&[(0, 1), (1, 2)])] {
        assert_eq!(set(&bench, wanted).status, Status::Good, "{wanted:?}");
    }
    assert!(asked.borrow().is_empty());
}

#[test]
fn a_move_that_fails_is_a_hardware_error() {
    let bench = Bench::pair();
    *bench.cluster.on_activate.borrow_mut() = Box::new(|_| Err(ActivationFailed("the node is down".into())));
    assert_eq!(sense_of(&set(&bench, &list(&[(0, 2)]))), (4, 0x670a));
    assert_eq!(bench.send(&[0; 6]).status, Status::Good);
}

#[test]
fn parameter_lists_are_checked() {
    let bench = Bench::pair();
    let asked = obliging(&bench);
    let cases: &[(&[(u8, u16)], u8)] = &[
        (&[(0, 3)], 6),          // no such group
        (&[(0, 1), (2, 1)], 10), // twice
        (&[(0, 2), (0, 1)], 8),  // two nodes can't serve
        (&[(2, 1)], 4),          // nobody would
        (&[(3, 2)], 4),
        (&[(0xe, 2)], 4),
        (&[(0xf, 2)], 4),
        (&[(4, 2)], 4),
    ];
    for (descriptors, byte) in cases {
        let response = set(&bench, &list(descriptors));
        assert_eq!(sense_of(&response), (5, 0x2600), "{descriptors:?}");
        assert_eq!(response.sense[15..18], [0x80, 0, *byte], "{descriptors:?}");
    }
    for length in [1, 3, 5, 6, 7, 9] {
        let whole = list(&[(0, 2), (2, 1)]);
        assert_eq!(sense_of(&set(&bench, &whole[..length])), (5, 0x1a00), "{length}");
    }
    assert!(asked.borrow().is_empty());
}

#[test]
fn a_reservation_of_another_excludes_it() {
    let bench = Bench::pair();
    let other = bench.attach(2);
    let asked = obliging(&bench);
    let register = [0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let mut keys = [0; 24];
    keys[15] = 9;
    assert_eq!(bench.send_from(other, &register, &keys).status, Status::Good);
    keys[7] = 9;
    assert_eq!(bench.send_from(other, &[0x5f, 1, 5, 0, 0, 0, 0, 0, 24, 0], &keys).status, Status::Good);
    assert_eq!(set(&bench, &list(&[(0, 2)])).status, Status::ReservationConflict);
    assert!(asked.borrow().is_empty());
}
