//! `gemel support bundle` of a real node: it has what a helper needs, and nothing that is secret.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::process::Command;

use service::Service;

const SECRETS: [&str; 5] = [
    "a CHAP secret of mine",
    "the other CHAP secret",
    "password of a user",
    "token of a webhook",
    "password of a mail server",
];

/// A file with a secret in its first line.
fn file(service: &Service, secret: &str) -> String {
    let path = service.folder.path().join(secret.replace(' ', "-"));
    std::fs::write(&path, format!("{secret}\n")).unwrap();
    path.display().to_string()
}

#[test]
fn a_bundle_has_what_a_helper_needs_and_no_secrets() {
    let service = Service::serving();
    let [chap, mutual, password, token, mail] = SECRETS.map(|secret| file(&service, secret));
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    service.succeed(&["access", "allow", "data", "iqn.2026-01.org:host"]);
    let set =
        ["access", "chap", "set", "iqn.2026-01.org:host", "--secret-file", &chap, "--mutual-user", "us"];
    service.succeed(&[&set[..], &["--mutual-secret-file", &mutual]].concat());
    service.succeed(&["user", "add", "anne", "--role", "viewer", "--password-file", &password]);
    let link = service.json(&["user", "add", "bob", "--role", "viewer", "--link"])[0]["link"]
        .as_str()
        .unwrap()
        .to_owned();
    let api =
        service.json(&["user", "token", "create", "anne", "x"])[0]["token"].as_str().unwrap().to_owned();
    service.succeed(&["alert", "add", "webhook", "--url", "http://127.0.0.1:1/", "--token-file", &token]);
    let add = [
        "alert",
        "add",
        "mail",
        "--server",
        "127.0.0.1:1",
        "--from",
        "a@example.org",
        "--to",
        "b@example.org",
    ];
    service.succeed(&[&add[..], &["--user", "gemel", "--password-file", &mail]].concat());

    let archive = service.folder.path().join("bundle.tar.gz").display().to_string();
    let made = service.json(&["support", "bundle", &archive]).remove(0);
    assert!(made["parts"].as_array().unwrap().len() > 8, "{made}");
    let place = service.folder.path().join("unpacked");
    std::fs::create_dir(&place).unwrap();
    assert!(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&place).status().unwrap().success());
    let folder = std::fs::read_dir(&place).unwrap().next().unwrap().unwrap().path();
    let mut all = String::new();
    for part in std::fs::read_dir(&folder).unwrap() {
        let path = part.unwrap().path();
        all +=
            &format!("== {}\n{}\n", path.display(), String::from_utf8_lossy(&std::fs::read(&path).unwrap()));
    }
    for part in [
        "iqn.2026-11.io.gemel:test:data",
        "iqn.2026-01.org:host",
        "volume-created",
        "\"anne\"",
        "example.org",
    ] {
        assert!(all.contains(part), "{part} is not in it");
    }
    let key = link.split("key=").nth(1).unwrap();
    for secret in SECRETS.iter().copied().chain([key, &api, &api[api.len() - 20..], "$argon2"]) {
        assert!(!all.contains(secret), "{secret} is in it");
    }
    assert_eq!(std::fs::metadata(&archive).map(|file| file.len() > 500).ok(), Some(true));

    // A node that does not answer is no reason for no bundle.
    let mut service = service;
    service.end("-KILL");
    let other = service.folder.path().join("other.tar.gz").display().to_string();
    let made = service.json(&["support", "bundle", &other]).remove(0);
    assert!(made["missing"].as_array().unwrap().contains(&"cluster".into()), "{made}");
}
