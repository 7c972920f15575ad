//! Token buckets: what is written is read back, and is what `tc` shows.

use std::process::Command;

use loden_core::model::Shape;
use loden_core::shape::Bucket;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::{link, qdisc};

use crate::support::{ifname, in_namespace};

/// Sends one message; gives the error's number.
fn send(fill: impl FnOnce(&mut Writer)) -> i32 {
    let mut w = Writer::default();
    fill(&mut w);
    let results = Socket::open(Protocol::Route).expect("socket").batch(&mut w).expect("batch");
    results.into_iter().find_map(Result::err).map_or(0, |error| error.errno())
}

fn read(index: u32) -> Option<qdisc::Seen> {
    qdisc::read(&mut Socket::open(Protocol::Route).expect("socket"), index).expect("read")
}

fn tc() -> String {
    let output = Command::new("tc").args(["-d", "qdisc", "show", "dev", "v0"]).output().expect("tc");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn what_is_written_is_read_and_what_tc_shows() {
    in_namespace(|| {
        let end = |name: &str| link::VethEnd { name: ifname(name), mtu: 1500, mac: None, group: 0, master: None };
        let own = loden_linux::netns::NetNs::current().expect("a namespace");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&own)).cast_unsigned();
        assert_eq!(send(|w| link::create_veth(w, end("v0"), end("v1"), fd)), 0);
        let number = || link::number_of(&Socket::open(Protocol::Route).expect("socket"), ifname("v0"));
        let index = number().expect("asked").expect("there");
        assert_eq!(read(index), None, "a veth has no queue by itself");
        for (bits, burst, shown) in [
            (1_000_000, None, "rate 1Mbit burst 6056b/1 mpu 0b lat 145ms linklayer ethernet"),
            (10_000_000, None, "rate 10Mbit burst 12500b"),
            (10_000_000, Some(8), "rate 10Mbit burst 151"),
            (1_000_000_000, None, "rate 1Gbit burst 1250000b"),
            (34_359_738_368, None, "rate 34359Mbit"),
            (100_000_000_000, None, "rate 100Gbit"),
            (8, None, "rate 8bit"),
        ] {
            let bucket = Bucket::of(Shape { rate: bits, burst }, 1500);
            assert_eq!(send(|w| qdisc::put(w, index, &bucket)), 0, "{bits}");
            let seen = read(index).expect("there");
            assert!(seen.is_ours(), "{seen:?}");
            let (rate, limit, ticks) = seen.bucket.expect("a bucket");
            assert!(bucket.is(rate, limit, ticks), "{bits}: {bucket:?} with {} ticks: {seen:?}", bucket.burst_ticks());
            assert!(tc().starts_with("qdisc tbf 4c: root") && tc().contains(shown), "{shown}: {}", tc());
            // This kernel may have it or not; either way the bucket stays.
            let fair = send(|w| qdisc::put_fair_queue(w, index, &bucket));
            assert!([0, libc::ENOENT].contains(&fair), "{fair}");
            assert_eq!(tc().contains("fq_codel"), fair == 0);
        }
        assert_eq!(send(|w| qdisc::delete(w, index)), 0);
        assert_eq!(read(index), None);
        // What somebody else put there is not ours to change.
        let status = Command::new("tc").args(["qdisc", "add", "dev", "v0", "root", "handle", "7:", "pfifo"]).status();
        assert!(status.expect("tc").success());
        let bucket = Bucket::of(Shape { rate: 8000, burst: None }, 1500);
        assert_eq!(send(|w| qdisc::put(w, index, &bucket)), libc::EEXIST);
        let seen = read(index).expect("there");
        assert!(seen.kind == "pfifo" && !seen.is_ours() && seen.bucket.is_none(), "{seen:?}");
        assert_ne!(send(|w| qdisc::delete(w, index)), 0);
    });
}
