//! Pods that the reference plugins attached before this one took their place: they keep their addresses, and go by its DEL and GC.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::delegates::write_program;
use crate::host::{Host, answer, reaches};

/// Where Debian has the reference plugins (package containernetworking-plugins).
const REFERENCE: &str = "/usr/lib/cni";

struct Former {
    host: Host,
    data: PathBuf,
}

impl Former {
    /// A host on whose bridge the reference plugins attach.
    fn new() -> Self {
        let host = Host::new(&["10.1.0.0/29", "fd01::/64"]);
        let data = host.dir().join("networks");
        Self { host, data }
    }

    fn conf(&self, kind: &str) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": kind, "bridge": "cni0",
            "ipam": {
                "type": "host-local", "dataDir": self.data,
                "ranges": [[{ "subnet": "10.1.0.0/29" }], [{ "subnet": "fd01::/64" }]],
            },
        })
    }

    fn attach_by_reference(&self, pod: &str) -> Value {
        self.host.pod(pod);
        let command = Command::new(Path::new(REFERENCE).join("bridge"));
        let conf = self.conf("bridge").to_string();
        let child = self.host.begin_command(command, "ADD", pod, conf.as_bytes(), &[("CNI_PATH", REFERENCE)]);
        answer(&child.wait_with_output().expect("the plugin ends")).expect("attached")
    }

    /// The same configuration, as loden's own.
    fn own(&self) -> Value {
        json!({ "ipam": { "dataDir": self.data } })
    }

    fn given(&self) -> Vec<String> {
        let names = fs::read_dir(self.data.join("net")).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut given: Vec<_> = names.filter(|name| name.starts_with("10.") || name.starts_with("fd")).collect();
        given.sort();
        given
    }
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("addresses");
    ips.iter().map(|ip| ip["address"].as_str().expect("text").split('/').next().expect("one").to_owned()).collect()
}

#[test]
fn their_addresses_are_given_to_nobody_and_named_to_who_asks() {
    let former = Former::new();
    let (host, own) = (&former.host, former.own());
    assert_eq!(addresses(&former.attach_by_reference("old1")), ["10.1.0.2", "fd01::2"]);
    assert_eq!(addresses(&former.attach_by_reference("old2")), ["10.1.0.3", "fd01::3"]);
    let new = host.pod("new1");
    assert_eq!(addresses(&host.call("ADD", "new1", &own).expect("attached")), ["10.1.0.4", "fd01::4"]);
    assert!(reaches(
        &new,
        &loden_linux::netns::NetNs::open(&host.netns_path("old1")).expect("it"),
        "10.1.0.2".parse().expect("ip")
    ));

    let mut asking = own.clone();
    asking["runtimeConfig"] = json!({ "ips": ["10.1.0.3"] });
    host.pod("new2");
    let (code, text) = host.call("ADD", "new2", &asking).expect_err("it is another's");
    let holder =
        "10.1.0.3 is asked for and taken by container old2, interface eth0, to which host-local gave it in network net";
    assert!(code == 100 && text.contains(holder), "{code} {text}");

    // Of the six addresses of the block one is the gateway's, two are theirs.
    host.call("ADD", "new2", &own).expect("attached");
    for pod in ["new3", "new4"] {
        host.pod(pod);
    }
    host.call("ADD", "new3", &own).expect("attached");
    let (code, text) = host.call("ADD", "new4", &own).expect_err("none is left");
    assert!(code == 100 && text.contains("10.1.0.0/29 has no free address"), "{code} {text}");
    let (code, _) = host.call("STATUS", "", &own).expect_err("STATUS knows");
    assert_eq!(code, 50);

    // The former's DEL by this plugin frees it, and its interface goes.
    host.call("DEL", "old2", &own).expect("detached");
    assert_eq!(former.given(), ["10.1.0.2", "fd01::2"]);
    let old = loden_linux::netns::NetNs::open(&host.netns_path("old2")).expect("it");
    assert!(!loden_linux::pod::exists_in(&old, "eth0".parse().expect("name")).expect("asked"));
    assert_eq!(addresses(&host.call("ADD", "new4", &own).expect("attached"))[0], "10.1.0.3");
}

#[test]
fn a_del_without_a_namespace_and_another_interfaces_del() {
    let former = Former::new();
    former.attach_by_reference("old");
    let text = former.host.conf("1.0.0", &former.own());
    let del = |ifname: &str| {
        let variables = [("CNI_NETNS", ""), ("CNI_IFNAME", ifname)];
        answer(&former.host.exec("DEL", "old", text.as_bytes(), &variables)).expect("detached");
    };
    del("net1");
    assert_eq!(former.given(), ["10.1.0.2", "fd01::2"]);
    del("eth0");
    assert_eq!(former.given(), Vec::<String>::new());
}

#[test]
fn a_del_in_the_hosts_own_namespace_touches_no_link_of_the_host() {
    let former = Former::new();
    former.attach_by_reference("old");
    let (host, path) = (&former.host, former.host.netns_path("host"));
    let before = host.links();
    let text = host.conf("1.0.0", &former.own());
    let ifname = before.iter().find(|name| name.starts_with("veth")).expect("the host's end");
    fs::write(former.data.join("net/10.1.0.6"), format!("old\r\n{ifname}")).expect("written");
    let variables = [("CNI_NETNS", path.to_str().expect("text")), ("CNI_IFNAME", ifname.as_str())];
    answer(&host.exec("DEL", "old", text.as_bytes(), &variables)).expect("detached");
    assert_eq!((host.links(), former.given().len()), (before, 2));
}

#[test]
fn gc_frees_what_the_runtime_does_not_list() {
    let former = Former::new();
    for pod in ["old1", "old2"] {
        former.attach_by_reference(pod);
    }
    // Written by an old version, without the interface's name.
    fs::write(former.data.join("net/10.1.0.5"), "old1").expect("written");
    let mut conf = former.own();
    former.host.call("GC", "", &conf).expect("a runtime that gives no list has not said that none is valid");
    assert_eq!(former.given().len(), 5);
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "old1", "ifname": "eth0" }]);
    former.host.call("GC", "", &conf).expect("collected");
    assert_eq!(former.given(), ["10.1.0.2", "10.1.0.5", "fd01::2"]);
}

#[test]
fn in_the_place_of_the_reference_plugins() {
    // The plugins' files are swapped, configurations and runtimes stay: here those of bridge with host-local.
    let former = Former::new();
    let host = &former.host;
    former.attach_by_reference("old1");
    former.attach_by_reference("old2");
    host.pod("new");
    let conf = former.conf("bridge");
    let result = host.call_as("bridge", "ADD", "new", &conf).expect("attached");
    assert_eq!(addresses(&result), ["10.1.0.4", "fd01::4"]);
    host.call_as("bridge", "DEL", "old1", &conf).expect("detached");
    assert_eq!(former.given(), ["10.1.0.3", "fd01::3"]);
    // And as the IPAM plugin of another one.
    host.pod("inner");
    let result = host.call_as("host-local", "ADD", "inner", &conf).expect("given");
    assert!(!addresses(&result).contains(&"10.1.0.3".to_owned()), "{result}");
    host.call_as("host-local", "DEL", "old2", &conf).expect("freed");
    assert_eq!(former.given(), Vec::<String>::new());
}

#[test]
fn what_the_plugin_flannel_left_goes_with_the_pod() {
    let former = Former::new();
    let host = &former.host;
    former.attach_by_reference("old");
    let saved = host.dir().join("flannel");
    fs::create_dir(&saved).expect("a directory");
    fs::write(saved.join("old"), former.conf("bridge").to_string()).expect("written");
    let conf =
        json!({ "dataDir": saved, "ipam": { "dataDir": former.data }, "delegate": { "isDefaultGateway": true } });
    host.call_as("flannel", "DEL", "old", &conf).expect("detached");
    assert_eq!((former.given(), saved.join("old").exists()), (Vec::<String>::new(), false));

    // A delegate that this plugin does not stand for is called with what it was given.
    let script = host.dir().join("other");
    write_program(&script, &format!("#!/bin/sh\nexec cat > {}/told.$CNI_COMMAND\n", host.dir().display()));
    let theirs = json!({ "cniVersion": "0.3.1", "name": "net", "type": "other", "ipam": { "type": "host-local" } });
    fs::write(saved.join("old"), theirs.to_string()).expect("written");
    let text = host.conf("0.3.1", &conf);
    let path = host.dir().to_str().expect("text").to_owned();
    let del = || answer(&host.exec_as("flannel", "DEL", "old", text.as_bytes(), &[("CNI_PATH", &path)]));
    del().expect("detached");
    let told: Value = serde_json::from_slice(&fs::read(host.dir().join("told.DEL")).expect("called")).expect("JSON");
    assert_eq!(told, theirs);
    assert!(!saved.join("old").exists());
    // One that fails keeps it, for the next time.
    fs::write(saved.join("old"), theirs.to_string()).expect("written");
    fs::write(&script, "#!/bin/sh\nexit 1\n").expect("written");
    del().expect_err("the delegate's error");
    assert!(saved.join("old").exists());
    // One that cannot be read keeps nobody.
    fs::write(saved.join("old"), "").expect("written");
    del().expect("detached");
    assert!(!saved.join("old").exists());
}
