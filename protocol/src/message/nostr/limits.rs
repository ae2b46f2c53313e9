//! The limits of a relay (NIP-11), and the cohorts that it can carry.

use crate::{
    beacon::BeaconType,
    did::Did,
    id::CohortId,
    key::SecretKey,
    message::{Bytes, Message, keygen::CohortReady},
    network::Network,
};

use super::{MAX_PLAINTEXT, longest_distribution, max_members};

/// The greatest size that an event adds to its content: id, keys, signature, time, tags, and the message to the relay
/// around it.
const ENVELOPE: usize = 640;

/// The length of a typical update, as text.
const UPDATE: usize = 1_400;

/// The limits of a relay on the size of events, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventLimits {
    /// The greatest size of a message to the relay with an event in it, in bytes: `max_message_length`.
    pub message_bytes: Option<usize>,
    /// The greatest length of an event's content, in characters: `max_content_length`.
    pub content_chars: Option<usize>,
}

/// The size of an event's content.
#[derive(Clone, Copy)]
struct Content {
    chars: usize,
    /// The number of these characters that JSON escapes with a second one.
    escaped: usize,
}

/// The largest number up to `most` that fits, if every smaller one does; 0 if none does.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut too_many) = (0, most + 1);
    while too_many - fitting > 1 {
        let middle = fitting + (too_many - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            too_many = middle;
        }
    }
    fitting
}

impl EventLimits {
    /// The greatest number of members of a cohort of this beacon type for which a relay with these limits accepts all
    /// messages; 0 when even an update is too large, and `None` when there is no limit.
    pub fn max_members(&self, beacon_type: &BeaconType) -> Option<usize> {
        let most = max_members(beacon_type);
        if *self == Self::default() {
            return most;
        }
        if !self.takes(encrypted(UPDATE)) {
            return Some(0);
        }
        let is_cas = *beacon_type == BeaconType::cas();
        let (first, second) = (longest_distribution(1), longest_distribution(2));
        let (ready, next) = (longest_ready(1), longest_ready(2));
        let fits = |members: usize| {
            let more = members.saturating_sub(1);
            let ready = Content {
                chars: ready.chars + more * (next.chars - ready.chars),
                escaped: ready.escaped + more * (next.escaped - ready.escaped),
            };
            self.takes(ready) && (!is_cas || self.takes(encrypted(first + more * (second - first))))
        };
        Some(largest(most.unwrap_or(1 << 20), fits))
    }

    /// The length of the longest text that can be encrypted in an event that a relay with these limits accepts.
    pub fn longest_text(&self) -> usize {
        largest(MAX_PLAINTEXT, |length| self.takes(encrypted(length)))
    }

    fn takes(&self, Content { chars, escaped }: Content) -> bool {
        self.content_chars.is_none_or(|most| chars <= most)
            && self.message_bytes.is_none_or(|most| chars + escaped + ENVELOPE <= most)
    }
}

/// The content of an encrypted message: version, nonce, length, padded text and MAC in base64 (NIP-44).
const fn encrypted(text: usize) -> Content {
    Content { chars: (1 + 32 + 2 + padded(text) + 32_usize).div_ceil(3) * 4, escaped: 0 }
}

const fn padded(text: usize) -> usize {
    if text <= 32 {
        return 32;
    }
    let power = text.next_power_of_two();
    let chunk = if power <= 256 { 32 } else { power / 8 };
    text.div_ceil(chunk) * chunk
}

/// The longest `cohort_ready` of this many members.
fn longest_ready(members: usize) -> Content {
    let key = SecretKey::from_bytes(&[1; 32]).expect("1 < 0x0101... < n").public_key();
    let did = Did::from_key(key, Network::Regtest);
    let body = CohortReady {
        cohort_id: CohortId::parse(&"c".repeat(64)).expect("64 visible characters are accepted"),
        // The longest address is one of a testnet.
        beacon_address: "b".repeat(64),
        cohort_keys: vec![Bytes(key.to_bytes()); members],
    };
    let text = Message::new(did.clone(), Some(did), body).to_json();
    Content { chars: text.len(), escaped: text.matches(['"', '\\']).count() }
}
