//! The adverts that are live, and the streams of those who read them.

use std::{collections::BTreeMap, sync::Arc};

use btcr2_aggregation_protocol::{
    did::Did,
    envelope::SealedEnvelope,
    id::CohortId,
    message::{Message, SharedBody},
    time::Timestamp,
};
use rand_chacha::ChaCha20Rng;

use super::{
    directory::Local,
    stream::{EventStream, event, heartbeat},
};

/// The adverts board.
#[derive(Default)]
pub(super) struct Adverts {
    live: BTreeMap<(Did, CohortId), (Arc<Local>, SharedBody)>,
    streams: Vec<EventStream>,
}

impl Adverts {
    /// A cohort's advert is on, or is repeated: every reader gets it, signed now.
    pub(super) fn publish(&mut self, from: &Arc<Local>, body: &SharedBody, now: Timestamp, rng: &mut ChaCha20Rng) {
        let key = (from.identity.did().clone(), body.cohort_id().clone());
        self.live.insert(key, (Arc::clone(from), body.clone()));
        if let Some(event) = sealed(from, body, now, rng) {
            self.streams.retain(|stream| stream.send(event.clone()));
        }
    }

    /// A cohort admits nobody any more.
    pub(super) fn withdraw(&mut self, from: &Did, cohort_id: &CohortId) {
        self.live.remove(&(from.clone(), cohort_id.clone()));
    }

    /// A connection is gone, and what it advertised with it; not what a later one of the same identity advertises.
    pub(super) fn withdraw_all(&mut self, connection: u64) {
        self.live.retain(|_, (advertiser, _)| advertiser.connection != connection);
    }

    /// A new reader gets every live advert, signed now, and then what comes. `false` when there are `most` readers already.
    pub(super) fn feed(&mut self, stream: EventStream, most: usize, now: Timestamp, rng: &mut ChaCha20Rng) -> bool {
        if self.streams.len() >= most {
            return false;
        }
        let fed = self
            .live
            .values()
            .all(|(from, body)| sealed(from, body, now, rng).is_none_or(|event| stream.send(event)));
        if fed {
            self.streams.push(stream);
        }
        true
    }

    pub(super) fn beat(&mut self) {
        self.streams.retain(|stream| stream.send(heartbeat()));
    }

    pub(super) fn close(&mut self) {
        self.streams.clear();
    }
}

fn sealed(from: &Local, body: &SharedBody, now: Timestamp, rng: &mut ChaCha20Rng) -> Option<actix_web::web::Bytes> {
    let message = Message::new(from.identity.did().clone(), None, body.clone());
    let envelope = SealedEnvelope::seal_with_rng(&message, from.identity.secret_key(), now, rng).ok()?;
    Some(event("advert", None, &envelope))
}
