//! Who computes the checksums of packets inside the kernel's tunnels: a thread that tries it out, since that takes seconds when
//! nobody answers. What it does is decided by [`loden_core::offload`].
//!
//! It is no object of what is desired: a backend sees the view alone, and this is found out by packets. What was found holds for one
//! device and the way that its packets leave; the worker says when either may have changed.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use loden_core::model::IfName;
use loden_core::offload::{Probe, Step, Target, Test, There, Verdict};
use loden_linux::netlink::{Protocol, Socket};
use loden_linux::rt::link;
use loden_linux::{LinuxError, ethtool, offload};

/// How long an answer may take. Between hosts of one cluster it takes milliseconds; two a second are within what a kernel answers to one
/// host (`net.ipv4.icmp_ratelimit`), as every other datagram alone is answered where something is wrong.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the thread is told: the devices, each with the peers that are reached by it.
#[derive(Debug)]
pub struct Look {
    /// The external interface.
    pub underlay: Option<IfName>,
    /// By device.
    pub devices: BTreeMap<IfName, Vec<Target>>,
}

/// What the thread tells.
#[derive(Debug)]
pub enum News {
    /// Something happened to a device.
    Event(IfName, String),
    /// All that is known now.
    Verdicts(BTreeMap<IfName, Verdict>),
}

/// Starts the thread, which ends when nobody can tell it anything any more.
///
/// # Errors
/// [`LinuxError`] when there is no thread to be had.
pub fn start(tell: impl Fn(News) + Send + 'static) -> Result<Sender<Look>, LinuxError> {
    let (looks, queue) = channel();
    let tester = Tester { tests: BTreeMap::new(), began: Instant::now(), tell: Box::new(tell) };
    let spawned = thread::Builder::new().name("offload".to_owned()).spawn(move || tester.run(&queue));
    spawned.map(|_| looks).map_err(|error| LinuxError::system("thread for checksums", error))
}

/// The thread's own.
struct Tester {
    tests: BTreeMap<IfName, Test>,
    began: Instant,
    tell: Box<dyn Fn(News) + Send>,
}

impl Tester {
    fn run(mut self, queue: &Receiver<Look>) {
        let mut due = Some(0);
        loop {
            let wait = due.map(|due| Duration::from_millis(due).saturating_sub(self.began.elapsed()));
            let heard = match wait {
                Some(wait) => queue.recv_timeout(wait),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match heard {
                // What is true now is in the last one.
                Ok(look) => self.look(queue.try_iter().last().unwrap_or(look)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            due = self.step();
        }
    }

    fn look(&mut self, look: Look) {
        let before = self.tests.len();
        self.tests.retain(|dev, _| look.devices.contains_key(dev));
        let mut is_new = before != self.tests.len();
        for (dev, targets) in look.devices {
            match there(dev, look.underlay, targets) {
                Ok(Some(there)) => match self.tests.get_mut(&dev) {
                    Some(test) => {
                        let was = test.verdict().clone();
                        test.look(there);
                        is_new |= *test.verdict() != was;
                    }
                    None => {
                        self.tests.insert(dev, Test::new(there));
                        is_new = true;
                    }
                },
                // One that is gone is about to be made anew, and is heard of then.
                Ok(None) => is_new |= self.tests.remove(&dev).is_some(),
                Err(error) => tracing::warn!(%dev, %error, "who computes checksums cannot be looked at"),
            }
        }
        if is_new {
            self.tell_all();
        }
    }

    /// One step of each test; says when the next is due.
    fn step(&mut self) -> Option<u64> {
        let mut due: Option<u64> = None;
        let devices: Vec<IfName> = self.tests.keys().copied().collect();
        for dev in devices {
            let now = elapsed_ms(self.began);
            let Some(test) = self.tests.get_mut(&dev) else { continue };
            let was = test.verdict().clone();
            let next = match test.next(now) {
                Step::Probe(probe) => {
                    let is_answered = ask(dev, &probe);
                    test.answered(is_answered, elapsed_ms(self.began));
                    Some(0)
                }
                Step::Set(by) => {
                    let result = ethtool::set_checksums(dev, by);
                    test.was_set(result.map_err(|error| error.about(dev.to_string()).cause), now);
                    Some(0)
                }
                Step::Wait(until) => Some(until),
                Step::Rest => None,
            };
            due = [due, next].into_iter().flatten().min();
            let verdict = test.verdict().clone();
            if verdict != was {
                (self.tell)(News::Event(dev, format!("checksums of what is sent by it: {verdict}")));
                self.tell_all();
            }
        }
        due
    }

    fn tell_all(&self) {
        let verdicts = self.tests.iter().map(|(dev, test)| (*dev, test.verdict().clone()));
        (self.tell)(News::Verdicts(verdicts.collect()));
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What there is of a device; `None` when it is not there.
fn there(dev: IfName, underlay: Option<IfName>, targets: Vec<Target>) -> Result<Option<There>, LinuxError> {
    let Some(number) = link::number_of(&Socket::open(Protocol::Route)?, dev)? else { return Ok(None) };
    Ok(Some(There { number, underlay, by: ethtool::checksums(dev)?, targets }))
}

/// What cannot be sent is not answered.
fn ask(dev: IfName, probe: &Probe) -> bool {
    match offload::is_answered(probe, PATIENCE) {
        Ok(is_answered) => is_answered,
        Err(error) => {
            tracing::debug!(%dev, %error, "a datagram that tries checksums cannot be sent");
            // Not to be asked again at once.
            thread::sleep(PATIENCE);
            false
        }
    }
}
