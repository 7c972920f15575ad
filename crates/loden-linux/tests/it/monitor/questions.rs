//! Questions for neighbours come to those who listen for them, and not to the monitor.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use loden_core::model::Family;
use loden_linux::misses::Misses;
use loden_linux::sockopt::filter_kind;

use super::*;

const MANY: u8 = 200;

#[test]
fn questions_are_heard_apart_and_each_once() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let (dev, index) = (ifname("v1"), index_of("v1"));
        let sysctls = [(DeviceSysctl::AppSolicit(Family::V4), 3), (DeviceSysctl::McastSolicit(Family::V4), 0)];
        for (sysctl, value) in sysctls {
            apply(&mut kernel, &[add(Key::DeviceSysctl(dev, sysctl), Object::Sysctl(value))]);
        }
        let route = Key::Route(prefix("10.9.0.0/16"), 0);
        apply(&mut kernel, &[add(route, Object::Route(Via::Link(dev)))]);
        let mut ears = Ears::of(&kernel);
        let mut misses = Misses::open().expect("a socket");
        drop(ears.all());
        let mut deaf = Socket::open(Protocol::Route).expect("a socket");
        filter_kind(&deaf, neighbour::GET, false).expect("a filter");
        deaf.join(3).expect("the group of neighbours");
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        for n in 1..=MANY {
            socket.send_to(b"?", (IpAddr::from([10, 9, 0, n]), 9)).expect("sent");
            socket.send_to(b"?", (IpAddr::from([10, 9, 0, n]), 9)).expect("sent");
        }
        let mut asked = BTreeSet::new();
        let begun = Instant::now();
        while asked.len() < usize::from(MANY) && begun.elapsed() < PATIENCE {
            assert!(!misses.wait(64, &mut asked).expect("heard"), "none is lost");
        }
        assert_eq!(asked, (1..=MANY).map(|n| (index, [10, 9, 0, n].into())).collect());
        // The answer is the driver's own doing; somebody else's is the first that the others hear.
        apply(&mut kernel, &[add(Key::Neighbour(dev, ip("10.9.0.1")), Object::Neighbour(mac("02:00:00:00:00:01")))]);
        let mut kinds = Vec::new();
        deaf.receive(|message| kinds.push(message.kind)).expect("received");
        assert_eq!(kinds, [neighbour::NEW], "questions take no room of theirs");
        foreign(|w| neighbour::put(w, index, ip("10.9.0.2"), mac("02:00:00:00:00:02")));
        ears.hear(
            "a neighbour",
            |event| matches!(event, Event::Seen(Key::Neighbour(_, addr), _) if *addr == ip("10.9.0.2")),
        );
    });
}
