//! Who may use the console and the REST API of this node: signing in, sessions, tokens of scripts.
//!
//! Users, their hashes and tokens are a part of the control state, so both nodes know them; sessions are this node's and
//! end with its process. Who is no user here may be one of the site's directory ([`directory`]). Guarantees: a session ends when its user is removed or gets another password, and what he may do
//! is what he may now; who guesses passwords is slowed down, whomever he guesses; no secret reaches a log.

pub mod directory;
pub mod key;
pub mod password;
mod throttle;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::directory::{DirectoryError, LdapConfig};
use self::key::Key;
use self::throttle::Throttle;
use super::calls::{Actor, Way};
use super::control::{Control, Refusal, now_ms};
use super::event_log::EventReporter;
use crate::cluster::name::UserName;
use crate::cluster::state::user::{PasswordHash, Role, User};

/// A session ends when it was not used for so long.
pub const LONGEST_IDLE: Duration = Duration::from_secs(30 * 60);
/// A session ends so long after it began.
pub const LONGEST_SESSION: Duration = Duration::from_secs(12 * 3600);
/// The same for one of the directory, as nobody tells this node when he is removed there.
pub const LONGEST_OF_DIRECTORY: Duration = Duration::from_secs(2 * 3600);
/// Sessions at a time; the one that was not used for the longest time makes room.
const MOST_SESSIONS: usize = 1024;

/// The accounts, as this node uses them.
pub struct Accounts {
    control: Arc<Control>,
    events: EventReporter,
    directory: Option<LdapConfig>,
    started: Instant,
    // A lock because requests are served by tasks that may move between threads; held for moments only.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<Vec<u8>, Kept>,
    throttle: Throttle,
}

/// A session as it is kept: by the digest of its key.
struct Kept {
    proof: Proof,
    form_key: String,
    from: IpAddr,
    began: Instant,
    used: Instant,
    notice: Option<Notice>,
}

/// Who has signed in, and by what.
enum Proof {
    /// A user of the cluster, with his password as it was when the session began.
    Password(UserName, PasswordHash),
    /// One of the directory, with what he might do then.
    Directory(String, Role),
}

/// A session of somebody who has signed in.
#[derive(Clone, Debug)]
pub struct Session {
    /// Who, and what he may do now.
    pub actor: Actor,
    /// What every form of his has to carry, so that no other page can send one in his name.
    pub form_key: String,
    /// What is to be said on the next page.
    pub notice: Option<Notice>,
    /// Whether his password is the directory's.
    pub is_of_directory: bool,
    key: Vec<u8>,
}

/// How an act went, said once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it was done.
    pub is_done: bool,
    /// What there is to say.
    pub text: String,
}

/// Why somebody was not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignInError {
    /// The name, the password or both.
    #[error("the name or the password is wrong")]
    Wrong,
    /// Too many attempts.
    #[error("too many attempts: wait {} s", .0.as_secs().max(1))]
    TooMany(Duration),
    /// The link or the password were refused, or could not be kept.
    #[error("{0}")]
    Refused(String),
    /// The directory.
    #[error(transparent)]
    Directory(DirectoryError),
}

impl Accounts {
    /// The accounts of a node.
    #[must_use]
    pub fn new(control: Arc<Control>, events: EventReporter, directory: Option<LdapConfig>) -> Arc<Self> {
        Arc::new(Self { control, events, directory, started: Instant::now(), inner: Mutex::default() })
    }

    /// Whether there is anybody who could sign in.
    #[must_use]
    pub fn is_anybody(&self) -> bool {
        self.directory.is_some() || self.control.look(|state| state.users().next().is_some())
    }

    /// Signs somebody in; the key of his session.
    ///
    /// # Errors
    /// [`SignInError`].
    pub async fn sign_in(&self, name: &str, password: &str, from: IpAddr) -> Result<String, SignInError> {
        let keys = [format!("from {}", network(from)), format!("user {name}")];
        self.admit(&keys)?;
        let user = name.parse::<UserName>().ok();
        let user = user
            .and_then(|name| self.control.look(|state| state.user(&name).cloned().map(|user| (name, user))));
        // A user of the cluster is never one of the directory: who makes one here decides what he may do.
        if user.is_none()
            && let Some(directory) = &self.directory
        {
            return self.sign_in_by(directory, name, password, (from, &keys)).await;
        }
        let found = user.and_then(|(name, user)| Some((name, user.password?)));
        // One who does not exist takes as long.
        let is_right = match &found {
            Some((_, hash)) => password::is_right(password, hash).await,
            None => {
                password::waste(password).await;
                false
            }
        };
        match found.filter(|_| is_right) {
            Some((name, hash)) => {
                self.lock().throttle.forgive(&keys);
                self.events.info("sign-in", format!("{name} signed in to the console from {from}"), &[]);
                self.begin(Proof::Password(name, hash), from)
            }
            None => {
                self.tell_refusal(name, from, "");
                Err(SignInError::Wrong)
            }
        }
    }

    async fn sign_in_by(
        &self,
        directory: &LdapConfig,
        name: &str,
        password: &str,
        (from, keys): (IpAddr, &[String]),
    ) -> Result<String, SignInError> {
        let name = name.to_ascii_lowercase();
        match directory.sign_in(&name, password).await {
            Ok(role) => {
                self.lock().throttle.forgive(keys);
                let message =
                    format!("{name} of the directory signed in to the console as {role}, from {from}");
                self.events.info("sign-in", message, &[]);
                self.begin(Proof::Directory(name, role), from)
            }
            Err(error) => {
                self.tell_refusal(&name, from, &format!(": {error}"));
                Err(if error == DirectoryError::Wrong {
                    SignInError::Wrong
                } else {
                    SignInError::Directory(error)
                })
            }
        }
    }

    fn tell_refusal(&self, name: &str, from: IpAddr, why: &str) {
        let shown: String = name.chars().filter(|letter| !letter.is_control()).take(64).collect();
        let message = format!("somebody at {from} did not get in to the console as {shown:?}{why}");
        self.events.warning("sign-in-refused", message, &[]);
    }

    /// Sets the password of who has the link with this key, and signs him in.
    ///
    /// # Errors
    /// [`SignInError`].
    pub async fn accept(
        &self,
        name: &str,
        key: &str,
        password: &str,
        from: IpAddr,
    ) -> Result<String, SignInError> {
        let keys = [format!("from {}", network(from)), format!("link {name}")];
        self.admit(&keys)?;
        let set = self.control.set_password_by_link(name, key, password).await;
        let (name, hash) = set.map_err(|refusal| SignInError::Refused(refusal.to_string()))?;
        self.lock().throttle.forgive(&keys);
        let message = format!("{name} set a password by a link, from {from}");
        self.events.info("password-set", message, &[]);
        self.begin(Proof::Password(name, hash), from)
    }

    /// Sets the password of who is signed in, who has to know his present one. His other sessions end.
    ///
    /// # Errors
    /// [`SignInError`].
    pub async fn change_password(
        &self,
        session: &Session,
        present: &str,
        new: &str,
    ) -> Result<(), SignInError> {
        let keys = [format!("user {}", session.actor.name)];
        self.admit(&keys)?;
        let name: UserName = session.actor.name.parse().map_err(|_| SignInError::Wrong)?;
        let hash = self.control.look(|state| state.user(&name).and_then(|user| user.password.clone()));
        let hash = hash.ok_or(SignInError::Wrong)?;
        if !password::is_right(present, &hash).await {
            return Err(SignInError::Wrong);
        }
        self.lock().throttle.forgive(&keys);
        let set = self.control.set_own_password(&name, new).await;
        let hash = set.map_err(|refusal| SignInError::Refused(refusal.to_string()))?;
        if let Some(kept) = self.lock().sessions.get_mut(&session.key) {
            kept.proof = Proof::Password(name.clone(), hash);
        }
        self.events.info("password-set", format!("{name} set another password"), &[]);
        Ok(())
    }

    /// The session with this key. Where somebody looks at a page it counts as used by that, and what was to be said is said
    /// with it; what a page asks for by itself does neither.
    #[must_use]
    pub fn session(&self, key: &str, is_visit: bool) -> Option<Session> {
        let key = Key::parse(key)?.digest().0;
        let mut inner = self.lock();
        let kept = inner.sessions.get_mut(&key)?;
        let now = Instant::now();
        let (longest, who) = match &kept.proof {
            Proof::Password(name, password) => {
                let user = self.control.look(|state| state.user(name).cloned());
                let user = user.filter(|user| user.password.as_ref() == Some(password));
                (LONGEST_SESSION, user.map(|user| (name.to_string(), user.role)))
            }
            Proof::Directory(name, role) => (LONGEST_OF_DIRECTORY, Some((name.clone(), *role))),
        };
        let is_over = now - kept.used > LONGEST_IDLE || now - kept.began > longest;
        let Some((name, role)) = who.filter(|_| !is_over) else {
            inner.sessions.remove(&key);
            return None;
        };
        if is_visit {
            kept.used = now;
        }
        let notice = if is_visit { kept.notice.take() } else { None };
        let actor = Actor { name, role, way: Way::Console, from: kept.from.to_string() };
        let is_of_directory = matches!(kept.proof, Proof::Directory(..));
        Some(Session { actor, form_key: kept.form_key.clone(), notice, is_of_directory, key })
    }

    /// Has something said on the session's next page.
    pub fn say(&self, session: &Session, is_done: bool, text: String) {
        if let Some(kept) = self.lock().sessions.get_mut(&session.key) {
            kept.notice = Some(Notice { is_done, text });
        }
    }

    /// Ends a session.
    pub fn sign_out(&self, session: &Session) {
        self.lock().sessions.remove(&session.key);
    }

    /// The script that has this token.
    ///
    /// # Errors
    /// [`SignInError`].
    pub fn script(&self, token: &str, from: IpAddr) -> Result<Actor, SignInError> {
        let keys = [format!("from {}", network(from))];
        self.admit(&keys)?;
        let now = now_ms();
        let actor = key::parse_token(token).and_then(|(user_name, name, key)| {
            let user: User = self.control.look(|state| state.user(&user_name).cloned())?;
            let token = user.tokens.get(&name)?;
            let is_right = key::is_same(&token.key, &key.digest());
            let is_good = is_right && token.until_unix_ms.is_none_or(|until| now <= until);
            let role: Role = token.role.min(user.role);
            let name = format!("{user_name}/{name}");
            is_good.then(|| Actor { name, role, way: Way::Script, from: from.to_string() })
        });
        let actor = actor.ok_or(SignInError::Wrong)?;
        self.lock().throttle.forgive(&keys);
        Ok(actor)
    }

    fn begin(&self, proof: Proof, from: IpAddr) -> Result<String, SignInError> {
        let random = || Key::random().map_err(|error| SignInError::Refused(error.to_string()));
        let (key, form_key, now) = (random()?, random()?.to_string(), Instant::now());
        let mut inner = self.lock();
        inner.sessions.retain(|_, kept| now - kept.used <= LONGEST_IDLE);
        if inner.sessions.len() >= MOST_SESSIONS {
            let oldest = inner.sessions.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| inner.sessions.remove(&oldest));
        }
        let kept = Kept { proof, form_key, from, began: now, used: now, notice: None };
        inner.sessions.insert(key.digest().0, kept);
        Ok(key.to_string())
    }

    /// Counts an attempt, unless there were too many.
    fn admit(&self, keys: &[String]) -> Result<(), SignInError> {
        let now = self.started.elapsed();
        self.lock().throttle.admit(now, keys).map_err(SignInError::TooMany)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Consistent between any two statements, so a panic elsewhere spoils nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of whom attempts are counted together: an address, or the network that an IPv6 host has to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() >> 64 << 64;
            IpAddr::V6(std::net::Ipv6Addr::from_bits(prefix))
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl From<Refusal> for SignInError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}
