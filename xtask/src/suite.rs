//! `cargo xtask test`: every check, one line a step, and at the end what was passed and what could not be run.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{peers, shell, tidy};

/// A step: its name, and what it runs.
struct Step {
    name: &'static str,
    run: fn() -> Result<Counted>,
}

/// Tests that were run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counted {
    /// Those that have passed.
    pub passed: u64,
    failed: u64,
}

impl Counted {
    const ONE: Self = Self { passed: 1, failed: 0 };
}

const STEPS: &[Step] = &[
    Step { name: "tools", run: || install_tools().map(|()| Counted::default()) },
    Step { name: "format", run: format },
    Step { name: "tidy", run: || tidy::run().map(|()| Counted::ONE) },
    Step { name: "clippy", run: clippy },
    Step { name: "build", run: || shell::build(false).map(|_| Counted::default()) },
    Step { name: "unit and ring-2 tests", run: tests },
    Step { name: "peers", run: || peers::build_callers().map(|()| Counted::default()) },
    Step { name: "labs", run: labs },
    Step { name: "demo", run: demo },
];

/// Runs the steps whose name holds `only`.
pub fn run(only: Option<&str>) -> Result<()> {
    let mut rows = Vec::new();
    let mut sum = Counted::default();
    for step in STEPS.iter().filter(|step| only.is_none_or(|only| step.name.contains(only))) {
        shell::say(&format!("· {}", step.name));
        let began = Instant::now();
        let result = (step.run)();
        let seconds = began.elapsed().as_secs_f64();
        let (counted, error) = match result {
            Ok(counted) => (counted, None),
            Err(error) => (Counted { passed: 0, failed: 1 }, Some(error)),
        };
        sum.passed += counted.passed;
        sum.failed += counted.failed;
        let is_well = error.is_none() && counted.failed == 0;
        rows.push(format!("{} {:24} {seconds:7.1} s", if is_well { "✓" } else { "✗" }, step.name));
        if let Some(error) = error {
            shell::say(&format!("✗ {}: {error:#}", step.name));
        }
    }
    rows.iter().for_each(|row| shell::say(row));
    not_run()?;
    shell::print(&format!("{} passed, {} failed", sum.passed, sum.failed))?;
    if sum.failed > 0 { bail!("not everything passed") } else { Ok(()) }
}

/// Takes what the golden tests now give for right.
pub fn bless() -> Result<()> {
    let status = shell::cargo(&["test", "--quiet", "-p", "loden-core"]).env("LODEN_BLESS", "1").status()?;
    if status.success() { Ok(()) } else { bail!("the tests fail for another reason") }
}

/// What the tests need besides the toolchain: programs, and Debian's packages of them. `nft` looks at what the driver wrote, iptables
/// writes what flanneld leaves, runtimes call
/// the plugin, containers are made of busybox (linked statically), dnsmasq leases addresses to pods, etcd is the
/// datastore of some labs (openssl makes its certificates), and faketime's library steps the wall clock of one agent.
const TOOLS: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("iptables-nft", "iptables"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("conmon", "conmon"),
    ("busybox", "busybox-static"),
    ("dnsmasq", "dnsmasq-base"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("openssl", "openssl"),
    ("faketime", "faketime"),
];

/// Installs what is missing.
pub fn install_tools() -> Result<()> {
    install(TOOLS)
}

/// Installs those that are missing of some programs, which are given with Debian's packages of them.
pub fn install(tools: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|(program, _)| !shell::has(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, packages): (Vec<&str>, Vec<&str>) = missing.into_iter().copied().unzip();
    shell::install(&packages, &format!("these programs are needed: {}", programs.join(", ")))
}

fn format() -> Result<Counted> {
    check(shell::cargo(&["fmt", "--all", "--check"]), "`cargo fmt` would change something")
}

fn clippy() -> Result<Counted> {
    let args = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    check(shell::cargo(&args), "clippy has something to say")
}

fn check(mut command: Command, fault: &str) -> Result<Counted> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(Counted::ONE);
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().take(60).collect();
    bail!("{fault}:\n{}", lines.join("\n"))
}

fn tests() -> Result<Counted> {
    cargo_test(&["test", "--workspace", "--exclude", "labs", "--features", "loden-cni/fault-points"])
}

fn labs() -> Result<Counted> {
    // The labs run the programs of the ordinary build.
    shell::build(false)?;
    cargo_test(&["test", "-p", "labs", "--", "--test-threads=2"])
}

/// The labs of containerd, with the one of this version that `peers` has built.
pub fn labs_with_containerd(version: &str) -> Result<()> {
    shell::build(false)?;
    let mut command = shell::cargo(&["test", "-p", "labs", "runtimes::pods::", "--", "--test-threads=2"]);
    let counted = counted(command.env("LODEN_CONTAINERD", version))?;
    shell::print(&format!("{} passed, {} failed", counted.passed, counted.failed))?;
    if counted.failed > 0 { bail!("not everything passed") } else { Ok(()) }
}

fn demo() -> Result<Counted> {
    crate::demo::run(&crate::demo::Options::default()).map(|()| Counted::ONE)
}

fn cargo_test(args: &[&str]) -> Result<Counted> {
    counted(&mut shell::cargo(args))
}

/// Runs tests and counts them from libtest's own closing lines; what failed is shown.
fn counted(command: &mut Command) -> Result<Counted> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counted = count(&text);
    if !output.status.success() {
        shell::say(&text);
    }
    match (output.status.success(), counted) {
        (true, Counted { passed: 0, .. }) => bail!("no test was run"),
        (true, counted) => Ok(counted),
        (false, Counted { failed: 0, .. }) => bail!("cargo test ended with {}", output.status),
        (false, counted) => Ok(counted),
    }
}

/// What libtest says at the end: `test result: ok. 3 passed; 0 failed; …`.
pub fn count(text: &str) -> Counted {
    let mut sum = Counted::default();
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        let number = |word: &str| {
            let before = line.split(word).next()?;
            before.trim_end().rsplit(' ').next()?.parse::<u64>().ok()
        };
        sum.passed += number("passed").unwrap_or(0);
        sum.failed += number("failed").unwrap_or(0);
    }
    sum
}

/// What this machine cannot run is listed in a file that is checked in: a lost feature is red, never quietly green.
fn not_run() -> Result<()> {
    let path = shell::root().join("labs/not-run-here.txt");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let listed: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    if listed.is_empty() {
        shell::say("everything that there is was run, but for `cargo xtask peers`");
    }
    listed.iter().for_each(|line| shell::say(&format!("not run: {line}")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let text = "test result: ok. 3 passed; 0 failed; 1 ignored\nnoise\ntest result: FAILED. 10 passed; 2 failed; 0 ignored\n";
        let sum = count(text);
        assert_eq!((sum.passed, sum.failed), (13, 2));
    }
}
