//! Everything that is not governed, streamed both ways.
//!
//! A request crosses as it came except for what belongs to the connection, `Host`, what claims who the client is and
//! `patchwarden-*`; its body and the answer's are handed on frame by frame as they arrive. [`Passthrough::prepare`]
//! makes the request to the upstream and [`Passthrough::send`] sends it, so that a watched write can be recorded
//! between the two. A websocket is opened only for a well-formed offer and a 101 that proves itself; any other offer
//! is removed. `CONNECT` and a `*` that is not `OPTIONS` get a bare 400.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::WatchedIntent;
use crate::id::ChangeId;
use crate::metrics::Metrics;
use crate::refusal::{Code, Refusal};
use crate::respond::{self, AnsweredBy, Response};
use crate::units::Span;
use crate::upstream::client_address::Client;
use crate::upstream::{Body, Failure, Upstream, hop};

/// What RFC 6455 section 1.3 appends to the key.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Both ends of a tunnel are handed over right after the 101.
const HANDOVER: Duration = Duration::from_secs(10);

/// What passing through may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `limits.passthrough_head`: from the end of the request to the answer's head.
    pub head: Span,
    /// `limits.tunnels`: open websockets.
    pub tunnels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: Span::secs(120), tunnels: 512 }
    }
}

/// Streams requests to the upstream. Cheap to clone.
#[derive(Clone)]
pub struct Passthrough {
    upstream: Upstream,
    head: Duration,
    slots: Arc<Semaphore>,
    tunnels: TaskTracker,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
}

/// A request to the upstream, ready to be sent.
pub struct Outgoing {
    request: Request<Body>,
    /// Ends when the body was sent or given up; none for a request without one.
    sent: Option<oneshot::Receiver<()>>,
    offer: Option<Offer>,
}

/// A client's offer to speak websocket.
struct Offer {
    /// The `Sec-WebSocket-Accept` that answers its key.
    accept: String,
    client: OnUpgrade,
    slot: OwnedSemaphorePermit,
}

impl Passthrough {
    /// Tunnels are spawned on `tunnels` and closed when `stop` is cancelled.
    pub fn new(
        upstream: Upstream,
        limits: Limits,
        tunnels: TaskTracker,
        stop: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(limits.tunnels));
        Self { upstream, head: limits.head.0, slots, tunnels, stop, metrics }
    }

    /// Passes one request through and its answer back.
    pub async fn stream(&self, request: Request<Incoming>, client: &Client) -> Response {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let outgoing = match self.prepare(request.map(Body::Incoming), client) {
            Ok(outgoing) => outgoing,
            Err(response) => return *response,
        };
        match self.send("passthrough", outgoing).await {
            Ok(response) => response,
            Err(failure) => self.refuse(&self.refusal(&failure), None, origin.as_ref()),
        }
    }

    /// Passes a watched write through, between its two records. The answer is stamped with the change; beside it
    /// stands what is known of the write: the upstream's status, or why there is none.
    pub async fn carry(
        &self,
        request: Request<Body>,
        client: &Client,
        intent: &WatchedIntent,
    ) -> (Response, Result<StatusCode, Failure>) {
        self.carried(request, client, &intent.change()).await
    }

    /// What [`Passthrough::carry`] does; apart, so that tests need no log.
    pub(crate) async fn carried(
        &self,
        request: Request<Body>,
        client: &Client,
        change: &ChangeId,
    ) -> (Response, Result<StatusCode, Failure>) {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let outgoing = match self.prepare(request, client) {
            Ok(outgoing) => outgoing,
            Err(mut response) => {
                respond::stamp(response.headers_mut(), change, AnsweredBy::Gateway);
                return (*response, Err(Failure::NotSent("it cannot be passed on".to_owned())));
            }
        };
        match self.send("watched", outgoing).await {
            Ok(mut response) => {
                respond::stamp(response.headers_mut(), change, AnsweredBy::Upstream);
                let status = response.status();
                (response, Ok(status))
            }
            Err(failure) => {
                let refusal = self.refusal(&failure);
                (self.refuse(&refusal, Some(change), origin.as_ref()), Err(failure))
            }
        }
    }

    /// The request to the upstream, or the answer to one that cannot go there.
    pub fn prepare(&self, mut request: Request<Body>, client: &Client) -> Result<Outgoing, Box<Response>> {
        let star = request.uri().path() == "*";
        if request.method() == Method::CONNECT || (star && request.method() != Method::OPTIONS) {
            return Err(Box::new(respond::bare(StatusCode::BAD_REQUEST)));
        }
        let offer = match self.offer(&mut request) {
            Ok(offer) => offer,
            Err(_none_left) => {
                let refusal = Refusal::overloaded("limits.tunnels");
                return Err(Box::new(self.refuse(&refusal, None, request.headers().get(header::ORIGIN))));
            }
        };
        let (parts, body) = request.into_parts();
        let mut headers = parts.headers;
        hop::strip_request(&mut headers);
        client.stamp(&mut headers);
        if parts.version == Version::HTTP_2 {
            join_cookies(&mut headers);
        }
        if offer.is_some() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        let (body, sent) = match body {
            body if body.is_end_stream() => (Body::Empty, None),
            Body::Incoming(body) => {
                if body.size_hint().exact().is_none() {
                    // Without this, hyper sends a GET with a body of unknown length as one without.
                    headers.remove(header::CONTENT_LENGTH);
                    headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
                let (sending, sent) = oneshot::channel();
                (Body::Upload(body, sending), Some(sent))
            }
            body => (body, None),
        };
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.uri_mut() = parts.uri;
        *request.headers_mut() = headers;
        Ok(Outgoing { request, sent, offer })
    }

    /// Sends it and returns with the answer's head; the body follows as it arrives. `class` labels the metrics.
    pub async fn send(&self, class: &'static str, outgoing: Outgoing) -> Result<Response, Failure> {
        let Outgoing { request, sent, offer } = outgoing;
        let mut answer = self.upstream.stream(class, request, late(self.head, sent)).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(offer) = offer else {
                return Err(Failure::Cut("it switched protocols unasked".to_owned()));
            };
            if !accepts(answer.headers(), &offer.accept) {
                return Err(Failure::Cut("its 101 does not answer the websocket key".to_owned()));
            }
            self.open(offer, hyper::upgrade::on(&mut answer));
            let mut response = self.answer(answer.map(|_| Body::Empty));
            let headers = response.headers_mut();
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            return Ok(response);
        }
        Ok(self.answer(answer.map(Body::Incoming)))
    }

    /// How the end of an exchange without an answer is put to the client.
    pub fn refusal(&self, failure: &Failure) -> Refusal {
        let refusal = match failure {
            Failure::NotSent(_) | Failure::TooLate => Refusal::new(
                Code::UpstreamUnreachable,
                "The upstream could not be reached; the request was not sent and can be repeated",
            ),
            Failure::TimedOut => Refusal::new(
                Code::UpstreamTimeout,
                format!("The upstream began no answer within {}", Span(self.head)),
            ),
            Failure::Cut(_) | Failure::TooLarge => {
                Refusal::new(Code::UpstreamBroken, "The upstream gave no answer that can be passed on")
            }
        };
        refusal.because(failure)
    }

    fn refuse(&self, refusal: &Refusal, change: Option<&ChangeId>, origin: Option<&HeaderValue>) -> Response {
        self.metrics.refused(refusal.code);
        if let Some(cause) = &refusal.cause {
            tracing::warn!(event = "passthrough_failed", code = refusal.code.as_str(), cause = %cause, "a request could not be passed through");
        }
        respond::refusal(refusal, change, origin)
    }

    fn answer(&self, answer: http::Response<Body>) -> Response {
        let (mut parts, body) = answer.into_parts();
        hop::strip_answer(&mut parts.headers);
        self.upstream.localize(&mut parts.headers);
        parts.version = Version::HTTP_11;
        Response::from_parts(parts, body)
    }

    /// Takes a slot for a well-formed websocket offer; everything else is no offer.
    fn offer(&self, request: &mut Request<Body>) -> Result<Option<Offer>, TryAcquireError> {
        let Some(accept) = accept_of(request.method(), request.version(), request.headers()) else {
            return Ok(None);
        };
        let slot = Arc::clone(&self.slots).try_acquire_owned()?;
        Ok(Some(Offer { accept, client: hyper::upgrade::on(request), slot }))
    }

    /// Joins the two ends; runs until either is closed or the gateway stops.
    fn open(&self, offer: Offer, upstream: OnUpgrade) {
        let stop = self.stop.clone();
        self.tunnels.spawn(async move {
            let Offer { client, slot, .. } = offer;
            let joined = async {
                let ends = async { futures_util::future::try_join(client, upstream).await };
                let Ok(Ok((client, upstream))) = tokio::time::timeout(HANDOVER, ends).await else { return };
                let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                // However it ends, both ends are closed with it.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            };
            tokio::select! {
                () = joined => {}
                () = stop.cancelled() => {}
            }
            drop(slot);
        });
    }
}

/// Ends `limit` after the body was sent; while it is being sent, nobody is late.
async fn late(limit: Duration, sent: Option<oneshot::Receiver<()>>) {
    if let Some(sent) = sent {
        // Nothing is ever sent: the other end is dropped.
        let _ = sent.await;
    }
    tokio::time::sleep(limit).await;
}

/// HTTP/2 may spread one `Cookie` over several lines; HTTP/1.1 may not (RFC 9113 section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    if let Ok(mut cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        cookie.set_sensitive(true);
        headers.insert(header::COOKIE, cookie);
    }
}

/// The answer a well-formed websocket offer waits for (RFC 6455 section 4.2.1); none for anything else.
fn accept_of(method: &Method, version: Version, headers: &HeaderMap) -> Option<String> {
    let offers = method == Method::GET
        && version == Version::HTTP_11
        && is_websocket(headers)
        && !headers.contains_key(header::TRANSFER_ENCODING)
        && headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
    let key = only(headers, &header::SEC_WEBSOCKET_KEY).filter(|_| offers)?;
    let nonce = BASE64.decode(key.as_bytes()).ok()?;
    (nonce.len() == 16).then(|| accept_for(key.as_bytes()))
}

fn accept_for(key: &[u8]) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(WEBSOCKET_GUID.as_bytes());
    BASE64.encode(digest.finish())
}

/// Whether a 101 switches to what was asked for.
fn accepts(headers: &HeaderMap, accept: &str) -> bool {
    is_websocket(headers) && only(headers, &header::SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value == accept)
}

/// `Connection` names `upgrade`, and `Upgrade` is `websocket` alone.
fn is_websocket(headers: &HeaderMap) -> bool {
    only(headers, &header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && hop::tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests;
