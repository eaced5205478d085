//! The console: a plain status page, and `/metrics` for Prometheus. Read only.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use super::control::Control;
use super::metrics;
use crate::rpc::json::name;
use crate::rpc::management::{DiskState, Health, PoolState, Severity, Status, VolumeState};
use crate::rpc::size::show as size;

/// The pages of a node.
pub fn router(control: Arc<Control>) -> Router {
    Router::new().route("/", get(status_page)).route("/metrics", get(metrics_page)).with_state(control)
}

async fn metrics_page(State(control): State<Arc<Control>>) -> Response {
    match control.report().await {
        Ok(report) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], metrics::page(&report)).into_response()
        }
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()).into_response(),
    }
}

async fn status_page(State(control): State<Arc<Control>>) -> Response {
    match control.status().await {
        Ok(status) => Html(page(&status)).into_response(),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()).into_response(),
    }
}

fn page(status: &Status) -> String {
    let health = name::<Health>(status.health);
    let mut page = format!(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5><title>gemel {cluster}: {health}</title>\
         <style>body{{font-family:sans-serif;margin:2em}}td,th{{text-align:left;padding:.2em 1em .2em 0}}</style>\
         <h1>{cluster}: {health}</h1>",
        cluster = escape(&status.cluster),
    );
    for attention in &status.attention {
        let severity = name::<Severity>(attention.severity);
        let _ = write!(
            page,
            "<p><b>{severity}</b>: {}. {}</p>",
            escape(&attention.message),
            escape(&attention.action)
        );
    }
    let volumes = status.volumes.iter().map(|volume| {
        let state = name::<VolumeState>(volume.state);
        vec![
            volume.name.clone(),
            state,
            size(volume.size_bytes),
            size(volume.used_bytes),
            volume.target.clone(),
        ]
    });
    table(&mut page, "Volumes", &["Name", "State", "Size", "Used", "Target"], volumes);
    let pools = status.pools.iter().map(|pool| {
        vec![
            pool.node.clone(),
            name::<PoolState>(pool.state),
            size(pool.capacity_bytes),
            size(pool.used_bytes),
        ]
    });
    table(&mut page, "Pools", &["Node", "State", "Capacity", "Used"], pools);
    let disks = status.pools.iter().flat_map(|pool| &pool.disks).map(|disk| {
        let state = name::<DiskState>(disk.state);
        vec![disk.id.clone(), disk.path.clone(), state, size(disk.size_bytes), disk.reason.clone()]
    });
    table(&mut page, "Disks", &["Identity", "Path", "State", "Size", "Reason"], disks);
    page.push_str("<p><a href=/metrics>metrics</a></p>");
    page
}

fn table(page: &mut String, title: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let _ = write!(page, "<h2>{title}</h2><table><tr>");
    for cell in head {
        let _ = write!(page, "<th>{cell}");
    }
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{}", escape(&cell));
        }
    }
    page.push_str("</table>");
}

/// Text as HTML text.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::management::{Disk, Pool};

    #[test]
    fn paths_cannot_inject_html() {
        let disk = Disk { path: "/tmp/<script>".into(), ..Disk::default() };
        let status =
            Status { pools: vec![Pool { disks: vec![disk], ..Pool::default() }], ..Status::default() };
        let page = page(&status);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
    }
}
