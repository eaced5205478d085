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
fn a_host_group_lets_its_hosts_in_and_stays_while_it_is_on_a_list() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(create("x", 1 << 30, Redundancy::Local, "a"));
    let volume: VolumeName = "x".parse().unwrap();
    let [one, two] =
        ["iqn.2026-01.org:one", "iqn.2026-01.org:two"].map(|name| -> InitiatorName { name.parse().unwrap() });
    let group = || "esx".parse::<HostGroupName>().unwrap();
    let change = |added: &[&InitiatorName], removed: &[&InitiatorName]| Command::ChangeHostGroup {
        name: group(),
        added: added.iter().map(|name| (*name).clone()).collect(),
        removed: removed.iter().map(|name| (*name).clone()).collect(),
    };
    let entry = || "group:esx".parse().unwrap();
    let allow = || Command::AllowInitiator { volume: "x".parse().unwrap(), initiator: entry() };
    assert_eq!(machine.apply(allow()), Err(Rejection::NoSuchHostGroup(group())));
    assert_eq!(machine.apply(change(&[&one, &two], &[])), Ok(Outcome::Changed));
    assert!(!machine.state.may_access(&volume, &one), "it is on no list yet");
    assert_eq!(machine.apply(allow()), Ok(Outcome::Changed));
    assert!(machine.state.may_access(&volume, &one) && machine.state.may_access(&volume, &two));
    assert_eq!(ControlState::decode(&machine.state.encode()).unwrap(), machine.state);
    assert_eq!(machine.apply(change(&[], &[&two])), Ok(Outcome::Changed));
    assert_eq!(machine.apply(change(&[&one], &[&two])), Ok(Outcome::Unchanged));
    assert!(machine.state.may_access(&volume, &one) && !machine.state.may_access(&volume, &two));
    let remove = || Command::RemoveHostGroup { name: group() };
    let in_use = Err(Rejection::HostGroupInUse { group: group(), volume: volume.clone() });
    assert_eq!(machine.apply(remove()), in_use);
    let text = String::from_utf8(machine.state.encode()).unwrap().replace("\"esx\":[", "\"xen\":[");
    assert!(matches!(ControlState::decode(text.as_bytes()), Err(DecodeError::Inconsistent { .. })));
    machine.must(Command::DenyInitiator { volume: volume.clone(), initiator: entry() });
    assert!(!machine.state.may_access(&volume, &one));
    assert_eq!(machine.apply(remove()), Ok(Outcome::Changed));
    assert_eq!(machine.apply(remove()), Ok(Outcome::Unchanged));
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
