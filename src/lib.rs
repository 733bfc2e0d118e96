//! Patchwarden: an auditing policy gateway in front of the Infisical API.
//!
//! Clients use it as their base URL. Everything passes through untouched, except the few requests that decide who may
//! log in as a machine identity: those it stops, understands, judges by JSON Schema and by the organisation's policies,
//! records with the state before and after, and only then forwards.
//!
//! # The life of one PATCH
//!
//! ```text
//! client ──> server (TLS, limits)
//!              │
//!              ▼  admit: cancellable, in the connection's task; holds no lock
//!    1 route    request line            -> Match: operation + target; or Watched; or Passthrough
//!    2 caller   Authorization           -> Caller: claims read, not yet proven
//!    3 body     stream, bounded         -> Document: strict JSON, digest
//!    4 schema   Document                -> Edit: conforms to the operation's schema, in normal form
//!    5 before   GET with caller's token -> Reading: state now, with its revision; the caller is now proven
//!              │
//!              ▼  judge: at the head of the target's queue (GET again if it may be stale)
//!    6 effect   Reading + Edit          -> Proposed: the state this would lead to             (pure)
//!    7 policy   Facts                   -> Permit, or every violation with a fix              (pure)
//!              │
//!              ▼  carry: a tracked task of its own; a client that hangs up stops nothing
//!    8 audit    declare, COMMIT         -> Intent
//!    9 forward  Intent                  -> Reply
//!   10 audit    finish, COMMIT             outcome, after, surprise, breach; then the lock goes
//!              │
//!              ▼
//!   11 respond  the upstream's answer, unchanged, plus patchwarden-* headers
//! ```
//!
//! # Invariants
//!
//! 1. No governed or watched write reaches the upstream unless its intent has been committed durably. `forward` takes an
//!    `Intent`, and only `audit` can make one, after the commit.
//! 2. The `Intent` of a governed write needs a `Permit`, which only `policy::decide` makes; the one of a watched write is
//!    made from `route`'s `Watched`, takes no target lock, and only `passthrough` forwards it. An error while judging
//!    counts as that rule's violation; outside a rule it is a refusal. There is no fail-open switch.
//! 3. What is forwarded is what was judged: a request we built, with the canonical bytes of the normal form. The client's
//!    bytes never go out on a governed route.
//! 4. From the intent on, everything runs to its end whatever the client does; every intent gets an outcome; one whose
//!    end was not seen is `unknown`, holds its target, and is settled.
//! 5. When the log cannot be written, governed and watched writes get 503 and nothing else stops: not pass-through, not
//!    readiness, not a restart.
//! 6. Entries are never changed or removed; the log is gap-free; anyone with the public key can check it offline.
//! 7. No token and no secret is ever written: not in the log, the database, a log line, a metric, an error text. They
//!    appear as keyed fingerprints. (The gateway's own keys live in the data folder, 0600.)
//! 8. `policy::decide` and `effect` are pure: no I/O, no clock.
//! 9. Only `json` parses JSON from outside, only `store` speaks SQL, only `refusal` maps codes to statuses, only `clock`
//!    dates things.
//! 10. Everything from outside has a limit with a name, a default and a key in the config.
//!
//! # The modules
//!
//! One list, in reading order, which is the request's order and the dependency order: a module uses only modules declared
//! above it.

// words every step speaks: no I/O
pub mod clock;
pub mod id;
pub mod units;
pub mod limits;
pub mod refusal;
pub mod json;
pub mod network;
pub mod metrics;
pub mod log;
// the world outside
pub mod keys;
pub mod store;
pub mod upstream;
// what is governed
pub mod operation;
// steps, in order
pub mod route;
pub mod caller;
pub mod body;
pub mod schema;
pub mod before;
pub mod effect;
pub mod policy;
pub mod bundle;
pub mod audit;
pub mod forward;
pub mod settle;
pub mod respond;
pub mod passthrough;
pub mod pipeline;
// the same without traffic
pub mod view;
// doors
pub mod access;
pub mod api;
pub mod server;
// assembly
pub mod config;
pub mod app;
pub mod standin;
pub mod demo;
pub mod cli;
