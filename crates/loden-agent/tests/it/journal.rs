//! The view on disk as a file: what is read back is what was written, and what is damaged is not taken for it.

use std::fs;

use loden_agent::journal::Journal;
use loden_core::model::{Entry, Key};
use loden_linux::LinuxError;
use loden_store::{Change, Listing};

use crate::cluster::{listing, vxlan};

fn given(peers: u8) -> Listing {
    Listing { entries: listing(peers, &vxlan()), revision: 7, id: "store-1".to_owned(), ..Listing::default() }
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| entry.record.key());
    entries
}

#[test]
fn what_was_written_is_read_back_with_every_change_behind_it() {
    let dir = tempfile::tempdir().expect("directory");
    let mut journal = Journal::new(dir.path());
    assert_eq!(journal.read().expect("readable"), None);
    let mut listing = given(3);
    journal.begin(&listing, true).expect("written");
    let removed = listing.entries.pop().expect("there are some").record.key();
    journal.append(&Change::Delete { key: removed, revision: 8 }).expect("written");
    let changed = listing.entries.last_mut().expect("there are some");
    changed.revision = 9;
    journal.append(&Change::Put(changed.clone())).expect("written");
    journal.append(&Change::Flaw { place: "x".to_owned(), cause: None, revision: 10 }).expect("written");
    let found = Journal::new(dir.path()).read().expect("readable").expect("there");
    assert_eq!((found.store.as_str(), found.lends, found.revision), ("store-1", true, 9));
    assert_eq!(found.entries, sorted(listing.entries));
}

#[test]
fn a_line_that_was_cut_short_is_left_out_and_any_other_damage_is_named_and_set_aside() {
    let dir = tempfile::tempdir().expect("directory");
    let mut journal = Journal::new(dir.path());
    journal.begin(&given(3), false).expect("written");
    let bytes = fs::read(journal.path()).expect("there");
    let entries = sorted(given(3).entries).len();
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("lines") + 1;
    for cut in [last + 1, last + 20, bytes.len() - 1] {
        fs::write(journal.path(), &bytes[..cut]).expect("written");
        let found = journal.read().expect("readable").expect("there");
        assert_eq!(found.entries.len(), entries - 1, "{cut}");
    }
    let first_end = bytes.iter().position(|byte| *byte == b'\n').expect("lines");
    let mut middle = bytes.clone();
    middle[first_end + 5] = 0xff;
    let newer =
        String::from_utf8(bytes.clone()).expect("text").replacen("\"version\":1", "\"version\":2", 1).into_bytes();
    let half = bytes[..first_end / 2].to_vec();
    for (what, damaged) in [("empty", Vec::new()), ("half a header", half), ("the middle", middle), ("newer", newer)] {
        fs::write(journal.path(), &damaged).expect("written");
        let error = journal.read().expect_err(what);
        assert!(matches!(&error, LinuxError::File { path, .. } if path.ends_with("/view")), "{what}: {error}");
        let aside = journal.set_aside().expect("it can be moved");
        assert_eq!(fs::read(aside).expect("there"), damaged, "{what}");
        assert_eq!(journal.read().expect("readable"), None, "{what}");
    }
}

#[test]
fn what_is_appended_is_folded_in_before_it_outgrows_the_listing() {
    let dir = tempfile::tempdir().expect("directory");
    let mut journal = Journal::new(dir.path());
    let mut entry = given(1).entries.remove(0);
    journal.begin(&given(1), false).expect("written");
    let whole = fs::metadata(journal.path()).expect("there").len();
    let mut most = 0;
    for revision in 10..2000 {
        entry.revision = revision;
        journal.append(&Change::Put(entry.clone())).expect("written");
        most = most.max(fs::metadata(journal.path()).expect("there").len());
    }
    assert!(most < whole + 70_000, "{most}");
    let found = journal.read().expect("readable").expect("there");
    assert_eq!((found.revision, found.entries.len()), (1999, given(1).entries.len()));
}

#[test]
fn one_that_cannot_be_written_is_removed_and_not_written_to_any_more() {
    let dir = tempfile::tempdir().expect("directory");
    let mut journal = Journal::new(dir.path());
    journal.begin(&given(1), false).expect("written");
    fs::create_dir(dir.path().join(format!("view.{}.tmp", std::process::id()))).expect("made");
    let error = journal.begin(&given(2), false).expect_err("something is in its place");
    assert!(error.to_string().contains("/view"), "{error}");
    assert!(!journal.is_whole() && !journal.path().exists(), "the old one lacks what came since");
    let key = Key::Block("10.244.1.0/24".parse().expect("prefix"));
    journal.append(&Change::Delete { key, revision: 8 }).expect("nothing is done");
    assert!(!journal.path().exists());
}
