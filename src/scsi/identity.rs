//! Who a logical unit is, and who talks to it: the names in INQUIRY pages, transport IDs and
//! reservations.

/// The names of a logical unit. The same on every node that offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the volume, for people.
    pub volume: String,
    /// The volume's UUID, which no other volume ever has.
    pub uuid: [u8; 16],
    /// iSCSI name of the target that the logical unit belongs to.
    pub target_name: String,
    /// All target ports, of all nodes, ascending by their identifier; never empty.
    pub target_ports: Vec<TargetPort>,
    /// Product revision level, four ASCII characters.
    pub revision: [u8; 4],
    /// What READ CAPACITY says of the physical block, in bytes: 4096, or 512 for hosts that want no larger one.
    pub physical_block_bytes: u32,
    /// Whether the disks below have no moving parts.
    pub non_rotating: bool,
}

impl Identity {
    /// The NAA 6 designator (SPC-4 section 7.8.6.6.5), from the UUID's random part. The company
    /// identifier has the locally administered bit set, so that it is nobody else's.
    #[must_use]
    pub fn naa(&self) -> [u8; 16] {
        let mut naa = self.uuid;
        let last = self.uuid[15] ^ self.uuid[0] ^ self.uuid[1] ^ self.uuid[2] ^ self.uuid[3];
        naa[0] = 0x60 | LOCAL_COMPANY[0] >> 4;
        naa[1] = LOCAL_COMPANY[0] << 4 | LOCAL_COMPANY[1] >> 4;
        naa[2] = LOCAL_COMPANY[1] << 4 | LOCAL_COMPANY[2] >> 4;
        naa[3] = LOCAL_COMPANY[2] << 4 | self.uuid[3] & 0x0f;
        naa[15] = last;
        naa
    }

    /// The serial number: the UUID in hexadecimal.
    #[must_use]
    pub fn serial_number(&self) -> String {
        self.uuid.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An I_T nexus: one initiator port and one target port (SAM-5 section 4.7).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nexus {
    /// The initiator port.
    pub initiator: InitiatorPort,
    /// The target port that it came in through.
    pub target_port: TargetPort,
}

/// An iSCSI initiator port: name and ISID together (RFC 7143 section 4.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InitiatorPort {
    /// iSCSI name of the initiator node.
    pub name: String,
    /// Initiator part of the session identifier.
    pub isid: [u8; 6],
}

/// A target port: a portal group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetPort {
    /// RELATIVE TARGET PORT IDENTIFIER, unique among the target's ports on all nodes.
    pub relative_id: u16,
    /// iSCSI target portal group tag; also the target port group of ALUA.
    pub portal_group: u16,
}

/// A nexus that is attached to a logical unit: a handle, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NexusId(pub(super) u64);

/// T10 VENDOR IDENTIFICATION.
pub const VENDOR: &[u8; 8] = b"GEMEL   ";
/// PRODUCT IDENTIFICATION.
pub const PRODUCT: &[u8; 16] = b"VOLUME          ";

const LOCAL_COMPANY: [u8; 3] = [0x02, 0x67, 0x6d];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naa_has_type_6_and_tells_volumes_apart() {
        let identity = |uuid| Identity {
            volume: "v".into(),
            uuid,
            target_name: "iqn.2026-11.io.gemel:demo:v".into(),
            target_ports: vec![TargetPort { relative_id: 1, portal_group: 1 }],
            revision: *b"0001",
            physical_block_bytes: 4096,
            non_rotating: true,
        };
        let naa = identity([7; 16]).naa();
        assert_eq!(naa[0], 0x60);
        assert_eq!(naa[1], 0x26);
        for byte in 0..16 {
            let mut other = [7; 16];
            other[byte] ^= 1;
            assert_ne!(identity(other).naa(), naa, "byte {byte} of the UUID is lost");
        }
    }
}
