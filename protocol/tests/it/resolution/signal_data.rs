//! What signals say: Singleton, CAS and SMT beacons, and what is missing or wrong (rules R-16, C-1 to C-6, M and C4, step 3b).

use btcr2_aggregation_protocol::{
    hash::{DocumentHash, SignalBytes},
    jcs,
    resolution::{BeaconKind, Content, ErrorCode, FailureRule, MissingData, SidecarData},
};
use serde_json::{Value, json};

use super::world::{Author, World, address};

fn cas_world() -> (World, Author) {
    (World::new(), Author::with_beacon(1, BeaconKind::Cas, &address(9)))
}

fn smt_world() -> (World, Author) {
    (World::new(), Author::with_beacon(1, BeaconKind::Smt, &address(9)))
}

/// A signal of the CAS beacon, over an announcement that no implementation makes.
fn announcement(world: &mut World, value: Value) {
    world.signal(&address(9), jcs::hash(&value).unwrap(), 100);
    world.announcements.push(value);
}

#[test]
fn each_beacon_type_announces_an_update() {
    for kind in BeaconKind::ALL {
        let (mut world, mut author) = (World::new(), Author::with_beacon(1, kind, &address(9)));
        let (two, other) = (author.note("two"), Author::key(2));
        match kind {
            BeaconKind::Singleton => world.singleton(&address(9), &two, 100),
            BeaconKind::Cas => drop(world.cas(&address(9), &[(&author.did, Some(&two)), (&other.did, None)], 100)),
            _ => world.smt(&address(9), &[(&author.did, Some(&two)), (&other.did, None)], 100),
        }
        world.resolves(&author, 2);
        // And from the content store, all but the proof.
        world.all_in_store(&author).resolves(&author, 2);
    }
}

#[test]
fn without_an_entry_there_is_no_update() {
    // C-3: what the other members have is not looked at.
    let (mut world, author) = cas_world();
    announcement(&mut world, json!({ "someone": 7, "did:btcr2:x": null }));
    announcement(&mut world, json!({}));
    world.resolves(&author, 1);
}

#[test]
fn an_entry_that_is_no_hash_is_missing_data() {
    // C-2.
    let good = DocumentHash::from_bytes([7; 32]).to_string();
    let padded = format!("{good}=");
    let mut pad_bits = good.clone();
    pad_bits.pop();
    pad_bits.push('d');
    for wrong in [json!(padded), json!(pad_bits), json!(good[1..]), json!(""), json!(7), Value::Null, json!([good])]
    {
        let (mut world, author) = cas_world();
        announcement(&mut world, json!({ author.did.as_str(): wrong }));
        let error = world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
        assert!(error.to_string().contains("C-2"), "{wrong}: {error}");
    }
}

#[test]
fn an_announcement_that_nobody_has_is_missing() {
    let (mut world, mut author) = cas_world();
    let two = author.note("two");
    let announcement = world.cas(&address(9), &[(&author.did, Some(&two))], 100);
    world.announcements.clear();
    let error = world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
    let hash = jcs::document_hash(&announcement).unwrap();
    assert!(error.to_string().contains(&hash.to_string()), "{error}");
    // C-5: other bytes under that hash are not there.
    world.store.insert(hash, Content::Bytes(b"{}".to_vec()));
    world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
    world.stored(&announcement);
    world.resolves(&author, 2);
}

#[test]
fn an_announcement_of_another_hash_that_is_given_is_wrong() {
    let (mut world, mut author) = cas_world();
    let two = author.note("two");
    let announcement = world.cas(&address(9), &[(&author.did, Some(&two))], 100);
    world.announcements.clear();
    let hash = jcs::document_hash(&announcement).unwrap();
    world.store.insert(hash, Content::Json(json!({})));
    let error = world.fails(&author, ErrorCode::InvalidSignalData, None);
    assert!(error.to_string().contains(&hash.to_string()), "{error}");
    world.store.insert(hash, Content::Json(announcement));
    world.resolves(&author, 2);
}

#[test]
fn what_is_no_announcement_is_malformed() {
    let (mut world, author) = cas_world();
    announcement(&mut world, json!([author.did.as_str()]));
    world.fails(&author, ErrorCode::InvalidDidUpdate, None);
    // The right hash, and not JSON.
    let (mut world, author) = cas_world();
    let bytes = b"\xff{".to_vec();
    let hash = btcr2_aggregation_protocol::hash::sha256(&bytes);
    world.signal(&address(9), hash, 100);
    world.store.insert(DocumentHash::from_bytes(hash), Content::Bytes(bytes));
    world.fails(&author, ErrorCode::InvalidDidUpdate, None);
}

#[test]
fn an_update_that_nobody_has_is_missing() {
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    world.announce(&author.beacon(), &two, 100);
    let error = world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
    for word in [two.hash().to_string(), author.beacon().to_string(), "block 100".to_owned()] {
        assert!(error.to_string().contains(&word), "{word}: {error}");
    }
    // C-5 and C-6: bytes of a content store with another hash are not there.
    world
        .store
        .insert(*two.hash(), Content::Bytes(jcs::canonicalize(&author.clone().note("x").value().clone()).unwrap()));
    world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
    world.stored(two.value());
    world.resolves(&author, 2);
}

#[test]
fn an_update_of_another_hash_that_is_given_is_wrong() {
    // C-6.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let other = author.clone().note("another");
    let two = author.note("two");
    world.announce(&author.beacon(), &two, 100);
    world.store.insert(*two.hash(), Content::Json(other.value().clone()));
    let error = world.fails(&author, ErrorCode::InvalidSignalData, None);
    assert!(error.to_string().contains(&other.hash().to_string()), "{error}");
    world.store.insert(*two.hash(), Content::Json(two.value().clone()));
    world.resolves(&author, 2);
}

#[test]
fn bytes_that_are_not_canonical_have_another_hash() {
    // C-5 hashes bytes, C-6 what they say.
    let (mut world, author) = (World::new(), Author::key(1));
    let bytes = author.clone().note("two").value().to_string().into_bytes();
    let hash = btcr2_aggregation_protocol::hash::sha256(&bytes);
    world.signal(&author.beacon(), hash, 100);
    world.store.insert(DocumentHash::from_bytes(hash), Content::Bytes(bytes));
    world.fails(&author, ErrorCode::InvalidSignalData, None);
}

#[test]
fn what_is_no_update_is_malformed() {
    // C4, 3b, whether the Sidecar Data have it or the content store.
    let (mut author, mut checked) = (Author::key(1), 0);
    let valid = author.note("two").value().clone();
    for (field, wrong) in [
        ("patch", json!({})),
        ("patch", Value::Null),
        ("sourceHash", json!(7)),
        ("targetHash", Value::Null),
        ("targetVersionId", json!(1)),
        ("targetVersionId", json!(0)),
        ("targetVersionId", json!(-3)),
        ("targetVersionId", json!(2.5)),
        ("targetVersionId", json!("2")),
        ("proof", json!([])),
    ] {
        let mut update = valid.clone();
        update[field] = wrong;
        for in_store in [false, true] {
            let mut world = World::new();
            world.signal(&author.beacon(), jcs::hash(&update).unwrap(), 100);
            if in_store {
                world.stored(&update)
            } else {
                world.updates.push(update.clone())
            }
            let resolution = world.resolve(&author, &json!({}));
            let error = resolution.outcome.unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidDidUpdate, "{field}: {error}");
            assert!(error.to_string().contains(field), "{field}: {error}");
            checked += 1;
        }
    }
    assert_eq!(checked, 20);
    for value in [json!(5), json!([]), Value::Null, json!("text")] {
        let mut world = World::new();
        world.signal(&author.beacon(), jcs::hash(&value).unwrap(), 100);
        world.updates.push(value);
        world.fails(&author, ErrorCode::InvalidDidUpdate, None);
    }
}

#[test]
fn a_signal_without_a_proof_is_missing_data() {
    //
    let (mut world, mut author) = smt_world();
    let two = author.note("two");
    world.smt(&address(9), &[(&author.did, Some(&two))], 100);
    let proof = world.proofs.remove(&author.did).unwrap().remove(0);
    let error = world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::SmtProofMissing);
    assert!(error.to_string().contains(proof["id"].as_str().unwrap()), "{error}");
    // Another root's proof is none; nor is one whose id has pad bits (M-10).
    let mut pad_bits = proof.clone();
    let mut id = proof["id"].as_str().unwrap().to_owned();
    let last = char::from(id.pop().unwrap() as u8 + 1);
    id.push(last);
    pad_bits["id"] = json!(id);
    let mut other = proof.clone();
    other["id"] = json!("A".repeat(43));
    world.proofs.insert(author.did.clone(), vec![pad_bits, other, json!(7), json!({})]);
    assert_eq!(SidecarData::from_value(world.sidecar(&author)).unwrap().left_out(), 3);
    world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::SmtProofMissing);
    world.proofs.insert(author.did.clone(), vec![proof]);
    world.resolves(&author, 2);
}

#[test]
fn a_proof_that_does_not_verify_is_wrong() {
    // R-16, M-7 to M-9.
    let (mut world, mut author) = smt_world();
    let (two, other) = (author.note("two"), Author::key(2));
    world.smt(&address(9), &[(&author.did, Some(&two)), (&other.did, None)], 100);
    let proof = world.proofs[&author.did][0].clone();
    for (field, wrong) in [
        ("nonce", json!("AAAA")),
        ("nonce", Value::Null),
        ("updateId", json!("A".repeat(43))),
        ("updateId", json!("A")),
        ("hashes", json!([])),
        ("hashes", json!(["A".repeat(44)])),
        ("hashes", json!({})),
        ("collapsed", json!("A".repeat(43))),
        ("collapsed", Value::Null),
    ] {
        let mut broken = proof.clone();
        broken[field] = wrong.clone();
        world.proofs.insert(author.did.clone(), vec![broken.clone()]);
        let error = world.fails(&author, ErrorCode::InvalidSignalData, FailureRule::SmtProofNotVerified);
        assert!(error.to_string().contains(&address(9).to_string()), "{field} {wrong}: {error}");
        // A damaged copy beside the proof does not hide it.
        world.proofs.insert(author.did.clone(), vec![broken, proof.clone()]);
        world.resolves(&author, 2);
    }
    // Another member's proof.
    let others = world.proofs[&other.did].clone();
    world.proofs.insert(author.did.clone(), others);
    world.fails(&author, ErrorCode::InvalidSignalData, FailureRule::SmtProofNotVerified);
}

#[test]
fn all_that_is_missing_is_listed() {
    let (mut world, mut author) = (
        World::new(),
        Author::external(1, |genesis| {
            for (id, kind, seed) in [("#cas", "CASBeacon", 8), ("#smt", "SMTBeacon", 9)] {
                let endpoint = format!("bitcoin:{}", address(seed));
                let service = json!({ "id": id, "type": kind, "serviceEndpoint": endpoint });
                genesis["service"].as_array_mut().unwrap().push(service);
            }
        }),
    );
    let two = author.note("two");
    world.singleton(&author.beacon(), &two, 100);
    world.signal(&author.beacon(), [1; 32], 102);
    world.signal(&author.beacon(), [2; 32], 101);
    world.signal(&address(8), [3; 32], 100);
    announcement_at(&mut world, 8, json!({ author.did.as_str(): 5 }));
    world.signal(&address(9), [4; 32], 99);
    let resolution = world.resolve(&author, &json!({}));
    let missing: Vec<_> = resolution.missing().collect();
    let kinds: Vec<_> = missing.iter().map(|missing| (missing.signal.block.height, missing.data)).collect();
    assert!(
        matches!(
            kinds[..],
            [
                (101, MissingData::Update { .. }),
                (102, MissingData::Update { .. }),
                (100, MissingData::Announcement { .. }),
                (110, MissingData::AnnouncementEntry { .. }),
                (99, MissingData::SmtProof { .. }),
            ]
        ),
        "{kinds:?}"
    );
    // The error is the first.
    assert_eq!(missing[0].signal.bytes, SignalBytes::from_bytes([2; 32]));
    assert_eq!(resolution.outcome.unwrap_err().to_string(), missing[0].to_string());
}

fn announcement_at(world: &mut World, seed: u8, value: Value) {
    world.signal(&address(seed), jcs::hash(&value).unwrap(), 110);
    world.announcements.push(value);
}

#[test]
fn records_of_several_rounds_are_one_sidecar() {
    // C1: the union.
    let (mut world, mut author) = smt_world();
    let (two, three) = (author.note("two"), author.note("three"));
    world.smt(&address(9), &[(&author.did, Some(&two))], 100);
    let first = world.clone();
    world.smt(&address(9), &[(&author.did, Some(&three))], 101);
    let mut second = world.clone();
    second.updates.remove(0);
    second.proofs.get_mut(&author.did).unwrap().remove(0);
    second.fails(&author, ErrorCode::MissingUpdateData, FailureRule::SmtProofMissing);
    // A member's file has its Sidecar Data in `sidecar`.
    let file = json!({ "did": author.did, "included": true, "sidecar": second.sidecar(&author) });
    let mut merged = SidecarData::from_slice(file.to_string().as_bytes()).unwrap();
    merged.merge(SidecarData::from_value(first.sidecar(&author)).unwrap());
    merged.merge(merged.clone());
    let resolver =
        btcr2_aggregation_protocol::resolution::Resolver::new(author.did.clone(), Default::default(), merged);
    let resolution = world.drive(resolver, |_| {});
    assert_eq!(resolution.outcome.unwrap().metadata.version_id, 3);
}
