//! Mutual TLS between members, from the files that a member has: `ca.pem`, `node.pem`, `node.key`.
//!
//! Guarantees: both ends have a certificate of the cluster's authority, and the dialling one has been answered
//! by the member that it wanted. That the accepting one is called by whom it says is checked against the
//! certificate by [`Keys::check_caller`].

use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, ServerName};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::cluster::name::NodeName;
use crate::cluster::state::ClusterUuid;

/// File of the authority's certificate.
pub const CA_NAME: &str = "ca.pem";
/// File of the member's certificate.
pub const CERTIFICATE_NAME: &str = "node.pem";
/// File of the member's key.
pub const KEY_NAME: &str = "node.key";

/// What a member proves itself with.
#[derive(Clone)]
pub struct Keys {
    cluster: ClusterUuid,
    authority: Certificate,
    identity: Identity,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}; tls_dir in the configuration names the directory")]
pub struct KeysError {
    /// The file.
    pub path: PathBuf,
    /// Cause.
    pub source: std::io::Error,
}

/// Why a caller is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// It has no certificate of this cluster.
    #[error("the caller has no certificate of this cluster")]
    NoCertificate,
    /// Its certificate is another one's.
    #[error("the caller's certificate is not that of the member whose name it gives")]
    OtherName,
}

impl Keys {
    /// Reads the three files.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn load(directory: &Path, cluster: ClusterUuid) -> Result<Self, KeysError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|source| KeysError { path, source })
        };
        let authority = Certificate::from_pem(read(CA_NAME)?);
        let identity = Identity::from_pem(read(CERTIFICATE_NAME)?, read(KEY_NAME)?);
        Ok(Self { cluster, authority, identity })
    }

    /// For who listens: callers need a certificate.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.authority.clone())
            .timeout(super::link::HANDSHAKE_TIMEOUT)
    }

    /// For who calls `member`.
    #[must_use]
    pub fn client(&self, member: &NodeName) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authority.clone())
            .domain_name(server_name(member, self.cluster))
    }

    /// Whether the certificate with which someone has called is that of `member`.
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn check_caller(
        &self,
        certificates: Option<&[CertificateDer<'static>]>,
        member: &NodeName,
    ) -> Result<(), CallerError> {
        let leaf = certificates.and_then(<[_]>::first).ok_or(CallerError::NoCertificate)?;
        let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|_| CallerError::NoCertificate)?;
        let name = ServerName::try_from(server_name(member, self.cluster));
        let name = name.map_err(|_| CallerError::OtherName)?;
        certificate.verify_is_valid_for_subject_name(&name).map_err(|_| CallerError::OtherName)
    }
}

/// The name of a member in its certificate.
#[must_use]
pub fn server_name(member: &NodeName, cluster: ClusterUuid) -> String {
    format!("{member}.{cluster}.gemel")
}
