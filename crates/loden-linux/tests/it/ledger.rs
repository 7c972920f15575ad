//! The ledger under many at once: whatever the order, no address is held twice, and none is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use loden_core::attach::Draft;
use loden_core::cni::{NodeBlock, NodeFile};
use loden_core::ipam::{Demand, Offer, RangeState, Supply};
use loden_core::model::{Attach, AttachmentKey, Mac, Prefix};
use loden_linux::clock::boot_ms;
use loden_linux::ledger::{Ledger, ReserveError};
use loden_linux::run_dir::{RunDir, write_json};

/// Thirteen addresses and fourteen: fewer than there are pods.
const RANGES: [&str; 2] = ["10.1.0.0/28", "fd01::/124"];
const WORKERS: u64 = 6;
const STEPS: usize = 120;
const PODS: u64 = 4;

/// A lot that falls the same for the same seed (Marsaglia's xorshift).
struct Lots(u64);

impl Lots {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn draft(container: &str) -> Draft {
    let offer = |range: &str| {
        let supply = Supply { network: None, range: range.parse().expect("a range") };
        vec![Offer { supply, gateway: None, segment: None }]
    };
    let key = AttachmentKey {
        network: "net".to_owned(),
        container: container.to_owned(),
        ifname: "eth0".parse().expect("a name"),
    };
    Draft {
        mac: Mac::derived(&[container]),
        key,
        attach: Attach::Foreign { host_device: None },
        demand: Demand { choices: RANGES.map(offer).into(), ..Demand::default() },
        delegates: Vec::new(),
        routes: Vec::new(),
        is_default: false,
        mtu: 1500,
        mtu_is_asked: true,
        is_down: false,
        ports: Vec::new(),
        masquerade: false,
        bandwidth: Default::default(),
        tuning: Default::default(),
        is_leased: false,
        netns: String::new(),
        pod: None,
    }
}

/// What the agent tells the plugin.
fn node(blocks: &[&str], until_ms: Option<u64>) -> NodeFile {
    let block = |text: &&str| {
        let cidr: Prefix = text.parse().expect("a prefix");
        NodeBlock {
            cidr,
            gateway: cidr.nth(1).expect("an address"),
            pool: "p".parse().expect("a name"),
            segment: None,
            bridge: None,
            until_ms,
        }
    };
    let (node, bridge) = ("n".parse().expect("a name"), "cni0".parse().expect("a name"));
    NodeFile { node, bridge, mtu_pod: 1450, blocks: blocks.iter().map(block).collect() }
}

/// Who has which address, as those who have them say: noted right after an address is given, and struck out right before it is
/// given back.
type Held = Mutex<BTreeMap<IpAddr, String>>;

/// One of those at work: comes and goes with its own pods, and now and then does what a killed process leaves.
fn work(ledger: &Ledger, held: &Held, worker: u64, seed: u64) {
    let mut lots = Lots(0x9e37_79b9_7f4a_7c15 ^ (seed * WORKERS + worker + 1));
    let strike_out = |pod: &str| held.lock().expect("no panic").retain(|_, holder| holder != pod);
    let mut left = BTreeSet::new();
    for _ in 0..STEPS {
        let pod = format!("w{worker}p{}", lots.below(PODS));
        let draft = draft(&pod);
        match lots.below(8) {
            0..4 => match ledger.reserve(&draft, 0) {
                Ok(mut reservation) => {
                    for addr in reservation.attachment.ips() {
                        let other = held.lock().expect("no panic").insert(addr, pod.clone());
                        assert_eq!(other, None, "{addr} is given to {pod} too, seed {seed}");
                    }
                    if lots.below(4) > 0 {
                        ledger.complete(&mut reservation).expect("completed");
                    } else {
                        // As a killed process: nobody holds its mark any more, and the sweep may take it.
                        strike_out(&pod);
                        left.insert(pod);
                    }
                }
                // The sweep is just undoing what was left of it.
                Err(ReserveError::UnderWay(_)) if left.contains(&pod) => {}
                Err(ReserveError::Attached(_) | ReserveError::Exhausted(_)) => {}
                Err(error) => panic!("{pod}: {error}, seed {seed}"),
            },
            4..7 => {
                strike_out(&pod);
                ledger.release(&draft.key).expect("released");
            }
            _ => drop(ledger.sweep().expect("swept")),
        }
    }
}

#[test]
fn in_any_order_no_address_is_held_twice_and_none_is_lost() {
    for seed in 0..3 {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = RunDir::new(dir.path());
        run_dir.make().expect("made");
        write_json(&run_dir.node_file(), &node(&RANGES, None)).expect("written");
        let ledger = Ledger::new(run_dir.clone());
        let held = Held::default();
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (ledger, held) = (&ledger, &held);
                scope.spawn(move || work(ledger, held, worker, seed));
            }
        });
        ledger.sweep().expect("swept");
        let held = held.into_inner().expect("no panic");
        let attachments = run_dir.attachments().good;
        let there: BTreeMap<IpAddr, String> =
            attachments.iter().flat_map(|there| there.ips().map(|addr| (addr, there.key.container.clone()))).collect();
        assert_eq!(there, held, "seed {seed}");
        for range in RANGES {
            let supply = Supply { network: None, range: range.parse().expect("a range") };
            let file = run_dir.ipam_dir().join(format!("{}.range", supply.file_stem()));
            let state = RangeState::decode(supply.range, &std::fs::read(file).expect("a state")).expect("a sound one");
            let of_it = held.keys().filter(|addr| supply.range.index_of(**addr).is_some()).count();
            assert_eq!(state.in_use() as usize, of_it, "{range}, seed {seed}");
        }
        for there in &attachments {
            ledger.release(&there.key).expect("released");
        }
        // As many as ever can be had: none is lost.
        let more = (0..).map_while(|n| ledger.reserve(&draft(&format!("last{n}")), 0).ok()).count();
        assert_eq!(more, 13, "seed {seed}");
    }
}

#[test]
fn a_block_is_taken_out_of_the_plugins_hands_only_while_nobody_has_an_address_of_it_and_then_nobody_gets_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let run_dir = RunDir::new(dir.path());
    run_dir.make().expect("made");
    let ledger = Ledger::new(run_dir.clone());
    let blocks = ["10.1.0.0/28", "10.1.0.16/28"];
    let lent: Prefix = blocks[1].parse().expect("a prefix");
    write_json(&run_dir.node_file(), &node(&blocks, None)).expect("written");
    // Each wants an address of the second block alone, as of a `node.json` that was read before.
    let draft_of = |container: &str| {
        let mut draft = draft(container);
        let supply = Supply { network: None, range: blocks[1].parse().expect("a range") };
        draft.demand.choices = vec![vec![Offer { supply, gateway: None, segment: None }]];
        draft
    };
    let (mut retired, mut refused) = (0, 0);
    for round in 0..60 {
        std::thread::scope(|scope| {
            let (ledger, draft_of) = (&ledger, &draft_of);
            let adds = (0..3_u32).map(|n| {
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_micros(u64::from(n * 97 + round * 31) % 500));
                    ledger.reserve(&draft_of(&format!("r{round}n{n}")), 0)
                })
            });
            let adds: Vec<_> = adds.collect();
            let without = node(&blocks[..1], None);
            // Every third time the ADDs have all the time that they want, however busy the machine is.
            while round % 3 == 0 && adds.iter().any(|add| !add.is_finished()) {
                std::thread::sleep(Duration::from_micros(200));
            }
            let is_retired = ledger.retire(lent, &without, Duration::ZERO).expect("a ledger");
            let given = adds.into_iter().map(|add| add.join().expect("no panic"));
            let given: Vec<_> = given.collect();
            let some = given.iter().flatten().count();
            assert!(!is_retired || some == 0, "round {round}: {some} were given of what is not ours any more");
            assert!(is_retired || some > 0, "round {round}: nothing stood in the way");
            retired += u32::from(is_retired);
            refused += given.iter().filter(|one| matches!(one, Err(ReserveError::Withdrawn))).count();
        });
        for n in 0..3 {
            ledger.release(&draft_of(&format!("r{round}n{n}")).key).expect("released");
        }
        write_json(&run_dir.node_file(), &node(&blocks, None)).expect("written");
    }
    assert!(retired > 0 && retired < 60 && refused > 0, "both have to be seen: {retired} of 60, {refused} refused");

    // One that was freed just now rests.
    let reservation = ledger.reserve(&draft_of("rests"), 0).expect("room");
    drop(reservation);
    ledger.release(&draft_of("rests").key).expect("released");
    let without = node(&blocks[..1], None);
    assert!(!ledger.retire(lent, &without, Duration::from_secs(600)).expect("a ledger"));

    // Nothing is taken of a block whose term has ended, though the agent be dead.
    for (until, is_served) in [(boot_ms() + 60_000, true), (boot_ms(), false)] {
        write_json(&run_dir.node_file(), &node(&blocks, Some(until))).expect("written");
        let given = ledger.reserve(&draft_of("late"), 0);
        assert_eq!(given.is_ok(), is_served);
        assert!(is_served || matches!(given, Err(ReserveError::Withdrawn)));
        drop(given);
        ledger.release(&draft_of("late").key).expect("released");
    }
}
