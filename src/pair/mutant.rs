//! Seeded bugs of the pair's driver, for proof that its random world finds such bugs. In no product: outside the
//! crate's own tests [`is`] is the constant `false`.

use crate::base::mutant::seeded_bugs;

seeded_bugs! {
    /// A mistake that a driver like this one could make.
    pub enum Mutant {
        /// A replica takes over without a promise, and goes on taking what the old primary sends.
        TakeOverWithoutPromise,
        /// Promises are kept in memory.
        PromiseNotSaved,
        /// Hosts are let in before the peer has what was in flight.
        AttachUnsettled,
        /// A restarted primary with both in the set acknowledges alone.
        BeginAlone,
        /// The larger set is proposed while acknowledgements need one.
        ExpandWithoutBoth,
        /// The smaller set counts before it is committed.
        ShrinkOnProposal,
        /// A primary goes on into the next epoch as if it were alone.
        GoOnAlone,
        /// Reads do not ask for the right to serve.
        ReadWithoutPermit,
        /// A primary without a lease serves.
        LeaseIgnored,
        /// A lease counts before the part has turned to the record for which it is.
        LeaseForNewerRecord,
        /// A deposed primary does not end its service.
        ServeAfterFollow,
        /// What a deposed primary has in flight is not waited for.
        NoDrain,
        /// A volume is handed over with writes in flight.
        HandOverUndrained,
        /// What a returning replica alone has counts as common.
        CommonPointIgnored,
        /// Holes are forgotten before the peer has them.
        SettledTooEarly,
    }
}
