//! The command line of the installer.

use std::path::PathBuf;
use std::time::Duration;

use loden_core::cni::{PROGRAM, Role};
use loden_core::model::is_plain_name;

/// What it can be told.
pub const USAGE: &str = "\
usage: loden-cni install   [options]   put the plugin and its configuration in, when lodend is ready
       loden-cni uninstall [options]   take both out, when no pod is attached any more
both:
  --bin-dir DIR          the runtime's directory of plugins; default /opt/cni/bin
  --conf-dir DIR         its directory of configurations; default /etc/cni/net.d
  --conf-name NAME       the configuration's name there; default 10-loden.conflist
  --run-dir DIR          lodend's directory; default: what the configuration says, else /run/loden
install:
  --conflist FILE        the configuration; default: a built-in one
  --as NAME,NAME         also in the place of these plugins, such as bridge,portmap
  --replace              keep what stands there and is not loden's as NAME.loden-saved, and put it back at uninstall
  --timeout SECONDS      how long lodend is waited for; default 60
uninstall:
  --drain-wait SECONDS   how long to wait for the last pod to go; default 0
  --force                detach the pods that are left then";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// `install`.
    Install(Install),
    /// `uninstall`.
    Uninstall(Uninstall),
    /// `help`.
    Help,
}

/// Where things are.
#[derive(Debug, PartialEq, Eq)]
pub struct Places {
    /// Plugins.
    pub bin_dir: PathBuf,
    /// Configurations.
    pub conf_dir: PathBuf,
    /// The name of loden's.
    pub conf_name: String,
    /// lodend's directory, where it is said.
    pub run_dir: Option<String>,
}

/// `install`.
#[derive(Debug, PartialEq, Eq)]
pub struct Install {
    /// Where.
    pub at: Places,
    /// The file with the configuration.
    pub conflist: Option<PathBuf>,
    /// The names to be installed under besides its own.
    pub roles: Vec<String>,
    /// What is not loden's is kept and replaced.
    pub replace: bool,
    /// How long the agent is waited for.
    pub timeout: Duration,
}

/// `uninstall`.
#[derive(Debug, PartialEq, Eq)]
pub struct Uninstall {
    /// Where.
    pub at: Places,
    /// How long pods are waited for.
    pub drain_wait: Duration,
    /// Pods that are left are detached.
    pub force: bool,
}

impl Task {
    /// Reads the arguments behind the program's name.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[String]) -> Result<Self, String> {
        let Some((verb, rest)) = args.split_first() else { return Ok(Self::Help) };
        let is_install = match verb.as_str() {
            "install" => true,
            "uninstall" => false,
            "help" | "--help" | "-h" => return Ok(Self::Help),
            other => return Err(format!("{other:?} is none of install, uninstall, help")),
        };
        let mut at = Places {
            bin_dir: "/opt/cni/bin".into(),
            conf_dir: "/etc/cni/net.d".into(),
            conf_name: "10-loden.conflist".to_owned(),
            run_dir: None,
        };
        let (mut conflist, mut roles, mut replace, mut force) = (None, Vec::new(), false, false);
        let (mut timeout, mut drain_wait) = (Duration::from_secs(60), Duration::ZERO);
        let mut rest = rest.iter();
        while let Some(option) = rest.next() {
            let (name, joined) =
                option.split_once('=').map_or((option.as_str(), None), |(name, value)| (name, Some(value)));
            let is_flag = matches!(name, "--replace" | "--force");
            let mut value = || {
                let given = joined.or_else(|| rest.next().map(String::as_str)).filter(|value| !value.is_empty());
                given.ok_or_else(|| format!("{name} needs a value"))
            };
            match (name, is_install) {
                _ if is_flag && joined.is_some() => return Err(format!("{name} has no value")),
                ("--bin-dir", _) => at.bin_dir = value()?.into(),
                ("--conf-dir", _) => at.conf_dir = value()?.into(),
                ("--conf-name", _) => at.conf_name = conf_name(value()?)?,
                ("--run-dir", _) => at.run_dir = Some(value()?.to_owned()),
                ("--conflist", true) => conflist = Some(value()?.into()),
                ("--as", true) => roles = value()?.split(',').map(role).collect::<Result<_, _>>()?,
                ("--replace", true) => replace = true,
                ("--timeout", true) => timeout = seconds(name, value()?)?,
                ("--drain-wait", false) => drain_wait = seconds(name, value()?)?,
                ("--force", false) => force = true,
                _ => return Err(format!("{verb} has no option {option:?}")),
            }
        }
        if conflist.is_some() && at.run_dir.is_some() {
            return Err("--run-dir is for the built-in configuration: in one of your own it is `runDir`".to_owned());
        }
        Ok(if is_install {
            Self::Install(Install { at, conflist, roles, replace, timeout })
        } else {
            Self::Uninstall(Uninstall { at, drain_wait, force })
        })
    }
}

/// Runtimes read files with this ending as lists, in the order of their names.
fn conf_name(name: &str) -> Result<String, String> {
    if is_plain_name(name) && name.ends_with(".conflist") {
        return Ok(name.to_owned());
    }
    Err(format!("--conf-name {name:?}: a plain name that ends with .conflist was meant"))
}

fn role(name: &str) -> Result<String, String> {
    match Role::of_program(name) {
        Role::Loden => Err(format!("--as {name:?}: {PROGRAM} stands in for no plugin of that name")),
        _ if !is_plain_name(name) => Err(format!("--as {name:?}: a plain name was meant")),
        _ => Ok(name.to_owned()),
    }
}

fn seconds(option: &str, text: &str) -> Result<Duration, String> {
    let number = text.parse::<u32>().map_err(|_| format!("{option} {text:?}: whole seconds were meant"))?;
    Ok(Duration::from_secs(number.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        Task::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_in_either_form() {
        let Ok(Task::Install(install)) = parse("install --as bridge,portmap --bin-dir=/b --timeout 5 --replace") else {
            panic!("it installs")
        };
        assert_eq!(install.roles, ["bridge", "portmap"]);
        assert_eq!((install.at.bin_dir, install.timeout), ("/b".into(), Duration::from_secs(5)));
        assert!(install.replace);
        let Ok(Task::Uninstall(uninstall)) = parse("uninstall --force --drain-wait=9 --run-dir /r") else {
            panic!("it uninstalls")
        };
        assert_eq!((uninstall.force, uninstall.drain_wait), (true, Duration::from_secs(9)));
        assert_eq!(uninstall.at.conf_name, "10-loden.conflist");
        assert_eq!(parse("help"), Ok(Task::Help));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "instal",
            "install --bin-dir",
            "install --bin-dir=",
            "install --force",
            "uninstall --as bridge",
            "install --as brige",
            "install --as bridge,",
            "install --as /bin/bridge",
            "install --replace=yes",
            "install --timeout soon",
            "install --timeout -1",
            "install --conf-name ../x.conflist",
            "install --conf-name 10-loden.conf",
            "install --conflist f --run-dir /r",
            "install extra",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
