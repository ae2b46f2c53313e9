//! The web server of a program: its sockets, their limits, TLS, and HTTP behind it.
//!
//! The server of actix-web limits connections by number only, and stops accepting when all slots for handshakes are
//! taken, even by a single client. Here each socket gets a slot from [`Connections`] before anything is read from it.

use std::{
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use actix_http::{HttpService, Protocol, error::DispatchError};
use actix_server::{Server, ServerHandle};
use actix_service::{Service, ServiceFactoryExt, apply_fn_factory, fn_service, map_config};
use actix_web::{App, dev::AppConfig, web::ServiceConfig};
use futures::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    heads::{self, Heads, Timed},
    tls::Loaded,
};
use crate::{
    actors::transport::{
        connections::{Connections, Guarded, Proxies, Ticket},
        http::{self, HttpServer},
    },
    error::ProgramError,
};

/// How long an idle connection stays open. The client of the TypeScript implementation does not repeat a request that
/// failed because its connection was closed.
const KEEP_ALIVE: Duration = Duration::from_secs(90);

/// How much may wait to be written on a connection. Each connection has a buffer of about this size for as long as it
/// is open, and one step of a round fills the buffers of all members.
const WRITE_BUFFER: usize = 4096;

/// How long open requests may take to end when the program stops. Streams are closed before. A connection that is still
/// open is idle: the web server also waits for keep-alive connections.
const SHUTDOWN_SECS: u64 = 1;

/// The worker threads.
const WORKERS: usize = 2;

/// What is served.
pub(crate) trait Site: Clone + Send + 'static {
    /// Where sockets are registered, with their limits.
    fn connections(&self) -> &Connections;

    /// The proxies whose sockets are not counted as one client's.
    fn proxies(&self) -> &Proxies;

    /// Adds the routes, and the answer for other paths.
    fn mount(&self, app: &mut ServiceConfig);
}

impl Site for HttpServer {
    fn connections(&self) -> &Connections {
        Self::connections(self)
    }

    fn proxies(&self) -> &Proxies {
        &self.config().proxies
    }

    fn mount(&self, app: &mut ServiceConfig) {
        http::configure(self)(app);
        app.default_service(http::not_found(self));
    }
}

/// Starts the web server behind a socket.
pub(crate) type Opening = Box<dyn FnOnce() -> Running>;

/// A running web server.
pub(crate) struct Running {
    handle: ServerHandle,
    stopping: watch::Sender<bool>,
}

impl Running {
    /// Refuses new connections, then ends the others.
    pub(crate) async fn stop(self) {
        self.stopping.send_replace(true);
        self.handle.stop(true).await;
    }
}

/// A connection: plain, or with TLS.
enum Socket {
    Plain(Guarded<TcpStream>),
    Tls(Box<TlsStream<Guarded<TcpStream>>>),
}

impl Socket {
    fn ticket(&self) -> &Ticket {
        match self {
            Self::Plain(socket) => socket.ticket(),
            Self::Tls(socket) => socket.get_ref().0.ticket(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(socket) => Pin::new(socket).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(socket) => {
                // With TLS, bytes written here are an answer; the handshake is written below.
                socket.get_ref().0.ticket().opened();
                Pin::new(socket).poll_write(cx, bytes)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

/// Binds a socket, on which connections wait until the server is opened.
pub(crate) fn bind<S: Site>(
    tls: Option<&Loaded>,
    address: &str,
    server: &S,
) -> Result<(SocketAddr, Opening), ProgramError> {
    let io_error = |error| ProgramError::Io { what: format!("listening on {address}"), error };
    let acceptor = match tls {
        Some(tls) => {
            let mut config = tls.config()?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(TlsAcceptor::from(Arc::new(config)))
        }
        None => None,
    };
    let listeners = listen(address).map_err(io_error)?;
    let first = listeners.first().ok_or_else(|| ProgramError::Internal("no address is bound".to_owned()))?;
    let bound = first.local_addr().map_err(io_error)?;
    let (stopping, stopped) = watch::channel(false);
    let mut builder =
        Server::build().workers(WORKERS).shutdown_timeout(SHUTDOWN_SECS).disable_signals().backlog(BACKLOG);
    for listener in listeners {
        let (server, acceptor, stopped) = (server.clone(), acceptor.clone(), stopped.clone());
        let name = format!("http {bound}");
        builder = builder
            .listen(name, listener, move || pipeline(&server, acceptor.clone(), stopped.clone()))
            .map_err(io_error)?;
    }
    let open = move || {
        let running = builder.run();
        let handle = running.handle();
        actix_rt::spawn(running);
        Running { handle, stopping }
    };
    Ok((bound, Box::new(open)))
}

/// The connections that the system queues until they are accepted.
const BACKLOG: u32 = 2048;

/// A socket for each address that the text resolves to; `localhost:8080` has two.
/// Whether only this machine reaches an address, whatever it resolves to.
///
/// # Errors
/// It cannot be resolved.
pub(crate) fn is_loopback(address: &str) -> io::Result<bool> {
    Ok(address.to_socket_addrs()?.all(|address| address.ip().to_canonical().is_loopback()))
}

fn listen(address: &str) -> io::Result<Vec<TcpListener>> {
    let (mut listeners, mut problem) = (Vec::new(), None);
    for address in address.to_socket_addrs()? {
        match listen_at(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) => problem = Some(error),
        }
    }
    match problem {
        Some(problem) if listeners.is_empty() => Err(problem),
        _ => Ok(listeners),
    }
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    // Not on Windows, where it would let two programs share the port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn pipeline<S: Site>(
    server: &S,
    acceptor: Option<TlsAcceptor>,
    stopped: watch::Receiver<bool>,
) -> impl actix_service::ServiceFactory<TcpStream, Config = (), Response = (), Error = DispatchError, InitError = ()>
+ use<S> {
    let connections = server.connections().clone();
    let mounted = server.clone();
    let app = App::new().configure(move |app| mounted.mount(app)).wrap_fn(|request, service| {
        let watched = heads::begin(&request);
        service.call(request).map(|answer| answer.map(|answer| answer.map_body(|_, body| watched(body))))
    });
    let web = HttpService::build()
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(connections.limits().header)
        .h1_write_buffer_size(WRITE_BUFFER)
        .graceful_shutdown_signal(move || {
            let mut stopped = stopped.clone();
            async move {
                // An error means that the sender, which could stop it, is dropped.
                let _ = stopped.wait_for(|stopped| *stopped).await;
            }
        })
        .on_connect_ext(|socket: &Timed<Socket>, data: &mut actix_http::Extensions| {
            data.insert(socket.socket().ticket().clone());
            data.insert(socket.heads().clone());
        })
        .finish(map_config(
            actix_service::IntoServiceFactory::into_factory(app)
                .map_err(|error: actix_web::Error| error.as_response_error().error_response()),
            |()| AppConfig::default(),
        ));
    let malformed = connections.clone();
    let web = apply_fn_factory(
        web,
        move |(socket, protocol, peer): (Timed<Socket>, Protocol, Option<SocketAddr>), web| {
            let malformed = malformed.clone();
            let serving = web.call((socket, protocol, peer));
            async move {
                let outcome = serving.await;
                if let (Err(DispatchError::Parse(error)), Some(peer)) = (&outcome, peer) {
                    malformed.malformed(peer, error);
                }
                outcome
            }
        },
    );
    let proxies = server.proxies().clone();
    fn_service(move |stream: TcpStream| {
        let (connections, acceptor, proxies) = (connections.clone(), acceptor.clone(), proxies.clone());
        async move {
            let peer = stream.peer_addr().map_err(DispatchError::Io)?;
            let refused = || DispatchError::Io(io::Error::new(io::ErrorKind::ConnectionRefused, "no room"));
            let ticket = connections.admit(peer.ip(), proxies.trusts(peer.ip())).ok_or_else(refused)?;
            let _ = stream.set_nodelay(true);
            let socket = match acceptor {
                Some(acceptor) => {
                    Socket::Tls(Box::new(shake_hands(&acceptor, &connections, stream, peer, ticket).await?))
                }
                None => Socket::Plain(Guarded::new(stream, ticket, true)),
            };
            let limit = connections.limits().header;
            // The web server is to be the first to close an idle connection.
            let heads = Heads::new(limit, KEEP_ALIVE + limit, connections.clone());
            Ok((Timed::new(socket, heads), Protocol::Http1, Some(peer)))
        }
    })
    .and_then(web)
}

async fn shake_hands(
    acceptor: &TlsAcceptor,
    connections: &Connections,
    stream: TcpStream,
    peer: SocketAddr,
    ticket: Ticket,
) -> Result<TlsStream<Guarded<TcpStream>>, DispatchError> {
    let handshake = acceptor.accept(Guarded::new(stream, ticket, false));
    match timeout(connections.limits().handshake, handshake).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => {
            // A client that disconnects within a request has not sent anything invalid.
            if error.kind() == io::ErrorKind::InvalidData {
                connections.malformed(peer, &error);
            }
            Err(DispatchError::Io(error))
        }
        Err(_) => {
            connections.late();
            Err(DispatchError::SlowRequestTimeout)
        }
    }
}
