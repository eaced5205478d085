//! Clients of the world, and its oracle.

use super::node::Primary;
use super::*;

impl Primary {
    /// A client, as long as it is served.
    pub(super) async fn work(self: Rc<Self>, client: u64) {
        let (cluster, world) = (self.life.cluster.clone(), self.life.world.clone());
        while !cluster.is_ending.get() {
            let first = world.random() % BLOCKS;
            let count = 1 + world.random() % (BLOCKS - first).min(12);
            let index = (client * BLOCKS + first) as usize;
            if world.random() % 3 == 0 {
                world.sleep(micros(world.random() % 900)).await;
            }
            let is_served = match world.random() % 8 {
                0..3 => self.check_read(index, count).await,
                kind => self.write(index, count, kind == 3).await,
            };
            if !is_served {
                return;
            }
        }
    }

    /// Reads what others write: what is shown of a write that is in flight stays.
    pub(super) async fn observe(self: Rc<Self>) {
        let (cluster, world) = (self.life.cluster.clone(), self.life.world.clone());
        while !cluster.is_ending.get() {
            world.sleep(micros(world.random() % 300)).await;
            let index = (world.random() % (CLIENTS * BLOCKS)) as usize;
            let before = cluster.oracle.borrow()[index].clone();
            let Ok(pieces) = self.volume.read(address_of(index), 1).await else { return };
            let stamp = u64::from_le_bytes(pieces[0][..8].try_into().unwrap());
            let possible = &mut cluster.oracle.borrow_mut()[index];
            if !before.contains(&stamp) && !possible.contains(&stamp) {
                cluster.fail(format!("block {index} shows {stamp}, not one of {before:?} or {possible:?}"));
            }
            let in_flight = cluster.in_flight.borrow()[index];
            if stamp > 0 && in_flight == Some(stamp) {
                *possible = vec![stamp];
            }
        }
    }

    pub(super) async fn check_read(&self, index: usize, count: u64) -> bool {
        let cluster = &self.life.cluster;
        let Ok(pieces) = self.volume.read(address_of(index), count).await else { return false };
        let data = pieces.concat();
        cluster.note(|totals| totals.reads += 1);
        for (index, block) in (index..).zip(data.chunks(BLOCK_SIZE)) {
            let stamp = u64::from_le_bytes(block[..8].try_into().unwrap());
            let possible = &mut cluster.oracle.borrow_mut()[index];
            if !possible.contains(&stamp) {
                let epoch = self.epoch.get();
                cluster.fail(format!("block {index} is {stamp}, not one of {possible:?}, in epoch {epoch}"));
            }
            *possible = vec![stamp];
        }
        true
    }

    pub(super) async fn write(&self, index: usize, count: u64, unmaps: bool) -> bool {
        let cluster = &self.life.cluster;
        let indices = index..index + count as usize;
        let stamps: Vec<u64> = indices.clone().map(|_| if unmaps { 0 } else { cluster.stamp() }).collect();
        for (index, stamp) in indices.clone().zip(&stamps) {
            cluster.oracle.borrow_mut()[index].push(*stamp);
            cluster.note_write(self.turn, index, *stamp);
            cluster.in_flight.borrow_mut()[index] = Some(*stamp);
        }
        let outcome = match unmaps {
            true => self.volume.unmap(address_of(index), count).await,
            false => {
                self.volume.write(address_of(index), stamps.iter().map(|stamp| block(*stamp)).collect()).await
            }
        };
        if outcome.is_err() {
            return false;
        }
        if self.is_stopped.get() {
            cluster.fail("a write was acknowledged behind the end".to_owned());
        }
        cluster.note(|totals| totals.writes += 1);
        for (index, stamp) in indices.zip(stamps) {
            cluster.oracle.borrow_mut()[index] = vec![stamp];
            cluster.in_flight.borrow_mut()[index] = None;
        }
        true
    }
}

impl Cluster {
    fn stamp(&self) -> u64 {
        self.next_stamp.set(self.next_stamp.get() + 1);
        self.next_stamp.get()
    }
}

pub(super) fn address_of(index: usize) -> u64 {
    let (client, block) = (index as u64 / BLOCKS, index as u64 % BLOCKS);
    client * APART + block
}

pub(super) fn block(stamp: u64) -> Bytes {
    let mut data = AlignedBuf::zeroed(BLOCK_SIZE);
    data[..8].copy_from_slice(&stamp.to_le_bytes());
    data.freeze()
}
