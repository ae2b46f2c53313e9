//! The routes, for actix-web.

use std::convert::Infallible;

use actix_web::{
    HttpRequest, HttpResponse, Route,
    http::{
        StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderName},
    },
    web::{self, Bytes, BytesMut, Payload, ServiceConfig},
};
use btcr2_aggregation_protocol::{did::Did, message::Message};
use futures::{StreamExt, stream};
use serde_json::json;

use super::{
    Refusal,
    config::HttpConfig,
    cors::{allow, preflight},
    gate::{Admitted, Client, Gate},
    history,
    hub::{OpenAdverts, OpenInbox, Sent},
    report::Limit,
    server::HttpServer,
    stream::{EventStream, Events},
};
use crate::subject::NetworkAddress;
use crate::transport::connections::Ticket;
use crate::transport::{Delivery, Evidence, Outbound, Receipt, Received, Undelivered};

/// The API's description.
const OPENAPI: &str = include_str!("openapi.json");

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Above the size that an envelope and its event add to their body.
const ENVELOPE_OVERHEAD: usize = 1024;

/// The timeout for a client to send a body.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// How long a request waits for space in the mailbox of its recipient.
const DELIVERY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The answer for unknown paths, in the same form as the routes' own:
/// `App::new().configure(configure(&server)).default_service(not_found(&server))`. A mounted scope cannot answer them:
/// the host's other paths are the host's.
pub fn not_found(server: &HttpServer) -> Route {
    let server = server.clone();
    web::to(move |request: HttpRequest| {
        let response = answer(&server, &request, Err(Refusal::NotFound));
        async move { response }
    })
}

/// Admits a request to a route of the host by the address of its client, which is counted as for the routes here. The error is the
/// answer.
///
/// # Errors
/// There are too many requests of that address.
pub async fn admit(server: &HttpServer, request: &HttpRequest) -> Result<(), HttpResponse> {
    let admitted = server.0.gate.admit_address(&address(server, request), server.now()).await;
    admitted.map_err(|refusal| answer(server, request, Err(refusal)))
}

/// The answer of a route of the host that refuses a request, in the form of the routes here.
pub fn refuse(server: &HttpServer, request: &HttpRequest, refusal: Refusal) -> HttpResponse {
    answer(server, request, Err(refusal))
}

/// Mounts the routes into an `App` or a scope of one: `App::new().configure(configure(&server))`.
pub fn configure(server: &HttpServer) -> impl FnOnce(&mut ServiceConfig) + use<> {
    let server = server.clone();
    move |app| {
        let route = |path: &str| web::resource(path).default_service(not_found(&server));
        app.service(
            web::scope("/v1")
                .app_data(web::Data::new(server.clone()))
                .service(
                    route("/adverts")
                        .route(web::get().to(read_adverts))
                        .route(web::post().to(post_advert))
                        .route(web::method(actix_web::http::Method::OPTIONS).to(options)),
                )
                .service(
                    route("/messages")
                        .route(web::post().to(post_message))
                        .route(web::method(actix_web::http::Method::OPTIONS).to(options)),
                )
                .service(
                    route("/actors/{did}/inbox")
                        .route(web::get().to(read_inbox))
                        .route(web::method(actix_web::http::Method::OPTIONS).to(options)),
                )
                .service(
                    route("/.well-known/aggregation")
                        .route(web::get().to(well_known))
                        .route(web::method(actix_web::http::Method::OPTIONS).to(options)),
                )
                .service(
                    route("/openapi.json")
                        .route(web::get().to(openapi))
                        .route(web::method(actix_web::http::Method::OPTIONS).to(options)),
                )
                .configure(|scope| {
                    for resource in history::resources(route) {
                        let options = web::method(actix_web::http::Method::OPTIONS).to(options);
                        scope.service(resource.route(options));
                    }
                })
                .default_service(not_found(&server)),
        );
    }
}

pub(super) type Server = web::Data<HttpServer>;

async fn post_message(server: Server, request: HttpRequest, payload: Payload) -> HttpResponse {
    let outcome = accept_message(&server, &request, payload).await;
    answer(&server, &request, outcome)
}

async fn accept_message(server: &HttpServer, request: &HttpRequest, payload: Payload) -> Result<(), Refusal> {
    let gate = &server.0.gate;
    let client = address(server, request);
    gate.admit_address(&client, server.now()).await?;
    // Behind an untrusted proxy it is the proxy's address.
    let address = client.address.map(NetworkAddress::from);
    let body = read_in_time(payload, gate.config.max_body).await?;
    let Admitted { from, to, message } = gate.admit_message(&body, &client, server.now()).await?;
    let too_large = message.as_ref().is_ok_and(|message| holds_too_large_an_update(server, message, body.len()));
    // The sender waits here if its recipient is slow, and until its message is durable; other requests continue. If the
    // recipient has ended although it is registered, the answer must not be that it is not an identity of this server.
    let delivered = async {
        let message = match message {
            Ok(message) => message,
            Err(error) => return to.inbox.deliver(Delivery::Undecodable { from, error }).await.ok(),
        };
        let evidence = std::str::from_utf8(&body).ok().map(|envelope| Evidence::Envelope(envelope.into()));
        let (receipt, confirmed) = Receipt::new();
        let delivery = Delivery::Message(Received { message, receipt, evidence, address });
        if let Err(Undelivered::Full(delivery)) = to.inbox.try_deliver(delivery) {
            to.inbox.deliver(delivery).await.ok()?;
        }
        // The receipt is part of the message, and is closed when the message is dropped.
        confirmed.await.ok()
    };
    match tokio::time::timeout(DELIVERY_TIMEOUT, delivered).await {
        // The service refuses it and reports that in its own events; the member must receive the refusal too.
        Ok(Some(())) if too_large => Err(Refusal::PayloadTooLarge),
        Ok(Some(())) => Ok(()),
        Ok(None) => Err(Refusal::Unavailable),
        Err(_) => Err(server.0.counts.limited(Limit::Delivery)),
    }
}

/// Whether `message` submits an update above the service's limit. Only checked if the body is that large.
fn holds_too_large_an_update(server: &HttpServer, message: &Message, body: usize) -> bool {
    let limit = server.0.update_bytes;
    body > limit
        && message
            .body
            .signed_update()
            .is_some_and(|update| update.is_ok_and(|update| update.canonical_len() > limit))
}

async fn post_advert(server: Server, request: HttpRequest, payload: Payload) -> HttpResponse {
    let outcome = accept_advert(&server, &request, payload).await;
    answer(&server, &request, outcome)
}

async fn accept_advert(server: &HttpServer, request: &HttpRequest, payload: Payload) -> Result<(), Refusal> {
    let gate = &server.0.gate;
    let address = address(server, request);
    gate.admit_address(&address, server.now()).await?;
    let body = read_in_time(payload, gate.config.max_body).await?;
    let (from, message) = gate.admit_advert(&body, &address, server.now()).await?;
    // As with messages: a valid signature over something that is not an advert is accepted and ignored.
    if let Ok(message) = message
        && message.body.is_advert()
    {
        let outbound = Outbound::Broadcast { body: message.body };
        server.0.hub.send(Sent { from, outbound }).await.map_err(|_| Refusal::Unavailable)?;
    }
    Ok(())
}

async fn read_adverts(server: Server, request: HttpRequest) -> HttpResponse {
    let gate = &server.0.gate;
    let address = address(&server, &request);
    if let Err(refusal) = gate.admit_address(&address, server.now()).await {
        return answer(&server, &request, Err(refusal));
    }
    match server.0.hub.send(OpenAdverts { network: address.network }).await {
        Ok(Some(events)) => event_stream(&server, &request, events),
        Ok(None) | Err(_) => {
            let refusal = server.0.counts.limited(Limit::AdvertStreams);
            answer(&server, &request, Err(refusal))
        }
    }
}

/// The reader of an inbox.
enum Reader {
    Owner(Did),
    /// Possibly an EXTERNAL DID whose opt-in has not arrived yet.
    Early,
}

/// Admits the reader of an inbox. Members open their inboxes before they opt in, and an EXTERNAL DID's key is known
/// only then: such a request waits for a while, so that the inbox is open as soon as the opt-in is accepted.
async fn admit_reader(server: &HttpServer, request: &HttpRequest, owner: &str) -> Result<Reader, Refusal> {
    let gate = &server.0.gate;
    let address = address(server, request);
    gate.admit_address(&address, server.now()).await?;
    let authorization = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let inbox = Gate::parse_inbox(owner, authorization)?;
    if gate.awaits_opt_in(&inbox, server.now()) {
        let seat = server.0.seats.take(&address.requests);
        let _seat = seat.ok_or_else(|| {
            // Not answered as "too many requests": clients back off after this answer as well, which is the purpose.
            server.0.counts.limited(Limit::EarlyInboxes);
            Refusal::Unauthorized
        })?;
        let known = gate.directory.wait_for_key(&inbox.did);
        let waited = tokio::time::timeout(server.config().early_inbox_wait, known).await;
        if waited.is_err() || gate.directory.key_of(&inbox.did).is_none() {
            return Ok(Reader::Early);
        }
    }
    // At the current time: an older authorization may have been used before, and its nonce removed.
    gate.admit_inbox(&inbox, request.uri().path(), &address, server.now()).await?;
    if let Some(ticket) = request.conn_data::<Ticket>() {
        ticket.read_by(&inbox.did, gate.directory.is_member(&inbox.did));
    }
    Ok(Reader::Owner(inbox.did))
}

async fn read_inbox(server: Server, request: HttpRequest, did: web::Path<String>) -> HttpResponse {
    let owner = match admit_reader(&server, &request, &did).await {
        Ok(Reader::Owner(owner)) => owner,
        Ok(Reader::Early) => {
            server.0.counts.refused(Refusal::Unauthorized);
            // The TypeScript implementation's client reconnects at once only if its stream was opened.
            let (_, nothing) = EventStream::open(1, 0);
            return event_stream(&server, &request, nothing);
        }
        Err(refusal) => return answer(&server, &request, Err(refusal)),
    };
    let last = request.headers().get(LAST_EVENT_ID).and_then(|header| header.to_str().ok());
    let after = last.and_then(|last| last.trim().parse().ok());
    // Space for everything that may be stored, and for as much again while the client reads that.
    let HttpConfig { inbox_messages, inbox_bytes, .. } = *server.config();
    let most_bytes = 2 * (inbox_bytes + inbox_messages * ENVELOPE_OVERHEAD);
    let (stream, events) = EventStream::open(inbox_messages * 2 + 16, most_bytes);
    match server.0.hub.send(OpenInbox { owner, stream, after }).await {
        Ok(true) => event_stream(&server, &request, events),
        Ok(false) | Err(_) => {
            let refusal = server.0.counts.limited(Limit::Inboxes);
            answer(&server, &request, Err(refusal))
        }
    }
}

async fn well_known(server: Server, request: HttpRequest) -> HttpResponse {
    let config = server.config();
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let document = json!({
        "envelopeVersion": btcr2_aggregation_protocol::envelope::VERSION,
        "heartbeatIntervalMs": millis(config.heartbeat),
        "inboxBufferSize": config.inbox_messages,
        "inboxTtlMs": millis(config.inbox_ttl),
        "maxBodyBytes": config.max_body,
        "maxUpdateBytes": server.0.update_bytes.min(config.max_body),
        "clockSkewSec": config.clock_skew.as_secs(),
        "rateLimit": { "perSecond": config.did_rate.per_second, "burst": config.did_rate.burst },
        // A repeated message changes nothing here, so a client may send one again if it received no answer.
        "idempotent": true,
    });
    let mut response = HttpResponse::Ok();
    allow(&mut response, &config.cors, request.headers());
    response.json(document)
}

async fn openapi(server: Server, request: HttpRequest) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    allow(&mut response, &server.config().cors, request.headers());
    response.insert_header((CONTENT_TYPE, "application/json")).body(OPENAPI)
}

async fn options(server: Server, request: HttpRequest) -> HttpResponse {
    preflight(&server.config().cors, request.headers())
}

pub(super) fn answer(server: &HttpServer, request: &HttpRequest, outcome: Result<(), Refusal>) -> HttpResponse {
    let (status, body) = match outcome {
        Ok(()) => (StatusCode::ACCEPTED, json!({ "ok": true })),
        Err(refusal) => {
            server.0.counts.refused(refusal);
            // Every refusal's status is one that the crate knows.
            let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
            (status, json!({ "error": refusal.code() }))
        }
    };
    let mut response = HttpResponse::build(status);
    allow(&mut response, &server.config().cors, request.headers());
    response.json(body)
}

fn event_stream(server: &HttpServer, request: &HttpRequest, events: Events) -> HttpResponse {
    let events = stream::unfold(events, |mut events| async move {
        events.next().await.map(|event| (Ok::<_, Infallible>(event), events))
    });
    let mut response = HttpResponse::Ok();
    allow(&mut response, &server.config().cors, request.headers());
    response
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        // For nginx, which would hold events back until a buffer is full.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events)
}

/// The body, if it arrives within [`BODY_TIMEOUT`].
async fn read_in_time(payload: Payload, most: usize) -> Result<Bytes, Refusal> {
    // A body that has not arrived by then is not JSON.
    tokio::time::timeout(BODY_TIMEOUT, read(payload, most)).await.unwrap_or(Err(Refusal::InvalidJson))
}

/// The whole body, if it is not larger than `most`. A larger one is read for a while and discarded, so that the client,
/// which is still sending, receives the answer instead of a broken connection.
async fn read(mut payload: Payload, most: usize) -> Result<Bytes, Refusal> {
    let mut body = BytesMut::new();
    let mut length = 0;
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Refusal::InvalidJson)?;
        length += chunk.len();
        if length <= most {
            body.extend_from_slice(&chunk);
        } else {
            body.clear();
        }
        if length > most.saturating_mul(16) {
            break;
        }
    }
    if length > most { Err(Refusal::PayloadTooLarge) } else { Ok(body.freeze()) }
}

/// The address by which a client's requests are counted.
pub(super) fn address(server: &HttpServer, request: &HttpRequest) -> Client {
    let peer = request.peer_addr().map(|peer| peer.ip());
    Client::of(peer.map(|peer| server.config().proxies.client(peer, request.headers())))
}
