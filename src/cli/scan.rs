//! `patchwarden scan`: what stands there now, judged by the policies, without a gateway and without a store.
//!
//! Lists the identities that a token can see, reads each JWT auth configuration and prints one line for each violation,
//! with what each `existing` would make of it. Sends reads only, a few at a time, and waits when the upstream asks for
//! patience. Where a store is at hand, what is not as recorded is told too. Ends with 1 when something violates.

mod report;
mod settling;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::StreamExt as _;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use serde_json::{Value, json};

use super::out::{Progress, complain, print};
use super::{UNABLE, WRONG, identity};
use crate::app::{self, Failure};
use crate::audit::Audit;
use crate::audit::query::Reader;
use crate::before::{self, Source};
use crate::bundle::{Bundle, Standing, standing};
use crate::clock::Clock;
use crate::config::Config;
use crate::id::{ChangeId, TargetId};
use crate::json;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::operation::{Object, Stored, diff_recorded};
use crate::refusal::Code;
use crate::upstream::Upstream;

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
    /// Also settle changes whose end was not seen, where what is read proves it, and record drift; for a store that no
    /// gateway writes now
    #[arg(long)]
    settle: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One object with every identity
    Json,
    /// One line for each violation
    Csv,
    /// One page for a browser, that needs nothing else
    Html,
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
    violations: Option<Vec<Standing>>,
    /// A patch of the whole configuration that would mend it.
    fix: Option<Value>,
    /// What differs from the last state on record.
    drift: Vec<Value>,
    /// A change whose end was not seen, with what is proved of it now.
    settled: Option<(ChangeId, String)>,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let bundle = app::load_bundle(config)?;
    let metrics = Arc::new(Metrics::new());
    let upstream = Upstream::new(&config.upstream, config.limits.connect.0, metrics);
    let upstream = upstream.map_err(|error| unable(error.to_string()))?;
    let record = record(config).await;
    let headers = identity::headers(&args.token_file)?;
    let mut scan = Scan { upstream, headers, config, bundle: &bundle, record, audit: None };
    let object = bundle.operations().values().next().map(|operation| operation.object.clone());
    let object = object.ok_or_else(|| unable("the bundle governs nothing"))?;

    let mut identities = scan.identities().await?;
    // From here on nothing ends before the log is closed again.
    scan.audit = match (args.settle, &scan.record) {
        (false, _) => None,
        (true, Some(_)) => Some(app::offline(config).await?),
        (true, None) => {
            return Err(unable(format!("--settle: there is no store to settle in at {}", config.store)));
        }
    };
    scan.add_held(&mut identities).await;
    let total = identities.len();
    let mut found = Vec::new();
    let mut unread = Vec::new();
    let mut reads = futures_util::stream::iter(identities)
        .map(|identity| scan.one(&object, identity))
        .buffered(usize::from(args.concurrency));
    let mut progress = Progress::new("identities", Some(total));
    while let Some(read) = reads.next().await {
        progress.advance(1);
        match read {
            Ok(one) => found.push(one),
            Err(why) => unread.push(why),
        }
    }
    progress.end();
    drop(reads);
    if let Some(audit) = &scan.audit {
        audit.stop().await;
    }
    print(&match args.format {
        Format::Table => report::table(&found, &unread),
        Format::Json => format!("{:#}\n", report::json(&found, &unread)),
        Format::Csv => report::csv(&found),
        Format::Html => report::html(&found, &unread, bundle.digest().as_str(), &scan.upstream.origin()),
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

struct Scan<'a> {
    upstream: Upstream,
    headers: HeaderMap,
    config: &'a Config,
    bundle: &'a Bundle,
    record: Option<(Reader, Keys)>,
    /// The log, where it may be written.
    audit: Option<Audit>,
}

/// What is on record, where a store is at hand.
async fn record(config: &Config) -> Option<(Reader, Keys)> {
    if config.store.is_missing() {
        return None;
    }
    let fingerprint = config.audit.fingerprint_key_file.as_deref();
    let keys = Keys::open(&config.data, fingerprint, true).map_err(|error| error.to_string());
    match (Reader::open(&config.store).await, keys) {
        (Ok(reader), Ok(keys)) => Some((reader, keys)),
        (Err(why), _) | (_, Err(why)) => {
            complain(&format!("drift is not looked for: {why}"));
            None
        }
    }
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
                // A page that moved while it was read may tell of one twice.
                let mut told = HashSet::new();
                all.retain(|identity| told.insert(identity.id.clone()));
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
                    let written = self.settle(&target, object, &reading).await;
                    let drift = match written.drift {
                        Some(drift) => drift,
                        None => self.drift(&target, reading.stored.as_ref()).await,
                    };
                    let judged = reading
                        .stored
                        .map(|stored| standing(self.bundle, &target, &stored.state, &Keys::ephemeral()));
                    let (violations, fix) = judged.unzip();
                    return Ok(Found {
                        identity,
                        violations,
                        fix: fix.flatten(),
                        drift,
                        settled: written.settled,
                    });
                }
                Err(refusal) if refusal.code == Code::BeforeRefused(429) => {
                    patience(refusal.retry_after).await;
                }
                Err(refusal) => {
                    let why = format!("{}: {}", identity.id, refusal.detail);
                    let given_up = self.give_up(&target, object, refusal.code.as_str()).await;
                    return Err(given_up.map_or(why.clone(), |given_up| format!("{why}; {given_up}")));
                }
            }
        }
        Err(format!("{}: the upstream goes on asking for patience", identity.id))
    }
}

impl Scan<'_> {
    /// What somebody changed since the newest state on record.
    async fn drift(&self, target: &TargetId, stored: Option<&Stored>) -> Vec<Value> {
        let Some((reader, keys)) = &self.record else { return Vec::new() };
        let Ok(Some(last)) = reader.last_state(&target.to_string()).await else { return Vec::new() };
        diff_recorded(&last, &stored.map_or(Value::Null, |stored| stored.state.recorded(keys)))
    }
}

fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok()
}

async fn patience(seconds: Option<u64>) {
    tokio::time::sleep(Duration::from_secs(seconds.unwrap_or(1).min(60))).await;
}
