//! The command line against a real daemon: what it prints, its JSON, its exit codes, bad input.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use service::{Service, errors};

#[test]
fn status_json_has_the_promised_fields() {
    let service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    let status = service.json(&["status"]).remove(0);
    assert_eq!(status["health"], "ok");
    assert!(status["witness"].is_null());
    let node = &status["nodes"][0];
    assert_eq!((&node["name"], &node["state"]), (&"a".into(), &"up".into()));
    let volume = &status["volumes"][0];
    assert_eq!(volume["name"], "data");
    assert_eq!(volume["size_bytes"], 64 << 20);
    assert_eq!(volume["used_bytes"], 0);
    assert_eq!(volume["state"], "in-sync");
    assert_eq!((&volume["primary"], &volume["epoch"]), (&"a".into(), &1.into()));
    assert_eq!(volume["target"], "iqn.2026-11.io.gemel:test:data");
    let pool = &status["pools"][0];
    assert_eq!((&pool["node"], &pool["state"]), (&"a".into(), &"ok".into()));
    assert!(pool["capacity_bytes"].as_u64().unwrap() > 0 && pool["used_bytes"].is_u64());
    let disks = pool["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 4);
    assert!(
        disks.iter().all(|disk| disk["state"] == "ok" && disk["id"].is_string() && disk["path"].is_string())
    );
}

#[test]
fn volumes_are_created_listed_resized_and_deleted() {
    let service = Service::serving();
    service.succeed(&["volume", "create", "one", "--size", "64M"]);
    let two = service.json(&["volume", "create", "two", "--size", "1G", "--sector", "4096"]).remove(0);
    assert_eq!((&two["sector_bytes"], &two["size_bytes"]), (&4096.into(), &(1u64 << 30).into()));
    let names: Vec<_> = service.json(&["volume", "list"]).iter().map(|v| v["name"].clone()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(two["physical_sector_bytes"], 4096);
    let three = service.json(&["volume", "create", "three", "--size", "1G", "--sector", "512n"]).remove(0);
    assert_eq!((&three["sector_bytes"], &three["physical_sector_bytes"]), (&512.into(), &512.into()));
    service.succeed(&["volume", "delete", "three"]);
    let (code, text) = service.refuse(&["volume", "resize", "one", "--size", "32M"]);
    assert!(code == 65 && text.contains("loses what lies beyond"), "{text}");
    assert_eq!(service.json(&["volume", "resize", "one", "--size", "128M"])[0]["size_bytes"], 128 << 20);
    assert_eq!(
        service.json(&["volume", "resize", "one", "--size", "32M", "--shrink"])[0]["size_bytes"],
        32 << 20
    );
    service.succeed(&["volume", "delete", "one"]);
    assert_eq!(service.refuse(&["volume", "show", "one"]).0, 65);
    let again = service.json(&["volume", "create", "one", "--size", "64M"]).remove(0);
    assert_eq!(again["id"], 4, "numbers are never given twice");
    assert!(service.succeed(&["volume", "show", "one"]).contains("iqn.2026-11.io.gemel:test:one LUN 0"));
}

#[test]
fn bad_input_is_refused_with_what_to_do_and_changes_nothing() {
    let service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    let before = service.json(&["status"]).remove(0)["volumes"].clone();
    let long = "x".repeat(129);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["volume", "create", "data", "--size", "64M"], 65, "exists already"),
        (&["volume", "create", "Data", "--size", "64M"], 65, "lower-case"),
        (&["volume", "create", "", "--size", "64M"], 65, "name"),
        (&["volume", "create", &long, "--size", "64M"], 65, "128"),
        (&["volume", "create", "v", "--size", "64X"], 64, "64X"),
        (&["volume", "create", "v", "--size", "1K"], 65, "1 MiB"),
        (&["volume", "create", "v", "--size", "1000001"], 65, "4 KiB"),
        (&["volume", "create", "v", "--size", "1P"], 65, "64 TiB"),
        (&["volume", "create", "v", "--size", "64M", "--sector", "520"], 64, "512 or 4096"),
        (&["volume", "create", "v"], 64, "--size"),
        (&["volume", "resize", "none", "--size", "64M"], 65, "no volume none"),
        (&["volume", "delete", "none"], 65, "gemel volume list"),
        (&["disk", "fail", "none"], 65, "gemel disk list"),
        (&["access", "allow", "data", "host1"], 65, "iqn."),
        (&["access", "allow", "none", "*"], 65, "no volume none"),
        (&["access", "deny", "data", "iqn.2026-11.example:x"], 65, "gemel access list data"),
        (&["access", "chap", "clear", "iqn.2026-11.example:x"], 65, "no CHAP"),
        (&["clone", "list"], 64, "clone"),
        (&["snapshot", "create", "none"], 65, "no volume none"),
        (&["volume", "frobnicate"], 64, "frobnicate"),
    ];
    for (arguments, code, what) in cases {
        let (found, text) = service.refuse(arguments);
        assert!(found == *code && text.contains(what), "{arguments:?}: {found}: {text}");
    }
    assert_eq!(service.json(&["status"]).remove(0)["volumes"], before);
}

#[test]
fn an_unreachable_node_is_told_apart_from_a_refusal() {
    let service = Service::new(1);
    let (code, text) = service.refuse(&["status"]);
    assert!(code == 69 && text.contains("--cluster"), "{code}: {text}");
}

#[test]
fn access_and_chap_secrets() {
    let service = Service::serving();
    let host = "iqn.2026-11.example:host";
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    service.succeed(&["access", "allow", "data", host]);
    service.succeed(&["access", "allow", "data", host]);
    let secret_file = service.folder.path().join("secret");
    std::fs::write(&secret_file, "a secret that nobody knows\n").unwrap();
    let path = secret_file.display().to_string();
    service.succeed(&["access", "chap", "set", host, "--user", "u", "--secret-file", &path]);
    let entry = service.json(&["access", "list", "data"]).remove(0);
    assert_eq!(
        (&entry["initiator"], &entry["chap"], &entry["mutual_chap"]),
        (&host.into(), &true.into(), &false.into())
    );
    let mutual = ["--mutual-user", "t", "--mutual-secret-file", &path];
    let set = ["access", "chap", "set", host, "--secret-file", &path];
    let (code, text) = service.refuse(&[&set[..], &mutual[..]].concat());
    assert!(code == 65 && text.contains("different"), "one secret for both directions: {text}");
    std::fs::write(&secret_file, "short\n").unwrap();
    let (code, text) = service.refuse(&set);
    assert!(code == 65 && text.contains("12") && !text.contains("short\n"), "{text}");
    service.succeed(&["access", "chap", "clear", host]);
    service.succeed(&["access", "deny", "data", host]);
    assert!(service.json(&["access", "list"]).is_empty());
    for text in
        [service.log(), service.succeed(&["event", "list", "--json"]), service.succeed(&["status", "--json"])]
    {
        assert!(!text.contains("nobody knows"), "a secret has leaked: {text}");
    }
}

#[test]
fn host_groups_are_on_access_lists() {
    let service = Service::serving();
    let [one, two] = ["iqn.2026-11.example:one", "iqn.2026-11.example:two"];
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    let (code, text) = service.refuse(&["access", "allow", "data", "group:esx"]);
    assert!(code == 65 && text.contains("gemel access group list"), "{text}");
    service.succeed(&["access", "group", "change", "esx", "--add", one, two]);
    service.succeed(&["access", "allow", "data", "group:esx"]);
    service.succeed(&["access", "group", "change", "esx", "--remove", two]);
    let group = service.json(&["access", "group", "list"]).remove(0);
    assert_eq!((&group["name"], &group["initiators"]), (&"esx".into(), &serde_json::json!([one])));
    assert_eq!(group["volumes"], serde_json::json!(["data"]));
    assert_eq!(service.json(&["access", "list", "data"]).remove(0)["initiator"], "group:esx");
    let (code, text) = service.refuse(&["access", "group", "remove", "esx"]);
    assert!(code == 65 && text.contains("gemel access deny data group:esx"), "{text}");
    let (code, text) = service.refuse(&["access", "group", "change", "esx", "--add", "host1"]);
    assert!(code == 65 && text.contains("iqn."), "{text}");
    service.succeed(&["access", "deny", "data", "group:esx"]);
    service.succeed(&["access", "group", "remove", "esx"]);
    let (code, text) = service.refuse(&["access", "group", "remove", "esx"]);
    assert!(code == 65 && text.contains("no host group esx"), "{text}");
    assert!(service.json(&["access", "group", "list"]).is_empty());
}

#[test]
fn a_secret_can_come_through_standard_input() {
    let service = Service::serving();
    let mut command = service.gemel_command(&["access", "chap", "set", "iqn.2026-11.example:host"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"long enough for CHAP\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
}

#[test]
fn events_are_listed_and_followed() {
    let service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    let events = service.json(&["event", "list"]);
    let kinds: Vec<_> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"node-started") && kinds.contains(&"volume-created"), "{kinds:?}");
    let numbers: Vec<_> = events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!(service.json(&["event", "list", "--limit", "1"]).len(), 1);

    let mut follower = service.gemel_command(&["event", "follow", "--limit", "0", "--json"]);
    let mut follower = follower.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // Events come only after the follower is connected, so they go on until one is seen.
    let (seen, first) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || seen.send(lines.next().unwrap().unwrap()));
    let mut line = None;
    service::wait_until("an event is followed", || {
        service.succeed(&["access", "allow", "data", "*"]);
        service.succeed(&["access", "deny", "data", "*"]);
        line = first.try_recv().ok();
        line.is_some()
    });
    let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
    assert!(event["kind"].as_str().unwrap().starts_with("access-"), "{event}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    reading.join().unwrap().unwrap();
}

#[test]
fn a_failed_disk_degrades_the_pool_and_the_exit_code_says_so() {
    let service = Service::serving();
    let disks = service.json(&["disk", "list"]);
    let id = disks[1]["id"].as_str().unwrap();
    let failed = service.json(&["disk", "fail", id]).remove(0);
    assert_eq!((&failed["id"], &failed["state"]), (&id.into(), &"failed".into()));
    let output = service.gemel(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["health"], &status["pools"][0]["state"]), (&"degraded".into(), &"degraded".into()));
    assert!(!status["attention"][0]["action"].as_str().unwrap().is_empty());
    let other = disks[2]["path"].as_str().unwrap();
    let (code, text) = service.refuse(&["disk", "fail", other]);
    assert!(code == 65 && text.contains("no redundancy"), "{text}");
    assert_eq!(service.json(&["pool", "show"])[0]["disks"][2]["state"], "ok");
}

#[test]
fn figures_are_served_to_this_machine() {
    let service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    let (status, body) = service.page("/metrics");
    assert!(status.contains("200"), "{status}");
    for metric in [
        "gemel_volume_read_bytes_total{volume=\"data\"} 0",
        "gemel_volume_write_latency_seconds_count{volume=\"data\"} 0",
        "gemel_pool_online 1",
        "gemel_iscsi_sessions 0",
    ] {
        assert!(body.contains(metric), "{metric} is missing in\n{body}");
    }
    assert!(service.page("/health").1.contains("\"ok\""));
    // Everything else takes TLS, and somebody who has signed in: tests/console.rs.
    assert!(service.page("/").0.contains("308"));
    let disk = service.json(&["disk", "list"])[0]["id"].as_str().unwrap().to_owned();
    service.gemel(&["disk", "fail", &disk]);
    assert!(service.page("/health").1.contains("degraded"));
}
