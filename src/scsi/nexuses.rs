//! The nexuses of a logical unit: who is attached, what each has to be told, who was lost.
//!
//! A nexus begins with a login ([`LogicalUnit::attach`]) and ends with its loss ([`LogicalUnit::detach`]). What is
//! remembered of lost ones is bounded ([`limits::LOST_NEXUSES`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::attention::UnitAttentions;
use super::identity::{InitiatorPort, Nexus, NexusId, TargetPort};
use super::limits;
use super::logical_unit::LogicalUnit;
use super::mutant::{self, Mutant};
use super::operation::Access;
use super::reservation::state::Registrant;
use super::sense::{AdditionalSense, Sense};
use super::task_set::Drain;
use crate::volume::device::BlockDevice;

/// The nexuses of one logical unit.
#[derive(Default)]
pub(super) struct Nexuses {
    attached: RefCell<BTreeMap<NexusId, AttachedNexus>>,
    next: Cell<u64>,
    /// Nexuses that were lost, oldest first.
    lost: RefCell<VecDeque<Nexus>>,
}

/// What is known of a nexus while it is attached.
struct AttachedNexus {
    nexus: Nexus,
    attentions: UnitAttentions,
    /// Of a session at another node: who is told what is pending.
    watch: Option<AttentionWatch>,
}

/// Is told of each change of a nexus's unit attentions, with all that are pending then.
pub type AttentionWatch = Rc<dyn Fn(Vec<AdditionalSense>)>;

impl AttachedNexus {
    fn establish(&mut self, code: AdditionalSense) {
        self.attentions.establish(code);
        self.tell();
    }

    fn clear(&mut self, code: AdditionalSense) {
        self.attentions.clear(code);
        self.tell();
    }

    fn take(&mut self) -> Option<Sense> {
        let taken = self.attentions.take()?;
        self.tell();
        Some(taken)
    }

    fn tell(&self) {
        if let Some(watch) = &self.watch {
            watch(self.attentions.pending());
        }
    }
}

impl<D: BlockDevice + 'static> LogicalUnit<D> {
    /// Attaches a nexus: an initiator has logged in. It is first told of a power on, or of the loss of
    /// the nexus when it has been here before.
    pub fn attach(&self, nexus: Nexus) -> NexusId {
        let id = self.attach_nexus(nexus.clone());
        if let Some(path) = self.forwarding() {
            path.attach(id, nexus, self.take_attentions(id));
        }
        id
    }

    pub(super) fn attach_nexus(&self, nexus: Nexus) -> NexusId {
        let id = NexusId(self.nexuses.next.get());
        self.nexuses.next.set(id.0 + 1);
        let mut lost = self.nexuses.lost.borrow_mut();
        let returns = lost.iter().position(|known| *known == nexus);
        let code = match returns {
            Some(index) => {
                lost.remove(index);
                AdditionalSense::NEXUS_LOSS_OCCURRED
            }
            None => AdditionalSense::POWER_ON_RESET,
        };
        let mut attentions = UnitAttentions::default();
        attentions.establish(code);
        self.nexuses.attached.borrow_mut().insert(id, AttachedNexus { nexus, attentions, watch: None });
        id
    }

    /// Ends a nexus: logout, a lost connection, reinstatement. Its tasks are aborted; the session may
    /// be taken up again when the drain is over.
    pub fn detach(&self, nexus: NexusId) -> Drain {
        let is_own = !self.is_forwarded(nexus);
        if let Some(attached) = self.nexuses.attached.borrow_mut().remove(&nexus) {
            let mut lost = self.nexuses.lost.borrow_mut();
            if lost.len() == limits::LOST_NEXUSES {
                lost.pop_front();
            }
            lost.push_back(attached.nexus);
        }
        if let Some(path) = self.forwarding().filter(|_| is_own) {
            path.detach(nexus);
        }
        self.reservations().nexus_lost(nexus);
        self.copy_results().borrow_mut().nexus_lost(nexus);
        if mutant::is(Mutant::NexusLossAbortsNothing) {
            return self.tasks().abort_nexus(NexusId(u64::MAX));
        }
        self.tasks().abort_nexus(nexus)
    }

    pub(super) fn is_attached(&self, nexus: NexusId) -> bool {
        self.nexuses.attached.borrow().contains_key(&nexus)
    }

    /// What `look` finds in an attached nexus.
    pub(super) fn with_nexus<T>(&self, nexus: NexusId, look: impl FnOnce(&Nexus) -> T) -> Option<T> {
        self.nexuses.attached.borrow().get(&nexus).map(|attached| look(&attached.nexus))
    }

    /// The attached nexuses of a registrant: one, or none.
    pub(super) fn nexuses_of(&self, registrant: &Registrant) -> Vec<NexusId> {
        let nexuses = self.nexuses.attached.borrow();
        let matching =
            nexuses.iter().filter(|(_, attached)| Registrant::from(&attached.nexus) == *registrant);
        matching.map(|(id, _)| *id).collect()
    }

    /// The attached ports of the initiator called `name`.
    pub(super) fn initiator_ports(&self, name: &str) -> Vec<InitiatorPort> {
        let nexuses = self.nexuses.attached.borrow();
        let ports = nexuses.values().map(|attached| &attached.nexus.initiator);
        ports.filter(|port| port.name == name).cloned().collect()
    }

    /// Whether reservations let `initiator` do something of the kind `access` through any of its ports.
    pub(super) fn initiator_may(&self, initiator: &InitiatorPort, access: Access) -> bool {
        let same = |other: &InitiatorPort| other.name == initiator.name;
        if let Some(holder) = self.reservations().reserved_by()
            && !self.with_nexus(holder, |nexus| same(&nexus.initiator)).unwrap_or(false)
        {
            return false;
        }
        let state = self.reservations().persistent();
        let stranger = Registrant { initiator: initiator.clone(), relative_target_port: 0 };
        state.permits(&stranger, access)
            || state
                .registrations()
                .any(|(registrant, _)| same(&registrant.initiator) && state.permits(registrant, access))
    }

    /// The port that `nexus` came in through.
    pub(super) fn target_port(&self, nexus: NexusId) -> TargetPort {
        let nexuses = self.nexuses.attached.borrow();
        // A nexus that is detached while its task runs gets no response, so any port will do.
        nexuses.get(&nexus).map_or(TargetPort { relative_id: 1, portal_group: 1 }, |n| n.nexus.target_port)
    }

    /// Establishes a unit attention for one nexus.
    pub(super) fn attention(&self, nexus: NexusId, code: AdditionalSense) {
        if let Some(attached) = self.nexuses.attached.borrow_mut().get_mut(&nexus) {
            attached.establish(code);
        }
    }

    /// Establishes a unit attention for all nexuses.
    pub(super) fn attention_to_all(&self, code: AdditionalSense) {
        for attached in self.nexuses.attached.borrow_mut().values_mut() {
            attached.establish(code);
        }
    }

    /// Establishes a unit attention for all nexuses but the one that caused it.
    pub(super) fn attention_to_others(&self, cause: NexusId, code: AdditionalSense) {
        for (id, attached) in self.nexuses.attached.borrow_mut().iter_mut() {
            if *id != cause {
                attached.establish(code);
            }
        }
    }

    pub(super) fn clear_attention(&self, nexus: NexusId, code: AdditionalSense) {
        if let Some(attached) = self.nexuses.attached.borrow_mut().get_mut(&nexus) {
            attached.clear(code);
        }
    }

    /// Establishes a unit attention for the nexuses of sessions at this node.
    pub(super) fn attention_to_own(&self, code: AdditionalSense) {
        let mut nexuses = self.nexuses.attached.borrow_mut();
        nexuses.values_mut().filter(|attached| attached.watch.is_none()).for_each(|one| one.establish(code));
    }

    pub(super) fn has_attention(&self, nexus: NexusId) -> bool {
        self.nexuses.attached.borrow().get(&nexus).is_some_and(|attached| !attached.attentions.is_empty())
    }

    /// Whether the session of a nexus is at another node.
    pub(super) fn is_forwarded(&self, nexus: NexusId) -> bool {
        self.nexuses.attached.borrow().get(&nexus).is_some_and(|attached| attached.watch.is_some())
    }

    pub(super) fn watch_attentions(&self, nexus: NexusId, watch: AttentionWatch) {
        if let Some(attached) = self.nexuses.attached.borrow_mut().get_mut(&nexus) {
            attached.watch = Some(watch);
        }
    }

    /// The attached nexuses of sessions at this node.
    pub(super) fn own_nexuses(&self) -> Vec<(NexusId, Nexus)> {
        let nexuses = self.nexuses.attached.borrow();
        let own = nexuses
            .iter()
            .filter(|(_, attached)| attached.watch.is_none() || mutant::is(Mutant::ForwardedAgain));
        own.map(|(id, attached)| (*id, attached.nexus.clone())).collect()
    }

    pub(super) fn take_attention(&self, nexus: NexusId) -> Option<Sense> {
        self.nexuses.attached.borrow_mut().get_mut(&nexus)?.take()
    }
}
