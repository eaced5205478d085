//! A small HTTPS client for the console's tests: it trusts one certificate, and keeps the session's cookie.

#![allow(dead_code)] // each test binary uses a part

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A browser without a screen.
#[derive(Clone)]
pub struct Web {
    pub address: SocketAddr,
    config: Arc<ClientConfig>,
    /// What is sent with every request besides.
    pub headers: Vec<(String, String)>,
    pub cookie: Option<String>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Web {
    /// Looks at the console at `address`, which has this certificate.
    pub fn new(address: SocketAddr, certificate: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        Self { address, config, headers: Vec::new(), cookie: None }
    }

    /// The same, as a script with this token.
    pub fn script(&self, token: &str) -> Self {
        let headers = vec![("Authorization".to_owned(), format!("Bearer {token}"))];
        Self { headers, cookie: None, ..self.clone() }
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, None)
    }

    /// A form.
    pub fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.ask("POST", path, Some(("application/x-www-form-urlencoded", &body)))
    }

    /// A form of a page, with what every one of its forms has.
    pub fn act(&mut self, page: &str, call: &str, fields: &[(&str, &str)]) -> Answer {
        let key = self.form_key(page);
        let fields = [&[("form_key", key.as_str()), ("back", page)][..], fields].concat();
        self.post(&format!("/act/{call}"), &fields)
    }

    /// What the next page says of the last act.
    pub fn notice(&mut self, page: &str) -> String {
        let body = self.get(page).body;
        let start = body.find("class=\"notice").unwrap_or_else(|| panic!("no notice in {body}"));
        let text = &body[start..];
        let text = &text[text.find('>').unwrap() + 1..];
        text[..text.find("</p>").unwrap()].replace("&amp;", "&")
    }

    pub fn form_key(&mut self, page: &str) -> String {
        let body = self.get(page).body;
        value_after(&body, "name=\"form_key\" value=\"")
    }

    /// Signs in, and demands that it works.
    pub fn sign_in(&mut self, name: &str, password: &str) {
        let answer = self.post("/login", &[("name", name), ("password", password), ("next", "/")]);
        assert_eq!(answer.status, 303, "{answer:?}");
    }

    pub fn json(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> (u16, serde_json::Value) {
        let body = body.map(ToString::to_string);
        let answer = self.ask(method, path, body.as_deref().map(|body| ("application/json", body)));
        let value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("no JSON: {answer:?}"));
        (answer.status, value)
    }

    pub fn ask(&mut self, method: &str, path: &str, body: Option<(&str, &str)>) -> Answer {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let name = ServerName::from(self.address.ip());
        let mut stream = StreamOwned::new(ClientConnection::new(self.config.clone(), name).unwrap(), stream);
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in &self.headers {
            request += &format!("{name}: {value}\r\n");
        }
        if let Some(cookie) = &self.cookie {
            request += &format!("Cookie: {cookie}\r\n");
        }
        let body = body.map_or(String::new(), |(kind, body)| {
            request += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
            body.to_owned()
        });
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
        let mut text = Vec::new();
        // Who closes without a word (no close_notify) has said everything all the same.
        let read = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{read:?} {text}"));
        for line in head.lines() {
            let cookie = line.to_ascii_lowercase().starts_with("set-cookie: __host-gemel=");
            if cookie {
                let value = line.split_once(": ").unwrap().1.split(';').next().unwrap();
                self.cookie = Some(value.to_owned());
            }
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            joined(body)
        } else {
            body.to_owned()
        };
        Answer { status, head: head.to_owned(), body }
    }
}

/// The text in a page up to the next quotation mark.
pub fn value_after(body: &str, before: &str) -> String {
    let start = body.find(before).unwrap_or_else(|| panic!("no {before} in {body}")) + before.len();
    body[start..].split('"').next().unwrap().to_owned()
}

/// A body that was sent in chunks.
fn joined(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        text += &rest[..length];
        body = &rest[(length + 2).min(rest.len())..];
        if length == 0 {
            break;
        }
    }
    text
}
