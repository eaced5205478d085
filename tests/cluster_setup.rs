//! A cluster set up by `gemel cluster init` and `join` on three machines, and managed over the network; and everybody who
//! must not get in.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/initiator/mod.rs"]
mod initiator;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;
#[path = "support/site/mod.rs"]
mod site;

use std::time::Duration;

use bytes::Bytes;
use gemel::cluster::quorum::SeatKind;
use gemel::iscsi::initiator::LoginSettings;
use gemel::peer::authority::AuthorityKey;
use gemel::peer::joining::token::{JoinToken, Secret};
use gemel::peer::messages::control_frame::Content;
use gemel::peer::messages::peer_client::PeerClient;
use gemel::peer::messages::{ControlFrame, Hello, SeatKind as WireKind};
use gemel::peer::tls::Keys;
use gemel::rpc::management::GetStatusRequest;
use gemel::rpc::management::management_client::ManagementClient;
use initiator::Session;
use serde_json::Value;
use service::{errors, wait_until};
use site::{Site, gemel, is_secret, refused, succeed, token_of};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

#[test]
fn three_machines_become_a_cluster_that_hosts_use_and_either_node_manages() {
    let mut site = Site::whole();
    for secret in
        ["a/admin.pem", "a/tls/ca.key", "a/tls/node.key", "b/tls/node.key", "b/tls/ca.key", "w/tls/node.key"]
    {
        assert!(is_secret(&site.folder.path().join(secret)), "{secret}");
    }
    assert!(
        is_secret(&site.file("a", "gemeld.sock")) && is_secret(&site.file("a", "state/join-tokens.json"))
    );
    assert!(!site.file("w", "tls/ca.key").exists(), "the witness gets no authority");

    // Everything from either node, whichever has to do it; and over the network as on the machine.
    let create = |node: &str, name: &str, primary: &str, more: &[&str]| {
        let arguments = [&["volume", "create", name, "--size", "16M", "--primary", primary], more].concat();
        succeed(site.administer(node, &arguments));
    };
    create("b", "mirrored", "a", &[]);
    create("a", "there", "b", &["--local"]);
    for node in ["a", "b"] {
        let volumes = succeed(site.administer(node, &["volume", "list", "--json"]));
        let primaries: Vec<Value> = volumes.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&primaries[0]["primary"], &primaries[1]["primary"]), (&"a".into(), &"b".into()));
        assert_eq!(
            succeed(site.gemel(node, &["disk", "list", "--json"])).lines().count(),
            6,
            "of both nodes"
        );
    }
    succeed(site.administer("b", &["volume", "resize", "mirrored", "--size", "32M"]));
    succeed(site.administer("a", &["volume", "resize", "there", "--size", "32M"]));
    succeed(site.gemel("a", &["volume", "delete", "there"]));
    succeed(site.gemel("b", &["access", "allow", "mirrored", "*"]));
    write_and_read(&site, "a");

    let in_sync = || succeed(site.gemel("b", &["volume", "show", "mirrored", "--json"])).contains("in-sync");
    wait_until("both have it", in_sync);
    succeed(site.administer("b", &["volume", "move", "mirrored", "--to", "b"]));
    write_and_read(&site, "b");

    // The first endpoint that answers is used.
    site.kill("a");
    wait_until("the other one goes on", || site.administer("a,b", &["status"]).status.code() == Some(1));
    refused(&site.administer("a", &["status"]), 69, "cannot reach");
    site.start("a");
    site.wait_until_all_vote();
}

fn write_and_read(site: &Site, node: &str) {
    let portal = format!("{}:3260", site.address(node)).parse().unwrap();
    let settings = LoginSettings::normal("iqn.2026-11.io.gemel:host", "iqn.2026-11.io.gemel:main:mirrored");
    let mut session = Session::open(portal, settings).unwrap();
    let data = Bytes::from(node.repeat(4096));
    wait_until("it is written", || session.write(0, 8, data.clone()).unwrap().is_good());
    assert_eq!(session.read(0, 8, 8).unwrap().data, data);
}

#[test]
fn a_token_is_for_one_machine_one_role_and_one_cluster() {
    let mut site = Site::new();
    let made = site.init();
    let again =
        gemel(&[&["cluster", "init", "main", "--name", "a", "--single"][..], &options(&site)].concat());
    refused(&again, 65, "nothing is overwritten");
    let token: JoinToken = token_of(&made, "b").parse().unwrap();
    let join = |machine: &str, token: &JoinToken| {
        site.join(machine, &token.to_string(), token.kind == SeatKind::Witness)
    };
    refused(&join("b", &token), 69, "systemctl status gemeld");
    assert!(!site.file("b", "gemeld.toml").exists());
    site.start("a");
    site.wait_for("a");
    let join = |machine: &str, token: &JoinToken| {
        site.join(machine, &token.to_string(), token.kind == SeatKind::Witness)
    };

    let other_authority = JoinToken { authority: AuthorityKey([9; 32]), ..token.clone() };
    refused(&join("b", &other_authority), 65, "does not belong to the cluster");
    let other_site = Site::new();
    let foreign: JoinToken = token_of(&other_site.init(), "b").parse().unwrap();
    let foreign = JoinToken { addresses: token.addresses.clone(), ..foreign };
    refused(&join("b", &foreign), 65, "does not belong to the cluster");
    let other_role = JoinToken { kind: SeatKind::Witness, ..token.clone() };
    refused(&join("x", &other_role), 65, "for node b: it does not fit witness b");
    let other_name = JoinToken { name: "c".parse().unwrap(), ..token.clone() };
    refused(&join("b", &other_name), 65, "for node b: it does not fit node c");
    let for_witness = token_of(&made, "w");
    refused(&site.join("b", &for_witness, false), 64, "has no disks");
    let as_witness = gemel(&["cluster", "join", &token.to_string(), "--witness"]);
    refused(&as_witness, 64, "for node b, not for the witness");
    refused(&site.join("b", &for_witness[..60], false), 64, "damaged");

    succeed(join("b", &token));
    refused(&join("b", &token), 65, "member already");
    // As if it had been interrupted after it was answered: the same machine may ask again, another one may not.
    std::fs::remove_file(site.file("b", "gemeld.toml")).unwrap();
    std::fs::write(site.file("b", ".gemel-cluster-setup"), "").unwrap();
    succeed(join("b", &token));
    refused(&join("x", &token), 65, "was used already");

    let new_token = |arguments: &[&str]| -> JoinToken {
        let text = succeed(site.gemel("a", &[&["cluster", "token"], arguments, &["--json"]].concat()));
        let token: Value = serde_json::from_str(&text).unwrap();
        token["token"].as_str().unwrap().parse().unwrap()
    };
    let expiring = new_token(&["b", "--valid", "1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    refused(&join("x", &expiring), 65, "has expired: make another one");
    let newest = new_token(&["b"]);
    refused(&join("x", &expiring), 65, "not known here");
    succeed(join("x", &newest));
    refused(&site.gemel("a", &["cluster", "token", "c"]), 65, "names no other member c");

    let guess = JoinToken { secret: Secret([7; 16]), ..token };
    for _ in 0..4 {
        refused(&join("y", &guess), 65, "not known here");
    }
    refused(&join("y", &guess), 65, "too many wrong");
    let events = succeed(site.gemel("a", &["event", "list", "--json"]));
    assert!(events.contains("member-joined") && events.contains("join-refused"), "{events}");
    assert!(!events.contains("gemel-join") && !site.log("a").contains("gemel-join"), "a token has leaked");
}

fn options(site: &Site) -> Vec<&'static str> {
    let dir: &'static str = Box::leak(site.dir("a").display().to_string().into_boxed_str());
    let disk: &'static str =
        Box::leak(site.folder.path().join("disks-a/disk-0").display().to_string().into_boxed_str());
    vec!["--dir", dir, "--disk", disk]
}

#[test]
fn nobody_manages_or_joins_the_quorum_without_a_certificate_for_that() {
    let mut site = Site::new();
    let made = site.init();
    site.start("a");
    site.wait_for("a");
    for machine in ["b", "w"] {
        succeed(site.join(machine, &token_of(&made, machine), machine == "w"));
    }
    succeed(site.administer("a", &["volume", "list"]));
    // Another administrator, and one whose identity was lost.
    let anne = site.folder.path().join("anne.pem");
    let file = anne.display().to_string();
    succeed(site.gemel("a", &["cluster", "administrator", "add", "anne", &file]));
    assert!(is_secret(&anne));
    refused(&site.gemel("a", &["cluster", "administrator", "add", "anne", &file]), 74, "File exists");
    let as_anne = |arguments: &[&str]| {
        gemel(&[&["--cluster", &site.address("a"), "--identity", &file], arguments].concat())
    };
    succeed(as_anne(&["volume", "list"]));
    succeed(as_anne(&["cluster", "administrator", "revoke", "admin"]));
    let revoked = site.administer("a", &["volume", "list"]);
    let said = String::from_utf8_lossy(&revoked.stderr).into_owned();
    assert!(!revoked.status.success() && said.contains("identity has been revoked"), "{said}");
    let again = site.gemel("a", &["cluster", "administrator", "add", "admin", &format!("{file}.2")]);
    refused(&again, 65, "give the new one another name");
    succeed(as_anne(&["volume", "list"]));
    let other = Site::new();
    other.init();
    let foreign = other.file("a", "admin.pem").display().to_string();
    let address = site.address("a");
    refused(&gemel(&["--cluster", &address, "--identity", &foreign, "status"]), 65, "not of the cluster");
    let key = site.file("a", "tls/node.key").display().to_string();
    refused(&gemel(&["--cluster", &address, "--identity", &key, "status"]), 64, "is not an identity");
    refused(&gemel(&["--cluster", &address, "status"]), 69, "this user has no node there");
    refused(&gemel(&["--cluster", "192.0.2.1", "status"]), 64, "--identity");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let uuid = made["uuid"].as_str().unwrap().to_owned().try_into().unwrap();
        let a = "a".parse().unwrap();
        let keys = |machine: &str| Keys::load(&site.file(machine, "tls"), uuid).unwrap();
        let guest = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(site.file("a", "tls/ca.pem")).unwrap()))
            .domain_name(format!("a.{uuid}.gemel"));
        let status = async |tls: Option<ClientTlsConfig>| {
            let channel = connect(&address, tls).await?;
            let answer = ManagementClient::new(channel).get_status(GetStatusRequest {}).await;
            answer.map(drop).map_err(|status| format!("{:?}: {}", status.code(), status.message()))
        };
        assert_eq!(status(Some(keys("b").client(&a))).await, Ok(()), "the other node passes commands on");
        let cases = [
            (Some(guest.clone()), "Unauthenticated: the caller has no certificate"),
            (Some(keys("w").client(&a)), "PermissionDenied: w is a witness"),
            (None, ""),
        ];
        for (tls, expected) in cases {
            let error = status(tls).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }

        let good = Hello {
            oldest_protocol_version: 1,
            protocol_version: 2,
            cluster_uuid: uuid.to_string(),
            name: "b".into(),
            member_id: 7,
            build: String::new(),
            kind: WireKind::Node.into(),
        };
        let greet = async |tls: ClientTlsConfig, hello: Hello| {
            let channel = connect(&address, Some(tls)).await.unwrap();
            let frame = ControlFrame { content: Some(Content::Hello(hello)) };
            let frames =
                futures::StreamExt::chain(futures::stream::iter([frame]), futures::stream::pending());
            let answer = PeerClient::new(channel).control(frames).await;
            answer.map(drop).map_err(|status| format!("{:?}: {}", status.code(), status.message()))
        };
        let b = || keys("b").client(&a);
        assert_eq!(greet(b(), good.clone()).await, Ok(()));
        let newer = Hello { protocol_version: 3, oldest_protocol_version: 3, ..good.clone() };
        let other_cluster = Hello { cluster_uuid: "0".repeat(32), ..good.clone() };
        let cases = [
            (b(), newer, "speaks version 3 of the control protocol"),
            (b(), other_cluster, "FailedPrecondition: b belongs to cluster 0000"),
            (keys("w").client(&a), good.clone(), "PermissionDenied: the caller's certificate is not"),
            (guest, good, "Unauthenticated: the caller has no certificate"),
        ];
        for (tls, hello, expected) in cases {
            let error = greet(tls, hello).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    });
}

async fn connect(address: &str, tls: Option<ClientTlsConfig>) -> Result<Channel, String> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}:3261")).unwrap();
    let endpoint = match tls {
        Some(tls) => endpoint.tls_config(tls).unwrap(),
        None => endpoint,
    };
    endpoint.timeout(Duration::from_secs(10)).connect().await.map_err(|error| error.to_string())
}

#[test]
fn a_cluster_that_is_lost_is_made_again_from_its_backup() {
    let mut site = Site::whole();
    for name in ["gone", "data"] {
        succeed(site.administer("a", &["volume", "create", name, "--size", "16M", "--primary", "b"]));
    }
    succeed(site.administer("b", &["volume", "delete", "gone"]));
    succeed(site.administer("a", &["access", "allow", "data", "iqn.2026-11.io.gemel:host"]));
    let facts = |site: &Site| {
        let text = succeed(site.administer("b", &["volume", "show", "data", "--json"]));
        let volume: Value = serde_json::from_str(&text).unwrap();
        let access = succeed(site.administer("b", &["access", "list", "--json"]));
        (volume["id"].clone(), volume["target"].clone(), volume["size_bytes"].clone(), access)
    };
    let before = facts(&site);
    let backup = site.folder.path().join("backup");
    let file = backup.display().to_string();
    succeed(site.administer("a", &["cluster", "backup", &file]));
    assert!(is_secret(&backup));
    refused(&site.administer("a", &["cluster", "backup", &file]), 74, "File exists");
    let identity = std::fs::read(site.file("a", "admin.pem")).unwrap();

    for machine in ["a", "b", "w"] {
        site.kill(machine);
        std::fs::remove_dir_all(site.dir(machine)).unwrap();
    }
    for machine in ["a", "b"] {
        std::fs::remove_dir_all(site.folder.path().join(format!("disks-{machine}"))).unwrap();
    }
    let restore = |name: &str| {
        let mut arguments = vec!["cluster", "restore", &file, "--name", name, "--json"];
        let local = site.local_options("b");
        arguments.extend(local.iter().map(String::as_str));
        gemel(&arguments)
    };
    refused(&restore("w"), 64, "--name is one of a, b");
    let made: Value = serde_json::from_str(&succeed(restore("b"))).unwrap();
    site.format("b");
    site.start("b");
    site.wait_for("b");
    for machine in ["a", "w"] {
        succeed(site.join(machine, &token_of(&made, machine), machine == "w"));
    }
    site.format("a");
    site.start("a");
    site.start("w");
    site.wait_until_all_vote();
    // The identity that the administrator has still is one.
    std::fs::write(site.file("a", "admin.pem"), identity).unwrap();
    assert_eq!(facts(&site), before);
    wait_until("it is served", || {
        succeed(site.gemel("a", &["volume", "show", "data", "--json"])).contains("in-sync")
    });
}

#[test]
fn a_machine_that_is_lost_is_replaced_by_a_new_one() {
    let mut site = Site::whole();
    succeed(site.administer("a", &["volume", "create", "data", "--size", "16M", "--primary", "b"]));
    refused(&site.administer("a", &["cluster", "token", "b"]), 65, "b is in service");
    // The first node is the one that is lost: the other one has the authority too.
    site.kill("a");
    std::fs::rename(site.dir("a"), site.folder.path().join("burnt")).unwrap();
    std::fs::rename(site.folder.path().join("disks-a"), site.folder.path().join("burnt-disks")).unwrap();
    let token = token_for(&site, "b", "a");
    succeed(site.join("a", &token, false));
    site.format("a");
    site.start("a");
    wait_until("it is replaced", || {
        let output = site.gemel("b", &["node", "replace", "a"]);
        assert!(output.status.code() == Some(65) || output.status.success(), "{}", errors(&output));
        output.status.success()
    });
    site.wait_until_all_vote();
    wait_until("it has everything", || {
        succeed(site.gemel("b", &["volume", "show", "data", "--json"])).contains("in-sync")
    });
}

/// Puts another machine in the place of one: what it has on its disks, too.
fn swap(site: &Site, machine: &str, put_aside: &str, take: Option<&str>) {
    let place =
        |name: &str| (site.folder.path().join(name), site.folder.path().join(format!("disks-{name}")));
    let moves = |from: &str, to: &str| {
        let ((from, from_disks), (to, to_disks)) = (place(from), place(to));
        std::fs::rename(from, to).unwrap();
        if from_disks.exists() {
            std::fs::rename(from_disks, to_disks).unwrap();
        }
    };
    moves(machine, put_aside);
    if let Some(take) = take {
        moves(take, machine);
    }
}

fn members(site: &Site, asked: &str) -> Vec<Value> {
    let text = succeed(site.gemel(asked, &["cluster", "show", "--json"]));
    let shown: Value = serde_json::from_str(&text).unwrap();
    shown["members"].as_array().unwrap().clone()
}

/// Why `asked` has no link to `member`; empty when it has one.
fn trouble(site: &Site, asked: &str, member: &str) -> String {
    let members = members(site, asked);
    let shown = members.iter().find(|shown| shown["name"] == member).unwrap();
    let is_reachable = shown["reachable"] == true;
    if is_reachable { String::new() } else { shown["reason"].as_str().unwrap().to_owned() }
}

/// The leader puts one member's key on record each second.
fn until_keys_are_known() {
    std::thread::sleep(Duration::from_secs(5));
}

/// A token for another machine in the place of a member that is gone, as soon as `asked` has noticed that it is.
fn token_for(site: &Site, asked: &str, member: &str) -> String {
    let mut text = String::new();
    wait_until("it is known to be gone", || {
        let output = site.gemel(asked, &["cluster", "token", member, "--json"]);
        let is_refused = output.status.code() == Some(65);
        assert!(
            output.status.success() || is_refused && errors(&output).contains("is in service"),
            "{output:?}"
        );
        text = String::from_utf8(output.stdout).unwrap();
        !is_refused
    });
    let token: Value = serde_json::from_str(&text).unwrap();
    token["token"].as_str().unwrap().to_owned()
}

#[test]
fn the_machine_that_was_replaced_is_refused_by_everybody() {
    const VOID: &str = "its certificate is void";
    let mut site = Site::whole();
    let uuid = uuid_of(&site);
    until_keys_are_known();
    site.kill("b");
    swap(&site, "b", "old", None);
    let token = token_for(&site, "a", "b");
    succeed(site.join("b", &token, false));
    site.format("b");
    site.start("b");
    wait_until("it is replaced", || site.gemel("a", &["node", "replace", "b"]).status.success());
    site.wait_until_all_vote();

    // The old one comes back where it was, with keys that were good.
    site.kill("b");
    swap(&site, "b", "new", Some("old"));
    site.start("b");
    site.wait_for("b");
    wait_until("both others refuse it", || {
        ["a", "w"].iter().all(|member| trouble(&site, "b", member).contains(VOID))
    });
    wait_until("and do not talk to it", || trouble(&site, "a", "b").contains(VOID));
    assert!(site.log("w").contains(VOID), "{}", site.log("w"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = runtime.block_on(async {
        let tls = Keys::load(&site.file("b", "tls"), uuid).unwrap().client(&"a".parse().unwrap());
        let channel = connect(&site.address("a"), Some(tls)).await.unwrap();
        ManagementClient::new(channel).get_status(GetStatusRequest {}).await
    });
    let refused = asked.unwrap_err();
    assert!(refused.code() == tonic::Code::Unauthenticated && refused.message().contains(VOID), "{refused}");

    site.kill("b");
    swap(&site, "b", "old", Some("new"));
    site.start("b");
    site.wait_until_all_vote();
}

fn uuid_of(site: &Site) -> gemel::cluster::state::ClusterUuid {
    let text = succeed(site.gemel("a", &["cluster", "show", "--json"]));
    let shown: Value = serde_json::from_str(&text).unwrap();
    shown["uuid"].as_str().unwrap().to_owned().try_into().unwrap()
}

#[test]
fn who_is_gone_for_good_is_removed_and_another_machine_takes_the_seat() {
    let mut site = Site::whole();
    succeed(site.administer("a", &["volume", "create", "data", "--size", "16M", "--primary", "b"]));
    let remove = |site: &Site, name: &str| site.gemel("a", &["cluster", "remove", name]);
    refused(&remove(&site, "b"), 65, "b is there");
    refused(&remove(&site, "a"), 65, "a is the node that is asked");
    refused(&remove(&site, "x"), 65, "no other member x");
    for (member, kind) in [("w", true), ("b", false)] {
        until_keys_are_known();
        site.kill(member);
        let mut last = String::new();
        wait_until("it can be removed", || {
            let output = remove(&site, member);
            last = errors(&output);
            output.status.success()
        });
        assert_eq!(members(&site, "a").iter().filter(|shown| shown["votes"] == true).count(), 2, "{last}");
        let text = succeed(site.gemel("a", &["event", "list", "--json"]));
        assert!(text.contains(&format!("{member} was removed")), "{text}");
        // As it was it does not come back.
        site.start(member);
        wait_until("it is refused", || trouble(&site, "a", member).contains("void"));
        site.kill(member);
        swap(&site, member, &format!("old-{member}"), None);
        let token = token_for(&site, "a", member);
        succeed(site.join(member, &token, kind));
        if !kind {
            site.format(member);
        }
        site.start(member);
        site.wait_until_all_vote();
    }
    wait_until("it has everything", || {
        succeed(site.gemel("a", &["volume", "show", "data", "--json"])).contains("in-sync")
    });
}
