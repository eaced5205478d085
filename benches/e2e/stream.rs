//! How long a write and its confirmation take over a stream of mirrors, with nothing at the other end but an answer.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemel::base::checksum::Crc32;
use gemel::base::runtime::LocalBoxFuture;
use gemel::base::units::{BlockAddress, Version, VolumeId};
use gemel::cluster::quorum::SeatKind;
use gemel::cluster::raft::MemberId;
use gemel::cluster::state::ClusterUuid;
use gemel::cluster::versions::Spoken;
use gemel::mirror::{FromReplica, ReplicaLink, StreamId, ToReplica};
use gemel::peer::authority::Authority;
use gemel::peer::hello::Introduction;
use gemel::peer::mirror_stream::{Incoming, MirrorConnections, MirrorHandler, MirrorSetup};
use gemel::peer::settings::PeerAddress;
use gemel::peer::tls::Keys;
use gemel::store::interface::BlockWrite;
use tokio::sync::{Notify, oneshot};
use tokio::task::LocalSet;

use crate::process::pin_to;
use crate::{LOAD_CPU, TARGET_CPU};

const UUID: ClusterUuid = ClusterUuid([6; 16]);
const ROUND_TRIPS: usize = 5000;

/// The median of round trips at depth 1 of a 4 KiB write: the sender on the targets' CPU, the other end on that of
/// the load, as in the cluster that is measured.
pub fn round_trip(folder: &Path) -> Result<Duration, Box<dyn Error>> {
    let authority = Authority::create(UUID)?;
    let folder = folder.join("stream");
    for name in ["a", "b"] {
        authority.issue(&name.parse()?, &folder.join(name))?;
    }
    let (listener, address) = listen()?;
    let at_replica = setup(&folder, "b", "a", listener, "127.0.0.1:9".parse()?)?;
    let at_primary = setup(&folder, "a", "b", listen()?.0, address)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let replica = on_thread(LOAD_CPU, || async move {
        let connections = MirrorConnections::start(at_replica, Rc::new(Echo), None);
        let _ = stopped.await;
        connections.map(drop).map_err(|error| error.to_string())
    });
    let primary = on_thread(TARGET_CPU, || async move {
        let sender = Rc::new(Sender::default());
        let connections = MirrorConnections::start(at_primary, sender.clone(), None);
        let _connections = connections.map_err(|error| error.to_string())?;
        sender.changed.notified().await;
        for _ in 0..ROUND_TRIPS {
            sender.send();
            sender.changed.notified().await;
        }
        let mut times = sender.times.take();
        times.sort_unstable();
        Ok(times[times.len() / 2])
    });
    let time = primary.join().map_err(|_| "the sender's thread panicked")?;
    let _ = stop.send(());
    replica.join().map_err(|_| "the other end's thread panicked")??;
    Ok(time?)
}

fn on_thread<T: Send + 'static, F: Future<Output = Result<T, String>>>(
    cpu: usize,
    work: impl FnOnce() -> F + Send + 'static,
) -> std::thread::JoinHandle<Result<T, String>> {
    std::thread::spawn(move || {
        pin_to(cpu).map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        LocalSet::new().block_on(&runtime, async { work().await })
    })
}

fn listen() -> Result<(TcpListener, SocketAddr), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn setup(
    folder: &Path,
    own: &str,
    other: &str,
    listener: TcpListener,
    peer: SocketAddr,
) -> Result<MirrorSetup, Box<dyn Error>> {
    Ok(MirrorSetup {
        introduction: Introduction {
            cluster: UUID,
            name: own.parse()?,
            kind: SeatKind::Node,
            member: MemberId(u64::from(own.as_bytes()[0])),
            speaks: Spoken::default(),
        },
        keys: Keys::load(&folder.join(own), UUID)?,
        peer: PeerAddress {
            name: other.parse()?,
            addresses: vec!["127.0.0.1:9".to_owned()],
            mirror: vec![peer.to_string()],
            witness: false,
        },
        listeners: vec![listener],
        tell_refused: Arc::new(|service, reason| eprintln!("{service}: {reason}")),
    })
}

/// Answers every write.
struct Echo;

struct EchoReceiver {
    answer: Box<dyn Fn(FromReplica)>,
}

impl MirrorHandler for Echo {
    fn connected(&self, _: Rc<dyn ReplicaLink>) {}
    fn disconnected(&self) {}
    fn received(&self, _: FromReplica) {}
    fn accept(&self, answer: Box<dyn Fn(FromReplica)>) -> Rc<dyn Incoming> {
        Rc::new(EchoReceiver { answer })
    }
}

impl Incoming for EchoReceiver {
    fn receive(&self, message: ToReplica) -> LocalBoxFuture<'_, ()> {
        if let ToReplica::Write { volume, stream, version, .. } = message {
            (self.answer)(FromReplica::Durable { volume, stream, version });
        }
        Box::pin(std::future::ready(()))
    }
}

/// Sends a write at a time.
#[derive(Default)]
struct Sender {
    link: RefCell<Option<Rc<dyn ReplicaLink>>>,
    sent: Cell<u64>,
    sent_at: Cell<Option<Instant>>,
    times: RefCell<Vec<Duration>>,
    /// There is a connection, or an answer.
    changed: Notify,
}

impl Sender {
    fn send(&self) {
        let number = self.sent.get() + 1;
        self.sent.set(number);
        let version = |sequence| Version { epoch: 1, sequence };
        let data = Bytes::from(vec![number as u8; 4096]);
        let write = BlockWrite::Data { address: BlockAddress(number), checksum: Crc32::of(&data), data };
        self.sent_at.set(Some(Instant::now()));
        if let Some(link) = &*self.link.borrow() {
            link.send(ToReplica::Write {
                volume: VolumeId(1),
                stream: StreamId { epoch: 1, number: 1 },
                version: version(number + 1),
                previous: version(number),
                writes: vec![write],
            });
        }
    }
}

impl MirrorHandler for Sender {
    fn connected(&self, link: Rc<dyn ReplicaLink>) {
        *self.link.borrow_mut() = Some(link);
        self.changed.notify_one();
    }

    fn disconnected(&self) {
        self.link.take();
    }

    fn received(&self, _: FromReplica) {
        self.times.borrow_mut().extend(self.sent_at.take().map(|sent| sent.elapsed()));
        self.changed.notify_one();
    }

    fn accept(&self, _: Box<dyn Fn(FromReplica)>) -> Rc<dyn Incoming> {
        Rc::new(EchoReceiver { answer: Box::new(drop) })
    }
}
