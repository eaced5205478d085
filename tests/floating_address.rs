//! Floating addresses on a real network interface, in a network namespace of the test's own: taken, announced, renewed,
//! given up, and lost by whoever does not renew them.
//!
//! Skipped, with the reason, where the machine lets nobody make a namespace.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use gemel::daemon::floating::{Address, FloatingAddresses, FloatingConfig, VALID_S};
use socket2::{Domain, Protocol, Socket, Type};

const INSIDE: &str = "GEMEL_INSIDE_A_NETWORK_NAMESPACE";
const NAME: &str = "an_address_is_held_by_who_renews_it_and_the_network_is_told";

#[test]
fn an_address_is_held_by_who_renews_it_and_the_network_is_told() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    // What /sys shows of interfaces is of the namespace that it was mounted in.
    let make = "mount -t sysfs sysfs /sys && ip link add v0 type veth peer name v1";
    let possible = Command::new("unshare").args(["-rnm", "sh", "-c", make]).output();
    match possible {
        Ok(output) if output.status.success() => {}
        other => {
            println!("skipped: no network namespace with a virtual interface can be made here: {other:?}");
            return;
        }
    }
    let output = Command::new("unshare")
        .args(["-rnm", "timeout", "60", "sh", "-c", &format!("{make} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn has(address: &str) -> bool {
    ip("addr show dev v0").contains(address)
}

fn inside() {
    ip("link set v1 up");
    ip("link set v0 up");
    // Everything that arrives at the other end.
    let every_protocol = 3u16.to_be();
    let mut wire = Socket::new(
        Domain::from(libc::AF_PACKET),
        Type::RAW,
        Some(Protocol::from(i32::from(every_protocol))),
    )
    .unwrap();
    wire.set_read_timeout(Some(Duration::from_millis(200))).unwrap();

    let config = FloatingConfig {
        interface: "v0".into(),
        addresses: ["192.0.2.10/24", "2001:db8::10/64"]
            .map(|text| Address::try_from(text.to_owned()).unwrap())
            .to_vec(),
    };
    let mut floating = FloatingAddresses::new(config);
    floating.tick(false, Instant::now());
    assert!(!floating.are_held() && !has("192.0.2.10/24"));

    floating.tick(true, Instant::now());
    assert!(floating.are_held() && has("192.0.2.10/24") && has("2001:db8::10/64"));
    let (mut arp, mut advertisement) = (false, false);
    let mut frame = [0; 2048];
    let until = Instant::now() + Duration::from_secs(5);
    while !(arp && advertisement) {
        assert!(Instant::now() < until, "announced: by ARP {arp}, by advertisement {advertisement}");
        let Ok(count) = wire.read(&mut frame) else { continue };
        let frame = &frame[..count];
        let address6 = "2001:db8::10".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let is_broadcast = frame.starts_with(&[0xff; 6]);
        arp |= is_broadcast && frame[12..14] == [8, 6] && frame[28..32] == [192, 0, 2, 10];
        advertisement |= frame.len() >= 86 && frame[54] == 136 && frame[62..78] == address6;
    }

    // Renewed for longer than the kernel keeps it by itself.
    let held_until = Instant::now() + Duration::from_secs(u64::from(VALID_S) + 2);
    while Instant::now() < held_until {
        floating.tick(true, Instant::now());
        assert!(has("192.0.2.10/24") && has("2001:db8::10/64"));
        std::thread::sleep(Duration::from_millis(50));
    }
    floating.tick(false, Instant::now());
    assert!(!floating.are_held() && !has("192.0.2.10/24") && !has("2001:db8::10/64"), "given up at once");

    // Taken, and then nothing more: as by a process that was killed, or that is stopped.
    floating.tick(true, Instant::now());
    assert!(has("192.0.2.10/24"));
    std::mem::forget(floating);
    let taken = Instant::now();
    while has("192.0.2.10/24") || has("2001:db8::10/64") {
        assert!(taken.elapsed() < Duration::from_secs(u64::from(VALID_S) + 3), "kept for ever");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("lost {:?} after the last renewal", taken.elapsed());
}
