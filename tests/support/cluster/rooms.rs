//! Network namespaces: one for each member, one for a host, and the links between them, which can be cut.
//!
//! ```text
//!   a ====== b     two links between the rooms
//!    \  h   /      a host with a link to each node
//!      \ w /       the witness, with a link to each node
//! ```
//!
//! A link is cut as a dead switch would: frames vanish, and neither end is told. Each direction is cut by itself,
//! by a neighbour's address that nobody has.

use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The namespaces; they are removed at the end.
pub struct Rooms {
    prefix: String,
}

/// Two ends, by name, and the number of the link between them.
const LINKS: [(&str, &str, u8); 6] =
    [("a", "b", 1), ("a", "b", 2), ("a", "w", 3), ("b", "w", 4), ("a", "h", 5), ("b", "h", 6)];
const ALL: [&str; 4] = ["a", "b", "w", "h"];

impl Rooms {
    /// Makes them, or says why that is not possible here.
    pub fn build() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let rooms = Self { prefix: format!("gemel-{}-{number}", std::process::id()) };
        for member in ALL {
            ip(&["netns", "add", &rooms.name(member)])?;
            ip(&["-n", &rooms.name(member), "link", "set", "lo", "up"])?;
        }
        for (one, other, link) in LINKS {
            let (first, second) = (rooms.name(one), rooms.name(other));
            let device = device(link);
            let (first_mac, second_mac) = (mac(one, link), mac(other, link));
            ip(&[
                "link",
                "add",
                &device,
                "netns",
                &first,
                "address",
                &first_mac,
                "type",
                "veth",
                "peer",
                "name",
                &device,
                "netns",
                &second,
                "address",
                &second_mac,
            ])?;
            for (end, namespace) in [(one, &first), (other, &second)] {
                ip(&["-n", namespace, "addr", "add", &format!("{}/24", address(end, link)), "dev", &device])?;
                ip(&["-n", namespace, "link", "set", &device, "up"])?;
            }
            rooms.set(one, other, link, &second_mac)?;
            rooms.set(other, one, link, &first_mac)?;
        }
        Ok(rooms)
    }

    /// Connects both nodes and the host by one more network, on interfaces called [`LAN`].
    pub fn build_lan(&self) -> Result<(), String> {
        let host = self.name("h");
        ip(&["-n", &host, "link", "add", LAN, "type", "bridge"])?;
        for node in ["a", "b"] {
            let (namespace, port) = (self.name(node), format!("{LAN}-{node}"));
            ip(&[
                "link", "add", LAN, "netns", &namespace, "type", "veth", "peer", "name", &port, "netns",
                &host,
            ])?;
            ip(&["-n", &host, "link", "set", &port, "master", LAN, "up"])?;
            ip(&["-n", &namespace, "link", "set", LAN, "up"])?;
        }
        ip(&["-n", &host, "addr", "add", "10.77.9.9/24", "dev", LAN])?;
        ip(&["-n", &host, "link", "set", LAN, "up"])
    }

    /// Name of a member's namespace.
    pub fn name(&self, member: &str) -> String {
        format!("{}-{member}", self.prefix)
    }

    /// Where hosts reach a node.
    pub fn portal(node: &str) -> &'static str {
        if node == "a" { "10.77.5.1" } else { "10.77.6.2" }
    }

    /// Where a member reaches another one, one address a link.
    pub fn addresses(from: &str, to: &str) -> Vec<String> {
        let links = LINKS
            .iter()
            .filter(|(one, other, _)| [*one, *other] == [from, to] || [*other, *one] == [from, to]);
        links.map(|(.., link)| address(to, *link)).collect()
    }

    /// Cuts all links between two members.
    pub fn cut(&self, one: &str, other: &str) {
        self.cut_from_to(one, other);
        self.cut_from_to(other, one);
    }

    /// What the one sends does not reach the other, which still is heard.
    pub fn cut_from_to(&self, from: &str, to: &str) {
        links(from, to).for_each(|link| self.set(from, to, link, NOBODY).expect("a link can be cut"));
    }

    /// Cuts one of the two links between the rooms.
    pub fn cut_link(&self, link: u8) {
        self.set("a", "b", link, NOBODY).expect("a link can be cut");
        self.set("b", "a", link, NOBODY).expect("a link can be cut");
    }

    /// Mends all links between two members.
    pub fn mend(&self, one: &str, other: &str) {
        for link in links(one, other) {
            self.set(one, other, link, &mac(other, link)).expect("a link can be mended");
            self.set(other, one, link, &mac(one, link)).expect("a link can be mended");
        }
    }

    /// What takes the calling thread to the host's namespace: sockets that it opens from then on are there.
    pub fn host_entrance(&self) -> impl Fn() + Clone + Send + 'static {
        let path = format!("/run/netns/{}", self.name("h"));
        move || {
            let namespace = std::fs::File::open(&path).expect("the namespace is there");
            // SAFETY: the descriptor is open, and the call changes the calling thread's namespace alone.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
        }
    }

    /// Where one end sends what is for the other.
    fn set(&self, from: &str, to: &str, link: u8, mac: &str) -> Result<(), String> {
        let (namespace, device) = (self.name(from), device(link));
        let neighbour = address(to, link);
        ip(&[
            "-n",
            &namespace,
            "neigh",
            "replace",
            &neighbour,
            "lladdr",
            mac,
            "dev",
            &device,
            "nud",
            "permanent",
        ])
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        ALL.iter().for_each(|member| drop(ip(&["netns", "del", &self.name(member)])));
    }
}

/// The interface of the network that [`Rooms::build_lan`] makes.
pub const LAN: &str = "lan";

const NOBODY: &str = "02:00:00:00:00:00";

fn links(one: &str, other: &str) -> impl Iterator<Item = u8> {
    let ends = [one.to_owned(), other.to_owned()];
    LINKS
        .iter()
        .filter(move |(a, b, _)| ends.iter().any(|end| end == a) && ends.iter().any(|end| end == b))
        .map(|(.., link)| *link)
}

fn device(link: u8) -> String {
    format!("link{link}")
}

fn seat(member: &str) -> usize {
    1 + ALL.iter().position(|known| *known == member).expect("a member")
}

fn address(member: &str, link: u8) -> String {
    format!("10.77.{link}.{}", seat(member))
}

fn mac(member: &str, link: u8) -> String {
    format!("02:00:00:00:{link:02x}:{:02x}", seat(member))
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}
