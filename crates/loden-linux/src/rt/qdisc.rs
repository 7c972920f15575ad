//! The queueing discipline at a link's root as messages: a token bucket (`tbf`), with a queue that keeps waits short where the kernel
//! has one.

use loden_core::shape::Bucket;

use crate::error::LinuxError;
use crate::netlink::attr::{Attrs, Writer, text, u32_at, u64_at};
use crate::netlink::socket::{CREATE, ECHO, REPLACE, Socket};

/// `RTM_NEWQDISC`.
pub const NEW: u16 = 36;
/// `RTM_DELQDISC`.
pub const DEL: u16 = 37;
/// `RTM_GETQDISC`.
pub const GET: u16 = 38;

/// What marks a discipline as loden's: the major number 76 (`4c:` in the output of `tc`).
pub const HANDLE: u32 = 76 << 16;
/// `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;
/// Length of `struct tcmsg`.
const INFO: usize = 20;
/// Length of `struct tc_tbf_qopt`, and where its members are.
const QOPT: usize = 36;
const QOPT_RATE: usize = 8;
const QOPT_LIMIT: usize = 24;
const QOPT_BUFFER: usize = 28;
/// `TC_LINKLAYER_ETHERNET`: the kernel reckons by itself and asks for no table of times.
const ETHERNET: u8 = 1;

/// `TCA_*`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// `TCA_TBF_*`.
const PARMS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TCA_FQ_CODEL_*`.
const TARGET: u16 = 1;
const INTERVAL: u16 = 3;

/// What is at a link's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its kind.
    pub kind: String,
    /// Its handle; that of loden's is [`HANDLE`].
    pub handle: u32,
    /// Of a token bucket: bytes a second, the limit in bytes and the burst in ticks.
    pub bucket: Option<(u64, u32, u32)>,
}

impl Seen {
    /// Whether loden made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.handle == HANDLE && self.kind == "tbf"
    }
}

/// Puts a token bucket at the root of a link, or changes the one that loden put there. Another's is refused with EEXIST
/// (`tc_modify_qdisc`, net/sched/sch_api.c).
pub fn put(w: &mut Writer, index: u32, bucket: &Bucket) {
    w.begin(NEW, CREATE);
    w.raw(&info(index, HANDLE, ROOT));
    w.text(KIND, "tbf");
    let options = w.nest(OPTIONS);
    let mut qopt = [0; QOPT];
    qopt[1] = ETHERNET;
    let mut set = |at: usize, value: u32| qopt[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    set(QOPT_RATE, u32::try_from(bucket.rate).unwrap_or(u32::MAX));
    set(QOPT_LIMIT, bucket.limit);
    set(QOPT_BUFFER, bucket.burst_ticks());
    w.bytes(PARMS, &qopt);
    if bucket.rate > u64::from(u32::MAX) {
        w.bytes(RATE64, &bucket.rate.to_ne_bytes());
    }
    // The burst to the byte: ticks are too coarse at a high rate.
    w.u32(BURST, bucket.burst);
    w.close(options);
    w.end();
}

/// Puts a queue into the bucket that gives each flow its turn and drops what has waited too long (fq_codel, RFC 8290), in the place of
/// a plain one.
pub fn put_fair_queue(w: &mut Writer, index: u32, bucket: &Bucket) {
    w.begin(NEW, CREATE | REPLACE);
    w.raw(&info(index, 0, HANDLE | 1));
    w.text(KIND, "fq_codel");
    let options = w.nest(OPTIONS);
    w.u32(TARGET, bucket.target_us);
    // Its interval is 100 ms, and always well above the target (RFC 8289 section 4.4).
    w.u32(INTERVAL, bucket.target_us.saturating_mul(4).max(100_000));
    w.close(options);
    w.end();
}

/// Takes what is at the root of a link away; the link has its usual discipline then.
pub fn delete(w: &mut Writer, index: u32) {
    w.begin(DEL, 0);
    w.raw(&info(index, HANDLE, ROOT));
    w.end();
}

/// Reads what is at the root of a link; `None` for one without a queue, as virtual links are by themselves.
///
/// # Errors
/// [`LinuxError`].
pub fn read(socket: &mut Socket, index: u32) -> Result<Option<Seen>, LinuxError> {
    let mut w = Writer::default();
    // The answer is a notification: without this it goes to those alone who listen (`qdisc_notify`, net/sched/sch_api.c).
    w.begin(GET, ECHO);
    w.raw(&info(index, 0, ROOT));
    w.end();
    let mut found = None;
    let results = socket.batch_with_echo(&mut w, |_, message| found = parse(message.payload))?;
    match results.into_iter().collect::<Result<(), _>>() {
        Ok(()) => Ok(found.filter(|seen| seen.handle != 0)),
        // What the kernel has made by itself is not told of.
        Err(error) if [libc::ENOENT, libc::EINVAL].contains(&error.errno()) => Ok(None),
        Err(error) => Err(error.renamed("the queueing discipline")),
    }
}

/// Reads the payload of `RTM_NEWQDISC`.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Seen> {
    let attrs = Attrs::behind(payload, INFO);
    let kind = attrs.find(KIND).and_then(text)?.to_owned();
    let bucket = attrs.find(OPTIONS).filter(|_| kind == "tbf").and_then(|options| {
        let options = Attrs::new(options);
        let qopt = options.find(PARMS)?;
        let rate = options.find(RATE64).and_then(|bytes| u64_at(bytes, 0));
        Some((rate.or(u32_at(qopt, QOPT_RATE).map(u64::from))?, u32_at(qopt, QOPT_LIMIT)?, u32_at(qopt, QOPT_BUFFER)?))
    });
    Some(Seen { kind, handle: u32_at(payload, 8)?, bucket })
}

/// `struct tcmsg`.
fn info(index: u32, handle: u32, parent: u32) -> [u8; INFO] {
    let mut bytes = [0; INFO];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes
}
