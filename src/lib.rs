//! Patchwarden.
pub mod clock;
pub mod id;
pub mod json;
pub mod keys;
pub mod metrics;
pub mod network;
pub mod refusal;
pub mod respond;
pub mod units;
pub mod upstream;
