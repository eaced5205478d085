//! Events to syslog (RFC 5424), for sites that collect what happens in one place.
//!
//! Each event is a message: its kind is the message's identity, its facts are structured data. What somebody did
//! (`audit`, signing in) has the facility `authpriv`, everything else `daemon`. A receiver that cannot be reached costs
//! nothing but its messages; the event log has them all.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram};

use super::event_log::{Event, EventLog, Severity};

/// Where events go: `udp:ADDRESS:PORT`, `tcp:ADDRESS:PORT`, or the path of a socket such as `/dev/log`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Receiver {
    /// By datagrams (RFC 5426).
    Udp(SocketAddr),
    /// By a stream with counted messages (RFC 6587 section 3.4.1).
    Tcp(SocketAddr),
    /// On this machine.
    Local(PathBuf),
}

impl TryFrom<String> for Receiver {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is no receiver: write udp:ADDRESS:PORT, tcp:ADDRESS:PORT or a path such as /dev/log"
            )
        };
        match text.split_once(':') {
            Some(("udp", address)) => address.parse().map(Self::Udp).map_err(|_| bad()),
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| bad()),
            _ if text.starts_with('/') => Ok(Self::Local(PathBuf::from(text))),
            _ => Err(bad()),
        }
    }
}

/// Sends every event from now on, for ever.
pub async fn run(log: EventLog, node: String, receivers: Vec<Receiver>) {
    let mut newest = log.newest();
    let mut sent = *newest.borrow_and_update();
    let mut senders: Vec<Sender> = receivers.into_iter().map(Sender::new).collect();
    while newest.changed().await.is_ok() {
        newest.borrow_and_update();
        for event in log.after(sent, usize::MAX) {
            sent = event.sequence;
            let text = message(&event, &node, std::process::id());
            for sender in &mut senders {
                sender.send(&text).await;
            }
        }
    }
}

/// The way to a receiver.
struct Sender {
    receiver: Receiver,
    stream: Option<TcpStream>,
    is_lost: bool,
}

impl Sender {
    fn new(receiver: Receiver) -> Self {
        Self { receiver, stream: None, is_lost: false }
    }

    async fn send(&mut self, text: &str) {
        let sent = tokio::time::timeout(LIMIT, self.try_send(text)).await;
        let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = &sent {
            self.stream = None;
            if !self.is_lost {
                tracing::warn!(receiver = ?self.receiver, %error, "events do not get to syslog");
            }
        }
        self.is_lost = sent.is_err();
    }

    async fn try_send(&mut self, text: &str) -> io::Result<()> {
        match &self.receiver {
            Receiver::Udp(address) => {
                let own: SocketAddr =
                    if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
                UdpSocket::bind(own).await?.send_to(text.as_bytes(), address).await.map(drop)
            }
            Receiver::Local(path) => UnixDatagram::unbound()?.send_to(text.as_bytes(), path).await.map(drop),
            Receiver::Tcp(address) => {
                let mut stream = match self.stream.take() {
                    Some(stream) => stream,
                    None => TcpStream::connect(address).await?,
                };
                stream.write_all(format!("{} {text}", text.len()).as_bytes()).await?;
                self.stream = Some(stream);
                Ok(())
            }
        }
    }
}

/// An event as RFC 5424 section 6 has it.
fn message(event: &Event, node: &str, process: u32) -> String {
    let facility = if PEOPLE.contains(&event.kind.as_str()) { AUTHPRIV } else { DAEMON };
    let severity = match event.severity {
        Severity::Info => 6,
        Severity::Warning => 4,
        Severity::Error => 3,
    };
    let facts = event.evidence.iter().map(|(name, value)| {
        let name: String =
            name.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-').take(32).collect();
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
        format!(" {name}=\"{value}\"")
    });
    let facts: String = facts.collect();
    let data = format!("[event@{ENTERPRISE} sequence=\"{}\"{facts}]", event.sequence);
    let time = crate::rpc::time::show(event.time_ms);
    let kind: String = event.kind.chars().take(32).collect();
    let text = event.message.replace(['\n', '\r'], " ");
    format!("<{}>1 {time} {node} gemeld {process} {kind} {data} {text}", facility * 8 + severity)
}

const PEOPLE: [&str; 4] = ["audit", "sign-in", "sign-in-refused", "password-set"];
const DAEMON: u8 = 3;
const AUTHPRIV: u8 = 10;
/// The number that RFC 5612 sets aside for who has none of his own.
const ENTERPRISE: u32 = 32473;
/// How long a receiver may take.
const LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_message_of_the_standard() {
        let event = Event {
            sequence: 7,
            time_ms: 1_500,
            severity: Severity::Warning,
            kind: "disk-failed".to_owned(),
            message: "disk x\nfailed".to_owned(),
            evidence: vec![("errno".to_owned(), "\"5\"]".to_owned())],
        };
        assert_eq!(
            message(&event, "a", 42),
            "<28>1 1970-01-01T00:00:01.500Z a gemeld 42 disk-failed [event@32473 sequence=\"7\" errno=\"\\\"5\\\"\\]\"] \
             disk x failed"
        );
        let audit = Event { kind: "audit".to_owned(), severity: Severity::Info, ..event };
        assert!(message(&audit, "a", 42).starts_with("<86>1 "));
    }

    #[test]
    fn receivers_are_named() {
        let parse = |text: &str| Receiver::try_from(text.to_owned());
        assert_eq!(parse("udp:192.0.2.9:514"), Ok(Receiver::Udp("192.0.2.9:514".parse().unwrap())));
        assert_eq!(parse("tcp:[::1]:601"), Ok(Receiver::Tcp("[::1]:601".parse().unwrap())));
        assert_eq!(parse("/dev/log"), Ok(Receiver::Local("/dev/log".into())));
        assert!(parse("host").is_err() && parse("udp:host").is_err());
    }

    #[test]
    fn messages_arrive_by_each_way() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut buffer = [0; 64];
            Sender::new(Receiver::Udp(udp.local_addr().unwrap())).send("one").await;
            let length = udp.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], b"one");

            let place = tempfile::tempdir().unwrap();
            let local = UnixDatagram::bind(place.path().join("log")).unwrap();
            Sender::new(Receiver::Local(place.path().join("log"))).send("two").await;
            let length = local.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], b"two");

            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut sender = Sender::new(Receiver::Tcp(tcp.local_addr().unwrap()));
            sender.send("three").await;
            sender.send("four").await;
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut text = [0; 13];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut text).await.unwrap();
            assert_eq!(&text, b"5 three4 four");
            // Who is not there costs nothing.
            let mut lost = Sender::new(Receiver::Local(place.path().join("none")));
            lost.send("five").await;
            assert!(lost.is_lost);
        });
    }
}
