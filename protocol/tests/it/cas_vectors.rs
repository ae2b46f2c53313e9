//! The CAS beacon against `cas.json`, and its announcement's hash against the general JCS hash.

use std::sync::Arc;

use crate::common::vectors;
use btcr2_aggregation_protocol::{
    beacon::{
        AggregateBeacon, AggregatedData, Aggregation, BeaconData, BeaconError, BeaconMismatch, BeaconRegistry,
        BeaconType, CasAnnouncement, CasBeacon, Slots, SmtBeacon,
    },
    did::Did,
    hash::{DocumentHash, SignalBytes, sha256},
    jcs,
    key::SecretKey,
    network::Network,
};
use proptest::prelude::*;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use rand_core::CryptoRng;
use serde_json::{Value, json};

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let items = value[name].as_array().unwrap_or_else(|| panic!("{name} is not a list"));
    assert!(!items.is_empty(), "{name} is empty");
    items
}

fn did(value: &Value) -> Did {
    value.as_str().expect("a DID").parse().expect("a valid DID")
}

fn member(label: &str) -> Did {
    let key = SecretKey::from_bytes(&sha256(label.as_bytes())).expect("a scalar").public_key();
    Did::from_key(key, Network::Regtest)
}

fn hash(label: &str) -> DocumentHash {
    DocumentHash::from_bytes(sha256(label.as_bytes()))
}

fn announcement(value: &Value) -> BeaconData {
    BeaconData::Cas(serde_json::from_value(value.clone()).expect("an announcement"))
}

#[test]
fn recorded_rounds_are_reproduced_and_members_accept_them() {
    for (number, case) in list(&vectors("cas"), "cases").iter().enumerate() {
        let slots: Slots = list(case, "members")
            .iter()
            .map(|member| {
                let update = &member["signedUpdate"];
                let slot = (!update.is_null()).then(|| jcs::document_hash(update).unwrap());
                assert_eq!(serde_json::to_value(slot).unwrap(), member["updateHash"], "case {number}");
                (did(&member["did"]), slot)
            })
            .collect();
        let made = CasBeacon.aggregate(&slots, &mut ChaCha20Rng::from_seed([0; 32])).unwrap();

        assert_eq!(made.signal.to_string(), case["signalBytes"], "case {number}");
        let AggregatedData::Shared(data) = &made.data else { panic!("case {number}: the data is shared") };
        let BeaconData::Cas(map) = &**data else { panic!("case {number}: the data is an announcement") };
        assert_eq!(serde_json::to_value(map).unwrap(), case["announcement"], "case {number}");
        let submitted = slots.iter().filter_map(|(did, slot)| Some((did.as_str(), slot.as_ref()?)));
        assert_eq!(map.iter().collect::<Vec<_>>(), submitted.collect::<Vec<_>>(), "case {number}");
        assert_eq!((map.len(), map.is_empty()), (map.iter().count(), map.iter().next().is_none()), "case {number}");
        assert_eq!(
            jcs::canonicalize(&case["announcement"]).unwrap(),
            case["canonical"].as_str().unwrap().as_bytes(),
            "case {number}"
        );
        for (did, slot) in &slots {
            let received = announcement(&case["announcement"]);
            assert_eq!(CasBeacon.verify(did, slot.as_ref(), &received), Ok(made.signal), "case {number}: {did}");
            assert_eq!(made.data.for_member(did), Some(data), "case {number}: {did}");
        }
    }
}

#[test]
fn a_member_refuses_an_announcement_with_a_wrong_own_entry() {
    for (number, case) in list(&vectors("cas"), "cases").iter().enumerate() {
        for bad in list(case, "badAnnouncements") {
            let name = format!("case {number}: {}", bad["name"]);
            assert_eq!(bad["matches"], false, "{name}");
            let slot: Option<DocumentHash> = serde_json::from_value(bad["expectedHash"].clone()).unwrap();
            let data = announcement(&bad["announcement"]);
            let mismatch = CasBeacon.verify(&did(&bad["did"]), slot.as_ref(), &data).expect_err(&name);
            let as_named = match bad["name"].as_str().unwrap() {
                "hash of a member replaced" => matches!(mismatch, BeaconMismatch::OwnUpdateDiffers { .. }),
                "member missing" => matches!(mismatch, BeaconMismatch::OwnUpdateMissing { .. }),
                "decliner present" => matches!(mismatch, BeaconMismatch::DeclinerPresent { .. }),
                other => panic!("{name}: unknown case {other}"),
            };
            assert!(as_named, "{name}: {mismatch:?}");
        }
    }
}

#[test]
fn data_of_another_beacon_is_refused() {
    let (alice, update) = (member("alice"), hash("update"));
    let data = BeaconData::Other(json!({ alice.as_str(): update }));
    assert_eq!(
        CasBeacon.verify(&alice, Some(&update), &data),
        Err(BeaconMismatch::WrongKind { expected: BeaconType::cas() })
    );
    assert_eq!(
        SmtBeacon.verify(&alice, Some(&update), &data),
        Err(BeaconMismatch::WrongKind { expected: BeaconType::smt() })
    );
}

#[test]
fn an_announcement_holds_only_hashes() {
    for bad in [json!({"a": 1}), json!({"a": null}), json!({"a": "too short"}), json!([]), json!(null)] {
        assert!(serde_json::from_value::<CasAnnouncement>(bad.clone()).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn the_signal_is_the_jcs_hash_whatever_the_keys(
        // Keys of every range where orders or escapes differ: controls, quotes, the top of the BMP, and beyond it.
        entries in prop::collection::btree_map(
            prop_oneof![
                ".{0,6}",
                "[\u{0}-\u{2f}\\\\\u{7f}-\u{a0}\u{2028}]{0,4}",
                "[\u{d7f0}-\u{d7ff}\u{e000}-\u{e010}\u{fff0}-\u{ffff}\u{10000}-\u{10010}\u{10fff0}-\u{10ffff}]{0,4}",
            ],
            any::<[u8; 32]>(),
            0..12,
        )
    ) {
        let map: CasAnnouncement =
            entries.into_iter().map(|(key, bytes)| (key, DocumentHash::from_bytes(bytes))).collect();
        let expected = jcs::document_hash(&serde_json::to_value(&map).unwrap()).unwrap();
        prop_assert_eq!(map.signal(), SignalBytes::from_bytes(*expected.as_bytes()));
    }
}

#[test]
fn beacon_types_are_short_visible_ascii() {
    assert_eq!(BeaconType::cas().to_string(), "CASBeacon");
    assert_eq!(BeaconType::smt(), BeaconType::new("SMTBeacon").unwrap());
    for good in ["x", &"y".repeat(64)] {
        assert_eq!(BeaconType::new(good).unwrap().as_str(), good);
        assert_eq!(serde_json::from_value::<BeaconType>(json!(good)).unwrap().as_str(), good);
    }
    for bad in ["", " ", "two words", "tab\t", "é", &"y".repeat(65)] {
        assert!(BeaconType::new(bad).is_err(), "{bad:?}");
        assert!(serde_json::from_value::<BeaconType>(json!(bad)).is_err(), "{bad:?}");
    }
}

/// A beacon type that a host could add: the hash of a salt and the members' hashes in DID order.
#[derive(Debug)]
struct ListBeacon;

impl ListBeacon {
    fn signal(list: &Value) -> SignalBytes {
        SignalBytes::from_bytes(sha256(list.to_string().as_bytes()))
    }
}

impl AggregateBeacon for ListBeacon {
    fn beacon_type(&self) -> BeaconType {
        BeaconType::new("ListBeacon").expect("a valid name")
    }

    fn aggregate(&self, slots: &Slots, rng: &mut dyn CryptoRng) -> Result<Aggregation, BeaconError> {
        if slots.is_empty() {
            return Err(BeaconError::Other("no members to list".into()));
        }
        let hashes: Vec<_> = slots.values().flatten().collect();
        let list = json!({"salt": rng.next_u64().to_string(), "hashes": hashes});
        Ok(Aggregation {
            signal: Self::signal(&list),
            data: AggregatedData::Shared(Arc::new(BeaconData::Other(list))),
        })
    }

    fn verify(
        &self,
        _: &Did,
        slot: Option<&DocumentHash>,
        data: &BeaconData,
    ) -> Result<SignalBytes, BeaconMismatch> {
        let BeaconData::Other(list) = data else {
            return Err(BeaconMismatch::WrongKind { expected: self.beacon_type() });
        };
        let hashes = list["hashes"].as_array().ok_or(BeaconMismatch::Malformed("no hashes".into()))?;
        match slot {
            Some(&expected) if !hashes.contains(&json!(expected)) => {
                Err(BeaconMismatch::OwnUpdateMissing { expected })
            }
            _ => Ok(Self::signal(list)),
        }
    }
}

#[test]
fn a_registered_beacon_works_like_the_built_in_ones() {
    let mut registry = BeaconRegistry::default();
    let custom = ListBeacon.beacon_type();
    assert!(registry.get(&custom).is_none());
    assert!(registry.register(Arc::new(ListBeacon)).is_none());
    assert_eq!(
        registry.beacon_types().cloned().collect::<Vec<_>>(),
        [BeaconType::cas(), custom.clone(), BeaconType::smt()]
    );
    assert_eq!(registry.register(Arc::new(ListBeacon)).expect("the first one").beacon_type(), custom);

    let slots: Slots =
        [("alice", Some(hash("a"))), ("bob", None), ("carol", Some(hash("c")))].map(|(n, s)| (member(n), s)).into();
    for beacon_type in [BeaconType::cas(), BeaconType::smt(), custom] {
        let beacon = registry.get(&beacon_type).expect("registered");
        let run = || beacon.aggregate(&slots, &mut ChaCha20Rng::from_seed([7; 32])).unwrap();
        let made = run();
        assert_eq!(made, run(), "{beacon_type}: one seed gives one outcome");

        let journalled: Aggregation = serde_json::from_str(&serde_json::to_string(&made).unwrap()).unwrap();
        assert_eq!(journalled, made, "{beacon_type}");
        for (did, slot) in &slots {
            let data = journalled.data.for_member(did).expect("data for every member");
            assert_eq!(beacon.verify(did, slot.as_ref(), data), Ok(made.signal), "{beacon_type}: {did}");
            let other = hash("an update that no member submitted");
            assert!(beacon.verify(did, Some(&other), data).is_err(), "{beacon_type}: {did}");
        }
    }
}
