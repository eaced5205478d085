//! What snapshots hold as files, on real processes: exported raw and as qcow2, all of it or what changed, through either
//! node; checked and compared by QEMU's own tools; put on volumes again, and read back.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/host/mod.rs"]
mod host;
#[path = "support/initiator/mod.rs"]
mod initiator;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cluster::{Cluster, ClusterSettings, NODES};
use host::Host;
use serde_json::Value;

const VOLUME: &str = "data";
const MIB: u64 = 1 << 20;

/// A file that tests write to volumes, and what it was.
fn image(folder: &Path, name: &str, size: u64, pieces: &[(u64, usize, u8)]) -> PathBuf {
    let path = folder.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(size).unwrap();
    for (offset, length, seed) in pieces {
        let data: Vec<u8> =
            (0..*length).map(|n| (n as u64 * 31 / 7 + n as u64 / 4096 + u64::from(*seed)) as u8).collect();
        file.write_all_at(&data, *offset).unwrap();
    }
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn good(output: &Output, what: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}{told}", String::from_utf8_lossy(&output.stdout));
}

fn refused(output: &Output, code: i32, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && text.contains(why), "{:?}: {text}", output.status);
}

fn qemu(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    good(&output, &format!("qemu-img {arguments:?}"));
}

fn same(one: &Path, other: &Path) {
    assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "{one:?} and {other:?} differ");
}

#[test]
fn snapshots_become_images_and_volumes_again() {
    let cluster = Cluster::start(ClusterSettings::default());
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let size = 96 * MIB + 8192;
    // Through the node that does not serve it.
    let base = image(
        folder.path(),
        "base.raw",
        size,
        &[
            (0, 3 * MIB as usize, 1),
            (17 * MIB + 4096, 12 << 10, 2),
            (40 * MIB, 70 << 10, 3),
            (size - 8192, 8192, 4),
        ],
    );
    good(&cluster.gemel("b", &["volume", "import", text(&base), VOLUME, "--primary", "a"]), "import");
    assert_eq!(cluster.try_ask("b", &["volume", "show", VOLUME]).unwrap()["size_bytes"], size);
    cluster.wait_in_sync("a", VOLUME);
    cluster.administer("a", &["snapshot", "create", "data@one"]);
    // Zeros are put over data, too.
    let next = image(
        folder.path(),
        "next.raw",
        size,
        &[
            (MIB, 2 * MIB as usize, 1),
            (17 * MIB + 4096, 4 << 10, 9),
            (40 * MIB, 70 << 10, 3),
            (77 * MIB, 5000, 5),
        ],
    );
    refused(&cluster.gemel("a", &["volume", "import", text(&next), VOLUME]), 64, "say --confirm data");
    good(&cluster.gemel("a", &["volume", "import", text(&next), VOLUME, "--confirm", VOLUME]), "overwrite");
    cluster.administer("a", &["snapshot", "create", "data@two"]);

    for node in NODES {
        let path = at(&format!("one-{node}.raw"));
        good(&cluster.gemel(node, &["volume", "export", "data@one", text(&path)]), "export");
        same(&path, &base);
        let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(blocks < 4 * MIB, "{blocks} bytes of a sparse file");
    }
    refused(&cluster.gemel("a", &["volume", "export", "data@one", text(&base)]), 64, "is there already");
    refused(&cluster.gemel("a", &["volume", "export", "data@no", text(&at("x"))]), 65, "has no snapshot no");
    assert!(!at("x").exists(), "what was not exported is not there");

    // As it is now, to a pipe.
    let piped = cluster.gemel("b", &["volume", "export", VOLUME, "-"]);
    good(&piped, "export to a pipe");
    assert!(piped.stdout == std::fs::read(&next).unwrap());
    let names = cluster.gemel("a", &["snapshot", "list", VOLUME]);
    assert_eq!(String::from_utf8(names.stdout).unwrap().lines().count(), 2, "the temporary one is gone");

    let (full, overlay) = (at("data@one.qcow2"), at("two.qcow2"));
    let export = |source: &str, path: &Path, more: &[&str]| {
        let all = [&["volume", "export", source, text(path), "--format", "qcow2"], more].concat();
        let output = cluster.gemel("b", &all);
        good(&output, source);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    export("data@one", &full, &[]);
    let made = export("data@two", &overlay, &["--since", "one"]);
    assert!(made["data_bytes"].as_u64().unwrap() < 3 * MIB, "{made}");
    for path in [&full, &overlay] {
        qemu(&["check", "-f", "qcow2", text(path)]);
    }
    qemu(&["compare", "-f", "raw", "-F", "qcow2", text(&base), text(&full)]);
    qemu(&["compare", "-f", "raw", "-F", "qcow2", text(&next), text(&overlay)]);
    let newest = at("now.qcow2");
    export(VOLUME, &newest, &[]);
    qemu(&["check", "-f", "qcow2", text(&newest)]);
    qemu(&["compare", "-f", "raw", "-F", "qcow2", text(&next), text(&newest)]);

    // And back, by both kinds of increments.
    refused(
        &cluster.gemel("a", &["volume", "import", text(&overlay), "new", "--format", "qcow2"]),
        64,
        "on top of another image",
    );
    let changes = at("two.changes");
    good(&cluster.gemel("a", &["volume", "export", "data@two", text(&changes), "--since", "one"]), "changes");
    assert!(std::fs::metadata(&changes).unwrap().len() < 3 * MIB);
    for (volume, format, increment) in [("new", "qcow2", &overlay), ("other", "raw", &changes)] {
        good(&cluster.gemel("a", &["volume", "import", text(&full), volume, "--format", "qcow2"]), volume);
        let path = at(&format!("{volume}.raw"));
        good(&cluster.gemel("b", &["volume", "export", volume, text(&path)]), volume);
        same(&path, &base);
        let arguments = [
            "volume",
            "import",
            text(increment),
            volume,
            "--format",
            format,
            "--incremental",
            "--confirm",
            volume,
        ];
        good(&cluster.gemel("a", &arguments), volume);
        good(&cluster.gemel("b", &["volume", "export", volume, text(&path), "--force"]), volume);
        same(&path, &next);
    }
    // An image as QEMU makes them.
    let foreign = at("foreign.qcow2");
    qemu(&["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2M", text(&next), text(&foreign)]);
    good(
        &cluster.gemel(
            "b",
            &["volume", "import", text(&foreign), "new", "--format", "qcow2", "--confirm", "new"],
        ),
        "foreign",
    );
    let path = at("foreign.raw");
    good(&cluster.gemel("a", &["volume", "export", "new", text(&path)]), "foreign");
    same(&path, &next);
    qemu(&["convert", "-f", "raw", "-O", "qcow2", "-c", text(&next), text(&at("small.qcow2"))]);
    refused(
        &cluster.gemel(
            "b",
            &["volume", "import", text(&at("small.qcow2")), "new", "--format", "qcow2", "--confirm", "new"],
        ),
        74,
        "has compressed data",
    );
}

/// Ranges as `gemel snapshot diff` prints them.
fn ranges(cluster: &Cluster, node: &str, arguments: &[&str]) -> Vec<(u64, u64, bool)> {
    let output = cluster.gemel(node, &[&["snapshot", "diff"], arguments].concat());
    good(&output, "diff");
    let range = |line: &str| {
        let range: Value = serde_json::from_str(line).unwrap();
        assert!(range.get("data").is_none());
        (
            range["offset"].as_u64().unwrap(),
            range["length"].as_u64().unwrap(),
            range["mapped"].as_bool().unwrap(),
        )
    };
    String::from_utf8(output.stdout).unwrap().lines().map(range).collect()
}

#[test]
fn differences_are_told_and_a_volume_in_use_is_not_overwritten() {
    let cluster = Cluster::start(ClusterSettings::default());
    let folder = tempfile::tempdir().unwrap();
    let target = cluster.create_volume(VOLUME, "64M", &["--primary", "a"]);
    cluster.wait_in_sync("a", VOLUME);
    let mut host = Host::new("host", &target, NODES.map(|node| cluster.portal(node)), 0..64);
    host.write(0, 16);
    cluster.administer("a", &["snapshot", "create", "data@one"]);
    host.write(4, 2);
    host.write(20, 1);
    cluster.administer("a", &["snapshot", "create", "data@two"]);
    host.write(40, 3);
    let two = vec![(4 << 12, 2 << 12, true), (20 << 12, 1 << 12, true)];
    for node in NODES {
        assert_eq!(ranges(&cluster, node, &["data@one", "data@two"]), two);
        assert_eq!(ranges(&cluster, node, &["data@two"]), [(40 << 12, 3 << 12, true)]);
    }
    refused(
        &cluster.gemel("a", &["snapshot", "diff", "data@two", "data@one"]),
        65,
        "data@two is not older than data@one",
    );

    let file = image(folder.path(), "file", 64 * MIB, &[(0, 4096, 1)]);
    for node in NODES {
        let import = cluster.gemel(node, &["volume", "import", text(&file), VOLUME, "--confirm", VOLUME]);
        refused(&import, 65, "is in use by ");
    }
    host.check_all();

    // A node that dies while it sends is taken over from.
    let mut export =
        cluster.command("b", &["volume", "export", "data@two", text(&folder.path().join("two"))]);
    let mut export = export.stdout(Stdio::null()).spawn().unwrap();
    cluster.kill("a");
    assert!(export.wait().unwrap().success());
    cluster.wait_until("b serves", || cluster.volume("b", VOLUME, "primary") == "b");
    good(&cluster.gemel("b", &["volume", "export", "data@two", text(&folder.path().join("again"))]), "again");
    same(&folder.path().join("two"), &folder.path().join("again"));
}
