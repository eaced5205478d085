//! What is read: states of this format and of older ones, and nothing else.

use super::*;

#[test]
fn damaged_and_newer_states_are_refused() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let text = String::from_utf8(machine.state.encode()).unwrap();
    let decode = |text: &str| ControlState::decode(text.as_bytes());
    assert_eq!(decode(&text).unwrap(), machine.state);
    let newer = text.replace("\"format\":8", "\"format\":9");
    assert!(matches!(decode(&newer), Err(DecodeError::Newer { format: 9 })));
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

/// The state that a log of commands makes.
fn made_by(log: &str) -> ControlState {
    let log: Vec<Command> = serde_json::from_str(log).unwrap();
    let mut state = ControlState::new();
    for (index, command) in (1..).zip(log) {
        state.apply(index, command).unwrap();
    }
    state
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
    let fixture = include_bytes!("../fixtures/state-5.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state, "{}", String::from_utf8_lossy(&state.encode()));
}

#[test]
fn format_6_is_still_read() {
    // Format 6 says who proposed the present epoch, as the log does.
    let log: Vec<Command> = serde_json::from_str(include_str!("../fixtures/commands-6.json")).unwrap();
    let mut state = ControlState::new();
    for (index, command) in (1..).zip(log) {
        state.apply_proposed(index, 1 << 60 | index, command).unwrap();
    }
    let fixture = include_bytes!("../fixtures/state-6.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state, "{}", String::from_utf8_lossy(&state.encode()));
}

#[test]
fn format_7_is_still_read() {
    // Since format 6 the state says who proposed the present epoch, as the log does.
    let log: Vec<Command> = serde_json::from_str(include_str!("../fixtures/commands-7.json")).unwrap();
    let mut state = ControlState::new();
    for (index, command) in (1..).zip(log) {
        state.apply_proposed(index, 1 << 60 | index, command).unwrap();
    }
    let fixture = include_bytes!("../fixtures/state-7.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state, "{}", String::from_utf8_lossy(&state.encode()));
}

#[test]
fn format_8_is_still_read() {
    // Since format 6 the state says who proposed the present epoch, as the log does.
    let log: Vec<Command> = serde_json::from_str(include_str!("../fixtures/commands-8.json")).unwrap();
    let mut state = ControlState::new();
    for (index, command) in (1..).zip(log) {
        state.apply_proposed(index, 1 << 60 | index, command).unwrap();
    }
    let fixture = include_bytes!("../fixtures/state-8.json");
    assert_eq!(ControlState::decode(fixture).unwrap(), state, "{}", String::from_utf8_lossy(&state.encode()));
}
