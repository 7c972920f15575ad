//! Pods: a namespace each, attached by executing the plugin as a container runtime does.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use loden_core::cni::{Success, Version};
use loden_core::model::Family;
use loden_core::model::PerFamily;
use loden_linux::netns::{self, NetNs};
use loden_linux::spawn;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::LabError;
use crate::lab::Lab;

/// A pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Its name, which is also the name of its namespace.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Its addresses.
    pub addresses: PerFamily<IpAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Lab {
    /// Makes a pod's namespace and attaches it.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn attach(&self, host: &str, name: &str) -> Result<Pod, LabError> {
        self.attach_with(host, name, &Map::new())
    }

    /// The same with further keys of the configuration.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn attach_with(&self, host: &str, name: &str, more: &Map<String, Value>) -> Result<Pod, LabError> {
        let path = self.netns_path(name);
        NetNs::create(&path).map_err(LabError::linux(format!("namespace of pod {name}")))?;
        let output = self.cni("ADD", host, name, more)?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let refused = |message: String| LabError::Plugin { verb: "ADD", host: host.to_owned(), message };
        if !output.status.success() {
            return Err(refused(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
        }
        let result = Success::parse(&answer, Version::V1_1_0).map_err(|error| refused(error.to_string()))?;
        let mut addresses = PerFamily::default();
        for ip in &result.ips {
            addresses.set(Family::of(ip.address.addr()), ip.address.addr());
        }
        let mtu = result.interfaces.iter().find(|i| i.sandbox.is_some()).and_then(|i| i.mtu).unwrap_or(1500);
        Ok(Pod { name: name.to_owned(), host: host.to_owned(), addresses, mtu })
    }

    /// Detaches a pod and removes its namespace.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn detach(&self, pod: &Pod) -> Result<(), LabError> {
        let output = self.cni("DEL", &pod.host, &pod.name, &Map::new())?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            return Err(LabError::Plugin { verb: "DEL", host: pod.host.clone(), message });
        }
        netns::remove(&self.netns_path(&pod.name)).map_err(LabError::linux(format!("namespace of pod {}", pod.name)))
    }

    /// Executes the plugin in a host's namespace, with further keys of the configuration.
    ///
    /// # Errors
    /// [`LabError`] when it cannot be executed; what it answers is the caller's.
    pub fn cni(
        &self,
        verb: &'static str,
        host: &str,
        pod: &str,
        more: &Map<String, Value>,
    ) -> Result<Output, LabError> {
        let what = || format!("loden-cni {verb} on {host}");
        let plugin = &self.binaries().loden_cni;
        let mut conf = self.plugin_conf(host);
        conf.extend(more.clone());
        let call = Call {
            plugin,
            verb,
            pod,
            ifname: "eth0",
            netns: &self.netns_path(pod),
            path: plugin.parent().unwrap_or(plugin),
            conf: &Value::Object(conf).to_string(),
        };
        let ns = NetNs::open(&self.netns_path(host)).map_err(LabError::linux(what()))?;
        call.output(Some(&ns)).map_err(|error| LabError::system(what(), error))
    }
}

/// A CNI plugin, called as a container runtime calls it: by variables, with the configuration on its input.
#[derive(Debug)]
pub struct Call<'a> {
    /// The program.
    pub plugin: &'a Path,
    /// `CNI_COMMAND`.
    pub verb: &'a str,
    /// The container's ID, which is also the pod's name.
    pub pod: &'a str,
    /// `CNI_IFNAME`: the interface's name in the pod.
    pub ifname: &'a str,
    /// The pod's namespace.
    pub netns: &'a Path,
    /// Where plugins are looked for.
    pub path: &'a Path,
    /// The configuration.
    pub conf: &'a str,
}

impl Call<'_> {
    /// Executes it in a host's namespace, or in that of the calling thread, and waits for its end.
    ///
    /// # Errors
    /// The system's, when it cannot be executed.
    pub fn output(&self, host: Option<&NetNs>) -> io::Result<Output> {
        self.begin(host)?.wait_with_output()
    }

    /// The same without waiting for its end.
    ///
    /// # Errors
    /// The system's, when it cannot be executed.
    pub fn begin(&self, host: Option<&NetNs>) -> io::Result<Child> {
        let mut command = Command::new(self.plugin);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", self.verb)
            .env("CNI_CONTAINERID", self.pod)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_PATH", self.path)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME={}", self.pod))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(host) = host {
            spawn::in_netns(&mut command, host, false).map_err(io::Error::other)?;
        }
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(self.conf.as_bytes())?;
        }
        Ok(child)
    }
}
