//! Whom the cluster tells when something is the matter, and how.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::access::ChapSecret;
use super::{ControlState, Outcome, Rejection};
use crate::cluster::name::AlertName;

/// A secret that another service asks for: a mail server's password, a webhook's token. Shown by no `Debug`.
pub type Secret = ChapSecret;

/// Somebody who is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertTarget {
    /// The way to him.
    pub channel: Channel,
    /// From how bad on he is told.
    pub least: Level,
    /// After how many hours he is told again of what is still so; 0 never.
    pub repeat_hours: u32,
    /// At which minute of the day (UTC) he gets a summary, also when all is well.
    pub summary_minute: Option<u32>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Good to know.
    Info,
    /// Abnormal; service goes on.
    Warning,
    /// Service or redundancy is lost.
    Error,
}

/// How somebody is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Channel {
    /// By mail, over SMTP (RFC 5321).
    Mail {
        /// Name or address of the mail server.
        server: String,
        /// Its port.
        port: u16,
        /// How the connection is protected.
        security: MailSecurity,
        /// User name and password, where the server asks for them.
        credentials: Option<(String, Secret)>,
        /// Sender.
        from: String,
        /// Recipients.
        to: Vec<String>,
    },
    /// By an HTTP POST of a JSON object.
    Webhook {
        /// `http://` or `https://`.
        url: String,
        /// Sent as `Authorization: Bearer`.
        token: Option<Secret>,
    },
}

/// How the connection to a mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailSecurity {
    /// By STARTTLS (RFC 3207), or there is no mail.
    StartTls,
    /// By TLS from the first byte (RFC 8314).
    Tls,
    /// Not at all.
    None,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mail { server, port, to, .. } => {
                write!(f, "mail to {} through {server}:{port}", to.join(", "))
            }
            Self::Webhook { url, .. } => write!(f, "{url}"),
        }
    }
}

impl AlertTarget {
    fn check(&self) -> Result<(), Rejection> {
        let is_text = |text: &str| (1..=LONGEST_TEXT).contains(&text.len()) && text.chars().all(is_printable);
        let is_sound = match &self.channel {
            Channel::Mail { server, port, from, to, credentials, .. } => {
                let has_user = credentials
                    .as_ref()
                    .is_none_or(|(user, secret)| is_text(user) && secret.expose().len() <= LONGEST_TEXT);
                is_text(server)
                    && *port != 0
                    && is_text(from)
                    && (1..=MOST_RECIPIENTS).contains(&to.len())
                    && to.iter().all(|recipient| is_text(recipient))
                    && has_user
            }
            Channel::Webhook { url, token } => {
                let is_short = token.as_ref().is_none_or(|token| token.expose().len() <= LONGEST_TEXT);
                is_text(url) && (url.starts_with("http://") || url.starts_with("https://")) && is_short
            }
        };
        let is_in_time = self.repeat_hours <= MOST_REPEAT_HOURS
            && self.summary_minute.is_none_or(|minute| minute < MINUTES_A_DAY);
        if is_sound && is_in_time { Ok(()) } else { Err(Rejection::BadAlert) }
    }
}

impl ControlState {
    /// Who is told, by name.
    pub fn alerts(&self) -> impl Iterator<Item = (&AlertName, &AlertTarget)> {
        self.alerts.iter()
    }

    pub(super) fn set_alert(&mut self, name: AlertName, target: AlertTarget) -> Result<Outcome, Rejection> {
        target.check()?;
        if self.alerts.len() >= MOST_ALERTS && !self.alerts.contains_key(&name) {
            return Err(Rejection::LimitReached { what: "alerts", limit: MOST_ALERTS });
        }
        let before = self.alerts.insert(name, target.clone());
        Ok(if before == Some(target) { Outcome::Unchanged } else { Outcome::Changed })
    }

    pub(super) fn remove_alert(&mut self, name: &AlertName) -> Outcome {
        if self.alerts.remove(name).is_some() { Outcome::Changed } else { Outcome::Unchanged }
    }
}

fn is_printable(character: char) -> bool {
    !character.is_control() && character != ' '
}

const LONGEST_TEXT: usize = 1024;
const MOST_RECIPIENTS: usize = 32;
const MOST_ALERTS: usize = 32;
const MOST_REPEAT_HOURS: u32 = 24 * 366;
/// Minutes in a day.
pub const MINUTES_A_DAY: u32 = 24 * 60;
