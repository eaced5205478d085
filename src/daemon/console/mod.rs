//! The console: pages for people, the REST API for scripts, and `/metrics` for Prometheus, on one port.
//!
//! Everything comes from the node itself, so it works without an internet connection; pages are made here, and work
//! without a script too. Guarantees: nobody sees or does anything before he has signed in, but for what the
//! configuration leaves open; whatever is done is done through [`Calls`], as by the command line; nothing that is shown can
//! become a script: texts are escaped, and the pages allow only their own; no other site can send a form in somebody's
//! name.

mod acts;
pub mod certificate;
mod cluster_pages;
mod figures;
pub mod html;
pub mod listener;
mod message_pages;
mod openapi;
mod page;
mod picture;
mod plot;
mod rest;
mod sign_in;
pub mod visitor;
mod volume_pages;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Deserialize;

use self::html::View;
use self::visitor::Member;
pub use self::words::Language;
use super::accounts::Accounts;
use super::calls::Calls;
use super::config::OpenMetrics;
use super::control::Control;
use super::event_log::EventLog;
use super::history::History;

/// What the pages are made of.
#[derive(Clone)]
pub struct Console {
    /// The node.
    pub control: Arc<Control>,
    /// By which everything is done.
    pub calls: Arc<Calls>,
    /// What the node has done lately.
    pub history: Arc<History>,
    /// What has happened.
    pub log: EventLog,
    /// Who may sign in.
    pub accounts: Arc<Accounts>,
    /// Whether connections are protected.
    pub is_tls: bool,
    /// Who may read figures without signing in.
    pub open_metrics: OpenMetrics,
}

/// How all pages look.
pub const STYLE: &str = include_str!("style.css");
/// Most bytes of a form or of a request.
const LARGEST_BODY: usize = 64 << 10;

/// The pages of a node.
pub fn router(console: Console) -> Router {
    let fixed = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text).into_response() })
    };
    Router::new()
        .route("/", get(first_page))
        .route("/volumes", get(volume_pages::list))
        .route("/volumes/{name}", get(volume_pages::one))
        .route("/hosts", get(volume_pages::hosts))
        .route("/disks", get(cluster_pages::disks))
        .route("/nodes", get(cluster_pages::nodes))
        .route("/users", get(cluster_pages::users))
        .route("/events", get(message_pages::events))
        .route("/alerts", get(message_pages::alerts))
        .route("/account", get(sign_in::account))
        .route("/account/password", post(sign_in::change_password))
        .route("/login", get(sign_in::ask).post(sign_in::sign_in))
        .route("/logout", post(sign_in::sign_out))
        .route("/welcome", get(sign_in::ask_for_password).post(sign_in::accept))
        .route("/act/{call}", post(acts::act))
        .route("/api/v1/{*path}", any(rest::answer))
        .route("/metrics", get(figures::metrics))
        .route("/health", get(figures::health))
        .route("/style.css", fixed("text/css; charset=utf-8", STYLE))
        .route("/refresh.js", fixed("text/javascript; charset=utf-8", include_str!("refresh.js")))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(axum::middleware::from_fn_with_state(console.clone(), visitor::guard))
        .with_state(console)
}

/// What may be asked for in the first page's address.
#[derive(Deserialize)]
struct Wanted {
    /// `main`: only what changes.
    part: Option<String>,
}

async fn first_page(
    State(console): State<Console>,
    Query(wanted): Query<Wanted>,
    Member { session, language }: Member,
) -> Response {
    let status = match console.calls.status().await {
        Ok(status) => status,
        Err(refusal) => return html::failed(&refusal),
    };
    let (hour, month) = console.history.samples();
    let main = page::main_part(&status, language.words(), (&hour, &month));
    if wanted.part.as_deref() == Some("main") {
        return Html(main).into_response();
    }
    let view = View { console: &console, session: &session, language };
    view.live_page("/", &status.cluster, maud::PreEscaped(main)).into_response()
}

/// A response that runs nothing but the console's own files, is shown in no frame, and is not kept.
pub fn protected(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert::<HeaderName>(name, HeaderValue::from_static(value));
    }
    response
}

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
