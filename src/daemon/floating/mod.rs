//! Floating addresses, for hosts that know one path only: held by the node that serves most mirrored volumes, while it
//! may serve.
//!
//! Guarantees: an address is given up as soon as the node is told to, and by the kernel itself when the process does
//! not renew it for [`VALID_S`] seconds: killed, stopped or stuck it does not keep it. A node that takes an address
//! tells the network (gratuitous ARP, unsolicited neighbour advertisement).
//!
//! A session at an address that has left is not even told of its end, so whoever gives one up ends them before.
//!
//! Left to others: ending sessions, who may hold it when ([`is_chosen`] and the lease), and which portals listen on it: those on all
//! addresses do.

mod announce;
mod netlink;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::cluster::name::NodeName;
use crate::cluster::state::ControlState;
use crate::cluster::state::volume::Redundancy;

/// `[floating]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloatingConfig {
    /// Name of the network interface.
    pub interface: String,
    /// Addresses with the length of their prefix, `192.0.2.10/24`.
    pub addresses: Vec<Address>,
}

/// An address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of its prefix.
    pub prefix: u8,
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an address with its prefix, such as 192.0.2.10/24");
        let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most).ok_or_else(wrong)?;
        Ok(Self { ip, prefix })
    }
}

/// Whether `own` is the node that is to hold floating addresses: the one that is primary of most mirrored volumes, and
/// among equals the first by name. Both nodes find the same from the same state.
#[must_use]
pub fn is_chosen(state: &ControlState, own: &NodeName) -> bool {
    let primaries: Vec<&NodeName> = state
        .volumes()
        .filter(|record| record.redundancy == Redundancy::Mirrored)
        .map(|record| &record.primary)
        .collect();
    chosen(state.nodes().map(|(name, _)| name), &primaries) == Some(own)
}

fn chosen<'a>(nodes: impl Iterator<Item = &'a NodeName>, primaries: &[&NodeName]) -> Option<&'a NodeName> {
    let count = |node: &NodeName| primaries.iter().filter(|primary| **primary == node).count();
    nodes.min_by_key(|node| (std::cmp::Reverse(count(node)), (*node).clone()))
}

/// The floating addresses of a node.
pub struct FloatingAddresses {
    config: FloatingConfig,
    /// When they were taken or renewed last, while they are held.
    renewed: Option<Instant>,
    /// How often the network is still to be told.
    announcements: u32,
    /// What went wrong last, so that it is said once.
    said: Option<String>,
}

impl FloatingAddresses {
    /// None is held. What an earlier process may have left behind is given up.
    #[must_use]
    pub fn new(config: FloatingConfig) -> Self {
        let mut addresses = Self { config, renewed: None, announcements: 0, said: None };
        addresses.give_up();
        addresses
    }

    /// Which they are.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.config.addresses.iter().map(|address| address.ip).collect()
    }

    /// Whether they are held.
    #[must_use]
    pub fn are_held(&self) -> bool {
        self.renewed.is_some()
    }

    /// To be called often: takes the addresses, renews them, or gives them up.
    pub fn tick(&mut self, may_hold: bool, now: Instant) {
        let is_held = self.are_held();
        let is_due = self.renewed.is_none_or(|at| now.duration_since(at) >= RENEWAL);
        if may_hold && is_due {
            self.announcements = if is_held { self.announcements } else { ANNOUNCEMENTS };
            let result = self.renew();
            if result.is_ok() {
                if !is_held {
                    tracing::info!(addresses = ?self.config.addresses, "floating addresses taken");
                }
                self.renewed = Some(now);
            }
            self.say(result);
        } else if !may_hold && is_held {
            self.give_up();
            tracing::info!(addresses = ?self.config.addresses, "floating addresses given up");
        }
    }

    /// Gives the addresses up, held or not.
    pub fn give_up(&mut self) {
        self.renewed = None;
        let interface = Interface::named(&self.config.interface);
        let result = interface.and_then(|interface| {
            let remove = |address| netlink::remove(interface.index, address);
            self.config.addresses.iter().copied().try_for_each(remove).map_err(|error| error.to_string())
        });
        self.say(result);
    }

    fn renew(&mut self) -> Result<(), String> {
        let interface = Interface::named(&self.config.interface)?;
        for address in &self.config.addresses {
            netlink::add(interface.index, *address, VALID_S).map_err(|error| error.to_string())?;
        }
        if self.announcements > 0 {
            self.announcements -= 1;
            for address in &self.config.addresses {
                announce::announce(&interface, address.ip).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn say(&mut self, result: Result<(), String>) {
        let error = result.err();
        if self.said != error {
            if let Some(error) = &error {
                let FloatingConfig { interface, addresses } = &self.config;
                tracing::error!(interface, ?addresses, error, "floating addresses");
            }
            self.said = error;
        }
    }
}

impl Drop for FloatingAddresses {
    fn drop(&mut self) {
        if self.are_held() {
            self.give_up();
        }
    }
}

/// A network interface.
struct Interface {
    index: u32,
    hardware_address: [u8; 6],
}

impl Interface {
    fn named(name: &str) -> Result<Self, String> {
        let read = |file: &str| {
            std::fs::read_to_string(Path::new("/sys/class/net").join(name).join(file))
                .map_err(|error| format!("there is no interface {name}: {error}"))
        };
        let index = read("ifindex")?.trim().parse().map_err(|_| format!("{name} has no index"))?;
        let mut hardware_address = [0; 6];
        let text = read("address")?;
        for (byte, part) in hardware_address.iter_mut().zip(text.trim().split(':')) {
            *byte = u8::from_str_radix(part, 16).map_err(|_| format!("{name} has no hardware address"))?;
        }
        Ok(Self { index, hardware_address })
    }
}

/// How long the kernel keeps an address that is not renewed.
pub const VALID_S: u32 = 3;
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(1);
/// How often the network is told, once a renewal.
const ANNOUNCEMENTS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_that_serves_most_is_chosen_and_the_first_of_equals() {
        let [a, b]: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let nodes = || [&a, &b].into_iter();
        assert_eq!(chosen(nodes(), &[]), Some(&a));
        assert_eq!(chosen(nodes(), &[&b]), Some(&b));
        assert_eq!(chosen(nodes(), &[&b, &a]), Some(&a));
        assert_eq!(chosen(nodes(), &[&b, &a, &b]), Some(&b));
    }

    #[test]
    fn addresses_have_a_prefix_that_fits() {
        let parse = |text: &str| Address::try_from(text.to_owned());
        assert_eq!(parse("192.0.2.10/24").unwrap(), Address { ip: [192, 0, 2, 10].into(), prefix: 24 });
        assert_eq!(parse("2001:db8::1/128").unwrap().prefix, 128);
        for wrong in ["192.0.2.10", "192.0.2.10/33", "2001:db8::1/129", "/24", "here/24", "192.0.2.10/"] {
            assert!(parse(wrong).unwrap_err().contains("192.0.2.10/24"), "{wrong}");
        }
    }
}
