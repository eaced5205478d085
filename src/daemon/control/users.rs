//! Commands on who may sign in to the console, and on tokens of scripts.

use std::time::Duration;

use super::volumes::changed;
use super::{Control, Refusal, now_ms};
use crate::cluster::name::{TokenName, UserName};
use crate::cluster::state::user::{ApiToken, Invitation, NoRole, PasswordHash, Role, User};
use crate::cluster::state::{Command, Rejection};
use crate::daemon::accounts::key::{self, Key};
use crate::daemon::accounts::password::{self, PasswordError};
use crate::rpc::management as messages;

/// How long a link is good.
const LINK: Duration = Duration::from_secs(24 * 3600);

impl Control {
    /// Who may sign in.
    #[must_use]
    pub fn users(&self) -> Vec<messages::User> {
        self.machine.read(|state| state.users().map(|(name, user)| message(name, user)).collect())
    }

    /// Adds a user, with a password or a link to set one.
    pub async fn add_user(&self, request: messages::AddUserRequest) -> Result<messages::UserAccess, Refusal> {
        let (name, role): (UserName, Role) = (request.name.parse()?, request.role.parse()?);
        let (password, link) = match request.password.as_str() {
            "" => (None, Some(Link::new(&name)?)),
            password => (Some(password::hash(password).await?), None),
        };
        let invitation = link.as_ref().map(|link| link.invitation.clone());
        let _turn = self.turn().await;
        let command = Command::AddUser { name: name.clone(), role, password, invitation };
        self.machine.apply(vec![command]).await?;
        self.events.info("user-added", format!("{name} may sign in as {role}"), &[]);
        Ok(access(&name, link))
    }

    /// Takes that back.
    pub async fn remove_user(&self, name: &str) -> Result<(), Refusal> {
        let name: UserName = name.parse()?;
        let _turn = self.turn().await;
        if !changed(&self.machine.apply(vec![Command::RemoveUser { name: name.clone() }]).await?) {
            return Err(Rejection::NoSuchUser(name).into());
        }
        self.events.info("user-removed", format!("{name} may not sign in any more"), &[]);
        Ok(())
    }

    /// Changes what a user may do, from now on.
    pub async fn set_user_role(
        &self,
        request: messages::SetUserRoleRequest,
    ) -> Result<messages::User, Refusal> {
        let (name, role): (UserName, Role) = (request.name.parse()?, request.role.parse()?);
        let _turn = self.turn().await;
        if changed(&self.machine.apply(vec![Command::SetUserRole { name: name.clone(), role }]).await?) {
            self.events.info("user-role", format!("{name} is {role} now"), &[]);
        }
        let shown = self.machine.read(|state| state.user(&name).map(|user| message(&name, user)));
        shown.ok_or_else(|| Rejection::NoSuchUser(name).into())
    }

    /// Sets a user's password, or gives him a link to do so himself.
    pub async fn set_password(
        &self,
        request: messages::SetPasswordRequest,
    ) -> Result<messages::UserAccess, Refusal> {
        let name: UserName = request.name.parse()?;
        if !request.password.is_empty() {
            self.set_own_password(&name, &request.password).await?;
            self.events.info("password-set", format!("the password of {name} was set"), &[]);
            return Ok(access(&name, None));
        }
        let link = Link::new(&name)?;
        let _turn = self.turn().await;
        let command = Command::InviteUser { name: name.clone(), invitation: link.invitation.clone() };
        self.machine.apply(vec![command]).await?;
        self.events.info("user-invited", format!("{name} may set a password by a link"), &[]);
        Ok(access(&name, Some(link)))
    }

    /// Sets a password.
    pub async fn set_own_password(&self, name: &UserName, password: &str) -> Result<PasswordHash, Refusal> {
        self.keep_password(name, password, None).await
    }

    /// Sets the password of who has a link with this key.
    pub async fn set_password_by_link(
        &self,
        name: &str,
        key: &str,
        password: &str,
    ) -> Result<(UserName, PasswordHash), Refusal> {
        let bad = || Refusal::from(Rejection::BadInvitation);
        let (name, key) = (name.parse::<UserName>().map_err(|_| bad())?, Key::parse(key).ok_or_else(bad)?);
        let is_good = self.machine.read(|state| {
            let link = state.user(&name).and_then(|user| user.invitation.as_ref());
            link.is_some_and(|link| key::is_same(&link.key, &key.digest()) && now_ms() <= link.until_unix_ms)
        });
        if !is_good {
            return Err(bad());
        }
        let hash = self.keep_password(&name, password, Some(&key)).await?;
        Ok((name, hash))
    }

    async fn keep_password(
        &self,
        name: &UserName,
        password: &str,
        by: Option<&Key>,
    ) -> Result<PasswordHash, Refusal> {
        let hash = password::hash(password).await?;
        let _turn = self.turn().await;
        let command = Command::SetPassword {
            name: name.clone(),
            password: hash.clone(),
            by: by.map(Key::digest),
            set_unix_ms: now_ms(),
        };
        self.machine.apply(vec![command]).await?;
        Ok(hash)
    }

    /// Gives a user a token for scripts.
    pub async fn create_api_token(
        &self,
        request: messages::CreateApiTokenRequest,
    ) -> Result<messages::ApiToken, Refusal> {
        let (user, name): (UserName, TokenName) = (request.user.parse()?, request.name.parse()?);
        let users = self.machine.read(|state| state.user(&user).map(|user| user.role));
        let most = users.ok_or_else(|| Rejection::NoSuchUser(user.clone()))?;
        let role = if request.role.is_empty() { most } else { request.role.parse()? };
        if role > most {
            return Err(Refusal::Impossible(format!(
                "{user} is {most}, so a token of theirs cannot be {role}"
            )));
        }
        let (key, now_ms) = (random_key()?, now_ms());
        let valid_ms = request.valid_seconds.saturating_mul(1000);
        let until_unix_ms = (valid_ms > 0).then(|| now_ms.saturating_add(valid_ms));
        let token = ApiToken { key: key.digest(), role, created_unix_ms: now_ms, until_unix_ms };
        let _turn = self.turn().await;
        let command = Command::AddToken { user: user.clone(), name: name.clone(), token };
        self.machine.apply(vec![command]).await?;
        self.events.info("token-created", format!("{user} has a token {name} as {role}"), &[]);
        Ok(messages::ApiToken {
            token: key::token(&user, &name, &key),
            user: user.to_string(),
            name: name.to_string(),
            role: role.to_string(),
            until_ms: until_unix_ms,
        })
    }

    /// Takes that back.
    pub async fn remove_api_token(&self, request: messages::RemoveApiTokenRequest) -> Result<(), Refusal> {
        let (user, name): (UserName, TokenName) = (request.user.parse()?, request.name.parse()?);
        let _turn = self.turn().await;
        let command = Command::RemoveToken { user: user.clone(), name: name.clone() };
        if !changed(&self.machine.apply(vec![command]).await?) {
            return Err(Refusal::NotFound(format!(
                "{user} has no token {name}: `gemel user token list {user}` shows them"
            )));
        }
        self.events.info("token-removed", format!("token {name} of {user} was removed"), &[]);
        Ok(())
    }
}

/// A link to be given to a user.
struct Link {
    path: String,
    invitation: Invitation,
}

impl Link {
    fn new(name: &UserName) -> Result<Self, Refusal> {
        let key = random_key()?;
        let until_unix_ms = now_ms().saturating_add(u64::try_from(LINK.as_millis()).unwrap_or(u64::MAX));
        // Neither needs to be written otherwise in an address.
        let path = format!("/welcome?user={name}&key={key}");
        Ok(Self { path, invitation: Invitation { key: key.digest(), until_unix_ms } })
    }
}

fn access(name: &UserName, link: Option<Link>) -> messages::UserAccess {
    let until_ms = link.as_ref().map_or(0, |link| link.invitation.until_unix_ms);
    let link = link.map_or_else(String::new, |link| link.path);
    messages::UserAccess { name: name.to_string(), link, until_ms, consoles: Vec::new() }
}

fn random_key() -> Result<Key, Refusal> {
    Key::random().map_err(|error| Refusal::Broken(format!("the system gives no random bytes: {error}")))
}

fn message(name: &UserName, user: &User) -> messages::User {
    let tokens = user.tokens.iter().map(|(name, token)| messages::ApiTokenFacts {
        name: name.to_string(),
        role: token.role.min(user.role).to_string(),
        created_ms: token.created_unix_ms,
        until_ms: token.until_unix_ms,
    });
    messages::User {
        name: name.to_string(),
        role: user.role.to_string(),
        has_password: user.password.is_some(),
        invited_until_ms: user.invitation.as_ref().map(|link| link.until_unix_ms),
        tokens: tokens.collect(),
    }
}

impl From<PasswordError> for Refusal {
    fn from(error: PasswordError) -> Self {
        let text = error.to_string();
        if error == PasswordError::Length { Self::Invalid(text) } else { Self::Broken(text) }
    }
}

impl From<NoRole> for Refusal {
    fn from(error: NoRole) -> Self {
        Self::Invalid(error.to_string())
    }
}
