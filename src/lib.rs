//! Patchwarden.
pub mod clock;
pub mod id;
pub mod json;
pub mod keys;
pub mod metrics;
pub mod network;
pub mod passthrough;
pub mod refusal;
pub mod respond;
pub mod server;
pub mod units;
pub mod upstream;
