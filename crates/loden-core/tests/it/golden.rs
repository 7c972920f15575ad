//! Golden plans: `fixtures/cluster/NAME.toml` gives `NAME.plan` on an empty kernel, and `NAME.problems`.
//!
//! `LODEN_BLESS=1` writes what comes out instead of comparing; then read the difference that git shows.

use std::fs;
use std::path::Path;

use loden_core::plan::Plan;

use crate::picture;
use loden_testkit::FakeKernel;

#[test]
fn every_cluster_picture_gives_its_plan_and_its_problems() {
    let folder = picture::fixtures().join("cluster");
    let mut names: Vec<_> =
        fs::read_dir(&folder).expect("fixtures").map(|entry| entry.expect("entry").path()).collect();
    names.sort();
    let mut faults = String::new();
    let mut count = 0;
    for path in names.iter().filter(|path| path.extension().is_some_and(|e| e == "toml")) {
        let view = picture::read(&fs::read_to_string(path).expect("picture"));
        let desired = picture::desired(&view);
        let plan = Plan::of(&desired);
        faults += &compare(&path.with_extension("plan"), &plan.to_string());
        faults += &compare(&path.with_extension("problems"), &picture::problems(&view, &desired));
        // What the picture asks for, a kernel takes in this order. Pods' links are made by the plugin, never here.
        let underlay = view.local.underlay.as_ref().map_or("eth0", |underlay| underlay.ifname.as_str());
        FakeKernel::new(underlay).run(&plan, |_, _| {});
        count += 1;
    }
    assert!(count > 10, "the pictures are not where they are looked for");
    assert!(faults.is_empty(), "{faults}\nLODEN_BLESS=1 takes what came out as right");
}

/// The first line in which what came out is other than what the file has, or nothing.
pub fn compare(path: &Path, came: &str) -> String {
    if std::env::var_os("LODEN_BLESS").is_some() {
        fs::write(path, came).expect("bless");
        return String::new();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == came {
        return String::new();
    }
    let (mut wanted, mut given) = (expected.lines(), came.lines());
    let mut number = 0;
    loop {
        number += 1;
        let (a, b) = (wanted.next(), given.next());
        if a != b || a.is_none() {
            let end = "(the end)";
            return format!(
                "{}:{number}\n  expected: {}\n  came out: {}\n",
                path.display(),
                a.unwrap_or(end),
                b.unwrap_or(end)
            );
        }
    }
}
