//! The doors: accept loops for the gateway's port, the admin port and the admin socket.
//!
//! A [`Server`] takes connections from a [`Door`], finds out whether they speak HTTP/1.1 or HTTP/2, and hands each
//! request with its [`Peer`] to a tower service. Everything a client can draw out has a limit: connections, the TLS
//! handshake, the first byte, the header, the silence between requests, what is read after the answer. What is no HTTP
//! gets a bare status from the protocol layer, or nothing, and is counted. Accepting never ends on an error.
//!
//! When told to stop, a server accepts nothing more, asks each connection to finish and gives them a bounded time.

mod certificate;
mod linger;
mod requests;
mod socket;
mod tls;

use std::any::Any;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE, HOST, HeaderName, ORIGIN, PROXY_AUTHORIZATION, TRANSFER_ENCODING};
use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::body::UnsyncBoxBody;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;

use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::respond::{self, Response};
use crate::units::{Size, Span};
use crate::upstream::client_address::Peer;

use linger::Lingering;
pub(crate) use requests::Requests;
pub use socket::Socket;
pub use tls::{Tls, TlsSettings};

/// An HTTP/2 client that answers no ping within [`PING_TIMEOUT`] is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept; doubled up to a second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often the first bytes are looked at again while they may still be either version.
const PEEK_PAUSE: Duration = Duration::from_millis(10);

type BoxError = Box<dyn StdError + Send + Sync>;

/// What a door allows a client. Each has its key under `limits`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `limits.connections`: open at once; more wait in the listener's queue.
    pub connections: usize,
    /// `limits.headers`: header lines of a request; more get 431.
    pub headers: usize,
    /// `limits.header_bytes`: about the largest head of an HTTP/1.1 request (checked between reads); more gets 431. An
    /// HTTP/2 head may have half of it.
    pub header_bytes: Size,
    /// `limits.streams`: requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// `limits.handshake`: the TLS handshake, or the first byte without TLS.
    pub handshake: Span,
    /// `limits.header_read`: a request's head; also the silence between requests of HTTP/1.1.
    pub header_read: Span,
    /// `limits.idle`: the silence between requests of HTTP/2.
    pub idle: Span,
    /// `limits.shutdown`: what requests in flight get to finish when the gateway stops.
    pub shutdown: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            headers: 128,
            header_bytes: Size(64 << 10),
            streams: 128,
            handshake: Span::secs(5),
            header_read: Span::secs(30),
            idle: Span::secs(60),
            shutdown: Span::secs(30),
        }
    }
}

/// Handles one request of the gateway's port.
pub type Handler =
    Arc<dyn Fn(Request<Incoming>, Peer) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;

/// What serves the gateway's port.
pub type Gateway =
    BoxCloneSyncService<Request<Incoming>, http::Response<UnsyncBoxBody<Bytes, BoxError>>, Infallible>;

/// Puts the layers around a handler: credentials are kept out of debug output, a panic becomes a 500, and of all
/// requests of all connections at most `requests` are handled at once; the rest get `gateway.overloaded`.
pub fn gateway(handler: Handler, requests: usize, metrics: Arc<Metrics>) -> Gateway {
    let secrets = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, HeaderName::from_static("x-api-key")];
    let handle = tower::service_fn(move |request: Request<Incoming>| {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or(Peer::LOCAL);
        let handled = handler(request, peer);
        async move { Ok::<_, Infallible>(handled.await) }
    });
    // Built once: the clones of all connections share one semaphore.
    let limited = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(requests)
        .layer(CatchPanicLayer::custom(panicked))
        .service(handle);
    let answer = tower::service_fn(move |request: Request<Incoming>| {
        let limited = limited.clone();
        let metrics = Arc::clone(&metrics);
        async move {
            if !names_one_host(&request) || !is_plainly_framed(&request) {
                metrics.protocol_errors.inc();
                return Ok(respond::bare(StatusCode::BAD_REQUEST).map(boxed));
            }
            let origin = request.headers().get(ORIGIN).cloned();
            Ok::<_, Infallible>(limited.oneshot(request).await.unwrap_or_else(|_shed| {
                let refusal = Refusal::overloaded("limits.requests");
                metrics.refused(refusal.code);
                respond::refusal(&refusal, None, origin.as_ref()).map(boxed)
            }))
        }
    });
    BoxCloneSyncService::new(
        ServiceBuilder::new().layer(SetSensitiveRequestHeadersLayer::new(secrets)).service(answer),
    )
}

/// The panic itself is reported by the process's panic hook.
fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    respond::failed(None, None)
}

fn boxed(body: crate::upstream::Body) -> UnsyncBoxBody<Bytes, BoxError> {
    UnsyncBoxBody::new(body.map_err(BoxError::from))
}

/// The only transfer coding anybody here speaks, said once: under another one a body has two readings.
fn is_plainly_framed(request: &Request<Incoming>) -> bool {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// RFC 9112 section 3.2: a 1.1 request has exactly one `Host`.
fn names_one_host(request: &Request<Incoming>) -> bool {
    request.version() != Version::HTTP_11 || request.headers().get_all(HOST).iter().count() == 1
}

/// Where connections come from.
pub enum Door {
    /// A port, with TLS if there is an acceptor.
    Tcp(TcpListener, Option<Arc<Tls>>),
    /// A socket file.
    Unix(Socket),
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Door {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener, _) => {
                listener.accept().await.map(|(stream, address)| Accepted::Tcp(stream, address))
            }
            Self::Unix(socket) => socket.listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

/// Serves HTTP on doors.
pub struct Server {
    limits: Limits,
    slots: Arc<Semaphore>,
    metrics: Option<Arc<Metrics>>,
}

impl Server {
    /// With `metrics`, its connections and protocol errors are counted as the gateway's.
    pub fn new(limits: Limits, metrics: Option<Arc<Metrics>>) -> Self {
        Self { limits, slots: Arc::new(Semaphore::new(limits.connections)), metrics }
    }

    /// Serves a door until `stop` is cancelled and its connections have ended, or their time to finish has.
    pub async fn serve<S, B>(&self, door: Door, service: S, stop: CancellationToken)
    where
        S: tower::Service<Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data: Send> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let tasks = TaskTracker::new();
        let mut pause = ACCEPT_PAUSE;
        loop {
            let Some(Ok(slot)) = stop.run_until_cancelled(Arc::clone(&self.slots).acquire_owned()).await
            else {
                break;
            };
            let Some(accepted) = stop.run_until_cancelled(door.accept()).await else { break };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_the_clients(&error) => continue,
                Err(error) => {
                    tracing::warn!(event = "accept_failed", error = %error, "a connection could not be accepted");
                    stop.run_until_cancelled(sleep(pause)).await;
                    pause = (pause * 2).min(MAX_ACCEPT_PAUSE);
                    continue;
                }
            };
            pause = ACCEPT_PAUSE;
            let tls = match &door {
                Door::Tcp(_, tls) => tls.as_ref().map(|tls| tls.acceptor()),
                Door::Unix(_) => None,
            };
            let connection = Connection {
                limits: self.limits,
                tasks: tasks.clone(),
                stop: stop.clone(),
                metrics: self.metrics.clone(),
            };
            let service = service.clone();
            tasks.spawn(async move {
                connection.counted(accepted, tls, service).await;
                drop(slot);
            });
        }
        drop(door);
        tasks.close();
        // Each connection keeps to the same limit; this one is for tasks that do not end with their connection.
        let _ = timeout(self.limits.shutdown.0 + Duration::from_secs(1), tasks.wait()).await;
    }
}

/// Errors of the one connection, not of the listener.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http {
    One,
    Two,
}

/// Why a connection ended without having been HTTP.
struct Unreadable;

struct Connection {
    limits: Limits,
    tasks: TaskTracker,
    stop: CancellationToken,
    metrics: Option<Arc<Metrics>>,
}

impl Connection {
    async fn counted<S, B>(&self, accepted: Accepted, tls: Option<TlsAcceptor>, service: S)
    where
        S: tower::Service<Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data: Send> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let open = self.metrics.as_ref().map(Open::count);
        let ended = match accepted {
            Accepted::Tcp(stream, address) => self.tcp(stream, address, tls, service).await,
            Accepted::Unix(stream) => self.http(stream, Http::One, Peer::LOCAL, service).await,
        };
        drop(open);
        if let (Err(Unreadable), Some(metrics)) = (ended, &self.metrics) {
            metrics.protocol_errors.inc();
        }
    }

    async fn tcp<S, B>(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        service: S,
    ) -> Result<(), Unreadable>
    where
        S: tower::Service<Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data: Send> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Only slows the connection down if it fails.
        let _ = stream.set_nodelay(true);
        let within = self.limits.handshake.0;
        let mut peer = Peer { address, tls: tls.is_some(), certificate: None, local: false };
        let Some(acceptor) = tls else {
            let Some(sniffed) = self.stop.run_until_cancelled(timeout(within, sniff(&stream))).await else {
                return Ok(());
            };
            return match sniffed {
                Ok(Ok(Some(version))) => self.http(stream, version, peer, service).await,
                Ok(Ok(None) | Err(_)) => Ok(()),
                Err(_late) => Err(Unreadable),
            };
        };
        let Some(shaken) = self.stop.run_until_cancelled(timeout(within, acceptor.accept(stream))).await
        else {
            return Ok(());
        };
        let Ok(Ok(stream)) = shaken else { return Err(Unreadable) };
        let session = stream.get_ref().1;
        peer.certificate = session.peer_certificates().and_then(<[_]>::first).map(certificate::of);
        let version = match session.alpn_protocol() {
            Some(b"h2") => Http::Two,
            _ => Http::One,
        };
        self.http(stream, version, peer, service).await
    }

    async fn http<I, S, B>(&self, io: I, version: Http, peer: Peer, service: S) -> Result<(), Unreadable>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: tower::Service<Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data: Send> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let requests = Arc::new(Requests::default());
        let seen = Arc::clone(&requests);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let handled = service.clone().oneshot(request);
            let seen = seen.begin();
            async move {
                let response = handled.await?;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    seen.upgrade();
                }
                Ok::<_, Infallible>(response)
            }
        });
        let io = TokioIo::new(Lingering::new(io, Arc::clone(&requests)));
        let header = self.limits.header_read.0;
        match version {
            Http::One => {
                let mut builder = http1::Builder::new();
                builder
                    .timer(TokioTimer::new())
                    .header_read_timeout(header)
                    .max_headers(self.limits.headers)
                    .max_buf_size(self.limits.header_bytes.bytes())
                    .half_close(false);
                let connection = builder.serve_connection(io, service).with_upgrades();
                let finish = http1::UpgradeableConnection::graceful_shutdown;
                self.drive(connection, finish, &requests, std::future::pending()).await
            }
            Http::Two => {
                let mut builder = http2::Builder::new(Tracked(self.tasks.clone()));
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(self.limits.streams)
                    .max_header_list_size(
                        u32::try_from(self.limits.header_bytes.bytes() / 2).unwrap_or(u32::MAX),
                    )
                    .keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(PING_TIMEOUT)
                    .max_pending_accept_reset_streams(20)
                    .max_local_error_reset_streams(1024);
                let connection = builder.serve_connection(io, service);
                let silence = requests.silence(header, self.limits.idle.0);
                self.drive(connection, http2::Connection::graceful_shutdown, &requests, silence).await
            }
        }
    }

    /// Runs a connection to its end. When `silence` ends or the gateway stops, it is asked to finish; it is given
    /// up when it does not in time, or never sent a request at all.
    async fn drive<C>(
        &self,
        connection: C,
        finish: impl Fn(Pin<&mut C>),
        requests: &Requests,
        silence: impl Future<Output = ()>,
    ) -> Result<(), Unreadable>
    where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let mut connection = pin!(connection);
        let mut silence = pin!(silence);
        tokio::select! {
            ended = connection.as_mut() => return readable(ended, requests),
            () = self.stop.cancelled() => {}
            () = silence.as_mut() => {
                if requests.begun() == 0 {
                    return Err(Unreadable);
                }
                finish(connection.as_mut());
                // Answers may still be streaming, as long as the gateway runs.
                tokio::select! {
                    ended = connection.as_mut() => return readable(ended, requests),
                    () = self.stop.cancelled() => {}
                }
            }
        }
        finish(connection.as_mut());
        match timeout(self.limits.shutdown.0, connection).await {
            Ok(ended) => readable(ended, requests),
            Err(_late) => Ok(()),
        }
    }
}

/// Whether a connection ended over something that is no HTTP, rather than over the network or a client that left.
fn readable(ended: Result<(), hyper::Error>, requests: &Requests) -> Result<(), Unreadable> {
    let Err(error) = ended else { return Ok(()) };
    // The header's time limit also ends connections that are idle between requests.
    let never_spoke = error.is_timeout() && requests.begun() == 0;
    let broken_http2 = error.to_string().starts_with("http2 error") && !is_of_the_network(&error);
    if error.is_parse() || never_spoke || broken_http2 { Err(Unreadable) } else { Ok(()) }
}

fn is_of_the_network(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(next) = cause {
        if next.is::<io::Error>() {
            return true;
        }
        cause = next.source();
    }
    false
}

/// Tells the version by the first bytes without taking them: no HTTP/1.1 method begins like the HTTP/2 preface.
/// `None` when the client closed first.
async fn sniff(stream: &TcpStream) -> io::Result<Option<Http>> {
    const PREFACE: &[u8] = b"PRI";
    let mut first = [0; PREFACE.len()];
    loop {
        let count = stream.peek(&mut first).await?;
        if count == 0 {
            return Ok(None);
        }
        if first[..count] != PREFACE[..count] {
            return Ok(Some(Http::One));
        }
        if count == PREFACE.len() {
            return Ok(Some(Http::Two));
        }
        sleep(PEEK_PAUSE).await;
    }
}

/// One open connection in the metrics.
struct Open(Arc<Metrics>);

impl Open {
    fn count(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// Runs the streams of HTTP/2 where the server waits for them.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

#[cfg(test)]
mod tests;
