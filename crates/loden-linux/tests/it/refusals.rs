//! What the kernel refuses is told in its own words, and one refusal does not stop the rest.

use loden_core::kernel::link::LinkKind;
use loden_core::kernel::{Kernel, Key, Object, Via};
use loden_core::plan::Verb;
use loden_linux::LinuxKernel;
use loden_linux::rt::route::{self, To};
use loden_linux::rt::{link, nexthop};

use crate::support::{
    add, apply, bridge, foreign, ifname, in_namespace, index_of, ip, kernel_with_v1, link_key, link_object, mac,
    make_eth0, observe, prefix, refused, step, vxlan,
};

#[test]
fn the_kernels_own_words_are_told() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let dev = ifname("v1");
        let mut twin = vxlan("192.168.7.1");
        twin.mac = None;
        let wide = {
            let mut wide = vxlan("192.168.7.1");
            (wide.mtu, wide.mac) = (100_000, None);
            if let LinkKind::Vxlan(vxlan) = &mut wide.kind {
                vxlan.port = 4789;
            }
            wide
        };
        let cases = [
            (
                add(link_key("v2"), link_object(twin)),
                libc::EEXIST,
                "A VXLAN device with the specified VNI already exists (File exists)",
            ),
            (
                add(link_key("v3"), link_object(wide)),
                libc::EINVAL,
                "MTU must be between 68 and 65535 (Invalid argument)",
            ),
            (
                add(Key::Nexthop(dev, ip("224.0.0.1")), Object::Nexthop),
                libc::EINVAL,
                "Nexthop has invalid gateway (Invalid argument)",
            ),
            (
                add(Key::Address(ifname("nodev"), "10.0.0.1/24".parse().expect("net")), Object::Address { ours: true }),
                libc::ENODEV,
                "there is no link nodev",
            ),
            (
                add(Key::Route(prefix("10.1.0.0/16"), 0), Object::Route(Via::Nexthop(dev, ip("10.1.0.0")))),
                libc::ENOENT,
                "there is no nexthop via 10.1.0.0 dev v1",
            ),
        ];
        for (step, errno, cause) in cases {
            let object = step.key.to_string();
            let error = refused(&mut kernel, step);
            assert_eq!((error.object, error.errno, error.cause.as_str()), (object, errno, cause));
        }
    });
}

#[test]
fn a_nexthop_that_vanished_unnoticed_is_named() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let (dev, gateway) = (ifname("v1"), ip("10.64.1.0"));
        apply(&mut kernel, &[add(Key::Nexthop(dev, gateway), Object::Nexthop)]);
        // The device's nexthops go with its carrier; the driver has not looked since.
        foreign(|w| link::set_up(w, dev, false));
        foreign(|w| link::set_up(w, dev, true));
        let way = Object::Route(Via::Nexthop(dev, gateway));
        let error = refused(&mut kernel, add(Key::Route(prefix("10.64.1.0/24"), 0), way.clone()));
        assert_eq!(error.cause, "Nexthop id does not exist (Invalid argument)");
        assert_eq!(observe(&mut kernel, &[]).get(&Key::Nexthop(dev, gateway)), None);
        let nexthop = add(Key::Nexthop(dev, gateway), Object::Nexthop);
        apply(&mut kernel, &[nexthop, add(Key::Route(prefix("10.64.1.0/24"), 0), way)]);
    });
}

#[test]
fn an_error_in_the_middle_leaves_the_others_done() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let dev = ifname("v1");
        let steps: Vec<_> = (0..3000_u32)
            .map(|n| {
                // Two of them are refused: a group is no gateway.
                let first = if n == 7 || n == 2999 { 0xe000_0000 } else { 0x0a40_0000_u32 };
                add(Key::Nexthop(dev, (first + n).to_be_bytes().into()), Object::Nexthop)
            })
            .collect();
        let results = kernel.apply(&steps);
        let refused: Vec<usize> =
            results.iter().enumerate().filter_map(|(n, result)| result.is_err().then_some(n)).collect();
        assert_eq!(refused, [7, 2999]);
        assert_eq!(observe(&mut kernel, &[]).keys().filter(|key| matches!(key, Key::Nexthop(..))).count(), 2998);
    });
}

#[test]
fn thousands_of_refusals_are_all_told() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let steps: Vec<_> = (0..5000_u32)
            .map(|n| {
                let addr = (0xe000_0000 + n).to_be_bytes().into();
                add(Key::Nexthop(ifname("v1"), addr), Object::Nexthop)
            })
            .collect();
        let results = kernel.apply(&steps);
        let told = results.iter().filter(|result| result.as_ref().is_err_and(|e| e.errno == libc::EINVAL)).count();
        assert_eq!(told, 5000);
    });
}

#[test]
fn a_foreign_route_is_left_and_named() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let (eth0, dev) = (index_of("eth0"), ifname("v1"));
        let (block, block6) = (prefix("10.64.1.0/24"), prefix("fd64:0:0:1::/64"));
        foreign(|w| {
            route::add_foreign(w, block, 0, To::Gateway(eth0, ip("192.168.7.9")));
            route::add_foreign(w, block6, 1024, To::Link(eth0));
        });
        let cases = [
            (
                Key::Route(block, 0),
                "a route to it via 192.168.7.9 dev eth0, made by route protocol 4, is there already; it is left alone: remove it",
            ),
            (
                Key::Route(block6, 1024),
                "a route to it dev eth0, made by route protocol 4, is there already; it is left alone: remove it",
            ),
        ];
        for (key, cause) in cases {
            assert_eq!(observe(&mut kernel, &[]).get(&key), None);
            let error = refused(&mut kernel, add(key, Object::Route(Via::Link(dev))));
            assert_eq!((error.errno, error.cause.as_str()), (libc::EEXIST, cause));
            // A removal passes by what others made, too.
            apply(&mut kernel, &[step(Verb::Remove, key, None, Some(Object::Route(Via::Link(dev))))]);
            let error = refused(&mut kernel, add(key, Object::Route(Via::Link(dev))));
            assert_eq!(error.cause, cause);
        }
    });
}

#[test]
fn what_is_there_as_wanted_is_made() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let dev = ifname("v1");
        let steps = [
            add(Key::Address(dev, "10.64.1.1/24".parse().expect("net")), Object::Address { ours: true }),
            add(Key::Address(dev, "fd64::1/64".parse().expect("net")), Object::Address { ours: true }),
            add(Key::Neighbour(dev, ip("10.64.2.0")), Object::Neighbour(mac("02:00:00:00:00:01"))),
            add(Key::Fdb(dev, mac("02:00:00:00:00:01")), Object::Fdb(ip("192.168.7.2"))),
            add(Key::Route(prefix("10.64.2.0/24"), 0), Object::Route(Via::Link(dev))),
            add(Key::Route(prefix("fd64:0:0:1::/64"), 1024), Object::Route(Via::Blackhole)),
        ];
        apply(&mut kernel, &steps);
        apply(&mut kernel, &steps);
        // The same address of IPv6 with another length is another object, and the kernel has but one of them.
        let other = add(Key::Address(dev, "fd64::1/80".parse().expect("net")), Object::Address { ours: true });
        let cause = "address fd64::1/64 dev v1 is there already; it is left alone: remove it";
        assert_eq!(refused(&mut kernel, other).cause, cause);
    });
}

#[test]
fn a_foreign_link_of_the_name_is_not_touched() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        // It comes between the observation and the making.
        foreign(|w| {
            let mut foreign = bridge();
            (foreign.group, foreign.up, foreign.mtu) = (0, false, 1500);
            link::create(w, ifname("v1"), &foreign, None, None);
        });
        let before = observe(&mut kernel, &["v1"]);
        let error = refused(&mut kernel, add(link_key("v1"), link_object(vxlan("192.168.7.1"))));
        assert_eq!(error.errno, libc::EEXIST);
        assert_eq!(observe(&mut kernel, &["v1"]), before);
        assert!(before.contains_key(&link_key("v1")));
    });
}

#[test]
fn numbers_of_nexthops_that_others_took_are_passed_by() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let dev = ifname("v1");
        let number = index_of("v1");
        observe(&mut kernel, &[]);
        foreign(|w| {
            for n in 0..3 {
                nexthop::add(w, (76 << 24) + n, number, ip(&format!("10.99.0.{n}")), true);
            }
        });
        let steps: Vec<_> =
            (0..5).map(|n| add(Key::Nexthop(dev, ip(&format!("10.64.{n}.0"))), Object::Nexthop)).collect();
        apply(&mut kernel, &steps);
        let seen = observe(&mut kernel, &[]);
        assert!(steps.iter().all(|step| seen.contains_key(&step.key)));
    });
}

#[test]
fn a_read_only_or_missing_sysctl_says_so() {
    in_namespace(|| {
        let mut kernel = LinuxKernel::open().expect("kernel");
        let error = refused(&mut kernel, add(Key::Sysctl("net/ipv4/no_such"), Object::Sysctl(1)));
        assert_eq!(
            (error.object.as_str(), error.cause.as_str()),
            ("sysctl net/ipv4/no_such", "No such file or directory")
        );
        assert_eq!(error.errno, libc::ENOENT);
        let error = refused(&mut kernel, add(Key::Sysctl("net/ipv4/ip_forward"), Object::Sysctl(i64::MAX)));
        assert_eq!(error.cause, "Invalid argument");
    });
}

#[test]
fn all_of_it_works_for_the_root_of_a_user_namespace() {
    // The tests' process has many threads and may not change its user namespace: it starts itself again in one.
    let exe = std::env::current_exe().expect("this program");
    let tests = [
        "objects::a_peer_of_each_family",
        "refusals::thousands_of_refusals_are_all_told",
        "peers::a_plan_applied_twice_is_empty",
    ];
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(exe)
        .args(["--exact", "--nocapture"])
        .args(tests)
        .output()
        .expect("unshare of util-linux");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("3 passed"), "{text}");
}
