//! Starting and stopping a real daemon: bad configuration, disks that must not be touched, ports and
//! directories in use, restarts after SIGTERM and SIGKILL.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use gemel::array::superblock::{COPY_OFFSETS, FORMAT_VERSION, SUPERBLOCK_BYTES, Superblock};
use gemel::base::checksum::Crc32;
use service::{Service, create_disk, errors};

/// What a start that must fail says.
fn failing_start(service: &Service, arguments: &[&str]) -> String {
    let output = service.gemeld(arguments);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    errors(&output)
}

#[test]
fn a_bad_configuration_names_the_line_and_nothing_is_made() {
    let mut service = Service::new(1);
    service.extra = "colour = \"red\"\n".to_owned();
    service.configure();
    let text = failing_start(&service, &[]);
    assert!(text.contains("line 12") && text.contains("colour"), "{text}");
    assert!(!service.state_dir().exists());
    std::fs::remove_file(service.configuration()).unwrap();
    assert!(failing_start(&service, &[]).contains("--config"));
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    assert_eq!(Service::new(1).gemeld(&["--frobnicate"]).status.code(), Some(64));
}

#[test]
fn disks_that_were_never_formatted_are_not_touched() {
    let service = Service::new(3);
    let text = failing_start(&service, &[]);
    assert!(text.contains("gemeld format"), "{text}");
    let mut start = vec![0; 1 << 20];
    std::fs::File::open(&service.disks[0]).unwrap().read_exact(&mut start).unwrap();
    assert!(start.iter().all(|byte| *byte == 0));
}

#[test]
fn formatting_spares_what_is_there_unless_forced() {
    let service = Service::new(3);
    std::fs::write(&service.disks[1], vec![0x5a; 256 << 20]).unwrap();
    let text = failing_start(&service, &["format"]);
    assert!(text.contains("disk-1") && text.contains("force"), "{text}");
    assert!(std::fs::read(&service.disks[1]).unwrap().iter().all(|byte| *byte == 0x5a));
    assert!(service.gemeld(&["format", "--force"]).status.success());
    let text = failing_start(&service, &["format"]);
    assert!(text.contains("pool") && text.contains("force"), "a pool of our own is spared too: {text}");
}

#[test]
fn disks_that_are_too_small_or_no_disks_are_refused() {
    let service = Service::new(3);
    create_disk(&service.disks[2], 64 << 10);
    assert!(failing_start(&service, &["format"]).contains("at least"), "too small");
    std::fs::remove_file(&service.disks[2]).unwrap();
    assert!(failing_start(&service, &["format"]).contains("no such disk"));
    std::fs::create_dir(&service.disks[2]).unwrap();
    assert!(failing_start(&service, &["format"]).contains("a disk is a block device or a regular file"));
}

#[test]
fn a_disk_of_another_pool_is_refused() {
    let (mut first, second) = (Service::new(3), Service::new(3));
    first.format();
    second.format();
    first.disks[2] = second.disks[2].clone();
    first.configure();
    let text = failing_start(&first, &[]);
    assert!(text.contains("belongs to pool") && text.contains("remove it from the configuration"), "{text}");
}

#[test]
fn one_missing_disk_is_done_without_and_two_are_not() {
    let mut service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    assert_eq!(service.end("-TERM"), Some(0));
    std::fs::rename(&service.disks[1], service.folder.path().join("pulled-1")).unwrap();
    service.start();
    let output = service.gemel(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["volumes"][0]["state"], "in-sync");
    let states: Vec<_> =
        status["pools"][0]["disks"].as_array().unwrap().iter().map(|d| d["state"].clone()).collect();
    assert!(states.iter().filter(|state| **state != "ok").count() == 1, "{states:?}");
    assert_eq!(service.end("-TERM"), Some(0));
    std::fs::rename(&service.disks[2], service.folder.path().join("pulled-2")).unwrap();
    let text = failing_start(&service, &[]);
    assert!(text.contains("missing"), "{text}");
}

#[test]
fn a_port_in_use_is_named_with_its_holder() {
    let service = Service::new(3);
    service.format();
    for (port, key) in [(service.iscsi, "iscsi.portals"), (service.console, "console.listen")] {
        let _holder = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        let text = failing_start(&service, &[]);
        let expected = [format!("127.0.0.1:{port}"), format!("pid {}", std::process::id()), key.to_owned()];
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    }
}

#[test]
fn a_state_directory_has_one_daemon_and_one_cluster() {
    let mut service = Service::serving();
    let text = failing_start(&service, &[]);
    assert!(text.contains("in use by another gemeld") && text.contains(&service.pid().to_string()), "{text}");
    assert!(failing_start(&service, &["format", "--force"]).contains("in use"), "not under a running daemon");
    assert_eq!(service.end("-TERM"), Some(0));
    let text = std::fs::read_to_string(service.configuration()).unwrap();
    std::fs::write(service.configuration(), text.replace("cluster = \"test\"", "cluster = \"other\""))
        .unwrap();
    let text = failing_start(&service, &[]);
    assert!(text.contains("belongs to cluster test"), "{text}");
}

#[test]
fn disks_with_volumes_are_formatted_by_force_only_and_lost_data_is_said_to_be_lost() {
    let mut service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    assert_eq!(service.end("-TERM"), Some(0));
    let text = failing_start(&service, &["format"]);
    assert!(text.contains("1 volumes"), "{text}");
    assert!(service.gemeld(&["format", "--force"]).status.success());
    service.start();
    assert_eq!(service.json(&["volume", "show", "data"])[0]["state"], "offline");
    let kinds: Vec<_> = service.json(&["event", "list"]).iter().map(|event| event["kind"].clone()).collect();
    assert!(kinds.contains(&"volume-offline".into()), "{kinds:?}");
    service.succeed(&["volume", "delete", "data"]);
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
}

#[test]
fn a_stop_is_quick_and_what_was_made_survives_it_and_a_kill() {
    let mut service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    service.succeed(&["access", "allow", "data", "*"]);
    let started = Instant::now();
    assert_eq!(service.end("-TERM"), Some(0));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    service.start();
    let volume = service.json(&["volume", "show", "data"]).remove(0);
    assert_eq!((&volume["epoch"], &volume["state"]), (&2.into(), &"in-sync".into()));
    service.end("-KILL");
    service.start();
    let volume = service.json(&["volume", "show", "data"]).remove(0);
    assert_eq!((&volume["epoch"], &volume["size_bytes"]), (&3.into(), &(64 << 20).into()));
    assert_eq!(service.json(&["access", "list"])[0]["initiator"], "*");
    assert_eq!(service.end("-INT"), Some(0));
}

#[test]
fn a_damaged_superblock_on_one_disk_does_not_stop_the_pool() {
    let mut service = Service::serving();
    assert_eq!(service.end("-TERM"), Some(0));
    let mut disk = std::fs::File::options().write(true).open(&service.disks[0]).unwrap();
    disk.seek(SeekFrom::Start(0)).unwrap();
    disk.write_all(&vec![0xff; 1 << 20]).unwrap();
    drop(disk);
    // Whether it is done without or refused is the array's to say; it must be said, not served wrongly.
    let output = service.gemel(&["status"]);
    assert_eq!(output.status.code(), Some(69));
    service.disks.remove(0);
    service.configure();
    service.start();
    assert_eq!(service.gemel(&["status"]).status.code(), Some(1));
}

#[test]
fn a_disk_of_a_newer_format_is_refused_and_nothing_is_changed() {
    let mut service = Service::new(3);
    service.format();
    service.start();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    assert_eq!(service.end("-TERM"), Some(0));
    let [first, second] = COPY_OFFSETS;
    // A release that wrote one generation with the newer version has left the copy before as it was.
    for copies in [&[first, second][..], &[first], &[second]] {
        set_format_version(&service.disks[1], copies, FORMAT_VERSION + 1);
        let before = contents(&service.disks);
        let text = failing_start(&service, &[]);
        let expected = [
            service.disks[1].display().to_string(),
            format!("format version {}", FORMAT_VERSION + 1),
            "upgrade gemeld on this node, or remove the disk".to_owned(),
        ];
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
        assert!(contents(&service.disks) == before, "a start that is refused has written to a disk");
        let mut other = Service::new(3);
        other.disks[0] = service.disks[1].clone();
        other.configure();
        let text = failing_start(&other, &["format"]);
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
        assert!(contents(&service.disks) == before, "a format that is refused has written to a disk");
        set_format_version(&service.disks[1], copies, FORMAT_VERSION);
    }
    // A release that reads the version has everything, and so has this one without the disk.
    service.start();
    assert_eq!(service.json(&["volume", "show", "data"])[0]["state"], "in-sync");
    assert_eq!(service.end("-TERM"), Some(0));
    set_format_version(&service.disks[1], &COPY_OFFSETS, FORMAT_VERSION + 1);
    let newer = service.disks.remove(1);
    let before = contents(std::slice::from_ref(&newer));
    service.configure();
    service.start();
    assert_eq!(service.json(&["volume", "show", "data"])[0]["state"], "in-sync");
    assert!(contents(&[newer]) == before, "a disk that was removed is left alone");
}

/// Gives copies of a superblock another version of the format, with a checksum that fits.
fn set_format_version(disk: &Path, copies: &[u64], version: u32) {
    let mut disk = std::fs::File::options().read(true).write(true).open(disk).unwrap();
    for offset in copies {
        let mut copy = vec![0; SUPERBLOCK_BYTES];
        disk.seek(SeekFrom::Start(*offset)).unwrap();
        disk.read_exact(&mut copy).unwrap();
        copy[8..12].copy_from_slice(&version.to_le_bytes());
        copy[12..16].fill(0);
        let checksum = Crc32::of(&copy).0.to_le_bytes();
        copy[12..16].copy_from_slice(&checksum);
        assert_eq!(Superblock::decode(&copy).is_ok(), version <= FORMAT_VERSION);
        disk.seek(SeekFrom::Start(*offset)).unwrap();
        disk.write_all(&copy).unwrap();
    }
}

/// What is on the disks, and when it was last written.
fn contents(disks: &[std::path::PathBuf]) -> Vec<(Crc32, std::time::SystemTime)> {
    let of_disk = |disk: &std::path::PathBuf| {
        let modified = std::fs::metadata(disk).unwrap().modified().unwrap();
        (Crc32::of(&std::fs::read(disk).unwrap()), modified)
    };
    disks.iter().map(of_disk).collect()
}

#[test]
fn a_witness_without_a_configuration_says_where_it_looked() {
    let mut witness = std::process::Command::new(env!("CARGO_BIN_EXE_gemel-witness"));
    witness.args(["--config", "/nonexistent/witness.toml"]);
    let output = service::finish(witness);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("/nonexistent/witness.toml"));
}
