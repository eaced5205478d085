//! Tells the network where an address is now: an ARP announcement (RFC 5227 section 2.3), or an unsolicited neighbour
//! advertisement (RFC 4861 section 7.2.6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Interface;

/// Says that `address` is at `interface`.
pub(super) fn announce(interface: &Interface, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(address) => announce_v4(interface, address),
        IpAddr::V6(address) => announce_v6(interface, address),
    }
}

fn announce_v4(interface: &Interface, address: Ipv4Addr) -> io::Result<()> {
    let (hardware, protocol) = (interface.hardware_address, address.octets());
    // Ethernet, IPv4, their lengths 6 and 4, request; it asks for the address that it is itself.
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend_from_slice(&hardware);
    packet.extend_from_slice(&protocol);
    packet.extend_from_slice(&[0; 6]);
    packet.extend_from_slice(&protocol);
    let ethertype = ETH_P_ARP.to_be();
    let protocol = Protocol::from(i32::from(ethertype));
    let socket = Socket::new(Domain::from(libc::AF_PACKET), Type::DGRAM, Some(protocol))?;
    socket.send_to(&packet, &broadcast(interface.index, ethertype))?;
    Ok(())
}

/// Everybody at an interface, for packets of `ethertype`, which is in network order.
fn broadcast(interface: u32, ethertype: u16) -> SockAddr {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype,
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    };
    // SAFETY: the storage is large enough and aligned for every kind of address, and the closure writes one whole
    // `sockaddr_ll` to it and says its length.
    let built = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    };
    built.expect("the closure does not fail").1
}

fn announce_v6(interface: &Interface, address: Ipv6Addr) -> io::Result<()> {
    // Neighbour advertisement, override; the kernel computes the checksum.
    let mut packet = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    packet.extend_from_slice(&address.octets());
    packet.extend_from_slice(&[2, 1]); // target link-layer address, eight bytes
    packet.extend_from_slice(&interface.hardware_address);
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(interface.index)?;
    socket.bind(&SocketAddrV6::new(address, 0, 0, interface.index).into())?;
    socket.send_to(&packet, &SocketAddrV6::new(ALL_NODES, 0, 0, interface.index).into())?;
    Ok(())
}

const ETH_P_ARP: u16 = 0x0806;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
