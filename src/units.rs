//! Durations, sizes and secrets as configuration and policies write them.
//!
//! `500ms 30s 12h 3d` and `64KiB`: one unit each, no fractions, nothing implied. Errors say what would pass. A secret is
//! text that nothing prints.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer};

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

/// A length of time, written with one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// From seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// From milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Reads `500ms`, `30s`, `5m`, `12h`, `3d`.
    pub fn parse(text: &str) -> Result<Self, String> {
        number_with_unit(text, &DURATIONS).map(|millis| Self(Duration::from_millis(millis))).ok_or_else(
            || format!("`{text}` is not a duration; write one like `500ms`, `30s`, `5m`, `12h` or `3d`"),
        )
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, size) =
            DURATIONS.iter().rev().find(|(_, size)| millis > 0 && millis % size == 0).unwrap_or(&("s", 1000));
        write!(f, "{}{unit}", millis / size)
    }
}

/// A number of bytes, written with one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Reads `512B`, `64KiB`, `1MiB`, `2GiB`.
    pub fn parse(text: &str) -> Result<Self, String> {
        number_with_unit(text, &SIZES)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a size; write one like `512B`, `64KiB` or `1MiB`"))
    }

    /// As a count of bytes in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = [SIZES[2], SIZES[1], SIZES[0]]
            .into_iter()
            .find(|(_, size)| self.0 > 0 && self.0.is_multiple_of(*size))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

/// A text that is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps it.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// It, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What is no text may be the secret all the same, so the error does not say what it is.
        String::deserialize(deserializer).map(Self).map_err(|_| de::Error::custom("is not a text"))
    }
}

fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let size = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(size)
}

/// Seconds as people say them: `0` is `no limit`, `7200` is `2h`, `86399` is `23h59m59s`.
pub fn lifetime_text(seconds: u64) -> String {
    if seconds == 0 {
        return "no limit".to_owned();
    }
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect()
}

macro_rules! deserialize_from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
deserialize_from_text!(Span, Size);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_read_back_what_they_print() {
        for text in ["500ms", "30s", "12h", "3d", "90m"] {
            assert_eq!(Span::parse(text).map(|s| s.to_string()).as_deref(), Ok(text));
        }
        for text in ["64KiB", "1MiB", "2GiB", "513B"] {
            assert_eq!(Size::parse(text).map(|s| s.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_bare_number_is_refused_with_what_would_pass() {
        for text in ["30", "", "s", "1.5h", "-1s", "1 s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(Span::parse(text).is_err_and(|e| e.contains("`30s`")), "{text}");
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lifetimes_read_as_people_say_them() {
        for (seconds, text) in
            [(0, "no limit"), (7200, "2h"), (86_399, "23h59m59s"), (2_592_000, "30d"), (60, "1m")]
        {
            assert_eq!(lifetime_text(seconds), text);
        }
    }
}
