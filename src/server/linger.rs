//! A connection that reads a while after its last word.
//!
//! A request can be answered before its body was read. Closing then, with unread bytes in the socket, makes the
//! kernel reset the connection, and the client may lose the answer. So a closing HTTP connection sends its end, then
//! reads and discards up to a limit until the client closes as well. A tunnel is left alone: its bytes are not ours.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::Requests;

/// What is read and discarded at most.
const MAX_BYTES: usize = 1024 * 1024;
/// How long at most.
const MAX_TIME: Duration = Duration::from_secs(2);

/// Wraps the stream of one connection.
pub(super) struct Lingering<I> {
    io: I,
    requests: Arc<Requests>,
    /// Set once our end was sent.
    until: Option<Pin<Box<Sleep>>>,
    left: usize,
}

impl<I> Lingering<I> {
    pub(super) fn new(io: I, requests: Arc<Requests>) -> Self {
        Self { io, requests, until: None, left: MAX_BYTES }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Lingering<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            if this.requests.is_upgraded() {
                return Poll::Ready(Ok(()));
            }
        }
        let until = this.until.get_or_insert_with(|| Box::pin(sleep(MAX_TIME)));
        while this.left > 0 && until.as_mut().poll(cx).is_pending() {
            let mut space = [0; 8 * 1024];
            let mut into = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut into)) {
                Ok(()) if !into.filled().is_empty() => {
                    this.left = this.left.saturating_sub(into.filled().len());
                }
                // The client has closed, or is gone.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
