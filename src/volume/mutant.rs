//! Seeded bugs of volumes, for proof that the random lives of a cluster find such bugs. In no product: outside the crate's
//! own tests [`is`] is the constant `false`.

use crate::base::mutant::seeded_bugs;

seeded_bugs! {
    /// A mistake that a volume like this one could make.
    pub enum Mutant {
        /// A rollback leaves out what seems to have been written since.
        RestoreTrustsVersions,
        /// What a rollback puts back is written over what a host writes meanwhile.
        RestoreUnlocked,
        /// A rollback ends when a part of it is done.
        MarkDroppedEarly,
        /// Snapshots are taken in the middle of a rollback.
        SnapshotDuringRollback,
        /// Whoever begins to serve a volume does not go on with a rollback.
        RollbackForgotten,
    }
}
