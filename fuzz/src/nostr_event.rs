//! A Nostr event, and the NIP-44 payload in it.

use std::sync::OnceLock;

use btcr2_aggregation_protocol::{
    id::CohortId,
    identity::Identity,
    message::{Message, update::ValidationAck},
    nostr::{ConversationKey, MAX_PLAINTEXT, Peer, VerifiedEvent, seal},
};
use nostr::{Event, JsonUtil};

use crate::{EDIT, NOW, edited, identity, rng};

/// The first byte of an input that is a text to encrypt.
const ENCRYPT: u8 = b'+';

/// The first byte of an input that is a payload to decrypt.
const DECRYPT: u8 = b'-';

struct Sealed {
    sender: Identity,
    message: Message,
    event: Event,
    text: String,
    conversation: ConversationKey,
}

fn sealed() -> &'static Sealed {
    static SEALED: OnceLock<Sealed> = OnceLock::new();
    SEALED.get_or_init(|| {
        let (sender, recipient) = (identity("sender"), identity("recipient"));
        let cohort_id = CohortId::parse("cohort").expect("an id");
        let body = ValidationAck { cohort_id, approved: true };
        let message = Message::new(sender.did().clone(), Some(recipient.did().clone()), body);
        let peer = Peer::new(sender.secret_key(), recipient.public_key().x_only()).expect("two keys");
        let event = seal(&message, sender.secret_key(), Some(&peer), NOW, &mut rng()).expect("short enough");
        Sealed { text: event.as_json(), conversation: peer.conversation, sender, message, event }
    })
}

/// Only content that its sender signed counts as the sender's. A payload is decrypted to what was encrypted, and one that
/// was made without the key is not decrypted.
pub fn check(data: &[u8]) {
    let sealed = sealed();
    let text = match data.split_first() {
        Some((&EDIT, edits)) => edited(&sealed.text, edits),
        Some((&ENCRYPT, text)) => return check_encryption(&sealed.conversation, text),
        Some((&DECRYPT, payload)) => {
            let payload = String::from_utf8_lossy(payload);
            assert!(sealed.conversation.decrypt(&payload).is_err(), "decrypted, and never encrypted");
            return;
        }
        _ => String::from_utf8(data.to_vec()).ok(),
    };
    let Some(text) = text else { return };
    let Ok(event) = Event::from_json(&text) else { return };
    let Ok(verified) = VerifiedEvent::verify(&event) else {
        assert_ne!(text, sealed.text, "signed, and not accepted");
        return;
    };
    let read = verified.message(|_| Ok::<_, ()>(sealed.conversation.clone()));
    if verified.sender() == sealed.sender.public_key().x_only() {
        assert_eq!(event.id, sealed.event.id, "accepted, and never signed: {text}");
        assert_eq!(read.as_ref(), Ok(&sealed.message));
    }
    if let Ok(message) = read {
        assert_eq!(Message::from_json(&message.to_json()).as_ref(), Ok(&message));
    }
}

fn check_encryption(key: &ConversationKey, text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match key.encrypt(text, &mut rng()) {
        Ok(payload) => {
            assert_eq!(key.decrypt(&payload).as_deref(), Ok(text));
            let other = ConversationKey::from_bytes([1; 32]);
            assert!(other.decrypt(&payload).is_err());
        }
        Err(_) => assert!(text.is_empty() || text.len() > MAX_PLAINTEXT),
    }
}
