//! For tests: makes an actor of a kind panic at its nth poll, or at each poll.

use std::{cell::RefCell, collections::BTreeMap};

thread_local! {
    static PLAN: RefCell<Plan> = RefCell::default();
}

#[derive(Default)]
struct Plan {
    polls: BTreeMap<&'static str, u32>,
    panics: Option<(&'static str, u32)>,
    always: Option<&'static str>,
}

/// Resets the counts. With `panics`, the nth poll of an actor of that kind panics.
pub(crate) fn plan(panics: Option<(&'static str, u32)>) {
    PLAN.with_borrow_mut(|plan| *plan = Plan { panics, ..Plan::default() });
}

/// From now on actors of that kind panic at every poll.
pub(crate) fn always(kind: &'static str) {
    PLAN.with_borrow_mut(|plan| plan.always = Some(kind));
}

/// The number of polls of each kind of actor since the reset.
pub(crate) fn polls() -> BTreeMap<&'static str, u32> {
    PLAN.with_borrow(|plan| plan.polls.clone())
}

/// Whether the planned panic has happened.
pub(crate) fn has_panicked() -> bool {
    PLAN.with_borrow(|plan| plan.panics.is_none())
}

/// An actor of this kind is about to be polled.
pub(crate) fn poll(kind: &'static str) {
    let panics = PLAN.with_borrow_mut(|plan| {
        let polls = plan.polls.entry(kind).or_default();
        *polls += 1;
        plan.panics.take_if(|(planned, nth)| *planned == kind && polls == nth).is_some()
            || plan.always == Some(kind)
    });
    assert!(!panics, "{kind} panics, as this test wants");
}
