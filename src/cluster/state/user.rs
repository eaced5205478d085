//! Who may sign in to the consoles of the cluster and their REST API, and as what.
//!
//! Passwords are kept as argon2 hashes, keys of tokens and links as SHA-256 digests: they have 256 random bits, which
//! nobody tries out. Nothing here lets anybody in; the daemon compares.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ControlState, Outcome, Rejection};
use crate::cluster::name::{TokenName, UserName};

/// What a user may do. Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything.
    Viewer,
    /// Do what loses nothing.
    Operator,
    /// Do everything.
    Administrator,
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: there are viewer, operator and administrator")]
pub struct NoRole(String);

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Administrator];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = NoRole;
    fn from_str(text: &str) -> Result<Self, NoRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| NoRole(text.to_owned()))
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// What he may do.
    pub role: Role,
    /// How his password is checked; none before he has set one.
    pub password: Option<PasswordHash>,
    /// The link by which he may set one.
    pub invitation: Option<Invitation>,
    /// What scripts use in his name.
    pub tokens: BTreeMap<TokenName, ApiToken>,
}

/// A password's hash as a PHC string. Shown by no `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// What was made of a password.
    #[must_use]
    pub fn new(phc: String) -> Self {
        Self(phc)
    }

    /// The PHC string.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn check(&self) -> Result<(), Rejection> {
        // What is checked by something else than argon2 must not come to be checked at all.
        let is_sound = self.0.starts_with("$argon2id$") && self.0.len() <= LONGEST_HASH;
        if is_sound && self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(())
        } else {
            Err(Rejection::BadUser)
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(hidden)")
    }
}

/// SHA-256 of a random key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyDigest(#[serde(with = "super::hexadecimal")] pub Vec<u8>);

impl KeyDigest {
    fn check(&self) -> Result<(), Rejection> {
        if self.0.len() == 32 { Ok(()) } else { Err(Rejection::BadUser) }
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(hidden)")
    }
}

/// A link by which a user sets his password, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// Of the key in the link.
    pub key: KeyDigest,
    /// Until when, in milliseconds since 1970.
    pub until_unix_ms: u64,
}

/// What a script uses in the name of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiToken {
    /// Of the key in the token.
    pub key: KeyDigest,
    /// What it is good for, at most; never for more than its user.
    pub role: Role,
    /// When, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Until when it is good, if not for ever.
    pub until_unix_ms: Option<u64>,
}

impl ControlState {
    /// The users, by name.
    pub fn users(&self) -> impl Iterator<Item = (&UserName, &User)> {
        self.users.iter()
    }

    /// A user.
    #[must_use]
    pub fn user(&self, name: &UserName) -> Option<&User> {
        self.users.get(name)
    }

    pub(super) fn add_user(
        &mut self,
        name: UserName,
        role: Role,
        password: Option<PasswordHash>,
        invitation: Option<Invitation>,
    ) -> Result<Outcome, Rejection> {
        password.iter().try_for_each(PasswordHash::check)?;
        invitation.iter().try_for_each(|invitation| invitation.key.check())?;
        if self.users.contains_key(&name) {
            return Err(Rejection::UserExists(name));
        }
        if self.users.len() >= MOST_USERS {
            return Err(Rejection::LimitReached { what: "users", limit: MOST_USERS });
        }
        self.users.insert(name, User { role, password, invitation, tokens: BTreeMap::new() });
        Ok(Outcome::Changed)
    }

    pub(super) fn remove_user(&mut self, name: &UserName) -> Outcome {
        if self.users.remove(name).is_some() { Outcome::Changed } else { Outcome::Unchanged }
    }

    pub(super) fn set_user_role(&mut self, name: &UserName, role: Role) -> Result<Outcome, Rejection> {
        let user = self.user_mut(name)?;
        let before = std::mem::replace(&mut user.role, role);
        Ok(if before == role { Outcome::Unchanged } else { Outcome::Changed })
    }

    /// Sets a password; by a link only if that is the user's present one and still good. Either way it is used up.
    pub(super) fn set_password(
        &mut self,
        name: &UserName,
        password: PasswordHash,
        by: Option<&KeyDigest>,
        set_unix_ms: u64,
    ) -> Result<Outcome, Rejection> {
        password.check()?;
        let user = self.user_mut(name)?;
        if let Some(key) = by {
            let present = user.invitation.as_ref().filter(|link| link.key == *key);
            if present.is_none_or(|link| set_unix_ms > link.until_unix_ms) {
                return Err(Rejection::BadInvitation);
            }
        }
        if user.invitation.is_none() && user.password.as_ref() == Some(&password) {
            return Ok(Outcome::Unchanged);
        }
        (user.password, user.invitation) = (Some(password), None);
        Ok(Outcome::Changed)
    }

    pub(super) fn invite_user(
        &mut self,
        name: &UserName,
        invitation: Invitation,
    ) -> Result<Outcome, Rejection> {
        invitation.key.check()?;
        let user = self.user_mut(name)?;
        let before = user.invitation.replace(invitation);
        Ok(if before == user.invitation { Outcome::Unchanged } else { Outcome::Changed })
    }

    pub(super) fn add_token(
        &mut self,
        user: &UserName,
        name: TokenName,
        token: ApiToken,
    ) -> Result<Outcome, Rejection> {
        token.key.check()?;
        let owner = self.user_mut(user)?;
        if owner.tokens.contains_key(&name) {
            return Err(Rejection::TokenExists(name));
        }
        if owner.tokens.len() >= MOST_TOKENS {
            return Err(Rejection::LimitReached { what: "tokens of this user", limit: MOST_TOKENS });
        }
        owner.tokens.insert(name, token);
        Ok(Outcome::Changed)
    }

    pub(super) fn remove_token(&mut self, user: &UserName, name: &TokenName) -> Outcome {
        let removed = self.users.get_mut(user).and_then(|user| user.tokens.remove(name));
        if removed.is_some() { Outcome::Changed } else { Outcome::Unchanged }
    }

    fn user_mut(&mut self, name: &UserName) -> Result<&mut User, Rejection> {
        self.users.get_mut(name).ok_or_else(|| Rejection::NoSuchUser(name.clone()))
    }
}

const LONGEST_HASH: usize = 512;
const MOST_USERS: usize = 256;
const MOST_TOKENS: usize = 64;
