//! How large the parts of messages are.

use serde::Serialize;

/// The most entries of one part of a response, and rows of one registration: a part with hashes alone then fits into one HTTP message.
pub const MAX_PART_ENTRIES: usize = 256;

/// The most signed rows of one message: they fit into one HTTP message.
pub const MAX_PART_ROWS: usize = 128;

/// The most seats that a service names to a seat as peers.
pub const MAX_PEERS: usize = 32;

/// The most bytes of JSON that the variable content of one message takes: it then fits into one HTTP message, and into one Nostr event.
pub(super) const MAX_PART_BYTES: usize = 48 << 10;

/// The length of the JSON of `value`, in bytes.
pub(super) fn json_len(value: &impl Serialize) -> usize {
    serde_json::to_string(value).map_or(0, |text| text.len())
}

/// `items` in pieces of at most `most` items and, if there are several in it, [`MAX_PART_BYTES`] of JSON.
pub(super) fn pieces<T>(
    items: impl IntoIterator<Item = T>,
    most: usize,
    size: impl Fn(&T) -> usize,
) -> Vec<Vec<T>> {
    let mut pieces: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item);
        match pieces.last_mut() {
            Some(piece) if piece.len() < most && bytes + more <= MAX_PART_BYTES => {
                piece.push(item);
                bytes += more;
            }
            _ => {
                pieces.push(vec![item]);
                bytes = more;
            }
        }
    }
    pieces
}
