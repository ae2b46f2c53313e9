//! A member of standing cohorts: it reads adverts under a key of its own, asks for seats, and has an actor for each of them. A seat has an
//! identity, and a link to the transport, of its own.

mod driven;
mod enrolling;
mod fetch;
mod history;
mod host;
mod moving;
mod restored;
mod seat;
mod serving;

use std::{collections::BTreeMap, sync::Arc};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Supervised,
    WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        BoardReader, SeatSeed, SharedBoards, StandingTerms, Succession,
        message::{StandingAdvert, StandingMessage},
        seat::{Seat, SeatConfig, SeatEvent},
    },
    did::Did,
    id::CohortId,
    identity::Identity,
    key::{KeyError, PublicKey, SecretKey},
    machine::Machine,
    message::Body,
    network::Network,
    output::{KeyAggregator, MemoizedAggregator},
};

pub(crate) use self::host::{LiveSeats, Restored, SeatSnapshot, ToSeat};
pub use self::host::{SeatRequest, SeatSummary};
use self::seat::{AdvertisedAgain, SeatActor, SeatKeys, StartMode};
use super::{
    ChainView,
    boards::{BoardStore, MemoryBoards},
    notice::SeatNotice,
    policy::{SeatPolicy, StandingOffer},
};
use crate::{
    journal::{Journal, JournalError, MemoryJournal, StreamKind},
    notice::Notices,
    runtime::{Clock, Randomness},
    supervision::{End, EndGuard, InTree, Lease, RestartIntensity, Restarts, replay},
    transport::{Delivery, Transport, link::Link},
    tree::{self, Row},
};

/// How many notices a subscriber may fall behind.
const NOTICES: usize = 1 << 14;

/// The most seats of a member, in all its cohorts.
const MOST_SEATS: usize = 1_024;

/// The most offers that are considered at once: any peer can make one.
const MOST_OFFERS: usize = 64;

/// The parts of a member of standing cohorts.
#[derive(Clone)]
pub struct MemberSettings {
    /// The secret from which its keys follow.
    pub seed: Arc<SeatSeed>,
    /// The Bitcoin network.
    pub network: Network,
    /// How it reaches services.
    pub transport: Arc<dyn Transport>,
    /// The decisions of its controller.
    pub policy: Arc<dyn SeatPolicy>,
    /// Where boards are stored.
    pub boards: Arc<dyn BoardStore>,
    /// Reads boards.
    pub reader: Arc<dyn BoardReader>,
    /// The chain; without one the host reports spent coins itself.
    pub chain: Option<ChainView>,
    /// Whether the journal was restored from a backup, which a host states once, at the first start after that. What a seat may have signed
    /// since the backup is not in it: until every coin that the beacon address has now is spent by a final transaction, it submits only what the
    /// journal has. That is stored in the journal. Needs a chain.
    pub restored: bool,
    /// The key aggregation.
    pub aggregator: Arc<dyn KeyAggregator>,
    /// Where events are stored.
    pub journal: Arc<dyn Journal>,
    /// The time.
    pub clock: Clock,
    /// The randomness.
    pub randomness: Randomness,
    /// Where its notices are published.
    pub notices: Notices<SeatNotice>,
    /// How often an actor that panics is restarted.
    pub restarts: RestartIntensity,
}

impl MemberSettings {
    /// A member that stores nothing beyond the process.
    pub fn new(
        seed: Arc<SeatSeed>,
        network: Network,
        transport: Arc<dyn Transport>,
        policy: Arc<dyn SeatPolicy>,
    ) -> Self {
        Self {
            seed,
            network,
            transport,
            policy,
            boards: Arc::new(MemoryBoards::default()),
            reader: Arc::new(SharedBoards::default()),
            chain: None,
            restored: false,
            aggregator: Arc::new(MemoizedAggregator::default()),
            journal: Arc::new(MemoryJournal::new()),
            clock: Clock::system(),
            randomness: Randomness::System,
            notices: Notices::new(NOTICES),
            restarts: RestartIntensity::default(),
        }
    }

    /// The identity under which it reads adverts.
    ///
    /// # Errors
    /// [`KeyError`], with a probability of 2^-128.
    pub fn listener(&self) -> Result<Identity, KeyError> {
        Ok(Identity::from_key(self.seed.listening_key(self.network)?, self.network))
    }

    fn keys(&self, service: &Did, cohort_id: &CohortId) -> Result<SeatKeys, KeyError> {
        let seat: SecretKey = self.seed.seat_key(self.network, service, cohort_id)?;
        let communication = self.seed.communication_key(self.network, service, cohort_id)?;
        Ok(SeatKeys { seat: Arc::new(seat), identity: Identity::from_key(communication, self.network) })
    }

    fn config(
        &self,
        service: &Did,
        service_key: PublicKey,
        cohort_id: &CohortId,
        terms: Arc<StandingTerms>,
        keys: &SeatKeys,
    ) -> Arc<SeatConfig> {
        Arc::new(SeatConfig {
            terms,
            policy: self.policy.standing_policy(),
            service: service.clone(),
            service_key,
            cohort_id: cohort_id.clone(),
            seat: keys.seat.public_key(),
            aggregator: Arc::clone(&self.aggregator),
            seed: Arc::clone(&self.seed),
            boards: Arc::clone(&self.reader),
        })
    }
}

/// A seat's actor has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct SeatGone(Did, End);

/// A seat of ours.
struct Child {
    address: Addr<SeatActor>,
    service: Did,
    cohort_id: CohortId,
    /// The seat's actor stops when this is dropped.
    _lease: Lease,
}

/// A member of standing cohorts.
pub(crate) struct MemberActor {
    settings: Arc<MemberSettings>,
    link: Link,
    /// By the seat's DID.
    seats: BTreeMap<Did, Child>,
    /// The offers that the host is asked about.
    offers: BTreeMap<(Did, CohortId), ()>,
    panicked: bool,
    restarts: Restarts,
    guard: EndGuard,
}

type Live = Vec<(Did, Result<Vec<SeatEvent>, JournalError>)>;

impl MemberActor {
    pub(crate) fn new(settings: MemberSettings, link: Link, guard: EndGuard) -> Self {
        Self {
            settings: Arc::new(settings),
            link,
            seats: BTreeMap::new(),
            offers: BTreeMap::new(),
            panicked: false,
            restarts: Restarts::default(),
            guard,
        }
    }

    /// Starts every seat of this member that the journal has.
    fn recover(&self, ctx: &mut Context<Self>) {
        let journal = Arc::clone(&self.settings.journal);
        let reading = async move {
            let mut live: Live = Vec::new();
            for stream in journal.streams().await? {
                if let StreamKind::Seat(did) = stream.kind() {
                    // A damaged stream only concerns its own seat.
                    live.push((did, replay::events(&*journal, &stream).await));
                }
            }
            Ok::<_, JournalError>(live)
        };
        // Other messages wait: an advert must not ask for a seat again.
        ctx.wait(reading.into_actor(self).map(|read, member, ctx| match read {
            Err(error) => {
                tracing::error!(%error, "the journal cannot be read, the member does not start");
                member.guard.journal_failed();
                ctx.stop();
            }
            Ok(live) => {
                for (did, events) in live {
                    if !member.seats.contains_key(&did)
                        && let Err(reason) = member.start_again(&did, events, ctx)
                    {
                        member.halted(did, reason);
                    }
                }
                member.link.connect();
            }
        }));
    }

    fn halted(&self, seat: Did, reason: String) {
        tracing::error!(%seat, reason, "a seat cannot continue");
        self.settings.notices.publish(SeatNotice::SeatHalted { seat, reason });
    }

    fn start_again(
        &mut self,
        did: &Did,
        events: Result<Vec<SeatEvent>, JournalError>,
        ctx: &Context<Self>,
    ) -> Result<(), String> {
        let events = events.map_err(|error| error.to_string())?;
        let (terms, service, cohort_id) = match events.first() {
            Some(SeatEvent::OptedIn { terms, service, opt_in, .. }) => (terms, service, &opt_in.cohort_id),
            Some(SeatEvent::Saved(saved)) => (&saved.terms, &saved.service, saved.cohort_id()),
            _ => return Err("its journal does not begin with its request for the seat".to_owned()),
        };
        let keys = self.settings.keys(service, cohort_id).map_err(|error| error.to_string())?;
        if keys.identity.did() != did {
            // A seat of another member that uses the same journal.
            return Ok(());
        }
        let service_key = service.key().ok_or("its service has no KEY DID")?;
        let config = self.settings.config(service, service_key, cohort_id, Arc::clone(terms), &keys);
        let machine = replay::caught(|| {
            let mut machine = Seat::new(config);
            events.iter().for_each(|event| machine.apply(event));
            machine
        })?;
        self.start_seat(machine, keys, StartMode::Resumed(events.len()), ctx);
        Ok(())
    }

    fn start_seat(&mut self, machine: Seat, keys: SeatKeys, mode: StartMode, ctx: &Context<Self>) {
        let (service, cohort_id) = (machine.config().service.clone(), machine.config().cohort_id.clone());
        let (member, did) = (ctx.address(), keys.identity.did().clone());
        let gone_did = did.clone();
        // An unbounded send: there is one for each seat.
        let gone = move |end| member.do_send(SeatGone(gone_did, end));
        let confirmed = ctx.address().recipient();
        let (address, _lease) = SeatActor::start(machine, keys, mode, Arc::clone(&self.settings), confirmed, gone);
        self.seats.insert(did, Child { address, service, cohort_id, _lease });
    }

    fn on_advert(&mut self, from: &Did, advert: &StandingAdvert, ctx: &mut Context<Self>) {
        let key = (from.clone(), advert.cohort_id.clone());
        let known = self.seats.values().find(|seat| (&seat.service, &seat.cohort_id) == (&key.0, &key.1));
        if let Some(seat) = known {
            // Without space for it, the next advert has the same effect.
            let _ = seat.address.try_send(AdvertisedAgain);
            return;
        }
        let is_full = self.seats.len() >= MOST_SEATS || self.offers.len() >= MOST_OFFERS;
        if is_full || self.offers.contains_key(&key) || advert.terms.network != self.settings.network {
            return;
        }
        // A service has a KEY DID, and signs opportunities with its key.
        let Some(service_key) = from.key().filter(|key| key.to_bytes() == advert.communication_pk.0) else {
            return;
        };
        let is_signed = |one: &Succession| one.is_signed(advert.terms.network, from, &advert.cohort_id);
        if advert.succeeds.as_deref().is_some_and(|succession| !is_signed(succession)) {
            return;
        }
        let terms = Arc::new(advert.terms.clone());
        let reasons = self.settings.policy.standing_policy().objections(&terms, None);
        let offer = StandingOffer {
            service: from.clone(),
            cohort_id: advert.cohort_id.clone(),
            terms: Arc::clone(&terms),
            succeeds: advert.succeeds.as_deref().cloned(),
        };
        if !reasons.is_empty() {
            return self.decline(offer, reasons);
        }
        self.offers.insert(key.clone(), ());
        let policy = Arc::clone(&self.settings.policy);
        let asking = async move {
            let joins = policy.joins(&offer).await;
            (offer, joins)
        };
        ctx.spawn(asking.into_actor(self).map(move |(offer, joins), member, ctx| {
            member.offers.remove(&key);
            match joins {
                Ok(()) => member.join(&offer, service_key, ctx),
                Err(reason) => member.decline(offer, vec![reason]),
            }
        }));
    }

    fn decline(&self, StandingOffer { service, cohort_id, .. }: StandingOffer, reasons: Vec<String>) {
        self.settings.notices.publish(SeatNotice::OfferDeclined { service, cohort_id, reasons });
    }

    fn join(&mut self, offer: &StandingOffer, service_key: PublicKey, ctx: &Context<Self>) {
        let StandingOffer { service, cohort_id, terms, .. } = offer;
        match self.settings.keys(service, cohort_id) {
            Ok(keys) => {
                let config = self.settings.config(service, service_key, cohort_id, Arc::clone(terms), &keys);
                self.start_seat(Seat::new(config), keys, StartMode::Fresh, ctx);
            }
            Err(error) => tracing::error!(%error, "a seat has no keys"),
        }
    }
}

impl Actor for MemberActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.panicked {
            let now = self.settings.clock.now();
            let Some(pause) = self.restarts.pause(now, self.settings.restarts, &mut self.guard) else {
                return ctx.stop();
            };
            tracing::error!(restarts = self.restarts.count(), "a member panicked and restarts");
            // The last future passed to `ctx.wait` is the first to run.
            self.recover(ctx);
            ctx.wait(tokio::time::sleep(pause).into_actor(self));
        } else {
            self.recover(ctx);
        }
    }
}

impl Supervised for MemberActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.panicked = true;
        // Their actors stop; the same seats are started from the journal.
        self.seats.clear();
        self.offers.clear();
    }
}

impl InTree for MemberActor {
    const ROW: &'static Row = &tree::MEMBER;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Delivery> for MemberActor {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, ctx: &mut Self::Context) {
        // Only adverts concern the listener: seats have identities of their own.
        let (Delivery::Message(received) | Delivery::Stored { message: received, .. }) = delivery else { return };
        if let Body::Standing(message) = &*received.message.body
            && let StandingMessage::StandingAdvert(advert) = &**message
        {
            self.on_advert(&received.message.from, advert, ctx);
        }
        received.receipt.confirm();
    }
}

impl Handler<SeatGone> for MemberActor {
    type Result = ();

    fn handle(&mut self, SeatGone(did, end): SeatGone, _: &mut Self::Context) {
        self.seats.remove(&did);
        if let Some(reason) = end.failure() {
            self.halted(did, reason.into_owned());
        }
    }
}
