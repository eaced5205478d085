//! Blocks that one side can't read come from the other one, and never as something else than they are.

use std::time::Duration;

use futures::future::{join, join_all};

use super::pair::{Pair, VOLUME};
use crate::base::runtime::Runtime;
use crate::base::units::{BLOCK_SIZE, BlockAddress};
use crate::mirror::Requirement;
use crate::store::interface::{BlockStore, StoreError};

const LOST: BlockAddress = BlockAddress(3);

fn filled(seed: u64) -> Pair {
    let pair = Pair::new(seed, Requirement::Both);
    pair.connect();
    let writes: Vec<_> = (0..8).map(|n| pair.append(n, 10 + n as u8)).collect();
    assert!(pair.run(join_all(writes)).iter().all(Result::is_ok));
    pair
}

#[test]
fn a_block_that_is_lost_at_the_primary_comes_from_the_replica() {
    for seed in 0..30 {
        let pair = filled(seed);
        [LOST, BlockAddress(5)].iter().for_each(|lost| pair.here.spoil(VOLUME, *lost));
        let read = pair.run(pair.mirror.read(VOLUME, BlockAddress(0), 8)).unwrap().concat();
        let firsts: Vec<u8> = read.chunks(BLOCK_SIZE).map(|block| block[0]).collect();
        assert_eq!(firsts, (10..18).collect::<Vec<u8>>());
        assert_eq!(pair.mirror.healed(), (2, 0));
        assert_eq!(pair.blocks(&pair.here, 8), pair.blocks(&pair.there, 8), "it was written here again");
        assert!(pair.mirror.is_level() && pair.mirror.silent_since().is_none());
    }
}

#[test]
fn what_neither_has_or_a_replica_that_lacks_something_might_have_is_an_error() {
    let lost = StoreError::Medium { volume: VOLUME, address: LOST };
    let pair = filled(1);
    [&pair.here, &pair.there].iter().for_each(|store| store.spoil(VOLUME, LOST));
    assert_eq!(pair.run(pair.mirror.read(VOLUME, LOST, 1)), Err(lost.clone()));
    let pair = filled(2);
    pair.mirror.require(Requirement::Local);
    pair.mirror.disconnected();
    pair.here.spoil(VOLUME, LOST);
    assert_eq!(pair.run(pair.mirror.read(VOLUME, LOST, 1)), Err(lost.clone()));
    // While it is asked, the connection breaks.
    let pair = filled(3);
    pair.here.spoil(VOLUME, LOST);
    let reading = pair.mirror.read(VOLUME, LOST, 1);
    let breaking = async {
        pair.world.sleep(Duration::from_micros(50)).await;
        pair.mirror.disconnected();
    };
    assert_eq!(pair.run(join(reading, breaking)).0, Err(lost));
}

#[test]
fn a_block_that_is_lost_at_the_replica_comes_from_the_primary() {
    for seed in 0..30 {
        let pair = filled(seed);
        pair.there.spoil(VOLUME, LOST);
        assert!(pair.replicas.damaged(VOLUME, LOST));
        let later = pair.append(6, 99);
        assert_eq!(pair.run(later), Ok(()));
        pair.executor.run_for(Duration::from_millis(20)).unwrap();
        assert_eq!(pair.mirror.healed(), (0, 1));
        assert_eq!(pair.blocks(&pair.here, 8), pair.blocks(&pair.there, 8));
        assert!(pair.events.borrow().len() == 1, "the stream goes on: {:?}", pair.events.borrow());
    }
}

#[test]
pub(super) fn an_append_meanwhile_is_never_undone() {
    for seed in 0..400u64 {
        let pair = filled(seed);
        pair.here.spoil(VOLUME, LOST);
        if seed % 2 == 0 {
            pair.there.spoil(VOLUME, BlockAddress(4));
            assert!(pair.replicas.damaged(VOLUME, BlockAddress(4)));
        }
        let reading = pair.mirror.read(VOLUME, LOST, 1);
        let appending = async {
            pair.world.sleep(Duration::from_micros(seed * 3 % 700)).await;
            let (one, other) = (pair.append(3, 77), pair.append(4, 78));
            pair.world.sleep(Duration::from_micros(seed % 300)).await;
            assert_eq!(join(one, other).await, (Ok(()), Ok(())));
        };
        let (read, ()) = pair.run(join(reading, appending));
        let seen = read.unwrap()[0][0];
        assert!(seen == 13 || seen == 77, "seed {seed}: {seen}");
        pair.executor.run_for(Duration::from_millis(20)).unwrap();
        let (here, there) = (pair.blocks(&pair.here, 8), pair.blocks(&pair.there, 8));
        assert_eq!((here[3], here[4]), (77, 78), "seed {seed}");
        assert_eq!(here, there, "seed {seed}");
    }
}
