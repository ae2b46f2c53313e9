//! The handle of a participant, and of its memberships in cohorts.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use actix::{Actor, Addr};
use bitcoin::{FeeRate, Transaction};
use btcr2_aggregation_protocol::{
    cohort::{
        Timing,
        event::SessionEnd,
        participant::{ParticipantCohort, membership},
    },
    did::Did,
    id::CohortId,
    identity::Identity,
    sidecar::MemberRecord,
};
use tokio::sync::watch;

use super::{
    StartError, Stopped,
    builder::shared_setters,
    check_system, ended,
    ends::{Ends, Story},
};
use crate::{
    events::{self, Acks, Events, Position, Source, Step},
    journal::{JournalError, StreamId, StreamKind},
    notice::{Known, Notices, ParticipantNotice, WeakNotices},
    participant::{
        InspectMembership, InspectSession, LeaveCohort, ParticipantActor, ParticipantSettings, Restored,
        SessionJournal,
    },
    policy::ParticipantPolicy,
    supervision::{Gone, Vitals},
    supervisor::{StartParticipant, Stop, Supervisor},
    transport::Transport,
};

/// How many transient events wait for the host. A process may have many participants.
const EVENTS: usize = 1 << 10;

/// Builds a [`Participant`]. By default nothing outlives the process: its journal is in memory.
pub struct ParticipantBuilder {
    settings: ParticipantSettings,
    events: usize,
}

impl ParticipantBuilder {
    shared_setters!(ParticipantNotice);

    fn new(settings: ParticipantSettings) -> Self {
        Self { settings, events: EVENTS }
    }

    /// How long it waits for a service.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.settings.timing = timing;
        self
    }

    /// The highest fee rate of a beacon transaction that it signs.
    #[must_use]
    pub fn max_fee_rate(mut self, rate: FeeRate) -> Self {
        self.settings.max_fee_rate = rate;
        self
    }

    /// The maximum number of cohorts that it considers or takes part in at once.
    #[must_use]
    pub fn max_sessions(mut self, most: usize) -> Self {
        self.settings.max_sessions = most;
        self
    }

    /// Starts the participant on this thread's actix `System`: it considers adverts, and joins what its policy decides.
    /// Ready when the memberships of previous runs are restored.
    ///
    /// # Errors
    /// [`StartError`] without a `System`, or when the participant ends at once: e.g. its journal cannot be read.
    pub async fn start(self) -> Result<Participant, StartError> {
        check_system()?;
        let Self { mut settings, events: most } = self;
        settings.notices = settings.notices.child();
        let notices = settings.notices.clone();
        let (did, journal) = (settings.identity.did().clone(), SessionJournal::new(&settings));
        let mut events = events::follow(&notices, Arc::new(journal.clone()), most);
        // Before anything is published: what the host acknowledges from now on is delivered on this stream nevertheless.
        events.read_acknowledged().await;
        let ends = Ends::of(&notices);
        let supervisor = Supervisor::default();
        let vitals = supervisor.vitals();
        let supervisor = supervisor.start();
        let address = supervisor.send(StartParticipant(settings)).await.map_err(|_| ended(&vitals))?;
        // Answered when all sessions are restored.
        address.send(Restored).await.map_err(|_| ended(&vitals))?;
        let events = Mutex::new(Some(events));
        // The actors have the notices. Here they would outlive them, and the streams of events would not end.
        let notices = Notices::downgrade(&notices);
        let inner = Inner { did, supervisor, address, vitals, notices, journal, events, most, ends };
        Ok(Participant(Arc::new(inner)))
    }
}

/// A running participant: one DID controller in all its cohorts. Clones are the same participant.
#[derive(Clone)]
pub struct Participant(Arc<Inner>);

struct Inner {
    did: Did,
    supervisor: Addr<Supervisor>,
    address: Addr<ParticipantActor>,
    vitals: Vitals,
    notices: WeakNotices<ParticipantNotice>,
    journal: SessionJournal,
    /// The events from the start, until the host takes them.
    events: Mutex<Option<Events<ParticipantNotice>>>,
    most: usize,
    ends: Arc<Ends<ParticipantNotice>>,
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Participant").field(&self.0.did).finish()
    }
}

impl Participant {
    /// A participant with `identity` that reaches services over `transport`, with the decisions of `policy`.
    pub fn builder(
        identity: Identity,
        transport: Arc<dyn Transport>,
        policy: Arc<dyn ParticipantPolicy>,
    ) -> ParticipantBuilder {
        ParticipantBuilder::new(ParticipantSettings::new(identity, transport, policy))
    }

    /// Its DID.
    pub fn did(&self) -> &Did {
        &self.0.did
    }

    /// Waits for the first cohort that it is in since its start: one of a previous run, or one that its policy joins.
    ///
    /// # Errors
    /// [`Stopped`] when the participant has stopped.
    pub async fn join_first(&self) -> Result<Membership, Stopped> {
        let mut first = self.0.ends.first();
        let stream = tokio::select! {
            // In this order: a participant that has stopped since was in the cohort nevertheless.
            biased;
            stream = first.wait_for(Option::is_some) => stream.ok().and_then(|stream| stream.clone()),
            () = self.stopped() => None,
        };
        match stream.map(|stream| stream.kind()) {
            Some(StreamKind::Participant { service, cohort_id, .. }) => Ok(self.membership(&service, &cohort_id)),
            _ => Err(Stopped),
        }
    }

    /// The membership in a cohort of `service`: one that runs, or one that has ended and whose last event is not
    /// acknowledged.
    pub fn membership(&self, service: &Did, cohort_id: &CohortId) -> Membership {
        let story = self.0.ends.follow(&StreamId::of_session(&self.0.did, service, cohort_id));
        Membership { participant: self.clone(), service: service.clone(), cohort_id: cohort_id.clone(), story }
    }

    /// A snapshot of the machine that decides in which cohorts it is; `None` when it has stopped.
    pub async fn inspect(&self) -> Option<Arc<membership::Membership>> {
        self.0.address.send(InspectMembership).await.ok()
    }

    /// The participant's events. The first call returns all events since the start. Every further call returns a stream
    /// of its own, which begins with the decisive events that are not acknowledged.
    pub fn events(&self) -> Events<ParticipantNotice> {
        let taken = self.0.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| {
            // A participant that has stopped publishes nothing more.
            let notices = self.0.notices.upgrade().unwrap_or_else(|| Notices::new(1));
            events::follow_from_journal(&notices, self.source(), self.0.most)
        })
    }

    /// Acknowledges events while another task reads them.
    pub fn acks(&self) -> Acks<ParticipantNotice> {
        Acks::new(self.source())
    }

    fn source(&self) -> Arc<dyn Source<ParticipantNotice>> {
        Arc::new(self.0.journal.clone())
    }

    /// Ready when the participant has ended unexpectedly: it cannot continue until it is started again.
    pub async fn failed(&self) -> Gone {
        self.0.vitals.failed().await
    }

    /// Ready when the participant has stopped.
    async fn stopped(&self) {
        self.0.ends.closed().await;
    }

    /// Stops the participant: its memberships continue when it is started again with the same journal, except that a
    /// signing session that has its nonce then needs the fallback. Services are not notified. Waiting for an outcome
    /// ends.
    pub async fn stop(&self) {
        // It may have stopped before.
        let _ = self.0.supervisor.send(Stop).await;
    }
}

/// The end of a membership in a cohort that has, or may have, announced.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Completed {
    /// What is known of the transaction.
    pub known: Known,
    /// What the controller must store; `None` if it approved nothing.
    pub record: Option<Arc<MemberRecord>>,
    /// The signed transaction, if it was seen.
    pub transaction: Option<Arc<Transaction>>,
}

/// Why a membership has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// The cohort ended, and according to the service, or to our own side, nothing is announced.
    #[error("the cohort failed: {reason}")]
    #[non_exhaustive]
    Failed {
        /// The reason in words.
        reason: String,
        /// The reason.
        end: SessionEnd,
        /// What to store if our signature was sent: the update may be announced nevertheless.
        signed: Option<Arc<MemberRecord>>,
    },
    /// The participant is not in the cohort, and the journal has no end of its membership.
    #[error("it is not in that cohort, and the journal has no end of it")]
    Unknown,
    /// The participant has stopped.
    #[error("the participant has stopped")]
    Stopped,
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A membership in a cohort. Clones are the same membership.
#[derive(Clone)]
pub struct Membership {
    participant: Participant,
    service: Did,
    cohort_id: CohortId,
    story: watch::Receiver<Story<ParticipantNotice>>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("did", self.participant.did())
            .field("service", &self.service)
            .field("cohort_id", &self.cohort_id)
            .finish()
    }
}

impl Membership {
    /// The identifier of the cohort.
    pub fn cohort_id(&self) -> &CohortId {
        &self.cohort_id
    }

    /// The service of the cohort.
    pub fn service(&self) -> &Did {
        &self.service
    }

    /// Waits for the end of the membership. Can be called at any time and more than once.
    ///
    /// # Errors
    /// [`MembershipError`] when the cohort failed, or when its end is not known.
    pub async fn outcome(&self) -> Result<Completed, MembershipError> {
        let mut story = self.story.clone();
        if let Some(end) = outcome(&story.borrow_and_update()) {
            return end;
        }
        if self.inspect().await.is_none() {
            // It may have ended meanwhile.
            if let Some(end) = outcome(&story.borrow_and_update()) {
                return end;
            }
            let notices = self.participant.0.journal.clone().decisive(self.stream()).await?;
            let notices = notices.into_iter().map(Arc::new).collect();
            return outcome(&notices).unwrap_or(Err(MembershipError::Unknown));
        }
        loop {
            if story.changed().await.is_err() {
                return Err(MembershipError::Stopped);
            }
            if let Some(end) = outcome(&story.borrow_and_update()) {
                return end;
            }
        }
    }

    /// The host has stored what it needs of the [outcome](Self::outcome): acknowledges the end of the membership, as
    /// [`Events::ack`] does. Does nothing if the journal has no end of it.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub async fn acknowledge(&self) -> Result<(), JournalError> {
        let end = Position { stream: self.stream(), step: Step::Ended };
        self.participant.source().acknowledge(end).await
    }

    fn stream(&self) -> StreamId {
        StreamId::of_session(self.participant.did(), &self.service, &self.cohort_id)
    }

    /// Leaves the cohort, in any phase.
    pub async fn leave(&self) {
        let leave = LeaveCohort { service: self.service.clone(), cohort_id: self.cohort_id.clone() };
        // A participant that has stopped takes part in nothing.
        let _ = self.participant.0.address.send(leave).await;
    }

    /// A snapshot of the membership's machine; `None` if it is not running. A snapshot does not change, and while it
    /// exists the next step copies the whole state: drop it when it was read.
    pub async fn inspect(&self) -> Option<Arc<ParticipantCohort>> {
        let inspect = InspectSession { service: self.service.clone(), cohort_id: self.cohort_id.clone() };
        self.participant.0.address.send(inspect).await.ok().flatten()
    }
}

/// The outcome in the notices of a membership.
fn outcome(story: &Story<ParticipantNotice>) -> Option<Result<Completed, MembershipError>> {
    let (mut last_record, mut seen) = (None, None);
    for notice in story {
        match &**notice {
            ParticipantNotice::DataApproved { record, .. } | ParticipantNotice::SignatureSent { record, .. } => {
                last_record = Some(Arc::clone(record));
            }
            ParticipantNotice::CohortComplete { record, transaction, .. } => {
                (last_record, seen) = (Some(Arc::clone(record)), Some(Arc::clone(transaction)));
            }
            ParticipantNotice::CohortOver { known, .. } => {
                return Some(Ok(Completed { known: *known, record: last_record, transaction: seen }));
            }
            ParticipantNotice::CohortFailed { reason, end, signed, .. } => {
                return Some(Err(MembershipError::Failed {
                    reason: reason.clone(),
                    end: end.clone(),
                    signed: last_record.filter(|_| *signed),
                }));
            }
            _ => {}
        }
    }
    None
}
