//! A network as a runtime serves it: each plugin of the chain executed for itself, the result of one passed to the next.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_lab::pod::Call;
use serde_json::{Value, json};

/// A network's plugins, in the order of ADD, each with its configuration.
pub struct Network {
    chain: Vec<(PathBuf, Value)>,
    /// Where plugins find those that they execute themselves.
    path: PathBuf,
}

/// A pod's interface and what its ADD came to.
pub struct Attached {
    pod: String,
    /// The path of the pod's namespace.
    pub netns: PathBuf,
    host_port: Option<u16>,
    /// The last plugin's answer.
    pub result: Value,
}

impl Network {
    /// A network of plugins in a directory. `common` goes into each of their configurations, as a runtime puts it there.
    pub fn new(dir: &Path, common: &Value, plugins: &[(&Path, Value)]) -> Self {
        let plugin = |(program, conf): &(&Path, Value)| {
            let mut conf = conf.clone();
            for (key, value) in common.as_object().into_iter().flatten() {
                conf[key] = value.clone();
            }
            (dir.join(program), conf)
        };
        Self { chain: plugins.iter().map(plugin).collect(), path: dir.to_owned() }
    }

    /// ADD: how long it took, and what DEL is to be told. The port, if one is given, leads to the pod; the plugins whose
    /// configuration states that capability are told of it.
    pub fn add(&self, pod: &str, netns: &Path, host_port: Option<u16>) -> Result<(Duration, Attached)> {
        let began = Instant::now();
        let mut result = Value::Null;
        for (program, conf) in &self.chain {
            let answer = self.call("ADD", program, &asking(conf, &result, host_port), pod, netns)?;
            result = serde_json::from_slice(&answer).with_context(|| format!("{} ADD", program.display()))?;
        }
        let took = began.elapsed();
        Ok((took, Attached { pod: pod.to_owned(), netns: netns.to_owned(), host_port, result }))
    }

    /// DEL, in the other order: how long it took.
    pub fn del(&self, attached: &Attached) -> Result<Duration> {
        let began = Instant::now();
        for (program, conf) in self.chain.iter().rev() {
            let conf = asking(conf, &attached.result, attached.host_port);
            self.call("DEL", program, &conf, &attached.pod, &attached.netns)?;
        }
        Ok(began.elapsed())
    }

    /// STATUS: how long it took.
    pub fn status(&self) -> Result<Duration> {
        let began = Instant::now();
        for (program, conf) in &self.chain {
            self.call("STATUS", program, &conf.to_string(), "", Path::new(""))?;
        }
        Ok(began.elapsed())
    }

    fn call(&self, verb: &str, plugin: &Path, conf: &str, pod: &str, netns: &Path) -> Result<Vec<u8>> {
        let call = Call { plugin, verb, pod, ifname: "eth0", netns, path: &self.path, conf };
        let output = call.output(None).with_context(|| plugin.display().to_string())?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        bail!("{} {verb}: {}", plugin.display(), String::from_utf8_lossy(&output.stdout).trim())
    }
}

fn asking(conf: &Value, result: &Value, host_port: Option<u16>) -> String {
    let mut conf = conf.clone();
    if !result.is_null() {
        conf["prevResult"] = result.clone();
    }
    if let Some(port) = host_port.filter(|_| conf["capabilities"]["portMappings"] == true) {
        let mapping = json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" });
        conf["runtimeConfig"] = json!({ "portMappings": [mapping] });
    }
    conf.to_string()
}
