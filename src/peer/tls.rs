//! Mutual TLS, from the files that a member has, `ca.pem`, `node.pem`, `node.key`, or an administrator's one file.
//!
//! Guarantees: both ends have a certificate of the cluster's authority, and the dialling one has been answered
//! by the member that it wanted, an administrator by a node. That the accepting one is called by whom it says is
//! checked against the certificate by [`Keys::check_caller`] and [`Keys::caller`]. Where [guests](Keys::server_with_guests)
//! are let in, each service has to do so for itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::cluster::name::NodeName;
use crate::cluster::quorum::SeatKind;
use crate::cluster::state::node::{KeyFingerprint, KeyRefused};
use crate::cluster::state::{ClusterUuid, ControlState};

/// File of the authority's certificate.
pub const CA_NAME: &str = "ca.pem";
/// File of the authority's key; a witness has none.
pub const CA_KEY_NAME: &str = "ca.key";
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
    /// For calls.
    calling: Arc<ClientConfig>,
    own: KeyFingerprint,
    /// Which machines the cluster knows; none for who does not follow it.
    known: Option<watch::Receiver<Arc<ControlState>>>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file can't be read.
    #[error("cannot read {path}: {source}; tls_dir in the configuration names the directory")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The files are there, and no keys.
    #[error("{directory} holds no certificates and key that fit each other: {reason}")]
    Other {
        /// The directory.
        directory: PathBuf,
        /// What is wrong.
        reason: String,
    },
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
    /// It is an administrator no more.
    #[error("the administrator's identity has been revoked")]
    Revoked,
    /// The cluster does not take the machine for the member.
    #[error(transparent)]
    Refused(#[from] KeyRefused),
}

impl Keys {
    /// Reads the three files.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn load(directory: &Path, cluster: ClusterUuid) -> Result<Self, KeysError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|source| KeysError::Read { path, source })
        };
        let (authority, certificate, key) = (read(CA_NAME)?, read(CERTIFICATE_NAME)?, read(KEY_NAME)?);
        let other = |reason: String| KeysError::Other { directory: directory.to_owned(), reason };
        let (calling, own) = calling(&authority, &certificate, &key).map_err(other)?;
        let authority = Certificate::from_pem(authority);
        let identity = Identity::from_pem(certificate, key);
        Ok(Self { cluster, authority, identity, calling, own, known: None })
    }

    /// From now on only machines are taken for members that the cluster knows as these.
    #[must_use]
    pub fn knowing(self, state: watch::Receiver<Arc<ControlState>>) -> Self {
        Self { known: Some(state), ..self }
    }

    /// The key of this machine.
    #[must_use]
    pub fn own_key(&self) -> &KeyFingerprint {
        &self.own
    }

    /// For who listens: callers need a certificate.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.authority.clone())
            .timeout(super::link::HANDSHAKE_TIMEOUT)
    }

    /// For who listens also for callers without a certificate, which one service then has to refuse and another
    /// may take. A certificate of another authority is refused here.
    #[must_use]
    pub fn server_with_guests(&self) -> ServerTlsConfig {
        self.server().client_auth_optional(true)
    }

    /// For who calls `member` and does not ask whether the cluster knows the machine.
    #[must_use]
    pub fn client(&self, member: &NodeName) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authority.clone())
            .domain_name(server_name(member, self.cluster))
    }

    /// Encrypts a connection to `member`, and verifies that it leads there.
    ///
    /// # Errors
    /// Of the handshake; [`KeyRefused`] within, when another machine answers than the one that the cluster knows.
    pub(super) async fn encrypt(
        &self,
        member: &NodeName,
        kind: SeatKind,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(server_name(member, self.cluster)).map_err(io::Error::other)?;
        let connected = TlsConnector::from(self.calling.clone()).connect(name, stream).await?;
        let leaf = connected.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let key = leaf.and_then(fingerprint).ok_or_else(|| io::Error::other(CallerError::NoCertificate))?;
        self.check_key(member, kind, &key).map_err(io::Error::other)?;
        Ok(connected)
    }

    fn check_key(&self, member: &NodeName, kind: SeatKind, key: &KeyFingerprint) -> Result<(), KeyRefused> {
        let node = (kind == SeatKind::Node).then_some(member);
        self.known.as_ref().map_or(Ok(()), |known| known.borrow().check_key(node, key))
    }

    /// Whether the certificate with which someone has called is that of `member`; its key.
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn check_caller(
        &self,
        certificates: Option<&[CertificateDer<'static>]>,
        member: &NodeName,
        kind: SeatKind,
    ) -> Result<KeyFingerprint, CallerError> {
        let leaf = certificates.and_then(<[_]>::first).ok_or(CallerError::NoCertificate)?;
        let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|_| CallerError::NoCertificate)?;
        let name = ServerName::try_from(server_name(member, self.cluster));
        let name = name.map_err(|_| CallerError::OtherName)?;
        certificate.verify_is_valid_for_subject_name(&name).map_err(|_| CallerError::OtherName)?;
        let key = fingerprint(leaf).ok_or(CallerError::NoCertificate)?;
        self.check_key(member, kind, &key)?;
        Ok(key)
    }
}

/// Who calls, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node of the cluster.
    Node(String),
    /// Its witness.
    Witness(String),
    /// An administrator.
    Administrator(String),
}

impl Keys {
    /// Whose certificate a caller has. The transport has verified that it is one of the authority.
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn caller(&self, certificates: Option<&[CertificateDer<'static>]>) -> Result<Caller, CallerError> {
        let leaf = certificates.and_then(<[_]>::first).ok_or(CallerError::NoCertificate)?;
        let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|_| CallerError::NoCertificate)?;
        let caller = caller(&certificate, self.cluster).ok_or(CallerError::OtherName)?;
        let (name, kind) = match &caller {
            Caller::Administrator(name) => {
                let is_revoked = self.known.as_ref().is_some_and(|known| known.borrow().is_revoked(name));
                return if is_revoked { Err(CallerError::Revoked) } else { Ok(caller) };
            }
            Caller::Node(name) => (name, SeatKind::Node),
            Caller::Witness(name) => (name, SeatKind::Witness),
        };
        let key = fingerprint(leaf).ok_or(CallerError::NoCertificate)?;
        self.check_key(&name.parse().map_err(|_| CallerError::OtherName)?, kind, &key)?;
        Ok(caller)
    }
}

/// What identifies the key of a certificate; none when it is no certificate.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Option<KeyFingerprint> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(KeyFingerprint(Sha256::digest(certificate.subject_public_key_info().as_ref()).to_vec()))
}

/// What a member calls others with, and the fingerprint of its own key.
fn calling(
    authority: &str,
    certificate: &str,
    key: &str,
) -> Result<(Arc<ClientConfig>, KeyFingerprint), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let parse = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| text(&error));
    let (authority, own) = (parse(authority)?, parse(certificate)?);
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| text(&error))?;
    let fingerprint = fingerprint(&own).ok_or("the certificate cannot be read")?;
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| text(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let roots = versions.map_err(|error| text(&error))?.with_root_certificates(roots);
    let mut calling = roots.with_client_auth_cert(vec![own], key).map_err(|error| text(&error))?;
    calling.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(calling), fingerprint))
}

fn caller(certificate: &webpki::EndEntityCert<'_>, cluster: ClusterUuid) -> Option<Caller> {
    let (administrators, any_node) = (format!(".{ADMINISTRATORS}.{cluster}.gemel"), any_node_name(cluster));
    let names = || certificate.valid_dns_names();
    if let Some(name) = names().find_map(|name| name.strip_suffix(&administrators)) {
        return Some(Caller::Administrator(name.to_owned()));
    }
    let own = format!(".{cluster}.gemel");
    let member = names().filter(|name| *name != any_node).find_map(|name| name.strip_suffix(&own))?;
    let is_node = names().any(|name| name == any_node);
    Some(if is_node { Caller::Node(member.to_owned()) } else { Caller::Witness(member.to_owned()) })
}

/// What an administrator proves himself with.
pub struct AdministratorKeys {
    cluster: ClusterUuid,
    authority: Certificate,
    identity: Identity,
}

/// Why a file is no administrator's identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It can't be read.
    #[error("cannot read the identity {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// It is something else.
    #[error(
        "{0} is not an identity: that is the file admin.pem that `gemel cluster init` made, with a certificate, that \
         of the authority, and a key"
    )]
    Other(PathBuf),
}

impl AdministratorKeys {
    /// Reads an identity.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| IdentityError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).ok_or_else(|| IdentityError::Other(path.to_owned()))
    }

    fn parse(text: &str) -> Option<Self> {
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().ok()?;
        let [leaf, _] = &*certificates else { return None };
        let certificate = webpki::EndEntityCert::try_from(leaf).ok()?;
        let marker = format!(".{ADMINISTRATORS}.");
        let cluster = certificate.valid_dns_names().find_map(|name| {
            let (_, rest) = name.split_once(&marker)?;
            ClusterUuid::try_from(rest.strip_suffix(".gemel")?.to_owned()).ok()
        })?;
        let (own, rest) = text.split_at(text.find(END_OF_CERTIFICATE)? + END_OF_CERTIFICATE.len());
        let (authority, key) = rest.split_at(rest.find(END_OF_CERTIFICATE)? + END_OF_CERTIFICATE.len());
        let (authority, identity) = (Certificate::from_pem(authority), Identity::from_pem(own, key));
        Some(Self { cluster, authority, identity })
    }

    /// For who calls any node of the cluster.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authority.clone())
            .domain_name(any_node_name(self.cluster))
            .timeout(super::link::HANDSHAKE_TIMEOUT)
    }
}

/// Whether a connection failed because one end does not trust the other's certificate.
#[must_use]
pub fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::{AlertDescription, Error};
    let mut cause = Some(error);
    while let Some(error) = cause {
        // An I/O error does not count what it wraps as its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<Error>());
        match inner.or_else(|| error.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(_)) => return true,
            Some(Error::AlertReceived(alert)) => {
                let refusals = [
                    AlertDescription::UnknownCA,
                    AlertDescription::BadCertificate,
                    AlertDescription::DecryptError,
                    AlertDescription::CertificateUnknown,
                    AlertDescription::CertificateRequired,
                ];
                return refusals.contains(alert);
            }
            _ => cause = error.source(),
        }
    }
    false
}

/// The name that all nodes of a cluster have in common in their certificates. No member's own name has a dot.
#[must_use]
pub fn any_node_name(cluster: ClusterUuid) -> String {
    format!("any.nodes.{cluster}.gemel")
}

/// The name of an administrator in his certificate.
#[must_use]
pub fn administrator_name(name: &NodeName, cluster: ClusterUuid) -> String {
    format!("{name}.{ADMINISTRATORS}.{cluster}.gemel")
}

const ADMINISTRATORS: &str = "admins";
const END_OF_CERTIFICATE: &str = "-----END CERTIFICATE-----";

/// The name of a member in its certificate.
#[must_use]
pub fn server_name(member: &NodeName, cluster: ClusterUuid) -> String {
    format!("{member}.{cluster}.gemel")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::authority::{Authority, MemberKeyPair, Subject};

    const UUID: ClusterUuid = ClusterUuid([5; 16]);

    #[test]
    fn a_certificate_says_who_calls() {
        let place = tempfile::tempdir().unwrap();
        let authority = Authority::create(UUID).unwrap();
        authority.issue(&"a".parse().unwrap(), place.path()).unwrap();
        let keys = Keys::load(place.path(), UUID).unwrap();
        let stranger = Keys { cluster: ClusterUuid([6; 16]), ..keys.clone() };
        let cases = [
            (Subject::Node("b".parse().unwrap()), Caller::Node("b".into())),
            (Subject::Witness("w".parse().unwrap()), Caller::Witness("w".into())),
            (Subject::Witness("admins".parse().unwrap()), Caller::Witness("admins".into())),
            (Subject::Administrator("b".parse().unwrap()), Caller::Administrator("b".into())),
        ];
        for (subject, expected) in cases {
            let key = MemberKeyPair::create().unwrap().public_key();
            let pem = authority.certify(&subject, &key).unwrap();
            let certificate = [CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
            assert_eq!(keys.caller(Some(&certificate)), Ok(expected));
            assert_eq!(stranger.caller(Some(&certificate)), Err(CallerError::OtherName));
        }
        assert_eq!(keys.caller(None), Err(CallerError::NoCertificate));
    }

    #[test]
    fn an_identity_is_one_file_and_nothing_else_is_one() {
        let authority = Authority::create(UUID).unwrap();
        let text = authority.administrator_pem(&"admin".parse().unwrap()).unwrap();
        assert_eq!(AdministratorKeys::parse(&text).unwrap().cluster, UUID);
        let key = MemberKeyPair::create().unwrap().public_key();
        let node = authority.certify(&Subject::Node("b".parse().unwrap()), &key).unwrap();
        let others =
            ["", "x", authority.certificate_pem(), &format!("{node}{}", authority.certificate_pem())];
        assert!(others.iter().all(|text| AdministratorKeys::parse(text).is_none()));
    }
}
