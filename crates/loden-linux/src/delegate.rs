//! Other plugins, called as a runtime calls them: one that a configuration names for addresses, or for the interface itself.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use loden_core::model::{Attachment, AttachmentKey, Delegate, is_plain_name};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::error::LinuxError;
use crate::signals;

/// How long a plugin may take when the runtime waits, which has a deadline of its own.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// How long it may take to say how it is: runtimes ask every few seconds, and one that hangs is not well.
pub const PATIENCE_STATUS: Duration = Duration::from_secs(2);
/// How long it may take to undo what a killed ADD left, when nobody waits but the agent.
pub const PATIENCE_UNDOING: Duration = Duration::from_secs(5);
/// What a plugin may answer at most, in bytes.
const ANSWER_MOST: usize = 16 << 20;

/// What a call is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The attachment; GC and STATUS are about none.
    pub key: Option<&'a AttachmentKey>,
    /// The path of the pod's network namespace.
    pub netns: &'a str,
}

/// Looks for a plugin in the directories of `CNI_PATH`.
///
/// # Errors
/// [`LinuxError::File`] when it is in none of them, or is this very program, which would call itself for ever.
pub fn find(name: &str, search_path: &str) -> Result<PathBuf, LinuxError> {
    let wrong = |cause: &str| LinuxError::File { path: format!("plugin {name:?}"), cause: cause.to_owned() };
    if !is_plain_name(name) {
        return Err(wrong("is no name of a program"));
    }
    let mut found = std::env::split_paths(search_path).map(|dir| dir.join(name)).filter(|path| path.is_file());
    let program = found.next().ok_or_else(|| wrong(&format!("is in none of the directories {search_path}")))?;
    let of = |path: &Path| path.metadata().ok().map(|file| (file.dev(), file.ino()));
    if of(&program).is_some() && of(&program) == of(Path::new("/proc/self/exe")) {
        return Err(wrong(&format!("is loden's own ({}): it does not call itself", program.display())));
    }
    Ok(program)
}

/// Calls a plugin and gives its answer; a verb without one gives null.
///
/// # Errors
/// [`LinuxError::Plugin`] with the plugin's own code and words, or with what kept it from answering.
pub fn call(
    delegate: &Delegate,
    verb: &str,
    subject: Subject<'_>,
    conf: &Value,
    patience: Duration,
) -> Result<Value, LinuxError> {
    let (container, ifname) =
        subject.key.map_or((String::new(), String::new()), |key| (key.container.clone(), key.ifname.to_string()));
    let mut child = Command::new(&delegate.program)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", subject.netns)
        .env("CNI_IFNAME", ifname)
        .env("CNI_ARGS", &delegate.args)
        .env("CNI_PATH", &delegate.search_path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(delegate, 0, format!("cannot be started: {error}")))?;
    // Another plugin may take as long as it likes: meanwhile a signal ends this process, and the sweep makes clean.
    let let_in = signals::let_in()?;
    let answer = converse(&mut child, &conf.to_string(), patience);
    drop(let_in);
    let status = child.wait().map_err(|error| failed(delegate, 0, format!("cannot be waited for: {error}")))?;
    let answer = answer.map_err(|error| failed(delegate, 0, format!("{verb} has no answer: {error}")))?;
    let value = serde_json::from_slice::<Value>(&answer).ok();
    if status.success() {
        let is_silent = answer.iter().all(u8::is_ascii_whitespace);
        return match value {
            Some(value) => Ok(value),
            None if is_silent => Ok(Value::Null),
            None => Err(failed(delegate, 6, format!("{verb}: its answer is no JSON"))),
        };
    }
    Err(refused(delegate, verb, value.as_ref(), status))
}

/// Calls DEL of every plugin that had a part in an attachment, the last one first.
///
/// # Errors
/// Whatever they said, all of it.
pub fn undo(attachment: &Attachment, patience: Duration) -> Result<(), LinuxError> {
    // One that has gone is none: so a plugin knows it.
    let netns = if Path::new(&attachment.netns).exists() { attachment.netns.as_str() } else { "" };
    let subject = Subject { key: Some(&attachment.key), netns };
    let all = attachment.delegates.iter().rev();
    let undone = all.map(|delegate| call(delegate, "DEL", subject, &delegate.conf, patience));
    LinuxError::collected(undone.filter_map(Result::err).collect())
}

/// Writes the configuration and reads the answer to its end. A thread of its own writes: a plugin may answer before it has read
/// everything. One that is not done in time is killed, which ends the writing too.
fn converse(child: &mut Child, conf: &str, patience: Duration) -> std::io::Result<Vec<u8>> {
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(ErrorKind::BrokenPipe.into());
    };
    thread::scope(|scope| {
        // A plugin that does not want all of it closes its end.
        scope.spawn(move || drop(input.write_all(conf.as_bytes())));
        read_all(&mut output, Instant::now() + patience).inspect_err(|_| {
            // It may have gone by itself.
            let _ = child.kill();
        })
    })
}

fn read_all(output: &mut ChildStdout, deadline: Instant) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut part = [0; 8192];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&*output, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match output.read(&mut part)? {
            0 => return Ok(answer),
            len => answer.extend_from_slice(&part[..len]),
        }
        if answer.len() > ANSWER_MOST {
            return Err(std::io::Error::new(ErrorKind::InvalidData, "it is too long"));
        }
    }
}

fn refused(delegate: &Delegate, verb: &str, said: Option<&Value>, status: std::process::ExitStatus) -> LinuxError {
    let text = |key: &str| said.and_then(|said| said.get(key)).and_then(Value::as_str).unwrap_or_default();
    let code = said.and_then(|said| said.get("code")).and_then(Value::as_u64);
    let words: Vec<&str> = [text("msg"), text("details")].into_iter().filter(|words| !words.is_empty()).collect();
    let words = if words.is_empty() { format!("it ended with {status} and said nothing") } else { words.join("; ") };
    failed(delegate, code.and_then(|code| u32::try_from(code).ok()).unwrap_or(0), format!("{verb}: {words}"))
}

fn failed(delegate: &Delegate, code: u32, cause: String) -> LinuxError {
    let plugin = delegate.program.display().to_string();
    LinuxError::Plugin { plugin, code, cause }
}
