//! One connection to one relay. It ends when the relay closes it, or closes a subscription; its owner starts another.
//!
//! Directed messages are subscribed to first, and adverts only after the relay has sent the stored directed messages. A
//! relay stores the messages of rounds that have ended, and possibly their adverts: in this order the messages arrive
//! before a session of such a round can have been started, and are ignored.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, WeakAddr,
    WrapFuture,
};
use btcr2_aggregation_protocol::{key::XOnlyKey, nostr::advert_types, time::Timestamp};
use nostr_sdk::{
    Alphabet, Event, EventId, Filter, Kind, PublicKey, Relay, RelayOptions, RelayPool, RelayPoolOptions, RelayUrl,
    SingleLetterTag, SubscribeOptions, SubscriptionId, Timestamp as NostrTime,
    filter::MatchEventOptions,
    pool::{
        RelayLimits,
        policy::{AdmitPolicy, AdmitStatus, PolicyError},
        relay::Error as RelayError,
    },
    util::BoxedFuture,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    config::NostrConfig,
    connection::{Answered, Incoming, NostrConnection, RelayProblem, RelayUp, RelayWorks},
    noted::{Noted, Words, noted, with_words},
    report::shown,
    signer::Signer,
    socket::Sockets,
    stored::{Stored, replay},
};
use crate::{
    supervision::{EndGuard, InTree},
    transport::notify,
    tree::{self, Row},
};

/// Our subscriptions at a relay, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subscription {
    /// Messages to us.
    Directed,
    /// Messages to all.
    Adverts,
}

impl Subscription {
    const ALL: [Self; 2] = [Self::Directed, Self::Adverts];

    /// Unique among all connections: some relays have one map for all.
    fn id(self, assignment: &Assignment) -> SubscriptionId {
        let name = match self {
            Self::Directed => "directed",
            Self::Adverts => "adverts",
        };
        SubscriptionId::new(format!("{name}-{}", assignment.tag))
    }

    pub(super) fn with_id(id: &SubscriptionId, assignment: &Assignment) -> Option<Self> {
        Self::ALL.into_iter().find(|subscription| *id == subscription.id(assignment))
    }

    /// As the wire format specifies.
    fn filter(self, assignment: &Assignment) -> Filter {
        match self {
            Self::Directed => {
                let own = PublicKey::from_byte_array(assignment.own.to_bytes());
                Filter::new().kinds([Kind::TextNote, Kind::GiftWrap]).pubkey(own)
            }
            Self::Adverts => {
                let filter = Filter::new().kind(Kind::TextNote);
                let filter = filter.custom_tags(SingleLetterTag::lowercase(Alphabet::T), advert_types());
                match assignment.adverts_since {
                    Some(since) => filter.since(NostrTime::from_secs(since.as_secs())),
                    None => filter,
                }
            }
        }
    }
}

/// How many events a relay may send ahead of our reading.
const READ_AHEAD: usize = 256;

/// Why an event is not sent for which there is no space.
pub(super) const TOO_FAR_BEHIND: &str = "the relay is too far behind";

/// The maximum number of stored events that are sorted. A relay that has more sends the newest first, and those are
/// treated as live.
const MOST_STORED: usize = 16_384;

/// Publish this event.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Publish {
    pub(super) job: u64,
    pub(super) event: Arc<Event>,
}

/// A relay's answer to an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted,
    /// The relay does not have it.
    Refused(String),
    /// The relay may have it.
    Unknown(String),
}

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct Connected(Relay);

/// The relay has sent a text.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct TextReceived(Words);

/// The maximum time between a notice and a failure that it may explain.
const EXPLAINS: Duration = Duration::from_secs(30);

/// The relay, and the identity that uses it.
#[derive(Clone)]
pub(super) struct Assignment {
    /// The relay's number in the configuration.
    pub(super) relay: usize,
    pub(super) url: RelayUrl,
    /// The number of this connection to it.
    pub(super) number: u64,
    /// A part of its subscriptions' identifiers.
    pub(super) tag: String,
    /// The recipient whose messages are subscribed to.
    pub(super) own: XOnlyKey,
    /// Answers the relay's requests for authentication.
    pub(super) signer: Arc<Signer>,
    /// The earliest time of adverts; `None` for all adverts.
    pub(super) adverts_since: Option<Timestamp>,
}

pub(super) struct RelayActor {
    assignment: Assignment,
    config: Arc<NostrConfig>,
    sockets: Sockets,
    keeper: WeakAddr<NostrConnection>,
    relay: Option<Relay>,
    queue: VecDeque<Publish>,
    in_flight: usize,
    /// The last notice, until it is shown.
    notice: Option<(Instant, String)>,
    /// When an event was last refused or not answered.
    failed: Option<Instant>,
    _guard: EndGuard,
}

impl RelayActor {
    pub(super) fn new(
        assignment: Assignment,
        config: Arc<NostrConfig>,
        sockets: Sockets,
        keeper: WeakAddr<NostrConnection>,
        guard: EndGuard,
    ) -> Self {
        Self {
            assignment,
            config,
            sockets,
            keeper,
            relay: None,
            queue: VecDeque::new(),
            in_flight: 0,
            notice: None,
            failed: None,
            _guard: guard,
        }
    }

    fn publish_next(&mut self, ctx: &mut Context<Self>) {
        while self.in_flight < self.config.in_flight.max(1) {
            let (Some(relay), Some(publish)) = (&self.relay, self.queue.pop_front()) else { return };
            self.in_flight += 1;
            let (relay, patience) = (relay.clone(), self.config.publish_timeout);
            let (keeper, number) = (self.keeper.clone(), self.assignment.relay);
            let publishing = async move {
                let Publish { job, event } = publish;
                let answer = send(&relay, &event, patience).await;
                let accepted = answer == Answer::Accepted;
                notify(&keeper, Answered { relay: number, job, event: event.id, answer }).await;
                accepted
            };
            ctx.spawn(publishing.into_actor(self).map(|accepted, actor, ctx| {
                actor.in_flight -= 1;
                if !accepted {
                    actor.has_failed();
                }
                actor.publish_next(ctx);
            }));
        }
    }

    /// An event was refused, or not answered.
    fn has_failed(&mut self) {
        self.failed = Some(Instant::now());
        self.explain();
    }

    /// Shows a notice that may explain a failure. Other notices are not shown.
    fn explain(&mut self) {
        let is_recent = |at: &Instant| at.elapsed() < EXPLAINS;
        if self.failed.as_ref().is_some_and(is_recent)
            && let Some((_, notice)) = self.notice.take_if(|(at, _)| is_recent(at))
        {
            self.show(&notice);
        }
    }

    fn show(&self, words: &str) {
        self.config.contacts.relay_says(&shown(&self.assignment.url), words);
    }
}

async fn send(relay: &Relay, event: &Event, patience: Duration) -> Answer {
    match timeout(patience, relay.send_event(event)).await {
        Ok(Ok(_)) => Answer::Accepted,
        // The relay has it already.
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
        ctx.set_mailbox_capacity(self.config.outbox.max(tree::RELAY.mailbox));
        let (assignment, config, keeper) = (self.assignment.clone(), Arc::clone(&self.config), self.keeper.clone());
        let sockets = self.sockets.clone();
        // A weak reference: a strong one would keep the actor running.
        let own = ctx.address().downgrade();
        let running = async move {
            let why = run(&assignment, &config, &sockets, &keeper, &own).await;
            notify(&keeper, RelayProblem { relay: assignment.relay, why: why.clone() }).await;
            why
        };
        ctx.spawn(running.into_actor(self).map(|why, _, ctx| {
            tracing::info!(why, "a relay's connection ended");
            ctx.stop();
        }));
    }
}

impl InTree for RelayActor {
    const ROW: &'static Row = &tree::RELAY;
}

impl Handler<Connected> for RelayActor {
    type Result = ();

    fn handle(&mut self, Connected(relay): Connected, ctx: &mut Self::Context) {
        self.relay = Some(relay);
        let Assignment { relay, number, .. } = self.assignment;
        let up = RelayUp { relay, number, publisher: ctx.address().recipient() };
        ctx.wait(notify(&self.keeper, up).into_actor(self));
    }
}

impl Handler<TextReceived> for RelayActor {
    type Result = ();

    fn handle(&mut self, TextReceived(words): TextReceived, _: &mut Self::Context) {
        let text = words.to_string();
        tracing::debug!(text, "a relay sent a notice");
        match words {
            Words::Notice(_) => {
                self.notice = Some((Instant::now(), text));
                self.explain();
            }
            Words::Refusal(_) => self.show(&text),
            // If the relay refuses the subscription permanently, the end of the connection reports this text.
            Words::Closed(_) => {}
        }
    }
}

impl Handler<Publish> for RelayActor {
    type Result = ();

    fn handle(&mut self, publish: Publish, ctx: &mut Self::Context) {
        if self.queue.len() >= self.config.outbox
            && let Some(oldest) = self.queue.pop_front()
        {
            self.has_failed();
            let (relay, answer) = (self.assignment.relay, Answer::Refused(TOO_FAR_BEHIND.to_owned()));
            let answered = Answered { relay, job: oldest.job, event: oldest.event.id, answer };
            ctx.wait(notify(&self.keeper, answered).into_actor(self));
        }
        self.queue.push_back(publish);
        self.publish_next(ctx);
    }
}

/// Passes events on in the order in which the relay sends them, and makes it wait if we are too slow. The SDK's own
/// notifications would be lost then, and it would store every event in its database.
struct Tap {
    events: mpsc::Sender<(Subscription, Event)>,
    subscriptions: [(SubscriptionId, Subscription, Filter); 2],
}

impl Tap {
    fn new(events: mpsc::Sender<(Subscription, Event)>, assignment: &Assignment) -> Self {
        let subscriptions = Subscription::ALL.map(|what| (what.id(assignment), what, what.filter(assignment)));
        Self { events, subscriptions }
    }

    /// The subscription for which the event was requested. If a relay sends other events as well, their authors are not
    /// at fault, and the events are not read.
    fn asked_for(&self, id: &SubscriptionId, event: &Event) -> Option<Subscription> {
        let (_, what, filter) = self.subscriptions.iter().find(|(known, ..)| known == id)?;
        filter.match_event(event, MatchEventOptions::new()).then_some(*what)
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

impl AdmitPolicy for Tap {
    fn admit_event<'a>(
        &'a self,
        _: &'a RelayUrl,
        id: &'a SubscriptionId,
        event: &'a Event,
    ) -> BoxedFuture<'a, Result<AdmitStatus, PolicyError>> {
        Box::pin(async move {
            if let Some(subscription) = self.asked_for(id, event) {
                // An error means that the reader is gone: the connection is ending.
                let _ = self.events.send((subscription, event.clone())).await;
            }
            Ok(AdmitStatus::Rejected { reason: None })
        })
    }
}

/// Runs the connection; returns why it ended.
async fn run(
    assignment: &Assignment,
    config: &NostrConfig,
    sockets: &Sockets,
    keeper: &WeakAddr<NostrConnection>,
    own: &WeakAddr<RelayActor>,
) -> String {
    let (events, mut arrived) = mpsc::channel(READ_AHEAD);
    // Only a relay that requests authentication learns our identity.
    let options = RelayPoolOptions::default().automatic_authentication(true);
    let mut builder = RelayPool::builder()
        .opts(options)
        .admit_policy(Tap::new(events, assignment))
        .websocket_transport(sockets.clone());
    builder.__signer = Some(Arc::<Signer>::clone(&assignment.signer));
    let pool = builder.build();
    // The SDK would reconnect by itself, silently and on its own schedule.
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
    if let Err(error) = subscribe(&relay, Subscription::Directed, assignment).await {
        return error.to_string();
    }
    notify(own, Connected(relay.clone())).await;

    let mut stored = Some(Stored::new(Subscription::Directed, config.stored_timeout));
    let mut awaited = Subscription::ALL.to_vec();
    let mut works = false;
    // The relay's latest text.
    let mut text: Option<String> = None;
    loop {
        let deadline = stored.as_ref().map_or_else(|| Instant::now() + Duration::from_secs(3600), |s| s.deadline);
        let mut complete = false;
        tokio::select! {
            event = arrived.recv() => {
                let Some((subscription, event)) = event else { return "the connection is gone".to_owned() };
                if take(assignment, keeper, &mut stored, subscription, event).await.is_err() {
                    return UNREAD.to_owned();
                }
            }
            notification = notifications.recv() => match noted(notification, assignment) {
                Noted::Nothing => {}
                Noted::Ended(why) => return with_words(&why, text.as_deref()),
                Noted::Text(words) => {
                    text = Some(words.to_string());
                    notify(own, TextReceived(words)).await;
                }
                Noted::EndOfStored(subscription) => {
                    // Earlier events have passed through the tap before.
                    while let Ok((subscription, event)) = arrived.try_recv() {
                        if take(assignment, keeper, &mut stored, subscription, event).await.is_err() {
                            return UNREAD.to_owned();
                        }
                    }
                    awaited.retain(|awaited| *awaited != subscription);
                    complete = stored.as_ref().is_some_and(|stored| stored.of == subscription);
                }
            },
            // A relay that does not report the end of its stored events must not delay a cohort.
            () = tokio::time::sleep_until(deadline), if stored.is_some() => {
                complete = true;
                let time = config.stored_timeout.as_secs();
                let why = with_words(&format!("it has not answered a subscription in {time} s"), text.as_deref());
                notify(keeper, RelayProblem { relay: assignment.relay, why }).await;
            }
        }
        if complete && let Some(buffer) = stored.take() {
            let of = buffer.of;
            if replay(assignment, keeper, buffer).await.is_err() {
                return UNREAD.to_owned();
            }
            if of == Subscription::Directed {
                if let Err(error) = subscribe(&relay, Subscription::Adverts, assignment).await {
                    return error.to_string();
                }
                stored = Some(Stored::new(Subscription::Adverts, config.stored_timeout));
            }
        }
        if !works && awaited.is_empty() {
            works = true;
            notify(keeper, RelayWorks { relay: assignment.relay }).await;
        }
    }
}

async fn subscribe(relay: &Relay, what: Subscription, assignment: &Assignment) -> Result<(), RelayError> {
    let (id, filter) = (what.id(assignment), what.filter(assignment));
    relay.subscribe_with_id(id, filter, SubscribeOptions::default()).await.map(|_| ())
}

/// Why a connection ends whose owner is gone.
const UNREAD: &str = "not needed any more";

/// The reader is gone.
pub(super) struct Unread;

/// Collects the stored events until all have arrived; passes on all others.
async fn take(
    assignment: &Assignment,
    keeper: &WeakAddr<NostrConnection>,
    stored: &mut Option<Stored>,
    subscription: Subscription,
    event: Event,
) -> Result<(), Unread> {
    match stored {
        Some(stored) if stored.of == subscription && stored.events.len() < MOST_STORED => {
            stored.events.push(event);
            Ok(())
        }
        _ => forward(assignment, keeper, event).await,
    }
}

pub(super) async fn forward(
    assignment: &Assignment,
    keeper: &WeakAddr<NostrConnection>,
    event: Event,
) -> Result<(), Unread> {
    let keeper = keeper.upgrade().ok_or(Unread)?;
    let incoming = Incoming { relay: assignment.relay, event: Box::new(event) };
    keeper.send(incoming).await.map_err(|_| Unread)
}

/// The identifier of an event, for maps.
pub(super) type Id = EventId;
