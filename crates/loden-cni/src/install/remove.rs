//! `uninstall`: takes out what `install` put in, once no pod needs it. A pod that is attached cannot go without the plugin (DEL), nor
//! without the configuration (containerd then fails to stop it), so that both stay until the last one has gone; meanwhile no ADD is taken in.

use std::path::Path;
use std::time::{Duration, Instant};

use loden_core::cni::{Conflist, NodeFile, PROGRAM};
use loden_core::model::AttachmentKey;
use loden_linux::ledger::Ledger;
use loden_linux::lock::FileLock;
use loden_linux::run_dir::{RunDir, read_json};
use loden_linux::watch::Watch;
use loden_linux::{LinuxError, bridge, fault, place, pod_tables, veth};

use super::args::{Places, Uninstall};
use super::{InstallError, TURN, Wait, is_loden_list, is_there, number, read, roles_in, tell};
use crate::gc;

/// How long an ADD that is under way is waited for before its pod is detached.
const UNDER_WAY: Duration = Duration::from_secs(30);

/// Does it.
pub fn run(uninstall: &Uninstall) -> Result<(), InstallError> {
    let at = &uninstall.at;
    let run_dir = RunDir::new(run_dir(at));
    let ledger = Ledger::new(run_dir.clone());
    let _turn = is_there(&at.bin_dir).then(|| FileLock::of_dir(&at.bin_dir, Instant::now() + TURN)).transpose()?;
    // A directory that is not there holds no attachment, and none is made for the asking.
    let closed = is_there(run_dir.path()).then(|| ledger.close()?.ok_or(InstallError::UnderWay)).transpose()?;
    fault::point("uninstall-closed");
    if closed.is_some() {
        drain(uninstall, &ledger, &run_dir)?;
    }
    take_out(at)?;
    if closed.is_some() {
        clear(&run_dir)?;
    }
    Ok(())
}

/// Where the attachments are: as the configuration that is there says.
fn run_dir(at: &Places) -> String {
    let list = read(&at.conf_dir.join(&at.conf_name)).ok();
    let list = list.and_then(|text| Conflist::parse(&text, &roles_in(&at.bin_dir)).ok());
    let said = at.run_dir.clone().or_else(|| list.map(|list| list.run_dir));
    said.unwrap_or_else(|| "/run/loden".to_owned())
}

/// Comes back when nothing is attached any more.
fn drain(uninstall: &Uninstall, ledger: &Ledger, run_dir: &RunDir) -> Result<(), InstallError> {
    let left = wait_for_none(ledger, run_dir, uninstall.drain_wait, |_| Ok(()))?;
    if left.is_empty() {
        return Ok(());
    }
    if !uninstall.force {
        return Err(InstallError::Attached(left));
    }
    let detach = |key: &AttachmentKey| {
        tell(&format!("loden-cni: attachment {key} is detached"));
        gc::collect(run_dir, ledger, key)
    };
    let left = wait_for_none(ledger, run_dir, UNDER_WAY, detach)?;
    if left.is_empty() { Ok(()) } else { Err(InstallError::Attached(left)) }
}

/// Does something to each attachment until there is none, or no time is left; gives those that are there then.
fn wait_for_none(
    ledger: &Ledger,
    run_dir: &RunDir,
    most: Duration,
    mut each: impl FnMut(&AttachmentKey) -> Result<(), LinuxError>,
) -> Result<Vec<AttachmentKey>, LinuxError> {
    let mut wait = Wait::new(most);
    loop {
        let dirs: Vec<_> = run_dir.all_keys()?.iter().map(|key| run_dir.attachments_dir().join(&key.network)).collect();
        let watch = Watch::on(dirs.iter().map(AsRef::as_ref));
        // Those of killed ADDs belong to nobody.
        ledger.sweep()?;
        let errors = run_dir.all_keys()?.iter().filter_map(|key| each(key).err()).collect();
        LinuxError::collected(errors)?;
        let left = run_dir.all_keys()?;
        if left.is_empty() {
            return Ok(left);
        }
        let what = || format!("waiting for {} to go, at most {} s", number(left.len()), most.as_secs());
        if !wait.for_files(&watch, what)? {
            return Ok(left);
        }
    }
}

/// The configuration goes first: from now on the runtime asks for nothing.
fn take_out(at: &Places) -> Result<(), InstallError> {
    let conflist = at.conf_dir.join(&at.conf_name);
    let roles = roles_in(&at.bin_dir);
    if !is_there(&conflist) || is_loden_list(&conflist, &at.bin_dir) {
        removed(&conflist)?;
    } else {
        tell(&format!("{}: is not loden's, and stays", conflist.display()));
        place::forget_original(&conflist)?;
    }
    for role in &roles {
        removed(&at.bin_dir.join(role))?;
    }
    place::forget_originals(&at.bin_dir, Path::new(PROGRAM))?;
    removed(&at.bin_dir.join(PROGRAM))
}

fn removed(path: &Path) -> Result<(), InstallError> {
    let was_there = is_there(path);
    place::remove(path)?;
    if was_there {
        let now = if is_there(path) { "what was there before is back" } else { "removed" };
        tell(&format!("{}: {now}", path.display()));
    }
    fault::point("uninstall-removed");
    Ok(())
}

/// What the plugin leaves in the kernel for the next pod; without an agent, the directory and the node's bridge too.
fn clear(run_dir: &RunDir) -> Result<(), LinuxError> {
    let mut errors = Vec::new();
    errors.extend(veth::reap().err());
    errors.extend(pod_tables::remove_all().err());
    match FileLock::try_acquire(&run_dir.agent_lock())? {
        Ok(_no_agent) => {
            // One that cannot be read names no bridge.
            if let Ok(Some(node)) = read_json::<NodeFile>(&run_dir.node_file()) {
                for name in node.bridges() {
                    match bridge::remove_unused(name) {
                        Ok(true) => {}
                        Ok(false) => tell(&format!("bridge {name}: has other ports or is not loden's, and stays")),
                        Err(error) => errors.push(error),
                    }
                }
            }
            errors.extend(run_dir.remove().err());
        }
        Err(holder) => tell(&format!(
            "lodend (process {holder}) runs: the bridge, the ways to other nodes and {} are its own",
            run_dir.path().display()
        )),
    }
    LinuxError::collected(errors)
}
