//! The edge between the members of a cluster: both nodes and the witness.
//!
//! Carries what [`crate::cluster`] decides: its log on a file ([`log_file`]), its messages over mutual TLS
//! ([`tls`], [`hello`], [`link`]), its clock and thread ([`quorum`]);
//! and the streams of [`crate::mirror`], on the thread of the data ([`mirror_stream`]). [`authority`] makes the certificates,
//! [`joining`] brings them to new members, [`settings`] is the part of the configuration that nodes and witness have in common. The rules are not
//! here.

pub mod authority;
pub mod backup;
pub(crate) mod dial;
pub mod hello;
pub mod incoming;
pub mod joining;
pub mod link;
pub mod log_file;
pub mod mirror_stream;
pub mod quorum;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod tls;

/// The services between members.
#[allow(missing_docs)] // documented in proto/peer.proto
#[allow(clippy::all, clippy::unwrap_used)] // generated
pub mod messages {
    tonic::include_proto!("gemel.peer.v1");

    impl std::fmt::Debug for JoinRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "JoinRequest({}, secret withheld)", self.name)
        }
    }

    impl std::fmt::Debug for JoinResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "JoinResponse({}, keys withheld)", self.cluster_name)
        }
    }
}
