//! The first frame of each direction of every stream between members: who is there.

use tonic::Status;

use super::messages::{Hello, SeatKind as WireKind};
use super::settings::PeerAddress;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::{PeerInfo, SeatKind};
use crate::cluster::raft::MemberId;
use crate::cluster::state::ClusterUuid;
use crate::cluster::state::node::KeyFingerprint;

/// Versions of the protocols that this program speaks, one a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolVersion(pub u32);

/// Of the service for consensus and leases.
pub const CONTROL_PROTOCOL: ProtocolVersion = ProtocolVersion(1);
/// Of the service that carries mirrors.
pub const MIRROR_PROTOCOL: ProtocolVersion = ProtocolVersion(2);

/// Who this member is, as it says to others.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// The cluster.
    pub cluster: ClusterUuid,
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub kind: SeatKind,
    /// Its identity in its present life.
    pub member: MemberId,
}

/// Another member that has said who it is, and is known.
#[derive(Clone, Debug)]
pub struct Greeted {
    /// Its name.
    pub name: NodeName,
    /// Who it is.
    pub info: PeerInfo,
    /// Version of its program.
    pub build: String,
    /// The key of its certificate, where it has called.
    pub key: Option<KeyFingerprint>,
}

impl Introduction {
    /// As a frame's content.
    #[must_use]
    pub fn hello(&self, version: ProtocolVersion) -> Hello {
        let kind = match self.kind {
            SeatKind::Node => WireKind::Node,
            SeatKind::Witness => WireKind::Witness,
        };
        Hello {
            protocol_version: version.0,
            cluster_uuid: self.cluster.to_string(),
            name: self.name.to_string(),
            member_id: self.member.0,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            kind: kind.into(),
        }
    }

    /// Checks what another one says. That it is who it says, by its certificate, is for the caller to check.
    ///
    /// # Errors
    /// The status to refuse it with.
    #[allow(clippy::result_large_err)] // as the service wants it
    pub fn check(
        &self,
        hello: &Hello,
        version: ProtocolVersion,
        known: &[PeerAddress],
    ) -> Result<Greeted, Status> {
        if hello.protocol_version != version.0 {
            return Err(Status::failed_precondition(format!(
                "{} speaks version {} of the protocol and {} version {}: use programs that fit each other",
                hello.name, hello.protocol_version, self.name, version.0
            )));
        }
        if hello.cluster_uuid != self.cluster.to_string() {
            return Err(Status::failed_precondition(format!(
                "{} belongs to cluster {}, and {} to {}",
                hello.name, hello.cluster_uuid, self.name, self.cluster
            )));
        }
        let peer = known.iter().find(|peer| peer.name.as_str() == hello.name).ok_or_else(|| {
            Status::permission_denied(format!(
                "{} knows no member {:?}: its configuration names peers",
                self.name, hello.name
            ))
        })?;
        let kind = match hello.kind() {
            WireKind::Node => SeatKind::Node,
            WireKind::Witness => SeatKind::Witness,
            WireKind::Unspecified => return Err(Status::invalid_argument("it is neither node nor witness")),
        };
        if kind != peer.kind() || hello.member_id == 0 {
            return Err(Status::permission_denied(format!("{} is another kind of member here", hello.name)));
        }
        let info = PeerInfo { member: MemberId(hello.member_id), kind };
        let build = hello.build.chars().filter(|character| !character.is_control()).take(64).collect();
        Ok(Greeted { name: peer.name.clone(), info, build, key: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_why_they_are_refused() {
        let own = Introduction {
            cluster: ClusterUuid([1; 16]),
            name: "a".parse().unwrap(),
            kind: SeatKind::Node,
            member: MemberId(1),
        };
        let known =
            [PeerAddress { name: "b".parse().unwrap(), addresses: vec![], mirror: vec![], witness: false }];
        let other = Introduction { name: "b".parse().unwrap(), member: MemberId(2), ..own.clone() };
        let good = other.hello(CONTROL_PROTOCOL);
        let greeted = own.check(&good, CONTROL_PROTOCOL, &known).unwrap();
        assert_eq!((greeted.name.as_str(), greeted.info.member), ("b", MemberId(2)));
        let cases = [
            (Hello { protocol_version: 2, ..good.clone() }, "version 2"),
            (Hello { cluster_uuid: "0".repeat(32), ..good.clone() }, "belongs to cluster 0000"),
            (Hello { name: "x".into(), ..good.clone() }, "knows no member"),
            (Hello { kind: WireKind::Witness.into(), ..good.clone() }, "another kind"),
            (Hello { kind: 9, ..good.clone() }, "neither"),
            (Hello { member_id: 0, ..good }, "another kind"),
        ];
        for (hello, reason) in cases {
            let status = own.check(&hello, CONTROL_PROTOCOL, &known).unwrap_err();
            assert!(status.message().contains(reason), "{status}");
        }
    }
}
