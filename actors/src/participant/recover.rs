//! The sessions of previous runs, which are started from the journal when the participant starts; and the removal of the
//! journals of sessions that are not needed.

use std::sync::Arc;

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::{
        event::ParticipantEvent,
        participant::{
            ParticipantCohort, ParticipantConfig,
            membership::{CohortKey, MembershipEvent, MembershipInput, Previous, PreviousSession},
        },
    },
    did::Did,
};
use tracing::Instrument;

use super::{ParticipantActor, post, session::ParticipantSessionActor};
use crate::{
    engine::{Driven, Replayed},
    journal::{Journal, JournalError, StreamId, StreamKind},
    supervision::{End, replay},
};

/// A session's actor has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct SessionGone {
    cohort: CohortKey,
    end: End,
}

/// Reports the end of the session's actor to its participant.
pub(super) fn report_end(ctx: &Context<ParticipantActor>, cohort: CohortKey) -> impl FnOnce(End) + 'static {
    let participant = ctx.address().recipient();
    move |end| post::send_at_the_end(&participant, SessionGone { cohort, end })
}

type Events = Result<Vec<ParticipantEvent>, JournalError>;

impl ParticipantActor {
    /// Replays the journal of its memberships, and starts every session of this participant that the journal has and the
    /// host has not archived.
    pub(super) fn recover(&self, ctx: &mut Context<Self>) {
        let (journal, stream) = (Arc::clone(&self.shared.journal), self.engine.stream().clone());
        let reading = async move { replay::events(&*journal, &stream).await };
        ctx.wait(reading.into_actor(self).map(|read, participant, ctx| {
            let events = read.unwrap_or_else(|error| participant.rewrite(&error, ctx));
            if let Err(reason) = participant.restore(events, None, ctx) {
                tracing::error!(reason, "the participant does not start");
                participant.guard.fail(reason);
                ctx.stop();
            }
        }));
    }

    /// The journal of the memberships is damaged. All that it has but the awaited successors follows from the sessions'
    /// journals: it is removed, and written again.
    fn rewrite(&self, error: &JournalError, ctx: &mut Context<Self>) -> Vec<MembershipEvent> {
        tracing::error!(%error, "the journal of the memberships cannot be read, and is written again");
        // Before anything is appended: calls for one stream take effect in their order.
        let removed = self.shared.journal.remove(self.engine.stream());
        let removing = async move {
            if let Err(error) = removed.await {
                tracing::error!(%error, "the journal of the memberships cannot be removed");
            }
        };
        ctx.spawn(removing.into_actor(self));
        Vec::new()
    }

    /// Starts the sessions in the journal.
    pub(super) fn resume_sessions(&self, ctx: &mut Context<Self>) {
        let journal = Arc::clone(&self.shared.journal);
        let did = self.shared.identity.did().clone();
        // Other messages wait: a message must find its session, and an old advert must not start the session anew.
        ctx.wait(read_all(journal, did).into_actor(self).map(|read, participant, ctx| match read {
            Err(error) => participant.unreadable(&error, ctx),
            Ok((archived, live)) => {
                let mut previous = Previous { archived, sessions: Vec::new() };
                for (cohort, events) in live {
                    let session = participant.replay_session(&cohort, events);
                    previous.sessions.push((cohort, session));
                }
                participant.feed(MembershipInput::Resumed(previous), ctx);
            }
        }));
    }

    fn unreadable(&mut self, error: &JournalError, ctx: &mut Context<Self>) {
        // Without its journal it would opt in again to cohorts that it is in.
        tracing::error!(%error, "the journal cannot be read, the participant does not start");
        self.guard.journal_failed();
        ctx.stop();
    }

    /// Replays a session of a previous run; its machine is started when its memberships are known.
    fn replay_session(&mut self, cohort: &CohortKey, events: Events) -> Result<PreviousSession, String> {
        let events = events.map_err(|error| error.to_string())?;
        let session = PreviousSession::read(&events);
        let session = session.ok_or_else(|| "its journal does not begin with an advert".to_owned())?;
        if !session.was_declined() {
            let machine = replayed(Arc::clone(&self.shared.config), &session, &events)?;
            self.replayed.insert(cohort.clone(), machine);
        }
        Ok(session)
    }

    fn stream(&self, CohortKey { service, cohort_id }: &CohortKey) -> StreamId {
        ParticipantSessionActor::stream(self.shared.identity.did(), service, cohort_id)
    }

    pub(super) fn forget(&self, cohort: &CohortKey, ctx: &mut Context<Self>) {
        // Called here, because calls for one stream take effect in their order: the cohort may be considered again.
        let removed = self.shared.journal.remove(&self.stream(cohort));
        let removing = async move {
            if let Err(error) = removed.await {
                tracing::error!(%error, "the journal of an ended session cannot be removed");
            }
        };
        ctx.spawn(removing.instrument(self.span(&cohort.cohort_id)).into_actor(self));
    }
}

fn replayed(
    config: Arc<ParticipantConfig>,
    session: &PreviousSession,
    events: &[ParticipantEvent],
) -> Result<ParticipantCohort, String> {
    replay::caught(|| {
        let mut machine = ParticipantCohort::new(config, Arc::clone(session.advert()));
        replay::apply(&mut machine, events, |_, _, _| {});
        machine
    })
}

/// The archived sessions of `ours`, and the live ones with their events.
async fn read_all(
    journal: Arc<dyn Journal>,
    ours: Did,
) -> Result<(Vec<CohortKey>, Vec<(CohortKey, Events)>), JournalError> {
    let key = |stream: &StreamId| match stream.kind() {
        StreamKind::Participant { did, service, cohort_id } if did == ours => {
            Some(CohortKey { service, cohort_id })
        }
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
        self.sessions.remove(&cohort);
        let failure = end.failure().map(|failure| failure.into_owned());
        self.feed(MembershipInput::SessionStopped { cohort, failure }, ctx);
    }
}
