//! A short story for newcomers: the real gateway before a stand-in, nothing to set up.
//!
//! Starts the stand-in for the guarded API, the gateway as `serve` would, and a store in a temporary folder; sends allowed
//! and dangerous changes; prints each as the curl command it corresponds to, the answer, and at the end the history. Each
//! step knows what must come of it, so that `--once` can say whether the story went as told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::access;
use crate::app::{self, Failure, Running};
use crate::audit::query::{Filter, Reader};
use crate::config::Config;
use crate::id::fill_random;
use crate::json;
use crate::metrics::Metrics;
use crate::standin::{self, Estate};
use crate::store::Location;
use crate::upstream::{self, Upstream};
use crate::view;

const DEPLOYER: &str = "7d0c7c3a-5f0e-4a3c-9a51-2f9d4e0b6a11";
const LEGACY: &str = "c1a5e6b2-93d4-4b7f-8e20-6a7b8c9d0e1f";
/// An unsigned token of a machine identity, which the stand-in takes and the gateway can read the caller from.
const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJhdXRoVG9rZW5UeXBlIjoiaWRlbnRpdHlBY2Nlc3NUb2tlbiIsImlkZW50aXR5SWQiOiI1ZjBkNWE1Mi0yYjFjLTRjNTUtOGY3ZS02ZjFiMWQzZTljMDEiLCJpZGVudGl0eU5hbWUiOiJ0ZXJyYWZvcm0ifQ.demo";
const CA_PIN: &str = "-----BEGIN CERTIFICATE-----\n(a pinned CA would stand here)\n-----END CERTIFICATE-----";

/// One request of the story and what must come of it.
struct Step {
    title: &'static str,
    why: &'static str,
    identity: &'static str,
    body: String,
    expect: u16,
}

/// Where the story is told.
pub type Tell<'a> = &'a mut (dyn FnMut(&str) -> Result<(), Failure> + Send);

/// Tells the story. `until` ends the stay afterwards; with `None` it ends at once. `Ok(false)`: a step went otherwise.
pub async fn run(
    tell: Tell<'_>,
    colour: bool,
    until: Option<impl Future<Output = ()>>,
) -> Result<bool, Failure> {
    let folder = Folder::new()?;
    let background = TaskTracker::new();
    let (standin, estate) = stand_in(&background).await?;
    let gateway = start_gateway(standin, &folder.0).await?;
    let told = story(tell, colour, &gateway, &folder.0).await;
    if let (Ok(_), Some(until)) = (&told, until) {
        stay(tell, &gateway, &folder.0).await?;
        until.await;
    }
    drop(estate);
    gateway.stop().await;
    told
}

async fn story(
    tell: Tell<'_>,
    colour: bool,
    gateway: &Running,
    folder: &std::path::Path,
) -> Result<bool, Failure> {
    tell(&format!(
        "Patchwarden demo\n\nA stand-in for the Infisical API is running, with two machine identities, and the gateway before it at\nhttp://{}. Each request below is sent to the gateway, with one token:\n\n  TOKEN={TOKEN}\n",
        gateway.gateway
    ))?;
    let client = client(gateway.gateway)?;
    let store = Location::Sqlite(folder.join("patchwarden.db"));
    let reader = Reader::open(&store).await.map_err(unable)?;
    let mut as_told = true;
    for (number, step) in steps().iter().enumerate() {
        let (status, answer) = send(&client, step).await?;
        let warnings = if status == 200 { warnings(&reader).await? } else { Vec::new() };
        as_told &= status == step.expect;
        tell(&print_step(number + 1, step, gateway.gateway, status, &answer, &warnings))?;
    }
    let page = reader.page(&Filter::default(), None, 50).await.map_err(unable)?;
    let rows: Vec<_> = page.changes.iter().map(|change| view::row(change, false)).collect();
    let headings = ["#", "time", "operation", "target", "caller", "result", "what changed"];
    tell("\n== The history, newest first (patchwarden history) ==\n")?;
    tell(&view::table(headings, &rows))?;
    if let Some(first) = page.changes.iter().rev().find(|change| change["outcome"] == "applied") {
        tell("\n== The first applied change (patchwarden show ID) ==\n")?;
        tell(&view::page(first, colour, false))?;
    }
    if !as_told {
        tell("\nA step did not go as told: see above.\n")?;
    }
    Ok(as_told)
}

fn print_step(
    number: usize,
    step: &Step,
    gateway: SocketAddr,
    status: u16,
    answer: &Value,
    warnings: &[String],
) -> String {
    let told = if status == step.expect { "" } else { "   <- not as told" };
    let mut text = format!(
        "\n== {number}. {} ==\n{}\n\n  curl -X PATCH http://{gateway}{} \\\n    -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\\n    -d '{}'\n\n  -> {status}{told}\n",
        step.title,
        step.why,
        path(step.identity),
        step.body
    );
    for warning in warnings {
        text.push_str(&format!("  warning: {warning}\n"));
    }
    if let Some(message) = answer["detail"].as_str() {
        text.push_str(&format!("  {message}\n"));
        if answer["fix"].is_array() {
            text.push_str(&format!("  fix: {}\n", answer["fix"]));
        }
    }
    text
}

async fn stay(tell: Tell<'_>, gateway: &Running, folder: &std::path::Path) -> Result<(), Failure> {
    let (secret, hash) = access::mint();
    let made = gateway.audit().create_token("demo", "reader", &hash).await.map_err(unable)?;
    let token = if made { secret } else { "TOKEN".to_owned() };
    tell(&format!(
        "\nThe gateway stays up until Ctrl-C. Try:\n\n  curl http://{gw}/api/status\n  curl -H 'Authorization: Bearer {token}' 'http://{admin}/v1/changes?decision=deny&limit=3'\n  curl -H 'Authorization: Bearer {token}' http://{admin}/v1/targets/{DEPLOYER}/history\n  curl -H 'Authorization: Bearer {token}' http://{admin}/metrics\n  curl http://{admin}/readyz\n  patchwarden history --data {}\n",
        folder.display(),
        gw = gateway.gateway,
        admin = gateway.admin,
    ))
}

fn steps() -> Vec<Step> {
    let good = |more: Value| {
        let mut body = json!({
            "configurationType": "jwks",
            "jwksUrl": "https://keys.example.com/.well-known/jwks.json",
            "jwksCaCert": CA_PIN,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        body
    };
    let step = |title, why, identity, body: Value, expect| Step {
        title,
        why,
        identity,
        body: body.to_string(),
        expect,
    };
    let mut without_pin = good(json!({"accessTokenTTL": 3600}));
    without_pin.as_object_mut().and_then(|members| members.remove("jwksCaCert"));
    let mut twice = good(json!({"accessTokenTTL": 3600})).to_string();
    twice.insert_str(1, "\"accessTokenTTL\":0,");
    vec![
        step(
            "An allowed change",
            "Tokens of the deployer shall live one hour instead of two.",
            DEPLOYER,
            good(json!({"accessTokenTTL": 3600})),
            200,
        ),
        step(
            "Open to everybody, in disguise",
            "Two halves of IPv4: neither is 0.0.0.0/0, together they are.",
            DEPLOYER,
            good(
                json!({"accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/1"}, {"ipAddress": "128.0.0.0/1"}]}),
            ),
            403,
        ),
        step(
            "Tokens that never expire",
            "0 looks small and means no limit.",
            DEPLOYER,
            good(json!({"accessTokenTTL": 0, "accessTokenMaxTTL": 2_592_000})),
            403,
        ),
        step(
            "Anybody with a key of that issuer",
            "A subject of ** and no audience bind nobody.",
            DEPLOYER,
            good(json!({"boundSubject": "**", "boundAudiences": ""})),
            403,
        ),
        step(
            "Keys over plain http",
            "Whoever sits on the network can answer with keys of their own.",
            DEPLOYER,
            good(json!({"jwksUrl": "http://keys.example.com/jwks"})),
            403,
        ),
        step(
            "A CA pin erased by leaving it out",
            "The API resets jwksCaCert when a PATCH does not repeat it.",
            DEPLOYER,
            without_pin,
            403,
        ),
        Step {
            title: "A key that stands twice",
            why: "Readers of JSON disagree which of the two counts.",
            identity: DEPLOYER,
            body: twice,
            expect: 400,
        },
        step(
            "An old identity that is open and long-lived",
            "It stands at 0.0.0.0/0 and 30 days since before the gateway; a change of something else passes, with warnings.",
            LEGACY,
            json!({
                "configurationType": "jwks",
                "jwksUrl": "https://keys.example.com/.well-known/jwks.json",
                "boundSubject": "repo:acme/app:ref:refs/heads/main",
            }),
            200,
        ),
    ]
}

async fn send(client: &Upstream, step: &Step) -> Result<(u16, Value), Failure> {
    let mut request = Request::new(Bytes::from(step.body.clone()));
    *request.method_mut() = Method::PATCH;
    *request.uri_mut() = path(step.identity).parse().map_err(unable)?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let bearer = HeaderValue::try_from(format!("Bearer {TOKEN}")).map_err(unable)?;
    request.headers_mut().insert(AUTHORIZATION, bearer);
    let answer = client.exchange("demo", request, Duration::from_secs(30), 1 << 20).await.map_err(unable)?;
    Ok((answer.status.as_u16(), json::value(&answer.body).unwrap_or(Value::Null)))
}

/// What the newest change was warned of; the client that is borrowed here takes `patchwarden-*` headers off.
async fn warnings(reader: &Reader) -> Result<Vec<String>, Failure> {
    let change = reader.find("last").await.map_err(unable)?.unwrap_or(Value::Null);
    let warnings = change["warnings"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    Ok(warnings.map(|warning| format!("{}: {}", text(&warning["rule"]), text(&warning["message"]))).collect())
}

fn path(identity: &str) -> String {
    format!("/api/v1/auth/jwt-auth/identities/{identity}")
}

async fn stand_in(background: &TaskTracker) -> Result<(SocketAddr, Arc<Mutex<Estate>>), Failure> {
    let mut estate = Estate::new();
    estate.attach(
        DEPLOYER,
        &json!({
            "configurationType": "jwks", "jwksUrl": "https://keys.example.com/.well-known/jwks.json", "jwksCaCert": CA_PIN,
            "boundSubject": "system:serviceaccount:build:deployer", "boundAudiences": "patchwarden-demo", "boundClaims": {},
            "accessTokenTrustedIps": [{"ipAddress": "10.20.0.0/16"}], "accessTokenTTL": 7200, "accessTokenMaxTTL": 86400,
        }),
    );
    estate.attach(
        LEGACY,
        &json!({
            "configurationType": "jwks", "jwksUrl": "https://keys.example.com/.well-known/jwks.json",
            "boundSubject": "repo:acme/app:*", "boundClaims": {},
            "accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/0"}, {"ipAddress": "::/0"}],
            "accessTokenTTL": 2_592_000, "accessTokenMaxTTL": 2_592_000,
        }),
    );
    let estate = Arc::new(Mutex::new(estate));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(unable)?;
    let address = listener.local_addr().map_err(unable)?;
    background.spawn(standin::serve(listener, estate.clone()));
    Ok((address, estate))
}

async fn start_gateway(standin: SocketAddr, folder: &std::path::Path) -> Result<Running, Failure> {
    let config = Config::isolated(standin, folder)
        .map_err(|errors| Failure { code: 3, message: errors.to_string() })?;
    app::start(config).await
}

fn client(gateway: SocketAddr) -> Result<Upstream, Failure> {
    let settings = upstream::Settings { url: format!("http://{gateway}"), ..upstream::Settings::default() };
    Upstream::new(&settings, Duration::from_secs(3), Arc::new(Metrics::new())).map_err(unable)
}

#[expect(clippy::needless_pass_by_value, reason = "so that map_err takes it by name")]
fn unable(error: impl ToString) -> Failure {
    Failure { code: 3, message: error.to_string() }
}

/// A folder that goes with the demo.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let mut name = [0u8; 6];
        fill_random(&mut name);
        let path = std::env::temp_dir().join(format!("patchwarden-demo-{}", hex::encode(name)));
        crate::keys::make_folder(&path).map_err(unable)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
