//! One connection to one relay. It ends when the relay closes it, or closes a subscription; its keeper starts another.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, WeakAddr,
    WrapFuture,
};
use btcr2_aggregation_protocol::{key::XOnlyKey, nostr::advert_types, time::Timestamp};
use nostr_sdk::{
    Alphabet, Event, EventId, Filter, Kind, PublicKey, Relay, RelayMessage, RelayOptions, RelayPool,
    RelayPoolOptions, RelayStatus, RelayUrl, SingleLetterTag, SubscribeOptions, SubscriptionId,
    Timestamp as NostrTime,
    pool::{
        RelayLimits,
        policy::{AdmitPolicy, AdmitStatus, PolicyError},
        relay::{Error as RelayError, RelayNotification},
    },
    util::BoxedFuture,
};
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, timeout},
};

use super::{
    config::NostrConfig,
    connection::{Answered, Incoming, NostrConnection, RelayUp, RelayWorks},
};
use crate::supervisor::EndGuard;

const ADVERTS: &str = "adverts";
const DIRECTED: &str = "directed";

/// How many events a relay may send ahead of what is read of them.
const READ_AHEAD: usize = 256;

/// Most stored events that are put in order; a relay that has more gives the newest first, and those are as good as live.
const MOST_STORED: usize = 16_384;

/// Publish this event.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Publish {
    pub(super) job: u64,
    pub(super) event: Arc<Event>,
}

/// What a relay said of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted,
    /// It certainly has not got it.
    Refused(String),
    /// Nobody knows whether it has.
    Unknown(String),
}

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct Connected(Relay);

/// Which relay, and for whom.
#[derive(Clone)]
pub(super) struct Assignment {
    /// The relay's number in the configuration.
    pub(super) relay: usize,
    pub(super) url: RelayUrl,
    /// Which connection to it this is.
    pub(super) number: u64,
    /// Whose messages are subscribed to.
    pub(super) own: XOnlyKey,
    /// From when on adverts are read; `None` for all of them.
    pub(super) adverts_since: Option<Timestamp>,
}

pub(super) struct RelayActor {
    assignment: Assignment,
    config: Arc<NostrConfig>,
    keeper: WeakAddr<NostrConnection>,
    relay: Option<Relay>,
    queue: VecDeque<Publish>,
    in_flight: usize,
    _guard: EndGuard,
}

impl RelayActor {
    pub(super) fn new(
        assignment: Assignment,
        config: Arc<NostrConfig>,
        keeper: WeakAddr<NostrConnection>,
        guard: EndGuard,
    ) -> Self {
        Self { assignment, config, keeper, relay: None, queue: VecDeque::new(), in_flight: 0, _guard: guard }
    }

    fn publish_next(&mut self, ctx: &mut Context<Self>) {
        while self.in_flight < self.config.in_flight.max(1) {
            let (Some(relay), Some(publish)) = (&self.relay, self.queue.pop_front()) else { return };
            self.in_flight += 1;
            let (relay, patience) = (relay.clone(), self.config.publish_timeout);
            let publishing = async move {
                let answer = send(&relay, &publish.event, patience).await;
                (publish, answer)
            };
            ctx.spawn(publishing.into_actor(self).map(|(publish, answer), actor, ctx| {
                actor.in_flight -= 1;
                actor.answer(&publish, answer);
                actor.publish_next(ctx);
            }));
        }
    }

    fn answer(&self, publish: &Publish, answer: Answer) {
        if let Some(keeper) = self.keeper.upgrade() {
            let (relay, job) = (self.assignment.relay, publish.job);
            keeper.do_send(Answered { relay, job, event: publish.event.id, answer });
        }
    }
}

async fn send(relay: &Relay, event: &Event, patience: Duration) -> Answer {
    match timeout(patience, relay.send_event(event)).await {
        Ok(Ok(_)) => Answer::Accepted,
        // It has it already.
        Ok(Err(RelayError::RelayMessage(reason))) if reason.starts_with("duplicate:") => Answer::Accepted,
        Ok(Err(RelayError::RelayMessage(reason))) => Answer::Refused(reason),
        Ok(Err(error @ (RelayError::NotReady | RelayError::NotConnected))) => Answer::Refused(error.to_string()),
        Ok(Err(error)) => Answer::Unknown(error.to_string()),
        Err(_) => Answer::Unknown("no answer in time".to_owned()),
    }
}

impl Actor for RelayActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (assignment, config, keeper) = (self.assignment.clone(), Arc::clone(&self.config), self.keeper.clone());
        // Weak, or the actor would keep itself alive.
        let own = ctx.address().downgrade();
        let running = async move { run(&assignment, &config, &keeper, &own).await };
        ctx.spawn(running.into_actor(self).map(|why, actor, ctx| {
            let Assignment { relay, url, .. } = &actor.assignment;
            tracing::info!(%url, why, "a relay's connection ended");
            if let Some(keeper) = actor.keeper.upgrade() {
                keeper.do_send(super::connection::RelayProblem { relay: *relay, why });
            }
            ctx.stop();
        }));
    }
}

impl Handler<Connected> for RelayActor {
    type Result = ();

    fn handle(&mut self, Connected(relay): Connected, ctx: &mut Self::Context) {
        self.relay = Some(relay);
        if let Some(keeper) = self.keeper.upgrade() {
            let Assignment { relay, number, .. } = self.assignment;
            keeper.do_send(RelayUp { relay, number, publisher: ctx.address().recipient() });
        }
    }
}

impl Handler<Publish> for RelayActor {
    type Result = ();

    fn handle(&mut self, publish: Publish, ctx: &mut Self::Context) {
        if self.queue.len() >= self.config.outbox
            && let Some(oldest) = self.queue.pop_front()
        {
            self.answer(&oldest, Answer::Refused("the relay is too far behind".to_owned()));
        }
        self.queue.push_back(publish);
        self.publish_next(ctx);
    }
}

/// Hands events on in the order in which the relay sends them, and lets it wait when we cannot keep up. The SDK's own
/// notifications would be lost then; and it would keep every event in its database.
struct Tap(mpsc::Sender<Event>);

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

impl AdmitPolicy for Tap {
    fn admit_event<'a>(
        &'a self,
        _: &'a RelayUrl,
        _: &'a SubscriptionId,
        event: &'a Event,
    ) -> BoxedFuture<'a, Result<AdmitStatus, PolicyError>> {
        Box::pin(async move {
            // Nobody reads any more: the connection is ending.
            let _ = self.0.send(event.clone()).await;
            Ok(AdmitStatus::Rejected { reason: None })
        })
    }
}

/// Runs the connection; says why it ended.
async fn run(
    assignment: &Assignment,
    config: &NostrConfig,
    keeper: &WeakAddr<NostrConnection>,
    own: &WeakAddr<RelayActor>,
) -> String {
    let (events, mut arrived) = mpsc::channel(READ_AHEAD);
    // Authentication stays off: it would tell a relay no more than we do, but some then hide kind 1059 from us.
    let options = RelayPoolOptions::default().automatic_authentication(false);
    let pool = RelayPool::builder().opts(options).admit_policy(Tap(events)).build();
    // The SDK would connect again by itself, silently and on its own schedule.
    let options = RelayOptions::default().reconnect(false).limits(RelayLimits::default());
    let relay = match pool.add_relay(&assignment.url, options).await {
        Ok(_) => pool.relay(&assignment.url).await,
        Err(error) => Err(error),
    };
    let relay = match relay {
        Ok(relay) => relay,
        Err(error) => return error.to_string(),
    };
    let mut notifications = relay.notifications();
    if let Err(error) = relay.try_connect(config.connect_timeout).await {
        return error.to_string();
    }
    for (id, filter) in subscriptions(assignment) {
        let subscribed =
            relay.subscribe_with_id(SubscriptionId::new(id), filter, SubscribeOptions::default()).await;
        if let Err(error) = subscribed {
            return error.to_string();
        }
    }
    let Some(actor) = own.upgrade() else { return "not needed any more".to_owned() };
    actor.do_send(Connected(relay.clone()));
    drop(actor);

    let mut stored = Some(Stored::new(config.stored_timeout));
    loop {
        let deadline = stored.as_ref().map_or_else(|| Instant::now() + Duration::from_secs(3600), |s| s.deadline);
        tokio::select! {
            event = arrived.recv() => {
                let Some(event) = event else { return "the connection is gone".to_owned() };
                match &mut stored {
                    Some(buffer) if buffer.events.len() < MOST_STORED => buffer.events.push(event),
                    _ => if hand_on(assignment, keeper, event).await.is_err() {
                        return "not needed any more".to_owned();
                    },
                }
            }
            notification = notifications.recv() => match ended(notification) {
                Noted::Nothing => {}
                Noted::Ended(why) => return why,
                Noted::EndOfStored(id) => {
                    // What came before it has passed through the tap before.
                    while let (Some(buffer), Ok(event)) = (&mut stored, arrived.try_recv()) {
                        buffer.events.push(event);
                    }
                    let complete = stored.as_mut().is_some_and(|buffer| buffer.end_of(&id));
                    if complete && let Some(buffer) = stored.take() {
                        if replay(assignment, keeper, buffer).await.is_err() {
                            return "not needed any more".to_owned();
                        }
                        if let Some(keeper) = keeper.upgrade() {
                            keeper.do_send(RelayWorks { relay: assignment.relay });
                        }
                    }
                }
            },
            () = tokio::time::sleep_until(deadline), if stored.is_some() => {
                if let Some(buffer) = stored.take()
                    && replay(assignment, keeper, buffer).await.is_err()
                {
                    return "not needed any more".to_owned();
                }
            }
        }
    }
}

/// Nobody reads any more.
struct Unread;

async fn hand_on(assignment: &Assignment, keeper: &WeakAddr<NostrConnection>, event: Event) -> Result<(), Unread> {
    let keeper = keeper.upgrade().ok_or(Unread)?;
    let incoming = Incoming { relay: assignment.relay, event: Box::new(event) };
    keeper.send(incoming).await.map_err(|_| Unread)
}

async fn replay(
    assignment: &Assignment,
    keeper: &WeakAddr<NostrConnection>,
    mut stored: Stored,
) -> Result<(), Unread> {
    // Relays give the newest first. A round is told in the order in which it happened: within a second, requests come
    // before what answers them, which is the order of the phases in which the types are declared.
    stored.events.sort_by_key(|event| (event.created_at, super::reader::rank(event)));
    for event in stored.events {
        hand_on(assignment, keeper, event).await?;
    }
    Ok(())
}

/// What a relay had stored when we subscribed, until it says that this was all.
struct Stored {
    events: Vec<Event>,
    awaited: Vec<&'static str>,
    deadline: Instant,
}

impl Stored {
    fn new(patience: Duration) -> Self {
        Self { events: Vec::new(), awaited: vec![ADVERTS, DIRECTED], deadline: Instant::now() + patience }
    }

    /// Notes the end of one subscription's; says whether it was the last.
    fn end_of(&mut self, id: &str) -> bool {
        self.awaited.retain(|awaited| *awaited != id);
        self.awaited.is_empty()
    }
}

enum Noted {
    Nothing,
    EndOfStored(String),
    Ended(String),
}

fn ended(notification: Result<RelayNotification, broadcast::error::RecvError>) -> Noted {
    match notification {
        Ok(RelayNotification::Message { message: RelayMessage::EndOfStoredEvents(id) }) => {
            Noted::EndOfStored(id.to_string())
        }
        // Without its subscriptions a connection is worth nothing; asking again at once is what it was closed for.
        Ok(RelayNotification::Message { message: RelayMessage::Closed { message, .. } }) => {
            Noted::Ended(format!("the relay closed a subscription: {message}"))
        }
        Ok(RelayNotification::Message { message: RelayMessage::Notice(notice) }) => {
            tracing::info!(%notice, "a relay has something to say");
            Noted::Nothing
        }
        Ok(RelayNotification::RelayStatus { status })
            if matches!(status, RelayStatus::Terminated | RelayStatus::Disconnected) =>
        {
            Noted::Ended(format!("the relay is {status}"))
        }
        Ok(RelayNotification::Shutdown) | Err(broadcast::error::RecvError::Closed) => {
            Noted::Ended("shut down".to_owned())
        }
        // Answers to events may be among the lost ones; those count as unanswered.
        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => Noted::Nothing,
    }
}

/// The two subscriptions, as the wire format has them.
fn subscriptions(assignment: &Assignment) -> [(&'static str, Filter); 2] {
    let adverts =
        Filter::new().kind(Kind::TextNote).custom_tags(SingleLetterTag::lowercase(Alphabet::T), advert_types());
    let adverts = match assignment.adverts_since {
        Some(since) => adverts.since(NostrTime::from_secs(since.as_secs())),
        None => adverts,
    };
    let own = PublicKey::from_byte_array(assignment.own.to_bytes());
    let directed = Filter::new().kinds([Kind::TextNote, Kind::GiftWrap]).pubkey(own);
    [(ADVERTS, adverts), (DIRECTED, directed)]
}

/// The identifier of an event, for maps.
pub(super) type Id = EventId;
