//! Metrics, in the OpenMetrics text form.

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::time::Duration;

use loden_core::api::TunnelStatus;
use loden_core::model::IfName;
use loden_core::offload::{By, Verdict};

use crate::reconcile::Round;

/// A label: the sort of kernel object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SortLabel {
    /// `link`, `route`, ….
    pub sort: String,
}

/// A label: what an error is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabel {
    /// The side that failed.
    pub side: Side,
}

/// Where an error came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Side {
    /// The kernel refused something.
    Kernel,
    /// The datastore does not answer.
    Store,
}

/// A label: who carries a tunnel's packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CarrierLabel {
    /// The tunnel's device.
    pub device: String,
    /// The kernel's own device, or an engine.
    pub by: String,
}

/// A label: a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeviceLabel {
    /// Its name.
    pub device: String,
}

/// A label: a peer in a tunnel, and which way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TunnelLabel {
    /// The tunnel's device.
    pub device: String,
    /// The peer's name.
    pub peer: String,
    /// To it or from it.
    pub way: Way,
}

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Way {
    /// To the peer.
    Out,
    /// From it.
    In,
}

/// A label: why a tunnel dropped packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabel {
    /// The tunnel's device.
    pub device: String,
    /// The cause.
    pub cause: String,
}

/// All metrics, named `loden_*`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Changes written to the kernel, by sort.
    pub writes: Family<SortLabel, Counter>,
    /// Objects made right again after something else had changed them, by sort.
    pub repairs: Family<SortLabel, Counter>,
    /// Errors by side.
    pub errors: Family<ErrorLabel, Counter>,
    /// Seconds after the start at which the last error happened, by side.
    pub last_error: Family<ErrorLabel, Gauge<f64, std::sync::atomic::AtomicU64>>,
    /// How long rounds take.
    pub round_seconds: Histogram,
    /// Steps of the last plan.
    pub plan_steps: Gauge,
    /// Objects wanted.
    pub wanted: Gauge,
    /// Objects that are not as wanted.
    pub pending: Gauge,
    /// Peers known.
    pub peers: Gauge,
    /// Who carries each tunnel's packets.
    pub tunnel_carriers: Family<CarrierLabel, Gauge>,
    /// Packets in tunnels that this agent runs.
    pub tunnel_packets: Family<TunnelLabel, Counter>,
    /// Their bytes, without the outer headers.
    pub tunnel_bytes: Family<TunnelLabel, Counter>,
    /// Packets that a tunnel dropped.
    pub tunnel_drops: Family<DropLabel, Counter>,
    /// Answers to the kernel's questions that are in force.
    pub flows: Gauge,
    /// Questions of the kernel's for neighbours.
    pub questions: Counter,
    /// Those that had no answer.
    pub questions_unanswered: Counter,
    /// Whether this host computes the checksums of what a tunnel's device sends.
    pub checksums_here: Family<DeviceLabel, Gauge>,
    /// Whether the store answers.
    pub store_up: Gauge,
    /// The last revision of the store that was seen.
    pub store_revision: Gauge,
    /// Seconds between a change's arrival and the end of the round that took it in.
    pub store_lag: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("loden"),
            writes: Family::default(),
            repairs: Family::default(),
            errors: Family::default(),
            last_error: Family::default(),
            round_seconds: Histogram::new(exponential_buckets(0.0001, 4.0, 10)),
            plan_steps: Gauge::default(),
            wanted: Gauge::default(),
            pending: Gauge::default(),
            peers: Gauge::default(),
            tunnel_carriers: Family::default(),
            tunnel_packets: Family::default(),
            tunnel_bytes: Family::default(),
            tunnel_drops: Family::default(),
            flows: Gauge::default(),
            questions: Counter::default(),
            questions_unanswered: Counter::default(),
            checksums_here: Family::default(),
            store_up: Gauge::default(),
            store_revision: Gauge::default(),
            store_lag: Histogram::new(exponential_buckets(0.0005, 4.0, 10)),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("kernel_writes", "Changes written to the kernel", self.writes.clone());
        r.register("repairs", "Objects made right after something else had changed them", self.repairs.clone());
        r.register("errors", "Errors by side", self.errors.clone());
        r.register("last_error_uptime_seconds", "Agent uptime at the last error", self.last_error.clone());
        let rounds = self.round_seconds.clone();
        r.register_with_unit("reconcile", "Time of a round", Unit::Seconds, rounds);
        r.register("plan_steps", "Steps of the last plan", self.plan_steps.clone());
        r.register("objects_wanted", "Kernel objects wanted", self.wanted.clone());
        r.register("objects_pending", "Kernel objects not as wanted", self.pending.clone());
        r.register("peers", "Other nodes known", self.peers.clone());
        r.register("tunnel_carrier", "Who carries a tunnel's packets", self.tunnel_carriers.clone());
        r.register("tunnel_packets", "Packets carried by tunnels in this agent", self.tunnel_packets.clone());
        r.register("tunnel_bytes", "Their bytes without the outer headers", self.tunnel_bytes.clone());
        r.register("tunnel_dropped_packets", "Packets that tunnels dropped", self.tunnel_drops.clone());
        r.register("flows", "Answers to the kernel's questions in force", self.flows.clone());
        r.register("questions", "Questions of the kernel for neighbours", self.questions.clone());
        let unanswered = self.questions_unanswered.clone();
        r.register("questions_unanswered", "Questions that had no answer", unanswered);
        r.register(
            "checksums_computed_here",
            "Whether this host computes the checksums of what a tunnel's device sends",
            self.checksums_here.clone(),
        );
        r.register("store_up", "Whether the datastore answers", self.store_up.clone());
        r.register("store_revision", "Last revision of the datastore that was seen", self.store_revision.clone());
        let lag = self.store_lag.clone();
        r.register_with_unit("store_lag", "From a change's arrival to the kernel", Unit::Seconds, lag);
    }

    /// Notes a round.
    pub fn round(&self, round: &Round, took: Duration, uptime: Duration) {
        self.round_seconds.observe(took.as_secs_f64());
        self.plan_steps.set(i64::try_from(round.done + round.failed).unwrap_or(i64::MAX));
        if round.failed > 0 {
            self.error(Side::Kernel, round.failed as u64, uptime);
        }
    }

    /// Takes in what tunnels have carried since each was started: one that was started again begins anew.
    pub fn tunnels(&self, tunnels: &[TunnelStatus]) {
        self.tunnel_carriers.clear();
        self.tunnel_packets.clear();
        self.tunnel_bytes.clear();
        self.tunnel_drops.clear();
        for tunnel in tunnels {
            let device = tunnel.device.to_string();
            self.tunnel_carriers.get_or_create(&CarrierLabel { device: device.clone(), by: tunnel.by.clone() }).set(1);
            for peer in &tunnel.peers {
                for (way, carried) in [(Way::Out, peer.sent), (Way::In, peer.received)] {
                    let label = TunnelLabel { device: device.clone(), peer: peer.node.to_string(), way };
                    self.tunnel_packets.get_or_create(&label).inc_by(carried.packets);
                    self.tunnel_bytes.get_or_create(&label).inc_by(carried.bytes);
                }
            }
            for (cause, count) in tunnel.peers.iter().flat_map(|peer| &peer.dropped).chain(&tunnel.dropped) {
                let label = DropLabel { device: device.clone(), cause: cause.clone() };
                self.tunnel_drops.get_or_create(&label).inc_by(*count);
            }
        }
    }

    /// Takes in who computes checksums.
    pub fn checksums(&self, verdicts: &BTreeMap<IfName, Verdict>) {
        self.checksums_here.clear();
        for (dev, verdict) in verdicts {
            let label = DeviceLabel { device: dev.to_string() };
            self.checksums_here.get_or_create(&label).set((verdict.by() == Some(By::Host)).into());
        }
    }

    /// Notes errors.
    pub fn error(&self, side: Side, count: u64, uptime: Duration) {
        let label = ErrorLabel { side };
        self.errors.get_or_create(&label).inc_by(count);
        self.last_error.get_or_create(&label).set(uptime.as_secs_f64());
    }

    /// The text form.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
