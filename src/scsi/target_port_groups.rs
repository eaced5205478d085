//! REPORT TARGET PORT GROUPS and SET TARGET PORT GROUPS (SPC-4 sections 6.37 and 6.45): by which ports, in which
//! states, the logical unit is reached, and a host's wish to have it served at another node.

use bytes::Bytes;

use super::asymmetric_access::AccessState;
use super::cdb::Cdb;
use super::command::{Failure, Outcome, Reply};
use super::execution::Context;
use super::identity::TargetPort;
use super::logical_unit::LogicalUnit;
use super::operation::Access;
use super::sense::{AdditionalSense, Sense, SenseKey};
use crate::volume::device::BlockDevice;

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// REPORT TARGET PORT GROUPS: each portal group is a target port group.
    pub(super) fn report_target_port_groups(&self, cdb: &Cdb) -> Outcome {
        let extended = match cdb.byte(1) >> 5 {
            0 => false,
            1 => true,
            _ => return Err(Sense::invalid_cdb_bit(1, 7).into()),
        };
        let mut data = vec![0; 4];
        if extended {
            data.extend_from_slice(&[0x10, IMPLICIT_TRANSITION_SECONDS, 0, 0]);
        }
        let mut ports = self.identity().target_ports.clone();
        ports.sort_unstable_by_key(|port| (port.portal_group, port.relative_id));
        for group in ports.chunk_by(|one, other| one.portal_group == other.portal_group) {
            self.append_group(&mut data, group);
        }
        let length = u32::try_from(data.len() - 4).expect("a handful of ports");
        data[0..4].copy_from_slice(&length.to_be_bytes());
        Ok(Reply::parameters(data, usize::try_from(cdb.u32(6)).unwrap_or(usize::MAX)))
    }

    /// A target port group descriptor, of the group of `ports`.
    fn append_group(&self, data: &mut Vec<u8>, ports: &[TargetPort]) {
        let portal_group = ports[0].portal_group;
        let known = self.asymmetric_access().group(portal_group);
        let state = self.access_state(portal_group);
        let supported = if self.services().access.is_movable() { MOVABLE_STATES } else { ONLY_STATE };
        let preferred = u8::from(known.access.preferred) << 7;
        let [high, low] = portal_group.to_be_bytes();
        let count = u8::try_from(ports.len()).unwrap_or(u8::MAX);
        data.extend_from_slice(&[preferred | state as u8, supported, high, low, 0, known.status, 0, count]);
        for port in ports.iter().take(usize::from(count)) {
            let [high, low] = port.relative_id.to_be_bytes();
            data.extend_from_slice(&[0, 0, high, low]);
        }
    }

    /// SET TARGET PORT GROUPS: GOOD when the node of the group that is to be active/optimized serves.
    pub(super) async fn set_target_port_groups(
        &self,
        context: &Context<'_>,
        cdb: &Cdb,
        data_out: Vec<Bytes>,
    ) -> Outcome {
        self.check_reservations(context, Access::Write)?;
        let length = usize::try_from(cdb.u32(6)).unwrap_or(usize::MAX);
        let list = self.parameter_list(context, &data_out, length)?;
        if list.is_empty() {
            return Ok(Reply::good()); // no change is asked for, which is no error
        }
        let Some(portal_group) = self.wanted_group(&list)? else { return Ok(Reply::good()) };
        let change = self.asymmetric_access().begin_explicit();
        let activated = self.services().access.activate(portal_group).await;
        drop(change);
        activated.map_err(|error| {
            tracing::info!(volume = self.identity().volume, portal_group, %error, "not moved for a host");
            let code = AdditionalSense::SET_TARGET_PORT_GROUPS_COMMAND_FAILED;
            Failure::from(Sense::new(SenseKey::HardwareError, code))
        })?;
        // The one who has asked is not told (SPC-4 section 5.15.2).
        self.clear_attention(context.nexus(), AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED);
        Ok(Reply::good())
    }

    /// The group that a parameter list wants active/optimized; nothing when all is as it wants already.
    ///
    /// One node serves, so exactly one group can be active/optimized. The others follow: each may be asked for
    /// active/non-optimized or standby, and gets what its node can do.
    fn wanted_group(&self, list: &[u8]) -> Result<Option<u16>, Sense> {
        let descriptors = list.get(LIST_HEADER_BYTES..).unwrap_or_default().chunks_exact(DESCRIPTOR_BYTES);
        if descriptors.len() == 0 && list.len() != LIST_HEADER_BYTES || !descriptors.remainder().is_empty() {
            return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH));
        }
        let mut named = Vec::new();
        let (mut wanted, mut is_change) = (None, false);
        for (index, descriptor) in descriptors.enumerate() {
            let at = LIST_HEADER_BYTES + index * DESCRIPTOR_BYTES;
            let portal_group = u16::from_be_bytes([descriptor[2], descriptor[3]]);
            let mut ports = self.identity().target_ports.iter();
            let is_known = ports.any(|port| port.portal_group == portal_group);
            if !is_known || named.contains(&portal_group) {
                return Err(Sense::invalid_parameter(at + 2));
            }
            named.push(portal_group);
            let state = match descriptor[0] & 0x0f {
                0x0 if wanted.is_some() => return Err(Sense::invalid_parameter(at)),
                0x0 => {
                    wanted = Some(portal_group);
                    AccessState::ActiveOptimized
                }
                0x1 => AccessState::ActiveNonOptimized,
                0x2 => AccessState::Standby,
                _ => return Err(Sense::invalid_parameter(at)), // unavailable, offline, or none
            };
            is_change |= state != self.access_state(portal_group);
        }
        match wanted {
            _ if !is_change => Ok(None),
            Some(group) if self.access_state(group) == AccessState::ActiveOptimized => Ok(None),
            Some(group) => Ok(Some(group)),
            // Nobody would serve.
            None => Err(Sense::invalid_parameter(LIST_HEADER_BYTES)),
        }
    }
}

/// How long a host may have to wait for a takeover, in seconds.
const IMPLICIT_TRANSITION_SECONDS: u8 = 15;
/// T_SUP, U_SUP, S_SUP, AN_SUP and AO_SUP.
const MOVABLE_STATES: u8 = 0x8f;
/// AO_SUP.
const ONLY_STATE: u8 = 0x01;
/// Reserved bytes before the set target port group descriptors.
const LIST_HEADER_BYTES: usize = 4;
const DESCRIPTOR_BYTES: usize = 4;

#[cfg(test)]
mod tests;
