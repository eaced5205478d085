//! Tests of the messages' encoding.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::scsi::reservation::store::PersistedRegistration;

const PLACE: Place = Place { volume: VolumeId(3), term: 5, nexus: 7 };

fn pieces(random: &mut ChaCha8Rng) -> Vec<Bytes> {
    let count = random.random_range(0..4);
    let piece = |random: &mut ChaCha8Rng| {
        let mut bytes = vec![0; random.random_range(0..2000)];
        random.fill_bytes(&mut bytes);
        Bytes::from(bytes)
    };
    (0..count).map(|_| piece(random)).collect()
}

/// As what arrives is: one piece, or none.
fn one(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let whole: Bytes = pieces.concat().into();
    if whole.is_empty() { Vec::new() } else { vec![whole] }
}

fn codes(random: &mut ChaCha8Rng) -> Vec<AdditionalSense> {
    (0..random.random_range(0..=limits::ATTENTIONS)).map(|_| AdditionalSense(random.random())).collect()
}

fn reservations(random: &mut ChaCha8Rng) -> PersistedReservations {
    let registration = |random: &mut ChaCha8Rng| PersistedRegistration {
        initiator_name: "iqn.\u{1}\"é".repeat(random.random_range(1..20)),
        isid: random.random(),
        relative_target_port: random.random(),
        key: random.random(),
        holder: random.random(),
    };
    PersistedReservations {
        aptpl: random.random(),
        generation: random.random(),
        registrations: (0..random.random_range(0..5)).map(|_| registration(random)).collect(),
        reservation_type: random.random_bool(0.5).then_some(5),
        ..PersistedReservations::default()
    }
}

fn to_serving(random: &mut ChaCha8Rng) -> ToServing {
    let place = Place { volume: VolumeId(random.random()), term: random.random(), nexus: random.random() };
    match random.random_range(0..4) {
        0 => {
            let length = random.random_range(1..=NAME_BYTES);
            let name = "é".repeat(length / 2) + &"n".repeat(length % 2);
            let initiator = InitiatorPort { name, isid: random.random() };
            let target_port = TargetPort { relative_id: random.random(), portal_group: random.random() };
            ToServing::Attach { place, nexus: Nexus { initiator, target_port }, pending: codes(random) }
        }
        1 => ToServing::Detach(place),
        2 => {
            let mut cdb = [0; 16];
            random.fill_bytes(&mut cdb);
            let attribute = attribute_of(random.random_range(1..=4)).unwrap();
            let (tag, expected_in) = (random.random(), random.random());
            let data_out = one(pieces(random));
            let cdb = Cdb::new(&cdb);
            ToServing::Command(place, ForwardedCommand { tag, attribute, cdb, expected_in, data_out })
        }
        _ => {
            let function = match random.random_range(0..4) {
                0 => Management::AbortTask(random.random()),
                1 => Management::AbortTaskSet,
                2 => Management::ClearTaskSet,
                _ => Management::Reset,
            };
            ToServing::Manage { place, number: random.random(), function }
        }
    }
}

fn response(random: &mut ChaCha8Rng) -> Response {
    let data_in = one(pieces(random));
    let data_in_length = total_length(&data_in) as u64 + u64::from(random.random::<u32>());
    let sense = vec![7; if random.random() { random.random_range(1..=252) } else { 0 }];
    let others =
        [Status::Good, Status::Busy, Status::ReservationConflict, Status::TaskSetFull, Status::TaskAborted];
    let status = if sense.is_empty() { others[random.random_range(0..5)] } else { Status::CheckCondition };
    Response { status, sense, data_in, data_in_length, data_out_length: random.random() }
}

fn from_serving(random: &mut ChaCha8Rng) -> FromServing {
    let (volume, term) = (VolumeId(random.random()), random.random());
    let place = Place { volume, term, nexus: random.random() };
    let outcome = match random.random_range(0..4) {
        0 => Outcome::NotBegun,
        1 => Outcome::Ended(None),
        _ => Outcome::Ended(Some(response(random))),
    };
    match random.random_range(0..8) {
        0 => FromServing::Welcome,
        1 => FromServing::Serving { volume, term, reservations: reservations(random) },
        2 => FromServing::Stopped { volume, term },
        3 => FromServing::Attentions(place, codes(random)),
        4 => FromServing::Reservations { volume, term, reservations: reservations(random) },
        5 => FromServing::Managed { number: random.random(), is_done: random.random() },
        _ => FromServing::Answer(place, ForwardedAnswer { tag: random.random(), outcome }),
    }
}

#[test]
fn messages_round_trip() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..2000 {
        let message = to_serving(&mut random);
        assert_eq!(ToServing::decode(&message.encode().concat().into()), Ok(message));
        let message = from_serving(&mut random);
        assert_eq!(FromServing::decode(&message.encode().concat().into()), Ok(message));
    }
}

#[test]
fn damage_is_found_and_nonsense_refused() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..2000 {
        let sound = match random.random() {
            true => to_serving(&mut random).encode().concat(),
            false => from_serving(&mut random).encode().concat(),
        };
        let mut damaged = sound.clone();
        let at = random.random_range(0..damaged.len());
        damaged[at] ^= 1 << random.random_range(0..8);
        let damaged = Bytes::from(damaged);
        assert!(ToServing::decode(&damaged).is_err() && FromServing::decode(&damaged).is_err(), "byte {at}");
        let cut = Bytes::from(sound).slice(..at);
        assert!(ToServing::decode(&cut).is_err() && FromServing::decode(&cut).is_err());
    }
    let mut later = ToServing::Detach(PLACE).encode().concat();
    later[0] = 2;
    assert_eq!(ToServing::decode(&later.into()), Err(DecodeError::UnknownVersion(2)));
    let mut random_bytes = vec![0; 4096];
    for _ in 0..2000 {
        random.fill_bytes(&mut random_bytes);
        random_bytes[0] = FORMAT;
        let bytes = Bytes::copy_from_slice(&random_bytes);
        assert!(ToServing::decode(&bytes).is_err() && FromServing::decode(&bytes).is_err());
    }
}

#[test]
fn every_field_is_checked_though_the_checksums_are_right() {
    let message = |kind: u8, fields: &[u8], data: &'static [u8]| {
        let data = if data.is_empty() { Vec::new() } else { vec![Bytes::from_static(data)] };
        Bytes::from(Header(fields.to_vec()).into_message(kind, &data).concat())
    };
    let place = [0; 20];
    let malformed: [(u8, Vec<u8>); 9] = [
        (9, place.to_vec()),
        (2, [&place[..], &[0]].concat()),
        (1, [&place[..], &[0; 10], &[17], &[0; 34], b"iqn"].concat()),
        (1, [&place[..], &[0; 10], &[0]].concat()),
        (3, [&place[..], &[0; 8], &[5], &[0; 20]].concat()),
        (4, [&place[..], &[0; 8], &[2], &[0, 0, 0, 0, 0, 0, 0, 1]].concat()),
        (69, [&place[..], &[0; 8], &[3]].concat()),
        (69, [&place[..], &[0; 8], &[2, 2], &[0; 16]].concat()),
        (65, [&place[..12], b"{"].concat()),
    ];
    for (kind, fields) in malformed {
        let bytes = message(kind, &fields, b"");
        assert_eq!(ToServing::decode(&bytes).unwrap_err(), DecodeError::Malformed, "{kind}");
        assert_eq!(FromServing::decode(&bytes).unwrap_err(), DecodeError::Malformed, "{kind}");
    }
    let unasked = message(2, &place, b"data");
    assert_eq!(ToServing::decode(&unasked), Err(DecodeError::Data(4)));
    let unasked = message(69, &[&place[..], &[0; 8], &[1]].concat(), b"data");
    assert_eq!(FromServing::decode(&unasked), Err(DecodeError::Data(4)));
}

#[test]
fn format_1_is_as_it_was() {
    let command = ForwardedCommand {
        tag: 0x0102,
        attribute: TaskAttribute::Ordered,
        cdb: Cdb::new(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 1]),
        expected_in: 0x200,
        data_out: vec![Bytes::from_static(b"data")],
    };
    let expected: Vec<u8> = [
        &[1, 3, 0, 0, 0, 49, 0, 0, 0, 4, 0xad, 0xf3, 0xf3, 0x63][..],
        &[0; 4], // the header's checksum, below
        &[0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7],
        &[0, 0, 0, 0, 0, 0, 1, 2, 2],
        &[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 2, 0],
        b"data",
    ]
    .concat();
    let mut encoded = ToServing::Command(PLACE, command).encode().concat();
    encoded[14..18].fill(0);
    assert_eq!(encoded, expected);
}
