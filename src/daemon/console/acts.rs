//! What is done by a form: the call that it names, with its fields as the request. Nothing is decided here but whether the
//! form is this session's own, and whether what is dangerous was typed back.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Map, Value};

use super::Console;
use super::visitor::{Fields, Member};
use super::words::Language;
use crate::daemon::calls::Calls;
use crate::rpc::schema;

/// `POST /act/CALL`
pub async fn act(
    State(console): State<Console>,
    Path(call): Path<String>,
    Member { session, language }: Member,
    body: Bytes,
) -> Response {
    let fields = Fields::parse(&body);
    if !fields.is_of(&session) {
        return (StatusCode::FORBIDDEN, "this form is not of this session: go back and load the page again")
            .into_response();
    }
    let Some(description) = schema::call(&call).filter(|_| Calls::has(&call)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let done = match schema::read(description.request, fields.request()) {
        Ok(request) => match unconfirmed(&call, &request, &cluster(&console), fields.get("confirm")) {
            Some(name) => Err(match language {
                Language::English => format!("Nothing was done: {name} has to be typed back."),
                Language::French => format!("Rien n’a été fait : il faut saisir {name}."),
            }),
            None => {
                let answer = console.calls.call(session.actor.clone(), &call, Value::Object(request)).await;
                answer.map_err(|refusal| refusal.message().to_owned())
            }
        },
        Err(error) => Err(error.to_string()),
    };
    let is_done = done.is_ok();
    let text = match &done {
        Ok(answer) => told(&call, answer, language),
        Err(reason) => reason.clone(),
    };
    console.accounts.say(&session, is_done, text);
    Redirect::to(back(fields.get("back"), is_done)).into_response()
}

fn cluster(console: &Console) -> String {
    let name =
        |state: &crate::cluster::state::ControlState| state.cluster().map(|cluster| cluster.name.to_string());
    console.control.look(name).unwrap_or_default()
}

/// What has to be typed back and was not.
fn unconfirmed<'a>(
    call: &str,
    request: &'a Map<String, Value>,
    cluster: &'a str,
    typed: &str,
) -> Option<&'a str> {
    let text = |field: &str| request.get(field).and_then(Value::as_str).unwrap_or_default();
    let has = |field: &str| request.get(field) == Some(&Value::Bool(true));
    let name = match call {
        "delete_volume" | "force_primary" | "remove_user" | "remove_member" => text("name"),
        "resize_volume" if has("shrink") => text("name"),
        "delete_snapshot" => text("name"),
        "deny_access" | "roll_back_snapshot" => text("volume"),
        "fail_disk" => text("disk"),
        "replace_disk" if has("force") => text("path"),
        "shutdown_node" => text("node"),
        "shutdown_cluster" => cluster,
        _ => return None,
    };
    (name.is_empty() || typed.trim() != name).then_some(name)
}

/// What is said of what was done. Secrets that are shown once are in it.
fn told(call: &str, answer: &Value, language: Language) -> String {
    let text = |field: &str| answer[field].as_str().unwrap_or_default();
    let once = language.say("Shown only now:", "Affiché une seule fois :");
    match call {
        "create_api_token" | "create_join_token" => format!("{once} {}", text("token")),
        "add_user" | "set_password" if !text("link").is_empty() => {
            format!("{once} {}{}", answer["consoles"][0].as_str().unwrap_or_default(), text("link"))
        }
        "test_alerts" => {
            let tests = answer["tests"].as_array().into_iter().flatten().map(|test| {
                let error = test["error"].as_str().unwrap_or_default();
                let result = if error.is_empty() { language.say("delivered", "délivré") } else { error };
                format!("{}: {result}", test["name"].as_str().unwrap_or_default())
            });
            tests.collect::<Vec<_>>().join("; ")
        }
        _ => language.say("Done.", "C’est fait.").to_owned(),
    }
}

/// The page to go back to: one of this console. That of something that is gone is not there any more.
fn back(wanted: &str, is_done: bool) -> &str {
    let (page, after) = wanted.split_once('#').unwrap_or((wanted, ""));
    let page = if is_done && after.starts_with('/') { after } else { page };
    let is_own =
        page.starts_with('/') && !page.starts_with("//") && page.bytes().all(|byte| byte.is_ascii_graphic());
    if is_own && !page.contains('\\') { page } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dangerous_has_to_be_typed_back() {
        let request = |text: &str| match serde_json::from_str(text).unwrap() {
            Value::Object(request) => request,
            other => panic!("{other}"),
        };
        let volume = request(r#"{"name":"vm-1"}"#);
        assert_eq!(unconfirmed("delete_volume", &volume, "main", ""), Some("vm-1"));
        assert_eq!(unconfirmed("delete_volume", &volume, "main", "vm-2"), Some("vm-1"));
        assert_eq!(unconfirmed("delete_volume", &volume, "main", " vm-1 "), None);
        assert_eq!(unconfirmed("delete_volume", &request("{}"), "main", ""), Some(""), "not even nothing");
        assert_eq!(unconfirmed("resize_volume", &volume, "main", ""), None);
        let shrink = request(r#"{"name":"vm-1","shrink":true}"#);
        assert_eq!(unconfirmed("resize_volume", &shrink, "main", ""), Some("vm-1"));
        assert_eq!(unconfirmed("shutdown_cluster", &request("{}"), "main", "x"), Some("main"));
        assert_eq!(unconfirmed("create_volume", &volume, "main", ""), None);
    }

    #[test]
    fn forms_lead_back_to_pages_of_the_console_alone() {
        assert_eq!(back("/volumes/x", true), "/volumes/x");
        assert_eq!(back("/volumes/x#/volumes", true), "/volumes");
        assert_eq!(back("/volumes/x#/volumes", false), "/volumes/x");
        for evil in ["https://evil.example", "//evil.example", "/\\evil.example", "", "/x\r\nSet-Cookie: a=b"]
        {
            assert_eq!(back(evil, true), "/", "{evil:?}");
            assert!(!back(&format!("/x#{evil}"), true).starts_with("//"));
        }
    }
}
