//! Events from relays: malformed ones are counted and reported at a limited rate, the others are delivered.

use actix::{ActorContext, ActorFutureExt, AsyncContext, Handler, WrapFuture};
use btcr2_aggregation_protocol::{message::DecodeError, text::shown_within};
use data_encoding::HEXLOWER;

use super::{Incoming, NostrConnection};
use crate::transport::{
    Delivery,
    nostr::{reader::Read, report::shown},
};

/// The maximum length of the text about a malformed event, which includes text of its author.
const LONGEST_PROBLEM: usize = 400;

/// The maximum number of authors of malformed events that are reported in a minute.
pub(super) const MOST_AUTHORS: usize = 256;

/// The author of a malformed event.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Author {
    /// An author whose DID is known, with this key.
    Known([u8; 32]),
    /// An author with this key, whose DID is not known.
    Key([u8; 32]),
    /// Unknown; the event came from this relay.
    Unknown(usize),
}

impl NostrConnection {
    /// Counts a malformed event, and logs it at most once a minute for each author; returns whether it did.
    fn note_malformed(&mut self, relay: usize, author: Author, problem: &str) -> bool {
        self.inner.reports.note(relay, |report| report.malformed += 1);
        let key = match &author {
            Author::Known(key) | Author::Key(key) => HEXLOWER.encode(key),
            Author::Unknown(_) => "unknown".to_owned(),
        };
        let Some(more) = self.malformed.occurred(author) else { return false };
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
                tracing::debug!(connection = self.name, event = %event.id, reason, "ignored an event");
                return;
            }
            Read::Malformed(reason) => {
                self.note_malformed(relay, Author::Unknown(relay), &reason);
                return;
            }
            Read::Delivery(delivery) => delivery,
        };
        if let Delivery::Undecodable { error: DecodeError::UnknownType(_), .. } = &delivery {
            // A type of a later version.
            tracing::debug!(connection = self.name, event = %event.id, "ignored an event");
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
        // Waits for space in the inbox: the order is preserved, and the relays wait.
        let delivered = self.inbox.deliver_then(delivery, || ());
        ctx.wait(delivered.into_actor(self).map(|delivered, _, ctx| {
            if delivered.is_err() {
                ctx.stop();
            }
        }));
    }
}
