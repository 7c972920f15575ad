//! What carries the pods' packets from host to host: a program on each, or the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use loden_linux::{spawn, tun};

use super::ground::{Ground, Host};
use crate::shell;

/// flannel's port of the UDP backend.
const PORT: u16 = 8285;

/// How packets are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By our engine.
    Engine,
    /// By the peer: one packet a system call.
    Proxy,
    /// By the kernel's VXLAN, as flannel sets it.
    Vxlan,
}

impl Way {
    /// For paths and for the person.
    pub fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Proxy => "proxy",
            Self::Vxlan => "vxlan",
        }
    }

    /// What fits into a packet of a wire of 1500 bytes.
    pub fn mtu(self) -> u32 {
        match self {
            Self::Engine | Self::Proxy => 1472,
            Self::Vxlan => 1450,
        }
    }
}

/// Those of a ground. They end when this is dropped.
#[derive(Debug)]
pub struct Forwarders(Vec<Child>);

impl Forwarders {
    /// Makes the devices and starts the programs; pods reach each other then.
    pub fn start(way: Way, ground: &Ground, proxy: &Path) -> Result<Self> {
        let mut all = Self(Vec::new());
        let [one, two] = &ground.hosts;
        for (host, other) in [(one, two), (two, one)] {
            match way {
                Way::Vxlan => make_vxlan(host, other)?,
                Way::Proxy | Way::Engine => all.0.push(start(way, host, other, proxy)?),
            }
        }
        ground.wait()?;
        Ok(all)
    }

    /// Processor seconds that they have had so far, all threads.
    pub fn cpu(&self) -> Result<f64> {
        let mut nanoseconds = 0;
        for child in &self.0 {
            for task in fs::read_dir(format!("/proc/{}/task", child.id())).context("a forwarder's threads")? {
                let stat = fs::read_to_string(task?.path().join("schedstat")).context("schedstat")?;
                let first = stat.split_whitespace().next().context("schedstat is empty")?;
                nanoseconds += first.parse::<u64>().context("schedstat")?;
            }
        }
        Ok(nanoseconds as f64 / 1e9)
    }
}

impl Drop for Forwarders {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Our engine ends with its input and says what it has counted; the peer has no input.
            if child.stdin.take().is_none() {
                let _ = child.kill();
            }
            // It may have ended by itself.
            let _ = child.wait();
        }
    }
}

/// Compiles the peer; it is written in C, as flannel's is.
pub fn build_proxy() -> Result<PathBuf> {
    let dir = shell::target().join("peers/bin");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let program = dir.join("udp_proxy");
    let source = shell::root().join("benches/peers/udp_proxy.c");
    shell::output(Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(source))?;
    Ok(program)
}

fn start(way: Way, host: &Host, other: &Host, proxy: &Path) -> Result<Child> {
    let (mtu, own) = (way.mtu(), host.tunnel_address());
    let common = ["flannel0", &own, &host.address(), &PORT.to_string(), &mtu.to_string()];
    let mut command = if way == Way::Engine {
        host.ns.run(|| tun::create("flannel0".parse()?).map_err(anyhow::Error::from))??;
        let mut command = Command::new(std::env::current_exe().context("this program")?);
        command.arg("tunnel-engine").args(common).args([host.block(), other.block(), other.address()]).arg("--bursts");
        command.stdin(Stdio::piped());
        command
    } else {
        host.ip("tuntap add flannel0 mode tun\n")?;
        let mut command = Command::new(proxy);
        command.args(common).arg(format!("{}={}:{PORT}", other.block(), other.address()));
        command.stdin(Stdio::null());
        command
    };
    host.ip(&format!(
        "link set flannel0 mtu {mtu} up\naddr add {own}/32 dev flannel0\nroute add 10.244.0.0/16 dev flannel0\n"
    ))?;
    command.stdout(Stdio::null());
    spawn::in_netns(&mut command, &host.ns, true)?;
    command.spawn().with_context(|| format!("{command:?}"))
}

/// A device without learning, and for each peer an on-link route, a neighbour and a forwarding entry.
fn make_vxlan(host: &Host, other: &Host) -> Result<()> {
    let mac = |host: &Host| format!("02:00:00:00:00:0{}", host.number);
    host.ip(&format!(
        "link add flannel.1 address {} mtu 1450 type vxlan id 1 local {} dev wire dstport 8472 nolearning\n\
         addr add {}/32 dev flannel.1\nlink set flannel.1 up\n\
         route add {} via {} dev flannel.1 onlink\nneigh add {} lladdr {} dev flannel.1 nud permanent\n",
        mac(host),
        host.address(),
        host.tunnel_address(),
        other.block(),
        other.tunnel_address(),
        other.tunnel_address(),
        mac(other),
    ))?;
    let entry = format!("fdb add {} dev flannel.1 dst {} self permanent\n", mac(other), other.address());
    host.ns.run(|| shell::batch("bridge", &entry))?
}
