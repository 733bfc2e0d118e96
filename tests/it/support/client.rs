//! A raw HTTP/1.1 client: what it is given goes out byte by byte, what comes back is taken apart by hand.
//!
//! No pool, no redirects, no corrections. Interim answers (1xx but 101) are skipped. Everything that waits has a
//! time limit, so that a gateway that hangs fails a test and does not stop it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(60);

/// One complete answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    /// Without the transfer coding.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first header of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).into_iter().next()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[expect(clippy::disallowed_methods, reason = "a test reads answers without the code under test")]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {} {}", self.status, self.text()))
    }
}

/// A connection that stays open between requests.
pub(crate) struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self::try_open(addr).await.expect("connects")
    }

    /// Where nobody may be listening.
    pub(crate) async fn try_open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new() })
    }

    pub(crate) async fn send(&mut self, raw: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(raw.as_ref()).await
    }

    /// Ends the sending half: what a client does that has no more to say.
    pub(crate) async fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// The next answer, to a request that was not HEAD.
    pub(crate) async fn read_answer(&mut self) -> io::Result<Answer> {
        within(self.answer(false)).await
    }

    pub(crate) async fn read_answer_to_head(&mut self) -> io::Result<Answer> {
        within(self.answer(true)).await
    }

    /// Status and headers alone; the body stays to be read raw.
    pub(crate) async fn read_head(&mut self) -> io::Result<Answer> {
        within(self.head()).await
    }

    /// Exactly `count` bytes as they come, for tunnels.
    pub(crate) async fn read_raw(&mut self, count: usize) -> io::Result<Vec<u8>> {
        within(self.take(count)).await
    }

    /// Everything up to and with `mark`, for streams.
    pub(crate) async fn read_until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        within(self.until(mark)).await
    }

    /// Everything up to the end of the connection, however it ends.
    pub(crate) async fn read_to_close(&mut self) -> Vec<u8> {
        let all = within(async {
            while self.more().await.is_ok() {}
            Ok(std::mem::take(&mut self.unread))
        });
        all.await.expect("the connection ends")
    }

    async fn answer(&mut self, to_head: bool) -> io::Result<Answer> {
        let mut answer = self.head().await?;
        let bodiless = to_head || matches!(answer.status, 101 | 204 | 304);
        let length = answer.get("content-length").and_then(|length| length.parse::<usize>().ok());
        answer.body = match length {
            _ if bodiless => Vec::new(),
            _ if answer.get("transfer-encoding").is_some() => self.chunks().await?,
            Some(length) => self.take(length).await?,
            None => {
                while self.more().await.is_ok() {}
                std::mem::take(&mut self.unread)
            }
        };
        Ok(answer)
    }

    async fn head(&mut self) -> io::Result<Answer> {
        loop {
            let head = String::from_utf8_lossy(&self.until(b"\r\n\r\n").await?).into_owned();
            let mut lines = head.lines();
            let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
            let status = status.ok_or_else(|| io::Error::other(format!("no status line: {head}")))?;
            let field = |line: &str| {
                line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            };
            if status == 101 || status >= 200 {
                return Ok(Answer { status, headers: lines.filter_map(field).collect(), body: Vec::new() });
            }
        }
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = String::from_utf8_lossy(&self.until(b"\r\n").await?).into_owned();
            let size = line.trim().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
            if size == 0 {
                while self.until(b"\r\n").await? != b"\r\n" {}
                return Ok(body);
            }
            body.extend(self.take(size).await?);
            self.take(2).await?;
        }
    }

    async fn until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|window| window == mark) {
                return Ok(self.unread.drain(..at + mark.len()).collect());
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < count {
            self.more().await?;
        }
        Ok(self.unread.drain(..count).collect())
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.unread).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends `raw` over a connection of its own and reads one answer.
pub(crate) async fn send(addr: SocketAddr, raw: impl AsRef<[u8]>) -> Answer {
    try_send(addr, raw).await.expect("a complete answer")
}

/// Like [`send`], where the answer may be cut or missing.
pub(crate) async fn try_send(addr: SocketAddr, raw: impl AsRef<[u8]>) -> io::Result<Answer> {
    let mut connection = Connection::open(addr).await;
    // A peer may answer and close before it has read everything; its answer still counts.
    let _ = connection.send(raw.as_ref()).await;
    if raw.as_ref().starts_with(b"HEAD ") {
        connection.read_answer_to_head().await
    } else {
        connection.read_answer().await
    }
}

/// A request with the headers given and those it cannot do without (`Host`, and for a body its type and length).
pub(crate) async fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Answer {
    send(addr, raw_request(addr, method, path, headers, body)).await
}

/// The bytes that [`request`] sends.
pub(crate) fn raw_request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !given("host") {
        head += &format!("Host: {addr}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        if !given("content-type") {
            head += "Content-Type: application/json\r\n";
        }
        if !given("content-length") && !given("transfer-encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
    }
    format!("{head}\r\n{}", body.unwrap_or_default()).into_bytes()
}
