//! The integration tests: one binary, the real program between a scripted upstream and raw clients.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should panic")]
#![expect(clippy::disallowed_methods, reason = "tests read JSON and run tasks of their own")]

mod anchors;
mod change;
mod cli;
mod clients;
mod corpus;
mod coverage;
mod crash;
mod deploy;
mod doors;
mod fleets;
mod floods;
mod http2;
mod keeping;
mod laws;
mod limits;
mod lost;
mod outage;
mod passthrough;
mod proofs;
mod races;
mod refusals;
mod reload;
mod replay;
mod rules;
mod scan;
mod secrets;
mod settlement;
mod stories;
mod streams;
mod support;
mod support_works;
mod tidy;
mod tls;
mod truth;
mod verify;
