//! `cargo xtask kernel`: tests of what a machine's own kernel may lack, under one that has it. User-Mode Linux is a kernel that runs as a
//! program (Debian's package `user-mode-linux`, which is unpacked and not installed); its root is this machine's, read-only, and its
//! init is this very program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, finit_module, reboot};
use serde_json::Value;

use crate::{shell, suite};

/// A program of tests, and what its tests need of the kernel.
#[derive(Debug)]
struct Suite {
    package: &'static str,
    /// What says that the kernel can.
    feature: &'static str,
    /// Which of its tests.
    tests: &'static str,
    modules: &'static [&'static str],
}

const SUITES: [Suite; 3] = [
    Suite {
        package: "loden-cni",
        feature: "vlan-filtering",
        tests: "vlans::",
        modules: &["net/bridge/bridge.ko", "drivers/net/veth.ko"],
    },
    Suite {
        package: "loden-linux",
        feature: "ipip-device",
        tests: "kernel_ipip::",
        modules: &[
            "net/bridge/bridge.ko",
            "drivers/net/veth.ko",
            "drivers/net/tun.ko",
            "net/ipv4/ipip.ko",
            // It has the tables of nftables for ARP and bridges alone, but the driver opens its socket all the same.
            "net/netfilter/nfnetlink.ko",
        ],
    },
    Suite {
        package: "loden-tunnel",
        feature: "ipip-device",
        tests: "kernel_ipip::",
        modules: &["net/ipv6/ipv6.ko", "drivers/net/veth.ko", "drivers/net/tun.ko", "net/ipv4/ipip.ko"],
    },
];
/// Programs of this machine that the tests run there, with Debian's packages of them.
const TOOLS: &[(&str, &str)] = &[("ip", "iproute2"), ("ping", "iputils-ping"), ("ethtool", "ethtool")];
/// A boot takes two seconds and the tests some more; this only guards against hanging.
const PATIENCE: Duration = Duration::from_secs(180);
/// Variables of init: the directory of the kernel's modules, whose tests are run, and their program.
const MODULES_IN: &str = "LODEN_KERNEL_MODULES";
const SUITE: &str = "LODEN_KERNEL_SUITE";
const TESTS_IN: &str = "LODEN_KERNEL_TESTS";
/// What init says last, before the code that the tests ended with.
const VERDICT: &str = "the tests ended with ";

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only the tests of this package.
    #[arg(long)]
    only: Option<String>,
}

/// Runs them: a kernel for each program.
pub fn run(options: &Options) -> Result<()> {
    let is_asked_for = |suite: &&Suite| options.only.as_deref().is_none_or(|only| only == suite.package);
    let suites: Vec<&Suite> = SUITES.iter().filter(is_asked_for).collect();
    if suites.is_empty() {
        bail!("there is nothing of that: {}", SUITES.map(|suite| suite.package).join(", "));
    }
    suite::install(TOOLS)?;
    let uml = Uml::fetch()?;
    let (mut passed, mut failures) = (0, Vec::new());
    for suite in suites {
        shell::say(&format!("· {} {}", suite.package, suite.tests));
        match uml.run(suite) {
            Ok(count) => passed += count,
            Err(error) => failures.push(format!("{}: {error:#}", suite.package)),
        }
    }
    shell::print(&format!("{passed} passed"))?;
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

/// Ends the kernel, which is several processes, when it takes too long: unless what is given back is dropped before.
fn watch(child: &Child) -> Result<Sender<()>> {
    let group = Pid::from_child(child);
    let (alive, gone) = mpsc::channel();
    let end = move || {
        if gone.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            // It may have ended just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    };
    std::thread::Builder::new().spawn(end).context("a thread")?;
    Ok(alive)
}

struct Uml {
    program: PathBuf,
    modules: PathBuf,
}

impl Uml {
    /// Unpacks it below the build's directory, where it stays.
    fn fetch() -> Result<Self> {
        let dir = shell::target().join("user-mode-linux");
        if !dir.join("usr/bin/linux.uml").exists() {
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            shell::output(Command::new("apt-get").args(["download", "user-mode-linux"]).current_dir(&dir)).context(
                "User-Mode Linux cannot be had (Debian: package user-mode-linux; `apt-get update` may be needed first)",
            )?;
            let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
            let package = entries(&dir)?.into_iter().find(is_package).context("apt-get has left no package")?;
            shell::output(Command::new("dpkg-deb").arg("-x").args([&package, &dir]))?;
            fs::remove_file(&package).with_context(|| package.display().to_string())?;
        }
        let versions = entries(&dir.join("usr/lib/uml/modules"))?;
        let modules = versions.into_iter().next().context("User-Mode Linux has no modules")?;
        Ok(Self { program: dir.join("usr/bin/linux.uml"), modules })
    }

    /// Boots it for some tests, and says how many have passed.
    fn run(&self, suite: &Suite) -> Result<u64> {
        let program = suite.build()?;
        let init = std::env::current_exe().context("this program")?;
        let mut command = Command::new(&self.program);
        command
            .args([
                "root=/dev/root",
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                "mem=384M",
                "con0=null,fd:1",
                "con=null",
                "quiet",
            ])
            .arg(format!("init={}", init.display()))
            // A word that the kernel does not know is for init; one with a sign of equality is for its environment.
            .arg(format!("{MODULES_IN}={}", self.modules.display()))
            .arg(format!("{SUITE}={}", suite.package))
            .arg(format!("{TESTS_IN}={}", program.display()))
            .arg("kernel-init");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn().context("linux.uml")?;
        let _watch = watch(&child)?;
        let (mut verdict, mut passed) = (None, 0);
        for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
            let line = line.context("the output of linux.uml")?;
            verdict = line.strip_prefix(VERDICT).map(|code| code.trim().to_owned()).or(verdict);
            passed += suite::count(&line).passed;
            shell::say(&line);
        }
        child.wait().context("linux.uml")?;
        match verdict.as_deref() {
            Some("0") if passed > 0 => Ok(passed),
            Some("0") => bail!("no test was run"),
            Some(code) => bail!("the tests ended with {code}"),
            None => bail!("the other kernel ended before the tests did"),
        }
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    all.map(|entry| Ok(entry?.path())).collect()
}

impl Suite {
    /// Builds the tests and says where they are.
    fn build(&self) -> Result<PathBuf> {
        let built = shell::output(&mut shell::cargo(&[
            "test",
            "--no-run",
            "--message-format=json",
            "-p",
            self.package,
            "--features",
            self.feature,
            "--test",
            "it",
        ]))?;
        let messages = built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_test = |message: &Value| message["target"]["kind"][0] == "test";
        let program = messages.filter(is_test).find_map(|message| message["executable"].as_str().map(PathBuf::from));
        program.context("cargo does not say where the tests are")
    }
}

/// What runs as process 1 of the other kernel.
pub fn init() -> Result<()> {
    let code = (|| {
        let var = |name| std::env::var_os(name).with_context(|| format!("{name} is not set"));
        let package = var(SUITE)?;
        let suite = SUITES.iter().find(|suite| package == suite.package).context("no such tests")?;
        in_the_other_kernel(suite, Path::new(&var(MODULES_IN)?), Path::new(&var(TESTS_IN)?))
    })();
    match &code {
        Ok(code) => shell::say(&format!("{VERDICT}{code}")),
        Err(error) => shell::say(&format!("{error:#}")),
    }
    reboot(RebootCommand::PowerOff).context("power off")
}

fn in_the_other_kernel(suite: &Suite, modules: &Path, program: &Path) -> Result<i32> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount(kind, place, kind, MountFlags::empty(), None).with_context(|| format!("mount {kind} on {place}"))?;
    }
    // Not over `/tmp`: the tree itself may lie there.
    let scratch = Path::new("/run/tmp");
    fs::create_dir(scratch).with_context(|| scratch.display().to_string())?;
    let order = fs::read_to_string(modules.join("modules.dep")).context("modules.dep")?;
    for module in suite.modules {
        let line = order.lines().find_map(|line| line.strip_prefix(&format!("kernel/{module}:")));
        let needs = line.with_context(|| format!("modules.dep does not know {module}"))?;
        // What is needed by others stands behind them.
        for file in needs.split_whitespace().rev().chain([format!("kernel/{module}").as_str()]) {
            load(&modules.join(file)).with_context(|| file.to_owned())?;
        }
    }
    let status = Command::new(program)
        .args([suite.tests, "--test-threads=1", "--color=never"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("TMPDIR", scratch)
        .status()
        .with_context(|| program.display().to_string())?;
    Ok(status.code().unwrap_or(128))
}

fn load(module: &Path) -> Result<()> {
    let file = rustix::fs::openat(CWD, module, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
