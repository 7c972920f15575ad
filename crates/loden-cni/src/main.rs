//! `loden-cni`: the CNI plugin. A file a verb; no datastore, no network, no runtime of its own: it starts in a millisecond.
//!
//! The result or the error is JSON on standard output; what a person should see besides goes to standard error.

mod add;
mod chained;
mod check;
mod del;
mod delegate;
mod flannel;
mod gc;
mod install;
mod ipam;
mod lease;
mod loopback;
mod patience;
mod status;

use std::io::{Read, Write};
use std::process::ExitCode;

use loden_core::cni::{self, CniError, Code, Environment, MakeConf, NetConf, NodeFile, Role, Verb, Version};
use loden_core::model::AttachmentKey;
use loden_linux::host_local::HostLocal;
use loden_linux::ledger::Ledger;
use loden_linux::run_dir::{RunDir, read_json};
use loden_linux::{LinuxError, signals};
use serde_json::{Value, json};

/// Musl's own allocator maps and unmaps a page for nearly every buffer: a tenth of the time of a whole ADD.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// One call.
pub struct Call {
    /// The variables.
    pub environment: Environment,
    /// The configuration.
    pub conf: NetConf,
    /// As which plugin it is called.
    pub role: Role,
    /// Standard input.
    pub input: Vec<u8>,
}

/// A configuration is a few kilobytes; whoever writes without an end is stopped here. In bytes.
const INPUT_MOST: u64 = 16 << 20;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if std::env::var_os("CNI_COMMAND").is_none_or(|verb| verb.is_empty()) {
        if !args.is_empty() {
            return ExitCode::from(install::run(&args));
        }
        let known: Vec<_> = Version::ALL.into_iter().map(Version::as_str).collect();
        let about = format!(
            "loden-cni {}: a CNI plugin, called by a container runtime. Protocol versions: {}\n`loden-cni help` says how it is installed.\n",
            env!("CARGO_PKG_VERSION"),
            known.join(", ")
        );
        let _ = std::io::stderr().write_all(about.as_bytes());
        return ExitCode::SUCCESS;
    }
    let (version, call, answer) = answer();
    let is_made = matches!(answer, Ok(Some(_)));
    let (text, code) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(error) => (error.to_json(version), ExitCode::FAILURE),
    };
    if let (Err(error), Some(mut call)) = (writeln!(std::io::stdout(), "{text}"), call.filter(|_| is_made)) {
        // A runtime that has gone does not know of the pod that was attached: nobody else would detach it.
        call.environment.verb = Verb::Del;
        let undone = call.answer().err().map_or_else(|| "undone".to_owned(), |error| format!("left: {error}"));
        let _ =
            writeln!(std::io::stderr(), "loden-cni: the answer cannot be written: {error}; what ADD made is {undone}");
        return ExitCode::FAILURE;
    }
    code
}

/// The version to put an error in, the call if it could be understood, and the answer.
fn answer() -> (Version, Option<Call>, Result<Option<Value>, CniError>) {
    let refused = |version, error| (version, None, Err(error));
    let environment = match Environment::read(|name| std::env::var(name).ok()) {
        Ok(environment) => environment,
        Err(error) => return refused(Version::V1_1_0, error),
    };
    let mut input = Vec::new();
    if let Err(error) = std::io::stdin().take(INPUT_MOST + 1).read_to_end(&mut input) {
        let error = CniError::new(Code::Io, "standard input cannot be read").with(error.to_string());
        return refused(Version::V1_1_0, error);
    }
    if input.len() as u64 > INPUT_MOST {
        let text = format!("the configuration on standard input has more than {} MiB", INPUT_MOST >> 20);
        return refused(Version::V1_1_0, CniError::new(Code::Decode, text));
    }
    if environment.verb == Verb::Version {
        return (Version::V1_1_0, None, Ok(Some(version(&input))));
    }
    let role = std::env::args().next().map_or(Role::Loden, |program| Role::of_program(&program));
    let conf = match NetConf::parse(&input, environment.verb, role) {
        Ok(conf) => conf,
        Err(error) => return refused(given_version(&input).unwrap_or(Version::V1_1_0), error),
    };
    let (version, call) = (conf.version, Call { environment, conf, role, input });
    // What has begun is finished: it is done in milliseconds, and half of it would have to be swept. Until here nothing is made.
    let answer = match signals::put_off() {
        Ok(put_off) => {
            // Until the answer is written, or undone.
            std::mem::forget(put_off);
            call.answer()
        }
        Err(error) => Err(failed("signals cannot be put off", &error)),
    };
    (version, Some(call), answer)
}

/// The version of a configuration that is not right otherwise.
fn given_version(input: &[u8]) -> Option<Version> {
    let given = serde_json::from_slice::<Value>(input).ok()?;
    Version::parse(given.get("cniVersion")?.as_str()?).ok()
}

/// VERSION heeds its input only for the version to answer in.
fn version(input: &[u8]) -> Value {
    let given = serde_json::from_slice::<Value>(input).ok();
    let given = given.as_ref().and_then(|value| value.get("cniVersion")).and_then(Value::as_str);
    let known: Vec<_> = Version::ALL.into_iter().map(Version::as_str).collect();
    json!({ "cniVersion": given.unwrap_or("1.1.0"), "supportedVersions": known })
}

impl Call {
    fn answer(&self) -> Result<Option<Value>, CniError> {
        let needs = match self.environment.verb {
            Verb::Gc | Verb::Status => Version::V1_1_0,
            Verb::Check => Version::V0_4_0,
            Verb::Add | Verb::Del | Verb::Version => Version::V0_1_0,
        };
        if self.conf.version < needs {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!("the configuration has cniVersion {}, this verb came with {needs}", self.conf.version),
            ));
        }
        if let Some(part) = self.role.part() {
            match self.environment.verb {
                Verb::Add => return chained::add(self, part).map(Some),
                Verb::Del => return chained::del(self, part).map(|()| None),
                Verb::Check => return chained::check(self, part).map(|()| None),
                Verb::Status => return Ok(None),
                Verb::Gc | Verb::Version => {}
            }
        }
        match (self.environment.verb, self.role) {
            (Verb::Add, Role::Flannel) => flannel::add(self).map(Some),
            (Verb::Status, Role::Flannel) => flannel::status(self).map(|()| None),
            (Verb::Add, Role::Loopback) => loopback::add(self).map(Some),
            (Verb::Add, role) if role.gives_addresses() => ipam::add(self).map(Some),
            (Verb::Add, _) => add::run(self).map(Some),
            (Verb::Del, Role::Flannel) => flannel::del(self).map(|()| None),
            (Verb::Del, role) if role.gives_addresses() => ipam::del(self).map(|()| None),
            (Verb::Check, Role::Loopback) => loopback::check(self).map(|()| None),
            (Verb::Check, role) if role.gives_addresses() => ipam::check(self).map(|()| None),
            // The interface goes with the pod, and so it is with what another plugin of the list has collected and looked at.
            (Verb::Del | Verb::Gc | Verb::Status, Role::Loopback) => Ok(None),
            (Verb::Del, _) => del::run(self).map(|()| None),
            (Verb::Check, _) => check::run(self).map(|()| None),
            (Verb::Gc, _) => gc::run(self).map(|()| None),
            (Verb::Status, _) => status::run(self).map(|()| None),
            (Verb::Version, _) => Ok(None),
        }
    }

    /// The network's name.
    ///
    /// # Errors
    /// Code 7 without one.
    pub fn network(&self) -> Result<&str, CniError> {
        let missing = || CniError::new(Code::InvalidConfig, "the configuration has no `name`");
        self.conf.name.as_deref().ok_or_else(missing)
    }

    /// The configuration as it was given.
    ///
    /// # Errors
    /// Code 6 when it is no JSON.
    pub fn conf_given(&self) -> Result<Value, CniError> {
        serde_json::from_slice(&self.input)
            .map_err(|error| CniError::new(Code::Decode, "standard input is no JSON").with(error.to_string()))
    }

    /// What the call is about.
    ///
    /// # Errors
    /// Code 4 or 7 when the environment or the configuration does not say.
    pub fn key(&self) -> Result<AttachmentKey, CniError> {
        let missing = |name: &str| CniError::new(Code::InvalidEnvironment, format!("{name} must be set"));
        Ok(AttachmentKey {
            network: self.network()?.to_owned(),
            container: self.environment.container.clone().ok_or_else(|| missing("CNI_CONTAINERID"))?,
            ifname: self.environment.ifname.ok_or_else(|| missing("CNI_IFNAME"))?,
        })
    }

    /// What is to be made.
    ///
    /// # Errors
    /// Code 999 for a verb that makes nothing.
    pub fn make(&self) -> Result<&MakeConf, CniError> {
        self.conf.make.as_ref().ok_or_else(|| CniError::new(Code::Internal, "this verb makes nothing"))
    }

    /// `dns` of the result, as far as the configuration says it.
    ///
    /// # Errors
    /// Code 5 when `ipam.resolvConf` is needed and cannot be read.
    pub fn dns(&self) -> Result<Option<Value>, CniError> {
        let make = self.make()?;
        match &make.ipam.resolv_conf {
            Some(path) if make.dns.is_none() => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(cni::dns_of_resolv_conf(&text))),
                Err(error) => Err(CniError::new(Code::Io, format!("`ipam.resolvConf` {path:?}: {error}"))),
            },
            _ => Ok(make.dns.clone()),
        }
    }

    /// The agent's files.
    #[must_use]
    pub fn run_dir(&self) -> RunDir {
        RunDir::new(&self.conf.run_dir)
    }

    /// Addresses and attachments.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.run_dir()).heeding(self.host_local())
    }

    /// What the plugin host-local may have given before this one took its place.
    #[must_use]
    pub fn host_local(&self) -> Option<HostLocal> {
        self.conf.data_dir.as_deref().map(HostLocal::new)
    }

    /// What the agent has told of the node.
    ///
    /// # Errors
    /// `code` while it has not.
    pub fn node(&self, code: Code) -> Result<NodeFile, CniError> {
        let path = self.run_dir().node_file();
        let not_yet = |cause: String| {
            CniError::new(code, "the node is not ready for pods yet").with(format!(
                "{}: {cause}; lodend writes it when the node is ready: see its log and `loden status`",
                path.display()
            ))
        };
        match read_json::<NodeFile>(&path) {
            Ok(Some(node)) => Ok(node),
            Ok(None) => Err(not_yet("is not there".to_owned())),
            Err(error) => Err(not_yet(error.to_string())),
        }
    }
}

/// `EOPNOTSUPP`.
const EOPNOTSUPP: i32 = 95;

/// An error of the kernel, of files or of another plugin, whose code is passed on.
pub fn failed(what: impl Into<String>, error: &LinuxError) -> CniError {
    let code = match error {
        LinuxError::Plugin { code, .. } if *code != 0 => Code::OfDelegate(*code),
        // What the kernel lacks, something in the configuration asks for.
        error if error.errno() == EOPNOTSUPP => Code::UnsupportedField,
        _ => Code::Internal,
    };
    CniError::new(code, what).with(error.to_string())
}
