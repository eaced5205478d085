//! The vital product data pages (SPC-4 section 7.8, SBC-3 section 6.5).

use super::identity::{Identity, TargetPort, VENDOR};
use super::limits;
use super::space::threshold_exponent;
use crate::volume::device::DeviceGeometry;

/// The page `code` as one port shows it; nothing when there is no such page.
pub(super) fn page(
    code: u8,
    identity: &Identity,
    port: TargetPort,
    geometry: DeviceGeometry,
) -> Option<Vec<u8>> {
    let body = match code {
        SUPPORTED_PAGES => PAGES.to_vec(),
        UNIT_SERIAL_NUMBER => identity.serial_number().into_bytes(),
        DEVICE_IDENTIFICATION => device_identification(identity, port),
        EXTENDED_INQUIRY => extended_inquiry(),
        THIRD_PARTY_COPY => third_party_copy(),
        BLOCK_LIMITS => block_limits(geometry),
        BLOCK_DEVICE_CHARACTERISTICS => block_device_characteristics(identity),
        LOGICAL_BLOCK_PROVISIONING => logical_block_provisioning(geometry),
        _ => return None,
    };
    let mut data = vec![0, code];
    data.extend_from_slice(&u16::try_from(body.len()).expect("pages are short").to_be_bytes());
    data.extend_from_slice(&body);
    Some(data)
}

/// Designation descriptors of the logical unit, its port, port group and target (SPC-4 section 7.8.6).
fn device_identification(identity: &Identity, port: TargetPort) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    // The logical unit: NAA first, since some hosts take the first that they know.
    designator(&mut body, CODE_BINARY, LOGICAL_UNIT, 3, &identity.naa());
    let mut t10 = VENDOR.to_vec();
    t10.extend_from_slice(identity.serial_number().as_bytes());
    designator(&mut body, CODE_ASCII, LOGICAL_UNIT, 1, &t10);
    let [high, low] = port.relative_id.to_be_bytes();
    designator(&mut body, CODE_BINARY, TARGET_PORT, 4, &[0, 0, high, low]);
    let [high, low] = port.portal_group.to_be_bytes();
    designator(&mut body, CODE_BINARY, TARGET_PORT, 5, &[0, 0, high, low]);
    // RFC 7143 section 4.4.1: the target port's name is the node's with its portal group tag.
    let port_name = format!("{},t,0x{:04x}", identity.target_name, port.portal_group);
    designator(&mut body, CODE_UTF8, TARGET_PORT, 8, &terminated(&port_name));
    designator(&mut body, CODE_UTF8, TARGET_DEVICE, 8, &terminated(&identity.target_name));
    body
}

fn designator(body: &mut Vec<u8>, code_set: u8, association: u8, kind: u8, value: &[u8]) {
    // The protocol identifier is valid with port and device associations only.
    let (protocol, valid) = if association == LOGICAL_UNIT { (0, 0) } else { (PROTOCOL_ISCSI, 0x80) };
    let length = u8::try_from(value.len()).expect("designators are shorter than 256 bytes");
    body.extend_from_slice(&[protocol | code_set, valid | association << 4 | kind, 0, length]);
    body.extend_from_slice(value);
}

/// A SCSI name string: terminated and padded with NULs to a multiple of four, at most 255 bytes.
fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes()[..name.len().min(248)].to_vec();
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes
}

/// SPC-4 section 7.8.7.
fn extended_inquiry() -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 0x07; // HEADSUP, ORDSUP, SIMPSUP
    body[3] = 0x01; // LUICLR: an I_T nexus loss clears this logical unit's state only
    body
}

/// Third-party copy (SPC-4 section 7.8.17): the supported commands and the block-device copy.
fn third_party_copy() -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    // Supported Commands: EXTENDED COPY (LID1), and RECEIVE COPY RESULTS copy status, operating
    // parameters and failed segment details.
    descriptor(&mut body, 0x0001, &[8, 0x83, 1, 0x00, 0x84, 3, 0x00, 0x03, 0x04, 0, 0, 0]);
    // Parameter Data.
    let mut parameters = vec![0; 28];
    parameters[4..6].copy_from_slice(&limits::COPY_TARGETS.to_be_bytes());
    parameters[6..8].copy_from_slice(&limits::COPY_SEGMENTS.to_be_bytes());
    parameters[8..12].copy_from_slice(&limits::copy_list_bytes().to_be_bytes());
    descriptor(&mut body, 0x0004, &parameters);
    // Supported Descriptors: block to block, and the identification descriptor target.
    descriptor(&mut body, 0x0008, &[2, 0x02, 0xe4, 0]);
    // General Copy Operations: one copy at a time in a command, data segments of any length.
    let mut general = vec![0; 32];
    general[0..4].copy_from_slice(&16u32.to_be_bytes());
    general[4..8].copy_from_slice(&1u32.to_be_bytes());
    general[8..12].copy_from_slice(&limits::COPY_SEGMENT_BYTES.to_be_bytes());
    general[12] = 9; // data segment granularity: 512 bytes
    descriptor(&mut body, 0x8001, &general);
    body
}

fn descriptor(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&kind.to_be_bytes());
    body.extend_from_slice(&u16::try_from(value.len()).expect("short").to_be_bytes());
    body.extend_from_slice(value);
}

/// SBC-3 section 6.5.3. Counts are in logical blocks.
fn block_limits(geometry: DeviceGeometry) -> Vec<u8> {
    let blocks = |bytes: u32| (bytes / geometry.logical_block_bytes).to_be_bytes();
    let granularity = GRANULARITY_BYTES / geometry.logical_block_bytes;
    let mut body = vec![0; 60];
    body[0] = 0x01; // WSNZ: WRITE SAME of zero blocks is refused
    body[1] = limits::COMPARE_AND_WRITE_BLOCKS;
    body[2..4].copy_from_slice(&u16::try_from(granularity).expect("at most 8").to_be_bytes());
    body[4..8].copy_from_slice(&blocks(limits::TRANSFER_BYTES));
    body[8..12].copy_from_slice(&blocks(limits::OPTIMAL_TRANSFER_BYTES));
    body[16..20].copy_from_slice(&limits::UNMAP_BLOCKS.to_be_bytes());
    body[20..24].copy_from_slice(&limits::UNMAP_DESCRIPTORS.to_be_bytes());
    body[24..28].copy_from_slice(&granularity.to_be_bytes());
    body[28..32].copy_from_slice(&0x8000_0000u32.to_be_bytes()); // UGAVALID, alignment 0
    body[32..40]
        .copy_from_slice(&u64::from(limits::WRITE_SAME_BYTES / geometry.logical_block_bytes).to_be_bytes());
    body
}

/// SBC-3 section 6.5.2.
fn block_device_characteristics(identity: &Identity) -> Vec<u8> {
    let mut body = vec![0; 60];
    let rate: u16 = if identity.non_rotating { 1 } else { 0 };
    body[0..2].copy_from_slice(&rate.to_be_bytes());
    body[3] = 0x40; // WABEREQ 01b: reads after a block erase succeed
    body
}

/// SBC-3 section 6.5.4.
fn logical_block_provisioning(geometry: DeviceGeometry) -> Vec<u8> {
    // LBPU, LBPWS, LBPWS10 and LBPRZ: unmapped blocks read as zeros; thin provisioning (010b).
    vec![threshold_exponent(geometry.logical_block_bytes), 0xe4, 0x02, 0]
}

/// What provisioning works in, and what writes had better be multiples of.
const GRANULARITY_BYTES: u32 = 4096;

const SUPPORTED_PAGES: u8 = 0x00;
const UNIT_SERIAL_NUMBER: u8 = 0x80;
const DEVICE_IDENTIFICATION: u8 = 0x83;
const EXTENDED_INQUIRY: u8 = 0x86;
const THIRD_PARTY_COPY: u8 = 0x8f;
const BLOCK_LIMITS: u8 = 0xb0;
const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xb1;
const LOGICAL_BLOCK_PROVISIONING: u8 = 0xb2;

/// All pages, ascending.
const PAGES: [u8; 8] = [
    SUPPORTED_PAGES,
    UNIT_SERIAL_NUMBER,
    DEVICE_IDENTIFICATION,
    EXTENDED_INQUIRY,
    THIRD_PARTY_COPY,
    BLOCK_LIMITS,
    BLOCK_DEVICE_CHARACTERISTICS,
    LOGICAL_BLOCK_PROVISIONING,
];

const CODE_BINARY: u8 = 1;
const CODE_ASCII: u8 = 2;
const CODE_UTF8: u8 = 3;
const LOGICAL_UNIT: u8 = 0;
const TARGET_PORT: u8 = 1;
const TARGET_DEVICE: u8 = 2;
/// PROTOCOL IDENTIFIER 5h in the upper half of the byte: iSCSI.
const PROTOCOL_ISCSI: u8 = 0x50;
