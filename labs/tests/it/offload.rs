//! A network card that knows nothing of tunnels: it fills in the checksums that it sees outside, and leaves those inside as they are.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use loden_core::api::Status;
use loden_core::kernel::NO_GROUP;
use loden_core::model::{Family, IfName};
use loden_core::offload::By;
use loden_lab::probe::{Protocol as Asked, reach};
use loden_lab::{Lab, LabError, Topology};
use loden_linux::checksum::{add, sum};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::NetNs;
use loden_linux::packet::{ALL, PacketSocket};
use loden_linux::rt::link::{self, VethEnd};
use loden_linux::{LinuxError, ethtool};
use rustix::process::Signal;

use crate::support::{Guard, POOLS, SEGMENT, all_reach, binaries, by_hand, hosts, number, say, up, wait_for};

const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

fn name(text: &str) -> IfName {
    text.parse().expect("an interface's name")
}

/// Who computes on a device of a host, as its kernel has it.
fn by(lab: &Lab, host: &str, dev: &str) -> By {
    let read = || ethtool::checksums(name(dev));
    lab.netns(host).expect("netns").run(read).expect("a thread").expect("an answer")
}

fn status(lab: &Lab, host: &str) -> Status {
    lab.agent(host).expect("an agent").status().expect("a status")
}

/// Waits until an agent says of both devices who computes, and has that from its peer.
fn wait_for_verdict(lab: &Lab, host: &str, wanted: By) -> Status {
    let is_it = |status: &Status| {
        status.checksums.len() == DEVICES.len()
            && status.checksums.iter().all(|of| of.by == Some(wanted) && of.tried_with.is_some())
    };
    let took = wait_for(&format!("{host}: by {wanted:?}"), || is_it(&status(lab, host)));
    let status = status(lab, host);
    say(&format!("{host} after {} ms: {:?}", took.as_millis(), status.checksums));
    for dev in DEVICES {
        assert_eq!(by(lab, host, dev), wanted, "{dev} of {host}");
    }
    status
}

/// Between the pods of the two hosts: whether what is asked gets an answer, in each family.
fn pods_reach(lab: &Lab, protocol: Asked) -> Vec<bool> {
    let probes = reach::all(lab).expect("probes");
    let is_meant =
        |probe: &&reach::Probe| probe.from.contains("pod") && probe.to.contains("pod") && probe.protocol == protocol;
    let meant: Vec<_> = probes.iter().filter(is_meant).collect();
    for family in Family::ALL {
        assert_eq!(meant.iter().filter(|probe| probe.family == family).count(), 2, "{meant:?}");
    }
    meant.iter().map(|probe| probe.fault.is_none()).collect()
}

/// Between a host and its segment, as the hardware would be.
struct Card {
    is_over: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl Card {
    /// Takes the place of the wire between the first segment and a host's external interface.
    fn insert(lab: &Lab, host: &str) -> Result<Self, LabError> {
        let fail = |error: LinuxError| LabError::system("the card", error);
        let segment = lab.netns("segment0")?;
        let [near, far] = segment.run(|| rewire(&segment, host)).and_then(|done| done).map_err(fail)?.map(Arc::new);
        let is_over = Arc::new(AtomicBool::new(false));
        let way = |from: &Arc<PacketSocket>, to: &Arc<PacketSocket>, is_outward| {
            let (from, to, is_over) = (Arc::clone(from), Arc::clone(to), Arc::clone(&is_over));
            std::thread::spawn(move || carry(&from, &to, is_outward, &is_over))
        };
        let ways = vec![way(&near, &far, true), way(&far, &near, false)];
        Ok(Self { is_over, ways })
    }

    /// From now on the kernel sees the wire itself, which has no such fault.
    fn cure(self, lab: &Lab, host: &str) {
        drop(self);
        by_hand(lab, "segment0", |w| link::set_up(w, name("socket"), false));
        let bridge = number(lab, "segment0", "br0").expect("a bridge");
        by_hand(lab, "segment0", |w| link::set_master(w, name(&format!("to-{host}")), bridge));
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.ways.drain(..).for_each(|way| drop(way.join()));
    }
}

/// Host — `to-HOST` … `socket` — `wire` — bridge.
fn rewire(segment: &NetNs, host: &str) -> Result<[PacketSocket; 2], LinuxError> {
    let (near, far, wire) = (name(&format!("to-{host}")), name("socket"), name("wire"));
    let mut netlink = Socket::open(Protocol::Route)?;
    let bridge = link::number_of(&netlink, name("br0"))?;
    let mut w = Writer::default();
    let end = |name, master| VethEnd { name, mtu: 1500, mac: None, group: NO_GROUP, master };
    link::create_veth(&mut w, end(wire, bridge), end(far, None), segment.as_fd().as_raw_fd().cast_unsigned());
    link::set_master(&mut w, near, 0);
    for dev in [wire, far] {
        link::no_made_up_address(&mut w, dev);
        link::set_up(&mut w, dev, true);
    }
    netlink.batch(&mut w)?.into_iter().collect::<Result<(), LinuxError>>()?;
    // What goes to the host comes by the cards of others, which are well. The bridge's port is the last place where the kernel sees it.
    ethtool::set_checksums(wire, By::Host)?;
    Ok([PacketSocket::open_on(near, ALL)?, PacketSocket::open_on(far, ALL)?])
}

fn carry(from: &PacketSocket, to: &PacketSocket, is_outward: bool, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let Some(mut frame) = from.receive(Duration::from_millis(50)).expect("frames") else { continue };
        if frame.is_sent {
            continue;
        }
        if is_outward && frame.is_checksum_missing {
            fill_in(&mut frame.bytes);
        }
        // What is too long for the wire is lost.
        let _ = to.send(&frame.bytes);
    }
}

/// Fills in the checksum of TCP or UDP behind the first IP header, if it is that one which is missing: then the sum of the addresses,
/// the protocol and the length is in its place.
fn fill_in(frame: &mut [u8]) -> Option<()> {
    let (ip, header, addresses, protocol) = match (frame.get(12)?, frame.get(13)?) {
        (0x08, 0x00) => (14, usize::from(frame.get(14)? & 15) * 4, 12..20, *frame.get(23)?),
        (0x86, 0xdd) => (14, 40, 8..40, *frame.get(20)?),
        _ => return None,
    };
    let end = match header {
        40 => ip + 40 + usize::from(u16::from_be_bytes([frame[18], frame[19]])),
        _ => ip + usize::from(u16::from_be_bytes([frame[16], frame[17]])),
    };
    let begin = ip + header;
    let at = begin
        + match protocol {
            6 => 16,
            17 => 6,
            _ => return None,
        };
    let length = u16::try_from(end.checked_sub(begin)?).ok()?;
    let outside = sum(frame.get(ip + addresses.start..ip + addresses.end)?);
    let outside = add(outside, add(protocol.into(), length));
    if frame.get(at..at + 2)? != outside.to_be_bytes() {
        return None;
    }
    let filled = match !sum(frame.get(begin..end)?) {
        0 => 0xffff,
        other => other,
    };
    frame[at..at + 2].copy_from_slice(&filled.to_be_bytes());
    Some(())
}

#[test]
fn where_the_card_is_right_it_stays_its_business() {
    let lab = up("offload", &[SEGMENT, &hosts(3, ""), POOLS].concat());
    for host in ["host1", "host2", "host3"] {
        let status = wait_for_verdict(&lab, host, By::Card);
        assert_eq!(status.problems, []);
    }
    // Nobody else's device is asked or set.
    assert_eq!(by(&lab, "host1", "eth0"), By::Card);
    all_reach(&lab);
}

#[test]
fn without_peers_nothing_is_tried() {
    let lab = up("offload-alone", &[SEGMENT, &hosts(1, ""), POOLS].concat());
    wait_for("both devices", || status(&lab, "host1").checksums.len() == 2);
    std::thread::sleep(Duration::from_secs(1));
    for of in status(&lab, "host1").checksums {
        assert_eq!((of.by, of.tried_with, of.text.contains("not tried yet")), (Some(By::Card), None, true));
    }
}

#[test]
fn where_the_card_is_wrong_the_host_computes() {
    let topology = [SEGMENT, &hosts(2, "agent = { checksum_test = false }"), POOLS].concat();
    let topology = Topology::parse(&format!("name = \"offload-wrong\"\n{topology}")).expect("a topology");
    let dir = Path::new("/run/loden-lab-test").join(format!("offload-wrong-{}", std::process::id()));
    let mut card = None;
    let prepare = |lab: &Lab| {
        // It cannot cut packets apart either: the host's kernel does, and leaves the checksums of the pieces to it.
        lab.exec("host1", "ip", &["link", "set", "eth0", "gso_max_segs", "1"].map(str::to_owned))?;
        card = Some(Card::insert(lab, "host1")?);
        Ok(())
    };
    let lab = Guard(Lab::up_with(&topology, &dir, binaries(), false, &mut |_| {}, prepare).expect("the lab comes up"));
    let card = card.expect("a card");

    // As the field knows it.
    assert_eq!(pods_reach(&lab, Asked::Icmp), [true; 4]);
    assert_eq!(pods_reach(&lab, Asked::Tcp), [false; 4], "the answers of one way are the other way");
    assert_eq!(status(&lab, "host1").checksums, []);

    for host in ["host1", "host2"] {
        again(&lab, host, true);
    }
    let found = wait_for_verdict(&lab, "host1", By::Host);
    assert_eq!(found.problems.len(), 2, "{:?}", found.problems);
    assert!(found.problems[0].to_string().contains("arrive wrong at host2"), "{:?}", found.problems);
    assert!(found.ready);
    let events = lab.agent("host1").expect("an agent").events(0).expect("events");
    assert_eq!(events.iter().filter(|event| event.sort == "offload").count(), 2, "{events:?}");
    let (_, metrics) =
        loden_lab::http::get(&lab.agent("host1").expect("an agent").socket(), "/metrics").expect("asked");
    assert!(metrics.contains("loden_checksums_computed_here{device=\"flannel.1\"} 1"), "{metrics}");
    let well = wait_for_verdict(&lab, "host2", By::Card);
    assert_eq!(well.problems, []);
    assert_eq!(by(&lab, "host1", "eth0"), By::Card, "it is set on our devices alone");
    all_reach(&lab);

    // An agent that starts finds it as it is.
    again(&lab, "host1", true);
    wait_for("both devices", || status(&lab, "host1").checksums.len() == 2);
    let found = status(&lab, "host1");
    assert!(found.checksums.iter().all(|of| of.by == Some(By::Host) && of.tried_with.is_none()), "{found:?}");
    assert_eq!(found.kernel.writes.values().sum::<u64>(), 0);
    all_reach(&lab);

    // A device that is made anew leaves checksums to the card, and is tried anew.
    let delete = |dev: &str| ["link", "delete", dev].map(str::to_owned);
    for dev in DEVICES {
        assert_eq!(lab.exec("host1", "ip", &delete(dev)).expect("ip"), 0);
    }
    wait_for_verdict(&lab, "host1", By::Host);
    all_reach(&lab);

    // Once it is cured, whoever turns it on by hand has it tried again.
    card.cure(&lab, "host1");
    let turn_on = || DEVICES.map(|dev| ethtool::set_checksums(name(dev), By::Card).expect("set"));
    lab.netns("host1").expect("netns").run(turn_on).expect("a thread");
    let cured = wait_for_verdict(&lab, "host1", By::Card);
    assert_eq!(cured.problems, []);
    all_reach(&lab);
}

/// Starts an agent again, with the test or without.
fn again(lab: &Lab, host: &str, tests: bool) {
    let agent = lab.agent(host).expect("an agent");
    agent.end(Signal::TERM).expect("it ends");
    let config = std::fs::read_to_string(agent.config()).expect("its configuration");
    let config: Vec<&str> = config.lines().filter(|line| !line.starts_with("checksum_test")).collect();
    std::fs::write(agent.config(), format!("checksum_test = {tests}\n{}\n", config.join("\n"))).expect("written");
    agent.start(&lab.binaries().lodend, false).expect("it starts");
    agent.wait_ready().expect("it gets ready");
}
