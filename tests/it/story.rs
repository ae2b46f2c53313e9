//! One cohort as a story: a line for each step of the diagram in `protocol/src/lib.rs`, by the programs of the README, from the advert to
//! the verified transaction.

use crate::support::{
    Service, did_of, directory, identity, path,
    verify::{participant_result, service_result, text},
};

#[test]
fn a_cohort_from_its_advert_to_the_transaction() {
    let directory = directory("story");
    let [alice_id, bob_id] = ["alice", "bob"].map(|name| identity(&directory, name));
    let [alice_out, bob_out] = ["alice-out", "bob-out"].map(|name| path(&directory, name));

    // An operator starts an Aggregation Service. It advertises a cohort of two.
    let mut service = Service::once(&directory, 2, &["--max-participants", "2"]);
    let cohort = text(&service.program.event("cohort-advertised")["cohortId"]).to_owned();

    // Two controllers join: Alice wants the cohort's address in her document, Bob has nothing to announce.
    let mut alice = service.join(&alice_id, &["--add-beacon", "--out", &alice_out]);
    let mut bob = service.join(&bob_id, &["--decline", "--out", &bob_out]);

    // Both opt in, and the service admits both.
    for did in [did_of(&alice_id), did_of(&bob_id)] {
        service.program.event_where("opt-in-received", |event| event["participant"] == did);
        service.program.event_where("participant-accepted", |event| event["participant"] == did);
    }

    // Their keys are aggregated into a beacon address, which each member derives again.
    let formed = service.program.event("keygen-complete");
    assert_eq!(alice.event("cohort-ready")["beaconAddress"], formed["beaconAddress"]);
    assert_eq!(bob.event("cohort-ready")["beaconAddress"], formed["beaconAddress"]);

    // Alice submits a signed update, Bob declines.
    service.program.event_where("update-received", |event| event["included"] == true);
    service.program.event_where("update-received", |event| event["included"] == false);

    // The service aggregates the updates into a signal. Each member verifies its own entry, and approves.
    let signal = service.program.event("data-distributed")["signal"].clone();
    alice.event("data-approved");
    bob.event("data-approved");
    service.program.event("validation-complete");

    // The service builds the beacon transaction. Both members check it, and sign it with MuSig2.
    service.program.event("signing-started");
    for did in [did_of(&alice_id), did_of(&bob_id)] {
        service.program.event_where("nonce-received", |event| event["participant"] == did);
        service.program.event_where("partial-signature-received", |event| event["participant"] == did);
    }

    // The transaction is signed on the key path. Every member receives it, and verifies it.
    service.program.event("signing-complete");
    alice.event_where("cohort-complete", |event| event["cohortId"] == cohort);
    bob.event_where("cohort-complete", |event| event["cohortId"] == cohort);

    // Bitcoin Core's consensus code accepts it, and each member's sidecar proves what it announces.
    let result = service.program.result();
    service_result(&result, "key-path");
    assert_eq!(result["signalHex"], signal);
    participant_result(&alice.result(), &did_of(&alice_id), &result);
    participant_result(&bob.result(), &did_of(&bob_id), &result);
}
