//! A lab of its own for each test, taken down whatever happens.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use loden_core::model::Mac;
use loden_lab::lab::Binaries;
use loden_lab::probe::reach;
use loden_lab::probe::stream::Stream;
use loden_lab::{Lab, Topology};
use loden_linux::LinuxError;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::link;

/// A lab that ends with the test.
pub struct Guard(pub Lab);

impl std::ops::Deref for Guard {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let down = self.0.down();
        let left = self.0.leftovers();
        if !std::thread::panicking() {
            down.expect("the lab goes down");
            assert_eq!(left, Vec::<String>::new());
        }
    }
}

pub const SEGMENT: &str = "[[segment]]\nname = \"s\"\nv4 = \"192.0.2.0/24\"\nv6 = \"2001:db8:0:2::/64\"\n";
pub const POOLS: &str = "[[pool]]\nname = \"p4\"\ncidr = \"10.244.0.0/16\"\nbackend = { type = \"vxlan\" }\n\
                         [[pool]]\nname = \"p6\"\ncidr = \"fd00:10:244::/56\"\nbackend = { type = \"vxlan\" }\n";

/// `n` hosts with one pod each, on the first segment.
pub fn hosts(n: usize, more: &str) -> String {
    (1..=n).map(|n| format!("[[host]]\nname = \"host{n}\"\npods = 1\n{more}\n")).collect()
}

pub fn up(name: &str, topology: &str) -> Guard {
    let topology = Topology::parse(&format!("name = {name:?}\n{topology}")).expect("a topology");
    let dir = Path::new("/run/loden-lab-test").join(format!("{name}-{}", std::process::id()));
    Guard(Lab::up(&topology, &dir, binaries(), false, &mut |_| {}).expect("the lab comes up"))
}

pub fn binaries() -> Binaries {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from);
    let binaries = Binaries::in_dir(&target.join("debug"));
    for program in [&binaries.loden, &binaries.lodend, &binaries.loden_cni] {
        let hint = "cargo build -p loden-cli -p loden-agent -p loden-cni";
        assert!(program.exists(), "{} is not built: {hint}", program.display());
    }
    binaries
}

/// Every pair of the lab, all protocols and families.
pub fn all_reach(lab: &Lab) {
    let probes = reach::all(lab).expect("probes");
    let faults: Vec<_> = probes.iter().filter(|probe| probe.fault.is_some()).collect();
    assert!(!probes.is_empty() && faults.is_empty(), "{}\n{faults:#?}", reach::table(&probes));
}

/// Every pair of pods. For labs whose hosts lack a family that their pods have.
pub fn all_pods_reach(lab: &Lab) {
    let probes = reach::all(lab).expect("probes");
    let is_pods = |probe: &&reach::Probe| probe.from.contains("pod") && probe.to.contains("pod");
    let faults: Vec<_> = probes.iter().filter(is_pods).filter(|probe| probe.fault.is_some()).collect();
    assert!(!probes.is_empty() && faults.is_empty(), "{}\n{faults:#?}", reach::table(&probes));
}

/// Streams both ways and in all families between the first pods of two hosts.
pub fn streams(lab: &Lab, a: &str, b: &str) -> Vec<Stream> {
    let pod = |host: &str| lab.pods().iter().find(|pod| pod.host == host).expect("a pod");
    let mut streams = Vec::new();
    for (from, to) in [(pod(a), pod(b)), (pod(b), pod(a))] {
        let (near, far) = (lab.netns(&from.name).expect("netns"), lab.netns(&to.name).expect("netns"));
        for (_, addr) in to.addresses.iter() {
            streams.push(Stream::start(&near, &far, addr, 1000).expect("a stream"));
        }
    }
    streams
}

/// Ends them: (sent, lost).
pub fn stop(streams: Vec<Stream>) -> (u64, u64) {
    let reports: Vec<_> = streams.into_iter().map(|stream| stream.stop().expect("a report")).collect();
    reports.iter().filter(|report| report.lost > 0).for_each(|report| say(&format!("{report:?}")));
    reports.into_iter().fold((0, 0), |(sent, lost), report| (sent + report.sent, lost + report.lost))
}

/// Waits until it is so; the bound only guards against hanging.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what} did not come to pass");
        std::thread::sleep(Duration::from_micros(500));
    }
    began.elapsed()
}

/// Does something by hand in a host's namespace: one batch that must succeed.
pub fn by_hand(lab: &Lab, host: &str, fill: impl FnOnce(&mut Writer) + Send) {
    let done: Result<(), LinuxError> = lab
        .netns(host)
        .expect("netns")
        .run(|| {
            let mut w = Writer::default();
            fill(&mut w);
            Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect()
        })
        .expect("a thread");
    done.expect("it is done by hand");
}

/// The number of a link.
pub fn number(lab: &Lab, host: &str, dev: &str) -> Option<u32> {
    let name = dev.parse().expect("an interface's name");
    let ask = || link::number_of(&Socket::open(Protocol::Route)?, name);
    lab.netns(host).expect("netns").run(ask).expect("a thread").expect("a number or none")
}

/// The Ethernet address of a link.
pub fn mac_of(lab: &Lab, place: &str, dev: &str) -> Mac {
    let name = dev.parse().expect("an interface's name");
    let read = || link::read(&mut Socket::open(Protocol::Route)?, name);
    let seen = lab.netns(place).expect("netns").run(read).expect("a thread").expect("asked").expect("it is there");
    seen.link.mac.expect("an Ethernet address")
}

pub fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
