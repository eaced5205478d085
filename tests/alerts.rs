//! Alerts of real nodes to a real mail server and to a webhook: tests, matters that begin and end, a silent node.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/demo/mod.rs"]
mod demo;
#[path = "support/pair/mod.rs"]
mod pair;
#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pair::Pair;
use serde_json::Value;
use service::{Service, wait_until};

/// A mail server that prints what it is given; mail goes in by STARTTLS only.
struct MailServer {
    process: Child,
    port: u16,
    printed: std::path::PathBuf,
}

impl MailServer {
    fn start(folder: &Path) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let (certificate_file, key_file) = (folder.join("mail.pem"), folder.join("mail.key"));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let port = ports::free_port();
        let printed = folder.join("mails");
        // Debian's own interpreter is the one that has the module.
        let process = Command::new("/usr/bin/python3")
            .args(["-u", "-m", "aiosmtpd", "-n", "-l", &format!("127.0.0.1:{port}")])
            .arg("--tlscert")
            .arg(&certificate_file)
            .arg("--tlskey")
            .arg(&key_file)
            .args(["-c", "aiosmtpd.handlers.Debugging", "stdout"])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&printed).unwrap())
            .spawn()
            .unwrap();
        wait_until("the mail server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { process, port, printed }
    }

    fn mails(&self) -> String {
        std::fs::read_to_string(&self.printed).unwrap()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Takes what is posted to it.
#[derive(Clone)]
struct Webhook {
    url: String,
    status: Arc<AtomicU16>,
    posted: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Webhook {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        let webhook = Self { url, status: Arc::new(AtomicU16::new(204)), posted: Arc::default() };
        let taking = webhook.clone();
        // It ends with the test's process.
        std::thread::spawn(move || listener.incoming().for_each(|stream| taking.take(stream.unwrap())));
        webhook
    }

    fn take(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        self.posted.lock().unwrap().push((head, serde_json::from_slice(&body).unwrap()));
        let status = self.status.load(Ordering::Relaxed);
        let answer = format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        // Whoever has given up does not read it.
        let _ = reader.get_mut().write_all(answer.as_bytes());
    }

    fn bodies(&self) -> Vec<Value> {
        self.posted.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

#[test]
fn mail_and_webhooks_arrive_or_it_is_said_why_not() {
    let place = tempfile::tempdir().unwrap();
    let mail = MailServer::start(place.path());
    let webhook = Webhook::start();
    let mut node = Service::new(4);
    node.environment.push(("SSL_CERT_FILE".into(), place.path().join("mail.pem").display().to_string()));
    node.format();
    node.start();
    let server = format!("localhost:{}", mail.port);
    let add = ["alert", "add", "mail", "--server", &server, "--from", "gemel@example.org"];
    let to = ["--to", "one@example.org,two@example.org"];
    assert!(node.succeed(&[&add[..], &to[..]].concat()).contains("gemel alert test mail"));
    assert!(node.succeed(&["alert", "test"]).contains("delivered"));
    let mails = mail.mails();
    for part in
        ["Subject: [gemel test] test: alerts arrive here", "one@example.org, two@example.org", "node a"]
    {
        assert!(mails.contains(part), "{part} in {mails}");
    }
    // A name that its certificate does not have.
    let wrong = format!("127.0.0.1:{}", mail.port);
    node.succeed(
        &[&["alert", "add", "mail", "--server", &wrong, "--from", "gemel@example.org"][..], &to[..]].concat(),
    );
    let output = node.gemel(&["alert", "test", "mail"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains("FAILED: the mail server 127.0.0.1"), "{text}");
    node.succeed(&["alert", "remove", "mail"]);

    let token = place.path().join("token");
    std::fs::write(&token, "a token\n").unwrap();
    let token = token.display().to_string();
    node.succeed(&[
        "alert",
        "add",
        "webhook",
        "--url",
        &webhook.url,
        "--token-file",
        &token,
        "--name",
        "pager",
    ]);
    node.succeed(&["alert", "test", "pager"]);
    let (head, body) = webhook.posted.lock().unwrap()[0].clone();
    assert!(head.to_ascii_lowercase().contains("authorization: bearer a token"), "{head}");
    assert_eq!((body["cluster"].as_str(), body["severity"].as_str()), (Some("test"), Some("info")));
    webhook.status.store(500, Ordering::Relaxed);
    let output = node.gemel(&["alert", "test"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(65) && text.contains("answered 500"), "{text}");
    let listed = &node.json(&["alert", "list"])[0];
    assert_eq!((&listed["name"], &listed["webhook"]["url"]), (&"pager".into(), &webhook.url.as_str().into()));
    assert!(!listed.to_string().contains("a token"), "{listed}");

    for (arguments, reason) in [
        (&["alert", "remove", "mail"][..], "there is no alert mail"),
        (&["alert", "test", "mail"], "there is no alert mail"),
        (&["alert", "add", "webhook", "--url", "ftp://x"], "http:// or https://"),
        (&["alert", "add", "webhook", "--url", "http://x", "--summary", "7"], "HH:MM"),
    ] {
        let (code, said) = node.refuse(arguments);
        assert!(code >= 64 && said.contains(reason), "{said}");
    }
}

/// Waits longer than other tests do: what lasts half a minute is told.
fn wait_for(what: &str, posted: impl Fn() -> bool) {
    let started = Instant::now();
    while !posted() {
        assert!(started.elapsed() < Duration::from_secs(100), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_silent_node_is_told_by_the_other_one_once_and_so_is_the_end() {
    let pair = Pair::start();
    let webhook = Webhook::start();
    let added = pair.gemel("a", &["alert", "add", "webhook", "--url", &webhook.url]);
    assert!(added.status.success(), "{}", service::errors(&added));
    wait_until("b knows of it", || !pair.gemel("b", &["alert", "list"]).stdout.is_empty());
    pair.kill("a");
    let items = |news: &str| {
        let bodies = webhook.bodies();
        let items = bodies.iter().flat_map(|body| body["items"].as_array().unwrap().clone());
        items.filter(|item| item["news"] == news).collect::<Vec<_>>()
    };
    let is_told =
        |news, kind: &str| items(news).iter().any(|item| item["kind"] == kind && item["about"] == "a");
    wait_for("the loss is told", || {
        is_told("begun", "member-unreachable") && is_told("begun", "not-redundant")
    });
    let text = webhook.bodies()[0]["text"].as_str().unwrap().to_owned();
    assert!(
        text.contains("What to do: start node a") && text.contains("What is safe: Node b is alone"),
        "{text}"
    );
    assert!(webhook.bodies().iter().all(|body| body["node"] == "b"), "{:?}", webhook.bodies());
    pair.restart("a");
    wait_for("the end is told", || is_told("over", "member-unreachable") && is_told("over", "not-redundant"));
    assert_eq!(items("begun").len(), 2, "{:?}", items("begun"));
    pair.demo.interrupt();
}
