//! Operational keys and their negotiation rules (RFC 7143 section 13), as the responder.
//!
//! Every key is answered by the rule of its section: the result of a function of both sides' values,
//! `Reject` for a value outside its form or range, `Irrelevant` where the session type makes it so,
//! `NotUnderstood` for what nobody here knows. Declarations get no answer.

use std::borrow::Cow;

use super::{LoginFailure, LoginFault};
use crate::iscsi::pdu::header::MAXIMUM_DATA_SEGMENT_LENGTH;
use crate::iscsi::settings::{DigestOffer, Parameters, TargetSettings};
use crate::iscsi::text::{KeyValue, boolean_text, parse_boolean, parse_number};

/// Answer to a key, if it wants one.
pub(super) type Answer = Option<Cow<'static, str>>;

/// The operational negotiation of one login.
#[derive(Debug)]
pub(super) struct Negotiation {
    parameters: Parameters,
    is_discovery: bool,
    /// Bit by [`OperationalKey`]: negotiated already.
    seen: u32,
}

impl Negotiation {
    pub(super) fn new(is_discovery: bool) -> Self {
        Self { parameters: Parameters::default(), is_discovery, seen: 0 }
    }

    /// Says that our MaxRecvDataSegmentLength has been declared.
    pub(super) fn declare_receive_length(&mut self, length: u32) {
        self.parameters.receive_data_segment_length = length;
    }

    /// What was agreed on.
    pub(super) fn finish(mut self) -> Parameters {
        // FirstBurstLength must not exceed MaxBurstLength (section 13.14), whichever was left at
        // its default.
        let parameters = &mut self.parameters;
        parameters.first_burst_length = parameters.first_burst_length.min(parameters.burst_length);
        self.parameters
    }

    /// Negotiates one key.
    pub(super) fn answer(
        &mut self,
        pair: KeyValue<'_>,
        settings: &TargetSettings,
    ) -> Result<Answer, LoginFailure> {
        let Some(key) = OperationalKey::of_name(pair.key) else {
            return Ok(Some(NOT_UNDERSTOOD.into()));
        };
        // What the initiator answers to an offer of ours; we make none in this stage.
        if matches!(pair.value, NOT_UNDERSTOOD | IRRELEVANT | REJECT) {
            return Ok(None);
        }
        let bit = 1 << key as u32;
        if self.seen & bit != 0 {
            return Err(LoginFault::KeyRepeated.into());
        }
        self.seen |= bit;
        if self.is_discovery && key.is_irrelevant_in_discovery() {
            return Ok(Some(IRRELEVANT.into()));
        }
        self.apply(key, pair.value, settings)
    }

    fn apply(
        &mut self,
        key: OperationalKey,
        value: &str,
        settings: &TargetSettings,
    ) -> Result<Answer, LoginFailure> {
        let parameters = &mut self.parameters;
        let answer: Cow<'static, str> = match key {
            OperationalKey::HeaderDigest => {
                digest(value, settings.header_digest, &mut parameters.digests.header)
            }
            OperationalKey::DataDigest => digest(value, settings.data_digest, &mut parameters.digests.data),
            OperationalKey::MaxConnections => minimum(value, 1..=65535, 1, |_| {}),
            OperationalKey::InitialR2t => either(value, false, |result| parameters.initial_r2t = result),
            OperationalKey::ImmediateData => both(value, true, |result| parameters.immediate_data = result),
            OperationalKey::MaxRecvDataSegmentLength => {
                parameters.send_data_segment_length = receive_length(value)?;
                return Ok(None);
            }
            OperationalKey::MaxBurstLength => {
                minimum(value, LENGTHS, settings.burst_length, |result| parameters.burst_length = result)
            }
            OperationalKey::FirstBurstLength => {
                minimum(value, LENGTHS, settings.first_burst_length, |result| {
                    parameters.first_burst_length = result;
                })
            }
            OperationalKey::DefaultTime2Wait => {
                let ours = parameters.time_to_wait_s;
                maximum(value, 0..=3600, ours.into(), |result| parameters.time_to_wait_s = result as u16)
            }
            OperationalKey::DefaultTime2Retain => {
                let ours = parameters.time_to_retain_s;
                minimum(value, 0..=3600, ours.into(), |result| parameters.time_to_retain_s = result as u16)
            }
            OperationalKey::MaxOutstandingR2t => {
                minimum(value, 1..=65535, settings.outstanding_r2t.into(), |result| {
                    parameters.outstanding_r2t = result as u16;
                })
            }
            OperationalKey::DataPduInOrder | OperationalKey::DataSequenceInOrder => {
                either(value, true, |_| {})
            }
            OperationalKey::ErrorRecoveryLevel => minimum(value, 0..=2, 0, |_| {}),
            OperationalKey::TaskReporting => choose(value, &["RFC3720"]),
            OperationalKey::IscsiProtocolLevel => minimum(value, 0..=31, 1, |_| {}),
            // Declarations that change nothing here.
            OperationalKey::InitiatorAlias | OperationalKey::NodeArchitecture => return Ok(None),
            // Obsolete (section 13.25): "No" is allowed for the switches and understood by
            // initiators of RFC 3720; the intervals must be rejected.
            OperationalKey::IfMarker | OperationalKey::OfMarker => boolean_text(false).into(),
            OperationalKey::IfMarkInt | OperationalKey::OfMarkInt => REJECT.into(),
            OperationalKey::SendTargets => REJECT.into(),
        };
        Ok(Some(answer))
    }
}

/// Keys that login's operational stage knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperationalKey {
    HeaderDigest,
    DataDigest,
    MaxConnections,
    SendTargets,
    InitiatorAlias,
    InitialR2t,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2t,
    DataPduInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    TaskReporting,
    IscsiProtocolLevel,
    NodeArchitecture,
    IfMarker,
    OfMarker,
    IfMarkInt,
    OfMarkInt,
}

impl OperationalKey {
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "HeaderDigest" => Self::HeaderDigest,
            "DataDigest" => Self::DataDigest,
            "MaxConnections" => Self::MaxConnections,
            "SendTargets" => Self::SendTargets,
            "InitiatorAlias" => Self::InitiatorAlias,
            "InitialR2T" => Self::InitialR2t,
            "ImmediateData" => Self::ImmediateData,
            "MaxRecvDataSegmentLength" => Self::MaxRecvDataSegmentLength,
            "MaxBurstLength" => Self::MaxBurstLength,
            "FirstBurstLength" => Self::FirstBurstLength,
            "DefaultTime2Wait" => Self::DefaultTime2Wait,
            "DefaultTime2Retain" => Self::DefaultTime2Retain,
            "MaxOutstandingR2T" => Self::MaxOutstandingR2t,
            "DataPDUInOrder" => Self::DataPduInOrder,
            "DataSequenceInOrder" => Self::DataSequenceInOrder,
            "ErrorRecoveryLevel" => Self::ErrorRecoveryLevel,
            "TaskReporting" => Self::TaskReporting,
            "iSCSIProtocolLevel" => Self::IscsiProtocolLevel,
            "X#NodeArchitecture" => Self::NodeArchitecture,
            "IFMarker" => Self::IfMarker,
            "OFMarker" => Self::OfMarker,
            "IFMarkInt" => Self::IfMarkInt,
            "OFMarkInt" => Self::OfMarkInt,
            _ => return None,
        })
    }

    /// Sections 13.2 to 13.23: "Irrelevant when: SessionType=Discovery".
    fn is_irrelevant_in_discovery(self) -> bool {
        matches!(
            self,
            Self::MaxConnections
                | Self::InitialR2t
                | Self::ImmediateData
                | Self::MaxBurstLength
                | Self::FirstBurstLength
                | Self::MaxOutstandingR2t
                | Self::DataPduInOrder
                | Self::DataSequenceInOrder
                | Self::TaskReporting
                | Self::IscsiProtocolLevel
        )
    }

    /// Whether the key may also come in the security stage: it says something and asks nothing.
    pub(super) fn is_declaration(self) -> bool {
        matches!(self, Self::InitiatorAlias | Self::NodeArchitecture | Self::MaxRecvDataSegmentLength)
    }
}

pub(in crate::iscsi) const NOT_UNDERSTOOD: &str = "NotUnderstood";
pub(in crate::iscsi) const IRRELEVANT: &str = "Irrelevant";
pub(in crate::iscsi) const REJECT: &str = "Reject";

/// Range of the keys that count bytes: 512 to 2^24 - 1.
const LENGTHS: std::ops::RangeInclusive<u32> = 512..=MAXIMUM_DATA_SEGMENT_LENGTH as u32;

/// A declared MaxRecvDataSegmentLength (section 13.12). A declaration can't be answered, so a bad
/// one ends the login.
pub(in crate::iscsi) fn receive_length(value: &str) -> Result<u32, LoginFailure> {
    parse_number(value).filter(|length| LENGTHS.contains(length)).ok_or(LoginFault::ValueInvalid.into())
}

fn minimum(
    value: &str,
    range: std::ops::RangeInclusive<u32>,
    ours: u32,
    accept: impl FnOnce(u32),
) -> Cow<'static, str> {
    number(value, range, |theirs| theirs.min(ours), accept)
}

fn maximum(
    value: &str,
    range: std::ops::RangeInclusive<u32>,
    ours: u32,
    accept: impl FnOnce(u32),
) -> Cow<'static, str> {
    number(value, range, |theirs| theirs.max(ours), accept)
}

fn number(
    value: &str,
    range: std::ops::RangeInclusive<u32>,
    function: impl FnOnce(u32) -> u32,
    accept: impl FnOnce(u32),
) -> Cow<'static, str> {
    let Some(theirs) = parse_number(value).filter(|theirs| range.contains(theirs)) else {
        return REJECT.into();
    };
    let result = function(theirs);
    accept(result);
    result.to_string().into()
}

/// Result function OR.
fn either(value: &str, ours: bool, accept: impl FnOnce(bool)) -> Cow<'static, str> {
    boolean(value, |theirs| theirs || ours, accept)
}

/// Result function AND.
fn both(value: &str, ours: bool, accept: impl FnOnce(bool)) -> Cow<'static, str> {
    boolean(value, |theirs| theirs && ours, accept)
}

fn boolean(value: &str, function: impl FnOnce(bool) -> bool, accept: impl FnOnce(bool)) -> Cow<'static, str> {
    let Some(theirs) = parse_boolean(value) else { return REJECT.into() };
    let result = function(theirs);
    accept(result);
    boolean_text(result).into()
}

/// The first of the initiator's list that is among ours.
fn choose(value: &str, ours: &[&'static str]) -> Cow<'static, str> {
    let choice = value.split(',').find_map(|theirs| ours.iter().find(|our| **our == theirs));
    choice.copied().unwrap_or(REJECT).into()
}

fn digest(value: &str, offer: DigestOffer, is_used: &mut bool) -> Cow<'static, str> {
    let answer = match offer {
        DigestOffer::Refuse => choose(value, &["None"]),
        DigestOffer::Prefer if value.split(',').any(|theirs| theirs == "CRC32C") => "CRC32C".into(),
        DigestOffer::Allow | DigestOffer::Prefer => choose(value, &["CRC32C", "None"]),
    };
    *is_used = answer == "CRC32C";
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Negotiates `key=value` by itself and gives the answer ("" for none).
    fn answer(is_discovery: bool, key: &str, value: &str) -> String {
        let mut negotiation = Negotiation::new(is_discovery);
        let settings = TargetSettings::default();
        let answer = negotiation.answer(KeyValue { key, value }, &settings).unwrap();
        answer.unwrap_or_default().into_owned()
    }

    #[test]
    fn every_key_follows_its_rule() {
        let table = [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("HeaderDigest", "None", "None"),
            ("HeaderDigest", "SHA9", "Reject"),
            ("DataDigest", "SHA9,CRC32C", "CRC32C"),
            ("MaxConnections", "8", "1"),
            ("MaxConnections", "0", "Reject"),
            ("MaxConnections", "65536", "Reject"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxRecvDataSegmentLength", "512", ""),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "512", "512"),
            ("MaxBurstLength", "511", "Reject"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("MaxBurstLength", "0x2000", "8192"),
            ("FirstBurstLength", "262144", "262144"),
            ("FirstBurstLength", "1048576", "262144"),
            ("DefaultTime2Wait", "0", "2"),
            ("DefaultTime2Wait", "5", "5"),
            ("DefaultTime2Wait", "3601", "Reject"),
            ("DefaultTime2Retain", "0", "0"),
            ("DefaultTime2Retain", "60", "20"),
            ("MaxOutstandingR2T", "1", "1"),
            ("MaxOutstandingR2T", "65535", "8"),
            ("MaxOutstandingR2T", "0", "Reject"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "No", "Yes"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("TaskReporting", "FastAbort", "Reject"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("iSCSIProtocolLevel", "0", "0"),
            ("IFMarker", "Yes", "No"),
            ("OFMarker", "No", "No"),
            ("IFMarkInt", "2048~65535", "Reject"),
            ("OFMarkInt", "2048", "Reject"),
            ("SendTargets", "All", "Reject"),
            ("InitiatorAlias", "x", ""),
            ("X#NodeArchitecture", "x", ""),
            ("X-com.example.secret", "1", "NotUnderstood"),
            ("RDMAExtensions", "Yes", "NotUnderstood"),
            ("headerdigest", "None", "NotUnderstood"),
            ("MaxBurstLength", "", "Reject"),
            ("MaxBurstLength", "NotUnderstood", ""),
        ];
        for (key, value, expected) in table {
            assert_eq!(answer(false, key, value), expected, "{key}={value}");
        }
        assert_eq!(answer(true, "MaxBurstLength", "512"), "Irrelevant");
        assert_eq!(answer(true, "MaxConnections", "1"), "Irrelevant");
        assert_eq!(answer(true, "DefaultTime2Wait", "2"), "2");
        assert_eq!(answer(true, "HeaderDigest", "CRC32C"), "CRC32C");
    }

    #[test]
    fn results_reach_the_parameters() {
        let settings = TargetSettings { data_digest: DigestOffer::Prefer, ..TargetSettings::default() };
        let mut negotiation = Negotiation::new(false);
        for (key, value) in [
            ("HeaderDigest", "CRC32C"),
            ("DataDigest", "None,CRC32C"),
            ("InitialR2T", "No"),
            ("ImmediateData", "No"),
            ("MaxRecvDataSegmentLength", "65536"),
            ("MaxBurstLength", "16384"),
            ("DefaultTime2Wait", "3"),
            ("DefaultTime2Retain", "0"),
            ("MaxOutstandingR2T", "4"),
        ] {
            negotiation.answer(KeyValue { key, value }, &settings).unwrap();
        }
        negotiation.declare_receive_length(262_144);
        let expected = Parameters {
            digests: crate::iscsi::pdu::Digests { header: true, data: true },
            send_data_segment_length: 65536,
            receive_data_segment_length: 262_144,
            burst_length: 16384,
            first_burst_length: 16384,
            initial_r2t: false,
            immediate_data: false,
            outstanding_r2t: 4,
            time_to_wait_s: 3,
            time_to_retain_s: 0,
        };
        assert_eq!(negotiation.finish(), expected);
    }

    #[test]
    fn repeated_keys_and_bad_declarations_end_the_login() {
        let settings = TargetSettings::default();
        let mut negotiation = Negotiation::new(false);
        let pair = KeyValue { key: "InitialR2T", value: "No" };
        assert!(negotiation.answer(pair, &settings).is_ok());
        assert_eq!(negotiation.answer(pair, &settings).unwrap_err(), LoginFault::KeyRepeated.into());
        for value in ["0", "511", "16777216", "abc", ""] {
            let pair = KeyValue { key: "MaxRecvDataSegmentLength", value };
            let result = Negotiation::new(false).answer(pair, &settings);
            assert_eq!(result.unwrap_err(), LoginFault::ValueInvalid.into(), "{value}");
        }
    }

    #[test]
    fn refused_digests_are_not_agreed_to() {
        let mut is_used = false;
        assert_eq!(digest("CRC32C,None", DigestOffer::Refuse, &mut is_used), "None");
        assert_eq!(digest("CRC32C", DigestOffer::Refuse, &mut is_used), "Reject");
        assert!(!is_used);
    }
}
