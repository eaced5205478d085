//! The console and the REST API of a real node: who gets in, what each role may do, what is noted, what is refused.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;
#[path = "support/web/mod.rs"]
mod web;

use std::net::SocketAddr;

use serde_json::{Value, json};
use service::Service;
use web::Web;

const PASSWORD: &str = "correct horse battery";
const PAGES: [&str; 9] =
    ["/", "/volumes", "/hosts", "/disks", "/nodes", "/events", "/alerts", "/users", "/account"];

fn web(service: &Service) -> Web {
    let address = SocketAddr::from(([127, 0, 0, 1], service.console));
    Web::new(address, &service.state_dir().join("console.pem"))
}

/// A user whose password is [`PASSWORD`].
fn add_user(service: &Service, name: &str, role: &str) {
    let file = service.folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let file = file.display().to_string();
    service.succeed(&["user", "add", name, "--role", role, "--password-file", &file]);
}

fn signed_in(service: &Service, role: &str) -> Web {
    add_user(service, role, role);
    let mut web = web(service);
    web.sign_in(role, PASSWORD);
    web
}

fn audit(service: &Service) -> Vec<String> {
    let events = service.json(&["event", "list", "--limit", "1000"]);
    let audits = events.iter().filter(|event| event["kind"] == "audit");
    audits.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn nobody_sees_anything_before_he_has_signed_in() {
    let service = Service::serving();
    let mut web = web(&service);
    for page in PAGES {
        let answer = web.get(page);
        assert_eq!(answer.status, 303, "{page}: {answer:?}");
        assert!(answer.head.contains("/login?next=%2F"), "{}", answer.head);
    }
    assert_eq!(web.get("/?part=main").status, 401);
    let login = web.get("/login");
    assert!(login.body.contains("gemel user add NAME --role administrator"), "{}", login.body);
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "no-store"]
    {
        assert!(login.head.contains(header), "{}", login.head);
    }
    assert_eq!(web.json("GET", "/api/v1/status", None).0, 401);
    assert_eq!(web.json("POST", "/api/v1/volumes", Some(&json!({ "name": "x" }))).0, 401);
    assert_eq!(web.script("gemel_anne_x_00").json("GET", "/api/v1/status", None).0, 401);
    assert_eq!(web.post("/act/delete_volume", &[("name", "x")]).status, 401);
    // Figures are for this machine, also without TLS; nothing else is.
    assert_eq!(web.get("/metrics").status, 200);
    let (head, _) = service.page("/volumes");
    assert!(head.contains("308"), "{head}");
}

#[test]
fn the_first_user_comes_by_a_link_and_a_wrong_one_is_slowed_down() {
    let service = Service::serving();
    let made = service.json(&["user", "add", "anne", "--role", "administrator", "--link"]).remove(0);
    let link = made["link"].as_str().unwrap().to_owned();
    assert_eq!(made["consoles"][0], format!("https://127.0.0.1:{}", service.console));
    let mut browser = web(&service);
    let page = browser.get(&link);
    assert!(page.status == 200 && page.body.contains("value=\"anne\""), "{page:?}");
    let key = link.split("key=").nth(1).unwrap();
    let fields = |password, again| [("user", "anne"), ("key", key), ("password", password), ("again", again)];
    assert!(browser.post("/welcome", &fields(PASSWORD, "another one")).body.contains("not the same"));
    assert!(browser.post("/welcome", &fields("short", "short")).body.contains("10 to 256 characters"));
    assert_eq!(browser.post("/welcome", &fields(PASSWORD, PASSWORD)).status, 303);
    assert!(browser.get("/").body.contains("Is my data safe?"));
    let again = web(&service).post("/welcome", &fields(PASSWORD, PASSWORD));
    assert!(again.status == 403 && again.body.contains("not good any more"), "{again:?}");

    let mut other = web(&service);
    let wrong = other.post("/login", &[("name", "anne"), ("password", "wrong password")]);
    assert!(wrong.status == 403 && wrong.body.contains("is wrong"), "{wrong:?}");
    other.sign_in("anne", PASSWORD);
    let attempts: Vec<u16> = (0..12)
        .map(|_| web(&service).post("/login", &[("name", "bob"), ("password", PASSWORD)]).status)
        .collect();
    assert!(attempts[0] == 403 && attempts[11] == 429, "{attempts:?}");
    // Who is in stays in; who is in too often is let in again later.
    assert_eq!(other.get("/volumes").status, 200);
    let refused = other.post("/login", &[("name", "anne"), ("password", PASSWORD)]);
    assert!(refused.status == 429 && refused.head.contains("retry-after: "), "{refused:?}");

    // Nothing that is secret is written anywhere.
    let said = format!("{}{}", service.succeed(&["event", "list", "--limit", "1000"]), service.log());
    assert!(said.contains("sign-in-refused") && said.contains("anne set a password by a link"), "{said}");
    assert!(!said.contains(PASSWORD) && !said.contains(key) && !said.contains("argon2"), "{said}");
}

#[test]
fn each_role_does_what_it_may_and_everything_is_noted() {
    let service = Service::serving();
    let (mut viewer, mut operator) = (signed_in(&service, "viewer"), signed_in(&service, "operator"));
    let mut administrator = signed_in(&service, "administrator");
    let create = [("name", "data"), ("size_bytes", "64M")];
    assert!(!viewer.get("/volumes").body.contains("/act/create_volume"));
    assert_eq!(viewer.act("/volumes", "create_volume", &create).status, 303);
    let notice = viewer.notice("/volumes");
    assert!(notice.contains("takes the role operator, and viewer is viewer"), "{notice}");
    operator.act("/volumes", "create_volume", &create);
    assert_eq!(operator.notice("/volumes"), "Done.");
    assert_eq!(service.json(&["volume", "show", "data"])[0]["size_bytes"], 64 << 20);
    operator.act(
        "/volumes/data",
        "allow_access",
        &[("volume", "data"), ("initiator", "iqn.2026-01.org:host")],
    );
    let set = [
        ("initiator", "iqn.2026-01.org:host"),
        ("incoming.user", "host"),
        ("incoming.secret", "very secret indeed"),
    ];
    operator.act("/hosts", "set_chap", &set);
    operator.act("/volumes/data", "create_snapshot", &[("volume", "data"), ("name", "before")]);
    assert_eq!(operator.notice("/volumes/data"), "Done.");
    let page = operator.get("/volumes/data").body;
    assert!(page.contains("iqn.2026-01.org:host") && page.contains("before"), "{page}");
    assert!(!page.contains("/act/delete_volume"), "{page}");
    let shrink = [("name", "data"), ("size_bytes", "32M"), ("shrink", "on"), ("confirm", "data")];
    operator.act("/volumes/data", "resize_volume", &shrink);
    assert!(operator.notice("/volumes/data").contains("takes the role administrator"));
    operator.act("/volumes/data", "resize_volume", &[("name", "data"), ("size_bytes", "128M")]);
    assert_eq!(operator.notice("/volumes/data"), "Done.");

    // What is dangerous is typed back.
    let delete = |confirm| [("name", "data"), ("force", "on"), ("confirm", confirm)];
    administrator.act("/volumes/data", "delete_volume", &delete("dat"));
    assert!(administrator.notice("/volumes/data").contains("data has to be typed back"));
    administrator.act("/volumes/data", "delete_volume", &delete("data"));
    assert_eq!(administrator.notice("/volumes"), "Done.");
    service.succeed(&["volume", "create", "other", "--size", "64M"]);

    let notes = audit(&service);
    let has =
        |start: &str, end: &str| notes.iter().any(|note| note.starts_with(start) && note.ends_with(end));
    assert!(has(
        "viewer (viewer, console, 127.0.0.1): volume create data --size 64M: refused: ",
        "viewer is viewer"
    ));
    assert!(has("operator (operator, console, 127.0.0.1): volume create data --size 64M: done", ""));
    assert!(has("operator (operator, console, 127.0.0.1): access chap set iqn.2026-01.org:host: done", ""));
    assert!(has("administrator (administrator, console, 127.0.0.1): volume delete data --force: done", ""));
    assert!(
        has("root (administrator, command line, this machine): volume create other --size 64M: done", ""),
        "{notes:#?}"
    );
    assert!(!notes.iter().any(|note| note.contains("very secret")), "{notes:#?}");
    let found = administrator.get("/events?search=audit+OTHER").body;
    assert!(found.contains("volume create other") && !found.contains("volume delete data"), "{found}");
    // Who is removed is out at once.
    service.succeed(&["user", "remove", "operator"]);
    assert_eq!(operator.get("/volumes").status, 303);
    assert_eq!(viewer.get("/users").status, 403);
}

#[test]
fn no_other_site_sends_a_form() {
    let service = Service::serving();
    let mut web = signed_in(&service, "administrator");
    let fields = [("name", "data"), ("size_bytes", "64M")];
    assert_eq!(web.post("/act/create_volume", &fields).status, 403, "without the form's key");
    let key = web.form_key("/volumes");
    let with_key = [&fields[..], &[("form_key", &*key)]].concat();
    for header in [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        web.headers = vec![(header.0.to_owned(), header.1.to_owned())];
        assert_eq!(web.post("/act/create_volume", &with_key).status, 403, "{header:?}");
        let sign_in = web.post("/login", &[("name", "administrator"), ("password", PASSWORD)]);
        assert_eq!(sign_in.status, 403, "{header:?}");
    }
    web.headers.clear();
    assert_eq!(
        web.json("POST", "/api/v1/volumes", Some(&json!({ "name": "data" }))).0,
        401,
        "a cookie is no token"
    );
    assert_eq!(web.json("GET", "/api/v1/volumes", None).0, 200);
    assert!(service.json(&["volume", "list"]).is_empty());
    assert_eq!(web.post("/act/create_volume", &with_key).status, 303);
    assert_eq!(service.json(&["volume", "list"]).len(), 1);
    // The session ends where the browser says so, and another one cannot be made up.
    let cookie = web.cookie.clone();
    assert_eq!(web.post("/logout", &[("form_key", &key)]).status, 303);
    web.cookie = cookie;
    assert_eq!(web.get("/volumes").status, 303);
    web.cookie = Some(format!("__Host-gemel={}", "0".repeat(64)));
    assert_eq!(web.get("/volumes").status, 303);
}

#[test]
fn scripts_use_tokens_and_get_what_the_command_line_gets() {
    let service = Service::serving();
    add_user(&service, "anne", "administrator");
    let made = |arguments: &[&str]| -> String {
        let arguments = [&["user", "token", "create", "anne"], arguments].concat();
        service.json(&arguments)[0]["token"].as_str().unwrap().to_owned()
    };
    let mut operator = web(&service).script(&made(&["op", "--role", "operator"]));
    let mut administrator = web(&service).script(&made(&["all"]));
    let body = json!({ "name": "data", "size_bytes": 64 << 20 });
    let (status, volume) = operator.json("POST", "/api/v1/volumes", Some(&body));
    assert_eq!((status, &volume["state"]), (200, &json!("in-sync")));
    let (status, shown) = operator.json("GET", "/api/v1/volumes/data", None);
    assert_eq!(status, 200);
    let told: Value = service.json(&["volume", "show", "data"]).remove(0);
    assert_eq!(shown["target"], told["target"]);
    assert_eq!(operator.json("POST", "/api/v1/volumes", Some(&body)).0, 409, "there is one");
    let (status, refusal) = operator.json("DELETE", "/api/v1/volumes/data", None);
    assert!(status == 403 && refusal["error"].as_str().unwrap().contains("anne/op is operator"), "{refusal}");
    let (status, refusal) = operator.json("POST", "/api/v1/volumes/data/resize", Some(&json!({ "sise": 1 })));
    assert!(status == 400 && refusal["error"].as_str().unwrap().contains("sise"), "{refusal}");
    assert_eq!(operator.json("GET", "/api/v1/volumes/none", None).0, 404);
    assert_eq!(operator.json("PUT", "/api/v1/volumes", None).0, 405);
    let access = "/api/v1/volumes/data/access/iqn.2026-01.org%3Ahost";
    assert_eq!(operator.json("PUT", access, None).0, 200);
    let (_, listed) = operator.json("GET", "/api/v1/access?volume=data", None);
    assert_eq!(listed["entries"][0]["initiator"], "iqn.2026-01.org:host");
    assert_eq!(administrator.json("DELETE", "/api/v1/volumes/data?force=true", None).0, 200);
    let (_, events) = administrator.json("GET", "/api/v1/events?search=volume-deleted", None);
    assert_eq!(events["events"].as_array().unwrap().len(), 1, "{events}");
    let (status, document) = administrator.json("GET", "/api/v1/openapi.json", None);
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    // No more than the user, and not longer than wanted.
    service.succeed(&["user", "role", "anne", "viewer"]);
    assert_eq!(administrator.json("POST", "/api/v1/volumes", Some(&body)).0, 403);
    service.succeed(&["user", "token", "remove", "anne", "op"]);
    assert_eq!(operator.json("GET", "/api/v1/status", None).0, 401);
    let (code, text) = service.refuse(&["user", "token", "create", "anne", "more", "--role", "operator"]);
    assert!(code == 65 && text.contains("anne is viewer"), "{text}");
    let mut short = web(&service).script(&made(&["short", "--valid", "1s"]));
    service::wait_until("the token is too old", || short.json("GET", "/api/v1/status", None).0 == 401);
}

#[test]
fn pages_are_whole_in_both_languages_and_need_nothing_from_elsewhere() {
    let mut service = Service::serving();
    service.succeed(&["volume", "create", "data", "--size", "64M"]);
    let mut web = signed_in(&service, "administrator");
    for page in PAGES.iter().chain(&["/volumes/data"]) {
        let english = web.get(page);
        assert_eq!(english.status, 200, "{page}: {english:?}");
        for address in ["http://", "https://", "src=\"//"] {
            let body = english.body.replace("https://…", "");
            assert!(!body.contains(address), "{address} in {page}: {body}");
        }
        assert!(english.body.contains("<html lang=\"en\">"));
        let french = web.get(&format!("{page}?lang=fr"));
        assert!(
            french.body.contains("<html lang=\"fr\">") && french.body.contains("Se déconnecter"),
            "{page}"
        );
        assert!(french.head.contains("gemel-lang=fr"), "{}", french.head);
    }
    let first = web.get("/").body;
    assert!(first.contains("iqn.2026-11.io.gemel:test:data") && first.contains("Yes, with full redundancy."));
    let part = web.get("/?part=main").body;
    assert!(part.starts_with("<div class=\"answers\">") && !part.contains("<html"), "{part}");
    assert_eq!(web.get("/volumes/none").status, 404);
    assert_eq!(web.get("/nothing").status, 404);
    let disk = service.json(&["disk", "list"])[0]["id"].as_str().unwrap().to_owned();
    web.act("/disks", "fail_disk", &[("disk", &disk), ("confirm", &disk)]);
    assert_eq!(web.notice("/disks"), "Done.");
    let body = web.get("/").body;
    assert!(body.contains("Yes, but a pool has lost a disk.") && body.contains("Yes: see below."), "{body}");

    // Figures may be closed to everybody who has no token.
    service.extra = "open_metrics = \"nobody\"\n".into();
    service.configure();
    service.end("-TERM");
    service.start();
    let mut web = self::web(&service);
    assert_eq!((web.get("/metrics").status, web.get("/health").status), (401, 401));
    assert!(service.page("/metrics").0.contains("308"));
    let token = service.json(&["user", "token", "create", "administrator", "prometheus", "--role", "viewer"]);
    let mut prometheus = web.script(token[0]["token"].as_str().unwrap());
    assert!(prometheus.get("/metrics").body.contains("gemel_pool_online 1"));
}
