//! Vaults as `join` fills them, without its cohorts.

use std::time::{Duration, Instant};

use btcr2_aggregation::{
    actors::{
        runtime::Randomness,
        state::{
            State, StateError,
            vault::{StateVault, Vault, VaultEntry},
        },
    },
    protocol::{
        beacon::{AggregateBeacon, Aggregation, BeaconType, CasBeacon, Slots, SmtBeacon},
        cohort::conditions::Conditions,
        did::Did,
        id::CohortId,
        network::Network,
        sidecar::MemberRecord,
        update::SignedUpdate,
    },
};

use crate::{
    bitcoind_support::beacon::{Beacon, key},
    resolve_cli::Author,
    support::PATIENCE,
};

/// What a cohort announces for its members, of which each has an update or none.
pub fn aggregated(kind: &str, members: &[(&Author, Option<&SignedUpdate>)]) -> Aggregation {
    let aggregate: &dyn AggregateBeacon = if kind == "CASBeacon" { &CasBeacon } else { &SmtBeacon };
    let slots: Slots =
        members.iter().map(|(author, update)| (author.did.clone(), update.map(|update| *update.hash()))).collect();
    aggregate.aggregate(&slots, &mut Randomness::Seeded([3; 32]).for_actor(kind)).unwrap()
}

/// The member's entry of that cohort.
pub fn entry(
    author: &Author,
    cohort: &str,
    beacon: &Beacon,
    kind: &str,
    update: Option<&SignedUpdate>,
    aggregation: &Aggregation,
) -> VaultEntry {
    let tree = beacon.output.script_tree().clone();
    let record = MemberRecord {
        did: author.did.clone(),
        service: Did::from_key(key("service").public_key(), Network::Regtest),
        cohort_id: CohortId::parse(cohort).unwrap(),
        conditions: Conditions::new(BeaconType::new(kind).unwrap(), 2, tree),
        output: beacon.output.clone(),
        signal: aggregation.signal,
        update: update.cloned(),
        data: (**aggregation.data.for_member(&author.did).unwrap()).clone(),
    };
    VaultEntry {
        record,
        genesis_document: author.genesis.clone(),
        transcript: None,
        txid: None,
        confirmed_height: None,
    }
}

/// Stores entries in a state directory.
pub async fn store(directory: &str, entries: &[VaultEntry]) {
    let state = State::open(directory).unwrap();
    let vault = StateVault::new(&state);
    for entry in entries {
        vault.put(entry.clone()).await.unwrap();
    }
    drop(vault);
    state.close().await;
}

/// Stores an update that was given to its controller to be announced without a cohort, as `update --out` does.
pub async fn prepare(directory: &str, update: &SignedUpdate) {
    // A program that watches reads the directory from time to time.
    let until = Instant::now() + PATIENCE;
    let state = loop {
        match State::open(directory) {
            Err(StateError::Locked { .. }) if Instant::now() < until => {
                actix_rt::time::sleep(Duration::from_millis(20)).await;
            }
            opened => break opened.unwrap(),
        }
    };
    let table = state.table("program");
    let known = table.get("prepared").await.unwrap();
    let mut known: Vec<SignedUpdate> = known.map_or_else(Vec::new, |json| serde_json::from_slice(&json).unwrap());
    known.push(update.clone());
    table.put("prepared", serde_json::to_vec(&known).unwrap()).await.unwrap();
    drop(table);
    state.close().await;
}
