//! PERSISTENT RESERVE IN (SPC-4 section 6.15).

use super::parameters::transport_id;
use super::state::{PersistentState, ReservationType};
use crate::scsi::cdb::Cdb;
use crate::scsi::command::{Outcome, Reply};
use crate::scsi::logical_unit::LogicalUnit;
use crate::scsi::sense::Sense;
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// PERSISTENT RESERVE IN. A reservation by RESERVE excludes it, whoever holds that.
    pub(in crate::scsi) fn persistent_reserve_in(&self, cdb: &Cdb) -> Outcome {
        if self.reservations().reserved_by().is_some() {
            return Err(super::reserve::conflict());
        }
        let state = self.reservations().persistent();
        let data = match cdb.service_action() {
            READ_KEYS => read_keys(&state),
            READ_RESERVATION => read_reservation(&state),
            REPORT_CAPABILITIES => report_capabilities(&state),
            READ_FULL_STATUS => read_full_status(&state),
            _ => return Err(Sense::invalid_cdb_bit(1, 4).into()),
        };
        Ok(Reply::parameters(data, usize::from(cdb.u16(7))))
    }
}

fn read_keys(state: &PersistentState) -> Vec<u8> {
    with_header(state, state.registrations().flat_map(|(_, key)| key.to_be_bytes()).collect())
}

fn read_reservation(state: &PersistentState) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some(reservation) = state.reservation() {
        let holder = reservation.holder.as_ref();
        let key = holder.and_then(|holder| state.registrations().find(|(other, _)| *other == holder));
        // Zero for the all-registrants types.
        body.extend_from_slice(&key.map_or(0, |(_, key)| key).to_be_bytes());
        body.extend_from_slice(&[0, 0, 0, 0, 0, reservation.kind as u8, 0, 0]);
    }
    with_header(state, body)
}

fn report_capabilities(state: &PersistentState) -> Vec<u8> {
    let types = ReservationType::ALL.into_iter().fold(0u16, |mask, kind| mask | type_bit(kind));
    let [high, low] = types.to_be_bytes();
    // CRH, SIP_C, ATP_C and PTPL_C; TMV, and PTPL_A as it is.
    vec![0, 8, 0x1d, 0x80 | u8::from(state.aptpl()), high, low, 0, 0]
}

/// The bit of a type in the PERSISTENT RESERVATION TYPE MASK (SPC-4 table 164).
fn type_bit(kind: ReservationType) -> u16 {
    match kind {
        ReservationType::WriteExclusive => 0x0200,
        ReservationType::ExclusiveAccess => 0x0800,
        ReservationType::WriteExclusiveRegistrantsOnly => 0x2000,
        ReservationType::ExclusiveAccessRegistrantsOnly => 0x4000,
        ReservationType::WriteExclusiveAllRegistrants => 0x8000,
        ReservationType::ExclusiveAccessAllRegistrants => 0x0001,
    }
}

fn read_full_status(state: &PersistentState) -> Vec<u8> {
    let mut body = Vec::new();
    for (registrant, key) in state.registrations() {
        body.extend_from_slice(&key.to_be_bytes());
        let holder = state.is_holder(registrant);
        let kind = state.reservation().filter(|_| holder).map_or(0, |held| held.kind as u8);
        body.extend_from_slice(&[0, 0, 0, 0, u8::from(holder), kind, 0, 0, 0, 0]);
        body.extend_from_slice(&registrant.relative_target_port.to_be_bytes());
        let id = transport_id(&registrant.initiator);
        body.extend_from_slice(&u32::try_from(id.len()).expect("short").to_be_bytes());
        body.extend_from_slice(&id);
    }
    with_header(state, body)
}

/// PRGENERATION and ADDITIONAL LENGTH before `body`.
fn with_header(state: &PersistentState, body: Vec<u8>) -> Vec<u8> {
    let mut data = state.generation().to_be_bytes().to_vec();
    data.extend_from_slice(
        &u32::try_from(body.len()).expect("a bounded number of registrations").to_be_bytes(),
    );
    data.extend_from_slice(&body);
    data
}

const READ_KEYS: u8 = 0;
const READ_RESERVATION: u8 = 1;
const REPORT_CAPABILITIES: u8 = 2;
const READ_FULL_STATUS: u8 = 3;
