//! `patchwarden scan`: what stands there now, judged by the policies, without a gateway and without a store.
//!
//! Lists the identities that a token can see, reads each JWT auth configuration and prints one line for each violation,
//! with what a rule's `existing` would make of it. Sends reads only, a few at a time, and waits when the upstream asks
//! for patience. Ends with 1 when something violates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::StreamExt as _;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use serde_json::{Value, json};

use super::out::{complain, print};
use super::{UNABLE, WRONG};
use crate::app::{self, Failure};
use crate::before::{self, Source};
use crate::bundle::Bundle;
use crate::clock::Clock;
use crate::config::Config;
use crate::id::TargetId;
use crate::json;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::operation::Object;
use crate::policy;
use crate::refusal::{Code, Finding};
use crate::upstream::Upstream;
use crate::view;

/// Identities in one page of the list.
const PAGE: usize = 100;
/// How often a read is tried that the upstream answers with 429.
const MAX_TRIES: usize = 6;

/// What `scan` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File with a token that may read identities; nothing else stands in it
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Reads at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    concurrency: u8,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One object with every identity
    Json,
    /// One line for each violation
    Csv,
}

/// An identity of the list.
#[derive(Clone, Debug)]
struct Identity {
    id: String,
    name: String,
}

/// What was found of one.
struct Found {
    identity: Identity,
    /// `None`: no JWT auth is attached.
    violations: Option<Vec<Finding>>,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let bundle = app::load_bundle(config)?;
    let metrics = Arc::new(Metrics::new());
    let upstream = Upstream::new(&config.upstream, config.limits.connect.0, metrics);
    let upstream = upstream.map_err(|error| unable(error.to_string()))?;
    let scan = Scan { upstream, headers: headers(&args.token_file)?, config, bundle: &bundle };
    let object = bundle.operations().values().next().map(|operation| operation.object.clone());
    let object = object.ok_or_else(|| unable("the bundle governs nothing"))?;

    let identities = scan.identities().await?;
    let total = identities.len();
    let mut found = Vec::new();
    let mut unread = Vec::new();
    let mut reads = futures_util::stream::iter(identities)
        .map(|identity| scan.one(&object, identity))
        .buffered(usize::from(args.concurrency));
    while let Some(read) = reads.next().await {
        match read {
            Ok(one) => found.push(one),
            Err(why) => unread.push(why),
        }
        if (found.len() + unread.len()).is_multiple_of(PAGE) && total > PAGE {
            complain(&format!("{} of {total} identities read", found.len() + unread.len()));
        }
    }
    print(&match args.format {
        Format::Table => table(&found, &unread),
        Format::Json => format!("{:#}\n", as_json(&found, &unread)),
        Format::Csv => csv(&found),
    })?;
    for why in &unread {
        complain(why);
    }
    let violates = found.iter().any(|one| one.violations.as_ref().is_some_and(|found| !found.is_empty()));
    Ok(match (violates, unread.is_empty()) {
        (true, _) => WRONG,
        (false, false) => UNABLE,
        (false, true) => 0,
    })
}

fn unable(message: impl Into<String>) -> Failure {
    Failure { code: UNABLE, message: message.into() }
}

fn headers(token_file: &Path) -> Result<HeaderMap, Failure> {
    let wrong =
        |what: &dyn std::fmt::Display| unable(format!("--token-file {}: {what}", token_file.display()));
    let text = std::fs::read_to_string(token_file).map_err(|error| wrong(&error))?;
    let token = text.trim();
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .ok()
        .filter(|_| !token.is_empty() && !token.contains(char::is_whitespace))
        .ok_or_else(|| wrong(&"holds no token, or more than one"))?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

struct Scan<'a> {
    upstream: Upstream,
    headers: HeaderMap,
    config: &'a Config,
    bundle: &'a Bundle,
}

impl Scan<'_> {
    /// Every identity the token can see.
    async fn identities(&self) -> Result<Vec<Identity>, Failure> {
        let mut all: Vec<Identity> = Vec::new();
        loop {
            let page = self.page(all.len()).await?;
            let listed = page.get("identities").and_then(Value::as_array);
            let listed = listed.ok_or_else(|| unable("the list of identities has no `identities`"))?;
            let text =
                |entry: &Value, name: &str| entry.pointer(name).and_then(Value::as_str).map(str::to_owned);
            all.extend(listed.iter().filter_map(|entry| {
                let name = text(entry, "/identity/name").unwrap_or_default();
                Some(Identity { id: text(entry, "/identity/id")?, name })
            }));
            if listed.len() < PAGE {
                return Ok(all);
            }
        }
    }

    async fn page(&self, offset: usize) -> Result<Value, Failure> {
        let body = json!({"limit": PAGE, "offset": offset, "orderBy": "name"}).to_string();
        for _ in 0..MAX_TRIES {
            let mut request = Request::new(Bytes::from(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = http::Uri::from_static("/api/v1/identities/search");
            *request.headers_mut() = self.headers.clone();
            let headers = request.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let (within, at_most) = (self.config.limits.before.0, self.config.limits.answer.bytes());
            let answer = self.upstream.exchange("scan", request, within, at_most).await;
            let answer = answer.map_err(|failure| unable(format!("the list of identities: {failure}")))?;
            match answer.status {
                StatusCode::OK => {
                    return json::value(&answer.body)
                        .map_err(|fault| unable(format!("the list of identities: {fault}")));
                }
                StatusCode::TOO_MANY_REQUESTS => patience(retry_after(&answer.headers)).await,
                status => return Err(unable(format!("the list of identities: the upstream said {status}"))),
            }
        }
        Err(unable("the list of identities: the upstream goes on asking for patience"))
    }

    /// Reads and judges one; an error is a line for people.
    async fn one(&self, object: &Arc<Object>, identity: Identity) -> Result<Found, String> {
        let Some(target) = TargetId::canonical(&object.target, &identity.id) else {
            return Err(format!("{}: is no identity's id", identity.id));
        };
        let source = Source {
            upstream: &self.upstream,
            object,
            target: &target,
            headers: &self.headers,
            within: self.config.limits.before.0,
            at_most: self.config.limits.answer.bytes(),
            clock: &Clock::System,
        };
        for _ in 0..MAX_TRIES {
            match before::fetch(&source).await {
                Ok(reading) => {
                    let judged = |stored: crate::operation::Stored| {
                        policy::standing(self.bundle.policies(), object, &stored.state, &Keys::ephemeral())
                    };
                    return Ok(Found { identity, violations: reading.stored.map(judged) });
                }
                Err(refusal) if refusal.code == Code::BeforeRefused(429) => {
                    patience(refusal.retry_after).await;
                }
                Err(refusal) => return Err(format!("{}: {}", identity.id, refusal.detail)),
            }
        }
        Err(format!("{}: the upstream goes on asking for patience", identity.id))
    }
}

fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok()
}

async fn patience(seconds: Option<u64>) {
    tokio::time::sleep(Duration::from_secs(seconds.unwrap_or(1).min(60))).await;
}

fn table(found: &[Found], unread: &[String]) -> String {
    let rows: Vec<_> = found.iter().flat_map(lines).collect();
    let text = if rows.is_empty() {
        String::new()
    } else {
        view::table(["IDENTITY", "NAME", "RULE", "FIELD", "WHAT"], &rows)
            + "\nUnder existing = \"stored\" each warns until a request names the field or makes it worse; under \"tolerate\"\n\
               until it gets worse; under \"deny\" every change is denied until it is mended.\n\n"
    };
    let attached = found.iter().filter_map(|one| one.violations.as_ref());
    let violating = attached.clone().filter(|found| !found.is_empty()).count();
    text + &format!(
        "{} identities, {} with JWT auth, {violating} violate a rule, {} could not be read\n",
        found.len() + unread.len(),
        attached.count(),
        unread.len()
    )
}

fn lines(one: &Found) -> Vec<[String; 5]> {
    let shown = |text: &str| view::visible(text).into_owned();
    one.violations
        .iter()
        .flatten()
        .map(|found| {
            [
                one.identity.id.clone(),
                shown(&one.identity.name),
                found.rule.clone(),
                found.pointer.clone(),
                shown(&found.message),
            ]
        })
        .collect()
}

fn csv(found: &[Found]) -> String {
    let line = |cells: [String; 5]| cells.map(|cell| view::cell(&cell)).join(",") + "\r\n";
    let header = "identity,name,rule,field,what\r\n".to_owned();
    header + &found.iter().flat_map(lines).map(line).collect::<String>()
}

fn as_json(found: &[Found], unread: &[String]) -> Value {
    let one = |one: &Found| {
        json!({"id": one.identity.id, "name": one.identity.name, "attached": one.violations.is_some(),
            "violations": one.violations.clone().unwrap_or_default()})
    };
    json!({"identities": found.iter().map(one).collect::<Vec<_>>(), "unread": unread})
}
