//! What a member may announce next, by what it has approved so far.

use serde_json::json;

use super::*;
use crate::{
    controller::{
        Keys,
        current::{Applied, Young},
    },
    join::policy::sign,
    protocol::{identity::Identity, key::SecretKey, network::Network},
    vault::{Recovered, VaultContents},
};

fn identity() -> Identity {
    Identity::from_key(SecretKey::from_bytes(&[5; 32]).unwrap(), Network::Regtest)
}

fn id(name: &str) -> CohortId {
    CohortId::parse(name).unwrap()
}

fn note(text: &str) -> Value {
    json!([{ "op": "add", "path": "/note", "value": text }])
}

fn next_update(ledger: &Ledger, patch: &Value) -> NextUpdate {
    ledger.next_update(Wanted::Patch(patch), None)
}

fn new(superseded: Vec<CohortId>) -> Ledger {
    Ledger::new(identity().initial_document().unwrap(), superseded, Vec::new(), [])
}

/// The update of a document, and the document to which it leads.
fn made(patch: Value, (document, version): (&Value, u64)) -> (SignedUpdate, Value) {
    let update = sign(identity().did(), &Keys::of(&identity()), patch.clone(), document, version).unwrap();
    (update, Patch::from_value(&patch).unwrap().apply(document).unwrap())
}

fn first(text: &str) -> SignedUpdate {
    made(note(text), (&identity().initial_document().unwrap(), 1)).0
}

#[test]
fn an_approved_update_is_submitted_again_or_nothing_is() {
    let ledger = new(Vec::new());
    let one = first("one");
    assert!(matches!(next_update(&ledger, &note("one")), NextUpdate::Next { version: 1, .. }));
    ledger.approved(&id("a"), &one);
    let NextUpdate::Again { update, version, .. } = next_update(&ledger, &note("one")) else { panic!() };
    assert_eq!((update, version), (one.clone(), 1));
    let NextUpdate::Blocked(reason) = next_update(&ledger, &note("two")) else { panic!() };
    assert!(reason.contains("cohort a") && reason.contains("--supersede a"), "{reason}");
    let superseding = new(vec![id("a")]);
    superseding.approved(&id("a"), &one);
    assert!(matches!(next_update(&superseding, &note("two")), NextUpdate::Next { version: 1, .. }));
}

#[test]
fn with_a_chain_nothing_is_said_while_an_update_is_not_confirmed() {
    let ledger = new(Vec::new());
    ledger.approved(&id("a"), &first("one"));
    ledger.advance(&id("a"), Standing::Signed);
    assert_eq!(next_update(&ledger, &note("one")), NextUpdate::Waiting { cohort_id: id("a") });
    let NextUpdate::Blocked(reason) = next_update(&ledger, &note("two")) else { panic!() };
    assert!(reason.contains("cohort a") && reason.contains("not confirmed"), "{reason}");
    ledger.advance(&id("a"), Standing::Announced);
    ledger.advance(&id("a"), Standing::Signed);
    assert!(matches!(next_update(&ledger, &note("two")), NextUpdate::Next { version: 2, .. }));
    let replaced = new(Vec::new());
    replaced.approved(&id("a"), &first("one"));
    replaced.advance(&id("a"), Standing::Signed);
    replaced.never(&id("a"));
    assert!(matches!(next_update(&replaced, &note("two")), NextUpdate::Next { version: 1, .. }));
}

#[test]
fn what_is_announced_is_not_said_again_and_leads_to_the_next() {
    let ledger = new(Vec::new());
    let one = first("one");
    ledger.approved(&id("a"), &one);
    ledger.advance(&id("a"), Standing::Announced);
    assert_eq!(next_update(&ledger, &note("one")), NextUpdate::Done { cohort_id: id("a"), version: 2 });
    let NextUpdate::Next { document, version } = next_update(&ledger, &note("two")) else { panic!() };
    assert_eq!((document["note"].as_str(), version), (Some("one"), 2));
    let second = made(note("two"), (&document, version)).0;
    assert_eq!(second.target_version(), Some(3));
    ledger.approved(&id("b"), &second);
    assert!(matches!(next_update(&ledger, &note("three")), NextUpdate::Blocked(_)));
    // Submitted again with its own source document, not the initial one.
    let NextUpdate::Again { update, document, version } = next_update(&ledger, &note("two")) else { panic!() };
    assert_eq!((update, document["note"].as_str(), version), (second, Some("one"), 2));
}

#[test]
fn what_a_controller_was_handed_may_be_announced() {
    let ledger = new(Vec::new());
    let one = first("one");
    let other = first("two");
    ledger.prepared(&one);
    assert_eq!(ledger.contradiction(&one), None);
    assert!(ledger.contradiction(&other).unwrap().contains("without a cohort"));
    let NextUpdate::Blocked(reason) = next_update(&ledger, &note("two")) else { panic!() };
    assert!(reason.contains("--supersede singleton"), "{reason}");
    let superseding = new(vec![id("singleton")]);
    superseding.prepared(&one);
    assert_eq!(superseding.contradiction(&other), None);
    // What was found announced is.
    let contents = |recovered| VaultContents { prepared: vec![one.clone()], recovered, ..VaultContents::default() };
    let found = Recovered::update(identity().did(), &one);
    for (recovered, contradicts) in [(vec![found], true), (Vec::new(), false)] {
        let superseding = new(vec![id("singleton")]);
        superseding.without_cohort(&contents(recovered));
        assert_eq!(superseding.contradiction(&other).is_some(), contradicts);
    }
}

#[test]
fn a_document_that_the_vault_does_not_lead_to_is_doubted() {
    let initial = identity().initial_document().unwrap();
    let ledger = new(Vec::new());
    assert_eq!(ledger.doubts(&json!({}), 7), None, "nothing is known here");
    ledger.approved(&id("a"), &first("one"));
    ledger.advance(&id("a"), Standing::Announced);
    let (current, version) = ledger.current();
    assert_eq!((ledger.doubts(&current, version), version), (None, 2));
    assert!(ledger.doubts(&initial, 1).unwrap().contains("version 1"));
    assert!(ledger.doubts(&initial, 2).unwrap().contains("another document"));
}

/// What a resolution shows after these updates.
fn shown(applied: &[&SignedUpdate], document: &Value, young: Option<&SignedUpdate>) -> Current {
    let of = |update: &SignedUpdate| Applied::for_tests(update.target_version().unwrap(), *update.hash());
    Current {
        document: document.clone(),
        version: applied.len() as u64 + 1,
        applied: applied.iter().map(|update| of(update)).collect(),
        young: young.map(|update| Young {
            version: update.target_version().unwrap(),
            confirmations: 1,
            applied: vec![of(update)],
        }),
        unsettled: None,
        warnings: Vec::new(),
    }
}

fn resolved(ledger: &Ledger, current: &Current) -> Vec<String> {
    ledger.resolved(current, |_| None, false)
}

#[test]
fn a_resolution_shows_which_update_of_a_version_is_in_force() {
    let initial = identity().initial_document().unwrap();
    let (one, document) = made(note("one"), (&initial, 1));
    let ledger = new(Vec::new());
    // Approved in two cohorts, and only one of them can be in force.
    ledger.approved(&id("a"), &one);
    ledger.approved(&id("b"), &first("two"));
    let warnings = resolved(&ledger, &shown(&[&one], &document, None));
    assert!(warnings.len() == 1 && warnings[0].contains("cohort b"), "{warnings:?}");
    let source = (document.clone(), 2);
    let next = |text: &str| ledger.next_update(Wanted::Patch(&note(text)), Some(&source));
    assert_eq!(next("one"), NextUpdate::Done { cohort_id: id("a"), version: 2 });
    assert!(matches!(next("two"), NextUpdate::Next { version: 2, .. }));
    assert!(ledger.is_in_force(&id("a"), &one));
    // The next run knows it, whatever is stored of the cohorts.
    let settled = ledger.settled();
    assert_eq!(settled.len(), 2);
    let again = Ledger::new(initial, Vec::new(), settled, []);
    again.approved(&id("a"), &one);
    again.approved(&id("b"), &first("two"));
    assert_eq!(again.current(), (document, 2));
    assert_eq!(again.contradiction(&one), None, "the other one is superseded");
}

#[test]
fn the_same_update_by_another_signature_is_in_force() {
    let initial = identity().initial_document().unwrap();
    let (one, document) = made(note("one"), (&initial, 1));
    let ledger = new(Vec::new());
    ledger.approved(&id("a"), &one);
    let mut current = shown(&[&one], &document, None);
    current.applied[0].hash = DocumentHash::from_bytes([7; 32]);
    let unsigned = one.unsigned_hash().unwrap();
    assert_eq!(ledger.resolved(&current, |_| Some(unsigned), false), Vec::<String>::new());
    assert!(ledger.is_in_force(&id("a"), &one));
}

#[test]
fn what_is_confirmed_where_no_resolver_looks_is_announced_again() {
    let initial = identity().initial_document().unwrap();
    let (one, _) = made(note("one"), (&initial, 1));
    let (ledger, source) = (new(Vec::new()), (initial.clone(), 1));
    ledger.approved(&id("a"), &one);
    ledger.advance(&id("a"), Standing::Announced);
    let next = |text: &str| ledger.next_update(Wanted::Patch(&note(text)), Some(&source));
    assert!(matches!(next("one"), NextUpdate::Done { .. }), "as far as the ledger knows");
    resolved(&ledger, &shown(&[], &initial, None));
    assert!(matches!(next("one"), NextUpdate::Again { update, .. } if update == one));
    let NextUpdate::Blocked(reason) = next("two") else { panic!() };
    assert!(reason.contains("did not find it") && reason.contains("--supersede a"), "{reason}");
    // Who allows that counts it as announced.
    ledger.resolved(&shown(&[], &initial, None), |_| None, true);
    assert!(matches!(next("one"), NextUpdate::Done { .. }));
}

#[test]
fn an_update_in_a_young_block_is_waited_for() {
    let initial = identity().initial_document().unwrap();
    let (one, _) = made(note("one"), (&initial, 1));
    let (ledger, source) = (new(Vec::new()), (initial.clone(), 1));
    ledger.approved(&id("a"), &one);
    resolved(&ledger, &shown(&[], &initial, Some(&one)));
    let next = |text: &str| ledger.next_update(Wanted::Patch(&note(text)), Some(&source));
    assert_eq!(next("one"), NextUpdate::Waiting { cohort_id: id("a") });
    let NextUpdate::Blocked(reason) = next("two") else { panic!() };
    assert!(reason.contains("an update to version 2 is in a block with 1 confirmations"), "{reason}");
    // Also one that this member has never seen.
    let other = new(Vec::new());
    resolved(&other, &shown(&[], &initial, Some(&one)));
    assert!(matches!(other.next_update(Wanted::Patch(&note("one")), Some(&source)), NextUpdate::Blocked(_)));
}

#[test]
fn nothing_is_announced_beside_a_young_signal_that_cannot_be_applied() {
    let initial = identity().initial_document().unwrap();
    let (ledger, source) = (new(Vec::new()), (initial.clone(), 1));
    let next = |text: &str| ledger.next_update(Wanted::Patch(&note(text)), Some(&source));
    let mut current = shown(&[], &initial, None);
    current.unsettled = Some("not known".to_owned());
    ledger.approved(&id("a"), &first("one"));
    for _ in 0..2 {
        resolved(&ledger, &current);
        // Not even the one that may be announced already: that of the signal may be another.
        for text in ["one", "two"] {
            let NextUpdate::Blocked(reason) = next(text) else { panic!() };
            assert!(reason.starts_with("not known; --allow-risky-update"), "{reason}");
        }
        // Until the controller takes the risk, for what this resolution showed.
        assert_eq!(ledger.risk().as_deref(), Some("not known"));
        assert!(matches!(next("one"), NextUpdate::Again { .. }));
    }
    resolved(&ledger, &shown(&[], &initial, None));
    assert!(matches!(next("one"), NextUpdate::Again { .. }) && ledger.risk().is_none());
}

#[test]
fn what_was_superseded_says_nothing_of_later_updates() {
    let ledger = new(vec![id("singleton")]);
    ledger.prepared(&first("one"));
    ledger.loaded();
    ledger.prepared(&first("two"));
    assert_eq!(ledger.contradiction(&first("two")), None);
    assert!(ledger.contradiction(&first("one")).is_some(), "the later one may be announced");
    assert_eq!(ledger.settled().len(), 1);
    // It holds in the next run too, without being said again.
    let again = Ledger::new(identity().initial_document().unwrap(), Vec::new(), ledger.settled(), []);
    again.prepared(&first("one"));
    again.prepared(&first("two"));
    assert_eq!(again.contradiction(&first("two")), None);
}

#[test]
fn a_signed_update_is_known_by_what_it_announces() {
    let one = first("one");
    let ledger = new(Vec::new());
    ledger.prepared(&one);
    let next = |update: &SignedUpdate| ledger.next_update(Wanted::Update(update), None);
    assert!(matches!(next(&one), NextUpdate::Again { update, .. } if update == one));
    let mut other_signature = one.value().clone();
    other_signature["proof"]["created"] = json!("2026-01-01T00:00:00Z");
    let other_signature = SignedUpdate::from_value(other_signature).unwrap();
    assert!(matches!(next(&other_signature), NextUpdate::Again { update, .. } if update == one));
    assert!(matches!(next(&first("two")), NextUpdate::Blocked(_)));
}
