//! Every counter, gauge and histogram, in one struct that is handed down.
//!
//! Labels carry operations, routes of the catalogue, rule ids, codes and status classes: all finite sets of ours.
//! Never an id, a path or anything a client wrote. Times are in seconds.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One finite label: an operation, a rule, a code, …
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct RequestLabels {
    pub class: &'static str,
    pub method: &'static str,
    pub status: &'static str,
}

/// Labels of `patchwarden_decisions_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct DecisionLabels {
    pub operation: String,
    pub decision: &'static str,
    pub would: &'static str,
}

/// Labels of `patchwarden_violations_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct RuleLabels {
    pub rule: String,
    pub level: &'static str,
}

/// Labels of `patchwarden_surprises_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct FieldLabels {
    pub field: String,
}

/// Labels of `patchwarden_refusals_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct CodeLabels {
    pub code: &'static str,
}

/// Labels of `patchwarden_outcomes_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct OutcomeLabels {
    pub operation: String,
    pub outcome: &'static str,
}

/// Labels of `patchwarden_settlements_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct SettlementLabels {
    pub result: &'static str,
    pub by: &'static str,
}

/// Labels of what is counted by where heads go: `file`, `url`, or the name of a configured witness.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct ToLabels {
    pub to: String,
}

/// Labels of what is counted by class of traffic: `governed`, `watched`, `passthrough`, `before`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels")]
pub struct ClassLabels {
    pub class: &'static str,
}

#[derive(Clone)]
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.0005, 2.0, 18))
    }
}

/// All of them. Cheap to share behind an `Arc`.
#[expect(missing_docs, reason = "each has its help text below")]
pub struct Metrics {
    registry: Registry,
    pub requests: Family<RequestLabels, Counter>,
    pub decisions: Family<DecisionLabels, Counter>,
    pub violations: Family<RuleLabels, Counter>,
    pub refusals: Family<CodeLabels, Counter>,
    pub outcomes: Family<OutcomeLabels, Counter>,
    pub surprises: Family<FieldLabels, Counter>,
    pub settlements: Family<SettlementLabels, Counter>,
    pub drift: Counter,
    /// Logs of the store in which something was found wrong after the start.
    pub log_faults: Gauge,
    /// Identities held by a change whose end was not seen, in all logs of the store.
    pub unsettled: Gauge,
    /// 1 while the settler's own credential cannot be used.
    pub settle_credential_failed: Gauge,
    pub breaches: Counter,
    pub clients_gone: Counter,
    pub client_identity_dropped: Counter,
    pub protocol_errors: Counter,
    pub upstream_seconds: Family<ClassLabels, Histogram, UpstreamSeconds>,
    pub commit_seconds: Histogram,
    pub batch_entries: Histogram,
    pub entries: Counter,
    pub folded: Counter,
    pub queue_depth: Gauge,
    pub target_waiters: Gauge,
    pub in_flight: Family<ClassLabels, Gauge>,
    pub connections: Gauge,
    pub audit_up: Gauge,
    /// Of the disk that holds an SQLite store.
    pub store_free_bytes: Gauge,
    /// 1 while new TLS files are wrong and the old ones in use.
    pub tls_reload_failed: Gauge,
    pub policy_reload_failed: Gauge,
    pub anchor_failures: Family<ToLabels, Counter>,
    /// 1 while the newest try failed.
    pub anchor_failing: Family<ToLabels, Gauge>,
    pub anchor_last_success: Family<ToLabels, Gauge>,
}

/// Makes the histograms of one family.
#[derive(Clone)]
pub struct UpstreamSeconds(Seconds);

impl MetricConstructor<Histogram> for UpstreamSeconds {
    fn new_metric(&self) -> Histogram {
        self.0.new_metric()
    }
}

impl Metrics {
    /// All at zero, registered under `patchwarden_`.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("patchwarden");
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            decisions: Family::default(),
            violations: Family::default(),
            refusals: Family::default(),
            outcomes: Family::default(),
            surprises: Family::default(),
            settlements: Family::default(),
            drift: Counter::default(),
            log_faults: Gauge::default(),
            unsettled: Gauge::default(),
            settle_credential_failed: Gauge::default(),
            breaches: Counter::default(),
            clients_gone: Counter::default(),
            client_identity_dropped: Counter::default(),
            protocol_errors: Counter::default(),
            upstream_seconds: Family::new_with_constructor(UpstreamSeconds(Seconds)),
            commit_seconds: Seconds.new_metric(),
            batch_entries: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            entries: Counter::default(),
            folded: Counter::default(),
            queue_depth: Gauge::default(),
            target_waiters: Gauge::default(),
            in_flight: Family::default(),
            connections: Gauge::default(),
            audit_up: Gauge::default(),
            store_free_bytes: Gauge::default(),
            tls_reload_failed: Gauge::default(),
            policy_reload_failed: Gauge::default(),
            anchor_failures: Family::default(),
            anchor_failing: Family::default(),
            anchor_last_success: Family::default(),
        };
        let m = &metrics;
        registry.register(
            "requests",
            "Answers by class of route, method and status class",
            m.requests.clone(),
        );
        registry.register("decisions", "Decisions on governed requests", m.decisions.clone());
        registry.register("violations", "Violations and warnings by rule", m.violations.clone());
        registry.register("refusals", "Refusals by code", m.refusals.clone());
        registry.register("outcomes", "What the upstream did with forwarded writes", m.outcomes.clone());
        registry.register("surprises", "Fields whose value was not the proposed one", m.surprises.clone());
        registry.register(
            "settlements",
            "Unknown outcomes that were settled, by result and by who looked",
            m.settlements.clone(),
        );
        registry.register("drift", "States found changed past the log", m.drift.clone());
        registry.register(
            "log_faults",
            "Logs in which something was found wrong after the start",
            m.log_faults.clone(),
        );
        registry.register(
            "unsettled",
            "Identities held by a change whose end was not seen",
            m.unsettled.clone(),
        );
        registry.register(
            "settle_credential_failed",
            "1 while the gateway's own credential for settling cannot be used",
            m.settle_credential_failed.clone(),
        );
        registry.register(
            "breaches",
            "Changes whose result violates what the proposal did not",
            m.breaches.clone(),
        );
        registry.register("clients_gone", "Clients that hung up before a decision", m.clients_gone.clone());
        registry.register(
            "client_identity_dropped",
            "Requests that claimed a client address or certificate of their own",
            m.client_identity_dropped.clone(),
        );
        registry.register(
            "protocol_errors",
            "Connections closed for what is no HTTP",
            m.protocol_errors.clone(),
        );
        registry.register("upstream_seconds", "Time to the upstream's answer", m.upstream_seconds.clone());
        registry.register("commit_seconds", "Time of a log commit", m.commit_seconds.clone());
        registry.register("batch_entries", "Entries in one log commit", m.batch_entries.clone());
        registry.register("entries", "Entries written to the log", m.entries.clone());
        registry.register("folded", "Unproven refusals counted in folds", m.folded.clone());
        registry.register("queue_depth", "Entries waiting for the log", m.queue_depth.clone());
        registry.register(
            "target_waiters",
            "Requests waiting for another of the same identity",
            m.target_waiters.clone(),
        );
        registry.register("in_flight", "Requests being handled", m.in_flight.clone());
        registry.register("connections", "Open connections of the gateway's port", m.connections.clone());
        registry.register("audit_up", "1 while the log can be written", m.audit_up.clone());
        registry.register(
            "store_free_bytes",
            "Space left on the disk of an SQLite store, as of the last batch",
            m.store_free_bytes.clone(),
        );
        registry.register(
            "policy_reload_failed",
            "1 while changed policies are wrong and what was loaded before is in force",
            m.policy_reload_failed.clone(),
        );
        registry.register(
            "tls_reload_failed",
            "1 while changed TLS files are wrong and what was read before is in use",
            m.tls_reload_failed.clone(),
        );
        registry.register(
            "anchor_failures",
            "Signed heads that could not be kept elsewhere or cosigned, by destination",
            m.anchor_failures.clone(),
        );
        registry.register(
            "anchor_failing",
            "1 while the newest head could not be kept there or cosigned",
            m.anchor_failing.clone(),
        );
        registry.register(
            "anchor_last_success_timestamp_seconds",
            "When a head was last kept there or cosigned, in seconds since 1970; 0: not in this run",
            m.anchor_last_success.clone(),
        );
        metrics.registry = registry;
        metrics
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// Counts one answer.
    pub fn answered(&self, class: &'static str, method: &http::Method, status: http::StatusCode) {
        let labels = RequestLabels { class, method: method_label(method), status: status_class(status) };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts one refusal.
    pub fn refused(&self, code: crate::refusal::Code) {
        self.refusals.get_or_create(&CodeLabels { code: code.as_str() }).inc();
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn in_flight(&self, class: &'static str) -> InFlight {
        let gauge = self.in_flight.get_or_create(&ClassLabels { class }).clone();
        gauge.inc();
        InFlight(gauge)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes its request out of the gauge when dropped.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn method_label(method: &http::Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

fn status_class(status: http::StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
