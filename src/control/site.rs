//! The API as it is mounted: the gate, the body, the route, and the answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::HeaderName,
    web::{self, Bytes, Data, Payload, ServiceConfig},
};
use serde_json::Value;

use super::{
    answer::{Answer, Refusal, response},
    gate::Origin,
    pages::{Pages, Visit},
    routes,
    shared::Shared,
};
use crate::{
    actors::transport::connections::{Connections, Proxies},
    serve::{
        body::{self, Unread},
        web::Site,
    },
};

/// The largest body, in bytes.
const MOST_BODY: usize = 64 << 10;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// No proxy is trusted: failed logins count for the address that connects.
const PROXIES: Proxies = Proxies::None;

/// The user at the end of a connection to the socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) u32);

/// What is served.
#[derive(Clone)]
pub(crate) struct ControlSite {
    pub(crate) shared: Arc<Shared>,
    /// The pages of the console, if there is one.
    pub(crate) pages: Option<Arc<dyn Pages>>,
}

impl Site for ControlSite {
    fn connections(&self) -> &Connections {
        &self.shared.connections
    }

    fn proxies(&self) -> &Proxies {
        &PROXIES
    }

    fn mount(&self, app: &mut ServiceConfig) {
        app.app_data(Data::new(self.clone())).default_service(web::to(handle));
    }
}

async fn handle(site: Data<ControlSite>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let ControlSite { shared, pages } = &**site;
    match admitted(shared, &request) {
        Ok(origin) => match pages {
            Some(pages) if !is_of_api(request.path()) => {
                if let Err(refusal) = shared.gate.check_host(request.uri(), request.headers()) {
                    return response(Err(refusal));
                }
                pages.answer(Visit { shared, origin, request: &request, payload }).await
            }
            _ => response(answer(shared, origin, &request, payload).await),
        },
        Err(refusal) => response(Err(refusal)),
    }
}

fn is_of_api(path: &str) -> bool {
    path == "/control" || path.starts_with("/control/")
}

/// From where a request comes, while the service runs.
fn admitted(shared: &Shared, request: &HttpRequest) -> Result<Origin, Refusal> {
    if shared.stopping.load(Ordering::Relaxed) {
        return Err(Refusal::Busy("the service is stopping"));
    }
    match (request.conn_data::<Peer>(), request.peer_addr()) {
        (Some(Peer(uid)), _) => Ok(Origin::Socket { uid: *uid }),
        (None, Some(peer)) => Ok(Origin::Address(peer.ip())),
        (None, None) => Err(Refusal::Unauthorized),
    }
}

async fn answer(shared: &Arc<Shared>, origin: Origin, request: &HttpRequest, payload: Payload) -> Answer {
    let now = shared.parts.clock.now();
    let who = shared.gate.admit(origin, request.method(), request.uri(), request.headers(), now)?;
    let found = routes::find(request.method(), request.uri().path())?;
    found.allows(&who)?;
    let query = web::Query::<BTreeMap<String, String>>::from_query(request.query_string());
    let query = query.map_err(|error| super::answer::invalid(None, error))?.into_inner();
    let body = if found.takes_body() { parse(&body(payload).await?)? } else { None };
    let last = request.headers().get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
    found.answer(Arc::clone(shared), who, query, body, last).await
}

/// The body of a request, if it is not too large, and arrives in time.
pub(super) async fn body(payload: Payload) -> Result<Bytes, Refusal> {
    body::read(payload, MOST_BODY, BODY_TIMEOUT).await.map_err(|unread| match unread {
        Unread::TooLarge => Refusal::TooLarge,
        Unread::Slow => Refusal::Slow,
    })
}

fn parse(body: &[u8]) -> Result<Option<Value>, Refusal> {
    if body.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(body).map(Some).map_err(|error| Refusal::NotJson(format!("JSON expected: {error}")))
}
