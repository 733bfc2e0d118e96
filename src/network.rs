//! Address ranges, read strictly and judged as sets.
//!
//! The upstream's own reader takes almost anything after the slash and the enforcement matches IPv4 clients against
//! IPv4-mapped IPv6 ranges. So one grammar is accepted here (an address as `std` reads it, without zone; a prefix in
//! plain decimal without leading zero), and every range lives on one line of 2^128 addresses with IPv4 at
//! `::ffff:0:0/96`. A [`Union`] of them is what policies look at, never the texts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One CIDR range; host bits are cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    address: IpAddr,
    prefix: u8,
}

impl Range {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or a single address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(plain_decimal(prefix)?)),
        };
        Self::new(address.parse().ok()?, prefix)
    }

    /// From its parts; without a prefix it is the single address.
    pub fn new(address: IpAddr, prefix: Option<u8>) -> Option<Self> {
        let bits = width(address);
        let prefix = prefix.unwrap_or(bits);
        (prefix <= bits).then(|| Self { address: masked(address, prefix), prefix })
    }

    /// Its first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits are fixed.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// First and last address on the common line.
    fn bounds(self) -> (u128, u128) {
        let first = match self.address {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let host_bits = u32::from(width(self.address) - self.prefix);
        (first, first | low_bits(host_bits))
    }

    /// Whether `address` lies in it, whichever family either is written in.
    pub fn contains(self, address: IpAddr) -> bool {
        let (first, last) = self.bounds();
        let (at, _) = Self { address, prefix: width(address) }.bounds();
        (first..=last).contains(&at)
    }
}

impl fmt::Display for Range {
    /// Always with a prefix: `10.0.0.1/32`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A set of addresses: disjoint intervals in ascending order, none touching the next.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Union(Vec<(u128, u128)>);

impl Union {
    /// Everything the ranges hold together.
    pub fn of(ranges: impl IntoIterator<Item = Range>) -> Self {
        let mut intervals: Vec<_> = ranges.into_iter().map(Range::bounds).collect();
        intervals.sort_unstable();
        let mut union: Vec<(u128, u128)> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match union.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => union.push((first, last)),
            }
        }
        Self(union)
    }

    /// Whether every address of `other` is in `self`.
    pub fn contains(&self, other: &Self) -> bool {
        other.0.iter().all(|(first, last)| self.0.iter().any(|(from, to)| from <= first && last <= to))
    }

    fn minus(&self, other: &Self) -> Self {
        let mut rest = self.0.clone();
        for &(from, to) in &other.0 {
            rest = rest
                .into_iter()
                .flat_map(|(first, last)| {
                    let left = (first < from).then(|| (first, last.min(from.saturating_sub(1))));
                    let right = (last > to).then(|| (first.max(to.saturating_add(1)), last));
                    [left, right].into_iter().flatten()
                })
                .collect();
        }
        Self(rest)
    }

    fn intersection_size(&self, other: &Self) -> u128 {
        let mut size: u128 = 0;
        for &(first, last) in &self.0 {
            for &(from, to) in &other.0 {
                let (low, high) = (first.max(from), last.min(to));
                if low <= high {
                    size = size.saturating_add((high - low).saturating_add(1));
                }
            }
        }
        size
    }
}

/// How much of the globally routable address space a set holds, 0 to 1, by family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Of IPv4.
    pub v4: f64,
    /// Of IPv6.
    pub v6: f64,
}

/// The globally routable space: unicast less what IANA's special-purpose registries (RFC 6890, RFC 8190) and the
/// multicast and reserved blocks take out. Build it once.
#[derive(Clone, Debug)]
pub struct Routable {
    v4: Union,
    v6: Union,
}

impl Routable {
    /// The registries as of autumn 2026.
    pub fn new() -> Self {
        let v4 = Union::of(ranges(&["0.0.0.0/0"])).minus(&Union::of(ranges(&[
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ])));
        let v6 = Union::of(ranges(&["2000::/3"])).minus(&Union::of(ranges(&[
            "2001::/23",
            "2001:db8::/32",
            "2002::/16",
            "3fff::/20",
        ])));
        Self { v4, v6 }
    }

    /// The share of each family that `set` holds.
    #[expect(clippy::cast_precision_loss, reason = "a share is compared with a coarse bound")]
    pub fn share(&self, set: &Union) -> Share {
        let of = |space: &Union| set.intersection_size(space) as f64 / space.intersection_size(space) as f64;
        Share { v4: of(&self.v4), v6: of(&self.v6) }
    }
}

impl Default for Routable {
    fn default() -> Self {
        Self::new()
    }
}

fn ranges(texts: &[&str]) -> Vec<Range> {
    texts.iter().filter_map(|text| Range::parse(text)).collect()
}

fn plain_decimal(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & keep).into()
        }
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !low_bits(u32::from(128 - prefix))).into(),
    }
}

fn low_bits(count: u32) -> u128 {
    u128::MAX.checked_shl(count).map_or(u128::MAX, |high| !high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(texts: &[&str]) -> Share {
        let read: Vec<_> = texts.iter().map(|t| Range::parse(t).unwrap_or_else(|| panic!("{t}"))).collect();
        Routable::new().share(&Union::of(read))
    }

    #[test]
    fn one_grammar_is_accepted() {
        for (text, canonical) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("10.0.0.1", Some("10.0.0.1/32")),
            ("2001:DB8::/32", Some("2001:db8::/32")),
            ("::", Some("::/128")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("::ffff:10.0.0.0/104", Some("::ffff:10.0.0.0/104")),
            ("10.0.0.0/0x8", None),
            ("10.0.0.0/0abc", None),
            ("10.0.0.0/00", None),
            ("10.0.0.0/08", None),
            ("10.0.0.0/+0", None),
            ("10.0.0.0/-0", None),
            ("10.0.0.0/ 0", None),
            ("10.0.0.0/0/24", None),
            ("10.0.0.0/0//", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/", None),
            ("010.0.0.0/8", None),
            ("::%0/0", None),
            ("fe80::1%eth0/0", None),
            ("0.0.0.0/0\u{0}", None),
            ("", None),
            ("/0", None),
            ("[::]/0", None),
            ("10.0.0.0/256", None),
            ("1.2.3/8", None),
        ] {
            assert_eq!(Range::parse(text).map(|r| r.to_string()).as_deref(), canonical, "{text}");
        }
    }

    #[test]
    fn lists_that_let_everyone_in_hold_everything() {
        for texts in [
            &["1.2.3.4/0"][..],
            &["0.0.0.0/1", "128.0.0.0/1"],
            &["::ffff:0:0/96"],
            &["::/80"],
            &["::/1"],
            &["::ffff:0:0/97", "::ffff:128.0.0.0/97"],
            &["0.0.0.0/1", "::ffff:128.0.0.0/97"],
            &["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3"],
        ] {
            assert!((share(texts).v4 - 1.0).abs() < f64::EPSILON, "{texts:?}");
        }
        for texts in [&["::/0"][..], &["::/1", "8000::/1"], &["2000::/3"]] {
            assert!((share(texts).v6 - 1.0).abs() < f64::EPSILON, "{texts:?}");
        }
    }

    #[test]
    fn private_and_special_ranges_count_as_nothing() {
        let nothing =
            share(&["10.0.0.0/8", "192.168.0.0/16", "fc00::/7", "fe80::/10", "224.0.0.0/4", "2001:db8::/32"]);
        assert_eq!(nothing, Share { v4: 0.0, v6: 0.0 });
        assert!(share(&["8.0.0.0/8"]).v4 < 1.0 / 16.0);
        assert!(share(&["64.0.0.0/2"]).v4 > 1.0 / 16.0);
    }

    proptest! {
        /// A union agrees with a bit-by-bit model on small prefixes.
        #[test]
        fn a_union_holds_what_its_ranges_hold(
            list in proptest::collection::vec((0u8..=255, 24u8..=32), 0..8),
            probe in 0u8..=255,
        ) {
            let ranges: Vec<_> = list.iter()
                .filter_map(|&(last, prefix)| Range::new(Ipv4Addr::new(192, 0, 2, last).into(), Some(prefix)))
                .collect();
            let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, probe));
            let one = Union::of(Range::new(address, None));
            let held = list.iter().any(|&(last, prefix)| {
                let shift = u32::from(32 - prefix);
                u32::from(last).checked_shr(shift) == u32::from(probe).checked_shr(shift)
            });
            prop_assert_eq!(Union::of(ranges).contains(&one), held);
        }

        #[test]
        fn a_canonical_text_reads_as_itself(bits: u128, prefix in 0u8..=128) {
            let range = Range::new(Ipv6Addr::from_bits(bits).into(), Some(prefix)).unwrap();
            prop_assert_eq!(Range::parse(&range.to_string()), Some(range));
        }
    }
}
