//! An IPFS node as a store, by its RPC API: each content is one raw block, pinned.
//!
//! Only `block/put` and `block/get` are used. The node is not trusted: the CID and the bytes that it returns are
//! compared with our own hash.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    multipart::{Form, Part},
    redirect::Policy,
};
use serde::Deserialize;

use super::{Cas, CasError, CasFault, Content, ContentHash, MAX_CONTENT};
use crate::actors::transport::tls::Trust;

/// Answers other than content have a few hundred bytes.
const MAX_ANSWER: usize = 16 << 10;

/// How much of a node's message is repeated.
const MAX_WORDS: usize = 200;

/// A node's RPC API.
#[derive(Clone)]
pub struct Ipfs {
    http: Client,
    base: Url,
    timeout: Duration,
    name: String,
}

/// Omits the password that the URL may have.
impl fmt::Debug for Ipfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ipfs({})", self.name)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PutAnswer {
    key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorAnswer {
    message: String,
}

impl Ipfs {
    /// The node whose API is at `base`, e.g. `http://127.0.0.1:5001`; user and password in it are sent as basic
    /// authentication. `timeout` is the limit of a request, including its answer.
    ///
    /// # Errors
    /// When no HTTP client can be created on this system.
    pub fn new(mut base: Url, timeout: Duration) -> Result<Self, CasError> {
        let mut shown = base.clone();
        // Neither can fail for an http URL; if it did, the URL would not be shown.
        let hidden = shown.set_username("").and_then(|()| shown.set_password(None));
        let name = hidden.map_or_else(|()| "ipfs".to_owned(), |()| format!("ipfs={shown}"));
        // A relative path is joined to a base that ends with a slash.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // A redirect would send the password elsewhere.
        let built = Trust::system()
            .http_client()
            .map_err(|error| error.to_string())
            .and_then(|builder| builder.redirect(Policy::none()).build().map_err(|error| error.to_string()));
        match built {
            Ok(http) => Ok(Self { http, base, timeout, name }),
            Err(problem) => Err(CasError { store: name, fault: CasFault::Unavailable(problem) }),
        }
    }

    fn call(&self, method: &str, query: &[(&str, &str)]) -> Result<RequestBuilder, CasFault> {
        let mut url = self
            .base
            .join(&format!("api/v0/{method}"))
            .map_err(|error| CasFault::Unavailable(error.to_string()))?;
        url.query_pairs_mut().clear().extend_pairs(query);
        Ok(self.http.post(url).timeout(self.timeout))
    }

    async fn put_block(&self, content: &Content) -> Result<(), CasFault> {
        // js-ipfs does not accept a part without a content type as a file.
        let part = Part::bytes(content.bytes().to_vec()).file_name("data");
        let part = part.mime_str("application/octet-stream").map_err(unavailable)?;
        let form = Form::new().part("data", part);
        // Kubo reads `cid-codec`, js-ipfs `format` and `version`; each ignores unknown parameters.
        let query = [
            ("cid-codec", "raw"),
            ("format", "raw"),
            ("version", "1"),
            ("mhtype", "sha2-256"),
            ("mhlen", "32"),
            ("pin", "true"),
        ];
        let answer = self.call("block/put", &query)?.multipart(form).send().await.map_err(unavailable)?;
        let status = answer.status();
        let body = body(answer, MAX_ANSWER).await?;
        if !status.is_success() {
            return Err(refusal(status, body.as_deref()));
        }
        // The CID must follow from the bytes, whatever its base and the parameters of the request.
        let cid = content.hash().cid();
        let answer: Option<PutAnswer> = body.and_then(|body| serde_json::from_slice(&body).ok());
        match answer {
            Some(answer) if ContentHash::from_any_cid(&answer.key) == Some(content.hash()) => Ok(()),
            Some(answer) => Err(CasFault::Wrong(format!(
                "it stored {} as {}, not as {cid}",
                content.hash(),
                words(&answer.key)
            ))),
            None => Err(CasFault::Wrong("its answer to block/put is not that of an IPFS node".to_owned())),
        }
    }

    /// `offline`: only what the node itself has.
    async fn get_block(&self, hash: &ContentHash, offline: bool) -> Result<Content, CasFault> {
        let cid = hash.cid();
        let query = [("arg", cid.as_str()), ("offline", if offline { "true" } else { "false" })];
        let answer = self.call("block/get", &query)?.send().await.map_err(unavailable)?;
        let status = answer.status();
        if status.is_success() {
            return body(answer, MAX_CONTENT)
                .await?
                .and_then(|bytes| Content::new(bytes).ok())
                .filter(|content| content.hash() == *hash)
                .ok_or_else(|| CasFault::Wrong(format!("it gave something else for {cid}")));
        }
        let body = body(answer, MAX_ANSWER).await?;
        let refusal = refusal(status, body.as_deref());
        match &refusal {
            // The API has one status for every error of the node; only the message distinguishes them.
            CasFault::Unavailable(problem)
                if status == StatusCode::INTERNAL_SERVER_ERROR
                    && (problem.contains("not found") || problem.contains("could not find")) =>
            {
                Err(CasFault::NotFound(*hash))
            }
            _ => Err(refusal),
        }
    }

    fn error(&self, fault: CasFault) -> CasError {
        CasError { store: self.name.clone(), fault }
    }
}

#[async_trait]
impl Cas for Ipfs {
    fn name(&self) -> &str {
        &self.name
    }

    async fn put(&self, content: &Content) -> Result<(), CasError> {
        self.put_block(content).await.map_err(|fault| self.error(fault))?;
        match self.get_block(&content.hash(), true).await {
            Ok(_) => Ok(()),
            Err(CasFault::NotFound(hash)) => {
                Err(self.error(CasFault::Wrong(format!("it reported that it stored {hash}, and does not have it"))))
            }
            Err(fault) => Err(self.error(fault)),
        }
    }

    async fn get(&self, hash: &ContentHash) -> Result<Content, CasError> {
        self.get_block(hash, false).await.map_err(|fault| self.error(fault))
    }
}

/// The body; `None` when it is larger than `limit`.
async fn body(mut answer: Response, limit: usize) -> Result<Option<Vec<u8>>, CasFault> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unavailable)? {
        if body.len() + chunk.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// Without the URL, which may contain a password.
fn unavailable(error: reqwest::Error) -> CasFault {
    let error = error.without_url();
    if error.is_timeout() {
        return CasFault::Unavailable("it did not answer in time".to_owned());
    }
    if error.is_connect() {
        return CasFault::Unavailable(
            "it cannot be reached: is the node running, and its RPC API at this address?".to_owned(),
        );
    }
    let mut problem = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        problem = format!("{problem}: {cause}");
        source = cause.source();
    }
    CasFault::Unavailable(problem)
}

/// The fault for a status other than success.
fn refusal(status: StatusCode, body: Option<&[u8]>) -> CasFault {
    let answer = body.and_then(|body| serde_json::from_slice::<ErrorAnswer>(body).ok());
    CasFault::Unavailable(match answer {
        Some(answer) => format!("the node reports: {}", words(&answer.message)),
        None => {
            format!("HTTP {status}: is this the RPC API of an IPFS node (port 5001 by default), not its gateway?")
        }
    })
}

/// Text of a peer, safe for a terminal.
fn words(text: &str) -> String {
    crate::protocol::text::shown_within(text, MAX_WORDS).into_owned()
}
