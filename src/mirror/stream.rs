//! The primary's side of a stream: how it begins, what its answers mean, how it ends.
//!
//! Invariant: whatever names another stream than the present one changes nothing.

use std::rc::Rc;

use super::coverage::{Coverage, CoverageStep};
use super::joiner::{Joiner, Joining};
use super::message::{FromReplica, ReplicaFailure, StreamId, ToReplica};
use super::mutant::{self, Mutant};
use super::primary::{Mirror, MirrorEvent, ReplicaLink, Requirement, Shared};
use crate::base::runtime::Instant;
use crate::base::units::{Version, VolumeId};
use crate::store::interface::{BlockStore, SnapshotStore};

/// The present stream.
pub(super) enum Stream {
    None,
    /// The replica has not said yet where it is.
    Beginning {
        link: Rc<dyn ReplicaLink>,
        id: StreamId,
        since: Instant,
    },
    /// It is where the chain does not begin.
    Behind {
        link: Rc<dyn ReplicaLink>,
        id: StreamId,
        durable: Version,
        coverage: Coverage,
    },
    /// The chain is carried.
    Streaming {
        link: Rc<dyn ReplicaLink>,
        id: StreamId,
    },
}

impl Stream {
    /// The link and the stream's name, if it carries the chain.
    pub(super) fn carrying(&self) -> Option<(Rc<dyn ReplicaLink>, StreamId)> {
        match self {
            Self::Streaming { link, id } => Some((link.clone(), *id)),
            _ => None,
        }
    }

    pub(super) fn beginning_since(&self) -> Option<Instant> {
        match self {
            Self::Beginning { since, .. } => Some(*since),
            _ => None,
        }
    }

    fn id(&self) -> Option<StreamId> {
        match self {
            Self::None => None,
            Self::Beginning { id, .. } | Self::Behind { id, .. } | Self::Streaming { id, .. } => Some(*id),
        }
    }
}

impl<S: SnapshotStore + 'static> Mirror<S> {
    /// Lets a replica that is [`MirrorEvent::Behind`] take part: it gets what is in flight and what is
    /// appended from now on, and what the returned value brings. None when there is no such replica, or
    /// when appends need it: it has to be outside the in-sync set, since until the resync is complete it
    /// does not have a state that anybody could go on from.
    pub fn join(&self) -> Option<Joiner<S>> {
        let shared = &self.shared;
        if shared.requirement() != Requirement::Local {
            return None;
        }
        let behind = match &*shared.stream.borrow() {
            Stream::Behind { link, id, durable, coverage } => {
                Some((link.clone(), *id, *durable, coverage.clone()))
            }
            _ => None,
        };
        let (link, stream, durable, coverage) = behind?;
        let snapshots = shared.snapshots_behind(durable).ok()?;
        link.send(ToReplica::Join { volume: shared.volume, stream });
        // Before any write: what that overwrites there, the history of these snapshots may need.
        shared.send_snapshots(&*link, stream, snapshots);
        let steps = coverage.steps(durable);
        let mirrored_after = shared.chain.borrow().let_go();
        shared.carry(link, stream, durable, false);
        Some(Joiner::begin(shared, stream, steps, mirrored_after))
    }
}

impl<S: BlockStore + 'static> Mirror<S> {
    /// Whether there is a stream, or the beginning of one.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !matches!(*self.shared.stream.borrow(), Stream::None)
    }

    /// What a replica that is [`MirrorEvent::Behind`] has.
    #[must_use]
    pub fn behind(&self) -> Option<Vec<CoverageStep>> {
        match &*self.shared.stream.borrow() {
            Stream::Behind { durable, coverage, .. } => Some(coverage.steps(*durable)),
            _ => None,
        }
    }
}

impl<S> Shared<S> {
    /// Begins a stream over `link`.
    pub(super) fn begin(&self, link: Rc<dyn ReplicaLink>) {
        let number = self.streams.get() + 1;
        self.streams.set(number);
        let id = StreamId { epoch: self.epoch.get(), number };
        let begin = ToReplica::Begin { volume: self.volume, stream: id };
        *self.stream.borrow_mut() = Stream::Beginning { link: link.clone(), id, since: self.runtime.now() };
        link.send(begin);
        self.settle();
    }

    /// Ends the present stream; the link that it was on. Whoever waits for the end of appends has to
    /// [`Shared::settle`].
    pub(super) fn end_stream(&self) -> Option<Rc<dyn ReplicaLink>> {
        let ended = self.stream.replace(Stream::None);
        self.chain.borrow_mut().end_stream();
        self.window.borrow_mut().clear();
        drop(self.joining.take());
        self.healing.end_stream();
        self.progress.notify();
        match ended {
            Stream::None => None,
            Stream::Beginning { link, .. } | Stream::Behind { link, .. } | Stream::Streaming { link, .. } => {
                Some(link)
            }
        }
    }

    pub(super) fn received(&self, answer: FromReplica) -> Option<MirrorEvent> {
        let (volume, stream) = answer.belongs_to();
        if volume != self.volume {
            return None;
        }
        if let FromReplica::Fenced { promised, .. } = answer {
            // True of whatever stream it was said.
            if promised <= self.epoch.get() {
                return None;
            }
            self.end_stream();
            self.settle();
            return Some(MirrorEvent::Fenced { promised });
        }
        let counts_anyway =
            mutant::is(Mutant::OldStreamAnswers) && matches!(answer, FromReplica::Durable { .. });
        if self.stream.borrow().id() != Some(stream) && !counts_anyway {
            return None;
        }
        match answer {
            FromReplica::Ready { durable, coverage, .. } => self.resume(durable, coverage),
            FromReplica::Durable { version, .. } => self.durable_at_replica(version),
            FromReplica::Failed { reason, .. } => Some(self.lose(reason)),
            FromReplica::Whole { .. } => {
                let was_asked = self.joining.borrow().as_ref().is_some_and(Joining::is_finishing);
                if !was_asked {
                    return Some(self.lose(ReplicaFailure::Protocol));
                }
                self.chain.borrow_mut().fill_gap();
                drop(self.joining.take());
                self.progress.notify();
                self.settle();
                Some(MirrorEvent::Whole)
            }
            FromReplica::Reconciled { coverage, .. } => {
                self.to_joining(|joining| joining.reconciled(coverage))
            }
            FromReplica::Copied { number, .. } => self.to_joining(|joining| joining.copied(number)),
            FromReplica::Reported { from, changes, .. } => {
                self.to_joining(|joining| joining.reported(from, changes))
            }
            FromReplica::Fetched { number, block, .. } => {
                (!self.healing.fetched(number, block)).then(|| self.lose(ReplicaFailure::Protocol))
            }
            // Taken by `Mirror::received`; and above.
            FromReplica::Damaged { .. } | FromReplica::Fenced { .. } => None,
        }
    }

    pub(super) fn is_present(&self, volume: VolumeId, stream: StreamId) -> bool {
        volume == self.volume && self.stream.borrow().id() == Some(stream)
    }

    fn to_joining(&self, take: impl FnOnce(&mut Joining) -> bool) -> Option<MirrorEvent> {
        let is_expected = self.joining.borrow_mut().as_mut().is_some_and(take);
        self.progress.notify();
        (!is_expected).then(|| self.lose(ReplicaFailure::Protocol))
    }

    fn durable_at_replica(&self, version: Version) -> Option<MirrorEvent> {
        if !self.chain.borrow_mut().replica_has(version) {
            return Some(self.lose(ReplicaFailure::Protocol));
        }
        self.window.borrow_mut().answered(version);
        self.pump();
        self.settle();
        None
    }

    /// The replica has said where it is.
    fn resume(&self, durable: Version, coverage: Coverage) -> Option<MirrorEvent> {
        let Stream::Beginning { link, id, .. } = self.stream.replace(Stream::None) else {
            return Some(self.lose(ReplicaFailure::Protocol));
        };
        if !self.chain.borrow().is_possible(durable, self.epoch.get()) {
            return Some(self.lose(ReplicaFailure::Protocol));
        }
        if coverage != Coverage::Whole || !self.chain.borrow().goes_on_from(durable) {
            *self.stream.borrow_mut() = Stream::Behind { link, id, durable, coverage };
            return Some(MirrorEvent::Behind);
        }
        self.carry(link, id, durable, true);
        Some(MirrorEvent::Streaming)
    }

    /// Lets a stream carry the chain from behind `durable` on.
    fn carry(&self, link: Rc<dyn ReplicaLink>, id: StreamId, durable: Version, is_whole: bool) {
        self.chain.borrow_mut().begin(durable, is_whole);
        *self.stream.borrow_mut() = Stream::Streaming { link, id };
        self.pump();
        self.settle();
    }

    pub(super) fn lose(&self, reason: ReplicaFailure) -> MirrorEvent {
        self.end_stream();
        self.settle();
        MirrorEvent::ReplicaLost { reason }
    }
}
