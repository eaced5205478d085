//! The commands of `docs/install.md`, read from there and run: what the guide says works.
//!
//! Blocks that are marked with a machine are run in their order. Addresses, disks and folders are other ones here, services
//! are started without systemd, and a token is the one that was printed; nothing else is changed.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;
#[path = "support/site/mod.rs"]
mod site;

use std::collections::BTreeMap;

use bytes::Bytes;
use gemel::iscsi::initiator::LoginSettings;
use initiator::Session;
use service::{create_disk, wait_until};
use site::{Site, gemel, succeed};

const GUIDE: &str = include_str!("../docs/install.md");

#[test]
fn the_guide_leads_to_a_volume_in_use() {
    let mut site = Site::new();
    let mut tokens = BTreeMap::new();
    let mut run = 0;
    for (machine, command) in commands() {
        let words = translate(&site, &machine, &command, &tokens);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match &words[..] {
            ["gemel", "cluster", "init", ..] => {
                let printed = succeed(gemel(&words[1..]));
                let found = printed.split_whitespace().filter(|word| word.starts_with("gemel-join-1-"));
                tokens = ["b", "w"].into_iter().zip(found.map(str::to_owned)).collect();
                assert_eq!(tokens.len(), 2, "{printed}");
            }
            ["gemel", "cluster", "join", ..] => drop(succeed(gemel(&words[1..]))),
            ["gemel", "cluster", "show"] => {
                site.wait_until_all_vote();
                succeed(site.gemel(&machine, &words[1..]));
            }
            ["gemel", "--cluster", ..] => drop(succeed(gemel(&words[1..]))),
            ["gemel", ..] => drop(succeed(site.gemel(&machine, &words[1..]))),
            ["gemeld", "format"] => site.format(&machine),
            ["systemctl", "enable", "--now", "gemeld"] => {
                site.start(&machine);
                site.wait_for(&machine);
            }
            ["systemctl", "enable", "--now", "gemel-witness"] => site.start(&machine),
            _ => panic!("this test cannot run {command:?}"),
        }
        run += 1;
    }
    assert!(run >= 13, "only {run} commands were found");

    // The host of the guide uses the volume on the node that serves it.
    let shown = succeed(site.gemel("a", &["volume", "show", "vmstore", "--json"]));
    let volume: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let portal = format!("{}:3260", site.address(volume["primary"].as_str().unwrap())).parse().unwrap();
    let settings =
        LoginSettings::normal("iqn.1993-08.org.debian:01:host1", volume["target"].as_str().unwrap());
    let mut session = Session::open(portal, settings).unwrap();
    let data = Bytes::from(vec![7; 4096]);
    wait_until("it is written", || session.write(0, 8, data.clone()).unwrap().is_good());
    assert_eq!(session.read(0, 8, 8).unwrap().data, data);
    let mut stranger =
        LoginSettings::normal("iqn.1993-08.org.debian:01:host2", volume["target"].as_str().unwrap());
    stranger.isid = gemel::iscsi::pdu::Isid([0x80, 0, 0, 0, 0, 9]);
    assert!(Session::open(portal, stranger).is_err(), "only who is allowed");
}

/// The commands of the guide's marked blocks, with the machine that they are for.
fn commands() -> Vec<(String, String)> {
    let mut commands = Vec::new();
    let mut machine = None;
    for line in GUIDE.lines() {
        match line.strip_prefix("```") {
            Some(info) => machine = info.strip_prefix("sh ").map(str::to_owned),
            None => commands.extend(machine.clone().map(|machine| (machine, line.to_owned()))),
        }
    }
    commands
}

fn translate(site: &Site, machine: &str, command: &str, tokens: &BTreeMap<&str, String>) -> Vec<String> {
    let mut command = command.to_owned();
    for (node, number) in [("a", 1), ("b", 2), ("w", 3)] {
        let (address, second) = (site.address(node), site.second_address(node));
        command = command.replace(&format!("192.0.2.{number}"), &address);
        command = command.replace(&format!("198.51.100.{number}"), &second);
    }
    let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    for word in &mut words {
        if let Some(name) = word.strip_prefix("/dev/disk/by-id/") {
            let disk = site.folder.path().join(name);
            create_disk(&disk, 256 << 20);
            *word = disk.display().to_string();
        } else if word.starts_with("gemel-join-1-") {
            word.clone_from(&tokens[machine]);
        } else if word == "admin.pem" {
            *word = site.file("a", "admin.pem").display().to_string();
        } else if word == "main.backup" {
            *word = site.folder.path().join("main.backup").display().to_string();
        }
    }
    if words.starts_with(&["gemel".into(), "cluster".into()]) && ["init", "join"].contains(&words[2].as_str())
    {
        words.extend(["--dir".to_owned(), site.dir(machine).display().to_string()]);
        if machine != "w" {
            let address = site.address(machine);
            words.extend(["--portal".to_owned(), format!("{address}:3260")]);
            words.extend(["--console".to_owned(), format!("{address}:3262")]);
        }
    }
    words
}
