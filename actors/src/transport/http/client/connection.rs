//! The connection of one identity: the inbox's stream, the adverts' stream, and a queue of messages to send.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, MessageResult,
    WrapFuture,
};
use btcr2_aggregation_protocol::{
    did::Did,
    envelope::{CLOCK_SKEW, EnvelopeError, Expected, ExpectedTo, ParsedEnvelope, SealedEnvelope},
    identity::Identity,
    message::{Body, Message, SharedBody},
    time::Timestamp,
};
use futures::StreamExt;
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;
use reqwest::{StatusCode, header};
use tokio::{sync::watch, time::Instant};

use super::{
    HttpClient, REQUEST_TIMEOUT, Slot,
    answer::{Answer, Verdict, reason, verdict},
    lock,
    stream::{NotOpened, describe, events, open},
};
use crate::{
    supervision::{EndGuard, InTree},
    transport::{Delivery, Inbox, Outbound, contact::Purpose},
    tree::{self, Row},
};

/// The maximum number of messages in the queue.
const QUEUE: usize = tree::HTTP_CONNECTION.mailbox;

/// A stream that ends within this time, without an event, was refused: the TypeScript implementation refuses an inbox
/// by opening the stream and closing it.
const AT_ONCE: Duration = Duration::from_secs(5);

pub(super) struct HttpConnection {
    client: HttpClient,
    identity: Identity,
    inbox: Inbox,
    slot: Arc<Mutex<Slot>>,
    rng: ChaCha20Rng,
    name: String,
    /// Whether the first job of the queue is being sent, or waits for its next attempt.
    sending: bool,
    /// The number of messages that the server has accepted. With a message the server may learn a new key, so that an
    /// inbox that was refused may be accepted afterwards.
    accepted: watch::Sender<u64>,
    _guard: EndGuard,
}

/// A message to send.
pub(super) struct Job {
    to: Did,
    body: SharedBody,
    until: Option<Timestamp>,
    failures: u32,
    /// An attempt is in progress.
    under_way: bool,
    /// An attempt had no answer: the server may have the message.
    uncertain: bool,
    /// Why the last attempt failed.
    reason: String,
}

/// An event of a stream.
#[derive(ActixMessage)]
#[rtype(result = "Reading")]
struct Event {
    id: Option<String>,
    data: String,
    directed: bool,
}

/// The reader's next step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    GoOn,
    /// Opens the stream again: replayed events have new signatures.
    OpenAgain,
}

/// The result of a request.
enum Sent {
    Accepted,
    /// Not accepted; it can be sent again.
    Later(String),
    /// It may have been accepted.
    Unknown(String),
    /// Refused permanently.
    Refused(String),
}

/// Why an envelope is not delivered.
enum Unverified {
    /// It was signed too long ago, or too far in the future.
    Stale(String),
    Wrong(String),
}

impl HttpConnection {
    pub(super) fn new(client: HttpClient, identity: Identity, inbox: Inbox, name: String, guard: EndGuard) -> Self {
        let slot = client.slot(identity.did());
        if let Some(job) = lock(&slot).queue.front_mut()
            && std::mem::take(&mut job.under_way)
        {
            // The previous connection ended during the attempt.
            job.uncertain = true;
        }
        let rng = client.randomness.for_actor(&name);
        let accepted = watch::Sender::new(0);
        Self { client, identity, inbox, slot, rng, name, sending: false, accepted, _guard: guard }
    }

    fn queue<T>(&self, change: impl FnOnce(&mut VecDeque<Job>) -> T) -> T {
        change(&mut lock(&self.slot).queue)
    }

    fn send_next(&mut self, ctx: &mut Context<Self>) {
        while !self.sending {
            let now = self.client.clock.now();
            let over = |job: &Job| job.until.is_some_and(|until| now >= until);
            if let Some(job) =
                self.queue(|queue| if queue.front().is_some_and(over) { queue.pop_front() } else { None })
            {
                let reason = if job.reason.is_empty() { "it was not sent in time" } else { &job.reason };
                let reason = format!("{reason}; its time is over");
                self.give_up(job, reason, ctx);
                continue;
            }
            let next = self.queue(|queue| {
                queue.front_mut().map(|job| {
                    job.under_way = true;
                    (job.to.clone(), job.body.clone(), job.uncertain && spent_by_repetition(&job.body))
                })
            });
            let Some((to, body, ask_first)) = next else { return };
            let message = Message::new(self.identity.did().clone(), Some(to), body);
            // Each attempt is signed anew: the bytes of the message are the same, but the timestamp must be recent.
            let key = self.identity.secret_key();
            match SealedEnvelope::seal_with_rng(&message, key, now, &mut self.rng) {
                Ok(envelope) => {
                    self.sending = true;
                    let (client, envelope) = (self.client.clone(), envelope.to_json());
                    let attempt = async move { attempt(&client, envelope, ask_first).await };
                    ctx.spawn(attempt.into_actor(self).map(|sent, actor, ctx| {
                        actor.sending = false;
                        actor.sent(sent, ctx);
                    }));
                }
                Err(error) => {
                    if let Some(job) = self.queue(VecDeque::pop_front) {
                        self.give_up(job, error.to_string(), ctx);
                    }
                }
            }
        }
    }

    fn sent(&mut self, sent: Sent, ctx: &mut Context<Self>) {
        let uncertain = matches!(sent, Sent::Unknown(_));
        match sent {
            Sent::Accepted => {
                self.client.contacts.reached(self.client.base.as_str(), Purpose::Messages);
                self.queue(VecDeque::pop_front);
                self.accepted.send_modify(|accepted| *accepted += 1);
            }
            Sent::Refused(reason) => {
                // A refusal is an answer too.
                self.client.contacts.reached(self.client.base.as_str(), Purpose::Messages);
                if let Some(job) = self.queue(VecDeque::pop_front) {
                    self.give_up(job, reason, ctx);
                }
            }
            Sent::Later(reason) | Sent::Unknown(reason) => return self.try_later(reason, uncertain, ctx),
        }
        self.send_next(ctx);
    }

    /// The job remains the first in the queue, so that the order is preserved.
    fn try_later(&mut self, reason: String, uncertain: bool, ctx: &mut Context<Self>) {
        tracing::info!(connection = self.name, reason, "a message could not be delivered, trying again");
        self.client.contacts.failed(self.client.base.as_str(), Purpose::Messages, &reason);
        let failed = self.queue(|queue| {
            queue.front_mut().map(|job| {
                job.under_way = false;
                job.uncertain |= uncertain;
                job.failures += 1;
                job.reason = reason;
                (job.failures, job.until)
            })
        });
        let Some((failures, until)) = failed else { return };
        let delay = self.client.backoff.jittered(failures, self.rng.next_u32());
        // At most until the sender stops waiting, so that the failure is reported then.
        let left = until.map(|until| until.since(self.client.clock.now()));
        self.sending = true;
        ctx.run_later(left.map_or(delay, |left| delay.min(left)), |actor, ctx| {
            actor.sending = false;
            actor.send_next(ctx);
        });
    }

    fn give_up(&self, job: Job, reason: String, ctx: &mut Context<Self>) {
        tracing::warn!(connection = self.name, kind = job.body.short_type(), reason, "a message was not delivered");
        self.inbox.report(Delivery::Undeliverable { to: job.to, body: job.body, reason }, ctx);
    }

    /// Reads a stream until the connection ends, and opens it again whenever the stream ends.
    fn read(&mut self, directed: bool, ctx: &mut Context<Self>) {
        let (client, slot) = (self.client.clone(), Arc::clone(&self.slot));
        let identity = directed.then(|| self.identity.clone());
        let address = ctx.address();
        let mut accepted = self.accepted.subscribe();
        let awaits_opt_in = directed && self.identity.did().key().is_none();
        let mut rng = client.randomness.for_actor(&format!("{} stream {directed}", self.name));
        let connection = self.name.clone();
        let reading = async move {
            let mut failures = 0;
            loop {
                // Before the stream is opened: messages that are accepted while the answer is on its way count.
                accepted.borrow_and_update();
                let after = if directed { lock(&slot).read.reopen() } else { None };
                let opened = open(&client, identity.as_ref(), after, &mut rng).await;
                let peer = client.base.as_str();
                let purpose = if directed { Purpose::Inbox } else { Purpose::Adverts };
                // An accepted message may change a refusal, but not a stream that was opened and then failed.
                let mut refused = true;
                match opened {
                    Ok(response) => {
                        client.contacts.reached(peer, purpose);
                        let opened = Instant::now();
                        let (contacts, at) = (client.contacts.clone(), peer.to_owned());
                        let mut events = events(response, move |words| contacts.reads_too_slowly(&at, words));
                        while let Some(event) = events.next().await {
                            let event = match event {
                                Ok(event) => event,
                                Err(error) => {
                                    tracing::info!(connection, error, "a stream broke");
                                    break;
                                }
                            };
                            let Some(data) = event.data else { continue };
                            refused = false;
                            // Waits for space: the server's own queue bounds the events that wait there.
                            match address.send(Event { id: event.id, data, directed }).await {
                                // Not earlier: a server may also refuse by opening a stream and closing it.
                                Ok(Reading::GoOn) => failures = 0,
                                Ok(Reading::OpenAgain) => break,
                                Err(_) => return,
                            }
                        }
                        refused &= opened.elapsed() < AT_ONCE;
                        if refused && !awaits_opt_in {
                            client.contacts.failed(peer, purpose, "it opens the stream and closes it at once");
                        }
                    }
                    Err(NotOpened { reason, unauthorized }) => {
                        tracing::info!(connection, reason, "a stream could not be opened");
                        // An EXTERNAL DID has no inbox before its opt-in: its key cannot be known.
                        if !(awaits_opt_in && unauthorized) {
                            client.contacts.failed(peer, purpose, &reason);
                        }
                    }
                }
                failures += 1;
                let delay = client.backoff.jittered(failures, rng.next_u32());
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    Ok(()) = accepted.changed(), if directed && refused => failures = 0,
                }
            }
        };
        ctx.spawn(reading.into_actor(self));
    }

    fn verify(&self, event: &Event) -> Result<Delivery, Unverified> {
        let wrong = |reason: String| Unverified::Wrong(reason);
        let envelope = ParsedEnvelope::parse(&event.data).map_err(|error| wrong(error.to_string()))?;
        let from = Did::parse(envelope.from()).map_err(|error| wrong(error.to_string()))?;
        if self.client.service.as_ref().is_some_and(|service| *service != from) {
            return Err(wrong(format!("{from} is not the service of this connection")));
        }
        let key =
            from.key().ok_or_else(|| wrong("the sender's DID does not prove its key by itself".to_owned()))?;
        let to = if event.directed { ExpectedTo::Did(self.identity.did()) } else { ExpectedTo::Broadcast };
        let expected = Expected { to, ..Expected::default() };
        let now = self.client.clock.now();
        envelope.verify(&key.x_only(), now, &expected).map_err(|error| match error {
            EnvelopeError::TimestampSkew => {
                let (signed, most) = (envelope.timestamp().unwrap_or_default().as_secs(), CLOCK_SKEW.as_secs());
                Unverified::Stale(format!(
                    "{from} signed a message at {signed} by its clock, and it is {} by ours, more than {most} s \
                     apart: are both clocks right?",
                    now.as_secs()
                ))
            }
            error => wrong(format!("an envelope of {from}: {error}")),
        })?;
        if !envelope.sender_matches() {
            return Err(wrong(format!("an envelope of {from} contains the message of another sender")));
        }
        Ok(match envelope.into_message_among(&[&from, self.identity.did()]) {
            Ok(message) => Delivery::Message(message.into()),
            Err(error) => Delivery::Undecodable { from, error },
        })
    }

    /// Whether to open the stream again for an event that is too old: a server signs replayed events anew. Not twice
    /// for the same event, because all events after it would wait.
    fn asks_again(&self, event: &Event) -> bool {
        let mut slot = lock(&self.slot);
        let again = event.directed && event.id.is_some() && slot.stale_event_id != event.id;
        if again {
            slot.stale_event_id.clone_from(&event.id);
        }
        again
    }
}

impl Actor for HttpConnection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.read(true, ctx);
        self.read(false, ctx);
        self.send_next(ctx);
    }
}

impl InTree for HttpConnection {
    const ROW: &'static Row = &tree::HTTP_CONNECTION;
}

impl Handler<Event> for HttpConnection {
    type Result = MessageResult<Event>;

    fn handle(&mut self, event: Event, ctx: &mut Self::Context) -> Self::Result {
        let delivery = match self.verify(&event) {
            Ok(delivery) => delivery,
            Err(Unverified::Stale(reason)) => {
                self.inbox.report(Delivery::Unverified { reason }, ctx);
                if self.asks_again(&event) {
                    return MessageResult(Reading::OpenAgain);
                }
                return MessageResult(Reading::GoOn);
            }
            Err(Unverified::Wrong(reason)) => {
                self.inbox.report(Delivery::Unverified { reason }, ctx);
                return MessageResult(Reading::GoOn);
            }
        };
        let slot = Arc::clone(&self.slot);
        let number = event.id.map(|id| lock(&slot).read.began(id));
        let over = move || number.into_iter().for_each(|number| lock(&slot).read.over(number));
        // Waits for space in the inbox: the order is preserved, and the stream waits.
        let delivered = self.inbox.deliver_then(delivery, over);
        ctx.wait(delivered.into_actor(self).map(|delivered, _, ctx| {
            if delivered.is_err() {
                ctx.stop();
            }
        }));
        MessageResult(Reading::GoOn)
    }
}

impl Handler<Outbound> for HttpConnection {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, ctx: &mut Self::Context) {
        // A client's adverts have no readers: only identities of the server advertise there.
        let Outbound::Direct { to, body, until } = outbound else { return };
        let reason = String::new();
        let job = Job { to, body, until, failures: 0, under_way: false, uncertain: false, reason };
        if self.queue(|queue| queue.len()) >= QUEUE {
            return self.give_up(job, "too many messages wait to be sent".to_owned(), ctx);
        }
        self.queue(|queue| queue.push_back(job));
        self.send_next(ctx);
    }
}

/// The TypeScript implementation's service fails its whole cohort at the second message of these types.
fn spent_by_repetition(body: &Body) -> bool {
    matches!(body, Body::NonceContribution(_) | Body::SignatureAuthorization(_))
}

/// One attempt. With `ask_first`, the server may have the message already; it is only sent if the server reports that
/// it accepts repetitions.
async fn attempt(client: &HttpClient, envelope: String, ask_first: bool) -> Sent {
    if ask_first {
        match is_idempotent(client).await {
            Ok(true) => {}
            Ok(false) => {
                let reason = "there was no answer; it may have arrived, and must not be sent twice";
                return Sent::Refused(reason.to_owned());
            }
            Err(reason) => return Sent::Later(reason),
        }
    }
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
    client.compares_clocks(&response);
    let status = response.status();
    let body = Answer::read(response).await;
    match verdict(status, &body) {
        Verdict::Accepted => Sent::Accepted,
        Verdict::Refused => Sent::Refused(reason(status, &body)),
        Verdict::NotTaken => Sent::Later(reason(status, &body)),
        Verdict::Unknown => Sent::Unknown(reason(status, &body)),
    }
}

/// Whether the server reports that a message may be sent again after a missing answer. A server without such a document
/// does not; a proxy's answer does not count.
async fn is_idempotent(client: &HttpClient) -> Result<bool, String> {
    let request = client.http.get(client.url("/v1/.well-known/aggregation")).timeout(REQUEST_TIMEOUT);
    let response = request.send().await.map_err(|error| describe(&error))?;
    let status = response.status();
    let answer = Answer::read(response).await;
    match answer.json() {
        Some(document) if status.is_success() => Ok(document["idempotent"] == true),
        Some(document) if status == StatusCode::NOT_FOUND && document["error"].is_string() => Ok(false),
        _ => Err(reason(status, &answer)),
    }
}
