//! Who the client is, as the upstream will be told.
//!
//! The upstream believes the first of thirteen headers, so a client that could send any of them through would choose
//! the address its ranges are checked against. [`Client::of`] takes the peer's address or, behind `trusted_proxies`,
//! the right-most address of `X-Forwarded-For` that is not a trusted proxy; [`Client::stamp`] removes every claim from
//! a request and writes exactly one of each. The two headers that stand for a client certificate never cross.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Uri};
use serde::Deserialize;

use super::hop;
use crate::id::Digest;
use crate::metrics::Metrics;
use crate::network::Range;

/// Longest `Host` that is passed on in `X-Forwarded-Host`: a DNS name with a port is far shorter.
const MAX_HOST: usize = 300;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The headers the upstream takes an address from, in its order; `x-forwarded-for` is one of them.
const ADDRESS: [HeaderName; 13] = [
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("cf-pseudo-ipv4"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-envoy-external-address"),
    FORWARDED_FOR,
    HeaderName::from_static("fastly-client-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-cluser-client-ip"),
    HeaderName::from_static("forwarded-for"),
    HeaderName::from_static("x-forwarded"),
    header::FORWARDED,
    HeaderName::from_static("x-appengine-user-ip"),
];

/// Whoever can set these is that client.
const CERTIFICATE: [HeaderName; 2] = [
    HeaderName::from_static("x-identity-tls-cert-auth-client-cert"),
    HeaderName::from_static("x-ssl-client-cert"),
];

/// Other spellings of scheme, host and address that proxies and frameworks know.
const OTHER: [HeaderName; 8] = [
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("x-original-forwarded-for"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-original-proto"),
    HeaderName::from_static("x-url-scheme"),
    HeaderName::from_static("x-scheme"),
    HeaderName::from_static("front-end-https"),
    HeaderName::from_static("x-host"),
];

/// `[client_address]` of the configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Ranges of the proxies in front of the gateway whose `X-Forwarded-*` is believed.
    pub trusted_proxies: Vec<String>,
}

/// The proxies in front of the gateway.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<Range>);

impl TrustedProxies {
    /// Reads the settings; the text of the error names every entry that is no range.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let (ranges, bad): (Vec<_>, Vec<_>) = settings
            .trusted_proxies
            .iter()
            .map(|text| Range::parse(text).ok_or(text))
            .partition(Result::is_ok);
        let bad: Vec<String> =
            bad.into_iter().filter_map(Result::err).map(|text| format!("{text:?}")).collect();
        if bad.is_empty() {
            let ranges: Vec<Range> = ranges.into_iter().flatten().collect();
            return match ranges.iter().find(|range| range.prefix() == 0) {
                None => Ok(Self(ranges)),
                Some(everybody) => Err(format!(
                    "client_address.trusted_proxies: \"{everybody}\" trusts everybody, so any client could write an address of its choice into the record; name the proxies in front"
                )),
            };
        }
        Err(format!(
            "client_address.trusted_proxies: {} cannot be read; write ranges like `10.0.0.0/8` or single addresses like `192.0.2.7`",
            bad.join(", ")
        ))
    }

    fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }
}

/// The certificate a client has shown and proved to own.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject, as text: `CN=deployer,O=Example` (RFC 4514).
    pub subject: String,
    /// Of its DER form.
    pub sha256: Digest,
}

/// The other end of a connection; each request carries it as an extension.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it comes from; `127.0.0.1:0` through a Unix socket.
    pub address: SocketAddr,
    /// Whether it speaks TLS to us.
    pub tls: bool,
    /// What it has shown, where the port asks for it.
    pub certificate: Option<Arc<Certificate>>,
    /// Whether it came through a Unix socket.
    pub local: bool,
}

impl Peer {
    /// Through a Unix socket.
    pub const LOCAL: Self = Self {
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        tls: false,
        certificate: None,
        local: true,
    };
}

/// The client of one request, and what the upstream is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    address: IpAddr,
    https: bool,
    host: Option<HeaderValue>,
    claim_dropped: bool,
    certificate: Option<Arc<Certificate>>,
}

impl Client {
    /// From a request as it came: its headers and URI, and the connection's other end.
    pub fn of(
        headers: &HeaderMap,
        uri: &Uri,
        from: &Peer,
        trusted: &TrustedProxies,
        metrics: &Metrics,
    ) -> Self {
        let peer = from.address.ip().to_canonical();
        let behind_proxy = trusted.contain(peer);
        let (address, claims_left) =
            if behind_proxy { right_most_untrusted(headers, peer, trusted) } else { (peer, false) };
        let claim_dropped = claims_left
            || CERTIFICATE.iter().any(|name| headers.contains_key(name))
            || ADDRESS
                .iter()
                .filter(|name| !(behind_proxy && **name == FORWARDED_FOR))
                .flat_map(|name| headers.get_all(name))
                .any(|value| !says(value, address));
        if claim_dropped {
            metrics.client_identity_dropped.inc();
        }
        let told = |name: HeaderName| only(headers, &name).filter(|_| behind_proxy);
        let https = match told(FORWARDED_PROTO).map(HeaderValue::as_bytes) {
            Some(b"https") => true,
            Some(b"http") => false,
            _ => from.tls,
        };
        let host = told(FORWARDED_HOST).cloned().or_else(|| host_of(headers, uri));
        let host = host.filter(|host| host.len() <= MAX_HOST);
        Self { address, https, host, claim_dropped, certificate: from.certificate.clone() }
    }

    /// Its address; IPv4 never in the IPv6 spelling.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// What it has shown to the port, if the port asks for it.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    /// Whether the request claimed an address or a certificate that is not passed on. Already counted; worth a log
    /// event `client_identity_dropped`, at most once a minute.
    pub fn claim_dropped(&self) -> bool {
        self.claim_dropped
    }

    /// Takes every claim out of the headers of a request to the upstream and states what is true.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        for name in ADDRESS.iter().chain(&CERTIFICATE).chain(&OTHER) {
            headers.remove(name);
        }
        let forwarded: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
        for name in forwarded {
            headers.remove(name);
        }
        // The text of an address is always a valid value.
        if let Ok(address) = HeaderValue::try_from(self.address.to_string()) {
            headers.insert(FORWARDED_FOR, address);
        }
        let proto = if self.https { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
        if let Some(host) = &self.host {
            headers.insert(FORWARDED_HOST, host.clone());
        }
    }
}

/// Walks `X-Forwarded-For` from the right, past trusted proxies. An entry that cannot be read ends the walk at the
/// proxy that wrote it. The second result is whether claims are left unread to the left.
fn right_most_untrusted(headers: &HeaderMap, peer: IpAddr, trusted: &TrustedProxies) -> (IpAddr, bool) {
    let lines: Vec<&str> = hop::tokens(headers, &FORWARDED_FOR).collect();
    let mut address = peer;
    for (left, entry) in lines.iter().enumerate().rev() {
        let Some(next) = forwarded_address(entry) else { return (address, true) };
        address = next;
        if !trusted.contain(address) {
            return (address, left > 0);
        }
    }
    (address, false)
}

/// `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:443`.
fn forwarded_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip())).ok()?;
    Some(IpAddr::to_canonical(&address))
}

fn says(value: &HeaderValue, address: IpAddr) -> bool {
    value.to_str().ok().and_then(forwarded_address) == Some(address)
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The host the client asked for: the URI's authority (HTTP/2, absolute form) before the `Host` header.
fn host_of(headers: &HeaderMap, uri: &Uri) -> Option<HeaderValue> {
    match uri.authority() {
        Some(authority) => {
            let text = authority.as_str();
            let host = text.rsplit_once('@').map_or(text, |(_, host)| host);
            HeaderValue::from_str(host).ok()
        }
        None => headers.get(header::HOST).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "198.51.100.9:4711";
    const PROXY: &str = "10.0.0.5:4711";

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            map
        })
    }

    fn client(peer: &str, lines: &[(&str, &str)]) -> Client {
        let settings = Settings { trusted_proxies: vec!["10.0.0.0/8".into(), "2001:db8:1::/48".into()] };
        let trusted = TrustedProxies::new(&settings).unwrap();
        let metrics = Metrics::new();
        let uri = Uri::from_static("/x");
        let from = Peer { address: peer.parse().unwrap(), ..Peer::LOCAL };
        let client = Client::of(&headers(lines), &uri, &from, &trusted, &metrics);
        assert_eq!(metrics.client_identity_dropped.get() == 1, client.claim_dropped());
        client
    }

    #[test]
    fn the_address_is_the_peers_or_the_right_most_untrusted_one() {
        for (peer, forwarded, address, dropped) in [
            (PEER, None, "198.51.100.9", false),
            (PEER, Some("198.51.100.9"), "198.51.100.9", false),
            (PEER, Some("203.0.113.1"), "198.51.100.9", true),
            ("[::ffff:198.51.100.9]:1", None, "198.51.100.9", false),
            (PROXY, None, "10.0.0.5", false),
            (PROXY, Some("203.0.113.1"), "203.0.113.1", false),
            ("[::ffff:10.0.0.5]:1", Some("203.0.113.1"), "203.0.113.1", false),
            (PROXY, Some("1.1.1.1, 203.0.113.1, 10.9.9.9"), "203.0.113.1", true),
            (PROXY, Some("203.0.113.1:5555"), "203.0.113.1", false),
            (PROXY, Some("[2001:db8::7]:5555,2001:db8:1::1"), "2001:db8::7", false),
            (PROXY, Some("::ffff:203.0.113.1"), "203.0.113.1", false),
            (PROXY, Some("10.1.1.1, 10.2.2.2"), "10.1.1.1", false),
            (PROXY, Some("203.0.113.1, unknown"), "10.0.0.5", true),
            (PROXY, Some("203.0.113.1, unknown, 10.3.3.3"), "10.3.3.3", true),
            (PROXY, Some(", ,"), "10.0.0.5", false),
        ] {
            let lines: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let client = client(peer, &lines);
            assert_eq!(client.address().to_string(), address, "{peer} {forwarded:?}");
            assert_eq!(client.claim_dropped(), dropped, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn several_lines_read_as_one_list() {
        let lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.1, 10.0.0.7")];
        assert_eq!(client(PROXY, &lines).address().to_string(), "203.0.113.1");
    }

    #[test]
    fn no_claim_crosses_and_exactly_one_of_each_is_stated() {
        let (addresses, certificates) = (ADDRESS, CERTIFICATE);
        let mut lines: Vec<(&str, &str)> =
            addresses.iter().map(|name| (name.as_str(), "127.0.0.1")).collect();
        lines.extend(certificates.iter().map(|name| (name.as_str(), "-----BEGIN")));
        lines.extend([
            ("x-forwarded-for", "127.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-prefix", "/x"),
            ("host", "gateway.example"),
        ]);
        for (peer, host, proto) in [(PEER, "gateway.example", "http"), (PROXY, "evil.example", "https")] {
            let client = client(peer, &lines);
            assert!(client.claim_dropped());
            let mut stamped = headers(&lines);
            client.stamp(&mut stamped);
            let mut left: Vec<_> =
                stamped.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            left.sort_unstable();
            let address = client.address().to_string();
            let expected = [
                ("host", "gateway.example"),
                ("x-forwarded-for", address.as_str()),
                ("x-forwarded-host", host),
                ("x-forwarded-proto", proto),
            ];
            assert_eq!(left, expected, "{peer}");
        }
    }

    #[test]
    fn a_proxy_that_repeats_the_address_in_other_headers_drops_no_claim() {
        let lines = [("x-forwarded-for", "203.0.113.1"), ("x-real-ip", "203.0.113.1")];
        assert!(!client(PROXY, &lines).claim_dropped());
        let lines = [("x-forwarded-for", "203.0.113.1"), ("x-real-ip", "127.0.0.1")];
        assert!(client(PROXY, &lines).claim_dropped());
    }

    #[test]
    fn the_uris_authority_names_the_host_before_the_header_does() {
        let map = headers(&[("host", "header.example")]);
        let uri = Uri::from_static("http://user@uri.example:81/x");
        assert_eq!(host_of(&map, &uri).unwrap(), "uri.example:81");
        assert_eq!(host_of(&map, &Uri::from_static("/x")).unwrap(), "header.example");
    }

    #[test]
    fn an_entry_that_is_no_range_is_named_with_its_key() {
        let settings =
            Settings { trusted_proxies: vec!["10.0.0.0/8".into(), "10.0.0.0/08".into(), "lb".into()] };
        let error = TrustedProxies::new(&settings).unwrap_err();
        for part in ["client_address.trusted_proxies", "\"10.0.0.0/08\"", "\"lb\"", "10.0.0.0/8"] {
            assert!(error.contains(part), "{error}");
        }
        for everybody in ["0.0.0.0/0", "::/0", "10.0.0.0/0"] {
            let settings = Settings { trusted_proxies: vec!["192.0.2.7".into(), everybody.into()] };
            let error = TrustedProxies::new(&settings).unwrap_err();
            assert!(error.contains("trusts everybody"), "{error}");
        }
    }
}
