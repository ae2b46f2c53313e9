//! The client: an identity's connection to one server.

use std::{sync::Arc, time::Duration};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, Recipient, WrapFuture,
};
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    did::Did,
    envelope::{Expected, ExpectedTo, ParsedEnvelope, SealedEnvelope},
    identity::Identity,
    message::{Body, Message, SharedBody},
    request_auth::{RequestAuthorization, inbox_path},
    time::Timestamp,
};
use futures::{Stream, StreamExt};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;
use reqwest::{Client, Response, StatusCode, Url, header};
use sse_stream::SseStream;
use tokio::sync::Notify;

use crate::{
    runtime::{Clock, Randomness},
    supervisor::EndGuard,
    transport::{ConnectError, Delivery, Disconnected, Outbound, Transport},
};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// How long a request may take, its answer included. Streams have no end, but must begin in that time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest event that is read. A CAS map of a thousand members takes 130 kB.
const LARGEST_EVENT: usize = 64 << 20;

/// How a client reaches its server.
#[derive(Clone)]
pub struct HttpClient {
    http: Client,
    base: Url,
    service: Option<Did>,
    clock: Clock,
    randomness: Randomness,
}

/// A base URL that cannot be one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{url}: {problem}")]
pub struct BaseUrlError {
    url: String,
    problem: String,
}

impl HttpClient {
    /// A client of the server at `base`, `https://example.org` or `https://example.org/agg` say. With `service`, nobody else
    /// is listened to; without, the adverts of any service there are.
    ///
    /// # Errors
    /// [`BaseUrlError`] when `base` is not an http(s) URL.
    pub fn new(
        base: &str,
        service: Option<Did>,
        clock: Clock,
        randomness: Randomness,
    ) -> Result<Self, BaseUrlError> {
        let refuse = |problem: &str| BaseUrlError { url: base.to_owned(), problem: problem.to_owned() };
        let parsed = Url::parse(base).map_err(|error| refuse(&error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(refuse("an http or https URL expected"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(refuse("a URL without query and fragment expected"));
        }
        let http = Client::builder()
            .connect_timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|error| refuse(&error.to_string()))?;
        Ok(Self { http, base: parsed, service, clock, randomness })
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }
}

#[async_trait]
impl Transport for HttpClient {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let guard = EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end }));
        let name = format!("http connection {} {} {connection}", self.base, identity.did());
        let actor = HttpConnection {
            shared: Arc::new(Shared { client: self.clone(), identity: identity.clone(), known: Notify::new() }),
            inbox,
            rng: self.randomness.for_actor(&name),
            name,
            queue: std::collections::VecDeque::new(),
            sending: false,
            idempotent: false,
            last_event_id: None,
            _guard: guard,
        };
        Ok(actor.start().recipient())
    }
}

struct Shared {
    client: HttpClient,
    identity: Identity,
    /// The server has taken a message of ours, so it knows our key: an inbox that was refused may be open now.
    known: Notify,
}

/// How many messages may wait to be sent.
const QUEUE: usize = 1024;

/// The connection: the inbox's stream, the adverts' stream, and a queue of what is to be sent.
struct HttpConnection {
    shared: Arc<Shared>,
    inbox: Recipient<Delivery>,
    rng: ChaCha20Rng,
    name: String,
    queue: std::collections::VecDeque<Job>,
    sending: bool,
    /// Whether the server says that a message may be sent again when no answer came.
    idempotent: bool,
    last_event_id: Option<String>,
    _guard: EndGuard,
}

struct Job {
    to: Did,
    body: SharedBody,
    until: Option<Timestamp>,
    backoff: Duration,
}

/// What a stream brought.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct Event {
    id: Option<String>,
    data: String,
    directed: bool,
}

/// What became of a request.
enum Sent {
    Accepted,
    /// Not now; certainly not taken.
    Later(String),
    /// Nobody knows whether it was taken.
    Unknown(String),
    /// Never.
    Refused(String),
}

impl HttpConnection {
    fn send_next(&mut self, ctx: &mut Context<Self>) {
        if self.sending {
            return;
        }
        let Some(job) = self.queue.pop_front() else { return };
        let shared = Arc::clone(&self.shared);
        let message = Message::new(shared.identity.did().clone(), Some(job.to.clone()), job.body.clone());
        let now = shared.client.clock.now();
        // Signed anew at each attempt: the bytes of the message stay, its timestamp must be of this minute.
        let sealed = SealedEnvelope::seal_with_rng(&message, shared.identity.secret_key(), now, &mut self.rng);
        let envelope = match sealed {
            Ok(envelope) => envelope.to_json(),
            Err(error) => return self.give_up(job, error.to_string(), ctx),
        };
        self.sending = true;
        let request = async move { post(&shared.client, envelope).await };
        ctx.spawn(request.into_actor(self).map(|sent, actor, ctx| {
            actor.sending = false;
            actor.sent(job, sent, ctx);
        }));
    }

    fn sent(&mut self, mut job: Job, sent: Sent, ctx: &mut Context<Self>) {
        let reason = match sent {
            Sent::Accepted => {
                self.shared.known.notify_waiters();
                return self.send_next(ctx);
            }
            Sent::Refused(reason) => return self.give_up(job, reason, ctx),
            // The other implementation's service fails its whole cohort at a second nonce or partial signature.
            Sent::Unknown(reason) if !self.idempotent && spent_by_repetition(&job.body) => {
                return self.give_up(
                    job,
                    format!("{reason}; it may have arrived, and must not be sent twice"),
                    ctx,
                );
            }
            Sent::Later(reason) | Sent::Unknown(reason) => reason,
        };
        let now = self.shared.client.clock.now();
        if job.until.is_some_and(|until| now >= until) {
            return self.give_up(job, format!("{reason}; nobody waits for it any more"), ctx);
        }
        tracing::info!(connection = self.name, %reason, "a message could not be delivered, trying again");
        let delay = jittered(job.backoff, &mut self.rng);
        job.backoff = (job.backoff * 2).min(LONGEST_BACKOFF);
        self.sending = true;
        ctx.run_later(delay, move |actor, ctx| {
            actor.sending = false;
            // In front: order is kept.
            actor.queue.push_front(job);
            actor.send_next(ctx);
        });
    }

    fn give_up(&mut self, job: Job, reason: String, ctx: &mut Context<Self>) {
        tracing::warn!(connection = self.name, kind = job.body.short_type(), %reason, "a message was not delivered");
        self.inbox.do_send(Delivery::Undeliverable { to: job.to, body: job.body, reason });
        self.send_next(ctx);
    }

    /// Reads a stream for as long as the connection lives, opening it again whenever it ends.
    fn read(&mut self, directed: bool, ctx: &mut Context<Self>) {
        let shared = Arc::clone(&self.shared);
        let address = ctx.address();
        let mut rng = self.shared.client.randomness.for_actor(&format!("{} stream {directed}", self.name));
        let connection = self.name.clone();
        let reading = async move {
            let mut backoff = FIRST_BACKOFF;
            loop {
                let after = if directed { address.send(LastEventId).await.ok().flatten() } else { None };
                match open(&shared, directed, after, &mut rng).await {
                    Ok(response) => {
                        backoff = FIRST_BACKOFF;
                        let mut events = SseStream::from_bytes_stream(bounded(response.bytes_stream().boxed()));
                        while let Some(event) = events.next().await {
                            match event {
                                Ok(event) => {
                                    let Some(data) = event.data else { continue };
                                    // Waits for room: the server's own queue bounds what waits there.
                                    if address.send(Event { id: event.id, data, directed }).await.is_err() {
                                        return;
                                    }
                                }
                                Err(error) => {
                                    tracing::info!(connection, %error, "a stream broke");
                                    break;
                                }
                            }
                        }
                    }
                    Err(reason) => tracing::info!(connection, reason, "a stream could not be opened"),
                }
                let delay = jittered(backoff, &mut rng);
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = shared.known.notified(), if directed => {}
                }
            }
        };
        ctx.spawn(reading.into_actor(self));
    }

    fn verify(&self, event: &Event) -> Result<Delivery, String> {
        let envelope = ParsedEnvelope::parse(&event.data).map_err(|error| error.to_string())?;
        let from = Did::parse(envelope.from()).map_err(|error| error.to_string())?;
        if self.shared.client.service.as_ref().is_some_and(|service| *service != from) {
            return Err(format!("{from} is not the service that we listen to"));
        }
        let key = from.key().ok_or("the sender's DID does not prove its key by itself")?;
        let to = if event.directed { ExpectedTo::Did(self.shared.identity.did()) } else { ExpectedTo::Broadcast };
        let expected = Expected { to, ..Expected::default() };
        envelope
            .verify(&key.x_only(), self.shared.client.clock.now(), &expected)
            .map_err(|error| error.to_string())?;
        if !envelope.sender_matches() {
            return Err("the message is not from the envelope's sender".to_owned());
        }
        Ok(match envelope.message() {
            Ok(message) => Delivery::Message(message),
            Err(error) => Delivery::Undecodable { from, error },
        })
    }
}

impl Actor for HttpConnection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(QUEUE);
        self.read(true, ctx);
        self.read(false, ctx);
        let shared = Arc::clone(&self.shared);
        let asking = async move { is_idempotent(&shared.client).await };
        ctx.spawn(asking.into_actor(self).map(|idempotent, actor, _| actor.idempotent = idempotent));
    }
}

#[derive(ActixMessage)]
#[rtype(result = "Option<String>")]
struct LastEventId;

impl Handler<LastEventId> for HttpConnection {
    type Result = Option<String>;

    fn handle(&mut self, _: LastEventId, _: &mut Self::Context) -> Self::Result {
        self.last_event_id.clone()
    }
}

impl Handler<Event> for HttpConnection {
    type Result = ();

    fn handle(&mut self, event: Event, ctx: &mut Self::Context) {
        if event.id.is_some() {
            self.last_event_id.clone_from(&event.id);
        }
        match self.verify(&event) {
            Ok(delivery) => {
                // Waits for room in the inbox: order is kept, and the stream waits with it.
                let delivered = self.inbox.send(delivery);
                ctx.wait(delivered.into_actor(self).map(|_, _, _| ()));
            }
            Err(reason) => tracing::warn!(connection = self.name, reason, "an envelope does not verify"),
        }
    }
}

impl Handler<Outbound> for HttpConnection {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, ctx: &mut Self::Context) {
        // A client's adverts would reach nobody: only identities that live at the server advertise there.
        let Outbound::Direct { to, body, until } = outbound else { return };
        let job = Job { to, body, until, backoff: FIRST_BACKOFF };
        if self.queue.len() >= QUEUE {
            return self.give_up(job, "too much waits to be sent".to_owned(), ctx);
        }
        self.queue.push_back(job);
        self.send_next(ctx);
    }
}

fn spent_by_repetition(body: &Body) -> bool {
    matches!(body, Body::NonceContribution(_) | Body::SignatureAuthorization(_))
}

async fn post(client: &HttpClient, envelope: String) -> Sent {
    let request = client
        .http
        .post(client.url("/v1/messages"))
        .header(header::CONTENT_TYPE, "application/json")
        .timeout(REQUEST_TIMEOUT)
        .body(envelope);
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Sent::Later(describe(&error)),
        Err(error) => return Sent::Unknown(describe(&error)),
    };
    let status = response.status();
    if status.is_success() {
        return Sent::Accepted;
    }
    let text = response.text().await.unwrap_or_default();
    let reason = format!("{status}: {}", text.chars().take(200).collect::<String>());
    match status {
        StatusCode::TOO_MANY_REQUESTS => Sent::Later(reason),
        status if status.is_client_error() => Sent::Refused(reason),
        StatusCode::SERVICE_UNAVAILABLE => Sent::Later(reason),
        _ => Sent::Unknown(reason),
    }
}

async fn open(
    shared: &Shared,
    directed: bool,
    after: Option<String>,
    rng: &mut ChaCha20Rng,
) -> Result<Response, String> {
    let client = &shared.client;
    let mut request = if directed {
        let did = shared.identity.did();
        let path = inbox_path(client.base.path(), did);
        let mut url = client.base.clone();
        url.set_path(&path);
        // Signed is the path as it goes out, whatever the URL type made of it.
        let authorization =
            RequestAuthorization::sign(did, shared.identity.secret_key(), url.path(), client.clock.now(), rng);
        client.http.get(url.clone()).header(header::AUTHORIZATION, authorization.to_string())
    } else {
        client.http.get(client.url("/v1/adverts"))
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

async fn is_idempotent(client: &HttpClient) -> bool {
    let request = client.http.get(client.url("/v1/.well-known/aggregation")).timeout(REQUEST_TIMEOUT);
    let Ok(response) = request.send().await else { return false };
    let Ok(text) = response.text().await else { return false };
    serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|document| document["idempotent"] == true)
}

/// Up to a fifth more or less, so that clients that were cut off together do not come back together.
fn jittered(delay: Duration, rng: &mut ChaCha20Rng) -> Duration {
    let fifth = delay / 5;
    let spread = rng.next_u32() % 2_001;
    delay - fifth + fifth * spread / 1_000
}

/// An error with its causes: reqwest's own text leaves out what went wrong.
fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
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
