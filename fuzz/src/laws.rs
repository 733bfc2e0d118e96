//! The laws: what must hold whatever is sent. Each function takes any bytes and panics when its law is broken.
//!
//! The fuzz targets search for bytes that break them; the gateway's own tests (`tests/it/laws.rs`) include this file
//! and check them on what is saved here and on generated inputs.

mod change;
mod claims;
mod json;
mod path;
mod policy;
mod proof;
mod ranges;

use std::sync::OnceLock;

use patchwarden::bundle::Bundle;

pub use change::{change, effect};
pub use claims::claims;
pub use json::json;
pub use path::path;
pub use policy::policy;
pub use proof::proof;
pub use ranges::{Net, range, ranges, union};

/// The identity that every law is about.
pub const IDENTITY: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";

fn bundle() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| Bundle::builtin().expect("what is compiled in loads"))
}
