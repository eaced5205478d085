//! Snapshots in the world, and their oracle.
//!
//! Of each snapshot it is known of each block what it may show: what was possible when it was asked for, and what was
//! written until it was acknowledged. What was read of it once stays. One that was acknowledged is there until somebody
//! wants it dropped; one without an acknowledgement is there or not, and stays so once somebody has looked.

use super::client::address_of;
use super::node::Primary;
use super::*;
use crate::store::interface::SnapshotStore;
use crate::volume::snapshot::{SnapshotKind, SnapshotRecord};

/// What is known of a snapshot.
pub(super) struct Known {
    name: String,
    /// Once it was seen.
    version: Option<Version>,
    state: State,
    /// By client and block: what it may show.
    possible: Vec<Vec<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This turn of service takes it: what that writes may be in it.
    Asked(u64),
    /// Nobody knows, and nobody takes it any more.
    InDoubt,
    There,
    DropAsked,
    Gone,
}

impl Cluster {
    /// A write begins: it may be in what is being taken.
    pub(super) fn note_write(&self, turn: u64, index: usize, stamp: u64) {
        for known in &mut *self.snapshots.borrow_mut() {
            if known.state == State::Asked(turn) {
                known.possible[index].push(stamp);
            }
        }
    }

    /// A turn of service is over: what it was taking is in doubt.
    pub(super) fn end_turn(&self, turn: u64) {
        for known in &mut *self.snapshots.borrow_mut() {
            if known.state == State::Asked(turn) {
                known.state = State::InDoubt;
            }
        }
    }

    /// What has to be there or must not be.
    fn check_list(&self, list: &[(Version, SnapshotRecord)], turn: u64) {
        for known in &mut *self.snapshots.borrow_mut() {
            let found =
                list.iter().find(|(_, record)| record.name == known.name).map(|(version, _)| *version);
            let problem = match (known.state, found) {
                (State::Asked(of), _) if of == turn => None,
                (State::There, None) => Some("is not there"),
                (State::Gone, Some(_)) => Some("is there again"),
                _ => None,
            };
            if let Some(problem) = problem {
                self.fail(format!("snapshot {} {problem} (I19)", known.name));
            }
            if known.version.is_some() && found.is_some() && found != known.version {
                self.fail(format!("snapshot {} has another version", known.name));
            }
            known.version = known.version.or(found);
            known.state = match (known.state, found) {
                (State::InDoubt, Some(_)) => State::There,
                (State::InDoubt, None) => State::Gone,
                (state, _) => state,
            };
        }
    }
}

impl Primary {
    /// Takes, drops, lists and reads snapshots, as long as it is served.
    pub(super) async fn keep_snapshots(self: Rc<Self>) {
        let (cluster, world) = (self.life.cluster.clone(), self.life.world.clone());
        while !cluster.is_ending.get() {
            world.sleep(micros(world.random() % 4000)).await;
            let is_served = match world.random() % 8 {
                0..3 => self.take().await,
                3 => self.drop_one().await,
                4 => self.check_snapshots().await,
                _ => self.look_into_one().await,
            };
            if !is_served {
                return;
            }
        }
    }

    async fn take(&self) -> bool {
        let cluster = &self.life.cluster;
        let (name, index) = {
            let mut snapshots = cluster.snapshots.borrow_mut();
            if snapshots.len() > 60 {
                return true;
            }
            let possible = cluster.oracle.borrow().clone();
            let name = format!("s{}", snapshots.len());
            let state = State::Asked(self.turn);
            snapshots.push(Known { name: name.clone(), version: None, state, possible });
            (name, snapshots.len() - 1)
        };
        let record = SnapshotRecord {
            id: index as u64 + 1,
            name,
            taken_unix_ms: self.life.world.now().0,
            protected_until_unix_ms: None,
            kind: SnapshotKind::Manual,
            group: None,
        };
        let taken = self.volume.take_snapshot(&record).await;
        let known = &mut cluster.snapshots.borrow_mut()[index];
        let Ok(version) = taken else { return false };
        if self.is_stopped.get() {
            cluster.fail("a snapshot was acknowledged behind the end".to_owned());
        }
        cluster.note(|totals| totals.snapshots += 1);
        (known.state, known.version) = (State::There, Some(version));
        true
    }

    fn choose(&self) -> Option<(usize, Version)> {
        let snapshots = self.life.cluster.snapshots.borrow();
        let there = |(index, known): (usize, &Known)| {
            known.version.filter(|_| known.state == State::There).map(|version| (index, version))
        };
        let there: Vec<_> = snapshots.iter().enumerate().filter_map(there).collect();
        let chosen = self.life.world.random() as usize % there.len().max(1);
        there.get(chosen).copied()
    }

    async fn drop_one(&self) -> bool {
        let cluster = &self.life.cluster;
        let Some((index, version)) = self.choose() else { return true };
        cluster.snapshots.borrow_mut()[index].state = State::DropAsked;
        let dropped = self.volume.drop_snapshot(version, 0).await;
        let known = &mut cluster.snapshots.borrow_mut()[index];
        known.state = if dropped.is_ok() { State::Gone } else { State::DropAsked };
        dropped.is_ok()
    }

    pub(super) async fn check_snapshots(&self) -> bool {
        let Ok(list) = self.volume.snapshots().await else { return false };
        if !self.is_stopped.get() {
            self.life.cluster.check_list(&list, self.turn);
        }
        true
    }

    async fn look_into_one(&self) -> bool {
        let Some((index, version)) = self.choose() else { return true };
        let first = self.life.world.random() % (CLIENTS * BLOCKS);
        let count = 1 + self.life.world.random() % (BLOCKS - first % BLOCKS);
        self.check_view(index, version, first as usize, count).await
    }

    /// Reads of a snapshot, and compares with what it may show.
    async fn check_view(&self, index: usize, version: Version, first: usize, count: u64) -> bool {
        let cluster = &self.life.cluster;
        let read = self.volume.read_at(version, address_of(first), count).await;
        let Ok(pieces) = read else {
            // Somebody may have dropped it meanwhile.
            return cluster.snapshots.borrow()[index].state != State::There;
        };
        cluster.note(|totals| totals.views += 1);
        let known = &mut cluster.snapshots.borrow_mut()[index];
        for (at, block) in (first..).zip(pieces.concat().chunks(BLOCK_SIZE)) {
            let stamp = u64::from_le_bytes(block[..8].try_into().unwrap());
            let possible = &mut known.possible[at];
            if !possible.contains(&stamp) {
                let epoch = self.epoch.get();
                cluster.fail(format!(
                    "snapshot {} {version:?} shows {stamp} in block {at}, not one of {possible:?}, in epoch {epoch}",
                    known.name
                ));
            }
            *possible = vec![stamp];
        }
        true
    }

    /// Everything that snapshots show.
    pub(super) async fn check_all_views(&self) {
        self.check_snapshots().await;
        let all: Vec<_> = {
            let snapshots = self.life.cluster.snapshots.borrow();
            let there = |(index, known): (usize, &Known)| {
                known.version.filter(|_| known.state == State::There).map(|version| (index, version))
            };
            snapshots.iter().enumerate().filter_map(there).collect()
        };
        for (index, version) in all {
            for client in 0..CLIENTS {
                self.check_view(index, version, (client * BLOCKS) as usize, BLOCKS).await;
            }
        }
    }
}

impl Cluster {
    /// I24 for snapshots: the same list, and the same in each.
    pub(super) async fn compare_snapshots(&self, one: &Store, other: &Store) -> Result<(), String> {
        let list = |store: &Store| store.snapshots(VOLUME).map_err(|error| error.to_string());
        let (here, there) = (list(one)?, list(other)?);
        if here != there {
            let versions = |list: &[crate::store::interface::SnapshotEntry]| {
                list.iter().map(|entry| entry.version).collect::<Vec<_>>()
            };
            return Err(format!("the snapshots differ: {:?} and {:?}", versions(&here), versions(&there)));
        }
        for at in here.iter().map(|entry| entry.version) {
            for client in 0..CLIENTS {
                let address = BlockAddress(client * APART);
                let view = async |store: &Store| {
                    let read = store.read_at(VOLUME, at, address, BLOCKS).await;
                    let runs = store.allocation_at(VOLUME, at, address, APART, 10_000).await;
                    let failed = |error: crate::store::interface::StoreError| error.to_string();
                    Ok::<_, String>((read.map_err(failed)?.concat(), runs.map_err(failed)?))
                };
                let (here, there) = (view(one).await?, view(other).await?);
                if here.0 != there.0 {
                    let block =
                        here.0.chunks(BLOCK_SIZE).zip(there.0.chunks(BLOCK_SIZE)).position(|(a, b)| a != b);
                    return Err(format!("the replicas differ at {at:?}, client {client}, block {block:?}"));
                }
                if here.1 != there.1 {
                    return Err(format!("what is mapped differs at {at:?}: {:?} and {:?}", here.1, there.1));
                }
            }
        }
        Ok(())
    }
}
