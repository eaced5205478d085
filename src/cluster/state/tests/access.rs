//! Who may use what, and how they prove who they are.

use super::*;

#[test]
fn access_is_by_list_and_everyone_is_said_aloud() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let volume: VolumeName = "x".parse().unwrap();
    let (friend, stranger) =
        ("iqn.2026-01.org:friend".parse().unwrap(), "iqn.2026-01.org:stranger".parse().unwrap());
    let allow = |initiator: &str| Command::AllowInitiator {
        volume: "x".parse().unwrap(),
        initiator: initiator.parse().unwrap(),
    };
    let deny = |initiator: &str| Command::DenyInitiator {
        volume: "x".parse().unwrap(),
        initiator: initiator.parse().unwrap(),
    };
    assert!(!machine.state.may_access(&volume, &friend), "nobody at first");
    assert_eq!(machine.apply(allow("iqn.2026-01.ORG:friend")), Ok(Outcome::Changed));
    assert_eq!(machine.apply(allow("iqn.2026-01.org:friend")), Ok(Outcome::Unchanged));
    assert!(machine.state.may_access(&volume, &friend) && !machine.state.may_access(&volume, &stranger));
    assert_eq!(machine.apply(allow("*")), Ok(Outcome::OpenToEveryone { is_new: true }));
    assert_eq!(machine.apply(allow("*")), Ok(Outcome::OpenToEveryone { is_new: false }));
    assert!(machine.state.may_access(&volume, &stranger));
    assert_eq!(machine.apply(deny("*")), Ok(Outcome::Changed));
    assert_eq!(machine.apply(deny("*")), Ok(Outcome::Unchanged));
    assert!(machine.state.may_access(&volume, &friend) && !machine.state.may_access(&volume, &stranger));
    machine.must(delete("x", false));
    assert!(!machine.state.may_access(&volume, &friend));
}

#[test]
fn chap_secrets_are_long_enough_one_way_only_and_hidden() {
    let mut machine = Machine::with_nodes(&["a"]);
    let (host, other) = ("iqn.2026-01.org:host", "iqn.2026-01.org:other");
    for length in [0, 11, 256] {
        let refused = machine.apply(chap(host, &"s".repeat(length), None));
        assert_eq!(refused, Err(Rejection::SecretLength { length_bytes: length }));
        let refused = machine.apply(chap(host, "long enough 1", Some(&"s".repeat(length))));
        assert_eq!(refused, Err(Rejection::SecretLength { length_bytes: length }));
    }
    let reused = |initiator: &str| Err(Rejection::SecretReused { initiator: initiator.parse().unwrap() });
    assert_eq!(machine.apply(chap(host, "long enough 1", Some("long enough 1"))), reused(host));
    let command = chap(host, "long enough 1", Some("long enough 2"));
    assert!(!format!("{command:?}").contains("long enough"));
    assert_eq!(machine.apply(command.clone()), Ok(Outcome::Changed));
    assert_eq!(machine.apply(command), Ok(Outcome::Unchanged));
    assert!(!format!("{:?}", machine.state).contains("long enough"));
    // Neither direction may borrow the other's secret from another initiator.
    assert_eq!(machine.apply(chap(other, "long enough 2", None)), reused(other));
    assert_eq!(machine.apply(chap(other, "long enough 3", Some("long enough 1"))), reused(other));
    machine.must(chap(other, "long enough 1", Some("long enough 2")));
    let mut bad_user = chap(host, "long enough 4", None);
    if let Command::SetChap { incoming, .. } = &mut bad_user {
        incoming.user = "two words".to_owned();
    }
    assert_eq!(machine.apply(bad_user), Err(Rejection::BadUserName));
    let clear = Command::ClearChap { initiator: host.parse().unwrap() };
    assert_eq!(machine.apply(clear.clone()), Ok(Outcome::Changed));
    assert_eq!(machine.apply(clear), Ok(Outcome::Unchanged));
}
