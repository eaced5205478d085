//! Logins as initiators do them, and as they should not.

use std::rc::Rc;

use super::chap::Algorithm;
use super::*;
use crate::iscsi::policy::{ChapCredential, ChapSecret, DiscoveredTarget};
use crate::iscsi::text::binary_text;

const HOST: &str = "iqn.2026-11.example:host";
const TARGET: &str = "iqn.2026-11.io.gemel:test:volume";

struct Policy(Authentication, Authorization);

impl LoginPolicy for Policy {
    fn authentication(&self, _: &IscsiName, _: Option<&IscsiName>) -> Authentication {
        self.0.clone()
    }
    fn authorize(&self, _: &IscsiName, _: &IscsiName, _: &Portal) -> Authorization {
        self.1.clone()
    }
    fn targets(&self, _: &IscsiName, _: &Portal) -> Vec<DiscoveredTarget> {
        Vec::new()
    }
}

fn credential(name: &str, secret: &str) -> ChapCredential {
    ChapCredential { name: name.to_owned(), secret: ChapSecret::new(secret) }
}

fn chap(outgoing: Option<ChapCredential>) -> Authentication {
    Authentication::Chap { incoming: credential("host", "incoming secret"), outgoing }
}

fn login_with(authentication: Authentication, authorization: Authorization) -> Login {
    Login::new(LoginContext {
        settings: Rc::new(TargetSettings { alias: "gemel".to_owned(), ..TargetSettings::default() }),
        policy: Rc::new(Policy(authentication, authorization)),
        portal: Portal { address: "127.0.0.1:3260".to_owned(), group_tag: 2 },
        random: LoginRandom { challenge: std::array::from_fn(|i| i as u8), identifier: 200, status_sn: 0 },
    })
}

fn login(authentication: Authentication) -> Login {
    login_with(authentication, Authorization::Granted)
}

fn request(current: Stage, next: Option<Stage>) -> LoginRequest {
    LoginRequest {
        continues: false,
        current_stage: current,
        next_stage: next,
        version_maximum: 0,
        version_minimum: 0,
        isid: Isid([0x80, 1, 2, 3, 4, 5]),
        tsih: 0,
        initiator_task_tag: InitiatorTaskTag(5),
        connection_id: 1,
        command_sn: SerialNumber(100),
        expected_status_sn: SerialNumber(0),
    }
}

fn names() -> String {
    format!("InitiatorName={HOST}\0TargetName={TARGET}\0SessionType=Normal\0")
}

const SECURITY: Stage = Stage::Security;
const OPERATIONAL: Stage = Stage::Operational;
const FULL: Stage = Stage::FullFeature;

/// Sends text in a stage and gives the stage agreed on and the answer.
fn say(login: &mut Login, current: Stage, next: Option<Stage>, text: &str) -> (Option<Stage>, String) {
    match login.handle_request(&request(current, next), text.as_bytes()) {
        LoginStep::Reply(reply) => {
            assert_eq!(reply.response.status, LoginStatus::SUCCESS);
            (reply.response.next_stage, String::from_utf8(reply.text).unwrap())
        }
        LoginStep::Complete(completed) => {
            assert_eq!(completed.reply.response.next_stage, Some(FULL));
            (Some(FULL), String::from_utf8(completed.reply.text).unwrap())
        }
        LoginStep::Refuse(_, failure) => panic!("{failure}"),
    }
}

/// Sends text that must end the login and gives the fault.
fn refused(login: &mut Login, current: Stage, next: Option<Stage>, text: &str) -> LoginFault {
    match login.handle_request(&request(current, next), text.as_bytes()) {
        LoginStep::Refuse(reply, failure) => {
            assert_eq!(reply.response.status, failure.status);
            assert!(reply.response.next_stage.is_none() && reply.text.is_empty());
            // The end is the end.
            let after = login.handle_request(&request(current, next), names().as_bytes());
            assert!(matches!(after, LoginStep::Refuse(..)));
            failure.fault
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn without_authentication_in_one_round_and_in_several() {
    let mut one = login(Authentication::None);
    let (stage, text) = say(&mut one, OPERATIONAL, Some(FULL), &(names() + "HeaderDigest=None\0"));
    assert_eq!(stage, Some(FULL));
    let expected =
        "TargetPortalGroupTag=2\0HeaderDigest=None\0MaxRecvDataSegmentLength=262144\0TargetAlias=gemel\0";
    assert_eq!(text, expected);

    let mut several = login(Authentication::None);
    let offer = names() + "AuthMethod=CHAP,None\0";
    let answer = say(&mut several, SECURITY, Some(OPERATIONAL), &offer);
    assert_eq!(answer, (Some(OPERATIONAL), "TargetPortalGroupTag=2\0AuthMethod=None\0".to_owned()));
    let answer = say(&mut several, OPERATIONAL, None, "MaxBurstLength=65536\0");
    assert_eq!(answer.0, None);
    assert!(answer.1.starts_with("MaxBurstLength=65536\0MaxRecvDataSegmentLength="));
    let answer = say(&mut several, OPERATIONAL, None, "ImmediateData=Yes\0");
    assert_eq!(answer, (None, "ImmediateData=Yes\0".to_owned()));
    assert_eq!(say(&mut several, OPERATIONAL, Some(FULL), ""), (Some(FULL), String::new()));
}

#[test]
fn from_security_straight_to_full_feature() {
    let mut login = login(Authentication::None);
    let text = names() + "AuthMethod=None\0MaxRecvDataSegmentLength=4096\0";
    let LoginStep::Complete(completed) =
        login.handle_request(&request(SECURITY, Some(FULL)), text.as_bytes())
    else {
        panic!()
    };
    assert_eq!(completed.parameters.send_data_segment_length, 4096);
    assert_eq!(completed.parameters.receive_data_segment_length, 8192, "ours was never declared");
    let SessionRequest { initiator, kind, group_tag, connection_id, .. } = completed.request;
    assert_eq!((initiator.as_str(), group_tag, connection_id), (HOST, 2, 1));
    assert_eq!(kind, SessionKind::Normal { target: IscsiName::new(TARGET).unwrap() });
}

#[test]
fn every_combination_of_stages_and_bits() {
    let stages = [SECURITY, OPERATIONAL, FULL];
    for current in stages {
        for next in [None, Some(OPERATIONAL), Some(FULL)] {
            for continues in [false, true] {
                let mut login = login(Authentication::None);
                let mut request = request(current, next);
                request.continues = continues;
                let step = login.handle_request(&request, names().as_bytes());
                match (current, continues) {
                    (FULL, _) => assert!(matches!(step, LoginStep::Refuse(_, failure)
                        if failure.status == LoginStatus::INVALID_DURING_LOGIN)),
                    (_, true) => {
                        let LoginStep::Reply(reply) = step else { panic!() };
                        assert!(reply.text.is_empty() && reply.response.next_stage.is_none());
                    }
                    (_, false) if next == Some(FULL) => assert!(matches!(step, LoginStep::Complete(_))),
                    (_, false) => {
                        let LoginStep::Reply(reply) = step else { panic!() };
                        assert_eq!(reply.response.next_stage, next);
                    }
                }
            }
        }
    }
    // Back to a stage that was left, or on to one that was not agreed on.
    let mut back = login(Authentication::None);
    say(&mut back, SECURITY, Some(OPERATIONAL), &names());
    assert_eq!(refused(&mut back, SECURITY, None, ""), LoginFault::WrongStage);
    let mut ahead = login(Authentication::None);
    say(&mut ahead, SECURITY, None, &names());
    assert_eq!(refused(&mut ahead, OPERATIONAL, None, ""), LoginFault::WrongStage);
}

#[test]
fn continued_text_is_put_together() {
    let mut login = login(Authentication::None);
    let text = names() + "HeaderDigest=None\0";
    let (first, second) = text.split_at(20);
    let mut part = request(OPERATIONAL, None);
    part.continues = true;
    for piece in [first, ""] {
        let LoginStep::Reply(reply) = login.handle_request(&part, piece.as_bytes()) else { panic!() };
        assert!(reply.text.is_empty());
    }
    let (stage, answer) = say(&mut login, OPERATIONAL, Some(FULL), second);
    assert_eq!(stage, Some(FULL));
    assert!(answer.contains("HeaderDigest=None\0"));
}

#[test]
fn discovery_needs_no_target() {
    let mut login = login(Authentication::None);
    let text = format!("InitiatorName={HOST}\0SessionType=Discovery\0MaxBurstLength=512\0");
    let LoginStep::Complete(completed) =
        login.handle_request(&request(OPERATIONAL, Some(FULL)), text.as_bytes())
    else {
        panic!()
    };
    assert_eq!(completed.request.kind, SessionKind::Discovery);
    let answer = String::from_utf8(completed.reply.text).unwrap();
    assert_eq!(answer, "MaxBurstLength=Irrelevant\0MaxRecvDataSegmentLength=262144\0");
}

/// Goes through CHAP up to the challenge and gives the login and its challenge.
fn challenged(authentication: Authentication, algorithms: &str) -> (Login, Algorithm, Vec<u8>) {
    let mut login = login(authentication);
    let (stage, text) = say(&mut login, SECURITY, Some(OPERATIONAL), &(names() + "AuthMethod=CHAP,None\0"));
    assert_eq!((stage, text.as_str()), (None, "TargetPortalGroupTag=2\0AuthMethod=CHAP\0"));
    let (stage, text) = say(&mut login, SECURITY, Some(OPERATIONAL), &format!("CHAP_A={algorithms}\0"));
    assert_eq!(stage, None);
    let keys = parse_keys(text.as_bytes()).unwrap();
    let pairs: Vec<_> = keys.iter().map(|pair| pair.key).collect();
    assert_eq!(pairs, ["CHAP_A", "CHAP_I", "CHAP_C"]);
    assert_eq!(keys[1].value, "200");
    let algorithm = Algorithm::of_number(keys[0].value.parse().unwrap()).unwrap();
    let challenge = crate::iscsi::text::parse_binary(keys[2].value, 1024).unwrap();
    (login, algorithm, challenge)
}

fn response(algorithm: Algorithm, challenge: &[u8], secret: &str) -> String {
    let response = algorithm.response(200, &ChapSecret::new(secret), challenge);
    format!("CHAP_N=host\0CHAP_R={}\0", binary_text(&response))
}

#[test]
fn chap_with_every_algorithm() {
    for (list, expected) in
        [("5", 5), ("6,5", 6), ("7", 7), ("8", 8), ("9,7,5", 7), ("5,7", 5), ("0x7", 7), ("x,5", 5)]
    {
        let (mut login, algorithm, challenge) = challenged(chap(None), list);
        assert_eq!((algorithm as u32, challenge.len()), (expected, algorithm.length()));
        let right = response(algorithm, &challenge, "incoming secret");
        assert_eq!(say(&mut login, SECURITY, Some(OPERATIONAL), &right), (Some(OPERATIONAL), String::new()));
        assert_eq!(say(&mut login, OPERATIONAL, Some(FULL), "").0, Some(FULL));
    }
    // Straight to full feature phase, and the response without the T bit.
    let (mut login, algorithm, challenge) = challenged(chap(None), "7");
    let right = response(algorithm, &challenge, "incoming secret");
    assert_eq!(say(&mut login, SECURITY, None, &right).0, None);
    assert_eq!(say(&mut login, SECURITY, Some(FULL), "").0, Some(FULL));
}

#[test]
fn mutual_chap_proves_us_too() {
    for list in ["5", "7", "8"] {
        let outgoing = Some(credential("target", "outgoing secret"));
        let (mut login, algorithm, challenge) = challenged(chap(outgoing), list);
        let theirs = [0xa5; 24];
        let text = response(algorithm, &challenge, "incoming secret")
            + &format!("CHAP_I=0x11\0CHAP_C={}\0", binary_text(&theirs));
        let (stage, answer) = say(&mut login, SECURITY, Some(OPERATIONAL), &text);
        let proof = algorithm.response(0x11, &ChapSecret::new("outgoing secret"), &theirs);
        assert_eq!(answer, format!("CHAP_N=target\0CHAP_R={}\0", binary_text(&proof)));
        assert_eq!(stage, Some(OPERATIONAL));
    }
}

#[test]
fn wrong_answers_are_refused() {
    let wrong = |text: &dyn Fn(Algorithm, &[u8]) -> String| {
        let outgoing = Some(credential("target", "outgoing secret"));
        let (mut login, algorithm, challenge) = challenged(chap(outgoing), "7");
        refused(&mut login, SECURITY, Some(OPERATIONAL), &text(algorithm, &challenge))
    };
    let right = |a: Algorithm, c: &[u8]| response(a, c, "incoming secret");
    assert_eq!(wrong(&|a, c| response(a, c, "wrong")), LoginFault::WrongResponse);
    assert_eq!(wrong(&|a, c| right(a, c).replace("host", "hosT")), LoginFault::WrongResponse);
    assert_eq!(wrong(&|a, c| right(a, c).replace("\0CHAP_R=0x", "\0CHAP_R=0x00")), LoginFault::ValueInvalid);
    assert_eq!(wrong(&|_, _| "CHAP_N=host\0CHAP_R=0x123\0".to_owned()), LoginFault::ValueInvalid);
    assert_eq!(wrong(&|_, _| "CHAP_N=host\0CHAP_R=0x\0".to_owned()), LoginFault::ValueInvalid);
    assert_eq!(wrong(&|_, _| "CHAP_N=host\0CHAP_R=0b!\0".to_owned()), LoginFault::ValueInvalid);
    assert_eq!(wrong(&|_, _| "CHAP_N=host\0CHAP_R=\0".to_owned()), LoginFault::ValueInvalid);
    assert_eq!(wrong(&|_, _| "CHAP_N=host\0CHAP_R=0x12\0".to_owned()), LoginFault::WrongResponse);
    let oversized = format!("CHAP_N=host\0CHAP_R=0x{}\0", "00".repeat(4000));
    assert_eq!(wrong(&|_, _| oversized.clone()), LoginFault::ValueInvalid);
    // Steps left out, repeated or mixed.
    assert_eq!(wrong(&|_, _| String::new()), LoginFault::OutOfOrder);
    assert_eq!(wrong(&|_, _| "CHAP_A=7\0".to_owned()), LoginFault::OutOfOrder);
    assert_eq!(wrong(&|_, _| "AuthMethod=None\0".to_owned()), LoginFault::OutOfOrder);
    assert_eq!(wrong(&|a, c| right(a, c) + "CHAP_I=1\0"), LoginFault::OutOfOrder);
    assert_eq!(wrong(&|a, c| right(a, c) + "CHAP_C=0x11\0"), LoginFault::OutOfOrder);
    assert_eq!(wrong(&|a, c| right(a, c) + "AuthMethod=None\0"), LoginFault::OutOfOrder);
    // Mutual: bad values.
    assert_eq!(wrong(&|a, c| right(a, c) + "CHAP_I=256\0CHAP_C=0x11\0"), LoginFault::ValueInvalid);
    assert_eq!(wrong(&|a, c| right(a, c) + "CHAP_I=1\0CHAP_C=0x1\0"), LoginFault::ValueInvalid);
    let long = format!("CHAP_I=1\0CHAP_C=0x{}\0", "11".repeat(1025));
    assert_eq!(wrong(&|a, c| right(a, c) + &long), LoginFault::ValueInvalid);
    // Reflection of our challenge.
    let reflected = |a: Algorithm, c: &[u8]| right(a, c) + &format!("CHAP_I=1\0CHAP_C={}\0", binary_text(c));
    assert_eq!(wrong(&reflected), LoginFault::Reflection);
}

#[test]
fn one_secret_for_both_directions_is_refused() {
    let (mut login, algorithm, challenge) = challenged(chap(Some(credential("t", "incoming secret"))), "7");
    let text = response(algorithm, &challenge, "incoming secret") + "CHAP_I=1\0CHAP_C=0x1122\0";
    assert_eq!(refused(&mut login, SECURITY, None, &text), LoginFault::Reflection);
}

#[test]
fn authentication_cannot_be_evaded() {
    let fresh = || login(chap(None));
    let refuse = |stage, next, text: &str| refused(&mut fresh(), stage, next, &(names() + text));
    assert_eq!(refuse(OPERATIONAL, Some(FULL), ""), LoginFault::StageSkipped);
    assert_eq!(refuse(SECURITY, Some(FULL), "AuthMethod=None\0"), LoginFault::NoCommonMethod);
    assert_eq!(refuse(SECURITY, Some(FULL), "AuthMethod=KRB5\0"), LoginFault::NoCommonMethod);
    assert_eq!(refuse(SECURITY, None, "AuthMethod=CHAP\0CHAP_A=5\0"), LoginFault::OutOfOrder);
    assert_eq!(refuse(SECURITY, None, "CHAP_N=host\0CHAP_R=0x00\0"), LoginFault::OutOfOrder);
    // Asking to go on without having done anything gets nowhere.
    let mut login = fresh();
    for text in [names(), String::new(), String::new()] {
        assert_eq!(say(&mut login, SECURITY, Some(FULL), &text).0, None);
    }
    let (mut login, ..) = challenged(chap(None), "5");
    assert_eq!(refused(&mut login, OPERATIONAL, Some(FULL), ""), LoginFault::WrongStage);
    let mut login = login_of_method();
    assert_eq!(refused(&mut login, SECURITY, None, "CHAP_A=99\0"), LoginFault::NoCommonMethod);
    // Mutual CHAP without a secret for it; CHAP where none is set.
    let (mut login, algorithm, challenge) = challenged(chap(None), "5");
    let text = response(algorithm, &challenge, "incoming secret") + "CHAP_I=1\0CHAP_C=0x1122\0";
    assert_eq!(refused(&mut login, SECURITY, None, &text), LoginFault::NoMutualSecret);
    let mut open = super::tests::login(Authentication::None);
    let fault = refused(&mut open, SECURITY, None, &(names() + "AuthMethod=CHAP\0"));
    assert_eq!(fault, LoginFault::NoCommonMethod);
}

fn login_of_method() -> Login {
    let mut login = login(chap(None));
    say(&mut login, SECURITY, None, &(names() + "AuthMethod=CHAP\0"));
    login
}

#[test]
fn authorization_comes_after_authentication_and_before_the_session() {
    for (authorization, status) in [
        (Authorization::Denied, LoginStatus::AUTHORIZATION_FAILURE),
        (Authorization::NotFound, LoginStatus::NOT_FOUND),
        (Authorization::Removed, LoginStatus::TARGET_REMOVED),
        (Authorization::Unavailable, LoginStatus::SERVICE_UNAVAILABLE),
        (Authorization::Moved("192.0.2.2:3260".into()), LoginStatus::MOVED_TEMPORARILY),
    ] {
        let mut direct = login_with(Authentication::None, authorization.clone());
        let step = direct.handle_request(&request(OPERATIONAL, Some(FULL)), names().as_bytes());
        assert!(matches!(step, LoginStep::Refuse(_, failure) if failure.status == status));
        // Who has not proved itself learns nothing about the target.
        let mut unproved = login_with(chap(None), authorization);
        assert_eq!(
            refused(&mut unproved, SECURITY, Some(OPERATIONAL), &(names() + "AuthMethod=None\0")),
            LoginFault::NoCommonMethod
        );
    }
}

#[test]
fn first_requests_that_say_too_little_or_nonsense() {
    let refuse = |text: &str| refused(&mut login(Authentication::None), OPERATIONAL, Some(FULL), text);
    assert_eq!(refuse(""), LoginFault::NameMissing);
    assert_eq!(refuse(&format!("TargetName={TARGET}\0")), LoginFault::NameMissing);
    assert_eq!(refuse(&format!("InitiatorName={HOST}\0")), LoginFault::NameMissing);
    assert_eq!(refuse(&format!("InitiatorName=host\0TargetName={TARGET}\0")), LoginFault::NameInvalid);
    assert_eq!(refuse(&format!("InitiatorName={HOST}\0TargetName=\0")), LoginFault::NameInvalid);
    let long = format!("InitiatorName=iqn.2026-11.example:{}\0TargetName={TARGET}\0", "x".repeat(204));
    assert_eq!(refuse(&long), LoginFault::NameInvalid);
    assert_eq!(refuse(&(names().replace("Normal", "Other"))), LoginFault::SessionType);
    assert_eq!(refuse("InitiatorName"), LoginFault::Text(TextError::Unterminated));
    assert_eq!(refuse(&(names() + &names())), LoginFault::Text(TextError::Repeated));
    let many: String = (0..100).map(|index| format!("X-{index}=1\0")).collect();
    assert_eq!(refuse(&(names() + &many)), LoginFault::Text(TextError::TooManyKeys));
    let alias = format!("{}InitiatorAlias={}\0", names(), "a".repeat(256));
    assert_eq!(refuse(&alias), LoginFault::ValueInvalid);
}

#[test]
fn fields_and_keys_must_not_change_their_minds() {
    let change = |alter: fn(&mut LoginRequest)| {
        let mut login = login(Authentication::None);
        say(&mut login, OPERATIONAL, None, &names());
        let mut changed = request(OPERATIONAL, None);
        alter(&mut changed);
        let LoginStep::Refuse(_, failure) = login.handle_request(&changed, b"") else { panic!() };
        failure.fault
    };
    assert_eq!(change(|request| request.initiator_task_tag.0 += 1), LoginFault::FieldsChanged);
    assert_eq!(change(|request| request.connection_id += 1), LoginFault::FieldsChanged);
    assert_eq!(change(|request| request.isid.0[5] += 1), LoginFault::FieldsChanged);
    assert_eq!(change(|request| request.tsih += 1), LoginFault::FieldsChanged);
    assert_eq!(change(|request| request.command_sn.0 += 1), LoginFault::FieldsChanged);
    assert_eq!(change(|request| request.version_minimum = 1), LoginFault::Version);
    let mut renamed = login(Authentication::None);
    say(&mut renamed, OPERATIONAL, None, &names());
    assert_eq!(refused(&mut renamed, OPERATIONAL, None, &names()), LoginFault::KeyRepeated);
    let mut repeated = login(Authentication::None);
    say(&mut repeated, OPERATIONAL, None, &(names() + "InitialR2T=No\0"));
    assert_eq!(refused(&mut repeated, OPERATIONAL, None, "InitialR2T=Yes\0"), LoginFault::KeyRepeated);
}

#[test]
fn operational_keys_in_the_security_stage_are_rejected() {
    let mut login = login(Authentication::None);
    let (_, answer) = say(&mut login, SECURITY, None, &(names() + "InitialR2T=No\0X-new=1\0"));
    assert_eq!(answer, "TargetPortalGroupTag=2\0InitialR2T=Reject\0X-new=NotUnderstood\0");
    let (_, answer) = say(&mut login, SECURITY, Some(OPERATIONAL), "");
    assert!(answer.is_empty());
    let (_, answer) = say(&mut login, OPERATIONAL, None, "InitialR2T=No\0");
    assert!(answer.starts_with("InitialR2T=No\0"));
}

#[test]
fn a_login_without_end_is_ended() {
    let mut login = login(Authentication::None);
    say(&mut login, OPERATIONAL, None, &names());
    for _ in 1..MAXIMUM_ROUNDS {
        say(&mut login, OPERATIONAL, None, "");
    }
    assert_eq!(refused(&mut login, OPERATIONAL, None, ""), LoginFault::TooManyRounds);
}

#[test]
fn secrets_show_nowhere() {
    let outgoing = Some(credential("target", "outgoing secret"));
    let (mut login, ..) = challenged(chap(outgoing), "7");
    let shown = format!("{login:?}");
    assert!(!shown.contains("secret\"") && !shown.contains("incoming secret"));
    let fault = refused(&mut login, SECURITY, None, "CHAP_N=host\0CHAP_R=0x00\0");
    assert!(!format!("{fault} {fault:?}").contains("secret of"));
}

#[test]
fn who_is_sent_elsewhere_is_told_where_and_no_portal_group() {
    let moved = Authorization::Moved("[2001:db8::2]:3260".into());
    let mut login = login_with(Authentication::None, moved);
    let step = login.handle_request(&request(OPERATIONAL, Some(FULL)), names().as_bytes());
    let LoginStep::Refuse(reply, failure) = step else { panic!("let in") };
    assert_eq!(failure.fault, LoginFault::Moved);
    assert_eq!(reply.response.status, LoginStatus { class: 1, detail: 1 });
    assert_eq!(reply.text, b"TargetAddress=[2001:db8::2]:3260\0");
}
