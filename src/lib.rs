//! Patchwarden.
pub mod clock;
pub mod id;
pub mod units;
pub mod standin;
