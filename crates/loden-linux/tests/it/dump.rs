//! Listings and batches under strain.

use std::sync::atomic::{AtomicBool, Ordering};

use loden_core::kernel::{Key, Object, Via};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::rt::{neighbour, route};

use crate::support::{add, apply, ifname, in_namespace, index_of, kernel_with_v1, mac, observe};

#[test]
fn a_listing_is_whole_while_others_change_the_table() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let dev = ifname("v1");
        let steady: Vec<_> = (0..4000_u32)
            .flat_map(|n| {
                let block = loden_core::model::Prefix::holding((0x0a40_0000 + (n << 8)).to_be_bytes().into(), 24);
                let addr = (0x0a40_0000 + n).to_be_bytes().into();
                [
                    add(Key::Neighbour(dev, addr), Object::Neighbour(mac("02:00:00:00:00:01"))),
                    add(Key::Route(block, 0), Object::Route(Via::Link(dev))),
                ]
            })
            .collect();
        apply(&mut kernel, &steady);
        let stop = AtomicBool::new(false);
        let index = index_of("v1");
        // The other hand works in the same namespace: its socket is opened here.
        let mut socket = Socket::open(Protocol::Route).expect("socket");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut w = Writer::default();
                let mut n = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let addr = (0x0b00_0000 + n % 64).to_be_bytes().into();
                    let block = loden_core::model::Prefix::holding(addr, 32);
                    w.clear();
                    route::add_foreign(&mut w, block, 0, route::To::Link(index));
                    route::delete(&mut w, block, 0);
                    neighbour::put(&mut w, index, addr, mac("02:00:00:00:00:02"));
                    neighbour::delete(&mut w, index, addr);
                    let _ = socket.batch(&mut w).expect("batch");
                    n += 1;
                    // Room for a listing to come out whole once in a while.
                    std::thread::sleep(std::time::Duration::from_micros(500));
                }
            });
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..10 {
                    let seen = observe(&mut kernel, &[]);
                    let missing = steady.iter().filter(|step| !seen.contains_key(&step.key)).count();
                    assert_eq!(missing, 0);
                }
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = checked {
                std::panic::resume_unwind(panic);
            }
        });
    });
}

#[test]
fn an_empty_batch_is_no_send() {
    in_namespace(|| {
        let mut socket = Socket::open(Protocol::Route).expect("socket");
        assert_eq!(socket.batch(&mut Writer::default()), Ok(Vec::new()));
    });
}

#[test]
fn a_socket_stays_in_the_namespace_that_it_was_opened_in() {
    in_namespace(|| {
        let mut kernel = kernel_with_v1();
        let elsewhere = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    loden_linux::netns::unshare_net().expect("unshare");
                    let here = loden_linux::underlay::facts(None).expect("facts").links.len();
                    (here, observe(&mut kernel, &["eth0"]).len())
                })
                .join()
                .expect("thread")
        });
        assert_eq!(elsewhere.0, 1, "a fresh namespace has its loopback only");
        assert!(elsewhere.1 > 1);
    });
}
