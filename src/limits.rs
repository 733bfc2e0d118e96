//! Every limit of the gateway: the section `[limits]`.
//!
//! Everything from outside is bounded by one of these. Sizes are bytes, times are durations, the rest are counts. Zero is
//! refused at load: nothing here can be switched off.

use serde::Deserialize;

use crate::units::{Size, Span};

macro_rules! limits {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty = $default:expr,)*) => {
        /// The limits, with their defaults.
        #[derive(Clone, Debug, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Limits {
            $($(#[doc = $doc])* pub $name: $type,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        /// Name, default and meaning of each, for the printed configuration.
        pub fn described() -> Vec<(&'static str, String, &'static str)> {
            let defaults = Limits::default();
            vec![$((stringify!($name), defaults.$name.shown(), concat!($($doc),*).trim()),)*]
        }

        impl Limits {
            /// Names of limits that are zero.
            pub fn zeros(&self) -> Vec<&'static str> {
                [$((stringify!($name), self.$name.is_zero()),)*]
                    .into_iter()
                    .filter_map(|(name, is_zero)| is_zero.then_some(name))
                    .collect()
            }
        }
    };
}

limits! {
    /// header lines of a request
    headers: usize = 128,
    /// largest head of an HTTP/1.1 request; of an HTTP/2 one half of it
    header_bytes: Size = Size(64 << 10),
    /// requests at once on one HTTP/2 connection
    streams: u32 = 128,
    /// largest body of a governed request
    body: Size = Size(64 << 10),
    /// levels of nesting in it
    json_depth: usize = 32,
    /// entries of one array or object in it
    json_items: usize = 4096,
    /// time for a governed request's body to arrive
    body_read: Span = Span::secs(10),
    /// time of the read of the state before
    before: Span = Span::secs(8),
    /// time of a forwarded change, to the end of its answer
    forward: Span = Span::secs(30),
    /// largest answer to either of them
    answer: Size = Size(1 << 20),
    /// time a change waits for another of the same identity
    target_wait: Span = Span::secs(5),
    /// changes that wait for one identity
    target_waiters: usize = 32,
    /// changes of one caller that wait at once
    caller_waiters: usize = 8,
    /// bodies of governed requests that are read at once
    bodies: usize = 1024,
    /// governed requests at once, from when the upstream has accepted their caller
    in_flight: usize = 1024,
    /// all requests at once
    requests: usize = 8192,
    /// refused reads before a change, per source and minute
    failed_reads: u32 = 60,
    /// bytes of a refused request's body that are read and dropped
    drain: Size = Size(256 << 10),
    /// time to the head of a passed-through answer
    passthrough_head: Span = Span::secs(120),
    /// open websockets
    tunnels: usize = 512,
    /// connections of the gateway's port
    connections: usize = 10_000,
    /// time of a TLS handshake, and to the first byte of a connection
    handshake: Span = Span::secs(5),
    /// time for a request's head to arrive, and of an idle connection
    header_read: Span = Span::secs(30),
    /// silence between requests of an HTTP/2 connection
    idle: Span = Span::secs(60),
    /// time to connect to the upstream
    connect: Span = Span::secs(3),
    /// time for what is in flight when the gateway stops
    shutdown: Span = Span::secs(30),
}

/// What a limit's type says of itself.
trait Value {
    /// As TOML.
    fn shown(&self) -> String;

    fn is_zero(&self) -> bool;
}

impl Value for Size {
    fn shown(&self) -> String {
        format!("\"{self}\"")
    }

    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl Value for Span {
    fn shown(&self) -> String {
        format!("\"{self}\"")
    }

    fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
}

impl Value for usize {
    fn shown(&self) -> String {
        self.to_string()
    }

    fn is_zero(&self) -> bool {
        *self == 0
    }
}

impl Value for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }

    fn is_zero(&self) -> bool {
        *self == 0
    }
}
