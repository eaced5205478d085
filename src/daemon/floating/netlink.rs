//! Adds and removes addresses by rtnetlink (rtnetlink(7)): two messages, each answered by an acknowledgement.

use std::io::{self, Read};
use std::net::IpAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Address;

/// Adds an address, or renews it, for so many seconds.
pub(super) fn add(interface: u32, address: Address, valid_s: u32) -> io::Result<()> {
    let mut message = message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, interface, address);
    // Deprecated from the beginning, so that the node's own connections do not come from it.
    let lifetimes = [0, valid_s, 0, 0].map(u32::to_ne_bytes).concat();
    attribute(&mut message, IFA_CACHEINFO, &lifetimes);
    exchange(message)
}

/// Removes an address. That it is not there is no error.
pub(super) fn remove(interface: u32, address: Address) -> io::Result<()> {
    match exchange(message(RTM_DELADDR, 0, interface, address)) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

fn message(kind: u16, flags: u16, interface: u32, address: Address) -> Vec<u8> {
    let (family, octets) = match address.ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let mut message = vec![0; 4]; // the length, known at the end
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence number and port: there is one request
    // Duplicate address detection would keep an IPv6 address from being used for a second.
    message.extend_from_slice(&[family as u8, address.prefix, IFA_F_NODAD, 0]);
    message.extend_from_slice(&interface.to_ne_bytes());
    attribute(&mut message, IFA_LOCAL, &octets);
    attribute(&mut message, IFA_ADDRESS, &octets);
    message
}

/// Appends an attribute; all of ours have a length that needs no padding.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes are short");
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
}

/// Sends a request and reads its acknowledgement.
fn exchange(mut message: Vec<u8>) -> io::Result<()> {
    let length = u32::try_from(message.len()).expect("messages are short");
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    let domain = Domain::from(libc::AF_NETLINK);
    let mut socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    // The kernel answers within the call that sends; this is for the case that it never does.
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.send(&message)?;
    let mut answer = [0; 4096];
    let count = socket.read(&mut answer)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if kind != NLMSG_ERROR || count < 20 {
        return Err(io::Error::other("the kernel's answer is no acknowledgement"));
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

// linux/rtnetlink.h, linux/netlink.h and linux/if_addr.h.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_F_NODAD: u8 = 0x02;
