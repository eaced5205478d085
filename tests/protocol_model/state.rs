//! A state of the model: two data nodes, three voters, what Raft has committed, what is on its way.
//!
//! Everything is a small number and nothing is on the heap, so that millions of states fit in memory.
//! Node 0 is A, node 1 is B; voter 2 is the witness. Sets of nodes are bit masks.

use super::oracle::{MOST_WRITES, Oracle, Value};

pub const NODES: usize = 2;
pub const BLOCKS: usize = 2;
pub const VOTERS: usize = 3;
pub const BOTH: u8 = 0b11;

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub nodes: [Node; NODES],
    pub voters: [Voter; VOTERS],
    /// What Raft has committed last.
    pub committed: Config,
    /// Proposed, and neither committed nor impossible yet.
    pub proposals: Few<Config, 4>,
    /// Messages on their way; each may be delivered any number of times, in any order, or never.
    pub network: Few<Message, 8>,
    /// Value of the next write.
    pub next_value: Value,
    pub oracles: [Oracle; BLOCKS],
    /// For each value: the nodes on which it has ever been durable.
    pub stored: [u8; MOST_WRITES as usize + 1],
    /// An operator forced a primary: what it holds is the truth from its first service on.
    pub loss_accepted: bool,
    /// The watermark is on record: something was acknowledged, and a member that lost its writes falls short of it.
    pub is_marked: bool,
    /// Nodes whose disks have lost writes that they had confirmed, and that were not brought up to date since.
    pub lost: [bool; NODES],
    /// How often each kind of fault has happened.
    pub crashes: u8,
    pub forces: u8,
    pub losses: u8,
}

/// What Raft decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Config {
    /// Zero: none.
    pub epoch: u8,
    pub primary: u8,
    pub in_sync: u8,
    /// Proposed when nothing was in doubt: the primary may serve without settling (planned move, start
    /// after a stop on purpose).
    pub is_settled: bool,
    /// Certificate of a stop on purpose: both replicas are equal.
    pub is_stopped: bool,
    /// By an operator.
    pub is_forced: bool,
    /// Left to the other member by a primary that has lost what was acknowledged.
    pub is_yielded: bool,
    /// Which life of its proposer has proposed it; only where lives may begin with old views.
    pub life: u8,
}

/// A node that holds data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Node {
    pub is_up: bool,
    // Durable.
    pub disk: [Value; BLOCKS],
    /// Lowest epoch from which data is still taken.
    pub promised: u8,
    /// Last sequence number received in the promised epoch.
    pub last_received: u8,
    /// Tag of what is on the disk; only kept where a broken rule compares tags.
    pub tag: [u8; BLOCKS],
    /// What it had heard of Raft before the last it heard; only kept where lives may begin with it.
    pub known_before: Config,
    /// Restarts so far, and what was promised at the last one; as before.
    pub life: u8,
    pub promised_before: u8,
    // Volatile.
    /// What it has heard of Raft; epoch zero after a restart.
    pub view: Config,
    /// The epoch that it serves; zero: none.
    pub serving: u8,
    /// What reads return.
    pub shown: [Value; BLOCKS],
    pub pending: [Pending; BLOCKS],
    /// How far the peer has each block: for settling when the set is both, for joining when it is not.
    pub peer: [Copied; BLOCKS],
    /// Last sequence number sent in this epoch.
    pub sequence: u8,
    /// Own proposals whose outcome is unknown.
    pub proposed: Few<Config, 2>,
    pub lease: Lease,
    /// The greatest epoch it has ever promised: for the checks alone.
    pub ever_promised: u8,
}

/// A write that has not been acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pending {
    /// Zero: none.
    pub value: Value,
    pub is_local: bool,
    /// Sequence number with which it was sent; zero: not yet.
    pub sent: u8,
    pub is_remote: bool,
}

/// How far the peer has a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Copied {
    #[default]
    No,
    /// Sent with this sequence number.
    Sent(u8),
    Yes,
}

/// A lease as its holder sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Lease {
    pub stage: Stage,
    /// Ticks left by the holder's clock, counted from the moment of asking.
    pub left: u8,
    /// Its clock has already fallen behind by a tick during this lease: as much as drift may do.
    pub has_slipped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Stage {
    #[default]
    None,
    Asked,
    /// A majority has confirmed; the holder does not know yet.
    Confirmed,
    Held,
}

/// A voter's promise not to commit a deposition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Voter {
    /// Ticks left by its own clock.
    pub left: u8,
    /// Epoch of the lease it confirmed; zero: it has restarted and does not know.
    pub epoch: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Message {
    /// A block from a primary: a mirrored write, a resync or a settlement; all overwrite alike.
    Data { to: u8, epoch: u8, sequence: u8, block: u8, value: Value, tag: u8 },
    /// Durable at the other node.
    Ack { to: u8, epoch: u8, sequence: u8 },
    /// The primary of this epoch has stopped serving.
    GiveBack { epoch: u8 },
}

impl Default for Message {
    fn default() -> Self {
        Self::GiveBack { epoch: 0 }
    }
}

/// A small sorted set without a heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Few<T, const MOST: usize> {
    items: [T; MOST],
    count: u8,
}

impl<T: Copy + Ord + Default, const MOST: usize> Few<T, MOST> {
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items[..self.count as usize].iter()
    }

    pub fn contains(&self, item: &T) -> bool {
        self.iter().any(|present| present == item)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn is_full(&self) -> bool {
        self.count as usize == MOST
    }

    /// Adds `item`; what does not fit is lost, as the network and Raft may lose things.
    pub fn insert(&mut self, item: T) {
        if self.is_full() || self.contains(&item) {
            return;
        }
        let at = self.iter().take_while(|present| **present < item).count();
        self.items.copy_within(at..self.count as usize, at + 1);
        self.items[at] = item;
        self.count += 1;
    }

    pub fn retain(&mut self, is_kept: impl Fn(&T) -> bool) {
        let mut kept = Self::default();
        self.iter().filter(|item| is_kept(item)).for_each(|item| kept.insert(*item));
        *self = kept;
    }
}

impl<T: Copy + Ord + Default, const MOST: usize> Default for Few<T, MOST> {
    fn default() -> Self {
        Self { items: [T::default(); MOST], count: 0 }
    }
}

impl State {
    /// Both nodes up and in sync, A primary in epoch 1.
    pub fn first() -> Self {
        let committed = Config { epoch: 1, primary: 0, in_sync: BOTH, ..Config::default() };
        let node = Node { is_up: true, promised: 1, ever_promised: 1, view: committed, ..Node::default() };
        let primary = Node { serving: 1, peer: [Copied::Yes; BLOCKS], ..node };
        Self {
            nodes: [primary, node],
            voters: [Voter::default(); VOTERS],
            committed,
            proposals: Few::default(),
            network: Few::default(),
            next_value: 1,
            oracles: [Oracle::new(); BLOCKS],
            stored: [BOTH, 0, 0, 0],
            loss_accepted: false,
            is_marked: false,
            lost: [false; NODES],
            crashes: 0,
            forces: 0,
            losses: 0,
        }
    }
}

impl Node {
    /// Forgets all that a restart, or a deposition, forgets.
    pub fn stop_serving(&mut self) {
        self.serving = 0;
        self.shown = [0; BLOCKS];
        self.pending = [Pending::default(); BLOCKS];
        self.peer = [Copied::No; BLOCKS];
        self.sequence = 0;
        self.lease = Lease::default();
    }
}

pub fn only(node: usize) -> u8 {
    1 << node
}
