//! A real iSCSI login, to know that initiators can log in.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::iscsi::pdu::header::{BASIC_HEADER_LENGTH, BasicHeader};
use crate::iscsi::pdu::{
    Digests, InitiatorTaskTag, Isid, LoginRequest, LoginResponse, LoginStatus, SerialNumber, Stage, framing,
};

const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Logs in to `target` at `portal` and leaves again. The error says how far it came.
pub async fn login(portal: (&str, u16), target: &str) -> Result<(), String> {
    match timeout(LOGIN_TIMEOUT, log_in(portal, target)).await {
        Ok(result) => result,
        Err(_) => Err("no answer to a login".to_owned()),
    }
}

async fn log_in(portal: (&str, u16), target: &str) -> Result<(), String> {
    let mut stream = TcpStream::connect(portal).await.map_err(|error| format!("no connection: {error}"))?;
    let request = LoginRequest {
        continues: false,
        current_stage: Stage::Operational,
        next_stage: Some(Stage::FullFeature),
        version_maximum: 0,
        version_minimum: 0,
        // Format "random" (RFC 7143 section 11.12.5), with the process as the qualifier: no two
        // probes at work reinstate each other's session.
        isid: Isid(probe_isid(std::process::id())),
        tsih: 0,
        initiator_task_tag: InitiatorTaskTag(1),
        connection_id: 0,
        command_sn: SerialNumber(1),
        expected_status_sn: SerialNumber(0),
    };
    let text = format!("InitiatorName=iqn.2026-11.io.gemel:probe\0TargetName={target}\0SessionType=Normal\0");
    let mut bytes = Vec::new();
    framing::append_pdu(&mut bytes, request.emit(), &[], text.as_bytes(), Digests::default());
    let exchange = async {
        stream.write_all(&bytes).await?;
        let mut header = [0; BASIC_HEADER_LENGTH];
        stream.read_exact(&mut header).await.map(|_| header)
    };
    let header: [u8; BASIC_HEADER_LENGTH] =
        exchange.await.map_err(|error: std::io::Error| format!("the login broke off: {error}"))?;
    let header = BasicHeader::from_prefix(&header).ok_or("the answer to the login is no PDU")?;
    let response =
        LoginResponse::parse(&header).map_err(|error| format!("the answer to the login: {error}"))?;
    match response.status {
        LoginStatus::SUCCESS => Ok(()),
        LoginStatus { class, detail } => Err(format!("the login was refused with status {class}/{detail}")),
    }
}

fn probe_isid(process: u32) -> [u8; 6] {
    let [_, b, c, d] = process.to_be_bytes();
    [0x80, 0, 0, b, c, d]
}
