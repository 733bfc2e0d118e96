//! What the tests stand on: a gateway (the real binary), an upstream that can be told to misbehave, and a client
//! that sends exactly the bytes it is given.
//!
//! Nothing here imitates the gateway. The samples below are a harmless configuration that no bundled rule minds.
#![expect(dead_code, reason = "support for tests yet to be written")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod crash;
pub(crate) mod gateway;
pub(crate) mod outside;
pub(crate) mod postgres;
pub(crate) mod upstream;

/// An identity the scripted upstream knows, without configuration.
pub(crate) const IDENTITY: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";
/// One that nobody knows.
pub(crate) const STRANGER: &str = "ffffffff-0000-4000-8000-00000000dead";

/// The canonical path of an identity's JWT auth.
pub(crate) fn jwt_auth_path(identity: &str) -> String {
    format!("/api/v1/auth/jwt-auth/identities/{identity}")
}

/// The body of an attach that every bundled rule permits.
pub(crate) fn good_attach() -> Value {
    json!({
        "configurationType": "jwks",
        "jwksUrl": "https://keys.example.com/.well-known/jwks.json",
        "boundIssuer": "https://issuer.example.com",
        "boundAudiences": "patchwarden-tests",
        "boundSubject": "system:serviceaccount:build:deployer",
        "boundClaims": {},
        "accessTokenTrustedIps": [{"ipAddress": "10.20.0.0/16"}],
        "accessTokenTTL": 3600,
        "accessTokenMaxTTL": 7200,
        "accessTokenNumUsesLimit": 0,
    })
}

/// A PATCH that names what the type requires and lays `members` over it.
pub(crate) fn good_patch(members: &Value) -> Value {
    let mut body = json!({
        "configurationType": "jwks",
        "jwksUrl": "https://keys.example.com/.well-known/jwks.json",
    });
    for (key, value) in members.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

/// Waits until something holds, ten seconds at most.
pub(crate) async fn eventually(mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed().as_secs() < 10, "it never did");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A token of three parts that nobody signed; a gateway can only read it.
pub(crate) fn jwt(claims: &Value) -> String {
    let header = json!({"alg": "HS256", "typ": "JWT"});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(&header), part(claims), URL_SAFE_NO_PAD.encode("no signature"))
}

/// The token of a machine identity that calls.
pub(crate) fn machine_token() -> String {
    jwt(&json!({
        "identityId": "5f0d5a52-2b1c-4c55-8f7e-6f1b1d3e9c01",
        "identityName": "ci-deployer",
        "identityAccessTokenId": "8a4f4a0e-64d1-4f0b-a6b2-6b3e2d8c7f10",
        "authTokenType": "identityAccessToken",
        "iat": 1_780_000_000,
        "exp": 1_990_000_000,
    }))
}
