//! The cluster's own certificate authority: who has a certificate of it is a member or an administrator.
//!
//! A certificate names what it is for, and nothing else: a member as `NAME.CLUSTERUUID.gemel`, a node besides as
//! [any node](super::tls::any_node_name), an administrator as `NAME.admins.CLUSTERUUID.gemel`. Those of members serve both
//! directions, those of administrators only that of the caller. Certificates do not expire: a member is removed by
//! taking it out of the voters and of the configurations.
//!
//! The key lies in `ca.key`, readable by root alone, on both nodes and nowhere else: with one node lost the other one can
//! still accept a machine in its place. The witness and administrators never get it. What a node's own key opens
//! anyway, all data and the management of both nodes, is no less than what this one does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use rustls_pki_types::TrustAnchor;

use super::tls::{CA_KEY_NAME, CA_NAME, CERTIFICATE_NAME, KEY_NAME};
use super::tls::{administrator_name, any_node_name, server_name};
use crate::cluster::name::NodeName;
use crate::cluster::state::ClusterUuid;

/// An authority with its key.
pub struct Authority {
    cluster: ClusterUuid,
    certificate_pem: String,
    key: KeyPair,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A node.
    Node(NodeName),
    /// The witness.
    Witness(NodeName),
    /// Somebody who manages the cluster.
    Administrator(NodeName),
}

/// The public key of an authority, by which it is known: Ed25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityKey(pub [u8; 32]);

/// The public key of a member: a point of P-256, not compressed (SEC 1 section 2.3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberKey(Vec<u8>);

/// A member's key pair. The private half leaves the machine in no message.
pub struct MemberKeyPair(KeyPair);

/// Why keys or certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Making them failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A file.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A public key that is none.
    #[error("that is not a member's public key")]
    NoKey,
}

impl Authority {
    /// A new authority for a cluster.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn create(cluster: ClusterUuid) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate_pem = parameters(cluster)?.self_signed(&key)?.pem();
        Ok(Self { cluster, certificate_pem, key })
    }

    /// The authority whose files are in `directory`.
    ///
    /// # Errors
    /// [`AuthorityError::Read`] also where this machine does not have its key; [`AuthorityError::Make`].
    pub fn load(directory: &Path, cluster: ClusterUuid) -> Result<Self, AuthorityError> {
        Self::from_pem(cluster, read(&directory.join(CA_NAME))?, &read(&directory.join(CA_KEY_NAME))?)
    }

    /// The authority with this certificate and this key.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn from_pem(
        cluster: ClusterUuid,
        certificate_pem: String,
        key_pem: &str,
    ) -> Result<Self, AuthorityError> {
        Ok(Self { cluster, certificate_pem, key: KeyPair::from_pem(key_pem)? })
    }

    /// Keeps the authority with its key in `directory`.
    ///
    /// # Errors
    /// [`AuthorityError::Write`].
    pub fn save(&self, directory: &Path) -> Result<(), AuthorityError> {
        write_public(&directory.join(CA_NAME), &self.certificate_pem)?;
        write_secret(&directory.join(CA_KEY_NAME), &self.key_pem())
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its private key.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Its public key.
    ///
    /// # Errors
    /// [`AuthorityError::NoKey`] for one of another kind than [`Self::create`] makes.
    pub fn public_key(&self) -> Result<AuthorityKey, AuthorityError> {
        let is_ours = self.key.is_compatible(&PKCS_ED25519);
        let bytes = <[u8; 32]>::try_from(self.key.public_key_raw()).ok().filter(|_| is_ours);
        bytes.map(AuthorityKey).ok_or(AuthorityError::NoKey)
    }

    /// A certificate for who has this key.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn certify(&self, subject: &Subject, key: &MemberKey) -> Result<String, AuthorityError> {
        let (name, names, usages) = match subject {
            Subject::Node(name) => {
                (name, vec![server_name(name, self.cluster), any_node_name(self.cluster)], BOTH_DIRECTIONS)
            }
            Subject::Witness(name) => (name, vec![server_name(name, self.cluster)], BOTH_DIRECTIONS),
            Subject::Administrator(name) => (name, vec![administrator_name(name, self.cluster)], CALLER),
        };
        let mut wanted = CertificateParams::new(names)?;
        wanted.distinguished_name.push(DnType::CommonName, name.as_str());
        wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wanted.extended_key_usages = usages.to_vec();
        wanted.use_authority_key_identifier_extension = true;
        let parameters = parameters(self.cluster)?;
        Ok(wanted.signed_by(key, &Issuer::from_params(&parameters, &self.key))?.pem())
    }

    /// Makes a key and a certificate for a node, and writes them with the authority's certificate to `directory`.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&self, node: &NodeName, directory: &Path) -> Result<(), AuthorityError> {
        let key = MemberKeyPair::create()?;
        let certificate = self.certify(&Subject::Node(node.clone()), &key.public_key())?;
        fs::create_dir_all(directory)
            .map_err(|source| AuthorityError::Write { path: directory.to_owned(), source })?;
        write_public(&directory.join(CA_NAME), &self.certificate_pem)?;
        write_public(&directory.join(CERTIFICATE_NAME), &certificate)?;
        write_secret(&directory.join(KEY_NAME), &key.pem())
    }

    /// All that an administrator needs to be let in, as one file: certificate, the authority's certificate, key.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn administrator_pem(&self, name: &NodeName) -> Result<String, AuthorityError> {
        let key = MemberKeyPair::create()?;
        let certificate = self.certify(&Subject::Administrator(name.clone()), &key.public_key())?;
        Ok(format!("{certificate}{}{}", self.certificate_pem, key.pem()))
    }
}

impl AuthorityKey {
    /// What certificates of the authority with this key are verified with, for who does not have its certificate.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn trust_anchor(&self, cluster: ClusterUuid) -> Result<TrustAnchor<'static>, AuthorityError> {
        // An anchor is a name and a key (RFC 5280 section 6.1.1 d). They are taken from a certificate with both; who
        // signed that is of no concern, as an anchor is trusted for other reasons than a signature.
        let parameters = parameters(cluster)?;
        let nobody = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = parameters.signed_by(self, &Issuer::from_params(&parameters, &nobody))?;
        let anchor =
            webpki::anchor_from_trusted_cert(certificate.der()).map_err(|_| AuthorityError::NoKey)?;
        Ok(anchor.to_owned())
    }
}

impl PublicKeyData for AuthorityKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl MemberKey {
    /// A key that was sent. That the sender has the private half shows when the certificate is used.
    ///
    /// # Errors
    /// [`AuthorityError::NoKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AuthorityError> {
        match bytes {
            [UNCOMPRESSED, point @ ..] if point.len() == 64 => Ok(Self(bytes.to_vec())),
            _ => Err(AuthorityError::NoKey),
        }
    }

    /// As it is sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PublicKeyData for MemberKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl MemberKeyPair {
    /// A new one.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn create() -> Result<Self, AuthorityError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// The one in `path`, which is made where there is none: who asks twice asks with the same key.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn load_or_create(path: &Path) -> Result<Self, AuthorityError> {
        match fs::read_to_string(path) {
            Ok(text) => {
                let pair = KeyPair::from_pem(&text)?;
                let is_ours = pair.is_compatible(&PKCS_ECDSA_P256_SHA256);
                if is_ours { Ok(Self(pair)) } else { Err(AuthorityError::NoKey) }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = Self::create()?;
                write_secret(path, &pair.pem())?;
                Ok(pair)
            }
            Err(source) => Err(AuthorityError::Read { path: path.to_owned(), source }),
        }
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> MemberKey {
        MemberKey(self.0.public_key_raw().to_vec())
    }

    fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

fn parameters(cluster: ClusterUuid) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, format!("gemel cluster {cluster}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| AuthorityError::Read { path: path.to_owned(), source })
}

/// A certificate that vouches for itself, for who is called by these names (or addresses) until `last_day`, and its key:
/// both as PEM. For browsers, which verify P-256 and not Ed25519, so the cluster's authority is of no use to them.
///
/// # Errors
/// [`AuthorityError::Make`].
pub fn self_signed(names: &[String], last_day: (i32, u8, u8)) -> Result<(String, String), AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut wanted = CertificateParams::new(names)?;
    wanted.distinguished_name.push(DnType::CommonName, names.first().map_or("gemel", String::as_str));
    wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (year, month, day) = last_day;
    // Not before: clocks of browsers that are late are no reason to refuse it.
    wanted.not_before = rcgen::date_time_ymd(year - 3, 1, 1);
    wanted.not_after = rcgen::date_time_ymd(year, month, day);
    Ok((wanted.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Writes a file that everybody may read, whole or not at all.
///
/// # Errors
/// [`AuthorityError::Write`].
pub fn write_public(path: &Path, text: &str) -> Result<(), AuthorityError> {
    write(path, text, 0o644)
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// [`AuthorityError::Write`].
pub fn write_secret(path: &Path, text: &str) -> Result<(), AuthorityError> {
    write(path, text, 0o600)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    written().map_err(|source| AuthorityError::Write { path: path.to_owned(), source })
}

const BOTH_DIRECTIONS: &[ExtendedKeyUsagePurpose] =
    &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
const CALLER: &[ExtendedKeyUsagePurpose] = &[ExtendedKeyUsagePurpose::ClientAuth];
/// First byte of a point that is not compressed.
const UNCOMPRESSED: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_kept_with_its_key_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let cluster = ClusterUuid([3; 16]);
        let authority = Authority::create(cluster).unwrap();
        authority.save(place.path()).unwrap();
        let mode = |name: &str| fs::metadata(place.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(CA_KEY_NAME), mode(CA_NAME)), (0o600, 0o644));
        let again = Authority::load(place.path(), cluster).unwrap();
        assert_eq!(again.public_key().unwrap(), authority.public_key().unwrap());
        assert_eq!(again.certificate_pem(), authority.certificate_pem());
    }

    #[test]
    fn a_key_is_made_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(KEY_NAME);
        let first = MemberKeyPair::load_or_create(&path).unwrap().public_key();
        assert_eq!(MemberKeyPair::load_or_create(&path).unwrap().public_key(), first);
        assert_eq!(MemberKey::from_bytes(first.as_bytes()).unwrap(), first);
        for bad in [&first.as_bytes()[1..], &[], &[2; 65]] {
            assert!(MemberKey::from_bytes(bad).is_err());
        }
    }

    #[test]
    fn an_anchor_is_made_of_the_public_key_alone() {
        use rustls_pki_types::{CertificateDer, pem::PemObject};
        let cluster = ClusterUuid([3; 16]);
        let authority = Authority::create(cluster).unwrap();
        let certificate = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
        let true_anchor = webpki::anchor_from_trusted_cert(&certificate).unwrap();
        let made = authority.public_key().unwrap().trust_anchor(cluster).unwrap();
        assert_eq!((made.subject, made.subject_public_key_info), {
            (true_anchor.subject.clone(), true_anchor.subject_public_key_info.clone())
        });
        let other = Authority::create(cluster).unwrap().public_key().unwrap().trust_anchor(cluster).unwrap();
        assert_ne!(other.subject_public_key_info, true_anchor.subject_public_key_info);
    }
}
