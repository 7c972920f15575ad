//! The tunnel's engine against a proxy of one packet a system call (the shape of flannel's) and against VXLAN of the kernel: pods of two
//! hosts that a veth joins, once as a wire that takes packets of any length ("off"), once as one of 1500 bytes ("seg").

pub mod engine;
mod forwarders;
mod ground;
mod load;

use std::fmt::Write as _;

use anyhow::Result;

use self::forwarders::{Forwarders, Way};
use self::ground::{Ground, Wire};
use super::{Row, median};
use crate::shell;

/// What is compared, in the order in which they take turns.
const WAYS: [Way; 3] = [Way::Engine, Way::Proxy, Way::Vxlan];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Streams of TCP, Gbit of payload a second.
    Tcp(usize),
    /// Datagrams of so many bytes, thousands a second that arrive.
    Udp(usize),
    /// There and back, microseconds.
    RoundTrip,
}

/// A load on a wire, and the ways that are tried with it.
struct Case {
    name: &'static str,
    wire: Wire,
    load: Load,
    ways: &'static [Way],
}

const CASES: [Case; 7] = [
    Case { name: "off_tcp1", wire: Wire::Off, load: Load::Tcp(1), ways: &WAYS },
    Case { name: "off_tcp4", wire: Wire::Off, load: Load::Tcp(4), ways: &[Way::Engine, Way::Proxy] },
    Case { name: "off_udp64", wire: Wire::Off, load: Load::Udp(64), ways: &[Way::Engine, Way::Proxy] },
    Case { name: "off_udp1400", wire: Wire::Off, load: Load::Udp(1400), ways: &[Way::Engine, Way::Proxy] },
    Case { name: "rtt", wire: Wire::Off, load: Load::RoundTrip, ways: &[Way::Engine, Way::Proxy] },
    Case { name: "seg_tcp1", wire: Wire::Seg, load: Load::Tcp(1), ways: &WAYS },
    Case { name: "seg_tcp4", wire: Wire::Seg, load: Load::Tcp(4), ways: &[Way::Engine, Way::Proxy] },
];

/// What a way came to in a case, run by run.
#[derive(Debug, Clone, Default)]
struct Seen {
    figures: Vec<f64>,
    /// Processor seconds of the forwarders for a Gbit, or for a thousand datagrams.
    cpu: Vec<f64>,
    /// Of datagrams: how often the window stood still.
    stalls: Vec<u64>,
}

/// All in turn, each on a ground of its own; `only` those cases whose name holds that.
pub fn run(runs: usize, only: &str) -> Result<Vec<Row>> {
    for (program, package) in [("ip", "iproute2"), ("ethtool", "ethtool"), ("cc", "gcc")] {
        if !shell::has(program) {
            shell::install(&[package], &format!("`{program}` is needed for the wire or for the peer"))?;
        }
    }
    let proxy = forwarders::build_proxy()?;
    let grounds = WAYS.iter().map(|way| Ground::make(way.name(), way.mtu())).collect::<Result<Vec<_>>>()?;
    let mut sides = Vec::new();
    for (way, ground) in WAYS.iter().zip(&grounds) {
        sides.push(Forwarders::start(*way, ground, &proxy)?);
    }
    let mut seen: Vec<[Seen; WAYS.len()]> = vec![Default::default(); CASES.len()];
    for wire in [Wire::Off, Wire::Seg] {
        for ground in &grounds {
            ground.set_wire(wire)?;
        }
        for run in 0..runs {
            let cases = CASES.iter().zip(&mut seen);
            for (case, seen) in cases.filter(|(case, _)| case.wire == wire && case.name.contains(only)) {
                let mut places: Vec<usize> =
                    (0..WAYS.len()).filter(|place| case.ways.contains(&WAYS[*place])).collect();
                // What comes first finds the machine as the last case has left it.
                let turn = run % places.len();
                places.rotate_left(turn);
                if case.load == Load::RoundTrip {
                    let all: Vec<&Ground> = places.iter().map(|place| &grounds[*place]).collect();
                    for (place, figure) in places.iter().zip(load::round_trips(&all)?) {
                        seen[*place].figures.push(figure);
                    }
                }
                for place in places {
                    measure(case.load, &grounds[place], &sides[place], &mut seen[place])?;
                }
                shell::say(&format!("· run {} of {runs}, {}:{}", run + 1, case.name, last(case, seen)));
            }
        }
    }
    for (case, seen) in CASES.iter().zip(&seen).filter(|(case, _)| case.name.contains(only)) {
        shell::say(&format!("· {}:{}", case.name, spread(case, seen)));
    }
    // A case that was not asked for has no figures.
    Ok(rows(&seen, runs).into_iter().filter(|row| !row.ours.is_nan()).collect())
}

fn measure(load: Load, ground: &Ground, side: &Forwarders, seen: &mut Seen) -> Result<()> {
    let before = side.cpu()?;
    let arrived = match load {
        Load::Tcp(streams) => load::tcp(ground, streams)?,
        Load::Udp(payload) => load::udp(ground, payload)?,
        // All at once: see above.
        Load::RoundTrip => return Ok(()),
    };
    seen.figures.push(arrived.rate);
    seen.cpu.push((side.cpu()? - before) / arrived.total);
    seen.stalls.push(arrived.stalls);
    Ok(())
}

fn last(case: &Case, seen: &[Seen]) -> String {
    let mut line = String::new();
    for (way, seen) in WAYS.iter().zip(seen).filter(|(way, _)| case.ways.contains(way)) {
        let at = |all: &[f64]| all.last().copied().unwrap_or(f64::NAN);
        // A text takes whatever is written.
        let _ = write!(line, " {} {:.2}", way.name(), at(&seen.figures));
        let _ = match case.load {
            Load::Tcp(_) => write!(line, " ({:.3} s of processor a Gbit)", at(&seen.cpu)),
            Load::Udp(_) => {
                let stalls = seen.stalls.last().unwrap_or(&0);
                write!(line, " ({:.2} us of processor each, {stalls} stalls)", at(&seen.cpu) * 1000.0)
            }
            Load::RoundTrip => Ok(()),
        };
    }
    line
}

fn spread(case: &Case, seen: &[Seen]) -> String {
    let mut line = String::new();
    for (way, seen) in WAYS.iter().zip(seen).filter(|(way, _)| case.ways.contains(way)) {
        let least = seen.figures.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seen.figures.iter().copied().fold(0.0, f64::max);
        // A text takes whatever is written.
        let _ = write!(line, " {} {:.2} ({least:.2} to {most:.2})", way.name(), median(seen.figures.clone()));
        if case.load != Load::RoundTrip {
            let _ = write!(line, " at {:.3} ms of processor", median(seen.cpu.clone()) * 1000.0);
        }
    }
    line
}

fn rows(seen: &[[Seen; WAYS.len()]], runs: usize) -> Vec<Row> {
    let of = |name: &str, way: usize, pick: fn(&Seen) -> &Vec<f64>| {
        let place = CASES.iter().position(|case| case.name == name);
        median(place.map_or_else(Vec::new, |place| pick(&seen[place][way]).clone()))
    };
    let figures: fn(&Seen) -> &Vec<f64> = |seen| &seen.figures;
    let cpu: fn(&Seen) -> &Vec<f64> = |seen| &seen.cpu;
    let row = |name, unit, [ours, peer]: [f64; 2], ratio, [floor, goal]: [f64; 2], against| Row {
        name,
        ours,
        peer,
        unit,
        ratio,
        floor,
        goal,
        runs,
        against,
    };
    let more = |name, case: &str, unit, peer: usize, bounds, against| {
        let both = [of(case, 0, figures), of(case, peer, figures)];
        row(name, unit, both, both[0] / both[1], bounds, against)
    };
    let less = |name, case: &str, unit, pick, bounds, against| {
        let both = [of(case, 0, pick), of(case, 1, pick)];
        row(name, unit, both, both[1] / both[0], bounds, against)
    };
    let proxy = "one thread, one packet a system call (the shape of flannel's proxy)";
    vec![
        more("off_tcp1", "off_tcp1", "Gbit/s", 1, [6.0, 10.0], proxy),
        more("off_tcp4", "off_tcp4", "Gbit/s", 1, [5.0, 9.0], proxy),
        more("off_udp64", "off_udp64", "kpps", 1, [1.8, 2.4], proxy),
        more("off_udp1400", "off_udp1400", "kpps", 1, [2.0, 2.9], proxy),
        more("seg_tcp1", "seg_tcp1", "Gbit/s", 1, [6.0, 10.0], proxy),
        more("seg_tcp4", "seg_tcp4", "Gbit/s", 1, [5.0, 9.0], proxy),
        less("cpu_per_gbit", "off_tcp1", "s", cpu, [6.7, 12.5], proxy),
        less("rtt", "rtt", "us", figures, [0.8, 1.0], proxy),
        more("seg_tcp1_vxlan", "seg_tcp1", "Gbit/s", 2, [0.6, 0.9], "VXLAN of the kernel, as flannel sets it"),
    ]
}
