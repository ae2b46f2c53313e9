//! A participant whose service, or a peer that claims to be it, requests what it must not do.

mod signing;

use std::{cell::RefCell, rc::Rc, time::Duration};

use crate::sim_support::{assert_completes, assert_named, bodies, honest, outsider, run_to, setup};
use bitcoin::{Amount, ScriptBuf, Transaction, TxIn, TxOut, transaction::Version};
use btcr2_aggregation_protocol::{
    beacon::{BeaconType, CasAnnouncement, SmtNonce},
    cohort::{
        event::{CohortFailure, ParticipantEvent, SessionEnd, SpendPath},
        participant::{ParticipantInput, membership::CohortKey, phase::Phase},
    },
    did::Did,
    envelope::CLOCK_SKEW,
    error::{RejectCode, Slot},
    hash::{DocumentHash, SignalBytes, SmtHash},
    id::SessionId,
    identity::Identity,
    key::SecretKey,
    machine::Machine,
    message::{
        Body, Bytes, Message, SharedBody,
        keygen::{CohortReady, FundingModel},
        update::DistributeAggregatedData,
    },
    network::Network,
    sim::{Role, Setup, Simulation, Verdict, genesis_document},
};

type Held = Rc<RefCell<Option<Message>>>;

/// Withholds the message of type `kind` from the service to participant `to`, and runs until it would have been sent.
fn withhold(simulation: &mut Simulation, to: usize, kind: &'static str) -> Message {
    let held = Held::default();
    let keep = Rc::clone(&held);
    let (service, to) = (simulation.service().identity().did().clone(), simulation.did(to));
    simulation.tamper(&service, move |message| {
        if message.to.as_ref() == Some(&to) && message.body.short_type() == kind {
            *keep.borrow_mut() = Some(message.clone());
            return Vec::new();
        }
        vec![message.to_json()]
    });
    assert!(simulation.run_until(|_| held.borrow().is_some()), "no {kind} was sent");
    // Messages sent together with it arrive, but no answers yet, so that only the held message is missing.
    simulation.advance(Duration::from_millis(15));
    held.take().unwrap()
}

/// Delivers to participant `to` and asserts that it rejects the message, names the sender, and does not change.
fn assert_refused(simulation: &mut Simulation, to: usize, case: &str, message: &Message, code: RejectCode) {
    let before = simulation.participants()[to].machine().cloned();
    let events = simulation.participants()[to].events().len();
    let did = simulation.did(to);
    let result = simulation.deliver(&message.from, &did, &message.to_json());
    assert_named(case, result, &message.from, code);
    assert_eq!(simulation.participants()[to].machine(), before.as_ref(), "{case}: a refusal changes nothing");
    assert_eq!(simulation.participants()[to].events().len(), events, "{case}: a refusal makes no event");
}

fn deliver(simulation: &mut Simulation, message: &Message) {
    let to = message.to.clone().unwrap();
    simulation.deliver(&message.from, &to, &message.to_json()).unwrap();
}

fn with(message: &Message, body: impl Into<SharedBody>) -> Message {
    Message::new(message.from.clone(), message.to.clone(), body)
}

fn service(simulation: &Simulation) -> Did {
    simulation.service().identity().did().clone()
}

#[test]
fn an_advert_with_an_unproven_key_or_bad_terms_is_refused() {
    let mut simulation = Simulation::new(1, setup(honest(2)));
    let config = simulation.service().machine().config().clone();
    let advert = config.terms.conditions.to_advert(
        config.terms.cohort_id.clone(),
        config.terms.network,
        &config.terms.service_key,
    );
    let secret = SecretKey::from_bytes(&[5; 32]).unwrap();
    let key = Bytes(secret.public_key().to_bytes());
    let document = genesis_document(&secret.public_key(), Network::Regtest);
    let external = Identity::from_genesis(secret, document, Network::Regtest).unwrap();

    let mut other_key = advert.clone();
    other_key.communication_pk = key;
    let mut off_curve = advert.clone();
    off_curve.communication_pk = Bytes([0xff; 33]);
    let mut paid = advert.clone();
    paid.funding_model = Some(FundingModel::ParticipantFunded);
    let mut few = advert.clone();
    (few.min_participants, few.max_participants) = (3, Some(2));
    let mut no_recovery = advert.clone();
    no_recovery.recovery_key = Some("ff".repeat(32));
    let mut unknown = advert.clone();
    unknown.beacon_type = BeaconType::new("RumourBeacon").unwrap();
    let mut threshold = advert.clone();
    (threshold.max_participants, threshold.fallback_threshold) = (Some(3), Some(4));

    use RejectCode::{InvalidKey, UnacceptableTerms};
    for (case, sender, body, code) in [
        ("another's key", service(&simulation), other_key.clone(), InvalidKey),
        ("a key off the curve", service(&simulation), off_curve, InvalidKey),
        ("another service's advert", outsider(9).did().clone(), advert.clone(), InvalidKey),
        ("an EXTERNAL service", external.did().clone(), other_key, InvalidKey),
        ("members that pay", service(&simulation), paid, UnacceptableTerms),
        ("more members at least than at most", service(&simulation), few, UnacceptableTerms),
        ("a recovery key off the curve", service(&simulation), no_recovery, UnacceptableTerms),
        ("an unknown beacon", service(&simulation), unknown, UnacceptableTerms),
        ("a threshold above the size", service(&simulation), threshold, UnacceptableTerms),
    ] {
        assert_refused(&mut simulation, 0, case, &Message::new(sender, None, body), code);
        assert!(simulation.participants()[0].machine().is_none(), "{case}: no session was started");
    }
    let adversaries = [service(&simulation), outsider(9).did().clone(), external.did().clone()];
    assert_completes(&mut simulation, "bad adverts", &adversaries);
}

#[test]
fn stored_messages_from_before_the_opt_in_are_ignored() {
    let mut simulation = Simulation::new(1, setup(honest(2)));
    let ready = withhold(&mut simulation, 0, "keygen/cohort_ready");
    let member = &simulation.participants()[0];
    let opted_in = member.events().iter().find_map(|event| match event {
        ParticipantEvent::OptedIn { at } => Some(*at),
        _ => None,
    });
    let (opted_in, machine, now) = (opted_in.unwrap(), member.machine().unwrap().clone(), simulation.now());
    let mut decide_stored = |said| {
        let input = ParticipantInput::Stored { message: ready.clone(), said };
        machine.decide(now, &input, simulation.rng()).unwrap()
    };
    let old = opted_in - CLOCK_SKEW - Duration::from_millis(1);
    assert_eq!(decide_stored(old), []);
    // Clocks may differ by this much.
    for said in [opted_in - CLOCK_SKEW, opted_in, now] {
        assert!(matches!(decide_stored(said)[..], [ParticipantEvent::CohortReady { .. }]), "{said:?}");
    }
}

/// Delivers another's advert in its sender's own name: the key is not the sender's. Once the sender has claimed that the
/// cohort has formed, its adverts are ignored.
fn assert_no_advert(simulation: &mut Simulation, case: &str, message: &Message) {
    let state = |simulation: &Simulation| {
        let node = &simulation.participants()[0];
        (node.membership().sessions(), node.seats().len(), node.machine().cloned())
    };
    let before = state(simulation);
    let recipient = simulation.did(0);
    match simulation.deliver(&message.from, &recipient, &message.to_json()) {
        Ok(()) => {
            let formed =
                simulation.participants()[0].membership().has_formed_without_us(&CohortKey::of_message(message));
            assert!(formed, "{case}");
        }
        refused => assert_named(case, refused, &message.from, RejectCode::InvalidKey),
    }
    assert_eq!(state(simulation), before, "{case}");
}

#[test]
fn only_messages_of_the_adverts_service_are_accepted() {
    let phases: [fn(&Phase) -> bool; 4] = [
        |phase| matches!(phase, Phase::OptedIn { .. }),
        |phase| matches!(phase, Phase::Submitted { .. }),
        |phase| matches!(phase, Phase::Approved { .. }),
        |phase| matches!(phase, Phase::Signing { .. }),
    ];
    let mut simulation = Simulation::new(1, setup(honest(3)));
    let (outsider, member) = (outsider(9).did().clone(), simulation.did(1));
    for reached in phases {
        let there = |simulation: &Simulation| {
            simulation.participants()[0].machine().is_some_and(|machine| reached(machine.phase()))
        };
        assert!(simulation.run_until(there));
        for sender in [&outsider, &member] {
            for body in bodies::of_the_service(&simulation) {
                let case = format!("{} from {sender}", body.short_type());
                let message = Message::new(sender.clone(), None, body);
                if matches!(*message.body, Body::CohortAdvert(_)) {
                    assert_no_advert(&mut simulation, &case, &message);
                } else {
                    assert_refused(&mut simulation, 0, &case, &message, RejectCode::WrongSender);
                }
            }
        }
        let identity = simulation.participants()[1].identity().clone();
        for body in bodies::of_members(&simulation, &identity) {
            let case = format!("{} of another sender", body.short_type());
            let message = Message::new(service(&simulation), None, body);
            assert_refused(&mut simulation, 0, &case, &message, RejectCode::WrongSender);
        }
    }
    let adversaries = [outsider, member, service(&simulation)];
    assert_completes(&mut simulation, "false services", &adversaries);
}

#[test]
fn a_cohort_that_does_not_follow_from_keys_and_terms_is_refused() {
    let mut setup = setup(honest(3));
    setup.conditions.min_participants = 3;
    setup.conditions.max_participants = Some(4);
    setup.finalize_at = Some(3);
    let mut simulation = Simulation::new(1, setup);
    let genuine = withhold(&mut simulation, 0, "keygen/cohort_ready");
    let Body::CohortReady(ready) = &*genuine.body else { panic!("{genuine:?}") };
    let own = simulation.participants()[0].participant_key().public_key().to_bytes();
    let position = ready.cohort_keys.iter().position(|key| key.0 == own).unwrap();
    let other_position = (position + 1) % 3;
    let keys = |alter: &dyn Fn(&mut Vec<Bytes<33>>)| {
        let mut keys = ready.cohort_keys.clone();
        alter(&mut keys);
        keys
    };
    let sorted = |alter: &dyn Fn(&mut Vec<Bytes<33>>)| {
        let mut keys = keys(alter);
        keys.sort();
        keys
    };
    let outsiders = |seed: u8| Bytes(outsider(seed).public_key().to_bytes());
    let negated = |key: Bytes<33>| {
        let mut bytes = key.0;
        bytes[0] ^= 1;
        Bytes(bytes)
    };
    use RejectCode::{AddressMismatch, InvalidKey, UnacceptableTerms};
    for (case, keys, code) in [
        ("unsorted keys", keys(&|keys| keys.reverse()), InvalidKey),
        ("without our key", sorted(&|keys| keys[position] = outsiders(9)), InvalidKey),
        ("with our key negated", sorted(&|keys| keys[position] = negated(keys[position])), InvalidKey),
        ("a key twice", sorted(&|keys| keys.push(keys[other_position])), InvalidKey),
        ("a key and its negation", sorted(&|keys| keys.push(negated(keys[other_position]))), InvalidKey),
        ("our key and its negation", sorted(&|keys| keys.push(negated(keys[position]))), InvalidKey),
        ("a key off the curve", sorted(&|keys| keys[other_position] = Bytes([0xff; 33])), InvalidKey),
        (
            "too few members",
            sorted(&|keys| keys.retain(|key| *key != ready.cohort_keys[other_position])),
            UnacceptableTerms,
        ),
        ("too many members", sorted(&|keys| keys.extend([outsiders(8), outsiders(9)])), UnacceptableTerms),
        ("the address of other keys", sorted(&|keys| keys[other_position] = outsiders(9)), AddressMismatch),
    ] {
        let body = CohortReady { cohort_keys: keys, ..ready.clone() };
        assert_refused(&mut simulation, 0, case, &with(&genuine, body), code);
    }
    let pays_elsewhere = "bcrt1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqc8gma6".to_owned();
    let body = CohortReady { beacon_address: pays_elsewhere, ..ready.clone() };
    assert_refused(&mut simulation, 0, "another address", &with(&genuine, body), AddressMismatch);

    deliver(&mut simulation, &genuine);
    let body = CohortReady { cohort_keys: sorted(&|keys| keys[other_position] = outsiders(9)), ..ready.clone() };
    let again = with(&genuine, body);
    assert_refused(&mut simulation, 0, "other keys afterwards", &again, RejectCode::Equivocation);
    let adversary = service(&simulation);
    assert_completes(&mut simulation, "bad cohorts", &[adversary]);
}

/// Delivers altered data to participant `who`, whose host approves everything. Asserts that the participant rejects
/// it.
fn assert_data_rejected(
    case: &str,
    beacon: BeaconType,
    who: usize,
    alter: impl FnOnce(&mut DistributeAggregatedData, &Simulation),
) {
    let mut roles = honest(3);
    roles[who].verdict = Verdict::Approve;
    let mut simulation = Simulation::new(1, setup(roles).with_beacon(beacon));
    let genuine = withhold(&mut simulation, who, "update/distribute_aggregated_data");
    let Body::DistributeAggregatedData(data) = &*genuine.body else { panic!("{genuine:?}") };
    let mut altered = data.clone();
    alter(&mut altered, &simulation);
    deliver(&mut simulation, &with(&genuine, altered));
    let verdicts = simulation.participants()[who].verdicts();
    assert!(matches!(verdicts, [Err(_)]), "{case}: the host received {verdicts:?}");
    let answer = simulation.participants()[who].events().iter().find_map(|event| match event {
        ParticipantEvent::ValidationSent { approved, .. } => Some(*approved),
        _ => None,
    });
    assert_eq!(answer, Some(false), "{case}: the host cannot approve wrong data");
    simulation.run();
    simulation.assert_invariants();
    let report = simulation.report();
    let by = simulation.did(who);
    assert_eq!(report.failure, Some(CohortFailure::ValidationRejected { by }), "{case}");
    assert!(matches!(report.ends[who], Some(SessionEnd::DataRejected { .. })), "{case}: {:?}", report.ends[who]);
}

fn own_entry(data: &mut DistributeAggregatedData, did: &Did, hash: Option<DocumentHash>) {
    let announcement = data.cas_announcement.take().unwrap();
    let others = announcement.iter().filter(|(key, _)| *key != did.as_str());
    let others = others.map(|(key, hash)| (key.to_owned(), *hash));
    let own = hash.map(|hash| (did.to_string(), hash));
    let announcement: CasAnnouncement = others.chain(own).collect();
    data.signal_bytes_hex = announcement.signal();
    data.cas_announcement = Some(announcement);
}

#[test]
fn wrong_data_is_rejected_even_if_the_host_approves() {
    let hash = DocumentHash::from_bytes([7; 32]);
    let other_signal = SignalBytes::from_bytes([7; 32]);
    let cas = BeaconType::cas;
    let smt = BeaconType::smt;
    // In honest(3) members 0 and 1 submit, and member 2 declines.
    assert_data_rejected("a correct map, another signal", cas(), 0, |data, _| data.signal_bytes_hex = other_signal);
    assert_data_rejected("our update missing", cas(), 0, |data, sim| own_entry(data, &sim.did(0), None));
    assert_data_rejected("our update changed", cas(), 0, |data, sim| own_entry(data, &sim.did(0), Some(hash)));
    assert_data_rejected("an update though we declined", cas(), 2, |data, sim| {
        own_entry(data, &sim.did(2), Some(hash));
    });
    assert_data_rejected("another beacon's name", cas(), 0, |data, _| data.beacon_type = smt());
    let proof = |simulation: &Simulation, who: usize| {
        let aggregated = simulation.service().machine().phase().aggregated().unwrap().clone();
        let data = aggregated.aggregation.data.for_member(&simulation.did(who)).unwrap().clone();
        DistributeAggregatedData::new(bodies::cohort_id(simulation), smt(), other_signal, &data).smt_proof.unwrap()
    };
    assert_data_rejected("an unregistered beacon's data", cas(), 0, |data, _| {
        data.cas_announcement = None;
        data.beacon_data = Some(serde_json::json!({}));
    });
    assert_data_rejected("a correct proof, another signal", smt(), 0, |data, _| {
        data.signal_bytes_hex = other_signal
    });
    assert_data_rejected("another's proof", smt(), 0, |data, sim| data.smt_proof = Some(proof(sim, 1)));
    assert_data_rejected("a map instead of a proof", smt(), 0, |data, _| {
        data.smt_proof = None;
        data.cas_announcement = Some(CasAnnouncement::default());
    });
    assert_data_rejected("a proof without our update", smt(), 0, |data, _| {
        data.smt_proof.as_mut().unwrap().update_id = None;
    });
    assert_data_rejected("a proof of another update", smt(), 1, |data, _| {
        data.smt_proof.as_mut().unwrap().update_id = Some(hash);
    });
    assert_data_rejected("a proof of an update though we declined", smt(), 2, |data, _| {
        data.smt_proof.as_mut().unwrap().update_id = Some(hash);
    });
    assert_data_rejected("a proof with another root", smt(), 0, |data, _| {
        data.smt_proof.as_mut().unwrap().id = SmtHash::from_bytes([7; 32]);
        data.signal_bytes_hex = other_signal;
    });
    assert_data_rejected("a proof with another nonce", smt(), 0, |data, _| {
        data.smt_proof.as_mut().unwrap().nonce = Some(SmtNonce::from(&[7; 32][..]));
    });
    assert_data_rejected("a proof with a sibling too many", smt(), 0, |data, _| {
        data.smt_proof.as_mut().unwrap().hashes.push(SmtHash::from_bytes([7; 32]));
    });
}

#[test]
fn data_of_no_kind_or_two_kinds_is_refused() {
    for beacon in [BeaconType::cas(), BeaconType::smt()] {
        let mut simulation = Simulation::new(1, setup(honest(3)).with_beacon(beacon.clone()));
        let genuine = withhold(&mut simulation, 0, "update/distribute_aggregated_data");
        let Body::DistributeAggregatedData(data) = &*genuine.body else { panic!("{genuine:?}") };
        let two = DistributeAggregatedData { beacon_data: Some(serde_json::json!(1)), ..data.clone() };
        let none = DistributeAggregatedData { cas_announcement: None, smt_proof: None, ..data.clone() };
        let malformed = RejectCode::Malformed;
        assert_refused(&mut simulation, 0, "two kinds of data", &with(&genuine, two.clone()), malformed);
        assert_refused(&mut simulation, 0, "no data", &with(&genuine, none), malformed);
        deliver(&mut simulation, &genuine);
        deliver(&mut simulation, &genuine);
        let equivocation = RejectCode::Equivocation;
        assert_refused(&mut simulation, 0, "other data afterwards", &with(&genuine, two), equivocation);
        let adversary = service(&simulation);
        assert_completes(&mut simulation, beacon.as_str(), &[adversary]);
    }
}
