//! Pods that come and go, thousands of them, on a host with a living agent: what the host holds afterwards must be what it held
//! before.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loden_core::ipam::{RangeState, Supply};
use loden_core::model::Family;
use loden_linux::LinuxError;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::{self, NetNs};
use loden_linux::rt::{address, link, route};
use loden_linux::run_dir::RunDir;
use loden_linux::spawn;
use serde::Serialize;
use serde_json::{Value, json};

use crate::LabError;
use crate::lab::Lab;
use crate::pod::Call;

/// How many pods come and go at a time.
const AT_ONCE: usize = 8;
/// How many namespaces of pods that are gone a worker lets come together: the kernel takes many down in the time of one, and holds up
/// all others meanwhile (`cleanup_net`, net/core/net_namespace.c).
const SPACES: usize = 25;
/// The first port of the host that leads to a pod; each pod of a worker's has the same two.
const FIRST_PORT: usize = 21_000;
/// How long the reaper may take in the end.
const SETTLE: Duration = Duration::from_secs(20);

/// A host that pods come to and go from.
#[derive(Debug, Clone, Copy)]
pub struct Soak<'a> {
    /// Its lab.
    pub lab: &'a Lab,
    /// Its name.
    pub host: &'a str,
}

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What a host holds: all of it is the same when as many pods are there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Holdings {
    /// Names of links.
    pub links: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<String>,
    /// Routes of all protocols.
    pub routes: BTreeSet<String>,
    /// Lines of the nft tables, as the program `nft` lists them: the agent's own table is only for reading to others.
    pub nft: BTreeSet<String>,
    /// Files of the run directory.
    pub files: BTreeSet<String>,
    /// Addresses that count as given.
    pub in_use: u32,
}

/// What an agent's process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Resident memory in KiB.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Soak<'_> {
    /// Pods of these numbers come, are checked and go: by the node's bridge and routed, with ports of the host and without. No number
    /// may come a second time, as no container's name does.
    ///
    /// # Errors
    /// The first that went wrong.
    pub fn cycle(&self, numbers: Range<usize>) -> Result<(), LabError> {
        let next = AtomicUsize::new(numbers.start);
        thread::scope(|scope| {
            let work = |worker| {
                let (next, numbers) = (&next, &numbers);
                move || {
                    let mut gone = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= numbers.end {
                            return remove(&mut gone);
                        }
                        gone.push(self.one(n, worker).inspect_err(|_| next.store(numbers.end, Ordering::Relaxed))?);
                        if gone.len() == SPACES {
                            remove(&mut gone)?;
                        }
                    }
                }
            };
            let workers: Vec<_> = (0..AT_ONCE).map(|worker| scope.spawn(work(worker))).collect();
            // All of them are waited for, whatever the first says.
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            let mut ended = ended.into_iter();
            ended.try_for_each(|end| end.unwrap_or_else(|_| Err(LabError::system("a worker", "panicked"))))
        })
    }

    fn one(&self, n: usize, worker: usize) -> Result<PathBuf, LabError> {
        let pod = format!("soak{n}");
        let path = self.lab.netns_path(&pod);
        NetNs::create(&path).map_err(LabError::linux(format!("namespace of pod {pod}")))?;
        let mut conf = Value::Object(self.lab.plugin_conf(self.host));
        conf["quarantineSeconds"] = 0.into();
        conf["attach"] = if n.is_multiple_of(2) { "bridge" } else { "routed" }.into();
        if (n / 2).is_multiple_of(2) {
            let port = |protocol: &str, place: usize| json!({ "hostPort": FIRST_PORT + 2 * worker + place, "containerPort": 80, "protocol": protocol });
            conf["runtimeConfig"] = json!({ "portMappings": [port("tcp", 0), port("udp", 1)] });
        }
        let result = self.call("ADD", &pod, &path, &conf)?;
        conf["prevResult"] = serde_json::from_slice(&result).unwrap_or_default();
        self.call("CHECK", &pod, &path, &conf)?;
        self.call("DEL", &pod, &path, &conf)?;
        Ok(path)
    }

    fn call(&self, verb: &'static str, pod: &str, netns: &Path, conf: &Value) -> Result<Vec<u8>, LabError> {
        let plugin = &self.lab.binaries().loden_cni;
        let call = Call { plugin, verb, pod, ifname: "eth0", netns, path: plugin, conf: &conf.to_string() };
        let host = self.lab.netns(self.host)?;
        let output = call.output(Some(&host)).map_err(|error| LabError::system(plugin.display().to_string(), error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Err(LabError::Plugin { verb, host: self.host.to_owned(), message })
    }

    /// What the host holds now.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn holdings(&self) -> Result<Holdings, LabError> {
        let fail = |error| LabError::linux("what the host holds")(error);
        let run_dir = RunDir::new(self.lab.agent(self.host)?.run_dir());
        let mut held = self.lab.netns(self.host)?.run(of_kernel).map_err(fail)?.map_err(fail)?;
        held.nft = self.nft()?;
        list(run_dir.path(), &mut held.files);
        for file in fs::read_dir(run_dir.ipam_dir()).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let supply = name.strip_suffix(".range").and_then(Supply::from_file_stem);
            let bytes = fs::read(file.path()).unwrap_or_default();
            held.in_use += supply.and_then(|of| RangeState::decode(of.range, &bytes)).map_or(0, |state| state.in_use());
        }
        Ok(held)
    }

    fn nft(&self) -> Result<BTreeSet<String>, LabError> {
        let fail = |cause: String| LabError::system("nft list ruleset", cause);
        let mut command = Command::new("nft");
        command.args(["-s", "list", "ruleset"]);
        spawn::in_netns(&mut command, &self.lab.netns(self.host)?, false).map_err(LabError::linux("nft"))?;
        let output = command.output().map_err(|error| fail(error.to_string()))?;
        if !output.status.success() {
            return Err(fail(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect())
    }

    /// Waits, as long as it may take, until what the host holds is as it is to be and does not change any more; gives what it holds
    /// then.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn settled(&self, is_right: impl Fn(&Holdings) -> bool) -> Result<Holdings, LabError> {
        let deadline = Instant::now() + SETTLE;
        let mut last = None;
        loop {
            let held = self.holdings()?;
            if (is_right(&held) && last.as_ref() == Some(&held)) || Instant::now() > deadline {
                return Ok(held);
            }
            last = Some(held);
            thread::sleep(LOOK);
        }
    }

    /// What the agent's process holds now.
    ///
    /// # Errors
    /// [`LabError`] when it does not run.
    pub fn process(&self) -> Result<Process, LabError> {
        let gone = || LabError::system(format!("lodend on {}", self.host), "does not run");
        let pid = self.lab.agent(self.host)?.pid().ok_or_else(gone)?.as_raw_nonzero();
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        // Each question to its API, and each look that it takes, has one for a moment.
        let descriptors = (0..5).map(|_| {
            thread::sleep(LOOK);
            count("fd")
        });
        let descriptors = descriptors.min().unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| gone())?;
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        Ok(Process { resident: resident.ok_or_else(gone)?, descriptors, threads: count("task") })
    }
}

impl Holdings {
    /// What differs from what was there before, one line each.
    #[must_use]
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let mut faults = Vec::new();
        let sorts = [
            ("link", &self.links, &before.links),
            ("address", &self.addresses, &before.addresses),
            ("route", &self.routes, &before.routes),
            ("nft", &self.nft, &before.nft),
            ("file", &self.files, &before.files),
        ];
        for (sort, now, then) in sorts {
            faults.extend(now.difference(then).map(|item| format!("{sort} {item} is left")));
            faults.extend(then.difference(now).map(|item| format!("{sort} {item} is gone")));
        }
        if self.in_use != before.in_use {
            faults.push(format!("{} addresses count as given, {} did before", self.in_use, before.in_use));
        }
        faults
    }
}

/// Removes the namespaces of pods that are gone.
fn remove(gone: &mut Vec<PathBuf>) -> Result<(), LabError> {
    let removed =
        |path: PathBuf| netns::remove(&path).map_err(LabError::linux(format!("namespace {}", path.display())));
    gone.drain(..).try_for_each(removed)
}

/// Runs inside the host.
fn of_kernel() -> Result<Holdings, LinuxError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let mut w = Writer::default();
    link::list(&mut w);
    let links = socket.dump("list links", &mut w, BTreeSet::new, |all: &mut BTreeSet<_>, message| {
        all.extend(link::parse(message.payload).map(|seen| seen.name.to_string()));
    })?;
    w.clear();
    address::list(&mut w);
    let addresses = socket.dump("list addresses", &mut w, BTreeSet::new, |all: &mut BTreeSet<_>, message| {
        all.extend(address::parse(message.payload).map(|seen| format!("{} on {}", seen.net, seen.index)));
    })?;
    let mut routes = BTreeSet::new();
    for family in Family::ALL {
        routes.extend(route::read(&mut socket, family, 0)?.iter().map(text));
    }
    Ok(Holdings { links, addresses, routes, ..Holdings::default() })
}

fn text(item: &impl Debug) -> String {
    format!("{item:?}")
}

/// All files under a directory.
fn list(dir: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), files),
            _ => drop(files.insert(entry.path().display().to_string())),
        }
    }
}
