//! The guided first set-up in a real browser: `gemel setup` on two servers and a witness, from nothing to an administrator who has
//! signed in to the console. Services are started by the test instead of systemd. Pictures are kept in target/screenshots.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/browser/mod.rs"]
mod browser;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;
#[path = "support/site/mod.rs"]
mod site;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use browser::Browser;
use serde_json::Value;
use service::wait_until;
use site::Site;

const PASSWORD: &str = "correct horse battery";

/// `gemel setup` on a machine.
struct Guide {
    process: Child,
    /// What it prints; open as long as it runs, as a terminal is.
    _printed: BufReader<ChildStderr>,
    link: String,
    /// Is made when the service is to be started.
    wanted: PathBuf,
}

impl Guide {
    fn start(site: &Site, machine: &str) -> Self {
        let wanted = site.folder.path().join(format!("start-{machine}"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_gemel"), "setup"]);
        command.args(["--listen", &format!("{}:3264", site.address(machine))]);
        command.arg("--start").arg(format!("touch {}", wanted.display()));
        match machine {
            "w" => command.arg("--dir").arg(site.dir("w")),
            _ => command.args(site.local_options(machine)),
        };
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut printed = BufReader::new(process.stderr.take().unwrap());
        let mut lines = printed.by_ref().lines().map(|line| line.unwrap().trim().to_owned());
        let link = lines.find(|line| line.starts_with("https://")).unwrap();
        Self { process, _printed: printed, link, wanted }
    }

    fn address(&self) -> &str {
        self.link.split("?code=").next().unwrap()
    }

    fn ends_by_itself(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some_and(|status| status.success())
    }
}

impl Drop for Guide {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_for_text(browser: &Browser, text: &str) {
    wait_until(text, || browser.source().contains(text));
}

fn confirm(browser: &Browser, action: &str, name: &str) {
    browser.fill(&format!("form[action='{action}'] [name=confirm]"), name);
    browser.click(&format!("form[action='{action}']:has([name=confirm]) button"));
}

fn check_accessibility(browser: &Browser) {
    browser.script("document.querySelectorAll('details').forEach((part) => { part.open = true; });");
    let problems = browser.script(include_str!("support/browser/accessibility.js"));
    assert_eq!(problems, Value::Array(vec![]), "{}: {problems:#}", browser.url());
}

#[test]
fn three_machines_are_set_up_in_a_browser() {
    let mut site = Site::new();
    let browser = Browser::start(true);
    let mut first = Guide::start(&site, "a");

    // Who has no link sees nothing.
    browser.goto(first.address());
    assert!(browser.text().contains("open the link that"), "{}", browser.text());
    browser.goto(&first.link);
    browser.find("[name=cluster]");
    assert!(!browser.url().contains("code"), "the code is in no address: {}", browser.url());
    check_accessibility(&browser);

    // What is wrong is said, and what was filled in stays.
    browser.goto(first.address());
    let pair = "//form[input[@name='kind'][@value='pair']]";
    let field = |name: &str| format!("{pair}//input[@name='{name}']");
    browser.fill(&field("cluster"), "site");
    browser.fill(&field("peer_address"), "b.example");
    browser.fill(&field("witness_address"), &site.address("w"));
    browser.click(&format!("{pair}//button"));
    wait_for_text(&browser, "is not an IP address");
    assert!(browser.source().contains("value=\"site\""), "{}", browser.source());
    browser.fill(&field("peer_address"), &site.address("b"));
    browser.click(&format!("{pair}//button"));
    wait_for_text(&browser, "choose those of the pool");
    for number in 1..=3 {
        browser.click(&format!("{pair}//fieldset/label[{number}]/input"));
    }
    browser.keep_screenshot("setup-1-wish");
    browser.click(&format!("{pair}//button"));
    wait_for_text(&browser, "This will be done");
    check_accessibility(&browser);
    browser.keep_screenshot("setup-2-review");
    confirm(&browser, "/go", "b");
    wait_for_text(&browser, "The name does not match");
    assert!(!site.file("a", "gemeld.toml").exists(), "nothing was done");
    browser.click(&format!("{pair}//button"));
    confirm(&browser, "/go", "a");
    wait_until("the first service is wanted", || first.wanted.exists());
    site.start("a");
    wait_for_text(&browser, "Now the other machines");
    browser.keep_screenshot("setup-3-tokens");
    let token = |name: &str| browser.text_of(&browser.find(&format!("#token-{name}")));
    let tokens = [token("b"), token("w")];

    // The second server has a disk that was used before: it is taken only when that is confirmed.
    let mut second = Guide::start(&site, "b");
    let used = site.folder.path().join("disks-b/disk-1");
    let disk = std::fs::File::options().write(true).open(used).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, b"somebody's data", 0).unwrap();
    let third = Guide::start(&site, "w");
    let others = Browser::start(false);
    let join = "//form[input[@name='kind'][@value='join']]";
    for (guide, token, disks) in [(&second, &tokens[0], 3), (&third, &tokens[1], 0)] {
        others.goto(&guide.link);
        others.click(&format!("{join}/ancestor::details/summary"));
        others.fill(&format!("{join}//input[@name='token']"), token);
        for number in 1..=disks {
            others.click(&format!("{join}//fieldset/label[{number}]/input"));
        }
        others.click(&format!("{join}//button"));
        confirm(&others, "/go", if disks == 3 { "b" } else { "w" });
        if disks == 3 {
            wait_for_text(&others, "Lose what is on the disks");
            assert!(!guide.wanted.exists());
            others.keep_screenshot("setup-4-used-disk");
            confirm(&others, "/again", "a");
            wait_for_text(&others, "The name does not match");
            assert!(!guide.wanted.exists(), "another name confirms nothing");
            confirm(&others, "/again", "b");
        }
        wait_until("the service is wanted", || guide.wanted.exists());
    }
    // A witness has nothing to wait for.
    wait_for_text(&others, "This machine is set up");
    site.start("b");
    site.start("w");

    wait_for_text(&browser, "first user of the console");
    browser.fill("[name=user]", "anne");
    browser.click("form[action='/user'] button");
    wait_for_text(&browser, "Set a password and open the console");
    browser.keep_screenshot("setup-5-over");
    browser.click("#console");
    browser.fill("[name=password]", PASSWORD);
    browser.fill("[name=again]", PASSWORD);
    browser.click("main button");
    browser.find(".answers");
    assert!(browser.text().contains("site"), "{}", browser.text());
    wait_until("the first guide is over", || first.ends_by_itself());

    others.goto(second.address());
    others.find("main");
    wait_for_text(&others, "This machine is set up");
    wait_until("the second guide is over", || second.ends_by_itself());
    site.wait_until_all_vote();

    // A machine that has been set up is not set up again.
    let again = Guide::start(&site, "b");
    others.goto(&again.link);
    others.click(&format!("{join}/ancestor::details/summary"));
    others.fill(&format!("{join}//input[@name='token']"), &tokens[0]);
    (1..=3).for_each(|number| others.click(&format!("{join}//fieldset/label[{number}]/input")));
    others.click(&format!("{join}//button"));
    confirm(&others, "/go", "b");
    wait_for_text(&others, "this machine is a member already");
    drop(again);
    let status = site.gemel("b", &["status"]).status.code();
    assert_eq!(status, Some(0));
}
