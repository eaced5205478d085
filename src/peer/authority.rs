//! The cluster's own certificate authority: who has a certificate of it is a member.
//!
//! A certificate names its member as `NAME.CLUSTERUUID.gemel` and nothing else, and serves both directions.
//! Certificates do not expire: a member is removed by taking it out of the voters and of the configurations.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::tls::{CA_NAME, CERTIFICATE_NAME, KEY_NAME, server_name};
use crate::cluster::name::NodeName;
use crate::cluster::state::ClusterUuid;

/// An authority with its key.
pub struct Authority {
    cluster: ClusterUuid,
    certificate_pem: String,
    key: KeyPair,
}

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
}

impl Authority {
    /// A new authority for a cluster.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn create(cluster: ClusterUuid) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate_pem = parameters(cluster)?.self_signed(&key)?.pem();
        Ok(Self { cluster, certificate_pem, key })
    }

    /// Makes a key and a certificate for a member, and writes them with the authority's certificate to `directory`.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&self, member: &NodeName, directory: &Path) -> Result<(), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut wanted = CertificateParams::new(vec![server_name(member, self.cluster)])?;
        wanted.distinguished_name.push(DnType::CommonName, member.as_str());
        wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wanted.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        wanted.use_authority_key_identifier_extension = true;
        let parameters = parameters(self.cluster)?;
        let certificate = wanted.signed_by(&key, &Issuer::from_params(&parameters, &self.key))?;
        fs::create_dir_all(directory)
            .map_err(|source| AuthorityError::Write { path: directory.to_owned(), source })?;
        write(&directory.join(CA_NAME), &self.certificate_pem, 0o644)?;
        write(&directory.join(CERTIFICATE_NAME), &certificate.pem(), 0o644)?;
        write(&directory.join(KEY_NAME), &key.serialize_pem(), 0o600)
    }
}

fn parameters(cluster: ClusterUuid) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, format!("gemel cluster {cluster}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let written = || -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().map_err(|source| AuthorityError::Write { path: path.to_owned(), source })
}
