//! The scripted upstream: a real socket that speaks HTTP/1.1 by hand, so that it can misbehave.
//!
//! Its normal answers come from [`patchwarden::standin::Estate`]. A test lays [`Act`]s over them: `script` for
//! the next request that matches (each used once, in order), `always` for all. It records every complete request
//! before it acts. It lives in a runtime of its own, so a test that blocks does not stop it; dropping it closes
//! everything. Beside the API it has `/ws`, `/sse`, `/big` and `/count`, see [`Wire::stream_route`].

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use patchwarden::standin::{Estate, StandInAnswer, StandInRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::IDENTITY;
use super::certificates::Authority;

/// As Node's parser has it.
const HEAD_LIMIT: usize = 16 * 1024;
const KEPT_OF_A_BODY: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(15);

/// One request that arrived whole.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    /// As sent and in order.
    pub(crate) headers: Vec<(String, String)>,
    /// Without the transfer coding; of a large one only the first 4 MiB.
    pub(crate) body: Vec<u8>,
    pub(crate) body_length: usize,
    pub(crate) at: Instant,
    /// Request line and headers with the blank line.
    pub(crate) raw_head: Vec<u8>,
}

impl Seen {
    /// The first header of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).into_iter().next()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    #[expect(clippy::disallowed_methods, reason = "a test reads requests without the code under test")]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the request has a JSON body")
    }

    fn is_write(&self) -> bool {
        !matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS")
    }

    fn is_http10(&self) -> bool {
        find(&self.raw_head, b" HTTP/1.0\r\n").is_some()
    }

    fn names(&self, header: &str, token: &str) -> bool {
        self.all(header).iter().any(|value| value.to_ascii_lowercase().contains(token))
    }
}

/// Which requests an [`Act`] is for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matcher {
    method: Option<String>,
    path: Option<String>,
}

impl Matcher {
    pub(crate) fn any() -> Self {
        Self::default()
    }

    pub(crate) fn method(method: &str) -> Self {
        Self { method: Some(method.to_owned()), path: None }
    }

    /// Narrows to targets that contain `part`.
    pub(crate) fn path(self, part: &str) -> Self {
        Self { path: Some(part.to_owned()), ..self }
    }

    fn matches(&self, seen: &Seen) -> bool {
        self.method.as_ref().is_none_or(|method| *method == seen.method)
            && self.path.as_ref().is_none_or(|part| seen.target.contains(part))
    }
}

impl From<&str> for Matcher {
    fn from(method: &str) -> Self {
        Self::method(method)
    }
}

pub(crate) type Hook = Arc<dyn Fn(&Seen) + Send + Sync>;

/// What to do with a request instead of answering it. *Apply* is what the estate does with it; a write that is
/// not applied changes nothing. After a stall the request is applied even if nobody waits any more.
#[derive(Clone)]
pub(crate) enum Act {
    /// Waits, then applies and answers.
    Stall(Duration),
    /// Keeps the connection and never answers nor applies.
    StallForever,
    CloseWithoutAnswer,
    ApplyThenClose,
    /// Half of the true answer's body, then the end.
    ApplyThenCutMidBody,
    ApplyThenStall(Duration),
    /// The late write: its connection is long gone when it lands.
    CloseThenApplyAfter(Duration),
    ApplyThenAnswer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// The true answer with further headers.
    ApplyThenAddHeaders(Vec<(String, String)>),
    /// These bytes, then the end.
    AnswerRaw(Vec<u8>),
    ApplyThenAnswerRaw(Vec<u8>),
    /// 200 with a JSON body of that many bytes.
    ApplyThenAnswerOversize(usize),
    /// Answers as of the last [`Upstream::capture`]; for reads.
    ServeOldState,
    /// Calls back before the request is handled normally; a test looks around at that moment.
    Hook(Hook),
    HookThen(Hook, Box<Act>),
    /// A 101 whose `Sec-WebSocket-Accept` belongs to another key.
    WrongWebsocketAccept,
}

impl Act {
    pub(crate) fn answer(status: u16, body: &Value) -> Self {
        Self::Answer { status, headers: json_type(), body: body.to_string().into_bytes() }
    }

    pub(crate) fn apply_then_answer(status: u16, body: &Value) -> Self {
        Self::ApplyThenAnswer { status, headers: json_type(), body: body.to_string().into_bytes() }
    }

    pub(crate) fn hook(hook: impl Fn(&Seen) + Send + Sync + 'static) -> Self {
        Self::Hook(Arc::new(hook))
    }
}

fn json_type() -> Vec<(String, String)> {
    vec![("content-type".to_owned(), "application/json; charset=utf-8".to_owned())]
}

struct Shared {
    estate: Mutex<Estate>,
    captured: Mutex<Option<Estate>>,
    seen: Mutex<Vec<Seen>>,
    once: Mutex<Vec<(Matcher, Act)>>,
    always: Mutex<Vec<(Matcher, Act)>>,
    heads: AtomicUsize,
    connections: AtomicUsize,
    late_writes: TaskTracker,
}

impl Shared {
    fn act_for(&self, seen: &Seen) -> Option<Act> {
        let mut once = lock(&self.once);
        match once.iter().position(|(matcher, _)| matcher.matches(seen)) {
            Some(first) => Some(once.remove(first).1),
            None => lock(&self.always)
                .iter()
                .find(|(matcher, _)| matcher.matches(seen))
                .map(|(_, act)| act.clone()),
        }
    }

    fn apply(&self, seen: &Seen) -> StandInAnswer {
        lock(&self.estate).handle(&stand_in_request(seen))
    }
}

fn stand_in_request(seen: &Seen) -> StandInRequest {
    StandInRequest {
        method: seen.method.clone(),
        target: seen.target.clone(),
        headers: seen.headers.clone(),
        body: seen.body.clone(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running upstream; see the top of the file.
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
    addr: SocketAddr,
    tls: Option<TlsAcceptor>,
    running: CancellationToken,
    tasks: TaskTracker,
}

impl Upstream {
    /// Plain HTTP on a free port; knows [`IDENTITY`], which has nothing attached.
    pub(crate) fn start() -> Self {
        Self::start_with(None)
    }

    /// HTTPS with a certificate for `127.0.0.1` and `localhost`; also the PEM of the authority to trust.
    pub(crate) fn start_tls() -> (Self, String) {
        let authority = Authority::new();
        let certificate = authority.issue(&["127.0.0.1", "localhost"]);
        (Self::start_tls_with(certificate.acceptor(None)), authority.pem)
    }

    /// HTTPS with what the test makes up.
    pub(crate) fn start_tls_with(acceptor: TlsAcceptor) -> Self {
        Self::start_with(Some(acceptor))
    }

    fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let mut estate = Estate::new();
        estate.add_identity(IDENTITY);
        let shared = Arc::new(Shared {
            estate: Mutex::new(estate),
            captured: Mutex::default(),
            seen: Mutex::default(),
            once: Mutex::default(),
            always: Mutex::default(),
            heads: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            late_writes: TaskTracker::new(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("upstream")
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let (running, tasks) = (CancellationToken::new(), TaskTracker::new());
        let mut upstream = Self { shared, runtime: Some(runtime), addr, tls, running, tasks };
        upstream.listen(listener);
        upstream
    }

    fn listen(&mut self, listener: StdListener) {
        (self.running, self.tasks) = (CancellationToken::new(), TaskTracker::new());
        let runtime = self.runtime.as_ref().expect("a runtime").handle();
        listener.set_nonblocking(true).expect("a non-blocking socket");
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener).expect("a listener")
        };
        let accepting =
            accept(listener, self.shared.clone(), self.tls.clone(), self.running.clone(), self.tasks.clone());
        self.tasks.spawn_on(accepting, runtime);
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// For `--upstream`.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.addr)
    }

    /// The instance behind the socket; do not hold it across an await.
    pub(crate) fn estate(&self) -> MutexGuard<'_, Estate> {
        lock(&self.shared.estate)
    }

    /// Puts a row past the API, as another writer would.
    pub(crate) fn attach(&self, identity: &str, row: &Value) {
        self.estate().attach(identity, row);
    }

    /// The same from within a [`Hook`]: a writer that comes between.
    pub(crate) fn another_writer(&self) -> impl Fn(&str, &Value) + Send + Sync + 'static {
        let shared = self.shared.clone();
        move |identity, row| lock(&shared.estate).attach(identity, row)
    }

    pub(crate) fn state(&self, identity: &str) -> Option<Value> {
        self.estate().state(identity)
    }

    /// Remembers everything as it is now, for [`Act::ServeOldState`].
    pub(crate) fn capture(&self) {
        let snapshot = self.estate().clone();
        *lock(&self.shared.captured) = Some(snapshot);
    }

    /// The next request that matches gets `act`; several queue up.
    pub(crate) fn script(&self, matcher: impl Into<Matcher>, act: Act) {
        lock(&self.shared.once).push((matcher.into(), act));
    }

    /// All requests that match get `act`, once nothing queued matches. The newest goes first.
    pub(crate) fn always(&self, matcher: impl Into<Matcher>, act: Act) {
        lock(&self.shared.always).insert(0, (matcher.into(), act));
    }

    /// Back to normal answers.
    pub(crate) fn behave(&self) {
        lock(&self.shared.once).clear();
        lock(&self.shared.always).clear();
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// What was seen but for GET, HEAD and OPTIONS.
    pub(crate) fn writes(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(Seen::is_write).collect()
    }

    /// Forgets what was seen.
    pub(crate) fn clear(&self) {
        lock(&self.shared.seen).clear();
    }

    /// How many request heads arrived, also of requests whose body did not.
    pub(crate) fn heads(&self) -> usize {
        self.shared.heads.load(Ordering::SeqCst)
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until `count` requests have arrived since the last [`Self::clear`].
    pub(crate) async fn wait_for_seen(&self, count: usize) -> Vec<Seen> {
        self.wait_until(|seen| seen.len() >= count).await
    }

    /// Waits for the first request that matches.
    pub(crate) async fn wait_until_seen(&self, matcher: &Matcher) -> Seen {
        let seen = self.wait_until(|seen| seen.iter().any(|seen| matcher.matches(seen))).await;
        seen.into_iter().find(|seen| matcher.matches(seen)).expect("it was seen")
    }

    /// Waits until `count` writes have arrived; answers with the writes.
    pub(crate) async fn wait_for_writes(&self, count: usize) -> Vec<Seen> {
        self.wait_until(|seen| seen.iter().filter(|seen| seen.is_write()).count() >= count).await;
        self.writes()
    }

    async fn wait_until(&self, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let since = Instant::now();
        loop {
            let seen = self.seen();
            if enough(&seen) {
                return seen;
            }
            if since.elapsed() > PATIENCE {
                let lines = seen.iter().map(|seen| format!("{} {}\n", seen.method, seen.target));
                panic!("the upstream still waits for requests; it saw:\n{}", lines.collect::<String>());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until every [`Act::CloseThenApplyAfter`] has landed.
    pub(crate) async fn wait_for_late_writes(&self) {
        self.shared.late_writes.close();
        tokio::time::timeout(PATIENCE, self.shared.late_writes.wait()).await.expect("late writes land");
        self.shared.late_writes.reopen();
    }

    /// Refuses connections and cuts those that are open. Late writes still land.
    pub(crate) async fn stop(&self) {
        self.running.cancel();
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.expect("connections close");
    }

    /// Listens again where it listened before [`Self::stop`].
    pub(crate) async fn restart_on_same_port(&mut self) {
        self.stop().await;
        let since = Instant::now();
        let listener = loop {
            // `std` sets `SO_REUSEADDR`, so connections that linger from before do not matter.
            match StdListener::bind(self.addr) {
                Ok(listener) => break listener,
                Err(error) if since.elapsed() > PATIENCE => {
                    panic!("cannot bind {} again: {error}", self.addr)
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.listen(listener);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.running.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    running: CancellationToken,
    tasks: TaskTracker,
) {
    while let Some(accepted) = running.run_until_cancelled(listener.accept()).await {
        let Ok((socket, _)) = accepted else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let (shared, tls, running) = (shared.clone(), tls.clone(), running.clone());
        let _ = socket.set_nodelay(true);
        tasks.spawn(async move {
            let conversation = async {
                let io: Box<dyn Io> = match tls {
                    Some(tls) => Box::new(tls.accept(socket).await?),
                    None => Box::new(socket),
                };
                let mut wire = Wire { io, unread: Vec::new(), shared };
                while wire.exchange().await? {}
                wire.io.shutdown().await
            };
            // Peers that go away are part of every test.
            let _ = running.run_until_cancelled(conversation).await;
        });
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

struct Wire {
    io: Box<dyn Io>,
    unread: Vec<u8>,
    shared: Arc<Shared>,
}

impl Wire {
    /// One request and what becomes of it; whether the connection goes on.
    async fn exchange(&mut self) -> io::Result<bool> {
        let Some(seen) = self.read_request().await? else { return Ok(false) };
        lock(&self.shared.seen).push(seen.clone());
        let act = self.shared.act_for(&seen);
        let goes_on = self.perform(act, &seen).await?;
        Ok(goes_on && !seen.names("connection", "close") && !seen.is_http10())
    }

    async fn perform(&mut self, act: Option<Act>, seen: &Seen) -> io::Result<bool> {
        match act {
            None => return self.behave(seen, true).await,
            Some(Act::Hook(hook)) => {
                hook(seen);
                return self.behave(seen, true).await;
            }
            Some(Act::HookThen(hook, act)) => {
                hook(seen);
                return Box::pin(self.perform(Some(*act), seen)).await;
            }
            Some(Act::WrongWebsocketAccept) => return self.behave(seen, false).await,
            Some(Act::Stall(time)) => {
                tokio::time::sleep(time).await;
                return self.behave(seen, true).await;
            }
            Some(Act::StallForever) => std::future::pending().await,
            Some(Act::CloseWithoutAnswer) => {}
            Some(Act::ApplyThenClose) => drop(self.shared.apply(seen)),
            Some(Act::ApplyThenCutMidBody) => {
                let answer = self.shared.apply(seen);
                let body = answer.bytes();
                self.write_head(answer.status, &answer.headers, Some(body.len())).await?;
                self.io.write_all(&body[..body.len() / 2]).await?;
            }
            Some(Act::ApplyThenStall(time)) => {
                let answer = self.shared.apply(seen);
                tokio::time::sleep(time).await;
                return self.reply(seen, answer.status, &answer.headers, &answer.bytes()).await;
            }
            Some(Act::CloseThenApplyAfter(time)) => {
                let (shared, seen) = (self.shared.clone(), seen.clone());
                self.shared.late_writes.spawn(async move {
                    tokio::time::sleep(time).await;
                    shared.apply(&seen);
                });
            }
            Some(Act::ApplyThenAnswer { status, headers, body }) => {
                self.shared.apply(seen);
                return self.reply(seen, status, &headers, &body).await;
            }
            Some(Act::Answer { status, headers, body }) => {
                return self.reply(seen, status, &headers, &body).await;
            }
            Some(Act::ApplyThenAddHeaders(more)) => {
                let answer = self.shared.apply(seen);
                let headers = [answer.headers.clone(), more].concat();
                return self.reply(seen, answer.status, &headers, &answer.bytes()).await;
            }
            Some(Act::AnswerRaw(bytes)) => self.io.write_all(&bytes).await?,
            Some(Act::ApplyThenAnswerRaw(bytes)) => {
                self.shared.apply(seen);
                self.io.write_all(&bytes).await?;
            }
            Some(Act::ApplyThenAnswerOversize(bytes)) => {
                self.shared.apply(seen);
                let around = r#"{"identityJwtAuth":""}"#.len();
                let body = json!({"identityJwtAuth": "x".repeat(bytes.saturating_sub(around))});
                return self.reply(seen, 200, &json_type(), body.to_string().as_bytes()).await;
            }
            Some(Act::ServeOldState) => {
                let captured = lock(&self.shared.captured).clone();
                let mut captured = captured.expect("`capture` comes before `ServeOldState`");
                let answer = captured.handle(&stand_in_request(seen));
                return self.reply(seen, answer.status, &answer.headers, &answer.bytes()).await;
            }
        }
        Ok(false)
    }

    /// What an upstream without a script does.
    async fn behave(&mut self, seen: &Seen, true_accept: bool) -> io::Result<bool> {
        if seen.get("upgrade").is_some() && seen.names("connection", "upgrade") {
            return self.upgrade(seen, true_accept).await;
        }
        if let Some(goes_on) = self.stream_route(seen).await? {
            return Ok(goes_on);
        }
        let answer = self.shared.apply(seen);
        self.reply(seen, answer.status, &answer.headers, &answer.bytes()).await
    }

    /// `/sse?events=N` sends N (20) events, one each 50 ms; `/big?bytes=N` N bytes; `POST /count` answers
    /// `{"bytes": N}` to a body of N bytes, also one too large to keep.
    async fn stream_route(&mut self, seen: &Seen) -> io::Result<Option<bool>> {
        let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
        let number =
            |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?[1..].parse().ok());
        match (seen.method.as_str(), path) {
            ("GET", "/sse") => {
                let headers = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")];
                self.write_head(200, &headers.map(|(name, value)| (name.into(), value.into())), None).await?;
                for event in 0..number("events").unwrap_or(20_usize) {
                    let text = format!("data: {event}\n\n");
                    self.io.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
                    self.io.flush().await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                self.io.write_all(b"0\r\n\r\n").await?;
                Ok(Some(true))
            }
            ("GET", "/big") => {
                let mut left = number("bytes").unwrap_or(1_usize << 20);
                self.write_head(200, &[], Some(left)).await?;
                let block = vec![b'x'; 64 << 10];
                while left > 0 {
                    let now = left.min(block.len());
                    self.io.write_all(&block[..now]).await?;
                    left -= now;
                }
                Ok(Some(true))
            }
            ("POST", "/count") => {
                let body = json!({"bytes": seen.body_length}).to_string();
                self.reply(seen, 200, &json_type(), body.as_bytes()).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// `/ws` echoes every byte; other GET routes take the upgrade and close, writes fail without effect.
    async fn upgrade(&mut self, seen: &Seen, true_accept: bool) -> io::Result<bool> {
        if !seen.names("upgrade", "websocket") {
            self.write_head(400, &[], Some(0)).await?;
            return Ok(false);
        }
        if seen.method != "GET" {
            self.write_head(500, &[], Some(0)).await?;
            return Ok(false);
        }
        let key = if true_accept { seen.get("sec-websocket-key").unwrap_or_default() } else { "another key" };
        let headers = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", &websocket_accept(key)),
        ];
        self.write_head(101, &headers.map(|(name, value)| (name.into(), value.into())), None).await?;
        if !seen.target.starts_with("/ws") {
            return Ok(false);
        }
        while !self.unread.is_empty() || self.more().await? {
            let bytes = std::mem::take(&mut self.unread);
            self.io.write_all(&bytes).await?;
            self.io.flush().await?;
        }
        Ok(false)
    }

    async fn reply(
        &mut self,
        seen: &Seen,
        status: u16,
        headers: &[(String, String)],
        body: &[u8],
    ) -> io::Result<bool> {
        let bodiless = matches!(status, 204 | 304);
        let framed = headers.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
        });
        self.write_head(status, headers, (!bodiless && !framed).then_some(body.len())).await?;
        if seen.method != "HEAD" && !bodiless {
            self.io.write_all(body).await?;
        }
        self.io.flush().await?;
        Ok(true)
    }

    async fn write_head(
        &mut self,
        status: u16,
        headers: &[(String, String)],
        length: Option<usize>,
    ) -> io::Result<()> {
        let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Unknown"));
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = length {
            head += &format!("content-length: {length}\r\n");
        }
        self.io.write_all(format!("{head}\r\n").as_bytes()).await?;
        self.io.flush().await
    }

    async fn read_request(&mut self) -> io::Result<Option<Seen>> {
        let raw_head = loop {
            while self.unread.starts_with(b"\r\n") {
                self.unread.drain(..2);
            }
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break self.unread.drain(..end + 4).collect::<Vec<u8>>();
            }
            if self.unread.len() > HEAD_LIMIT {
                self.write_head(431, &[], Some(0)).await?;
                return Ok(None);
            }
            if !self.more().await? {
                return Ok(None);
            }
        };
        self.shared.heads.fetch_add(1, Ordering::SeqCst);
        let Some(mut seen) = read_head(raw_head) else {
            self.write_head(400, &[("connection".to_owned(), "close".to_owned())], Some(0)).await?;
            return Ok(None);
        };
        if seen.names("expect", "100-continue") {
            self.io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            self.io.flush().await?;
        }
        if seen.names("transfer-encoding", "chunked") {
            self.read_chunks(&mut seen).await?;
        } else if let Some(length) = seen.get("content-length").and_then(|length| length.parse().ok()) {
            self.read_body(&mut seen, length).await?;
        }
        seen.at = Instant::now();
        Ok(Some(seen))
    }

    async fn read_body(&mut self, seen: &mut Seen, mut left: usize) -> io::Result<()> {
        while left > 0 {
            if self.unread.is_empty() && !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part: Vec<u8> = self.unread.drain(..left.min(self.unread.len())).collect();
            left -= part.len();
            seen.body_length += part.len();
            let room = KEPT_OF_A_BODY.saturating_sub(seen.body.len());
            seen.body.extend(part.iter().take(room));
        }
        Ok(())
    }

    async fn read_chunks(&mut self, seen: &mut Seen) -> io::Result<()> {
        loop {
            let line = self.read_line().await?;
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
            if size == 0 {
                // Trailers are dropped.
                while !self.read_line().await?.is_empty() {}
                return Ok(());
            }
            self.read_body(seen, size).await?;
            self.read_line().await?;
        }
    }

    async fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Whether there was more.
    async fn more(&mut self) -> io::Result<bool> {
        self.unread.reserve(16 * 1024);
        Ok(self.io.read_buf(&mut self.unread).await? > 0)
    }
}

/// Nothing where Node's parser answers 400: no colon, blanks before it, framing given twice.
fn read_head(raw_head: Vec<u8>) -> Option<Seen> {
    let text = String::from_utf8_lossy(&raw_head).into_owned();
    let mut lines = text.trim_end().split("\r\n");
    let mut start = lines.next()?.split(' ');
    let (method, target) = (start.next()?.to_owned(), start.next()?.to_owned());
    let is_target = target.starts_with(['/', '*']) || target.contains("://") || method == "CONNECT";
    if !is_target || !target.is_ascii() || !start.next()?.starts_with("HTTP/") || start.next().is_some() {
        return None;
    }
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (!name.ends_with([' ', '\t']) && !name.starts_with([' ', '\t']))
            .then(|| (name.to_owned(), value.trim().to_owned()))
    };
    let headers = lines.map(field).collect::<Option<Vec<_>>>()?;
    let at = Instant::now();
    let seen = Seen { method, target, headers, body: Vec::new(), body_length: 0, at, raw_head };
    let is_plain = |value: &String| !value.contains(['\r', '\n', '\0']);
    if !seen.headers.iter().all(|(_, value)| is_plain(value)) {
        return None;
    }
    if seen.all("host").is_empty() && !seen.is_http10() {
        return None;
    }
    let framings = seen.all("content-length").len() + seen.all("transfer-encoding").len();
    (framings <= 1).then_some(seen)
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark)
}

/// RFC 6455, section 4.2.2.
pub(crate) fn websocket_accept(key: &str) -> String {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}
