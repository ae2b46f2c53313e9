//! One cohort at a time: two updates of one version would contradict each other.
//!
//! A cohort that does not answer must not block the member: an advert may be older than its cohort's end, especially on
//! a relay. A second cohort is therefore joined if the first has not accepted us within a time limit. The update goes
//! to the cohort that forms first; the other one is declined.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::protocol::id::CohortId;

/// How long a cohort may take to accept us before another one is joined too.
const GRACE: Duration = Duration::from_secs(10);

/// How long a cohort that has accepted us may take to form before another one is joined too: its service may have
/// restarted without its state.
const FORMING: Duration = Duration::from_secs(300);

/// How many adverts may wait for their turn; unauthenticated peers can send any number.
const WAITING: usize = 32;

/// The member's slot for a cohort, free or taken.
#[derive(Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    joined: Option<Joined>,
    updating: Option<CohortId>,
    waiting: usize,
}

struct Joined {
    cohort_id: CohortId,
    progress: Progress,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Asked,
    Accepted,
    Formed,
}

impl Joined {
    /// When another cohort may be joined too; never, once it has formed.
    fn waits_until(&self) -> Option<Instant> {
        match self.progress {
            Progress::Asked => Some(self.since + GRACE),
            Progress::Accepted => Some(self.since + FORMING),
            Progress::Formed => None,
        }
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `cohort_id` may be joined. Returns `false` if too many adverts wait already.
    pub(super) async fn take(&self, cohort_id: &CohortId) -> bool {
        {
            let mut state = self.state();
            if state.waiting >= WAITING {
                return false;
            }
            state.waiting += 1;
        }
        loop {
            // Registered before the check, so that no change is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let answer_by = {
                let mut state = self.state();
                let answer_by = state.joined.as_ref().map(Joined::waits_until);
                let free = answer_by.is_none_or(|by| by.is_some_and(|by| by <= Instant::now()));
                if free {
                    state.waiting -= 1;
                    let (progress, since) = (Progress::Asked, Instant::now());
                    state.joined = Some(Joined { cohort_id: cohort_id.clone(), progress, since });
                    return true;
                }
                answer_by.flatten()
            };
            match answer_by {
                Some(by) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(by) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Takes the slot for a cohort that was joined before the restart.
    pub(super) fn resume(&self, cohort_id: &CohortId, updating: bool) {
        let mut state = self.state();
        if updating {
            state.updating = Some(cohort_id.clone());
        }
        let (progress, since) = (Progress::Accepted, Instant::now());
        state.joined = Some(Joined { cohort_id: cohort_id.clone(), progress, since });
    }

    /// The cohort has accepted us.
    pub(super) fn accepted(&self, cohort_id: &CohortId) {
        self.progress(cohort_id, Progress::Accepted);
    }

    /// The cohort has formed.
    pub(super) fn formed(&self, cohort_id: &CohortId) {
        self.progress(cohort_id, Progress::Formed);
    }

    fn progress(&self, cohort_id: &CohortId, progress: Progress) {
        if let Some(joined) = &mut self.state().joined
            && joined.cohort_id == *cohort_id
            && joined.progress != Progress::Formed
        {
            (joined.progress, joined.since) = (progress, Instant::now());
        }
    }

    /// The cohort is over for us.
    pub(super) fn leave(&self, cohort_id: &CohortId) {
        let mut state = self.state();
        if state.joined.as_ref().is_some_and(|joined| joined.cohort_id == *cohort_id) {
            state.joined = None;
        }
        if state.updating.as_ref() == Some(cohort_id) {
            state.updating = None;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// No update of ours goes to this cohort after all.
    pub(super) fn release(&self, cohort_id: &CohortId) {
        let mut state = self.state();
        if state.updating.as_ref() == Some(cohort_id) {
            state.updating = None;
        }
    }

    /// Whether our update was submitted in this cohort.
    pub(super) fn is_updating(&self, cohort_id: &CohortId) -> bool {
        self.state().updating.as_ref() == Some(cohort_id)
    }

    /// Whether our update goes to this cohort: it goes to the first that forms.
    pub(super) fn may_update(&self, cohort_id: &CohortId) -> bool {
        self.state().updating.get_or_insert_with(|| cohort_id.clone()) == cohort_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> CohortId {
        CohortId::parse(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_cohort_that_does_not_answer_holds_nobody_up() {
        let slot = Slot::default();
        assert!(slot.take(&id("dead")).await);
        let asked = Instant::now();
        assert!(slot.take(&id("alive")).await);
        assert_eq!(asked.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cohort_that_does_not_form_holds_nobody_up() {
        let slot = Slot::default();
        assert!(slot.take(&id("forgotten")).await);
        slot.accepted(&id("forgotten"));
        let asked = Instant::now();
        assert!(slot.take(&id("alive")).await);
        assert_eq!(asked.elapsed(), FORMING);
    }

    #[tokio::test(start_paused = true)]
    async fn whose_cohort_formed_stays_until_it_is_over() {
        let slot = Slot::default();
        assert!(slot.take(&id("first")).await);
        slot.accepted(&id("first"));
        slot.formed(&id("first"));
        let second = id("second");
        let waiting = slot.take(&second);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(GRACE * 100, &mut waiting).await.is_err());
        slot.leave(&id("another"));
        assert!(tokio::time::timeout(GRACE, &mut waiting).await.is_err());
        slot.leave(&id("first"));
        assert!(tokio::time::timeout(Duration::ZERO, waiting).await.unwrap());
    }

    #[test]
    fn the_update_goes_to_the_cohort_that_forms_first() {
        let slot = Slot::default();
        assert!(slot.may_update(&id("first")));
        assert!(!slot.may_update(&id("second")));
        assert!(slot.may_update(&id("first")));
        slot.leave(&id("first"));
        assert!(slot.may_update(&id("second")));
    }

    #[test]
    fn after_a_restart_the_update_stays_where_it_is() {
        let slot = Slot::default();
        slot.resume(&id("first"), true);
        slot.resume(&id("second"), false);
        assert!(!slot.may_update(&id("second")));
        assert!(slot.may_update(&id("first")));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait() {
        let slot = std::sync::Arc::new(Slot::default());
        assert!(slot.take(&id("first")).await);
        slot.formed(&id("first"));
        for number in 0..WAITING {
            let slot = std::sync::Arc::clone(&slot);
            tokio::spawn(async move { slot.take(&id(&format!("waiting-{number}"))).await });
        }
        tokio::task::yield_now().await;
        assert!(!slot.take(&id("one-too-many")).await);
    }
}
