//! Failures over Nostr, with the programs as processes: a relay that is killed in mid-round, and a forged sender.

use crate::nostr_support::{
    Program, Running, identity, join,
    relay::{Relay, publish},
    serve_on,
};
use btcr2_aggregation::{
    actors::runtime::{Clock, Randomness},
    protocol::{
        id::CohortId,
        message::{Message, update::SubmitNonIncluded},
        nostr::{Peer, seal},
    },
};
use serde_json::json;

fn members(running: &Running, numbers: std::ops::Range<usize>) -> Vec<Program> {
    let place = ["--relay", running.relay.as_str()];
    numbers.map(|number| join(running, &format!("member {number}"), &place, &["--add-beacon"])).collect()
}

fn completes(running: &mut Running, members: &mut [Program]) {
    let complete = running.service.event("signing-complete");
    assert_eq!(complete["path"], "key-path", "{complete}");
    for member in members {
        assert_eq!(member.event("cohort-complete")["included"], true);
    }
    running.service.succeeds();
}

#[test]
fn a_relay_restart_in_mid_round_only_delays_the_cohort() {
    for stop_at in ["participant-accepted", "keygen-complete", "signing-started"] {
        let relay = Relay::anywhere();
        let mut running = serve_on(&["--relay", &relay.url], 3, &[]);
        let mut members = members(&running, 0..3);
        running.service.event(stop_at);
        let address = relay.kill();
        let _again = Relay::start(address);
        completes(&mut running, &mut members);
    }
}

#[test]
fn a_forged_sender_is_refused_and_the_signer_is_named() {
    let relay = Relay::anywhere();
    let mut running = serve_on(&["--relay", &relay.url], 3, &[]);
    let mut joined = members(&running, 0..2);
    let cohort_id = running.service.event("participant-accepted")["cohortId"].clone();
    running.service.event("participant-accepted");

    // One member declines in the name of the other.
    let (forger, victim, service) = (identity("member 0"), identity("member 1"), identity("service"));
    let declined = SubmitNonIncluded { cohort_id: CohortId::parse(cohort_id.as_str().unwrap()).unwrap() };
    let message = Message::new(victim.did().clone(), Some(service.did().clone()), declined);
    let mut rng = Randomness::System.for_actor("forger");
    let to = Peer::new(forger.secret_key(), service.public_key().x_only()).unwrap();
    let event = seal(&message, forger.secret_key(), Some(&to), Clock::system().now(), &mut rng).unwrap();
    publish(&relay.url, &[event]);
    let rejected = running.service.event("message-rejected");
    assert_eq!(rejected["from"], json!(forger.did()), "{rejected}");

    joined.extend(members(&running, 2..3));
    completes(&mut running, &mut joined);
}
