//! Patchwarden.
pub mod clock;
pub mod id;
pub mod json;
pub mod keys;
pub mod metrics;
pub mod network;
pub mod operation;
pub mod refusal;
pub mod units;
