//! A real Chromium without a screen, driven by Debian's chromedriver over the WebDriver protocol (W3C Recommendation),
//! which is JSON over HTTP: what is needed of it takes no more than this.

#![allow(dead_code)] // each test binary uses a part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long a page may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Key of an element's identity (WebDriver section 12.1).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

/// An element of the page.
#[derive(Clone, Debug)]
pub struct Element(String);

impl Browser {
    /// Starts one; without scripts where that is to be shown.
    pub fn start(has_scripts: bool) -> Self {
        let port = super::ports::free_port();
        let profile = tempfile::tempdir().unwrap();
        // It dies with the test, and the browser with it.
        let driver = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "chromedriver", &format!("--port={port}"), "--log-level=SEVERE"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("chromedriver cannot be started ({error}): scripts/prerequisites.sh test")
            });
        let mut browser = Self { driver, port, session: String::new(), _profile: profile };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < LIMIT, "chromedriver does not listen: scripts/prerequisites.sh test");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut arguments = vec![
            "--headless=new".to_owned(),
            // The tests may run as root in a container without a large /dev/shm.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--window-size=1200,900".to_owned(),
            "--lang=en".to_owned(),
        ];
        arguments.push(format!("--user-data-dir={}", browser._profile.path().display()));
        let setting = if has_scripts { 1 } else { 2 };
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {
                "binary": "/usr/bin/chromium",
                "args": arguments,
                "prefs": { "profile.managed_default_content_settings.javascript": setting },
            },
        } } });
        browser.session = browser.ask("POST", "/session", &wanted)["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    pub fn goto(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url }));
    }

    pub fn url(&self) -> String {
        self.command("GET", "/url", &Value::Null).as_str().unwrap().to_owned()
    }

    pub fn title(&self) -> String {
        self.command("GET", "/title", &Value::Null).as_str().unwrap().to_owned()
    }

    /// The text that is shown.
    pub fn text(&self) -> String {
        self.text_of(&self.find("body"))
    }

    /// The element by its place: a CSS selector, or an XPath, which begins with a slash.
    pub fn try_find(&self, css: &str) -> Option<Element> {
        let using = if css.starts_with('/') { "xpath" } else { "css selector" };
        let found = self.command("POST", "/elements", &json!({ "using": using, "value": css }));
        found[0][ELEMENT].as_str().map(|id| Element(id.to_owned()))
    }

    /// The element, as soon as it is there.
    pub fn find(&self, css: &str) -> Element {
        let began = Instant::now();
        loop {
            if let Some(element) = self.try_find(css) {
                return element;
            }
            assert!(began.elapsed() < LIMIT, "no {css} at {}:\n{}", self.url(), self.source());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn text_of(&self, element: &Element) -> String {
        let path = format!("/element/{}/text", element.0);
        self.command("GET", &path, &Value::Null).as_str().unwrap().to_owned()
    }

    pub fn click(&self, css: &str) {
        let element = self.find(css);
        self.command("POST", &format!("/element/{}/click", element.0), &json!({}));
    }

    /// Types text where `css` is, in place of what was there.
    pub fn fill(&self, css: &str, text: &str) {
        let element = self.find(css);
        self.command("POST", &format!("/element/{}/clear", element.0), &json!({}));
        self.command("POST", &format!("/element/{}/value", element.0), &json!({ "text": text }));
    }

    /// Chooses a value of a list.
    pub fn choose(&self, css: &str, value: &str) {
        match css.starts_with('/') {
            true => self.click(&format!("{css}/option[@value='{value}']")),
            false => self.click(&format!("{css} option[value={value:?}]")),
        }
    }

    /// Presses keys, wherever the focus is.
    pub fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                let key = key.to_string();
                [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
            })
            .collect();
        let keyboard = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] });
        self.command("POST", "/actions", &keyboard);
    }

    pub fn script(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    pub fn resize(&self, width: u32, height: u32) {
        self.command("POST", "/window/rect", &json!({ "width": width, "height": height }));
    }

    /// A picture of the page, kept as output of the build.
    pub fn keep_screenshot(&self, name: &str) {
        use base64::Engine;
        let encoded = self.command("GET", "/screenshot", &Value::Null);
        let picture = base64::engine::general_purpose::STANDARD.decode(encoded.as_str().unwrap()).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        let path: PathBuf = folder.join(format!("{name}.png"));
        std::fs::write(path, picture).unwrap();
    }

    pub fn source(&self) -> String {
        self.command("GET", "/source", &Value::Null).as_str().unwrap_or_default().to_owned()
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.ask(method, &format!("/session/{}{path}", self.session), body)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(2 * LIMIT)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "{method} {path}: no answer");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{method} {path} {body}: {}", value["message"]);
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            self.ask("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        // Asked, so that it takes the browser with it.
        let _ = Command::new("kill").args(["-TERM", &self.driver.id().to_string()]).status();
        let _ = self.driver.wait();
    }
}
