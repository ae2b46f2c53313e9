//! What has happened lately in each cohort, and who has contributed to its signing: from the events, in memory.
//!
//! The machines of cohorts know who is awaited until they sign; then the session of the signers does, which is not asked for that. What
//! came before a restart is not known here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use serde_json::Value;

/// The most cohorts, and the most events of each. Beyond it the oldest is dropped.
const MOST_COHORTS: NonZero<usize> = NonZero::new(512).expect("not zero");
const MOST_EVENTS: usize = 128;
/// The most of them that peers can cause.
const MOST_OF_PEERS: usize = 16;

/// The most members of which a contribution is remembered.
const MOST_MEMBERS: usize = 4_096;

/// What members contribute to the steps of a cohort: too many for a timeline.
const CONTRIBUTIONS: [&str; 8] = [
    "opt-in-received",
    "participant-accepted",
    "update-received",
    "validation-received",
    "presence-confirmed",
    "nonce-received",
    "partial-signature-received",
    "fallback-signature-received",
];

/// The steps of signing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Members send nonces.
    Nonces,
    /// Members send partial signatures.
    Signatures,
    /// Members send signatures of the fallback.
    Fallback,
}

impl Stage {
    /// As the API names it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nonces => "nonces",
            Self::Signatures => "partial-signatures",
            Self::Fallback => "fallback-signatures",
        }
    }
}

/// A step of signing, and who has made it.
#[derive(Clone, Debug)]
pub(crate) struct Signing {
    pub(crate) stage: Stage,
    pub(crate) given: BTreeSet<String>,
}

/// The last contribution of a member.
#[derive(Clone, Debug)]
pub(crate) struct Contribution {
    pub(crate) event: &'static str,
    pub(crate) at: u64,
}

#[derive(Default)]
struct Timeline {
    events: VecDeque<Value>,
    last: BTreeMap<String, Contribution>,
    signing: Option<Signing>,
}

/// The timelines. Clones share them.
#[derive(Clone)]
pub(crate) struct Timelines(Arc<Mutex<LruCache<String, Timeline>>>);

impl Default for Timelines {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(MOST_COHORTS))))
    }
}

/// The cohort that an event is about.
fn cohort_of(event: &Value) -> Option<&str> {
    let change = &event["change"];
    let of_cohort = change["action"].as_str().is_some_and(|action| {
        ["cohort.", "standing.", "coins."].iter().any(|kind| action.starts_with(kind))
            && !action.ends_with(".create")
    });
    let target = change["target"].as_str().filter(|_| of_cohort);
    event["cohortId"].as_str().or(target)
}

/// Whether any peer can cause such an event.
fn is_by_peer(event: &Value) -> bool {
    event["event"].as_str().is_some_and(|kind| kind.starts_with("message-"))
}

impl Timelines {
    /// Takes an event, with its time.
    pub(crate) fn take(&self, event: &Value) {
        let (Some(cohort_id), Some(kind)) = (cohort_of(event), event["event"].as_str()) else { return };
        let mut timelines = self.lock();
        // Any peer can cause these, for identifiers of its choice: they make no timeline, and push nothing else out.
        let by_peer = is_by_peer(event);
        let timeline = match by_peer {
            true => timelines.peek_mut(cohort_id),
            false => Some(timelines.get_or_insert_mut(cohort_id.to_owned(), Timeline::default)),
        };
        let Some(timeline) = timeline else { return };
        let contribution = CONTRIBUTIONS.iter().find(|known| **known == kind);
        if let (Some(event_kind), Some(did)) = (contribution, event["participant"].as_str())
            && (timeline.last.len() < MOST_MEMBERS || timeline.last.contains_key(did))
        {
            let at = event["at"].as_u64().unwrap_or_default();
            timeline.last.insert(did.to_owned(), Contribution { event: event_kind, at });
        }
        let stage = match kind {
            "signing-started" | "nonce-received" => Some(Stage::Nonces),
            "partial-signature-received" => Some(Stage::Signatures),
            "fallback-started" | "fallback-signature-received" => Some(Stage::Fallback),
            "signing-complete" | "cohort-failed" => {
                timeline.signing = None;
                None
            }
            _ => None,
        };
        // Only a signing that was followed from its start shows who is missing.
        if let Some(stage) = stage {
            let starts = matches!(kind, "signing-started" | "fallback-started");
            match &mut timeline.signing {
                Some(signing) if signing.stage == stage && !starts => {}
                Some(signing) => *signing = Signing { stage, given: BTreeSet::new() },
                None if starts => timeline.signing = Some(Signing { stage, given: BTreeSet::new() }),
                None => {}
            }
            if let (Some(signing), Some(did)) = (&mut timeline.signing, event["participant"].as_str()) {
                signing.given.insert(did.to_owned());
            }
        }
        if contribution.is_none() {
            let of_peers = timeline.events.iter().filter(|event| is_by_peer(event)).count();
            if by_peer && of_peers >= MOST_OF_PEERS {
                let first = timeline.events.iter().position(is_by_peer);
                first.and_then(|first| timeline.events.remove(first));
            } else if timeline.events.len() >= MOST_EVENTS {
                timeline.events.pop_front();
            }
            timeline.events.push_back(event.clone());
        }
    }

    /// The last events of a cohort, the first one first; `None` if there is none.
    pub(crate) fn events(&self, cohort_id: &str) -> Option<Vec<Value>> {
        Some(self.lock().peek(cohort_id)?.events.iter().cloned().collect())
    }

    /// The last contribution of each member.
    pub(crate) fn contributions(&self, cohort_id: &str) -> BTreeMap<String, Contribution> {
        self.lock().peek(cohort_id).map(|timeline| timeline.last.clone()).unwrap_or_default()
    }

    /// The step of a cohort's signing, if it is known. `members` is how many nonces there are to be.
    pub(crate) fn signing(&self, cohort_id: &str, members: usize) -> Option<Signing> {
        let mut signing = self.lock().peek(cohort_id)?.signing.clone()?;
        if signing.stage == Stage::Nonces && signing.given.len() >= members {
            signing = Signing { stage: Stage::Signatures, given: BTreeSet::new() };
        }
        Some(signing)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<String, Timeline>> {
        // No code panics while the value is partly changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_timeline_has_the_steps_and_who_has_not_signed() {
        let timelines = Timelines::default();
        let push = |kind: &str, participant: Option<&str>| {
            timelines.take(&json!({ "event": kind, "at": 7, "cohortId": "c", "participant": participant }));
        };
        let given = || {
            timelines.signing("c", 2).map(|signing| (signing.stage, signing.given.into_iter().collect::<Vec<_>>()))
        };
        push("nonce-received", Some("a"));
        assert_eq!(given(), None, "the signing began before a restart");
        push("signing-started", None);
        assert_eq!(given(), Some((Stage::Nonces, vec![])));
        push("nonce-received", Some("a"));
        assert_eq!(given(), Some((Stage::Nonces, vec!["a".to_owned()])));
        push("nonce-received", Some("b"));
        assert_eq!(given(), Some((Stage::Signatures, vec![])), "all nonces are there");
        push("partial-signature-received", Some("b"));
        assert_eq!(given(), Some((Stage::Signatures, vec!["b".to_owned()])));
        push("fallback-started", None);
        assert_eq!(given(), Some((Stage::Fallback, vec![])));
        push("signing-complete", None);
        assert_eq!(given(), None);
        timelines
            .take(&json!({ "event": "changed", "at": 8, "change": { "action": "cohort.extend", "target": "c" } }));
        timelines.take(&json!({ "event": "changed", "at": 8, "change": { "action": "ban.add", "target": "c" } }));
        let events = timelines.events("c").unwrap_or_default();
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
        assert_eq!(kinds, ["signing-started", "fallback-started", "signing-complete", "changed"]);
        let last = timelines.contributions("c");
        assert_eq!((last["b"].event, last["b"].at, last.len()), ("partial-signature-received", 7, 2));
        assert!(timelines.events("d").is_none());
    }

    #[test]
    fn many_events_and_cohorts_do_not_make_it_grow() {
        let timelines = Timelines::default();
        timelines.take(&json!({ "event": "keygen-complete", "cohortId": "peers", "at": 0 }));
        for number in 0..2_000 {
            timelines.take(&json!({ "event": "message-rejected", "cohortId": "peers", "at": number }));
            timelines.take(&json!({ "event": "message-rejected", "cohortId": format!("x{number}"), "at": number }));
        }
        assert_eq!(timelines.events("peers").map(|events| events.len()), Some(1 + MOST_OF_PEERS));
        assert_eq!(timelines.lock().len(), 1);
        for number in 0..2_000 {
            timelines.take(&json!({ "event": "cohort-reformed", "cohortId": "c", "at": number }));
            timelines
                .take(&json!({ "event": "cohort-advertised", "cohortId": format!("c{number}"), "at": number }));
        }
        assert_eq!(timelines.events("c").map(|events| events.len()), Some(MOST_EVENTS));
        assert_eq!(timelines.lock().len(), MOST_COHORTS.get());
    }
}
