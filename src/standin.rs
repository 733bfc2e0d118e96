//! The stand-in: an honest small imitation of the guarded API, for `patchwarden demo` and for tests.
//!
//! [`Estate`] holds identities and their auth configurations in memory and answers requests the way the real
//! router, validators and service do, awkward parts included: lax routes and media types, silent resets,
//! lenient ranges, the odd lifetime formula. [`serve`] puts it on a socket. It must not become stricter than
//! what it imitates: a gateway that is only tried against a tidy upstream has not been tried.
//! Not imitated: roles, sub-organisations, name resolution, rate limits, replicas, real logins, numbers and
//! nesting that `serde_json` cannot read. Nothing here belongs into a gateway's request path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::{Clock, Time};
use crate::id::{fill_random, sha256};

const JWT_AUTH: &str = "jwt-auth";
const BODY_LIMIT: usize = 1 << 20;
const PARAMETER_LIMIT: usize = 100;
const COLUMN_LIMIT: usize = 255;
const LIFETIME_LIMIT: f64 = 315_360_000.0;

/// A request as it came off the wire: the target as sent, the headers in order.
#[derive(Clone, Debug)]
pub struct StandInRequest {
    /// As on the request line.
    pub method: String,
    /// Raw: with query, undecoded, possibly in absolute form.
    pub target: String,
    /// Names in any case; of two with one name the first counts.
    pub headers: Vec<(String, String)>,
    /// Without the transfer coding.
    pub body: Vec<u8>,
}

impl StandInRequest {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What the imitation says to a request.
#[derive(Clone, Debug)]
pub struct StandInAnswer {
    /// HTTP status.
    pub status: u16,
    /// Content type, `ETag` and CORS; framing is for whoever sends it.
    pub headers: Vec<(String, String)>,
    /// `Null` where the answer has no body (204, 304).
    pub body: Value,
}

impl StandInAnswer {
    /// The body as it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        if self.body.is_null() { Vec::new() } else { self.body.to_string().into_bytes() }
    }
}

#[derive(Clone, Copy, Debug)]
struct Caller {
    may_read: bool,
    may_edit: bool,
}

/// All that the imitated instance knows. A clone is a snapshot.
#[derive(Clone, Debug)]
pub struct Estate {
    /// Whether the plan has IP allow-listing; without it only `0.0.0.0/0` and `::/0` are accepted as ranges.
    pub ip_allow_listing: bool,
    /// Whether a `jwksUrl` may name local and private hosts.
    pub internal_urls: bool,
    clock: Clock,
    last_millis: i64,
    identities: BTreeSet<Uuid>,
    /// By auth kind and identity. `publicKeys` is one text, joined by commas, as the real column is.
    rows: BTreeMap<(String, Uuid), Map<String, Value>>,
    tokens: BTreeMap<String, Caller>,
}

impl Default for Estate {
    fn default() -> Self {
        Self::new()
    }
}

impl Estate {
    /// An empty instance whose plan has IP allow-listing and which takes any token.
    pub fn new() -> Self {
        Self {
            ip_allow_listing: true,
            internal_urls: false,
            clock: Clock::System,
            last_millis: 0,
            identities: BTreeSet::new(),
            rows: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    /// Makes an identity known. An `id` that is no UUID is ignored: no request could name it.
    pub fn add_identity(&mut self, id: &str) {
        self.identities.extend(postgres_uuid(id));
    }

    /// Puts a row of JWT auth without any check, as older versions or other writers may have left it; members
    /// that `row` leaves out are filled in.
    pub fn attach(&mut self, id: &str, row: &Value) {
        let Some(id) = postgres_uuid(id) else { return };
        self.identities.insert(id);
        let mut new = self.fresh_row(id);
        let usual = json!({"configurationType": "jwks", "jwksUrl": "", "boundClaims": {}});
        let mut given = usual.as_object().cloned().unwrap_or_default();
        given.extend(row.as_object().cloned().unwrap_or_default());
        for field in FIELDS {
            if let (None, Omitted::Writes(value)) = (given.get(field), omitted(field, false, true)) {
                given.insert(field.to_owned(), value);
            }
        }
        new.extend(stored(given));
        self.rows.insert((JWT_AUTH.to_owned(), id), new);
    }

    /// From the first call on only the tokens named here are accepted; any other is a `TokenError`.
    pub fn allow(&mut self, token: &str, may_read: bool, may_edit: bool) {
        self.tokens.insert(token.to_owned(), Caller { may_read, may_edit });
    }

    /// The JWT auth row as a GET would answer it, without its envelope.
    pub fn state(&self, id: &str) -> Option<Value> {
        let row = self.rows.get(&(JWT_AUTH.to_owned(), postgres_uuid(id)?))?;
        Some(Value::Object(answered(row)))
    }

    /// Answers one request and applies it.
    pub fn handle(&mut self, request: &StandInRequest) -> StandInAnswer {
        let origin = request.header("origin");
        let preflight = request.method == "OPTIONS"
            && origin.is_some()
            && request.header("access-control-request-method").is_some();
        let (mut status, mut body) = match self.route(request) {
            _ if preflight => (204, Value::Null),
            Ok(body) => (200, body),
            Err(refused) => (refused.status, refused.into_body()),
        };
        let mut headers = Vec::new();
        if !body.is_null() {
            headers.push(("content-type".to_owned(), "application/json; charset=utf-8".to_owned()));
        }
        if status == 200 {
            let digest = hex::encode(sha256(&[body.to_string().as_bytes()]));
            let etag = format!("\"{}\"", digest.get(..27).unwrap_or_default());
            if request.header("if-none-match").is_some_and(|known| known.trim_start_matches("W/") == etag) {
                (status, body) = (304, Value::Null);
            }
            headers.push(("etag".to_owned(), etag));
        }
        if let Some(origin) = origin {
            headers.push(("access-control-allow-origin".to_owned(), origin.to_owned()));
            headers.push(("access-control-allow-credentials".to_owned(), "true".to_owned()));
            headers.push(("vary".to_owned(), "Origin".to_owned()));
        }
        StandInAnswer { status, headers, body }
    }

    fn route(&mut self, request: &StandInRequest) -> Result<Value, Refused> {
        let segments = segments(&request.target)?;
        if request.header("x-api-key").is_some() {
            return Err(bad_request("API keys are no longer accepted"));
        }
        let path: Vec<&str> = segments.iter().map(String::as_str).collect();
        let known_method = matches!(request.method.as_str(), "GET" | "HEAD" | "POST" | "PATCH" | "DELETE");
        match (request.method.as_str(), path.as_slice()) {
            ("GET" | "HEAD", ["api", "status"]) => Ok(json!({"date": self.stamp(), "message": "Ok"})),
            ("POST", ["api", "v1", "auth", JWT_AUTH, "login"]) => Ok(json!({
                "accessToken": "stand-in-access-token", "expiresIn": 2_592_000,
                "accessTokenMaxTTL": 2_592_000, "tokenType": "Bearer",
            })),
            (method, ["api", "v1", "echo", ..]) => Ok(json!({
                "method": method, "path": request.target, "headers": request.headers,
                "bodyLength": request.body.len(),
            })),
            (_, ["api", "v1", "auth", kind, "identities", id])
                if known_method && kind.ends_with("-auth") && id.chars().count() <= PARAMETER_LIMIT =>
            {
                let caller = self.caller(request)?;
                if *kind == JWT_AUTH {
                    self.jwt_auth(request, id, caller)
                } else {
                    self.other_auth(request, kind, id, caller)
                }
            }
            ("POST", ["api", "v1", "identities", "search"]) => {
                may(self.caller(request)?.may_read)?;
                let asked = read_body(request)?;
                let number = |name: &str, default: usize| {
                    asked
                        .get(name)
                        .and_then(Value::as_u64)
                        .and_then(|n| usize::try_from(n).ok())
                        .unwrap_or(default)
                };
                let page =
                    self.identities.iter().skip(number("offset", 0)).take(number("limit", 100).min(100));
                let one = |id: &Uuid| json!({"identity": {"id": id, "name": format!("identity {id}"), "authMethods": []}});
                Ok(
                    json!({"identities": page.map(one).collect::<Vec<_>>(), "totalCount": self.identities.len()}),
                )
            }
            ("DELETE", ["api", "v1", "identities", id] | ["api", "v1", "projects", _, "identities", id]) => {
                may(self.caller(request)?.may_edit)?;
                let id = self.identity(id)?;
                self.identities.remove(&id);
                self.rows.retain(|(_, owner), _| *owner != id);
                Ok(json!({"identity": {"id": id}}))
            }
            // The further writes a catalogue may watch: taken, without effect.
            ("POST" | "PATCH" | "DELETE", ["api", "v1", first, ..])
                if ["auth", "identities", "projects", "organization", "identity-templates", "admin"]
                    .contains(first)
                    && path.get(3) != Some(&JWT_AUTH) =>
            {
                may(self.caller(request)?.may_edit)?;
                Ok(json!({"message": "Done"}))
            }
            (method, _) => Err(Refused {
                status: 404,
                error: "Not Found".to_owned(),
                message: json!(format!("Route {method}:{} not found", request.target)),
                framework: true,
            }),
        }
    }

    /// Whoever the `Authorization` header names. Its first seven characters are cut unread.
    fn caller(&self, request: &StandInRequest) -> Result<Caller, Refused> {
        let token: String = request.header("authorization").unwrap_or_default().chars().skip(7).collect();
        // A token that begins with a blank is none its verifier reads.
        if token.is_empty() || token.starts_with(' ') {
            return Err(refused(401, "UnauthorizedError", "Token missing"));
        }
        if token.starts_with("st.") {
            let error = format!("Forbidden access to {}", request.target);
            return Err(refused(403, &error, "This credential is not accepted here"));
        }
        if self.tokens.is_empty() {
            return Ok(Caller { may_read: true, may_edit: true });
        }
        self.tokens.get(&token).copied().ok_or_else(|| refused(403, "TokenError", "Your token is invalid"))
    }

    fn identity(&self, text: &str) -> Result<Uuid, Refused> {
        let broken = || refused(500, "MembershipGetByIdentityId", "invalid input syntax for type uuid");
        let id = postgres_uuid(text).ok_or_else(broken)?;
        let unknown = || refused(404, "NotFound", format!("Failed to find identity with ID {text}"));
        self.identities.get(&id).copied().ok_or_else(unknown)
    }

    fn jwt_auth(&mut self, request: &StandInRequest, id: &str, caller: Caller) -> Result<Value, Refused> {
        let method = request.method.as_str();
        let body = if matches!(method, "GET" | "HEAD") { Value::Null } else { read_body(request)? };
        let create = method == "POST";
        let edit = if create || method == "PATCH" { Some(shaped(&body, create)?) } else { None };
        let id = self.identity(if edit.is_some() { js_trim(id) } else { id })?;
        let key = (JWT_AUTH.to_owned(), id);
        let row = match (self.rows.get(&key).cloned(), edit) {
            (None, None) => return Err(bad_request("The identity does not have JWT Auth attached")),
            (None, Some(_)) if !create => return Err(bad_request("Failed to update JWT Auth")),
            (Some(_), Some(_)) if create => {
                return Err(bad_request("Failed to add JWT Auth to already configured identity"));
            }
            (Some(row), None) if method == "DELETE" => {
                may(caller.may_edit)?;
                self.rows.remove(&key);
                let mut row = answered(&row);
                row.retain(|field, _| field != "jwksCaCert" && field != "publicKeys");
                row
            }
            (Some(row), None) => {
                may(caller.may_read)?;
                answered(&row)
            }
            (old, Some(edit)) => self.write(key, old, edit, caller)?,
        };
        Ok(json!({"identityJwtAuth": row}))
    }

    /// What is left of POST and PATCH once the body has its shape: the checks in the order of the original.
    fn write(
        &mut self,
        key: (String, Uuid),
        old: Option<Map<String, Value>>,
        mut edit: Map<String, Value>,
        caller: Caller,
    ) -> Result<Map<String, Value>, Refused> {
        if lifetime_refused(old.as_ref(), &edit) {
            return Err(bad_request("Access token TTL cannot be greater than max TTL"));
        }
        may(caller.may_edit)?;
        if let Some(ranges) = edit.get_mut("accessTokenTrustedIps") {
            *ranges = self.ranges(ranges)?;
        }
        let url = edit.get("jwksUrl").and_then(Value::as_str).unwrap_or_default();
        if !url.is_empty() && (old.is_some() || edit.get("configurationType") == Some(&json!("jwks"))) {
            self.check_url(url)?;
        }
        let uses = edit.get("accessTokenNumUsesLimit");
        if edit.values().any(has_nul) || uses.is_some_and(|uses| !uses.is_i64()) {
            return Err(refused(500, "UpdateById", "The database did not accept a value"));
        }
        let sent_keys = edit.get("publicKeys").cloned();
        let attached = old.is_none();
        let mut row = old.unwrap_or_else(|| self.fresh_row(key.1));
        row.insert("updatedAt".to_owned(), json!(self.stamp()));
        row.extend(stored(edit));
        let mut answer = answered(&row);
        self.rows.insert(key, row);
        if let (true, Some(keys)) = (attached, sent_keys) {
            answer.insert("publicKeys".to_owned(), keys);
        }
        Ok(answer)
    }

    fn ranges(&self, asked: &Value) -> Result<Value, Refused> {
        let texts: Vec<&str> = asked
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.get("ipAddress")?.as_str())
            .collect();
        if !self.ip_allow_listing && texts.iter().any(|text| !["0.0.0.0/0", "::/0"].contains(text)) {
            return Err(bad_request("Failed to add IP access range due to plan restriction. Upgrade plan."));
        }
        let read = |text: &&str| {
            range(text).ok_or_else(|| bad_request("The IP is not a valid IPv4, IPv6, or CIDR block"))
        };
        texts.iter().map(read).collect()
    }

    fn check_url(&self, text: &str) -> Result<(), Refused> {
        let unread = |_| refused(500, "InternalServerError", "Something went wrong");
        let url = url::Url::parse(text).map_err(unread)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad_request("URLs with user credentials are not allowed"));
        }
        let local = match url.host() {
            Some(url::Host::Domain(name)) => ["localhost", "host.docker.internal"].contains(&name),
            Some(url::Host::Ipv4(ip)) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
            Some(url::Host::Ipv6(_)) | None => false,
        };
        if local && !self.internal_urls {
            return Err(bad_request("Local IPs not allowed as URL"));
        }
        Ok(())
    }

    /// The other auth methods of an identity: rows without rules.
    fn other_auth(
        &mut self,
        request: &StandInRequest,
        kind: &str,
        id: &str,
        caller: Caller,
    ) -> Result<Value, Refused> {
        let method = request.method.as_str();
        let read = matches!(method, "GET" | "HEAD");
        let edit = if read { Value::Null } else { read_body(request)? };
        let id = self.identity(js_trim(id))?;
        may(if read { caller.may_read } else { caller.may_edit })?;
        let key = (kind.to_owned(), id);
        let row = match (method, self.rows.get(&key).cloned()) {
            ("POST", Some(_)) => return Err(bad_request(format!("{kind} is already attached"))),
            ("GET" | "HEAD" | "PATCH" | "DELETE", None) => {
                return Err(bad_request(format!("The identity does not have {kind} attached")));
            }
            ("DELETE", Some(row)) => {
                self.rows.remove(&key);
                row
            }
            (_, old) => {
                let mut row = old.unwrap_or_else(|| self.fresh_row(id));
                if !read {
                    row.insert("updatedAt".to_owned(), json!(self.stamp()));
                    row.extend(edit.as_object().cloned().unwrap_or_default());
                    self.rows.insert(key, row.clone());
                }
                row
            }
        };
        let words = kind.split('-').map(|word| {
            let (first, rest) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
            first.to_uppercase() + rest
        });
        Ok(Value::Object(Map::from_iter([(format!("identity{}", words.collect::<String>()), json!(row))])))
    }

    fn fresh_row(&mut self, identity: Uuid) -> Map<String, Value> {
        let mut random = [0; 16];
        fill_random(&mut random);
        let id = uuid::Builder::from_random_bytes(random).into_uuid();
        let now = self.stamp();
        let row = json!({"id": id, "identityId": identity, "accessTokenPeriod": 0, "createdAt": now, "updatedAt": now});
        row.as_object().cloned().unwrap_or_default()
    }

    /// Now, in milliseconds, and later than every stamp before it.
    fn stamp(&mut self) -> String {
        self.last_millis = (self.clock.now().0 / 1000).max(self.last_millis + 1);
        let text = Time(self.last_millis * 1000).to_string();
        format!("{}Z", text.get(..23).unwrap_or(&text))
    }
}

#[derive(Debug)]
struct Refused {
    status: u16,
    error: String,
    message: Value,
    /// Refused by the router, before the error handler with its `reqId`.
    framework: bool,
}

impl Refused {
    fn into_body(self) -> Value {
        let mut body = json!({"statusCode": self.status, "message": self.message, "error": self.error});
        if !self.framework {
            let mut random = [0; 7];
            fill_random(&mut random);
            body["reqId"] = json!(format!("req-{}", hex::encode(random)));
        }
        body
    }
}

fn refused(status: u16, error: &str, message: impl Into<Value>) -> Refused {
    Refused { status, error: error.to_owned(), message: message.into(), framework: false }
}

fn bad_request(message: impl Into<Value>) -> Refused {
    refused(400, "BadRequest", message)
}

fn framework_error(message: &str) -> Refused {
    refused(500, "InternalServerError", message)
}

fn invalid(issues: &[(&str, &str)]) -> Refused {
    let issue =
        |(field, message): &(&str, &str)| json!({"code": "custom", "path": [field], "message": message});
    refused(422, "ValidationFailure", issues.iter().map(issue).collect::<Vec<_>>())
}

fn may(allowed: bool) -> Result<(), Refused> {
    let message = "You are not allowed to do this on identity";
    if allowed { Ok(()) } else { Err(refused(403, "PermissionDenied", message)) }
}

/// The decoded path segments of a target as the router of the original cuts it.
fn segments(target: &str) -> Result<Vec<String>, Refused> {
    let absolute = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let target = absolute.map_or(target, |rest| rest.find('/').map_or("", |slash| &rest[slash..]));
    let path = target.split(['?', ';', '#']).next().unwrap_or_default();
    let bad_url = || Refused {
        status: 400,
        error: "Bad Request".to_owned(),
        message: json!(format!("'{path}' is not a valid url component")),
        framework: true,
    };
    let decode = |segment: &str| {
        let escapes = segment.split('%').skip(1);
        let whole = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
        let decoded = percent_encoding::percent_decode_str(segment).decode_utf8().ok();
        decoded.filter(|_| escapes.clone().all(whole)).map(String::from).ok_or_else(bad_url)
    };
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_prefix('/').unwrap_or(path).split('/').map(decode).collect()
}

/// What PostgreSQL takes for a `uuid`: any case, hyphens after any group of four digits or none, braces or none.
fn postgres_uuid(text: &str) -> Option<Uuid> {
    let text = text.strip_prefix('{').map_or(Some(text), |rest| rest.strip_suffix('}'))?;
    let (mut hex, mut after_hyphen) = (String::new(), true);
    for ch in text.chars() {
        match ch {
            '-' if !after_hyphen && hex.len().is_multiple_of(4) && hex.len() < 32 => after_hyphen = true,
            '-' => return None,
            digit => {
                hex.push(digit);
                after_hyphen = false;
            }
        }
    }
    let whole = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if whole { Uuid::parse_str(&hex).ok() } else { None }
}

/// The parsed body; `Null` where there is none. Every failure here is a 500, as it is in the original.
fn read_body(request: &StandInRequest) -> Result<Value, Refused> {
    let chunked = request.header("transfer-encoding").is_some();
    let has_length = chunked || request.header("content-length").is_some();
    let media = match request.header("content-type") {
        None if request.method == "DELETE" || request.body.is_empty() => return Ok(Value::Null),
        Some(_) if request.method == "DELETE" && !has_length => return Ok(Value::Null),
        media => media.unwrap_or_default().to_ascii_lowercase(),
    };
    let essence = media.split(';').next().unwrap_or_default().trim();
    if media.contains('\t') || media.split(';').skip(1).any(|parameter| !parameter.contains('=')) {
        return Err(framework_error("Unsupported Media Type"));
    }
    if request.body.len() > BODY_LIMIT {
        return Err(framework_error("Request body is too large"));
    }
    let text = match std::str::from_utf8(&request.body) {
        Err(_) if !chunked => return Err(framework_error("Request body size did not match Content-Length")),
        _ => String::from_utf8_lossy(&request.body),
    };
    if essence.contains("application/json") {
        let value = parse(text.strip_prefix('\u{feff}').unwrap_or(&text))?;
        if poisons_prototypes(&value) {
            return Err(framework_error("Object contains forbidden prototype property"));
        }
        return Ok(value);
    }
    match () {
        () if essence.contains("application/scim+json") && text.is_empty() => Ok(Value::Null),
        () if essence.contains("application/scim+json") => parse(&text),
        () if essence.contains("application/x-www-form-urlencoded") => Ok(form(&request.body)),
        () if essence.contains("text/plain") => Ok(json!(text)),
        () => Err(framework_error("Unsupported Media Type")),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a stand-in parses as laxly as the original: the last key wins"
)]
fn parse(text: &str) -> Result<Value, Refused> {
    serde_json::from_str(text).map_err(|_| framework_error("Body is not valid JSON"))
}

fn poisons_prototypes(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(key, value)| {
            key == "__proto__"
                || (key == "constructor" && value.get("prototype").is_some())
                || poisons_prototypes(value)
        }),
        Value::Array(entries) => entries.iter().any(poisons_prototypes),
        _ => false,
    }
}

fn form(body: &[u8]) -> Value {
    let mut members = Map::new();
    for (key, value) in url::form_urlencoded::parse(body) {
        let value = match members.remove(key.as_ref()) {
            None => json!(value),
            Some(Value::Array(mut earlier)) => {
                earlier.push(json!(value));
                Value::Array(earlier)
            }
            Some(earlier) => json!([earlier, value]),
        };
        members.insert(key.into_owned(), value);
    }
    Value::Object(members)
}

const FIELDS: [&str; 11] = [
    "jwksUrl",
    "jwksCaCert",
    "publicKeys",
    "boundIssuer",
    "boundAudiences",
    "boundClaims",
    "boundSubject",
    "accessTokenTTL",
    "accessTokenMaxTTL",
    "accessTokenNumUsesLimit",
    "accessTokenTrustedIps",
];

enum Omitted {
    Required,
    Kept,
    Writes(Value),
}

fn omitted(field: &str, fixed_keys: bool, create: bool) -> Omitted {
    match (field, fixed_keys, create) {
        ("jwksUrl", false, _) | ("publicKeys", true, _) | ("boundClaims", _, true) => Omitted::Required,
        ("jwksUrl" | "jwksCaCert", ..) => Omitted::Writes(json!("")),
        ("publicKeys", ..) => Omitted::Writes(json!([])),
        (_, _, false) => Omitted::Kept,
        ("accessTokenTrustedIps", ..) => {
            Omitted::Writes(json!([{"ipAddress": "0.0.0.0/0"}, {"ipAddress": "::/0"}]))
        }
        ("accessTokenTTL" | "accessTokenMaxTTL", ..) => Omitted::Writes(json!(2_592_000)),
        ("accessTokenNumUsesLimit", ..) => Omitted::Writes(json!(0)),
        _ => Omitted::Writes(json!("")),
    }
}

/// The body as the validator hands it on: known members in their trimmed form, left out ones filled in.
fn shaped(body: &Value, create: bool) -> Result<Map<String, Value>, Refused> {
    let fixed_keys = match body.get("configurationType").and_then(Value::as_str) {
        Some("jwks") => false,
        Some("static") => true,
        _ => return Err(invalid(&[("configurationType", "Expected 'jwks' | 'static'")])),
    };
    let mut shaped = Map::from_iter([("configurationType".to_owned(), body["configurationType"].clone())]);
    let mut issues = Vec::new();
    for field in FIELDS {
        let value = match (body.get(field), omitted(field, fixed_keys, create)) {
            (Some(value), _) => read_field(field, fixed_keys, value),
            (None, Omitted::Writes(value)) => Ok(value),
            (None, Omitted::Required) => Err("Required"),
            (None, Omitted::Kept) => continue,
        };
        match value {
            Ok(value) => drop(shaped.insert(field.to_owned(), value)),
            Err(message) => issues.push((field, message)),
        }
    }
    if issues.is_empty() { Ok(shaped) } else { Err(invalid(&issues)) }
}

fn read_field(field: &str, fixed_keys: bool, value: &Value) -> Result<Value, &'static str> {
    let text = || value.as_str().map(js_trim).ok_or("Expected string");
    let column = |text: String| {
        if text.chars().count() > COLUMN_LIMIT {
            Err("Must be at most 255 characters")
        } else {
            Ok(json!(text))
        }
    };
    match field {
        "jwksUrl" if !fixed_keys && url::Url::parse(text()?).is_err() => Err("Invalid url"),
        "jwksUrl" | "boundIssuer" | "boundSubject" => column(text()?.to_owned()),
        "boundAudiences" => column(tidy(text()?)),
        "jwksCaCert" => Ok(json!(text()?)),
        "boundClaims" => {
            let tidied = |(key, value): (&String, &Value)| Some((key.clone(), json!(tidy(value.as_str()?))));
            let claims = value.as_object().and_then(|claims| claims.iter().map(tidied).collect());
            claims.map(Value::Object).ok_or("Expected object of strings")
        }
        "publicKeys" => {
            let keys: &Vec<Value> = value.as_array().ok_or("Expected array")?;
            let empty = keys.is_empty() || keys.contains(&json!(""));
            match keys.iter().all(Value::is_string) && !(fixed_keys && empty) {
                true => Ok(value.clone()),
                false => Err("Expected array of keys"),
            }
        }
        "accessTokenTrustedIps" => {
            let entries = value.as_array().filter(|entries| !entries.is_empty()).ok_or("Expected array")?;
            let entry =
                |entry: &Value| Some(json!({"ipAddress": js_trim(entry.get("ipAddress")?.as_str()?)}));
            entries.iter().map(entry).collect::<Option<Value>>().ok_or("Expected ipAddress")
        }
        _ => whole_number(value, if field == "accessTokenNumUsesLimit" { f64::MAX } else { LIFETIME_LIMIT }),
    }
}

/// JSON numbers are doubles here, so `36e2` and `1e-400` are whole; beyond 64 bits they stay doubles, which the
/// database refuses.
fn whole_number(value: &Value, limit: f64) -> Result<Value, &'static str> {
    let number = value.as_f64().ok_or("Expected number")?;
    if number.fract() != 0.0 || !(0.0..=limit).contains(&number) {
        return Err("Expected a whole number in range");
    }
    Ok(format!("{number:.0}").parse::<i64>().map_or(json!(number), |whole| json!(whole)))
}

/// The lifetime rule. On PATCH the original compares with the old *ceiling* where the body has no lifetime, and
/// a 0 in the body counts as absent although it is stored.
fn lifetime_refused(old: Option<&Map<String, Value>>, edit: &Map<String, Value>) -> bool {
    let number = |row: &Map<String, Value>, field: &str| row.get(field).and_then(Value::as_i64).unwrap_or(0);
    let (asked, ceiling) = (number(edit, "accessTokenTTL"), number(edit, "accessTokenMaxTTL"));
    let (asked, ceiling) = match old.map(|row| number(row, "accessTokenMaxTTL")) {
        None => (asked, ceiling),
        Some(old_max) => {
            (if asked == 0 { old_max } else { asked }, if ceiling == 0 { old_max } else { ceiling })
        }
    };
    ceiling > 0 && asked > ceiling
}

/// One trusted range as it is stored. Pieces after the second slash and digits after the first stray character
/// of the prefix are ignored; host bits and zones stay.
fn range(text: &str) -> Option<Value> {
    let mut pieces = text.split('/');
    let (address, prefix) = (pieces.next()?, pieces.next());
    let (bare, zone) = address.split_once('%').map_or((address, None), |(bare, zone)| (bare, Some(zone)));
    let zone_reads = |zone: &str| {
        !zone.is_empty() && zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte))
    };
    let (kind, widest) = if address.parse::<Ipv4Addr>().is_ok() {
        ("ipv4", 32.0)
    } else if bare.parse::<Ipv6Addr>().is_ok() && zone.is_none_or(zone_reads) {
        ("ipv6", 128.0)
    } else {
        return None;
    };
    let Some(prefix) = prefix else { return Some(json!({"ipAddress": address, "type": kind})) };
    let prefix = parse_int(prefix).filter(|prefix| (0.0..=widest).contains(prefix))?;
    let prefix: u8 = format!("{:.0}", prefix.abs()).parse().ok()?;
    Some(json!({"ipAddress": address, "type": kind, "prefix": prefix}))
}

/// JavaScript's `parseInt(text, 10)`; nothing where that is NaN.
fn parse_int(text: &str) -> Option<f64> {
    let text = text.trim_start_matches(js_blank);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.bytes().take_while(u8::is_ascii_digit).count();
    digits.get(..end)?.parse::<f64>().ok().map(|number| sign * number)
}

fn js_blank(ch: char) -> bool {
    matches!(ch, '\t'..='\r' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{2028}' | '\u{2029}'
        | '\u{202f}' | '\u{205f}' | '\u{3000}' | '\u{feff}')
}

fn js_trim(text: &str) -> &str {
    text.trim_matches(js_blank)
}

/// A comma list as `a, b`: commas in a closed brace group and after `\` do not split, empty pieces go.
fn tidy(text: &str) -> String {
    let mut pieces = vec![String::new()];
    let (mut rest, mut closed) = (text.chars(), 0_usize);
    while let Some(ch) = rest.next() {
        match ch {
            ',' if closed == 0 => {
                pieces.push(String::new());
                continue;
            }
            '{' if closed > 0 || group_closes(rest.as_str()) => closed += 1,
            '}' => closed = closed.saturating_sub(1),
            _ => {}
        }
        let piece = pieces.last_mut();
        let shielded = if ch == '\\' { rest.next() } else { None };
        if let Some(piece) = piece {
            piece.push(ch);
            piece.extend(shielded);
        }
    }
    let pieces = pieces.iter().map(|piece| js_trim(piece)).filter(|piece| !piece.is_empty());
    pieces.collect::<Vec<_>>().join(", ")
}

fn group_closes(text: &str) -> bool {
    let (mut depth, mut shielded) = (1, false);
    for ch in text.chars() {
        match ch {
            _ if shielded => shielded = false,
            '\\' => shielded = true,
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return true;
        }
    }
    false
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(entries) => entries.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Answer form to column form.
fn stored(mut row: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Array(keys)) = row.get("publicKeys") {
        let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
        row.insert("publicKeys".to_owned(), json!(keys.join(",")));
    }
    if let Some(Value::Array(entries)) = row.get_mut("accessTokenTrustedIps") {
        for entry in entries.iter_mut().filter(|entry| entry.get("type").is_none()) {
            *entry = entry.get("ipAddress").and_then(Value::as_str).and_then(range).unwrap_or(entry.take());
        }
    }
    row
}

/// Column form to answer form: no keys at all come back as one empty key.
fn answered(row: &Map<String, Value>) -> Map<String, Value> {
    let mut row = row.clone();
    if let Some(Value::String(keys)) = row.get("publicKeys") {
        let keys: Vec<&str> = keys.split(',').collect();
        row.insert("publicKeys".to_owned(), json!(keys));
    }
    row
}

/// Answers on `listener` over HTTP/1.1 until it is dropped.
pub async fn serve(listener: tokio::net::TcpListener, estate: Arc<Mutex<Estate>>) {
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let estate = estate.clone();
        connections.spawn(async move {
            let answer = hyper::service::service_fn(|request| answer(estate.clone(), request));
            let io = hyper_util::rt::TokioIo::new(socket);
            // A connection that breaks is its client's business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, answer).await;
        });
    }
}

async fn answer(
    estate: Arc<Mutex<Estate>>,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = http_body_util::Limited::new(body, 4 * BODY_LIMIT).collect().await?.to_bytes();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let request = StandInRequest {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: body.to_vec(),
    };
    let answer = estate.lock().unwrap_or_else(PoisonError::into_inner).handle(&request);
    let mut response = http::Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(answer.bytes().into()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";

    fn attached(row: &Value) -> Estate {
        let mut estate = Estate::new();
        estate.attach(ID, row);
        estate
    }

    fn send(estate: &mut Estate, method: &str, body: &str) -> (u16, Value) {
        send_to(estate, method, &format!("/api/v1/auth/jwt-auth/identities/{ID}"), body)
    }

    fn send_to(estate: &mut Estate, method: &str, target: &str, body: &str) -> (u16, Value) {
        let mut headers = vec![("authorization".to_owned(), "Bearer x".to_owned())];
        if !body.is_empty() {
            headers.push(("content-type".to_owned(), "application/json".to_owned()));
            headers.push(("content-length".to_owned(), body.len().to_string()));
        }
        let (method, target, body) = (method.to_owned(), target.to_owned(), body.as_bytes().to_vec());
        let answer = estate.handle(&StandInRequest { method, target, headers, body });
        (answer.status, answer.body["identityJwtAuth"].clone())
    }

    #[test]
    fn a_patch_resets_what_it_leaves_out_as_the_original_does() {
        let row = json!({"jwksUrl": "https://old.example/jwks", "jwksCaCert": "PEM", "publicKeys": ["a", "b"],
            "boundIssuer": "issuer", "boundAudiences": "a, b", "boundClaims": {"k": "v"},
            "accessTokenTTL": 60, "accessTokenMaxTTL": 120});
        let jwks = r#"{"configurationType": "jwks", "jwksUrl": " https://new.example/jwks\u00a0"}"#;
        let fixed = r#"{"configurationType": "static", "publicKeys": ["c,d"], "x": 1}"#;
        for (body, url, keys) in
            [(jwks, "https://new.example/jwks", json!([""])), (fixed, "", json!(["c", "d"]))]
        {
            let mut estate = attached(&row);
            let (status, after) = send(&mut estate, "PATCH", body);
            assert_eq!(status, 200, "{body}");
            assert_eq!((&after["jwksUrl"], &after["publicKeys"]), (&json!(url), &keys));
            assert_eq!(after["jwksCaCert"], "");
            for kept in ["boundIssuer", "boundAudiences", "boundClaims", "accessTokenTTL", "id", "createdAt"]
            {
                assert_eq!(after[kept], attached_field(&estate, kept));
            }
            assert_eq!((&after["boundIssuer"], &after["accessTokenTTL"]), (&json!("issuer"), &json!(60)));
        }
    }

    fn attached_field(estate: &Estate, field: &str) -> Value {
        estate.state(ID).map_or(Value::Null, |state| state[field].clone())
    }

    #[test]
    fn a_post_fills_in_the_defaults_of_the_original() {
        let mut estate = Estate::new();
        estate.add_identity(ID);
        let body =
            r#"{"configurationType": "jwks", "jwksUrl": "https://keys.example/jwks", "boundClaims": {}}"#;
        let (status, row) = send(&mut estate, "POST", body);
        assert_eq!((status, &row["publicKeys"]), (200, &json!([])));
        assert_eq!(attached_field(&estate, "publicKeys"), json!([""]));
        assert_eq!(
            (&row["accessTokenTTL"], &row["accessTokenMaxTTL"]),
            (&json!(2_592_000), &json!(2_592_000))
        );
        let everyone = json!([{"ipAddress": "0.0.0.0", "type": "ipv4", "prefix": 0},
            {"ipAddress": "::", "type": "ipv6", "prefix": 0}]);
        assert_eq!(row["accessTokenTrustedIps"], everyone);
        assert_eq!(send(&mut estate, "POST", body).0, 400);
    }

    #[test]
    fn a_body_of_the_wrong_shape_is_422() {
        for members in [
            r#""configurationType": "JWKS""#,
            r#""jwksUrl": "keys""#,
            r#""jwksUrl": null"#,
            r#""jwksCaCert": 1"#,
            r#""boundClaims": {"a": 1}"#,
            r#""accessTokenTrustedIps": []"#,
            r#""accessTokenTrustedIps": ["10.0.0.0/8"]"#,
            r#""accessTokenTTL": "60""#,
            r#""accessTokenTTL": 1.5"#,
            r#""accessTokenTTL": -1"#,
            r#""accessTokenTTL": 315360001"#,
            r#""accessTokenTTL": true"#,
            r#""configurationType": "static""#,
            r#""configurationType": "static", "publicKeys": [""]"#,
        ] {
            let body = format!(
                r#"{{"configurationType": "jwks", "jwksUrl": "https://keys.example/jwks", {members}}}"#
            );
            assert_eq!(send(&mut attached(&json!({})), "PATCH", &body).0, 422, "{members}");
        }
        assert_eq!(send(&mut attached(&json!({})), "PATCH", r#"{"accessTokenTTL": 60}"#).0, 422);
    }

    #[test]
    fn lifetimes_follow_the_formula_of_the_original() {
        for (old, members, expected) in [
            ((3600, 7200), r#""accessTokenTTL": 0"#, Some((0, 7200))),
            ((3600, 7200), r#""accessTokenTTL": 1e-400"#, Some((0, 7200))),
            ((3600, 7200), r#""accessTokenTTL": -0"#, Some((0, 7200))),
            ((3600, 7200), r#""accessTokenTTL": 36e2"#, Some((3600, 7200))),
            ((3600, 7200), r#""accessTokenTTL": 3600.00000000000000001"#, Some((3600, 7200))),
            ((3600, 7200), r#""accessTokenMaxTTL": 0"#, Some((3600, 0))),
            ((3600, 7200), r#""accessTokenTTL": 0, "accessTokenMaxTTL": 0"#, Some((0, 0))),
            ((3600, 7200), r#""accessTokenMaxTTL": 3600"#, None),
            ((3600, 7200), r#""accessTokenTTL": 315360000, "accessTokenMaxTTL": 0"#, None),
            ((3600, 0), r#""accessTokenTTL": 315360000"#, Some((315_360_000, 0))),
            ((3600, 7200), r#""accessTokenMaxTTL": 315360000"#, Some((3600, 315_360_000))),
            ((3600, 7200), r#""accessTokenTTL": 9999, "accessTokenTTL": 60"#, Some((60, 7200))),
        ] {
            let mut estate = attached(&json!({"accessTokenTTL": old.0, "accessTokenMaxTTL": old.1}));
            let body = format!(
                r#"{{"configurationType": "jwks", "jwksUrl": "https://keys.example/jwks", {members}}}"#
            );
            let (status, after) = send(&mut estate, "PATCH", &body);
            assert_eq!(status, if expected.is_some() { 200 } else { 400 }, "{members}");
            if let Some((ttl, max)) = expected {
                assert_eq!(
                    (&after["accessTokenTTL"], &after["accessTokenMaxTTL"]),
                    (&json!(ttl), &json!(max))
                );
            }
        }
    }

    #[test]
    fn the_lifetime_rule_comes_before_the_permission() {
        let mut estate = attached(&json!({"accessTokenTTL": 60, "accessTokenMaxTTL": 60}));
        estate.allow("x", false, false);
        let body = |ttl: u32| {
            format!(
                r#"{{"configurationType": "jwks", "jwksUrl": "http://10.0.0.1/", "accessTokenTTL": {ttl}}}"#
            )
        };
        assert_eq!(send(&mut estate, "PATCH", &body(61)).0, 400);
        assert_eq!(send(&mut estate, "PATCH", &body(59)).0, 403);
        assert_eq!(send(&mut estate, "GET", "").0, 403);
        estate.allow("x", false, true);
        assert_eq!(send(&mut estate, "PATCH", &body(59)).0, 400, "a private address");
    }

    #[test]
    fn ranges_are_read_as_leniently_as_in_the_original() {
        for (text, address, prefix) in [
            ("1.2.3.4/0", "1.2.3.4", Some(0)),
            ("10.0.0.0/0x8", "10.0.0.0", Some(0)),
            ("10.0.0.0/0abc", "10.0.0.0", Some(0)),
            ("10.0.0.0/0e5", "10.0.0.0", Some(0)),
            ("10.0.0.0/0.9", "10.0.0.0", Some(0)),
            ("10.0.0.0/0/24", "10.0.0.0", Some(0)),
            ("10.0.0.0/0//", "10.0.0.0", Some(0)),
            ("0.0.0.0/ 0", "0.0.0.0", Some(0)),
            ("0.0.0.0/\u{feff}0", "0.0.0.0", Some(0)),
            ("0.0.0.0/+0", "0.0.0.0", Some(0)),
            ("0.0.0.0/-0", "0.0.0.0", Some(0)),
            ("0.0.0.0/00", "0.0.0.0", Some(0)),
            ("0.0.0.0/0\0", "0.0.0.0", Some(0)),
            ("10.0.0.0/8abc", "10.0.0.0", Some(8)),
            ("10.0.0.0/8.9", "10.0.0.0", Some(8)),
            ("10.0.0.0/1e1", "10.0.0.0", Some(1)),
            ("fe80::1%eth0/0", "fe80::1%eth0", Some(0)),
            ("::%0/0", "::%0", Some(0)),
            ("::ffff:0:0/96", "::ffff:0:0", Some(96)),
            ("0.0.0.0", "0.0.0.0", None),
            ("::", "::", None),
        ] {
            let kind = if address.contains(':') { "ipv6" } else { "ipv4" };
            let expected = match prefix {
                Some(prefix) => json!({"ipAddress": address, "type": kind, "prefix": prefix}),
                None => json!({"ipAddress": address, "type": kind}),
            };
            assert_eq!(range(text), Some(expected), "{text:?}");
        }
        for text in [
            "0/0",
            "0x0.0.0.0/0",
            "00.0.0.0/0",
            "010.0.0.1",
            "[::]/0",
            "10.0.0.0 /8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0.0/x",
            "::/129",
            "::%/0",
            "10.0.0.0/\u{ff18}",
            "",
        ] {
            assert_eq!(range(text), None, "{text:?}");
        }
    }

    #[test]
    fn comma_lists_are_tidied() {
        for (text, tidied) in [
            (" a ,b,, c ", "a, b, c"),
            ("{a,b},c", "{a,b}, c"),
            ("{a, **, b}", "{a, **, b}"),
            ("{a,b", "{a, b"),
            ("{a,{b,c},d},e", "{a,{b,c},d}, e"),
            (r"a\,b,c", r"a\,b, c"),
            (r"\{a,b},c", r"\{a, b}, c"),
            ("\u{feff}a\u{3000},\u{200b}", "a, \u{200b}"),
            (",", ""),
        ] {
            assert_eq!(tidy(text), tidied, "{text:?}");
        }
    }

    #[test]
    fn every_lax_spelling_reaches_the_row() {
        let base = "/api/v1/auth/jwt-auth/identities";
        let bare = ID.replace('-', "");
        for target in [
            format!("{base}/{ID}/"),
            format!("{base}/{ID};x/y"),
            format!("{base}/{ID}?a=b"),
            format!("http://any.host{base}/{ID}"),
            format!("http://h?x{base}/{ID}"),
            format!("http://{base}/{ID}"),
            format!("/api/v1/auth/jwt%2Dauth/identities/%30{}", &ID[1..]),
            format!("/%61pi/v1/auth/jwt-auth/identities/{}", ID.to_uppercase()),
            format!("{base}/{bare}"),
            format!("{base}/%7B{bare}%7D"),
        ] {
            assert_eq!(send_to(&mut attached(&json!({})), "GET", &target, "").0, 200, "{target}");
        }
        for (target, status) in [
            (format!("/{base}/{ID}"), 404),
            (format!("{base}/./{ID}"), 404),
            (format!("HTTP://h{base}/{ID}"), 404),
            (format!("/API/v1/auth/jwt-auth/identities/{ID}"), 404),
            (format!("{base}/{ID}%2F"), 500),
            (format!("{base}/%20{ID}"), 500),
            (format!("{base}/{ID}%zz"), 400),
            (format!("{base}/{ID}%C0%AF"), 400),
            (format!("{base}/{}", "a".repeat(101)), 404),
            (format!("{base}/1{}", &ID[1..]), 404),
        ] {
            assert_eq!(send_to(&mut attached(&json!({})), "GET", &target, "").0, status, "{target}");
        }
    }

    #[test]
    fn rows_and_their_versions_never_come_back() {
        let mut estate = attached(&json!({}));
        let body =
            r#"{"configurationType": "jwks", "jwksUrl": "https://keys.example/jwks", "boundClaims": {}}"#;
        let first = attached_field(&estate, "id");
        let mut stamps = vec![attached_field(&estate, "updatedAt").to_string()];
        for _ in 0..3 {
            assert_eq!(send(&mut estate, "PATCH", body).0, 200);
            stamps.push(attached_field(&estate, "updatedAt").to_string());
        }
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
        let (status, gone) = send(&mut estate, "DELETE", "");
        assert_eq!((status, gone.get("jwksCaCert"), gone.get("publicKeys")), (200, None, None));
        assert_eq!(send(&mut estate, "GET", "").0, 400);
        assert_eq!(send(&mut estate, "POST", body).0, 200);
        assert_ne!(attached_field(&estate, "id"), first);
    }

    #[test]
    fn media_types_match_by_substring() {
        let mut estate = attached(&json!({}));
        let json = r#"{"configurationType": "jwks", "jwksUrl": "https://keys.example/jwks"}"#;
        let form = "configurationType=static&publicKeys=a&publicKeys=b";
        for (media, body, status) in [
            ("application/JSON;charset=latin1", json, 200),
            ("application/json-patch+json", json, 200),
            ("application/scim+json", json, 200),
            ("application/x-www-form-urlencoded", form, 200),
            ("text/plain", json, 422),
            ("text/json", json, 500),
            ("application/json;x", json, 500),
            ("application/json", "", 500),
            ("application/json", r#"{"__proto__": {}}"#, 500),
        ] {
            let answer = estate.handle(&StandInRequest {
                method: "PATCH".to_owned(),
                target: format!("/api/v1/auth/jwt-auth/identities/{ID}"),
                headers: vec![
                    ("Authorization".to_owned(), "Xxxxxx x".to_owned()),
                    ("Content-Type".to_owned(), media.to_owned()),
                ],
                body: body.as_bytes().to_vec(),
            });
            assert_eq!(answer.status, status, "{media} {body}");
        }
    }
}
