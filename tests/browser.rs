//! The console in a real browser, against a real pair: the first visit, the daily acts, what is dangerous, a telephone,
//! the keyboard, no scripts, and whether those who see badly can use it. Pictures are kept in target/screenshots.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/browser/mod.rs"]
mod browser;
#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use browser::Browser;
use pair::Pair;
use serde_json::Value;
use service::wait_until;

const PASSWORD: &str = "correct horse battery";
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const PAGES: [&str; 10] = [
    "/",
    "/volumes",
    "/volumes/demo",
    "/hosts",
    "/disks",
    "/nodes",
    "/events",
    "/alerts",
    "/users",
    "/account",
];

/// Somebody at the console of node a.
struct Visit {
    browser: Browser,
    site: String,
}

impl Visit {
    fn goto(&self, page: &str) {
        self.browser.goto(&format!("{}{page}", self.site));
    }

    /// Does what a form of `page` does, whose call is `call`, with a field of this name and value where there are several;
    /// gives what is said of it.
    fn act(&self, page: &str, (call, with): (&str, Option<(&str, &str)>), fields: &[(&str, &str)]) -> String {
        self.goto(page);
        let with = with.map(|(name, value)| format!("[.//*[@name='{name}'][@value='{value}']]"));
        self.submit(&format!("//form[@action='/act/{call}']{}", with.unwrap_or_default()), fields)
    }

    /// Fills a form of this page, and sends it.
    fn submit(&self, form: &str, fields: &[(&str, &str)]) -> String {
        // What is folded away is unfolded as people do.
        let summary = format!("{form}/ancestor::details[1]/summary");
        if self.browser.try_find(&summary).is_some() {
            self.browser.click(&summary);
        }
        for (name, value) in fields {
            let field = format!("{form}//*[@name='{name}']");
            if self.browser.try_find(&format!("{form}//select[@name='{name}']")).is_some() {
                self.browser.choose(&field, value);
            } else if *value == "on" {
                self.browser.click(&field);
            } else {
                self.browser.fill(&field, value);
            }
        }
        self.browser.click(&format!("{form}//button"));
        self.browser.text_of(&self.browser.find(".notice"))
    }

    fn sign_in(&self, name: &str) {
        self.goto("/login");
        self.browser.fill("[name=name]", name);
        self.browser.fill("[name=password]", PASSWORD);
        self.browser.click("main button");
        self.browser.find("nav");
    }

    /// Sets a password by a link.
    fn welcome(&self, link: &str) {
        self.browser.goto(link);
        self.browser.fill("[name=password]", PASSWORD);
        self.browser.fill("[name=again]", PASSWORD);
        self.browser.click("main button");
        self.browser.find(".answers");
    }

    fn check_accessibility(&self, page: &str) {
        self.goto(page);
        self.browser.find("main");
        // What is folded away counts too.
        self.browser.script("document.querySelectorAll('details').forEach((part) => { part.open = true; });");
        let problems = self.browser.script(include_str!("support/browser/accessibility.js"));
        assert_eq!(problems, Value::Array(vec![]), "{page}: {problems:#}");
    }
}

fn volume(pair: &Pair, name: &str) -> Value {
    pair.ask("a", &["volume", "show", name])
}

#[test]
fn the_console_does_what_is_done_daily() {
    let pair = Pair::start();
    wait_until("the volume is in sync", || volume(&pair, "demo")["state"] == "in-sync");
    let link = pair.demo.fact("sign in");
    let site = link.split("/welcome").next().unwrap().to_owned();
    let visit = Visit { browser: Browser::start(true), site };
    let browser = &visit.browser;
    visit.welcome(&link);
    visit.goto("/");
    let text = browser.text();
    for part in ["Is my data safe?", "Yes, with full redundancy.", "Yes, every volume."] {
        assert!(text.contains(part), "{text}");
    }
    let timing = "const [page] = performance.getEntriesByType('navigation'); return page.loadEventEnd - page.startTime;";
    wait_until("the page is there", || browser.script(timing).as_f64() > Some(0.0));
    println!("first page: {} ms", browser.script(timing));
    browser.keep_screenshot("status");

    volumes(&pair, &visit);
    nodes_and_disks(&pair, &visit);
    people(&pair, &visit);
    for page in PAGES {
        visit.check_accessibility(page);
    }
    telephone_and_keyboard(&pair, &visit);
    without_scripts(&pair, &visit.site);

    // A node that is lost is seen at once, and the page shows so by itself.
    visit.goto("/");
    browser.find(".answer.good");
    pair.kill(if visit.site.contains("127.0.0.1") { "b" } else { "a" });
    wait_until("the page says so", || browser.text().contains("Yes, but some of it on one node only."));
    browser.keep_screenshot("one-node");
    pair.demo.interrupt();
}

fn volumes(pair: &Pair, visit: &Visit) {
    let create = [("name", "office"), ("size_bytes", "32M")];
    assert_eq!(visit.act("/volumes", ("create_volume", None), &create), "Done.");
    wait_until("it is in sync", || volume(pair, "office")["state"] == "in-sync");
    visit.browser.keep_screenshot("volumes");
    let again = visit.act("/volumes", ("create_volume", None), &create);
    assert!(again.contains("office exists already"), "{again}");
    let page = "/volumes/office";
    assert_eq!(visit.act(page, ("allow_access", None), &[("initiator", "iqn.2026-01.org:host")]), "Done.");
    assert_eq!(visit.act(page, ("create_snapshot", None), &[("name", "monday")]), "Done.");
    let schedule = [("schedule.every_seconds", "1h"), ("schedule.keep", "24")];
    assert_eq!(visit.act(page, ("set_snapshot_schedule", None), &schedule), "Done.");
    assert_eq!(volume(pair, "office")["snapshot_schedule"]["keep"], 24);
    assert_eq!(visit.act(page, ("resize_volume", None), &[("size_bytes", "64M")]), "Done.");
    let from = volume(pair, "office")["primary"].as_str().unwrap().to_owned();
    let to = if from == "a" { "b" } else { "a" };
    assert_eq!(visit.act(page, ("move_volume", None), &[("to", to)]), "Done.");
    assert_eq!(volume(pair, "office")["primary"], to);
    visit.goto(page);
    let text = visit.browser.text();
    for part in ["iqn.2026-01.org:host", "monday", "64M", "iqn.2026-11.io.gemel:demo:office LUN 0"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    visit.browser.keep_screenshot("volume");
    let monday = ("roll_back_snapshot", Some(("name", "monday")));
    let refused = visit.act(page, monday, &[("confirm", "monday")]);
    assert!(refused.contains("office has to be typed back"), "{refused}");
    assert_eq!(visit.act(page, monday, &[("confirm", "office")]), "Done.");
    assert!(visit.browser.text().contains("before-rollback-"));
    let secret = [
        ("initiator", "iqn.2026-01.org:host"),
        ("incoming.user", "host"),
        ("incoming.secret", "a long secret it is"),
    ];
    assert_eq!(visit.act("/hosts", ("set_chap", None), &secret), "Done.");
    visit.browser.keep_screenshot("hosts");
    assert_eq!(visit.act(page, ("deny_access", None), &[("confirm", "office")]), "Done.");

    // What is dangerous says so, and wants the name.
    visit.goto(page);
    visit.browser.click("details:has(form[action='/act/delete_volume']) > summary");
    assert!(visit.browser.text().contains("are destroyed, on both nodes, for good"));
    visit.browser.keep_screenshot("delete");
    let refused = visit.act(page, ("delete_volume", None), &[("confirm", "demo")]);
    assert!(refused.contains("office has to be typed back"), "{refused}");
    let monday = ("delete_snapshot", Some(("name", "monday")));
    wait_until("the rollback is done", || visit.act(page, monday, &[("confirm", "monday")]) == "Done.");
    assert_eq!(visit.act(page, ("delete_volume", None), &[("confirm", "office")]), "Done.");
    assert!(visit.browser.url().ends_with("/volumes") && !visit.browser.text().contains("office"));
}

fn nodes_and_disks(pair: &Pair, visit: &Visit) {
    let other = if visit.site.contains("127.0.0.1") { "b" } else { "a" };
    let of = Some(("node", other));
    assert_eq!(visit.act("/nodes", ("set_maintenance", of), &[]), "Done.");
    assert!(visit.browser.text().contains("maintenance"));
    visit.browser.keep_screenshot("nodes");
    assert_eq!(visit.act("/nodes", ("set_maintenance", of), &[]), "Done.");

    let spare = pair.dir.join("spare.img");
    service::create_disk(&spare, 256 << 20);
    let spare = spare.display().to_string();
    assert_eq!(visit.act("/disks", ("change_spare", of), &[("path", &spare)]), "Done.");
    assert_eq!(visit.act("/disks", ("control_scrub", of), &[]), "Done.");
    assert_eq!(visit.act("/disks", ("set_rebuild_priority", of), &[("priority", "high")]), "Done.");
    let disks = pair.gemel(other, &["disk", "list"]).stdout;
    let disks: Vec<Value> =
        String::from_utf8(disks).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let disk = disks.iter().find(|disk| disk["node"] == other && disk["state"] == "ok").unwrap();
    let id = disk["id"].as_str().unwrap();
    assert_eq!(visit.act("/disks", ("fail_disk", Some(("disk", id))), &[("confirm", id)]), "Done.");
    visit.browser.keep_screenshot("disks");
    // The spare takes its place by itself.
    wait_until("the spare is in service", || {
        let pool = pair.ask(other, &["pool", "show"]);
        pool["state"] == "ok"
            && pool["disks"]
                .as_array()
                .unwrap()
                .iter()
                .any(|disk| disk["path"] == *spare && disk["state"] == "ok")
    });
}

fn people(pair: &Pair, visit: &Visit) {
    let hook = [("alert.name", "pager"), ("alert.webhook.url", "http://127.0.0.1:1/hook")];
    visit.goto("/alerts");
    assert_eq!(
        visit.submit("//form[@action='/act/set_alert'][.//*[@name='alert.webhook.url']]", &hook),
        "Done."
    );
    let tested = visit.act("/alerts", ("test_alerts", Some(("name", "pager"))), &[]);
    assert!(tested.starts_with("pager: ") && !tested.contains("delivered"), "{tested}");
    visit.browser.keep_screenshot("alerts");
    assert_eq!(visit.act("/alerts", ("remove_alert", Some(("name", "pager"))), &[]), "Done.");
    let token = visit.act("/account", ("create_api_token", None), &[("name", "script")]);
    assert!(token.starts_with("Shown only now: gemel_admin_script_"), "{token}");
    let added = visit.act("/users", ("add_user", None), &[("name", "vera"), ("role", "viewer")]);
    let link = added.strip_prefix("Shown only now: ").unwrap().to_owned();
    visit.browser.keep_screenshot("users");
    visit.goto("/events?search=audit+vera");
    assert!(
        visit
            .browser
            .text()
            .contains("admin (administrator, console, 127.0.0.1): user add vera --role viewer: done")
    );
    visit.browser.keep_screenshot("events");

    visit.browser.click(".corner button");
    visit.browser.find("[name=password]");
    visit.browser.keep_screenshot("login");
    visit.welcome(&link);
    visit.goto("/volumes/demo");
    assert!(visit.browser.try_find("form.act").is_none(), "{}", visit.browser.source());
    assert!(visit.browser.try_find("nav a[href='/users']").is_none());
    visit.browser.click(".corner button");
    visit.browser.find("[name=password]");
    visit.sign_in("admin");
    let users = String::from_utf8(pair.gemel("a", &["user", "list"]).stdout).unwrap();
    assert!(users.contains("\"admin\"") && users.contains("\"vera\""), "{users}");
}

fn telephone_and_keyboard(pair: &Pair, visit: &Visit) {
    let browser = &visit.browser;
    browser.resize(500, 800); // Chromium has no narrower windows
    for page in PAGES {
        visit.goto(&format!("{page}?lang=fr"));
        browser.find("main");
        let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;";
        assert_eq!(browser.script(overflow), 0, "{page} is too wide for a telephone");
        assert!(browser.text().contains("Se déconnecter"));
    }
    visit.goto("/?lang=fr");
    browser.keep_screenshot("telephone");
    visit.goto("/volumes?lang=en");
    browser.resize(1200, 900);
    // From the address line to a new volume without a mouse.
    let focus = "const at = document.activeElement; return at.name || at.className || at.tagName;";
    let tab_to = |wanted: &str| {
        for _ in 0..60 {
            browser.press(TAB);
            if browser.script(focus) == wanted {
                return;
            }
        }
        panic!("{wanted} is not reached by Tab");
    };
    browser.press(TAB);
    assert_eq!(browser.script(focus), "skip");
    tab_to("SUMMARY");
    browser.press(ENTER);
    tab_to("name");
    browser.press("keys");
    browser.press(TAB);
    browser.press("32M");
    browser.press(ENTER);
    wait_until("it is there", || pair.gemel("a", &["volume", "show", "keys"]).status.success());
    assert_eq!(volume(pair, "keys")["size_bytes"], 32 << 20);
}

fn without_scripts(pair: &Pair, site: &str) {
    let visit = Visit { browser: Browser::start(false), site: site.to_owned() };
    visit.sign_in("admin");
    assert!(visit.browser.text().contains("Is my data safe?"));
    assert_eq!(visit.act("/volumes/keys", ("delete_volume", None), &[("confirm", "keys")]), "Done.");
    assert!(!pair.gemel("a", &["volume", "show", "keys"]).status.success());
}
