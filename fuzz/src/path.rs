//! There is no way around: what the route lets pass changes no governed state, and what it takes has one spelling.

use std::sync::OnceLock;

use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use patchwarden::refusal::Code;
use patchwarden::route::{self, Match};
use patchwarden::standin::{Estate, StandInRequest};
use serde_json::{Value, json};

use super::{IDENTITY, bundle};

/// A request target as it stands on the request line, with every method that writes.
pub fn path(target: &[u8]) {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let Some(uri) = as_hyper_reads(target, version) else { continue };
        for method in ["PATCH", "POST", "DELETE", "PUT", "patch"] {
            one(&Method::from_bytes(method.as_bytes()).expect("a method"), target, &uri, version);
        }
    }
}

fn as_hyper_reads(target: &[u8], version: Version) -> Option<Uri> {
    if version == Version::HTTP_2 {
        let path = PathAndQuery::try_from(target).ok()?;
        return Uri::builder().scheme("https").authority("gateway.example").path_and_query(path).build().ok();
    }
    Uri::try_from(target).ok()
}

fn one(method: &Method, target: &[u8], uri: &Uri, version: Version) {
    // A fragment is dropped while the request line is read, so it goes nowhere.
    let sent = target.split(|byte| *byte == b'#').next().unwrap_or_default();
    match route::find(bundle().catalogue(), method, uri, version) {
        Err(refusal) => assert_eq!(refusal.code, Code::RouteNotCanonical),
        Ok(Match::Governed(governed)) => {
            let operation = governed.operation();
            assert_eq!(governed.path().as_bytes(), sent, "taken in another spelling than sent");
            assert_eq!(governed.path(), operation.object.path_of(&governed.target().id()));
            assert_eq!(operation.method, *method);
            assert!(!governed.path().bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'%'));
        }
        Ok(Match::Watched(watched)) => {
            let before_query = sent.split(|byte| *byte == b'?').next().unwrap_or_default();
            assert_eq!(watched.path().as_bytes(), before_query, "watched in another spelling than sent");
            if *method != Method::DELETE {
                changes_nothing(method, uri.path_and_query().map_or("/", PathAndQuery::as_str));
            }
        }
        Ok(Match::Passthrough) => {
            changes_nothing(method, uri.path_and_query().map_or("/", PathAndQuery::as_str));
            if let (Ok(raw), true, Version::HTTP_11) = (std::str::from_utf8(target), sent == target, version)
            {
                changes_nothing(method, raw);
            }
        }
    }
}

/// The upstream reads this target; the identity's JWT auth stays what it was.
fn changes_nothing(method: &Method, target: &str) {
    let body = json!({
        "configurationType": "jwks", "jwksUrl": "https://evil.example/jwks", "boundClaims": {},
        "accessTokenTTL": 0, "accessTokenMaxTTL": 0
    });
    let body = body.to_string().into_bytes();
    let headers = [
        ("authorization", "Bearer x".to_owned()),
        ("content-type", "application/json".to_owned()),
        ("content-length", body.len().to_string()),
    ];
    let request = StandInRequest {
        method: method.to_string(),
        target: target.to_owned(),
        headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        body,
    };
    let mut estate = estate(*method != Method::POST).clone();
    let before = estate.state(IDENTITY);
    let answer = estate.handle(&request);
    assert_eq!(before, estate.state(IDENTITY), "a way around: {method} {target:?} {}", answer.status);
}

/// The identity with JWT auth, or ready to be given one.
fn estate(is_attached: bool) -> &'static Estate {
    static ESTATES: OnceLock<[Estate; 2]> = OnceLock::new();
    let estates = ESTATES.get_or_init(|| {
        let mut estates = [Estate::new(), Estate::new()];
        estates[0].add_identity(IDENTITY);
        let row: Value = json!({"jwksUrl": "https://idp.example/jwks", "accessTokenMaxTTL": 60});
        estates[1].attach(IDENTITY, &row);
        estates
    });
    &estates[usize::from(is_attached)]
}
