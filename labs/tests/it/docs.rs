//! Every command that the documentation tells people to type is typed here, in its order.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use loden_core::cni::{NetConf, Role, Verb};
use loden_core::config::node::NodeConfig;

use crate::support::binaries;

const PAGES: [&str; 14] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/src/attachments.md",
    "docs/src/backends.md",
    "docs/src/datastores.md",
    "docs/src/flannel.md",
    "docs/src/introduction.md",
    "docs/src/labs.md",
    "docs/src/misses.md",
    "docs/src/node.md",
    "docs/src/pools.md",
    "docs/src/segments.md",
    "docs/src/troubleshooting.md",
];
/// `.ci/run` is the second, which runs the first.
const RUN_BY_CI: [&str; 2] = ["cargo xtask demo", "cargo xtask test"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn page(name: &str) -> String {
    std::fs::read_to_string(top().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What stands between ```` ```LANGUAGE ```` and its end, block by block.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    let ends = |rest: &str| rest.split_once("```").map(|(block, _)| block.to_owned());
    text.split(&begin).skip(1).filter_map(ends).collect()
}

/// What a newcomer has: the programs in the path, and places that are this test's own.
struct Shell(PathBuf);

impl Shell {
    fn run(&self, line: &str) -> Output {
        let path = format!(
            "{}:{}",
            binaries().loden.parent().expect("a directory").display(),
            std::env::var("PATH").expect("a path")
        );
        Command::new("sh")
            .args(["-c", line])
            .current_dir(top())
            .env("PATH", path)
            .env("LODEN_LABS", self.0.join("labs"))
            .env("LODEN_RUN_DIR", self.0.join("labs/flat3/host1/run"))
            .env("LODEN_STORE", format!("sqlite:{}", self.0.join("labs/flat3/loden.db").display()))
            .output()
            .expect("sh")
    }

    fn must(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {}\n{out}{err}", output.status);
        out.into_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // In the good case the lab is down already.
        let _ = self.run("loden lab down flat3");
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_commands_of_the_documentation_do_what_it_says() {
    let shell = Shell(Path::new("/run/loden-lab-test").join(format!("docs-{}", std::process::id())));
    std::fs::create_dir_all(&shell.0).expect("a directory");
    let lines = blocks(&page("docs/src/labs.md"), "sh").concat();
    let mut seen_down = false;
    for line in lines.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if line.starts_with("loden lab down") {
            while_the_lab_is_up(&shell);
            seen_down = true;
        }
        let said = shell.must(line);
        if line.starts_with("loden lab ping") {
            assert!(said.contains("72 of 72 pairs reach"), "{said}");
        }
        if line.ends_with("ip route") {
            assert!(said.contains("flannel.1"), "{said}");
        }
    }
    assert!(seen_down, "{lines}");
    assert_eq!(shell.must("loden -o json lab ls").trim(), "[]");
}

/// The commands of the other pages, against an agent and a store of the lab.
fn while_the_lab_is_up(shell: &Shell) {
    assert!(shell.must("loden lab ls").contains("flat3"));
    assert!(shell.run("loden lab up labs/topologies/flat3.toml").status.code() != Some(0), "it is up already");
    assert!(shell.must("loden status").contains("host1"));
    shell.must("loden plan");
    assert!(shell.must("loden ipam show").contains("host1"));
    for command in ["status", "plan", "ipam show", "pool ls", "lab ls"] {
        let said = shell.must(&format!("loden -o json {command}"));
        serde_json::from_str::<serde_json::Value>(&said).unwrap_or_else(|error| panic!("{command}: {error}: {said}"));
    }
    // What it does where there is a list is shown by a lab of its own.
    let of_bridge = shell.run("loden macvlan sources loden/host1-pod1/eth0");
    let words = String::from_utf8_lossy(&of_bridge.stderr).into_owned();
    assert!(!of_bridge.status.success() && words.contains("is no macvlan in mode \"source\""), "{words}");
    let readme = page("README.md");
    let pools = blocks(&readme, "toml").into_iter().find(|block| block.starts_with("[[pool]]")).expect("pools");
    let file = shell.0.join("pools.toml");
    std::fs::write(&file, &pools).expect("written");
    let at = shell.0.display();
    shell.must(&format!("cd {at} && loden pool apply --store sqlite:{at}/own.db pools.toml"));
    segments(shell);
    let node = blocks(&readme, "toml").into_iter().find(|block| block.starts_with("node =")).expect("a node's file");
    let node = toml::from_str(&node).expect("TOML");
    NodeConfig::parse(node).expect("the node's file of the README");
}

/// The pools of the page are taken as they stand, all together, and its network is one of a tenant's.
fn segments(shell: &Shell) {
    let page = page("docs/src/segments.md");
    let pools = blocks(&page, "toml").concat();
    std::fs::write(shell.0.join("segments.toml"), &pools).expect("written");
    let at = shell.0.display();
    shell.must(&format!("cd {at} && loden pool apply --store sqlite:{at}/segments.db segments.toml"));
    let network: serde_json::Value = serde_json::from_str(&blocks(&page, "json").concat()).expect("JSON");
    let mut plugin = network["plugins"][0].clone();
    plugin["name"] = network["name"].clone();
    plugin["cniVersion"] = network["cniVersion"].clone();
    let conf = NetConf::parse(plugin.to_string().as_bytes(), Verb::Add, Role::Loden).expect("a network");
    let named: Vec<_> = conf.make.expect("ADD makes").ipam.pools.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["red"]);
}

#[test]
fn no_command_is_shown_that_no_test_runs() {
    let shell = Shell(Path::new("/run/loden-lab-test").join(format!("docs-words-{}", std::process::id())));
    let of_labs = page("docs/src/labs.md");
    let mut unknown = BTreeSet::new();
    for name in PAGES {
        let text = page(name);
        let in_blocks = blocks(&text, "sh").concat();
        for line in in_blocks.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
            let is_run = line.is_empty() || RUN_BY_CI.contains(&line) || of_labs.contains(line);
            let is_chore = line.strip_prefix("cargo xtask ").is_some_and(|chore| {
                let words: Vec<_> = chore.split(' ').take_while(|word| !word.starts_with('[')).collect();
                text_of_xtask().contains(&format!("Chore::{}", capital(words[0])))
            });
            if !is_run && !is_chore {
                unknown.insert(format!("{name}: {line}"));
            }
        }
        // What stands in a sentence must at least be a command that there is.
        for span in text.split('`').filter(|span| span.starts_with("loden ") && !span.contains(['\n', '\u{2026}'])) {
            let words: Vec<_> =
                span.split(' ').take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase())).collect();
            if !shell.run(&format!("{} --help", words.join(" "))).status.success() {
                unknown.insert(format!("{name}: `{span}`"));
            }
        }
    }
    assert_eq!(unknown, BTreeSet::new());
}

fn text_of_xtask() -> String {
    page("xtask/src/main.rs")
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
