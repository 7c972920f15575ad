//! A datagram from pod to pod, and what passes at several places on its way.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use loden_core::model::{Attachment, Family, IfName, Mac};
use loden_lab::Lab;
use loden_lab::probe::capture::Capture;
use loden_linux::run_dir::RunDir;

/// When, at which of the places, whether it was sent there (or came in), and what.
pub type Passed<T> = (Duration, usize, bool, T);

pub fn name(text: &str) -> IfName {
    text.parse().expect(text)
}

/// A pod as its host has written it down.
pub fn attachment(lab: &Lab, host: &str) -> Attachment {
    let mut found = RunDir::new(lab.dir().join(host).join("run")).attachments().good;
    assert_eq!(found.len(), 1);
    found.remove(0)
}

pub fn ip(attachment: &Attachment, family: Family) -> IpAddr {
    attachment.ips().find(|addr| Family::of(*addr) == family).expect("an address of each family")
}

/// Where an address is asked for: in IPv6 at the multicast address that the last three bytes give (RFC 4291 section 2.7.1, RFC 2464
/// section 7).
pub fn asked_at(wanted: IpAddr) -> Mac {
    match wanted {
        IpAddr::V4(_) => Mac([0xff; 6]),
        IpAddr::V6(addr) => {
            let [.., a, b, c] = addr.octets();
            Mac([0x33, 0x33, 0xff, a, b, c])
        }
    }
}

/// A socket in a pod.
pub fn bound(lab: &Lab, pod: &str, addr: IpAddr, port: u16) -> UdpSocket {
    let open = || UdpSocket::bind((addr, port)).expect("bound");
    let socket = lab.netns(pod).expect("netns").run(open).expect("a thread");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    socket
}

/// Sends a datagram from the first pod of host1 to a port of that of host2, where it arrives.
pub fn send(lab: &Lab, from: IpAddr, to: IpAddr, port: u16) {
    let server = bound(lab, "host2-pod1", to, port);
    bound(lab, "host1-pod1", from, 0).send_to(b"walk", (to, port)).expect("sent");
    server.recv(&mut [0; 8]).expect("it arrives");
}

/// What passes while something is done, in order, as far as `read` knows what it is; it is told at which place.
pub fn watch<T>(
    lab: &Lab,
    places: &[(&str, IfName)],
    act: impl FnOnce(),
    read: impl Fn(usize, &[u8]) -> Option<T>,
) -> Vec<Passed<T>> {
    let start =
        |(place, dev): &(&str, IfName)| Capture::start(&lab.netns(place).expect("netns"), *dev).expect("a capture");
    let captures: Vec<Capture> = places.iter().map(start).collect();
    act();
    let mut seen = Vec::new();
    for (n, capture) in captures.into_iter().enumerate() {
        for frame in capture.stop().expect("frames") {
            seen.extend(read(n, &frame.bytes).map(|what| (frame.at, n, frame.is_sent, what)));
        }
    }
    // The kernel's clock is one for all namespaces; at one time what is sent goes before what has come in.
    seen.sort_by_key(|(at, n, is_sent, _)| (*at, !is_sent, *n));
    seen
}
