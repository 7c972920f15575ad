//! Who computes the checksums of packets inside a tunnel: the network card, as the kernel leaves it to it, or this host, where what
//! comes of that is wrong (63 seconds of silence, pods that answer to ping and to nothing else).
//!
//! It is tried by pairs of datagrams to a closed port of a peer that differ in one thing: the kernel has computed the one's checksum
//! itself, and left the other's to the device. The peer's kernel answers both that nobody listens, whatever program runs there, if it
//! has got them whole; it computes the checksum of that answer itself, so that nothing hangs on the peer's own card. Answers to the
//! one kind and never to the other mean that the card leaves checksums wrong; no answer to either means nothing at all. Only then
//! is the device changed, and it stays so only if the other kind is answered now.
//!
//! [`Test`] is the machine of one device. It opens nothing and reads no clock: who drives it does what [`Test::next`] says.

mod targets;
mod verdict;

pub use targets::devices;
pub use verdict::Verdict;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{IfName, NodeName};

/// How often in a row the one is to be answered and the other not.
const PAIRS: u32 = 3;
/// After so many pairs without any answer another peer is asked.
const SILENT: u32 = 2;
/// The marks that packets are tried with: none, and the one by which kube-proxy has packets masqueraded. The tunnel's packet has it as
/// well, and until Linux 5.7 its translation spoiled the outer checksum of what had an inner one to be computed yet.
const MARKS: [u32; 2] = [0, 0x4000];
/// A port that nobody listens on: the first of traceroute's, which every pair is one beyond.
const PORT: u16 = 33434;
/// When no peer has answered: the first pause, in ms, and the longest.
const PAUSE_FIRST: u64 = 5_000;
const PAUSE_MOST: u64 = 600_000;

/// Who computes a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The network card, or what the kernel takes for one.
    Card,
    /// This host.
    Host,
}

/// A peer that may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub node: NodeName,
    /// An address of its own inside the tunnel.
    pub addr: IpAddr,
}

/// What there is of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    /// Its number: another one is another device.
    pub number: u32,
    /// The link that its packets leave by.
    pub underlay: Option<IfName>,
    /// Who computes the checksums of what is sent by it.
    pub by: By,
    /// Peers that are reached by it, in the order in which they are asked.
    pub targets: Vec<Target>,
}

/// A datagram that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// To whom.
    pub addr: IpAddr,
    /// To which port.
    pub port: u16,
    /// With which mark.
    pub mark: u32,
    /// Whether its checksum is left to the device.
    pub by: By,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send it, and say by [`Test::answered`] whether there was an answer.
    Probe(Probe),
    /// Have the device leave checksums to the card or not, and say by [`Test::was_set`] whether it does.
    Set(By),
    /// Nothing before this time, in ms.
    Wait(u64),
    /// Nothing before the next [`Test::look`].
    Rest,
}

/// The test of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    there: There,
    state: State,
    verdict: Verdict,
    /// Which of the targets is asked, counted on.
    turn: usize,
    pause_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// It is known, or somebody else has decided.
    Resting,
    Waiting(u64),
    Asking(Question),
    /// What it takes is to be set.
    Remedying(Question),
    /// It has been set: does it help?
    Confirming(Question),
    /// It did not help the question, or has to be found out anew.
    PuttingBack(Option<Question>),
}

/// How far it has got with one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    target: Target,
    /// Which of the marks.
    mark: usize,
    /// Whose datagram is next.
    by: By,
    /// How many pairs there have been.
    pairs: u32,
    /// Of them, those of which only the host's was answered, and those of which none was.
    lost: u32,
    silent: u32,
}

impl Question {
    fn new(target: Target, mark: usize) -> Self {
        Self { target, mark, by: By::Card, pairs: 0, lost: 0, silent: 0 }
    }

    fn probe(&self) -> Probe {
        Probe { addr: self.target.addr, port: PORT + self.pairs as u16, mark: MARKS[self.mark], by: self.by }
    }
}

impl Test {
    /// Of a device that has not been looked at before.
    #[must_use]
    pub fn new(there: There) -> Self {
        let state = State::Resting;
        let mut test = Self { there, state, verdict: Verdict::Untried, turn: 0, pause_ms: PAUSE_FIRST };
        test.begin(false);
        test
    }

    /// What is known.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Takes in what there is now. What was found out holds for the device, the way its packets leave, and as long as nobody
    /// else sets who computes.
    pub fn look(&mut self, there: There) {
        let was = std::mem::replace(&mut self.there, there);
        let is_same = |of: &There| (of.number, of.underlay, of.by);
        if is_same(&was) != is_same(&self.there) {
            let is_its_own = matches!(self.state, State::Confirming(_)) || matches!(self.verdict, Verdict::Host { .. });
            self.begin(is_its_own && (was.number, was.by) == (self.there.number, self.there.by));
        } else if was.targets.is_empty() && matches!(self.state, State::Waiting(_)) {
            self.state = State::Waiting(0);
        }
    }

    /// `is_own`: the device is set as this test has set it.
    fn begin(&mut self, is_own: bool) {
        (self.turn, self.pause_ms) = (0, PAUSE_FIRST);
        (self.state, self.verdict) = match self.there.by {
            By::Card => (State::Waiting(0), Verdict::Untried),
            By::Host if is_own => (State::PuttingBack(None), Verdict::Untried),
            By::Host => (State::Resting, Verdict::Found),
        };
    }

    /// What is to be done.
    pub fn next(&mut self, now_ms: u64) -> Step {
        if let State::Waiting(until) = self.state {
            if self.there.targets.is_empty() {
                return Step::Rest;
            }
            if now_ms < until {
                return Step::Wait(until);
            }
            let target = self.there.targets[self.turn % self.there.targets.len()].clone();
            self.state = State::Asking(Question::new(target, 0));
        }
        match &self.state {
            State::Resting | State::Waiting(_) => Step::Rest,
            State::Asking(question) | State::Confirming(question) => Step::Probe(question.probe()),
            State::Remedying(_) => Step::Set(By::Host),
            State::PuttingBack(_) => Step::Set(By::Card),
        }
    }

    /// Takes in whether the datagram was answered.
    pub fn answered(&mut self, is_answered: bool, now_ms: u64) {
        match std::mem::replace(&mut self.state, State::Resting) {
            State::Asking(question) => self.go_on(question, is_answered, now_ms),
            State::Confirming(question) if is_answered => {
                let (peer, is_marked) = (question.target.node, MARKS[question.mark] != 0);
                self.verdict = Verdict::Host { peer, is_marked };
            }
            State::Confirming(mut question) => {
                question.pairs += 1;
                // As often again as before it was set.
                let is_over = question.pairs == 2 * PAIRS;
                self.state = if is_over { State::PuttingBack(Some(question)) } else { State::Confirming(question) };
            }
            other => self.state = other,
        }
    }

    fn go_on(&mut self, mut question: Question, is_answered: bool, now_ms: u64) {
        match (question.by, is_answered) {
            (By::Card, true) if question.mark + 1 < MARKS.len() => {
                question = Question::new(question.target, question.mark + 1);
            }
            (By::Card, true) => return self.verdict = Verdict::Card { peer: question.target.node },
            (By::Card, false) => question.by = By::Host,
            (By::Host, _) => {
                question.by = By::Card;
                question.pairs += 1;
                if is_answered {
                    question.lost += 1;
                } else {
                    question.silent += 1;
                }
                if question.silent == SILENT {
                    return self.give_up(question, now_ms);
                }
                if question.lost == PAIRS {
                    return self.state = State::Remedying(question);
                }
            }
        }
        self.state = State::Asking(question);
    }

    /// Nothing can be concluded from this peer. One that has answered the plain datagrams has said enough, if it takes no marked ones.
    fn give_up(&mut self, question: Question, now_ms: u64) {
        let peer = question.target.node;
        if question.mark > 0 {
            self.verdict = Verdict::Card { peer };
            return;
        }
        self.verdict = Verdict::Undecided { peer };
        self.turn += 1;
        // All of them: later it may be otherwise.
        let is_round = self.turn >= self.there.targets.len();
        self.state = State::Waiting(if is_round { self.pause(now_ms) } else { now_ms });
    }

    fn pause(&mut self, now_ms: u64) -> u64 {
        self.turn = 0;
        let until = now_ms + self.pause_ms;
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MOST);
        until
    }

    /// Takes in whether the device could be set; if not, why.
    pub fn was_set(&mut self, result: Result<(), String>, now_ms: u64) {
        match (std::mem::replace(&mut self.state, State::Resting), result) {
            (State::Remedying(question), Ok(())) => {
                self.there.by = By::Host;
                let question = Question { by: By::Card, pairs: PAIRS, ..question };
                self.state = State::Confirming(question);
            }
            (State::PuttingBack(question), Ok(())) => {
                self.there.by = By::Card;
                match question {
                    Some(question) => self.give_up(question, now_ms),
                    None => self.state = State::Waiting(now_ms),
                }
            }
            (State::Remedying(question), Err(cause)) => {
                self.verdict = Verdict::Stuck { peer: Some(question.target.node), cause };
                self.state = State::Waiting(self.pause(now_ms));
            }
            (State::PuttingBack(_), Err(cause)) => self.verdict = Verdict::Stuck { peer: None, cause },
            (other, _) => self.state = other,
        }
    }
}

#[cfg(test)]
mod tests;
