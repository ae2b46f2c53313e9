//! A server in the test's own thread, without sockets, so that its clock can stand still.

use std::{net::SocketAddr, pin::Pin, rc::Rc, sync::Arc};

use actix_http::Request;
use actix_web::{
    App,
    body::{BoxBody, MessageBody},
    dev::{Service, ServiceResponse},
    test::{TestRequest, init_service},
};
use btcr2_aggregation_actors::{
    runtime::Clock,
    transport::{
        Connection, Delivery, Outbound, Transport,
        http::{self, HttpConfig, HttpServer, server::HttpServerParts},
    },
};
use btcr2_aggregation_protocol::{
    envelope::{Expected, ExpectedTo, ParsedEnvelope, Verified},
    identity::Identity,
    request_auth::inbox_path,
    time::Timestamp,
};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    NOW, authorization, collector, openapi, service,
    sse::{Event, Parser},
};

type Call = dyn Fn(Request) -> Pin<Box<dyn Future<Output = ServiceResponse<BoxBody>>>>;

/// A mounted server and its service.
#[derive(Clone)]
pub struct Site {
    pub server: HttpServer,
    pub clock: Clock,
    pub service: Arc<dyn Connection>,
    call: Rc<Call>,
}

/// An answer of the server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub headers: actix_web::http::header::HeaderMap,
}

impl Answer {
    /// The status and, if there is one, the code.
    pub fn outcome(&self) -> (u16, &str) {
        (self.status, self.body["error"].as_str().unwrap_or(""))
    }
}

pub const OK: (u16, &str) = (202, "");

impl Site {
    pub async fn new(config: HttpConfig) -> (Self, UnboundedReceiver<Delivery>) {
        Self::with(|parts| parts.config = config).await
    }

    pub async fn with(change: impl FnOnce(&mut HttpServerParts)) -> (Self, UnboundedReceiver<Delivery>) {
        Self::of(&service(), NOW, change).await
    }

    /// A site of `identity` whose clock shows `now`.
    pub async fn of(
        identity: &Identity,
        now: u64,
        change: impl FnOnce(&mut HttpServerParts),
    ) -> (Self, UnboundedReceiver<Delivery>) {
        let clock = Clock::starting_at(Timestamp::from_secs(now));
        let mut parts = HttpServerParts::new(HttpConfig::default(), clock);
        change(&mut parts);
        let server = HttpServer::start(parts);
        let (inbox, deliveries) = collector();
        let service = server.connect(identity, inbox).await.unwrap();
        (Self::mount(server, clock, service.into()).await, deliveries)
    }

    async fn mount(server: HttpServer, clock: Clock, service: Arc<dyn Connection>) -> Self {
        let app = App::new().configure(http::configure(&server)).default_service(http::not_found(&server));
        let app = Rc::new(init_service(app).await);
        let call = move |request: Request| {
            let app = Rc::clone(&app);
            let answering = async move { app.call(request).await.unwrap().map_into_boxed_body() };
            Box::pin(answering) as Pin<Box<dyn Future<Output = _>>>
        };
        Self { server, clock, service, call: Rc::new(call) }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sends a request, and reads the whole answer, which must be one that the document names.
    pub async fn ask(&self, request: TestRequest) -> Answer {
        let request = request.to_request();
        let (method, path) = (request.method().to_string(), request.path().to_owned());
        let response = (self.call)(request).await;
        // Until the collector has passed on what was delivered.
        settle().await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let kind = headers.get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let body = if kind == "text/event-stream" {
            Value::Null
        } else {
            let bytes = actix_web::body::to_bytes(response.into_body()).await.unwrap();
            if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).expect("every body is JSON") }
        };
        openapi::check(&method, &path, status, &kind, &body);
        Answer { status, body, headers }
    }

    pub async fn post(&self, body: impl Into<String>) -> Answer {
        self.ask(TestRequest::post().uri("/v1/messages").set_payload(body.into())).await
    }

    pub async fn post_from(&self, address: &str, body: impl Into<String>) -> Answer {
        let peer: SocketAddr = address.parse().unwrap();
        self.ask(TestRequest::post().uri("/v1/messages").peer_addr(peer).set_payload(body.into())).await
    }

    pub async fn post_advert(&self, body: impl Into<String>) -> Answer {
        self.ask(TestRequest::post().uri("/v1/adverts").set_payload(body.into())).await
    }

    /// A request of `identity` for its inbox, signed now.
    pub fn inbox_request(&self, identity: &Identity) -> TestRequest {
        let path = inbox_path("", identity.did());
        let header = authorization(identity, &path, self.now());
        TestRequest::get().uri(&path).insert_header(("authorization", header))
    }

    pub async fn open(&self, request: TestRequest) -> Stream {
        let response = (self.call)(request.to_request()).await;
        assert_eq!(response.status(), 200);
        Stream { body: Some(Box::pin(response.into_body())), parser: Parser::default() }
    }

    pub async fn inbox(&self, identity: &Identity) -> Stream {
        self.open(self.inbox_request(identity)).await
    }

    pub async fn inbox_after(&self, identity: &Identity, id: u64) -> Stream {
        self.open(self.inbox_request(identity).insert_header(("last-event-id", id.to_string()))).await
    }

    pub async fn adverts(&self) -> Stream {
        self.open(TestRequest::get().uri("/v1/adverts")).await
    }

    /// The service sends `outbound`, and the hub has received it.
    pub async fn send(&self, outbound: Outbound) {
        self.service.send(outbound).await.unwrap();
        settle().await;
    }

    /// Asserts that `event` is an envelope of the service, signed now.
    pub fn verify(&self, event: &Event, to: ExpectedTo<'_>) -> Verified {
        let envelope = ParsedEnvelope::parse(&event.data).unwrap();
        let service = service();
        let expected = Expected { from: Some(service.did()), to, skew: std::time::Duration::ZERO };
        envelope.verify(&service.public_key().x_only(), self.now(), &expected).expect("signed now")
    }
}

/// Lets all actors process their messages.
pub async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A stream of events.
pub struct Stream {
    /// `None` after its end.
    body: Option<Pin<Box<BoxBody>>>,
    parser: Parser,
}

impl Stream {
    /// The next event, without comments; `None` when the server has closed the stream.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.next_or_comment().await?;
            if !event.is_comment() {
                return Some(event);
            }
        }
    }

    pub async fn next_or_comment(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.parser.pop() {
                return Some(event);
            }
            let body = self.body.as_mut()?;
            // Without tokio's budget, which would make a long queue look empty.
            let chunk = tokio::task::unconstrained(std::future::poll_fn(|cx| body.as_mut().poll_next(cx))).await;
            match chunk {
                Some(chunk) => self.parser.push(&chunk.unwrap()),
                None => self.body = None,
            }
        }
    }

    /// The events that have arrived, without comments.
    pub async fn ready(&mut self) -> Vec<Event> {
        settle().await;
        let mut events = Vec::new();
        loop {
            let next = self.next();
            tokio::pin!(next);
            match futures::poll!(next) {
                std::task::Poll::Ready(Some(event)) => events.push(event),
                std::task::Poll::Ready(None) | std::task::Poll::Pending => return events,
            }
        }
    }

    /// Whether the server has closed the stream after the events that were read.
    pub async fn is_closed(&mut self) -> bool {
        settle().await;
        let next = self.next();
        tokio::pin!(next);
        matches!(futures::poll!(next), std::task::Poll::Ready(None))
    }
}
