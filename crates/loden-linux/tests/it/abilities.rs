//! What a kernel can is found out by doing it, where that may be done.

use loden_core::view::Abilities;
use loden_linux::abilities;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// flannel's container has CAP_NET_ADMIN and CAP_NET_RAW.
#[test]
fn who_may_make_no_namespace_can_nothing_that_is_tried_in_one() {
    let found = std::thread::spawn(|| {
        let mut sets = capabilities(None).expect("read");
        sets.effective = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        // Threads that this one starts have no more.
        set_capabilities(None, sets).expect("these tests need root");
        abilities::find()
    });
    assert_eq!(found.join().expect("a thread").expect("found out"), Abilities::default());
}
