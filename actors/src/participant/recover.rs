//! The sessions of previous runs, which are started from the journal when the participant starts; and the archiving or
//! removal of the journals of ended sessions.

use std::sync::Arc;

use actix::{
    ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, ResponseFuture,
    WrapFuture,
};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, SessionEnd},
        participant::ParticipantCohort,
    },
    did::Did,
};

use tracing::Instrument;

use super::{
    ArchiveSession, CohortKey, ParticipantActor,
    session::{ParticipantSessionActor, StartMode},
};
use crate::{
    journal::{Journal, JournalError, Retention, StreamId, StreamKind},
    notice::ParticipantNotice,
    supervision::{End, replay},
};

/// A session's actor has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct SessionGone {
    pub(super) cohort: CohortKey,
    pub(super) end: End,
}

type Events = Result<Vec<ParticipantEvent>, JournalError>;

impl ParticipantActor {
    /// Starts every session of this participant that the journal has and the host has not archived.
    pub(super) fn recover_all(&self, ctx: &mut Context<Self>) {
        let journal = Arc::clone(&self.shared.journal);
        let did = self.shared.identity.did().clone();
        // Other messages wait: a message must find its session, and an old advert must not start the session anew.
        ctx.wait(read_all(journal, did).into_actor(self).map(|read, participant, ctx| match read {
            Err(error) => {
                // Without its journal it would opt in again to cohorts that it is in.
                tracing::error!(%error, "the journal cannot be read, the participant does not start");
                participant.guard.journal_failed();
                ctx.stop();
            }
            Ok((archived, live)) => {
                for cohort in archived {
                    participant.ended.insert(cohort);
                }
                for (cohort, facts) in live {
                    if facts.as_ref().is_ok_and(|facts| was_not_joined(facts)) {
                        // It was to be removed, but the program ended first: its advert is treated like any other.
                        let forgetting = participant.putting_away(&cohort, Retention::Forget);
                        ctx.wait(forgetting.into_actor(participant));
                        continue;
                    }
                    participant.start_again(cohort, facts, ctx);
                }
            }
        }));
    }

    /// Starts a session of a previous run from its events.
    fn start_again(&mut self, cohort: CohortKey, events: Events, ctx: &Context<Self>) {
        let _session = self.span(&cohort.1).entered();
        let events = match events {
            Ok(events) => events,
            Err(error) => return self.lost(cohort, error.to_string()),
        };
        let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = events.first() else {
            return self.lost(cohort, "its journal does not begin with an advert".to_owned());
        };
        let replayed = replay::caught(|| {
            let mut machine = ParticipantCohort::new(Arc::clone(&self.shared.config), Arc::clone(advert));
            replay::apply(&mut machine, &events, |_, _, _| {});
            machine
        });
        let machine = match replayed {
            Ok(machine) => machine,
            Err(reason) => return self.lost(cohort, reason),
        };
        let joined = events.iter().any(|event| matches!(event, ParticipantEvent::OptedIn { .. }));
        self.start_session(machine, (StartMode::Resumed, false), joined, ctx);
    }

    /// A session cannot continue, although it has not ended. Once its journal is repaired, it can be restored.
    fn lost(&mut self, cohort: CohortKey, reason: String) {
        let _session = self.span(&cohort.1).entered();
        tracing::error!(cohort_id = %cohort.1, reason, "a participant's session cannot continue");
        let joined = self.sessions.remove(&cohort).is_none_or(|child| child.joined);
        let end = SessionEnd::Internal { reason };
        self.shared.notices.publish(ParticipantNotice::CohortFailed {
            did: self.shared.identity.did().clone(),
            cohort_id: cohort.1.clone(),
            reason: end.to_string(),
            signed: false,
            end,
        });
        // Unauthenticated peers advertise without limit, also while our disk is full: they evict only such entries.
        if joined {
            self.halted.insert(cohort);
        } else {
            self.declined.insert(cohort);
        }
    }

    /// Restarts after a panic, with the sessions in the journal, unless there were too many panics.
    pub(super) fn restart(&mut self, ctx: &mut Context<Self>) {
        let (now, intensity) = (self.shared.clock.now(), self.shared.restarts);
        let Some(pause) = self.restarts.pause(now, intensity, &mut self.guard) else {
            return ctx.stop();
        };
        tracing::error!(restarts = self.restarts.count(), "the participant panicked and restarts");
        // The last future passed to `ctx.wait` is the first to run.
        self.recover_all(ctx);
        ctx.wait(tokio::time::sleep(pause).into_actor(self));
    }

    fn stream(&self, (service, cohort_id): &CohortKey) -> StreamId {
        ParticipantSessionActor::stream(self.shared.identity.did(), service, cohort_id)
    }

    pub(super) fn put_away(&self, cohort: &CohortKey, how: Retention, ctx: &mut Context<Self>) {
        ctx.spawn(self.putting_away(cohort, how).into_actor(self));
    }

    fn putting_away(&self, cohort: &CohortKey, how: Retention) -> impl Future<Output = ()> + 'static {
        let (now, journal) = (self.shared.clock.now(), Arc::clone(&self.shared.journal));
        let stream = self.stream(cohort);
        let putting = async move {
            let put = match how {
                Retention::UntilArchived => journal.archive(&stream, now).await,
                Retention::Forget => journal.remove(&stream).await,
            };
            if let Err(error) = put {
                tracing::error!(%error, "the journal of an ended session cannot be archived or removed");
            }
        };
        putting.instrument(self.span(&cohort.1))
    }
}

fn was_not_joined(facts: &[ParticipantEvent]) -> bool {
    facts.iter().any(|fact| matches!(fact, ParticipantEvent::SessionEnded { reason: SessionEnd::NotJoined, .. }))
}

/// The archived sessions of `ours`, and the live ones with their events.
async fn read_all(
    journal: Arc<dyn Journal>,
    ours: Did,
) -> Result<(Vec<CohortKey>, Vec<(CohortKey, Events)>), JournalError> {
    let key = |stream: &StreamId| match stream.kind() {
        StreamKind::Participant { did, service, cohort_id } if did == ours => Some((service, cohort_id)),
        _ => None,
    };
    let archived = journal.archived().await?.iter().filter_map(|archived| key(&archived.stream)).collect();
    let mut live = Vec::new();
    for stream in journal.streams().await? {
        if let Some(cohort) = key(&stream) {
            // A damaged stream only concerns its own session.
            live.push((cohort, replay::events(&*journal, &stream).await));
        }
    }
    Ok((archived, live))
}

impl Handler<SessionGone> for ParticipantActor {
    type Result = ();

    fn handle(&mut self, SessionGone { cohort, end }: SessionGone, ctx: &mut Self::Context) {
        match end.failure() {
            Some(reason) => self.lost(cohort, reason.into_owned()),
            None => {
                if self.sessions.remove(&cohort).is_some_and(|child| child.declined) {
                    // A successor of one of our cohorts is considered again when its advert is repeated.
                    if !self.expects(&cohort) {
                        self.declined.insert(cohort);
                    }
                    return;
                }
                if self.retention == Retention::Forget {
                    self.put_away(&cohort, Retention::Forget, ctx);
                }
                self.ended.insert(cohort);
            }
        }
    }
}

impl Handler<ArchiveSession> for ParticipantActor {
    type Result = ResponseFuture<()>;

    fn handle(
        &mut self,
        ArchiveSession { service, cohort_id }: ArchiveSession,
        _: &mut Self::Context,
    ) -> Self::Result {
        let cohort = (service, cohort_id);
        // A host archives what was reported as failed; but once this session's journal is repaired, it can be restored.
        if self.retention == Retention::UntilArchived && !self.halted.contains(&cohort) {
            Box::pin(self.putting_away(&cohort, Retention::UntilArchived))
        } else {
            Box::pin(std::future::ready(()))
        }
    }
}
