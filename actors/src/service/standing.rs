//! The standing cohorts of a service: an actor for each, which the service starts and to which it routes messages.

use std::{collections::BTreeMap, sync::Arc};

use actix::{
    Addr, AsyncContext, Context, Handler, Message as ActixMessage, MessageResult, ResponseFuture,
    prelude::SendError,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        CohortContext, StandingTerms, Succession,
        cohort::{CohortEvent, StandingCohort},
    },
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
};

use super::{AggregationService, OpenCohortError, ServiceSettings};
use crate::{
    journal::JournalError,
    standing::{
        cohort::{
            SeatMessage, SendAgain, StandingAnswer, StandingCohortActor, StandingRequest, StandingShared, StartMode,
        },
        notice::StandingNotice,
    },
    supervision::{End, Lease},
    transport::{Received, link::Link, send_in_turn},
};

/// Advertise a standing cohort.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Result<CohortId, OpenCohortError>")]
pub(crate) struct OpenStanding {
    /// Its terms.
    pub(crate) terms: StandingTerms,
}

/// Advertise a standing cohort that succeeds another one of this service.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Result<CohortId, OpenCohortError>")]
pub(crate) struct OpenSuccessor {
    pub(crate) terms: StandingTerms,
    /// The old cohort.
    pub(crate) old: CohortContext,
}

/// The standing cohorts that run.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "Vec<CohortId>")]
pub(crate) struct LiveStanding;

/// A request of the host for a standing cohort; `None` if there is no such cohort.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Option<StandingAnswer>")]
pub(crate) struct ToStanding(pub(crate) CohortId, pub(crate) StandingRequest);

/// The actor of a standing cohort has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct StandingGone(CohortId, End);

struct Child {
    cohort: Addr<StandingCohortActor>,
    /// The cohort's actor stops when this is dropped.
    _lease: Lease,
}

/// The standing cohorts of a service.
pub(super) struct StandingCohorts {
    shared: Arc<StandingShared>,
    cohorts: BTreeMap<CohortId, Child>,
}

impl StandingCohorts {
    pub(super) fn new(settings: &ServiceSettings) -> Self {
        let standing = settings.standing.clone();
        let shared = StandingShared {
            identity: settings.identity.clone(),
            policy: standing.policy,
            journal: Arc::clone(&settings.journal),
            boards: standing.boards,
            history: standing.history,
            reader: standing.reader,
            chain: standing.chain,
            aggregator: Arc::clone(&settings.aggregator),
            clock: settings.clock,
            randomness: settings.randomness,
            notices: standing.notices,
            load: settings.load.clone(),
            bans: settings.bans.clone(),
            seats: settings.seats.clone(),
            restarts: settings.restarts,
        };
        Self { shared: Arc::new(shared), cohorts: BTreeMap::new() }
    }

    /// Their actors stop.
    pub(super) fn clear(&mut self) {
        self.cohorts.clear();
    }

    pub(super) fn reject(&self, reject: &Reject) {
        self.shared.notices.publish(StandingNotice::rejected(None, reject));
    }

    fn start(
        &mut self,
        machine: StandingCohort,
        mode: StartMode,
        outbound: Link,
        ctx: &Context<AggregationService>,
    ) {
        let (service, cohort_id) = (ctx.address(), machine.config().cohort_id.clone());
        let ended = cohort_id.clone();
        // An unbounded send: there is one for each cohort.
        let gone = move |end| service.do_send(StandingGone(ended, end));
        let (cohort, _lease) = StandingCohortActor::start(machine, mode, Arc::clone(&self.shared), outbound, gone);
        self.cohorts.insert(cohort_id, Child { cohort, _lease });
    }

    /// Starts a cohort of a previous run from its events.
    pub(super) fn start_again(
        &mut self,
        cohort_id: &CohortId,
        events: Result<Vec<CohortEvent>, JournalError>,
        outbound: Link,
        ctx: &Context<AggregationService>,
    ) {
        if self.cohorts.contains_key(cohort_id) {
            return;
        }
        let replayed = events.map_err(|error| error.to_string()).and_then(|events| {
            Ok(self.shared.replayed(cohort_id, &events)?.map(|machine| (machine, events.len())))
        });
        match replayed {
            Ok(Some((machine, records))) => self.start(machine, StartMode::Resumed(records), outbound, ctx),
            Ok(None) => {}
            Err(reason) => self.halted(cohort_id, reason),
        }
    }

    fn halted(&self, cohort_id: &CohortId, reason: String) {
        tracing::error!(%cohort_id, reason, "a standing cohort cannot continue");
        self.shared.notices.publish(StandingNotice::StandingHalted { cohort_id: cohort_id.clone(), reason });
    }

    /// Passes a message to its cohort; returns why not, if that is a fault of its sender.
    pub(super) fn deliver(&self, message: Received) -> Option<Reject> {
        let cohort_id = message.body.cohort_id().clone();
        let Some(child) = self.cohorts.get(&cohort_id) else {
            message.receipt.clone().confirm();
            // Another service's adverts are not a fault.
            let is_advert = matches!(&*message.body, btcr2_aggregation_protocol::message::Body::Standing(standing)
                if standing.is_advert());
            let detail = "no such standing cohort is running here";
            return (!is_advert).then(|| Reject::new(RejectCode::WrongCohort, &message.from, detail));
        };
        // A cohort that has just ended will be reported soon. Without a receipt the sender sends the message again.
        if let Err(SendError::Full(SeatMessage(message))) = child.cohort.try_send(SeatMessage(message)) {
            tracing::warn!(%cohort_id, from = %message.from, "the cohort's mailbox is full, a message was dropped");
        }
        None
    }

    /// Makes cohorts send again what a seat, or every seat, still needs.
    pub(super) fn send_again(
        &self,
        cohort_id: Option<&CohortId>,
        to: Option<&Did>,
        ctx: &mut Context<AggregationService>,
    ) {
        let concerned = self.cohorts.iter().filter(|(of, _)| cohort_id.is_none_or(|cohort_id| *of == cohort_id));
        for (_, child) in concerned {
            send_in_turn(&child.cohort, SendAgain(to.cloned()), ctx);
        }
    }
}

impl Handler<OpenStanding> for AggregationService {
    type Result = Result<CohortId, OpenCohortError>;

    fn handle(&mut self, OpenStanding { terms }: OpenStanding, ctx: &mut Self::Context) -> Self::Result {
        self.open_standing(terms, None, ctx)
    }
}

impl Handler<OpenSuccessor> for AggregationService {
    type Result = Result<CohortId, OpenCohortError>;

    fn handle(&mut self, OpenSuccessor { terms, old }: OpenSuccessor, ctx: &mut Self::Context) -> Self::Result {
        self.open_standing(terms, Some(&old), ctx)
    }
}

impl AggregationService {
    fn open_standing(
        &mut self,
        terms: StandingTerms,
        old: Option<&CohortContext>,
        ctx: &Context<Self>,
    ) -> Result<CohortId, OpenCohortError> {
        if self.journal_failed {
            return Err(OpenCohortError::JournalFailed);
        }
        if let Some(limit) =
            self.settings.transport.message_limit().filter(|limit| *limit < terms.longest_message())
        {
            let needed = terms.longest_message();
            return Err(OpenCohortError::Standing(format!(
                "this transport carries messages of up to {limit} bytes, and those of this cohort take up to {needed}: fewer seats, a lower \
                 fallback threshold or fewer unconfirmed announcements make them shorter"
            )));
        }
        // See `OpenCohort`: the number is never reused.
        let mut rng = self.shared.randomness.for_actor(&format!("cohort number {}", self.opened));
        self.opened += 1;
        let cohort_id = CohortId::generate(&mut rng);
        let machine =
            self.standing.shared.machine(&cohort_id, Arc::new(terms)).map_err(OpenCohortError::Standing)?;
        let key = self.standing.shared.identity.secret_key();
        let succeeds = old.map(|old| Succession::sign(old, &cohort_id, key, &mut rng));
        self.standing.start(machine, StartMode::Fresh(succeeds), self.link.clone(), ctx);
        Ok(cohort_id)
    }
}

impl Handler<LiveStanding> for AggregationService {
    type Result = MessageResult<LiveStanding>;

    fn handle(&mut self, _: LiveStanding, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.standing.cohorts.keys().cloned().collect())
    }
}

impl Handler<ToStanding> for AggregationService {
    type Result = ResponseFuture<Option<StandingAnswer>>;

    fn handle(&mut self, ToStanding(cohort_id, request): ToStanding, _: &mut Self::Context) -> Self::Result {
        let asking = self.standing.cohorts.get(&cohort_id).map(|child| child.cohort.send(request));
        Box::pin(async move { asking?.await.ok() })
    }
}

impl Handler<StandingGone> for AggregationService {
    type Result = ();

    fn handle(&mut self, StandingGone(cohort_id, end): StandingGone, _: &mut Self::Context) {
        self.standing.cohorts.remove(&cohort_id);
        if let Some(reason) = end.failure() {
            self.journal_failed |= end == End::JournalFailed;
            self.standing.halted(&cohort_id, reason.into_owned());
        }
    }
}
