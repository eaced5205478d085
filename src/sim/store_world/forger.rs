//! A hostile host: it knows the format, the pool and where the log is written, and writes blocks that
//! are batch headers in every respect but the pool's secret key. They may come to lie where a
//! recovery looks for headers, and must not count.

use std::rc::Rc;

use super::LOG_KEY;
use super::client::Site;
use crate::array::MemberSet;
use crate::array::superblock::LogKey;
use crate::base::buffer::AlignedBuf;
use crate::base::checksum::Crc32;
use crate::base::units::{BlockAddress, Version, VolumeId};
use crate::sim::random::Random;
use crate::store::Store;
use crate::store::batch::{BatchHeader, BatchKind, SegmentUse};
use crate::store::interface::{BlockStore, BlockWrite};
use crate::store::segments::SegmentState;

/// The volume that the forger writes to. No oracle follows its contents.
pub(super) const VOLUME: u32 = super::VOLUMES as u32;

/// Behind the blocks that the oracle follows.
const FIRST_BLOCK: u64 = 1 << 30;

/// Writes until it is refused.
pub(super) async fn forge(site: Rc<Site>, store: Store, random: Random, epoch: u32) {
    for sequence in 1..200 {
        let segments = store.segments();
        let open: Vec<_> = segments.iter().filter(|(_, found)| found.state == SegmentState::Open).collect();
        let (segment, found) = *open[random.index(open.len())];
        let place = SegmentUse { segment, generation: found.generation };
        let header = forged(&store, place, found.members, &random);
        let data = AlignedBuf::copy_of(&header.encode().0).freeze();
        let (address, checksum) = (BlockAddress(FIRST_BLOCK + random.below(8)), Crc32::of(&data));
        let writes = vec![BlockWrite::Data { address, data, checksum }];
        let version = Version { epoch, sequence };
        site.pending_blocks.set(site.pending_blocks.get() + 1);
        let done = store.append(VolumeId(VOLUME), version, writes).await;
        site.pending_blocks.set(site.pending_blocks.get() - 1);
        if done.is_err() {
            return;
        }
    }
}

fn forged(store: &Store, place: SegmentUse, members: MemberSet, random: &Random) -> BatchHeader {
    let guessed = LogKey(std::array::from_fn(|_| random.below(256) as u8));
    assert_ne!(guessed, LOG_KEY, "nobody guesses 128 bits");
    BatchHeader {
        kind: BatchKind::Log,
        pool: store.array().pool(),
        key: guessed,
        incarnation: 1 + random.below(30),
        number: 1 << 40,
        place,
        first_row: random.below(super::SEGMENT_ROWS) as u32,
        height: 1,
        members,
        previous: Crc32(0),
        acknowledged_through: 1 << 39,
        heads: Default::default(),
        entries: Vec::new(),
    }
}
