//! A signed HTTP envelope.

use std::{sync::OnceLock, time::Duration};

use btcr2_aggregation_protocol::{
    envelope::{Expected, ParsedEnvelope, SealedEnvelope},
    id::CohortId,
    identity::Identity,
    message::{Message, update::ValidationAck},
};

use crate::{EDIT, NOW, edited, identity, rng};

struct Sealed {
    sender: Identity,
    text: String,
    signed: Vec<u8>,
}

fn sealed() -> &'static Sealed {
    static SEALED: OnceLock<Sealed> = OnceLock::new();
    SEALED.get_or_init(|| {
        let (sender, recipient) = (identity("sender"), identity("recipient"));
        let cohort_id = CohortId::parse("cohort").expect("an id");
        let message = Message::new(
            sender.did().clone(),
            Some(recipient.did().clone()),
            ValidationAck { cohort_id, approved: true },
        );
        let envelope = SealedEnvelope::seal_with_rng(&message, sender.secret_key(), NOW, &mut rng());
        let text = envelope.expect("the body is ours").to_json();
        let signed = ParsedEnvelope::parse(&text).expect("sealed").signing_bytes().expect("canonical");
        Sealed { sender, text, signed }
    })
}

/// An envelope that parses has a canonical form that is the same envelope; and of all envelopes, only spellings of the one
/// that was signed verify.
pub fn check(data: &[u8]) {
    let sealed = sealed();
    let text = match data.split_first() {
        Some((&EDIT, edits)) => edited(&sealed.text, edits),
        _ => String::from_utf8(data.to_vec()).ok(),
    };
    let Some(text) = text else { return };
    let Ok(parsed) = ParsedEnvelope::parse(&text) else { return };
    let signed = parsed.signing_bytes().expect("what has no canonical form does not parse");
    let canonical = String::from_utf8(signed.clone()).expect("JSON is text");
    let again = ParsedEnvelope::parse(&canonical).expect("the canonical form is an envelope without a signature");
    assert_eq!(again.signing_bytes().expect("canonical"), signed);
    assert_eq!(
        (again.from(), again.to(), again.nonce(), again.timestamp()),
        (parsed.from(), parsed.to(), parsed.nonce(), parsed.timestamp())
    );
    // The message is read from the text, and its sender from the value: they must be about the same message.
    if let Ok(message) = parsed.message() {
        assert_eq!(parsed.inner_from(), Some(message.from.as_str()));
        assert_eq!(parsed.inner_type(), Some(&*message.type_uri()));
    }
    let expected = Expected { skew: Duration::from_secs(60), ..Expected::default() };
    let key = sealed.sender.public_key().x_only();
    if parsed.verify(&key, NOW, &expected).is_ok() {
        assert_eq!(signed, sealed.signed, "accepted, and never signed: {text}");
    } else {
        assert_ne!(text, sealed.text, "signed, and not accepted");
    }
}
