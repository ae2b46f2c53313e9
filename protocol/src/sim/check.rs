//! What must hold of every run.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::ScriptBuf;

use super::{Simulation, UpdateChoice};
use crate::{
    cohort::{event::SpendPath, service::phase::Phase},
    key::Signature,
    machine::{Machine, replay as replay_events},
    output::{BeaconOutput, key_path_sighash},
    signing::{Signed, SigningOutcome, session::SessionEvent},
};

pub(super) fn replay(simulation: &Simulation) {
    let service = &simulation.service;
    assert_replays("the cohort", &service.initial, &service.machine, &service.events);
    for session in &service.sessions {
        assert_replays("the signing session", &session.initial, &session.machine, &session.events);
    }
    for node in &simulation.participants {
        if let (Some(initial), Some(machine)) = (&node.initial, &node.machine) {
            assert_replays(node.identity.did().as_str(), initial, machine, &node.events);
        }
    }
}

fn assert_replays<M: Machine>(who: &str, initial: &M, machine: &M, events: &[M::Event]) {
    let read: Vec<M::Event> = events
        .iter()
        .map(|event| {
            let line = serde_json::to_string(event).unwrap_or_else(|error| panic!("{who}: {event:?}: {error}"));
            let read: M::Event =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{who}: {line}: {error}"));
            assert_eq!(read, *event, "{who}: an event read from the journal is another one");
            read
        })
        .collect();
    let again = replay_events(initial.clone(), &read);
    assert_eq!(again, *machine, "{who}: the journal leads to another state");
    assert_eq!(again.deadline(), machine.deadline(), "{who}: the journal leads to another deadline");
}

pub(super) fn one_path(simulation: &Simulation) {
    assert!(simulation.service.sessions.len() <= 1, "a second signing session for one coin");
    for session in &simulation.service.sessions {
        let paths: Vec<SpendPath> = session
            .events
            .iter()
            .filter_map(|event| match event {
                SessionEvent::PathChosen { path, .. } => Some(*path),
                _ => None,
            })
            .collect();
        assert!(paths.len() <= 1, "the path latch fell twice: {paths:?}");
        let ends: Vec<&SessionEvent> = session
            .events
            .iter()
            .filter(|event| {
                matches!(event, SessionEvent::SessionCompleted { .. } | SessionEvent::SessionFailed { .. })
            })
            .collect();
        assert!(ends.len() <= 1, "the session ended twice: {ends:?}");
        if let crate::signing::session::SessionPhase::Ended(SigningOutcome::Signed(signed)) =
            session.machine.phase()
        {
            assert_eq!(paths, [signed.path], "signed on another path than the one chosen");
        }
    }
}

pub(super) fn nonces(simulation: &Simulation) {
    let mut opened = BTreeSet::new();
    for node in &simulation.participants {
        let who = node.identity.did();
        for (session, nonce) in &node.opened {
            assert!(opened.insert(nonce), "{who}: the nonce {nonce:?} was opened twice, in {session} again");
        }
        let mut uses = BTreeMap::new();
        for used in &node.uses {
            let what = (used.aggregated, used.sighash);
            let first = *uses.entry(used.nonce).or_insert(what);
            assert_eq!(first, what, "{who}: the nonce {:?} was to sign twice", used.nonce);
        }
    }
}

pub(super) fn records(simulation: &Simulation) {
    let signed = signed(simulation);
    for node in &simulation.participants {
        let Some(record) = node.machine.as_ref().and_then(|machine| machine.record()) else { continue };
        let who = node.identity.did();
        let submitted = node.role.update == UpdateChoice::Submit;
        assert_eq!(record.included(), submitted, "{who}: the record is of another choice");
        assert_eq!(record.update, node.update, "{who}: the record is of another update");
        let beacon = simulation.setup.beacons.get(&record.conditions.beacon_type);
        let beacon = beacon.unwrap_or_else(|| panic!("{who}: the record is of an unknown beacon type"));
        let hash = record.update.as_ref().map(|update| update.hash());
        let signal = beacon.verify(&record.did, hash, &record.data);
        assert_eq!(signal.as_ref(), Ok(&record.signal), "{who}: the record does not prove its slot");
        if let Some((signed, _)) = &signed {
            let last = signed.transaction.output.last().map(|output| &output.script_pubkey);
            let announced = ScriptBuf::new_op_return(record.signal.as_bytes());
            assert_eq!(last, Some(&announced), "{who}: the transaction announces another signal");
        }
    }
}

pub(super) fn signed_transaction(simulation: &Simulation) {
    let Some((signed, output)) = signed(simulation) else { return };
    let prevout = simulation.service.coin.prevout(output);
    let mut unsigned = signed.transaction.clone();
    let [input] = unsigned.input.as_mut_slice() else { panic!("one input expected in {:?}", signed.transaction) };
    let witness: Vec<Vec<u8>> = std::mem::take(&mut input.witness).to_vec();
    let signature = |bytes: &[u8]| <&[u8; 64]>::try_from(bytes).ok().map(Signature::from_bytes);
    match signed.path {
        SpendPath::KeyPath => {
            let [only] = witness.as_slice() else { panic!("a key path witness of {} elements", witness.len()) };
            let digest = key_path_sighash(&unsigned, &prevout).expect("one input, as was checked");
            let valid = signature(only).is_some_and(|signature| output.output_key().verify(&digest, &signature));
            assert!(valid, "the key path signature does not verify");
        }
        SpendPath::ScriptPath => {
            let leaf = output.fallback().expect("a fallback spend has a fallback leaf");
            let digest = leaf.sighash(&unsigned, &prevout).expect("one input, as was checked");
            let [signatures @ .., script, control] = witness.as_slice() else { panic!("a short witness") };
            assert_eq!(script, leaf.script().as_bytes(), "another leaf's script");
            assert_eq!(control, leaf.control_block(), "another leaf's control block");
            assert_eq!(signatures.len(), leaf.keys().len(), "one element for each key");
            let filled = signatures.iter().filter(|element| !element.is_empty()).count();
            assert_eq!(filled, leaf.threshold(), "exactly k signatures");
            for (key, element) in leaf.keys().zip(signatures.iter().rev()) {
                let valid = element.is_empty()
                    || signature(element).is_some_and(|signature| key.verify(&digest, &signature));
                assert!(valid, "the fallback signature of {key} does not verify");
            }
        }
    }
}

fn signed(simulation: &Simulation) -> Option<(&Signed, &BeaconOutput)> {
    match simulation.service.machine.phase() {
        Phase::Completed { formed, outcome, .. } => Some((outcome, &formed.output)),
        _ => None,
    }
}
