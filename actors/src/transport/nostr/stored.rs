//! What a relay had stored, put in order before it is read.

use std::{cmp::Reverse, time::Duration};

use actix::WeakAddr;
use nostr_sdk::Event;
use tokio::time::Instant;

use super::{
    connection::NostrConnection,
    reader::rank,
    relay::{Assignment, Subscription, Unread, hand_on},
};

/// What a relay had stored for a subscription, until it says that this was all.
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

/// Hands it on, in that order.
pub(super) async fn replay(
    assignment: &Assignment,
    keeper: &WeakAddr<NostrConnection>,
    Stored { of, mut events, .. }: Stored,
) -> Result<(), Unread> {
    match of {
        // Relays give the newest first. A round is told in the order in which it happened: within a second, requests come
        // before what answers them, which is the order of the phases in which the types are declared.
        Subscription::Directed => {
            events.sort_by_key(|event| (event.created_at, rank(event)));
        }
        // The newest cohort is the likeliest to be still open.
        Subscription::Adverts => events.sort_by_key(|event| Reverse(event.created_at)),
    }
    for event in events {
        hand_on(assignment, keeper, event).await?;
    }
    Ok(())
}
