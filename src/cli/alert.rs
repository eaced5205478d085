//! `gemel alert`: from the grammar to messages, and what is printed.

use super::args::{AlertChannel, AlertSeverity, AlertTimes, MailProtection};
use super::commands::read_secret;
use super::error::CliError;
use super::show::table;
use crate::rpc::management::{Alert, AlertTest, MailAlert, MailSecurity, Severity, WebhookAlert};
use crate::rpc::time::show as show_time;

/// Port of submission with STARTTLS (RFC 6409).
const SUBMISSION: u32 = 587;
/// Port of submission with TLS from the first byte (RFC 8314).
const SUBMISSIONS: u32 = 465;
/// Port between mail servers.
const SMTP: u32 = 25;

/// What is asked for.
pub fn alert(channel: AlertChannel) -> Result<Alert, CliError> {
    Ok(match channel {
        AlertChannel::Mail { server, from, to, security, user, password_file, when } => {
            let (security, usual_port) = match security {
                MailProtection::Starttls => (MailSecurity::Starttls, SUBMISSION),
                MailProtection::Tls => (MailSecurity::Tls, SUBMISSIONS),
                MailProtection::None => (MailSecurity::None, SMTP),
            };
            let (server, port) = split(&server, usual_port)?;
            let password = password_file.map(|file| read_secret(Some(&file))).transpose()?;
            let mail = MailAlert {
                server,
                port,
                security: security.into(),
                user: user.unwrap_or_default(),
                password: password.unwrap_or_default(),
                from,
                to,
            };
            Alert { mail: Some(mail), ..when_told(when, "mail") }
        }
        AlertChannel::Webhook { url, token_file, when } => {
            let token = token_file.map(|file| read_secret(Some(&file))).transpose()?;
            let webhook = WebhookAlert { url, token: token.unwrap_or_default() };
            Alert { webhook: Some(webhook), ..when_told(when, "webhook") }
        }
    })
}

fn when_told(when: AlertTimes, usual_name: &str) -> Alert {
    let severity = match when.severity {
        AlertSeverity::Info => Severity::Info,
        AlertSeverity::Warning => Severity::Warning,
        AlertSeverity::Error => Severity::Error,
    };
    Alert {
        name: when.name.unwrap_or_else(|| usual_name.to_owned()),
        severity: severity.into(),
        repeat_hours: when.repeat,
        summary_at: when.summary.unwrap_or_default(),
        ..Alert::default()
    }
}

/// HOST, HOST:PORT, or an IPv6 address in brackets with a port.
fn split(server: &str, usual_port: u32) -> Result<(String, u32), CliError> {
    let (host, port) = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None if server.matches(':').count() == 1 => {
            let (host, port) = server.split_once(':').unwrap_or((server, ""));
            (host, Some(port))
        }
        None => (server, None),
    };
    let port = port.map_or(Ok(usual_port), str::parse);
    let port = port.map_err(|_| CliError::Usage(format!("{server:?} is not HOST or HOST:PORT")))?;
    Ok((host.to_owned(), port))
}

/// Who is told, as a table.
pub fn alerts(alerts: &[Alert]) -> String {
    let rows = alerts.iter().map(|alert| {
        let to = match (&alert.mail, &alert.webhook) {
            (Some(mail), _) => format!("{} through {}:{}", mail.to.join(", "), mail.server, mail.port),
            (None, Some(webhook)) => webhook.url.clone(),
            (None, None) => String::new(),
        };
        let repeat = match alert.repeat_hours {
            0 => "never".to_owned(),
            hours => format!("{hours}h"),
        };
        let delivery = match (alert.delivered_ms, alert.trouble.as_str()) {
            (_, trouble) if !trouble.is_empty() => format!("FAILS: {trouble}"),
            (0, _) => "nothing sent yet".to_owned(),
            (time, _) => format!("delivered {}", show_time(time)),
        };
        let summary = if alert.summary_at.is_empty() { "no".to_owned() } else { alert.summary_at.clone() };
        let severity = crate::rpc::json::name::<Severity>(alert.severity);
        vec![alert.name.clone(), severity, repeat, summary, to, delivery]
    });
    table(&["ALERT", "FROM", "AGAIN", "SUMMARY", "TO", "DELIVERY"], rows)
}

/// How tests went, as a table.
pub fn tests(tests: &[AlertTest]) -> String {
    let rows = tests.iter().map(|test| {
        let result =
            if test.error.is_empty() { "delivered".to_owned() } else { format!("FAILED: {}", test.error) };
        vec![test.name.clone(), result]
    });
    table(&["ALERT", "TEST"], rows)
}

#[cfg(test)]
mod tests_of_servers {
    use super::*;

    #[test]
    fn servers_have_the_usual_port_unless_they_say_another() {
        let parts = |server| split(server, SUBMISSION).unwrap();
        assert_eq!(parts("mail.example"), ("mail.example".to_owned(), 587));
        assert_eq!(parts("mail.example:25"), ("mail.example".to_owned(), 25));
        assert_eq!(parts("[::1]:2525"), ("::1".to_owned(), 2525));
        assert_eq!(parts("::1"), ("::1".to_owned(), 587));
        assert!(split("mail:x", SUBMISSION).is_err());
    }
}
