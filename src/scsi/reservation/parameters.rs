//! PERSISTENT RESERVE OUT parameter lists and iSCSI TransportIDs (SPC-4 sections 6.16.3 and 7.6.4.6):
//! checked bytes in, an [`Action`] out.

use super::state::{Action, Registrant, ReservationType};
use crate::scsi::cdb::Cdb;
use crate::scsi::identity::InitiatorPort;
use crate::scsi::limits;
use crate::scsi::sense::{AdditionalSense, Sense};

/// A parsed PERSISTENT RESERVE OUT command.
pub(super) struct Request {
    pub(super) action: Action,
    /// PREEMPT AND ABORT rather than PREEMPT.
    pub(super) aborts: bool,
}

/// What parsing has to know besides the bytes.
pub(super) struct Surroundings<'a> {
    /// The port that the command came in through.
    pub(super) relative_target_port: u16,
    /// All ports, for ALL_TG_PT.
    pub(super) all_ports: &'a [u16],
    /// The initiator ports with this iSCSI name, for TransportIDs without an ISID.
    pub(super) ports_of: &'a dyn Fn(&str) -> Vec<InitiatorPort>,
}

/// Parses the CDB and the list that came with it.
pub(super) fn parse(cdb: &Cdb, list: &[u8], surroundings: &Surroundings<'_>) -> Result<Request, Sense> {
    if list.len() < BASIC_BYTES {
        return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
    }
    let service_action = cdb.service_action();
    if service_action == REGISTER_AND_MOVE {
        return Ok(Request { action: parse_move(list)?, aborts: false });
    }
    let key = u64_at(list, 0);
    let action_key = u64_at(list, 8);
    let specify_initiators = list[20] & 0x08 != 0;
    if specify_initiators && service_action != REGISTER {
        return Err(Sense::invalid_parameter(20));
    }
    if !specify_initiators && list.len() != BASIC_BYTES {
        return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
    }
    let action = match service_action {
        REGISTER | REGISTER_AND_IGNORE => {
            let all_ports = list[20] & 0x04 != 0;
            Action::Register {
                key: (service_action == REGISTER).then_some(key),
                new_key: action_key,
                aptpl: list[20] & 0x01 != 0,
                relative_target_ports: if all_ports {
                    surroundings.all_ports.to_vec()
                } else {
                    vec![surroundings.relative_target_port]
                },
                initiators: if specify_initiators {
                    parse_initiators(list, surroundings)?
                } else {
                    Vec::new()
                },
            }
        }
        RESERVE => Action::Reserve { key, kind: reservation_type(cdb)? },
        RELEASE => Action::Release { key, kind: reservation_type(cdb)? },
        CLEAR => Action::Clear { key },
        PREEMPT | PREEMPT_AND_ABORT => {
            Action::Preempt { key, victim_key: action_key, kind: reservation_type(cdb)? }
        }
        _ => return Err(Sense::invalid_cdb_bit(1, 4)),
    };
    Ok(Request { action, aborts: service_action == PREEMPT_AND_ABORT })
}

/// TYPE, with SCOPE being the logical unit.
fn reservation_type(cdb: &Cdb) -> Result<ReservationType, Sense> {
    if cdb.byte(2) >> 4 != 0 {
        return Err(Sense::invalid_cdb_bit(2, 7));
    }
    ReservationType::from_code(cdb.byte(2) & 0x0f).ok_or(Sense::invalid_cdb_bit(2, 3))
}

/// SPC-4 section 6.16.4.
fn parse_move(list: &[u8]) -> Result<Action, Sense> {
    let length = usize::try_from(u32_at(list, 20)).unwrap_or(usize::MAX);
    if list.len() - BASIC_BYTES != length {
        return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
    }
    let (transport_id, used) = TransportId::parse(&list[BASIC_BYTES..], BASIC_BYTES)?;
    // The move is to one port, which has to be named completely.
    let (Some(initiator), true) = (transport_id.port(), used == length) else {
        return Err(Sense::invalid_parameter(BASIC_BYTES));
    };
    Ok(Action::Move {
        key: u64_at(list, 0),
        new_key: u64_at(list, 8),
        destination: Registrant { initiator, relative_target_port: u16::from_be_bytes([list[18], list[19]]) },
        unregister: list[17] & 0x02 != 0,
        aptpl: list[17] & 0x01 != 0,
    })
}

/// The additional parameter data of SPEC_I_PT (SPC-4 section 6.16.3).
fn parse_initiators(list: &[u8], surroundings: &Surroundings<'_>) -> Result<Vec<InitiatorPort>, Sense> {
    let start = BASIC_BYTES + 4;
    if list.len() < start {
        return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
    }
    let length = usize::try_from(u32_at(list, BASIC_BYTES)).unwrap_or(usize::MAX);
    if list.len() - start != length {
        return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
    }
    let mut initiators = Vec::new();
    let mut at = start;
    while at < list.len() {
        let (transport_id, used) = TransportId::parse(&list[at..], at)?;
        match transport_id.port() {
            Some(port) => initiators.push(port),
            None => {
                let ports = (surroundings.ports_of)(&transport_id.name);
                if ports.is_empty() {
                    return Err(Sense::invalid_parameter(at));
                }
                initiators.extend(ports);
            }
        }
        at += used;
        if initiators.len() > limits::REGISTRATIONS {
            return Err(Sense::illegal(AdditionalSense::INSUFFICIENT_REGISTRATION_RESOURCES));
        }
    }
    Ok(initiators)
}

/// An iSCSI TransportID: an initiator node, or one of its ports.
struct TransportId {
    name: String,
    isid: Option<[u8; 6]>,
}

impl TransportId {
    /// Parses the TransportID at the start of `bytes`, which begins `position` bytes into the list;
    /// also gives back its length.
    fn parse(bytes: &[u8], position: usize) -> Result<(Self, usize), Sense> {
        let [first, _, high, low, ..] = *bytes else {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
        };
        if first & 0x0f != PROTOCOL_ISCSI {
            return Err(Sense::invalid_parameter(position));
        }
        let length = 4 + usize::from(u16::from_be_bytes([high, low]));
        let Some(name) = bytes.get(4..length) else {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
        };
        let invalid = Sense::invalid_parameter(position + 4);
        let end = name.iter().position(|byte| *byte == 0).ok_or(invalid)?;
        let name = std::str::from_utf8(&name[..end]).map_err(|_| invalid)?;
        let transport_id = match first >> 6 {
            0 => Self { name: name.to_owned(), isid: None },
            1 => {
                let (name, isid) = name.split_once(ISID_SEPARATOR).ok_or(invalid)?;
                let isid = parse_isid(isid).ok_or(invalid)?;
                Self { name: name.to_owned(), isid: Some(isid) }
            }
            _ => return Err(Sense::invalid_parameter(position)),
        };
        if transport_id.name.is_empty() || transport_id.name.len() > NAME_BYTES {
            return Err(invalid);
        }
        Ok((transport_id, length))
    }

    fn port(&self) -> Option<InitiatorPort> {
        self.isid.map(|isid| InitiatorPort { name: self.name.clone(), isid })
    }
}

/// The TransportID of an initiator port.
pub(super) fn transport_id(initiator: &InitiatorPort) -> Vec<u8> {
    let isid: String = initiator.isid.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = format!("{}{ISID_SEPARATOR}{isid}", initiator.name).into_bytes();
    // Terminated, padded to a multiple of four and at least twenty bytes.
    name.resize((name.len() + 1).next_multiple_of(4).max(20), 0);
    let mut id = vec![0x40 | PROTOCOL_ISCSI, 0];
    id.extend_from_slice(&u16::try_from(name.len()).expect("names have 223 bytes at most").to_be_bytes());
    id.extend_from_slice(&name);
    id
}

fn parse_isid(text: &str) -> Option<[u8; 6]> {
    // Twelve hexadecimal digits (SPC-4 section 7.6.4.6).
    if text.len() != 12 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let number = u64::from_str_radix(text, 16).ok()?;
    number.to_be_bytes()[2..].try_into().ok()
}

fn u64_at(list: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(list[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(list: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(list[at..at + 4].try_into().expect("four bytes"))
}

/// Length of the list without additional data.
const BASIC_BYTES: usize = 24;
const PROTOCOL_ISCSI: u8 = 5;
const ISID_SEPARATOR: &str = ",i,0x";
/// Longest iSCSI name (RFC 7143 section 4.2.7).
const NAME_BYTES: usize = 223;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const REGISTER_AND_MOVE: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_ids_round_trip() {
        let port = InitiatorPort { name: "iqn.2007-10.test:a".into(), isid: [0x40, 1, 2, 3, 4, 0xff] };
        let bytes = transport_id(&port);
        assert_eq!(bytes.len() % 4, 0);
        let (parsed, used) = TransportId::parse(&bytes, 0).unwrap();
        assert_eq!((parsed.port(), used), (Some(port), bytes.len()));
    }

    #[test]
    fn bad_transport_ids_are_refused() {
        let good = transport_id(&InitiatorPort { name: "iqn.2007-10.test:a".into(), isid: [1; 6] });
        for length in 0..good.len() {
            assert!(TransportId::parse(&good[..length], 0).is_err());
        }
        let mut no_terminator = good.clone();
        no_terminator[4..].fill(b'a');
        assert!(TransportId::parse(&no_terminator, 0).is_err());
        let mut other_protocol = good;
        other_protocol[0] = 0x46;
        assert!(TransportId::parse(&other_protocol, 0).is_err());
    }
}
