//! A log in a folder, and changes as the pipeline makes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchwarden::audit::anchor::Anchors;
use patchwarden::audit::{
    Audit, Draft, InForce, Intent, Outcome, OutcomeResult, Parts, Recorded, Seen, Settings,
};
use patchwarden::bundle::Bundle;
use patchwarden::clock::{Clock, Time};
use patchwarden::effect;
use patchwarden::id::{ChangeId, Digest, TargetId};
use patchwarden::json::Document;
use patchwarden::keys::Keys;
use patchwarden::metrics::Metrics;
use patchwarden::operation::{Operation, Revision, State};
use patchwarden::policy::{self, Facts, Permit};
use patchwarden::refusal::{Code, Refusal};
use patchwarden::schema::{self, UnknownMembers};
use patchwarden::store::Location;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

/// What changes are judged by.
pub(crate) struct Scene {
    bundle: Bundle,
    operation: Arc<Operation>,
    keys: Keys,
    policy: Digest,
}

/// A change that is ready to be declared.
pub(crate) struct Change {
    draft: Draft,
    permit: Permit,
    turn: u64,
    after: Seen,
}

/// One that was denied.
pub(crate) struct Denied {
    pub(crate) draft: Draft,
    pub(crate) refusal: Refusal,
}

/// Who and what, by number.
pub(crate) fn identity(number: u64) -> TargetId {
    TargetId::canonical("identity", &uuid(number)).unwrap()
}

/// Spread over the key space as real ones are, the same for a number in every run.
fn uuid(number: u64) -> String {
    let hex = Digest::sha256(&[&number.to_be_bytes()]).as_str().trim_start_matches("sha256:").to_owned();
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}

pub(crate) fn caller(number: u64) -> String {
    uuid(u64::MAX - number)
}

pub(crate) fn database(folder: &Path) -> PathBuf {
    folder.join("patchwarden.db")
}

pub(crate) async fn open(folder: &Path) -> Audit {
    let bundle = Bundle::builtin().unwrap();
    let parts = Parts {
        store: Location::Sqlite(database(folder)),
        data: folder.to_owned(),
        settings: Settings::default(),
        late_write_limit: Duration::from_secs(120),
        anchors: Anchors::default(),
        keys: Arc::new(Keys::open(folder, None, database(folder).exists()).unwrap()),
        clock: Clock::System,
        metrics: Arc::new(Metrics::new()),
        tasks: TaskTracker::new(),
        in_force: Some(InForce { policy: bundle.digest().clone(), config: Digest::sha256(&[b"bench"]) }),
    };
    Audit::start(parts).await.unwrap()
}

impl Scene {
    pub(crate) fn new() -> Self {
        let bundle = Bundle::builtin().unwrap();
        let operation = bundle.operation("jwt-auth.update").unwrap().clone();
        let policy = bundle.digest().clone();
        Self { bundle, operation, keys: Keys::ephemeral(), policy }
    }

    fn stored(&self, target: &TargetId, round: u64) -> State {
        let answer = json!({"identityJwtAuth": {
            "id": "6f1d2c3b-4a59-4687-8f10-2b3c4d5e6f70", "identityId": target.id(),
            "createdAt": "2026-01-10T09:00:00.000Z", "updatedAt": "2026-01-10T09:00:00.000Z",
            "configurationType": "jwks", "jwksUrl": "https://idp.example/jwks.json", "jwksCaCert": "",
            "publicKeys": [""], "boundIssuer": "https://idp.example", "boundAudiences": "patchwarden",
            "boundClaims": {"repository": "example/deploy"}, "boundSubject": "service/deploy",
            "accessTokenTTL": 1800 + 600 * (round % 4), "accessTokenMaxTTL": 86400,
            "accessTokenNumUsesLimit": 0, "accessTokenPeriod": 0,
            "accessTokenTrustedIps": [{"ipAddress": "203.0.113.0", "type": "ipv4", "prefix": 24}]
        }});
        State::read(&self.operation.object, &target.id(), &answer).unwrap().state
    }

    fn revision(at: Time) -> Option<Revision> {
        Some(Revision { row: "6f1d2c3b-4a59-4687-8f10-2b3c4d5e6f70".to_owned(), at })
    }

    fn draft(&self, target: &TargetId, body: &Value, by: u64, agent: &str) -> (Draft, Document) {
        let received_at = Clock::System.now();
        let text = body.to_string();
        let digest = self.keys.fingerprint("body", text.as_bytes());
        let token = self.keys.fingerprint("token", &by.to_be_bytes());
        let draft = Draft {
            id: ChangeId::at(received_at),
            received_at,
            started: Instant::now(),
            operation: Some(self.operation.name.clone()),
            object: Some(self.operation.object.clone()),
            target: Some(target.clone()),
            turn: None,
            method: "PATCH".to_owned(),
            path: self.operation.object.path_of(&target.id()),
            organization: None,
            source: [198, 51, 100, u8::try_from(by % 250).unwrap()].into(),
            certificate: None,
            user_agent: Some(agent.to_owned()),
            trace_id: None,
            caller: json!({"kind": "identity", "id": caller(by), "name": format!("ci-{by}"), "token_fingerprint": token}),
            caller_proven: true,
            mode: "enforce",
            body_digest: Some(digest),
            body_length: Some(text.len() as u64),
            edit: None,
            before: None,
            proposed: None,
            policy: Some(self.policy.clone()),
            would: None,
            violations: Vec::new(),
            warnings: Vec::new(),
            settlement: None,
            drift: None,
        };
        (draft, Document::read(text.as_bytes()).unwrap())
    }

    /// The `round`th change of an identity, from 0, if none of them was ever refused; at turn `turn`.
    pub(crate) fn change(&self, target: &TargetId, round: u64, turn: u64, by: u64, agent: &str) -> Change {
        let body = json!({"configurationType": "jwks", "jwksUrl": "https://idp.example/jwks.json",
            "accessTokenTTL": 1800 + 600 * ((round + 1) % 4)});
        match self.judged(target, &body, round, by, agent) {
            (draft, Ok((permit, after))) => Change { draft, permit, turn, after },
            (_, Err(refusal)) => panic!("{refusal:?}"),
        }
    }

    /// A change that the policies deny.
    pub(crate) fn denied(&self, target: &TargetId, by: u64, agent: &str) -> Denied {
        let body = json!({"configurationType": "jwks", "jwksUrl": "http://idp.example/jwks.json"});
        match self.judged(target, &body, 0, by, agent) {
            (draft, Err(refusal)) => Denied { draft, refusal },
            _ => panic!("plain http was let through"),
        }
    }

    fn judged(
        &self,
        target: &TargetId,
        body: &Value,
        round: u64,
        by: u64,
        agent: &str,
    ) -> (Draft, Result<(Permit, Seen), Refusal>) {
        let operation = &self.operation;
        let (mut draft, document) = self.draft(target, body, by, agent);
        let schema = self.bundle.schema(&operation.name);
        let edit = schema::check(schema, operation, &document, target, UnknownMembers::Warn).unwrap();
        let before = self.stored(target, round);
        let proposed = effect::propose(operation, Some(&before), Some(&edit));
        let facts = Facts::new(operation, Some(&before), &proposed, Some(&edit), Some(&document), target)
            .by(Some("bench"))
            .with_schema(schema);
        let now = draft.received_at;
        let verdict = match policy::decide(self.bundle.policies(), &facts, &self.keys) {
            Ok(permit) => {
                draft.warnings.extend_from_slice(permit.warnings());
                let revision = Self::revision(now);
                Ok((permit, Seen { state: proposed.state.clone(), revision, ..Seen::default() }))
            }
            Err(denial) => {
                draft.violations.clone_from(&denial.violations);
                Err(Refusal::new(Code::PolicyDenied, "denied").with_findings(denial.violations))
            }
        };
        let revision = Self::revision(Time(now.0 - 60_000_000));
        draft.before = Some(Seen { state: Some(before), revision, ..Seen::default() });
        draft.edit = Some(edit);
        draft.proposed = Some(proposed.state);
        (draft, verdict)
    }
}

impl Change {
    /// The intent, and what its outcome will be.
    pub(crate) async fn declare(self, audit: &Audit) -> (Intent, Outcome) {
        let took = Duration::from_millis(3);
        let mut outcome = Outcome::seen(OutcomeResult::Applied, Some(200), Clock::System.now(), took);
        outcome.after = Some(self.after);
        let intent = audit.declare(self.draft, self.permit, self.turn, None).await;
        (intent.expect("the intent was refused"), outcome)
    }
}

pub(crate) async fn finish(audit: &Audit, (intent, outcome): (Intent, Outcome)) {
    assert_eq!(audit.finish(intent, outcome).await, Recorded::Written);
}
