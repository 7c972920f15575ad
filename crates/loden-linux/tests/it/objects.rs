//! Each sort of object by itself: what is applied is what is observed, a change changes it, a removal removes it.

use loden_core::kernel::link::LinkKind;
use loden_core::kernel::{DeviceSysctl, Kernel, Key, Object, Scope, Sort, Via};
use loden_core::plan::Verb;
use loden_linux::{LinuxKernel, netns::NetNs, rt::link};

use crate::support::{
    add, apply, bridge, check, foreign, ifname, in_namespace, ip, kernel_with_v1, link_key, link_object, mac,
    make_eth0, observe, prefix, step, vxlan,
};

#[test]
fn a_vxlan_device_by_ipv4() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        observe(&mut kernel, &[]);
        let first = vxlan("192.168.7.1");
        let mut other = first.clone();
        (other.mtu, other.up) = (1400, false);
        other.mac = Some(mac("02:99:99:99:99:99"));
        if let LinkKind::Vxlan(vxlan) = &mut other.kind {
            vxlan.learning = true;
            vxlan.underlay = Some(ifname("wire"));
        }
        let states = [first.clone(), other, first].map(link_object);
        check(&mut kernel, link_key("v1"), &states);
    });
}

#[test]
fn a_vxlan_device_by_ipv6_with_group_policy() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        observe(&mut kernel, &[]);
        let mut link = vxlan("fd07::1");
        if let LinkKind::Vxlan(vxlan) = &mut link.kind {
            (vxlan.gbp, vxlan.port) = (true, 4789);
        }
        check(&mut kernel, link_key("flannel-v6.1"), &[link_object(link)]);
    });
}

#[test]
fn a_bridge_and_its_port() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        observe(&mut kernel, &[]);
        let mut snooping = bridge();
        if let LinkKind::Bridge(bridge) = &mut snooping.kind {
            bridge.mcast_snooping = true;
        }
        check(&mut kernel, link_key("cni0"), &[bridge(), snooping].map(link_object));
        apply(&mut kernel, &[add(link_key("cni0"), link_object(bridge()))]);
        let mut port = vxlan("192.168.7.1");
        port.master = Some(ifname("cni0"));
        let free = vxlan("192.168.7.1");
        check(&mut kernel, link_key("v1"), &[port.clone(), free, port].map(link_object));
    });
}

#[test]
fn a_device_of_a_segment_in_a_group_and_those_that_get_copies() {
    for (local, group, peers) in
        [("192.168.7.1", "239.1.1.42", ["192.168.7.2", "192.168.7.3"]), ("fd07::1", "ff05::42", ["fd07::2", "fd07::3"])]
    {
        in_namespace(move || {
            make_eth0();
            let mut kernel = LinuxKernel::open().expect("kernel");
            observe(&mut kernel, &[]);
            apply(&mut kernel, &[add(link_key("cni0"), link_object(bridge()))]);
            let mut port = vxlan(local);
            port.master = Some(ifname("cni0"));
            port.port.isolated = true;
            let mut free = port.clone();
            free.port.isolated = false;
            for link in [&mut port, &mut free] {
                if let LinkKind::Vxlan(vxlan) = &mut link.kind {
                    (vxlan.learning, vxlan.group, vxlan.most_entries) = (true, Some(ip(group)), 100);
                }
            }
            // Made whole at once: nothing is left to be changed.
            check(&mut kernel, link_key("v1"), &[port.clone(), free].map(link_object));
            apply(&mut kernel, &[add(link_key("v1"), link_object(port))]);
            // One does not take the other's place.
            apply(&mut kernel, &peers.map(|peer| add(Key::Flood(ifname("v1"), ip(peer)), Object::Flood)));
            let flooded = |kernel: &mut LinuxKernel| {
                observe(kernel, &[]).into_keys().filter(|key| matches!(key, Key::Flood(..))).collect::<Vec<_>>()
            };
            assert_eq!(flooded(&mut kernel), peers.map(|peer| Key::Flood(ifname("v1"), ip(peer))));
            check(&mut kernel, Key::Flood(ifname("v1"), ip(local)), &[Object::Flood]);
            assert_eq!(flooded(&mut kernel).len(), 2);
        });
    }
}

#[test]
fn a_made_link_has_no_address_of_its_own() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let seen = observe(&mut kernel, &[]);
        let addresses: Vec<_> = seen.keys().filter(|key| key.sort() == Sort::Address).collect();
        assert_eq!(addresses, Vec::<&Key>::new());
    });
}

#[test]
fn a_remade_device_has_the_new_fixed_settings() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let old = vxlan("192.168.7.1");
        let mut new = old.clone();
        if let LinkKind::Vxlan(vxlan) = &mut new.kind {
            vxlan.port = 4789;
        }
        let key = link_key("v1");
        let (new, old) = (link_object(new), link_object(old));
        apply(&mut kernel, &[step(Verb::Recreate, key, Some(new.clone()), Some(old))]);
        assert_eq!(observe(&mut kernel, &[]).get(&key), Some(&new));
        // Its new number is known: what is put on it in the next step finds it.
        let neighbour = Key::Neighbour(ifname("v1"), ip("10.64.1.0"));
        check(&mut kernel, neighbour, &[Object::Neighbour(mac("02:00:00:00:00:01"))]);
    });
}

#[test]
fn addresses_of_both_families() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        for net in ["10.64.1.0/32", "10.64.1.1/24", "fd64::/128", "fd64::1/64", "fe80::11/64"] {
            let key = Key::Address(ifname("v1"), net.parse().expect("net"));
            check(&mut kernel, key, &[Object::Address { ours: true }]);
        }
    });
}

#[test]
fn an_ipv6_address_is_usable_at_once() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let net: ipnet::IpNet = "fd64::1/64".parse().expect("net");
        apply(&mut kernel, &[add(Key::Address(ifname("v1"), net), Object::Address { ours: true })]);
        // Binding to a tentative address fails with EADDRNOTAVAIL.
        std::net::UdpSocket::bind((net.addr(), 0)).expect("an address past duplicate detection");
    });
}

#[test]
fn a_peer_of_each_family() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let dev = ifname("v1");
        let peers = [("10.64.1.0", "10.64.1.0/24", 0), ("fd64:0:0:1::", "fd64:0:0:1::/64", 1024)];
        for (gateway, block, priority) in peers {
            let (gateway, block) = (ip(gateway), prefix(block));
            let macs = ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(|text| Object::Neighbour(mac(text)));
            check(&mut kernel, Key::Neighbour(dev, gateway), &macs);
            check(&mut kernel, Key::Nexthop(dev, gateway), &[Object::Nexthop]);
            apply(&mut kernel, &[add(Key::Nexthop(dev, gateway), Object::Nexthop)]);
            let ways = [Via::Nexthop(dev, gateway), Via::Link(dev), Via::Blackhole, Via::Nexthop(dev, gateway)];
            check(&mut kernel, Key::Route(block, priority), &ways.map(Object::Route));
        }
        for lladdr in ["02:00:00:00:00:01", "01:00:5e:00:00:01"] {
            let dsts = ["192.168.7.2", "192.168.7.3"].map(|dst| Object::Fdb(ip(dst)));
            check(&mut kernel, Key::Fdb(dev, mac(lladdr)), &dsts);
        }
        let both = ["192.168.7.2", "192.168.7.3"].map(|dst| Key::Flood(dev, ip(dst)));
        apply(&mut kernel, &both.map(|key| add(key, Object::Flood)));
        check(&mut kernel, Key::Flood(dev, ip("192.168.7.4")), &[Object::Flood]);
        let seen = observe(&mut kernel, &[]);
        assert!(both.iter().all(|key| seen.contains_key(key)), "one more or less is nothing to the others");
    });
}

#[test]
fn a_forwarding_entry_over_ipv6() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        observe(&mut kernel, &[]);
        apply(&mut kernel, &[add(link_key("v1"), link_object(vxlan("fd07::1")))]);
        let dsts = ["fd07::2", "fd07::3"].map(|dst| Object::Fdb(ip(dst)));
        check(&mut kernel, Key::Fdb(ifname("v1"), mac("02:00:00:00:00:01")), &dsts);
    });
}

#[test]
fn a_gateway_on_the_wire_without_a_tunnel() {
    in_namespace(|| {
        make_eth0();
        let mut kernel = LinuxKernel::open().expect("kernel");
        observe(&mut kernel, &[]);
        for (gateway, block, priority) in [("192.168.7.2", "10.64.1.0/24", 0), ("fd07::2", "fd64:0:0:1::/64", 1024)] {
            let nexthop = Key::Nexthop(ifname("eth0"), ip(gateway));
            apply(&mut kernel, &[add(nexthop, Object::Nexthop)]);
            let via = Object::Route(Via::Nexthop(ifname("eth0"), ip(gateway)));
            check(&mut kernel, Key::Route(prefix(block), priority), &[via]);
        }
        // An address that is not on the wire is refused for a device that is no tunnel.
        let far = add(Key::Nexthop(ifname("eth0"), ip("10.99.0.1")), Object::Nexthop);
        assert_eq!(
            crate::support::refused(&mut kernel, far).cause,
            "Nexthop has invalid gateway (Network is unreachable)"
        );
    });
}

#[test]
fn routes_that_name_only_the_number_of_their_nexthop() {
    in_namespace(|| {
        std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").expect("sysctl");
        let mut kernel = kernel_with_v1();
        let (dev, gateway) = (ifname("v1"), ip("fd64:0:0:1::"));
        let route = (Key::Route(prefix("fd64:0:0:1::/64"), 1024), Object::Route(Via::Nexthop(dev, gateway)));
        apply(&mut kernel, &[add(Key::Nexthop(dev, gateway), Object::Nexthop), add(route.0, route.1.clone())]);
        // A driver that has not read the nexthops reads them by itself.
        let mut fresh = LinuxKernel::open().expect("kernel");
        let scope = Scope { sorts: [Sort::Route].into(), ..Scope::default() };
        let seen: Vec<_> = fresh.observe(&scope).expect("observe").into_iter().collect();
        assert_eq!(seen, [route]);
    });
}

#[test]
fn sysctls_of_the_host_and_of_a_device() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let forward = "net/ipv4/ip_forward";
        let device = (ifname("v1"), DeviceSysctl::RpFilter);
        let scope = Scope {
            sorts: [Sort::Sysctl].into(),
            sysctls: [forward].into(),
            device_sysctls: [device].into(),
            ..Scope::default()
        };
        let keys = [Key::Sysctl(forward), Key::DeviceSysctl(device.0, device.1)];
        for value in [1, 0, 2] {
            let value = Object::Sysctl(value.min(if value == 2 { 2 } else { 1 }));
            for key in keys {
                // Forwarding is on or off; loose filtering is 2.
                let value =
                    if key == keys[0] && value == Object::Sysctl(2) { Object::Sysctl(1) } else { value.clone() };
                apply(&mut kernel, &[add(key, value.clone())]);
                assert_eq!(kernel.observe(&scope).expect("observe").get(&key), Some(&value));
            }
        }
    });
}

#[test]
fn the_pods_end_of_a_veth_follows_the_mtu() {
    in_namespace(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pod");
        let pod = NetNs::create(&path).expect("a namespace");
        let result = std::panic::catch_unwind(|| {
            make_veth_into(&pod);
            let mut kernel = LinuxKernel::open().expect("kernel");
            let key = link_key("cali1");
            let Some(Object::Link(old)) = observe(&mut kernel, &[]).remove(&key) else { panic!("no cali1") };
            for mtu in [1400, 1480] {
                let mut new = old.clone();
                new.mtu = mtu;
                let pod_side = loden_core::kernel::link::PodSide {
                    netns: path.to_str().expect("utf-8").to_owned(),
                    ifname: ifname("eth0"),
                };
                new.kind = LinkKind::Veth { pod: Some(pod_side) };
                let old = Object::Link(old.clone());
                apply(&mut kernel, &[step(Verb::Change, key, Some(Object::Link(new)), Some(old))]);
                let Some(Object::Link(seen)) = observe(&mut kernel, &[]).remove(&key) else { panic!("no cali1") };
                let inside = pod.run(|| loden_linux::underlay::facts(None).expect("facts")).expect("run");
                let inside = inside.links.iter().find(|link| link.name == ifname("eth0")).expect("eth0").mtu;
                assert_eq!((seen.mtu, inside), (mtu, mtu));
            }
        });
        loden_linux::netns::remove(&path).expect("removal of the namespace");
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// `cali1` here, `eth0` in the pod, both with an MTU of 1450.
fn make_veth_into(pod: &NetNs) {
    use std::os::fd::{AsFd, AsRawFd};
    foreign(|w| {
        w.begin(link::NEW, 0x600);
        w.raw(&link::info(0, 0, 0));
        w.text(link::ifla::IFNAME, "cali1");
        w.u32(link::ifla::MTU, 1450);
        w.u32(link::ifla::GROUP, loden_core::kernel::LINK_GROUP);
        let info = w.nest(link::ifla::LINKINFO);
        w.text(link::ifla::INFO_KIND, "veth");
        let data = w.nest(link::ifla::INFO_DATA);
        let peer = w.nest(1);
        w.raw(&link::info(0, 0, 0));
        w.text(link::ifla::IFNAME, "eth0");
        w.u32(link::ifla::MTU, 1450);
        w.u32(link::ifla::NET_NS_FD, pod.as_fd().as_raw_fd().cast_unsigned());
        w.close(peer);
        w.close(data);
        w.close(info);
        w.end();
    });
}
