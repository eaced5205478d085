//! Rules of the protocol, each of which can be broken, and how each broken one is caught.

use super::rules::Scope;

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Acknowledge when the write is durable locally.
    AcknowledgeLocally,
    /// Acknowledge alone as soon as the smaller set is proposed.
    AcknowledgeOnProposal,
    /// Acknowledge alone while a larger set is proposed.
    AcknowledgeAloneWhileExpanding,
    /// Take a proposal of a larger set for failed while it may still commit.
    GuessOutcome,
    /// A node outside the in-sync set proposes itself.
    PromoteStale,
    /// A change commits whatever the epoch is.
    NoCompareAndSwap,
    /// Depose without waiting for the lease.
    NoLeaseWait,
    /// Serve without a lease.
    ServeWithoutLease,
    /// Count the lease from the arrival of the grant.
    LeaseFromArrival,
    /// Voters wait no longer than the holder's nominal time.
    NoDriftMargin,
    /// The holder's clock stops while the machine is suspended.
    ClockStopsInSuspend,
    /// A restarted voter does not wait for leases that it may have confirmed.
    RestartedVoterDoesNotWait,
    /// A late give-back releases a lease of a newer epoch.
    GiveBackOfAnyEpoch,
    /// Go on serving after the lease was given back.
    ServeAfterGiveBack,
    /// Serve as the sole member although a larger set is proposed.
    SoleServerWhileProposing,
    /// The promised epoch does not survive a restart.
    VolatilePromise,
    /// Take data of older epochs.
    NoFence,
    /// Own writes of an older epoch still reach the disk after newer data did.
    NoLocalDrain,
    /// A restarted primary goes on in its old epoch.
    ResumeOldEpoch,
    /// Reads return what is not durable everywhere yet.
    ReadInFlight,
    /// A take-over keeps the old primary in the set and settles nothing.
    KeepSetOnTakeOver,
    /// A restart with both in sync settles nothing.
    RestartUnsettled,
    /// A certificate of a stop on purpose is valid for longer than one epoch.
    CertificateKept,
    /// Move while writes are in flight.
    MoveUndrained,
    /// A replica keeps whichever version has the newer tag.
    NewestTagWins,
    /// A write acknowledged without the joiner does not undo the copy of its block.
    CopyNotInvalidated,
    /// The replica takes messages in any order.
    AcceptReordered,
    /// Resync reads a block past a mirrored write in flight.
    ResyncPassesWrite,
    /// An acknowledgement by the peer counts for later epochs too.
    OldAckCounts,
    /// An operator's force without fencing the primary.
    ForceWithoutFence,
    /// A member serves, or takes over, although it has less than the watermark says.
    LostTailServed,
    /// A replica that lacks what is not in flight any more is sent to while it is in the set.
    BehindReplicaFed,
    /// A node that did not live through it serves what was left to it.
    YieldResumed,
    /// What an earlier life of the node has proposed, in the same words, counts as proposed by the present one.
    ForeignEpochTaken,
    /// What was handed to an earlier life of the node is served once more.
    HandedOverTwice,
}

use Mutant::*;

/// What is enough for most: one block, two writes, a crash, three epochs.
pub const SMALL: Scope = Scope {
    blocks: 1,
    epochs: 3,
    writes: 2,
    crashes: 1,
    forces: 0,
    losses: 0,
    messages: 2,
    proposals: 1,
    is_clocked: false,
    has_plans: false,
    has_old_views: false,
};
const CLOCKED: Scope = Scope { is_clocked: true, ..SMALL };
const PLANNED: Scope = Scope { has_plans: true, proposals: 2, writes: 1, ..SMALL };

/// Disks that lie are found out.
pub const LOSING: Scope = Scope { losses: 1, ..SMALL };

/// What a restarted node knows of Raft may be old.
pub const BEHIND: Scope = Scope { has_old_views: true, ..SMALL };

/// Every mutant, the invariant that the shortest run breaks, and a scope in which it does.
pub const ALL: &[(Mutant, &str, Scope)] = &[
    (AcknowledgeLocally, "I2", SMALL),
    (AcknowledgeOnProposal, "I2", SMALL),
    (AcknowledgeAloneWhileExpanding, "I1", SMALL),
    (GuessOutcome, "I1", SMALL),
    (PromoteStale, "I3", SMALL),
    (NoCompareAndSwap, "I4", SMALL),
    (NoLeaseWait, "I5", SMALL),
    (ServeWithoutLease, "I5", SMALL),
    (LeaseFromArrival, "I5", CLOCKED),
    (NoDriftMargin, "I5", CLOCKED),
    (ClockStopsInSuspend, "I5", CLOCKED),
    (RestartedVoterDoesNotWait, "I5", SMALL),
    (GiveBackOfAnyEpoch, "I5", PLANNED),
    (ServeAfterGiveBack, "I5", Scope { writes: 0, ..PLANNED }),
    (SoleServerWhileProposing, "I5", Scope { epochs: 4, ..SMALL }),
    (VolatilePromise, "I6", SMALL),
    (NoFence, "I6", SMALL),
    (NoLocalDrain, "I7", SMALL),
    (ResumeOldEpoch, "I8", SMALL),
    (ReadInFlight, "I9", SMALL),
    (KeepSetOnTakeOver, "I10", SMALL),
    (RestartUnsettled, "I10", SMALL),
    (CertificateKept, "I10", Scope { epochs: 4, proposals: 1, ..PLANNED }),
    (MoveUndrained, "I10", PLANNED),
    (NewestTagWins, "I11", SMALL),
    (CopyNotInvalidated, "I12", SMALL),
    (AcceptReordered, "I10", Scope { crashes: 0, ..SMALL }),
    (ResyncPassesWrite, "I12", Scope { crashes: 0, messages: 3, ..SMALL }),
    (OldAckCounts, "I2", Scope { crashes: 0, ..SMALL }),
    (ForceWithoutFence, "I5", Scope { crashes: 0, forces: 1, ..SMALL }),
    (LostTailServed, "I14", LOSING),
    (BehindReplicaFed, "I14", Scope { blocks: 2, ..LOSING }),
    (YieldResumed, "I8", Scope { writes: 1, crashes: 2, ..LOSING }),
    (ForeignEpochTaken, "I8", BEHIND),
    (HandedOverTwice, "I8", Scope { has_plans: true, proposals: 2, writes: 1, ..BEHIND }),
];
