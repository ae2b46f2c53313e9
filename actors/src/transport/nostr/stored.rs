//! The stored events of a relay, sorted before they are read.

use std::{cmp::Reverse, time::Duration};

use actix::WeakAddr;
use nostr_sdk::Event;
use tokio::time::Instant;

use super::{
    connection::NostrConnection,
    reader::rank,
    relay::{Assignment, Subscription, Unread, forward},
};

/// The stored events of a subscription, until the relay reports their end.
pub(super) struct Stored {
    pub(super) of: Subscription,
    pub(super) events: Vec<Event>,
    pub(super) deadline: Instant,
}

impl Stored {
    pub(super) fn new(of: Subscription, patience: Duration) -> Self {
        Self { of, events: Vec::new(), deadline: Instant::now() + patience }
    }
}

/// Passes them on in that order.
pub(super) async fn replay(
    assignment: &Assignment,
    keeper: &WeakAddr<NostrConnection>,
    Stored { of, mut events, .. }: Stored,
) -> Result<(), Unread> {
    match of {
        // Relays send the newest first. A round is replayed in its original order: within a second, requests come
        // before their answers, which is the order of the phases in which the types are declared.
        Subscription::Directed => {
            events.sort_by_key(|event| (event.created_at, rank(event)));
        }
        // The newest cohort is the most likely to be still open.
        Subscription::Adverts => events.sort_by_key(|event| Reverse(event.created_at)),
    }
    for event in events {
        forward(assignment, keeper, event).await?;
    }
    Ok(())
}
