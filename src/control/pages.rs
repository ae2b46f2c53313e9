//! What serves pages beside the API, on the same listener: the console. This folder does not know it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::Method,
    web::{Bytes, Payload},
};
use futures::future::LocalBoxFuture;
use serde_json::Value;

use super::{
    answer::{Refusal, Reply},
    gate::Origin,
    role::Who,
    routes,
    shared::Shared,
    site,
};

/// How long a page waits for one answer, e.g. of a node that does not respond.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pages beside the API.
pub(crate) trait Pages: Send + Sync {
    /// Answers a request for anything that is not of the API. The `Host` was checked.
    fn answer<'a>(&'a self, visit: Visit<'a>) -> LocalBoxFuture<'a, HttpResponse>;
}

/// A request for a page.
pub(crate) struct Visit<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) origin: Origin,
    pub(crate) request: &'a HttpRequest,
    pub(super) payload: Payload,
}

impl Visit<'_> {
    /// The body.
    ///
    /// # Errors
    /// [`Refusal`] if it is too large, or too slow.
    pub(crate) async fn body(self) -> Result<Bytes, Refusal> {
        site::body(self.payload).await
    }
}

/// Calls the API for `who` within the program.
///
/// # Errors
/// [`Refusal`], as the API answers.
pub(crate) async fn call(
    shared: &Arc<Shared>,
    who: &Who,
    method: &Method,
    path: &str,
    query: BTreeMap<String, String>,
    body: Option<Value>,
) -> Result<Value, Refusal> {
    let found = routes::find(method, &format!("{}{path}", routes::BASE))?;
    found.allows(who)?;
    let reads = !found.takes_body();
    let answer = found.answer(Arc::clone(shared), who.clone(), query, body, None);
    // A change is not given up half way.
    let answer = match reads {
        true => {
            tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(Refusal::Busy("the answer takes too long")))
        }
        false => answer.await,
    };
    match answer? {
        Reply::Json(_, value) => Ok(value),
        Reply::Events(_) => Err(Refusal::NotFound("a stream is not a page".to_owned())),
    }
}
