//! What a part proposes, and when: see the list in [`super`].

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;

use super::mutant::{self, Mutant};
use super::node::{NodeServices, Shared};
use super::part::{ForceRefused, Part};
use crate::base::runtime::Instant;
use crate::base::units::Version;
use crate::cluster::lease::StoreHealth;
use crate::cluster::role::Circumstances;
use crate::cluster::state::Command;
use crate::cluster::state::history::CommonPoint;
use crate::cluster::state::volume::{Transition, VolumeRecord, Watermark};
use crate::mirror::{Coverage, Requirement};
use crate::store::interface::{ChangeLog, SnapshotStore};

impl<S: SnapshotStore + ChangeLog + 'static> Part<S> {
    pub(super) async fn decide(self: &Rc<Self>, node: &Rc<Shared<S>>) {
        let now = self.runtime.now();
        let patience = node.services.patience;
        self.watch_peer(node, now);
        let is_waiting = self.proposed_at.get().is_some_and(|at| now.since(at) < patience.proposal);
        let record = self.record.borrow().clone();
        let own = &node.services.own;
        match node.services.surroundings.stores().0 {
            StoreHealth::Gone => return self.leave().await,
            // What it would begin could not be done, and what it would end might be the better half.
            StoreHealth::Stuck => return,
            StoreHealth::Well if is_waiting || !record.in_sync.contains(own) => return,
            StoreHealth::Well => {}
        }
        if self.role.borrow().serving().is_some() {
            return self.decide_as_primary(node, &record, now).await;
        }
        if node.replicas.stream_epoch(self.id) > record.epoch {
            // A newer epoch has begun, with the peer as primary; its record is on its way here.
            return;
        }
        let misses_peer = self.misses_peer(node, now);
        let transition = match record.primary == *own {
            _ if record.is_certified() && node.is_stopping(now) => None,
            is_primary if record.is_certified() => (is_primary || misses_peer).then_some(Transition::Start),
            true => Some(Transition::Restart),
            false => misses_peer.then_some(Transition::TakeOver),
        };
        let Some(transition) = transition else { return };
        // Who is in sync by the record, with a pool that is another one by now, leaves it to the peer.
        let is_whole = node.services.records.coverage(self.id) == Coverage::Whole;
        if is_whole || self.adopt_forced(node, &record).await {
            self.propose_to_serve(node, &record, transition).await;
        }
    }

    /// What an operator has forced is what the volume is from then on. A node that fell over before it had put that on
    /// record does so now, if its pool still is the one that was forced: it has what was kept.
    async fn adopt_forced(&self, node: &Rc<Shared<S>>, record: &VolumeRecord) -> bool {
        let NodeServices { own, records, .. } = &node.services;
        let is_forced = record.began_by == Some(Transition::Force) && record.primary == *own;
        let Some(kept) = record.forks.get(&record.epoch).filter(|_| is_forced) else { return false };
        let _turn = self.turn.lock().await;
        let Ok(held) = node.replicas.end(self.id).await else { return false };
        let has = records.coverage(self.id).least(held.latest);
        let is_same_pool = Version::from(*kept).is_covered_by(has) && held.latest > Version::default();
        is_same_pool && node.replicas.adopt(self.id).await
    }

    /// Serves no more in this life of the node: the local store takes nothing any more.
    async fn leave(&self) {
        if self.role.borrow().serving().is_none() && self.serving.borrow().is_none() {
            return;
        }
        let _turn = self.turn.lock().await;
        self.role.borrow_mut().stop();
        self.stop_serving().await;
    }

    async fn decide_as_primary(self: &Rc<Self>, node: &Rc<Shared<S>>, record: &VolumeRecord, now: Instant) {
        let patience = node.services.patience;
        let Some(replica) = self.replica(node, now) else {
            // It could not be opened in this epoch: it is tried again in another one.
            self.proposed_at.set(Some(now));
            return self.role.borrow_mut().stop();
        };
        let has_failed = self.serving.borrow().as_ref().is_some_and(|serving| serving.mirror.is_closed());
        if has_failed {
            // The local store takes nothing any more: the peer has to go on.
            let _turn = self.turn.lock().await;
            self.role.borrow_mut().stop();
            return self.stop_serving().await;
        }
        let is_both = record.in_sync.len() == 2;
        if self.role.borrow().is_undecided() {
            // The outcome does not show: a newer epoch does away with it.
            let reason = "what came of an earlier decision was not seen";
            return self.propose_as_primary(node, Transition::Restart, Circumstances::default(), reason);
        }
        let is_on_both = is_both && matches!(replica, Replica::Whole | Replica::Level);
        let on_both_since = self.on_both_since.get().unwrap_or(now);
        self.on_both_since.set(is_on_both.then_some(on_both_since));
        if is_on_both {
            if node.is_stopping(now) {
                return self.drain_and_leave(node, Transition::Stop, "the cluster is switched off").await;
            }
            if let Some(reason) = self.better_elsewhere(node, record, now.since(on_both_since)) {
                self.hand_over(&reason);
            }
            if let Some(reason) = self.why_hand_over(node, now) {
                return self.drain_and_leave(node, Transition::Move, &reason).await;
            }
        }
        let is_silent = matches!(replica, Replica::Silent(since) if since >= patience.replica);
        if is_both && (is_silent || matches!(replica, Replica::Lost | Replica::Behind)) {
            let reason = self.why_without(node, replica);
            if let Some(serving) =
                self.serving.borrow().as_ref().filter(|_| mutant::is(Mutant::ShrinkOnProposal))
            {
                serving.mirror.require(Requirement::Local);
            }
            return self.propose_as_primary(node, Transition::Shrink, Circumstances::default(), &reason);
        }
        match replica {
            Replica::Silent(since) if since >= patience.replica => self.begin_anew(node, now),
            Replica::Behind if !is_both => self.bring_up_to_date(record),
            Replica::Lost | Replica::Silent(_) => self.try_again(node, now),
            Replica::Whole | Replica::Level if !is_both => {
                // From the proposal on acknowledgements need both.
                let serving = self.serving.borrow();
                if let Some(serving) = serving.as_ref().filter(|_| !mutant::is(Mutant::ExpandWithoutBoth)) {
                    serving.mirror.require(Requirement::Both);
                }
                let copied =
                    serving.as_ref().map_or(0, |serving| serving.resync.progress().copied_in_all_blocks);
                drop(serving);
                let circumstances = Circumstances { is_peer_complete: true, ..Circumstances::default() };
                let peer = &node.services.peer;
                let reason = format!("node {peer} has everything again; {copied} blocks were copied to it");
                self.propose_as_primary(node, Transition::Expand, circumstances, &reason);
            }
            _ => {}
        }
    }

    /// How the replica is, as far as this primary knows.
    fn replica(&self, node: &Rc<Shared<S>>, now: Instant) -> Option<Replica> {
        let serving = self.serving.borrow();
        let serving = serving.as_ref()?;
        let since = |since: Instant| now.since(since.max(serving.since));
        Some(if node.services.surroundings.stores().1 == StoreHealth::Gone {
            Replica::Lost
        } else if let Some(refused) = &serving.refused {
            if refused.last_word.is_some() { Replica::Lost } else { Replica::Silent(since(refused.at)) }
        } else if let Some(unlinked) = node.unlinked_since() {
            Replica::Silent(since(unlinked))
        } else if serving.mirror.behind().is_some() {
            Replica::Behind
        } else if serving.mirror.is_replica_whole() {
            // Under load there is always something that the replica has not answered yet.
            match serving.mirror.silent_since().map(since) {
                Some(silent) if silent >= node.services.patience.replica => Replica::Silent(silent),
                _ if serving.mirror.is_level() => Replica::Level,
                _ => Replica::Whole,
            }
        } else {
            Replica::Silent(serving.mirror.silent_since().map_or_else(Default::default, since))
        })
    }

    /// Why the volume is to be handed over now, when it is. Where that fails, it is tried again as long as whoever
    /// asked for it waits: hosts are not to be surprised by it much later. Between two tries they get on.
    fn why_hand_over(&self, node: &Rc<Shared<S>>, now: Instant) -> Option<String> {
        let patience = node.services.patience;
        let mut hand_over = self.hand_over.borrow_mut();
        hand_over.take_if(|wanted| now.since(wanted.asked_at) >= patience.hand_over);
        let was_just_tried = |tried: Instant| now.since(tried) < patience.replica * 2;
        let wanted = hand_over.as_mut().filter(|wanted| !wanted.tried_at.is_some_and(was_just_tried))?;
        wanted.tried_at = Some(now);
        Some(wanted.reason.clone())
    }

    /// Why a volume should be on the other node, where nothing speaks against that.
    fn better_elsewhere(
        &self,
        node: &Rc<Shared<S>>,
        record: &VolumeRecord,
        on_both_for: Duration,
    ) -> Option<String> {
        let NodeServices { own, peer, patience, .. } = &node.services;
        match node.in_maintenance.get() {
            (true, false) if on_both_for >= patience.proposal => {
                Some(format!("node {own} is in maintenance"))
            }
            (false, false) if record.home.as_ref() == Some(peer) && on_both_for >= patience.home => {
                Some(format!("node {peer} is its home"))
            }
            _ => None,
        }
    }

    /// Why the primary goes on without its replica, for people.
    fn why_without(&self, node: &Rc<Shared<S>>, replica: Replica) -> String {
        let NodeServices { peer, surroundings, .. } = &node.services;
        let serving = self.serving.borrow();
        let refused = serving.as_ref().and_then(|serving| serving.refused.as_ref());
        match (replica, refused.and_then(|refused| refused.last_word.as_ref())) {
            (_, Some(last_word)) => format!("node {peer}: {last_word}"),
            (Replica::Silent(since), _) if node.link().is_some() => {
                format!("node {peer} has owed an answer for {:.1} s", since.as_secs_f64())
            }
            (Replica::Behind, _) => format!("node {peer} lacks writes that it is not sent any more"),
            _ => format!("node {peer} {}", surroundings.peer_trouble()),
        }
    }

    /// Proposes what this node, which does not serve, would begin to serve: nothing is taken of the present
    /// epoch from here on, so what there is stays what it is.
    async fn propose_to_serve(&self, node: &Rc<Shared<S>>, record: &VolumeRecord, transition: Transition) {
        let reason = match transition {
            Transition::TakeOver => {
                format!("node {} {}", node.services.peer, node.services.surroundings.peer_trouble())
            }
            Transition::Start => format!("node {} is there again after a stop on purpose", node.services.own),
            _ => format!("node {} begins to serve it again", node.services.own),
        };
        let held = if mutant::is(Mutant::TakeOverWithoutPromise) && transition == Transition::TakeOver {
            self.held()
        } else {
            if !self.promise(record.epoch + 1).await {
                return;
            }
            let Ok(held) = node.replicas.end(self.id).await else { return };
            held
        };
        if self.record.borrow().epoch != record.epoch {
            return;
        }
        let circumstances = Circumstances::default();
        let Some(lost) = self.lost_tail(record, held) else {
            let behind = held.whole_through.sequence + 1;
            // By the certificate both have everything before the epoch that it began.
            let least = if transition == Transition::Start { record.latest_start() } else { 0 };
            return self.propose(node, transition, circumstances, behind.max(least), &reason);
        };
        self.complain(node, record, &lost);
        let gives_way = matches!(transition, Transition::Restart | Transition::Start)
            && record.primary == node.services.own;
        if gives_way && record.in_sync.len() == 2 {
            // The other member may have it all, and is not asked to take it from here.
            let reason = format!("node {}: {lost}", node.services.own);
            let first = record.latest_start().max(record.watermark.sequence + 1);
            self.propose(node, Transition::Yield, circumstances, first, &reason);
        } else {
            // It is looked at again when something has changed.
            self.proposed_at.set(Some(self.runtime.now()));
        }
    }

    /// Makes this node primary as an operator wants.
    pub(super) async fn force(&self, node: &Rc<Shared<S>>) -> Result<(), ForceRefused> {
        let record = self.record.borrow().clone();
        let NodeServices { own, surroundings, records, .. } = &node.services;
        if record.primary != *own && surroundings.is_peer_alive() {
            return Err(ForceRefused::PeerThere);
        }
        if self.serving.borrow().is_some() {
            return Err(ForceRefused::NotNeeded);
        }
        if !self.promise(record.epoch + 1).await {
            return Err(ForceRefused::Store);
        }
        let held = node.replicas.end(self.id).await.map_err(|_| ForceRefused::Store)?;
        let kept = records.coverage(self.id).least(held.whole_through);
        let has_lost = self.lost_tail(&record, held).is_some();
        if record.in_sync.contains(own) && !has_lost {
            return Err(ForceRefused::NotNeeded);
        }
        let proposed =
            self.role.borrow_mut().propose(Transition::Force, &node.services.peer, Circumstances::default());
        let proposed = proposed.filter(|_| self.record.borrow().epoch == record.epoch);
        let Some(proposed) = proposed else { return Err(ForceRefused::NotNeeded) };
        self.proposed_at.set(Some(self.runtime.now()));
        surroundings.propose(Command::ForcePrimary {
            volume: self.id,
            expected_epoch: proposed.expected_epoch,
            primary: proposed.primary,
            kept_through: kept.into(),
            forced_unix_ms: 0,
        });
        Ok(())
    }

    /// Proposes what this node goes on from as primary. The new epoch begins behind what is durable here, not behind what
    /// is on its way: a primary that crashes next has lost that, while a replica may have it, and the history of epochs
    /// must not call it common.
    fn propose_as_primary(
        &self,
        node: &Rc<Shared<S>>,
        transition: Transition,
        circumstances: Circumstances,
        reason: &str,
    ) {
        if self.serving.borrow().is_none() {
            return;
        }
        let durable = (node.services.newest)(self.id);
        let first = self.record.borrow().latest_start().max(durable.sequence + 1);
        self.propose(node, transition, circumstances, first, reason);
    }

    fn propose(
        &self,
        node: &Rc<Shared<S>>,
        transition: Transition,
        circumstances: Circumstances,
        first_sequence: u64,
        reason: &str,
    ) {
        let proposed = self.role.borrow_mut().propose(transition, &node.services.peer, circumstances);
        let Some(proposed) = proposed else { return };
        self.proposed_at.set(Some(self.runtime.now()));
        node.services.surroundings.propose(Command::BeginEpoch {
            volume: self.id,
            expected_epoch: proposed.expected_epoch,
            transition,
            primary: proposed.primary,
            in_sync: proposed.in_sync,
            first_sequence,
            reason: reason.to_owned(),
        });
        self.look_again();
    }

    /// Starts a resync, unless one is under way.
    fn bring_up_to_date(self: &Rc<Self>, record: &VolumeRecord) {
        let (resync, is_resyncing, joiner) = {
            let serving = self.serving.borrow();
            let Some(serving) = serving.as_ref().filter(|serving| !serving.is_resyncing.get()) else {
                return;
            };
            let Some(joiner) = serving.mirror.join() else { return };
            (serving.resync.clone(), serving.is_resyncing.clone(), joiner)
        };
        is_resyncing.set(true);
        let (part, record) = (self.clone(), record.clone());
        self.runtime.spawn(Box::pin(async move {
            let outcome = resync.run(&joiner, |newest| common_point(&record, newest)).await;
            is_resyncing.set(false);
            if let (Err(error), Some(node)) = (outcome, part.node.upgrade()) {
                let message =
                    format!("bringing the replica of volume {} up to date stopped: {error}", record.name);
                node.services.surroundings.event(&record, message);
            }
            part.changed.notify();
        }));
    }

    /// Begins a new stream to a replica that had refused the last one, after a while.
    fn try_again(&self, node: &Rc<Shared<S>>, now: Instant) {
        let (Some(link), Some(serving)) = (node.link(), &mut *self.serving.borrow_mut()) else { return };
        let was_just_tried = now.since(serving.tried_at) < node.services.patience.proposal;
        if !serving.mirror.is_connected() && !was_just_tried {
            serving.tried_at = now;
            serving.mirror.connected(link);
        }
    }

    /// Begins another stream to a replica that owes an answer in the present one.
    fn begin_anew(&self, node: &Rc<Shared<S>>, now: Instant) {
        if let Some(serving) = &*self.serving.borrow() {
            let was_just_tried = now.since(serving.tried_at) < node.services.patience.replica;
            if was_just_tried {
                return;
            }
            serving.mirror.disconnected();
        }
        self.try_again(node, now);
    }

    /// Ends service with nothing in flight, and proposes the peer as primary, or the certificate that both are equal.
    async fn drain_and_leave(&self, node: &Rc<Shared<S>>, transition: Transition, reason: &str) {
        let _turn = self.turn.lock().await;
        let drained = match &mut *self.serving.borrow_mut() {
            Some(serving) => {
                serving.is_attached = false;
                (serving.volume.clone(), serving.mirror.clone())
            }
            None => return,
        };
        let (volume, mirror) = drained;
        let drain = async {
            node.services.hosts.detach(self.id).await;
            volume.close().await;
        };
        // Without an answer of the replica it would take for ever: then what is in flight fails.
        let patience = self.runtime.sleep(node.services.patience.replica);
        if !mutant::is(Mutant::HandOverUndrained) {
            select(Box::pin(drain), patience).await;
        }
        let is_drained = volume.in_flight_count() == 0 && mirror.is_level();
        if is_drained || mutant::is(Mutant::HandOverUndrained) {
            let circumstances = Circumstances { is_drained: true, ..Circumstances::default() };
            if transition == Transition::Stop {
                // So that disks which do not keep it are found out, whichever node starts.
                let watermarks = BTreeMap::from([(self.id, Watermark::from(mirror.acknowledged()))]);
                node.services.surroundings.propose(Command::RecordWatermarks { watermarks });
            }
            self.propose_as_primary(node, transition, circumstances, reason);
        } else {
            // The replica went away meanwhile: the volume is opened again in an epoch of its own.
            self.role.borrow_mut().stop();
        }
        // Hosts who were not let out in time are now: what they wait for fails.
        if let Some(serving) = &mut *self.serving.borrow_mut() {
            serving.is_attached = !is_drained;
        }
        self.stop_serving().await;
    }

    fn watch_peer(&self, node: &Rc<Shared<S>>, now: Instant) {
        let surroundings = &node.services.surroundings;
        let is_alive = surroundings.is_peer_alive() && surroundings.stores().1 == StoreHealth::Well;
        let since = self.peer_missed_since.get().unwrap_or(now);
        self.peer_missed_since.set((!is_alive).then_some(since));
    }

    fn misses_peer(&self, node: &Rc<Shared<S>>, now: Instant) -> bool {
        let patience = match node.services.surroundings.stores().1 {
            // It has said so itself.
            StoreHealth::Gone => Duration::ZERO,
            _ => node.services.patience.primary,
        };
        self.peer_missed_since.get().is_some_and(|since| now.since(since) >= patience)
    }
}

/// How the replica is, for the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replica {
    /// It has said that it cannot go on.
    Lost,
    /// It has owed an answer for so long.
    Silent(Duration),
    /// It lacks what is not in flight any more.
    Behind,
    /// It has everything but what is in flight.
    Whole,
    /// It has everything.
    Level,
}

/// Through which version a replica that has everything through `newest` has the same as the volume's history.
fn common_point(record: &VolumeRecord, newest: Version) -> Version {
    match record.common_point(newest.into()) {
        _ if mutant::is(Mutant::CommonPointIgnored) => newest,
        CommonPoint::Everything => newest,
        CommonPoint::Through(kept) => kept.into(),
        CommonPoint::Unknown => Version::default(),
    }
}
