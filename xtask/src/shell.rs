//! Running programs, and talking to the person in front.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use loden_lab::Binaries;

/// The top of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// A line for the person.
pub fn say(line: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A line for programs.
pub fn print(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output")
}

/// `cargo`, in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the programs that a lab runs, and says where they are.
pub fn build(release: bool) -> Result<Binaries> {
    let profile: &[&str] = if release { &["--release"] } else { &[] };
    run_cargo(&[&["build", "--quiet", "-p", "loden-cli", "-p", "loden-agent", "-p", "loden-cni"], profile].concat())?;
    let target = target();
    let mut binaries = Binaries::in_dir(&target.join(if release { "release" } else { "debug" }));
    if release {
        binaries.loden_cni = shipped_plugin(&target)?;
    }
    Ok(binaries)
}

/// The plugin as it is shipped: static, with musl. It is executed for each pod, and half of the time of a program that does
/// nothing goes into glibc's start, which asks the processor what it can (`cpuid`, slow in a virtual machine) even when it is
/// linked statically.
fn shipped_plugin(target: &Path) -> Result<PathBuf> {
    let musl = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let is_there = Command::new("rustup").args(["target", "add", &musl]).output().is_ok_and(|out| out.status.success());
    if is_there {
        run_cargo(&["build", "--quiet", "--release", "-p", "loden-cni", "--target", &musl])?;
        return Ok(target.join(musl).join("release/loden-cni"));
    }
    say(&format!(
        "! rustup cannot add the target {musl}: the plugin is linked statically with the host's C library instead"
    ));
    let plugin = ["rustc", "--quiet", "--release", "-p", "loden-cni", "--bin", "loden-cni"];
    run_cargo(&[&plugin[..], &["--", "-C", "target-feature=+crt-static"]].concat())?;
    Ok(target.join("release/loden-cni"))
}

fn run_cargo(args: &[&str]) -> Result<()> {
    let status = cargo(args).status().context("cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} failed", args.join(" ")) }
}

/// Runs a program with this one's input and output.
pub fn pass_through(program: &Path, args: impl Iterator<Item = String>) -> Result<()> {
    let status = Command::new(program).args(args).status().with_context(|| program.display().to_string())?;
    if status.success() { Ok(()) } else { bail!("{} ended with {status}", program.display()) }
}

/// Whether a program is to be found.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).exists())
}

/// Runs a program and gives its output; its words when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Has `ip` or `bridge` carry out commands, one a line.
pub fn batch(program: &str, lines: &str) -> Result<()> {
    let mut child =
        Command::new(program).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context(program.to_owned())?;
    child.stdin.take().context("no input")?.write_all(lines.as_bytes())?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { bail!("{program} -batch ended with {status}") }
}

/// Installs packages of Debian's where they can be installed: as root, with `apt-get`. `why` is said when they cannot.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    let names = packages.join(" ");
    if !(rustix::process::geteuid().is_root() && has("apt-get")) {
        bail!("{why} (Debian: apt-get install {names})");
    }
    say(&format!("· apt-get install {names}"));
    for args in [&["update"][..], &[&["install", "-y", "--no-install-recommends"], packages].concat()] {
        let status = Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("apt-get")?;
        if !status.success() {
            bail!("apt-get {} failed", args.join(" "));
        }
    }
    Ok(())
}

/// The last lines of a file; none when it cannot be read.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
