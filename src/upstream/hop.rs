//! What belongs to one connection and must not cross to the next.
//!
//! Removes the hop-by-hop headers of RFC 9110 section 7.6.1, those a `Connection` header names, `Expect` (answered by
//! this hop) and everything called `patchwarden-*`, in both directions. A `Connection` header is written by the other
//! side, so it may not take away what decides who is asking, what the body is, or what this gateway states.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

/// Ours: nobody else may send it through us, either way.
const OWN_PREFIX: &str = "patchwarden-";

const HOP_BY_HOP: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    header::EXPECT,
];

/// Removes everything that belongs to the connection the headers came on.
pub fn strip(headers: &mut HeaderMap) {
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    let own: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OWN_PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// The same for a request that is streamed on: trailers may follow it, so `Trailer` stays, and of `TE` its `trailers`.
pub fn strip_request(headers: &mut HeaderMap) {
    let wants_trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_answer(headers);
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// The same for an answer that is streamed back: trailers may follow it, so `Trailer` stays.
pub fn strip_answer(headers: &mut HeaderMap) {
    let trailer: Vec<HeaderValue> = headers.get_all(header::TRAILER).iter().cloned().collect();
    strip(headers);
    for value in trailer {
        headers.append(header::TRAILER, value);
    }
}

/// The comma-separated tokens of all lines of a header, trimmed; lines that are no text count as nothing.
pub fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> + use<'h> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|token| token.trim_matches([' ', '\t']))
        .filter(|token| !token.is_empty())
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !is_kept(name))
        .collect()
}

/// What a `Connection` header cannot take away.
fn is_kept(name: &HeaderName) -> bool {
    const KEPT: [HeaderName; 4] =
        [header::HOST, header::AUTHORIZATION, header::COOKIE, HeaderName::from_static("x-api-key")];
    let text = name.as_str();
    KEPT.contains(name) || text.starts_with("content-") || text.starts_with("x-forwarded-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            map
        })
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_belongs_to_one_connection_is_removed_both_ways() {
        let mut map = headers(&[
            ("connection", "close, X-Mine"),
            ("Connection", "x-other"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic x"),
            ("te", "trailers, deflate"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("patchwarden-change", "forged"),
            ("patchwarden-anything", "forged"),
            ("x-kept", "1"),
            ("accept", "*/*"),
        ]);
        strip(&mut map);
        assert_eq!(names(&map), ["accept", "x-kept"]);
    }

    #[test]
    fn connection_cannot_take_away_who_is_asking_or_what_the_body_is() {
        let kept = ["authorization", "content-length", "content-type", "cookie", "host", "x-forwarded-for"];
        let mut map = headers(&kept.map(|name| (name, "1")));
        map.insert(header::CONNECTION, HeaderValue::from_str(&kept.join(", ")).unwrap());
        strip(&mut map);
        assert_eq!(names(&map), kept);
    }

    #[test]
    fn trailers_stay_announced_on_a_streamed_message() {
        let mut map =
            headers(&[("te", "deflate;q=0.5, Trailers"), ("trailer", "x-sum"), ("connection", "te, x-a")]);
        strip_request(&mut map);
        assert_eq!(map[header::TE], "trailers");
        assert_eq!(map[header::TRAILER], "x-sum");
        assert_eq!(map[header::CONNECTION], "te");
        strip_answer(&mut map);
        assert_eq!(names(&map), ["trailer"]);

        let mut map = headers(&[("te", "deflate"), ("connection", "te")]);
        strip_request(&mut map);
        assert!(map.is_empty());
    }

    #[test]
    fn a_connection_header_that_is_no_list_of_names_does_no_harm() {
        let mut map = headers(&[("connection", ",, a b,\u{7f}".trim_end_matches('\u{7f}')), ("x-a", "1")]);
        map.append(header::CONNECTION, HeaderValue::from_bytes(b"\xff").unwrap());
        strip(&mut map);
        assert_eq!(names(&map), ["x-a"]);
    }
}
