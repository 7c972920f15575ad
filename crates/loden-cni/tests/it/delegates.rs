//! Other plugins that do a part of the work: real ones and faulty ones, behind an interface of loden's and in flannel's place.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::host::{Host, answer};

/// Where Debian has the reference plugins (package containernetworking-plugins).
const REFERENCE: &str = "/usr/lib/cni";

/// A directory of plugins.
pub struct Plugins(tempfile::TempDir);

impl Plugins {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// A reference plugin under another name, so that loden does not stand for it.
    fn reference(&self, name: &str, under: &str) {
        let from = Path::new(REFERENCE).join(name);
        // By another process, for the reason that `write_program` has.
        let copied = Command::new("cp").arg(&from).arg(self.path().join(under)).status().expect("cp");
        assert!(copied.success(), "{}", from.display());
    }

    /// A plugin that writes down what it is called with, and answers by a script.
    pub fn script(&self, name: &str, text: &str) {
        let log = self.path().join("log");
        let whole = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME [$CNI_ARGS]\" >> {log}\ncat > {input}.$CNI_COMMAND\n{text}\n",
            log = log.display(),
            input = self.path().join("stdin").display(),
        );
        write_program(&self.path().join(name), &whole);
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The calls of scripts so far.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn stdin_of(&self, verb: &str) -> Value {
        let text = fs::read(self.path().join(format!("stdin.{verb}"))).expect("called");
        serde_json::from_slice(&text).expect("JSON")
    }

    fn call(&self, host: &Host, verb: &str, pod: &str, more: &Value) -> Result<Value, (u64, String)> {
        let path = self.path().to_str().expect("text");
        answer(&host.exec(
            verb,
            pod,
            host.conf("1.1.0", more).as_bytes(),
            &[("CNI_PATH", path), ("CNI_ARGS", "IgnoreUnknown=1;X=y")],
        ))
    }
}

fn with(conf: &Value, key: &str, value: Value) -> Value {
    let mut conf = conf.clone();
    conf[key] = value;
    conf
}

/// The addresses that host-local has given.
fn given(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir.join("net")).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("10.")).collect()
}

fn other_ipam(plugins: &Plugins) -> (PathBuf, Value) {
    plugins.reference("host-local", "other-ipam");
    let data = plugins.path().join("data");
    let conf = json!({ "cniVersion": "1.0.0", "bridge": "br1", "ipam": {
        "type": "other-ipam", "subnet": "10.9.0.0/24", "dataDir": data, "routes": [{ "dst": "0.0.0.0/0" }] } });
    (data, conf)
}

#[test]
fn addresses_of_a_real_neighbour() {
    let (host, plugins) = (Host::new(&["10.1.0.0/24"]), Plugins::new());
    let (data, conf) = other_ipam(&plugins);
    host.pod("a");
    host.pod("b");
    let result = plugins.call(&host, "ADD", "a", &conf).expect("attached");
    assert_eq!(result["ips"][0]["address"], "10.9.0.2/24", "{result}");
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "10.9.0.1" }]));
    plugins.call(&host, "ADD", "b", &conf).expect("attached");
    let mut both = given(&data);
    both.sort();
    assert_eq!(both, ["10.9.0.2", "10.9.0.3"]);
    let check = with(&conf, "prevResult", result.clone());
    assert_eq!(plugins.call(&host, "CHECK", "a", &check), Ok(Value::Null));
    fs::remove_file(data.join("net/10.9.0.2")).expect("removed");
    let (_, text) = plugins.call(&host, "CHECK", "a", &check).expect_err("its address is gone");
    assert!(text.contains("other-ipam") && text.contains("CHECK"), "{text}");
    // DEL with another configuration: what ADD used is known.
    assert_eq!(plugins.call(&host, "DEL", "b", &json!({ "cniVersion": "1.0.0" })), Ok(Value::Null));
    for _ in 0..2 {
        assert_eq!(plugins.call(&host, "DEL", "a", &conf), Ok(Value::Null));
    }
    assert_eq!(given(&data), Vec::<String>::new());
    assert_eq!(host.leftovers(), ["br1"]);
}

#[test]
fn an_add_that_fails_gives_the_neighbours_address_back() {
    let (host, plugins) = (Host::new(&["10.1.0.0/24"]), Plugins::new());
    let (data, conf) = other_ipam(&plugins);
    // There is an interface of that name: the neighbour is asked before that is found out.
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    let other = with(&conf, "name", "other".into());
    let (code, text) = plugins.call(&host, "ADD", "a", &other).expect_err("eth0 is there");
    assert!(code == 4 && text.contains("eth0"), "{code} {text}");
    assert_eq!(given(&data), Vec::<String>::new());
    assert_eq!(host.run_dir().attachments().good.len(), 1);
}

#[test]
fn what_a_neighbour_says_is_passed_on_and_undone() {
    let (host, plugins) = (Host::new(&[]), Plugins::new());
    let conf = json!({ "cniVersion": "1.1.0", "bridge": "br1", "ipam": { "type": "faulty", "colour": "blue" } });
    host.pod("a");
    plugins.script(
        "faulty",
        r#"[ $CNI_COMMAND = DEL ] || { echo '{"code": 111, "msg": "no", "details": "more"}'; exit 1; }"#,
    );
    let (code, text) = plugins.call(&host, "ADD", "a", &conf).expect_err("it fails");
    assert!(code == 111 && text.contains("faulty") && text.contains("no; more"), "{code} {text}");
    assert_eq!(plugins.calls(), ["ADD a eth0 [IgnoreUnknown=1;X=y]", "DEL a eth0 [IgnoreUnknown=1;X=y]"]);
    assert_eq!(plugins.stdin_of("ADD")["ipam"], conf["ipam"], "unknown keys reach it");
    assert_eq!(plugins.call(&host, "STATUS", "", &conf).map_err(|error| error.0), Err(111));
    assert_eq!(plugins.call(&host, "GC", "", &conf).map_err(|error| error.0), Err(999), "with all that went wrong");
    // Runtimes ask every few seconds: one that hangs is not waited for as long as for an address.
    plugins.script("faulty", "exec sleep 100");
    let (_, text) = plugins.call(&host, "STATUS", "", &conf).expect_err("it hangs");
    assert!(text.contains("faulty") && text.contains("STATUS has no answer"), "{text}");
    for (what, script) in [
        ("garbage", "echo nonsense"),
        ("nothing", "true"),
        ("killed", "kill -9 $$"),
        ("an address that is none", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.300/24"}]}'"#),
    ] {
        plugins.script("faulty", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{script}"));
        let answered = plugins.call(&host, "ADD", "a", &conf);
        if what == "nothing" {
            // No address is an answer, too.
            assert!(answered.is_ok_and(|result| result.get("ips").is_none()));
            plugins.call(&host, "DEL", "a", &conf).expect("detached");
        } else {
            answered.expect_err(what);
        }
        host.reap();
        assert!(host.leftovers().iter().all(|left| left == "br1"), "{what}: {:?}", host.leftovers());
    }
    let nowhere = with(&conf, "ipam", json!({ "type": "nowhere" }));
    let (code, text) = plugins.call(&host, "ADD", "a", &nowhere).expect_err("there is no such plugin");
    assert!(code == 7 && text.contains("nowhere"), "{code} {text}");
    for name in ["../loden-cni", "/bin/sh"] {
        let hostile = with(&conf, "ipam", json!({ "type": name }));
        assert_eq!(plugins.call(&host, "ADD", "a", &hostile).map_err(|error| error.0), Err(7), "{name}");
    }
}

#[test]
fn a_del_that_a_neighbour_refuses_is_repeated() {
    let (host, plugins) = (Host::new(&[]), Plugins::new());
    let conf = json!({ "cniVersion": "1.1.0", "bridge": "br1", "ipam": { "type": "slow" } });
    let answers = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.3/24"}]}'"#;
    plugins.script("slow", &format!("{answers}\ntrue"));
    host.pod("a");
    plugins.call(&host, "ADD", "a", &conf).expect("attached");
    plugins.script("slow", "exit 1");
    plugins.call(&host, "DEL", "a", &conf).expect_err("refused");
    assert_eq!(host.run_dir().attachments().good.len(), 1, "it is still known");
    plugins.script("slow", "true");
    plugins.call(&host, "DEL", "a", &conf).expect("detached");
    assert_eq!(host.leftovers(), ["br1"]);
}

#[cfg(feature = "fault-points")]
#[test]
fn killed_behind_a_neighbours_answer_a_del_or_a_sweep_gives_it_back() {
    let (host, plugins) = (Host::new(&[]), Plugins::new());
    let (data, conf) = other_ipam(&plugins);
    host.pod("a");
    let text = host.conf("1.0.0", &conf);
    let path = plugins.path().to_str().expect("text");
    for cure in ["DEL", "sweep", "ADD"] {
        let killed =
            host.exec("ADD", "a", text.as_bytes(), &[("CNI_PATH", path), ("LODEN_FAULT_POINT", "add-delegated")]);
        assert!(!killed.status.success());
        assert_eq!(given(&data).len(), 1, "{cure}");
        match cure {
            "sweep" => drop(host.sweep()),
            verb => drop(plugins.call(&host, verb, "a", &conf).expect(cure)),
        }
        assert_eq!(given(&data).len(), usize::from(cure == "ADD"), "{cure}");
    }
    plugins.call(&host, "DEL", "a", &conf).expect("detached");
    assert_eq!((given(&data), host.leftovers()), (Vec::new(), vec!["br1".to_owned()]));
}

#[test]
fn behind_other_plugins_their_result_stays() {
    let host = Host::new(&["10.1.0.0/24"]);
    host.pod("a");
    let previous = json!({
        "cniVersion": "1.1.0", "theirs": true, "interfaces": [{ "name": "x0", "sandbox": "/p", "socketPath": "/s" }],
        "ips": [{ "address": "192.0.2.9/24", "interface": 0 }], "routes": [{ "dst": "192.0.2.0/24", "advmss": 1400 }],
    });
    let result = host.call("ADD", "a", &json!({ "prevResult": previous })).expect("attached");
    assert_eq!((&result["theirs"], &result["interfaces"][0]), (&json!(true), &previous["interfaces"][0]));
    assert_eq!((&result["ips"][0], &result["routes"][0]), (&previous["ips"][0], &previous["routes"][0]));
    let place = result["ips"][1]["interface"].as_u64().expect("a place");
    assert_eq!(result["interfaces"][usize::try_from(place).expect("small")]["name"], "eth0");
    assert_eq!(host.call("CHECK", "a", &json!({ "prevResult": result })), Ok(Value::Null));
}

fn subnet_env(plugins: &Plugins) -> PathBuf {
    let path = plugins.path().join("subnet.env");
    fs::write(
        &path,
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n",
    )
    .expect("written");
    path
}

#[test]
fn in_flannels_place() {
    let (host, plugins) = (Host::new(&[]), Plugins::new());
    let conf = json!({ "cniVersion": "1.1.0", "type": "flannel", "subnetFile": plugins.path().join("subnet.env"),
                       "delegate": { "bridge": "br1", "hairpinMode": true, "isDefaultGateway": true } });
    host.pod("a");
    let (code, text) = host.call_as("flannel", "ADD", "a", &conf).expect_err("there is no subnet yet");
    assert!(code == 11 && text.contains("subnet.env") && text.contains("flanneld"), "{code} {text}");
    assert_eq!(host.call_as("flannel", "STATUS", "", &conf).map_err(|error| error.0), Err(50));
    subnet_env(&plugins);
    assert_eq!(host.call_as("flannel", "STATUS", "", &conf), Ok(Value::Null));
    let result = host.call_as("flannel", "ADD", "a", &conf).expect("attached");
    assert_eq!(result["ips"][0]["address"], "10.244.7.2/24");
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0", "gw": "10.244.7.1" }, { "dst": "10.244.0.0/16", "gw": "10.244.7.1" }])
    );
    assert_eq!(result["interfaces"].as_array().and_then(|all| all.last()).expect("the pod's")["mtu"], 1400);
    let mut check = conf.clone();
    check["prevResult"] = result;
    assert_eq!(host.call_as("flannel", "CHECK", "a", &check), Ok(Value::Null));
    fs::remove_file(plugins.path().join("subnet.env")).expect("removed");
    // Without subnet.env, as after a restart of flanneld that failed.
    for _ in 0..2 {
        assert_eq!(host.call_as("flannel", "DEL", "a", &conf), Ok(Value::Null));
    }
    assert_eq!(host.leftovers(), ["br1"]);
}

#[test]
fn flannels_delegate_may_be_a_plugin_of_others() {
    let (host, plugins) = (Host::new(&[]), Plugins::new());
    let env = subnet_env(&plugins);
    plugins.script(
        "theirs",
        r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.244.7.9/24"}],"x":1}'; true"#,
    );
    let conf = json!({ "cniVersion": "1.0.0", "subnetFile": env, "delegate": { "type": "theirs", "colour": "blue" } });
    host.pod("a");
    let path = plugins.path().to_str().expect("text");
    let call =
        |verb| answer(&host.exec_as("flannel", verb, "a", host.conf("1.0.0", &conf).as_bytes(), &[("CNI_PATH", path)]));
    let result = call("ADD").expect("attached");
    assert_eq!(result, json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.244.7.9/24" }], "x": 1 }));
    let sent = plugins.stdin_of("ADD");
    assert_eq!((&sent["type"], &sent["colour"], &sent["mtu"]), (&json!("theirs"), &json!("blue"), &json!(1400)));
    assert_eq!(sent["ipam"]["ranges"], json!([[{ "subnet": "10.244.7.0/24" }]]));
    fs::remove_file(&env).expect("removed");
    for _ in 0..2 {
        assert_eq!(call("DEL"), Ok(Value::Null));
    }
    assert_eq!(plugins.stdin_of("DEL"), sent, "its DEL gets what its ADD got");
    assert_eq!(plugins.calls().len(), 2);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

/// Writes a program by another process: while one of this process's threads has it open for writing, what another thread starts just then
/// has it open, too, and a program that is open for writing cannot be executed (`ETXTBSY`).
pub fn write_program(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut child = shell.spawn().expect("sh");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    assert!(child.wait().expect("it ends").success());
}
