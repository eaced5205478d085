//! Two nodes in one process, over real connections: what is sent arrives in order, a cut or dead link is replaced,
//! strangers and nonsense are refused with a reason. Also measures, see [`figures`].

mod figures;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, LocalSet};

use super::{DirectionStatus, Incoming, MirrorConnections, MirrorHandler, MirrorSetup};
use crate::base::checksum::Crc32;
use crate::base::runtime::LocalBoxFuture;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::cluster::quorum::SeatKind;
use crate::cluster::raft::MemberId;
use crate::cluster::state::ClusterUuid;
use crate::cluster::versions::{Protocol, Spoken};
use crate::mirror::{FromReplica, ReplicaLink, StreamId, ToReplica};
use crate::peer::authority::Authority;
use crate::peer::hello::Introduction;
use crate::peer::settings::PeerAddress;
use crate::peer::tls::Keys;
use crate::store::interface::BlockWrite;

const UUID: ClusterUuid = ClusterUuid([6; 16]);
const VOLUME: VolumeId = VolumeId(3);
const STREAM: StreamId = StreamId { epoch: 1, number: 1 };
const LIMIT: Duration = Duration::from_secs(20);

/// Keys of both nodes and the witness.
struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(UUID).unwrap();
        for name in ["a", "b", "w"] {
            authority.issue(&name.parse().unwrap(), &folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn keys(&self, directory: &str) -> Keys {
        Keys::load(&self.folder.path().join(directory), UUID).unwrap()
    }

    /// A node and the addresses at which it finds the other one.
    fn setup(&self, own: &str, listener: TcpListener, peer: &[SocketAddr]) -> MirrorSetup {
        let other = if own == "a" { "b" } else { "a" };
        MirrorSetup {
            introduction: introduction(own),
            keys: self.keys(own),
            peer: PeerAddress {
                name: other.parse().unwrap(),
                addresses: vec!["127.0.0.1:9".to_owned()],
                mirror: peer.iter().map(SocketAddr::to_string).collect(),
                witness: false,
            },
            listeners: vec![listener],
            tell_refused: Arc::new(|_, _| {}),
        }
    }
}

fn introduction(name: &str) -> Introduction {
    Introduction {
        cluster: UUID,
        name: name.parse().unwrap(),
        kind: if name == "w" { SeatKind::Witness } else { SeatKind::Node },
        member: MemberId(u64::from(name.as_bytes()[0])),
        speaks: Spoken::default(),
    }
}

fn listen(host: u8) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { tokio::time::timeout(LIMIT, test).await.unwrap() });
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT / 2, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn write(number: u32, blocks: u64) -> ToReplica {
    let data = Bytes::from(vec![number as u8; 4096]);
    let change = |block| BlockWrite::Data {
        address: BlockAddress(block),
        checksum: Crc32::of(&data),
        data: data.clone(),
    };
    let version = |sequence: u64| Version { epoch: 1, sequence };
    ToReplica::Write {
        volume: VOLUME,
        stream: STREAM,
        version: version(u64::from(number) + 1),
        previous: version(u64::from(number)),
        writes: (0..blocks).map(change).collect(),
    }
}

/// A node that notes what happens and answers every write.
#[derive(Default)]
struct Recorder {
    link: RefCell<Option<Rc<dyn ReplicaLink>>>,
    connects: Cell<u32>,
    disconnects: Cell<u32>,
    answers: RefCell<Vec<FromReplica>>,
    taker: Rc<Taker>,
}

#[derive(Default)]
struct Taker {
    messages: RefCell<Vec<ToReplica>>,
    is_busy: Cell<bool>,
    /// A `receive` does not complete meanwhile.
    is_held: Cell<bool>,
}

struct Receiver {
    taker: Rc<Taker>,
    answer: Box<dyn Fn(FromReplica)>,
}

impl MirrorHandler for Recorder {
    fn connected(&self, link: Rc<dyn ReplicaLink>) {
        assert!(self.link.replace(Some(link)).is_none(), "the last one has ended");
        self.connects.set(self.connects.get() + 1);
    }

    fn disconnected(&self) {
        self.link.take();
        self.disconnects.set(self.disconnects.get() + 1);
    }

    fn received(&self, answer: FromReplica) {
        self.answers.borrow_mut().push(answer);
    }

    fn accept(&self, answer: Box<dyn Fn(FromReplica)>) -> Rc<dyn Incoming> {
        Rc::new(Receiver { taker: self.taker.clone(), answer })
    }
}

impl Incoming for Receiver {
    fn receive(&self, message: ToReplica) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move {
            assert!(!self.taker.is_busy.replace(true), "the last one has been taken");
            if let ToReplica::Write { volume, stream, version, .. } = &message {
                (self.answer)(FromReplica::Durable { volume: *volume, stream: *stream, version: *version });
            }
            self.taker.messages.borrow_mut().push(message);
            while self.taker.is_held.get() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.taker.is_busy.set(false);
        })
    }
}

impl Recorder {
    fn is_connected(&self) -> bool {
        self.link.borrow().is_some()
    }

    fn send(&self, message: ToReplica) {
        self.link.borrow().as_ref().unwrap().send(message);
    }
}

struct Site {
    node: Rc<Recorder>,
    connections: MirrorConnections,
}

impl Site {
    fn start(setup: MirrorSetup) -> Self {
        let node = Rc::new(Recorder::default());
        let connections = MirrorConnections::start(setup, node.clone(), None).unwrap();
        Self { node, connections }
    }

    fn to_peer(&self) -> DirectionStatus {
        self.connections.status().to_peer
    }

    /// A write to the peer comes back as an answer.
    async fn exchanges(&self) {
        until("there is a connection", || self.node.is_connected()).await;
        let before = self.node.answers.borrow().len();
        self.node.send(write(1, 1));
        until("it is answered", || self.node.answers.borrow().len() > before).await;
    }
}

fn pair(room: &Room) -> (Site, Site) {
    let ((a, a_address), (b, b_address)) = (listen(1), listen(2));
    (Site::start(room.setup("a", a, &[b_address])), Site::start(room.setup("b", b, &[a_address])))
}

/// A link that can be cut, or go silent without a word.
struct Cable {
    address: SocketAddr,
    task: AbortHandle,
    is_silent: Rc<Cell<bool>>,
    ends: Rc<RefCell<Vec<AbortHandle>>>,
}

impl Cable {
    fn to(target: SocketAddr) -> Self {
        let (listener, address) = listen(4);
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (is_silent, ends) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(Vec::new())));
        let (silent, lines) = (is_silent.clone(), ends.clone());
        let task = tokio::task::spawn_local(async move {
            loop {
                let (caller, _) = listener.accept().await.unwrap();
                let line = carry(caller, target, silent.clone());
                lines.borrow_mut().push(tokio::task::spawn_local(line).abort_handle());
            }
        });
        Self { address, task: task.abort_handle(), is_silent, ends }
    }

    fn cut(&self) {
        self.ends.borrow_mut().drain(..).for_each(|end| end.abort());
    }

    /// For good: nobody answers any more.
    fn remove(&self) {
        self.task.abort();
        self.cut();
    }
}

async fn carry(caller: TcpStream, target: SocketAddr, is_silent: Rc<Cell<bool>>) {
    let Ok(callee) = TcpStream::connect(target).await else { return };
    let (mut from_caller, mut to_caller) = caller.into_split();
    let (mut from_callee, mut to_callee) = callee.into_split();
    let one_way = async |from: &mut tokio::net::tcp::OwnedReadHalf,
                         to: &mut tokio::net::tcp::OwnedWriteHalf| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if !is_silent.get() && to.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = one_way(&mut from_caller, &mut to_callee) => {}
        () = one_way(&mut from_callee, &mut to_caller) => {}
    }
}

#[test]
fn what_is_sent_arrives_in_order_and_so_do_the_answers() {
    let room = Room::new();
    run(async {
        let (a, b) = pair(&room);
        for (from, to) in [(&a, &b), (&b, &a)] {
            until("there is a connection", || from.node.is_connected()).await;
            for number in 0..500 {
                from.node.send(write(number, u64::from(number % 7) * 9 + 1));
            }
            from.node.send(write(500, 4096)); // 16 MiB, the largest append
            until("all are answered", || from.node.answers.borrow().len() == 501).await;
            let taken = to.node.taker.messages.borrow();
            for (number, (message, answer)) in (0..).zip(taken.iter().zip(&*from.node.answers.borrow())) {
                let expected =
                    write(number, if number == 500 { 4096 } else { u64::from(number % 7) * 9 + 1 });
                assert!(message.encode() == expected.encode(), "message {number}");
                let ToReplica::Write { version, .. } = expected else { unreachable!() };
                assert_eq!(*answer, FromReplica::Durable { volume: VOLUME, stream: STREAM, version });
            }
        }
        let status = a.connections.status();
        assert!(status.to_peer.address.is_some() && status.from_peer.address.is_some());
    });
}

#[test]
fn the_next_message_comes_when_the_last_one_has_been_taken() {
    let room = Room::new();
    run(async {
        let (a, b) = pair(&room);
        until("there is a connection", || a.node.is_connected()).await;
        b.node.taker.is_held.set(true);
        for number in 0..64 {
            a.node.send(write(number, 256));
        }
        // Longer than the patience of the link, which is alive all the same.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(b.node.taker.messages.borrow().len(), 1);
        b.node.taker.is_held.set(false);
        until("all are taken", || b.node.taker.messages.borrow().len() == 64).await;
        assert_eq!(a.node.disconnects.get(), 0);
    });
}

#[test]
fn a_link_that_is_cut_or_dead_is_replaced_by_the_other_address() {
    let room = Room::new();
    run(async {
        let ((a, a_address), (b, b_address)) = (listen(1), listen(2));
        let (first, second) = (Cable::to(b_address), Cable::to(b_address));
        let a = Site::start(room.setup("a", a, &[first.address, second.address]));
        let _b = Site::start(room.setup("b", b, &[a_address]));
        a.exchanges().await;
        assert_eq!(a.to_peer().address, Some(first.address.to_string()));
        let old = a.node.link.borrow().clone().unwrap();
        // A call that has lasted is followed at once by one at the other address.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        first.cut();
        until("the loss is noticed", || a.node.disconnects.get() == 1).await;
        old.send(write(9, 1));
        a.exchanges().await;
        assert_eq!(a.to_peer().address, Some(second.address.to_string()));
        assert!(a.to_peer().reason.starts_with(&first.address.to_string()), "{:?}", a.to_peer());

        second.is_silent.set(true);
        let started = Instant::now();
        until("the dead link is noticed", || a.node.disconnects.get() == 2).await;
        let noticed = started.elapsed();
        assert!(noticed < Duration::from_millis(2500), "{noticed:?}");
        a.exchanges().await;
        assert_eq!(a.to_peer().address, Some(first.address.to_string()));

        second.is_silent.set(false);
        first.remove();
        until("the other one is used", || a.to_peer().address == Some(second.address.to_string())).await;
        a.exchanges().await;
    });
}

#[test]
fn a_node_that_comes_back_is_connected_again() {
    let room = Room::new();
    run(async {
        let ((a, a_address), (b, b_address)) = (listen(1), listen(2));
        let a = Site::start(room.setup("a", a, &[b_address]));
        let first = Site::start(room.setup("b", b.try_clone().unwrap(), &[a_address]));
        a.exchanges().await;
        first.exchanges().await;
        drop(first);
        until("its end is noticed", || !a.node.is_connected()).await;
        let again = Site::start(room.setup("b", b, &[a_address]));
        a.exchanges().await;
        again.exchanges().await;
        assert_eq!((a.node.connects.get(), a.node.disconnects.get()), (2, 1));
    });
}

#[test]
fn strangers_are_refused_with_a_reason() {
    let room = Room::new();
    let foreign = room.folder.path().join("foreign");
    Authority::create(UUID).unwrap().issue(&"b".parse().unwrap(), &foreign).unwrap();
    // With the true authority's certificate, so that it is the other side that refuses.
    std::fs::copy(room.folder.path().join("a/ca.pem"), foreign.join("ca.pem")).unwrap();
    run(async {
        let (a, a_address) = listen(1);
        let a = Site::start(room.setup("a", a, &["127.0.0.1:9".parse().unwrap()]));
        let good = || room.setup("b", listen(2).0, &[a_address]);
        let other_cluster = Introduction { cluster: ClusterUuid([7; 16]), ..introduction("b") };
        let newer = Spoken::default().with(&["mirror=8..9".parse().unwrap()]);
        let newer = Introduction { speaks: newer, ..introduction("b") };
        let (telling, told) = std::sync::mpsc::channel();
        let tell = Arc::new(move |service: &'static str, _: &str| telling.send(service).unwrap());
        let cases = [
            (MirrorSetup { keys: Keys::load(Path::new(&foreign), UUID).unwrap(), ..good() }, ""),
            (MirrorSetup { keys: room.keys("w"), ..good() }, "certificate is not that of the member"),
            (
                MirrorSetup { introduction: introduction("w"), keys: room.keys("w"), ..good() },
                "knows no member",
            ),
            (MirrorSetup { introduction: other_cluster, ..good() }, "belongs to cluster"),
            (
                MirrorSetup { introduction: newer, tell_refused: tell, ..good() },
                "versions 8 to 9 of the mirror",
            ),
        ];
        for (setup, expected) in cases {
            let stranger = Site::start(setup);
            until("it is refused", || !stranger.to_peer().reason.is_empty()).await;
            let reason = stranger.to_peer().reason;
            assert!(reason.contains(expected), "{reason}");
            assert!(!stranger.node.is_connected() && a.connections.status().from_peer.address.is_none());
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["mirrors"], "once");
        // One that speaks a newer version besides.
        let speaks = Spoken::default().with(&["mirror=1..9".parse().unwrap()]);
        let known =
            Site::start(MirrorSetup { introduction: Introduction { speaks, ..introduction("b") }, ..good() });
        known.exchanges().await;
    });
}

/// Calls a node by hand, with these frames behind the hello; what the node says in the end.
async fn call_with(
    room: &Room,
    address: SocketAddr,
    frames: Vec<super::super::messages::MirrorFrame>,
) -> String {
    use futures::StreamExt;
    let tls = room.keys("b").client(&"a".parse().unwrap());
    let endpoint = tonic::transport::Endpoint::from_shared(format!("https://{address}")).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let mut client = super::super::messages::mirror_client::MirrorClient::new(channel);
    let outgoing = futures::stream::iter(frames).chain(futures::stream::pending());
    let mut answers = match client.carry(outgoing).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return "an end without a reason".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

#[test]
fn nonsense_ends_the_connection_with_a_reason() {
    use super::super::messages::MirrorFrame;
    use super::MirrorMessage;
    let room = Room::new();
    let hello = MirrorFrame { hello: Some(introduction("b").hello(Protocol::Mirror)), messages: vec![] };
    let with = |pieces: Vec<Bytes>| MirrorFrame { hello: None, messages: vec![MirrorMessage::new(pieces)] };
    let mut damaged = write(1, 1).encode();
    damaged[1] = Bytes::from(vec![2; 4096]);
    let mut version = hello.clone();
    let spoken = version.hello.as_mut().unwrap();
    (spoken.protocol_version, spoken.oldest_protocol_version) = (9, 9);
    let cases = [
        (vec![hello.clone(), with(vec![Bytes::from_static(&[9; 40])])], "mirror messages of format 9"),
        (vec![hello.clone(), with(write(1, 1).encode()), with(damaged)], "block 0 arrived damaged"),
        (vec![hello.clone(), with(vec![])], "cannot be read"),
        (vec![hello.clone(), hello.clone()], "a second hello"),
        (vec![with(write(1, 1).encode())], "the first frame is not a hello"),
        (vec![version], "version 9 of the mirror protocol"),
    ];
    run(async {
        let (listener, address) = listen(1);
        let a = Site::start(room.setup("a", listener, &["127.0.0.1:9".parse().unwrap()]));
        for (frames, expected) in cases {
            let was_accepted = frames.len() > 1;
            let reason = call_with(&room, address, frames).await;
            assert!(reason.contains(expected), "{reason}");
            if was_accepted {
                let from_peer = || a.connections.status().from_peer;
                until("it is over", || from_peer().address.is_none()).await;
                assert!(from_peer().reason.contains(expected), "{:?}", from_peer());
            }
        }
        assert_eq!(a.node.taker.messages.borrow().len(), 1, "only what was sound has been taken");
    });
}
