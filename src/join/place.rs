//! One cohort at a time: two updates of one version would contradict each other.
//!
//! A cohort that does not answer holds nobody up: an advert may be older than its cohort's end, on a relay above all. So
//! another one is joined as well when the first has not accepted us in a while, and the update goes to whichever forms
//! first; the other one is declined.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::protocol::id::CohortId;

/// How long a cohort may take to accept us before another one is joined as well.
const GRACE: Duration = Duration::from_secs(10);

/// How long a cohort that has accepted us may take to form before another one is joined as well: its service may have been started
/// again without any memory of it.
const FORMING: Duration = Duration::from_secs(300);

/// How many adverts may wait for their turn; strangers can send any number.
const WAITING: usize = 32;

/// The member's place in a cohort, free or taken.
#[derive(Default)]
pub(super) struct Place {
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
    /// From when on another cohort may be joined as well; never, once it has formed.
    fn waits_until(&self) -> Option<Instant> {
        match self.progress {
            Progress::Asked => Some(self.since + GRACE),
            Progress::Accepted => Some(self.since + FORMING),
            Progress::Formed => None,
        }
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic happens while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `cohort_id` may be joined. `false` when too many wait already.
    pub(super) async fn take(&self, cohort_id: &CohortId) -> bool {
        {
            let mut state = self.state();
            if state.waiting >= WAITING {
                return false;
            }
            state.waiting += 1;
        }
        loop {
            // Before looking: what changes from here on is not missed.
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

    /// Takes the place for a cohort that was joined before the program was started again.
    pub(super) fn resume(&self, cohort_id: &CohortId, updating: bool) {
        let mut state = self.state();
        if updating {
            state.updating = Some(cohort_id.clone());
        }
        let (progress, since) = (Progress::Accepted, Instant::now());
        state.joined = Some(Joined { cohort_id: cohort_id.clone(), progress, since });
    }

    /// The cohort has answered.
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

    /// Whether our update is in this cohort.
    pub(super) fn is_updating(&self, cohort_id: &CohortId) -> bool {
        self.state().updating.as_ref() == Some(cohort_id)
    }

    /// Whether our update goes to this cohort: to the first that forms.
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
        let place = Place::default();
        assert!(place.take(&id("dead")).await);
        let asked = Instant::now();
        assert!(place.take(&id("alive")).await);
        assert_eq!(asked.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cohort_that_does_not_form_holds_nobody_up() {
        let place = Place::default();
        assert!(place.take(&id("forgotten")).await);
        place.accepted(&id("forgotten"));
        let asked = Instant::now();
        assert!(place.take(&id("alive")).await);
        assert_eq!(asked.elapsed(), FORMING);
    }

    #[tokio::test(start_paused = true)]
    async fn whose_cohort_formed_stays_until_it_is_over() {
        let place = Place::default();
        assert!(place.take(&id("first")).await);
        place.accepted(&id("first"));
        place.formed(&id("first"));
        let second = id("second");
        let waiting = place.take(&second);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(GRACE * 100, &mut waiting).await.is_err());
        place.leave(&id("another"));
        assert!(tokio::time::timeout(GRACE, &mut waiting).await.is_err());
        place.leave(&id("first"));
        assert!(tokio::time::timeout(Duration::ZERO, waiting).await.unwrap());
    }

    #[test]
    fn the_update_goes_to_the_cohort_that_forms_first() {
        let place = Place::default();
        assert!(place.may_update(&id("first")));
        assert!(!place.may_update(&id("second")));
        assert!(place.may_update(&id("first")));
        place.leave(&id("first"));
        assert!(place.may_update(&id("second")));
    }

    #[test]
    fn after_a_restart_the_update_stays_where_it_is() {
        let place = Place::default();
        place.resume(&id("first"), true);
        place.resume(&id("second"), false);
        assert!(!place.may_update(&id("second")));
        assert!(place.may_update(&id("first")));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait() {
        let place = std::sync::Arc::new(Place::default());
        assert!(place.take(&id("first")).await);
        place.formed(&id("first"));
        for number in 0..WAITING {
            let place = std::sync::Arc::clone(&place);
            tokio::spawn(async move { place.take(&id(&format!("waiting-{number}"))).await });
        }
        tokio::task::yield_now().await;
        assert!(!place.take(&id("one-too-many")).await);
    }
}
