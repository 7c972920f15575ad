//! Whole plans on the real kernel.

use std::time::Instant;

use loden_core::desired::Desired;
use loden_core::plan::Plan;
use loden_linux::LinuxKernel;

use crate::support::{in_namespace, make_eth0, observe, prefix, settle, view};
use loden_core::model::{Block, Entry, Record};

#[test]
fn a_plan_applied_twice_is_empty() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        let mut desired = Desired::new();
        let errors = settle(&mut kernel, &mut desired, &view(3));
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(Plan::of(&desired).to_string(), "");
        // A second driver, as after a restart, sees the same and has nothing to do.
        drop(kernel);
        let mut kernel = LinuxKernel::open().expect("kernel");
        let mut again = Desired::new();
        again.update(&view(3), &loden_core::view::Changed { all: true, sources: Default::default() });
        let all = loden_core::kernel::Sort::ALL.into();
        let seen = loden_core::kernel::Kernel::observe(&mut kernel, &again.scope(all)).expect("observe");
        again.observed(&loden_core::kernel::Sort::ALL.into(), seen);
        assert_eq!(Plan::of(&again).to_string(), "");
    });
}

#[test]
fn peers_come_and_go_without_a_trace() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        let mut desired = Desired::new();
        assert_eq!(settle(&mut kernel, &mut desired, &view(50)), Vec::<String>::new());
        let many = desired.map().count_actual();
        let mut desired = Desired::new();
        assert_eq!(settle(&mut kernel, &mut desired, &view(2)), Vec::<String>::new());
        let few = desired.map().count_actual();
        // Per peer: two known addresses, neighbours, nexthops, routes and FDB entries.
        assert_eq!(many - few, 48 * 10);
        assert!(Plan::of(&desired).is_empty());
    });
}

#[test]
fn ten_thousand_peers_in_one_plan() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        let mut desired = Desired::new();
        let view = view(10_000);
        let begun = Instant::now();
        assert_eq!(settle(&mut kernel, &mut desired, &view), Vec::<String>::new());
        let settled = begun.elapsed();
        let begun = Instant::now();
        let seen = observe(&mut kernel, &["cni0", "eth0"]).len();
        // Shown, not asserted: timing belongs to the benchmarks.
        std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!(
                "{} objects thought out, made and read back in {settled:?}; {seen} read in {:?}\n",
                desired.map().count_actual(),
                begun.elapsed()
            ),
        )
        .expect("stderr");
        assert!(Plan::of(&desired).is_empty());
    });
}

#[test]
fn plans_on_the_fake_and_on_the_real_kernel_end_alike() {
    use std::collections::BTreeSet;

    use loden_core::kernel::{Kernel, Sort};
    use loden_core::view::Changed;
    use loden_testkit::FakeKernel;

    in_namespace(|| {
        make_eth0();
        let mut real = LinuxKernel::open().expect("kernel");
        let mut fake = FakeKernel::new("eth0");
        let all: BTreeSet<Sort> = Sort::ALL.into();
        // In one of them a peer has taken this host's block, so that its gateway is an address that is still here.
        for (peers, is_block_taken) in [(3, false), (1, false), (6, false), (2, true), (0, false), (2, false)] {
            let mut view = view(peers);
            if is_block_taken {
                let block = Block {
                    cidr: prefix("10.64.0.0/24"),
                    pool: "p4".parse().expect("name"),
                    owner: "n1".parse().expect("name"),
                    owner_uid: "uid-n1".parse().expect("identity"),
                };
                view.put(&Entry { record: Record::Block(block), created: 1, revision: 2 });
            }
            let mut desired = Desired::new();
            assert_eq!(settle(&mut real, &mut desired, &view), Vec::<String>::new());
            let on_real = real.observe(&desired.scope(all.clone())).expect("observe");

            let mut desired = Desired::new();
            desired.update(&view, &Changed { all: true, sources: BTreeSet::new() });
            desired.observed(&all, fake.observe(&desired.scope(all.clone())).expect("observe"));
            let plan = Plan::of(&desired);
            assert!(fake.apply(&plan.steps).iter().all(Result::is_ok), "{plan}");
            let on_fake = fake.observe(&desired.scope(all.clone())).expect("observe");
            assert_eq!(on_real, on_fake, "{peers} peers");
        }
    });
}
