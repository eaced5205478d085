//! Clients with two paths, and the oracle of what they may read.
//!
//! Each client has blocks of its own in each volume and one operation at a time, so a block is its last
//! acknowledged value or one whose write was not answered, and stays what it was read as (I15). A client goes to
//! whichever node lets it in.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use futures::future::{Either, select};

use super::cluster::{Cluster, VOLUMES, micros};
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

/// What each block may be: stamps; the first is what it was when it was last known.
#[derive(Default)]
pub(super) struct Oracle {
    possible: RefCell<std::collections::BTreeMap<(VolumeId, u64), Vec<u64>>>,
    next_stamp: Cell<u64>,
}

pub(super) struct Clients {
    is_ending: Rc<Cell<bool>>,
    working: Rc<Cell<u64>>,
}

impl Oracle {
    fn begin_write(&self, block: (VolumeId, u64)) -> u64 {
        let stamp = self.next_stamp.get() + 1;
        self.next_stamp.set(stamp);
        self.possible.borrow_mut().entry(block).or_insert_with(|| vec![0]).push(stamp);
        stamp
    }

    fn written(&self, block: (VolumeId, u64), stamp: u64) {
        self.possible.borrow_mut().insert(block, vec![stamp]);
    }

    fn read(&self, block: (VolumeId, u64), stamp: u64) -> Result<(), String> {
        let mut possible = self.possible.borrow_mut();
        let known = possible.entry(block).or_insert_with(|| vec![0]);
        if !known.contains(&stamp) {
            return Err(format!("block {block:?} reads {stamp}, and may be {known:?}"));
        }
        *known = vec![stamp];
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
        if cluster.random.below(3) == 0 {
            read(&cluster, &life, volume, block).await;
        } else {
            write(&cluster, &life, volume, block).await;
        }
        let home = usize::from(volume == VOLUMES[1]);
        cluster.note(|totals| totals.served_by_second += u64::from(node != home));
    }
    working.set(working.get() - 1);
}

/// Runs an operation until it is answered, or the node is no more.
async fn on<T>(life: &Rc<Life>, operation: impl Future<Output = T>) -> Option<T> {
    let ended = life.ended.wait();
    match select(Box::pin(operation), ended).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}

async fn write(cluster: &Rc<Cluster>, life: &Rc<Life>, volume: VolumeId, block: u64) {
    let Some(device) = life.attached(volume) else { return };
    let stamp = cluster.oracle.begin_write((volume, block));
    let outcome = on(life, device.write(block * 8, data_of(stamp))).await;
    cluster.tell(|| format!("write {volume:?} {block} = {stamp}: {outcome:?}"));
    if let Some(Ok(())) = outcome {
        cluster.oracle.written((volume, block), stamp);
        cluster.note(|totals| totals.writes += 1);
    }
}

async fn read(cluster: &Rc<Cluster>, life: &Rc<Life>, volume: VolumeId, block: u64) {
    let Some(device) = life.attached(volume) else { return };
    if let Some(Ok(pieces)) = on(life, device.read(block * 8, 8)).await {
        let data = pieces.concat();
        let stamp = u64::from_le_bytes(data[..8].try_into().unwrap());
        cluster.tell(|| format!("read {volume:?} {block} = {stamp}"));
        if data != data_of(stamp).concat() {
            cluster.fail(format!("block {block} of {volume:?} is torn"));
        }
        if let Err(problem) = cluster.oracle.read((volume, block), stamp) {
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
