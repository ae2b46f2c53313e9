//! The invariants of every run.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{ScriptBuf, TxOut};

use super::{
    CohortNode, Seat, Simulation, UpdateChoice,
    crash::{replay_transcribed, through_journal},
};
use crate::{
    cohort::{
        event::{ParticipantEvent, SpendPath},
        participant::phase::Phase as ParticipantPhase,
        service::phase::Phase,
    },
    key::Signature,
    machine::{Machine, replay as replay_events},
    output::{BeaconOutput, key_path_sighash},
    signing::{
        Signed, SigningOutcome,
        session::{SessionEvent, SessionPhase},
    },
};

pub(super) fn replay(simulation: &Simulation) {
    for cohort in &simulation.service.cohorts {
        assert_replays("the cohort", &cohort.initial, &cohort.machine, &cohort.events);
        let (_, digests) = replay_transcribed(cohort.initial.clone(), &cohort.events);
        assert_eq!(digests, cohort.transcript.digests(), "the journal gives another transcript");
        for session in &cohort.sessions {
            assert_replays("the signing session", &session.initial, &session.machine, &session.events);
        }
    }
    for node in &simulation.participants {
        for seat in &node.seats {
            assert_replays(node.identity.did().as_str(), &seat.initial, &seat.machine, &seat.events);
        }
    }
}

fn assert_replays<M: Machine>(who: &str, initial: &M, machine: &M, events: &[M::Event]) {
    let read = through_journal(events);
    assert_eq!(read, events, "{who}: the events read from the journal differ");
    let again = replay_events(initial.clone(), &read);
    assert_eq!(again, *machine, "{who}: the journal gives another state");
    assert_eq!(again.deadline(), machine.deadline(), "{who}: the journal gives another deadline");
}

/// A replay of the journal gives what survives a restart, all events of a run its exact state; and the facts agree with
/// the seats, whose own journals are the first to know.
pub(super) fn memberships(simulation: &Simulation) {
    for node in &simulation.participants {
        let (who, memberships) = (node.identity.did(), &node.memberships);
        let read = through_journal(&memberships.events);
        assert_eq!(read, memberships.events, "{who}: the events read from the journal differ");
        let again = replay_events(memberships.initial.clone(), &read);
        assert_eq!(again, memberships.machine.restarted(), "{who}: the journal gives other memberships");
        let compacted = through_journal(&[again.compacted()]);
        let compact = replay_events(memberships.initial.clone(), &compacted);
        assert_eq!(compact, again, "{who}: the compacted journal gives other memberships");
        let (start, events) = &memberships.run;
        let run = replay_events(start.clone(), &through_journal(events));
        assert_eq!(run, memberships.machine, "{who}: the events of the run give other memberships");
        let most = 4 * node.seats.len();
        assert!(memberships.events.len() <= most, "{who}: {} facts", memberships.events.len());
        if node.process.is_down() {
            continue;
        }
        let open = |seat: &&Seat| !matches!(seat.machine.phase(), ParticipantPhase::Ended { .. });
        let open: Vec<&Seat> = node.seats.iter().filter(open).collect();
        assert_eq!(memberships.machine.sessions(), open.len(), "{who}: the number of sessions");
        assert!(open.len() <= simulation.setup.max_sessions, "{who}: {} sessions", open.len());
        let joined =
            |seat: &&&Seat| seat.events.iter().any(|event| matches!(event, ParticipantEvent::OptedIn { .. }));
        let joined: BTreeSet<_> = open.iter().filter(joined).map(|seat| seat.cohort()).collect();
        let facts: BTreeSet<_> = memberships.machine.facts().joined().map(|(cohort, _)| cohort.clone()).collect();
        assert_eq!(facts, joined, "{who}: the joined cohorts");
    }
}

pub(super) fn one_path(simulation: &Simulation) {
    let cohorts = &simulation.service.cohorts;
    let outputs: Vec<&str> = cohorts.iter().filter_map(output).map(BeaconOutput::address).collect();
    let distinct: BTreeSet<&str> = outputs.iter().copied().collect();
    assert_eq!(distinct.len(), outputs.len(), "two cohorts have the same output");
    for cohort in cohorts {
        assert!(cohort.sessions.len() <= 1, "a second signing session for one coin");
    }
    for session in cohorts.iter().flat_map(|cohort| &cohort.sessions) {
        let paths: Vec<SpendPath> = session
            .events
            .iter()
            .filter_map(|event| match event {
                SessionEvent::PathChosen { path, .. } => Some(*path),
                _ => None,
            })
            .collect();
        assert!(paths.len() <= 1, "two paths were chosen: {paths:?}");
        let ends: Vec<&SessionEvent> = session
            .events
            .iter()
            .filter(|event| {
                matches!(event, SessionEvent::SessionCompleted { .. } | SessionEvent::SessionFailed { .. })
            })
            .collect();
        assert!(ends.len() <= 1, "the session ended twice: {ends:?}");
        if let SessionPhase::Ended(SigningOutcome::Signed(signed)) = session.machine.phase() {
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
        for ((session, slot), times) in &node.sent {
            assert_eq!(*times, 1, "{who}: the {slot} of session {session} was sent twice");
        }
        let mut uses = BTreeMap::new();
        for used in &node.uses {
            let what = (used.aggregated, used.sighash);
            let first = *uses.entry(used.nonce).or_insert(what);
            assert_eq!(first, what, "{who}: the nonce {:?} was used for two signatures", used.nonce);
        }
    }
}

pub(super) fn records(simulation: &Simulation) {
    for node in &simulation.participants {
        for seat in &node.seats {
            let Some(record) = seat.machine.record() else { continue };
            let who = node.identity.did();
            let submitted = node.role.update != UpdateChoice::Decline;
            assert_eq!(record.included(), submitted, "{who}: the record does not match the member's choice");
            assert_eq!(record.update, seat.update, "{who}: the record has another update");
            let beacon = simulation.setup.beacons.get(&record.conditions.beacon_type);
            let beacon = beacon.unwrap_or_else(|| panic!("{who}: the record has an unknown beacon type"));
            let hash = record.update.as_ref().map(|update| update.hash());
            let signal = beacon.verify(&record.did, hash, &record.data);
            assert_eq!(signal.as_ref(), Ok(&record.signal), "{who}: the record does not prove its slot");
            let same = |cohort: &&CohortNode| cohort.machine.config().terms.cohort_id == record.cohort_id;
            if let Some((signed, _)) = simulation.service.cohorts.iter().find(same).and_then(signed) {
                let last = signed.transaction.output.last().map(|output| &output.script_pubkey);
                let announced = ScriptBuf::new_op_return(record.signal.as_bytes());
                assert_eq!(last, Some(&announced), "{who}: the transaction announces another signal");
            }
        }
    }
}

pub(super) fn signed_transactions(simulation: &Simulation) {
    for cohort in &simulation.service.cohorts {
        if let Some((signed, output)) = signed(cohort) {
            signed_transaction(signed, output, &cohort.coin.prevout(output));
        }
    }
}

pub(super) fn lineage(simulation: &Simulation) {
    let cohorts = &simulation.service.cohorts;
    for (cohort, generation) in cohorts.iter().zip(0..) {
        assert_eq!(cohort.machine.config().terms.lineage.generation, generation, "the generation is wrong");
    }
    for pair in cohorts.windows(2) {
        let [failed, next] = pair else { continue };
        let (terms, lineage) = (&failed.machine.config().terms, &next.machine.config().terms.lineage);
        assert_eq!(lineage.predecessor.as_ref(), Some(&terms.cohort_id), "the predecessor is wrong");
        assert!(lineage.generation <= terms.rules.reformations, "too many reformations");
        let Phase::Failed { successor, .. } = failed.machine.phase() else {
            panic!("{:?} has a successor", failed.machine);
        };
        assert_eq!(
            successor.as_ref(),
            Some(&next.machine.config().terms),
            "the successor is not the one that was decided"
        );
        assert!(lineage.invited.is_disjoint(&lineage.excluded), "a member is both invited and excluded");
        if let Some(formed) = next.machine.phase().formed() {
            let outcast = formed.members.keys().find(|did| lineage.excluded.contains(*did));
            assert_eq!(outcast, None, "an excluded member was admitted");
        }
    }
}

fn signed_transaction(signed: &Signed, output: &BeaconOutput, prevout: &TxOut) {
    let mut unsigned = signed.transaction.clone();
    let [input] = unsigned.input.as_mut_slice() else { panic!("one input expected in {:?}", signed.transaction) };
    let witness: Vec<Vec<u8>> = std::mem::take(&mut input.witness).to_vec();
    let signature = |bytes: &[u8]| <&[u8; 64]>::try_from(bytes).ok().map(Signature::from_bytes);
    match signed.path {
        SpendPath::KeyPath => {
            let [only] = witness.as_slice() else { panic!("a key path witness of {} elements", witness.len()) };
            let digest = key_path_sighash(&unsigned, prevout).expect("one input, as was checked");
            let valid = signature(only).is_some_and(|signature| output.output_key().verify(&digest, &signature));
            assert!(valid, "the key path signature does not verify");
        }
        SpendPath::ScriptPath => {
            let leaf = output.fallback().expect("a fallback spend has a fallback leaf");
            let digest = leaf.sighash(&unsigned, prevout).expect("one input, as was checked");
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

fn output(cohort: &CohortNode) -> Option<&BeaconOutput> {
    cohort.machine.phase().formed().map(|formed| &formed.output)
}

fn signed(cohort: &CohortNode) -> Option<(&Signed, &BeaconOutput)> {
    match cohort.machine.phase() {
        Phase::Completed { formed, outcome, .. } => Some((outcome, &formed.output)),
        _ => None,
    }
}
