//! Asymmetric logical unit access (SPC-4 section 5.15): one logical unit, presented by several nodes, served by
//! one of them.
//!
//! A portal group is a target port group, and each node has its own. The cluster says which state each group has
//! ([`LogicalUnit::set_access_states`]); the unit reports it, answers by it, and tells its nexuses of a change.
//!
//! Invariant I23: what a node reports of its own groups is active/optimized only while it has the device and the
//! right to serve ([`AccessState::as_reported`]); whatever it has been told, it says transitioning otherwise.
//!
//! What a command gets where it can't be executed, by the state of the group that it came through:
//!
//! | state | sense | what hosts do |
//! |---|---|---|
//! | transitioning | NOT READY, 04/0A | Linux retries the command on the path and asks for the states again, ESX and MSDSM retry after a pause: none counts the path as failed |
//! | standby | NOT READY, 04/0B | dm-multipath takes the next path group and keeps the path (a "ghost" for its checker), ESX and MSDSM fail over at once |
//! | unavailable | NOT READY, 04/0C | as standby, but path checkers count the path as down |
//!
//! So a node that does not serve says standby, whose path is in use again the moment that it serves, and a change
//! is short of any of these in most cases: commands that need the device and come while their group is
//! transitioning are held back until the state settles, for [`limits::TRANSITION_HOLD`] at most. A host that asks
//! only every other second how the transition goes (Linux) loses that much time otherwise.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Poll, Waker};

use futures::future::{LocalBoxFuture, select};

use super::cdb::Cdb;
use super::command::Failure;
use super::identity::{NexusId, TargetPort};
use super::limits;
use super::logical_unit::LogicalUnit;
use super::mutant::{self, Mutant};
use super::operation::{Kind, Operation};
use super::sense::{AdditionalSense, Sense, SenseKey};
use super::task_set::Task;
use crate::volume::device::BlockDevice;

/// Asymmetric access state of a target port group (SPC-4 section 5.15.2); the values are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // the standard's own names
pub enum AccessState {
    ActiveOptimized = 0x0,
    ActiveNonOptimized = 0x1,
    Standby = 0x2,
    Unavailable = 0x3,
    Transitioning = 0xf,
}

/// What the cluster says of one target port group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupAccess {
    /// The portal group.
    pub portal_group: u16,
    /// Its state.
    pub state: AccessState,
    /// PREF: whether its node is the volume's home.
    pub preferred: bool,
}

/// What decides about access to a logical unit, above it.
pub trait AccessAuthority {
    /// Whether this node's ports are in the group.
    fn is_local(&self, portal_group: u16) -> bool;

    /// Whether this node has the right to serve now: its lease has not run out. Asked for each command and each
    /// report.
    fn may_serve(&self) -> bool;

    /// Whether several nodes can serve the unit. Without it there is one state for ever, and no SET TARGET PORT
    /// GROUPS.
    fn is_movable(&self) -> bool;

    /// Moves the unit to the node of `portal_group`, as a host has asked by SET TARGET PORT GROUPS. Completes when
    /// that node serves and [`LogicalUnit::set_access_states`] has said so here. The future may be dropped when
    /// the host gives up.
    fn activate(&self, portal_group: u16) -> LocalBoxFuture<'_, Result<(), ActivationFailed>>;
}

/// The unit was not moved, and is served where it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the volume was not moved: {0}")]
pub struct ActivationFailed(pub String);

/// The authority where there is no other node.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnlyNode;

impl AccessAuthority for OnlyNode {
    fn is_local(&self, _: u16) -> bool {
        true
    }

    fn may_serve(&self) -> bool {
        true
    }

    fn is_movable(&self) -> bool {
        false
    }

    fn activate(&self, _: u16) -> LocalBoxFuture<'_, Result<(), ActivationFailed>> {
        Box::pin(async { Err(ActivationFailed("there is no other node".into())) })
    }
}

impl AccessState {
    /// Whether commands are executed through ports of this state.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::ActiveOptimized | Self::ActiveNonOptimized)
    }

    /// The state that a node may report of a group that it was told to be in this state. `serves`: it has the
    /// device and the right to serve. I23: without that, never active/optimized for a group of its own.
    #[must_use]
    pub fn as_reported(self, is_local: bool, serves: bool) -> Self {
        let may_say = !is_local || serves || mutant::is(Mutant::OptimizedWithoutRight);
        if self == Self::ActiveOptimized && !may_say { Self::Transitioning } else { self }
    }

    /// What a command gets that can't be executed in this state. An active state is one that has just come: the
    /// command was in the way of the change, and has to be sent again.
    pub(super) fn refusal(self) -> Sense {
        let code = match self {
            Self::Standby => AdditionalSense::TARGET_PORT_IN_STANDBY_STATE,
            Self::Unavailable => AdditionalSense::TARGET_PORT_IN_UNAVAILABLE_STATE,
            Self::ActiveOptimized | Self::ActiveNonOptimized | Self::Transitioning => {
                AdditionalSense::ASYMMETRIC_ACCESS_STATE_TRANSITION
            }
        };
        Sense::new(SenseKey::NotReady, code)
    }

    /// Whether a command that needs no device is executed in this state (SPC-4 section 5.15.2).
    ///
    /// Standby adds what lets a host set up its disk on such a path. It leaves out MODE SELECT and the persistent
    /// reserve commands, which SPC-4 lists there: only the node that serves could answer them truthfully.
    pub(super) fn allows(self, kind: Kind) -> bool {
        match kind {
            Kind::Inquiry
            | Kind::ReportLuns
            | Kind::RequestSense
            | Kind::ReportTargetPortGroups
            | Kind::SetTargetPortGroups
            | Kind::ReportSupportedOperationCodes
            | Kind::ReportSupportedTaskManagement => true,
            Kind::ReadCapacity10
            | Kind::ReadCapacity16
            | Kind::ModeSense6
            | Kind::ModeSense10
            | Kind::LogSense
            | Kind::SendDiagnostic => self == Self::Standby,
            _ => false,
        }
    }
}

/// The states of a logical unit's groups, as told, and who waits for a change.
#[derive(Debug, Default)]
pub(super) struct AsymmetricAccess {
    groups: RefCell<Vec<Group>>,
    /// SET TARGET PORT GROUPS commands under way.
    explicit: Cell<usize>,
    /// Commands that are held back, by the order in which that began.
    held: RefCell<BTreeMap<u64, Waker>>,
    next_held: Cell<u64>,
}

/// One group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) access: GroupAccess,
    /// The latest state that was no transition: what hosts have been told of.
    settled: Option<AccessState>,
    /// STATUS CODE: what changed the state last.
    pub(super) status: u8,
}

impl AsymmetricAccess {
    /// Every group of `ports` in transition: nothing has been said yet.
    pub(super) fn transitioning(ports: &[TargetPort]) -> Self {
        let group = |port: &TargetPort| Group {
            access: GroupAccess {
                portal_group: port.portal_group,
                state: AccessState::Transitioning,
                preferred: false,
            },
            settled: None,
            status: NEVER_CHANGED,
        };
        Self { groups: RefCell::new(ports.iter().map(group).collect()), ..Self::default() }
    }

    /// What was told of a group.
    pub(super) fn group(&self, portal_group: u16) -> Group {
        let groups = self.groups.borrow();
        let found = groups.iter().find(|group| group.access.portal_group == portal_group);
        found.copied().unwrap_or(Group {
            access: GroupAccess { portal_group, state: AccessState::Unavailable, preferred: false },
            settled: None,
            status: NEVER_CHANGED,
        })
    }

    /// Takes up what was told; gives back whether hosts have to hear of it.
    fn replace(&self, told: &[GroupAccess]) -> bool {
        let cause = if self.explicit.get() > 0 { CHANGED_EXPLICITLY } else { CHANGED_IMPLICITLY };
        let mut is_news = false;
        let groups = told.iter().map(|access| {
            let Group { mut settled, mut status, .. } = self.group(access.portal_group);
            if access.state != AccessState::Transitioning && settled != Some(access.state) {
                is_news = true;
                status = if settled.is_some() { cause } else { NEVER_CHANGED };
                settled = Some(access.state);
            }
            Group { access: *access, settled, status }
        });
        let groups: Vec<_> = groups.collect();
        *self.groups.borrow_mut() = groups;
        is_news
    }

    /// Has commands that are held back look again.
    pub(super) fn wake(&self) {
        for waker in self.held.take().into_values() {
            waker.wake();
        }
    }

    fn begin_hold(&self) -> Hold<'_> {
        let number = self.next_held.get();
        self.next_held.set(number + 1);
        Hold { access: self, number }
    }

    /// Marks that SET TARGET PORT GROUPS is under way, until the returned value is dropped.
    pub(super) fn begin_explicit(&self) -> ExplicitChange<'_> {
        self.explicit.set(self.explicit.get() + 1);
        ExplicitChange(&self.explicit)
    }
}

/// A command that is held back. It is forgotten when it ends, however it does.
struct Hold<'a> {
    access: &'a AsymmetricAccess,
    number: u64,
}

impl Hold<'_> {
    fn register(&self, waker: &Waker) {
        self.access.held.borrow_mut().insert(self.number, waker.clone());
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.access.held.borrow_mut().remove(&self.number);
    }
}

/// A SET TARGET PORT GROUPS under way.
pub(super) struct ExplicitChange<'a>(&'a Cell<usize>);

impl Drop for ExplicitChange<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Says which state each target port group has, those of other nodes included; one that is left out is
    /// unavailable. All nexuses are told when a state has changed (SPC-4 section 5.15.2), but not of the begin of
    /// a transition: a host could do nothing but ask again, and would miss the end.
    ///
    /// The node that is to serve is given its device first, and the one that is to serve no more is told
    /// transitioning or standby before its device is taken; in between it reports a transition by itself.
    pub fn set_access_states(&self, groups: &[GroupAccess]) {
        if self.asymmetric_access().replace(groups) {
            // Sessions at the other node are told there.
            self.attention_to_own(AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED);
        }
        self.asymmetric_access().wake();
    }

    /// Lets commands that are held back begin if they may: the right to serve can come back without a change of state.
    pub fn look_again(&self) {
        self.asymmetric_access().wake();
    }

    /// The state of a target port group as this node reports it now.
    pub fn access_state(&self, portal_group: u16) -> AccessState {
        let told = self.asymmetric_access().group(portal_group).access.state;
        told.as_reported(self.services().access.is_local(portal_group), self.serves())
    }

    /// Whether this node serves the unit: it has the device and the right.
    pub fn serves(&self) -> bool {
        self.has_device() && self.services().access.may_serve()
    }

    /// Refuses a command that can't be executed through its port, or here at all, now.
    pub(super) fn check_access(&self, nexus: NexusId, kind: Kind) -> Result<(), Failure> {
        if self.is_forwarded(nexus) {
            // The state of its port is the other node's business, which has let the command through.
            let refusal = AccessState::Transitioning.refusal();
            return if self.serves() { Ok(()) } else { Err(refusal.into()) };
        }
        let TargetPort { portal_group, .. } = self.target_port(nexus);
        let state = self.asymmetric_access().group(portal_group).access.state;
        if state.is_active() && self.serves() {
            return Ok(());
        }
        let reported = self.access_state(portal_group);
        if reported.allows(kind) { Ok(()) } else { Err(reported.refusal().into()) }
    }

    /// What a command that needs the device would get by the state of its port: nothing when it is active.
    pub(super) fn access_sense(&self, nexus: NexusId) -> Option<Sense> {
        match self.check_access(nexus, Kind::TestUnitReady) {
            Err(Failure::Check(sense)) => Some(sense),
            _ => None,
        }
    }

    /// Holds back a command that would be refused because its port's group is transitioning; not TEST UNIT READY, by
    /// which hosts want to know the state.
    pub(super) fn is_held(&self, nexus: NexusId, cdb: &Cdb) -> bool {
        let state = self.access_state(self.target_port(nexus).portal_group);
        state == AccessState::Transitioning
            && self.is_attached(nexus)
            && !self.is_forwarded(nexus)
            && Operation::find(cdb)
                .is_ok_and(|operation| operation.kind != Kind::TestUnitReady && !state.allows(operation.kind))
    }

    /// Waits until the transition is over, takes too long, or the task is aborted. The task has not started, so
    /// neither a drain nor the detaching of the device waits for it.
    pub(super) async fn hold(&self, task: &Task, cdb: &Cdb) {
        let hold = self.asymmetric_access().begin_hold();
        let settled = std::future::poll_fn(|context| {
            if !self.is_held(task.nexus(), cdb) {
                return Poll::Ready(());
            }
            hold.register(context.waker());
            Poll::Pending
        });
        let aborted = pin!(task.aborted());
        let given_up = select(self.services().runtime.sleep(limits::TRANSITION_HOLD), aborted);
        select(settled, given_up).await;
    }
}

/// STATUS CODE of a target port group (SPC-4 section 6.37).
const NEVER_CHANGED: u8 = 0;
const CHANGED_EXPLICITLY: u8 = 1;
const CHANGED_IMPLICITLY: u8 = 2;

#[cfg(test)]
pub(super) mod tests;
