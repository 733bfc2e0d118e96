//! Every "no" the gateway can say.
//!
//! A step that cannot hand on its ticket ends in a [`Refusal`]: a [`Code`], a sentence that says what was wrong and
//! what would pass, the [`Finding`]s that point at it, and for what broke rather than was forbidden a `cause`, which
//! is logged and never shown. Only this file maps codes to statuses. `codes.md` beside it explains each to users.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// What a refusal is called, for ever: clients and alerts match on it. See `codes.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "codes.md says what each means")]
pub enum Code {
    RouteNotCanonical,
    RouteNotGoverned,
    CallerMissingToken,
    CallerAmbiguous,
    BodyMediaType,
    BodyTooLarge,
    BodyMalformed,
    BodyDuplicateKey,
    BodyForbiddenKey,
    SchemaInvalid,
    /// Carries the upstream's own status: 401, 403, 404 or 429.
    BeforeRefused(u16),
    BeforeUnavailable {
        timed_out: bool,
    },
    BeforeAbsent,
    BeforePresent,
    BeforeStale,
    PolicyDenied,
    TargetBusy,
    TargetUnsettled,
    AuditUnavailable,
    UpstreamUnreachable,
    UpstreamTimeout,
    UpstreamBroken,
    GatewayOverloaded,
}

impl Code {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RouteNotCanonical => "route.not_canonical",
            Self::RouteNotGoverned => "route.not_governed",
            Self::CallerMissingToken => "caller.missing_token",
            Self::CallerAmbiguous => "caller.ambiguous",
            Self::BodyMediaType => "body.media_type",
            Self::BodyTooLarge => "body.too_large",
            Self::BodyMalformed => "body.malformed",
            Self::BodyDuplicateKey => "body.duplicate_key",
            Self::BodyForbiddenKey => "body.forbidden_key",
            Self::SchemaInvalid => "schema.invalid",
            Self::BeforeRefused(_) => "before.refused",
            Self::BeforeUnavailable { .. } => "before.unavailable",
            Self::BeforeAbsent => "before.absent",
            Self::BeforePresent => "before.present",
            Self::BeforeStale => "before.stale",
            Self::PolicyDenied => "policy.denied",
            Self::TargetBusy => "target.busy",
            Self::TargetUnsettled => "target.unsettled",
            Self::AuditUnavailable => "audit.unavailable",
            Self::UpstreamUnreachable => "upstream.unreachable",
            Self::UpstreamTimeout => "upstream.timeout",
            Self::UpstreamBroken => "upstream.broken",
            Self::GatewayOverloaded => "gateway.overloaded",
        }
    }

    /// The HTTP status it is answered with.
    pub const fn status(self) -> u16 {
        match self {
            Self::RouteNotCanonical
            | Self::CallerAmbiguous
            | Self::BodyMalformed
            | Self::BodyDuplicateKey
            | Self::BodyForbiddenKey
            | Self::BeforeAbsent
            | Self::BeforePresent => 400,
            Self::CallerMissingToken => 401,
            Self::RouteNotGoverned | Self::PolicyDenied => 403,
            Self::BodyTooLarge => 413,
            Self::BodyMediaType => 415,
            Self::SchemaInvalid => 422,
            Self::BeforeRefused(status) => status,
            Self::UpstreamUnreachable
            | Self::UpstreamBroken
            | Self::BeforeUnavailable { timed_out: false } => 502,
            Self::UpstreamTimeout | Self::BeforeUnavailable { timed_out: true } => 504,
            Self::BeforeStale
            | Self::TargetBusy
            | Self::TargetUnsettled
            | Self::AuditUnavailable
            | Self::GatewayOverloaded => 503,
        }
    }

    /// A title for people, the same for every occurrence (RFC 9457 section 3.1.3).
    pub const fn title(self) -> &'static str {
        match self {
            Self::RouteNotCanonical => "Not the canonical spelling of a governed route",
            Self::RouteNotGoverned => "This route is closed here",
            Self::CallerMissingToken => "No readable bearer token",
            Self::CallerAmbiguous => "A header that must be one was sent twice",
            Self::BodyMediaType => "Not exactly one application/json",
            Self::BodyTooLarge => "Body too large",
            Self::BodyMalformed => "Body is not one strict JSON object",
            Self::BodyDuplicateKey => "A key stands twice",
            Self::BodyForbiddenKey => "A forbidden key",
            Self::SchemaInvalid => "The request does not fit the schema",
            Self::BeforeRefused(_) => "The upstream refused the read before the change",
            Self::BeforeUnavailable { .. } => "The state before could not be read",
            Self::BeforeAbsent => "Nothing is attached",
            Self::BeforePresent => "Already attached",
            Self::BeforeStale => "The upstream answered with an outdated state",
            Self::PolicyDenied => "Denied by policy",
            Self::TargetBusy => "Another change of this identity is in flight",
            Self::TargetUnsettled => "An earlier change may still land",
            Self::AuditUnavailable => "The audit log cannot be written",
            Self::UpstreamUnreachable => "The upstream could not be reached",
            Self::UpstreamTimeout => "The upstream did not answer in time",
            Self::UpstreamBroken => "The upstream's answer was not complete",
            Self::GatewayOverloaded => "A limit of the gateway is reached",
        }
    }

    /// Infisical's own name for such an error: its clients read the member `error`.
    pub const fn upstream_error_name(self) -> &'static str {
        match self {
            Self::BeforeRefused(403) => "ForbiddenError",
            Self::BeforeRefused(404) => "NotFound",
            Self::BeforeRefused(429) => "RateLimitExceeded",
            _ => match self.status() {
                400 | 413 | 415 => "BadRequest",
                401 => "UnauthorizedError",
                403 => "PolicyViolationError",
                422 => "ValidationFailure",
                _ => "GatewayError",
            },
        }
    }

    /// Whether the upstream had accepted the caller's token before this was said.
    pub const fn is_proven(self) -> bool {
        match self {
            Self::RouteNotCanonical
            | Self::RouteNotGoverned
            | Self::CallerMissingToken
            | Self::CallerAmbiguous
            | Self::BodyMediaType
            | Self::BodyTooLarge
            | Self::BodyMalformed
            | Self::BodyDuplicateKey
            | Self::BodyForbiddenKey
            | Self::SchemaInvalid
            | Self::BeforeRefused(_)
            | Self::BeforeUnavailable { .. }
            | Self::AuditUnavailable
            | Self::GatewayOverloaded => false,
            Self::BeforeAbsent
            | Self::BeforePresent
            | Self::BeforeStale
            | Self::PolicyDenied
            | Self::TargetBusy
            | Self::TargetUnsettled
            | Self::UpstreamUnreachable
            | Self::UpstreamTimeout
            | Self::UpstreamBroken => true,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a judged value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// The request named the field.
    Request,
    /// It was stored before and the request leaves it as it is.
    Stored,
    /// The upstream writes it because the request left it out.
    Default,
}

/// One thing that is wrong: where, what, and what would pass. Values are already redacted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Id of the rule, or `schema`.
    pub rule: String,
    /// JSON pointer into the normal form of the proposed state (for `schema`: into the request).
    pub pointer: String,
    /// Where the value came from.
    pub from: Option<From>,
    /// JSON pointer into the request, when the value was sent.
    pub request_pointer: Option<String>,
    /// The offending value, redacted.
    pub value: Value,
    /// The bound it broke.
    pub limit: Value,
    /// What is wrong, in one sentence without its final stop.
    pub message: String,
    /// What would pass, with the Terraform argument.
    pub help: String,
}

/// A "no", ready to be recorded and answered.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What it is called.
    pub code: Code,
    /// What was wrong and what would pass; the answer puts `findings` after it.
    pub detail: String,
    /// Everything that is wrong, at once.
    pub findings: Vec<Finding>,
    /// A verified JSON Patch on the request body that would pass.
    pub fix: Option<Value>,
    /// Seconds after which a retry makes sense.
    pub retry_after: Option<u64>,
    /// What broke, for the log only.
    pub cause: Option<String>,
}

impl Refusal {
    /// A refusal that is said in one sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), findings: Vec::new(), fix: None, retry_after: None, cause: None }
    }

    /// With everything that is wrong.
    #[must_use]
    pub fn with_findings(mut self, findings: Vec<Finding>) -> Self {
        self.findings = findings;
        self
    }

    /// With a time to wait, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// With the error that caused it: logged once, never shown.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// The log cannot be written. The cause goes to the log and `/readyz`.
    pub fn audit_unavailable(cause: impl fmt::Display) -> Self {
        Self::new(
            Code::AuditUnavailable,
            "The audit log cannot be written at the moment, so nothing was forwarded",
        )
        .retry_after(5)
        .because(cause)
    }

    /// A limit of the gateway is reached; names the key of the limit.
    pub fn overloaded(limit: &str) -> Self {
        Self::new(
            Code::GatewayOverloaded,
            format!("The gateway's limit `{limit}` is reached; try again shortly"),
        )
        .retry_after(1)
    }
}
