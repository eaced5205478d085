//! The commands that hosts send, as CDBs with their data, and what they learn from the answers.

use bytes::Bytes;

use crate::base::buffer::AlignedBuf;
use crate::base::units::VolumeId;
use crate::scsi::command::{Command, Response, Status};

pub(super) const SECTOR: usize = 512;

pub(super) fn read(first: u64, count: u64) -> Command {
    Command::new(&cdb_16(0x88, first, count), count as usize * SECTOR)
}

/// Writes `number` to each sector.
pub(super) fn write(volume: VolumeId, number: u64, first: u64, count: u64) -> Command {
    Command::with_data(
        &cdb_16(0x8a, first, count),
        vec![sectors(volume, first, &vec![number; count as usize])],
    )
}

pub(super) fn compare_and_write(volume: VolumeId, from: &[u64], number: u64, first: u64) -> Command {
    let mut cdb = cdb_16(0x89, first, 0);
    cdb[13] = from.len() as u8;
    let data = [sectors(volume, first, from), sectors(volume, first, &vec![number; from.len()])].concat();
    Command::with_data(&cdb, vec![Bytes::from(data)])
}

pub(super) fn unmap(first: u64, count: u64) -> Command {
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(first.to_be_bytes());
    list.extend((count as u32).to_be_bytes());
    list.extend([0; 4]);
    Command::with_data(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], vec![Bytes::from(list)])
}

pub(super) const REGISTER_AND_IGNORE: u8 = 6;
pub(super) const RESERVE: u8 = 1;
pub(super) const RELEASE: u8 = 2;
pub(super) const CLEAR: u8 = 3;
pub(super) const PREEMPT_AND_ABORT: u8 = 5;
/// Write exclusive, registrants only.
const TYPE: u8 = 5;

/// PERSISTENT RESERVE OUT, through power loss; registrations are for the ports of both nodes.
pub(super) fn reserve_out(action: u8, key: u64, action_key: u64) -> Command {
    let mut list = Vec::new();
    list.extend(key.to_be_bytes());
    list.extend(action_key.to_be_bytes());
    list.extend([0; 8]);
    list[20] = if action == REGISTER_AND_IGNORE { 0x05 } else { 0 };
    let kind = if matches!(action, REGISTER_AND_IGNORE | CLEAR) { 0 } else { TYPE };
    Command::with_data(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], vec![Bytes::from(list)])
}

pub(super) fn read_keys() -> Command {
    Command::new(&[0x5e, 0, 0, 0, 0, 0, 0, 4, 0, 0], 1024)
}

pub(super) fn read_reservation() -> Command {
    Command::new(&[0x5e, 1, 0, 0, 0, 0, 0, 4, 0, 0], 1024)
}

/// The keys in an answer to one of these; of several registrations with one key, one.
pub(super) fn keys_in(data: &[u8], entry_bytes: usize) -> Vec<u64> {
    let mut keys: Vec<u64> = data[8..].chunks_exact(entry_bytes).map(|entry| be_u64(&entry[..8])).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

pub(super) fn is_good(response: &Response) -> bool {
    response.status == Status::Good
}

pub(super) fn is_conflict(response: &Response) -> bool {
    response.status == Status::ReservationConflict
}

/// Sense key and additional sense code of fixed-format sense data.
pub(super) fn sense(response: &Response) -> Option<(u8, u16)> {
    let is_fixed = response.status == Status::CheckCondition && response.sense[0] & 0x7f == 0x70;
    is_fixed.then(|| (response.sense[2] & 0xf, u16::from_be_bytes([response.sense[12], response.sense[13]])))
}

/// Where COMPARE AND WRITE found another sector, counted from its first one.
pub(super) fn miscompare(response: &Response) -> Option<usize> {
    let (key, _) = sense(response)?;
    let offset = u32::from_be_bytes(response.sense[3..7].try_into().unwrap());
    (key == 0xe).then_some(offset as usize / SECTOR)
}

/// What the sectors from `first` on are after these writes; zeros for number zero.
pub(super) fn sectors(volume: VolumeId, first: u64, numbers: &[u64]) -> Bytes {
    let mut data = AlignedBuf::zeroed((numbers.len() * SECTOR).next_multiple_of(4096));
    for (index, number) in numbers.iter().enumerate().filter(|(_, number)| **number > 0) {
        let sector = &mut data[index * SECTOR..][..SECTOR];
        for (word, bytes) in sector.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&word_of(volume, first + index as u64, *number, word).to_be_bytes());
        }
    }
    data.freeze().slice(..numbers.len() * SECTOR)
}

fn cdb_16(code: u8, first: u64, count: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = code;
    cdb[2..10].copy_from_slice(&first.to_be_bytes());
    cdb[10..14].copy_from_slice(&(count as u32).to_be_bytes());
    cdb
}

fn word_of(volume: VolumeId, sector: u64, number: u64, word: usize) -> u64 {
    match word {
        0 => number,
        1 => sector,
        _ => number.rotate_left(word as u32) ^ u64::from(volume.0) << 56,
    }
}

/// The numbers of the writes that the sectors from `first` on show.
pub(super) fn numbers_in(volume: VolumeId, first: u64, data: &[u8]) -> Result<Vec<u64>, String> {
    let number_of = |(index, bytes): (usize, &[u8])| {
        let number = be_u64(&bytes[..8]);
        let expected = sectors(volume, first + index as u64, &[number]);
        match bytes == expected {
            true => Ok(number),
            false => Err(format!("sector {} shows what nobody wrote there: {number}", first + index as u64)),
        }
    };
    data.chunks(SECTOR).enumerate().map(number_of).collect()
}

fn be_u64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}
