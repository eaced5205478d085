//! The certificate of the console: the site's, from files that are read again when they change; or one that the node makes
//! for itself and renews long before it is over.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use sha2::{Digest, Sha256};

use crate::daemon::config::Config;
use crate::peer::authority::{self_signed, write_public, write_secret};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(600);
/// How long an own certificate is good: browsers take no longer ones.
const GOOD: Duration = Duration::from_secs(397 * 24 * 3600);
/// When it is made anew.
const OLD: Duration = Duration::from_secs(300 * 24 * 3600);

/// The certificate that is shown now.
#[derive(Debug)]
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    /// Names for which the node makes its own.
    own: Option<Vec<String>>,
    // A lock because connections are made by tasks that may move between threads; held for copies only.
    now: RwLock<Arc<CertifiedKey>>,
}

/// Why there is no certificate. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "the console's certificate {0}: {1}; console.certificate and console.key in the configuration name it"
)]
pub struct CertificateError(PathBuf, String);

impl Certificate {
    /// The certificate of a node's console.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn open(config: &Config) -> Result<Arc<Self>, CertificateError> {
        let console = &config.console;
        let (certificate, key, own) = match (&console.certificate, &console.key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone(), None),
            _ => {
                let directory = &config.state_dir;
                (directory.join("console.pem"), directory.join("console.key"), Some(names(config)))
            }
        };
        if let Some(names) = &own {
            keep_own(&certificate, &key, names)?;
        }
        let now = RwLock::new(Arc::new(read(&certificate, &key)?));
        Ok(Arc::new(Self { certificate, key, own, now }))
    }

    /// How connections are protected by it.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn server(self: &Arc<Self>) -> Result<Arc<ServerConfig>, CertificateError> {
        server(self.clone()).map_err(|error| self.error(&error.to_string()))
    }

    /// Shows what is new, for ever.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = self.changed_at();
        loop {
            tokio::time::sleep(LOOK).await;
            let made =
                self.own.as_ref().map_or(Ok(()), |names| keep_own(&self.certificate, &self.key, names));
            let now = self.changed_at();
            if made.is_ok() && now == seen {
                continue;
            }
            match made.and_then(|()| read(&self.certificate, &self.key)) {
                Ok(certificate) => {
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
                    tracing::info!(path = %self.certificate.display(), "the console's certificate is a new one");
                    seen = now;
                }
                // The old one goes on: it may be good for a while yet.
                Err(error) => tracing::warn!(%error, "the console's certificate cannot be renewed"),
            }
        }
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key]
            .map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
    }

    fn error(&self, reason: &str) -> CertificateError {
        CertificateError(self.certificate.clone(), reason.to_owned())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Connections protected by a certificate that is made now and kept nowhere, and its SHA-256 fingerprint, for a machine that is
/// reached at `address`.
///
/// # Errors
/// [`CertificateError`].
pub fn temporary(address: &std::net::IpAddr) -> Result<(Arc<ServerConfig>, String), CertificateError> {
    let failed = |error: &dyn std::error::Error| CertificateError(PathBuf::new(), error.to_string());
    let names =
        [host(), "localhost".to_owned(), address.to_string()].into_iter().filter(|name| is_plain(name));
    let (certificate, key) =
        self_signed(&names.collect::<Vec<_>>(), last_day()).map_err(|error| failed(&error))?;
    let certificate =
        CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| failed(&error))?;
    let fingerprint: Vec<_> = Sha256::digest(&certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| failed(&error))?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| failed(&error))?;
    let certified = Arc::new(CertifiedKey::new(vec![certificate], signing));
    let server = server(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    Ok((server.map_err(|error| failed(&error))?, fingerprint.join(":")))
}

fn server(certificate: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut server = versions.with_no_client_auth().with_cert_resolver(certificate);
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(server))
}

/// Makes the node's own certificate, unless there is one that has these names and is not old.
fn keep_own(certificate: &Path, key: &Path, names: &[String]) -> Result<(), CertificateError> {
    let head = format!("Made by gemeld for {}\n", names.join(", "));
    let age = std::fs::metadata(certificate).and_then(|file| file.modified());
    let is_new = age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < OLD));
    let is_ours = std::fs::read_to_string(certificate).is_ok_and(|text| text.starts_with(&head));
    if is_new && is_ours && key.exists() {
        return Ok(());
    }
    let failed = |error: &dyn std::error::Error| CertificateError(certificate.to_owned(), error.to_string());
    let (made, made_key) = self_signed(names, last_day()).map_err(|error| failed(&error))?;
    write_secret(key, &made_key).map_err(|error| failed(&error))?;
    write_public(certificate, &format!("{head}{made}")).map_err(|error| failed(&error))
}

/// Year, month and day on which a certificate that is made now is over.
fn last_day() -> (i32, u8, u8) {
    let text = humantime::format_rfc3339_seconds(SystemTime::now() + GOOD).to_string();
    let mut parts = text[..10].split('-').map(|part| part.parse::<i32>().unwrap_or(1));
    let mut next = || parts.next().unwrap_or(1);
    (next(), u8::try_from(next()).unwrap_or(1), u8::try_from(next()).unwrap_or(1))
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let failed =
        |path: &Path, error: &dyn std::error::Error| CertificateError(path.to_owned(), error.to_string());
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| failed(certificate, &error))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| failed(certificate, &error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
    let signing =
        rustls::crypto::ring::sign::any_supported_type(&secret).map_err(|error| failed(key, &error))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(failed(certificate, &error)),
    }
}

/// What this node may be called.
fn names(config: &Config) -> Vec<String> {
    let members = config.pair.iter().flat_map(|pair| &pair.listen);
    let addresses = config.console.listen.iter().chain(members).chain(&config.iscsi.portals);
    let addresses = addresses.map(std::net::SocketAddr::ip).filter(|address| !address.is_unspecified());
    let texts = [config.node.to_string(), host(), "localhost".to_owned()];
    let mut names: Vec<String> = Vec::new();
    for name in texts.into_iter().chain(addresses.map(|address| address.to_string())) {
        if is_plain(&name) && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The name of this machine.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Whether a certificate may name it.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-".contains(&byte))
}

/// Addresses under which the console is reached, for people.
#[must_use]
pub fn addresses(config: &Config) -> Vec<String> {
    let scheme = if config.console.tls { "https" } else { "http" };
    let host = host();
    let shown = config.console.listen.iter().map(|address| match address.ip().is_unspecified() {
        true => format!("{scheme}://{host}:{}", address.port()),
        false => format!("{scheme}://{address}"),
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_certificate_is_made_kept_and_made_again_for_other_names() {
        let place = tempfile::tempdir().unwrap();
        let (certificate, key) = (place.path().join("console.pem"), place.path().join("console.key"));
        let text = || std::fs::read_to_string(&certificate).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        keep_own(&certificate, &key, &names(&["a", "127.0.0.1"])).unwrap();
        let first = text();
        assert_eq!(read(&certificate, &key).unwrap().cert.len(), 1);
        keep_own(&certificate, &key, &names(&["a", "127.0.0.1"])).unwrap();
        assert_eq!(text(), first);
        keep_own(&certificate, &key, &names(&["a", "192.0.2.1"])).unwrap();
        assert_ne!(text(), first);
        // One that is old is made anew.
        let second = text();
        let old = SystemTime::now() - OLD - Duration::from_secs(1);
        std::fs::File::options().write(true).open(&certificate).unwrap().set_modified(old).unwrap();
        keep_own(&certificate, &key, &names(&["a", "192.0.2.1"])).unwrap();
        assert_ne!(text(), second);
        // Another's key is no key of it.
        std::fs::write(&key, self_signed(&names(&["x"]), last_day()).unwrap().1).unwrap();
        assert!(read(&certificate, &key).is_err());
        assert!(read(&certificate, &place.path().join("none")).is_err());
    }
}
