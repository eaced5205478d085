//! Answers to logins: who has to prove what, who may use what, who sees what.

use std::net::SocketAddr;
use std::rc::Rc;

use crate::daemon::data::access::Access;
use crate::daemon::data::pool::Pool;
use crate::daemon::data::volumes::Volumes;
use crate::daemon::engine::ChapRule;
use crate::iscsi::names::IscsiName;
use crate::iscsi::policy::{
    Authentication, Authorization, ChapCredential, ChapSecret, DiscoveredTarget, LoginPolicy, Portal,
};

/// Which logins are sent to the node that serves the volume.
#[derive(Clone, Debug, Default)]
pub struct Redirection {
    /// Portals at which they are. None by default: a host with multipath would have two sessions to one node.
    pub portals: Vec<SocketAddr>,
    /// The portal of the other node that they are sent to.
    pub to: Option<SocketAddr>,
}

impl Redirection {
    /// Where a login at `portal` is sent when the other node serves the volume.
    fn address_for(&self, portal: &Portal) -> Option<String> {
        let reached: SocketAddr = portal.address.parse().ok()?;
        let is_named = |named: &SocketAddr| {
            named.port() == reached.port() && (named.ip().is_unspecified() || named.ip() == reached.ip())
        };
        self.to.filter(|_| self.portals.iter().any(is_named)).map(|to| to.to_string())
    }
}

/// The policy of a node, from its access rules and volumes.
pub struct Policy<P: Pool> {
    volumes: Rc<Volumes<P>>,
    access: Rc<Access>,
    portals: Vec<SocketAddr>,
    group_tag: u16,
    redirection: Redirection,
    /// A secret that nobody knows, for initiators that have none and must be refused.
    impossible: ChapSecret,
}

impl<P: Pool> Policy<P> {
    /// The policy for initiators that reach the node on `portals`. `random` are bytes that nobody knows.
    #[must_use]
    pub fn new(
        volumes: Rc<Volumes<P>>,
        access: Rc<Access>,
        portals: Vec<SocketAddr>,
        group_tag: u16,
        redirection: Redirection,
        random: [u8; 32],
    ) -> Self {
        Self { volumes, access, portals, group_tag, redirection, impossible: ChapSecret::new(random) }
    }

    /// Addresses to name to an initiator that is connected to `connected`: a portal on all addresses
    /// is named by the one that the initiator has reached.
    fn portals_for(&self, connected: &Portal) -> Vec<Portal> {
        let reached: Option<SocketAddr> = connected.address.parse().ok();
        let named = self.portals.iter().map(|portal| match reached {
            Some(reached) if portal.ip().is_unspecified() => SocketAddr::new(reached.ip(), portal.port()),
            _ => *portal,
        });
        let mut portals: Vec<_> =
            named.map(|address| Portal { address: address.to_string(), group_tag: self.group_tag }).collect();
        portals.dedup();
        portals
    }
}

impl<P: Pool> LoginPolicy for Policy<P> {
    fn authentication(&self, initiator: &IscsiName, _target: Option<&IscsiName>) -> Authentication {
        match self.access.chap(initiator.as_str()) {
            Some(ChapRule { incoming, outgoing, .. }) => {
                let credential = |(name, secret): (String, Vec<u8>)| ChapCredential {
                    name,
                    secret: ChapSecret::new(secret),
                };
                Authentication::Chap { incoming: credential(incoming), outgoing: outgoing.map(credential) }
            }
            // Looks like a wrong secret, so that nothing can be learnt about who has one.
            None if self.access.requires_chap() => Authentication::Chap {
                incoming: ChapCredential { name: initiator.to_string(), secret: self.impossible.clone() },
                outgoing: None,
            },
            None => Authentication::None,
        }
    }

    fn authorize(&self, initiator: &IscsiName, target: &IscsiName, portal: &Portal) -> Authorization {
        // A target that the initiator may not use is as if it were not there.
        match self.volumes.of_target(target.as_str()) {
            Some(volume) if self.access.may_use(initiator.as_str(), volume.id) => {
                // Only where the other node is known to serve: else two nodes could send a host to and fro.
                let moved = self.redirection.address_for(portal).filter(|_| volume.unit.is_forwarding());
                moved.map_or(Authorization::Granted, Authorization::Moved)
            }
            _ => Authorization::NotFound,
        }
    }

    fn targets(&self, initiator: &IscsiName, portal: &Portal) -> Vec<DiscoveredTarget> {
        let portals = self.portals_for(portal);
        let volumes = self.volumes.all().into_iter();
        let allowed = volumes.filter(|volume| self.access.may_use(initiator.as_str(), volume.id));
        // Target names are made of checked names, so each is one.
        let names = allowed.filter_map(|volume| IscsiName::new(&volume.target).ok());
        names.map(|name| DiscoveredTarget { name, portals: portals.clone() }).collect()
    }
}
