//! The rules of persistent reservations (SPC-4 section 5.13) as a pure state machine: an action of a
//! registrant takes a state to the next, and says whom it concerns.
//!
//! Invariants: the holder of a reservation is registered, a reservation of an all-registrants type
//! exists only while somebody is, and no registration has the key zero.

use std::collections::BTreeMap;

use crate::scsi::identity::{InitiatorPort, Nexus};
use crate::scsi::limits;
use crate::scsi::mutant::{self, Mutant};
use crate::scsi::operation::Access;
use crate::scsi::sense::AdditionalSense;

/// A nexus as persistent reservations know it: whether it is attached or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registrant {
    /// The initiator port.
    pub initiator: InitiatorPort,
    /// Relative identifier of the target port.
    pub relative_target_port: u16,
}

impl From<&Nexus> for Registrant {
    fn from(nexus: &Nexus) -> Self {
        Self { initiator: nexus.initiator.clone(), relative_target_port: nexus.target_port.relative_id }
    }
}

/// Type of a persistent reservation (SPC-4 table 166).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the standard's own names
pub enum ReservationType {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

impl ReservationType {
    /// All types.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type of a TYPE field.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    pub(super) fn allows_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    fn excludes_reading(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// A reservation in force. The scope is always the logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Its type.
    pub kind: ReservationType,
    /// Its holder; none for all-registrants types, which every registrant holds.
    pub holder: Option<Registrant>,
}

/// Registrations and reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistentState {
    generation: u32,
    aptpl: bool,
    registrations: BTreeMap<Registrant, u64>,
    reservation: Option<Reservation>,
}

/// A service action of PERSISTENT RESERVE OUT with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
    Register {
        /// RESERVATION KEY; none to ignore the existing one.
        key: Option<u64>,
        /// SERVICE ACTION RESERVATION KEY.
        new_key: u64,
        /// APTPL.
        aptpl: bool,
        /// Ports that the registration is for: the nexus's own, or all (ALL_TG_PT).
        relative_target_ports: Vec<u16>,
        /// Other initiator ports to register (SPEC_I_PT).
        initiators: Vec<InitiatorPort>,
    },
    /// RESERVE.
    Reserve {
        /// RESERVATION KEY.
        key: u64,
        /// TYPE.
        kind: ReservationType,
    },
    /// RELEASE.
    Release {
        /// RESERVATION KEY.
        key: u64,
        /// TYPE.
        kind: ReservationType,
    },
    /// CLEAR.
    Clear {
        /// RESERVATION KEY.
        key: u64,
    },
    /// PREEMPT, and PREEMPT AND ABORT.
    Preempt {
        /// RESERVATION KEY.
        key: u64,
        /// SERVICE ACTION RESERVATION KEY: whom to preempt.
        victim_key: u64,
        /// TYPE of the new reservation.
        kind: ReservationType,
    },
    /// REGISTER AND MOVE.
    Move {
        /// RESERVATION KEY.
        key: u64,
        /// SERVICE ACTION RESERVATION KEY: key of the destination.
        new_key: u64,
        /// The nexus that gets the reservation.
        destination: Registrant,
        /// UNREG: whether the mover's own registration ends.
        unregister: bool,
        /// APTPL.
        aptpl: bool,
    },
}

/// The outcome of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state afterwards.
    pub state: PersistentState,
    /// Unit attentions to establish, in order. Never for the nexus that acted.
    pub attentions: Vec<(Registrant, AdditionalSense)>,
    /// Registrants that were preempted, for PREEMPT AND ABORT.
    pub preempted: Vec<Registrant>,
}

/// Why an action is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RESERVATION CONFLICT status.
    Conflict,
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    InvalidRelease,
    /// INVALID FIELD IN PARAMETER LIST, pointing at this byte.
    InvalidParameter(usize),
    /// INSUFFICIENT REGISTRATION RESOURCES.
    TooManyRegistrations,
}

impl PersistentState {
    /// PRGENERATION.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether the state persists through power loss.
    #[must_use]
    pub fn aptpl(&self) -> bool {
        self.aptpl
    }

    /// The registrations with their keys.
    pub fn registrations(&self) -> impl Iterator<Item = (&Registrant, u64)> {
        self.registrations.iter().map(|(registrant, key)| (registrant, *key))
    }

    /// The reservation in force.
    #[must_use]
    pub fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// Whether `registrant` is registered.
    #[must_use]
    pub fn is_registered(&self, registrant: &Registrant) -> bool {
        self.registrations.contains_key(registrant)
    }

    /// Whether `registrant` holds the reservation.
    #[must_use]
    pub fn is_holder(&self, registrant: &Registrant) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| match &reservation.holder {
            Some(holder) => holder == registrant,
            None => self.is_registered(registrant),
        })
    }

    /// Whether RESERVE and RELEASE of this registrant are accepted without effect (the CRH exceptions).
    #[must_use]
    pub fn accepts_legacy(&self, registrant: &Registrant) -> bool {
        self.is_holder(registrant)
            || self.is_registered(registrant)
                && self.reservation.as_ref().is_some_and(|held| held.kind.allows_registrants())
    }

    /// Whether the reservation lets `registrant` do something of the kind `access`.
    pub(in crate::scsi) fn permits(&self, registrant: &Registrant, access: Access) -> bool {
        let Some(reservation) = &self.reservation else { return true };
        match access {
            Access::Always | Access::Query | Access::Special => return true,
            Access::Read if !reservation.kind.excludes_reading() => return true,
            Access::Read | Access::Write => {}
        }
        reservation.holder.as_ref() == Some(registrant)
            || reservation.kind.allows_registrants() && self.is_registered(registrant)
    }

    /// A state from its parts, unless they contradict each other.
    pub(super) fn restore(
        aptpl: bool,
        generation: u32,
        registrations: BTreeMap<Registrant, u64>,
        kind: Option<ReservationType>,
        holder: Option<Registrant>,
    ) -> Option<Self> {
        let reservation = kind.map(|kind| Reservation { kind, holder: holder.clone() });
        let state = Self { generation, aptpl, registrations, reservation };
        (state.is_consistent() && (kind.is_some() || holder.is_none())).then_some(state)
    }

    /// The outcome of `action` by `actor`.
    ///
    /// # Errors
    /// Why it is refused; the state stays as it is.
    pub fn apply(&self, actor: &Registrant, action: &Action) -> Result<Change, Refusal> {
        let unchanged = Change { state: self.clone(), attentions: Vec::new(), preempted: Vec::new() };
        let change = match action {
            Action::Register { key, new_key, aptpl, relative_target_ports, initiators } => {
                unchanged.register(actor, *key, *new_key, *aptpl, relative_target_ports, initiators)
            }
            Action::Reserve { key, kind } => unchanged.reserve(actor, *key, *kind),
            Action::Release { key, kind } => unchanged.release(actor, *key, *kind),
            Action::Clear { key } => unchanged.clear(actor, *key),
            Action::Preempt { key, victim_key, kind } => unchanged.preempt(actor, *key, *victim_key, *kind),
            Action::Move { key, new_key, destination, unregister, aptpl } => {
                unchanged.transfer(actor, *key, *new_key, destination, *unregister, *aptpl)
            }
        }?;
        assert!(change.state.is_consistent(), "persistent reservation state is inconsistent");
        Ok(change)
    }

    fn is_consistent(&self) -> bool {
        let holder_registered = match &self.reservation {
            None => true,
            Some(Reservation { kind, holder: Some(holder) }) => {
                !kind.is_all_registrants() && self.is_registered(holder)
            }
            Some(Reservation { kind, holder: None }) => {
                kind.is_all_registrants() && !self.registrations.is_empty()
            }
        };
        holder_registered
            && self.registrations.values().all(|key| *key != 0)
            && self.registrations.len() <= limits::REGISTRATIONS
    }

    /// The actor has to be registered with this key.
    fn check_key(&self, actor: &Registrant, key: u64) -> Result<(), Refusal> {
        if self.registrations.get(actor) == Some(&key) { Ok(()) } else { Err(Refusal::Conflict) }
    }
}

impl Change {
    /// SPC-4 sections 5.13.7 and 5.13.11.1, tables 67 and 68.
    fn register(
        mut self,
        actor: &Registrant,
        key: Option<u64>,
        new_key: u64,
        aptpl: bool,
        ports: &[u16],
        initiators: &[InitiatorPort],
    ) -> Result<Self, Refusal> {
        let registered = self.state.registrations.get(actor).copied();
        if key.is_some_and(|key| key != registered.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        if !initiators.is_empty() && registered.is_some() {
            return Err(Refusal::InvalidParameter(20));
        }
        if registered.is_none() && new_key == 0 {
            return Ok(self);
        }
        self.state.generation = self.state.generation.wrapping_add(1);
        self.state.aptpl = aptpl;
        let ports = if mutant::is(Mutant::RegisteredOnOnePort) { &ports[..1] } else { ports };
        for port in ports {
            for initiator in std::iter::once(&actor.initiator).chain(initiators) {
                let registrant = Registrant { initiator: initiator.clone(), relative_target_port: *port };
                if new_key == 0 {
                    self.unregister(actor, &registrant);
                } else {
                    self.state.registrations.insert(registrant, new_key);
                }
            }
        }
        if self.state.registrations.len() > limits::REGISTRATIONS {
            return Err(Refusal::TooManyRegistrations);
        }
        Ok(self)
    }

    fn reserve(mut self, actor: &Registrant, key: u64, kind: ReservationType) -> Result<Self, Refusal> {
        self.state.check_key(actor, key)?;
        match &self.state.reservation {
            None => self.state.reservation = Some(Reservation::of(kind, actor)),
            Some(held) if held.kind == kind && self.state.is_holder(actor) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(self)
    }

    fn release(mut self, actor: &Registrant, key: u64, kind: ReservationType) -> Result<Self, Refusal> {
        self.state.check_key(actor, key)?;
        if !self.state.is_holder(actor) && !mutant::is(Mutant::ReleaseByAnyone) {
            return Ok(self);
        }
        if self.state.reservation.as_ref().is_some_and(|held| held.kind != kind) {
            return Err(Refusal::InvalidRelease);
        }
        self.end_reservation(actor);
        Ok(self)
    }

    fn clear(mut self, actor: &Registrant, key: u64) -> Result<Self, Refusal> {
        self.state.check_key(actor, key)?;
        self.state.generation = self.state.generation.wrapping_add(1);
        self.state.reservation = None;
        for (registrant, _) in std::mem::take(&mut self.state.registrations) {
            self.tell(actor, registrant, AdditionalSense::RESERVATIONS_PREEMPTED);
        }
        Ok(self)
    }

    /// SPC-4 section 5.13.11.4 and its table 69.
    fn preempt(
        mut self,
        actor: &Registrant,
        key: u64,
        victim_key: u64,
        kind: ReservationType,
    ) -> Result<Self, Refusal> {
        self.state.check_key(actor, key)?;
        let held = self.state.reservation.clone();
        let holder_key = held
            .as_ref()
            .and_then(|held| held.holder.as_ref())
            .and_then(|holder| self.state.registrations.get(holder))
            .copied();
        let all_registrants = held.as_ref().is_some_and(|held| held.holder.is_none());
        if victim_key == 0 && !all_registrants {
            return Err(Refusal::InvalidParameter(8));
        }
        let takes_reservation = holder_key == Some(victim_key) || all_registrants && victim_key == 0;
        let victims: Vec<_> = self
            .state
            .registrations
            .iter()
            .filter(|(registrant, key)| {
                let named = victim_key == 0 || **key == victim_key;
                named && !(takes_reservation && *registrant == actor)
            })
            .map(|(registrant, _)| registrant.clone())
            .collect();
        if victims.is_empty() && !takes_reservation {
            return Err(Refusal::Conflict);
        }
        self.state.generation = self.state.generation.wrapping_add(1);
        for victim in victims {
            if !mutant::is(Mutant::PreemptedStayRegistered) {
                self.state.registrations.remove(&victim);
            }
            self.tell(actor, victim.clone(), AdditionalSense::REGISTRATIONS_PREEMPTED);
            self.preempted.push(victim);
        }
        if takes_reservation {
            if held.is_some_and(|held| held.kind != kind) {
                self.tell_registrants(actor, AdditionalSense::RESERVATIONS_RELEASED);
            }
            self.state.reservation = Some(Reservation::of(kind, actor));
        } else if all_registrants && self.state.registrations.is_empty() {
            self.state.reservation = None;
        }
        Ok(self)
    }

    /// SPC-4 section 5.13.8.
    fn transfer(
        mut self,
        actor: &Registrant,
        key: u64,
        new_key: u64,
        destination: &Registrant,
        unregister: bool,
        aptpl: bool,
    ) -> Result<Self, Refusal> {
        self.state.check_key(actor, key)?;
        let Some(held) = self.state.reservation.clone() else { return Err(Refusal::Conflict) };
        if held.holder.as_ref() != Some(actor) {
            return Err(Refusal::Conflict); // not the holder, or held by all registrants
        }
        if new_key == 0 {
            return Err(Refusal::InvalidParameter(8));
        }
        if destination == actor {
            return Err(Refusal::InvalidParameter(24));
        }
        self.state.generation = self.state.generation.wrapping_add(1);
        self.state.aptpl = aptpl;
        self.state.registrations.insert(destination.clone(), new_key);
        if self.state.registrations.len() > limits::REGISTRATIONS {
            return Err(Refusal::TooManyRegistrations);
        }
        self.state.reservation = Some(Reservation { kind: held.kind, holder: Some(destination.clone()) });
        if unregister {
            self.state.registrations.remove(actor);
        }
        Ok(self)
    }

    /// Ends a registration, and the reservation that depends on it (SPC-4 section 5.13.11.2.3).
    fn unregister(&mut self, actor: &Registrant, registrant: &Registrant) {
        let held_by_it =
            self.state.reservation.as_ref().is_some_and(|held| held.holder.as_ref() == Some(registrant));
        self.state.registrations.remove(registrant);
        if held_by_it {
            self.end_reservation(actor);
        } else if self.state.registrations.is_empty() {
            self.state.reservation = None;
        }
    }

    /// Ends the reservation; registrants lose access by the end of some types and are told.
    fn end_reservation(&mut self, actor: &Registrant) {
        if self.state.reservation.take().is_some_and(|held| held.kind.allows_registrants()) {
            self.tell_registrants(actor, AdditionalSense::RESERVATIONS_RELEASED);
        }
    }

    fn tell_registrants(&mut self, actor: &Registrant, code: AdditionalSense) {
        let registrants: Vec<_> = self.state.registrations.keys().cloned().collect();
        for registrant in registrants {
            self.tell(actor, registrant, code);
        }
    }

    fn tell(&mut self, actor: &Registrant, registrant: Registrant, code: AdditionalSense) {
        if registrant != *actor {
            self.attentions.push((registrant, code));
        }
    }
}

impl Reservation {
    fn of(kind: ReservationType, actor: &Registrant) -> Self {
        let holder = (!kind.is_all_registrants()).then(|| actor.clone());
        Self { kind, holder }
    }
}
