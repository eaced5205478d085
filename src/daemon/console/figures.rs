//! Figures for other programs: `/metrics` for Prometheus, `/health` for whoever wants one word.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Console;
use super::rest::bearer;
use super::visitor::Visitor;
use crate::daemon::metrics;
use crate::rpc::json::name;
use crate::rpc::management::Health;

/// `/metrics`
pub async fn metrics(State(console): State<Console>, visitor: Visitor, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&console, &visitor, &headers) {
        return refused;
    }
    match console.control.report().await {
        Ok(report) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            let status = console.control.status_by(&report);
            ([(header::CONTENT_TYPE, kind)], metrics::page(&report, &status)).into_response()
        }
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()).into_response(),
    }
}

/// `/health`: 200 while everything is served.
pub async fn health(State(console): State<Console>, visitor: Visitor, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&console, &visitor, &headers) {
        return refused;
    }
    match console.calls.status().await {
        Ok(status) => {
            let is_served = matches!(status.health(), Health::Ok | Health::Degraded);
            let code = if is_served { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (code, Json(json!({ "health": name::<Health>(status.health) }))).into_response()
        }
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.message().to_owned()).into_response(),
    }
}

fn refused(console: &Console, visitor: &Visitor, headers: &HeaderMap) -> Option<Response> {
    if console.may_read_openly(visitor.peer) || visitor.session.is_some() {
        return None;
    }
    let from = visitor.peer.address.ip();
    let reason = match bearer(headers).map(|token| console.accounts.script(token, from)) {
        Some(Ok(_)) => return None,
        Some(Err(error)) => error.to_string(),
        None => {
            "these figures take an API token (gemel user token create), or console.open_metrics".to_owned()
        }
    };
    Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], reason).into_response())
}
