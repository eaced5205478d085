//! What every block may be: the last settled write, or one that is in flight, and never again what
//! it was before; and which volumes there are.

use std::collections::{BTreeMap, BTreeSet};

use super::past::{Past, Shown};
use crate::base::units::{BLOCK_SIZE, Version};

/// The history of all blocks, as far as it still matters.
#[derive(Default)]
pub(super) struct Oracle {
    volumes: BTreeMap<u32, Volume>,
    last_sequence: u64,
}

struct Volume {
    state: VolumeState,
    blocks: Vec<Block>,
    past: Past,
    /// Of a clone: volume and snapshot that it was made of.
    origin: Option<(u32, Version)>,
    /// The latest rollback, if it may be under way: the mark, and what it goes back to.
    rollback: Option<(Version, Version)>,
    /// It was rolled back at some time: which entries its blocks have is not followed any more.
    was_rolled_back: bool,
}

/// What is known of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VolumeState {
    /// Its creation was not acknowledged.
    Creating,
    /// It exists.
    Exists,
    /// Its end was asked for and not acknowledged.
    Dropping,
    /// It is gone.
    Dropped,
}

#[derive(Default)]
struct Block {
    /// Newest sequence number that is known to be settled: nothing older may be seen again.
    floor: u64,
    /// Submitted writes from the floor on: sequence number, and whether it is a hole.
    candidates: BTreeMap<u64, bool>,
    /// Holes that a newer write has replaced: a read that began before it may still see them.
    past_holes: BTreeSet<u64>,
    /// After a restart it could not be read: which of the candidates it is stays open.
    is_doubtful: bool,
    /// What a clone shows before the first write: the stamp of the origin's block. 0 for zeros.
    origin: u64,
    /// Of those candidates that are a rollback, or what one has put back: the stamp that they show.
    returned: BTreeMap<u64, u64>,
}

/// Consecutive blocks of a volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) volume: u32,
    pub(super) address: u64,
    pub(super) count: u64,
}

impl Oracle {
    /// A volume of `blocks` blocks is about to be created.
    pub(super) fn create(&mut self, volume: u32, blocks: u64) {
        let blank = || Block { candidates: BTreeMap::from([(0, true)]), ..Block::default() };
        let blocks = (0..blocks).map(|_| blank()).collect();
        let (past, origin, rollback, was_rolled_back) = Default::default();
        let state = VolumeState::Creating;
        self.volumes.insert(volume, Volume { state, blocks, past, origin, rollback, was_rolled_back });
    }

    /// A volume of `blocks` blocks is about to be made of a snapshot. Not when it is in doubt what that shows.
    pub(super) fn create_clone(&mut self, clone: u32, blocks: u64, origin: (u32, Version)) -> bool {
        let past = self.past(origin.0);
        let stamps = (0..blocks).map(|address| past.certain(origin.1, address)).collect::<Option<Vec<u64>>>();
        let Some(stamps) = stamps.filter(|_| past.exists(origin.1) && !past.is_changing()) else {
            return false;
        };
        self.create(clone, blocks);
        let Some(volume) = self.volumes.get_mut(&clone) else { return false };
        volume.origin = Some(origin);
        volume.blocks.iter_mut().zip(stamps).for_each(|(block, stamp)| block.origin = stamp);
        true
    }

    /// What a block was when the volume was made.
    pub(super) fn origin(&self, volume: u32, address: u64) -> u64 {
        self.volumes[&volume].blocks[address as usize].origin
    }

    /// The states of the clones that were made of a snapshot, or of a later one, and that are not gone.
    pub(super) fn clones_from(&self, volume: u32, snapshot: Version) -> Vec<(Version, VolumeState)> {
        let clone = |clone: &Volume| {
            let (of, at) = clone.origin?;
            (of == volume && at >= snapshot && clone.state != VolumeState::Dropped)
                .then_some((at, clone.state))
        };
        self.volumes.values().filter_map(clone).collect()
    }

    pub(super) fn set_state(&mut self, volume: u32, state: VolumeState) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.state = state;
        }
    }

    /// A number that no volume has had.
    pub(super) fn unused_volume(&self) -> u32 {
        self.volumes.last_key_value().map_or(0, |(last, _)| last + 1)
    }

    /// After a restart: compares with the volumes that are there; what is there now stays, what is
    /// not never comes back. Returns those that exist with their sizes.
    pub(super) fn settle_volumes(&mut self, found: &[u32]) -> Result<Vec<(u32, u64)>, String> {
        let mut existing = Vec::new();
        for (number, volume) in &mut self.volumes {
            let there = found.contains(number);
            match (volume.state, there) {
                (VolumeState::Exists, false) => return Err(format!("volume {number} is gone")),
                (VolumeState::Dropped, true) => return Err(format!("volume {number} came back")),
                (_, true) => {
                    volume.state = VolumeState::Exists;
                    existing.push((*number, volume.blocks.len() as u64));
                }
                (_, false) => volume.state = VolumeState::Dropped,
            }
        }
        match found.iter().find(|number| !self.volumes.contains_key(number)) {
            Some(unknown) => Err(format!("volume {unknown} was never created")),
            None => Ok(existing),
        }
    }

    /// Fills a block so that every sector of it tells volume, address, sequence number and position.
    pub(super) fn stamp(data: &mut [u8], volume: u32, address: u64, sequence: u64) {
        for (sector, bytes) in data.chunks_mut(512).enumerate() {
            let fields = [STAMP, u64::from(volume), address, sequence, sector as u64];
            for (field, value) in fields.into_iter().enumerate() {
                bytes[field * 8..field * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            bytes[40..].fill((sequence % 251) as u8);
        }
    }

    /// A write begins: its sequence number.
    pub(super) fn submit(&mut self, extent: Extent, is_hole: bool) -> u64 {
        let sequence = self.next_sequence();
        for block in self.blocks(extent) {
            block.candidates.insert(sequence, is_hole);
        }
        sequence
    }

    /// A number that nothing has had.
    pub(super) fn next_sequence(&mut self) -> u64 {
        self.last_sequence += 1;
        self.last_sequence
    }

    /// A snapshot is about to be taken: its version.
    pub(super) fn take(&mut self, volume: u32, epoch: u32) -> Version {
        let version = Version { epoch, sequence: self.next_sequence() };
        let Some(volume) = self.volumes.get_mut(&volume) else { return version };
        volume.past.take(version, volume.blocks.iter().map(Block::shown).collect());
        version
    }

    /// A rollback is about to begin: its mark.
    pub(super) fn roll_back(&mut self, number: u32, epoch: u32, to: Version) -> Version {
        let mark = Version { epoch, sequence: self.next_sequence() };
        let volume = self.volume_mut(number);
        let view: Vec<Shown> = volume.blocks.iter().map(Block::shown).collect();
        for (address, block) in (0..).zip(&mut volume.blocks) {
            // What was not written since shows that already.
            let is_newer = block.candidates.last_key_value().is_some_and(|(newest, _)| *newest > to.sequence);
            if let Some(stamp) = volume.past.certain(to, address).filter(|_| is_newer) {
                block.candidates.insert(mark.sequence, stamp == 0);
                block.returned.insert(mark.sequence, stamp);
            }
        }
        volume.past.take_as(mark, view, super::past::rollback_record(mark, to));
        (volume.rollback, volume.was_rolled_back) = (Some((mark, to)), true);
        mark
    }

    /// The mark was acknowledged.
    pub(super) fn rolled_back(&mut self, number: u32, mark: Version) {
        let is_concerned = |block: &&mut Block| block.returned.contains_key(&mark.sequence);
        let blocks = self.volume_mut(number).blocks.iter_mut().filter(is_concerned);
        blocks.for_each(|block| block.raise(mark.sequence));
    }

    /// What a block shows is about to be written again.
    pub(super) fn put_back(&mut self, extent: Extent, stamp: u64) -> u64 {
        let sequence = self.submit(extent, stamp == 0);
        for block in self.blocks(extent) {
            block.returned.insert(sequence, stamp);
        }
        sequence
    }

    /// The rollback of a volume that is under way for certain: mark, and snapshot.
    pub(super) fn rollback(&self, number: u32) -> Option<(Version, Version)> {
        let volume = self.volumes.get(&number).filter(|volume| volume.state == VolumeState::Exists)?;
        volume.rollback.filter(|(mark, _)| volume.past.exists(*mark))
    }

    /// The volumes of which that is so, and how many blocks they have.
    pub(super) fn rollbacks(&self) -> Vec<(u32, u64)> {
        let volumes = self.volumes.iter().filter(|(number, _)| self.rollback(**number).is_some());
        volumes.map(|(number, volume)| (*number, volume.blocks.len() as u64)).collect()
    }

    /// Whether the entries of a volume's blocks are followed.
    pub(super) fn is_followed(&self, number: u32) -> bool {
        !self.volumes[&number].was_rolled_back
    }

    fn volume_mut(&mut self, number: u32) -> &mut Volume {
        self.volumes.get_mut(&number).expect("clients use volumes that were created")
    }

    /// The snapshots of a volume.
    pub(super) fn past(&self, volume: u32) -> &Past {
        &self.volumes[&volume].past
    }

    pub(super) fn past_mut(&mut self, volume: u32) -> &mut Past {
        &mut self.volumes.get_mut(&volume).expect("clients use volumes that were created").past
    }

    /// Whether a block certainly holds data that is newer than a snapshot, and nothing else is being put into its
    /// past.
    pub(super) fn may_write_late(&self, number: u32, address: u64, snapshot: Version) -> bool {
        let volume = &self.volumes[&number];
        let block = &volume.blocks[address as usize];
        let holds_data = block.candidates.get(&block.floor) == Some(&false);
        let is_newer = block.floor > snapshot.sequence;
        let may_be = holds_data && is_newer && !block.is_doubtful;
        // A clone shows what its snapshot shows.
        let is_cloned = !self.clones_from(number, snapshot).is_empty();
        may_be && !is_cloned && volume.past.may_write_late(snapshot, address)
    }

    /// A write was acknowledged.
    pub(super) fn acknowledge(&mut self, extent: Extent, sequence: u64) {
        self.blocks(extent).iter_mut().for_each(|block| block.raise(sequence));
    }

    /// A write was refused, and with it all of its blocks.
    pub(super) fn refuse(&mut self, extent: Extent, sequence: u64) {
        for block in self.blocks(extent) {
            block.candidates.remove(&sequence);
        }
    }

    /// Whether every block of the extent certainly holds data that no snapshot shows, so that overwriting takes
    /// no space.
    pub(super) fn is_mapped(&mut self, extent: Extent) -> bool {
        let newest = self.past(extent.volume).newest();
        self.blocks(extent).iter().all(|block| {
            let settled = block.candidates.get(&block.floor) == Some(&false);
            settled && block.floor > newest && block.candidates.values().all(|is_hole| !is_hole)
        })
    }

    /// Blocks that hold data for certain, when nothing is in doubt.
    pub(super) fn mapped_blocks(&self, volume: u32) -> u64 {
        let mapped = |block: &&Block| block.candidates.get(&block.floor) == Some(&false);
        self.volumes[&volume].blocks.iter().filter(mapped).count() as u64
    }

    /// Blocks that hold data which only snapshots show, when nothing is in doubt.
    pub(super) fn held_blocks(&self, volume: u32) -> u64 {
        let volume = &self.volumes[&volume];
        let held = |(address, block): (u64, &Block)| volume.past.held(address, block.floor);
        (0..).zip(&volume.blocks).map(held).sum()
    }

    /// What a read that begins now must at least see.
    pub(super) fn floor(&self, volume: u32, address: u64) -> u64 {
        self.volumes[&volume].blocks[address as usize].floor
    }

    /// The number that is stamped on a block of a volume, or of the one that it was made of; 0 for zeros.
    pub(super) fn seen(&self, volume: u32, address: u64, data: &[u8]) -> Result<u64, String> {
        let known = &self.volumes[&volume];
        let origin =
            known.origin.map(|(origin, _)| origin).filter(|_| known.blocks[address as usize].origin != 0);
        let of_origin = origin.and_then(|origin| Self::stamp_of(data, origin, address).ok());
        match of_origin.filter(|stamp| *stamp != 0) {
            Some(stamp) => Ok(stamp),
            None => Self::stamp_of(data, volume, address),
        }
    }

    /// The number that is stamped on a block; 0 for zeros.
    pub(super) fn stamp_of(data: &[u8], volume: u32, address: u64) -> Result<u64, String> {
        if data.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let sequence = data[24..32].try_into().map_or(0, u64::from_le_bytes);
        let mut expected = vec![0; BLOCK_SIZE];
        Self::stamp(&mut expected, volume, address, sequence);
        if expected != data {
            let start = &data[..48];
            return Err(format!("block {volume}/{address} holds what was never written there: {start:?}"));
        }
        Ok(sequence)
    }

    /// After a restart: a block can't be read.
    pub(super) fn doubt(&mut self, volume: u32, address: u64) {
        self.blocks(Extent { volume, address, count: 1 })[0].is_doubtful = true;
    }

    /// Checks what a read that began at `floor` has seen.
    pub(super) fn check(&mut self, volume: u32, address: u64, floor: u64, data: &[u8]) -> Result<(), String> {
        let seen = self.seen(volume, address, data)?;
        let block = &mut self.blocks(Extent { volume, address, count: 1 })[0];
        let at = format!("block {volume}/{address}");
        let returned = block.returned_as(seen, floor);
        let is_own = seen >= floor && seen != block.origin;
        let sequence = if let Some(sequence) = returned.filter(|returned| !is_own || *returned < seen) {
            sequence
        } else if seen == block.origin && seen != 0 {
            if floor > 0 {
                return Err(format!("{at} is what its origin was, but {floor} was settled"));
            }
            0
        } else if seen == 0 {
            // Any hole that may be the newest: the oldest of them promises least. Before the first write a block
            // is zeros only where the origin was.
            let floor = floor.max(u64::from(block.origin != 0));
            let past = block.past_holes.range(floor..).next();
            let hole = block.candidates.range(floor..).find(|(_, is_hole)| **is_hole).map(|(hole, _)| hole);
            *past.or(hole).ok_or(format!("{at} is zeros, but {floor} was settled"))?
        } else {
            let sequence = seen;
            if sequence < floor {
                return Err(format!("{at} went back to {sequence}, but {floor} was settled"));
            }
            if block.candidates.get(&sequence) != Some(&false) && sequence >= block.floor {
                return Err(format!("{at} is {sequence}, which is no candidate: {:?}", block.candidates));
            }
            sequence
        };
        block.raise(sequence);
        Ok(())
    }

    /// After a restart, once a block was read: what it is now it stays, and writes of the earlier
    /// life that it does not show never appear.
    pub(super) fn settle_for_good(&mut self, volume: u32, address: u64) {
        let block = &mut self.blocks(Extent { volume, address, count: 1 })[0];
        block.past_holes.clear();
        block.is_doubtful = false;
        let settled_hole = block.candidates.get(&block.floor).copied().unwrap_or(true);
        if settled_hole && block.floor == 0 && block.origin != 0 {
            block.candidates.retain(|sequence, _| *sequence == 0);
        } else if settled_hole {
            // Which of the holes it is cannot be seen; a data write behind a hole is gone for good.
            block.candidates.retain(|_, is_hole| *is_hole);
        } else {
            let floor = block.floor;
            block.candidates.retain(|sequence, _| *sequence == floor);
        }
    }

    fn blocks(&mut self, extent: Extent) -> &mut [Block] {
        let volume = self.volumes.get_mut(&extent.volume).expect("clients use volumes that were created");
        &mut volume.blocks[extent.address as usize..(extent.address + extent.count) as usize]
    }
}

impl Block {
    /// What a snapshot that is taken now shows of it.
    fn shown(&self) -> Shown {
        let (sequence, is_hole) = self.candidates.last_key_value().map_or((0, true), |(s, h)| (*s, *h));
        let stamp = match (is_hole, sequence) {
            (true, 0) => self.origin,
            (true, _) => 0,
            (false, _) => self.returned.get(&sequence).copied().unwrap_or(sequence),
        };
        Shown { version: sequence, stamp, is_doubtful: self.is_doubtful, ..Shown::default() }
    }

    /// The oldest candidate, `floor` or newer, by which a rollback shows this stamp.
    fn returned_as(&self, stamp: u64, floor: u64) -> Option<u64> {
        let of_stamp = |(sequence, returned): &(&u64, &u64)| {
            **returned == stamp && stamp != 0 && self.candidates.contains_key(*sequence)
        };
        self.returned.range(floor..).find(of_stamp).map(|(sequence, _)| *sequence)
    }

    /// `sequence` is settled: what is older is gone.
    fn raise(&mut self, sequence: u64) {
        if sequence > self.floor {
            self.floor = sequence;
            self.is_doubtful = false;
            let newer = self.candidates.split_off(&sequence);
            let past = std::mem::replace(&mut self.candidates, newer);
            self.past_holes.extend(past.into_iter().filter(|(_, is_hole)| *is_hole).map(|(past, _)| past));
        }
    }
}

const STAMP: u64 = 0x6765_6d65_6c00_0001;

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Extent = Extent { volume: 0, address: 0, count: 1 };

    fn data(sequence: u64) -> Vec<u8> {
        let mut data = vec![0; BLOCK_SIZE];
        Oracle::stamp(&mut data, 0, 0, sequence);
        data
    }

    fn oracle() -> Oracle {
        let mut oracle = Oracle::default();
        oracle.create(0, 1);
        oracle
    }

    #[test]
    fn lost_torn_old_and_foreign_blocks_are_told() {
        let mut oracle = oracle();
        let first = oracle.submit(ONE, false);
        oracle.acknowledge(ONE, first);
        assert!(oracle.check(0, 0, first, &vec![0; BLOCK_SIZE]).is_err());
        let second = oracle.submit(ONE, false);
        oracle.check(0, 0, first, &data(first)).unwrap();
        oracle.check(0, 0, first, &data(second)).unwrap();
        assert!(oracle.check(0, 0, second, &data(first)).is_err());
        assert!(oracle.check(0, 0, second, &data(second + 9)).is_err());
        let mut torn = data(second);
        torn[512..1024].copy_from_slice(&data(first)[512..1024]);
        assert!(oracle.check(0, 0, first, &torn).is_err());
    }

    #[test]
    fn after_a_restart_nothing_changes_any_more() {
        let mut oracle = oracle();
        let first = oracle.submit(ONE, false);
        oracle.acknowledge(ONE, first);
        let second = oracle.submit(ONE, false);
        oracle.check(0, 0, first, &data(first)).unwrap();
        oracle.settle_for_good(0, 0);
        assert!(oracle.check(0, 0, first, &data(second)).is_err());
    }

    #[test]
    fn volumes_neither_vanish_nor_return() {
        let mut oracle = oracle();
        oracle.set_state(0, VolumeState::Exists);
        assert!(oracle.settle_volumes(&[]).is_err());
        oracle.set_state(0, VolumeState::Dropping);
        assert_eq!(oracle.settle_volumes(&[]), Ok(vec![]));
        assert!(oracle.settle_volumes(&[0]).is_err());
    }
}
