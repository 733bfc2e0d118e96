//! What goes into a store and comes out of it: rows, and what is asked of them.
//!
//! Plain fields without meanings: what a kind, a code or an outcome says is known elsewhere.

use std::borrow::Cow;
use std::time::Duration;

/// A process that wants to append to a log.
#[derive(Clone, Debug)]
pub struct Claim {
    /// It; random.
    pub holder: String,
    /// Who is known to be dead: the process that had this data folder before.
    pub before: Option<String>,
    /// How long others take it to be alive without hearing of it.
    pub lease: Duration,
}

/// Who appends to a log, and for how long others take it to be alive.
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    /// Every append names it; whoever takes the log over moves it.
    pub epoch: i64,
    /// From each append on, by the database's clock.
    pub lease: Duration,
}

/// An intent without outcome whose gateway is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// Its log.
    pub origin: String,
    /// Its number.
    pub index: u64,
    /// How long ago its gateway's lease ended.
    pub since: Duration,
}

/// One entry as a row.
#[derive(Clone, Debug)]
pub struct EntryRow {
    /// Number in the log.
    pub index: u64,
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// The entry it speaks of.
    pub of: Option<(String, u64)>,
    /// The exact bytes.
    pub envelope: Vec<u8>,
    /// Salt of the payload.
    pub salt: [u8; 32],
    /// The payload; empty where retention removed it, as it may in what is copied.
    pub body: Vec<u8>,
}

/// An entry read back.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// Its row.
    pub row: i64,
    /// Its log.
    pub origin: String,
    /// Its number.
    pub index: u64,
    /// Its kind.
    pub kind: String,
    /// The entry it speaks of.
    pub of: Option<(String, u64)>,
    /// The exact bytes.
    pub envelope: Vec<u8>,
    /// The payload, unless retention removed it.
    pub body: Option<Vec<u8>>,
    /// Its salt.
    pub salt: Option<Vec<u8>>,
}

/// An entry that still has its payload, without either.
#[derive(Clone, Debug)]
pub struct Bearing {
    /// Its row.
    pub row: i64,
    /// Its log.
    pub origin: String,
    /// Its number.
    pub index: u64,
    /// Its kind.
    pub kind: String,
    /// The entry it speaks of.
    pub of: Option<(String, u64)>,
}

/// A log of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Its name.
    pub origin: String,
    /// Number of its entries.
    pub size: u64,
    /// The stored frontier.
    pub frontier: Vec<u8>,
    /// Microseconds until its lease ends, below zero since it ended; `None` where there are no leases.
    pub leased_for: Option<i64>,
    /// Attempts without outcome.
    pub pending: u64,
    /// The log that goes on in its place.
    pub succeeded_by: Option<String>,
}

/// A signed head of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Number of entries it speaks of.
    pub size: u64,
    /// When it was signed, in microseconds.
    pub at: i64,
    /// What is signed.
    pub body: String,
    /// The lines of signatures under it.
    pub signatures: String,
}

impl CheckpointRow {
    /// The signed note.
    pub fn note(&self) -> String {
        format!("{}\n{}", self.body, self.signatures)
    }
}

/// A key that a log is signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogKey {
    /// The log.
    pub origin: String,
    /// Ed25519, 32 bytes in hex.
    pub public: String,
    /// From which of its entries on.
    pub since: u64,
}

/// What a store holds beside its logs.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Every target's row.
    pub targets: Vec<TargetRow>,
    /// Every bundle that was in force, by digest.
    pub bundles: Vec<(String, Vec<u8>)>,
    /// Every admin token.
    pub tokens: Vec<TokenRow>,
}

/// The end of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of entries.
    pub size: u64,
    /// The stored frontier.
    pub frontier: Vec<u8>,
    /// Who may append.
    pub epoch: i64,
}

/// A target's row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRow {
    /// `identity/<uuid>`
    pub key: String,
    /// Number of its changes.
    pub seq: u64,
    /// Moves on every open and every close.
    pub turn: u64,
    /// The intent that holds it.
    pub open: Option<(String, u64)>,
    /// From when lateness counts, in microseconds of the store's clock.
    pub open_since: i64,
    /// Whether it is held by an unknown outcome.
    pub open_unknown: bool,
    /// The newest revision known, as the caller wrote it.
    pub revision: Option<String>,
}

/// A target as a reader sees it.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Its row.
    pub row: TargetRow,
    /// The database's own clock, where several gateways share it.
    pub now: Option<i64>,
    /// Until when the gateway that holds it counts as alive, by that clock.
    pub leased_until: Option<i64>,
}

/// One row of the projection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeRow {
    /// Row of the attempt.
    pub row: i64,
    /// `attempt`, `fold` or `drift`.
    pub kind: String,
    /// Log of the attempt.
    pub origin: String,
    /// Number of the attempt in the log.
    pub index: u64,
    /// Id of the change.
    pub id: String,
    /// When, in microseconds.
    pub at: i64,
    /// `identity/<uuid>`
    pub target: Option<String>,
    /// Which governed change of its target it is; a watched write is none.
    pub seq: Option<u64>,
    /// Operation.
    pub operation: Option<String>,
    /// Id of the caller.
    pub caller: Option<String>,
    /// Decision.
    pub decision: String,
    /// `deny` in observe mode.
    pub would: Option<String>,
    /// Outcome.
    pub outcome: String,
    /// Result of the settlement.
    pub settled: Option<String>,
    /// Whether there are warnings.
    pub warned: bool,
    /// Ids of rules, each between spaces.
    pub rules: String,
    /// Pointers that changed, each between spaces.
    pub pointers: String,
    /// What `contains` looks in, lower case.
    pub search: String,
    /// Row of the outcome.
    pub outcome_row: Option<i64>,
    /// Row of the settlement.
    pub settlement_row: Option<i64>,
}

/// Which rows of the projection stand in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kinds {
    /// Attempts.
    #[default]
    Changes,
    /// What was changed past the log.
    Drift,
    /// Both.
    Both,
}

impl Kinds {
    /// As a condition.
    pub(super) const fn condition(self) -> &'static str {
        match self {
            Self::Changes => "kind = 'attempt'",
            Self::Drift => "kind = 'drift'",
            Self::Both => "kind IN ('attempt', 'drift')",
        }
    }
}

/// A target that is held by an unknown outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// `identity/<uuid>`
    pub key: String,
    /// Log and number of the intent that holds it.
    pub open: (String, u64),
}

/// What an outcome or a settlement changes in the projection.
#[derive(Clone, Debug, Default)]
pub struct ChangeUpdate {
    /// The attempt's log and number.
    pub of: (String, u64),
    /// The outcome, with its row.
    pub outcome: Option<(String, i64)>,
    /// The settlement's result, with its row.
    pub settled: Option<(String, i64)>,
    /// Pointers that changed, if they are known better now.
    pub pointers: Option<String>,
    /// Further text for `contains`.
    pub search: String,
}

/// Which part of the projection, and from where on.
#[derive(Clone, Debug, Default)]
pub struct ChangeQuery {
    /// Which kinds of rows.
    pub kinds: Kinds,
    /// `identity/<uuid>`
    pub target: Option<String>,
    /// Not before, in microseconds.
    pub since: Option<i64>,
    /// Before, in microseconds.
    pub until: Option<i64>,
    /// Oldest first.
    pub ascending: bool,
    /// Without rules, pointers and the text to search: they are long.
    pub lean: bool,
    /// Go on after this place.
    pub after: Option<(i64, String)>,
}

/// An admin token's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Its name.
    pub name: String,
    /// `reader` or `operator`.
    pub role: String,
    /// SHA-256 of the secret, hex.
    pub hash: String,
    /// When it was made, in microseconds.
    pub created_at: i64,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}
