//! What simulated cohorts announce resolves, from each member's own record alone, to what the member meant.
//!
//! `SIM_SEEDS` sets the number of seeds.

use std::cell::RefCell;

use crate::sim_support::{
    TIMEOUT,
    dice::{Dice, for_each_seed},
};
use bitcoin::{Address, address::NetworkUnchecked};
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    cohort::service::phase::Phase,
    did::Did,
    error::Slot,
    hash::SignalBytes,
    output::BeaconOutput,
    resolution::{ErrorCode, Resolution, ResolutionOptions, Resolver, SidecarData, beacons},
    signing::Signed,
    sim::{Crashes, Faults, ParticipantNode, Role, START, Seat, Simulation, UpdateChoice},
    update::{Edit, Relationship, SignedUpdate, build_update},
};
use serde_json::{Value, json};

use super::world::{NETWORK, World, key};

/// The heights of the transactions: first each member announces the cohort's beacon, then the cohort announces.
const ADOPTED: u32 = 100;
const ANNOUNCED: u32 = 101;

fn edit(dice: &mut Dice, method: &str) -> Edit {
    let new_key = || key(9).public_key();
    match dice.below(5) {
        0 => Edit::AddKey {
            method: "#second".to_owned(),
            key: new_key(),
            relationships: vec![Relationship::Authentication, Relationship::CapabilityInvocation],
        },
        1 => Edit::ReplaceKey { old: method.to_owned(), method: "#second".to_owned(), key: new_key() },
        2 => Edit::AddService {
            id: "#mail".to_owned(),
            kind: "Mail".to_owned(),
            endpoint: json!(format!("mailto:{}", dice.below(1000))),
        },
        3 => Edit::RemoveKey { method: method.to_owned() },
        _ => Edit::Deactivate,
    }
}

/// A member that announces version 3, or declines.
fn member(dice: &mut Dice, role: Role) -> Role {
    let method = if role.external { "#key-0" } else { "#initialKey" };
    let update = match role.update {
        UpdateChoice::Decline => UpdateChoice::Decline,
        _ => UpdateChoice::Next(edit(dice, method)),
    };
    Role { update, ..role }
}

fn announced(signed: &Signed) -> SignalBytes {
    let script = signed.transaction.output.last().unwrap().script_pubkey.as_bytes();
    let (prefix, bytes) = script.split_at(2);
    assert_eq!(prefix, [0x6a, 0x20]);
    SignalBytes::from_bytes(bytes.try_into().unwrap())
}

/// The controller's own part: version 2, which lists the cohort's beacon, announced by a Singleton Beacon.
struct Adoption {
    update: SignedUpdate,
    document: Value,
}

fn adopt(simulation: &mut Simulation, at: usize, output: &BeaconOutput, world: &mut World) -> Adoption {
    let mut rng = simulation.rng().clone();
    let node = &simulation.participants()[at];
    let initial = node.identity().initial_document().unwrap();
    let update = node.make_update(output, &mut rng);
    let patched = build_update(&initial, 1, update.value()["patch"].clone()).unwrap();
    let singleton = beacons(&initial, NETWORK).remove(0).unwrap();
    world.announce(&singleton.address, &update, ADOPTED);
    Adoption { update, document: patched.target_document().clone() }
}

/// The document that the member meant, and its version.
fn meant(node: &ParticipantNode, adoption: &Adoption) -> (Value, u64) {
    match &node.role().update {
        UpdateChoice::Next(edit) => {
            let patch = edit.patch(&adoption.document).unwrap();
            (build_update(&adoption.document, 2, patch).unwrap().target_document().clone(), 3)
        }
        _ => (adoption.document.clone(), 2),
    }
}

fn resolve(did: &Did, sidecar: Value, world: &World) -> Resolution {
    let sidecar = SidecarData::from_value(sidecar).unwrap();
    world.drive(Resolver::new(did.clone(), ResolutionOptions::default(), sidecar), |_| {})
}

/// Every member's resolution, by its record of the cohort and its own update of version 2; returns how many members
/// announced, and how many declined.
fn assert_resolves(simulation: &mut Simulation) -> Option<[usize; 2]> {
    let service = simulation.service().machine();
    let Phase::Completed { formed, outcome, .. } = service.phase() else { return None };
    let (output, cohort_id) = (formed.output.clone(), service.config().terms.cohort_id.clone());
    let beacon_type = service.config().terms.conditions.beacon_type.clone();
    let members: Vec<Did> = formed.members.keys().cloned().collect();
    let signal = announced(outcome);
    let address: Address<NetworkUnchecked> = output.address().parse().unwrap();
    let mut world = World::new();
    world.signal(&address.assume_checked(), *signal.as_bytes(), ANNOUNCED);
    let mut count = [0; 2];
    for at in 0..simulation.participants().len() {
        if !members.contains(&simulation.did(at)) {
            continue;
        }
        let adoption = adopt(simulation, at, &output, &mut world);
        let node = &simulation.participants()[at];
        let did = node.identity().did();
        // All members have approved what is announced, also one that never learns that it was.
        let record = node.seat(&cohort_id).and_then(Seat::vault);
        let record = record.unwrap_or_else(|| panic!("{did} has no record of what it approved"));
        let mut sidecar = record.sidecar(node.identity().genesis_document().map(|document| &**document));
        let updates = sidecar.as_object_mut().unwrap().entry("updates").or_insert_with(|| json!([]));
        updates.as_array_mut().unwrap().push(adoption.update.value().clone());

        let (document, version) = meant(node, &adoption);
        let resolution = resolve(did, sidecar.clone(), &world);
        let resolved = resolution.outcome.unwrap_or_else(|error| panic!("{did}: {}: {error}", error.code()));
        assert_eq!((resolved.metadata.version_id, &resolved.document), (version, &document), "{did}");
        assert_eq!(resolved.metadata.deactivated, document["deactivated"] == json!(true), "{did}");

        // Nothing but the record has it: without it every member's DID is broken, also of one that declined.
        let list = if beacon_type == BeaconType::smt() { "smtProofs" } else { "casUpdates" };
        sidecar.as_object_mut().unwrap().remove(list);
        let error = resolve(did, sidecar, &world).outcome.expect_err("data of a signal is missing");
        assert_eq!(error.code(), ErrorCode::MissingUpdateData, "{did}");
        count[usize::from(!record.included())] += 1;
    }
    Some(count)
}

#[test]
fn what_a_cohort_announces_resolves_to_what_its_members_meant() {
    let total = RefCell::new([0; 4]);
    for_each_seed(60, |seed| {
        let mut dice = Dice::new(seed);
        let mut setup = dice.setup(Dice::honest);
        let adversary = dice.below(2 * setup.roles.len() as u64) as usize;
        setup.roles = setup.roles.into_iter().map(|role| member(&mut dice, role)).collect();
        // One that signs nothing, in one half of the runs: the others finish by the fallback.
        if let Some(role) = setup.roles.get_mut(adversary) {
            *role = role.clone().silent_from(Slot::Nonce);
        }
        setup.faults = Faults { drop_per_mille: dice.below(30) as u32, ..dice.reordering() };
        setup.crashes = Crashes {
            participant_per_mille: dice.below(20) as u32,
            service_per_mille: dice.below(20) as u32,
            longest: TIMEOUT / 8,
            ..Crashes::default()
        };
        let limit = START + setup.timing.cohort_ttl + TIMEOUT * 16;
        let mut simulation = Simulation::new(seed, setup);
        simulation.run_until(|simulation| simulation.now() > limit);
        simulation.assert_invariants();
        let mut total = total.borrow_mut();
        total[0] += simulation.report().mishaps.fallbacks;
        if let Some([updated, declined]) = assert_resolves(&mut simulation) {
            total[1] += 1;
            total[2] += updated as u64;
            total[3] += declined as u64;
        }
    });
    let [fallbacks, announced, updated, declined] = total.into_inner();
    println!(
        "{announced} announcements, {fallbacks} sessions by the fallback; members: {updated} updated, {declined} declined"
    );
    assert!(announced >= 30 && fallbacks >= 10 && updated >= 60 && declined >= 60, "too little happened");
}
