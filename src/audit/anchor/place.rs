//! A place that keeps the newest head: a file on other storage, or an HTTP endpoint.
//!
//! Both are written whole and read whole. A file is replaced, never written over, and touched in a thread of its own:
//! storage that hangs keeps that thread and nothing else. An endpoint takes a PUT and answers a GET, 404 while it has
//! nothing; its token is read anew for each use and stands in no text that comes out of here.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use tokio::sync::{Semaphore, oneshot};

use super::super::checkpoint::{MAX_NOTE, Note};
use crate::keys;
use crate::units::Span;
use crate::upstream::{Answer, Upstream};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Where the newest head is kept.
#[derive(Clone)]
pub(super) enum Place {
    File { path: PathBuf, turn: Arc<Semaphore> },
    Url { client: Upstream, path: String, token_file: Option<PathBuf> },
}

impl Place {
    pub(super) fn file(path: PathBuf) -> Self {
        Self::File { path, turn: Arc::new(Semaphore::new(1)) }
    }

    pub(super) fn url(client: Upstream, path: String, token_file: Option<PathBuf>) -> Self {
        Self::Url { client, path, token_file }
    }

    /// What metrics call it.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Url { .. } => "url",
        }
    }

    /// What problems call it: of an endpoint without its path, which may be known to few.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Url { client, .. } => client.origin(),
        }
    }

    /// The head it has; `None`: nothing that is one.
    pub(super) async fn read(&self, within: Duration) -> Result<Option<Note>, String> {
        let text = match self {
            Self::File { path, turn } => aside(turn, path, within, read_file).await?,
            Self::Url { .. } => {
                let answer = self.ask(Method::GET, Bytes::new(), within).await?;
                match answer.status {
                    StatusCode::OK => String::from_utf8(answer.body.to_vec()).ok(),
                    StatusCode::NOT_FOUND => None,
                    status => return Err(format!("answered a GET with {}", status.as_u16())),
                }
            }
        };
        Ok(text.and_then(|text| Note::read(&text).ok()))
    }

    /// Puts a head in the place of the one before.
    pub(super) async fn write(&self, note: &Note, within: Duration) -> Result<(), String> {
        let text = note.to_string();
        match self {
            Self::File { path, turn } => {
                aside(turn, path, within, move |path| keys::write_private(path, &text)).await
            }
            Self::Url { .. } => {
                let status = self.ask(Method::PUT, Bytes::from(text), within).await?.status;
                let is_taken = status.is_success();
                is_taken.then_some(()).ok_or_else(|| format!("answered a PUT with {}", status.as_u16()))
            }
        }
    }

    async fn ask(&self, method: Method, body: Bytes, within: Duration) -> Result<Answer, String> {
        let Self::Url { client, path, token_file } = self else { return Err("is no endpoint".to_owned()) };
        let mut request = Request::new(body);
        *request.uri_mut() = path.parse().map_err(|_| "has a path that cannot be asked for".to_owned())?;
        let headers = request.headers_mut();
        headers.insert(if method == Method::PUT { CONTENT_TYPE } else { ACCEPT }, TEXT);
        if let Some(file) = token_file {
            headers.insert(AUTHORIZATION, bearer(file)?);
        }
        *request.method_mut() = method;
        let answer = client.exchange("anchor", request, within, MAX_NOTE).await;
        answer.map_err(|failure| failure.to_string())
    }
}

fn bearer(file: &Path) -> Result<HeaderValue, String> {
    let wrong = |what: &str| format!("anchor.token_file {}: {what}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error.kind().to_string()))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(wrong("holds no token"));
    }
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|_| wrong("holds what cannot be sent as a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn read_file(path: &Path) -> io::Result<Option<String>> {
    match std::fs::metadata(path) {
        Ok(file) if file.is_file() => {}
        Ok(_) => return Err(io::Error::other("is no file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut text = Vec::new();
    File::open(path)?.take(MAX_NOTE as u64 + 1).read_to_end(&mut text)?;
    Ok(String::from_utf8(text).ok())
}

/// Works on a file where it can hang without anybody, one access after the other.
async fn aside<T: Send + 'static>(
    turn: &Arc<Semaphore>,
    path: &Path,
    within: Duration,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let (turn, path) = (turn.clone(), path.to_owned());
    let done = async move {
        let permit = turn.acquire_owned().await.map_err(io::Error::other)?;
        let (reply, answer) = oneshot::channel();
        // Not one of the runtime's threads, which would be waited for at the end.
        std::thread::Builder::new().name("anchor-file".to_owned()).spawn(move || {
            let done = work(&path);
            drop(permit);
            let _ = reply.send(done);
        })?;
        answer.await.map_err(io::Error::other)?
    };
    match tokio::time::timeout(within, done).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the storage does not answer within {}", Span(within))),
    }
}
