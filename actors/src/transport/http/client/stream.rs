//! A server's event streams, as bytes and as events.

use btcr2_aggregation_protocol::{
    identity::Identity,
    request_auth::{RequestAuthorization, inbox_path},
};
use futures::{Stream, StreamExt, TryStreamExt};
use rand_chacha::ChaCha20Rng;
use reqwest::{Response, StatusCode, header};
use sse_stream::{Sse, SseStream};

use super::{
    HttpClient, REQUEST_TIMEOUT,
    answer::{Answer, excerpt, reason},
    comments::{self, Comments},
};
use crate::transport::http::Refusal;

/// The maximum size of an event. A CAS map of a thousand members takes 130 kB.
const LARGEST_EVENT: usize = 64 << 20;

/// The stream could not be opened.
pub(super) struct NotOpened {
    pub(super) reason: String,
    /// The server itself reports that it does not know the reader, or that the signature is wrong.
    pub(super) unauthorized: bool,
}

impl NotOpened {
    fn because(reason: String) -> Self {
        Self { reason, unauthorized: false }
    }
}

/// Opens the inbox of `identity`, or the adverts without one, after the event `after`.
pub(super) async fn open(
    client: &HttpClient,
    identity: Option<&Identity>,
    after: Option<String>,
    rng: &mut ChaCha20Rng,
) -> Result<Response, NotOpened> {
    let mut request = match identity {
        Some(identity) => {
            let did = identity.did();
            let mut url = client.base.clone();
            url.set_path(&inbox_path(client.base.path(), did));
            // The path is signed as it is sent, after the URL type has normalized it.
            let (key, now) = (identity.secret_key(), client.clock.now());
            let authorization = RequestAuthorization::sign(did, key, url.path(), now, rng);
            client.http.get(url).header(header::AUTHORIZATION, authorization.to_string())
        }
        None => client.http.get(client.url("/v1/adverts")),
    };
    if let Some(after) = after {
        request = request.header("last-event-id", after);
    }
    let opening = request.header(header::ACCEPT, "text/event-stream").send();
    let response = tokio::time::timeout(REQUEST_TIMEOUT, opening)
        .await
        .map_err(|_| NotOpened::because("no answer in time".to_owned()))?
        .map_err(|error| NotOpened::because(describe(&error)))?;
    client.compares_clocks(&response);
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if status.is_success() && kind.to_ascii_lowercase().starts_with("text/event-stream") {
        return Ok(response);
    }
    let kind = if status.is_success() { format!(" ({})", excerpt(kind)) } else { String::new() };
    let answer = Answer::read(response).await;
    Err(NotOpened {
        reason: format!("{}{kind}", reason(status, &answer)),
        unauthorized: status == StatusCode::UNAUTHORIZED && answer.error() == Some(Refusal::Unauthorized.code()),
    })
}

/// The events of a stream. `too_slow` is called when the server reports that they are read too slowly.
pub(super) fn events(
    response: Response,
    mut too_slow: impl FnMut(&str) + 'static,
) -> impl Stream<Item = Result<Sse, String>> + Unpin {
    let mut comments = Comments::default();
    let bytes = response.bytes_stream().inspect_ok(move |chunk| {
        for comment in comments.ended_in(chunk) {
            comments::too_slow(&comment).into_iter().for_each(&mut too_slow);
        }
    });
    SseStream::from_bytes_stream(bounded(bytes.boxed_local())).map(|event| event.map_err(|error| error.to_string()))
}

/// The stream, ended with an error if an event is larger than [`LARGEST_EVENT`]: the parser would buffer all of it.
fn bounded<B: AsRef<[u8]>, E: std::error::Error + Send + Sync + 'static>(
    bytes: impl Stream<Item = Result<B, E>>,
) -> impl Stream<Item = Result<B, std::io::Error>> {
    let mut since_break = 0_usize;
    bytes.map(move |chunk| {
        let chunk = chunk.map_err(std::io::Error::other)?;
        match chunk.as_ref().windows(2).rposition(|pair| pair == b"\n\n") {
            Some(end) => since_break = chunk.as_ref().len() - end,
            None => since_break += chunk.as_ref().len(),
        }
        if since_break > LARGEST_EVENT { Err(std::io::Error::other("an event is too large")) } else { Ok(chunk) }
    })
}

/// An error with its causes: reqwest's own text omits the cause.
pub(super) fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
