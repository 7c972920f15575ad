//! `cargo xtask tidy`: the house rules that a program can check, each with its reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// Lines of a file of the product.
const MOST_LINES: usize = 600;

/// Which of our crates each may use, and which outside crates the pure core may.
const MAY_USE: &[(&str, &[&str])] = &[
    ("loden-core", &[]),
    ("loden-linux", &["loden-core"]),
    ("loden-store", &["loden-core"]),
    ("loden-lab", &["loden-core", "loden-linux"]),
    ("loden-tunnel", &["loden-core", "loden-linux"]),
    ("loden-cni", &["loden-core", "loden-linux"]),
    ("loden-agent", &["loden-core", "loden-linux", "loden-store", "loden-tunnel"]),
    ("loden-cli", &["loden-core", "loden-linux", "loden-store", "loden-lab"]),
    ("loden-testkit", &["loden-core", "loden-linux"]),
];
const CORE_MAY_USE: &[&str] =
    &["foldhash", "indexmap", "ipnet", "regex-lite", "serde", "serde_json", "thiserror", "prefix-trie"];
/// The plugin starts in a millisecond: none of these may come in by any way.
const NEVER_IN_THE_PLUGIN: &[&str] = &["tokio", "rusqlite", "etcd-client", "tonic", "hyper", "axum", "tracing", "clap"];
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "CDLA-Permissive-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CC0-1.0",
    "Unlicense",
    "0BSD",
    "MIT-0",
    "BSL-1.0",
];

/// Runs all rules.
pub fn run() -> Result<()> {
    let mut faults = Vec::new();
    let listed =
        shell::output(Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(shell::root()))?;
    for name in listed.lines() {
        let path = shell::root().join(name);
        // A file that git knows and the tree has not any more is on its way out.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if name.ends_with(".rs") {
            faults.extend(source(name, &text));
        }
        if name.ends_with(".md") {
            faults.extend(links(name, &text));
        }
        faults.extend(words(name, &text));
    }
    let metadata = shell::output(&mut shell::cargo(&["metadata", "--format-version", "1", "--locked"]))?;
    faults.extend(dependencies(&serde_json::from_str(&metadata).context("cargo metadata")?));
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} fault(s):\n{}", faults.len(), faults.join("\n"))
}

/// Rules for one source file.
fn source(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let is_test = name.contains("/tests/") || name.starts_with("labs/");
    if !text.starts_with("//!") {
        faults.push(format!("{name}:1: a file begins with `//!` and what it is for"));
    }
    let lines = text.lines().count();
    if lines > MOST_LINES && !is_test && !text.contains("// tidy: long because") {
        faults.push(format!(
            "{name}:{MOST_LINES}: {lines} lines; a file that is read top to bottom has at most {MOST_LINES}"
        ));
    }
    if name.ends_with("/mod.rs") {
        faults.push(format!("{name}:1: `foo.rs` beside `foo/`, never mod.rs: the name of the file is the map"));
    }
    for (n, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let at = |rule: &str| format!("{name}:{}: {rule}", n + 1);
        // The words are put together here, so that this file does not hold them.
        for word in [concat!("todo", "!("), concat!("unimpl", "emented!("), concat!("#[ign", "ore")] {
            if code.contains(word) {
                faults.push(at(&format!("`{word}`: no stub is called done, no test is passed over")));
            }
        }
        let has_unsafe =
            code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == concat!("uns", "afe"));
        if has_unsafe && !name.starts_with("crates/loden-linux/") && !code.contains('"') {
            faults.push(at("only loden-linux may be unsafe"));
        }
    }
    faults
}

/// Words that do not belong into the project's text.
fn words(name: &str, text: &str) -> Vec<String> {
    if name.ends_with(".lock") {
        return Vec::new();
    }
    let banned = [concat!("/wo", "rk/main"), concat!(".lib", "rary"), concat!("Co-Auth", "ored-By")];
    let found = banned.iter().filter(|word| text.contains(**word));
    found.map(|word| format!("{name}: `{word}` is of one machine, and no part of the project")).collect()
}

/// Links of a page that lead to no file.
fn links(name: &str, text: &str) -> Vec<String> {
    let dir = shell::root().join(name);
    let dir = dir.parent().unwrap_or(Path::new("."));
    let mut faults = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || dir.join(target).exists() {
                continue;
            }
            faults.push(format!("{name}:{}: the link to {target} leads nowhere", n + 1));
        }
    }
    faults
}

/// Who may use whom, and under which licence.
fn dependencies(metadata: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    for package in &packages {
        let name = text(package, "name");
        let is_ours = package["source"].is_null();
        let licence = text(package, "license");
        if !is_ours && !is_permissive(&licence) {
            faults.push(format!("dependency {name}: its licence is {licence:?}; only permissive ones are used"));
        }
        let Some((_, may)) = MAY_USE.iter().find(|(crate_name, _)| *crate_name == name) else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = text(dependency, "name");
            let is_dev = dependency["kind"] == "dev";
            let is_own_rule = used.starts_with("loden-") && !may.contains(&used.as_str());
            if is_own_rule && !(is_dev && used == "loden-testkit") {
                faults.push(format!("crates/{name}: may not use {used} (ARCHITECTURE.md says who may use whom)"));
            }
            if name == "loden-core" && !is_dev && !CORE_MAY_USE.contains(&used.as_str()) {
                faults.push(format!(
                    "crates/loden-core: may not use {used}: it is not among the pure libraries of CORE_MAY_USE"
                ));
            }
        }
    }
    faults.extend(plugin(metadata, &packages));
    faults
}

/// What the plugin pulls in, by any way.
fn plugin(metadata: &Value, packages: &[&Value]) -> Vec<String> {
    let names: BTreeMap<&str, &str> =
        packages.iter().filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?))).collect();
    let nodes = metadata["resolve"]["nodes"].as_array();
    let edges: BTreeMap<&str, Vec<&str>> = nodes
        .into_iter()
        .flatten()
        .filter_map(|node| {
            let normal = |dep: &&Value| {
                dep["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k["kind"].is_null()))
            };
            let deps = node["deps"].as_array()?.iter().filter(normal).filter_map(|dep| dep["pkg"].as_str());
            Some((node["id"].as_str()?, deps.collect()))
        })
        .collect();
    let mut open: Vec<&str> = names.iter().filter(|(_, name)| **name == "loden-cni").map(|(id, _)| *id).collect();
    let mut seen = std::collections::BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            open.extend(edges.get(id).into_iter().flatten());
        }
    }
    let pulled = seen.iter().filter_map(|id| names.get(id)).filter(|name| NEVER_IN_THE_PLUGIN.contains(name));
    pulled.map(|name| format!("crates/loden-cni: pulls in {name}; the plugin has to start in a millisecond")).collect()
}

/// Whether some choice that the expression leaves is a permissive licence.
fn is_permissive(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let is_known = |term: &str| {
        let term = term.split(" WITH ").next().unwrap_or_default().trim();
        LICENCES.contains(&term)
    };
    plain.split(" AND ").all(|part| part.split(" OR ").any(is_known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_fault() {
        assert!(source("crates/x/src/a.rs", "//! For this.\nfn f() {}\n").is_empty());
        assert_eq!(source("crates/x/src/a.rs", "fn f() {}\n").len(), 1);
        assert_eq!(source("crates/x/src/mod.rs", "//! x\n").len(), 1);
        let long = format!("//! x\n{}", "\n".repeat(600));
        assert_eq!(source("crates/x/src/a.rs", &long).len(), 1);
        assert!(source("crates/x/tests/it/a.rs", &long).is_empty());
        assert_eq!(source("crates/x/src/a.rs", concat!("//! x\nuns", "afe { f() }\n")).len(), 1);
        assert!(source("crates/loden-linux/src/a.rs", concat!("//! x\nuns", "afe { f() }\n")).is_empty());
        assert_eq!(source("crates/x/src/a.rs", concat!("//! x\ntodo", "!()\n")).len(), 1);
        assert_eq!(words("README.md", concat!("see /wo", "rk/main")).len(), 1);
    }

    #[test]
    fn licences() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "Unlicense/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ] {
            assert!(is_permissive(good), "{good}");
        }
        for bad in ["GPL-3.0-or-later", "", "MIT AND GPL-2.0"] {
            assert!(!is_permissive(bad), "{bad}");
        }
    }
}
