//! The handles of standing cohorts: of one at its service, and of a member with its seats.

use std::{fmt, sync::Arc};

use actix::{Actor, Addr};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        OpportunityKind, StandingTerms,
        cohort::{CohortInput, StandingCohort as Machine},
        number::Number,
        seat::Seat as SeatMachine,
    },
    did::Did,
    error::Reject,
    id::CohortId,
};
use tokio::sync::broadcast;

use super::{Service, StartError, Stopped, check_system, ended};
use crate::{
    notice::{Notices, WeakNotices},
    service::{AggregationService, LiveStanding, OpenCohortError, OpenStanding, OpenSuccessor, ToStanding},
    standing::{
        cohort::{InspectNumber, NewCohort, StandingAnswer, StandingRequest},
        member::{
            LiveSeats, MemberActor, MemberSettings, Restored, SeatRequest, SeatSnapshot, SeatSummary, ToSeat,
        },
        notice::SeatNotice,
    },
    supervision::{Gone, Vitals},
    supervisor::{StartMember, Stop, Supervisor},
};

/// Why a standing cohort has not done what the host has asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StandingError {
    /// It cannot be done now.
    #[error("{0}")]
    Refused(Reject),
    /// No such cohort is running.
    #[error("no such standing cohort is running")]
    Unknown,
    /// The service has stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A standing cohort of a [`Service`]. Clones are the same cohort.
#[derive(Clone)]
pub struct StandingCohort {
    service: Addr<AggregationService>,
    cohort_id: CohortId,
}

impl fmt::Debug for StandingCohort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StandingCohort").field(&self.cohort_id).finish()
    }
}

impl Service {
    /// Advertises a standing cohort.
    ///
    /// # Errors
    /// [`OpenCohortError`] when its terms contradict each other, or when the service cannot promise anything.
    pub async fn open_standing(&self, terms: StandingTerms) -> Result<StandingCohort, OpenCohortError> {
        let opened = self.address().send(OpenStanding { terms }).await;
        let cohort_id = opened.map_err(|_| OpenCohortError::Stopped)??;
        Ok(self.standing_cohort(&cohort_id))
    }

    /// Advertises a standing cohort that succeeds another one of this service, which has formed.
    ///
    /// # Errors
    /// [`OpenCohortError`] as for [`Self::open_standing`], also when the old cohort is not running or has not formed.
    pub async fn open_successor(
        &self,
        terms: StandingTerms,
        old: &StandingCohort,
    ) -> Result<StandingCohort, OpenCohortError> {
        let machine = old.inspect().await;
        let context = machine.as_ref().and_then(|machine| Some(machine.roster()?.context().clone()));
        drop(machine);
        let Some(old) = context else {
            return Err(OpenCohortError::Standing(
                "the cohort to be succeeded is not running here, or has not formed".to_owned(),
            ));
        };
        let opened = self.address().send(OpenSuccessor { terms, old }).await;
        let cohort_id = opened.map_err(|_| OpenCohortError::Stopped)??;
        Ok(self.standing_cohort(&cohort_id))
    }

    /// A standing cohort of this service.
    pub fn standing_cohort(&self, cohort_id: &CohortId) -> StandingCohort {
        StandingCohort { service: self.address().clone(), cohort_id: cohort_id.clone() }
    }

    /// The standing cohorts that are running; none when the service has stopped.
    pub async fn standing_cohorts(&self) -> Vec<StandingCohort> {
        let running = self.address().send(LiveStanding).await.unwrap_or_default();
        running.iter().map(|cohort_id| self.standing_cohort(cohort_id)).collect()
    }
}

impl StandingCohort {
    /// Its identifier.
    pub fn id(&self) -> &CohortId {
        &self.cohort_id
    }

    async fn request(&self, request: StandingRequest) -> Result<StandingAnswer, StandingError> {
        let answer = self.service.send(ToStanding(self.cohort_id.clone(), request)).await.map_err(|_| Stopped)?;
        answer.ok_or(StandingError::Unknown)
    }

    async fn done(&self, request: StandingRequest) -> Result<(), StandingError> {
        match self.request(request).await? {
            StandingAnswer::Done(done) => done.map_err(StandingError::Refused),
            StandingAnswer::Snapshot(_) | StandingAnswer::Number(_) => Ok(()),
        }
    }

    /// Forms the cohort of the seats that were admitted so far, without waiting for more.
    ///
    /// # Errors
    /// [`StandingError::Refused`] with the reason when too few seats were admitted, or the cohort has formed; and the others.
    pub async fn finalize(&self) -> Result<(), StandingError> {
        self.done(StandingRequest::Finalize).await
    }

    /// Opens a number now, if the terms' time between announcements has passed: an announcement, one that joins all coins, the move to the
    /// successor; or, at any time, one that only shows the roster.
    ///
    /// # Errors
    /// [`StandingError`].
    pub async fn open_now(&self, kind: OpportunityKind) -> Result<(), StandingError> {
        self.done(StandingRequest::OpenNow(kind)).await
    }

    /// Opens no number from now on, or opens them again. One that is open goes on. Held over restarts.
    ///
    /// # Errors
    /// [`StandingError::Refused`] before the cohort has formed, and the others.
    pub async fn hold(&self, held: bool) -> Result<(), StandingError> {
        self.done(StandingRequest::Hold(held)).await
    }

    /// Withdraws the advert until it is advertised again, or advertises it again. Participants that have seen the advert may still ask for
    /// a seat. It is advertised after a restart.
    ///
    /// # Errors
    /// [`StandingError::Refused`] once the cohort has formed, and the others.
    pub async fn advertise(&self, advertised: bool) -> Result<(), StandingError> {
        self.done(StandingRequest::Advertise(advertised)).await
    }

    /// Ends a cohort that has not formed: its candidates are notified.
    ///
    /// # Errors
    /// [`StandingError::Refused`] once the cohort has formed, and the others.
    pub async fn cancel(&self, reason: impl Into<String>) -> Result<(), StandingError> {
        self.done(StandingRequest::Withdraw(reason.into())).await
    }

    /// Names the cohort to which this one moves, when that has formed. [`OpportunityKind::Move`] then moves.
    ///
    /// # Errors
    /// [`StandingError`].
    pub async fn name_successor(&self, successor: &Self) -> Result<(), StandingError> {
        let machine = successor.inspect().await.ok_or(StandingError::Unknown)?;
        let Some(output) = machine.output().cloned() else {
            return Err(StandingError::Refused(Reject::not_now("the successor has not formed")));
        };
        let new = NewCohort {
            cohort_id: successor.cohort_id.clone(),
            terms: Arc::clone(&machine.config().terms),
            output,
        };
        drop(machine);
        self.done(StandingRequest::NameSuccessor(Arc::new(new))).await
    }

    /// Reports a coin, or a spend, that is final: for a service without a chain.
    ///
    /// # Errors
    /// [`StandingError`].
    pub async fn report(&self, news: CohortInput) -> Result<(), StandingError> {
        self.done(StandingRequest::News(Box::new(news))).await
    }

    /// Looks at the chain soon.
    ///
    /// # Errors
    /// [`StandingError`].
    pub async fn look(&self) -> Result<(), StandingError> {
        self.done(StandingRequest::Look).await
    }

    /// A snapshot of the cohort's machine; `None` if it is not running. While it exists the next step copies the whole state: drop it when
    /// it was read.
    pub async fn inspect(&self) -> Option<Arc<Machine>> {
        match self.request(StandingRequest::Inspect).await {
            Ok(StandingAnswer::Snapshot(machine)) => Some(machine),
            _ => None,
        }
    }

    /// A snapshot of the number that is open, with the seats that it waits for; `None` if none is.
    pub async fn inspect_number(&self) -> Option<Arc<Number>> {
        match self.request(StandingRequest::Number).await {
            Ok(StandingAnswer::Number(Some(number))) => number.send(InspectNumber).await.ok(),
            _ => None,
        }
    }
}

/// A running member of standing cohorts. Clones are the same member.
#[derive(Clone)]
pub struct Member(Arc<Inner>);

struct Inner {
    listener: Did,
    supervisor: Addr<Supervisor>,
    address: Addr<MemberActor>,
    vitals: Vitals,
    notices: WeakNotices<SeatNotice>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Member").field(&self.0.listener).finish()
    }
}

impl Member {
    /// Starts a member on this thread's actix `System`. Ready when the seats of previous runs are restored.
    ///
    /// # Errors
    /// [`StartError`] without a `System`, or when the member ends at once: e.g. its journal cannot be read.
    pub async fn start(settings: MemberSettings) -> Result<Self, StartError> {
        check_system()?;
        let vitals = Vitals::default();
        let notices = Notices::downgrade(&settings.notices);
        let listener = settings.listener().map_err(|_| StartError::Stopped)?.did().clone();
        let supervisor = Supervisor::reporting_to(vitals.clone()).start();
        let started = supervisor.send(StartMember(settings)).await.map_err(|_| ended(&vitals))?;
        let address = started.map_err(|_| StartError::Stopped)?;
        // Answered when all seats are restored.
        address.send(Restored).await.map_err(|_| ended(&vitals))?;
        Ok(Self(Arc::new(Inner { listener, supervisor, address, vitals, notices })))
    }

    /// The notices from now on; none once the member has stopped.
    pub fn notices(&self) -> Option<broadcast::Receiver<Arc<SeatNotice>>> {
        Some(self.0.notices.upgrade()?.subscribe())
    }

    /// Its seats; none when it has stopped.
    pub async fn seats(&self) -> Vec<SeatSummary> {
        self.0.address.send(LiveSeats).await.unwrap_or_default()
    }

    /// Makes a request to the seat with this DID. Returns whether there is one.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn request(&self, seat: &Did, request: SeatRequest) -> Result<bool, Stopped> {
        self.0.address.send(ToSeat(seat.clone(), request)).await.map_err(|_| Stopped)
    }

    /// A snapshot of a seat's machine; `None` if there is none.
    pub async fn inspect(&self, seat: &Did) -> Option<Arc<SeatMachine>> {
        self.0.address.send(SeatSnapshot(seat.clone())).await.ok().flatten()
    }

    /// Ready when the member has ended unexpectedly.
    pub async fn failed(&self) -> Gone {
        self.0.vitals.failed().await
    }

    /// Stops the member: its seats continue when it is started again with the same journal and seed.
    pub async fn stop(&self) {
        // It may have stopped before.
        let _ = self.0.supervisor.send(Stop).await;
    }
}
