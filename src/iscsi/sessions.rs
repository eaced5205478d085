//! Which session belongs to which connection, and reinstatement (RFC 7143 section 6.3.5).
//!
//! A session is identified by initiator name, ISID, target and target portal group. A login for an
//! identity that has a session takes its place, but only once everything that the old one still had
//! running has drained: [`Sessions`] says which connection to drop and, when the driver reports that
//! one's end, which login goes on. So no write of an old session lands after its successor began.
//! A pure structure: connections are whatever numbers the driver gives them.

use std::collections::HashMap;

use super::login::{SessionKind, SessionRequest};
use super::names::IscsiName;
use super::pdu::login::{Isid, LoginStatus};

/// The driver's own number for a connection, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Target session identifying handle, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tsih(pub u16);

/// All sessions of a node.
#[derive(Debug)]
pub struct Sessions {
    limit: usize,
    normal: HashMap<SessionIdentity, Entry>,
    /// Where each connection that has a session or waits for one is found.
    connections: HashMap<ConnectionId, Membership>,
    next_tsih: u16,
}

/// What makes two logins mean the same session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionIdentity {
    /// InitiatorName.
    pub initiator: IscsiName,
    /// ISID.
    pub isid: Isid,
    /// TargetName.
    pub target: IscsiName,
    /// Target portal group tag.
    pub group_tag: u16,
}

#[derive(Debug)]
struct Entry {
    tsih: Tsih,
    owner: ConnectionId,
    connection_id: u16,
    /// The login that takes over when the owner has drained, and the CID that it uses.
    successor: Option<(ConnectionId, u16)>,
}

#[derive(Clone, Debug)]
enum Membership {
    Discovery(Tsih),
    Normal(SessionIdentity),
}

/// Answer to a login that wants to become a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Begin now.
    Admitted(Tsih),
    /// Drop this connection, and wait until [`Sessions::release`] names the waiting one.
    Wait {
        /// Connection whose session, or whose own wait, is being taken over.
        drop: ConnectionId,
    },
    /// No.
    Refused(LoginStatus),
}

impl Sessions {
    /// No sessions yet, and at most `limit` at a time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        // TSIH has 16 bits without zero.
        let limit = limit.min(usize::from(u16::MAX));
        Self { limit, normal: HashMap::new(), connections: HashMap::new(), next_tsih: 1 }
    }

    /// Asks for a session for the login on `connection`.
    pub fn request(&mut self, connection: ConnectionId, request: &SessionRequest) -> Admission {
        debug_assert!(!self.connections.contains_key(&connection), "one login a connection");
        let SessionKind::Normal { target } = &request.kind else {
            return self.admit_discovery(connection, request.tsih);
        };
        let identity = SessionIdentity {
            initiator: request.initiator.clone(),
            isid: request.isid,
            target: target.clone(),
            group_tag: request.group_tag,
        };
        if let Some(entry) = self.normal.get_mut(&identity) {
            if request.tsih != 0 && request.tsih != entry.tsih.0 {
                return Admission::Refused(LoginStatus::SESSION_DOES_NOT_EXIST);
            }
            // With one connection a session, a known TSIH can only reinstate that connection
            // (section 6.3.4); a further one has no place.
            if request.tsih != 0 && request.connection_id != entry.connection_id {
                return Admission::Refused(LoginStatus::TOO_MANY_CONNECTIONS);
            }
            let earlier = entry.successor.replace((connection, request.connection_id));
            let drop = earlier.map_or(entry.owner, |(waiting, _)| waiting);
            if let Some((waiting, _)) = earlier {
                self.connections.remove(&waiting);
            }
            self.connections.insert(connection, Membership::Normal(identity));
            return Admission::Wait { drop };
        }
        if request.tsih != 0 {
            return Admission::Refused(LoginStatus::SESSION_DOES_NOT_EXIST);
        }
        let Some(tsih) = self.allocate_tsih() else {
            return Admission::Refused(LoginStatus::OUT_OF_RESOURCES);
        };
        let entry = Entry { tsih, owner: connection, connection_id: request.connection_id, successor: None };
        self.normal.insert(identity.clone(), entry);
        self.connections.insert(connection, Membership::Normal(identity));
        Admission::Admitted(tsih)
    }

    /// Reports that `connection` is gone and that nothing it was handed is running any more. Gives
    /// the login that may go on now, with its TSIH. For a connection without a session or a wait for
    /// one nothing happens.
    pub fn release(&mut self, connection: ConnectionId) -> Option<(ConnectionId, Tsih)> {
        let Membership::Normal(identity) = self.connections.remove(&connection)? else { return None };
        let entry = self.normal.get_mut(&identity)?;
        if entry.owner != connection {
            // A waiting login gave up; the session that it wanted to replace is going all the same.
            if entry.successor.is_some_and(|(waiting, _)| waiting == connection) {
                entry.successor = None;
            }
            return None;
        }
        match entry.successor.take() {
            Some((successor, connection_id)) => {
                entry.owner = successor;
                entry.connection_id = connection_id;
                Some((successor, entry.tsih))
            }
            None => {
                self.normal.remove(&identity);
                None
            }
        }
    }

    /// Connections of the sessions with `target`, and of logins that wait for one: what to drop when
    /// the target goes away.
    pub fn connections_of_target(&self, target: &IscsiName) -> Vec<ConnectionId> {
        self.connections_where(|identity| identity.target == *target)
    }

    /// Connections of an initiator's sessions with `target`: what to drop when its access is taken.
    pub fn connections_of(&self, initiator: &IscsiName, target: &IscsiName) -> Vec<ConnectionId> {
        self.connections_where(|identity| identity.initiator == *initiator && identity.target == *target)
    }

    /// The normal sessions, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionIdentity, Tsih, ConnectionId)> {
        self.normal.iter().map(|(identity, entry)| (identity, entry.tsih, entry.owner))
    }

    /// How many sessions there are, discovery included.
    #[must_use]
    pub fn len(&self) -> usize {
        let is_discovery = |member: &&Membership| matches!(member, Membership::Discovery(_));
        self.normal.len() + self.connections.values().filter(is_discovery).count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.normal.is_empty() && self.connections.is_empty()
    }

    fn admit_discovery(&mut self, connection: ConnectionId, tsih: u16) -> Admission {
        if tsih != 0 {
            return Admission::Refused(LoginStatus::SESSION_DOES_NOT_EXIST);
        }
        let Some(tsih) = self.allocate_tsih() else {
            return Admission::Refused(LoginStatus::OUT_OF_RESOURCES);
        };
        self.connections.insert(connection, Membership::Discovery(tsih));
        Admission::Admitted(tsih)
    }

    fn connections_where(&self, is_meant: impl Fn(&SessionIdentity) -> bool) -> Vec<ConnectionId> {
        let mut found: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, member)| matches!(member, Membership::Normal(identity) if is_meant(identity)))
            .map(|(connection, _)| *connection)
            .collect();
        found.sort_unstable();
        found
    }

    /// A TSIH that no session has, unless there are as many sessions as allowed.
    fn allocate_tsih(&mut self) -> Option<Tsih> {
        if self.len() >= self.limit {
            return None;
        }
        loop {
            let candidate = Tsih(self.next_tsih);
            self.next_tsih = self.next_tsih.checked_add(1).unwrap_or(1);
            let is_taken = self.normal.values().any(|entry| entry.tsih == candidate)
                || self
                    .connections
                    .values()
                    .any(|member| matches!(member, Membership::Discovery(tsih) if *tsih == candidate));
            if !is_taken {
                return Some(candidate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(isid: u8, tsih: u16, target: Option<&str>) -> SessionRequest {
        let target = target.map(|name| IscsiName::new(name).unwrap());
        SessionRequest {
            initiator: IscsiName::new("iqn.2026-11.example:host").unwrap(),
            initiator_alias: String::new(),
            isid: Isid([0, 0, 0, 0, 0, isid]),
            tsih,
            connection_id: 0,
            kind: target.map_or(SessionKind::Discovery, |target| SessionKind::Normal { target }),
            group_tag: 1,
        }
    }

    const TARGET: Option<&str> = Some("iqn.2026-11.example:target");
    const OTHER: Option<&str> = Some("iqn.2026-11.example:other");

    #[test]
    fn sessions_differ_by_each_part_of_their_identity() {
        let mut sessions = Sessions::new(10);
        let mut admit = |connection, request| sessions.request(ConnectionId(connection), &request);
        assert_eq!(admit(1, request(1, 0, TARGET)), Admission::Admitted(Tsih(1)));
        assert_eq!(admit(2, request(2, 0, TARGET)), Admission::Admitted(Tsih(2)));
        assert_eq!(admit(3, request(1, 0, OTHER)), Admission::Admitted(Tsih(3)));
        assert_eq!(admit(4, request(1, 0, None)), Admission::Admitted(Tsih(4)));
        assert_eq!(admit(5, request(1, 0, None)), Admission::Admitted(Tsih(5)));
        assert_eq!(sessions.len(), 5);
        let target = IscsiName::new(TARGET.unwrap()).unwrap();
        assert_eq!(sessions.connections_of_target(&target), [ConnectionId(1), ConnectionId(2)]);
    }

    #[test]
    fn a_reinstating_login_waits_for_the_drain() {
        let mut sessions = Sessions::new(10);
        assert_eq!(sessions.request(ConnectionId(1), &request(1, 0, TARGET)), Admission::Admitted(Tsih(1)));
        let wait = sessions.request(ConnectionId(2), &request(1, 0, TARGET));
        assert_eq!(wait, Admission::Wait { drop: ConnectionId(1) });
        // A third login takes the place of the one that waits.
        let wait = sessions.request(ConnectionId(3), &request(1, 0, TARGET));
        assert_eq!(wait, Admission::Wait { drop: ConnectionId(2) });
        assert_eq!(sessions.release(ConnectionId(2)), None);
        assert_eq!(sessions.release(ConnectionId(1)), Some((ConnectionId(3), Tsih(1))));
        assert_eq!(sessions.release(ConnectionId(1)), None);
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions.release(ConnectionId(3)), None);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_login_that_gives_up_waiting_leaves_no_trace() {
        let mut sessions = Sessions::new(10);
        sessions.request(ConnectionId(1), &request(1, 0, TARGET));
        sessions.request(ConnectionId(2), &request(1, 0, TARGET));
        assert_eq!(sessions.release(ConnectionId(2)), None);
        assert_eq!(sessions.release(ConnectionId(1)), None);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_known_tsih_reinstates_its_connection_only() {
        let mut sessions = Sessions::new(10);
        sessions.request(ConnectionId(1), &request(1, 0, TARGET));
        let mut other_connection = request(1, 1, TARGET);
        other_connection.connection_id = 7;
        let refused = |status| Admission::Refused(status);
        let mut ask = |request| sessions.request(ConnectionId(2), &request);
        assert_eq!(ask(other_connection), refused(LoginStatus::TOO_MANY_CONNECTIONS));
        assert_eq!(ask(request(1, 9, TARGET)), refused(LoginStatus::SESSION_DOES_NOT_EXIST));
        assert_eq!(ask(request(2, 1, TARGET)), refused(LoginStatus::SESSION_DOES_NOT_EXIST));
        assert_eq!(ask(request(1, 1, None)), refused(LoginStatus::SESSION_DOES_NOT_EXIST));
        assert_eq!(ask(request(1, 1, TARGET)), Admission::Wait { drop: ConnectionId(1) });
    }

    #[test]
    fn the_number_of_sessions_is_limited_and_handles_are_unique() {
        let mut sessions = Sessions::new(2);
        sessions.next_tsih = u16::MAX;
        assert_eq!(
            sessions.request(ConnectionId(1), &request(1, 0, TARGET)),
            Admission::Admitted(Tsih(65535))
        );
        assert_eq!(sessions.request(ConnectionId(2), &request(1, 0, None)), Admission::Admitted(Tsih(1)));
        let third = sessions.request(ConnectionId(3), &request(3, 0, TARGET));
        assert_eq!(third, Admission::Refused(LoginStatus::OUT_OF_RESOURCES));
        // Reinstatement takes no further place.
        let wait = sessions.request(ConnectionId(4), &request(1, 0, TARGET));
        assert_eq!(wait, Admission::Wait { drop: ConnectionId(1) });
        sessions.release(ConnectionId(2));
        sessions.next_tsih = u16::MAX;
        let again = sessions.request(ConnectionId(5), &request(3, 0, TARGET));
        assert_eq!(again, Admission::Admitted(Tsih(1)), "65535 is taken");
    }
}
