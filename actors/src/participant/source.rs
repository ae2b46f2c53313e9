//! What a host receives of memberships from the journal, without their actors: their decisive events; and the archiving
//! or removal of the journals of ended sessions.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, SessionEnd},
        participant::{ParticipantCohort, ParticipantConfig, phase::Phase},
    },
    did::Did,
};
use futures::{FutureExt, future::BoxFuture};

use super::ParticipantSettings;
use crate::{
    events::{Position, Source, Step, acknowledged},
    journal::{Journal, JournalError, Retention, StreamId, StreamKind},
    notice::{Known, ParticipantNotice},
    runtime::Clock,
    supervision::replay,
};

/// The journal of a participant's sessions.
#[derive(Clone)]
pub(crate) struct SessionJournal {
    config: Arc<ParticipantConfig>,
    journal: Arc<dyn Journal>,
    clock: Clock,
    retention: Retention,
}

impl SessionJournal {
    pub(crate) fn new(settings: &ParticipantSettings) -> Self {
        Self {
            // An invite only concerns an opt-in.
            config: Arc::new(settings.config(None)),
            journal: Arc::clone(&settings.journal),
            clock: settings.clock,
            retention: settings.retention,
        }
    }

    /// The decisive notices of a session, in order.
    pub(crate) async fn decisive(self, stream: StreamId) -> Result<Vec<ParticipantNotice>, JournalError> {
        let events = replay::events::<ParticipantEvent>(&*self.journal, &stream).await?;
        let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = events.first() else { return Ok(Vec::new()) };
        let (config, advert, span) = (Arc::clone(&self.config), Arc::clone(advert), tracing::Span::current());
        let did = config.did.clone();
        let problem = |problem: String| JournalError { stream: stream.clone(), problem };
        // Key aggregation for large cohorts takes long.
        let replaying = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            replay::caught(|| {
                let mut machine = ParticipantCohort::new(config, advert);
                replay::apply(&mut machine, &events, |_, _, _| {});
                machine
            })
        });
        let machine = replaying.await.map_err(|error| problem(error.to_string()))?.map_err(problem)?;
        let mut notices = Vec::new();
        notices.extend(approval(&machine));
        notices.extend(signature(&machine));
        notices.extend(completion(&machine));
        if let Phase::Ended { reason, .. } = machine.phase() {
            notices.extend(end_of(&machine, &did, reason));
        }
        Ok(notices)
    }

    /// Whether a stream is of this participant.
    fn is_ours(&self) -> impl Fn(&StreamId) -> bool + Send + Sync + use<> {
        let ours = self.config.did.clone();
        move |stream| matches!(stream.kind(), StreamKind::Participant { did, .. } if did == ours)
    }

    async fn put_away(self, stream: StreamId, how: Retention) -> Result<(), JournalError> {
        let events = replay::events::<ParticipantEvent>(&*self.journal, &stream).await?;
        // A host acknowledges what was reported as failed; but a session that only could not continue can be restored
        // once its journal is repaired.
        if !events.iter().any(|event| matches!(event, ParticipantEvent::SessionEnded { .. })) {
            return Ok(());
        }
        self.journal.remove(&StreamId::of_acknowledgements(&stream)).await?;
        match how {
            Retention::UntilArchived => self.journal.archive(&stream, self.clock.now()).await,
            Retention::Forget => self.journal.remove(&stream).await,
        }
    }
}

impl Source<ParticipantNotice> for SessionJournal {
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        let (streams, is_ours) = (self.journal.streams(), self.is_ours());
        async move { Ok(streams.await?.into_iter().filter(is_ours).collect()) }.boxed()
    }

    fn read(&self, stream: StreamId) -> BoxFuture<'static, Result<Vec<ParticipantNotice>, JournalError>> {
        self.clone().decisive(stream).boxed()
    }

    fn acknowledged(&self) -> BoxFuture<'static, Result<Vec<Position>, JournalError>> {
        if self.retention == Retention::Forget {
            return futures::future::ready(Ok(Vec::new())).boxed();
        }
        let (journal, is_ours) = (Arc::clone(&self.journal), self.is_ours());
        async move { acknowledged::read(&*journal, is_ours).await }.boxed()
    }

    fn acknowledge(&self, position: Position) -> BoxFuture<'static, Result<(), JournalError>> {
        if self.retention == Retention::Forget {
            // The journal of the session is removed when the session ends.
            return futures::future::ready(Ok(())).boxed();
        }
        if position.step == Step::Ended {
            return self.clone().put_away(position.stream, Retention::UntilArchived).boxed();
        }
        let journal = Arc::clone(&self.journal);
        async move { acknowledged::write(&*journal, &position).await }.boxed()
    }
}

/// The notice that the data was approved, if it was.
pub(super) fn approval(machine: &ParticipantCohort) -> Option<ParticipantNotice> {
    let record = machine.approved()?;
    Some(ParticipantNotice::DataApproved {
        did: record.did.clone(),
        cohort_id: record.cohort_id.clone(),
        record: Arc::new(record),
    })
}

/// The notice that a signature was sent, if one was.
pub(super) fn signature(machine: &ParticipantCohort) -> Option<ParticipantNotice> {
    let record = machine.record()?;
    Some(ParticipantNotice::SignatureSent {
        did: record.did.clone(),
        cohort_id: record.cohort_id.clone(),
        included: record.included(),
        record: Arc::new(record),
    })
}

/// The notice of the signed transaction, if it was seen.
pub(super) fn completion(machine: &ParticipantCohort) -> Option<ParticipantNotice> {
    let (transaction, record) = (machine.seen()?, machine.record()?);
    Some(ParticipantNotice::CohortComplete {
        did: record.did.clone(),
        cohort_id: record.cohort_id.clone(),
        included: record.included(),
        txid: transaction.compute_txid(),
        transaction: Arc::clone(transaction),
        record: Arc::new(record),
    })
}

/// The notice of the end of a session; none if it was not joined.
pub(super) fn end_of(machine: &ParticipantCohort, did: &Did, reason: &SessionEnd) -> Option<ParticipantNotice> {
    let advert = machine.advert();
    let (did, cohort_id, service) = (did.clone(), advert.cohort_id.clone(), advert.service.clone());
    let known = match reason {
        SessionEnd::NotJoined => return None,
        SessionEnd::Completed { .. } => Known::Seen,
        SessionEnd::Signed => Known::SignedByUs,
        reason if reason.says_completed() => Known::Reported,
        reason => {
            let signed = machine.record().is_some();
            let (reason, end) = (reason.to_string(), reason.clone());
            return Some(ParticipantNotice::CohortFailed { did, cohort_id, reason, signed, end, service });
        }
    };
    Some(ParticipantNotice::CohortOver { did, cohort_id, known, service })
}
