//! Tests across command families: answers that have to agree with each other, and whatever bytes an
//! initiator may send.

use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};

use super::command::{Command, Status};
use super::identity::Identity;
use super::operation::Operation;
use super::sense::AdditionalSense;
use super::target;
use super::task_set::TaskAttribute;
use super::testing::{Bench, good, identity, run, sense_of};

/// Offset and size of the allocation length field of the commands that have one.
fn allocation_field(opcode: u8) -> Option<(usize, usize)> {
    match opcode {
        0x03 | 0x1a => Some((4, 1)),
        0x12 => Some((3, 2)),
        0x37 | 0x4d | 0x5a | 0x5e => Some((7, 2)),
        0x84 | 0x9e => Some((10, 4)),
        0xa0 | 0xa3 | 0xb7 => Some((6, 4)),
        _ => None,
    }
}

#[test]
fn no_answer_is_longer_than_its_allocation_length() {
    let bench = Bench::new();
    for entry in Operation::all() {
        let Some((at, size)) = allocation_field(entry.opcode) else { continue };
        let mut cdb = vec![0; entry.usage.len()];
        cdb[0] = entry.opcode;
        cdb[1] = entry.usage[1] & if entry.service_action.is_some() { 0x1f } else { 0 };
        if entry.opcode == 0x1a || entry.opcode == 0x5a {
            cdb[2] = 0x3f;
        }
        let mut exact = None;
        for length in [u32::MAX, 0, 1, 2, 7, 8, 255] {
            let bytes = length.to_be_bytes();
            cdb[at..at + size].copy_from_slice(&bytes[4 - size..]);
            let response = bench.send(&cdb);
            let most = if size == 4 { length } else { length & ((1 << (8 * size)) - 1) };
            if response.status != Status::Good {
                continue; // RECEIVE COPY RESULTS of a copy that was never made
            }
            let whole = response.data_in.concat();
            assert!(whole.len() as u64 <= u64::from(most), "{entry:?}: {} of {most}", whole.len());
            let exact = exact.get_or_insert(whole.clone());
            assert!(exact.starts_with(&whole) || entry.opcode == 0x9e, "{entry:?}: not a truncation");
        }
    }
}

#[test]
fn no_bytes_panic() {
    for seed in 0..6 {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let bench = Bench::with_geometry(if seed % 2 == 0 { 512 } else { 4096 }, 3000);
        for _ in 0..6000 {
            let entry = &Operation::all()[random.random_range(0..Operation::all().len())];
            let mut cdb = [0; 16];
            random.fill_bytes(&mut cdb);
            // Mostly plausible commands; a few of anything.
            if random.random_bool(0.9) {
                for (byte, usage) in cdb.iter_mut().zip(entry.usage) {
                    *byte &= usage;
                    if random.random_bool(0.6) {
                        *byte &= random.random::<u8>() & random.random::<u8>();
                    }
                }
                cdb[0] = entry.opcode;
                cdb[1] |= entry.usage[1] & if entry.service_action.is_some() { 0x1f } else { 0 };
            }
            let mut data = vec![0; random.random_range(0..3000)];
            random.fill_bytes(&mut data);
            if random.random_bool(0.5) {
                let zeros = random.random_range(0..=data.len());
                data[..zeros].fill(0);
            }
            let task = bench.unit.admit(bench.nexus, 0, TaskAttribute::Simple).unwrap();
            let command = Command { data_out: vec![Bytes::from(data)], ..Command::new(&cdb, 1 << 16) };
            let _ = target::answer_missing(&command);
            // A sanitize operation that is waited for goes on beside its command.
            let mut execution = Box::pin(bench.unit.execute(task, command));
            for _ in 0..100_000 {
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                if execution.as_mut().poll(&mut context).is_ready() {
                    break;
                }
                bench.runtime.poll();
            }
        }
        run(bench.unit.reset(None).wait());
    }
}

#[test]
fn supported_pages_and_commands_are_what_is_answered() {
    let bench = Bench::new();
    let pages = good(&bench.send(&[0x12, 1, 0, 0, 255, 0]));
    assert!(pages[4..].is_sorted());
    for code in 0..=255 {
        let response = bench.send(&[0x12, 1, code, 2, 0, 0]);
        if pages[4..].contains(&code) {
            let page = good(&response);
            assert_eq!(page[1], code);
            assert_eq!(usize::from(u16::from_be_bytes([page[2], page[3]])) + 4, page.len());
        } else {
            assert_eq!(sense_of(&response), (5, 0x2400));
        }
    }
    for opcode in 0..=255 {
        let known = bench.unit.operations().any(|entry| entry.opcode == opcode);
        let response = bench.send(&[opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let invalid = response.status == Status::CheckCondition && sense_of(&response) == (5, 0x2000);
        assert_eq!(invalid, !known, "operation code {opcode:02x}");
    }
}

#[test]
fn reported_operation_codes_are_the_table() {
    let bench = Bench::new();
    let report = |options: u8, opcode: u8, action: u8| {
        bench.send(&[0xa3, 0x0c, options, opcode, 0, action, 0, 0, 255, 255, 0, 0])
    };
    let all = good(&report(0, 0, 0));
    assert_eq!(all.len(), 4 + 8 * bench.unit.operations().count());
    assert_eq!(good(&report(0x80, 0, 0)).len(), 4 + 20 * bench.unit.operations().count());
    for entry in all[4..].chunks(8) {
        let (opcode, action, has_action) = (entry[0], entry[3], entry[5] & 1 == 1);
        let (right, wrong) = if has_action { (2, 1) } else { (1, 2) };
        let one = good(&report(right, opcode, action));
        assert_eq!((one[1], one[3], one[4]), (3, entry[7], opcode));
        assert_eq!(good(&report(3, opcode, action)), one);
        assert_eq!(sense_of(&report(wrong, opcode, action)), (5, 0x2400));
    }
    assert_eq!(good(&report(1, 0xff, 0)), [0, 1, 0, 0]);
    assert_eq!(good(&report(2, 0x9e, 0x1f)), [0, 1, 0, 0]);
}

#[test]
fn identity_shows_the_port_that_was_asked() {
    let bench = Bench::new();
    let page = good(&bench.send(&[0x12, 1, 0x83, 2, 0, 0]));
    let naa = bench.unit.identity().naa();
    assert_eq!(page[4..8], [0x01, 0x03, 0, 16]);
    assert_eq!(page[8..24], naa);
    let text = String::from_utf8_lossy(&page);
    assert!(text.contains("iqn.2026-11.io.gemel:demo:test,t,0x0001\0"));
    let groups = good(&bench.send(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]));
    assert_eq!(groups, [0, 0, 0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
    let extended = good(&bench.send(&[0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]));
    assert_eq!(extended[..8], [0, 0, 0, 16, 0x10, 15, 0, 0]);
}

#[test]
fn capacity_says_thin_and_aligned() {
    let bench = Bench::with_geometry(4096, 100);
    let capacity = good(&bench.send(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]));
    assert_eq!(capacity[..16], [0, 0, 0, 0, 0, 0, 0, 99, 0, 0, 16, 0, 0, 0, 0xc0, 0]);
    let bench = Bench::with_geometry(512, 1 << 33);
    assert_eq!(good(&bench.send(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0])), [255, 255, 255, 255, 0, 0, 2, 0]);
    let capacity = good(&bench.send(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]));
    assert_eq!((capacity[3], capacity[13]), (1, 3));
    let native = Identity { physical_block_bytes: 512, ..identity() };
    let bench = Bench::with_identity(native, 512, 100);
    let capacity = good(&bench.send(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]));
    assert_eq!(capacity[8..16], [0, 0, 2, 0, 0, 0, 0xc0, 0]);
    // What is best for the volume is said all the same: writes and unmaps of eight blocks.
    let limits = good(&bench.send(&[0x12, 1, 0xb0, 0, 255, 0]));
    assert_eq!((&limits[6..8], &limits[28..32]), (&[0, 8][..], &[0, 0, 0, 8][..]));
}

#[test]
fn mode_parameters_act_and_are_told_to_the_others() {
    let bench = Bench::new();
    let other = bench.attach(2);
    let sense = good(&bench.send(&[0x1a, 0x08, 0x0a, 0, 255, 0]));
    let mut list = sense.clone();
    list[0] = 0;
    list[2] = 0;
    list[4 + 2] |= 0x04; // D_SENSE
    list[4 + 4] |= 0x08; // SWP
    let select = [0x15, 0x10, 0, 0, u8::try_from(list.len()).unwrap(), 0];
    assert_eq!(bench.send_data(&select, &list).status, Status::Good);
    assert_eq!(
        sense_of(&bench.send_from(other, &[0; 6], &[])),
        (6, AdditionalSense::MODE_PARAMETERS_CHANGED.0)
    );
    let refused = bench.send_data(&[0x0a, 0, 0, 0, 1, 0], &[1; 512]);
    assert_eq!((sense_of(&refused), refused.sense[0]), ((7, 0x2702), 0x72));
    assert_eq!(good(&bench.send(&[0x1a, 0x08, 0x0a, 0, 255, 0]))[2], 0x90, "WP");
    assert_eq!(sense_of(&bench.send(&[0x1a, 0, 0xca, 0, 255, 0])), (5, 0x3900));
    assert_eq!(sense_of(&bench.send(&[0x1a, 0, 0x3e, 0, 255, 0])), (5, 0x2400));
    // A reset brings the defaults back.
    run(bench.unit.reset(Some(bench.nexus)).wait());
    bench.clear_attentions(bench.nexus);
    assert_eq!(bench.send_data(&[0x0a, 0, 0, 0, 1, 0], &[1; 512]).status, Status::Good);
}

#[test]
fn verify_compares_what_is_stored() {
    let bench = Bench::new();
    let mut data = vec![5; 1024];
    data[512..].fill(6);
    assert_eq!(bench.send_data(&[0x2e, 0x02, 0, 0, 0, 9, 0, 0, 2, 0], &data).status, Status::Good);
    let verify =
        |flags, count, data: &[u8]| bench.send_data(&[0x2f, flags, 0, 0, 0, 9, 0, 0, count, 0], data);
    assert_eq!(verify(0x00, 2, &[]).status, Status::Good);
    assert_eq!(verify(0x02, 2, &data).status, Status::Good);
    data[700] = 0;
    let miscompare = verify(0x02, 2, &data);
    assert_eq!(sense_of(&miscompare), (0xe, 0x1d00));
    assert_eq!(miscompare.sense[3..7], 700u32.to_be_bytes());
    assert_eq!(verify(0x06, 1, &[5; 512]).status, Status::Good);
    let miscompare = verify(0x06, 2, &[5; 512]);
    assert_eq!(miscompare.sense[3..7], 512u32.to_be_bytes());
    assert_eq!(sense_of(&verify(0x04, 2, &[])), (5, 0x2400));
    assert_eq!(sense_of(&verify(0x22, 2, &data)), (5, 0x2400));
}

#[test]
fn a_missing_unit_answers_what_it_has_to() {
    let lun = |bytes: [u8; 2]| [bytes[0], bytes[1], 0, 0, 0, 0, 0, 0];
    assert_eq!(target::route(lun([0, 0])), target::Route::LogicalUnit);
    assert_eq!(target::route(lun([0x40, 0])), target::Route::LogicalUnit);
    for missing in [[0, 1], [0x40, 1], [0xc1, 1], [1, 0]] {
        assert_eq!(target::route(lun(missing)), target::Route::Missing);
    }
    let answer = |cdb: &[u8]| target::answer_missing(&Command::new(cdb, 255));
    assert_eq!(good(&answer(&[0x12, 0, 0, 0, 36, 0]))[0], 0x7f);
    assert_eq!(sense_of(&answer(&[0; 6])), (5, 0x2500));
    assert_eq!(good(&answer(&[0x03, 0, 0, 0, 18, 0]))[12..14], [0x25, 0]);
    assert_eq!(good(&answer(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]))[..4], [0, 0, 0, 8]);
}
