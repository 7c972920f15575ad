//! `lodend` under the name `flanneld`: that one's flags and variables become a configuration, so that its unit file or DaemonSet works
//! with the program swapped.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use loden_core::dialect::flannel::Flanneld;
use loden_linux::LinuxError;
use loden_linux::run_dir::{make_dir, write_atomically};
use serde_json::{Map, Value};

use crate::AgentError;

/// What a command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// This text, and nothing else.
    Text(String),
    /// To run.
    Run(Box<Setup>),
}

/// How it is to run.
#[derive(Debug, Default)]
pub struct Setup {
    /// Keys of the configuration; they go before those of the file.
    pub keys: Map<String, Value>,
    /// The pod that this runs in, by namespace and name, where that is all that says which node this is.
    pub pod: Option<(String, String)>,
    /// The run directory where the usual one cannot be made: a container may have no other place to write to.
    pub spare_run_dir: Option<String>,
    /// What is asked for and has no effect, in a sentence each.
    pub without_effect: Vec<String>,
}

/// Whether the program was started under flanneld's name.
#[must_use]
pub fn is_name(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new("flanneld"))
}

/// Reads the command line, without the program's name, and the variables. The password for etcd, which no address of a datastore
/// holds, is put into a file that root alone can read.
///
/// # Errors
/// [`AgentError::Flag`]; [`AgentError::File`] when the directory for what survives a restart cannot be had.
pub fn read(args: &[String], env: impl Fn(&str) -> Option<String>) -> Result<Asked, AgentError> {
    let told = Flanneld::parse(args.iter().map(String::as_str), env)?;
    if told.version {
        // Semantic versions have the name of a build behind a plus.
        return Ok(Asked::Text(format!("v{}+loden\n", env!("CARGO_PKG_VERSION"))));
    }
    if told.help {
        return Ok(Asked::Text(Flanneld::usage()));
    }
    // What flanneld's manifests mount, and its unit files may write to.
    let state_dir = Path::new(&told.subnet_file).parent().unwrap_or(Path::new("/")).join("loden");
    let password_file = state_dir.join("etcd-password");
    let mut keys = told.config(password_file.to_str())?;
    keys.extend(of_this_host(&told, &state_dir)?);
    match &told.etcd_password {
        Some(password) => {
            write_atomically(&password_file, password.expose().as_bytes())
                .map_err(|error| fail(&password_file, error))?;
        }
        None => remove(&password_file)?,
    }
    let pod = told.pod.clone().filter(|_| told.kube_subnet_mgr && told.node_name.is_none());
    let spare_run_dir = Some(state_dir.join("run").display().to_string());
    Ok(Asked::Run(Box::new(Setup { keys, pod, spare_run_dir, without_effect: without_effect(&told) })))
}

/// The keys that are about this host alone.
fn of_this_host(told: &Flanneld, state_dir: &Path) -> Result<Map<String, Value>, AgentError> {
    make_dir(state_dir).map_err(|error| fail(state_dir, error))?;
    let mut keys = Map::new();
    let mut set = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
    set("state_dir", state_dir.display().to_string().into());
    set("subnet_file", told.subnet_file.clone().into());
    set("masquerade", told.ip_masq.into());
    set("forward_rules", told.forward_rules.into());
    set("blackhole_route", told.ip_blackhole_route.into());
    set("announce", told.set_node_network_unavailable.into());
    Ok(keys)
}

fn without_effect(told: &Flanneld) -> Vec<String> {
    let random = "ip-masq-fully-random-disable has no effect: ports are always drawn by lot, else two connections at once may clash";
    told.ip_masq_fully_random_disable.then(|| random.to_owned()).into_iter().collect()
}

fn remove(path: &Path) -> Result<(), AgentError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(AgentError::File { path: path.to_owned(), cause: error.to_string() })
        }
        _ => Ok(()),
    }
}

fn fail(path: &Path, error: LinuxError) -> AgentError {
    AgentError::File { path: PathBuf::from(path), cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

    use std::os::unix::fs::PermissionsExt;

    use loden_core::config::node::NodeConfig;
    use serde_json::json;

    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> Setup {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let get = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        match read(&args, get).expect("understood") {
            Asked::Run(setup) => *setup,
            Asked::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn the_name_is_the_files() {
        for (program, is_it) in
            [("flanneld", true), ("/opt/bin/flanneld", true), ("lodend", false), ("./flanneld.old", false)]
        {
            assert_eq!(is_name(OsStr::new(program)), is_it, "{program}");
        }
    }

    #[test]
    fn what_the_shipped_manifest_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("flannel/subnet.env").display().to_string();
        let subnet_file = format!("--subnet-file={file}");
        let pod = [("POD_NAME", "kube-flannel-ds-x"), ("POD_NAMESPACE", "kube-flannel")];
        let args = ["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081", &subnet_file];
        let setup = run(&args, &pod);
        assert_eq!(setup.pod, Some(("kube-flannel".to_owned(), "kube-flannel-ds-x".to_owned())));
        let config = NodeConfig::parse(Value::Object(setup.keys)).expect("a configuration");
        assert_eq!(config.subnet_file, Some(file));
        assert_eq!(config.state_dir, dir.path().join("flannel/loden").display().to_string());
        assert_eq!((config.rules.masquerade, config.rules.forward, config.rules.blackhole), (Some(true), true, false));
        assert_eq!(config.listen.map(|addr| addr.port()), Some(8081));
        assert!(config.announce);
        assert_eq!(run(&args, &[("NODE_NAME", "n1"), pod[0], pod[1]]).pod, None);
        assert_eq!(run(&[&subnet_file], &pod).pod, None);
    }

    #[test]
    fn a_password_is_in_a_file_of_roots() {
        let dir = tempfile::tempdir().expect("a directory");
        let subnet_file = format!("-subnet-file={}", dir.path().join("subnet.env").display());
        let file = dir.path().join("loden/etcd-password");
        let setup = run(
            &["-etcd-username=u", "--etcd-password", "secret", &subnet_file, "-ip-masq-fully-random-disable"],
            &[("FLANNELD_IPTABLES_FORWARD_RULES", "false"), ("FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", "false")],
        );
        assert_eq!(fs::read_to_string(&file).expect("written"), "secret");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        let store = setup.keys["store"].as_str().expect("text");
        assert!(store.ends_with(&format!("user=u&password_file={}", file.display())), "{store}");
        assert!(!format!("{setup:?}").contains("secret"));
        assert_eq!(setup.without_effect.len(), 1);
        assert_eq!(
            (&setup.keys["forward_rules"], &setup.keys["announce"], &setup.keys["masquerade"]),
            (&json!(false), &json!(false), &json!(false))
        );
        run(&[&subnet_file], &[]);
        assert!(!file.exists(), "one that is not given any more is not kept");
    }

    #[test]
    fn a_version_and_help_are_said_and_faults_refused() {
        let text = |arg: &str| match read(&[arg.to_owned()], |_| None) {
            Ok(Asked::Text(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text("--version"), concat!("v", env!("CARGO_PKG_VERSION"), "+loden\n"));
        assert!(text("-h").starts_with("Usage: flanneld"));
        let error = read(&["-no-such".to_owned()], |_| None).expect_err("refused");
        assert_eq!(error.to_string(), "flag provided but not defined: -no-such (`flanneld --help` lists them)");
    }
}
