//! The first frame of each direction of every stream between members: who is there.

use tonic::Status;

use super::messages::{Hello, SeatKind as WireKind};
use super::settings::PeerAddress;
use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::raft::MemberId;
use crate::cluster::state::ClusterUuid;
use crate::cluster::state::node::KeyFingerprint;
use crate::cluster::versions::{Protocol, Spoken, Versions};

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
    /// The versions of the protocols that it speaks.
    pub speaks: Spoken,
}

/// Another member that has said who it is, and is known.
#[derive(Clone, Debug)]
pub struct Greeted {
    /// Its name.
    pub name: NodeName,
    /// Its identity in its present life.
    pub member: MemberId,
    /// What it is.
    pub kind: SeatKind,
    /// Version of its program.
    pub build: String,
    /// Which versions of the protocol it speaks.
    pub speaks: Versions,
    /// The version of the protocol that both speak from here on.
    pub version: u32,
    /// The key of its certificate, where it has called.
    pub key: Option<KeyFingerprint>,
}

impl Introduction {
    /// As a frame's content.
    #[must_use]
    pub fn hello(&self, protocol: Protocol) -> Hello {
        let versions = self.speaks.of(protocol);
        let kind = match self.kind {
            SeatKind::Node => WireKind::Node,
            SeatKind::Witness => WireKind::Witness,
        };
        Hello {
            protocol_version: versions.newest(),
            oldest_protocol_version: versions.oldest(),
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
    pub fn check(&self, hello: &Hello, protocol: Protocol, known: &[PeerAddress]) -> Result<Greeted, Status> {
        let (own, build) = (self.speaks.of(protocol), shown(&hello.build));
        let spoken = versions_of(hello).ok_or_else(|| Status::invalid_argument("it speaks no version"))?;
        let version = spoken.agree(own).ok_or_else(|| {
            Status::failed_precondition(format!(
                "{} (gemel {build}) speaks {spoken} of the {protocol} protocol and {} (gemel {}) {own}: bring the older \
                 one up to date",
                shown(&hello.name),
                self.name,
                env!("CARGO_PKG_VERSION"),
            ))
        })?;
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
        let (name, member) = (peer.name.clone(), MemberId(hello.member_id));
        Ok(Greeted { name, member, kind, build, speaks: spoken, version, key: None })
    }
}

/// What another one speaks; who says one version speaks that alone.
fn versions_of(hello: &Hello) -> Option<Versions> {
    let newest = hello.protocol_version;
    Versions::new(
        if hello.oldest_protocol_version == 0 { newest } else { hello.oldest_protocol_version },
        newest,
    )
}

/// A text of somebody else, for people.
fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(64).collect()
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
            speaks: Spoken::default(),
        };
        let known =
            [PeerAddress { name: "b".parse().unwrap(), addresses: vec![], mirror: vec![], witness: false }];
        let other = Introduction { name: "b".parse().unwrap(), member: MemberId(2), ..own.clone() };
        let good = other.hello(Protocol::Control);
        let greeted = own.check(&good, Protocol::Control, &known).unwrap();
        assert_eq!((greeted.name.as_str(), greeted.member, greeted.version), ("b", MemberId(2), 2));
        // A newer program that still speaks what this one does.
        let newer = Hello { protocol_version: 3, oldest_protocol_version: 1, ..good.clone() };
        assert_eq!(own.check(&newer, Protocol::Control, &known).unwrap().version, 2);
        let cases = [
            (
                Hello {
                    protocol_version: 4,
                    oldest_protocol_version: 3,
                    build: "9.1".into(),
                    ..good.clone()
                },
                "b (gemel 9.1) speaks versions 3 to 4 of the control protocol and a (gemel",
            ),
            // A program of the time at which one version was all that was said.
            (Hello { protocol_version: 3, oldest_protocol_version: 0, ..good.clone() }, "speaks version 3"),
            (Hello { protocol_version: 0, oldest_protocol_version: 0, ..good.clone() }, "no version"),
            (Hello { protocol_version: 1, oldest_protocol_version: 2, ..good.clone() }, "no version"),
            (Hello { cluster_uuid: "0".repeat(32), ..good.clone() }, "belongs to cluster 0000"),
            (Hello { name: "x".into(), ..good.clone() }, "knows no member"),
            (Hello { kind: WireKind::Witness.into(), ..good.clone() }, "another kind"),
            (Hello { kind: 9, ..good.clone() }, "neither"),
            (Hello { member_id: 0, ..good }, "another kind"),
        ];
        for (hello, reason) in cases {
            let status = own.check(&hello, Protocol::Control, &known).unwrap_err();
            assert!(status.message().contains(reason), "{status}");
        }
    }
}
