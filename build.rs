//! Compiles `proto/` with a pure-Rust compiler, so that building needs no protoc.

/// Enum fields, which `gemel --json` shows by name: the field's path and its enum.
const ENUM_FIELDS: [(&str, &str); 10] = [
    ("Status.health", "Health"),
    ("Attention.severity", "Severity"),
    ("Node.state", "NodeState"),
    ("Witness.state", "WitnessState"),
    ("Volume.state", "VolumeState"),
    ("Disk.state", "DiskState"),
    ("Pool.state", "PoolState"),
    ("Event.severity", "Severity"),
    ("Alert.severity", "Severity"),
    ("MailAlert.security", "MailSecurity"),
];

/// Messages that `gemel --json` prints. Requests are not among them: they may carry secrets.
const PRINTED: [&str; 24] = [
    "Cluster",
    "Member",
    "Status",
    "Attention",
    "Node",
    "Witness",
    "Volume",
    "Resync",
    "Disk",
    "Rebuild",
    "Scrub",
    "Pool",
    "AccessEntry",
    "Event",
    "JoinToken",
    "Alert",
    "MailAlert",
    "WebhookAlert",
    "AlertTest",
    "ShutdownClusterResponse",
    "AloneVolume",
    "Snapshot",
    "SnapshotSchedule",
    "VolumePiece",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/management.proto", "proto/peer.proto"], ["proto"])?;
    let package = ".gemel.management.v1";
    let mut builder = tonic_prost_build::configure()
        // Secrets must not reach a log through `{:?}`.
        .skip_debug([
            format!("{package}.ChapCredential"),
            format!("{package}.JoinToken"),
            format!("{package}.Backup"),
            format!("{package}.MailAlert"),
            format!("{package}.WebhookAlert"),
        ])
        .skip_debug([".gemel.peer.v1.JoinRequest", ".gemel.peer.v1.JoinResponse"])
        // Written from pieces, so that the data of a block is copied once only.
        .extern_path(".gemel.peer.v1.MirrorMessage", "crate::peer::mirror_stream::MirrorMessage");
    for message in PRINTED {
        builder = builder.message_attribute(format!("{package}.{message}"), "#[derive(serde::Serialize)]");
    }
    let data = format!("{package}.VolumePiece.data");
    builder = builder.field_attribute(data, "#[serde(skip)]");
    for secret in ["MailAlert.password", "WebhookAlert.token"] {
        builder = builder.field_attribute(format!("{package}.{secret}"), "#[serde(skip)]");
    }
    for (field, name) in ENUM_FIELDS {
        let attribute = format!("#[serde(serialize_with = \"crate::rpc::json::name_of::<_, {name}>\")]");
        builder = builder.field_attribute(format!("{package}.{field}"), attribute);
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
