//! The installer: old or new and nothing between, the configuration last, and no pod without a plugin to detach it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::{Host, answer};
use crate::small_disk::Disk;

const BLOCKS: [&str; 1] = ["10.1.0.0/24"];
const CONFLIST: &str = "10-loden.conflist";

/// Where a host's runtime looks.
struct Site {
    bin: PathBuf,
    conf: PathBuf,
    run: PathBuf,
}

impl Site {
    fn of(host: &Host) -> Self {
        Self { bin: host.dir().join("bin"), conf: host.dir().join("conf"), run: host.run_dir().path().to_owned() }
    }

    fn args<'a>(&'a self, verb: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let text = |path: &'a Path| path.to_str().expect("text");
        let mut args = vec![verb, "--bin-dir", text(&self.bin), "--conf-dir", text(&self.conf)];
        if !more.contains(&"--conflist") {
            args.extend(["--run-dir", text(&self.run)]);
        }
        args.extend(more);
        args
    }

    fn program(&self) -> PathBuf {
        self.bin.join("loden-cni")
    }

    fn conflist(&self) -> PathBuf {
        self.conf.join(CONFLIST)
    }

    /// All names in both directories.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = [&self.bin, &self.conf]
            .iter()
            .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// Answers as an agent does that is ready.
struct Agent;

impl Agent {
    fn start(host: &Host) -> Self {
        let listener = UnixListener::bind(host.run_dir().agent_socket()).expect("bound");
        // It ends with the test's process: nobody calls it when the host has gone.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nready\n");
            }
        });
        Self
    }
}

fn installed(host: &Host, more: &[&str]) -> Site {
    let site = Site::of(host);
    Agent::start(host);
    succeeds(&host.run(&site.args("install", more), &[]));
    site
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    words(output)
}

/// The words of one that fails.
fn fails(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    words(output)
}

/// Waits until it is so; the bound only guards against hanging.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "{what} did not come to pass");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("there").ino()
}

/// A program of somebody else's under a plugin's name.
fn foreign(site: &Site, name: &str) -> PathBuf {
    fs::create_dir_all(&site.bin).expect("a directory");
    let path = site.bin.join(name);
    fs::copy("/bin/sleep", &path).expect("a program");
    path
}

#[test]
fn the_configuration_goes_last_and_only_when_the_node_is_ready() {
    let host = Host::new(&BLOCKS);
    let site = Site::of(&host);
    fs::remove_file(host.run_dir().node_file()).expect("removed");
    let mut install = host.begin_run(&site.args("install", &[]), &[]);
    wait_for("the program is put in", || site.program().exists());
    assert!(!site.conflist().exists());
    // An agent that is there has not said yet that the node is ready.
    Agent::start(&host);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!site.conflist().exists() && install.try_wait().expect("asked").is_none());
    host.write_node(&BLOCKS);
    succeeds(&install.wait_with_output().expect("it ends"));
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode(&site.program()), mode(&site.conflist())), (0o755, 0o644));
    assert_eq!(site.names(), [CONFLIST, "loden-cni"]);
    // It is what a runtime calls by this list.
    let list: Value = serde_json::from_slice(&fs::read(site.conflist()).expect("read")).expect("JSON");
    assert_eq!((list["plugins"][0]["type"].as_str(), list["name"].as_str()), (Some("loden-cni"), Some("loden")));
}

#[test]
fn a_second_install_changes_nothing_and_needs_no_agent() {
    let host = Host::new(&BLOCKS);
    let site = installed(&host, &["--as", "bridge,host-local"]);
    let places = [site.program(), site.conflist(), site.bin.join("bridge"), site.bin.join("host-local")];
    let before = places.each_ref().map(|path| inode(path));
    fs::remove_file(host.run_dir().node_file()).expect("removed");
    let said = succeeds(&host.run(&site.args("install", &["--as", "bridge,host-local"]), &[]));
    assert_eq!(said.matches("is as it should be").count(), 4, "{said}");
    assert_eq!(places.each_ref().map(|path| inode(path)), before);
    // A mode that somebody changed is a difference.
    fs::set_permissions(site.program(), fs::Permissions::from_mode(0o4755)).expect("set");
    succeeds(&host.run(&site.args("install", &[]), &[]));
    assert_eq!(fs::metadata(site.program()).expect("there").permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_node_that_does_not_get_ready_is_named_and_an_install_after_it_finishes() {
    let host = Host::new(&BLOCKS);
    let site = Site::of(&host);
    let said = fails(&host.run(&site.args("install", &["--timeout", "0"]), &[]));
    assert!(said.contains("agent.sock") && said.contains("No such file or directory"), "{said}");
    fs::remove_file(host.run_dir().node_file()).expect("removed");
    let said = fails(&host.run(&site.args("install", &["--timeout", "0"]), &[]));
    assert!(said.contains("node.json is not there") && said.contains("start lodend"), "{said}");
    assert_eq!(site.names(), ["loden-cni"]);
    host.write_node(&BLOCKS);
    installed(&host, &[]);
    // A list whose pods need nothing of the node does not wait for it.
    fs::remove_file(host.run_dir().node_file()).expect("removed");
    let own = host.dir().join("own.conflist");
    let list = json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [{
        "type": "loden-cni", "runDir": site.run, "bridge": "br1",
        "ipam": { "type": "host-local", "subnet": "10.7.0.0/24" } }] });
    fs::write(&own, list.to_string()).expect("written");
    succeeds(&host.run(&site.args("install", &["--conflist", own.to_str().expect("text")]), &[]));
    assert_eq!(fs::read(site.conflist()).expect("read"), list.to_string().as_bytes());
}

#[test]
fn a_configuration_that_the_plugin_would_refuse_is_not_put_in_and_nothing_else_is() {
    let host = Host::new(&BLOCKS);
    let site = Site::of(&host);
    let own = host.dir().join("own.conflist");
    for (text, cause) in [
        ("{", "no JSON"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#, "no plugin of it"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"loden-cni","attach":"x"}]}"#, "plugins[0]"),
    ] {
        fs::write(&own, text).expect("written");
        let said = fails(&host.run(&site.args("install", &["--conflist", own.to_str().expect("text")]), &[]));
        assert!(said.contains("own.conflist") && said.contains(cause), "{said}");
    }
    assert_eq!(site.names(), Vec::<String>::new());
    assert_eq!(host.run(&["instal"], &[]).status.code(), Some(2));
}

#[test]
fn a_program_that_runs_is_replaced_and_runs_on() {
    let host = Host::new(&BLOCKS);
    let site = Site::of(&host);
    let old = foreign(&site, "loden-cni");
    let mut running = Command::new(&old).arg("600").spawn().expect("it runs");
    installed(&host, &[]);
    assert!(running.try_wait().expect("asked").is_none());
    let about = Command::new(site.program()).env_clear().output().expect("it runs");
    assert!(words(&about).contains("a CNI plugin"), "{about:?}");
    end(&mut running);
}

fn end(child: &mut Child) {
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
fn a_plugin_of_somebody_elses_stays_or_comes_back() {
    let host = Host::new(&BLOCKS);
    let site = Site::of(&host);
    Agent::start(&host);
    let other = foreign(&site, "bridge");
    let said = fails(&host.run(&site.args("install", &["--as", "bridge,ptp"]), &[]));
    assert!(said.contains("bin/bridge is not loden's") && said.contains("--replace"), "{said}");
    assert_eq!(site.names(), ["bridge"]);
    succeeds(&host.run(&site.args("install", &["--as", "bridge,ptp", "--replace"]), &[]));
    assert_eq!(site.names(), [CONFLIST, "bridge", "bridge.loden-saved", "loden-cni", "ptp"]);
    // It is called as that plugin and answers as it: a bridge without addresses.
    host.pod("a");
    let conf = host.conf("1.0.0", &json!({ "type": "bridge", "bridge": "br1" }));
    let mut call = Command::new(&other);
    call.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    call.envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/x")]);
    call.env("CNI_NETNS", host.netns_path("a"));
    loden_linux::spawn::in_netns(&mut call, host.ns(), true).expect("the host's namespace");
    let mut child = call.spawn().expect("it runs");
    child.stdin.take().expect("stdin").write_all(conf.as_bytes()).expect("written");
    let result = answer(&child.wait_with_output().expect("it ends")).expect("attached");
    assert!(result.get("ips").is_none(), "{result}");
    host.call("DEL", "a", &json!({})).expect("detached");
    succeeds(&host.run(&site.args("uninstall", &[]), &[]));
    assert_eq!(site.names(), ["bridge"]);
    assert_eq!(fs::read(&other).expect("read"), fs::read("/bin/sleep").expect("read"));
}

#[test]
fn a_configuration_of_somebody_elses_stays() {
    let host = Host::new(&BLOCKS);
    let site = Site::of(&host);
    Agent::start(&host);
    fs::create_dir_all(&site.conf).expect("a directory");
    let theirs = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}"#;
    fs::write(site.conflist(), theirs).expect("written");
    let said = fails(&host.run(&site.args("install", &[]), &[]));
    assert!(said.contains("10-loden.conflist is not loden's"), "{said}");
    let said = succeeds(&host.run(&site.args("uninstall", &[]), &[]));
    assert!(said.contains("is not loden's, and stays"), "{said}");
    assert_eq!(fs::read_to_string(site.conflist()).expect("read"), theirs);
}

#[test]
fn a_file_system_that_is_full_or_read_only_is_named_and_nothing_is_half_done() {
    let host = Host::new(&BLOCKS);
    let site = Site::of(&host);
    Agent::start(&host);
    {
        let disk = Disk::new(&site.bin, 16);
        let said = fails(&host.run(&site.args("install", &[]), &[]));
        assert!(said.contains("bin/loden-cni") && said.contains("No space left on device"), "{said}");
        assert_eq!(site.names(), Vec::<String>::new());
        disk.set_read_only(true);
        let said = fails(&host.run(&site.args("install", &[]), &[]));
        assert!(said.contains("bin/loden-cni") && said.contains("Read-only file system"), "{said}");
    }
    let disk = Disk::new(&site.conf, 1);
    disk.fill(0);
    let said = fails(&host.run(&site.args("install", &[]), &[]));
    assert!(said.contains(CONFLIST) && said.contains("No space left on device"), "{said}");
    disk.empty();
    disk.set_read_only(true);
    let said = fails(&host.run(&site.args("install", &[]), &[]));
    assert!(said.contains(CONFLIST) && said.contains("Read-only file system"), "{said}");
    assert_eq!(site.names(), ["loden-cni"]);
    disk.set_read_only(false);
    succeeds(&host.run(&site.args("install", &[]), &[]));
    assert_eq!(site.names(), [CONFLIST, "loden-cni"]);
}

#[test]
fn uninstall_names_the_pods_that_are_left_and_changes_nothing() {
    let host = Host::new(&BLOCKS);
    let site = installed(&host, &[]);
    host.pod("a");
    host.call("ADD", "a", &json!({})).expect("attached");
    let said = fails(&host.run(&site.args("uninstall", &[]), &[]));
    assert!(said.contains("needed for 1 attachment: net/a/eth0") && said.contains("--force"), "{said}");
    assert_eq!(site.names(), [CONFLIST, "loden-cni"]);
    // It is open again.
    host.pod("b");
    host.call("ADD", "b", &json!({})).expect("attached");
    assert_eq!(host.call("STATUS", "", &json!({})), Ok(Value::Null));
}

#[test]
fn uninstall_waits_for_the_last_pod_and_takes_in_no_other() {
    let host = Host::new(&BLOCKS);
    let site = installed(&host, &[]);
    for pod in ["a", "b"] {
        host.pod(pod);
    }
    host.call("ADD", "a", &json!({})).expect("attached");
    let mut uninstall = host.begin_run(&site.args("uninstall", &["--drain-wait", "60"]), &[]);
    wait_for("it is closed", || host.call("STATUS", "", &json!({})).is_err());
    let (code, text) = host.call("STATUS", "", &json!({})).expect_err("closed");
    assert!(code == 50 && text.contains("being uninstalled"), "{code} {text}");
    let (code, text) = host.call("ADD", "b", &json!({})).expect_err("closed");
    assert!(code == 11 && text.contains("being uninstalled"), "{code} {text}");
    let conf = json!({ "prevResult": { "cniVersion": "1.1.0", "ips": [{ "address": "10.9.0.2/24" }] },
        "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] }, "cniVersion": "1.1.0" });
    assert_eq!(host.call_as("portmap", "ADD", "b", &conf).map_err(|error| error.0), Err(11));
    assert!(uninstall.try_wait().expect("asked").is_none());
    assert_eq!(site.names(), [CONFLIST, "loden-cni"]);
    host.call("DEL", "a", &json!({})).expect("detached");
    succeeds(&uninstall.wait_with_output().expect("it ends"));
    leaves_nothing(&host, &site);
}

#[test]
fn uninstall_by_force_detaches_what_is_left_and_leaves_nothing() {
    let host = Host::new(&BLOCKS);
    let site = installed(&host, &["--as", "bridge,portmap"]);
    let ports = json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } });
    for (pod, conf) in [("a", json!({})), ("b", json!({ "attach": "routed" })), ("c", ports)] {
        host.pod(pod);
        host.call("ADD", pod, &conf).expect("attached");
    }
    fs::write(host.attachment_file("a"), "torn").expect("written");
    succeeds(&host.run(&site.args("uninstall", &["--force"]), &[]));
    leaves_nothing(&host, &site);
    assert_eq!(host.pod_routes(), Vec::new());
    // Nothing is there any more to be taken out, and that is no fault.
    succeeds(&host.run(&site.args("uninstall", &[]), &[]));
}

fn leaves_nothing(host: &Host, site: &Site) {
    assert_eq!(site.names(), Vec::<String>::new());
    assert_eq!(host.links(), Vec::<String>::new());
    assert!(!site.run.exists(), "{:?}", fs::read_dir(&site.run).map(|all| all.flatten().collect::<Vec<_>>()));
    let (table, bridge) = host.run_in(|| {
        use loden_linux::nft::{Nft, Ownership};
        let table = Nft::open(loden_core::kernel::nft::TABLE_PORTS, Ownership::Shared).expect("a socket").observe();
        let socket = loden_linux::netlink::Socket::open(loden_linux::netlink::Protocol::Route).expect("a socket");
        let bridge = loden_linux::rt::link::number_of(&socket, "cni0".parse().expect("a name"));
        (table.expect("observed"), bridge.expect("asked"))
    });
    assert_eq!((table, bridge), (None, None));
}

#[test]
fn uninstall_leaves_a_running_agent_what_is_its_own() {
    let host = Host::new(&BLOCKS);
    let site = installed(&host, &[]);
    let lock = loden_linux::lock::FileLock::try_acquire(&host.run_dir().agent_lock()).expect("a lock");
    let said = succeeds(&host.run(&site.args("uninstall", &[]), &[]));
    assert!(said.contains(&format!("lodend (process {}) runs", std::process::id())), "{said}");
    drop(lock);
    assert_eq!(site.names(), Vec::<String>::new());
    assert!(host.run_dir().node_file().exists() && host.link("cni0").link.up);
}

/// Kills at each time that a point is passed; gives how often that was.
#[cfg(feature = "fault-points")]
fn killed_at(point: &str, mut begin: impl FnMut() -> Host, args: &[&str], mut after: impl FnMut(&Host, &Site)) -> u32 {
    for pass in 1.. {
        let host = begin();
        let site = Site::of(&host);
        let number = pass.to_string();
        let variables = [("LODEN_FAULT_POINT", point), ("LODEN_FAULT_PASS", number.as_str())];
        let output = host.run(&site.args(args[0], &args[1..]), &variables);
        if output.status.success() {
            return pass - 1;
        }
        assert_eq!(output.status.code(), None, "{point}: it was killed: {output:?}");
        after(&host, &site);
    }
    0
}

#[cfg(feature = "fault-points")]
#[test]
fn killed_between_any_two_steps_an_install_leaves_old_or_new_and_the_next_finishes() {
    let sleep = fs::read("/bin/sleep").expect("read");
    let old_list = r#"{"cniVersion":"1.0.0","name":"old","plugins":[{"type":"loden-cni"}]}"#;
    let args = ["install", "--as", "bridge,ptp", "--replace"];
    for (point, times) in
        [("file-written", 2), ("file-placed", 2), ("link-written", 2), ("link-placed", 2), ("original-linked", 1)]
    {
        let begin = || {
            let host = Host::new(&BLOCKS);
            let site = Site::of(&host);
            Agent::start(&host);
            foreign(&site, "bridge");
            foreign(&site, "loden-cni");
            fs::create_dir_all(&site.conf).expect("a directory");
            fs::write(site.conflist(), old_list).expect("written");
            host
        };
        let passed = killed_at(point, begin, &args, |host, site| {
            let new = fs::read(env!("CARGO_BIN_EXE_loden-cni")).expect("read");
            for name in ["loden-cni", "bridge"] {
                let there = fs::read(site.bin.join(name)).expect(point);
                assert!(there == sleep || there == new, "{point}: {name} is neither old nor new");
            }
            let list = fs::read_to_string(site.conflist()).expect(point);
            // New only when all else is: it is the last.
            assert!(list == old_list || site.bin.join("ptp").exists(), "{point}");
            succeeds(&host.run(&site.args("install", &args[1..]), &[]));
            assert_eq!(site.names(), [CONFLIST, "bridge", "bridge.loden-saved", "loden-cni", "ptp"], "{point}");
            assert_eq!(fs::read(site.bin.join("bridge.loden-saved")).expect("read"), sleep, "{point}");
            succeeds(&host.run(&site.args("uninstall", &[]), &[]));
            assert_eq!(site.names(), ["bridge"], "{point}");
        });
        assert_eq!(passed, times, "{point}");
        // One that is killed and then given up is taken out all the same.
        killed_at(point, begin, &args, |host, site| {
            succeeds(&host.run(&site.args("uninstall", &[]), &[]));
            assert_eq!(site.names(), ["bridge"], "{point}");
            assert_eq!(fs::read(site.bin.join("bridge")).expect("read"), sleep, "{point}");
        });
    }
}

#[cfg(feature = "fault-points")]
#[test]
fn killed_between_any_two_steps_an_uninstall_strands_no_pod_and_the_next_finishes() {
    for (point, times) in [("uninstall-closed", 1), ("uninstall-removed", 3), ("gc-detached", 1), ("del-forgotten", 1)]
    {
        let begin = || {
            let host = Host::new(&BLOCKS);
            installed(&host, &["--as", "bridge"]);
            host.pod("a");
            host.call("ADD", "a", &json!({})).expect("attached");
            host
        };
        let passed = killed_at(point, begin, &["uninstall", "--force"], |host, site| {
            // While a pod is attached everything is there that detaches it.
            let is_whole = site.conflist().exists() && site.program().exists();
            assert!(is_whole || host.run_dir().attachments().good.is_empty(), "{point}");
            if is_whole {
                // What the killed one left of closing keeps nobody out.
                host.call("DEL", "a", &json!({})).expect(point);
                host.call("ADD", "a", &json!({})).expect(point);
            }
            succeeds(&host.run(&site.args("uninstall", &["--force"]), &[]));
            leaves_nothing(host, site);
        });
        assert_eq!(passed, times, "{point}");
    }
}
