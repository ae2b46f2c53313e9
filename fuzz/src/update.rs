//! A signed update, and a patch.

use std::sync::OnceLock;

use btcr2_aggregation_protocol::{
    identity::Identity,
    jcs,
    patch::{MAX_DOCUMENT_BYTES, Patch},
    update::{
        SignedUpdate, UpdateContext, add_beacon_service_patch, build_update, sign_update, verify_update, violations,
    },
};
use serde_json::Value;

use crate::{EDIT, edited, identity, rng};

struct Signed {
    controller: Identity,
    initial: Value,
    update: SignedUpdate,
    text: String,
}

fn signed() -> &'static Signed {
    static SIGNED: OnceLock<Signed> = OnceLock::new();
    SIGNED.get_or_init(|| {
        let controller = identity("controller");
        let initial = controller.initial_document().expect("a KEY DID has one");
        let patch = add_beacon_service_patch(controller.did(), "CASBeacon", "bcrt1qexample");
        let unsigned = build_update(&initial, 1, patch).expect("it applies");
        let method = controller.verification_method();
        let update = sign_update(&unsigned, controller.did(), method, controller.secret_key(), &mut rng());
        let update = update.expect("canonical");
        Signed { text: update.value().to_string(), controller, initial, update }
    })
}

/// An update has one hash however it is written; only the one that was signed is valid; and no patch makes a document
/// larger than is allowed, or one that has no hash.
pub fn check(data: &[u8]) {
    let signed = signed();
    let text = match data.split_first() {
        Some((&EDIT, edits)) => edited(&signed.text, edits),
        _ => String::from_utf8(data.to_vec()).ok(),
    };
    let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else { return };
    if value.is_array() {
        return check_patch(&value, &signed.initial);
    }
    let Ok(update) = SignedUpdate::from_value(value) else { return };
    let canonical = jcs::canonicalize(update.value()).expect("an update has a canonical form");
    assert_eq!(canonical.len(), update.canonical_len());
    let again: Value = serde_json::from_slice(&canonical).expect("the canonical form is JSON");
    assert_eq!(SignedUpdate::from_value(again).expect("an update").hash(), update.hash());

    let context =
        UpdateContext { did: signed.controller.did(), document: &signed.initial, version: 1, block: None };
    let broken = violations(&update, &context);
    assert_eq!(verify_update(&update, &context).is_ok(), broken.is_empty());
    // These texts contain text of a peer: they stay short.
    assert!(broken.iter().all(|error| error.to_string().len() < 2_000), "{broken:?}");
    if broken.is_empty() {
        assert_eq!(update.hash(), signed.update.hash(), "accepted, and never signed: {}", update.value());
    } else {
        assert_ne!(*update.value(), *signed.update.value(), "signed, and not accepted");
    }
}

fn check_patch(patch: &Value, document: &Value) {
    let Ok(patch) = Patch::from_value(patch) else { return };
    let Ok(patched) = patch.apply(document) else { return };
    // A number that a double cannot represent has no canonical form; everything else has one.
    if let Ok(canonical) = jcs::canonicalize(&patched) {
        assert!(canonical.len() <= MAX_DOCUMENT_BYTES);
    }
    assert_eq!(patch.apply(document).as_ref(), Ok(&patched));
}
