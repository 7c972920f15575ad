//! Two hosts that a wire joins, and a pod behind a bridge on each: four network namespaces.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_linux::netns::{self, NetNs};
use loden_linux::sysctl;

use crate::shell;

/// What the wire takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Packets of any length, as a network card that cuts and joins them by itself.
    Off,
    /// Packets of its MTU, which the receiver's kernel joins (GRO).
    Seg,
}

/// A host, and what is on it.
#[derive(Debug)]
pub struct Host {
    /// 1 or 2.
    pub number: u8,
    /// Its namespace.
    pub ns: NetNs,
    /// Its pod's.
    pub pod: NetNs,
}

/// Both hosts. Goes when it is dropped.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    /// The one that sends, and the one that receives.
    pub hosts: [Host; 2],
}

impl Host {
    /// On the wire.
    pub fn address(&self) -> String {
        format!("172.31.0.{}", self.number)
    }

    /// Of its pods.
    pub fn block(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    /// Of the tunnel's device: the block's first, as flannel has it.
    pub fn tunnel_address(&self) -> String {
        format!("10.244.{}.0", self.number)
    }

    /// Of its pod.
    pub fn pod_address(&self) -> [u8; 4] {
        [10, 244, self.number, 2]
    }

    /// Runs `ip` in its namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.ns.run(|| shell::batch("ip", lines))?
    }
}

impl Ground {
    /// Makes it; `mtu` is that of the pods in bytes.
    pub fn make(name: &str, mtu: u32) -> Result<Self> {
        let dir = Path::new(loden_lab::lab::LABS).join("bench-tunnel").join(name);
        let host = |number| -> Result<Host> {
            let namespace = |name: String| -> Result<NetNs> {
                let path = dir.join(name);
                // What a run that was killed has left.
                netns::remove(&path)?;
                Ok(NetNs::create(&path)?)
            };
            Ok(Host { number, ns: namespace(format!("host{number}"))?, pod: namespace(format!("pod{number}"))? })
        };
        let ground = Self { hosts: [host(1)?, host(2)?], dir };
        for host in &ground.hosts {
            host.ns.run(|| -> Result<()> {
                for (name, value) in [("ip_forward", 1), ("conf/all/rp_filter", 0), ("conf/default/rp_filter", 0)] {
                    sysctl::write(&format!("net/ipv4/{name}"), value)?;
                }
                Ok(())
            })??;
        }
        let [one, two] = &ground.hosts;
        let at = |name: &str| ground.dir.join(name).display().to_string();
        one.ip(&format!("link add wire mtu 1500 type veth peer name wire mtu 1500 netns {}\n", at("host2")))?;
        for host in [one, two] {
            let n = host.number;
            let pod = at(&format!("pod{n}"));
            host.ip(&format!(
                "link set lo up\naddr add {}/24 dev wire\nlink set wire up\nlink add cni0 type bridge\naddr add 10.244.{n}.1/24 dev cni0\n\
                 link set cni0 up\nlink add p0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}\nlink set p0 master cni0 up\n",
                host.address(),
            ))?;
            host.pod.run(|| {
                shell::batch(
                    "ip",
                    &format!(
                        "link set lo up\naddr add 10.244.{n}.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.244.{n}.1\n"
                    ),
                )
            })??;
        }
        Ok(ground)
    }

    /// Sets the sort of the wire.
    pub fn set_wire(&self, wire: Wire) -> Result<()> {
        let (cut, join) = match wire {
            Wire::Off => ("on", "off"),
            Wire::Seg => ("off", "on"),
        };
        for host in &self.hosts {
            let args = ["-K", "wire", "tso", cut, "gso", cut, "tx-udp-segmentation", cut, "gro", join];
            host.ns.run(|| shell::output(Command::new("ethtool").args(args)))??;
        }
        Ok(())
    }

    /// Waits until the pods reach each other.
    pub fn wait(&self) -> Result<()> {
        let [one, two] = &self.hosts;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let echo = one.pod.run(|| loden_lab::probe::icmp::echo(two.pod_address().into(), 56))?;
            match echo {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => bail!("the pods do not reach each other: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for name in ["pod1", "pod2", "host1", "host2"] {
            if let Err(error) = netns::remove(&self.dir.join(name)).context(name) {
                shell::say(&format!("! {error:#}"));
            }
        }
        // It is empty, or else somebody has put something there.
        let _ = std::fs::remove_dir(&self.dir);
    }
}
