//! Attempts to get around the gateway, and what only looks like one.
//!
//! Each file of `corpus/` is a family of rows: bytes, what the upstream would make of them alone, and what must become
//! of them here. Every row is sent twice over real sockets: to the gateway, and to an upstream without one. It is
//! judged by what the upstreams received and hold, and by the record, never by the answer alone.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::client::Connection;
use crate::support::gateway::Gateway;
use crate::support::upstream::{Seen, Upstream};
use crate::support::{good_attach, jwt_auth_path};

/// One family.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    /// What rows that do not say otherwise expect.
    expect: String,
    alone: String,
    attempts: Vec<Attempt>,
}

/// One attempt. What it does not say is a PATCH that opens the identity to everybody, in every other way impeccable.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attempt {
    name: String,
    why: String,
    method: Option<String>,
    target: Option<String>,
    version: Option<String>,
    /// Whole lines, after `Host`, `Authorization` and `Content-Type`.
    headers: Option<Vec<String>>,
    /// Lines left out: `host`, `authorization`, `content-type`, `content-length`.
    #[serde(default)]
    without: Vec<String>,
    body: Option<String>,
    /// Members of the body beside the two required ones.
    patch: Option<String>,
    /// Everything, instead of the above.
    raw: Option<String>,
    /// A refusal's code; `bare`: the protocol layer answers or closes; `allowed`; `rejected` by the upstream; `passes`: forwarded, no effect.
    expect: Option<String>,
    /// What the upstream does with it alone: `changes` or `unchanged`.
    alone: Option<String>,
}

/// For an answer; the gateway here waits for a second.
const PATIENCE: Duration = Duration::from_millis(1500);

const OPEN: &str = r#""accessTokenTrustedIps":[{"ipAddress":"0.0.0.0/0"}]"#;

impl Attempt {
    fn bytes(&self, id: &str, token: &str) -> Vec<u8> {
        let text = self.raw.clone().unwrap_or_else(|| self.composed());
        let bare: String = id.chars().filter(|c| *c != '-').collect();
        let text = text
            .replace("{path}", &jwt_auth_path(id))
            .replace("{id}", id)
            .replace("{ID}", &id.to_ascii_uppercase())
            .replace("{bare}", &bare)
            .replace("{token}", token)
            .replace("{open}", OPEN)
            .replace("{required}", REQUIRED);
        let mut bytes = expanded(&text);
        if let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let length = (bytes.len() - head - 4).to_string();
            let mark = b"{length}";
            while let Some(at) = bytes.windows(mark.len()).position(|window| window == mark) {
                bytes.splice(at..at + mark.len(), length.bytes());
            }
        }
        bytes
    }

    fn composed(&self) -> String {
        let method = self.method.as_deref().unwrap_or("PATCH");
        let target = self.target.as_deref().unwrap_or("{path}");
        let version = self.version.as_deref().unwrap_or("HTTP/1.1");
        let mut text = format!("{method} {target} {version}\r\n");
        let lines = [
            ("host", "Host: gateway.example"),
            ("authorization", "Authorization: Bearer {token}"),
            ("content-type", "Content-Type: application/json"),
            ("content-length", "Content-Length: {length}"),
        ];
        for (name, line) in lines {
            if !self.without.iter().any(|without| without == name) {
                text += line;
                text += "\r\n";
            }
        }
        for line in self.headers.iter().flatten() {
            text += line;
            text += "\r\n";
        }
        text += "\r\n";
        match (&self.body, &self.patch) {
            (Some(body), _) => text + body,
            (None, patch) => text + "{{required}," + patch.as_deref().unwrap_or("{open}") + "}",
        }
    }
}

const REQUIRED: &str =
    r#""configurationType":"jwks","jwksUrl":"https://keys.example.com/.well-known/jwks.json""#;

/// `{0xff}` is that byte, `{3*ab}` is `ababab`.
fn expanded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        bytes.extend_from_slice(before.as_bytes());
        let inner = from[1..].split('}').next().unwrap_or_default();
        let byte = inner.strip_prefix("0x").filter(|hex| hex.len() == 2);
        let byte = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let repeat =
            inner.split_once('*').and_then(|(count, what)| Some((count.parse::<usize>().ok()?, what)));
        match (byte, repeat) {
            (Some(byte), _) => bytes.push(byte),
            (None, Some((count, what))) => bytes.extend_from_slice(what.repeat(count).as_bytes()),
            (None, None) => {
                bytes.push(b'{');
                rest = &from[1..];
                continue;
            }
        }
        rest = &from[inner.len() + 2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// A place with identities of its own, one for each row.
struct Stage {
    upstream: Upstream,
    gateway: Option<Gateway>,
}

/// What became of one row.
struct Effect {
    changed: bool,
    status: Option<u16>,
    code: Option<String>,
    writes: Vec<Seen>,
    recorded: Vec<Value>,
}

impl Stage {
    async fn play(&self, attempt: &Attempt, id: &str) -> Effect {
        self.upstream.estate().add_identity(id);
        self.upstream.attach(id, &good_attach());
        let before = self.upstream.state(id);
        self.upstream.clear();
        let address = self.gateway.as_ref().map_or(self.upstream.addr(), Gateway::addr);
        let mut connection = Connection::open(address).await;
        // A peer may answer and close before it has read everything.
        let _ = connection.send(attempt.bytes(id, &crate::support::machine_token())).await;
        let answer = tokio::time::timeout(PATIENCE, connection.read_answer()).await;
        let answer = answer.ok().and_then(Result::ok);
        // Whatever follows on the same connection; one that says when it ends is not cut short.
        if !attempt.raw.as_ref().is_some_and(|raw| raw.contains("Connection: close")) {
            let _ = connection.finish_sending().await;
        }
        let _ = tokio::time::timeout(PATIENCE, connection.read_to_close()).await;
        let changed = self.upstream.state(id) != before;
        let recorded = match &self.gateway {
            Some(gateway) if changed => {
                gateway.history(&["--target", id])["changes"].as_array().cloned().unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let code = answer.as_ref().and_then(|answer| {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let value: Value = text.parse().ok()?;
            value["code"].as_str().map(str::to_owned)
        });
        Effect {
            changed,
            status: answer.map(|answer| answer.status),
            code,
            writes: self.upstream.writes(),
            recorded,
        }
    }
}

/// What is wrong with the effect of a row, if anything.
fn offence(expect: &str, effect: &Effect, id: &str) -> Option<String> {
    let Effect { changed, status, code, writes, recorded } = effect;
    let said = format!("answered {status:?} {code:?}, {} writes, changed: {changed}", writes.len());
    let is_recorded = recorded.iter().any(|change| {
        change["decision"] == "allow"
            && (change["outcome"] == "applied" || change["settlement"]["result"] == "applied")
    });
    if *changed && !is_recorded {
        return Some(format!("changed without a record: {said}"));
    }
    let right = match expect {
        "allowed" => {
            let canonical = |seen: &Seen| {
                seen.target == jwt_auth_path(id)
                    && (seen.method == "DELETE" || seen.all("content-type") == ["application/json"])
            };
            *status == Some(200) && writes.len() == 1 && writes.iter().all(canonical)
        }
        // The upstream's own rules say no.
        "rejected" => !changed && code.is_none() && *status == Some(400) && writes.len() == 1,
        "passes" => !changed && code.is_none() && status.is_some(),
        "bare" => {
            !changed && writes.is_empty() && code.is_none() && status.is_none_or(|status| status >= 400)
        }
        refusal => !changed && writes.is_empty() && code.as_deref() == Some(refusal),
    };
    (!right).then_some(said)
}

async fn play(family: &str, text: &str) {
    let family_of = |error: toml::de::Error| panic!("corpus/{family}.toml: {error}");
    let rows: Family = toml::from_str(text).unwrap_or_else(family_of);
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream.url())
        .config("[limits]\nbody_read = \"1s\"\nheader_read = \"1s\"\n")
        .start()
        .await;
    let through = Stage { upstream, gateway: Some(gateway) };
    let alone = Stage { upstream: Upstream::start(), gateway: None };
    let (mut offences, mut accepted) = (String::new(), 0);
    for (number, attempt) in rows.attempts.iter().enumerate() {
        assert!(!attempt.why.is_empty(), "{}: why?", attempt.name);
        let id = format!("{number:04x}abcd-7d3f-4f7e-9a43-0c8f3f1d2e4a");
        let expect = attempt.expect.as_deref().unwrap_or(&rows.expect);
        let effect = through.play(attempt, &id).await;
        if let Some(what) = offence(expect, &effect, &id) {
            writeln!(offences, "{}: expected {expect}; {what}", attempt.name).unwrap();
        }
        let changes = alone.play(attempt, &id).await.changed;
        let expect = attempt.alone.as_deref().unwrap_or(&rows.alone);
        accepted += usize::from(changes);
        if changes != (expect == "changes") {
            writeln!(offences, "{}: alone, expected {expect}; changed: {changes}", attempt.name).unwrap();
        }
    }
    let count = rows.attempts.len();
    eprintln!("{family}: {count} attempts, {accepted} of which the upstream alone takes");
    assert!(offences.is_empty(), "\n{offences}");
    assert_eq!(
        through.gateway.map(|gateway| gateway.history(&["--outcome", "pending"])["changes"].clone()),
        Some(json!([]))
    );
}

macro_rules! families {
    ($($family:ident)*) => {
        $(
            #[tokio::test]
            async fn $family() {
                play(stringify!($family), include_str!(concat!("corpus/", stringify!($family), ".toml"))).await;
            }
        )*
    };
}

families! { paths methods media framing bodies ranges lifetimes bounds }
