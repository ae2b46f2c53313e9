//! What a member submits in a cohort, by what it knows.

use serde_json::json;

use super::*;
use crate::{
    controller::current::Applied,
    protocol::{
        document::{InitialBeacon, InitialBeaconKind},
        key::SecretKey,
        network::Network,
        update::Edit,
    },
};

const CAS: &str = "CASBeacon";
const SMT: &str = "SMTBeacon";

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes(&[byte; 32]).unwrap()
}

/// The address of a cohort; which one does not matter.
fn address(byte: u8) -> String {
    InitialBeacon::new(key(byte).public_key(), Network::Regtest, InitialBeaconKind::P2tr).address().to_string()
}

fn note(text: &str) -> Value {
    json!([{ "op": "add", "path": "/note", "value": text }])
}

/// A member whose current document, of version 2, lists a CAS beacon.
struct Member {
    identity: Identity,
    making: Making,
    ledger: Ledger,
    cohort_id: CohortId,
    address: String,
    document: Value,
    resolved: bool,
}

impl Member {
    fn new() -> Self {
        let identity = Identity::from_key(key(5), Network::Regtest);
        let (initial, address) = (identity.initial_document().unwrap(), address(9));
        let patch = add_beacon_service_patch(identity.did(), CAS, &address);
        let document = Patch::from_value(&patch).unwrap().apply(&initial).unwrap();
        Self {
            making: Making::of(&identity),
            ledger: Ledger::new(initial, Vec::new(), Vec::new(), []),
            cohort_id: CohortId::parse("cohort").unwrap(),
            identity,
            address,
            document,
            resolved: true,
        }
    }

    fn current(&self) -> (Value, u64) {
        (self.document.clone(), 2)
    }

    fn choose_at(&self, intent: &Intent, beacon_type: &str, address: &str) -> Result<Chosen, NoUpdate> {
        let decision = Decision {
            did: self.identity.did(),
            intent,
            making: &self.making,
            ledger: &self.ledger,
            resolved: self.resolved.then(|| self.current()),
        };
        let beacon = Beacon { cohort_id: &self.cohort_id, beacon_type, address };
        decision.choose(beacon, Timestamp::from_secs(1_790_000_000))
    }

    fn choose(&self, intent: &Intent) -> Result<Chosen, NoUpdate> {
        self.choose_at(intent, CAS, &self.address)
    }

    #[track_caller]
    fn withheld(&self, intent: &Intent, words: &[&str]) {
        let Err(NoUpdate::Withheld(reason)) = self.choose(intent) else { panic!("{:?}", self.choose(intent)) };
        words.iter().for_each(|word| assert!(reason.contains(word), "{word:?} is missing in {reason}"));
    }

    fn signed(&self, patch: Value) -> SignedUpdate {
        sign(self.identity.did(), &self.making.keys, patch, &self.document, 2).unwrap()
    }
}

fn update(text: &str) -> Intent {
    Intent::Update { patch: note(text), source: None }
}

#[test]
fn the_update_starts_from_the_resolved_document() {
    let member = Member::new();
    let chosen = member.choose(&update("one")).unwrap();
    assert_eq!((chosen.version, chosen.is_resolved, chosen.is_listed), (3, true, true));
    let (document, version) = chosen.submission.source.unwrap();
    assert_eq!((&*document, version), (&member.document, 2));
    assert_eq!(chosen.submission.update.target_version(), Some(3));
    // Whatever document the member was given.
    let source = Some((member.identity.initial_document().unwrap(), 1));
    let chosen = member.choose(&Intent::Update { patch: note("one"), source }).unwrap();
    assert_eq!(chosen.version, 3);
}

#[test]
fn an_update_that_no_resolver_finds_is_withheld() {
    let mut member = Member::new();
    let at = |member: &Member, kind: &str, address: &str| match member.choose_at(&update("one"), kind, address) {
        Err(NoUpdate::Withheld(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let other = address(10);
    let reason = at(&member, CAS, &other);
    for word in
        [&*other, "version 2", "beacon adopt cohort", "`singleton`", "--allow-unlisted-beacon", &member.address]
    {
        assert!(reason.contains(word), "{word:?} is missing in {reason}");
    }
    let reason = at(&member, SMT, &member.address);
    assert!(reason.contains("is a CASBeacon") && reason.contains("announces as a SMTBeacon"), "{reason}");
    member.making.allow_unlisted = true;
    let chosen = member.choose_at(&update("one"), CAS, &other).unwrap();
    assert_eq!((chosen.is_listed, chosen.is_resolved), (false, true));
    // Also without a chain.
    (member.making.allow_unlisted, member.resolved) = (false, false);
    let reason = at(&member, CAS, &other);
    assert!(reason.contains("version 1") && reason.contains("lists no beacon of a cohort"), "{reason}");
}

#[test]
fn a_cohort_that_adds_its_own_address_is_for_members_without_a_chain() {
    let (mut member, intent) = (Member::new(), Intent::AddBeacon { source: None });
    let other = address(10);
    let with_chain = member.choose_at(&intent, CAS, &other);
    assert!(matches!(with_chain, Err(NoUpdate::Withheld(_))), "{with_chain:?}");
    member.withheld(&intent, &["lists", "already"]);
    member.resolved = false;
    let chosen = member.choose_at(&intent, CAS, &other).unwrap();
    assert_eq!((chosen.is_listed, chosen.is_resolved, chosen.version), (false, false, 2));
    assert!(chosen.submission.source.is_none(), "the initial document is known to everyone");
}

#[test]
fn after_a_rotation_the_new_key_signs() {
    let mut member = Member::new();
    let did = member.identity.did().clone();
    let method = format!("{did}#key-2");
    let old = member.identity.verification_method().to_owned();
    let rotation = Edit::ReplaceKey { old, method: method.clone(), key: key(6).public_key() };
    let patch = rotation.patch(&member.document).unwrap();
    member.document = Patch::from_value(&patch).unwrap().apply(&member.document).unwrap();
    // Who has the old key only cannot update the document.
    member.withheld(&update("one"), &["no key of the identity may update", "#key-2"]);
    member.making.keys = Arc::new(Keys::One(Arc::new(key(6)), "file".to_owned()));
    let chosen = member.choose(&update("one")).unwrap();
    assert_eq!(chosen.submission.update.value()["proof"]["verificationMethod"], json!(method));
}

#[test]
fn a_signed_update_has_to_start_from_the_current_document() {
    let mut member = Member::new();
    let signed = member.signed(note("one"));
    let intent = Intent::Signed { update: signed.clone(), source: None };
    let chosen = member.choose(&intent).unwrap();
    assert_eq!(chosen.submission.update, signed);
    // Another document of the same version, and another version.
    member.document["note"] = json!("changed meanwhile");
    member.withheld(&intent, &["U-16", "version 2", "prepare it again"]);
    member.resolved = false;
    let decision = member.choose(&Intent::Signed { update: signed.clone(), source: None });
    assert!(matches!(&decision, Err(NoUpdate::Withheld(_))), "{decision:?}");
    // Where the file has the document, that one is believed.
    let source = Some((Member::new().document, 2));
    let chosen = member.choose(&Intent::Signed { update: signed, source }).unwrap();
    assert!(!chosen.is_resolved && chosen.is_listed);
}

#[test]
fn an_update_that_expires_is_withheld() {
    let member = Member::new();
    for (field, value) in [("expires", "2099-01-01T00:00:00Z"), ("created", "2026-09-21T14:13:20Z")] {
        let mut proof = member.signed(note("one")).value()["proof"].clone();
        proof[field] = json!(value);
        proof.as_object_mut().unwrap().remove("proofValue");
        let mut unsigned = member.signed(note("one")).value().clone();
        unsigned.as_object_mut().unwrap().remove("proof");
        let digest = crate::protocol::update::signed_digest(&proof, &unsigned).unwrap();
        let signature = key(5).sign(&digest, &mut same_bytes_again());
        proof["proofValue"] = json!(format!("z{}", bs58::encode(signature.to_bytes()).into_string()));
        unsigned["proof"] = proof;
        let update = SignedUpdate::from_value(unsigned).unwrap();
        member.withheld(&Intent::Signed { update, source: None }, &[field, "U-10", "Sign the update again"]);
    }
}

#[test]
fn an_update_that_ends_the_did_is_withheld() {
    let mut member = Member::new();
    let intent =
        Intent::Update { patch: json!([{ "op": "remove", "path": "/capabilityInvocation" }]), source: None };
    member.withheld(&intent, &["capabilityInvocation", "--allow-risky-update"]);
    member.making.allow_risky = true;
    assert!(member.choose(&intent).is_ok());
    let breaks =
        Intent::Update { patch: json!([{ "op": "replace", "path": "/id", "value": "did:x" }]), source: None };
    member.withheld(&breaks, &["U-15"]);
}

#[test]
fn the_ledger_and_the_resolution_guard_one_version() {
    let member = Member::new();
    let a = CohortId::parse("a").unwrap();
    member.ledger.approved(&a, &member.signed(note("one")));
    member.withheld(&update("two"), &["another update of version 3", "--supersede a"]);
    let again = member.choose(&update("one")).unwrap();
    assert_eq!(again.submission.update, member.signed(note("one")));
    // Resolvers have applied it: nothing is left to announce.
    let applied = vec![
        Applied::for_tests(2, *member.signed(note("other")).hash()),
        Applied::for_tests(3, *member.signed(note("one")).hash()),
    ];
    let current = Current {
        document: member.document.clone(),
        version: 3,
        applied,
        young: None,
        unsettled: None,
        warnings: Vec::new(),
    };
    member.ledger.resolved(&current, |_| None, false);
    let done = member.choose(&update("one"));
    assert!(matches!(&done, Err(NoUpdate::Idle(reason)) if reason.contains("version 3")), "{done:?}");
}
