//! What is read: states of this format and of older ones, and nothing else.

use super::*;

#[test]
fn damaged_and_newer_states_are_refused() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let text = String::from_utf8(machine.state.encode()).unwrap();
    let decode = |text: &str| ControlState::decode(text.as_bytes());
    assert_eq!(decode(&text).unwrap(), machine.state);
    let newer = text.replace("\"format\":9", "\"format\":10");
    assert!(matches!(decode(&newer), Err(DecodeError::Newer { format: 10 })));
    assert!(matches!(decode(&text[..text.len() - 1]), Err(DecodeError::Malformed { .. })));
    for (good, bad) in
        [("\"name\":\"x\"", "\"name\":\"X\""), ("\"sector\":512", "\"sector\":520"), ("07070707", "0707070")]
    {
        assert!(matches!(decode(&text.replace(good, bad)), Err(DecodeError::Malformed { .. })), "{bad}");
    }
    for (good, bad) in [
        ("\"in_sync\":[\"a\"]", "\"in_sync\":[]"),
        ("\"last_volume_id\":1", "\"last_volume_id\":0"),
        ("\"size_bytes\":1073741824", "\"size_bytes\":5"),
        ("\"epoch\":0", "\"epoch\":4"),
    ] {
        assert!(text.contains(good), "{good} in {text}");
        assert!(matches!(decode(&text.replace(good, bad)), Err(DecodeError::Inconsistent { .. })), "{bad}");
    }
}

/// The state that a log of commands makes, of a cluster of the oldest format that is written.
fn made_by(log: &str) -> ControlState {
    made_from(ControlState::in_format(8), log, 0)
}

/// The state that a log of commands makes; since format 6 it says who proposed the present epoch.
fn made_from(mut state: ControlState, log: &str, life: u64) -> ControlState {
    let log: Vec<Command> = serde_json::from_str(log).unwrap();
    for (index, command) in (1..).zip(log) {
        let life = if life == 0 { 0 } else { life | index };
        state.apply_proposed(index, life, command).unwrap();
    }
    state
}

fn check_read(fixture: &[u8], state: &ControlState) {
    assert_eq!(
        ControlState::decode(fixture).unwrap(),
        *state,
        "{}",
        String::from_utf8_lossy(&state.encode())
    );
}

#[test]
fn format_1_is_still_read() {
    let mut state = made_by(include_str!("../fixtures/commands-1.json"));
    // Format 1 did not say why an epoch began.
    state.volumes.values_mut().for_each(|record| (record.began_by, record.started_in) = (None, 0));
    let fixture = include_bytes!("../fixtures/state-1.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state);
}

#[test]
fn format_2_is_still_read() {
    let mut state = made_by(include_str!("../fixtures/commands-2.json"));
    // Format 2 kept no reasons, and missed what a force had given up.
    state.volumes.values_mut().for_each(|record| {
        record.reason.clear();
        record.started_in = 0;
        record.watermark = Watermark { epoch: 4, sequence: 33 };
    });
    let fixture = include_bytes!("../fixtures/state-2.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state);
}

#[test]
fn format_3_is_still_read() {
    let mut state = made_by(include_str!("../fixtures/commands-3.json"));
    // Format 3 did not remember starts.
    state.volumes.values_mut().for_each(|record| record.started_in = 0);
    let fixture = include_bytes!("../fixtures/state-3.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state);
}

#[test]
fn format_4_is_still_read() {
    let mut state = made_by(include_str!("../fixtures/commands-4.json"));
    // Format 4 did not remember starts.
    state.volumes.values_mut().for_each(|record| record.started_in = 0);
    let fixture = include_bytes!("../fixtures/state-4.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state);
}

#[test]
fn format_5_is_still_read() {
    let state = made_by(include_str!("../fixtures/commands-5.json"));
    check_read(include_bytes!("../fixtures/state-5.json"), &state);
}

#[test]
fn formats_6_to_8_are_still_read() {
    let made = |log| made_from(ControlState::in_format(8), log, 1 << 60);
    let state = made(include_str!("../fixtures/commands-6.json"));
    check_read(include_bytes!("../fixtures/state-6.json"), &state);
    let state = made(include_str!("../fixtures/commands-7.json"));
    check_read(include_bytes!("../fixtures/state-7.json"), &state);
    let state = made(include_str!("../fixtures/commands-8.json"));
    check_read(include_bytes!("../fixtures/state-8.json"), &state);
}

#[test]
fn format_9_is_still_read() {
    let state = made_from(ControlState::new(), include_str!("../fixtures/commands-9.json"), 1 << 60);
    check_read(include_bytes!("../fixtures/state-9.json"), &state);
}

#[test]
fn a_format_is_gone_over_to_once_and_never_back() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.state.format = 8;
    let newest = Settings { space_error_percent: Some(95), ..Settings::default() };
    let change = Command::ChangeSettings { settings: newest };
    let refused = Rejection::NewerFormat { needed: 9, present: 8 };
    assert_eq!(machine.apply(change.clone()), Err(refused));
    let before = machine.state.encode();
    assert!(!String::from_utf8(before).unwrap().contains("space_error"));
    for (format, outcome, present) in [
        (8, Outcome::Unchanged, 8),
        (9, Outcome::Changed, 9),
        (9, Outcome::Unchanged, 9),
        (8, Outcome::Unchanged, 9),
    ] {
        assert_eq!(machine.apply(Command::RaiseFormat { format }), Ok(outcome));
        assert_eq!(machine.state.format(), present);
    }
    assert_eq!(machine.apply(change), Ok(Outcome::Changed));
}
