//! What flannel's datastore holds goes elsewhere and comes back.

use super::flannel::Kind;
use super::{over_etcd, up};

#[test]
fn flannels_datastore_to_a_file_and_into_another_of_its_kind() {
    let scene = up("takeover-store", Kind::VxlanDualStack, over_etcd);
    let lab = &scene.lab;
    let from = lab.store_url();
    let file = format!("sqlite:{}", lab.dir().join("copy.db").display());
    let second = format!("{from}?prefix=/second/network");
    let loden =
        |args: &[&str]| lab.loden(&[&["store"], args].concat()).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    // Two pools, and of each of three nodes a record and a block of either family.
    for (to, from) in [(&file, &from), (&second, &file)] {
        let said = loden(&["import", "--store", to, from]);
        assert!(said.ends_with("11 records, 0 of them there already\n"), "{said}");
        assert_eq!(loden(&["diff", from, to]), "");
        assert_eq!(loden(&["check", "--store", to]), "11 records, all is well\n");
    }
    assert_eq!(loden(&["diff", &from, &second]), "");
}
