//! What arrives from relays: what is no message is counted and seldom reported, and the rest is handed on.

use actix::{ActorContext, ActorFutureExt, AsyncContext, Handler, WrapFuture};
use btcr2_aggregation_protocol::{message::DecodeError, text::shown_within};
use data_encoding::HEXLOWER;

use super::{Incoming, NostrConnection};
use crate::transport::{
    Delivery, hand_over,
    nostr::{reader::Read, report::shown},
};

/// Longest text of what is wrong with an event: parts of it are its author's words.
const LONGEST_PROBLEM: usize = 400;

/// Most authors of malformed events that are reported in a minute.
pub(super) const MOST_AUTHORS: usize = 256;

/// Who has published a malformed event.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Author {
    /// Somebody whose DID is known, by this key.
    Known([u8; 32]),
    /// Whoever has this key.
    Key([u8; 32]),
    /// Nobody knows; it came from this relay.
    Unknown(usize),
}

impl NostrConnection {
    /// Counts a malformed event, and logs it at most once a minute for each author: whether it did.
    fn note_malformed(&mut self, relay: usize, author: Author, problem: &str) -> bool {
        self.inner.reports.note(relay, |report| report.malformed += 1);
        let key = match &author {
            Author::Known(key) | Author::Key(key) => HEXLOWER.encode(key),
            Author::Unknown(_) => "unknown".to_owned(),
        };
        let Some(more) = self.malformed.happened(author) else { return false };
        let relay = self.inner.urls.get(relay).map(shown).unwrap_or_default();
        let problem = shown_within(problem, LONGEST_PROBLEM);
        tracing::warn!(connection = self.name, relay, key, %problem, more, "a malformed event is refused");
        true
    }
}

impl Handler<Incoming> for NostrConnection {
    type Result = ();

    fn handle(&mut self, Incoming { relay, event }: Incoming, ctx: &mut Self::Context) {
        let read = self.reader.read(&event);
        self.inner.reports.note(relay, |report| {
            report.received += 1;
            report.duplicates += u64::from(matches!(read, Read::Copy));
        });
        let delivery = match read {
            Read::Copy => return,
            Read::Foreign(reason) => {
                tracing::debug!(connection = self.name, event = %event.id, reason, "an event is passed over");
                return;
            }
            Read::Malformed(reason) => {
                self.note_malformed(relay, Author::Unknown(relay), &reason);
                return;
            }
            Read::Delivery(delivery) => delivery,
        };
        if let Delivery::Undecodable { error: DecodeError::UnknownType(_), .. } = &delivery {
            // Of a later version.
            tracing::debug!(connection = self.name, event = %event.id, "an event is passed over");
        } else {
            let key = event.pubkey.to_bytes();
            let author = match &delivery {
                Delivery::Undecodable { .. } => Some(Author::Known(key)),
                Delivery::Unverified { .. } => Some(Author::Key(key)),
                _ => None,
            };
            if author.is_some_and(|author| !self.note_malformed(relay, author, &format!("{delivery:?}"))) {
                return;
            }
        }
        // Waits for room in the inbox: order is kept, and the relays wait with it.
        let delivered = hand_over(&self.inbox, delivery, || ());
        ctx.wait(delivered.into_actor(self).map(|delivered, _, ctx| {
            if delivered.is_err() {
                ctx.stop();
            }
        }));
    }
}
