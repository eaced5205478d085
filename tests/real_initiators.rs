//! Initiators that people use, against a real `gemeld` on a real RAID-5 pool: libiscsi's tools, qemu-img and qemu-io;
//! and SIGKILL at any moment with verification.

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/node/mod.rs"]
mod node;
#[path = "support/ports/mod.rs"]
mod ports;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::iscsi::initiator::{Event, LoginSettings};
use initiator::{Session, read_command, write_command};
use node::{Node, NodeSettings, target_name};

#[test]
fn libiscsi_lists_inquires_and_loads() {
    let (_folder, node) = start("disk", "256M");
    let listing = run("iscsi-ls", &["-s", &format!("iscsi://{}", node.portals[0])]);
    assert!(listing.contains(&target_name("disk")), "{listing}");
    assert!(listing.contains("DIRECT_ACCESS"), "{listing}");
    let inquiry = run("iscsi-inq", &[&node.url(0, "disk")]);
    assert!(inquiry.contains("Peripheral Device Type:DIRECT_ACCESS"), "{inquiry}");
    let capacity = run("iscsi-readcapacity16", &[&node.url(1, "disk")]);
    assert!(capacity.contains("Total size:268435456"), "{capacity}");
    run("iscsi-perf", &["-m", "32", "-b", "8", "-t", "2", "-r", &node.url(0, "disk")]);
}

#[test]
fn qemu_converts_an_image_in_and_out() {
    let (folder, node) = start("disk", "64M");
    let (source, back) = (folder.path().join("source.raw"), folder.path().join("back.raw"));
    std::fs::write(&source, stamps(64 << 20)).expect("the image can be written");
    let url = node.url(0, "disk");
    let convert = |from: &str, to: &str| {
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-t", "none", "-T", "none", from, to]);
    };
    convert(path(&source), &url);
    std::fs::write(&back, []).expect("a file can be made");
    std::fs::File::options()
        .write(true)
        .open(&back)
        .and_then(|file| file.set_len(64 << 20))
        .expect("a file can grow");
    convert(&url, path(&back));
    assert_eq!(std::fs::read(&source).expect("readable"), std::fs::read(&back).expect("readable"));
    let compared = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&source), &url]);
    assert!(compared.contains("identical"), "{compared}");
}

#[test]
fn qemu_verifies_mixed_patterns() {
    let (_folder, node) = start("disk", "64M");
    let url = node.url(1, "disk");
    let steps = [
        "write -P 0x11 0 1M",
        "write -P 0x22 4k 512",
        "write -P 0x33 1000k 100k",
        "write -z 64k 64k",
        "discard 512k 128k",
        "aio_write -P 0x44 2M 3M",
        "aio_write -P 0x55 5M 1M",
        "aio_flush",
        "flush",
        "read -P 0x11 0 4k",
        "read -P 0x22 4k 512",
        "read -P 0x11 4608 60928",
        "read -P 0 64k 64k",
        "read -P 0x11 128k 384k",
        "read -P 0x33 1000k 100k",
        "read -P 0x44 2M 3M",
        "read -P 0x55 5M 1M",
        "read -P 0 6M 1M",
    ];
    let arguments: Vec<&str> = ["-f", "raw", "-t", "none"]
        .into_iter()
        .chain(steps.iter().flat_map(|step| ["-c", step]))
        .chain([&*url])
        .collect();
    let output = run("qemu-io", &arguments);
    assert!(!output.contains("verification failed"), "{output}");
}

/// What one block held before and what a write in flight would make of it.
#[derive(Clone, Copy, Default)]
struct Expected {
    acknowledged: u64,
    in_flight: Option<u64>,
}

#[test]
fn nothing_acknowledged_is_lost_by_sigkill() {
    const BLOCKS: usize = 2048;
    const DEPTH: usize = 16;
    let (_folder, mut node) = start("disk", "64M");
    let mut blocks = vec![Expected::default(); BLOCKS];
    let (mut stamp, mut random) = (0u64, 12_345u64);
    // `make soak` goes on for longer.
    let minutes: u64 =
        std::env::var("SOAK_MINUTES").map_or(0, |text| text.parse().expect("a number of minutes"));
    let (started, soak) = (Instant::now(), Duration::from_secs(60 * minutes));
    for round in (0..).take_while(|round| *round < 8 || started.elapsed() < soak) {
        let mut session = open(&node);
        let mut running: Vec<Option<usize>> = vec![];
        // The kill comes at another moment each time.
        let writes = 300 + 173 * (round % 50);
        let mut acknowledged = 0;
        for _ in 0..DEPTH {
            submit(&mut session, &mut blocks, &mut running, &mut stamp, &mut random);
        }
        while acknowledged < writes {
            let Event::Completed { tag, outcome } = session.next_event().expect("the node answers") else {
                continue;
            };
            assert!(outcome.is_good(), "{outcome:?}");
            let block = running[tag.0 as usize].take().expect("a tag of this test");
            blocks[block] = Expected {
                acknowledged: blocks[block].in_flight.expect("it was in flight"),
                in_flight: None,
            };
            acknowledged += 1;
            submit(&mut session, &mut blocks, &mut running, &mut stamp, &mut random);
        }
        session.flush().expect("the last writes go out");
        node.kill();
        drop(session);
        node.restart();
        // What was in flight is old or new, and from now on what it was found to be.
        let mut session = open(&node);
        for (number, expected) in blocks.iter_mut().enumerate() {
            let data = session.execute(read_command(0, number as u64 * 8, 8, 4096)).expect("answered").data;
            let found = stamp_of(&data).unwrap_or_else(|| panic!("round {round}: block {number} is torn"));
            let allowed = found == expected.acknowledged || Some(found) == expected.in_flight;
            assert!(allowed, "round {round}: block {number} holds {found}, not {}", expected.acknowledged);
            *expected = Expected { acknowledged: found, in_flight: None };
        }
    }
}

fn submit(
    session: &mut Session,
    blocks: &mut [Expected],
    running: &mut Vec<Option<usize>>,
    stamp: &mut u64,
    random: &mut u64,
) {
    let block = loop {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (*random >> 33) as usize % blocks.len();
        if blocks[block].in_flight.is_none() {
            break block;
        }
    };
    *stamp += 1;
    blocks[block].in_flight = Some(*stamp);
    let data = Bytes::from(stamp.to_le_bytes().repeat(512));
    let tag = session.connection.submit(write_command(0, block as u64 * 8, 8, data)).0 as usize;
    running.resize(running.len().max(tag + 1), None);
    running[tag] = Some(block);
}

/// The stamp that fills the whole block; `None` when it holds several.
fn stamp_of(data: &[u8]) -> Option<u64> {
    let first: [u8; 8] = data.first_chunk().copied()?;
    data.chunks(8).all(|chunk| chunk == first).then(|| u64::from_le_bytes(first))
}

fn open(node: &Node) -> Session {
    let settings = LoginSettings::normal("iqn.2026-11.io.gemel:kill", &target_name("disk"));
    let mut session = Session::open(node.portals[0], settings).expect("an initiator that is allowed logs in");
    // The unit attention of a restart.
    let _ = session.execute(gemel::iscsi::initiator::Command::new(&[0; 6])).expect("answered");
    session
}

fn start(volume: &str, size: &str) -> (tempfile::TempDir, Node) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let node = Node::start(folder.path(), NodeSettings::default());
    node.create_volume(volume, size);
    (folder, node)
}

/// Bytes that differ from sector to sector, a part of them zeros.
fn stamps(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (number, sector) in bytes.chunks_mut(512).enumerate().filter(|(number, _)| number % 1000 > 200) {
        sector.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&(number as u64).to_le_bytes()));
    }
    bytes
}

/// Runs an initiator and demands success; gives what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = node::bounded(program, "120")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("setpriv (util-linux) can be run");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{program} {arguments:?} ({}); `make test` installs it:\n{text}",
        output.status
    );
    text
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have names in UTF-8")
}
