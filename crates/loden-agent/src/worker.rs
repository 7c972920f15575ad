//! The kernel's side: a thread that owns the reconciler, gathers what comes in, and runs rounds.
//!
//! The first thing after a quiet spell is acted on at once; what follows within the gathering time is taken together. Nothing
//! here waits for the datastore. A round with failures is repeated with growing pauses.

mod plugin;
mod questions;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use loden_core::api::{BlockWish, Event as ApiEvent, Ipam, PlanReply, Status, TunnelStatus};
use loden_core::kernel::{Event, Key, Object};
use loden_core::model::{AttachmentKey, IfName, PerFamily};
use loden_core::view::{Local, Problem};
use loden_linux::clock::boot_ms;
use loden_linux::misses::Miss;
use loden_linux::nft::Ownership;
use loden_linux::nft::former::Former;
use loden_linux::run_dir::RunDir;
use loden_linux::{LinuxKernel, veth};
use tokio::sync::{oneshot, watch};

use crate::blocks::Blocks;
use crate::cluster::{ClusterHealth, News, Outward};
use crate::dhcp;
use crate::host::Host;
use crate::ledger::Attached;
use crate::metrics::{Metrics, SortLabel};
use crate::misses::HeldBack;
use crate::offload;
use crate::reconcile::Reconciler;
use crate::status::{self, Around};
use crate::subnet_file::SubnetFile;
use crate::underlay::Finder;
use questions::Questions;

/// Between rounds while things keep coming in.
const GATHER: Duration = Duration::from_millis(20);
/// From the first thing to the round: what comes in the same breath is taken along.
const BREATH: Duration = Duration::from_millis(1);
/// Pauses after failures. The first is short: mostly something was changing under the plan's hands.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Parked veths are deleted together: one deletion costs the kernel a grace period, a hundred at once not much more.
const REAP_EVERY: Duration = Duration::from_millis(50);

/// How long after a change of the plugin's table it is looked at: mostly the plugin itself has changed it, and more follows.
const PORTS_AFTER: Duration = Duration::from_millis(50);

/// How many messages are taken along at most before the kernel is answered.
const TAKEN_ALONG: usize = 64;
/// How long after a change devices are looked at for who computes their checksums: the other end has to hear of it as well.
const OFFLOAD_AFTER: Duration = Duration::from_millis(500);

/// How long after an unfinished attachment was seen it is looked whether its ADD still lives.
const SWEEP_AFTER: Duration = Duration::from_secs(1);

/// What is done while sysctls cannot be listened to.
const INSTEAD: &str = "they are looked at every second instead";

/// What comes in.
#[derive(Debug)]
pub enum Inbox {
    /// From the store.
    News(News),
    /// From the kernel.
    Kernel(Event),
    /// What the kernel asks for.
    Asked(Vec<Miss>),
    /// From the plugin.
    Attached(Attached),
    /// From the leases of DHCP servers.
    Dhcp(dhcp::News),
    /// From the test of checksums.
    Offload(offload::News),
    /// From the API.
    Ask(Question),
    /// The agent stops.
    Stop,
}

/// What the API asks.
#[derive(Debug)]
pub enum Question {
    /// The whole status.
    Status(oneshot::Sender<Status>),
    /// The tunnels alone.
    Tunnels(oneshot::Sender<Vec<TunnelStatus>>),
    /// What a round would do.
    Plan(oneshot::Sender<Result<PlanReply, String>>),
    /// Events behind a number.
    Events(u64, oneshot::Sender<Vec<ApiEvent>>),
    /// Who has which address.
    Ipam(oneshot::Sender<Ipam>),
    /// A further block, for a pod that waits: answered when there is one, or why there is none.
    Wish(BlockWish, oneshot::Sender<Result<(), String>>),
}

/// What the worker works with.
pub struct Worker {
    /// What comes in.
    pub inbox: Receiver<Inbox>,
    /// What is known of this host.
    pub local: Local,
    /// Finds the external interface.
    pub finder: Finder,
    /// `/run/loden`.
    pub run_dir: RunDir,
    /// How often everything is looked at again.
    pub resync: Duration,
    /// How long a block stays empty before it is given back; zero: it is kept.
    pub block_idle: Duration,
    /// What has been reached.
    pub outward: watch::Sender<Outward>,
    /// How the store's side is.
    pub cluster: watch::Receiver<ClusterHealth>,
    /// The store's address.
    pub store_url: String,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// When the loop last turned, for `/healthz`.
    pub pulse: Arc<Mutex<Instant>>,
    /// Told once, when the node can serve pods for the first time.
    pub on_ready: Option<oneshot::Sender<()>>,
    /// flannel's `subnet.env`, where it is asked for.
    pub subnet_file: Option<SubnetFile>,
    /// Where the test of checksums hears of devices; `None`: there is no test.
    pub offload: Option<Sender<offload::Look>>,
    /// The external interface's name, for the monitor.
    pub underlay_name: Arc<Mutex<Option<IfName>>>,
    /// How long an answer stays that the kernel has asked for.
    pub flow_age: Duration,
    /// Questions of the kernel's that have not come here.
    pub held_back: Arc<HeldBack>,
}

/// What the loop keeps in mind.
struct Loop {
    around: Around,
    /// When the first thing came in that no round has taken yet.
    waiting_since: Option<Instant>,
    last_round: Option<Instant>,
    retry: Option<(Instant, Duration)>,
    next_resync: Instant,
    reap: Option<Instant>,
    /// When to look for what killed ADDs left.
    sweep: Option<Instant>,
    /// Attachments that had no pod any more when everything was last looked at.
    abandoned: BTreeSet<AttachmentKey>,
    /// When to look at the plugin's table.
    tables: Option<Instant>,
    /// Whether to look for rules of flanneld's once loden's own are there.
    seeks_former_rules: bool,
    former: Option<Former>,
    is_underlay_stale: bool,
    blocks: Blocks,
    /// When to tell the test of checksums what there is.
    offload: Option<Instant>,
    /// When peers are to be forgotten by tunnels.
    tunnels: Option<Instant>,
    questions: Questions,
}

impl Worker {
    /// Runs until told to stop. The kernel is left as it is.
    pub fn run(mut self, kernel: Host) {
        let mut reconciler = Reconciler::new(kernel, self.local.clone());
        let mut state = Loop {
            around: Around { store_url: self.store_url.clone(), ..Around::default() },
            waiting_since: None,
            last_round: None,
            retry: None,
            next_resync: Instant::now() + self.resync,
            // What a former agent left parked is reaped at once.
            reap: Some(Instant::now()),
            sweep: Some(Instant::now()),
            abandoned: BTreeSet::new(),
            tables: Some(Instant::now()),
            seeks_former_rules: self.subnet_file.is_some(),
            former: None,
            is_underlay_stale: true,
            blocks: Blocks::default(),
            offload: None,
            tunnels: None,
            questions: Questions::default(),
        };
        reconciler.set_flow_age(u64::try_from(self.flow_age.as_millis()).unwrap_or(u64::MAX));
        loop {
            if let Ok(mut pulse) = self.pulse.lock() {
                *pulse = Instant::now();
            }
            let due = self.due(&state);
            let message = match due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
                // The pulse has to be felt even when nothing comes in.
                Some(wait) => self.inbox.recv_timeout(wait.min(Duration::from_secs(1))),
                None => self.inbox.try_recv().map_err(|_| RecvTimeoutError::Timeout),
            };
            let mut next = match message {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => None,
            };
            // What has come while the kernel waited is taken along.
            for _ in 0..TAKEN_ALONG {
                match next.take() {
                    Some(Inbox::Stop) => return,
                    Some(message) => {
                        if self.take_in(message, &mut reconciler, &mut state) {
                            state.waiting_since.get_or_insert_with(Instant::now);
                        }
                    }
                    None => break,
                }
                next = if state.questions.is_asked { self.inbox.try_recv().ok() } else { None };
            }
            if Instant::now() >= self.due(&state) {
                self.work(&mut reconciler, &mut state);
            }
        }
    }

    /// When there is something to do next.
    fn due(&self, state: &Loop) -> Instant {
        let gathered = state.waiting_since.map(|since| {
            let earliest = state.last_round.map_or(since, |last| last + GATHER);
            earliest.max(since + BREATH)
        });
        let retry = state.retry.map(|(at, _)| at);
        let asked = state.waiting_since.filter(|_| state.questions.is_asked);
        [
            asked,
            gathered,
            retry,
            state.reap,
            state.sweep,
            state.tables,
            state.offload,
            state.tunnels,
            state.blocks.due(),
            state.questions.end,
        ]
        .into_iter()
        .flatten()
        .fold(state.next_resync, Instant::min)
    }

    /// Takes in what the store's side says; says whether it calls for a round.
    fn take_in_news(news: News, reconciler: &mut Reconciler<Host>, state: &mut Loop) -> bool {
        let before = asked(reconciler);
        let is_due = match news {
            News::Listing(entries) => {
                reconciler.listing(&entries);
                true
            }
            News::Remembered(entries) => {
                reconciler.remembered(&entries);
                true
            }
            News::Changes(changes) => {
                changes.iter().for_each(|change| reconciler.record(change));
                reconciler.is_due()
            }
            News::Terms(terms) => {
                state.blocks.set_terms(terms);
                false
            }
            News::Event(object, text) => {
                reconciler.events.push("view", &object, text);
                false
            }
        };
        let is_asked = asked(reconciler) != before;
        state.is_underlay_stale |= is_asked;
        is_due || is_asked
    }

    /// Takes in one message; says whether it calls for a round.
    fn take_in(&mut self, message: Inbox, reconciler: &mut Reconciler<Host>, state: &mut Loop) -> bool {
        match message {
            Inbox::News(news) => Self::take_in_news(news, reconciler, state),
            Inbox::Kernel(Event::Parked) => {
                state.reap.get_or_insert_with(|| Instant::now() + REAP_EVERY);
                false
            }
            Inbox::Kernel(Event::PodTables) => {
                state.tables.get_or_insert_with(|| Instant::now() + PORTS_AFTER);
                false
            }
            Inbox::Kernel(Event::Underlay) => {
                state.is_underlay_stale = true;
                true
            }
            Inbox::Kernel(event) => {
                // Who computes checksums is told like this as well, though the report does not have it.
                if matches!(&event, Event::Seen(Key::Link(_), Object::Link(link)) if link.kind.is_kernels_tunnel()) {
                    state.offload.get_or_insert_with(|| Instant::now() + OFFLOAD_AFTER);
                }
                if event == Event::Overrun {
                    state.reap.get_or_insert_with(|| Instant::now() + REAP_EVERY);
                }
                reconciler.kernel_event(event)
            }
            Inbox::Asked(misses) => self.take_in_questions(&misses, reconciler, state),
            Inbox::Attached((attachments, unreadable)) => {
                state.around.host.retain(|problem| problem.subject != "attachments");
                state.around.host.extend(unreadable.iter().map(|error| Problem::new("attachments", error.to_string())));
                if attachments.values().any(|attachment| !attachment.complete) {
                    state.sweep.get_or_insert_with(|| Instant::now() + SWEEP_AFTER);
                }
                reconciler.attachments(attachments);
                reconciler.is_due()
            }
            Inbox::Dhcp(dhcp::News::Event(object, text)) => {
                reconciler.events.push("dhcp", &object, text);
                false
            }
            Inbox::Dhcp(dhcp::News::Problems(problems)) => {
                state.around.leases = problems;
                false
            }
            Inbox::Offload(offload::News::Event(dev, text)) => {
                reconciler.events.push("offload", &format!("link {dev}"), text);
                false
            }
            Inbox::Offload(offload::News::Verdicts(verdicts)) => {
                self.metrics.checksums(&verdicts);
                state.around.checksums = verdicts;
                false
            }
            Inbox::Ask(question) => {
                self.answer(question, reconciler, state);
                false
            }
            Inbox::Stop => false,
        }
    }

    /// Does what is due.
    fn work(&mut self, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        let now = Instant::now();
        if state.reap.is_some_and(|at| at <= now) {
            state.reap = None;
            if let Err(error) = veth::reap() {
                tracing::warn!(%error, "parked veths cannot be deleted; it is tried again at the next one");
            }
        }
        if state.sweep.is_some_and(|at| at <= now) {
            state.sweep = None;
            self.sweep(reconciler);
        }
        if state.tables.is_some_and(|at| at <= now) {
            state.tables = None;
            self.repair_tables(reconciler);
        }
        if state.offload.is_some_and(|at| at <= now) {
            state.offload = None;
            self.look_at_offload(reconciler);
        }
        if state.tunnels.is_some_and(|at| at <= now) {
            reconciler.kernel().tunnels().forget(now);
            state.tunnels = reconciler.kernel().tunnels().due();
        }
        if state.blocks.due().is_some_and(|at| at <= now) {
            self.look_at_blocks(reconciler, state);
        }
        if state.next_resync <= now {
            // A tenth more or less, by the clock's own noise, so that nodes do not move in step.
            let noise = now.elapsed().subsec_nanos() % 200;
            state.next_resync = now + self.resync * (900 + noise) / 1000;
            state.is_underlay_stale = true;
            state.sweep.get_or_insert(now);
            state.tables.get_or_insert(now);
            state.offload.get_or_insert(now);
            state.seeks_former_rules = self.subnet_file.is_some();
            self.collect_abandoned(reconciler, state);
            reconciler.resync();
            state.waiting_since.get_or_insert(now);
        }
        self.end_answers(now, reconciler, state);
        self.work_on_kernel(now, reconciler, state);
        self.plan_end(reconciler, state);
    }

    /// Has the kernel follow, if something calls for it.
    fn work_on_kernel(&mut self, now: Instant, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        let is_retry = state.retry.is_some_and(|(at, _)| at <= now);
        if state.waiting_since.is_none() && !is_retry {
            return;
        }
        if std::mem::take(&mut state.is_underlay_stale) {
            self.find_underlay(reconciler, state);
        }
        let is_asked = std::mem::take(&mut state.questions.is_asked);
        if !reconciler.is_due() && !is_retry {
            state.waiting_since = None;
            return;
        }
        if is_retry {
            reconciler.retry();
        }
        let has_flows_alone = reconciler.has_flows_alone();
        let began = Instant::now();
        reconciler.tick(boot_ms());
        let round = reconciler.round();
        let took = began.elapsed();
        // The first finds what a former agent has made.
        if round.done > 0 || state.last_round.is_none() {
            state.offload.get_or_insert_with(|| Instant::now() + OFFLOAD_AFTER);
        }
        if let Some(since) = state.waiting_since.take()
            && !is_asked
        {
            self.metrics.store_lag.observe(since.elapsed().as_secs_f64());
        }
        state.last_round = Some(Instant::now());
        state.retry = match state.retry {
            _ if round.failed == 0 => None,
            // Rounds that other changes call for neither put the next try off nor bring it nearer.
            Some(planned) if !is_retry => Some(planned),
            former => {
                let pause = former.map_or(RETRY_FIRST, |(_, pause)| (pause * 2).min(RETRY_MOST));
                Some((Instant::now() + pause, pause))
            }
        };
        state.around.last_round_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.metrics.round(&round, took, Duration::from_millis(reconciler.events.uptime_ms()));
        self.metrics.flows.set(i64::try_from(reconciler.view().count_flows()).unwrap_or(i64::MAX));
        if has_flows_alone && round.failed == 0 {
            return;
        }
        if state.seeks_former_rules {
            remove_former_rules(reconciler, state);
        }
        self.tell(reconciler, state);
    }

    fn find_underlay(&mut self, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        state.around.host.retain(|problem| problem.subject != "the external interface");
        let underlay = match self.finder.find(asked(reconciler)) {
            Ok(underlay) => Some(underlay),
            Err(problem) => {
                state.around.host.push(problem);
                // What there is goes on; it is used again as soon as it is back.
                self.local.underlay.clone()
            }
        };
        if underlay != self.local.underlay {
            if let Some(underlay) = &underlay {
                let text = format!(
                    "MTU {}, {}",
                    underlay.mtu,
                    underlay.addresses.iter().map(|(_, a)| a.to_string()).collect::<Vec<_>>().join(" ")
                );
                reconciler.events.push("view", &format!("external interface {}", underlay.ifname), text);
            }
            self.local.underlay = underlay;
            state.offload.get_or_insert_with(|| Instant::now() + OFFLOAD_AFTER);
            if let Ok(mut name) = self.underlay_name.lock() {
                *name = self.local.underlay.as_ref().map(|underlay| underlay.ifname);
            }
            reconciler.local(self.local.clone());
        }
    }

    /// Tells the test of checksums which devices there are, and who is reached by them.
    fn look_at_offload(&mut self, reconciler: &Reconciler<Host>) {
        let Some(offload) = &self.offload else { return };
        let underlay = self.local.underlay.as_ref().map(|underlay| underlay.ifname);
        let devices = loden_core::offload::devices(reconciler.view(), reconciler.desired());
        // A thread that has ended has logged why.
        let _ = offload.send(offload::Look { underlay, devices });
    }

    /// Tells the cluster, the plugin and the metrics what has been reached.
    fn tell(&mut self, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        state.tunnels = reconciler.kernel().tunnels().due();
        self.serve_pods(reconciler, state);
        let (writes, repairs, _) = reconciler.counts();
        for (family, counts) in [(&self.metrics.writes, writes), (&self.metrics.repairs, repairs)] {
            for (sort, count) in counts {
                let counter = family.get_or_create(&SortLabel { sort: sort.name().to_owned() });
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.wanted.set(gauge(reconciler.desired().map().count_desired()));
        self.metrics.pending.set(gauge(status::pending(reconciler)));
        self.metrics.peers.set(gauge(reconciler.view().nodes.len().saturating_sub(1)));
        state.around.nft_ownership = match reconciler.kernel().linux().nft().ownership() {
            Ownership::Owned => "owned".to_owned(),
            Ownership::Shared => "shared: this kernel has no owned tables; foreign changes are repaired".to_owned(),
        };
        self.refresh(reconciler, state);
        if status::is_ready(reconciler, &state.around)
            && let Some(on_ready) = self.on_ready.take()
        {
            // The services' side may be gone already when the agent stops at once.
            let _ = on_ready.send(());
        }
    }

    fn refresh(&mut self, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        state.around.host.retain(|problem| problem.subject != "sysctls");
        let deafness = reconciler.kernel().linux().deafness();
        state.around.host.extend(deafness.map(|error| Problem::new("sysctls", format!("{error}; {INSTEAD}"))));
        state.around.cluster = self.cluster.borrow_and_update().clone();
        self.metrics.store_up.set(i64::from(state.around.cluster.up));
        self.metrics.store_revision.set(i64::try_from(state.around.cluster.revision).unwrap_or(i64::MAX));
    }

    fn answer(&mut self, question: Question, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        self.refresh(reconciler, state);
        // An asker that has gone away does not want the answer.
        match question {
            Question::Status(answer) => {
                state.around.tunnels = reconciler.kernel().tunnels().status();
                state.around.misses = self.misses(reconciler, &state.questions);
                drop(answer.send(status::status(reconciler, &state.around)));
            }
            Question::Tunnels(answer) => {
                state.around.tunnels = reconciler.kernel().tunnels().status();
                drop(answer.send(status::tunnels(reconciler, &state.around)));
            }
            Question::Events(after, answer) => drop(answer.send(reconciler.events.after(after))),
            Question::Wish(wish, answer) => state.blocks.wish(wish, answer),
            Question::Ipam(answer) => drop(answer.send(status::ipam(reconciler.view()))),
            Question::Plan(answer) => {
                let reply = reconciler.dry_run().map_err(|error| error.to_string()).map(|plan| PlanReply {
                    steps: plan.steps.len(),
                    refused: plan.refused.len(),
                    text: plan.to_string(),
                });
                drop(answer.send(reply));
            }
        }
    }
}

/// The addresses that this node's record asks for.
fn asked(reconciler: &Reconciler<Host>) -> PerFamily<IpAddr> {
    let view = reconciler.view();
    view.nodes.get(&view.local.node).map(|node| node.asked).unwrap_or_default()
}

/// Takes away the rules that flanneld left on a node that has changed hands, once there are others.
fn remove_former_rules(reconciler: &mut Reconciler<Host>, state: &mut Loop) {
    let map = reconciler.desired().map();
    let has_rules = match (map.desired(&Key::Nft), map.actual(&Key::Nft)) {
        (Some(wanted), Some(actual)) => wanted.object.is_met_by(actual),
        _ => false,
    };
    if !has_rules {
        return;
    }
    state.seeks_former_rules = false;
    let removed = match &mut state.former {
        Some(former) => former.remove(),
        None => Former::open().and_then(|former| state.former.insert(former).remove()),
    };
    match removed {
        Ok(gone) => gone.iter().for_each(|what| {
            let text = "flanneld left it, and this agent has taken its place: it is removed".to_owned();
            tracing::info!("{what}: {text}");
            reconciler.events.push("takeover", what, text);
        }),
        Err(error) => tracing::warn!(%error, "what flanneld left of rules cannot be removed; it is tried again"),
    }
}

/// Listens to the kernel in a thread of its own and fills the inbox.
///
/// # Errors
/// [`loden_linux::LinuxError`] when the sockets cannot be opened.
pub fn listen(
    kernel: &mut LinuxKernel,
    inbox: Sender<Inbox>,
    underlay: Arc<Mutex<Option<IfName>>>,
) -> Result<(), loden_linux::LinuxError> {
    let mut monitor = loden_linux::monitor::Monitor::open(kernel)?;
    let work = move || {
        loop {
            let name = underlay.lock().ok().and_then(|name| *name);
            let mut is_open = true;
            let waited = monitor.wait(None, name, |event| is_open &= inbox.send(Inbox::Kernel(event)).is_ok());
            if !is_open {
                return;
            }
            if let Err(error) = waited {
                tracing::error!(%error, "the kernel cannot be listened to; everything is looked at again by the timer");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    };
    let spawned = std::thread::Builder::new().name("monitor".to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| loden_linux::LinuxError::system("thread for the monitor", error))
}
