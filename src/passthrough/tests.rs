use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        map
    })
}

fn offer() -> Vec<(&'static str, &'static str)> {
    vec![("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-key", KEY)]
}

#[test]
fn the_accept_is_the_one_of_rfc_6455() {
    let accept = accept_of(&Method::GET, Version::HTTP_11, &headers(&offer()));
    assert_eq!(accept.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
}

#[test]
fn only_a_well_formed_get_is_an_offer() {
    let map = headers(&offer());
    assert_eq!(accept_of(&Method::PATCH, Version::HTTP_11, &map), None);
    assert_eq!(accept_of(&Method::GET, Version::HTTP_10, &map), None);
    for (name, value) in [
        ("upgrade", "h2c"),
        ("upgrade", "websocket, h2c"),
        ("connection", "keep-alive"),
        ("sec-websocket-key", "c2hvcnQ="),
        ("sec-websocket-key", "not base64 at all!!!!!!!"),
        ("content-length", "5"),
        ("transfer-encoding", "chunked"),
    ] {
        let mut map = headers(&offer());
        map.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        assert_eq!(accept_of(&Method::GET, Version::HTTP_11, &map), None, "{name}: {value}");
    }
    for twice in ["upgrade", "sec-websocket-key"] {
        let mut map = headers(&offer());
        let value = map[twice].clone();
        map.append(HeaderName::from_static(twice), value);
        assert_eq!(accept_of(&Method::GET, Version::HTTP_11, &map), None, "{twice}");
    }
}

#[test]
fn a_101_proves_that_it_read_the_key() {
    let accept = accept_for(KEY.as_bytes());
    let good =
        [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", accept.as_str())];
    assert!(accepts(&headers(&good), &accept));
    for missing in 0..good.len() {
        let mut lines = good.to_vec();
        lines.remove(missing);
        assert!(!accepts(&headers(&lines), &accept), "{lines:?}");
    }
    assert!(!accepts(&headers(&good), &accept_for(b"another")));
}

#[test]
fn the_crumbs_of_a_cookie_are_joined() {
    let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
    join_cookies(&mut map);
    assert_eq!(map.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
}

#[tokio::test]
async fn nobody_is_late_while_the_request_is_being_sent() {
    let limit = Duration::from_millis(100);
    let (sending, sent) = oneshot::channel::<()>();
    let mut late = std::pin::pin!(late(limit, Some(sent)));
    assert!(tokio::time::timeout(limit * 3, late.as_mut()).await.is_err());
    drop(sending);
    assert!(tokio::time::timeout(limit / 2, late.as_mut()).await.is_err());
    assert!(tokio::time::timeout(limit * 20, late).await.is_ok());
}
