//! Programs of the field that are built from their Go modules: the callers of libcni for every run of the tests, and for `cargo xtask peers` a
//! containerd of today. Go's own caches keep what was built; the programs are below `target/peers`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{shell, suite};

/// The containerd that the labs run against besides the one of the distribution.
const CONTAINERD: &str = "2.4.2";

/// `cargo xtask peers`: builds what every run of the tests would take too long for, and runs the labs with it.
pub fn run() -> Result<()> {
    suite::install_tools()?;
    build_callers()?;
    containerd()?;
    suite::labs_with_containerd(CONTAINERD)
}

/// cnitool, and the tree's own caller of libcni.
pub fn build_callers() -> Result<()> {
    let dir = shell::target().join("peers/bin");
    let mut go = go()?;
    go.args(["build", "-trimpath", "-o"]).arg(format!("{}/", dir.display()));
    go.args([".", "github.com/containernetworking/cni/cnitool"])
        .current_dir(shell::root().join("labs/peers/libcni-call"));
    made(&mut go)
}

/// Where containerd is; it is built where it is not there yet.
pub fn containerd() -> Result<PathBuf> {
    let dir = shell::target().join("peers").join(format!("containerd-{CONTAINERD}"));
    let programs = ["containerd", "containerd-shim-runc-v2"];
    if programs.iter().all(|program| dir.join(program).exists()) {
        return Ok(dir);
    }
    shell::say(&format!("· containerd {CONTAINERD} is built, once: some minutes"));
    let module = |program: &str| format!("github.com/containerd/containerd/v2/cmd/{program}@v{CONTAINERD}");
    made(go()?.arg("install").args(programs.map(module)).env("GOBIN", &dir))?;
    Ok(dir)
}

/// Go's own command.
pub fn go() -> Result<Command> {
    let usual = Path::new("/usr/local/go/bin/go");
    let program = match (shell::has("go"), usual.exists()) {
        (true, _) => PathBuf::from("go"),
        (false, true) => usual.to_owned(),
        (false, false) => {
            bail!("Go 1.24 or newer is needed: libcni and cnitool, which call the plugin, are written in it")
        }
    };
    let mut command = Command::new(program);
    // The tree that they are built in is not theirs, and they run in containers without a C library.
    command.env("GOFLAGS", "-buildvcs=false").env("CGO_ENABLED", "0");
    Ok(command)
}

/// Runs it.
pub fn made(go: &mut Command) -> Result<()> {
    let status = go.status().context("go")?;
    if status.success() { Ok(()) } else { bail!("{go:?} ended with {status}") }
}
