//! An identity's connection, which owns its relay actors.

mod arrivals;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient, prelude::SendError};
use btcr2_aggregation_protocol::{
    id::CohortId,
    identity::Identity,
    message::Message,
    nostr::{SealError, retract, seal},
    time::Timestamp,
};
use nostr_sdk::{Event, JsonUtil};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

use super::{
    Inner,
    config::NostrConfig,
    outbox::{Adverts, Content, Job, Next, Outbox},
    reader::Reader,
    relay::{Answer, Assignment, Id, Publish, RelayActor, TOO_FAR_BEHIND},
    report::shown,
    signer::Signer,
};
use crate::{
    log_limiter::LogLimiter,
    span,
    supervision::{End, EndGuard, InTree, start},
    transport::{Delivery, Inbox, Outbound, contact::Purpose, is_for_a_member},
    tree::{self, Row},
};

/// How many seconds older than needed the adverts may be that a connection asks for. It differs by connection.
const MAX_EXTRA_LOOK_BACK: u32 = 256;

/// How often expired events are removed.
const SWEEP: Duration = Duration::from_secs(60);

/// The maximum number of adverts that one event retracts: it has 18 kB then, which relays accept.
const RETRACTED_AT_ONCE: usize = 256;

/// An event arrived.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Incoming {
    pub(super) relay: usize,
    pub(super) event: Box<Event>,
}

/// A relay is connected and subscribed to.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct RelayUp {
    pub(super) relay: usize,
    pub(super) number: u64,
    pub(super) publisher: Recipient<Publish>,
}

/// A relay has answered our subscriptions.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct RelayWorks {
    pub(super) relay: usize,
}

/// Why a relay's connection is about to end.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct RelayProblem {
    pub(super) relay: usize,
    pub(super) why: String,
}

/// A relay's actor has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct RelayGone {
    relay: usize,
    number: u64,
    end: End,
}

/// A relay has answered an event.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Answered {
    pub(super) relay: usize,
    pub(super) job: u64,
    pub(super) event: Id,
    pub(super) answer: Answer,
}

/// The slot of a relay, which outlives its actors.
struct Slot {
    actor: Option<Addr<RelayActor>>,
    publisher: Option<Recipient<Publish>>,
    number: u64,
    failures: u32,
    /// Whether it has answered our subscriptions.
    works: bool,
}

pub(super) struct NostrConnection {
    inner: Arc<Inner>,
    config: Arc<NostrConfig>,
    identity: Identity,
    inbox: Inbox,
    name: String,
    rng: ChaCha20Rng,
    signer: Arc<Signer>,
    reader: Reader,
    adverts_since: Option<Timestamp>,
    outbox: Outbox,
    adverts: Adverts,
    slots: Vec<Slot>,
    /// Messages that wait for their next attempt.
    waiting: BTreeSet<u64>,
    /// The authors whose malformed events were reported recently.
    malformed: LogLimiter<arrivals::Author>,
    _guard: EndGuard,
}

impl NostrConnection {
    pub(super) fn new(inner: Arc<Inner>, identity: Identity, inbox: Inbox, name: String, guard: EndGuard) -> Self {
        let config = Arc::new(inner.config.clone());
        let now = inner.clock.now();
        let adverts_since = (!config.look_back.is_zero()).then(|| now - config.look_back);
        let reader = Reader::new(identity.clone(), &config, inner.introduced.clone(), now, adverts_since);
        let slot = || Slot { actor: None, publisher: None, number: 0, failures: 0, works: false };
        let slots = inner.urls.iter().map(|_| slot()).collect();
        Self {
            rng: inner.randomness.for_actor(&name),
            signer: Arc::new(Signer::new(identity.clone(), inner.randomness.for_actor(&format!("{name} signer")))),
            outbox: Outbox::new(config.outbox),
            adverts: Adverts::default(),
            waiting: BTreeSet::new(),
            malformed: LogLimiter::new(arrivals::MOST_AUTHORS),
            inner,
            config,
            identity,
            inbox,
            name,
            reader,
            adverts_since,
            slots,
            _guard: guard,
        }
    }

    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    fn start_relay(&mut self, relay: usize, ctx: &mut Context<Self>) {
        let (Some(slot), Some(url)) = (self.slots.get_mut(relay), self.inner.urls.get(relay)) else { return };
        slot.number += 1;
        let number = slot.number;
        // A weak reference: a strong one in the relays' actors would keep this actor running.
        let keeper = ctx.address().downgrade();
        let gone = keeper.clone();
        let guard = EndGuard::new(move |end| {
            if let Some(keeper) = gone.upgrade() {
                // Beyond the bound of the mailbox: there is one for each relay, until its next actor is started.
                keeper.do_send(RelayGone { relay, number, end });
            }
        });
        let own = self.identity.public_key().x_only();
        // Some relays repeat their answer to an equal filter for a while, whatever has arrived in between. Adverts that are older than
        // needed are ignored.
        let earlier = Duration::from_secs((self.rng.next_u32() % MAX_EXTRA_LOOK_BACK).into());
        let adverts_since = self.adverts_since.map(|since| since - earlier);
        let tag = format!("{:016x}", self.rng.next_u64());
        let signer = Arc::clone(&self.signer);
        let assignment = Assignment { relay, url: url.clone(), number, tag, own, signer, adverts_since };
        let span = span::relay(&shown(url), self.identity.did());
        let actor =
            RelayActor::new(assignment, Arc::clone(&self.config), self.inner.sockets.clone(), keeper, guard);
        slot.actor = Some(start(span, |_| actor));
    }

    /// Signs a job's event anew: the content is the same, the time is now.
    fn seal(&mut self, id: u64) -> Result<bool, SealError> {
        let now = self.inner.clock.now();
        let Some(job) = self.outbox.get_mut(id) else { return Ok(false) };
        let key = self.identity.secret_key();
        let event = match &job.content {
            Content::Message { to, body } => {
                let peer = match to {
                    Some(to) => match self.reader.peer(to, is_for_a_member(body)) {
                        Some(peer) => Some(peer),
                        // Its opt-in may still be among the stored events.
                        None => return Ok(false),
                    },
                    None => None,
                };
                let message = Message::new(self.identity.did().clone(), to.clone(), body.clone());
                seal(&message, key, peer.as_deref(), now, &mut self.rng)?
            }
            Content::Retraction { adverts } => retract(adverts, key, now, &mut self.rng),
        };
        if let Some(cohort_id) = job.content.advert_of() {
            self.adverts.note(cohort_id, event.id);
        }
        job.event = Some(Arc::new(event));
        Ok(true)
    }

    /// Queues a message or a retraction, and publishes it.
    fn take_up(&mut self, content: Content, until: Option<Timestamp>, ctx: &mut Context<Self>) {
        let now = self.now();
        let job = Job::new(content, until, now + self.config.keep);
        let (id, dropped) = self.outbox.insert(job, now);
        if let Some(dropped) = dropped {
            self.undelivered(dropped, "too many messages wait to be sent", ctx);
        }
        self.is_under_way(id, ctx);
        self.publish(id, ctx);
    }

    /// Until a relay has accepted a message, the relays are responsible for its absence, not the member.
    fn is_under_way(&self, id: u64, ctx: &mut Context<Self>) {
        let Some((to, body)) = self.outbox.get(id).and_then(Job::directed) else { return };
        let (cohort_id, kind) = (body.cohort_id().clone(), body.short_type());
        let names: Vec<_> = self.inner.urls.iter().map(shown).collect();
        let reason = format!("{}: no answer yet", names.join(", "));
        self.inbox.report(Delivery::Delayed { to: to.clone(), cohort_id, kind, reason }, ctx);
    }

    /// New participants must not join this cohort: relays are asked to remove its adverts.
    fn withdraw_advert(&mut self, cohort_id: &CohortId, ctx: &mut Context<Self>) {
        self.outbox.withdraw(cohort_id);
        let until = self.now() + self.config.keep;
        for adverts in self.adverts.take(cohort_id).chunks(RETRACTED_AT_ONCE) {
            self.take_up(Content::Retraction { adverts: adverts.to_vec() }, Some(until), ctx);
        }
    }

    /// Signs a message and sends it to every connected relay.
    fn publish(&mut self, id: u64, ctx: &mut Context<Self>) {
        match self.seal(id) {
            Ok(true) => {
                for relay in 0..self.slots.len() {
                    self.publish_to(relay, id);
                }
            }
            Ok(false) => {}
            Err(error) => return self.give_up(id, &error.to_string(), ctx),
        }
        if self.outbox.is_stuck(id) {
            self.retry_later(id, ctx);
        }
    }

    fn publish_to(&mut self, relay: usize, id: u64) {
        let Some(publisher) = self.slots.get(relay).and_then(|slot| slot.publisher.as_ref()) else { return };
        let Some(job) = self.outbox.get(id) else { return };
        if job.content.advert().is_some_and(|advert| !self.inner.carries(relay, advert)) {
            return;
        }
        let Some(event) = job.event.clone() else { return };
        match publisher.try_send(Publish { job: id, event }) {
            Ok(()) => self.outbox.asked(id, relay),
            Err(SendError::Full(Publish { event, .. })) => {
                let refused = Answer::Refused(TOO_FAR_BEHIND.to_owned());
                self.outbox.answered(id, relay, event.id, refused);
            }
            // Its end is about to be reported.
            Err(SendError::Closed(_)) => {}
        }
    }

    fn retry_later(&mut self, id: u64, ctx: &mut Context<Self>) {
        let backoff = self.config.backoff();
        let Some(job) = self.outbox.get_mut(id) else { return };
        if !self.waiting.insert(id) {
            return;
        }
        job.failures = job.failures.saturating_add(1);
        let delay = backoff.jittered(job.failures, self.rng.next_u32());
        let name = |relay: usize| self.inner.urls.get(relay).map(shown).unwrap_or_default();
        if let Some((to, body)) = job.directed() {
            let (cohort_id, kind) = (body.cohort_id().clone(), body.short_type());
            let reason = match job.reasons_by_relay(name) {
                reason if job.was_refused() => reason,
                reason => {
                    format!("{reason} ({})", self.inner.urls.iter().map(shown).collect::<Vec<_>>().join(", "))
                }
            };
            self.inbox.report(Delivery::Delayed { to: to.clone(), cohort_id, kind, reason }, ctx);
        }
        let (kind, reasons) = (job.content.kind(), job.reasons());
        if job.was_refused() {
            tracing::info!(connection = self.name, kind, reasons, "no relay has accepted an event, trying again");
        } else {
            // As at every start, before the first relay is connected.
            tracing::debug!(connection = self.name, kind, "no relay is connected yet, an event waits");
        }
        ctx.run_later(delay, move |actor, ctx| actor.retry(id, ctx));
    }

    fn retry(&mut self, id: u64, ctx: &mut Context<Self>) {
        self.waiting.remove(&id);
        if !self.outbox.is_stuck(id) {
            return;
        }
        let now = self.now();
        let Some(job) = self.outbox.get_mut(id) else { return };
        if job.until.is_some_and(|until| now >= until) {
            let reason = format!("{}; its time is over", job.reasons());
            return self.give_up(id, &reason, ctx);
        }
        if job.event.is_some() && job.maybe_out && job.is_spent_by_repetition() {
            for relay in 0..self.slots.len() {
                self.publish_to(relay, id);
            }
            if self.outbox.is_stuck(id) {
                self.retry_later(id, ctx);
            }
            return;
        }
        self.publish(id, ctx);
    }

    fn give_up(&mut self, id: u64, reason: &str, ctx: &mut Context<Self>) {
        if let Some(job) = self.outbox.remove(id) {
            self.undelivered(job, reason, ctx);
        }
    }

    fn undelivered(&self, job: Job, reason: &str, ctx: &mut Context<Self>) {
        tracing::warn!(connection = self.name, kind = job.content.kind(), reason, "an event was not delivered");
        // The next repetition of an advert may succeed, and a retraction is optional.
        let Content::Message { to: Some(to), body } = job.content else { return };
        self.inbox.report(Delivery::Undeliverable { to, body, reason: reason.to_owned() }, ctx);
    }
}

impl Actor for NostrConnection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        for relay in 0..self.slots.len() {
            self.start_relay(relay, ctx);
        }
        ctx.run_interval(SWEEP, |actor, _| {
            let now = actor.now();
            actor.outbox.expire(now);
        });
    }
}

impl InTree for NostrConnection {
    const ROW: &'static Row = &tree::NOSTR_CONNECTION;
}

impl Handler<Outbound> for NostrConnection {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, ctx: &mut Self::Context) {
        match outbound {
            Outbound::Direct { to, body, until } => {
                self.take_up(Content::Message { to: Some(to), body }, until, ctx);
            }
            Outbound::Broadcast { body } => {
                // A repetition replaces the previous advert.
                self.outbox.withdraw(body.cohort_id());
                self.take_up(Content::Message { to: None, body }, None, ctx);
            }
            Outbound::WithdrawAdvert { cohort_id } => self.withdraw_advert(&cohort_id, ctx),
        }
    }
}

impl Handler<RelayUp> for NostrConnection {
    type Result = ();

    fn handle(&mut self, RelayUp { relay, number, publisher }: RelayUp, _: &mut Self::Context) {
        let Some(slot) = self.slots.get_mut(relay).filter(|slot| slot.number == number) else { return };
        slot.publisher = Some(publisher);
        self.inner.reports.note(relay, |report| {
            report.connected += 1;
            report.connections += 1;
        });
        // It may have been disconnected, or have lost its events. The same events are sent again: a relay that has one
        // ignores it.
        for id in self.outbox.all() {
            self.publish_to(relay, id);
        }
    }
}

impl Handler<RelayWorks> for NostrConnection {
    type Result = ();

    fn handle(&mut self, RelayWorks { relay }: RelayWorks, _: &mut Self::Context) {
        let Some(slot) = self.slots.get_mut(relay) else { return };
        slot.failures = 0;
        if !std::mem::replace(&mut slot.works, true) {
            self.inner.reports.note(relay, |report| report.subscribed += 1);
            // Not earlier: a relay that accepts connections and nothing else is useless.
            if let Some(url) = self.inner.urls.get(relay) {
                self.inner.config.contacts.reached(&shown(url), Purpose::Relay);
            }
        }
    }
}

impl Handler<RelayProblem> for NostrConnection {
    type Result = ();

    fn handle(&mut self, RelayProblem { relay, why }: RelayProblem, _: &mut Self::Context) {
        if let Some(url) = self.inner.urls.get(relay) {
            self.inner.config.contacts.failed(&shown(url), Purpose::Relay, &why);
        }
        self.inner.reports.note(relay, |report| report.last_problem = Some(why));
    }
}

impl Handler<RelayGone> for NostrConnection {
    type Result = ();

    fn handle(&mut self, RelayGone { relay, number, end }: RelayGone, ctx: &mut Self::Context) {
        let Some(slot) = self.slots.get_mut(relay).filter(|slot| slot.number == number) else { return };
        if end == End::Panicked {
            tracing::error!(connection = self.name, relay, "a relay's actor panicked");
        }
        let (was_up, worked) = (slot.publisher.take().is_some(), std::mem::take(&mut slot.works));
        slot.actor = None;
        slot.failures = slot.failures.saturating_add(1);
        let delay = self.config.backoff().jittered(slot.failures, self.rng.next_u32());
        self.inner.reports.note(relay, |report| {
            report.failures += 1;
            report.connected -= u64::from(was_up);
            report.subscribed -= u64::from(worked);
        });
        for id in self.outbox.lost(relay) {
            self.retry_later(id, ctx);
        }
        ctx.run_later(delay, move |actor, ctx| actor.start_relay(relay, ctx));
    }
}

impl Handler<Answered> for NostrConnection {
    type Result = ();

    fn handle(&mut self, Answered { relay, job, event, answer }: Answered, ctx: &mut Self::Context) {
        self.inner.reports.note(relay, |report| match &answer {
            Answer::Accepted => report.accepted += 1,
            Answer::Refused(reason) => {
                report.refused += 1;
                report.last_problem = Some(reason.clone());
            }
            Answer::Unknown(reason) => {
                report.unanswered += 1;
                report.last_problem = Some(reason.clone());
            }
        });
        let url = self.inner.urls.get(relay);
        tracing::debug!(connection = self.name, relay = url.map(shown), %event, ?answer, "answered");
        if let Answer::Refused(reason) = &answer
            && super::is_about_size(reason)
            && let Some(refused) = self.outbox.get_mut(job).and_then(|job| job.event.clone())
            && refused.id == event
        {
            self.inner.was_too_large(relay, refused.as_json().len());
        }
        let accepted = answer == Answer::Accepted;
        if accepted
            && let Some(new) = self.outbox.get_mut(job).filter(|job| !job.is_accepted())
            && let Some((to, body)) = new.directed()
        {
            let (cohort_id, kind) = (body.cohort_id().clone(), body.short_type());
            self.inbox.report(Delivery::Delivered { to: to.clone(), cohort_id, kind }, ctx);
        }
        if self.outbox.answered(job, relay, event, answer) == Next::Retry {
            self.retry_later(job, ctx);
        }
    }
}
