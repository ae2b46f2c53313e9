//! An IPFS node's RPC API, as far as it is used, with the ways in which a node can fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    web::{self, Bytes, Data, Query},
};
use btcr2_aggregation::cas::{Content, ContentHash};
use futures::stream;
use serde_json::json;

/// The behaviour of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Honest,
    /// Returns another CID for content that it stores.
    OtherCid,
    /// Accepts the parameters of js-ipfs, and writes CIDs in another base.
    JavaScript,
    /// Stores, but returns other bytes.
    OtherBytes,
    /// Reports that it has stored content, and has not.
    Forgets,
    /// Returns bytes without end.
    Endless,
    /// Answers every request with an error of its own.
    Broken,
    /// Is not an IPFS node.
    Website,
    /// Redirects its callers.
    Redirects,
    /// Never answers.
    Hangs,
}

struct State {
    behaviour: Behaviour,
    blocks: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Content that the node does not have, but finds in the network.
    elsewhere: BTreeMap<String, Vec<u8>>,
    requests: Mutex<Vec<Request>>,
}

/// A request to the node.
#[derive(Clone, Debug)]
pub struct Request {
    pub authorization: Option<String>,
}

pub struct Node {
    state: Data<State>,
    address: std::net::SocketAddr,
    handle: ServerHandle,
}

impl Node {
    pub fn start(behaviour: Behaviour) -> Self {
        Self::start_with(behaviour, &[])
    }

    /// With contents that only the network has.
    pub fn start_with(behaviour: Behaviour, elsewhere: &[Content]) -> Self {
        let state = Data::new(State {
            behaviour,
            blocks: Mutex::default(),
            elsewhere: elsewhere.iter().map(|content| (content.hash().cid(), content.bytes().to_vec())).collect(),
            requests: Mutex::default(),
        });
        let shared = state.clone();
        let server = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .app_data(web::PayloadConfig::new(4 << 20))
                .route("/api/v0/block/put", web::post().to(put))
                .route("/api/v0/block/get", web::post().to(get))
        })
        .workers(1)
        .disable_signals()
        .bind(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_rt::spawn(server);
        Self { state, address, handle }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn has(&self, hash: &ContentHash) -> bool {
        self.state.blocks.lock().unwrap().contains_key(&hash.cid())
    }

    /// Every request, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    pub async fn stop(self) {
        self.handle.stop(false).await;
    }
}

async fn misbehave(state: &State, request: &HttpRequest) -> Option<HttpResponse> {
    let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    state.requests.lock().unwrap().push(Request { authorization });
    match state.behaviour {
        Behaviour::Broken => Some(error("pin: \u{1b}[2Jrepo is locked")),
        Behaviour::Website => Some(HttpResponse::NotFound().body("<html>404</html>")),
        Behaviour::Redirects => {
            Some(HttpResponse::TemporaryRedirect().insert_header(("location", "http://127.0.0.1:9/")).finish())
        }
        Behaviour::Hangs => std::future::pending().await,
        _ => None,
    }
}

fn error(message: &str) -> HttpResponse {
    HttpResponse::InternalServerError().json(json!({ "Message": message, "Code": 0, "Type": "error" }))
}

type Arguments = Query<BTreeMap<String, String>>;

async fn put(state: Data<State>, request: HttpRequest, query: Arguments, body: Bytes) -> HttpResponse {
    if let Some(answer) = misbehave(&state, &request).await {
        return answer;
    }
    let of_kubo = [("cid-codec", "raw"), ("mhtype", "sha2-256"), ("pin", "true")];
    let of_javascript = [("format", "raw"), ("version", "1"), ("mhtype", "sha2-256")];
    let javascript = state.behaviour == Behaviour::JavaScript;
    let expected = if javascript { of_javascript } else { of_kubo };
    if javascript && !body.windows(14).any(|window| window.eq_ignore_ascii_case(b"\r\ncontent-type")) {
        return error("File argument 'data' is required");
    }
    if expected.iter().any(|(name, value)| query.get(*name).map(String::as_str) != Some(*value)) {
        return error("these options make another CID, or a block that is soon collected");
    }
    let Some(data) = part(&request, &body) else { return error("no file in the request") };
    let cid = ContentHash::of(&data).cid();
    let key = match state.behaviour {
        Behaviour::OtherCid => ContentHash::of(b"another").cid(),
        Behaviour::JavaScript => format!("f01551220{}", ContentHash::of(&data).hex()),
        _ => cid.clone(),
    };
    let size = data.len();
    if state.behaviour != Behaviour::Forgets {
        state.blocks.lock().unwrap().insert(cid, data);
    }
    HttpResponse::Ok().json(json!({ "Key": key, "Size": size }))
}

async fn get(state: Data<State>, request: HttpRequest, query: Arguments) -> HttpResponse {
    if let Some(answer) = misbehave(&state, &request).await {
        return answer;
    }
    let cid = query.get("arg").cloned().unwrap_or_default();
    let own = state.blocks.lock().unwrap().get(&cid).cloned();
    let offline = query.get("offline").is_some_and(|offline| offline == "true");
    let found = own.or_else(|| state.elsewhere.get(&cid).filter(|_| !offline).cloned());
    match (state.behaviour, found) {
        (Behaviour::Endless, _) => {
            let chunk = Bytes::from_static(&[0; 1 << 16]);
            HttpResponse::Ok().streaming(stream::repeat_with(move || Ok::<_, actix_web::Error>(chunk.clone())))
        }
        (Behaviour::OtherBytes, Some(_)) => HttpResponse::Ok().body("something else"),
        (_, Some(data)) => HttpResponse::Ok().body(data),
        (_, None) => error(&format!("block was not found locally (offline): ipld: could not find {cid}")),
    }
}

/// The one file in a multipart form.
fn part(request: &HttpRequest, body: &[u8]) -> Option<Vec<u8>> {
    let kind = request.headers().get("content-type")?.to_str().ok()?;
    let boundary = kind.strip_prefix("multipart/form-data; boundary=")?;
    let start = body.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let end = body.len().checked_sub(boundary.len() + 8)?;
    let (data, rest) = (body.get(start..end)?, body.get(end..)?);
    (rest == format!("\r\n--{boundary}--\r\n").as_bytes()).then(|| data.to_vec())
}

pub fn content(bytes: impl Into<Arc<[u8]>>) -> Content {
    Content::new(bytes).unwrap()
}
