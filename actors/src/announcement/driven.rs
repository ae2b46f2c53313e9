//! The consequences of an announcement's events, and its restart from the journal.

use std::{collections::VecDeque, time::Duration};

use actix::{AsyncContext, Context, Supervised, dev::ContextFut};
use btcr2_aggregation_protocol::{
    announcement::{Announcement, AnnouncementEvent, Effect, Input},
    error::Reject,
    machine,
};
use tokio::time::Instant;

use super::{
    actor::{AnnouncementActor, Work},
    errands::Submission,
    notice,
};
use crate::{
    engine::{Driven, Engine, Replayed},
    journal::JournalError,
    runtime::Randomness,
    supervision::{EndGuard, InTree, RestartIntensity, Restarts, replay},
    tree::{self, Row},
};

impl Driven for AnnouncementActor {
    type Machine = Announcement;

    fn engine(&mut self) -> &mut Engine<Announcement> {
        &mut self.engine
    }

    fn tick() -> Input {
        Input::Tick
    }

    fn is_heavy(_: &Announcement, _: &Input) -> bool {
        false
    }

    fn applied(&mut self, event: &AnnouncementEvent) {
        let machine = self.engine.machine();
        self.settings.claims.note(&self.cohort_id, machine);
        let notice = notice::of(&self.cohort_id, self.settings.network, machine, self.need(), event);
        self.work.notices.push_back(notice);
        if matches!(event, AnnouncementEvent::WatchStarted { .. }) {
            self.begun = Some(Instant::now());
            self.has_notified = true;
        }
    }

    fn observe(&mut self, event: &AnnouncementEvent, _: &[Effect], _: &mut Context<Self>) {
        self.work.has_news = true;
        if let Some(notice) = self.work.notices.pop_front().flatten() {
            self.notify(notice);
        }
        if let AnnouncementEvent::ForeignSpendSeen { spend, .. } = event {
            self.work.foreign.push_back(*spend);
        }
    }

    fn perform(&mut self, effect: Effect, _: &mut Context<Self>) {
        let Effect::Submit { transaction, child } = effect;
        self.work.submission = Some(Submission { transaction, child });
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        tracing::warn!(cohort_id = %self.cohort_id, %reject, "an announcement rejected an input of its host");
        self.work.refused = Some(reject);
    }

    /// The facts that were not persisted were not published either. They are found out again, from the journal.
    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        self.stand_still(&error, ctx);
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        if self.engine.is_released() && !self.engine.is_halted() && std::mem::take(&mut self.work.has_news) {
            self.notify_too_small();
        }
        self.advance(ctx);
    }
}

impl AnnouncementActor {
    /// Drops all pending work, and replays the journal after a poll interval.
    fn stand_still(&mut self, error: &JournalError, ctx: &mut Context<Self>) {
        tracing::error!(cohort_id = %self.cohort_id, %error, "an announcement stands still");
        self.engine.halt(ctx);
        self.drop_work(ctx);
        ctx.run_later(self.settings.poll, |actor, ctx| actor.replay_journal(Duration::ZERO, None, ctx));
        // It may be stopping.
        self.advance(ctx);
    }

    fn drop_work(&mut self, ctx: &mut Context<Self>) {
        let work = std::mem::replace(&mut self.work, Work::new(VecDeque::new()));
        if let Some(errand) = work.errand {
            ctx.cancel_future(errand);
        }
    }
}

impl Supervised for AnnouncementActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.panicked = true;
    }
}

impl InTree for AnnouncementActor {
    const ROW: &'static Row = &tree::ANNOUNCEMENT;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Replayed for AnnouncementActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.settings.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, _: usize) {
        // Timers and errands ended with the panic.
        self.work = Work::new(VecDeque::new());
    }

    fn restore(
        &mut self,
        events: Vec<AnnouncementEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        // A failure would be wrong: what is signed may still be announced, by the next run.
        if let Some(reason) = last {
            return Err(reason);
        }
        let rules = self.engine.machine().rules().clone();
        let machine = replay::caught(|| machine::replay(Announcement::new(rules), &events))?;
        self.settings.claims.note(&self.cohort_id, &machine);
        if machine.has_ended() {
            // The notice may have been lost with the actor.
            let (network, last) = (self.settings.network, events.last());
            let notice = last.and_then(|last| notice::of(&self.cohort_id, network, &machine, self.need(), last));
            notice.into_iter().for_each(|notice| self.notify(notice));
        }
        let rng = Randomness::System.for_actor(self.engine.stream().as_str());
        self.engine = self.engine.renewed(machine, rng);
        self.resume(ctx);
        Ok(())
    }

    fn unreadable(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        self.stand_still(&error, ctx);
    }
}
