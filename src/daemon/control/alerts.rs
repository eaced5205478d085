//! Commands on those who are told when something is the matter.

use super::volumes::changed;
use super::{Control, Refusal};
use crate::cluster::name::AlertName;
use crate::cluster::state::Command;
use crate::cluster::state::alert::{AlertTarget, Channel, Level, MINUTES_A_DAY, MailSecurity, Secret};
use crate::daemon::alerts::severity;
use crate::rpc::management as messages;

impl Control {
    /// Has somebody told, in place of who had that name before.
    pub async fn set_alert(&self, request: messages::SetAlertRequest) -> Result<messages::Alert, Refusal> {
        let alert = request.alert.ok_or_else(|| Refusal::Invalid("no alert was given".to_owned()))?;
        let name: AlertName = alert.name.parse()?;
        let target = target(alert)?;
        let shown = target.channel.to_string();
        let _turn = self.turn().await;
        let command = Command::SetAlert { name: name.clone(), target: target.clone() };
        if changed(&self.machine.apply(vec![command]).await?) {
            self.events.info("alert-set", format!("alert {name}: {shown}"), &[]);
        }
        Ok(message(&name, &target))
    }

    /// Takes that back.
    pub async fn remove_alert(&self, name: &str) -> Result<(), Refusal> {
        let name: AlertName = name.parse()?;
        let _turn = self.turn().await;
        let command = Command::RemoveAlert { name: name.clone() };
        if !changed(&self.machine.apply(vec![command]).await?) {
            return Err(Refusal::NotFound(format!(
                "there is no alert {name}: `gemel alert list` shows those that exist"
            )));
        }
        self.events.info("alert-removed", format!("alert {name} was removed"), &[]);
        Ok(())
    }

    /// Who is told.
    #[must_use]
    pub fn alerts(&self) -> Vec<messages::Alert> {
        self.machine.read(|state| state.alerts().map(|(name, target)| message(name, target)).collect())
    }

    /// Whether this is the first of the nodes that can be reached, in the order of their names.
    #[must_use]
    pub fn is_first_of_the_reachable(&self) -> bool {
        let nodes: Vec<_> = self.machine.read(|state| state.nodes().map(|(name, _)| name.clone()).collect());
        nodes.iter().find(|name| self.is_reachable(name)).is_none_or(|first| *first == self.node)
    }
}

fn target(alert: messages::Alert) -> Result<AlertTarget, Refusal> {
    let invalid = |text: &str| Refusal::Invalid(text.to_owned());
    let secret = |text: String| Some(text).filter(|text| !text.is_empty()).map(Secret::new);
    let least = match alert.severity() {
        messages::Severity::Info => Level::Info,
        messages::Severity::Warning | messages::Severity::Unspecified => Level::Warning,
        messages::Severity::Error => Level::Error,
    };
    let summary_minute = match alert.summary_at.as_str() {
        "" => None,
        text => {
            Some(minute(text).ok_or_else(|| invalid("a time of the day is written HH:MM, 00:00 to 23:59"))?)
        }
    };
    let channel = match (alert.mail, alert.webhook) {
        (Some(mail), None) => {
            let security = match mail.security() {
                messages::MailSecurity::Starttls | messages::MailSecurity::Unspecified => {
                    MailSecurity::StartTls
                }
                messages::MailSecurity::Tls => MailSecurity::Tls,
                messages::MailSecurity::None => MailSecurity::None,
            };
            let port = u16::try_from(mail.port).map_err(|_| invalid("a port is at most 65535"))?;
            let credentials = match (mail.user.is_empty(), secret(mail.password)) {
                (true, None) => None,
                (false, Some(password)) => Some((mail.user, password)),
                _ => return Err(invalid("a mail server takes a user name and a password, or neither")),
            };
            if credentials.is_some() && security == MailSecurity::None {
                return Err(invalid(
                    "a password is not sent over a connection that is not protected: use starttls or tls",
                ));
            }
            for address in mail.to.iter().chain([&mail.from]) {
                let parsed = address.parse::<lettre::Address>();
                parsed.map_err(|error| {
                    Refusal::Invalid(format!("{address:?} is not a mail address: {error}"))
                })?;
            }
            Channel::Mail { server: mail.server, port, security, credentials, from: mail.from, to: mail.to }
        }
        (None, Some(webhook)) => Channel::Webhook { url: webhook.url, token: secret(webhook.token) },
        _ => return Err(invalid("an alert goes by mail or to a webhook, one of the two")),
    };
    Ok(AlertTarget { channel, least, repeat_hours: alert.repeat_hours, summary_minute })
}

/// HH:MM as the minute of the day.
fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| if text.len() == 2 { text.parse::<u32>().ok() } else { None };
    let (hours, minutes) = (number(hours)?, number(minutes).filter(|minutes| *minutes < 60)?);
    Some(hours * 60 + minutes).filter(|minute| *minute < MINUTES_A_DAY)
}

/// An alert as a message, without its secrets.
fn message(name: &AlertName, target: &AlertTarget) -> messages::Alert {
    let (mail, webhook) = match &target.channel {
        Channel::Mail { server, port, security, credentials, from, to } => {
            let security = match security {
                MailSecurity::StartTls => messages::MailSecurity::Starttls,
                MailSecurity::Tls => messages::MailSecurity::Tls,
                MailSecurity::None => messages::MailSecurity::None,
            };
            let user = credentials.as_ref().map_or_else(String::new, |(user, _)| user.clone());
            let mail = messages::MailAlert {
                server: server.clone(),
                port: u32::from(*port),
                security: security.into(),
                user,
                password: String::new(),
                from: from.clone(),
                to: to.clone(),
            };
            (Some(mail), None)
        }
        Channel::Webhook { url, .. } => {
            (None, Some(messages::WebhookAlert { url: url.clone(), token: String::new() }))
        }
    };
    let summary_at = target.summary_minute.map(|minute| format!("{:02}:{:02}", minute / 60, minute % 60));
    messages::Alert {
        name: name.to_string(),
        mail,
        webhook,
        severity: severity(target.least).into(),
        repeat_hours: target.repeat_hours,
        summary_at: summary_at.unwrap_or_default(),
        delivered_ms: 0,
        trouble: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail() -> messages::Alert {
        let mail = messages::MailAlert {
            server: "mail.example".into(),
            port: 587,
            user: "gemel".into(),
            password: "secret".into(),
            from: "gemel@example.org".into(),
            to: vec!["staff@example.org".into()],
            ..messages::MailAlert::default()
        };
        messages::Alert {
            name: "mail".into(),
            mail: Some(mail),
            summary_at: "07:05".into(),
            ..Default::default()
        }
    }

    #[test]
    fn an_alert_is_what_was_asked_for_and_shows_no_secret() {
        let made = target(mail()).unwrap();
        assert_eq!((made.least, made.summary_minute), (Level::Warning, Some(425)));
        let shown = message(&"mail".parse().unwrap(), &made);
        assert_eq!(shown.mail.as_ref().unwrap().user, "gemel");
        assert_eq!((shown.mail.unwrap().password.as_str(), shown.summary_at.as_str()), ("", "07:05"));
        assert!(!format!("{made:?}").contains("secret"), "{made:?}");
    }

    #[test]
    fn what_could_not_work_is_refused() {
        let refused = |change: fn(&mut messages::Alert)| {
            let mut alert = mail();
            change(&mut alert);
            target(alert).unwrap_err().to_string()
        };
        let plain = refused(|alert| {
            alert.mail.as_mut().unwrap().security = messages::MailSecurity::None.into();
        });
        assert!(plain.contains("not protected"), "{plain}");
        assert!(refused(|alert| alert.mail = None).contains("one of the two"));
        assert!(refused(|alert| alert.summary_at = "24:00".into()).contains("HH:MM"));
        assert!(refused(|alert| alert.summary_at = "7:5".into()).contains("HH:MM"));
        assert!(
            refused(|alert| alert.mail.as_mut().unwrap().to[0] = "staff".into())
                .contains("not a mail address")
        );
        assert!(refused(|alert| alert.mail.as_mut().unwrap().password.clear()).contains("or neither"));
    }
}
