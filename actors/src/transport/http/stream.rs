//! Server-sent events: how an envelope becomes one, and the streams that carry them.

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
pub(super) struct EventStream(mpsc::Sender<Bytes>);

impl EventStream {
    /// A stream that may be `capacity` events behind before it is given up.
    pub(super) fn open(capacity: usize) -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self(sender), receiver)
    }

    /// Whether the client still reads and has kept up. One that has not is closed, and comes back for what it missed.
    pub(super) fn send(&self, event: Bytes) -> bool {
        self.0.try_send(event).is_ok()
    }
}
