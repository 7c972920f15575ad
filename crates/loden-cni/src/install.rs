//! `loden-cni install` and `uninstall`: the program among a host's plugins and the configuration among a runtime's. The configuration goes
//! last, and only when pods can be served: a runtime takes it for the node's being ready.

mod args;
mod remove;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use loden_core::cni::{CniError, Conflist, NodeFile, PROGRAM};
use loden_core::model::AttachmentKey;
use loden_linux::lock::FileLock;
use loden_linux::run_dir::{RunDir, read_json};
use loden_linux::watch::Watch;
use loden_linux::{LinuxError, agent, place};

use args::{Install, Task};

/// How long another install in the same directory is waited for.
const TURN: Duration = Duration::from_secs(60);
/// After so long without an end a wait is told of.
const SILENCE: Duration = Duration::from_secs(2);
/// What no file tells of is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// An agent that does not answer in this time is not ready.
const ANSWER: Duration = Duration::from_secs(2);
/// Longer lists of attachments are cut.
const MOST_NAMED: usize = 20;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    /// The command line.
    #[error("{0}\n{usage}", usage = args::USAGE)]
    Usage(String),
    /// Files, or the kernel.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// The conflist.
    #[error("{path}: {source}")]
    Conflist { path: String, source: CniError },
    /// A file of somebody else's.
    #[error("{0} is not loden's: remove it, or say --replace, which keeps it and puts it back at uninstall")]
    Foreign(String),
    /// The agent.
    #[error(
        "the node is not ready for pods after {seconds} s: {cause}. The program is in its place, and {conflist} is not: start lodend, \
         see `loden status` and its log, and run this again"
    )]
    NotReady { seconds: u64, cause: String, conflist: String },
    /// Pods.
    #[error("the plugin is needed for {}: {}. Remove these pods first, or say --drain-wait SECONDS or --force; nothing has been taken out", number(.0.len()), named(.0))]
    Attached(Vec<AttachmentKey>),
    /// Two at once.
    #[error("another uninstall is under way")]
    UnderWay,
}

/// Does what the command line says; gives the process's exit code: 0, 1 when it could not be done, 2 when it cannot be understood.
pub fn run(args: &[String]) -> u8 {
    let done = Task::parse(args).map_err(InstallError::Usage).and_then(|task| match task {
        Task::Install(install) => put_in(&install),
        Task::Uninstall(uninstall) => remove::run(&uninstall),
        Task::Help => {
            tell(args::USAGE);
            Ok(())
        }
    });
    match done {
        Ok(()) => 0,
        Err(error) => {
            tell(&format!("loden-cni: {error}"));
            if matches!(error, InstallError::Usage(_)) { 2 } else { 1 }
        }
    }
}

/// Every step leaves what was there or what is to be; done again, it goes on from there.
fn put_in(install: &Install) -> Result<(), InstallError> {
    let conflist = install.at.conf_dir.join(&install.at.conf_name);
    let (origin, text) = match &install.conflist {
        Some(path) => (path.display().to_string(), read(path)?),
        None => ("the built-in conflist".to_owned(), Conflist::built_in(install.at.run_dir.as_deref()).into_bytes()),
    };
    let list =
        Conflist::parse(&text, &install.roles).map_err(|source| InstallError::Conflist { path: origin, source })?;
    let own = read(Path::new("/proc/self/exe"))?;
    for dir in [&install.at.bin_dir, &install.at.conf_dir] {
        place::make_open_dir(dir)?;
    }
    let _turn = FileLock::of_dir(&install.at.bin_dir, Instant::now() + TURN)?;
    let links: Vec<PathBuf> = install.roles.iter().map(|role| install.at.bin_dir.join(role)).collect();
    let strange_links = links.iter().filter(|link| is_there(link) && !place::leads_to(link, Path::new(PROGRAM)));
    let strange_list = Some(&conflist).filter(|path| is_there(path) && !is_loden_list(path, &install.at.bin_dir));
    let strange: Vec<&PathBuf> = strange_links.chain(strange_list).collect();
    if let Some(first) = strange.first().filter(|_| !install.replace) {
        return Err(InstallError::Foreign(first.display().to_string()));
    }
    let program = install.at.bin_dir.join(PROGRAM);
    told(&program, place::file(&program, &own, 0o755)?);
    for path in &strange {
        place::keep_original(path)?;
    }
    for link in &links {
        told(link, place::link(link, Path::new(PROGRAM))?);
    }
    let is_as_wanted = fs::read(&conflist).is_ok_and(|there| there == text);
    if list.needs_node && !is_as_wanted {
        wait_ready(&RunDir::new(&list.run_dir), install.timeout, &conflist)?;
    }
    told(&conflist, place::file(&conflist, &text, 0o644)?);
    Ok(())
}

/// Waits until the agent says that the node is ready.
fn wait_ready(run_dir: &RunDir, most: Duration, conflist: &Path) -> Result<(), InstallError> {
    let mut wait = Wait::new(most);
    loop {
        let watch = Watch::on([run_dir.path()]);
        let Err(cause) = is_ready(run_dir) else { return Ok(()) };
        if !wait.for_files(&watch, || format!("waiting for lodend, at most {} s: {cause}", most.as_secs()))? {
            let (seconds, conflist) = (most.as_secs(), conflist.display().to_string());
            return Err(InstallError::NotReady { seconds, cause, conflist });
        }
    }
}

fn is_ready(run_dir: &RunDir) -> Result<(), String> {
    let node = run_dir.node_file();
    match read_json::<NodeFile>(&node) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(format!("{} is not there", node.display())),
        Err(error) => return Err(error.to_string()),
    }
    // The file may be of an agent that is gone.
    match agent::get(&run_dir.agent_socket(), "/readyz", ANSWER) {
        Ok((200, _)) => Ok(()),
        Ok((_, text)) => Err(format!("lodend is not ready: {}", text.trim())),
        Err(error) => Err(error.to_string()),
    }
}

/// A wait with an end, which is told of when it gets long.
struct Wait {
    began: Instant,
    most: Duration,
    has_told: bool,
}

impl Wait {
    fn new(most: Duration) -> Self {
        Self { began: Instant::now(), most, has_told: false }
    }

    /// Waits for a while or until something happens to the files; says whether there is time left.
    fn for_files(&mut self, watch: &Watch, what: impl FnOnce() -> String) -> Result<bool, LinuxError> {
        let left = self.most.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        if self.began.elapsed() >= SILENCE && !self.has_told {
            self.has_told = true;
            let deaf = watch
                .hindrance()
                .map(|error| format!(" (looking now and then, since it cannot be listened to: {error})"));
            tell(&format!("loden-cni: {}{}", what(), deaf.unwrap_or_default()));
        }
        watch.wait(left.min(LOOK_AGAIN)).map(|_| true)
    }
}

/// Whether something has the name, a link that leads nowhere too.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether a conflist is of loden's plugins.
fn is_loden_list(path: &Path, bin_dir: &Path) -> bool {
    fs::read(path).is_ok_and(|text| Conflist::parse(&text, &roles_in(bin_dir)).is_ok())
}

/// The names under which the program is installed besides its own.
fn roles_in(bin_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(bin_dir).into_iter().flatten().flatten();
    let links = entries.filter(|entry| place::leads_to(&entry.path(), Path::new(PROGRAM)));
    links.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, LinuxError> {
    fs::read(path).map_err(|error| LinuxError::system(format!("file {}", path.display()), error))
}

fn told(path: &Path, is_new: bool) {
    tell(&format!("{}: {}", path.display(), if is_new { "installed" } else { "is as it should be" }));
}

/// Standard output belongs to answers of the protocol.
fn tell(text: &str) {
    // Who has closed it does not want to hear.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn number(count: usize) -> String {
    if count == 1 { "1 attachment".to_owned() } else { format!("{count} attachments") }
}

fn named(keys: &[AttachmentKey]) -> String {
    let mut names: Vec<String> = keys.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    if keys.len() > MOST_NAMED {
        names.push(format!("and {} more", keys.len() - MOST_NAMED));
    }
    names.join(", ")
}
