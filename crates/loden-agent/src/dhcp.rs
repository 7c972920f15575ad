//! Leases of DHCP servers for pods: asked for, renewed, given back; one thread for all of them, which sleeps until something comes in
//! or falls due.
//!
//! A lease is written to `/run/loden/dhcp` before it is told to anybody, so that an agent that starts goes on with it. It lives as long as its
//! attachment's file: whoever takes that away (DEL, GC, the sweep, an ADD that undoes itself) ends it.

mod holding;
mod options;
mod wire;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use loden_core::dhcp::client::{Action, Client};
use loden_core::dhcp::{Dns, Held, Lease, LeaseRequest};
use loden_core::model::{Attachment, AttachmentKey};
use loden_core::view::Problem;
use loden_linux::LinuxError;
use loden_linux::clock::boot_ms;
use loden_linux::ledger::Ledger;
use loden_linux::netns::NetNs;
use loden_linux::run_dir::{RunDir, remove_file};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::sync::oneshot;

use holding::{Asker, Holding};

/// What the thread is asked.
enum Ask {
    Lease(Box<LeaseRequest>, oneshot::Sender<Result<Lease, String>>),
    Release(AttachmentKey, oneshot::Sender<()>),
    /// Attachments have changed: some lease may be nobody's now.
    Look,
}

/// What the thread tells.
#[derive(Debug)]
pub enum News {
    /// Something happened to an object.
    Event(String, String),
    /// All that is not as it should be.
    Problems(Vec<Problem>),
}

/// How the thread is spoken to.
#[derive(Debug, Clone)]
pub struct Dhcp {
    asks: Sender<Ask>,
    wake: Arc<OwnedFd>,
}

impl Dhcp {
    /// Takes up what a former agent held and starts the thread, which lives as long as the process.
    ///
    /// # Errors
    /// [`LinuxError`] when the leases cannot be listed or there is no timer to be had.
    pub fn start(run_dir: RunDir, tell: impl Fn(News) + Send + 'static) -> Result<Self, LinuxError> {
        let fail = |error: rustix::io::Errno| LinuxError::system("the timer of DHCP leases", error);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(fail)?);
        let timer =
            timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).map_err(fail)?;
        let (asks, queue) = channel();
        let mut keeper = Keeper {
            run_dir,
            asks: queue,
            wake: Arc::clone(&wake),
            timer,
            holdings: BTreeMap::new(),
            problems: Vec::new(),
            tell: Box::new(tell),
        };
        keeper.take_up()?;
        let spawned = thread::Builder::new().name("dhcp".to_owned()).spawn(move || keeper.run());
        spawned.map(|_| Self { asks, wake }).map_err(|error| LinuxError::system("thread for DHCP leases", error))
    }

    /// An address for an attachment, or why there is none; the answer comes within the request's time.
    pub async fn lease(&self, request: LeaseRequest) -> Result<Lease, String> {
        let (answer, wait) = oneshot::channel();
        self.ask(Ask::Lease(Box::new(request), answer));
        wait.await.unwrap_or_else(|_| Err("the attachment was taken away while an address was asked for".to_owned()))
    }

    /// Gives an attachment's address back, if it has one.
    pub async fn release(&self, key: AttachmentKey) {
        let (answer, wait) = oneshot::channel();
        self.ask(Ask::Release(key, answer));
        // A thread that has ended has logged why.
        let _ = wait.await;
    }

    /// Says that attachments have changed.
    pub fn look(&self) {
        self.ask(Ask::Look);
    }

    fn ask(&self, ask: Ask) {
        // As above. An eventfd that is full wakes as well.
        let _ = self.asks.send(ask);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

/// The thread's own.
struct Keeper {
    run_dir: RunDir,
    asks: Receiver<Ask>,
    wake: Arc<OwnedFd>,
    timer: OwnedFd,
    holdings: BTreeMap<AttachmentKey, Holding>,
    /// As they were told last.
    problems: Vec<Problem>,
    tell: Box<dyn Fn(News) + Send>,
}

impl Keeper {
    fn take_up(&mut self) -> Result<(), LinuxError> {
        let found = self.run_dir.leases()?;
        for (file, error) in found.unreadable {
            (self.tell)(News::Event(
                "DHCP leases".to_owned(),
                format!("{error}; it is removed, and CHECK of its pod fails"),
            ));
            remove_file(&file)?;
        }
        let now = boot_ms();
        for held in found.good {
            let client = match &held.lease {
                Some(lease) => Client::resumed(now, seed(), lease.clone()),
                None => Client::new(now, seed(), held.request.wish),
            };
            self.holdings.insert(held.request.key.clone(), Holding::new(held, client, None));
        }
        self.look();
        // One that was killed between a lease's file and the pod.
        let keys: Vec<AttachmentKey> = self.holdings.keys().cloned().collect();
        keys.iter().for_each(|key| self.settle(key));
        Ok(())
    }

    fn run(mut self) {
        loop {
            while let Ok(ask) = self.asks.try_recv() {
                self.answer(ask);
            }
            let now = boot_ms();
            let keys: Vec<AttachmentKey> = self.holdings.keys().cloned().collect();
            for key in &keys {
                let Some(holding) = self.holdings.get_mut(key) else { continue };
                let mut actions = holding.hear(now);
                if holding.client.due_ms() <= now {
                    actions.extend(holding.client.tick(now));
                }
                self.act(key, actions);
                self.give_up(key, now);
            }
            self.tell_problems();
            if let Err(error) = self.wait() {
                tracing::error!(%error, "DHCP leases cannot be waited for");
                thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    }

    /// Sleeps until something comes in or falls due.
    fn wait(&self) -> Result<(), LinuxError> {
        let fail = |error: rustix::io::Errno| LinuxError::system("wait for DHCP leases", error);
        let due = self.holdings.values().map(Holding::due_ms).min().filter(|due| *due != u64::MAX);
        // Zero would be no timer at all.
        let at = due.map_or(0, |due| due.max(1));
        let part = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let it_value = Timespec { tv_sec: part(at / 1000), tv_nsec: part(at % 1000 * 1_000_000) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once).map_err(fail)?;
        let own = [self.wake.as_fd(), self.timer.as_fd()];
        let all = own.into_iter().chain(self.holdings.values().flat_map(Holding::fds));
        let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(fail(error)),
        }
        let mut count = [0; 8];
        match rustix::io::read(&*self.wake, &mut count) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(fail(error)),
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Lease(request, answer) => self.begin(*request, answer),
            Ask::Release(key, answer) => {
                self.end(&key, "given back");
                // Who asked may have gone meanwhile.
                let _ = answer.send(());
            }
            Ask::Look => self.look(),
        }
    }

    fn begin(&mut self, request: LeaseRequest, answer: oneshot::Sender<Result<Lease, String>>) {
        // Who asked may have gone meanwhile.
        let netns_id = match NetNs::open(Path::new(&request.netns)) {
            Ok(netns) => netns.identity(),
            Err(error) => return drop(answer.send(Err(error.to_string()))),
        };
        let now = boot_ms();
        // A former ADD of the same: its address is wished for again.
        let former = self.holdings.remove(&request.key).and_then(|holding| holding.held.lease);
        let wish = request.wish.or(former.map(|lease| lease.terms.net.addr()));
        let client = Client::new(now, seed(), wish);
        let asker = Asker { answer, until_ms: now + u64::from(request.timeout_s) * 1000 };
        let key = request.key.clone();
        let held = Held { request, netns_id, lease: None, dns_told: Dns::default() };
        self.holdings.insert(key, Holding::new(held, client, Some(asker)));
    }

    /// Ends what belongs to no attachment any more.
    fn look(&mut self) {
        let is_gone = |key: &&AttachmentKey| self.run_dir.attachment_file(key).is_ok_and(|file| !file.exists());
        let gone: Vec<AttachmentKey> = self.holdings.keys().filter(is_gone).cloned().collect();
        gone.iter().for_each(|key| self.end(key, "given back: its attachment has gone"));
    }

    fn end(&mut self, key: &AttachmentKey, how: &str) {
        let Some(holding) = self.holdings.remove(key) else { return };
        let object = format!("lease of attachment {key}");
        if let Some(lease) = holding.client.lease() {
            let addr = lease.terms.net.addr();
            let text = match holding.release(u32::try_from(seed() >> 32).unwrap_or(0)) {
                Ok(()) => format!("{addr} was {how}"),
                Err(error) => format!("{addr} could not be given back and runs out by itself: {error}"),
            };
            (self.tell)(News::Event(object.clone(), text));
        }
        if let Err(error) = self.run_dir.remove_lease(key) {
            (self.tell)(News::Event(object, error.to_string()));
        }
    }

    /// Does what a client says.
    fn act(&mut self, key: &AttachmentKey, actions: Vec<Action>) {
        for action in actions {
            let Some(holding) = self.holdings.get_mut(key) else { return };
            match action {
                Action::Send(_) | Action::Probe(_) => holding.send(&action),
                Action::Note(text) => {
                    holding.trouble = Some(text.clone());
                    (self.tell)(News::Event(format!("lease of attachment {key}"), text));
                }
                Action::Hold(lease) => self.hold(key, lease),
                Action::Lose(text) => {
                    let was = holding.held.lease.take();
                    holding.trouble = Some(text.clone());
                    let addr = was.map_or_else(String::new, |lease| format!(" {}", lease.terms.net.addr()));
                    self.write(key);
                    (self.tell)(News::Event(
                        format!("lease of attachment {key}"),
                        format!("the address{addr} is lost: {text}"),
                    ));
                    self.settle(key);
                }
            }
        }
        if let Some(holding) = self.holdings.get_mut(key) {
            holding.tidy();
        }
    }

    /// A lease that was given or renewed: written down first, then told or put in force.
    fn hold(&mut self, key: &AttachmentKey, lease: Lease) {
        let Some(holding) = self.holdings.get_mut(key) else { return };
        let was = holding.held.lease.replace(lease.clone());
        holding.trouble = None;
        if let Some(asker) = holding.asker.take() {
            holding.held.dns_told = lease.terms.dns.clone();
            let addr = lease.terms.net;
            let is_kept = self.write(key);
            let cannot =
                || format!("{addr} was leased and cannot be written down in {}", self.run_dir.leases_dir().display());
            let answer = if is_kept { Ok(lease.clone()) } else { Err(cannot()) };
            // One that has gone away leaves its attachment to the sweep, which ends this.
            let _ = asker.answer.send(answer);
            if !is_kept {
                self.end(key, "given back");
                return;
            }
            let text = format!("{addr} by {}, for {} s", lease.terms.server, lease.terms.lease_s);
            (self.tell)(News::Event(format!("lease of attachment {key}"), text));
            return;
        }
        self.write(key);
        if was.is_none_or(|was| was.terms != lease.terms) {
            let text = format!("{} by {} on new terms", lease.terms.net, lease.terms.server);
            (self.tell)(News::Event(format!("lease of attachment {key}"), text));
        }
        self.settle(key);
    }

    /// Writes down what is held, and says whether it could be; why not is the trouble.
    fn write(&mut self, key: &AttachmentKey) -> bool {
        let Some(holding) = self.holdings.get_mut(key) else { return false };
        match self.run_dir.put_lease(&holding.held) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "a DHCP lease cannot be written down");
                holding.trouble = Some(error.to_string());
                false
            }
        }
    }

    /// Makes pod and attachment as the lease says, or without address when there is none.
    fn settle(&mut self, key: &AttachmentKey) {
        let Some(holding) = self.holdings.get_mut(key) else { return };
        let Held { request, lease, .. } = &holding.held;
        let open = || holding::netns(&holding.held);
        let apply = |there: &Attachment| request.applied(lease.as_ref(), there);
        let changed = Ledger::new(self.run_dir.clone()).readdress(key, open, apply);
        match changed {
            Ok(None) => {}
            Ok(Some(attachment)) => {
                let nets: Vec<String> = attachment.addresses.iter().map(|address| address.net.to_string()).collect();
                let nets = if nets.is_empty() { "no address".to_owned() } else { nets.join(" ") };
                let text = format!("{} has {nets} now, and {} route(s)", key.ifname, attachment.routes.len());
                (self.tell)(News::Event(format!("attachment {key}"), text));
            }
            Err(error) => holding.trouble = Some(format!("the pod cannot be made as the lease says: {error}")),
        }
    }

    /// Tells who waits that nothing came, when the time is up.
    fn give_up(&mut self, key: &AttachmentKey, now_ms: u64) {
        let is_late = |holding: &&Holding| holding.asker.as_ref().is_some_and(|asker| asker.until_ms <= now_ms);
        if self.holdings.get(key).filter(is_late).is_none() {
            return;
        }
        if let Some(asker) =
            self.holdings.get_mut(key).and_then(|holding| Some((holding.nobody(), holding.asker.take()?)))
        {
            // One that has gone away does not want the answer.
            let _ = asker.1.answer.send(Err(asker.0));
        }
        self.end(key, "given back: it came too late");
    }

    fn tell_problems(&mut self) {
        let problems: Vec<Problem> = self.holdings.values().flat_map(Holding::problems).collect();
        if problems != self.problems {
            self.problems.clone_from(&problems);
            (self.tell)(News::Problems(problems));
        }
    }
}

/// What nobody can foresee. Without the kernel's source the clock has to do: transactions must only differ.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => boot_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}
