//! Questions to the gateway that uses this data folder, for commands that write.
//!
//! They go through the socket in the folder; no answer at all means that no gateway runs, and the command does it by
//! itself. A "no" of the gateway is the command's, with the exit code that goes with it.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::{MISCONFIGURED, UNABLE, WRONG};
use crate::app::Failure;
use crate::json;

/// For one question to the gateway.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest answer that is read.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Asks; nothing when no gateway runs.
pub(super) async fn ask(
    data: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Option<Value>, Failure> {
    let socket = data.join("admin.sock");
    let failed = |why: String| Failure { code: UNABLE, message: format!("{}: {why}", socket.display()) };
    let stream = match UnixStream::connect(&socket).await {
        Ok(stream) => stream,
        Err(error) if no_gateway(error.kind()) => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "patchwarden")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))
        .map_err(|error| failed(error.to_string()))?;
    let (status, bytes) = tokio::time::timeout(PATIENCE, exchange(stream, request, MAX_ANSWER))
        .await
        .map_err(|_late| failed("the gateway does not answer".to_owned()))?
        .map_err(|error| failed(format!("{error:#}")))?;
    let answer = if bytes.is_empty() { Value::Null } else { json::value(&bytes).unwrap_or_default() };
    if status.is_success() {
        return Ok(Some(answer));
    }
    let detail = answer["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    let code = match status {
        StatusCode::BAD_REQUEST => MISCONFIGURED,
        StatusCode::NOT_FOUND => WRONG,
        _ => UNABLE,
    };
    Err(Failure { code, message: detail })
}

/// No socket, one that nobody listens on, or a path too long for one.
fn no_gateway(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::InvalidInput)
}

/// One request and its whole answer over a connection of its own; `limit` bounds the answer's body.
pub(super) async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> anyhow::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await;
        Ok((status, body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes()))
    };
    tokio::select! {
        answer = answer => answer,
        // Its end alone is no answer: the future beside it says what became of the request.
        never = async { let _ = connection.await; std::future::pending().await } => never,
    }
}
