//! Hostile Sidecar Data, and signals that refer to everything in it.

use std::sync::OnceLock;

use btcr2_aggregation_protocol::{
    beacon::{AggregateBeacon, AggregatedData, BeaconData, CasBeacon, SmtBeacon},
    did::Did,
    document,
    hash::{DocumentHash, SignalBytes, SmtHash},
    identity::Identity,
    jcs,
    network::Network,
    output::{InitialBeacon, InitialBeaconKind},
    resolution::{
        BeaconKind, Content, Event, Need, Next, Resolution, ResolutionOptions, Resolver, SidecarData, Signal,
    },
    update::{SignedUpdate, build_update, sign_update},
};
use serde_json::{Value, json};

use crate::{EDIT, edited, identity, rng};

/// More entries of a list than these have no signal, so that an input stays small.
const MAX_SIGNALS: usize = 32;

struct Signed {
    did: Did,
    genesis: Value,
    /// By version, 1 the first.
    documents: Vec<Value>,
    updates: Vec<SignedUpdate>,
    text: String,
}

/// A DID with a Singleton, a CAS and an SMT beacon, and an update by each.
fn signed() -> &'static Signed {
    static SIGNED: OnceLock<Signed> = OnceLock::new();
    SIGNED.get_or_init(|| {
        let key = identity("controller").secret_key().to_hex();
        let key = btcr2_aggregation_protocol::key::SecretKey::from_hex(&key).expect("a key");
        let mut genesis = document::genesis_document(&key.public_key(), Network::Regtest);
        for (kind, name) in [(BeaconKind::Cas, "cas"), (BeaconKind::Smt, "smt")] {
            let other = identity(name).public_key();
            let beacon = InitialBeacon::new(other, Network::Regtest, InitialBeaconKind::P2wpkh);
            let service = json!({
                "id": format!("#{name}"),
                "type": kind.service_type(),
                "serviceEndpoint": format!("bitcoin:{}", beacon.address()),
            });
            genesis["service"].as_array_mut().expect("a list").push(service);
        }
        let controller =
            Identity::from_genesis(key, genesis.clone(), Network::Regtest).expect("a genesis document");
        let did = controller.did().clone();
        let mut documents = vec![controller.initial_document().expect("it has one")];
        let mut updates = Vec::new();
        for version in 1..4_u64 {
            let patch = json!([{ "op": "add", "path": "/note", "value": version }]);
            let source = documents.last().expect("the first one is there");
            let unsigned = build_update(source, version, patch).expect("it applies");
            let method = controller.verification_method();
            let update =
                sign_update(&unsigned, &did, method, controller.secret_key(), &mut rng()).expect("canonical");
            documents.push(unsigned.target_document().clone());
            updates.push(update);
        }
        let mut sidecar = json!({ "genesisDocument": genesis, "updates": updates });
        let others = identity("other").did().clone();
        for (beacon, update) in [(&CasBeacon as &dyn AggregateBeacon, &updates[1]), (&SmtBeacon, &updates[2])] {
            let slots = [(did.clone(), Some(*update.hash())), (others.clone(), None)].into_iter().collect();
            let made = beacon.aggregate(&slots, &mut rng()).expect("two members");
            let data = match &made.data {
                AggregatedData::Shared(data) => data,
                AggregatedData::PerMember(data) => &data[&did],
            };
            match &**data {
                BeaconData::Cas(announcement) => sidecar["casUpdates"] = json!([announcement]),
                BeaconData::Smt(proof) => sidecar["smtProofs"] = json!([proof]),
                BeaconData::Other(_) => unreachable!("both are built in"),
            }
        }
        Signed { did, genesis, documents, text: sidecar.to_string(), updates }
    })
}

/// A resolution ends, and in the same way in any order of answers and whether the Sidecar Data or a store has the data; it
/// returns only documents of updates that the controller signed.
pub fn check(data: &[u8]) {
    let signed = signed();
    let text = match data.split_first() {
        Some((&EDIT, edits)) => edited(&signed.text, edits),
        _ => String::from_utf8(data.to_vec()).ok(),
    };
    let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else { return };
    let Ok(sidecar) = SidecarData::from_slice(value.to_string().as_bytes()) else { return };
    let forward = resolve(signed, &value, sidecar.clone(), false);
    let backward = resolve(signed, &value, sidecar, true);
    let written = |resolution: &Resolution| {
        serde_json::to_string(&(&resolution.history, resolution.result())).expect("a resolution serializes")
    };
    assert_eq!(written(&forward), written(&backward), "the order of the answers decides");
    for event in &forward.history {
        if let Event::Applied(step) = event {
            let known = signed.updates.iter().any(|update| *update.hash() == step.update);
            assert!(known, "applied, and never signed: {step:?}");
        }
    }
    match &forward.outcome {
        Ok(resolved) => {
            assert!(signed.documents.contains(&resolved.document), "the document is not the controller's")
        }
        Err(error) => assert!(error.to_string().len() < 4_000, "{error}"),
    }
}

fn resolve(signed: &Signed, value: &Value, sidecar: SidecarData, backward: bool) -> Resolution {
    let options = ResolutionOptions::from_value(value).unwrap_or_default();
    let mut resolver = Resolver::new(signed.did.clone(), options, sidecar);
    loop {
        let mut needs = match resolver.next() {
            Next::Done(resolution) => return resolution.clone(),
            Next::Needs(needs) => needs,
        };
        assert!(!needs.is_empty(), "it waits for nothing");
        if backward {
            needs.reverse();
            needs.truncate(2);
        }
        for need in needs {
            match need {
                Need::Signals { beacon, .. } => {
                    let signals = signals(value, beacon.kind);
                    resolver.provide_signals(&beacon.address, signals, "chain").expect("it is needed");
                }
                Need::Content { hash, .. } => {
                    // Two kinds of one hash are answered together.
                    let _ = resolver.provide_content(&hash, content(signed, value, &hash), "store");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A signal for each entry that a beacon of this kind could announce.
fn signals(value: &Value, kind: BeaconKind) -> Vec<Signal> {
    let list = match kind {
        BeaconKind::Singleton => "updates",
        BeaconKind::Cas => "casUpdates",
        BeaconKind::Smt => "smtProofs",
    };
    let entries = value.get(list).and_then(Value::as_array).into_iter().flatten().take(MAX_SIGNALS);
    let bytes = entries.filter_map(|entry| match kind {
        BeaconKind::Smt => entry.get("id")?.as_str()?.parse::<SmtHash>().ok().map(|root| *root.as_bytes()),
        _ => jcs::hash(entry).ok(),
    });
    bytes
        .zip(100..)
        .map(|(bytes, height)| Signal {
            txid: "ab".repeat(32).parse().expect("hex of 32 bytes"),
            bytes: SignalBytes::from_bytes(bytes),
            height: Some(height),
            time: Some(height),
            mediantime: Some(height),
            confirmations: Some(6),
        })
        .collect()
}

/// The data of a content store: the genesis document, and `content`, under any hash that is requested.
fn content(signed: &Signed, value: &Value, hash: &DocumentHash) -> Content {
    if jcs::document_hash(&signed.genesis).is_ok_and(|genesis| genesis == *hash) {
        return Content::Json(signed.genesis.clone());
    }
    let entries = value.get("content").and_then(Value::as_array).into_iter().flatten();
    entries
        .clone()
        .find(|entry| jcs::document_hash(entry).is_ok_and(|found| found == *hash))
        .or(entries.clone().next())
        .map_or(Content::Absent, |entry| match entry {
            Value::String(text) => Content::Bytes(text.clone().into_bytes()),
            entry => Content::Json(entry.clone()),
        })
}
