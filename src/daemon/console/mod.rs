//! The console: the first page, live, in English and French, and `/metrics` for Prometheus. Read only.
//!
//! Everything comes from the node itself, so it works without an internet connection; pages are made here, and work
//! without a script too. Nothing that is shown can become a script: texts are escaped, and the page allows only its own.

mod page;
mod picture;
mod plot;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tonic::Request;

use self::words::Language;
use super::control::Control;
use super::history::History;
use super::management::ManagementService;
use super::metrics;
use crate::rpc::management::GetStatusRequest;
use crate::rpc::management::management_server::Management;

/// What the pages are made of.
#[derive(Clone)]
pub struct Console {
    /// The node.
    pub control: Arc<Control>,
    /// What knows of the other node too.
    pub service: Arc<ManagementService>,
    /// What the node has done lately.
    pub history: Arc<History>,
}

/// What may be asked for in a page's address.
#[derive(Deserialize)]
struct Wanted {
    /// A language.
    lang: Option<String>,
    /// `main`: only what changes.
    part: Option<String>,
}

/// The pages of a node.
pub fn router(console: Console) -> Router {
    let fixed = |kind: &'static str, text: &'static str| {
        get(move || async move { protected(([(header::CONTENT_TYPE, kind)], text).into_response()) })
    };
    Router::new()
        .route("/", get(first_page))
        .route("/style.css", fixed("text/css; charset=utf-8", include_str!("style.css")))
        .route("/refresh.js", fixed("text/javascript; charset=utf-8", include_str!("refresh.js")))
        .route("/metrics", get(metrics_page))
        .with_state(console)
}

async fn metrics_page(State(console): State<Console>) -> Response {
    match console.control.report().await {
        Ok(report) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            let status = console.control.status_by(&report);
            ([(header::CONTENT_TYPE, kind)], metrics::page(&report, &status)).into_response()
        }
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()).into_response(),
    }
}

async fn first_page(
    State(console): State<Console>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Response {
    let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let words = Language::of(wanted.lang.as_deref(), accepted).words();
    let response = match console.service.get_status(Request::new(GetStatusRequest {})).await {
        Ok(status) => {
            let status = status.into_inner();
            let (hour, month) = console.history.samples();
            let main = page::main_part(&status, words, (&hour, &month));
            let is_part = wanted.part.as_deref() == Some("main");
            Html(if is_part { main } else { page::document(&status, words, &main) }).into_response()
        }
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.message().to_owned()).into_response(),
    };
    protected(response)
}

/// A response that runs nothing but the console's own files, is shown in no frame, and is not kept.
fn protected(mut response: Response) -> Response {
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
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
