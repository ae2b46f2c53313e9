//! Server-sent events: the event of an envelope, and the streams that carry events.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix_web::web::Bytes;
use btcr2_aggregation_protocol::{envelope::SealedEnvelope, message::SharedBody};
use tokio::sync::mpsc;

/// The maximum number of bytes in one write. A connection copies them into a buffer, which it does not free until it
/// ends, so with a thousand streams this counts a thousand times.
const PIECE: usize = 4_000;

/// An event in its serialized form. All events with the same body share its text. Boxed, because a stream allocates
/// space for some dozens of them when it is opened.
#[derive(Clone)]
pub(super) struct Event(Box<[Bytes; 3]>);

impl Event {
    fn of(pieces: [Bytes; 3]) -> Self {
        Self(Box::new(pieces))
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// Removes and returns the next piece to write.
    fn next_piece(&mut self) -> Option<Bytes> {
        let rest = self.0.iter_mut().find(|rest| !rest.is_empty())?;
        Some(rest.split_to(rest.len().min(PIECE)))
    }
}

/// A body's text, as an owner for [`Bytes`].
struct Text(SharedBody);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.json().as_bytes()
    }
}

/// The event that carries `envelope`.
pub(super) fn event(name: &str, id: Option<u64>, envelope: &SealedEnvelope) -> Event {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let head = format!("{id}event: {name}\ndata: {}", envelope.head);
    let body = on_one_line(&envelope.body);
    let tail = format!("{}\n\n", envelope.tail);
    if head.len() + body.len() + tail.len() <= PIECE {
        return Event::of([Bytes::from([&head, &*body, &tail].concat()), Bytes::new(), Bytes::new()]);
    }
    let body = match body {
        Cow::Borrowed(_) => Bytes::from_owner(Text(envelope.body.clone())),
        Cow::Owned(body) => Bytes::from(body),
    };
    Event::of([Bytes::from(head), body, Bytes::from(tail)])
}

/// The text of a body without line breaks, as an event's line must be. Line breaks of a forwarded body become spaces:
/// between JSON tokens they have no meaning, and a JSON string cannot contain them.
fn on_one_line(body: &SharedBody) -> Cow<'_, str> {
    if body.is_on_one_line() {
        Cow::Borrowed(body.json())
    } else {
        Cow::Owned(body.json().replace(['\n', '\r'], " "))
    }
}

/// A comment: it prevents proxies from closing an idle stream, and reveals closed connections.
pub(super) fn heartbeat() -> Event {
    Event::of([Bytes::from_static(b": heartbeat\n\n"), Bytes::new(), Bytes::new()])
}

/// A comment for a reader that was too slow, or disconnected for too long. Clients of version 1 ignore it.
pub(super) fn too_slow(cohorts: usize) -> Event {
    let text = format!(
        ": too slow: messages of {cohorts} cohorts were dropped for lack of space, what is still needed is sent again\n\n"
    );
    Event::of([Bytes::from(text), Bytes::new(), Bytes::new()])
}

/// The sending side of one client's stream.
pub(super) struct EventStream {
    events: mpsc::Sender<Event>,
    queued: Arc<AtomicUsize>,
    most_bytes: usize,
}

/// The client's side.
pub(super) struct Events {
    events: mpsc::Receiver<Event>,
    /// The rest of the event that is being written.
    current: Option<Event>,
    queued: Arc<AtomicUsize>,
}

impl EventStream {
    /// A stream that may be `capacity` events, and `most_bytes` bytes or one event, behind before it is closed.
    pub(super) fn open(capacity: usize, most_bytes: usize) -> (Self, Events) {
        let (sender, receiver) = mpsc::channel(capacity);
        let queued = Arc::new(AtomicUsize::new(0));
        (
            Self { events: sender, queued: Arc::clone(&queued), most_bytes },
            Events { events: receiver, current: None, queued },
        )
    }

    /// Sends an event; returns whether the client still reads and is not too far behind. Otherwise the stream is
    /// closed, and the client reconnects for the events that it missed.
    pub(super) fn send(&self, event: Event) -> bool {
        let bytes = event.len();
        let before = self.queued.fetch_add(bytes, Ordering::Relaxed);
        (before == 0 || before.saturating_add(bytes) <= self.most_bytes) && self.events.try_send(event).is_ok()
    }

    /// Whether the client is still connected.
    pub(super) fn is_open(&self) -> bool {
        !self.events.is_closed()
    }
}

impl Events {
    /// The next piece to write.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.current.as_mut().and_then(Event::next_piece) {
                return Some(piece);
            }
            let event = self.events.recv().await?;
            self.queued.fetch_sub(event.len(), Ordering::Relaxed);
            self.current = Some(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::{
        identity::Identity, key::SecretKey, message::Message, network::Network, time::Timestamp,
    };
    use futures::FutureExt;

    use super::*;
    use crate::runtime::Randomness;

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    /// An envelope whose body has a reason of this length, written as `body` returns it.
    fn envelope(reason: usize, body: impl Fn(&str) -> String) -> SealedEnvelope {
        let mut rng = Randomness::System.for_actor("test");
        let me = Identity::from_key(SecretKey::generate(&mut rng), Network::Regtest);
        let body = body(&format!(
            r#""cohortId":"{ID}","code":"FAILED","atFault":false,"reason":"{}""#,
            "x".repeat(reason)
        ));
        let text = format!(
            r#"{{"type":"https://btcr2.dev/aggregation/control/cohort_ended","version":1,"from":"{}","body":{body}}}"#,
            me.did()
        );
        let message = Message::from_json(&text).expect("a message");
        SealedEnvelope::seal_with_rng(&message, me.secret_key(), Timestamp::from_secs(1), &mut rng).expect("sealed")
    }

    fn pieces(event: &Event) -> Vec<Bytes> {
        let (stream, mut events) = EventStream::open(1, usize::MAX);
        assert!(stream.send(event.clone()));
        drop(stream);
        std::iter::from_fn(|| events.next().now_or_never().expect("nothing to wait for")).collect()
    }

    #[test]
    fn an_event_is_written_in_pieces_that_are_its_text() {
        for reason in [1, PIECE, 10 * PIECE] {
            let envelope = envelope(reason, |fields| format!("{{{fields}}}"));
            let event = event("message", Some(7), &envelope);
            let pieces = pieces(&event);
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE), "{reason}");
            let expected = format!("id: 7\nevent: message\ndata: {}\n\n", envelope.to_json());
            assert_eq!(pieces.concat(), expected.as_bytes(), "{reason}");
            assert_eq!(event.len(), expected.len());
        }
    }

    #[test]
    fn the_events_of_one_body_share_its_text() {
        let envelope = envelope(2 * PIECE, |fields| format!("{{{fields}}}"));
        let event = event("message", Some(1), &envelope);
        let [_, body, _] = &*event.0;
        assert_eq!(body.as_ptr(), envelope.body.json().as_ptr());
    }

    #[test]
    fn a_forwarded_body_has_no_line_breaks_in_its_event() {
        for reason in [1, 2 * PIECE] {
            let envelope = envelope(reason, |fields| format!("{{\r\n{fields}\n}}"));
            let text = String::from_utf8(pieces(&event("advert", None, &envelope)).concat()).expect("UTF-8");
            let data = text.strip_prefix("event: advert\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
            assert!(data.is_some_and(|data| !data.contains(['\n', '\r'])), "{text}");
            assert_eq!(text.matches("reason").count(), 1);
        }
    }
}
