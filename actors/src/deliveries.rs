//! The messages that were sent to members, and whether they arrived: no member is blamed for not answering a message
//! that it never received.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use btcr2_aggregation_protocol::{
    cohort::Undelivered,
    did::Did,
    id::CohortId,
    message::{Body, SharedBody},
};

/// The last message that a member was sent in its cohort.
#[derive(Debug)]
struct Last {
    kind: &'static str,
    delivered: bool,
    /// Which carrier did not accept it, and why.
    problem: Option<String>,
}

type ByMember = BTreeMap<Did, Last>;

/// The deliveries of a service. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Deliveries {
    /// Whether the transport reports deliveries.
    known: bool,
    cohorts: Arc<Mutex<BTreeMap<CohortId, ByMember>>>,
}

impl Deliveries {
    /// Without deliveries. Every message counts as delivered unless the transport reports deliveries (`known`).
    pub(crate) fn new(known: bool) -> Self {
        Self { known, cohorts: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CohortId, ByMember>> {
        // No code panics while it holds the lock.
        self.cohorts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was passed to the transport. A message that reports an end requires no answer.
    pub(crate) fn sent(&self, to: &Did, body: &SharedBody) {
        if !self.known || matches!(&**body, Body::CohortEnded(_)) {
            return;
        }
        let kind = body.short_type();
        let mut cohorts = self.lock();
        let members = cohorts.entry(body.cohort_id().clone()).or_default();
        match members.get(to) {
            // A repetition, which the member may have received already.
            Some(last) if last.kind == kind => {}
            _ => drop(members.insert(to.clone(), Last { kind, delivered: false, problem: None })),
        }
    }

    fn of(&self, cohort_id: &CohortId, to: &Did, kind: &str, change: impl FnOnce(&mut Last)) {
        let mut cohorts = self.lock();
        let last = cohorts.get_mut(cohort_id).and_then(|members| members.get_mut(to));
        if let Some(last) = last.filter(|last| last.kind == kind) {
            change(last);
        }
    }

    /// The message has reached the member.
    pub(crate) fn delivered(&self, cohort_id: &CohortId, to: &Did, kind: &str) {
        self.of(cohort_id, to, kind, |last| last.delivered = true);
    }

    /// The message has not reached the member yet.
    pub(crate) fn delayed(&self, cohort_id: &CohortId, to: &Did, kind: &str, reason: String) {
        self.of(cohort_id, to, kind, |last| last.problem = Some(reason));
    }

    /// Those of `members` that may not have received the last message to them, and why.
    pub(crate) fn undelivered<'d>(
        &self,
        cohort_id: &CohortId,
        members: impl IntoIterator<Item = &'d Did>,
    ) -> BTreeMap<Did, Undelivered> {
        if !self.known {
            return BTreeMap::new();
        }
        let cohorts = self.lock();
        let sent = cohorts.get(cohort_id);
        let undelivered = |to: &'d Did| match sent.and_then(|sent| sent.get(to)) {
            Some(Last { delivered: true, .. }) => None,
            Some(Last { problem: Some(problem), .. }) => {
                Some((to.clone(), Undelivered::NotCarried(problem.clone())))
            }
            // Nothing was sent since the program started, and the member has not fetched what was sent before.
            Some(Last { problem: None, .. }) | None => Some((to.clone(), Undelivered::NotFetched)),
        };
        members.into_iter().filter_map(undelivered).collect()
    }

    /// The messages of this cohort that no carrier accepted: the number of members, and one of the reasons.
    pub(crate) fn not_carried(&self, cohort_id: &CohortId) -> Option<(usize, String)> {
        let cohorts = self.lock();
        let members = cohorts.get(cohort_id)?;
        let mut problems = members.values().filter(|last| !last.delivered).filter_map(|last| last.problem.as_ref());
        let first = problems.next()?.clone();
        Some((1 + problems.count(), first))
    }

    /// The cohort has ended.
    pub(crate) fn forget(&self, cohort_id: &CohortId) {
        self.lock().remove(cohort_id);
    }
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::{
        identity::Identity, key::SecretKey, message::update::SubmitNonIncluded, network::Network,
    };

    use super::*;

    fn did(byte: u8) -> Did {
        Identity::from_key(SecretKey::from_bytes(&[byte; 32]).unwrap(), Network::Regtest).did().clone()
    }

    fn cohort() -> CohortId {
        CohortId::parse("c").unwrap()
    }

    fn note() -> SharedBody {
        Body::from(SubmitNonIncluded { cohort_id: cohort() }).into()
    }

    #[test]
    fn the_last_message_is_delivered_once_the_carrier_reports_it() {
        let deliveries = Deliveries::new(true);
        let kind = note().short_type();
        let of = |member| deliveries.undelivered(&cohort(), [&did(member)]).remove(&did(member));
        assert_eq!(of(1), Some(Undelivered::NotFetched));
        deliveries.sent(&did(1), &note());
        deliveries.sent(&did(2), &note());
        deliveries.delayed(&cohort(), &did(1), kind, "wss://x: too large".to_owned());
        let not_carried = Undelivered::NotCarried("wss://x: too large".to_owned());
        assert_eq!(of(1), Some(not_carried));
        assert_eq!(of(2), Some(Undelivered::NotFetched));
        assert_eq!(deliveries.not_carried(&cohort()), Some((1, "wss://x: too large".to_owned())));
        // A delivery of another message changes nothing.
        deliveries.delivered(&cohort(), &did(1), "other");
        assert!(of(1).is_some());
        deliveries.delivered(&cohort(), &did(1), kind);
        deliveries.sent(&did(1), &note());
        assert_eq!(of(1), None, "a repetition does not undo the delivery");
        deliveries.forget(&cohort());
        assert!(deliveries.lock().is_empty());
    }

    #[test]
    fn without_delivery_reports_every_message_is_delivered() {
        let deliveries = Deliveries::new(false);
        deliveries.sent(&did(1), &note());
        assert!(deliveries.undelivered(&cohort(), [&did(1)]).is_empty());
        assert!(deliveries.lock().is_empty());
    }
}
