//! Clients with two paths, and the oracle of what they may read.
//!
//! Each client has blocks of its own in each volume and one operation at a time, so a block is its last
//! acknowledged value or one whose write was not answered, and stays what it was read as (I15). A client goes to
//! whichever node lets it in.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{Either, select};

use super::cluster::{Cluster, VOLUMES, micros, name};
use super::site::Life;
use crate::base::buffer::AlignedBuf;
use crate::base::runtime::Runtime;
use crate::base::units::{BLOCK_SIZE, VolumeId};
use crate::volume::device::BlockDevice;

const CLIENTS: u64 = 3;
/// Blocks of a client in a volume, and how far apart clients are.
pub(super) const BLOCKS: u64 = 24;
const APART: u64 = 1000;
pub(super) const SIZE_BYTES: u64 = CLIENTS * APART * BLOCK_SIZE as u64;

/// What each block may be.
#[derive(Default)]
pub(super) struct Oracle {
    blocks: RefCell<std::collections::BTreeMap<(VolumeId, u64), Block>>,
    next_stamp: Cell<u64>,
}

#[derive(Clone)]
struct Block {
    /// Stamps; zero for one that has no data.
    possible: Vec<u64>,
    in_flight: Option<u64>,
    /// Writes that began or ended so far.
    changes: u64,
}

impl Default for Block {
    fn default() -> Self {
        Self { possible: vec![0], in_flight: None, changes: 0 }
    }
}

pub(super) struct Clients {
    is_ending: Rc<Cell<bool>>,
    working: Rc<Cell<u64>>,
}

impl Oracle {
    fn new_stamp(&self) -> u64 {
        self.next_stamp.set(self.next_stamp.get() + 1);
        self.next_stamp.get()
    }

    fn change(&self, block: (VolumeId, u64), change: impl FnOnce(&mut Block)) {
        let mut blocks = self.blocks.borrow_mut();
        let known = blocks.entry(block).or_default();
        known.changes += 1;
        change(known);
    }

    fn begin_write(&self, block: (VolumeId, u64), stamp: u64) {
        self.change(block, |known| {
            known.possible.push(stamp);
            known.in_flight = Some(stamp);
        });
    }

    /// The write was answered, or never will be.
    fn end_write(&self, block: (VolumeId, u64), stamp: u64, is_good: bool) {
        self.change(block, |known| {
            known.in_flight = None;
            if is_good {
                known.possible = vec![stamp];
            }
        });
    }

    fn begin_read(&self, block: (VolumeId, u64)) -> Block {
        self.blocks.borrow_mut().entry(block).or_default().clone()
    }

    /// What was read by somebody who began when the block was `before`. From then on it stays that (I15).
    fn end_read(&self, block: (VolumeId, u64), before: &Block, stamp: u64) -> Result<(), String> {
        let mut blocks = self.blocks.borrow_mut();
        let known = blocks.entry(block).or_default();
        if !known.possible.contains(&stamp) && !before.possible.contains(&stamp) {
            return Err(format!("block {block:?} reads {stamp}, and may be {:?}", known.possible));
        }
        let is_settled = known.changes == before.changes && known.in_flight.is_none();
        if is_settled || (stamp > 0 && known.in_flight == Some(stamp)) {
            known.possible = vec![stamp];
        }
        Ok(())
    }
}

impl Clients {
    pub(super) fn start(cluster: &Rc<Cluster>) -> Self {
        let (is_ending, working) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        for client in 0..CLIENTS {
            for volume in VOLUMES {
                working.set(working.get() + 1);
                let work = work(cluster.clone(), volume, client, is_ending.clone(), working.clone());
                cluster.clock.spawn(Box::pin(work));
            }
        }
        Self { is_ending, working }
    }

    /// Lets them end what they do. Whether all have ended.
    pub(super) fn stop(&self) -> bool {
        self.is_ending.set(true);
        self.working.get() == 0
    }
}

async fn work(
    cluster: Rc<Cluster>,
    volume: VolumeId,
    client: u64,
    is_ending: Rc<Cell<bool>>,
    working: Rc<Cell<u64>>,
) {
    while !is_ending.get() {
        cluster.clock.sleep(micros(cluster.random.below(600))).await;
        let node = cluster.random.index(2);
        let Some(life) = cluster.sites[node].life().filter(|life| life.attached(volume).is_some()) else {
            continue;
        };
        let block = client * APART + cluster.random.below(BLOCKS);
        match cluster.random.below(12) {
            0..3 => read(&cluster, &life, volume, block).await,
            3 => {
                // What another one writes.
                cluster.note(|totals| totals.observations += 1);
                let other = cluster.random.below(CLIENTS) * APART + cluster.random.below(BLOCKS);
                read(&cluster, &life, volume, other).await;
            }
            4 => unmap(&cluster, &life, volume, block).await,
            _ => {
                write(&cluster, &life, volume, block).await;
            }
        }
        let home = usize::from(volume == VOLUMES[1]);
        cluster.note(|totals| totals.served_by_second += u64::from(node != home));
    }
    working.set(working.get() - 1);
}

/// Runs an operation on a node until it is answered, the node is no more, or the other one serves the volume: then a
/// host does not wait for the path that it hangs on.
async fn on<T: 'static>(
    cluster: &Rc<Cluster>,
    life: &Rc<Life>,
    volume: VolumeId,
    operation: impl Future<Output = T> + 'static,
) -> Option<T> {
    let ended = life.ended.wait();
    let (sender, outcome) = oneshot::channel();
    life.world.spawn(Box::pin(async move {
        // Nobody may be waiting any more.
        let _ = sender.send(operation.await);
    }));
    let other = &cluster.sites[1 - life.index];
    let elsewhere = async {
        loop {
            cluster.clock.sleep(micros(1000)).await;
            let is_deposed = cluster.record(volume).primary == name(1 - life.index);
            if is_deposed && other.life().is_some_and(|other| other.attached(volume).is_some()) {
                return;
            }
        }
    };
    let ended = select(ended, Box::pin(elsewhere));
    match select(outcome, ended).await {
        Either::Left((outcome, _)) => outcome.ok(),
        Either::Right(_) => None,
    }
}

/// Writes a block. Whether that was acknowledged.
pub(super) async fn write(cluster: &Rc<Cluster>, life: &Rc<Life>, volume: VolumeId, block: u64) -> bool {
    let Some(device) = life.attached(volume) else { return false };
    let stamp = cluster.oracle.new_stamp();
    cluster.oracle.begin_write((volume, block), stamp);
    let outcome =
        on(cluster, life, volume, async move { device.write(block * 8, data_of(stamp)).await }).await;
    let is_good = matches!(outcome, Some(Ok(())));
    cluster.tell(|| format!("{} write {volume:?} {block} = {stamp}: {outcome:?}", life.index));
    cluster.oracle.end_write((volume, block), stamp, is_good);
    cluster.note(|totals| totals.writes += u64::from(is_good));
    is_good
}

async fn unmap(cluster: &Rc<Cluster>, life: &Rc<Life>, volume: VolumeId, block: u64) {
    let Some(device) = life.attached(volume) else { return };
    cluster.oracle.begin_write((volume, block), 0);
    let outcome = on(cluster, life, volume, async move { device.unmap(block * 8, 8).await }).await;
    let is_good = matches!(outcome, Some(Ok(())));
    cluster.tell(|| format!("{} unmap {volume:?} {block}: {outcome:?}", life.index));
    cluster.oracle.end_write((volume, block), 0, is_good);
    cluster.note(|totals| totals.unmaps += u64::from(is_good));
}

pub(super) async fn read(cluster: &Rc<Cluster>, life: &Rc<Life>, volume: VolumeId, block: u64) {
    let Some(device) = life.attached(volume) else { return };
    let before = cluster.oracle.begin_read((volume, block));
    if let Some(Ok(pieces)) = on(cluster, life, volume, async move { device.read(block * 8, 8).await }).await
    {
        let data = pieces.concat();
        let stamp = u64::from_le_bytes(data[..8].try_into().unwrap());
        cluster.tell(|| format!("{} read {volume:?} {block} = {stamp}", life.index));
        if data != data_of(stamp).concat() {
            cluster.fail(format!("block {block} of {volume:?} is torn"));
        }
        if let Err(problem) = cluster.oracle.end_read((volume, block), &before, stamp) {
            cluster.fail(format!("{volume:?} at {block}: {problem}"));
        }
        cluster.note(|totals| totals.reads += 1);
    }
}

/// Reads everything through whoever serves.
pub(super) async fn read_all(cluster: &Rc<Cluster>, volume: VolumeId) -> bool {
    let mut lives = cluster.sites.iter().filter_map(|site| site.life());
    let Some(life) = lives.find(|life| life.attached(volume).is_some()) else { return false };
    for client in 0..CLIENTS {
        for block in 0..BLOCKS {
            read(cluster, &life, volume, client * APART + block).await;
        }
    }
    true
}

/// The parts of a volume that clients use: first block and count.
pub(super) fn used() -> impl Iterator<Item = u64> {
    (0..CLIENTS).map(|client| client * APART)
}

fn data_of(stamp: u64) -> Vec<Bytes> {
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
    if stamp > 0 {
        block.chunks_mut(8).for_each(|word| word.copy_from_slice(&stamp.to_le_bytes()));
    }
    vec![block.freeze()]
}
