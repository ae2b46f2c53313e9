//! Extensions of a host: a beacon type of its own, and an output without script paths.

use std::sync::Arc;

use crate::sim_support::{assert_completes, assert_named, honest, setup};
use btcr2_aggregation_protocol::{
    beacon::{
        AggregateBeacon, AggregatedData, Aggregation, BeaconData, BeaconError, BeaconMismatch, BeaconRegistry,
        BeaconType, Slots,
    },
    cohort::{
        event::{CohortFailure, SpendPath},
        participant::Advert,
    },
    did::Did,
    error::{RejectCode, Slot},
    hash::{DocumentHash, SignalBytes, sha256},
    jcs,
    message::{Body, Bytes, Message, sign::SignatureAuthorization},
    output::ScriptTree,
    sim::{Role, Setup, Simulation},
};
use rand_core::CryptoRng;
use serde_json::{Value, json};

/// A beacon type that announces a salted list of all updates, declines included, in JSON.
#[derive(Debug)]
struct RollCall;

fn signal(data: &Value) -> SignalBytes {
    SignalBytes::from_bytes(sha256(&jcs::canonicalize(data).unwrap()))
}

impl AggregateBeacon for RollCall {
    fn beacon_type(&self) -> BeaconType {
        BeaconType::new("RollCallBeacon").unwrap()
    }

    fn aggregate(&self, slots: &Slots, rng: &mut dyn CryptoRng) -> Result<Aggregation, BeaconError> {
        let members: serde_json::Map<String, Value> =
            slots.iter().map(|(did, hash)| (did.to_string(), json!(hash))).collect();
        let data = json!({"salt": rng.next_u32(), "members": members});
        Ok(Aggregation { signal: signal(&data), data: AggregatedData::Shared(Arc::new(BeaconData::Other(data))) })
    }

    fn verify(
        &self,
        did: &Did,
        slot: Option<&DocumentHash>,
        data: &BeaconData,
    ) -> Result<SignalBytes, BeaconMismatch> {
        let BeaconData::Other(data) = data else {
            return Err(BeaconMismatch::WrongKind { expected: self.beacon_type() });
        };
        match data["members"].get(did.as_str()) {
            Some(entry) if *entry == json!(slot) => Ok(signal(data)),
            _ => Err(BeaconMismatch::Other("the roll call has another entry for us".to_owned())),
        }
    }
}

fn roll_call() -> Setup {
    let mut setup = setup(honest(4)).with_beacon(RollCall.beacon_type());
    setup.beacons.register(Arc::new(RollCall));
    setup
}

#[test]
fn a_registered_beacon_type_carries_a_whole_cohort() {
    let mut simulation = Simulation::new(1, roll_call());
    assert_completes(&mut simulation, "a roll call", &[]);
    assert_eq!(simulation.report().signed.unwrap().path, SpendPath::KeyPath);
    for node in simulation.participants() {
        let record = node.machine().unwrap().record().unwrap();
        let BeaconData::Other(data) = &record.data else { panic!("{record:?}") };
        assert_eq!(signal(data), record.signal);
        assert_eq!(data["members"].as_object().unwrap().len(), 4);
    }
}

#[test]
fn a_registered_beacon_type_is_checked_by_every_member() {
    let mut simulation = Simulation::new(1, roll_call());
    let (service, victim) = (simulation.service().identity().did().clone(), simulation.did(0));
    let other = simulation.did(1);
    simulation.tamper(&service, move |message| match &*message.body {
        Body::DistributeAggregatedData(body) if message.to.as_ref() == Some(&victim) => {
            let mut body = body.clone();
            let data = body.beacon_data.as_mut().unwrap();
            data["members"][victim.as_str()] = data["members"][other.as_str()].clone();
            body.signal_bytes_hex = signal(data);
            vec![Message::new(message.from.clone(), message.to.clone(), body).to_json()]
        }
        _ => vec![message.to_json()],
    });
    simulation.run();
    simulation.assert_invariants();
    let by = simulation.did(0);
    assert_eq!(simulation.report().failure, Some(CohortFailure::ValidationRejected { by }));
}

#[test]
fn a_host_that_does_not_know_the_type_does_not_join() {
    let simulation = Simulation::new(1, roll_call());
    let config = simulation.service().machine().config();
    let advert = config.terms.conditions.to_advert(
        config.terms.cohort_id.clone(),
        config.terms.network,
        &config.terms.service_key,
    );
    let refused = Advert::read(&config.terms.service, &advert, &BeaconRegistry::default());
    assert_named("an unknown beacon type", refused, &config.terms.service, RejectCode::UnacceptableTerms);
    assert!(Advert::read(&config.terms.service, &advert, &config.beacons).is_ok());
}

fn key_path_only(roles: Vec<Role>) -> Setup {
    let mut setup = setup(roles);
    setup.conditions.script_tree = ScriptTree::KeyPathOnly;
    setup
}

#[test]
fn an_output_without_script_paths_is_spent_by_key_path() {
    for beacon in [BeaconType::cas(), BeaconType::smt()] {
        for n in [1, 2, 5] {
            let mut simulation = Simulation::new(n as u64, key_path_only(honest(n)).with_beacon(beacon.clone()));
            assert_completes(&mut simulation, "key path only", &[]);
            assert_eq!(simulation.report().signed.unwrap().path, SpendPath::KeyPath);
            let formed = simulation.service().machine().phase().formed().unwrap();
            assert!(formed.output.fallback().is_none());
            assert!(
                simulation.trace()[0].contains("keygen/cohort_advert_key_path"),
                "its own type, which version 1 ignores"
            );
        }
    }
}

#[test]
fn without_script_paths_silent_members_fail_the_cohort() {
    for slot in [Slot::Nonce, Slot::PartialSignature] {
        let mut roles = honest(4);
        roles[2] = roles[2].clone().silent_from(slot);
        let mut simulation = Simulation::new(1, key_path_only(roles));
        simulation.run();
        simulation.assert_invariants();
        match simulation.report().failure {
            Some(CohortFailure::Signing { holdouts, culprits, reason, .. }) => {
                assert_eq!((holdouts, culprits), (vec![simulation.did(2)], Vec::new()), "{slot}");
                assert!(reason.contains("no fallback leaf"), "{reason}");
            }
            other => panic!("{slot}: {other:?}"),
        }
        assert!(simulation.has_ended());
    }
}

#[test]
fn without_script_paths_a_bad_signature_fails_the_cohort() {
    for bad in [[0; 32], [0x5a; 32]] {
        let mut simulation = Simulation::new(1, key_path_only(honest(4)));
        let culprit = simulation.did(0);
        simulation.tamper(&culprit, move |message| match &*message.body {
            Body::SignatureAuthorization(body) => {
                let body = SignatureAuthorization { partial_signature: Bytes(bad), ..body.clone() };
                vec![Message::new(message.from.clone(), message.to.clone(), body).to_json()]
            }
            _ => vec![message.to_json()],
        });
        simulation.run();
        simulation.assert_invariants();
        match simulation.report().failure {
            Some(CohortFailure::Signing { holdouts, culprits, .. }) => {
                assert_eq!((holdouts, culprits), (Vec::new(), vec![culprit]));
            }
            other => panic!("{other:?}"),
        }
        let accused = simulation.report().accused();
        assert_eq!(accused.len(), 1, "{accused:?}");
    }
}
