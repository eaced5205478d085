//! Seeded bugs of the mirror, for proof that its tests find such bugs. In no product: outside the crate's
//! own tests [`is`] is the constant `false`.

/// A mistake that a mirror like this one could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A chain goes on though the replica lacks what was let go.
    GapTaken,
    /// What was confirmed in an older epoch counts in the next one.
    OldConfirmationCounts,
    /// An append completes before the local store has it.
    LocalNotAwaited,
    /// A read does not wait for what it may have seen.
    ReadInFlight,
    /// Answers of an older stream count.
    OldStreamAnswers,
    /// Writes of an older stream are taken.
    OldStreamWrites,
    /// Appends are answered before they are durable.
    AnswerBeforeDurable,
    /// The promise is not checked.
    NoFence,
    /// Blocks are copied without their lock.
    CopyPassesWrite,
    /// Blocks that only the replica has changed are not copied.
    ReplicaChangesKept,
    /// Versions beyond the common point are told by their epoch first.
    CommonPointByOrder,
    /// The cursor counts copies that have not been answered.
    CursorBeforeCopies,
    /// A replica with a gap says that it has everything.
    JoinNotRecorded,
    /// Blocks without data are not copied.
    HolesNotCopied,
    /// What was mirrored since another stream began counts as mirrored in this one.
    MirroredInOlderStream,
    /// Stores forget holes as if there were no peer.
    HolesForgotten,
    /// The newest append that a store recovered counts as whole.
    TornAppendWhole,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::GapTaken,
        Self::OldConfirmationCounts,
        Self::LocalNotAwaited,
        Self::ReadInFlight,
        Self::OldStreamAnswers,
        Self::OldStreamWrites,
        Self::AnswerBeforeDurable,
        Self::NoFence,
        Self::CopyPassesWrite,
        Self::ReplicaChangesKept,
        Self::CommonPointByOrder,
        Self::CursorBeforeCopies,
        Self::JoinNotRecorded,
        Self::HolesNotCopied,
        Self::MirroredInOlderStream,
        Self::HolesForgotten,
        Self::TornAppendWhole,
    ];
}

/// Whether the present thread is to make this mistake.
#[cfg(test)]
pub fn is(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Whether the present thread is to make this mistake: no.
#[cfg(not(test))]
#[inline(always)]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}

/// Switches a mistake on for this thread, or off.
#[cfg(test)]
pub fn set(mutant: Option<Mutant>) {
    ACTIVE.set(mutant);
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}
