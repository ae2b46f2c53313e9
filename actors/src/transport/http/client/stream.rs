//! A server's event streams, as bytes and as events.

use btcr2_aggregation_protocol::{
    identity::Identity,
    request_auth::{RequestAuthorization, inbox_path},
};
use futures::{Stream, StreamExt};
use rand_chacha::ChaCha20Rng;
use reqwest::{Response, header};
use sse_stream::{Sse, SseStream};

use super::{HttpClient, REQUEST_TIMEOUT};

/// The largest event that is read. A CAS map of a thousand members takes 130 kB.
const LARGEST_EVENT: usize = 64 << 20;

/// Opens the inbox of `identity`, or without one the adverts, behind the event `after`.
pub(super) async fn open(
    client: &HttpClient,
    identity: Option<&Identity>,
    after: Option<String>,
    rng: &mut ChaCha20Rng,
) -> Result<Response, String> {
    let mut request = match identity {
        Some(identity) => {
            let did = identity.did();
            let mut url = client.base.clone();
            url.set_path(&inbox_path(client.base.path(), did));
            // Signed is the path as it goes out, whatever the URL type made of it.
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
        .map_err(|_| "no answer in time".to_owned())?
        .map_err(|error| describe(&error))?;
    if response.status().is_success() { Ok(response) } else { Err(response.status().to_string()) }
}

/// The events of a stream.
pub(super) fn events(response: Response) -> impl Stream<Item = Result<Sse, String>> + Unpin {
    SseStream::from_bytes_stream(bounded(response.bytes_stream().boxed()))
        .map(|event| event.map_err(|error| error.to_string()))
}

/// The stream, ended with an error where one event is larger than [`LARGEST_EVENT`]: the parser would keep it all.
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

/// An error with its causes: reqwest's own text leaves out what went wrong.
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
