//! The REST API's description (OpenAPI 3.1), made of the same tables that requests are answered by.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::rest::{EVENTS, ROUTES, Route};
use crate::rpc::schema::{self, Field, Kind, Message};

/// The document.
pub fn document() -> Value {
    let (mut paths, mut named) = (Map::new(), BTreeSet::from(["Event"]));
    for route in ROUTES {
        let operation = if route.call == EVENTS { events() } else { operation(route, &mut named) };
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gemel",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What `gemel` does, for scripts. Any node may be asked for anything. Fields and values are only \
                            ever added. A viewer's token reads, an operator's does what loses nothing, an administrator's \
                            everything.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/api/v1" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(named),
            "responses": {
                "Refused": {
                    "description": "It was not done: 400 wrong request, 401 no good token, 403 the role is too small, 404 no such \
                                    thing, 409 not as things are, 429 too many attempts, 503 the node cannot now.",
                    "content": { "application/json": { "schema": {
                        "type": "object",
                        "properties": { "error": { "type": "string", "description": "What is wrong, and what to do." } },
                        "required": ["error"],
                    } } },
                },
            },
        },
    })
}

fn operation(route: &Route, named: &mut BTreeSet<&'static str>) -> Value {
    let Some((call, request)) =
        schema::call(route.call).and_then(|call| Some((call, schema::message(call.request)?)))
    else {
        return json!({});
    };
    let is_in_path = |field: &Field| route.path.contains(&format!("{{{}}}", field.name));
    let has_body = !matches!(route.method, "GET" | "DELETE");
    let parameters = request.fields.iter().filter(|field| is_in_path(field) || !has_body).map(|field| {
        let place = if is_in_path(field) { "path" } else { "query" };
        json!({
            "name": field.name,
            "in": place,
            "required": is_in_path(field),
            "description": field.about,
            "schema": schema_of(field, named),
        })
    });
    let parameters: Vec<_> = parameters.collect();
    named.insert(call.response);
    let mut operation = json!({
        "operationId": call.name,
        "description": call.about,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "Done.",
                "content": { "application/json": { "schema": reference(call.response) } },
            },
            "default": { "$ref": "#/components/responses/Refused" },
        },
    });
    if has_body {
        let fields = request.fields.iter().filter(|field| !is_in_path(field));
        let properties: Map<_, _> =
            fields.map(|field| (field.name.to_owned(), schema_of(field, named))).collect();
        operation["requestBody"] = json!({
            "content": { "application/json": { "schema": {
                "type": "object", "properties": properties, "additionalProperties": false,
            } } },
        });
    }
    operation
}

fn events() -> Value {
    let parameter = |name: &str, about: &str, schema: Value| json!({ "name": name, "in": "query", "required": false, "description": about, "schema": schema });
    let number = || json!({ "type": "integer", "minimum": 0 });
    json!({
        "operationId": EVENTS,
        "description": "What has happened on the node that is asked, newest first.",
        "parameters": [
            parameter("search", "Words that all have to be in it.", json!({ "type": "string" })),
            parameter("severity", "How bad at least.", json!({ "type": "string", "enum": ["info", "warning", "error"] })),
            parameter("before", "Only what came before this number.", number()),
            parameter("limit", "How many at most; 100 when not given.", number()),
        ],
        "responses": {
            "200": {
                "description": "Done.",
                "content": { "application/json": { "schema": {
                    "type": "object",
                    "properties": { "events": { "type": "array", "items": reference("Event") } },
                } } },
            },
            "default": { "$ref": "#/components/responses/Refused" },
        },
    })
}

/// The messages of these names, and those within them.
fn schemas(mut wanted: BTreeSet<&'static str>) -> Map<String, Value> {
    let mut made = Map::new();
    while let Some(name) = wanted.pop_first() {
        if let Some(message) = schema::message(name).filter(|_| !made.contains_key(name)) {
            made.insert(name.to_owned(), schema_of_message(message, &mut wanted));
        }
    }
    made
}

fn schema_of_message(message: &Message, named: &mut BTreeSet<&'static str>) -> Value {
    let fields = message.fields.iter();
    let properties: Map<_, _> =
        fields.map(|field| (field.name.to_owned(), schema_of(field, named))).collect();
    let mut schema = json!({ "type": "object", "properties": properties });
    if !message.about.is_empty() {
        schema["description"] = message.about.into();
    }
    schema
}

fn schema_of(field: &Field, named: &mut BTreeSet<&'static str>) -> Value {
    let one = match field.kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::YesNo => json!({ "type": "boolean" }),
        Kind::Number(most) => json!({ "type": "integer", "minimum": 0, "maximum": most }),
        Kind::Word(words) => json!({ "type": "string", "enum": words }),
        Kind::Message(name) => {
            named.insert(name);
            reference(name)
        }
    };
    let mut schema = match (field.is_list, field.is_optional, field.kind) {
        (true, ..) => json!({ "type": "array", "items": one }),
        (false, true, Kind::Message(_)) => json!({ "oneOf": [one, { "type": "null" }] }),
        (false, true, _) => {
            let mut one = one;
            one["type"] = json!([one["type"], "null"]);
            one
        }
        _ => one,
    };
    if !field.about.is_empty() {
        schema["description"] = field.about.into();
    }
    if field.is_hidden {
        schema["writeOnly"] = true.into();
    }
    schema
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` in it.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn everything_that_is_named_is_described() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let place = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(place).is_some(), "{reference}");
        }
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
        assert_eq!(operations.count(), ROUTES.len());
        let create = &document["paths"]["/volumes"]["post"];
        let fields = &create["requestBody"]["content"]["application/json"]["schema"]["properties"];
        assert_eq!(fields["size_bytes"]["type"], "integer");
        let volume = &document["components"]["schemas"]["Volume"]["properties"];
        assert_eq!(volume["state"]["enum"][0], "in-sync");
        assert_eq!(
            document["components"]["schemas"]["MailAlert"]["properties"]["password"]["writeOnly"],
            true
        );
        let one = &document["paths"]["/volumes/{name}"]["delete"]["parameters"];
        assert_eq!((&one[0]["in"], &one[1]["in"]), (&json!("path"), &json!("query")));
    }
}
