//! The authorization of a request for an inbox: a header's value, a line break, and the path that was requested.

use std::{sync::OnceLock, time::Duration};

use btcr2_aggregation_protocol::{
    identity::Identity,
    request_auth::{RequestAuthorization, inbox_path},
};

use crate::{EDIT, NOW, edited, identity, rng};

struct Signed {
    client: Identity,
    text: String,
    bytes: Vec<u8>,
}

fn signed() -> &'static Signed {
    static SIGNED: OnceLock<Signed> = OnceLock::new();
    SIGNED.get_or_init(|| {
        let client = identity("client");
        let path = inbox_path("/agg", client.did());
        let header = RequestAuthorization::sign(client.did(), client.secret_key(), &path, NOW, &mut rng());
        Signed { bytes: header.signing_bytes(&path), text: format!("{header}\n{path}"), client }
    })
}

/// A header that parses is written and parsed as the same; and only what was signed is accepted, for the path that was signed.
pub fn check(data: &[u8]) {
    let signed = signed();
    let text = match data.split_first() {
        Some((&EDIT, edits)) => edited(&signed.text, edits),
        _ => String::from_utf8(data.to_vec()).ok(),
    };
    let Some(text) = text else { return };
    let Some((header, path)) = text.split_once('\n') else { return };
    let Ok(parsed) = RequestAuthorization::parse(header) else { return };
    let again = RequestAuthorization::parse(&parsed.to_string()).expect("what we write is a header");
    assert_eq!(again, parsed);
    let key = signed.client.public_key().x_only();
    if parsed.verify(&key, path, NOW, Duration::from_secs(60)).is_ok() {
        assert_eq!(parsed.signing_bytes(path), signed.bytes, "accepted, and never signed: {text}");
    } else {
        assert_ne!(text, signed.text, "signed, and not accepted");
    }
}
