//! What a run is about: drawn from its seed.

use std::rc::Rc;
use std::time::Duration;

use crate::array::Slot;
use crate::disk::{DiskErrorKind, Operation};
use crate::sim::fault::{Effect, Fault, Frequency};
use crate::sim::medium::SimulatedMedium;
use crate::sim::random::Random;
use crate::store::map::lsm::TreeOptions;

/// What a run puts the pool through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Theme {
    /// Everything that may happen to one disk, and crashes: no host ever sees an error.
    OneFault,
    /// Crashes only; parity is checked on the media at the end.
    NoFault,
    /// Hosts that want more than there is: only writes that need new space may fail.
    FullPool,
    /// Hosts that only write, and little: no disk is read.
    WritesOnly,
    /// The file system under the disks is full for a while: no disk is broken by that.
    NoSpaceUnderDisks,
    /// All disks vanish at once and come back: no disk is marked as failed.
    AllDisksGone,
    /// Two disks go wrong: errors are allowed, wrong data never is.
    TwoFaults,
    /// An acknowledged batch is destroyed beyond parity: the pool must refuse to open.
    LostBatch,
    /// Disks die and are replaced, by people and by spares; they are rebuilt, and all are scrubbed.
    Healing,
}

impl Theme {
    /// Every theme.
    pub const ALL: [Self; 9] = [
        Self::OneFault,
        Self::NoFault,
        Self::FullPool,
        Self::WritesOnly,
        Self::NoSpaceUnderDisks,
        Self::AllDisksGone,
        Self::TwoFaults,
        Self::LostBatch,
        Self::Healing,
    ];

    /// The theme of a seed's run: most runs are of one fault.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        match seed % 16 {
            1 => Self::NoFault,
            3 | 12 => Self::FullPool,
            5 => Self::WritesOnly,
            7 => Self::NoSpaceUnderDisks,
            9 => Self::AllDisksGone,
            11 => Self::TwoFaults,
            13 => Self::LostBatch,
            2 | 15 => Self::Healing,
            _ => Self::OneFault,
        }
    }

    /// Whether disks may go wrong.
    pub(super) fn has_faults(self) -> bool {
        matches!(self, Self::OneFault | Self::TwoFaults)
    }
}

/// The choices of one run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) theme: Theme,
    pub(super) disks: usize,
    pub(super) segments: u64,
    /// Blocks of each of the [`super::VOLUMES`] lasting volumes.
    pub(super) blocks: u64,
    /// Distance of these blocks: sparse volumes have a map that is large for their data.
    pub(super) stride: u64,
    pub(super) lives: u32,
    /// Longest life.
    pub(super) lifetime: Duration,
    /// The disks that faults strike.
    pub(super) victims: Vec<usize>,
    /// Cut the power now and then while formatting and opening.
    pub(super) interrupts: bool,
    /// Cut the power right after a superblock was written, now and then.
    pub(super) aims: bool,
    /// Create and drop further volumes.
    pub(super) tenants: bool,
    /// A host writes blocks that look like batch headers.
    pub(super) forges: bool,
    /// Tell the disks which segments are free: they forget them at once.
    pub(super) discards: bool,
    /// There is room for what tenants write.
    pub(super) has_room_for_tenants: bool,
    /// Take, use and drop snapshots.
    pub(super) snapshots: bool,
    /// Roll volumes back to them.
    pub(super) rolls_back: bool,
    /// Take disks that still work out of service for a spare, and read them meanwhile.
    pub(super) retires: bool,
    /// The map keeps its tables on the disks: small ones, so that many are merged.
    pub(super) tree: Option<TreeOptions>,
    /// Some reads take long enough for the cleaner to come round.
    pub(super) slow_reads: bool,
}

impl Plan {
    pub(super) fn new(theme: Theme, random: &Random) -> Self {
        let disks = match (theme, random.below(8)) {
            (Theme::TwoFaults | Theme::Healing, _) => 3 + random.index(3),
            (_, 0) => 1 + random.index(2),
            (_, 1) => 6,
            _ => 3 + random.index(3),
        };
        let segments = 40 + random.below(24);
        let columns = (disks as u64 - 1).max(1);
        let offered = (segments - 14) * super::SEGMENT_ROWS * columns * 84 / 100;
        // In tenths of what the pool offers.
        let tenths = match theme {
            Theme::FullPool => 11 + random.below(6),
            Theme::WritesOnly => 1,
            Theme::OneFault | Theme::Healing => 1 + random.below(10),
            // What tenants write comes on top.
            _ => 1 + random.below(8),
        };
        let aims = random.below(4) == 0;
        // Many short lives: more recoveries than the superblock has room for.
        let stutters = random.below(12) == 0;
        let victim = random.index(disks);
        let mut victims = match (theme, disks) {
            (_, 1) => vec![],
            (theme, _) if theme.has_faults() => vec![victim],
            _ => vec![],
        };
        if theme == Theme::TwoFaults {
            victims.push((victim + 1 + random.index(disks - 1)) % disks);
        }
        Self {
            theme,
            disks,
            segments,
            blocks: (offered * tenths / 10 / super::VOLUMES).max(8),
            stride: if random.below(5) == 0 { 1 + random.below(100) } else { 1 },
            lives: if stutters { 20 } else { 2 + random.below(5) as u32 },
            lifetime: Duration::from_micros(if stutters { 20_000 } else { 400_000 }),
            victims,
            interrupts: aims || random.below(4) == 0,
            aims,
            forges: theme != Theme::WritesOnly && random.below(6) == 0,
            discards: random.coin(),
            slow_reads: theme != Theme::WritesOnly && random.below(5) == 0,
            tenants: theme != Theme::WritesOnly && tenths < 8 && random.coin(),
            snapshots: theme != Theme::WritesOnly && random.coin(),
            has_room_for_tenants: theme != Theme::WritesOnly && tenths < 8,
            rolls_back: false,
            retires: false,
            tree: None,
        }
    }
}

/// A tree that flushes and merges all the time, in segments for it.
pub(super) fn small_tree(plan: &mut Plan, random: &Random) {
    plan.segments = (plan.segments - 14) * 84 / 78 + 14 + 49;
    plan.tree = Some(TreeOptions {
        memtable_statements: 16 + random.index(400),
        block_rows: [64, 2048][random.index(2)],
        // At times a merge takes several turns.
        table_blocks: [12, 1 << 16][random.index(2)],
        tier_runs: 2 + random.index(2),
        tiers: 1 + random.below(2) as u8,
        last_tier_runs: 2 + random.index(3),
        bottom_part: 2 + random.below(6),
        cache_bytes: random.index(20) << 12,
        index_bytes: random.index(20) << 10,
        mixed_regions: 16 + random.index(4),
    });
}

/// Lets something go wrong with one disk, for the life that begins. `beyond` is for disks that are
/// not the only ones: what no store could notice is left out.
pub(super) fn inject_fault(medium: &SimulatedMedium, beyond: bool, random: &Random) {
    medium.clear_faults();
    let chance = Frequency::Chance { per_million: 3000 };
    let fault = |operation, effect| Fault { operation, range: None, frequency: chance, effect };
    let anywhere = random.below(medium.size_bytes() / 4096) * 4096;
    let io = Effect::Fail(DiskErrorKind::Io(libc::EIO));
    match random.below(if beyond { 7 } else { 11 }) {
        0 => medium.inject(fault(Operation::Write, io)),
        1 => medium.inject(fault(Operation::Flush, io)),
        2 => medium.inject(fault(Operation::Read, io)),
        3 => medium.inject(fault(Operation::Write, Effect::Stall(Duration::from_secs(30)))),
        4 => (0..[4, 64][random.index(2)]).for_each(|_| {
            let at = random.below(medium.size_bytes() / 512) * 512;
            if random.coin() { medium.rot(at..at + 512) } else { medium.make_unreadable(at..at + 512) }
        }),
        5 => medium.inject(fault(Operation::Read, Effect::Stall(Duration::from_millis(300)))),
        6 => {}
        7 => medium.inject(fault(Operation::Write, Effect::Phantom)),
        8 => medium.inject(fault(Operation::Flush, Effect::Phantom)),
        9 => medium.inject(fault(Operation::Write, Effect::Misdirect { to: anywhere })),
        _ => {}
    }
}

/// Some reads of a disk take until the cleaner has been round; that is no fault.
pub(super) fn slow_reads_down(medium: &SimulatedMedium, random: &Random) {
    let stall = Duration::from_millis(20 + random.below(300));
    let frequency = Frequency::Chance { per_million: 15_000 };
    medium.inject(Fault { operation: Operation::Read, range: None, frequency, effect: Effect::Stall(stall) });
}

/// Rot at equal places of several disks: parity can't give back what was there.
pub(super) fn rot_rows(media: &[&Rc<SimulatedMedium>], random: &Random) {
    for _ in 0..32 {
        let at = random.below(media[0].size_bytes() / 4096) * 4096;
        media.iter().for_each(|medium| medium.rot(at..at + 4096));
    }
}

/// A disk's slot when slots were given in the order of the media.
pub(super) fn slot(disk: usize) -> Slot {
    Slot(u8::try_from(disk).expect("a pool has at most 24 disks"))
}
