//! Tests of forwarded messages, and of what a forwarded nexus is at the serving unit.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::asymmetric_access::AccessState;
use super::super::testing::{Bench, good, nexus, run, sense_of};
use super::*;

fn pieces(random: &mut ChaCha8Rng) -> Vec<Bytes> {
    let count = random.random_range(0..4);
    let piece = |random: &mut ChaCha8Rng| {
        let mut bytes = vec![0; random.random_range(0..2000)];
        random.fill_bytes(&mut bytes);
        Bytes::from(bytes)
    };
    (0..count).map(|_| piece(random)).collect()
}

fn command(random: &mut ChaCha8Rng) -> ForwardedCommand {
    let mut cdb = [0; 16];
    random.fill_bytes(&mut cdb);
    let length = random.random_range(1..=NAME_BYTES);
    let initiator =
        InitiatorPort { name: "é".repeat(length / 2) + &"n".repeat(length % 2), isid: random.random() };
    let target_port = TargetPort { relative_id: random.random(), portal_group: random.random() };
    ForwardedCommand {
        nexus: Nexus { initiator, target_port },
        tag: random.random(),
        attribute: attribute_of(random.random_range(1..=4)).unwrap(),
        cdb: Cdb::new(&cdb),
        expected_in: random.random(),
        data_out: pieces(random),
    }
}

fn answer(random: &mut ChaCha8Rng) -> ForwardedAnswer {
    let data_in = pieces(random);
    let data_in_length = total_length(&data_in) as u64 + u64::from(random.random::<u32>());
    let sense = vec![7; if random.random() { random.random_range(1..=252) } else { 0 }];
    let others =
        [Status::Good, Status::Busy, Status::ReservationConflict, Status::TaskSetFull, Status::TaskAborted];
    let status = if sense.is_empty() { others[random.random_range(0..5)] } else { Status::CheckCondition };
    let response = Response { status, sense, data_in, data_in_length, data_out_length: random.random() };
    ForwardedAnswer { tag: random.random(), response: random.random_bool(0.8).then_some(response) }
}

#[test]
fn messages_round_trip() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..2000 {
        let command = command(&mut random);
        let header = command.encode();
        assert!(header.len() <= COMMAND_BYTES + NAME_BYTES);
        assert_eq!(ForwardedCommand::decode(&header, command.data_out.clone()), Ok(command));
        let answer = answer(&mut random);
        let data = answer.response.as_ref().map_or_else(Vec::new, |response| response.data_in.clone());
        assert_eq!(ForwardedAnswer::decode(&answer.encode(), data), Ok(answer));
    }
}

#[test]
fn nothing_but_what_is_written_is_read() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..300 {
        let command = command(&mut random);
        let answer = answer(&mut random);
        let data_in = answer.response.as_ref().map_or_else(Vec::new, |response| response.data_in.clone());
        let (header, answer_header) = (command.encode(), answer.encode());
        for length in 0..header.len() {
            assert!(ForwardedCommand::decode(&header[..length], command.data_out.clone()).is_err());
        }
        for length in 0..answer_header.len() {
            assert!(ForwardedAnswer::decode(&answer_header[..length], data_in.clone()).is_err());
        }
        // What is changed is another valid message or none: it is written as it was read.
        for header in [&header, &answer_header] {
            let mut changed = header.clone();
            let at = random.random_range(0..changed.len());
            changed[at] ^= random.random_range(1..=255u8);
            if let Ok(read) = ForwardedCommand::decode(&changed, command.data_out.clone()) {
                assert_eq!(read.encode(), changed);
            }
            if let Ok(read) = ForwardedAnswer::decode(&changed, data_in.clone()) {
                assert_eq!(read.encode(), changed);
            }
            changed.push(0);
            assert!(ForwardedCommand::decode(&changed, command.data_out.clone()).is_err());
        }
    }
    assert_eq!(ForwardedCommand::decode(&[2, 0], Vec::new()), Err(DecodeError::UnknownVersion(2)));
}

#[test]
fn data_is_what_the_header_says_and_bounded() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let command = ForwardedCommand { data_out: vec![Bytes::from_static(b"abc")], ..command(&mut random) };
    let header = command.encode();
    assert_eq!(ForwardedCommand::decode(&header, Vec::new()), Err(DecodeError::Data(0)));
    let limit = limits::TRANSFER_BYTES as usize;
    assert_eq!(data_length(&[Bytes::from(vec![0; limit])]), Some(limits::TRANSFER_BYTES));
    assert_eq!(data_length(&[Bytes::from(vec![0; limit]), Bytes::from_static(b"a")]), None);
}

#[test]
fn version_1_is_still_read() {
    let nexus = Nexus {
        initiator: InitiatorPort { name: "iqn.a:b".into(), isid: [0x40, 1, 2, 3, 4, 5] },
        target_port: TargetPort { relative_id: 2, portal_group: 2 },
    };
    let command = ForwardedCommand {
        nexus,
        tag: 0x0102,
        attribute: TaskAttribute::Ordered,
        cdb: Cdb::new(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0]),
        expected_in: 512,
        data_out: vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")],
    };
    let header = [
        &[1, 0, 0, 0, 0, 0, 0, 1, 2, 2][..],
        &[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 2, 0, 0, 0, 0, 3, 0, 2, 0, 2, 0x40, 1, 2, 3, 4, 5, 7],
        b"iqn.a:b",
    ]
    .concat();
    assert_eq!(ForwardedCommand::decode(&header, command.data_out.clone()), Ok(command));
    let header = [&[1, 0, 0, 0, 0, 0, 0, 1, 2, 1, 2][..], &[0; 20], &[2, 0x72, 2]].concat();
    let response = Response { sense: vec![0x72, 2], ..Response::of(Status::CheckCondition) };
    let answer = ForwardedAnswer { tag: 0x0102, response: Some(response) };
    assert_eq!(ForwardedAnswer::decode(&header, Vec::new()), Ok(answer));
}

#[test]
fn a_forwarded_nexus_is_the_real_initiator_through_the_real_port() {
    let bench = Bench::pair();
    bench.set_states(AccessState::ActiveOptimized, AccessState::ActiveNonOptimized);
    bench.clear_pending(bench.nexus);
    // The same initiator, whose session here is another nexus.
    let through_2 = Nexus { target_port: TargetPort { relative_id: 2, portal_group: 2 }, ..nexus(1) };
    let pending = [AdditionalSense::CAPACITY_DATA_HAS_CHANGED, AdditionalSense::MODE_PARAMETERS_CHANGED];
    let id = bench.unit.attach_forwarded(through_2.clone(), &pending);
    let send = |cdb: &[u8], data: &[u8]| {
        let data_out = if data.is_empty() { Vec::new() } else { vec![Bytes::copy_from_slice(data)] };
        let forwarded = ForwardedCommand {
            nexus: through_2.clone(),
            tag: 5,
            attribute: TaskAttribute::Simple,
            cdb: Cdb::new(cdb),
            expected_in: 1 << 16,
            data_out: data_out.clone(),
        };
        let arrived = ForwardedCommand::decode(&forwarded.encode(), data_out).unwrap();
        let task = bench.unit.admit(id, arrived.tag, arrived.attribute).unwrap();
        run(bench.unit.execute(task, arrived.into_command())).unwrap()
    };
    assert_eq!(sense_of(&send(&[0; 6], &[])), (6, 0x2a09), "no power on: it has not lost any");
    assert_eq!(bench.unit.take_attentions(id), [AdditionalSense::MODE_PARAMETERS_CHANGED]);
    let mut keys = [0; 24];
    keys[15] = 9;
    assert_eq!(send(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &keys).status, Status::Good);
    keys[7] = 9;
    assert_eq!(send(&[0x5f, 1, 1, 0, 0, 0, 0, 0, 24, 0], &keys).status, Status::Good);
    assert_eq!(send(&[0x0a, 0, 0, 1, 1, 0], &[7; 512]).status, Status::Good);
    let own = bench.send_data(&[0x0a, 0, 0, 1, 1, 0], &[8; 512]);
    assert_eq!(own.status, Status::ReservationConflict, "the other nexus does not hold it");
    let status = good(&send(&[0x5e, 3, 0, 0, 0, 0, 0, 0, 255, 0], &[]));
    assert_eq!(status[8 + 18..8 + 20], [0, 2], "registered through the front's port");
    assert_eq!(good(&send(&[0x08, 0, 0, 1, 1, 0], &[])), [7; 512]);
}
