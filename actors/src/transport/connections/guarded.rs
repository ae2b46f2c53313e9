//! A socket that fails when its connection is evicted.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Ticket;

/// A socket with its ticket. It fails as soon as the connection is evicted.
pub struct Guarded<S> {
    socket: S,
    ticket: Ticket,
    /// Whether written bytes are an answer; below TLS they may be the handshake's.
    plain: bool,
}

impl<S> Guarded<S> {
    /// Wraps `socket`, on which HTTP is used directly (`plain`), or inside TLS.
    pub const fn new(socket: S, ticket: Ticket, plain: bool) -> Self {
        Self { socket, ticket, plain }
    }

    /// Its ticket.
    pub const fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    fn evicted(&self, cx: &Context<'_>) -> Option<io::Error> {
        match self.ticket.poll_evicted(cx) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.evicted(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(error) = self.evicted(cx) {
            return Poll::Ready(Err(error));
        }
        if self.plain {
            self.ticket.opened();
        }
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.evicted(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.evicted(cx) {
            return Poll::Ready(Err(error));
        }
        if self.plain {
            self.ticket.opened();
        }
        Pin::new(&mut self.socket).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
