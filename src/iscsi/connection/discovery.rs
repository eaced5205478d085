//! SendTargets and the other keys of text negotiation in full feature phase (RFC 7143 appendix C and
//! section 13).

use super::full_feature::FullFeature;
use crate::iscsi::login::SessionKind;
use crate::iscsi::login::negotiation::{IRRELEVANT, NOT_UNDERSTOOD, REJECT, receive_length};
use crate::iscsi::names::IscsiName;
use crate::iscsi::text::{KeyValue, TextError, TextWriter, parse_keys};

/// Answers a whole text request.
///
/// # Errors
/// Text that breaks its form.
pub(super) fn answer(session: &mut FullFeature, text: &[u8]) -> Result<Vec<u8>, TextError> {
    let mut reply = TextWriter::default();
    for KeyValue { key, value } in parse_keys(text)? {
        match key {
            "SendTargets" => send_targets(session, value, &mut reply),
            // The only operational parameter that may change now: a declaration.
            "MaxRecvDataSegmentLength" => match receive_length(value) {
                Ok(length) => session.parameters.send_data_segment_length = length,
                Err(_) => reply.push(key, REJECT),
            },
            "InitiatorAlias" => {}
            // Answers to what we never asked.
            _ if matches!(value, NOT_UNDERSTOOD | IRRELEVANT | REJECT) => {}
            "InitiatorName"
            | "TargetName"
            | "SessionType"
            | "AuthMethod"
            | "HeaderDigest"
            | "DataDigest"
            | "MaxConnections"
            | "InitialR2T"
            | "ImmediateData"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "MaxOutstandingR2T"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "ErrorRecoveryLevel"
            | "TaskReporting"
            | "iSCSIProtocolLevel"
            | "IFMarker"
            | "OFMarker"
            | "IFMarkInt"
            | "OFMarkInt" => reply.push(key, REJECT),
            _ => reply.push(key, NOT_UNDERSTOOD),
        }
    }
    Ok(reply.into_bytes())
}

/// Lists the targets that this initiator may see: all of them, one by its name, or the session's own.
fn send_targets(session: &FullFeature, value: &str, reply: &mut TextWriter) {
    let wanted = match (&session.session.kind, value) {
        (SessionKind::Discovery, "All") => None,
        // A normal session is told of its own target only. "All" is no value for it, but initiators
        // that send it are better served with the truth than with a refusal.
        (SessionKind::Normal { target }, "" | "All") => Some(target.clone()),
        (SessionKind::Discovery, "") => return reply.push("SendTargets", REJECT),
        (kind, name) => match (IscsiName::new(name), kind) {
            (Ok(name), SessionKind::Normal { target }) if name != *target => return,
            (Ok(name), _) => Some(name),
            (Err(_), _) => return reply.push("SendTargets", REJECT),
        },
    };
    let basis = &session.basis;
    for target in basis.policy.targets(&session.session.initiator, &basis.portal) {
        if wanted.as_ref().is_some_and(|wanted| *wanted != target.name) {
            continue;
        }
        reply.push("TargetName", target.name.as_str());
        for portal in &target.portals {
            reply.push("TargetAddress", &format!("{},{}", portal.address, portal.group_tag));
        }
    }
}
