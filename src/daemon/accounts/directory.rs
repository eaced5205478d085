//! Signing in by the site's directory: LDAP (RFC 4511), as Active Directory and OpenLDAP speak it. The password is tried there, by a
//! bind as the user; groups there say what he may do here.
//!
//! Guarantees: no password travels without TLS to a server whose certificate was verified; none is kept; an empty one never counts, as
//! servers take it for an anonymous bind (RFC 4513 section 5.1.2); a name can't become a part of a filter or of a distinguished name
//! that it is put into.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, dn_escape, ldap_escape};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use crate::cluster::state::user::Role;

/// `[ldap]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LdapConfig {
    /// `ldaps://HOST` or `ldap://HOST`, which is used with StartTLS; the first one that answers is asked.
    servers: Vec<ServerUrl>,
    /// PEM file with the authorities of their certificates; the system's when there is none.
    #[serde(default)]
    authority: Option<PathBuf>,
    /// By which name a user binds; `{user}` stands for what he has typed.
    bind: BindName,
    /// Below which entry users are looked for.
    base: String,
    /// By which filter, with `{user}`.
    #[serde(default = "default_filter")]
    filter: String,
    /// Groups whose members are administrators.
    #[serde(default)]
    administrators: Vec<String>,
    /// Groups whose members are operators.
    #[serde(default)]
    operators: Vec<String>,
    /// Groups whose members are viewers.
    #[serde(default)]
    viewers: Vec<String>,
}

/// Where a directory is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct ServerUrl(String);

impl TryFrom<String> for ServerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let rest = text.strip_prefix("ldaps://").or_else(|| text.strip_prefix("ldap://"));
        match rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '?', ' '])) {
            true => Ok(Self(text)),
            false => Err(format!(
                "{text:?} is no directory server: write ldaps://HOST or ldap://HOST, with :PORT if needed"
            )),
        }
    }
}

/// A name with a place for the user's.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct BindName(String);

impl TryFrom<String> for BindName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.contains(USER) {
            true => Ok(Self(text)),
            false => Err(format!(
                "{text:?} lacks {USER}: write {USER}@example.org, or uid={USER},ou=people,dc=example,dc=org"
            )),
        }
    }
}

/// Why somebody is not let in by the directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// The name, the password or both.
    #[error("the name or the password is wrong")]
    Wrong,
    /// He is who he says, and in none of the groups.
    #[error("the directory knows you, but you are in none of the groups that may sign in here")]
    InNoGroup,
    /// It was not asked, or its answer makes no sense.
    #[error("the directory cannot be asked: {0}; a local user can sign in (gemel user add)")]
    Trouble(String),
}

impl LdapConfig {
    /// What somebody may do, when the directory takes his password. The name is in lower case: RFC 2307's groups have
    /// it so, and nothing else in a directory asks for the case.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn sign_in(&self, user: &str, password: &str) -> Result<Role, DirectoryError> {
        if password.is_empty() || !is_name(user) {
            return Err(DirectoryError::Wrong);
        }
        let tls = self.tls().map_err(DirectoryError::Trouble)?;
        let mut troubles = Vec::new();
        for ServerUrl(url) in &self.servers {
            let settings = LdapConnSettings::new()
                .set_conn_timeout(PATIENCE)
                .set_starttls(url.starts_with("ldap://"))
                .set_config(tls.clone());
            let asked = async {
                let (connection, mut ldap) = LdapConnAsync::with_settings(settings, url).await?;
                let driving = tokio::spawn(connection.drive());
                let role = self.ask(&mut ldap, user, password).await;
                // Said or not: the connection ends.
                let _ = ldap.unbind().await;
                driving.abort();
                role
            };
            match tokio::time::timeout(PATIENCE * 2, asked).await {
                Ok(Ok(role)) => return role.ok_or(DirectoryError::InNoGroup),
                Ok(Err(LdapError::LdapResult { result })) if result.rc == INVALID_CREDENTIALS => {
                    return Err(DirectoryError::Wrong);
                }
                Ok(Err(error)) => troubles.push(format!("{url}: {error}")),
                Err(_) => troubles.push(format!("{url}: no answer")),
            }
        }
        Err(DirectoryError::Trouble(troubles.join(", ")))
    }

    async fn ask(&self, ldap: &mut Ldap, user: &str, password: &str) -> Result<Option<Role>, LdapError> {
        let bind = self.bind.0.replace(USER, &dn_escape(user));
        ldap.with_timeout(PATIENCE).simple_bind(&bind, password).await?.success()?;
        let filter = self.filter.replace(USER, &ldap_escape(user));
        let found =
            ldap.with_timeout(PATIENCE).search(&self.base, Scope::Subtree, &filter, vec!["1.1"]).await?;
        // Referrals to other directories are no entries.
        let entries =
            found.success()?.0.into_iter().filter(|entry| !entry.is_ref() && !entry.is_intermediate());
        let entries: Vec<_> = entries.map(SearchEntry::construct).collect();
        let [entry] = entries.as_slice() else {
            tracing::warn!(count = entries.len(), user, "the directory has not one entry for who signs in");
            return Ok(None);
        };
        for (role, groups) in [
            (Role::Administrator, &self.administrators),
            (Role::Operator, &self.operators),
            (Role::Viewer, &self.viewers),
        ] {
            for group in groups {
                if is_member(ldap, group, &entry.dn, user).await? {
                    return Ok(Some(role));
                }
            }
        }
        Ok(None)
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        let certificates = match &self.authority {
            Some(path) => {
                let failed = |error| format!("ldap.authority {}: {error}", path.display());
                let read = CertificateDer::pem_file_iter(path).map_err(failed)?;
                read.collect::<Result<Vec<_>, _>>().map_err(failed)?
            }
            None => rustls_native_certs::load_native_certs().certs,
        };
        let (taken, _) = roots.add_parsable_certificates(certificates);
        if taken == 0 {
            return Err("no authority is known that its certificate could be of (ldap.authority)".to_owned());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?;
        Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}

/// Whether a group has somebody: by his distinguished name, also by way of groups in it where the server knows that rule (Active
/// Directory), or by his name (RFC 2307). A group that is not there has nobody.
async fn is_member(ldap: &mut Ldap, group: &str, dn: &str, user: &str) -> Result<bool, LdapError> {
    let (dn, user) = (ldap_escape(dn), ldap_escape(user));
    let filter = format!("(|(member={dn})(uniqueMember={dn})(memberUid={user})(member:{IN_CHAIN}:={dn}))");
    let found = ldap.with_timeout(PATIENCE).search(group, Scope::Base, &filter, vec!["1.1"]).await?;
    match found.success() {
        Ok((entries, _)) => Ok(entries.iter().any(|entry| !entry.is_ref())),
        Err(LdapError::LdapResult { result }) if result.rc == NO_SUCH_OBJECT => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether somebody may be called so: what directories allow, without what means something elsewhere.
fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

fn default_filter() -> String {
    format!("(|(uid={USER})(sAMAccountName={USER}))")
}

/// Stands for the user's name.
const USER: &str = "{user}";
const LONGEST_NAME: usize = 64;
/// How long a server gets for each answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Result codes (RFC 4511 section 4.1.9).
const INVALID_CREDENTIALS: u32 = 49;
const NO_SUCH_OBJECT: u32 = 32;
/// LDAP_MATCHING_RULE_IN_CHAIN of Active Directory; other servers take it for undefined, which is not true.
const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_checked_while_it_is_read() {
        let good = "servers = [\"ldaps://dc1.example.org\", \"ldap://192.0.2.9:1389\"]\nbind = \"{user}@example.org\"\nbase = \"dc=example\"\n";
        let config: LdapConfig = toml::from_str(good).unwrap();
        assert_eq!(config.filter, "(|(uid={user})(sAMAccountName={user}))");
        for (bad, what) in [
            (good.replace("ldaps://dc1.example.org", "dc1.example.org"), "is no directory server"),
            (good.replace("ldaps://dc1.example.org", "http://dc1"), "is no directory server"),
            (good.replace("{user}@", ""), "lacks {user}"),
            (format!("{good}groups = []\n"), "unknown field"),
        ] {
            let error = toml::from_str::<LdapConfig>(&bad).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn names_are_plain() {
        for good in ["anne", "Anne.Muller", "svc_backup-2"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "a*", "a)(uid=*", "a,dc=x", "a\0", &"a".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
