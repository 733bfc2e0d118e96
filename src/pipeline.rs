//! The order of the steps: the only file that knows it.
//!
//! [`Gateway::handle`] takes every request of the gateway's port. What is not governed leaves after `route`. A governed
//! one is *admitted* (route, caller, body, schema, before: cancellable, holding nothing), *judged* at the head of its
//! target's queue (effect, policy), and *carried* in a task of its own, which a client that hangs up does not stop
//! (audit, forward, audit). Each step hands its ticket to the next or ends in a refusal; a [`Draft`] collects the facts
//! for the record on the way, and its only ends are `refuse` and `declare`.

mod queue;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::header::ORIGIN;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::audit::{
    Audit, Declined, Draft, Hold, Intent, Look, Outcome, OutcomeResult, Recorded, Seen, Settled, TargetNow,
};
use crate::before::{self, Freshness, Reading};
use crate::body::{self, Unread};
use crate::bundle::Bundle;
use crate::caller::{self, Caller};
use crate::clock::Clock;
use crate::effect::{self, Proposed};
use crate::forward::{self, Reply};
use crate::id::{ChangeId, TargetId};
use crate::json;
use crate::keys::Keys;
use crate::limits::Limits;
use crate::metrics::{DecisionLabels, FieldLabels, Metrics, OutcomeLabels, RuleLabels};
use crate::operation::{Edit, Operation, Write, diff};
use crate::passthrough::{Passthrough, join_cookies};
use crate::policy::{self, Facts, Permit};
use crate::refusal::{Code, Finding, Refusal};
use crate::respond::{self, Response, WarningHeaders};
use crate::route::{self, Governed, Match, Watched};
use crate::schema::{self, UnknownMembers};
use crate::settle;
use crate::upstream::client_address::{Client, Peer, TrustedProxies};
use crate::upstream::{Body, Failure, Upstream};

use queue::{Place, Queues};

/// How often a change is judged anew because another one came between.
const MAX_TRIES: usize = 3;
/// A reading older than this is read again at the head of the queue.
const MAX_READING_AGE: Duration = Duration::from_secs(1);
/// How long an outdated reading is read again before it is refused.
const STALE_PATIENCE: Duration = Duration::from_secs(2);
const STALE_PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at a target that another gateway holds.
const FOREIGN_PAUSE: Duration = Duration::from_millis(10);
/// How long the one read straight after an unseen end may take.
const PROOF_READ: Duration = Duration::from_secs(2);

/// What a watched write meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UngovernedWrites {
    /// It is forwarded and recorded.
    Forward,
    /// It is refused and recorded.
    Refuse,
}

/// Everything a request needs, made once.
pub struct Gateway {
    /// The guarded API.
    pub upstream: Upstream,
    /// The log.
    pub audit: Audit,
    /// What is in force.
    pub bundle: Arc<RwLock<Arc<Bundle>>>,
    /// Fingerprints.
    pub keys: Arc<Keys>,
    /// Dates.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Every limit.
    pub limits: Limits,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted: TrustedProxies,
    /// Streams what is not governed.
    pub passthrough: Passthrough,
    /// What watched writes meet.
    pub ungoverned: UngovernedWrites,
    /// What unknown members meet.
    pub unknown_members: UnknownMembers,
    /// How long a write without an answer may still land.
    pub late_write_limit: Duration,
    /// `enforce` or `observe`, for records.
    pub mode: &'static str,
    /// Tasks that outlive their client.
    pub tasks: TaskTracker,
    /// What is remembered between requests.
    pub memory: Memory,
}

/// Queues and counts that live as long as the gateway.
pub struct Memory {
    queues: Queues,
    bodies: Semaphore,
    governed: Arc<Semaphore>,
    watch: before::Watch,
    failed_reads: queue::PerMinute<IpAddr>,
    last_claim_logged: Mutex<Option<Instant>>,
}

impl Memory {
    /// Sized by the limits.
    pub fn new(limits: &Limits, metrics: &Arc<Metrics>) -> Self {
        Self {
            queues: Queues::new(limits.target_waiters, limits.caller_waiters, metrics.clone()),
            bodies: Semaphore::new(limits.bodies),
            governed: Arc::new(Semaphore::new(limits.in_flight)),
            watch: before::Watch::default(),
            failed_reads: queue::PerMinute::new(limits.failed_reads),
            last_claim_logged: Mutex::new(None),
        }
    }
}

/// One governed request, admitted.
struct Admitted {
    governed: Governed,
    caller: Caller,
    headers: HeaderMap,
    edit: Option<Edit>,
    document: Option<json::Document>,
    reading: Reading,
    turn: u64,
}

/// What is carried: judged, with its warnings ready.
struct Judged {
    permit: Permit,
    proposed: Proposed,
    warnings: WarningHeaders,
    over: Option<Hold>,
}

/// How a carry ended.
enum Carried {
    Answered(Response),
    /// Another change came between: judge again. The place comes back.
    Lost(Place),
}

impl Gateway {
    /// Answers one request.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response {
        let bundle = self.bundle.read().unwrap_or_else(PoisonError::into_inner).clone();
        let client = Client::of(request.headers(), request.uri(), &peer, &self.trusted, &self.metrics);
        self.note_claim(&client);
        let method = request.method().clone();
        let found = route::find(bundle.catalogue(), request.method(), request.uri(), request.version());
        let (class, response) = match found {
            Ok(Match::Passthrough) => ("passthrough", self.passthrough.stream(request, &client).await),
            Ok(Match::Watched(watched)) => {
                ("watched", self.watched(request, &client, watched, &bundle).await)
            }
            Ok(Match::Governed(governed)) => {
                ("governed", self.governed(request, &client, governed, bundle).await)
            }
            Err(refusal) => ("governed", self.not_canonical(request, &client, refusal).await),
        };
        self.metrics.answered(class, &method, response.status());
        response
    }

    async fn not_canonical(&self, request: Request<Incoming>, client: &Client, refusal: Refusal) -> Response {
        let (parts, body) = request.into_parts();
        let draft = self.draft(&parts, client);
        body::drain(body, self.limits.drain.bytes(), self.limits.body_read.0).await;
        self.refuse(draft, refusal, parts.headers.get(ORIGIN)).await
    }

    async fn governed(
        self: &Arc<Self>,
        request: Request<Incoming>,
        client: &Client,
        governed: Governed,
        bundle: Arc<Bundle>,
    ) -> Response {
        let _in_flight = self.metrics.in_flight("governed");
        let gone = Gone(Some(self.metrics.clone()));
        let (mut parts, body) = request.into_parts();
        if parts.version == Version::HTTP_2 {
            join_cookies(&mut parts.headers);
        }
        let origin = parts.headers.get(ORIGIN).cloned();
        let mut draft = self.draft(&parts, client);
        draft.operation = Some(governed.operation().name.clone());
        draft.object = Some(governed.operation().object.clone());
        draft.target = Some(governed.target().clone());
        governed.path().clone_into(&mut draft.path);
        draft.policy = Some(bundle.digest().clone());
        let response = match self.admit(&mut draft, &parts, body, client, governed, &bundle).await {
            Ok(admitted) => self.judge(draft, admitted, bundle, origin).await,
            Err(refusal) => self.refuse(draft, refusal, origin.as_ref()).await,
        };
        gone.answered();
        response
    }

    /// Steps 2 to 5. Holds nothing that another request could wait for.
    async fn admit(
        &self,
        draft: &mut Draft,
        parts: &Parts,
        body: Incoming,
        client: &Client,
        governed: Governed,
        bundle: &Bundle,
    ) -> Result<Admitted, Refusal> {
        let operation = governed.operation().clone();
        let limits = &self.limits;
        let caller = match caller::read(&parts.headers, &self.keys) {
            Ok(caller) => caller,
            Err(refusal) => {
                body::drain(body, limits.drain.bytes(), limits.body_read.0).await;
                return Err(refusal);
            }
        };
        draft.caller = caller.record();
        // Whoever only sends a body takes none of the slots of those whom the upstream knows.
        let slot = match self.memory.bodies.try_acquire() {
            _ if body.is_end_stream() => None,
            Ok(slot) => Some(slot),
            Err(_) => {
                body::drain(body, limits.drain.bytes(), limits.body_read.0).await;
                return Err(Refusal::overloaded("limits.bodies"));
            }
        };
        let bounds = body::Bounds {
            bytes: limits.body.bytes(),
            time: limits.body_read.0,
            json: json::Bounds { depth: limits.json_depth, items: limits.json_items },
        };
        let received = body::read(&parts.headers, body, operation.write, bounds, &self.keys).await.map_err(
            |Unread { refusal, seen }| {
                if let Some((digest, length)) = seen {
                    (draft.body_digest, draft.body_length) = (Some(digest), Some(length));
                }
                refusal
            },
        )?;
        drop(slot);
        (draft.body_digest, draft.body_length) = (received.digest, Some(received.length));
        let edit = match &received.document {
            Some(document) => {
                let schema = bundle.schema(&operation.name);
                Some(schema::check(schema, &operation, document, governed.target(), self.unknown_members)?)
            }
            None => None,
        };
        let mut headers = caller.crossing().clone();
        client.stamp(&mut headers);
        if !self.memory.failed_reads.has_room(&client.address()) {
            return Err(Refusal::overloaded("limits.failed_reads").retry_after(60));
        }
        let turn = self.audit.look(governed.target()).await?.turn;
        let reading = match before::fetch(&self.source(&operation, &governed, &headers)).await {
            Ok(reading) => reading,
            Err(refusal) => {
                self.memory.failed_reads.count(client.address());
                return Err(refusal);
            }
        };
        draft.caller_proven = true;
        draft.edit.clone_from(&edit);
        Ok(Admitted { governed, caller, headers, edit, document: received.document, reading, turn })
    }

    fn source<'a>(
        &'a self,
        operation: &'a Operation,
        governed: &'a Governed,
        headers: &'a HeaderMap,
    ) -> before::Source<'a> {
        before::Source {
            upstream: &self.upstream,
            object: &operation.object,
            target: governed.target(),
            headers,
            within: self.limits.before.0,
            at_most: self.limits.answer.bytes(),
            clock: &self.clock,
        }
    }

    /// Steps 6 and 7 at the head of the target's queue, then the carry; again when another change came between.
    async fn judge(
        self: &Arc<Self>,
        mut draft: Draft,
        mut admitted: Admitted,
        bundle: Arc<Bundle>,
        origin: Option<HeaderValue>,
    ) -> Response {
        let Ok(slot) = self.memory.governed.clone().try_acquire_owned() else {
            return self.refuse(draft, Refusal::overloaded("limits.in_flight"), origin.as_ref()).await;
        };
        let target = admitted.governed.target().clone();
        let waiting =
            self.memory.queues.wait(&target, admitted.caller.fingerprint(), self.limits.target_wait.0);
        let mut place = match waiting.await {
            Ok(place) => place,
            Err(refusal) => return self.refuse(draft, refusal, origin.as_ref()).await,
        };
        let slot = Arc::new(slot);
        for _ in 0..MAX_TRIES {
            let judged = match self.judge_once(&mut draft, &mut admitted, &bundle).await {
                Ok(judged) => judged,
                Err(refusal) => {
                    drop(place);
                    return self.refuse(draft, refusal, origin.as_ref()).await;
                }
            };
            let carry = Carry {
                gateway: self.clone(),
                bundle: bundle.clone(),
                operation: admitted.governed.operation().clone(),
                headers: admitted.headers.clone(),
                before: admitted.reading.stored.clone(),
                turn: admitted.turn,
                started: draft.started,
                caller: admitted.caller.id().map(str::to_owned),
                place,
                _slot: slot.clone(),
            };
            // From here on nothing depends on the client: the task declares, forwards and records by itself.
            match self.tasks.spawn(carry.run(draft.clone(), judged)).await {
                Ok(Carried::Answered(response)) => return response,
                Ok(Carried::Lost(back)) => place = back,
                Err(_) => return respond::failed(Some(&draft.id), origin.as_ref()),
            }
        }
        drop(place);
        let busy =
            Refusal::new(Code::TargetBusy, "Other changes of this identity kept coming between; try again");
        self.refuse(draft, busy.retry_after(1), origin.as_ref()).await
    }

    async fn judge_once(
        &self,
        draft: &mut Draft,
        admitted: &mut Admitted,
        bundle: &Bundle,
    ) -> Result<Judged, Refusal> {
        let operation = admitted.governed.operation().clone();
        let over = self.refresh(draft, admitted, &operation).await?;
        let before = admitted.reading.stored.as_ref();
        draft.before = Some(Seen::of(before));
        match (operation.write, before) {
            (Write::Overlay | Write::Remove, None) => {
                let detail = "This identity has no JWT Auth attached, so there is nothing to change; attach it with POST";
                return Err(Refusal::new(Code::BeforeAbsent, detail));
            }
            (Write::Create, Some(_)) => {
                let detail = "This identity already has JWT Auth attached; change it with PATCH";
                return Err(Refusal::new(Code::BeforePresent, detail));
            }
            (Write::Overlay | Write::Remove, Some(_)) | (Write::Create, None) => {}
        }
        let proposed =
            effect::propose(&operation, before.map(|stored| &stored.state), admitted.edit.as_ref());
        draft.proposed = Some(proposed.state.clone());
        let facts = Facts::new(
            &operation,
            before.map(|stored| &stored.state),
            &proposed,
            admitted.edit.as_ref(),
            admitted.document.as_ref(),
            admitted.governed.target(),
        )
        .by(admitted.caller.id())
        .with_schema(bundle.schema(&operation.name));
        match policy::decide(bundle.policies(), &facts, &self.keys) {
            Ok(permit) => {
                draft.warnings.extend_from_slice(permit.warnings());
                draft.would = permit.would();
                let warnings = WarningHeaders::of_findings(&draft.warnings);
                Ok(Judged { permit, proposed, warnings, over })
            }
            Err(denial) => {
                draft.violations.clone_from(&denial.violations);
                draft.warnings.extend(denial.warnings);
                let detail = "The policies of this organisation deny this change";
                let refusal = Refusal::new(Code::PolicyDenied, detail).with_findings(denial.violations);
                Err(Refusal { fix: denial.fix, ..refusal })
            }
        }
    }

    /// Makes sure the reading is one this change may be judged by: taken in this turn, not old, not older than what
    /// the log knows; settles what it proves about a held intent, or refuses. Returns what a removal goes over.
    async fn refresh(
        &self,
        draft: &mut Draft,
        admitted: &mut Admitted,
        operation: &Operation,
    ) -> Result<Option<Hold>, Refusal> {
        let target = admitted.governed.target().clone();
        let mut now = self.look_when_free(&target).await?;
        if now.turn != admitted.turn || admitted.reading.age() > MAX_READING_AGE {
            admitted.reading =
                before::fetch(&self.source(operation, &admitted.governed, &admitted.headers)).await?;
            admitted.turn = now.turn;
        }
        let patience = Instant::now() + STALE_PATIENCE;
        draft.warnings.clear();
        (draft.settlement, draft.drift) = (None, None);
        let rolled_back = loop {
            let (revision, gone) = now.known();
            let is_removed = settle::is_removed(now.hold.as_ref(), &admitted.reading);
            match self.memory.watch.judge(&target, &admitted.reading, revision, gone) {
                Freshness::Fresh => break false,
                Freshness::RolledBack if admitted.reading.stored.is_some() => {
                    draft.warnings.push(rolled_back());
                    break true;
                }
                // No reader lags for so long: somebody removed it.
                Freshness::RolledBack => break false,
                Freshness::Stale if Instant::now() < patience => {
                    tokio::time::sleep(STALE_PAUSE).await;
                    now = self.audit.look(&target).await?;
                    let source = self.source(operation, &admitted.governed, &admitted.headers);
                    admitted.reading = before::fetch(&source).await?;
                    admitted.turn = now.turn;
                }
                Freshness::Stale if is_removed => break false,
                Freshness::Stale => {
                    let detail = "The upstream answered with a state older than the last one recorded here (a lagging replica?), so nothing can be judged; try again";
                    return Err(Refusal::new(Code::BeforeStale, detail).retry_after(5));
                }
            }
        };
        draft.turn = Some(admitted.turn);
        let over = match &now.hold {
            None => None,
            // What it changed is not known to be anybody else's.
            Some(hold) if hold.abandoned => return Err(self.unsettled(hold)),
            Some(hold) if !hold.unknown => return Err(busy()),
            Some(hold) => self.hold_over(draft, admitted, hold, operation.write)?,
        };
        let is_own = draft.settlement.as_ref().is_some_and(|found| found.result == Settled::Applied);
        if !is_own {
            let (object, newest) = (&*operation.object, now.newest.as_ref());
            let (reading, by) = (&admitted.reading, "next_before");
            let look = Look { target: &target, object, reading, newest, rolled_back, by };
            draft.drift = self.audit.drift(&look).await?;
        }
        Ok(over)
    }

    /// In this process the queue lets one change of a target through; another gateway's is waited for here.
    async fn look_when_free(&self, target: &TargetId) -> Result<TargetNow, Refusal> {
        let patience = Instant::now() + self.limits.target_wait.0;
        loop {
            let now = self.audit.look(target).await?;
            let in_flight = now.hold.as_ref().is_some_and(|hold| !hold.unknown && !hold.abandoned);
            if !in_flight || Instant::now() >= patience {
                return Ok(now);
            }
            tokio::time::sleep(FOREIGN_PAUSE).await;
        }
    }

    fn hold_over(
        &self,
        draft: &mut Draft,
        admitted: &Admitted,
        hold: &Hold,
        write: Write,
    ) -> Result<Option<Hold>, Refusal> {
        if let Some(settlement) =
            settle::judge(hold, &admitted.reading, self.late_write_limit, "next_before", &self.keys)
        {
            draft.settlement = Some(settlement);
            return Ok(None);
        }
        if write == Write::Remove {
            return Ok(Some(hold.clone()));
        }
        Err(self.unsettled(hold))
    }

    fn unsettled(&self, hold: &Hold) -> Refusal {
        let seconds = settle::wait(hold, self.clock.now(), self.late_write_limit);
        let change = &hold.intent.change;
        let detail = if hold.abandoned {
            format!(
                "Another gateway went away in the middle of an earlier change of this identity (change {change}), which may still land; it can be settled in {seconds} s"
            )
        } else {
            format!(
                "The end of an earlier change of this identity (change {change}) was not seen and it may still land; it can be settled in {seconds} s. Removing the JWT Auth is possible at any time"
            )
        };
        Refusal::new(Code::TargetUnsettled, detail).retry_after(seconds)
    }

    /// Records a refusal (or folds it) and answers it.
    async fn refuse(&self, draft: Draft, refusal: Refusal, origin: Option<&HeaderValue>) -> Response {
        let (operation, target) = (draft.operation.clone(), draft.target.clone());
        let (violations, warnings) = (draft.violations.clone(), draft.warnings.clone());
        let caller = draft.caller["id"].as_str().map(str::to_owned);
        let (id, started) = (draft.id, draft.started);
        let (refusal, change) = match self.audit.refuse(draft, &refusal).await {
            Ok(change) => (refusal, change),
            Err(unrecorded) => (unrecorded, id),
        };
        self.metrics.refused(refusal.code);
        let decision = if refusal.code == Code::PolicyDenied { "deny" } else { "refuse" };
        self.count_decision(operation.as_deref(), decision, None, &violations, &warnings);
        crate::log::change(&crate::log::Change {
            change: &change,
            operation: operation.as_deref(),
            target: target.as_ref(),
            caller: caller.as_deref(),
            decision,
            code: Some(refusal.code),
            outcome: "none",
            status: refusal.code.status(),
            duration: started.elapsed(),
            cause: refusal.cause.as_deref(),
        });
        respond::refusal(&refusal, Some(&change), origin)
    }

    fn count_decision(
        &self,
        operation: Option<&str>,
        decision: &'static str,
        would: Option<&'static str>,
        violations: &[Finding],
        warnings: &[Finding],
    ) {
        let operation = operation.unwrap_or("none").to_owned();
        let labels = DecisionLabels { operation, decision, would: would.unwrap_or("") };
        self.metrics.decisions.get_or_create(&labels).inc();
        for (level, findings) in [("deny", violations), ("warn", warnings)] {
            for finding in findings {
                let labels = RuleLabels { rule: finding.rule.clone(), level };
                self.metrics.violations.get_or_create(&labels).inc();
            }
        }
    }

    /// A write that is forwarded as it came and recorded before and after.
    async fn watched(
        self: &Arc<Self>,
        request: Request<Incoming>,
        client: &Client,
        watched: Watched,
        bundle: &Bundle,
    ) -> Response {
        let _in_flight = self.metrics.in_flight("watched");
        let origin = request.headers().get(ORIGIN).cloned();
        let (parts, body) = request.into_parts();
        let mut draft = self.draft(&parts, client);
        draft.caller = caller::peek(&parts.headers, &self.keys).record();
        draft.operation = Some(watched.name().to_owned());
        draft.target = watched.target().cloned();
        watched.path().clone_into(&mut draft.path);
        if self.ungoverned == UngovernedWrites::Refuse {
            body::drain(body, self.limits.drain.bytes(), self.limits.body_read.0).await;
            let detail = "Writes on this route are refused here (`ungoverned_writes = \"refuse\"`)";
            return self.refuse(draft, Refusal::new(Code::RouteNotGoverned, detail), origin.as_ref()).await;
        }
        let body = match self.look_into(&watched, &parts, body, bundle, &mut draft).await {
            Ok(body) => body,
            Err(refusal) => return self.refuse(draft, refusal, origin.as_ref()).await,
        };
        let (gateway, id) = (self.clone(), draft.id);
        let (client, origin_in_task) = (client.clone(), origin.clone());
        let carried = self.tasks.spawn(async move {
            let (id, started) = (draft.id, draft.started);
            let caller = draft.caller["id"].as_str().map(str::to_owned);
            let (operation, target) = (draft.operation.clone(), draft.target.clone());
            let hints = draft.warnings.clone();
            let intent = match gateway.audit.declare_watched(draft.clone(), watched).await {
                Ok(intent) => intent,
                Err(refusal) => return gateway.refuse(draft, refusal, origin_in_task.as_ref()).await,
            };
            let (mut response, end) =
                gateway.passthrough.carry(Request::from_parts(parts, body), &client, &intent).await;
            let result = watched_result(&end);
            let status = end.as_ref().ok().map(StatusCode::as_u16);
            let outcome = Outcome::seen(result, status, gateway.clock.now(), started.elapsed());
            let recorded = gateway.audit.finish_watched(intent, outcome).await;
            gateway.count_decision(operation.as_deref(), "allow", None, &[], &hints);
            gateway.count_outcome(operation.as_deref().unwrap_or("none"), result);
            WarningHeaders::of_findings(&hints).write(response.headers_mut());
            crate::log::change(&crate::log::Change {
                change: &id,
                operation: operation.as_deref(),
                target: target.as_ref(),
                caller: caller.as_deref(),
                decision: "allow",
                code: None,
                outcome: result.as_str(),
                status: response.status().as_u16(),
                duration: started.elapsed(),
                cause: end.as_ref().err().map(ToString::to_string).as_deref(),
            });
            if recorded == Recorded::Pending {
                respond::mark_pending(response.headers_mut());
            }
            response
        });
        carried.await.unwrap_or_else(|_| respond::failed(Some(&id), origin.as_ref()))
    }

    /// Where a watched write has fields of a governed object, the rules about them warn; the body goes on as it came.
    async fn look_into(
        &self,
        watched: &Watched,
        parts: &Parts,
        body: Incoming,
        bundle: &Bundle,
        draft: &mut Draft,
    ) -> Result<Body, Refusal> {
        let Some(object) = watched.shares() else { return Ok(Body::Incoming(body)) };
        let limits = &self.limits;
        let Ok(_slot) = self.memory.bodies.try_acquire() else {
            body::drain(body, limits.drain.bytes(), limits.body_read.0).await;
            return Err(Refusal::overloaded("limits.bodies"));
        };
        let bytes = body::collect(body, limits.body.bytes(), limits.body_read.0).await?;
        draft.warnings = match body::plain(&parts.headers, &bytes) {
            Some(document) => policy::hints(bundle.policies(), object, &document, &self.keys),
            None => vec![unread()],
        };
        Ok(Body::from_bytes(bytes))
    }

    fn count_outcome(&self, operation: &str, result: OutcomeResult) {
        let labels = OutcomeLabels { operation: operation.to_owned(), outcome: result.as_str() };
        self.metrics.outcomes.get_or_create(&labels).inc();
    }

    fn draft(&self, parts: &Parts, client: &Client) -> Draft {
        let received_at = self.clock.now();
        let target = parts.uri.path_and_query().map_or("", |p| p.as_str());
        let spelled = self.keys.fingerprint("path", target.as_bytes());
        Draft {
            id: ChangeId::at(received_at),
            received_at,
            started: Instant::now(),
            operation: None,
            object: None,
            target: None,
            turn: None,
            method: parts.method.as_str().chars().take(16).collect(),
            path: format!("{} bytes, {spelled}", target.len()),
            organization: caller::organization(&parts.headers),
            source: client.address(),
            certificate: client.certificate().cloned(),
            user_agent: caller::user_agent(&parts.headers),
            trace_id: caller::trace_id(&parts.headers),
            caller: Caller::unknown().record(),
            caller_proven: false,
            mode: self.mode,
            body_digest: None,
            body_length: None,
            edit: None,
            before: None,
            proposed: None,
            policy: None,
            would: None,
            violations: Vec::new(),
            warnings: Vec::new(),
            settlement: None,
            drift: None,
        }
    }

    /// Writes the log event about a dropped claim of a client's own address, at most once a minute.
    fn note_claim(&self, client: &Client) {
        if !client.claim_dropped() {
            return;
        }
        let mut last = self.memory.last_claim_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() > Duration::from_secs(60)) {
            *last = Some(Instant::now());
            crate::log::client_identity_dropped(client.address());
        }
    }
}

/// The part of a change that runs to its end whatever the client does.
struct Carry {
    gateway: Arc<Gateway>,
    bundle: Arc<Bundle>,
    operation: Arc<Operation>,
    headers: HeaderMap,
    before: Option<crate::operation::Stored>,
    turn: u64,
    started: Instant,
    caller: Option<String>,
    place: Place,
    _slot: Arc<OwnedSemaphorePermit>,
}

impl Carry {
    /// Steps 8 to 10.
    async fn run(self, draft: Draft, judged: Judged) -> Carried {
        let gateway = self.gateway.clone();
        let Judged { permit, proposed, warnings, over } = judged;
        let (violations, would) = (permit.warnings().to_vec(), permit.would());
        let intent = match gateway.audit.declare(draft.clone(), permit, self.turn, over).await {
            Ok(intent) => intent,
            Err(Declined::Lost) => return Carried::Lost(self.place),
            Err(Declined::Refused(refusal)) => {
                drop(self.place);
                return Carried::Answered(gateway.refuse(draft, refusal, self.headers.get(ORIGIN)).await);
            }
        };
        gateway.count_decision(Some(&self.operation.name), "allow", would, &[], &violations);
        let limits = &gateway.limits;
        let (within, at_most) = (limits.forward.0, limits.answer.bytes());
        let reply =
            forward::send(&gateway.upstream, &intent, &self.operation, &self.headers, within, at_most).await;
        let outcome = self.outcome(&intent, &proposed, &reply).await;
        let (change, target) = (intent.change(), intent.target().clone());
        let (code, result, status) = (outcome.code, outcome.result, outcome.status);
        let warnings = warnings.and(&outcome.breach);
        if !outcome.breach.is_empty() {
            crate::log::breach(&change, &target, &outcome.breach);
        }
        let recorded = gateway.audit.finish(intent, outcome).await;
        gateway.count_outcome(&self.operation.name, result);
        let answered = status.unwrap_or_else(|| code.map_or(502, Code::status));
        crate::log::change(&crate::log::Change {
            change: &change,
            operation: Some(&self.operation.name),
            target: Some(&target),
            caller: self.caller.as_deref(),
            decision: "allow",
            code,
            outcome: result.as_str(),
            status: answered,
            duration: self.started.elapsed(),
            cause: reply.answer.as_ref().err().map(ToString::to_string).as_deref(),
        });
        drop(self.place);
        Carried::Answered(reply_to_client(
            reply,
            code,
            change,
            &warnings,
            recorded,
            &gateway.metrics,
            self.headers.get(ORIGIN),
        ))
    }

    /// What the reply proves, beside what was proposed; an unseen end is looked at once more while the token is at hand.
    async fn outcome(&self, intent: &Intent, proposed: &Proposed, reply: &Reply) -> Outcome {
        let gateway = &self.gateway;
        let status = reply.answer.as_ref().ok().map(|answer| answer.status.as_u16());
        let mut outcome = Outcome::seen(reply.result, status, gateway.clock.now(), self.started.elapsed());
        outcome.code = code_of(reply);
        outcome.fast_late = reply.handler_ended;
        if let Some(after) = &reply.after {
            self.compare(&mut outcome, proposed, after.as_ref());
        }
        if reply.result == OutcomeResult::Unknown {
            outcome.settlement = self.prove(intent, &outcome).await;
        }
        outcome
    }

    fn compare(&self, outcome: &mut Outcome, proposed: &Proposed, after: Option<&crate::operation::Stored>) {
        let gateway = &self.gateway;
        outcome.after = Some(Seen::of(after));
        let surprise = diff(proposed.state.as_ref(), after.map(|stored| &stored.state), &gateway.keys);
        if !surprise.is_empty() {
            for entry in &surprise {
                let field = entry["path"].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
                gateway.metrics.surprises.get_or_create(&FieldLabels { field }).inc();
            }
            outcome.surprise = Some(surprise.into());
        }
        if let (Some(proposed), Some(after)) = (&proposed.state, after) {
            let policies = self.bundle.policies();
            outcome.breach =
                policy::breaches(policies, &self.operation, proposed, &after.state, &gateway.keys);
            if !outcome.breach.is_empty() {
                gateway.metrics.breaches.inc();
            }
        }
    }

    /// One GET straight after: it may prove that the write was applied, never that it was not.
    async fn prove(&self, intent: &Intent, outcome: &Outcome) -> Option<crate::audit::Settlement> {
        let gateway = &self.gateway;
        let source = before::Source {
            upstream: &gateway.upstream,
            object: &self.operation.object,
            target: intent.target(),
            headers: &self.headers,
            within: PROOF_READ.min(gateway.limits.before.0),
            at_most: gateway.limits.answer.bytes(),
            clock: &gateway.clock,
        };
        let now = gateway.audit.look(intent.target()).await.ok()?;
        let reading = before::fetch(&source).await.ok()?;
        let hold = intent.as_hold(outcome, &Seen::of(self.before.as_ref()));
        let (newest, gone) = now.known();
        let fresh = before::Watch::default().judge(intent.target(), &reading, newest, gone);
        // A reader that lags may show an earlier row in the very state that was asked for.
        if fresh != Freshness::Fresh && !settle::is_removed(Some(&hold), &reading) {
            return None;
        }
        let settlement =
            settle::judge(&hold, &reading, gateway.late_write_limit, "read_after", &gateway.keys)?;
        (settlement.result == Settled::Applied).then_some(settlement)
    }
}

/// Step 11.
fn reply_to_client(
    reply: Reply,
    code: Option<Code>,
    change: ChangeId,
    warnings: &WarningHeaders,
    recorded: Recorded,
    metrics: &Metrics,
    origin: Option<&HeaderValue>,
) -> Response {
    let pending = recorded == Recorded::Pending;
    let mut response = match (reply.answer, code) {
        (Ok(answer), None) => return respond::answered(answer, &change, warnings, pending),
        (answer, code) => {
            let code = code.unwrap_or(Code::UpstreamBroken);
            metrics.refused(code);
            let refusal = Refusal::new(code, unseen_end(code));
            let refusal = match answer {
                Err(failure) => refusal.because(failure),
                Ok(answer) => refusal.because(answer.status),
            };
            respond::refusal(&refusal, Some(&change), origin)
        }
    };
    if pending {
        respond::mark_pending(response.headers_mut());
    }
    response
}

fn unseen_end(code: Code) -> &'static str {
    match code {
        Code::UpstreamUnreachable => {
            "The upstream could not be reached, so the change was not sent; it is safe to try again"
        }
        Code::AuditUnavailable => {
            "The gateway was held up for longer than its lease on the log (`audit.lease`), so the change was not sent; it is safe to try again"
        }
        Code::UpstreamTimeout => {
            "The change was sent, but the upstream did not answer in time (`limits.forward`)"
        }
        _ => {
            "The change was sent, but the upstream's answer was cut, too large, or not one that can be passed on"
        }
    }
}

fn code_of(reply: &Reply) -> Option<Code> {
    match &reply.answer {
        Ok(_) if reply.is_broken() => Some(Code::UpstreamBroken),
        Ok(_) => None,
        Err(Failure::NotSent(_)) => Some(Code::UpstreamUnreachable),
        Err(Failure::TooLate) => Some(Code::AuditUnavailable),
        Err(Failure::TimedOut) => Some(Code::UpstreamTimeout),
        Err(Failure::Cut(_) | Failure::TooLarge) => Some(Code::UpstreamBroken),
    }
}

/// What the head of a watched write's answer proves; its body is not read.
fn watched_result(end: &Result<StatusCode, Failure>) -> OutcomeResult {
    match end.as_ref().map(StatusCode::as_u16) {
        Ok(200..=299) => OutcomeResult::Applied,
        Ok(400 | 401 | 403 | 404 | 409 | 422 | 429) => OutcomeResult::Rejected,
        Ok(_) => OutcomeResult::Unknown,
        Err(Failure::NotSent(_) | Failure::TooLate) => OutcomeResult::NotSent,
        Err(Failure::TimedOut | Failure::Cut(_) | Failure::TooLarge) => OutcomeResult::Unknown,
    }
}

fn busy() -> Refusal {
    Refusal::new(Code::TargetBusy, "Another change of this identity is in flight; try again").retry_after(1)
}

fn unread() -> Finding {
    Finding {
        rule: "unread-body".to_owned(),
        pointer: String::new(),
        from: Some(crate::refusal::From::Request),
        request_pointer: None,
        value: serde_json::Value::Null,
        limit: serde_json::Value::Null,
        message: "the body is not one plain JSON object, so the rules could not look at it".to_owned(),
        help: "send one JSON object as application/json".to_owned(),
    }
}

fn rolled_back() -> Finding {
    Finding {
        rule: "rolled-back".to_owned(),
        pointer: String::new(),
        from: Some(crate::refusal::From::Stored),
        request_pointer: None,
        value: serde_json::Value::Null,
        limit: serde_json::Value::Null,
        message:
            "The upstream's state is older than the last one recorded here and stays so: it was rolled back"
                .to_owned(),
        help: "Compare this identity's history with the upstream".to_owned(),
    }
}

/// Counts a client that hung up before it was answered.
struct Gone(Option<Arc<Metrics>>);

impl Gone {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(metrics) = &self.0 {
            metrics.clients_gone.inc();
        }
    }
}
