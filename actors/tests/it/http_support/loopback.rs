//! A server behind a real socket of this machine.

use std::{io, time::Duration};

use actix_web::{App, HttpServer as WebServer, dev::ServerHandle, web};
use btcr2_aggregation_actors::{
    runtime::Clock,
    transport::{
        Connection, Delivery, Transport,
        http::{self, HttpConfig, HttpServer, server::HttpServerParts},
    },
};
use btcr2_aggregation_protocol::{identity::Identity, request_auth::inbox_path};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::UnboundedReceiver,
};

use super::{
    authorization, collector, openapi, service,
    sse::{Event, Parser},
};

/// The timeout of every operation.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Loopback {
    pub server: HttpServer,
    pub clock: Clock,
    pub service: Box<dyn Connection>,
    pub address: std::net::SocketAddr,
    /// The prefix under which the scope is mounted.
    pub prefix: &'static str,
    handle: ServerHandle,
}

impl Loopback {
    pub async fn start(prefix: &'static str, config: HttpConfig) -> (Self, UnboundedReceiver<Delivery>) {
        let clock = Clock::system();
        let server = HttpServer::start(HttpServerParts::new(config, clock));
        let (inbox, deliveries) = collector();
        let service = server.connect(&service(), inbox).await.unwrap();
        let mounted = server.clone();
        let app = move || {
            App::new()
                .service(web::scope(prefix).configure(http::configure(&mounted)))
                .default_service(http::not_found(&mounted))
        };
        let web = WebServer::new(app).workers(1).disable_signals().shutdown_timeout(1);
        let web = web.bind("127.0.0.1:0").unwrap();
        let address = web.addrs()[0];
        let running = web.run();
        let handle = running.handle();
        actix_rt::spawn(running);
        (Self { server, clock, service, address, prefix, handle }, deliveries)
    }

    pub async fn stop(self) {
        self.server.shutdown().await;
        self.handle.stop(false).await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{}{path}", self.address, self.prefix)
    }

    /// The answer to a request, which must be one that the document names.
    pub async fn answer(&self, request: reqwest::RequestBuilder) -> (u16, String) {
        let request = request.timeout(PATIENCE).build().unwrap();
        let (method, path) = (request.method().to_string(), request.url().path().to_owned());
        let response = client().execute(request).await.expect("an answer");
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).expect("every body is JSON");
        let path = path.strip_prefix(self.prefix).unwrap();
        openapi::check(&method, path, status, &kind, &body);
        (status, body["error"].as_str().unwrap_or("").to_owned())
    }

    pub async fn post(&self, body: impl Into<reqwest::Body>) -> (u16, String) {
        self.answer(client().post(self.url("/v1/messages")).body(body)).await
    }

    /// Opens a stream by a raw request with these headers.
    pub async fn open(&self, path: &str, headers: &[(&str, &str)]) -> RawStream {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut stream =
            RawStream { socket, head: String::new(), undecoded: Vec::new(), parser: Parser::default() };
        tokio::time::timeout(PATIENCE, stream.read_head()).await.expect("a head").unwrap();
        stream
    }

    pub async fn inbox(&self, identity: &Identity, last: Option<u64>) -> RawStream {
        let path = inbox_path(self.prefix, identity.did());
        let authorization = authorization(identity, &path, self.clock.now());
        let last = last.map(|id| id.to_string());
        let mut headers = vec![("authorization", authorization.as_str())];
        headers.extend(last.as_deref().map(|id| ("last-event-id", id)));
        self.open(&path, &headers).await
    }
}

pub fn client() -> reqwest::Client {
    // One for each test: building one reads the system's certificates, which takes longer than most requests.
    thread_local! {
        static CLIENT: reqwest::Client = btcr2_aggregation_actors::transport::tls::Trust::system().http_client().unwrap().no_proxy().build().unwrap();
    }
    CLIENT.with(reqwest::Client::clone)
}

/// A response that is read from the socket itself, in chunks of events.
pub struct RawStream {
    socket: TcpStream,
    /// Status line and headers.
    pub head: String,
    undecoded: Vec<u8>,
    parser: Parser,
}

impl RawStream {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    async fn read_more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let count = self.socket.read(&mut buffer).await?;
        self.undecoded.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    async fn read_head(&mut self) -> io::Result<()> {
        loop {
            if let Some(end) = self.undecoded.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.undecoded.drain(..end + 4).collect();
                self.head = String::from_utf8(head).unwrap();
                return Ok(());
            }
            if !self.read_more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// One chunk of the body; `None` for the last, or if the connection has ended without it.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(line) = self.undecoded.windows(2).position(|two| two == b"\r\n") {
                let size = std::str::from_utf8(&self.undecoded[..line]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if self.undecoded.len() >= line + 2 + size + 2 {
                    let chunk = self.undecoded[line + 2..line + 2 + size].to_vec();
                    self.undecoded.drain(..line + 2 + size + 2);
                    return Some(chunk).filter(|chunk| !chunk.is_empty());
                }
            }
            if !self.read_more().await.unwrap_or(false) {
                return None;
            }
        }
    }

    pub async fn next_or_comment(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.parser.pop() {
                return Some(event);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.chunk()).await.expect("an event, or the end")?;
            self.parser.push(&chunk);
        }
    }

    /// The next event, without comments; `None` when the server has closed the stream.
    pub async fn next(&mut self) -> Option<Event> {
        // Heartbeats must not extend the timeout.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let event = self.next_or_comment().await?;
            if !event.is_comment() {
                return Some(event);
            }
            assert!(tokio::time::Instant::now() < deadline, "nothing but heartbeats");
        }
    }

    /// The body of a response of a known length.
    pub async fn body(&mut self) -> String {
        let length = self.head.to_lowercase();
        let length = length.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while self.undecoded.len() < length {
            assert!(self.read_more().await.unwrap());
        }
        String::from_utf8(self.undecoded.drain(..length).collect()).unwrap()
    }
}
