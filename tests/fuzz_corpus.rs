//! Replays the corpora of the fuzz targets, so that what fuzzing once found stays found without a
//! fuzzer.

#![allow(clippy::unwrap_used)]

use std::path::Path;

/// Feeds every file of `fuzz/corpus/TARGET` to `target`.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        let data = std::fs::read(&file).unwrap();
        if std::panic::catch_unwind(|| target(&data)).is_err() {
            panic!("{name} panics on {}", file.display());
        }
    }
}

#[test]
fn pdu() {
    replay("pdu", gemel::iscsi::fuzzing::pdu);
}

#[test]
fn login_text() {
    replay("login_text", gemel::iscsi::fuzzing::login_text);
}

#[test]
fn connection() {
    replay("connection", gemel::iscsi::fuzzing::connection);
}

#[test]
fn superblock() {
    replay("superblock", gemel::store::fuzzing::superblock);
}

#[test]
fn batch_header() {
    replay("batch_header", gemel::store::fuzzing::batch_header);
}

#[test]
fn checkpoint() {
    replay("checkpoint", gemel::store::fuzzing::checkpoint);
}
