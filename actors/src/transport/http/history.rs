//! The routes of what standing cohorts have announced (docs/standing.md, "History"). They serve it without end: to every client what
//! reveals nothing of a DID, boards to seats, and proofs of a leaf to its seat or to the controller of its DID.

use std::sync::Arc;

use actix_web::{
    HttpRequest, HttpResponse, Resource,
    http::header::{AUTHORIZATION, CONTENT_TYPE},
    web::{self, Bytes, Query},
};
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    beacon::did_index,
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes},
    id::CohortId,
    key::PublicKey,
    request_auth::RequestAuthorization,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Refusal,
    cors::allow,
    gate::Client,
    report::Limit,
    routes::{Server, address, answer},
    server::HttpServer,
};

/// The announcements of one answer.
const PAGE: usize = 256;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryRefusal {
    /// There is no such cohort, announcement, map or board.
    Unknown,
    /// Too many requests wait.
    Busy,
    /// It cannot be read now.
    Failed(String),
}

/// The proof of an index in one announcement.
#[derive(Clone, Debug)]
pub struct ServedProof {
    /// The answer.
    pub answer: Value,
    /// Whether the index has a leaf: then the answer is not for every client.
    pub has_leaf: bool,
    /// The seat that had registered the index.
    pub seat: Option<Did>,
}

/// What standing cohorts have announced (port).
#[async_trait]
pub trait History: Send + Sync {
    /// The announcements of a cohort above a number, at most `most`, and whether there are more.
    async fn announcements(&self, cohort_id: &CohortId, after: u64, most: usize) -> Result<Value, HistoryRefusal>;

    /// The announcement map with this hash.
    async fn map(&self, cohort_id: &CohortId, hash: &SignalBytes) -> Result<Value, HistoryRefusal>;

    /// The proof of an index in an announcement.
    async fn proof(
        &self,
        cohort_id: &CohortId,
        number: u64,
        index: &DidIndex,
    ) -> Result<ServedProof, HistoryRefusal>;

    /// The bytes of a board.
    async fn board(&self, cohort_id: &CohortId, hash: &DocumentHash) -> Result<Arc<Vec<u8>>, HistoryRefusal>;

    /// Whether a DID has a seat of a cohort.
    async fn is_seat(&self, cohort_id: &CohortId, did: &Did) -> Result<bool, HistoryRefusal>;

    /// The keys that control a DID now, as far as the service can find out.
    async fn control_keys(&self, cohort_id: &CohortId, did: &Did) -> Vec<PublicKey>;
}

/// The path of the announcements of a cohort under the base URL's path.
pub fn announcements_path(base_path: &str, cohort_id: &CohortId) -> String {
    format!("{}/v1/standing/{cohort_id}/announcements", base_path.trim_end_matches('/'))
}

/// The path of a map.
pub fn map_path(base_path: &str, cohort_id: &CohortId, hash: &SignalBytes) -> String {
    format!("{}/v1/standing/{cohort_id}/maps/{hash}", base_path.trim_end_matches('/'))
}

/// The path of the proof of an index, which a seat or the controller of the DID signs.
pub fn proof_path(base_path: &str, cohort_id: &CohortId, number: u64, index: &DidIndex) -> String {
    format!("{}/v1/standing/{cohort_id}/announcements/{number}/proofs/{index}", base_path.trim_end_matches('/'))
}

/// The path of a board, which a seat signs.
pub fn board_path(base_path: &str, cohort_id: &CohortId, hash: &DocumentHash) -> String {
    format!("{}/v1/standing/{cohort_id}/boards/{hash}", base_path.trim_end_matches('/'))
}

/// The routes below `/v1`.
pub(super) fn resources(route: impl Fn(&str) -> Resource) -> [Resource; 4] {
    [
        route("/standing/{cohort}/announcements").route(web::get().to(announcements)),
        route("/standing/{cohort}/maps/{hash}").route(web::get().to(map)),
        route("/standing/{cohort}/announcements/{number}/proofs/{index}").route(web::get().to(proof)),
        route("/standing/{cohort}/boards/{hash}").route(web::get().to(board)),
    ]
}

#[derive(Deserialize)]
struct Page {
    after: Option<String>,
    limit: Option<String>,
}

fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| Refusal::InvalidParameter)
}

/// A request after the cheap checks.
struct Asked<'a> {
    server: &'a HttpServer,
    request: &'a HttpRequest,
    client: Client,
    history: &'a dyn History,
    cohort_id: CohortId,
}

impl<'a> Asked<'a> {
    async fn new(server: &'a HttpServer, request: &'a HttpRequest, cohort: &str) -> Result<Self, Refusal> {
        let client = address(server, request);
        server.0.gate.admit_address(&client, server.now()).await?;
        let history = server.history().ok_or(Refusal::NotFound)?;
        Ok(Self { server, request, client, history, cohort_id: parsed(cohort)? })
    }

    fn refusal(&self, refusal: HistoryRefusal) -> Refusal {
        match refusal {
            HistoryRefusal::Unknown => Refusal::NotFound,
            HistoryRefusal::Busy => self.server.0.counts.limited(Limit::History),
            HistoryRefusal::Failed(problem) => {
                tracing::error!(cohort_id = %self.cohort_id, problem, "history cannot be served");
                Refusal::Unavailable
            }
        }
    }

    fn authorization(&self) -> Result<(Did, RequestAuthorization), Refusal> {
        let header = self.request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        let authorization = header.and_then(|header| RequestAuthorization::parse(header).ok());
        let authorization =
            authorization.filter(RequestAuthorization::is_well_formed).ok_or(Refusal::Unauthorized)?;
        let did = Did::parse(authorization.did()).map_err(|_| Refusal::Unauthorized)?;
        Ok((did, authorization))
    }

    /// Whether `did` has signed this request with one of `keys`.
    async fn is_signed(
        &self,
        did: &Did,
        authorization: &RequestAuthorization,
        keys: &[PublicKey],
    ) -> Result<(), Refusal> {
        let (gate, path) = (&self.server.0.gate, self.request.uri().path());
        gate.admit_signed(did, authorization, path, keys, &self.client, self.server.now()).await
    }

    async fn proof(&self, number: u64, index: &DidIndex) -> Result<Value, Refusal> {
        let served = self.history.proof(&self.cohort_id, number, index).await;
        let ServedProof { answer, has_leaf, seat } = served.map_err(|refusal| self.refusal(refusal))?;
        if !has_leaf {
            return Ok(answer);
        }
        let (did, authorization) = self.authorization()?;
        let keys = if seat.as_ref() == Some(&did) {
            did.key().into_iter().collect()
        } else if did_index(&did) == *index {
            let gate = &self.server.0.gate;
            gate.admit_resolution(&authorization, &self.client, self.server.now()).await?;
            self.history.control_keys(&self.cohort_id, &did).await
        } else {
            return Err(Refusal::NotEntitled);
        };
        self.is_signed(&did, &authorization, &keys).await?;
        Ok(answer)
    }

    async fn board(&self, hash: &DocumentHash) -> Result<Arc<Vec<u8>>, Refusal> {
        let (did, authorization) = self.authorization()?;
        let is_seat = self.history.is_seat(&self.cohort_id, &did).await;
        if !is_seat.map_err(|refusal| self.refusal(refusal))? {
            return Err(Refusal::NotEntitled);
        }
        let keys: Vec<PublicKey> = did.key().into_iter().collect();
        self.is_signed(&did, &authorization, &keys).await?;
        self.history.board(&self.cohort_id, hash).await.map_err(|refusal| self.refusal(refusal))
    }
}

fn json(server: &HttpServer, request: &HttpRequest, outcome: Result<Value, Refusal>) -> HttpResponse {
    match outcome {
        Ok(value) => {
            let mut response = HttpResponse::Ok();
            allow(&mut response, &server.config().cors, request.headers());
            response.json(value)
        }
        Err(refusal) => answer(server, request, Err(refusal)),
    }
}

async fn announcements(server: Server, request: HttpRequest, cohort: web::Path<String>) -> HttpResponse {
    let outcome = async {
        let asked = Asked::new(&server, &request, &cohort).await?;
        let page = Query::<Page>::from_query(request.query_string()).map_err(|_| Refusal::InvalidParameter)?;
        let after = page.after.as_deref().map_or(Ok(0), parsed)?;
        let most = page.limit.as_deref().map_or(Ok(PAGE), parsed)?.clamp(1, PAGE);
        let listed = asked.history.announcements(&asked.cohort_id, after, most).await;
        listed.map_err(|refusal| asked.refusal(refusal))
    };
    json(&server, &request, outcome.await)
}

async fn map(server: Server, request: HttpRequest, path: web::Path<(String, String)>) -> HttpResponse {
    let outcome = async {
        let (cohort, hash) = &*path;
        let asked = Asked::new(&server, &request, cohort).await?;
        let map = asked.history.map(&asked.cohort_id, &parsed(hash)?).await;
        map.map_err(|refusal| asked.refusal(refusal))
    };
    json(&server, &request, outcome.await)
}

async fn proof(server: Server, request: HttpRequest, path: web::Path<(String, String, String)>) -> HttpResponse {
    let outcome = async {
        let (cohort, number, index) = &*path;
        let asked = Asked::new(&server, &request, cohort).await?;
        asked.proof(parsed(number)?, &parsed(index)?).await
    };
    json(&server, &request, outcome.await)
}

async fn board(server: Server, request: HttpRequest, path: web::Path<(String, String)>) -> HttpResponse {
    let outcome = async {
        let (cohort, hash) = &*path;
        let asked = Asked::new(&server, &request, cohort).await?;
        asked.board(&parsed(hash)?).await
    };
    match outcome.await {
        Ok(bytes) => {
            let mut response = HttpResponse::Ok();
            allow(&mut response, &server.config().cors, request.headers());
            let bytes = Bytes::copy_from_slice(&bytes);
            response.insert_header((CONTENT_TYPE, "application/json")).body(bytes)
        }
        Err(refusal) => answer(&server, &request, Err(refusal)),
    }
}
