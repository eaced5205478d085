//! What every block may be: the last settled write, or one that is in flight, and never again what
//! it was before.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::units::BLOCK_SIZE;

/// The history of all blocks, as far as it still matters.
pub(super) struct Oracle {
    blocks: Vec<Vec<Block>>,
    next_sequence: u64,
}

#[derive(Default)]
struct Block {
    /// Newest sequence number that is known to be settled: nothing older may be seen again.
    floor: u64,
    /// Submitted writes from the floor on: sequence number, and whether it is a hole.
    candidates: BTreeMap<u64, bool>,
    /// Holes that a newer write has replaced: a read that began before it may still see them.
    past_holes: BTreeSet<u64>,
}

impl Oracle {
    pub(super) fn new(volumes: u64, blocks: u64) -> Self {
        let volume = || {
            (0..blocks)
                .map(|_| Block { candidates: BTreeMap::from([(0, true)]), ..Block::default() })
                .collect()
        };
        Self { blocks: (0..volumes).map(|_| volume()).collect(), next_sequence: 1 }
    }

    /// Fills a block so that every sector of it tells volume, address, sequence number and position.
    pub(super) fn stamp(data: &mut [u8], volume: u64, address: u64, sequence: u64) {
        for (sector, bytes) in data.chunks_mut(512).enumerate() {
            for (field, value) in [STAMP, volume, address, sequence, sector as u64].into_iter().enumerate() {
                bytes[field * 8..field * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            bytes[40..].fill((sequence % 251) as u8);
        }
    }

    /// A write begins: its sequence number.
    pub(super) fn submit(&mut self, volume: u64, address: u64, count: u64, is_hole: bool) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        for block in &mut self.blocks[volume as usize][address as usize..(address + count) as usize] {
            block.candidates.insert(sequence, is_hole);
        }
        sequence
    }

    /// A write was acknowledged.
    pub(super) fn acknowledge(&mut self, volume: u64, address: u64, count: u64, sequence: u64) {
        for block in &mut self.blocks[volume as usize][address as usize..(address + count) as usize] {
            block.raise(sequence);
        }
    }

    /// What a read that begins now must at least see.
    pub(super) fn floor(&self, volume: u64, address: u64) -> u64 {
        self.blocks[volume as usize][address as usize].floor
    }

    /// Checks what a read that began at `floor` has seen.
    pub(super) fn check(&mut self, volume: u64, address: u64, floor: u64, data: &[u8]) -> Result<(), String> {
        let block = &mut self.blocks[volume as usize][address as usize];
        let at = format!("block {volume}/{address}");
        let sequence = if data.iter().all(|byte| *byte == 0) {
            // Any hole that may be the newest: the oldest of them promises least.
            let past = block.past_holes.range(floor..).next();
            let hole = block.candidates.range(floor..).find(|(_, is_hole)| **is_hole).map(|(hole, _)| hole);
            *past.or(hole).ok_or(format!("{at} is zeros, but {floor} was settled"))?
        } else {
            let field =
                |index: usize| data[index * 8..index * 8 + 8].try_into().map_or(0, u64::from_le_bytes);
            let sequence = field(3);
            let mut expected = vec![0; BLOCK_SIZE];
            Self::stamp(&mut expected, volume, address, sequence);
            if expected != data {
                return Err(format!("{at} holds what was never written there: {:?}", &data[..48]));
            }
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
    pub(super) fn settle_for_good(&mut self, volume: u64, address: u64) {
        let block = &mut self.blocks[volume as usize][address as usize];
        block.past_holes.clear();
        let settled_hole = block.candidates.get(&block.floor).copied().unwrap_or(true);
        if settled_hole {
            // Which of the holes it is cannot be seen; a data write behind a hole is gone for good.
            block.candidates.retain(|_, is_hole| *is_hole);
        } else {
            let floor = block.floor;
            block.candidates.retain(|sequence, _| *sequence == floor);
        }
    }
}

impl Block {
    /// `sequence` is settled: what is older is gone.
    fn raise(&mut self, sequence: u64) {
        if sequence > self.floor {
            self.floor = sequence;
            let newer = self.candidates.split_off(&sequence);
            let past = std::mem::replace(&mut self.candidates, newer);
            self.past_holes.extend(past.into_iter().filter(|(_, is_hole)| *is_hole).map(|(past, _)| past));
        }
    }
}

const STAMP: u64 = 0x6765_6d65_6c00_0001;
