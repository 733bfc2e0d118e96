//! A range is read as the upstream reads it, and a union holds exactly what its ranges hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use patchwarden::network::{Range, Union};
use patchwarden::operation::{Entry, Field, Kind, Side};
use patchwarden::standin::Estate;
use serde_json::{Value, json};

use super::IDENTITY;
use super::change::send;

/// Any bytes as the text of one range and as a list of ranges.
pub fn ranges(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        range(text);
    }
    let nets = bytes.chunks_exact(3).take(12).map(|chunk| Net::near(chunk[0], chunk[1], chunk[2]));
    union(&nets.collect::<Vec<_>>());
}

/// What is accepted here, the upstream accepts and stores as the same addresses.
pub fn range(text: &str) {
    let Some(range) = Range::parse(text) else { return };
    let canonical = range.to_string();
    assert_eq!(Range::parse(&canonical), Some(range));
    for sent in [text, &canonical] {
        let mut estate = Estate::new();
        estate.attach(IDENTITY, &json!({"jwksUrl": "https://idp.example/jwks"}));
        let body = json!({
            "configurationType": "jwks", "jwksUrl": "https://idp.example/jwks",
            "accessTokenTrustedIps": [{"ipAddress": sent}]
        });
        let answer = send(&mut estate, "PATCH", body.to_string().into_bytes());
        assert_eq!(answer.status, 200, "the upstream refuses {sent:?}");
        let stored = estate.state(IDENTITY).expect("attached")["accessTokenTrustedIps"].clone();
        let read = Kind::Ranges.read(Side::Answer, &stored, &[]);
        assert_eq!(read, Ok(Field::Ranges(vec![Entry::Range(range)])), "{sent:?} is stored as {stored}");
        same_ends(range, &stored[0]);
    }
}

/// The ends of the range as the stored entry gives them, and their neighbours outside.
fn same_ends(range: Range, stored: &Value) {
    let address = stored["ipAddress"].as_str().and_then(|text| text.parse().ok()).expect("an address");
    let prefix = stored.get("prefix").map(|prefix| prefix.as_u64().and_then(|p| u8::try_from(p).ok()));
    let net = Net { address, prefix: prefix.map(|prefix| prefix.expect("a prefix")).unwrap_or(u8::MAX) };
    for probe in net.edges() {
        let held = range.contains(IpAddr::V6(Ipv6Addr::from_bits(probe)));
        assert_eq!(held, net.holds(probe), "{} in {range}", Ipv6Addr::from_bits(probe));
    }
}

/// A union agrees with a model that compares bit by bit, and with the aggregate of another library.
pub fn union(nets: &[Net]) {
    let ranges: Vec<Range> =
        nets.iter().map(|net| Range::new(net.address, Some(net.own_prefix())).expect("a prefix")).collect();
    let union = Union::of(ranges.iter().copied());
    for probe in nets.iter().flat_map(|net| net.edges()) {
        let one = Union::of(Range::new(IpAddr::V6(Ipv6Addr::from_bits(probe)), None));
        let held = nets.iter().any(|net| net.holds(probe));
        assert_eq!(union.contains(&one), held, "{} in {nets:?}", Ipv6Addr::from_bits(probe));
    }
    let on_the_line: Vec<Ipv6Net> = nets
        .iter()
        .map(|net| Ipv6Net::new(Ipv6Addr::from_bits(net.bits()), net.prefix()).expect("a prefix"))
        .collect();
    let aggregate = Ipv6Net::aggregate(&on_the_line);
    let of_aggregate = Union::of(
        aggregate
            .iter()
            .map(|net| Range::new(net.network().into(), Some(net.prefix_len())).expect("a range")),
    );
    assert_eq!(of_aggregate, union, "{nets:?}");
    for range in ranges {
        assert!(union.contains(&Union::of([range])), "{range} in {nets:?}");
    }
}

/// An address and how many of its bits count: the model.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// With host bits.
    pub address: IpAddr,
    /// Cut to the width of the family.
    pub prefix: u8,
}

impl Net {
    /// One of a few neighbourhoods, so that ranges meet.
    pub fn near(place: u8, last: u8, prefix: u8) -> Self {
        let low = u128::from(last);
        let v6 = |base: u128| IpAddr::V6(Ipv6Addr::from_bits(base ^ low));
        let address = match place % 6 {
            0 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)),
            1 => IpAddr::V4(Ipv4Addr::new(last, 0, 0, 0)),
            2 => v6(0xffff_c000_0200),
            3 => v6(0x2001_0db8 << 96),
            4 => v6(u128::MAX),
            _ => v6(low << 120),
        };
        Self { address, prefix }
    }

    fn own_prefix(self) -> u8 {
        self.prefix.min(if self.address.is_ipv4() { 32 } else { 128 })
    }

    /// On the common line.
    fn prefix(self) -> u8 {
        self.own_prefix() + if self.address.is_ipv4() { 96 } else { 0 }
    }

    fn bits(self) -> u128 {
        match self.address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    fn holds(self, probe: u128) -> bool {
        let bit = |of: u128, at: u8| of >> (127 - at) & 1;
        (0..self.prefix()).all(|at| bit(self.bits(), at) == bit(probe, at))
    }

    /// First and last address, and what lies next to them.
    fn edges(self) -> [u128; 4] {
        let host = (self.prefix()..128).fold(0u128, |host, at| host | 1 << (127 - at));
        let (first, last) = (self.bits() & !host, self.bits() | host);
        [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
    }
}
