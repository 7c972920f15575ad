//! One host's `lodend`: started, asked, killed, started again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use loden_core::api::{Event, PlanReply, Status};
use loden_linux::netns::NetNs;
use loden_linux::spawn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::LabError;
use crate::http;
use crate::lab::Lab;

/// How long an agent may take to become ready.
const READY: Duration = Duration::from_secs(30);

/// An agent of a lab.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its host.
    pub host: String,
    dir: PathBuf,
    netns: PathBuf,
}

impl Agent {
    /// The agent of a host.
    #[must_use]
    pub fn of(lab: &Lab, host: &str) -> Self {
        Self { host: host.to_owned(), dir: lab.dir().join(host), netns: lab.netns_path(host) }
    }

    /// Its directory for what lives as long as the pods.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Its API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("agent.sock")
    }

    /// Starts it with the configuration that the lab wrote.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn start(&self, lodend: &Path, stays: bool) -> Result<(), LabError> {
        let mut command = Command::new(lodend);
        command.arg("--config").arg(self.config());
        self.start_by(command, stays)
    }

    /// The configuration that the lab wrote.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("lodend.toml")
    }

    /// Starts it by a command of the caller's.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn start_by(&self, mut command: Command, stays: bool) -> Result<(), LabError> {
        let what = || format!("lodend on {}", self.host);
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.map_err(|error| LabError::system(what(), error))?;
        let errors = log.try_clone().map_err(|error| LabError::system(what(), error))?;
        let ns = NetNs::open(&self.netns).map_err(LabError::linux(what()))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        spawn::in_netns(&mut command, &ns, !stays).map_err(LabError::linux(what()))?;
        let mut child = command.spawn().map_err(|error| LabError::system(what(), error))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let started = pid.and_then(start_time).unwrap_or_default();
        fs::write(self.pid_file(), format!("{} {started}", child.id()))
            .map_err(|error| LabError::system(what(), error))?;
        // The child's end is noticed by whoever asks; a thread takes its exit status so that it leaves no zombie.
        thread::spawn(move || child.wait());
        Ok(())
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// [`LabError::NotReady`] with what it says and the end of its log.
    pub fn wait_ready(&self) -> Result<(), LabError> {
        let deadline = Instant::now() + READY;
        loop {
            let cause = match http::get(&self.socket(), "/readyz") {
                Ok((200, _)) => return Ok(()),
                Ok((_, text)) => text.trim().to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let (host, seconds) = (self.host.clone(), READY.as_secs());
                return Err(LabError::NotReady { host, seconds, cause, log: self.log_tail() });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its status.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn status(&self) -> Result<Status, LabError> {
        http::get_json(&self.socket(), "/v1/status")
    }

    /// What a round would do now.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn plan(&self) -> Result<PlanReply, LabError> {
        http::get_json(&self.socket(), "/v1/plan")
    }

    /// What happened behind an event.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn events(&self, after: u64) -> Result<Vec<Event>, LabError> {
        http::get_json(&self.socket(), &format!("/v1/events?after={after}"))
    }

    /// Sends it a signal and waits for its end. One that is gone already has ended.
    ///
    /// # Errors
    /// [`LabError`] when it does not end.
    pub fn end(&self, signal: Signal) -> Result<(), LabError> {
        let what = || format!("lodend on {}", self.host);
        let Some(pid) = self.pid() else { return Ok(()) };
        // A descriptor of the process says when all its threads have ended; the list in `/proc` is cut short while they do.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(LabError::system(what(), error)),
        };
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(LabError::system(what(), error)),
        }
        // On a busy machine the kernel takes its time, as for all that waits for its lock of links.
        let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)) {
            Ok(0) => Err(LabError::system(what(), format!("process {} does not end", pid.as_raw_nonzero()))),
            Ok(_) => Ok(()),
            Err(error) => Err(LabError::system(what(), error)),
        }
    }

    /// Its process, if it lives: a number that now belongs to another process is not its.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let (number, started) = text.trim().split_once(' ')?;
        let pid = Pid::from_raw(number.parse().ok()?)?;
        (start_time(pid).as_deref() == Some(started)).then_some(pid)
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("lodend.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("lodend.pid")
    }
}

/// When the process started, in the kernel's ticks since boot (field 22 of `/proc/PID/stat`): with the number it tells one
/// process from all others. `None` for one that has ended, a zombie too.
fn start_time(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before may hold anything, blanks and parentheses too.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    // The first thread may have ended before the others, which still hold what the process held.
    let threads = || fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).map_or(0, Iterator::count);
    let is_over = matches!(state, "Z" | "X") && threads() <= 1;
    if is_over { None } else { fields.nth(18).map(str::to_owned) }
}
