//! Server-sent events: how an envelope becomes one, and the streams that carry them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use actix_web::web::Bytes;
use btcr2_aggregation_protocol::envelope::SealedEnvelope;
use tokio::sync::mpsc;

/// The event that carries `envelope`. The envelope's text has no line breaks of ours; a forwarded body's become spaces of
/// `data:` lines, which a parser joins again.
pub(super) fn event(name: &str, id: Option<u64>, envelope: &SealedEnvelope) -> Bytes {
    let pieces = envelope.pieces();
    let mut text = Vec::with_capacity(envelope.byte_len() + 64);
    if let Some(id) = id {
        text.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    text.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
    for piece in pieces {
        if piece.contains(['\n', '\r']) {
            // A line break between JSON tokens means nothing, and within a string JSON has none.
            text.extend(piece.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
        } else {
            text.extend_from_slice(piece.as_bytes());
        }
    }
    text.extend_from_slice(b"\n\n");
    Bytes::from(text)
}

/// A comment: it keeps proxies from closing a quiet stream, and shows who has gone.
pub(super) fn heartbeat() -> Bytes {
    Bytes::from_static(b": heartbeat\n\n")
}

/// The sending side of one client's stream.
pub(super) struct EventStream {
    events: mpsc::Sender<Bytes>,
    queued: Arc<AtomicUsize>,
    most_bytes: usize,
}

/// The client's side.
pub(super) struct Events {
    events: mpsc::Receiver<Bytes>,
    queued: Arc<AtomicUsize>,
}

impl EventStream {
    /// A stream that may be `capacity` events, and `most_bytes` bytes or one event, behind before it is given up.
    pub(super) fn open(capacity: usize, most_bytes: usize) -> (Self, Events) {
        let (sender, receiver) = mpsc::channel(capacity);
        let queued = Arc::new(AtomicUsize::new(0));
        (Self { events: sender, queued: Arc::clone(&queued), most_bytes }, Events { events: receiver, queued })
    }

    /// Whether the client still reads and has kept up. One that has not is closed, and comes back for what it missed.
    pub(super) fn send(&self, event: Bytes) -> bool {
        let bytes = event.len();
        let before = self.queued.fetch_add(bytes, Ordering::Relaxed);
        (before == 0 || before.saturating_add(bytes) <= self.most_bytes) && self.events.try_send(event).is_ok()
    }

    /// Whether the client is still there.
    pub(super) fn is_open(&self) -> bool {
        !self.events.is_closed()
    }
}

impl Events {
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let event = self.events.recv().await?;
        self.queued.fetch_sub(event.len(), Ordering::Relaxed);
        Some(event)
    }
}
