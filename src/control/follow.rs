//! Copies the events of the service, its standing cohorts and its announcements to the feed.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{feed::Feed, shared::Shared};
use crate::actors::{
    events::{Event, Events},
    standing::notice::StandingNotice,
};

/// Follows all of them until they end.
pub(super) fn all(shared: &Arc<Shared>, standing: Receiver<Arc<StandingNotice>>) {
    actix_rt::spawn(follow(shared.parts.service.events(), shared.feed.clone()));
    if let Some(announcements) = &shared.parts.announcements {
        actix_rt::spawn(follow(announcements.events(), shared.feed.clone()));
    }
    actix_rt::spawn(follow_standing(standing, shared.feed.clone()));
}

fn lost(feed: &Feed, events: u64) {
    feed.push(&json!({ "event": "gap", "lost": events }));
}

async fn follow<N: serde::Serialize>(mut events: Events<N>, feed: Feed) {
    while let Some((_, event)) = events.next().await {
        match event {
            Event::Notice(notice) => feed.push(&*notice),
            Event::Gap(events) => lost(&feed, events),
            _ => {}
        }
    }
}

async fn follow_standing(mut notices: Receiver<Arc<StandingNotice>>, feed: Feed) {
    loop {
        match notices.recv().await {
            Ok(notice) => feed.push(&*notice),
            Err(RecvError::Lagged(events)) => lost(&feed, events),
            Err(RecvError::Closed) => return,
        }
    }
}
