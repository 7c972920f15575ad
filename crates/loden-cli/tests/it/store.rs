//! `loden store` on SQLite files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Datastores in a directory of their own.
struct Stores(tempfile::TempDir);

impl Stores {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("sqlite:{}", self.path(name).display())
    }

    /// A datastore with these records, written by the import itself.
    fn with(&self, name: &str, records: &[Value]) {
        let file = self.path(&format!("{name}.json"));
        std::fs::write(&file, json!({ "version": 1, "records": records }).to_string()).expect("written");
        let output = loden(&["import", "--store", &self.url(name), path(&file)]);
        assert!(output.status.success(), "{output:?}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn loden(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loden"))
        .arg("store")
        .args(args)
        .env_remove("LODEN_STORE")
        .output()
        .expect("it runs")
}

/// The exit code and what was said.
fn said(args: &[&str]) -> (i32, String) {
    let output = loden(args);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().expect("a code"), String::from_utf8(text).expect("UTF-8"))
}

fn pool(name: &str, cidr: &str) -> Value {
    json!({ "kind": "pool", "name": name, "cidr": cidr, "blockLen": 24, "backend": { "type": "host-gw" }, "natOutgoing": true })
}

fn node(name: &str, addr: &str) -> Value {
    json!({ "kind": "node", "name": name, "uid": format!("uid-{name}"), "underlay": { "v4": addr }, "receives": [] })
}

fn block(cidr: &str, owner: &str) -> Value {
    json!({ "kind": "block", "cidr": cidr, "pool": "p", "owner": owner, "ownerUid": format!("uid-{owner}") })
}

fn lease(name: &str) -> Value {
    json!({ "kind": "lease", "node": name, "uid": format!("uid-{name}"), "instance": "i" })
}

fn sound() -> Vec<Value> {
    vec![
        pool("p", "10.0.0.0/16"),
        node("a", "192.0.2.1"),
        node("b", "192.0.2.2"),
        block("10.0.1.0/24", "a"),
        block("10.0.2.0/24", "b"),
    ]
}

#[test]
fn what_is_exported_comes_in_elsewhere_as_it_was() {
    let stores = Stores::new();
    stores.with("one", &sound());
    let exported = loden(&["export", "--store", &stores.url("one")]);
    assert!(exported.status.success());
    std::fs::write(stores.path("dump"), &exported.stdout).expect("written");
    let (code, text) = said(&["import", "--store", &stores.url("two"), path(&stores.path("dump"))]);
    assert!(code == 0 && text.contains("block/10.0.2.0/24 made") && text.contains("5 records, 0 of them"), "{text}");
    assert_eq!(said(&["diff", &stores.url("one"), &stores.url("two")]), (0, String::new()));
    assert_eq!(said(&["diff", path(&stores.path("dump")), &stores.url("two")]), (0, String::new()));
    let again = said(&["import", "--store", &stores.url("two"), &stores.url("one")]);
    assert_eq!(again, (0, "5 records, 5 of them there already\n".to_owned()));
}

#[test]
fn what_is_otherwise_there_is_left_unless_told() {
    let stores = Stores::new();
    stores.with("one", &sound());
    stores.with("two", &[node("a", "192.0.2.77")]);
    let (one, two) = (stores.url("one"), stores.url("two"));
    let (code, text) = said(&["import", "--dry-run", "--store", &two, &one]);
    assert!(
        code == 2 && text.contains("node/a is otherwise there, and was left") && text.contains("--dry-run"),
        "{text}"
    );
    assert_eq!(said(&["diff", &one, &two]).1.matches('\n').count(), 6, "nothing was written");
    let (code, text) = said(&["import", "--store", &two, &one]);
    assert!(code == 2 && text.contains("`--overwrite`"), "{text}");
    let (code, text) = said(&["diff", &one, &two]);
    assert!(
        code == 2 && text.contains("- node/a") && text.contains("+ node/a") && text.contains("192.0.2.77"),
        "{text}"
    );
    let (code, text) = said(&["import", "--overwrite", "--store", &two, &one]);
    assert!(code == 0 && text.contains("node/a changed"), "{text}");
    assert_eq!(said(&["diff", &one, &two]), (0, String::new()));
}

#[test]
fn check_names_what_is_wrong() {
    let stores = Stores::new();
    stores.with("sound", &sound());
    assert_eq!(said(&["check", "--store", &stores.url("sound")]), (0, "5 records, all is well\n".to_owned()));
    let mut records = sound();
    records.extend([
        block("10.0.2.128/25", "a"),
        block("10.0.9.0/24", "gone"),
        block("10.9.0.0/24", "a"),
        json!({ "kind": "block", "cidr": "10.0.7.0/24", "pool": "none", "owner": "a", "ownerUid": "uid-former" }),
        node("c", "192.0.2.1"),
        pool("q", "10.0.128.0/17"),
        lease("a"),
    ]);
    stores.with("odd", &records);
    let (code, text) = said(&["check", "--store", &stores.url("odd")]);
    assert_eq!(code, 2);
    for says in [
        "block 10.0.2.128/25: it is a's, and overlaps 10.0.2.0/24, which b had before",
        "block 10.0.2.128/25: pool p has blocks of /24 now",
        "block 10.0.9.0/24: its owner gone is not there. If it is gone for good: `loden store forget gone`",
        "block 10.9.0.0/24: it is not in its pool p, 10.0.0.0/16",
        "block 10.0.7.0/24: its pool none is not there",
        "block 10.0.7.0/24: it belongs to a former host of the name a",
        "node c: it is at 192.0.2.1, where a was before it",
        "pool q: pool q clashes with pool p",
    ] {
        assert!(text.contains(says), "{says:?} is not in\n{text}");
    }
    // The lease was not carried over: signs of life are of the moment, so nobody is taken for dead.
    assert_eq!(text.lines().count(), 8, "{text}");
    let (_, json) = said(&["-o", "json", "check", "--store", &stores.url("odd")]);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&json).expect("JSON").len(), 8);
}

#[test]
fn a_node_that_is_gone_is_forgotten_with_its_blocks() {
    let stores = Stores::new();
    stores.with("one", &sound());
    let url = stores.url("one");
    assert_eq!(said(&["forget", "--store", &url, "b"]), (0, "node/b removed\nblock/10.0.2.0/24 removed\n".to_owned()));
    let (code, text) = said(&["forget", "--store", &url, "b"]);
    assert!(code == 1 && text.contains("knows of no such node"), "{text}");
    assert_eq!(said(&["check", "--store", &url]), (0, "3 records, all is well\n".to_owned()));
}

#[test]
fn a_node_that_lives_is_forgotten_only_by_force() {
    let stores = Stores::new();
    stores.with("one", &sound());
    let url = stores.url("one");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = loden_store::open(&url).await.expect("opens");
        let record = serde_json::from_value(lease("b")).expect("a record");
        store
            .put(record, loden_store::Expect::Absent, Some(std::time::Duration::from_secs(60)))
            .await
            .expect("written");
    });
    let (code, text) = said(&["forget", "--store", &url, "b"]);
    assert!(code == 1 && text.contains("signs of life") && text.contains("--force"), "{text}");
    let (code, text) = said(&["forget", "--force", "--store", &url, "b"]);
    assert!(code == 0 && text.ends_with("block/10.0.2.0/24 removed\n"), "{text}");
}

#[test]
fn files_that_are_no_export_are_named() {
    let stores = Stores::new();
    for (content, says) in
        [("{", "EOF"), (r#"{"version":9,"records":[]}"#, "form 9"), (r#"{"version":1,"records":[{}]}"#, "kind")]
    {
        std::fs::write(stores.path("dump"), content).expect("written");
        let (code, text) = said(&["import", "--store", &stores.url("two"), path(&stores.path("dump"))]);
        assert!(code == 1 && text.contains("dump") && text.contains(says), "{content}: {text}");
    }
    let (code, text) = said(&["diff", "nowhere", &stores.url("two")]);
    assert!(code == 1 && text.contains("\"nowhere\" names no datastore"), "{text}");
}
