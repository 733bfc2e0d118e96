//! Every integration test in one binary: one file a step, and the rules that no lint can check.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod deploy;
mod tidy;
