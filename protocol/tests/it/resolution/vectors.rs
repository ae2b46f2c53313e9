//! The updates of the TypeScript implementation, announced.

use bitcoin::{Address, address::NetworkUnchecked};
use btcr2_aggregation_protocol::{
    beacon::{AggregateBeacon, AggregatedData, BeaconData, CasBeacon, SmtBeacon},
    did::Did,
    hash::SignalBytes,
    jcs,
    key::SecretKey,
    resolution::{
        BeaconKind, Content, ErrorCode, FailureRule, Need, Next, Resolution, ResolutionOptions, Resolver,
        SidecarData, Signal,
    },
    update::{build_update, sign_update},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use crate::common::vectors;

/// 2027-01-15: behind every `created` of the vectors but those of the next century.
const TIME: u32 = 1_800_000_000;

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap()
}

fn signal(bytes: [u8; 32], height: u32) -> Signal {
    Signal {
        txid: "cd".repeat(32).parse().unwrap(),
        bytes: SignalBytes::from_bytes(bytes),
        height: Some(height),
        time: Some(TIME + height),
        mediantime: Some(TIME + height),
        confirmations: Some(10),
    }
}

/// Resolves with these signals, by address.
fn resolve(case: &Value, sidecar: Value, signals: &[(String, Signal)]) -> Resolution {
    let did: Did = case["did"].as_str().unwrap().parse().unwrap();
    let mut sidecar = SidecarData::from_value(sidecar).unwrap();
    let genesis = json!({ "genesisDocument": case["genesisDocument"] });
    sidecar.merge(SidecarData::from_value(genesis).unwrap());
    let mut resolver = Resolver::new(did, ResolutionOptions::default(), sidecar);
    loop {
        let needs = match resolver.next() {
            Next::Done(resolution) => return resolution.clone(),
            Next::Needs(needs) => needs,
        };
        for need in needs {
            match need {
                Need::Signals { beacon, .. } => {
                    let of = |(at, signal): &(String, Signal)| {
                        (*at == beacon.address.to_string()).then(|| signal.clone())
                    };
                    resolver.provide_signals(&beacon.address, signals.iter().filter_map(of).collect(), "").unwrap();
                }
                Need::Content { hash, .. } => {
                    let _ = resolver.provide_content(&hash, Content::Absent, "");
                }
                need => panic!("{need:?}"),
            }
        }
    }
}

/// The address of the first beacon of the initial document.
fn beacon(case: &Value) -> String {
    let endpoint = case["initialDocument"]["service"][0]["serviceEndpoint"].as_str().unwrap();
    let address: Address<NetworkUnchecked> = endpoint.strip_prefix("bitcoin:").unwrap().parse().unwrap();
    address.assume_checked().to_string()
}

/// The outcome of `update`, announced by that beacon.
fn announced(case: &Value, update: &Value) -> Resolution {
    let signals = [(beacon(case), signal(jcs::hash(update).unwrap(), 100))];
    resolve(case, json!({ "updates": [update] }), &signals)
}

fn cases(vectors: &Value) -> impl Iterator<Item = &Value> {
    list(vectors, "cases").iter().chain(list(vectors, "documentForms"))
}

#[test]
fn recorded_updates_make_their_documents() {
    let vectors = vectors("update");
    for case in cases(&vectors) {
        let resolved = announced(case, &case["signedUpdate"]).outcome.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(resolved.metadata.version_id, 2);
        assert_eq!(resolved.document, case["targetDocument"], "{}", case["did"]);
    }
}

#[test]
fn variations_are_accepted_and_refused_as_recorded() {
    let (vectors, mut accepted, mut refused) = (vectors("update"), 0, 0);
    for case in cases(&vectors) {
        for variation in list(case, "variationsAccepted") {
            let name = format!("{}: {}", case["did"], variation["name"]);
            let update = &variation["signedUpdate"];
            let outcome = announced(case, update).outcome;
            match variation["right"].as_str().unwrap() {
                "accepted" if update["proof"]["created"].as_str().is_some_and(|created| created > "2100") => {
                    // Right in itself, and after every block that there can be.
                    let error = outcome.unwrap_err();
                    assert_eq!(error.rule(), Some(FailureRule::ProofCreatedAfterBlock), "{name}: {error}");
                }
                "accepted" => {
                    accepted += 1;
                    assert!(outcome.is_ok(), "{name}: {outcome:?}");
                }
                "refused" => {
                    refused += 1;
                    assert_eq!(outcome.unwrap_err().code(), ErrorCode::InvalidDidUpdate, "{name}");
                }
                "open" => {}
                other => panic!("{name}: {other}"),
            }
        }
    }
    assert!(accepted >= 10 && refused >= 5, "{accepted} accepted, {refused} refused");
}

#[test]
fn tampered_updates_make_no_document() {
    let (vectors, mut judged) = (vectors("update"), 0);
    for case in cases(&vectors) {
        for tampered in list(case, "tampered") {
            let name = format!("{}: {}", case["did"], tampered["name"]);
            let update = &tampered["signedUpdate"];
            let error = announced(case, update).outcome.expect_err(&name);
            let expected = match update["targetVersionId"].as_u64() {
                Some(2) => ErrorCode::InvalidDidUpdate,
                _ => ErrorCode::LatePublishing,
            };
            assert_eq!(error.code(), expected, "{name}: {error}");
            judged += 1;
        }
    }
    assert!(judged > 200, "{judged}");
}

/// The recorded update adds an aggregate beacon; the next one is announced by it.
#[test]
fn the_beacon_of_a_recorded_update_announces_the_next() {
    let vectors = vectors("update");
    for case in list(&vectors, "cases") {
        let did: Did = case["did"].as_str().unwrap().parse().unwrap();
        let key = SecretKey::from_hex(case["secretKey"].as_str().unwrap()).unwrap();
        let patch = json!([{ "op": "add", "path": "/note", "value": "three" }]);
        let unsigned = build_update(&case["targetDocument"], 2, patch).unwrap();
        let method = case["signedUpdate"]["proof"]["verificationMethod"].as_str().unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let three = sign_update(&unsigned, &did, method, &key, &mut rng).unwrap();

        let kind = BeaconKind::from_service_type(case["beaconType"].as_str().unwrap()).unwrap();
        let beacon: &dyn AggregateBeacon = if kind == BeaconKind::Cas { &CasBeacon } else { &SmtBeacon };
        let slots = [(did.clone(), Some(*three.hash()))].into_iter().collect();
        let made = beacon.aggregate(&slots, &mut rng).unwrap();
        let data = match &made.data {
            AggregatedData::Shared(data) => data.clone(),
            AggregatedData::PerMember(_) => made.data.for_member(&did).unwrap().clone(),
        };
        let mut sidecar = json!({ "updates": [case["signedUpdate"], three] });
        match &*data {
            BeaconData::Cas(announcement) => sidecar["casUpdates"] = json!([announcement]),
            BeaconData::Smt(proof) => sidecar["smtProofs"] = json!([proof]),
            BeaconData::Other(_) => panic!("built in"),
        }
        let signals = [
            (self::beacon(case), signal(jcs::hash(&case["signedUpdate"]).unwrap(), 100)),
            (case["beaconAddress"].as_str().unwrap().to_owned(), signal(*made.signal.as_bytes(), 101)),
        ];
        let resolution = resolve(case, sidecar, &signals);
        let resolved = resolution.outcome.unwrap_or_else(|error| panic!("{did}: {error}"));
        assert_eq!(resolved.metadata.version_id, 3, "{did}");
        assert_eq!(resolved.document, *unsigned.target_document(), "{did}");
    }
}
