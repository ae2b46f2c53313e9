//! C: CAS announcements. C-4, C-5 and C-6 concern fetching by hash: see `tests/it/cas_conformance.rs` of the host.

use btcr2_aggregation_protocol::{
    beacon::{AggregateBeacon, BeaconData, CasAnnouncement, CasBeacon},
    hash::{DocumentHash, sha256},
    jcs,
};
use serde_json::{Value, json};

use super::controller::{Controller, rng};

fn verify(map: Value, slot: Option<&DocumentHash>) -> Result<[u8; 32], String> {
    let announcement: CasAnnouncement = serde_json::from_value(map).map_err(|error| error.to_string())?;
    let did = Controller::new().did().clone();
    let signal = CasBeacon.verify(&did, slot, &BeaconData::Cas(announcement)).map_err(|error| error.to_string())?;
    Ok(*signal.as_bytes())
}

#[test]
fn c_01_signal_is_the_hash_of_the_map() {
    let controller = Controller::new();
    let hash = *controller.update().hash();
    let slots = [(controller.did().clone(), Some(hash)), (Controller::external(|_| {}).did().clone(), None)].into();
    let made = CasBeacon.aggregate(&slots, &mut rng()).unwrap();
    let map = json!({ controller.did().as_str(): hash.to_string() });
    assert_eq!(*made.signal.as_bytes(), sha256(&jcs::canonicalize(&map).unwrap()));
    assert_eq!(verify(map, Some(&hash)), Ok(*made.signal.as_bytes()));
}

#[test]
fn c_02_own_entry_decodes_strictly() {
    let controller = Controller::new();
    let hash = DocumentHash::from_bytes([0; 32]);
    let good = hash.to_string();
    let pad_bit = format!("{}B", &good[..42]);
    for bad in [
        json!(format!("{good}=")),
        json!(pad_bit),
        json!(&good[..42]),
        json!("+".repeat(43)),
        json!(7),
        Value::Null,
    ] {
        assert!(verify(json!({ controller.did().as_str(): bad }), Some(&hash)).is_err(), "{bad}");
    }
}

#[test]
fn c_03_no_own_entry_means_no_update() {
    let controller = Controller::new();
    let other = Controller::external(|_| {});
    let map = json!({ other.did().as_str(): DocumentHash::from_bytes([9; 32]) });
    assert!(verify(map.clone(), None).is_ok());
    assert!(verify(map, Some(&DocumentHash::from_bytes([9; 32]))).is_err(), "its own update is missing");
    let with_own = json!({ controller.did().as_str(): DocumentHash::from_bytes([9; 32]) });
    assert!(verify(with_own, None).is_err(), "it declined");
}

#[test]
fn c_04_the_map_is_hashed_in_its_canonical_form() {
    // Members in another order, and escapes: the same map.
    let one: CasAnnouncement =
        serde_json::from_str(&format!("{{\"b\":\"{0}\",\"a\":\"{0}\"}}", DocumentHash::from_bytes([1; 32])))
            .unwrap();
    let other: CasAnnouncement = serde_json::from_str(&format!(
        "{{\"\\u0061\": \"{0}\", \"b\":\"{0}\"}}",
        DocumentHash::from_bytes([1; 32])
    ))
    .unwrap();
    assert_eq!(one.signal(), other.signal());
    let map = serde_json::to_value(&one).unwrap();
    assert_eq!(*one.signal().as_bytes(), jcs::hash(&map).unwrap());
}
