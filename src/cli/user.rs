//! `gemel user`: who may sign in to the console and the REST API.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tonic::transport::Channel;

use super::commands::{Output, read_secret};
use super::error::CliError;
use super::show::table;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{
    AddUserRequest, ApiToken, ApiTokenFacts, CreateApiTokenRequest, ListUsersRequest, RemoveApiTokenRequest,
    RemoveUserRequest, SetPasswordRequest, SetUserRoleRequest, User, UserAccess,
};
use crate::rpc::time::show_seconds;

/// `gemel user`
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// List who may sign in.
    List,
    /// Let somebody sign in. The password is typed, or read from a file or from standard input.
    Add {
        /// The user's name.
        name: String,
        /// What the user may do.
        #[arg(long)]
        role: UserRole,
        /// Where the password comes from.
        #[command(flatten)]
        password: PasswordSource,
    },
    /// Let somebody sign in no more; API tokens of that user end too.
    Remove {
        /// The user's name.
        name: String,
    },
    /// Change what somebody may do.
    Role {
        /// The user's name.
        name: String,
        /// What the user may do.
        role: UserRole,
    },
    /// Set somebody's password, which ends the sessions of that user.
    Password {
        /// The user's name.
        name: String,
        /// Where the password comes from.
        #[command(flatten)]
        password: PasswordSource,
    },
    /// Tokens by which scripts use the REST API in a user's name.
    #[command(subcommand)]
    Token(TokenVerb),
}

/// `gemel user token`
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token. It is shown once.
    Create {
        /// The user's name.
        user: String,
        /// What it is for, in a word.
        name: String,
        /// What it is good for; the user's role when not given, and never more.
        #[arg(long)]
        role: Option<UserRole>,
        /// How long it is good, such as 90days; for ever when not given.
        #[arg(long, value_parser = humantime::parse_duration)]
        valid: Option<Duration>,
    },
    /// List a user's tokens, without what is secret of them.
    List {
        /// The user's name.
        user: String,
    },
    /// Remove a token.
    Remove {
        /// The user's name.
        user: String,
        /// The token's name.
        name: String,
    },
}

/// Where a password comes from.
#[derive(Debug, Args)]
pub struct PasswordSource {
    /// None: print a link, good for a day and once, by which the user sets a password.
    #[arg(long, conflicts_with = "password_file")]
    link: bool,
    /// File with the password in its first line.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UserRole {
    /// See everything.
    Viewer,
    /// Do what loses nothing: create, enlarge, move, take snapshots, let hosts in, replace disks.
    Operator,
    /// Do everything.
    Administrator,
}

impl UserRole {
    fn name(self) -> String {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        }
        .to_owned()
    }
}

/// Asks the node, and prints what it says.
pub(super) async fn run(
    client: &mut ManagementClient<Channel>,
    output: Output,
    verb: UserVerb,
) -> Result<(), CliError> {
    match verb {
        UserVerb::List => {
            let listed = client.list_users(ListUsersRequest {}).await?.into_inner();
            output.list(&listed.users, users)
        }
        UserVerb::Add { name, role, password } => {
            let request = AddUserRequest { name, role: role.name(), password: password.read()? };
            output.one(&client.add_user(request).await?.into_inner(), access)
        }
        UserVerb::Remove { name } => {
            client.remove_user(RemoveUserRequest { name: name.clone() }).await?;
            output.done("removed", &name)
        }
        UserVerb::Role { name, role } => {
            let user =
                client.set_user_role(SetUserRoleRequest { name, role: role.name() }).await?.into_inner();
            output.one(&user, |user| users(std::slice::from_ref(user)))
        }
        UserVerb::Password { name, password } => {
            let request = SetPasswordRequest { name, password: password.read()? };
            output.one(&client.set_password(request).await?.into_inner(), access)
        }
        UserVerb::Token(verb) => token(client, output, verb).await,
    }
}

async fn token(
    client: &mut ManagementClient<Channel>,
    output: Output,
    verb: TokenVerb,
) -> Result<(), CliError> {
    match verb {
        TokenVerb::Create { user, name, role, valid } => {
            let role = role.map(UserRole::name).unwrap_or_default();
            let valid_seconds = valid.map_or(0, |valid| valid.as_secs().max(1));
            let request = CreateApiTokenRequest { user, name, role, valid_seconds };
            let made = client.create_api_token(request).await?.into_inner();
            output.one(&made, |made: &ApiToken| {
                format!(
                    "{}\n\nIt is not shown again. To be sent as \"Authorization: Bearer TOKEN\".\n",
                    made.token
                )
            })
        }
        TokenVerb::List { user } => {
            let listed = client.list_users(ListUsersRequest {}).await?.into_inner();
            let found = listed.users.into_iter().find(|known| known.name == user);
            let found = found.ok_or_else(|| {
                CliError::Refused(format!("there is no user {user}: `gemel user list` shows who may sign in"))
            })?;
            output.list(&found.tokens, tokens)
        }
        TokenVerb::Remove { user, name } => {
            client.remove_api_token(RemoveApiTokenRequest { user, name: name.clone() }).await?;
            output.done("removed", &name)
        }
    }
}

impl PasswordSource {
    /// The password; empty for a link.
    fn read(&self) -> Result<String, CliError> {
        match &self.password_file {
            _ if self.link => Ok(String::new()),
            Some(file) => read_secret(Some(file)),
            None if std::io::stdin().is_terminal() => typed(),
            None => read_secret(None::<&Path>),
        }
    }
}

fn typed() -> Result<String, CliError> {
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt)
            .map_err(|error| CliError::Local(format!("cannot read the password: {error}")))
    };
    let password = ask("Password (10 characters or more): ")?;
    if password != ask("Once more: ")? {
        return Err(CliError::Usage("the two passwords are not the same: nothing was done".to_owned()));
    }
    if password.is_empty() {
        return Err(CliError::Usage("the password is empty; --link makes a link instead".to_owned()));
    }
    Ok(password)
}

fn users(users: &[User]) -> String {
    let rows = users.iter().map(|user| {
        let password = match (user.has_password, user.invited_until_ms) {
            (true, _) => "set".to_owned(),
            (false, Some(until)) => format!("by link until {}", show_seconds(until)),
            (false, None) => "none".to_owned(),
        };
        vec![user.name.clone(), user.role.clone(), password, user.tokens.len().to_string()]
    });
    table(&["USER", "ROLE", "PASSWORD", "TOKENS"], rows)
}

fn tokens(tokens: &[ApiTokenFacts]) -> String {
    let rows = tokens.iter().map(|token| {
        let until = token.until_ms.map_or_else(|| "for ever".to_owned(), show_seconds);
        vec![token.name.clone(), token.role.clone(), show_seconds(token.created_ms), until]
    });
    table(&["TOKEN", "ROLE", "MADE", "GOOD UNTIL"], rows)
}

fn access(access: &UserAccess) -> String {
    let UserAccess { name, link, until_ms, consoles } = access;
    let shown =
        |path: &str| consoles.iter().map(|console| format!("  {console}{path}\n")).collect::<String>();
    if consoles.is_empty() {
        return format!("{name} may sign in, once this node has a console (console.listen)\n");
    }
    if link.is_empty() {
        return format!("{name} may sign in at\n{}", shown("/"));
    }
    let until = show_seconds(*until_ms);
    format!("{name} sets a password here, once, until {until}:\n{}", shown(link))
}
