//! The routes (DID Resolution, "HTTP(S) Binding"), for actix-web.

use std::{net::IpAddr, sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{
        Method, StatusCode,
        header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, VARY},
    },
    web::{self, Bytes, Data, Payload, ServiceConfig},
};
use serde_json::json;

use super::{
    Shared,
    answer::{Form, Refusal},
    request::form,
};
use crate::{
    actors::transport::{
        connections::{Connections, Network, Proxies},
        http::{
            cors::{allow, preflight},
            store::{Rate, RateLimitStore},
        },
    },
    protocol::resolution::RESULT_MEDIA_TYPE,
    serve::{
        body::{self, Unread},
        web::Site,
    },
};

/// The path before the DID.
const IDENTIFIERS: &str = "/1.0/identifiers/";

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a resolver serves.
#[derive(Clone)]
pub(super) struct ResolverSite(pub(super) Arc<Shared>);

impl Site for ResolverSite {
    fn connections(&self) -> &Connections {
        &self.0.connections
    }

    fn proxies(&self) -> &Proxies {
        &self.0.proxies
    }

    fn mount(&self, app: &mut ServiceConfig) {
        app.app_data(Data::from(Arc::clone(&self.0)))
            .route(&format!("{IDENTIFIERS}{{did:.+}}"), web::to(identifier))
            .default_service(web::to(not_found));
    }
}

async fn identifier(shared: Data<Shared>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let shared = shared.into_inner();
    match *request.method() {
        Method::GET | Method::HEAD | Method::POST => {}
        Method::OPTIONS => return preflight(&shared.cors, request.headers()),
        _ => {
            let mut response = begin(&shared, &request, StatusCode::METHOD_NOT_ALLOWED);
            response.insert_header((ALLOW, "GET, HEAD, POST, OPTIONS"));
            return response.json(json!({ "error": "method-not-allowed" }));
        }
    }
    // Behind a proxy that is not trusted it is the proxy's.
    let address = request.peer_addr().map(|peer| shared.proxies.client(peer.ip(), request.headers()));
    match answer(&shared, &request, payload, address).await {
        Ok(response) => response,
        Err(refusal) => refused(&shared, &request, refusal),
    }
}

async fn answer(
    shared: &Arc<Shared>,
    request: &HttpRequest,
    payload: Payload,
    address: Option<IpAddr>,
) -> Result<HttpResponse, Refusal> {
    admit_rate(shared, address).await?;
    if shared.is_stopping() {
        return Err(Refusal::Stopping);
    }
    let form = form(request)?;
    let network = address.map(Network::of_connection);
    let share = shared.requests.take(network).ok_or(Refusal::Busy)?;
    let mut body_share = None;
    let body = if *request.method() == Method::POST {
        body_share = Some(shared.bodies.take(network).ok_or(Refusal::Busy)?);
        let within = BODY_TIMEOUT.min(shared.limits.timeout);
        body::read(payload, shared.limits.body, within).await.map_err(|unread| match unread {
            Unread::TooLarge => Refusal::TooLarge,
            Unread::Slow => Refusal::SlowBody,
        })?
    } else {
        Bytes::new()
    };
    let did = request.path().strip_prefix(IDENTIFIERS).unwrap_or_default().to_owned();
    let answer = shared.answer(did, request.query_string().to_owned(), body, (share, body_share)).await?;
    shared.measures.answered(answer.outcome);
    let (content_type, body) = answer.body(form);
    let mut response = begin(shared, request, answer.status);
    Ok(response.insert_header((CONTENT_TYPE, content_type)).body(body))
}

/// Counts a request of an address, and of an IPv6 site, which has many of them.
async fn admit_rate(shared: &Shared, address: Option<IpAddr>) -> Result<(), Refusal> {
    let Rate { per_second, burst } = shared.rate;
    let now = shared.clock.now();
    let requests = address.map(|address| Network::of_requests(address).to_string()).unwrap_or_default();
    if !shared.rates.take(&requests, shared.rate, now).await {
        return Err(Refusal::Rate);
    }
    let Some(site) = address.map(Network::of_connection).filter(Network::is_ipv6) else { return Ok(()) };
    let rate = Rate { per_second: per_second.saturating_mul(4), burst: burst.saturating_mul(4) };
    if shared.rates.take(&format!("site {site}"), rate, now).await { Ok(()) } else { Err(Refusal::Rate) }
}

fn refused(shared: &Shared, request: &HttpRequest, refusal: Refusal) -> HttpResponse {
    shared.measures.refused(refusal);
    let mut response = begin(shared, request, refusal.status());
    if refusal.is_transient() {
        response.insert_header((RETRY_AFTER, "5"));
    }
    let content_type = match form(request) {
        Ok(Form::Result(media_type)) => media_type,
        _ => RESULT_MEDIA_TYPE,
    };
    response.insert_header((CONTENT_TYPE, content_type)).body(refusal.result().to_string())
}

/// Not in the form of a result: a client with a wrong base URL must not take it for a DID that does not exist.
async fn not_found(shared: Data<Shared>, request: HttpRequest) -> HttpResponse {
    let detail = format!("this is a DID resolver: GET {IDENTIFIERS}DID");
    begin(&shared, &request, StatusCode::NOT_FOUND).json(json!({ "error": "no-such-path", "detail": detail }))
}

/// An answer with the headers that all of them have.
fn begin(shared: &Shared, request: &HttpRequest, status: StatusCode) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    allow(&mut response, &shared.cors, request.headers());
    // Each new block may change the result, and its confirmations.
    response.insert_header((CACHE_CONTROL, "no-store")).append_header((VARY, "Accept"));
    response
}
