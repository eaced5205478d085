//! What has happened, and who is told of what is the matter.

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use tonic::Request;

use super::Console;
use super::html::{Form, View, cell, choice, failed, hidden, secret, table, text, time};
use super::visitor::Member;
use crate::cluster::state::user::Role;
use crate::daemon::event_log::{Event, EventLog, Severity};
use crate::rpc::json::name as word;
use crate::rpc::management::management_server::Management;
use crate::rpc::management::{self as messages, Alert, ListAlertsRequest};

/// What is looked for among events.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct EventQuery {
    /// Words that all have to be in it, in any order and case.
    search: String,
    /// How bad it has to be at least: `info`, `warning` or `error`.
    severity: String,
    /// Only what came before this number; 0 for all.
    before: u64,
    /// How many at most.
    limit: Option<usize>,
}

impl EventQuery {
    /// Those that are looked for, newest first.
    pub fn find(&self, log: &EventLog) -> Vec<Event> {
        let words: Vec<String> = self.search.split_whitespace().map(str::to_lowercase).collect();
        let least = match self.severity.as_str() {
            "error" => 2,
            "warning" => 1,
            _ => 0,
        };
        let is_wanted = |event: &Event| {
            let evidence = event.evidence.iter().map(|(name, value)| format!("{name}={value}"));
            let text = format!("{} {} {}", event.kind, event.message, evidence.collect::<Vec<_>>().join(" "));
            let text = text.to_lowercase();
            let is_earlier = self.before == 0 || event.sequence < self.before;
            is_earlier && badness(event.severity) >= least && words.iter().all(|word| text.contains(word))
        };
        let limit = self.limit.unwrap_or(PAGE).min(MOST);
        log.after(0, usize::MAX).into_iter().rev().filter(is_wanted).take(limit).collect()
    }
}

const PAGE: usize = 100;
/// Most that are found at once.
const MOST: usize = 10_000;

fn badness(severity: Severity) -> u8 {
    match severity {
        Severity::Info => 0,
        Severity::Warning => 1,
        Severity::Error => 2,
    }
}

/// `GET /events`
pub async fn events(
    State(console): State<Console>,
    Query(query): Query<EventQuery>,
    Member { session, language }: Member,
) -> Response {
    let view = View { console: &console, session: &session, language };
    let found = query.find(&console.log);
    let last = found.last().map(|event| event.sequence).filter(|_| found.len() == PAGE);
    let severities = [("info", "info"), ("warning", "warning"), ("error", "error")];
    let older = last.map(|before| {
        let query = [("search", query.search.as_str()), ("severity", &query.severity)];
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        format!("/events?{query}&before={before}")
    });
    let rows: Vec<_> = found.into_iter().map(event_row).collect();
    let head = [
        view.say("Time", "Heure"),
        view.say("Kind", "Genre"),
        view.say("What happened", "Ce qui s’est passé"),
    ];
    let main = html! {
        p { (view.say("Of the node that shows this page.", "Du nœud qui affiche cette page.")) }
        form.search method="get" action="/events" role="search" {
            label {
                (view.say("Words", "Mots"))
                input type="search" name="search" value=(query.search) placeholder="audit, volume vm-1, …";
            }
            (choice("severity", view.say("At least", "Au moins"), &severities, &query.severity))
            button { (view.say("Search", "Chercher")) }
        }
        (table(view, &head, &rows))
        @if let Some(older) = older { p { a href=(older) { (view.say("Older", "Plus anciens")) } } }
    };
    view.page("/events", view.say("Events", "Événements"), main).into_response()
}

fn event_row(event: Event) -> Vec<Markup> {
    let event = messages::Event::from(event);
    let severity = word::<messages::Severity>(event.severity);
    let what = html! {
        (event.message)
        @if !event.evidence.is_empty() { small { (event.evidence.join(", ")) } }
    };
    vec![
        time(event.time_ms),
        html! { span class={ "state " (severity) } { (event.kind) } },
        html! { div.long { (what) } },
    ]
}

/// `GET /alerts`
pub async fn alerts(State(console): State<Console>, Member { session, language }: Member) -> Response {
    let view = View { console: &console, session: &session, language };
    let alerts = match console.calls.look().list_alerts(Request::new(ListAlertsRequest {})).await {
        Ok(listed) => listed.into_inner().alerts,
        Err(refusal) => return failed(&refusal),
    };
    let rows: Vec<_> = alerts.iter().map(|alert| alert_row(view, alert)).collect();
    let head = [
        view.say("Name", "Nom"),
        view.say("To", "À"),
        view.say("From how bad on", "Gravité minimale"),
        view.say("Delivery", "Remise"),
        "",
    ];
    let main = html! {
        (table(view, &head, &rows))
        (view.folded(view.say("By mail…", "Par courriel…"), Form {
            call: "set_alert",
            button: view.say("Set", "Appliquer"),
            back: "/alerts",
            least: Role::Administrator,
            danger: None,
            fields: mail_fields(view),
        }))
        (view.folded(view.say("To a webhook…", "Vers un webhook…"), Form {
            call: "set_alert",
            button: view.say("Set", "Appliquer"),
            back: "/alerts",
            least: Role::Administrator,
            danger: None,
            fields: html! {
                (text("alert.name", view.say("Name", "Nom"), "webhook", true))
                (text("alert.webhook.url", "URL (https://…)", "", true))
                (secret("alert.webhook.token", view.say("Token, if it wants one", "Jeton, s’il en faut un"), false, "off"))
                (when_fields(view))
            },
        }))
    };
    view.page("/alerts", view.say("Alerts", "Alertes"), main).into_response()
}

fn mail_fields(view: View<'_>) -> Markup {
    let protections = [("starttls", "STARTTLS"), ("tls", "TLS"), ("none", view.say("none", "aucune"))];
    html! {
        (text("alert.name", view.say("Name", "Nom"), "mail", true))
        (text("alert.mail.server", view.say("Mail server", "Serveur de courriel"), "", true))
        (text("alert.mail.port", "Port", "587", true))
        (choice("alert.mail.security", view.say("Protection", "Protection"), &protections, "starttls"))
        (text("alert.mail.user", view.say("User name, if it wants one", "Nom d’utilisateur, s’il en faut un"), "", false))
        (secret("alert.mail.password", view.say("Password", "Mot de passe"), false, "off"))
        (text("alert.mail.from", view.say("Sender", "Expéditeur"), "", true))
        (text("alert.mail.to", view.say("Recipients, with commas", "Destinataires, séparés par des virgules"), "", true))
        (when_fields(view))
    }
}

fn when_fields(view: View<'_>) -> Markup {
    let severities = [("info", "info"), ("warning", "warning"), ("error", "error")];
    html! {
        (choice("alert.severity", view.say("From how bad on", "Gravité minimale"), &severities, "warning"))
        (text("alert.repeat_hours", view.say("Said again after hours (0: never)", "Répété après heures (0 : jamais)"), "24", true))
        (text("alert.summary_at", view.say("Daily summary at HH:MM UTC (empty: none)", "Résumé quotidien à HH:MM UTC (vide : aucun)"), "", false))
    }
}

fn alert_row(view: View<'_>, alert: &Alert) -> Vec<Markup> {
    let to = match (&alert.mail, &alert.webhook) {
        (Some(mail), _) => format!("{} ({}:{})", mail.to.join(", "), mail.server, mail.port),
        (None, Some(webhook)) => webhook.url.clone(),
        (None, None) => String::new(),
    };
    let delivery = match (alert.delivered_ms, alert.trouble.as_str()) {
        (_, trouble) if !trouble.is_empty() => html! { span.state.error { (trouble) } },
        (0, _) => cell(view.say("nothing sent yet", "rien d’envoyé")),
        (at, _) => time(at),
    };
    let acts = html! {
        (view.form(Form {
            call: "test_alerts",
            button: view.say("Test", "Essayer"),
            back: "/alerts",
            least: Role::Operator,
            danger: None,
            fields: hidden("name", &alert.name),
        }))
        (view.folded(view.say("Remove…", "Supprimer…"), Form {
            call: "remove_alert",
            button: view.say("Remove", "Supprimer"),
            back: "/alerts",
            least: Role::Administrator,
            danger: None,
            fields: hidden("name", &alert.name),
        }))
    };
    vec![cell(&alert.name), cell(to), cell(word::<messages::Severity>(alert.severity)), delivery, acts]
}
