//! Growing and shrinking.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join, select};
use gemel::base::runtime::Runtime;
use gemel::volume::device::{BlockDevice, DeviceError};
use gemel::volume::{ResizeError, Shrinking};

use crate::Rig;

fn ones(length: usize) -> Bytes {
    Bytes::from(vec![1; length])
}

#[test]
fn shrinking_must_be_asked_for_and_gives_space_back() {
    let rig = Rig::new(1, 512, 160);
    rig.run(async {
        rig.volume.write(0, vec![ones(160 * 512)]).await.unwrap();
        let refused = rig.volume.resize(81_920 / 2, Shrinking::Refuse).await;
        assert_eq!(refused, Err(ResizeError::WouldShrink { from_bytes: 81_920, to_bytes: 40_960 }));
        for size_bytes in [0, 40_961, 512] {
            let refused = rig.volume.resize(size_bytes, Shrinking::DiscardBeyond).await;
            assert_eq!(refused, Err(ResizeError::NotWholeBlocks { size_bytes }));
        }
        assert_eq!(rig.volume.geometry().block_count, 160);

        rig.volume.resize(40_960, Shrinking::DiscardBeyond).await.unwrap();
        assert_eq!(rig.volume.geometry().block_count, 80);
        assert_eq!(rig.store.mapped_block_count(), 10);
        assert_eq!(rig.volume.read(79, 2).await, Err(DeviceError::OutOfRange));

        rig.volume.resize(81_920, Shrinking::Refuse).await.unwrap();
        let read = rig.volume.read(0, 160).await.unwrap().concat();
        assert!(read[..40_960].iter().all(|byte| *byte == 1));
        assert!(read[40_960..].iter().all(|byte| *byte == 0), "cut off data came back");
    });
}

#[test]
fn what_a_failed_shrink_left_behind_never_shows() {
    let rig = Rig::new(2, 4096, 20);
    rig.run(async {
        rig.volume.write(0, vec![ones(20 * 4096)]).await.unwrap();
        rig.store.set_offline(true);
        let failed = rig.volume.resize(4096, Shrinking::DiscardBeyond).await;
        assert_eq!(failed, Err(ResizeError::Device(DeviceError::Offline)));
        rig.store.set_offline(false);
        assert_eq!(rig.store.mapped_block_count(), 20);
        assert_eq!(rig.volume.size_bytes(), 4096);
        rig.volume.resize(10 * 4096, Shrinking::Refuse).await.unwrap();
        assert_eq!(rig.store.mapped_block_count(), 1);
        rig.volume.resize(20 * 4096, Shrinking::Refuse).await.unwrap();
        let read = rig.volume.read(1, 19).await.unwrap().concat();
        assert!(read.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn growth_clears_what_an_unrecorded_shrink_left_beyond_the_end() {
    // The node stopped after a shrink was recorded and before its space was given back.
    let rig = Rig::new(3, 4096, 20);
    rig.run(async {
        rig.volume.write(0, vec![ones(20 * 4096)]).await.unwrap();
        rig.volume.close().await;
        let reopened = rig.reopen(10);
        reopened.resize(20 * 4096, Shrinking::Refuse).await.unwrap();
        let read = reopened.read(0, 20).await.unwrap().concat();
        assert!(read[..40_960].iter().all(|byte| *byte == 1));
        assert!(read[40_960..].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_shrink_waits_for_writes_beyond_the_new_end() {
    for seed in 0..100 {
        let rig = Rig::new(seed, 512, 160);
        rig.run(async {
            let write = rig.volume.write(70, vec![ones(20 * 512)]);
            let shrink = async {
                rig.world.sleep(Duration::from_micros(seed)).await;
                rig.volume.resize(40_960, Shrinking::DiscardBeyond).await
            };
            let (written, shrunk) = join(write, shrink).await;
            assert_eq!((written, shrunk), (Ok(()), Ok(())));
            assert_eq!(rig.store.mapped_block_count(), 2, "seed {seed}");
        });
    }
}

#[test]
fn an_abandoned_resize_keeps_its_lock_until_its_hole_is_durable() {
    for seed in 0..200 {
        let rig = Rig::new(seed, 512, 16);
        rig.run(async {
            rig.volume.write(0, vec![ones(16 * 512)]).await.unwrap();
            let shrink = Box::pin(rig.volume.resize(4096, Shrinking::DiscardBeyond));
            let pause = rig.world.sleep(Duration::from_micros(seed));
            let outcome = select(shrink, pause).await;
            let abandoned = matches!(&outcome, Either::Right(_));
            drop(outcome);
            rig.volume.resize(8192, Shrinking::Refuse).await.unwrap();
            rig.volume.write(9, vec![Bytes::from(vec![2; 512])]).await.unwrap();
            let read = rig.volume.read(8, 8).await.unwrap().concat();
            let neighbours_are_zero = || read[..512].iter().chain(&read[1024..]).all(|byte| *byte == 0);
            // Abandoned before it began to act, it has not shrunk anything.
            let untouched = abandoned && read[0] == 1;
            assert!(read[512..1024].iter().all(|byte| *byte == 2));
            assert!(untouched || neighbours_are_zero(), "seed {seed}");
        });
    }
}
