//! Three members in one process, over real connections: a cluster comes together, agrees, and lets no stranger in.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::authority::Authority;
use super::quorum::{QuorumHandle, QuorumSetup, clock_ms, found, start};
use super::settings::{PeerAddress, PeerSettings};
use crate::cluster::lease::StoreHealth;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::volume::{Redundancy, SectorSize};
use crate::cluster::state::{ClusterUuid, Command, ControlState, Outcome};
use crate::cluster::versions::Spoken;

const NAMES: [&str; 3] = ["a", "b", "w"];
const UUID: ClusterUuid = ClusterUuid([5; 16]);
const LIMIT: Duration = Duration::from_secs(20);

struct Trio {
    folder: tempfile::TempDir,
    authority: Authority,
    addresses: [SocketAddr; 3],
    members: [Option<(QuorumHandle, std::thread::JoinHandle<()>)>; 3],
    runtime: tokio::runtime::Runtime,
}

fn name(seat: usize) -> NodeName {
    NAMES[seat].parse().unwrap()
}

fn kind(seat: usize) -> SeatKind {
    if seat == 2 { SeatKind::Witness } else { SeatKind::Node }
}

/// Listens, with a port that stays the same over restarts.
fn listen(address: SocketAddr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(16).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

impl Trio {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(UUID).unwrap();
        let free = |host: u8| {
            TcpListener::bind((std::net::Ipv4Addr::new(127, 0, 0, host), 0)).unwrap().local_addr().unwrap()
        };
        let trio = Self {
            addresses: [free(1), free(2), free(3)],
            members: [None, None, None],
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            folder,
            authority,
        };
        (0..3).for_each(|seat| trio.authority.issue(&name(seat), &trio.directory(seat, "tls")).unwrap());
        let create = Command::CreateCluster { name: "demo".parse().unwrap(), uuid: UUID, created_unix_ms: 1 };
        let state = ControlState::founded([create]).unwrap();
        found(&trio.directory(0, "state"), &name(0), UUID, &state).unwrap();
        assert!(found(&trio.directory(0, "state"), &name(0), UUID, &state).is_err());
        trio
    }

    fn directory(&self, seat: usize, what: &str) -> PathBuf {
        self.folder.path().join(NAMES[seat]).join(what)
    }

    fn setup(&self, seat: usize, tls_dir: &Path) -> QuorumSetup {
        let peer = |other: usize| PeerAddress {
            name: name(other),
            // Nobody listens at the first one: the second is used.
            addresses: vec!["127.0.0.1:9".to_owned(), self.addresses[other].to_string()],
            mirror: Vec::new(),
            witness: other == 2,
        };
        QuorumSetup {
            name: name(seat),
            kind: kind(seat),
            directory: self.directory(seat, "state"),
            settings: PeerSettings {
                listen: vec![self.addresses[seat]],
                mirror_listen: Vec::new(),
                cluster_uuid: UUID,
                tls_dir: tls_dir.to_owned(),
                peers: (0..3).filter(|other| *other != seat).map(peer).collect(),
                speaks: Spoken::default(),
            },
            listeners: vec![listen(self.addresses[seat])],
            services: None,
        }
    }

    fn start(&mut self, seat: usize) {
        self.members[seat] = Some(start(self.setup(seat, &self.directory(seat, "tls"))).unwrap());
    }

    fn member(&self, seat: usize) -> &QuorumHandle {
        &self.members[seat].as_ref().unwrap().0
    }

    fn stop(&mut self, seat: usize) {
        let (handle, thread) = self.members[seat].take().unwrap();
        self.runtime.block_on(handle.stop());
        thread.join().unwrap();
    }

    fn apply(&self, seat: usize, command: Command) -> Outcome {
        self.runtime.block_on(self.member(seat).apply(command)).unwrap()
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            assert!(started.elapsed() < LIMIT, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_all(&self) {
        self.wait("all vote and have a leader", |trio| {
            (0..3).all(|seat| {
                let status = trio.member(seat).status();
                status.view.voters.len() == 3 && status.view.is_voter() && status.view.has_majority()
            })
        });
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        (0..3).filter(|seat| self.members[*seat].is_some()).collect::<Vec<_>>().into_iter().for_each(
            |seat| {
                self.stop(seat);
            },
        );
    }
}

fn create(volume: &str) -> Command {
    Command::CreateVolume {
        name: volume.parse().unwrap(),
        size_bytes: 1 << 30,
        sector: SectorSize::Emulated512,
        redundancy: Redundancy::Mirrored,
        primary: "a".parse().unwrap(),
        created_unix_ms: 2,
    }
}

#[test]
fn a_cluster_comes_together_agrees_and_goes_on_without_one() {
    let mut trio = Trio::new();
    (0..3).for_each(|seat| trio.start(seat));
    trio.wait_for_all();
    trio.wait("both nodes are known", |trio| trio.member(0).state().nodes().count() == 2);
    for seat in 0..3 {
        assert!(matches!(trio.apply(seat, create(&format!("v{seat}"))), Outcome::VolumeCreated { .. }));
        let count = trio.member(seat).state().volumes().count();
        assert_eq!(count, seat + 1, "what is decided is visible where it was asked for");
    }
    trio.wait("everyone sees it", |trio| (0..3).all(|seat| trio.member(seat).state().volumes().count() == 3));
    let is_held = |trio: &Trio, seat: usize| {
        let member = trio.member(seat);
        member.lease().is_held(clock_ms(), member.state().applied_index())
    };
    trio.wait("the nodes hold leases", |trio| is_held(trio, 0) && is_held(trio, 1));
    assert!(!is_held(&trio, 2));
    trio.member(1).lease().set_store_health(StoreHealth::Gone);
    trio.wait("an unhealthy store loses it", |trio| !is_held(trio, 1));

    let leader = (0..3).find(|seat| trio.member(0).status().view.leader() == Some(NAMES[*seat])).unwrap();
    trio.stop(leader);
    let survivor = (leader + 1) % 3;
    trio.wait("another one leads", |trio| {
        let view = &trio.member(survivor).status().view;
        view.leader().is_some_and(|name| name != NAMES[leader])
    });
    trio.apply(survivor, create("without"));
    assert!(trio.member(survivor).status().peers.iter().any(|peer| !peer.is_reachable));
    trio.start(leader);
    trio.wait("it catches up", |trio| trio.member(leader).state().volumes().count() == 4);
    trio.wait("it is linked again", |trio| {
        trio.member(survivor).status().peers.iter().all(|peer| peer.is_reachable)
    });
}

#[test]
fn a_stranger_is_refused_with_a_reason() {
    let mut trio = Trio::new();
    trio.start(0);
    trio.start(2);
    let reason_at = |trio: &Trio| {
        let status = trio.member(1).status();
        let peer = status.peers.iter().find(|peer| peer.name.as_str() == "a").unwrap();
        assert!(!peer.is_reachable);
        peer.reason.clone()
    };
    let other = Authority::create(UUID).unwrap();
    let foreign = trio.folder.path().join("foreign");
    other.issue(&name(1), &foreign).unwrap();
    // With the true authority's certificate, so that it is the others who refuse.
    std::fs::copy(trio.directory(0, "tls").join("ca.pem"), foreign.join("ca.pem")).unwrap();
    let borrowed = trio.directory(2, "tls");
    for (tls, expected) in [(&foreign, ""), (&borrowed, "certificate is not that of the member")] {
        trio.members[1] = Some(start(trio.setup(1, tls)).unwrap());
        trio.wait("it is refused", |trio| {
            let reason = reason_at(trio);
            !reason.is_empty() && !reason.contains("127.0.0.1:9") && reason.contains(expected)
        });
        assert!(
            trio.member(0).status().peers.iter().all(|peer| peer.name.as_str() != "b" || !peer.is_reachable)
        );
        trio.stop(1);
    }
    let error = trio.runtime.block_on(call_without_certificate(&trio)).unwrap_err();
    assert!(!error.is_empty());
    trio.start(1);
    trio.wait_for_all();
}

/// Gives the hello of the other side, which nobody without a certificate may see.
async fn call_without_certificate(trio: &Trio) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let authority = std::fs::read_to_string(trio.directory(0, "tls").join("ca.pem")).unwrap();
    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(authority))
        .domain_name(super::tls::server_name(&name(0), UUID));
    let endpoint = tonic::transport::Endpoint::from_shared(format!("https://{}", trio.addresses[0])).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.map_err(|error| text(&error))?;
    let mut client = super::messages::peer_client::PeerClient::new(channel);
    let nothing = futures::stream::pending::<super::messages::ControlFrame>();
    client.control(nothing).await.map(drop).map_err(|error| text(&error))
}

#[test]
fn a_blank_log_has_no_vote_until_it_is_replaced() {
    let mut trio = Trio::new();
    (0..3).for_each(|seat| trio.start(seat));
    trio.wait_for_all();
    trio.stop(2);
    std::fs::remove_dir_all(trio.directory(2, "state")).unwrap();
    trio.start(2);
    trio.wait("it is linked", |trio| trio.member(2).status().peers.iter().all(|peer| peer.is_reachable));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!trio.member(2).status().view.is_voter());
    trio.runtime.block_on(trio.member(1).replace_member(name(2)));
    trio.wait_for_all();
    trio.apply(2, create("v"));
}
