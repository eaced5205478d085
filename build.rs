//! Compiles `proto/` with a pure-Rust compiler, so that building needs no protoc, and writes down what the management
//! service's messages are made of, for the REST API and its description.

use std::fmt::Write;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

const PACKAGE: &str = ".gemel.management.v1";

/// What is given and never shown.
const NEVER_SHOWN: [&str; 2] = ["MailAlert.password", "WebhookAlert.token"];

/// Messages that are read from JSON though they are no requests.
const PARTS_OF_REQUESTS: [&str; 5] =
    ["ChapCredential", "Alert", "MailAlert", "WebhookAlert", "SnapshotSchedule"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/management.proto", "proto/peer.proto"], ["proto"])?;
    let management = descriptors.file.iter().find(|file| file.package() == &PACKAGE[1..]);
    let management = management.ok_or("there is no management service")?.clone();
    let withheld = ["ChapCredential", "JoinToken", "Backup", "MailAlert", "WebhookAlert"];
    let secret = ["ApiToken", "AddUserRequest", "SetPasswordRequest", "UserAccess"];
    let mut builder = tonic_prost_build::configure()
        // Secrets must not reach a log through `{:?}`.
        .skip_debug(withheld.iter().chain(&secret).map(|name| format!("{PACKAGE}.{name}")))
        .skip_debug([".gemel.peer.v1.JoinRequest", ".gemel.peer.v1.JoinResponse"])
        // Written from pieces, so that the data of a block is copied once only.
        .extern_path(".gemel.peer.v1.MirrorMessage", "crate::peer::mirror_stream::MirrorMessage");
    for message in &management.message_type {
        let path = format!("{PACKAGE}.{}", message.name());
        let is_request = message.name().ends_with("Request");
        // Requests may carry secrets: they are not printed.
        if !is_request && message.name() != "Backup" {
            builder = builder.message_attribute(&path, "#[derive(serde::Serialize)]");
        }
        if is_request || PARTS_OF_REQUESTS.contains(&message.name()) {
            let read = "#[derive(serde::Deserialize)]\n#[serde(default, deny_unknown_fields)]";
            builder = builder.message_attribute(&path, read);
        }
        // Contents of volumes are no JSON.
        for field in message.field.iter().filter(|field| field.r#type() == Type::Bytes) {
            builder = builder.field_attribute(format!("{path}.{}", field.name()), "#[serde(skip)]");
        }
        for field in message.field.iter().filter(|field| field.r#type() == Type::Enum) {
            let kind = field.type_name().rsplit('.').next().unwrap_or_default();
            let mut attribute = format!("serialize_with = \"crate::rpc::json::name_of::<_, {kind}>\"");
            if PARTS_OF_REQUESTS.contains(&message.name()) {
                let _ =
                    write!(attribute, ", deserialize_with = \"crate::rpc::json::number_of::<_, {kind}>\"");
            }
            builder =
                builder.field_attribute(format!("{path}.{}", field.name()), format!("#[serde({attribute})]"));
        }
    }
    for secret in NEVER_SHOWN {
        builder = builder.field_attribute(format!("{PACKAGE}.{secret}"), "#[serde(skip_serializing)]");
    }
    builder.compile_fds(descriptors)?;
    let directory = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(directory.join("schema.rs"), schema(&management)?)?;
    Ok(())
}

/// The messages and calls of the service, as Rust constants.
fn schema(file: &FileDescriptorProto) -> Result<String, std::fmt::Error> {
    let comments = Comments(file);
    let mut text = String::from("/// All messages.\npub static MESSAGES: &[Message] = &[\n");
    for (number, message) in (0..).zip(&file.message_type) {
        let (name, about) = (message.name(), comments.at(&[4, number]));
        writeln!(text, "Message {{ name: {name:?}, about: {about:?}, fields: &[")?;
        let fields = (0..).zip(&message.field).filter(|(_, field)| field.r#type() != Type::Bytes);
        for (place, field) in fields {
            let about = comments.at(&[4, number, 2, place]);
            let is_hidden = NEVER_SHOWN.contains(&&*format!("{name}.{}", field.name()));
            writeln!(
                text,
                "Field {{ name: {:?}, about: {about:?}, kind: {}, is_list: {}, is_optional: {}, is_hidden: {is_hidden} }},",
                field.name(),
                kind(file, message, field),
                field.label() == Label::Repeated,
                field.proto3_optional(),
            )?;
        }
        text.push_str("] },\n");
    }
    text.push_str("];\n/// All calls.\npub static CALLS: &[Call] = &[\n");
    for (number, service) in (0..).zip(&file.service) {
        for (place, call) in (0..).zip(&service.method) {
            let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
            let (request, response) = (last(call.input_type()), last(call.output_type()));
            let (name, about) = (snake_case(call.name()), comments.at(&[6, number, 2, place]));
            writeln!(
                text,
                "Call {{ name: {name:?}, about: {about:?}, request: {request:?}, response: {response:?} }},"
            )?;
        }
    }
    text.push_str("];\n");
    Ok(text)
}

fn kind(file: &FileDescriptorProto, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let name = field.type_name().rsplit('.').next().unwrap_or_default();
    match field.r#type() {
        Type::String => "Kind::Text".to_owned(),
        Type::Bool => "Kind::YesNo".to_owned(),
        Type::Uint32 => "Kind::Number(u32::MAX as u64)".to_owned(),
        Type::Uint64 => "Kind::Number(u64::MAX)".to_owned(),
        Type::Message => format!("Kind::Message({name:?})"),
        Type::Enum => {
            let found = file.enum_type.iter().find(|kind| kind.name() == name);
            format!("Kind::Word(&{:?})", found.map(words).unwrap_or_default())
        }
        other => panic!("{}.{}: no JSON is known for {other:?}", message.name(), field.name()),
    }
}

/// The values of an enum as JSON has them.
fn words(kind: &EnumDescriptorProto) -> Vec<String> {
    let prefix = format!("{}_", snake_case(kind.name()).to_ascii_uppercase());
    let names = kind.value.iter().map(|value| value.name().strip_prefix(&prefix).unwrap_or(value.name()));
    names
        .filter(|name| *name != "UNSPECIFIED")
        .map(|name| name.to_ascii_lowercase().replace('_', "-"))
        .collect()
}

fn snake_case(name: &str) -> String {
    name.char_indices().fold(String::new(), |mut text, (place, letter)| {
        if letter.is_ascii_uppercase() && place > 0 {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
        text
    })
}

/// What the protocol file says of its parts.
struct Comments<'a>(&'a FileDescriptorProto);

impl Comments<'_> {
    fn at(&self, path: &[i32]) -> String {
        let locations = self.0.source_code_info.iter().flat_map(|info| &info.location);
        let found = locations
            .filter(|location| location.path == path)
            .find_map(|location| location.leading_comments.as_deref());
        found.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
