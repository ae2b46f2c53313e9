//! A time limit for the head of every request of a connection.
//!
//! The limit of the web server itself applies to the first request only. A client that has received one answer could
//! then send the next head one byte at a time without limit. Here, a head that has begun must be complete within the
//! limit. A head that has not begun must begin before the web server should have closed the idle connection.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::{
    body::{BodySize, MessageBody},
    dev::ServiceRequest,
    web::Bytes,
};
use futures::Future;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::actors::transport::connections::Connections;

/// The heads of the requests of one connection. Clones share the state.
#[derive(Clone)]
pub(super) struct Heads(Rc<State>);

struct State {
    /// The time limit of a head, from its first byte.
    limit: Duration,
    /// The time after an answer by which the next head must be complete, whenever it begins.
    idle: Duration,
    connections: Connections,
    /// The deadline of the next head. `None` before the first answer, where the web server's limit applies, and while a
    /// request is answered: bytes that arrive then belong to its body.
    until: Cell<Option<Instant>>,
    begun: Cell<bool>,
    answering: Cell<usize>,
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

impl Heads {
    pub(super) fn new(limit: Duration, idle: Duration, connections: Connections) -> Self {
        Self(Rc::new(State {
            limit,
            idle,
            connections,
            until: Cell::new(None),
            begun: Cell::new(false),
            answering: Cell::new(0),
            timer: RefCell::new(None),
        }))
    }

    /// The head is complete. The request is being answered until the returned guard is dropped.
    fn complete(&self) -> Answering {
        self.0.answering.set(self.0.answering.get() + 1);
        self.0.until.set(None);
        Answering(self.clone())
    }

    /// Bytes arrived.
    fn received(&self) {
        if let Some(until) = self.0.until.get()
            && !self.0.begun.replace(true)
        {
            self.0.until.set(Some(until.min(Instant::now() + self.0.limit)));
        }
    }

    /// Ready with an error when a head is late; otherwise the task is woken at the deadline.
    fn poll_late(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(until) = self.0.until.get() else { return Poll::Pending };
        let mut timer = self.0.timer.borrow_mut();
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.0.connections.late();
        // So that a late head is counted once.
        self.0.until.set(Some(Instant::now() + self.0.idle));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the head of a request took too long"))
    }
}

/// A request that is being answered.
struct Answering(Heads);

impl Drop for Answering {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.answering.set(state.answering.get().saturating_sub(1));
        if state.answering.get() == 0 {
            state.begun.set(false);
            state.until.set(Some(Instant::now() + state.idle));
        }
    }
}

/// Called for each request; its connection may carry [`Heads`].
pub(super) fn begin<B>(request: &ServiceRequest) -> impl FnOnce(B) -> Watched<B> + use<B> {
    let answering = request.conn_data::<Heads>().map(Heads::complete);
    |body| Watched { body, _answering: answering }
}

/// The body of an answer. The next head may come after it.
pub(super) struct Watched<B> {
    body: B,
    _answering: Option<Answering>,
}

impl<B: MessageBody + Unpin> MessageBody for Watched<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

/// A socket over which requests come.
pub(super) struct Timed<S> {
    socket: S,
    heads: Heads,
}

impl<S> Timed<S> {
    pub(super) const fn new(socket: S, heads: Heads) -> Self {
        Self { socket, heads }
    }

    pub(super) const fn socket(&self) -> &S {
        &self.socket
    }

    pub(super) const fn heads(&self) -> &Heads {
        &self.heads
    }

    fn in_time(&self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.heads.poll_late(cx) {
            Poll::Ready(error) => Err(error),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            // The web server reads until no data is left, and so calls this again, which sets the timer.
            self.heads.received();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The last call of the web server when an answer ends.
        self.in_time(cx)?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use actix_http::HttpService;
    use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, map_config};
    use actix_web::{App, HttpResponse, dev::AppConfig, web};
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::actors::transport::connections::ConnectionLimits;

    const LIMIT: Duration = Duration::from_secs(10);
    const KEEP_ALIVE: Duration = Duration::from_secs(90);
    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// A client connection, and the number of its heads that were late.
    struct Client {
        socket: DuplexStream,
        connections: Connections,
    }

    impl Client {
        async fn connect() -> Self {
            let connections = Connections::new(ConnectionLimits::default());
            let slow = || async {
                tokio::time::sleep(4 * LIMIT).await;
                HttpResponse::Ok().body("slow")
            };
            let app = App::new()
                .route("/", web::get().to(|| async { HttpResponse::Ok().body("ok") }))
                .route("/", web::post().to(|body: Bytes| async move { HttpResponse::Ok().body(body) }))
                .route("/slow", web::get().to(slow))
                .wrap_fn(|request, service| {
                    let watched = begin(&request);
                    service
                        .call(request)
                        .map(|answer| answer.map(|answer| answer.map_body(|_, body| watched(body))))
                });
            let service = HttpService::build()
                .keep_alive(KEEP_ALIVE)
                .client_request_timeout(LIMIT)
                .on_connect_ext(|socket: &Timed<DuplexStream>, data: &mut actix_http::Extensions| {
                    data.insert(socket.heads().clone());
                })
                .h1(map_config(
                    app.into_factory()
                        .map_err(|error: actix_web::Error| error.as_response_error().error_response()),
                    |()| AppConfig::default(),
                ));
            let service = service.new_service(()).await.unwrap();
            let (socket, theirs) = duplex(1 << 16);
            let heads = Heads::new(LIMIT, KEEP_ALIVE + LIMIT, connections.clone());
            let serving = service.call((Timed::new(theirs, heads), None));
            actix_rt::spawn(async move { drop(serving.await) });
            Self { socket, connections }
        }

        async fn send(&mut self, bytes: &[u8]) {
            self.socket.write_all(bytes).await.unwrap();
        }

        async fn answered(&mut self, end: &str) {
            let mut seen = String::new();
            while !seen.ends_with(end) {
                let mut bytes = [0; 1024];
                let length = self.socket.read(&mut bytes).await.unwrap();
                assert!(length > 0, "closed after {seen:?}");
                seen.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            }
            assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        }

        /// The time until the server closes the connection, while the client sends one byte a second.
        async fn trickle(mut self, bytes: &[u8]) -> (Duration, u64) {
            let began = Instant::now();
            for byte in bytes.iter().cycle() {
                if self.socket.write_all(&[*byte]).await.is_err() {
                    break;
                }
                let mut answer = [0; 1024];
                let read = tokio::time::timeout(Duration::from_secs(1), self.socket.read(&mut answer)).await;
                if matches!(read, Ok(Ok(0) | Err(_))) {
                    break;
                }
            }
            (began.elapsed(), self.connections.report().late)
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        actix_rt::System::with_tokio_rt(move || runtime().unwrap()).block_on(test);
    }

    #[test]
    fn a_later_head_has_as_long_as_the_first() {
        run(async {
            let mut client = Client::connect().await;
            client.send(GET).await;
            client.answered("ok").await;
            // An idle connection is not late.
            tokio::time::sleep(KEEP_ALIVE - LIMIT).await;
            client.send(GET).await;
            client.answered("ok").await;
            let (closed, late) = client.trickle(b"GET / HTTP/1.1\r\nX: ").await;
            assert!(closed >= LIMIT && closed < LIMIT + Duration::from_secs(3), "{closed:?}");
            assert_eq!(late, 1);
        });
    }

    #[test]
    fn a_head_that_began_during_an_answer_ends_as_an_idle_connection() {
        run(async {
            let mut client = Client::connect().await;
            let both = [GET, b"GET / HT"].concat();
            client.send(&both).await;
            client.answered("ok").await;
            let mut rest = Vec::new();
            let began = Instant::now();
            let _ = client.socket.read_to_end(&mut rest).await;
            assert!(began.elapsed() <= KEEP_ALIVE + 2 * LIMIT, "{:?}", began.elapsed());
        });
    }

    #[test]
    fn neither_a_slow_answer_nor_a_slow_body_is_a_late_head() {
        run(async {
            let mut client = Client::connect().await;
            client.send(GET).await;
            client.answered("ok").await;
            client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
            client.answered("slow").await;
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n").await;
            for _ in 0..40 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.send(b"x").await;
            }
            client.answered("xxx").await;
            // Pipelined requests are answered one after the other.
            client.send(&GET.repeat(3)).await;
            client.answered("ok").await;
            client.send(GET).await;
            client.answered("ok").await;
            assert_eq!(client.connections.report().late, 0);
        });
    }
}
