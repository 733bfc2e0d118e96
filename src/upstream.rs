//! The client to the guarded API.
//!
//! Two ways lead to the upstream: [`Upstream::exchange`] sends a small complete request and reads the whole answer
//! within one time limit; [`Upstream::stream`] hands a request on and returns as soon as the answer's head is there.
//! Both speak HTTP/1.1 over pooled connections and connect to the configured origin only, whatever a client named.
//! What matters most is what a failure proves: [`Failure::NotSent`] is said only when no connection ever carried the
//! request, everything else leaves its effect open. Nothing here sends a request twice once a byte of it may have left.

pub mod client_address;
pub mod hop;

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{HOST, LOCATION};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio::sync::oneshot;
use url::Url;

use crate::metrics::{ClassLabels, Metrics};
use crate::units::Span;

/// How often a read is asked again whose connection broke off before any answer: mostly an idle one that the upstream
/// closed in that moment. A GET changes nothing, so asking again is safe (RFC 9110, 9.2.2).
const READS_AGAIN: usize = 2;
/// Shorter than the 30 s after which the upstream cuts idle connections.
const POOL_IDLE: Duration = Duration::from_secs(15);
/// Idle connections kept; more are opened as needed and closed after use.
const POOL_MAX_IDLE: usize = 64;
/// Finds peers that vanished without a word.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Header lines of an answer.
const MAX_HEADERS: usize = 128;
/// The largest head of an answer.
const MAX_HEAD: usize = 64 * 1024;
/// The largest answer to the start-up probe.
const MAX_PROBE: usize = 64 * 1024;

/// `[upstream]` of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Scheme, host and port of the guarded API.
    pub url: String,
    /// PEM roots to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate and its chain that is shown to the upstream, PEM.
    pub client_cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub client_key_file: Option<PathBuf>,
    /// Whether the organisation's plan has IP allow-listing; see the rule `open-network`.
    pub ip_allow_listing: bool,
    /// How long a write whose answer was not seen may still land.
    pub late_write_limit: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            ip_allow_listing: true,
            late_write_limit: Span::secs(120),
        }
    }
}

/// Why no client can be made of the settings. Each text says what would pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is more, or less, than scheme, host and port.
    #[error("upstream.url {0}")]
    Url(String),
    /// The file of roots cannot be used.
    #[error("upstream.ca_file {}: {reason}; name a readable file of PEM certificates", path.display())]
    CaFile {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate for the upstream cannot be used; begins with the key that is wrong.
    #[error("{0}")]
    ClientCertificate(String),
    /// Nothing could ever be verified.
    #[error(
        "upstream.url is https, but the system has no root certificates{0}; install ca-certificates, set SSL_CERT_FILE, or set upstream.ca_file"
    )]
    NoRoots(String),
    /// TLS cannot be set up at all.
    #[error("TLS towards upstream.url cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// In a request's extensions: it is not sent later than this. A process that was paused in between may have lost the
/// right to send it.
#[derive(Clone, Copy, Debug)]
pub struct SendBefore(pub Instant);

const TOO_LATE: &str = "this process was paused for longer than its lease, so the change was not sent";

/// A body that crosses the gateway or is made by it, without boxing.
#[derive(Debug, Default)]
pub enum Body {
    /// Streams from the other side.
    Incoming(Incoming),
    /// Streams from the client; the sender is dropped when all of it was handed on, or was given up.
    Upload(Incoming, oneshot::Sender<()>),
    /// Complete.
    Full(Full<Bytes>),
    /// Complete, and never sent later than this.
    Until(Full<Bytes>, Instant),
    /// Nothing.
    #[default]
    Empty,
}

impl Body {
    /// A complete body.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(Full::new(bytes)) }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Incoming(body) | Self::Upload(body, _) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Until(_, at) if Instant::now() >= *at => Poll::Ready(Some(Err(TOO_LATE.into()))),
            Self::Full(body) | Self::Until(body, _) => {
                Pin::new(body).poll_frame(cx).map_err(|never| match never {})
            }
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Incoming(body) | Self::Upload(body, _) => body.is_end_stream(),
            Self::Full(body) | Self::Until(body, _) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Incoming(body) | Self::Upload(body, _) => body.size_hint(),
            Self::Full(body) | Self::Until(body, _) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

/// A complete answer. Its headers are end-to-end headers only, free of `patchwarden-*`.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are the parts of an HTTP answer")]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no complete answer, and with it what is known of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection ever carried it: surely without effect. Says why.
    NotSent(String),
    /// Its [`SendBefore`] was over: surely without effect.
    TooLate,
    /// No complete answer in time; it may have had, or may still have, its effect.
    TimedOut,
    /// The exchange broke off; it may have had its effect. Says how.
    Cut(String),
    /// The answer is over the limit; it may have had its effect.
    TooLarge,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(why) => write!(f, "not sent: {why}"),
            Self::TooLate => f.write_str(TOO_LATE),
            Self::TimedOut => f.write_str("no complete answer in time"),
            Self::Cut(how) => write!(f, "the exchange broke off: {how}"),
            Self::TooLarge => f.write_str("the answer is over the limit"),
        }
    }
}

/// The way to the guarded API. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    client: Client<Connector, Body>,
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    origin: Url,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// Reads the settings and the roots; connects to nothing yet. `connect` bounds name lookup, TCP and TLS together.
    pub fn new(settings: &Settings, connect: Duration, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let origin = read_url(&settings.url)?;
        let (scheme, authority, host) = parts_of(&origin)?;
        let roots = roots(settings.ca_file.as_deref(), scheme == Scheme::HTTPS)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let tls = match client_certificate(settings)? {
            None => tls.with_no_client_auth(),
            Some((chain, key)) => tls.with_client_auth_cert(chain, key).map_err(|error| {
                let what = "it must be the key of the first certificate in upstream.client_cert_file";
                Error::ClientCertificate(format!("upstream.client_key_file: {error}; {what}"))
            })?,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        // Shared out among the host's addresses, so that a dead one leaves time for the next.
        tcp.set_connect_timeout(Some(connect));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_MAX_IDLE)
            .retry_canceled_requests(true)
            .http1_max_headers(MAX_HEADERS)
            .http1_max_buf_size(MAX_HEAD)
            .build(Connector { https, within: connect });
        Ok(Self(Arc::new(Inner { client, scheme, authority, host, origin, metrics })))
    }

    /// Host and port as `Host` writes them.
    pub fn authority(&self) -> &str {
        self.0.authority.as_str()
    }

    /// Scheme, host and port: `https://infisical.example`.
    pub fn origin(&self) -> String {
        self.0.origin.origin().ascii_serialization()
    }

    /// Sends a complete request whose URI is a path, and reads the whole answer: at most `at_most` bytes of body,
    /// all within `within`. Scheme, authority and `Host` are set here. A GET is asked again when its connection broke
    /// off without an answer; anything else is sent once.
    pub async fn exchange(
        &self,
        class: &'static str,
        request: Request<Bytes>,
        within: Duration,
        at_most: usize,
    ) -> Result<Answer, Failure> {
        let deadline = Instant::now() + within;
        let started = Instant::now();
        let before = request.extensions().get::<SendBefore>().copied();
        let read = async {
            if before.is_some_and(|SendBefore(at)| Instant::now() >= at) {
                return Err(Failure::TooLate);
            }
            let mut again = if request.method() == Method::GET { READS_AGAIN } else { 0 };
            let response = loop {
                let request = request.clone().map(|bytes| match before {
                    Some(SendBefore(at)) if !bytes.is_empty() => Body::Until(Full::new(bytes), at),
                    _ => Body::from_bytes(bytes),
                });
                match self.head(request, tokio::time::sleep_until(deadline.into())).await {
                    Err(Failure::Cut(_)) if again > 0 => again -= 1,
                    ended => break ended?,
                }
            };
            if response.status().is_informational() {
                return Err(Failure::Cut("it switched protocols unasked".to_owned()));
            }
            let (mut parts, body) = response.into_parts();
            let body = tokio::time::timeout_at(deadline.into(), collect(body, at_most))
                .await
                .unwrap_or(Err(Failure::TimedOut))?;
            hop::strip(&mut parts.headers);
            self.localize(&mut parts.headers);
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        let answer = read.await;
        self.observe(class, started);
        answer
    }

    /// Hands a request on whose URI is a path, and returns with the answer's head as it came, hop-by-hop headers
    /// included. When `give_up` ends first, the request is dropped and its connection closed.
    pub async fn stream(
        &self,
        class: &'static str,
        request: Request<Body>,
        give_up: impl Future<Output = ()>,
    ) -> Result<Response<Incoming>, Failure> {
        let started = Instant::now();
        let response = self.head(request, give_up).await;
        self.observe(class, started);
        response
    }

    /// Makes a `Location` that names the upstream's origin relative, so that clients stay with the gateway.
    pub fn localize(&self, headers: &mut HeaderMap) {
        let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else { return };
        let absolute = location.contains("://") || location.starts_with("//");
        let Ok(url) = self.0.origin.join(location) else { return };
        if !absolute || url.origin() != self.0.origin.origin() {
            return;
        }
        // A path that begins with two slashes would name a host of its own.
        let path = &url[url::Position::BeforePath..];
        let local = if path.starts_with("//") { format!("/.{path}") } else { path.to_owned() };
        if let Ok(local) = HeaderValue::try_from(local) {
            headers.insert(LOCATION, local);
        }
    }

    /// Whether the guarded API answers here: `GET /api/status`. The text says what to do.
    pub async fn status_probe(&self, within: Duration) -> Result<(), String> {
        let origin = self.origin();
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = Uri::from_static("/api/status");
        let answer = match self.exchange("probe", request, within, MAX_PROBE).await {
            Ok(answer) => answer,
            Err(failure) => return Err(format!("{origin}/api/status: {failure}")),
        };
        if answer.status.is_success() {
            return Ok(());
        }
        if !answer.status.is_redirection() {
            return Err(format!(
                "{origin}/api/status answered {}; is upstream.url the Infisical API?",
                answer.status
            ));
        }
        let elsewhere = answer
            .headers
            .get(LOCATION)
            .and_then(|value| self.0.origin.join(value.to_str().ok()?).ok())
            .map(|url| url.origin().ascii_serialization())
            .filter(|elsewhere| *elsewhere != origin);
        Err(match elsewhere {
            Some(elsewhere) => format!(
                "{origin}/api/status redirects to {elsewhere}; the gateway follows no redirects: set upstream.url = \"{elsewhere}\""
            ),
            None => {
                format!("{origin}/api/status answered with a redirect; is upstream.url the Infisical API?")
            }
        })
    }

    async fn head(
        &self,
        mut request: Request<Body>,
        give_up: impl Future<Output = ()>,
    ) -> Result<Response<Incoming>, Failure> {
        self.address(&mut request)?;
        let carried = capture_connection(&mut request);
        tokio::select! {
            biased;
            response = self.0.client.request(request) => response.map_err(|error| failure_of(&error)),
            // The connection is noted in the same step that hands the request to it, and only this future does that.
            () = give_up => Err(if carried.connection_metadata().is_none() {
                Failure::NotSent("no connection in time".to_owned())
            } else {
                Failure::TimedOut
            }),
        }
    }

    /// Scheme, authority, `Host` and version are ours, the path and query are the request's.
    fn address<B>(&self, request: &mut Request<B>) -> Result<(), Failure> {
        let path = request.uri().path_and_query().cloned();
        let uri = Uri::builder()
            .scheme(self.0.scheme.clone())
            .authority(self.0.authority.clone())
            .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
            .build()
            .map_err(|error| Failure::NotSent(error.to_string()))?;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(HOST, self.0.host.clone());
        Ok(())
    }

    fn observe(&self, class: &'static str, started: Instant) {
        let labels = ClassLabels { class };
        self.0.metrics.upstream_seconds.get_or_create(&labels).observe(started.elapsed().as_secs_f64());
    }
}

async fn collect(mut body: Incoming, at_most: usize) -> Result<Bytes, Failure> {
    let most = u64::try_from(at_most).unwrap_or(u64::MAX);
    let announced = http_body::Body::size_hint(&body).lower();
    if announced > most {
        return Err(Failure::TooLarge);
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| Failure::Cut(chain(&error)))?.into_data() else { continue };
        if bytes.len() + data.len() > at_most {
            return Err(Failure::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

fn failure_of(error: &legacy::Error) -> Failure {
    let why = error.source().map_or_else(|| error.to_string(), chain);
    if error.is_connect() { Failure::NotSent(why) } else { Failure::Cut(why) }
}

/// An error with its causes, each said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

/// Bounds name lookup, TCP and TLS together; hyper's own limit ends with TCP.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector>,
    within: Duration,
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl tower::Service<Uri> for Connector {
    type Response = <HttpsConnector<HttpConnector> as tower::Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.https.call(to);
        let within = self.within;
        Box::pin(async move {
            tokio::time::timeout(within, connecting)
                .await
                .unwrap_or_else(|_| Err(format!("no connection within {}", Span(within)).into()))
        })
    }
}

fn read_url(text: &str) -> Result<Url, Error> {
    const LIKE: &str = "write scheme, host and port only, like `http://infisical:8080`";
    let bad = |what: &str| Error::Url(format!("{what}; {LIKE}"));
    if text.is_empty() {
        return Err(bad("is not set"));
    }
    let (scheme, _) = text.split_once("://").ok_or_else(|| bad("has no scheme"))?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(bad("has a scheme other than http and https"));
    }
    let url = Url::parse(text).map_err(|error| bad(&format!("cannot be read ({error})")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("holds a user name or password"));
    }
    let origin = url.origin().ascii_serialization();
    if url.path() != "/" {
        return Err(Error::Url(format!("has a path; `{origin}` would pass")));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::Url(format!("has a query or fragment; `{origin}` would pass")));
    }
    Ok(url)
}

fn parts_of(url: &Url) -> Result<(Scheme, Authority, HeaderValue), Error> {
    let scheme = if url.scheme() == "https" { Scheme::HTTPS } else { Scheme::HTTP };
    let text = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let unusable = |error: &dyn fmt::Display| Error::Url(format!("names no usable host: {error}"));
    let authority = Authority::try_from(text).map_err(|error| unusable(&error))?;
    let host = HeaderValue::try_from(text).map_err(|error| unusable(&error))?;
    Ok((scheme, authority, host))
}

/// What the upstream is shown, if anything is configured.
fn client_certificate(
    settings: &Settings,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, Error> {
    let bad = |key: &str, path: &Path, what: &dyn fmt::Display| {
        Error::ClientCertificate(format!(
            "upstream.{key} {}: {what}; name a readable PEM file",
            path.display()
        ))
    };
    let alone = |key: &str, other: &str| {
        Err(Error::ClientCertificate(format!("upstream.{key} is set without upstream.{other}; set both")))
    };
    let (certificate, key) = match (&settings.client_cert_file, &settings.client_key_file) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return alone("client_cert_file", "client_key_file"),
        (None, Some(_)) => return alone("client_key_file", "client_cert_file"),
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad("client_cert_file", certificate, &error))?;
    if chain.is_empty() {
        return Err(bad("client_cert_file", certificate, &"holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| bad("client_key_file", key, &error))?;
    Ok(Some((chain, key)))
}

fn roots(ca_file: Option<&Path>, needed: bool) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let bad = |reason: String| Error::CaFile { path: path.to_owned(), reason };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))? {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("holds no certificate".to_owned()));
        }
    } else if needed {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
            return Err(Error::NoRoots(why));
        }
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
