//! The client as a machine: time, seed and what is heard go in, what is to be done comes out.
//!
//! Selecting → requesting → probing (is the address another's?) → bound → renewing → rebinding → bound, or lost and selecting.
//! There is no INIT-REBOOT: an agent that starts again goes on with the lease where it was, and one that ran out meanwhile is wished
//! for again in the DISCOVER.

use std::net::Ipv4Addr;

use super::{Lease, Terms};
use crate::model::Mac;

/// The first pause before a message is repeated, and the longest. RFC 2131 section 4.1 begins at 4 s; a pod's ADD has about ten.
const REPEAT_FIRST_MS: u64 = 1000;
const REPEAT_MOST_MS: u64 = 64_000;
/// How many times a chosen server is asked before others are looked for.
const REQUESTS: u32 = 3;
/// How long an answer to the probe is waited for. On one wire it comes in well under a millisecond; the whole ceremony of RFC 5227
/// would take seconds.
const PROBE_MS: u64 = 100;
/// The pause after the first refusal and the first address that was another's, and after more of them (RFC 2131 section 3.1.5 has
/// ten seconds, so that client and server do not run in circles).
const REFUSED_FIRST_MS: u64 = 1000;
const REFUSED_MS: u64 = 10_000;
/// Between renewals of a long lease (RFC 2131 section 4.4.5); of a short one a part of it.
const RENEWAL_LEAST_MS: u64 = 60_000;

/// What sort of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who gives addresses?
    Discover,
    /// I take this one, or keep it.
    Request,
    /// This one is another's already.
    Decline,
    /// I need it no more.
    Release,
}

/// How a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To all, from nobody: the pod has no address yet.
    Broadcast,
    /// To its server, from the pod's address.
    Server(Ipv4Addr),
    /// To all, from the pod's address.
    Rebind,
}

/// A message to servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// What sort.
    pub kind: Kind,
    /// The transaction.
    pub xid: u32,
    /// For how long the client has been trying, in seconds.
    pub secs: u16,
    /// The address that the client has.
    pub has: Option<Ipv4Addr>,
    /// The address that it asks for (option 50).
    pub asks_for: Option<Ipv4Addr>,
    /// The server that it means (option 54).
    pub server: Option<Ipv4Addr>,
    /// How it goes.
    pub way: Way,
}

/// A message of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It could give this.
    Offer(Terms),
    /// It gives this.
    Ack(Terms),
    /// It does not.
    Nak {
        /// The server, where it says so.
        server: Option<Ipv4Addr>,
        /// Its words.
        text: Option<String>,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Send(Message),
    /// Ask the wire who has this address.
    Probe(Ipv4Addr),
    /// The address is held on these terms, for the first time or again.
    Hold(Lease),
    /// The address may not be used any more; why.
    Lose(String),
    /// Something that a person should know.
    Note(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Selecting,
    Requesting { terms: Terms, server_mac: Option<Mac>, sent_ms: u64 },
    Probing(Lease),
    Bound(Lease),
    Renewing(Lease),
    Rebinding(Lease),
}

/// A client of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    state: State,
    /// The address that is wished for.
    wish: Option<Ipv4Addr>,
    /// State of the generator.
    seed: u64,
    xid: u32,
    began_ms: u64,
    due_ms: u64,
    /// Messages of this state sent so far.
    tries: u32,
    /// Refusals and addresses that were another's.
    refused: u32,
}

impl Client {
    /// One that has nothing and begins now.
    #[must_use]
    pub fn new(now_ms: u64, seed: u64, wish: Option<Ipv4Addr>) -> Self {
        let mut client = Self {
            state: State::Selecting,
            wish,
            seed,
            xid: 0,
            began_ms: now_ms,
            due_ms: now_ms,
            tries: 0,
            refused: 0,
        };
        client.begin(now_ms, now_ms);
        client
    }

    /// One that goes on with a lease, which may have run out meanwhile.
    #[must_use]
    pub fn resumed(now_ms: u64, seed: u64, lease: Lease) -> Self {
        let mut client = Self::new(now_ms, seed, None);
        client.bind(lease);
        client
    }

    /// When [`Client::tick`] has something to do.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// What its server has leased to it.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Probing(lease) | State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => {
                Some(lease)
            }
            State::Selecting | State::Requesting { .. } => None,
        }
    }

    /// The address whose owner is looked for.
    #[must_use]
    pub fn probed(&self) -> Option<Ipv4Addr> {
        match &self.state {
            State::Probing(lease) => Some(lease.terms.net.addr()),
            _ => None,
        }
    }

    /// Whether replies come from anywhere to an address that the pod does not have yet.
    #[must_use]
    pub fn is_unconfigured(&self) -> bool {
        matches!(self.state, State::Selecting | State::Requesting { .. } | State::Probing(_))
    }

    /// Whether an answer to a renewal is waited for.
    #[must_use]
    pub fn is_renewing(&self) -> bool {
        matches!(self.state, State::Renewing(_) | State::Rebinding(_))
    }

    /// The message that gives a lease back.
    #[must_use]
    pub fn release(lease: &Lease, xid: u32) -> Message {
        let server = lease.terms.server;
        Message {
            kind: Kind::Release,
            xid,
            secs: 0,
            has: Some(lease.terms.net.addr()),
            asks_for: None,
            server: Some(server),
            way: Way::Server(server),
        }
    }

    /// Does what time calls for.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.due_ms <= now_ms {
            match self.state.clone() {
                State::Selecting => {
                    let wish = self.wish;
                    actions.push(self.message(now_ms, Kind::Discover, |message| message.asks_for = wish));
                    self.due_ms = now_ms + self.repeat_ms();
                }
                State::Requesting { .. } if self.tries >= REQUESTS => self.begin(now_ms, now_ms),
                State::Requesting { terms, server_mac, .. } => {
                    let (addr, server) = (terms.net.addr(), terms.server);
                    actions.push(self.message(now_ms, Kind::Request, |message| {
                        message.asks_for = Some(addr);
                        message.server = Some(server);
                    }));
                    self.state = State::Requesting { terms, server_mac, sent_ms: now_ms };
                    self.due_ms = now_ms + self.repeat_ms();
                }
                State::Probing(lease) => {
                    actions.push(Action::Hold(lease.clone()));
                    self.bind(lease);
                }
                State::Bound(lease) => {
                    self.transact(now_ms);
                    self.state = State::Renewing(lease);
                }
                State::Renewing(lease) => match lease.renewals_ms() {
                    Some((_, rebinding_ms)) if now_ms < rebinding_ms => {
                        actions.push(self.renew(now_ms, &lease, Way::Server(lease.terms.server), rebinding_ms));
                    }
                    _ => {
                        let text =
                            format!("{} has not renewed the lease: every server is asked now", lease.terms.server);
                        actions.push(Action::Note(text));
                        self.tries = 0;
                        self.state = State::Rebinding(lease);
                    }
                },
                State::Rebinding(lease) => match lease.end_ms() {
                    Some(end_ms) if now_ms < end_ms => {
                        actions.push(self.renew(now_ms, &lease, Way::Rebind, end_ms));
                    }
                    _ => {
                        let text =
                            format!("the lease ran out: {} did not renew it, nor did another", lease.terms.server);
                        actions.push(Action::Lose(text));
                        self.wish = Some(lease.terms.net.addr());
                        self.begin(now_ms, now_ms);
                    }
                },
            }
        }
        actions
    }

    /// Takes in a reply to the transaction `xid`, which came in a frame of `from`.
    pub fn hear(&mut self, now_ms: u64, xid: u32, reply: &Reply, from: Option<Mac>) -> Vec<Action> {
        if xid != self.xid {
            return Vec::new();
        }
        match (self.state.clone(), reply) {
            (State::Selecting, Reply::Offer(terms)) => match terms.fault() {
                Some(fault) => vec![offer_fault(terms, fault)],
                None => {
                    self.state = State::Requesting { terms: terms.clone(), server_mac: from, sent_ms: now_ms };
                    (self.tries, self.due_ms) = (0, now_ms);
                    self.tick(now_ms)
                }
            },
            (State::Requesting { terms: offer, server_mac, sent_ms }, Reply::Ack(terms))
                if terms.server == offer.server =>
            {
                if let Some(fault) = terms.fault() {
                    return vec![offer_fault(terms, fault)];
                }
                let addr = terms.net.addr();
                let lease = Lease { terms: terms.clone(), begun_ms: sent_ms, server_mac: from.or(server_mac) };
                self.state = State::Probing(lease);
                self.due_ms = now_ms + PROBE_MS;
                vec![Action::Probe(addr)]
            }
            (State::Requesting { terms: offer, .. }, Reply::Nak { server, text })
                if server.is_none_or(|server| server == offer.server) =>
            {
                self.refuse(now_ms);
                let addr = offer.net.addr();
                vec![Action::Note(format!("{} offered {addr} and refused it then{}", offer.server, quoted(text)))]
            }
            (State::Renewing(lease) | State::Rebinding(lease), Reply::Ack(terms))
                if terms.net.addr() == lease.terms.net.addr() && terms.fault().is_none() =>
            {
                // The request that it answers was sent at the last try.
                let begun_ms = self.began_ms;
                let lease = Lease { terms: terms.clone(), begun_ms, server_mac: from.or(lease.server_mac) };
                self.bind(lease.clone());
                vec![Action::Hold(lease)]
            }
            (State::Renewing(lease) | State::Rebinding(lease), Reply::Nak { server, text })
                if self.is_rebinding() || server.is_none_or(|server| server == lease.terms.server) =>
            {
                let who = server.unwrap_or(lease.terms.server);
                self.refuse(now_ms);
                vec![Action::Lose(format!("{who} does not renew the lease{}", quoted(text)))]
            }
            _ => Vec::new(),
        }
    }

    /// Takes in that somebody else has an address.
    pub fn in_use(&mut self, now_ms: u64, addr: Ipv4Addr, by: Mac) -> Vec<Action> {
        let State::Probing(lease) = self.state.clone() else { return Vec::new() };
        if lease.terms.net.addr() != addr {
            return Vec::new();
        }
        let server = lease.terms.server;
        let decline = self.message(now_ms, Kind::Decline, |message| {
            message.asks_for = Some(addr);
            message.server = Some(server);
        });
        self.refuse(now_ms);
        vec![decline, Action::Note(format!("{server} gave {addr}, which {by} has already; it was declined"))]
    }

    fn is_rebinding(&self) -> bool {
        matches!(self.state, State::Rebinding(_))
    }

    /// A new transaction that looks for servers.
    fn begin(&mut self, now_ms: u64, due_ms: u64) {
        self.transact(now_ms);
        self.state = State::Selecting;
        self.due_ms = due_ms;
    }

    fn transact(&mut self, now_ms: u64) {
        // The upper half is the better one of this generator.
        self.xid = u32::try_from(self.random() >> 32).unwrap_or(0);
        (self.began_ms, self.tries) = (now_ms, 0);
    }

    fn refuse(&mut self, now_ms: u64) {
        let pause = if self.refused == 0 { REFUSED_FIRST_MS } else { REFUSED_MS };
        self.refused = self.refused.saturating_add(1);
        self.wish = None;
        self.begin(now_ms, now_ms + pause);
    }

    fn bind(&mut self, lease: Lease) {
        // A little before the time, each client another little: those that began together do not renew together.
        let early = lease.renewals_ms().map(|(renewal, _)| {
            let span = renewal.saturating_sub(lease.begun_ms);
            renewal - self.random() % (span / 16 + 1)
        });
        self.due_ms = early.unwrap_or(u64::MAX);
        self.refused = 0;
        self.state = State::Bound(lease);
    }

    fn renew(&mut self, now_ms: u64, lease: &Lease, way: Way, until_ms: u64) -> Action {
        let addr = lease.terms.net.addr();
        // From the last request on the lease counts.
        self.began_ms = now_ms;
        let request = self.message(now_ms, Kind::Request, |message| {
            message.has = Some(addr);
            message.way = way;
        });
        let least = RENEWAL_LEAST_MS.min(u64::from(lease.terms.lease_s) * 1000 / 32).max(1);
        self.due_ms = until_ms.min(now_ms + least.max((until_ms - now_ms) / 2));
        request
    }

    fn message(&mut self, now_ms: u64, kind: Kind, fill: impl FnOnce(&mut Message)) -> Action {
        let secs = u16::try_from((now_ms - self.began_ms) / 1000).unwrap_or(u16::MAX);
        let xid = self.xid;
        let mut message = Message { kind, xid, secs, has: None, asks_for: None, server: None, way: Way::Broadcast };
        fill(&mut message);
        self.tries += 1;
        Action::Send(message)
    }

    /// The pause before the next repetition: twice the last, an eighth more or less.
    fn repeat_ms(&mut self) -> u64 {
        let pause = (REPEAT_FIRST_MS << self.tries.saturating_sub(1).min(6)).min(REPEAT_MOST_MS);
        pause - pause / 8 + self.random() % (pause / 4)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn offer_fault(terms: &Terms, fault: &str) -> Action {
    Action::Note(format!("{} offers {}: {fault}", terms.server, terms.net))
}

fn quoted(text: &Option<String>) -> String {
    text.as_ref().map_or_else(String::new, |text| format!(": {text:?}"))
}
