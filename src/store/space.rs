//! Which part of the pool's space volumes may take: quotas, and space that is kept for a volume.
//!
//! A quota bounds what a volume takes with its snapshots. What is kept for a volume, as far as it does not fill it, others can't
//! take. Both concern only blocks that need new space: overwriting and unmapping always goes on. What was promised to
//! appends that have not settled counts as taken.
//!
//! Rules bind volumes that are served here ([`Store::bind_space`]): a replica takes what the other node has acknowledged. They
//! are not on disk; whoever opens the store says them again. Without any, an append costs one look.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::Store;
use super::map::Map;
use super::shared::{Contents, Shared};
use crate::base::units::{BLOCK_SIZE, VolumeId};

/// What is said of a volume's space; zero stands for no rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceRule {
    /// Most that it takes, with its snapshots, before parity.
    pub quota_bytes: u64,
    /// Space that is kept for it.
    pub reserved_bytes: u64,
}

/// All rules.
#[derive(Default)]
pub(super) struct SpaceRules {
    of_volumes: RefCell<BTreeMap<VolumeId, Rule>>,
    bound: RefCell<BTreeSet<VolumeId>>,
}

#[derive(Default)]
struct Rule {
    rule: SpaceRule,
    /// Blocks promised to appends that are not settled.
    promised: u64,
}

impl Store {
    /// Sets what a volume may take, and what is kept for it.
    pub fn set_space_rule(&self, volume: VolumeId, rule: SpaceRule) {
        let mut rules = self.shared().space.of_volumes.borrow_mut();
        if rule == SpaceRule::default() {
            rules.remove(&volume);
        } else {
            rules.entry(volume).or_default().rule = rule;
        }
    }

    /// Whether the rules bind a volume: it is served here.
    pub fn bind_space(&self, volume: VolumeId, is_bound: bool) {
        let mut bound = self.shared().space.bound.borrow_mut();
        let _ = if is_bound { bound.insert(volume) } else { bound.remove(&volume) };
    }
}

impl SpaceRules {
    /// Whether there are any.
    fn are_any(&self) -> bool {
        !self.of_volumes.borrow().is_empty()
    }

    /// Whether the rules let a volume take so many new blocks while so many are free.
    fn let_take(&self, contents: &Contents, volume: VolumeId, blocks: u64, free_blocks: u64) -> bool {
        if !self.bound.borrow().contains(&volume) {
            return true;
        }
        let rules = self.of_volumes.borrow();
        let taken = |volume: VolumeId, rule: &Rule| {
            contents.map.mapped_blocks(volume) + contents.map.held_blocks(volume) + rule.promised
        };
        let quota = rules.get(&volume).filter(|rule| rule.rule.quota_bytes > 0);
        let is_within = quota
            .is_none_or(|rule| taken(volume, rule) + blocks <= rule.rule.quota_bytes / BLOCK_SIZE as u64);
        let kept = |(other, rule): (&VolumeId, &Rule)| {
            let reserved = rule.rule.reserved_bytes / BLOCK_SIZE as u64;
            if *other == volume { 0 } else { reserved.saturating_sub(taken(*other, rule)) }
        };
        is_within && blocks + rules.iter().map(kept).sum::<u64>() <= free_blocks
    }

    fn change_promised(&self, volume: VolumeId, change: impl FnOnce(u64) -> u64) {
        if let Some(rule) = self.of_volumes.borrow_mut().get_mut(&volume) {
            rule.promised = change(rule.promised);
        }
    }
}

impl Shared {
    /// Whether a volume may take so many new blocks.
    pub(super) fn takes(&self, contents: &Contents, volume: VolumeId, blocks: u64) -> bool {
        let taken = contents.used_blocks() + self.reserved_blocks.get();
        let free = self.usable_blocks().saturating_sub(taken);
        if blocks > free || self.array.is_starved() {
            return false;
        }
        !self.space.are_any() || self.space.let_take(contents, volume, blocks, free)
    }

    /// So many blocks of an append count as taken until each has settled.
    pub(super) fn promise(&self, volume: VolumeId, blocks: u64) {
        self.reserved_blocks.set(self.reserved_blocks.get() + blocks);
        if self.space.are_any() {
            self.space.change_promised(volume, |promised| promised + blocks);
        }
    }

    /// A block that was promised has settled.
    pub(super) fn promise_settled(&self, volume: VolumeId) {
        self.reserved_blocks.set(self.reserved_blocks.get() - 1);
        if self.space.are_any() {
            // What was promised before there was a rule was not counted.
            self.space.change_promised(volume, |promised| promised.saturating_sub(1));
        }
    }
}
