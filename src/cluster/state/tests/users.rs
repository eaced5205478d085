//! Users, their passwords, links and tokens.

use super::*;
use crate::cluster::state::user::{ApiToken, Invitation, KeyDigest, PasswordHash, Role, User};

fn hash(text: &str) -> PasswordHash {
    PasswordHash::new(format!("$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ${text}"))
}

fn link(byte: u8, until_unix_ms: u64) -> Invitation {
    Invitation { key: KeyDigest(vec![byte; 32]), until_unix_ms }
}

fn add(name: &str, invitation: Option<Invitation>) -> Command {
    Command::AddUser { name: name.parse().unwrap(), role: Role::Operator, password: None, invitation }
}

fn set(password: PasswordHash, by: Option<u8>, set_unix_ms: u64) -> Command {
    let by = by.map(|byte| KeyDigest(vec![byte; 32]));
    Command::SetPassword { name: "anne".parse().unwrap(), password, by, set_unix_ms }
}

fn user(machine: &Machine) -> &User {
    machine.state.user(&"anne".parse().unwrap()).unwrap()
}

#[test]
fn a_link_sets_one_password_in_its_time() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(add("anne", Some(link(1, 100))));
    assert!(matches!(machine.apply(add("anne", None)), Err(Rejection::UserExists(_))));
    assert_eq!(machine.apply(set(hash("one"), Some(2), 50)), Err(Rejection::BadInvitation), "another key");
    assert_eq!(machine.apply(set(hash("one"), Some(1), 101)), Err(Rejection::BadInvitation), "too late");
    machine.must(set(hash("one"), Some(1), 100));
    assert_eq!(user(&machine).password, Some(hash("one")));
    assert_eq!(machine.apply(set(hash("two"), Some(1), 100)), Err(Rejection::BadInvitation), "used");
    // Another one leaves the password as it is until it is used; a password that is set otherwise voids it.
    let name: crate::cluster::name::UserName = "anne".parse().unwrap();
    machine.must(Command::InviteUser { name: name.clone(), invitation: link(3, 900) });
    assert_eq!(user(&machine).password, Some(hash("one")));
    machine.must(set(hash("three"), None, 500));
    assert_eq!(machine.apply(set(hash("two"), Some(3), 500)), Err(Rejection::BadInvitation));
    machine.must(Command::SetUserRole { name: name.clone(), role: Role::Viewer });
    assert_eq!(user(&machine).role, Role::Viewer);
    machine.must(Command::RemoveUser { name: name.clone() });
    assert_eq!(machine.must(Command::RemoveUser { name: name.clone() }), Outcome::Unchanged);
    assert_eq!(machine.apply(set(hash("one"), None, 1)), Err(Rejection::NoSuchUser(name)));
}

#[test]
fn tokens_have_names_and_leave_with_their_user() {
    let mut machine = Machine::with_nodes(&["a"]);
    let token = |byte| ApiToken {
        key: KeyDigest(vec![byte; 32]),
        role: Role::Viewer,
        created_unix_ms: 1,
        until_unix_ms: None,
    };
    let add_token = |name: &str, byte| Command::AddToken {
        user: "anne".parse().unwrap(),
        name: name.parse().unwrap(),
        token: token(byte),
    };
    assert!(matches!(machine.apply(add_token("x", 1)), Err(Rejection::NoSuchUser(_))));
    machine.must(add("anne", None));
    machine.must(add_token("x", 1));
    assert!(matches!(machine.apply(add_token("x", 2)), Err(Rejection::TokenExists(_))));
    for number in 0..63 {
        machine.must(add_token(&format!("t{number}"), 1));
    }
    assert!(matches!(machine.apply(add_token("y", 1)), Err(Rejection::LimitReached { .. })));
    let remove = || Command::RemoveToken { user: "anne".parse().unwrap(), name: "x".parse().unwrap() };
    machine.must(remove());
    assert_eq!(machine.must(remove()), Outcome::Unchanged);
    assert_eq!(user(&machine).tokens.len(), 63);
}

#[test]
fn what_is_no_hash_is_refused_and_nothing_is_shown() {
    let mut machine = Machine::with_nodes(&["a"]);
    machine.must(add("anne", None));
    for wrong in ["hunter2", "$argon2id$ ", "$2b$12$x", &format!("$argon2id${}", "x".repeat(512))] {
        let wrong = PasswordHash::new(wrong.to_owned());
        assert_eq!(machine.apply(set(wrong, None, 1)), Err(Rejection::BadUser));
    }
    let short = Invitation { key: KeyDigest(vec![1; 31]), until_unix_ms: 1 };
    assert_eq!(machine.apply(add("bob", Some(short))), Err(Rejection::BadUser));
    machine.must(set(hash("precious"), None, 1));
    let shown = format!("{:?} {:?}", machine.state, machine.log);
    assert!(!shown.contains("precious") && !shown.contains("0101"), "{shown}");
}
