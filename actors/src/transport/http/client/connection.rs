//! The connection of one identity: the inbox's stream, the adverts' stream, and a queue of what is to be sent.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, MessageResult,
    Recipient, WrapFuture,
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
    HttpClient, Place, REQUEST_TIMEOUT,
    answer::{Answer, Verdict, reason, verdict},
    lock,
    stream::{NotOpened, describe, events, open},
};
use crate::{
    supervision::{EndGuard, InTree},
    transport::{Delivery, Outbound, contact::Purpose, hand_over},
    tree::{self, Row},
};

/// How many messages may wait to be sent.
const QUEUE: usize = tree::HTTP_CONNECTION.mailbox;

/// A stream that ends so soon, without an event, was refused: the TypeScript implementation refuses an inbox by opening it and
/// closing it.
const AT_ONCE: Duration = Duration::from_secs(5);

pub(super) struct HttpConnection {
    client: HttpClient,
    identity: Identity,
    inbox: Recipient<Delivery>,
    place: Arc<Mutex<Place>>,
    rng: ChaCha20Rng,
    name: String,
    /// Whether the first job of the queue is under way, or waits for its next attempt.
    sending: bool,
    /// How many messages the server has taken. With one, it may know a key that it did not know before, so that an inbox
    /// that was refused may be open now.
    accepted: watch::Sender<u64>,
    _guard: EndGuard,
}

/// A message that is to be sent.
pub(super) struct Job {
    to: Did,
    body: SharedBody,
    until: Option<Timestamp>,
    failures: u32,
    /// An attempt is under way.
    under_way: bool,
    /// An attempt had no answer: the server may have the message.
    uncertain: bool,
    /// Why the last attempt failed.
    reason: String,
}

/// What a stream brought.
#[derive(ActixMessage)]
#[rtype(result = "Reading")]
struct Event {
    id: Option<String>,
    data: String,
    directed: bool,
}

/// What its reader does next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    GoOn,
    /// Opens the stream again: what is replayed is signed anew.
    OpenAgain,
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

/// Why an envelope is not handed over.
enum Unverified {
    /// It was signed too long ago, or too far in the future.
    Stale(String),
    Wrong(String),
}

impl HttpConnection {
    pub(super) fn new(
        client: HttpClient,
        identity: Identity,
        inbox: Recipient<Delivery>,
        name: String,
        guard: EndGuard,
    ) -> Self {
        let place = client.place(identity.did());
        if let Some(job) = lock(&place).queue.front_mut()
            && std::mem::take(&mut job.under_way)
        {
            // The connection before this one ended in the middle of it.
            job.uncertain = true;
        }
        let rng = client.randomness.for_actor(&name);
        let accepted = watch::Sender::new(0);
        Self { client, identity, inbox, place, rng, name, sending: false, accepted, _guard: guard }
    }

    fn queue<T>(&self, change: impl FnOnce(&mut VecDeque<Job>) -> T) -> T {
        change(&mut lock(&self.place).queue)
    }

    fn send_next(&mut self, ctx: &mut Context<Self>) {
        while !self.sending {
            let now = self.client.clock.now();
            let over = |job: &Job| job.until.is_some_and(|until| now >= until);
            if let Some(job) =
                self.queue(|queue| if queue.front().is_some_and(over) { queue.pop_front() } else { None })
            {
                let reason = if job.reason.is_empty() { "it was not sent in time" } else { &job.reason };
                let reason = format!("{reason}; nobody waits for it any more");
                self.give_up(job, reason);
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
            // Signed anew at each attempt: the bytes of the message stay, its timestamp must be of this minute.
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
                        self.give_up(job, error.to_string());
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
                // A refusal is an answer.
                self.client.contacts.reached(self.client.base.as_str(), Purpose::Messages);
                if let Some(job) = self.queue(VecDeque::pop_front) {
                    self.give_up(job, reason);
                }
            }
            Sent::Later(reason) | Sent::Unknown(reason) => return self.try_later(reason, uncertain, ctx),
        }
        self.send_next(ctx);
    }

    /// The first job stays the first, so that order is kept.
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
        // No longer than somebody waits for it: that it was not delivered is told then.
        let left = until.map(|until| until.since(self.client.clock.now()));
        self.sending = true;
        ctx.run_later(left.map_or(delay, |left| delay.min(left)), |actor, ctx| {
            actor.sending = false;
            actor.send_next(ctx);
        });
    }

    fn give_up(&self, job: Job, reason: String) {
        tracing::warn!(connection = self.name, kind = job.body.short_type(), reason, "a message was not delivered");
        self.inbox.do_send(Delivery::Undeliverable { to: job.to, body: job.body, reason });
    }

    /// Reads a stream for as long as the connection lives, opening it again whenever it ends.
    fn read(&mut self, directed: bool, ctx: &mut Context<Self>) {
        let (client, place) = (self.client.clone(), Arc::clone(&self.place));
        let identity = directed.then(|| self.identity.clone());
        let address = ctx.address();
        let mut accepted = self.accepted.subscribe();
        let awaits_opt_in = directed && self.identity.did().key().is_none();
        let mut rng = client.randomness.for_actor(&format!("{} stream {directed}", self.name));
        let connection = self.name.clone();
        let reading = async move {
            let mut failures = 0;
            loop {
                // Before it is opened: what is accepted while the answer is on its way counts.
                accepted.borrow_and_update();
                let after = if directed { lock(&place).read.reopen() } else { None };
                let opened = open(&client, identity.as_ref(), after, &mut rng).await;
                let peer = client.base.as_str();
                let purpose = if directed { Purpose::Inbox } else { Purpose::Adverts };
                // An accepted message may change a refusal, but not a stream that was served and then broke.
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
                            // Waits for room: the server's own queue bounds what waits there.
                            match address.send(Event { id: event.id, data, directed }).await {
                                // Only now: a server may also refuse by opening a stream and closing it.
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
                        // An EXTERNAL DID has no inbox before its opt-in: nobody can know its key.
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
            return Err(wrong(format!("{from} is not the service that we listen to")));
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
                    "what {from} says was signed at {signed} by its clock, and it is {} by ours, more than {most} s \
                     apart: are both clocks right?",
                    now.as_secs()
                ))
            }
            error => wrong(format!("an envelope of {from}: {error}")),
        })?;
        if !envelope.sender_matches() {
            return Err(wrong(format!("an envelope of {from} holds somebody else's message")));
        }
        Ok(match envelope.message_among(&[&from, self.identity.did()]) {
            Ok(message) => Delivery::Message(message.into()),
            Err(error) => Delivery::Undecodable { from, error },
        })
    }

    /// Whether to open the stream again for an event that is too old: a server signs anew what it replays. Not twice for the
    /// same event, for everything behind it would wait.
    fn asks_again(&self, event: &Event) -> bool {
        let mut place = lock(&self.place);
        let again = event.directed && event.id.is_some() && place.stale_event_id != event.id;
        if again {
            place.stale_event_id.clone_from(&event.id);
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
                self.inbox.do_send(Delivery::Unverified { reason });
                if self.asks_again(&event) {
                    return MessageResult(Reading::OpenAgain);
                }
                return MessageResult(Reading::GoOn);
            }
            Err(Unverified::Wrong(reason)) => {
                self.inbox.do_send(Delivery::Unverified { reason });
                return MessageResult(Reading::GoOn);
            }
        };
        let place = Arc::clone(&self.place);
        let number = event.id.map(|id| lock(&place).read.began(id));
        let over = move || number.into_iter().for_each(|number| lock(&place).read.over(number));
        // Waits for room in the inbox: order is kept, and the stream waits with it.
        let delivered = hand_over(&self.inbox, delivery, over);
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
        // A client's adverts would reach nobody: only identities that live at the server advertise there.
        let Outbound::Direct { to, body, until } = outbound else { return };
        let reason = String::new();
        let job = Job { to, body, until, failures: 0, under_way: false, uncertain: false, reason };
        if self.queue(|queue| queue.len()) >= QUEUE {
            return self.give_up(job, "too much waits to be sent".to_owned());
        }
        self.queue(|queue| queue.push_back(job));
        self.send_next(ctx);
    }
}

/// The TypeScript implementation's service fails its whole cohort at a second one of these.
fn spent_by_repetition(body: &Body) -> bool {
    matches!(body, Body::NonceContribution(_) | Body::SignatureAuthorization(_))
}

/// One attempt. With `ask_first`, the message may be there already and must arrive only once, unless the server says that
/// it takes no harm.
async fn attempt(client: &HttpClient, envelope: String, ask_first: bool) -> Sent {
    if ask_first {
        match is_idempotent(client).await {
            Ok(true) => {}
            Ok(false) => {
                let reason = "no answer came; it may have arrived, and must not be sent twice";
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
    let status = response.status();
    let body = Answer::read(response).await;
    match verdict(status, &body) {
        Verdict::Accepted => Sent::Accepted,
        Verdict::Refused => Sent::Refused(reason(status, &body)),
        Verdict::NotTaken => Sent::Later(reason(status, &body)),
        Verdict::Unknown => Sent::Unknown(reason(status, &body)),
    }
}

/// Whether the server says that a message may be sent again when no answer came. A server that has no such document says no;
/// a proxy's answer is no word of the server's.
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
