//! The REST API under `/api/v1`: the management service's calls as resources, in JSON.
//!
//! A request is made of the names in the path, the query and the body, which is an object; the answer is what the
//! command line prints with `--json`. Scripts prove themselves with a token; who has signed in at the console may look.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

use super::message_pages::EventQuery;
use super::visitor::Visitor;
use super::{Console, openapi};
use crate::daemon::accounts::SignInError;
use crate::daemon::calls::Actor;
use crate::rpc::management::Event;
use crate::rpc::schema;

/// A resource's method.
#[derive(Debug)]
pub struct Route {
    /// HTTP's method.
    pub method: &'static str,
    /// The path below `/api/v1`; a name in braces is a field of the request.
    pub path: &'static str,
    /// The call.
    pub call: &'static str,
}

const fn route(method: &'static str, path: &'static str, call: &'static str) -> Route {
    Route { method, path, call }
}

/// All of them.
pub const ROUTES: &[Route] = &[
    route("GET", "/status", "get_status"),
    route("GET", "/cluster", "get_cluster"),
    route("PATCH", "/cluster", "change_settings"),
    route("POST", "/cluster/shutdown", "shutdown_cluster"),
    route("POST", "/cluster/tokens", "create_join_token"),
    route("DELETE", "/administrators/{name}", "revoke_administrator"),
    route("POST", "/members/{name}/replace", "replace_member"),
    route("DELETE", "/members/{name}", "remove_member"),
    route("POST", "/nodes/{node}/maintenance", "set_maintenance"),
    route("POST", "/nodes/{node}/shutdown", "shutdown_node"),
    route("GET", "/volumes", "list_volumes"),
    route("POST", "/volumes", "create_volume"),
    route("GET", "/volumes/{name}", "get_volume"),
    route("PATCH", "/volumes/{name}", "set_volume"),
    route("DELETE", "/volumes/{name}", "delete_volume"),
    route("POST", "/volumes/{name}/resize", "resize_volume"),
    route("POST", "/volumes/{volume}/clone", "clone_volume"),
    route("POST", "/volumes/{name}/move", "move_volume"),
    route("PUT", "/volumes/{name}/home", "set_volume_home"),
    route("POST", "/volumes/{name}/force-primary", "force_primary"),
    route("PUT", "/volumes/{volume}/snapshot-schedule", "set_snapshot_schedule"),
    route("POST", "/volumes/{volume}/snapshots", "create_snapshot"),
    route("POST", "/snapshot-groups", "create_snapshot_group"),
    route("POST", "/volumes/{volume}/snapshots/{name}/rollback", "roll_back_snapshot"),
    route("DELETE", "/volumes/{volume}/snapshots/{name}", "delete_snapshot"),
    route("GET", "/snapshots", "list_snapshots"),
    route("GET", "/access", "list_access"),
    route("GET", "/host-groups", "list_host_groups"),
    route("PATCH", "/host-groups/{name}", "change_host_group"),
    route("DELETE", "/host-groups/{name}", "remove_host_group"),
    route("PUT", "/volumes/{volume}/access/{initiator}", "allow_access"),
    route("DELETE", "/volumes/{volume}/access/{initiator}", "deny_access"),
    route("PUT", "/chap/{initiator}", "set_chap"),
    route("DELETE", "/chap/{initiator}", "clear_chap"),
    route("GET", "/disks", "list_disks"),
    route("POST", "/disks/fail", "fail_disk"),
    route("POST", "/disks/replace", "replace_disk"),
    route("POST", "/disks/spare", "change_spare"),
    route("GET", "/pool", "get_pool"),
    route("PUT", "/pool/rebuild-priority", "set_rebuild_priority"),
    route("POST", "/pool/scrub", "control_scrub"),
    route("GET", "/alerts", "list_alerts"),
    route("PUT", "/alerts", "set_alert"),
    route("DELETE", "/alerts/{name}", "remove_alert"),
    route("POST", "/alerts/test", "test_alerts"),
    route("GET", "/users", "list_users"),
    route("POST", "/users", "add_user"),
    route("DELETE", "/users/{name}", "remove_user"),
    route("PUT", "/users/{name}/role", "set_user_role"),
    route("PUT", "/users/{name}/password", "set_password"),
    route("POST", "/users/{user}/tokens", "create_api_token"),
    route("DELETE", "/users/{user}/tokens/{name}", "remove_api_token"),
    route("GET", "/events", EVENTS),
];

/// The one that is answered here: events are not looked for by the service.
pub const EVENTS: &str = "find_events";

/// `/api/v1/…`
pub async fn answer(
    State(console): State<Console>,
    visitor: Visitor,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().strip_prefix("/api/v1").unwrap_or_default();
    let actor = match actor(&console, visitor, &method, &headers) {
        Ok(actor) => actor,
        Err(refused) => return refused,
    };
    if path == "/openapi.json" {
        return Json(openapi::document()).into_response();
    }
    let (route, mut fields) = match find(&method, path) {
        Ok(found) => found,
        Err(code) => {
            return error(code, "there is no such resource: /api/v1/openapi.json says what there is");
        }
    };
    let query = uri.query().unwrap_or_default();
    if route.call == EVENTS {
        return match Query::<EventQuery>::try_from_uri(&uri) {
            Ok(Query(query)) => {
                let found = query.find(&console.log).into_iter().map(Event::from).collect::<Vec<_>>();
                Json(json!({ "events": found })).into_response()
            }
            Err(refused) => error(StatusCode::BAD_REQUEST, &refused.body_text()),
        };
    }
    fields.extend(form_urlencoded::parse(query.as_bytes()).into_owned());
    let request = match request(route.call, &fields, &body) {
        Ok(request) => request,
        Err(reason) => return error(StatusCode::BAD_REQUEST, &reason),
    };
    match console.calls.call(actor, route.call, Value::Object(request)).await {
        Ok(answer) => Json(answer).into_response(),
        Err(refusal) => error(code(&refusal), refusal.message()),
    }
}

/// Who asks. What changes something takes a token: a browser's session is for its forms.
#[allow(clippy::result_large_err)] // it is answered as it is
fn actor(
    console: &Console,
    visitor: Visitor,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Actor, Response> {
    let refused = |text: &str| {
        let answer = error(StatusCode::UNAUTHORIZED, text);
        ([(header::WWW_AUTHENTICATE, "Bearer")], answer).into_response()
    };
    match (bearer(headers), visitor.session) {
        (Some(token), _) => {
            console.accounts.script(token, visitor.peer.address.ip()).map_err(|reason| match reason {
                SignInError::TooMany(_) => error(StatusCode::TOO_MANY_REQUESTS, &reason.to_string()),
                _ => refused("the token is not good (any more)"),
            })
        }
        (None, Some(session)) if method.is_safe() => Ok(session.actor),
        _ => Err(refused("this takes an API token: gemel user token create USER NAME, or the page Account")),
    }
}

/// The token of a request (RFC 6750 section 2.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Fields with their texts.
type Texts = Vec<(String, String)>;

/// The route, and the fields that the path has; or the status where there is none.
fn find(method: &Method, path: &str) -> Result<(&'static Route, Texts), StatusCode> {
    let matching = ROUTES.iter().filter_map(|route| Some((route, fields_of(route.path, path)?)));
    // A word is a better match than a name.
    let mut matching: Vec<_> = matching.collect();
    matching.sort_by_key(|(_, fields)| fields.len());
    let is_known = !matching.is_empty();
    let found = matching.into_iter().find(|(route, _)| route.method == method.as_str());
    found.ok_or(if is_known { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_FOUND })
}

fn fields_of(pattern: &str, path: &str) -> Option<Texts> {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    let mut fields = Vec::new();
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return Some(fields),
            (Some(pattern), Some(part)) => {
                match pattern.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                    Some(name) if !part.is_empty() => fields.push((name.to_owned(), decoded(part)?)),
                    None if pattern == part => {}
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
}

/// A part of a path without its percent signs (RFC 3986 section 2.1).
fn decoded(part: &str) -> Option<String> {
    let escaped = part.replace('+', "%2B");
    let (name, value) = form_urlencoded::parse(escaped.as_bytes()).next()?;
    // A part with an equals sign reads as two.
    Some(if value.is_empty() && !part.contains('=') { name.into_owned() } else { format!("{name}={value}") })
}

/// The request of a call.
fn request(call: &str, fields: &[(String, String)], body: &Bytes) -> Result<Map<String, Value>, String> {
    let name = schema::call(call).map_or("", |call| call.request);
    let mut request = match body.as_ref() {
        [] => Map::new(),
        body => {
            serde_json::from_slice(body).map_err(|error| format!("the body is no JSON object: {error}"))?
        }
    };
    let given = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let given = schema::read(name, given).map_err(|error| error.to_string())?;
    for (field, value) in given {
        if request.get(&field).is_some_and(|other| *other != value) {
            return Err(format!("{field} is one thing in the address and another one in the body"));
        }
        request.insert(field, value);
    }
    Ok(request)
}

fn code(refusal: &Status) -> StatusCode {
    match refusal.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unavailable | Code::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn error(code: StatusCode, reason: &str) -> Response {
    (code, Json(json!({ "error": reason }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::calls::Calls;

    #[test]
    fn every_route_leads_to_a_call_and_every_call_has_one() {
        let mut seen = std::collections::BTreeSet::new();
        for route in ROUTES.iter().filter(|route| route.call != EVENTS) {
            assert!(Calls::has(route.call), "{route:?}");
            let request = schema::message(schema::call(route.call).unwrap().request).unwrap();
            for name in route.path.split('/').filter_map(|part| part.strip_prefix('{')) {
                let name = name.trim_end_matches('}');
                assert!(request.fields.iter().any(|field| field.name == name), "{route:?}");
            }
            assert!(seen.insert((route.method, route.path)), "{route:?}");
        }
        for call in schema::CALLS.iter().filter(|call| Calls::has(call.name)) {
            assert!(ROUTES.iter().any(|route| route.call == call.name), "{call:?}");
        }
    }

    #[test]
    fn paths_are_found_with_their_names() {
        let fields =
            |method: Method, path: &str| find(&method, path).map(|(route, fields)| (route.call, fields));
        let text = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(fields(Method::GET, "/volumes"), Ok(("list_volumes", vec![])));
        assert_eq!(fields(Method::GET, "/volumes/vm-1"), Ok(("get_volume", text(&[("name", "vm-1")]))));
        let initiator = fields(Method::PUT, "/volumes/v/access/iqn.2026-01.x:a%3D+b=c").unwrap();
        assert_eq!(initiator.1, text(&[("volume", "v"), ("initiator", "iqn.2026-01.x:a=+b=c")]));
        assert_eq!(fields(Method::DELETE, "/volumes/v/access/*").unwrap().1[1].1, "*");
        assert_eq!(fields(Method::POST, "/disks/fail").unwrap().0, "fail_disk");
        assert_eq!(fields(Method::PUT, "/volumes"), Err(StatusCode::METHOD_NOT_ALLOWED));
        for nothing in ["", "/", "/volumes/", "/volumes/a/b", "/none"] {
            assert_eq!(fields(Method::GET, nothing).err(), Some(StatusCode::NOT_FOUND), "{nothing}");
        }
    }

    #[test]
    fn a_request_is_made_of_address_and_body() {
        let fields = [("name".to_owned(), "v".to_owned()), ("force".to_owned(), "true".to_owned())];
        let made = request("delete_volume", &fields, &Bytes::new()).unwrap();
        assert_eq!(Value::Object(made), json!({ "name": "v", "force": true }));
        let body = Bytes::from_static(b"{\"name\":\"w\"}");
        assert!(request("delete_volume", &fields, &body).unwrap_err().contains("one thing in the address"));
        assert!(request("delete_volume", &[], &Bytes::from_static(b"[1]")).is_err());
        let body = Bytes::from_static(b"{\"size_bytes\":1024}");
        assert_eq!(request("resize_volume", &fields[..1], &body).unwrap()["size_bytes"], 1024);
    }
}
