//! Shared by the tests of simulated cohorts.

pub mod dice;

use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::Duration};

use btcr2_aggregation_protocol::{
    cohort::{Timing, participant::ParticipantConfig, service::phase::Phase},
    did::Did,
    error::{Reject, RejectCode},
    identity::Identity,
    key::SecretKey,
    message::Message,
    network::Network,
    signing::session::SessionPhase,
    sim::{Role, Setup, Simulation},
};

pub const TIMEOUT: Duration = Duration::from_secs(600);

pub fn timing() -> Timing {
    Timing { cohort_ttl: TIMEOUT * 8, phase_timeout: TIMEOUT, signing_timeout: TIMEOUT, advert_repeat: TIMEOUT / 4 }
}

pub fn setup(roles: Vec<Role>) -> Setup {
    Setup { timing: timing(), ..Setup::new(roles) }
}

pub fn honest(n: usize) -> Vec<Role> {
    (0..n).map(|i| if i % 3 == 2 { Role::decliner() } else { Role::default() }).collect()
}

pub fn simulation(n: usize) -> Simulation {
    Simulation::new(n as u64, setup(honest(n)))
}

/// The phases of a cohort at its service, in order.
pub const PHASES: [&str; 7] =
    ["enrolling", "collecting updates", "validating", "awaiting the transaction", "nonces", "partials", "fallback"];

pub fn phase_of(simulation: &Simulation) -> &'static str {
    let name = simulation.service().machine().phase().name();
    match simulation.service().session().map(|session| session.machine().phase()) {
        Some(SessionPhase::CollectingNonces { .. }) => "nonces",
        Some(SessionPhase::CollectingPartialSignatures { .. }) => "partials",
        Some(SessionPhase::Fallback { .. }) => "fallback",
        _ => name,
    }
}

/// Runs until the service is in `phase`.
pub fn run_to(simulation: &mut Simulation, phase: &str) {
    assert!(simulation.run_until(|simulation| phase_of(simulation) == phase), "phase {phase} was not reached");
}

pub fn outsider(seed: u8) -> Identity {
    Identity::from_key(SecretKey::from_bytes(&[seed; 32]).unwrap(), Network::Regtest)
}

/// Delivers to the service and asserts that it rejects the message, names the sender, and does not change.
pub fn assert_refused(simulation: &mut Simulation, case: &str, message: &Message, code: RejectCode) {
    let text = message.to_json();
    assert_text_refused(simulation, case, &message.from, &text, code);
}

/// Delivers to the service a contribution that fails its check, and asserts that it is not stored and its sender
/// still missing. The first invalid contribution of a kind is recorded with its sender, later ones are only rejected.
pub fn assert_invalid(simulation: &mut Simulation, case: &str, message: &Message, code: RejectCode) {
    let service = simulation.service().identity().did().clone();
    let session = |simulation: &Simulation| simulation.service().session().unwrap().machine().clone();
    let before = session(simulation);
    match simulation.deliver(&message.from, &service, &message.to_json()) {
        Err(reject) => {
            assert_eq!((reject.code, reject.peer.as_ref()), (code, Some(&message.from)), "{case}");
            assert_eq!(session(simulation), before, "{case}: a rejection changes nothing");
        }
        Ok(()) => {
            let after = session(simulation);
            let on_record = after.faults().iter().any(|fault| fault.did == message.from && fault.code == code);
            assert!(on_record, "{case}: {:?}", after.faults());
            assert_eq!(before.faults().iter().filter(|fault| fault.did == message.from).count(), 0, "{case}");
            assert_eq!(after.phase(), before.phase(), "{case}: only the fault is new");
        }
    }
    assert!(session(simulation).holdouts().contains(&message.from), "{case}: it may send a valid one");
}

pub fn assert_text_refused(simulation: &mut Simulation, case: &str, from: &Did, text: &str, code: RejectCode) {
    let service = simulation.service().identity().did().clone();
    let cohort = simulation.service().machine().clone();
    let session = simulation.service().session().map(|session| session.machine().clone());
    let events = simulation.service().events().len();
    let result = simulation.deliver(from, &service, text);
    assert_named(case, result, from, code);
    assert_eq!(*simulation.service().machine(), cohort, "{case}: a rejection changes nothing");
    let after = simulation.service().session().map(|session| session.machine().clone());
    assert_eq!(after, session, "{case}: a rejection changes nothing");
    assert_eq!(simulation.service().events().len(), events, "{case}: a rejection makes no event");
}

/// Bitcoin Core's verdict on the signed transaction, if there is one.
pub fn assert_consensus(simulation: &Simulation) {
    if let Phase::Completed { formed, outcome, .. } = simulation.service().machine().phase() {
        let prevout = simulation.service().coin().prevout(&formed.output);
        assert!(crate::bitcoin_support::consensus_accepts(&outcome.transaction, &prevout), "{outcome:?}");
    }
}

pub fn assert_named<T: Debug>(case: &str, result: Result<T, Reject>, peer: &Did, code: RejectCode) {
    let reject = result.expect_err(case);
    assert_eq!((reject.code, reject.peer.as_ref()), (code, Some(peer)), "{case}: {}", reject.detail);
}

/// Runs to the end. The cohort must complete, and only `adversaries` may be accused.
pub fn assert_completes(simulation: &mut Simulation, case: &str, adversaries: &[Did]) {
    simulation.run();
    simulation.assert_invariants();
    assert_consensus(simulation);
    let report = simulation.report();
    assert!(report.signed.is_some(), "{case}: {} {:?}", report.phase, report.failure);
    assert!(simulation.has_ended(), "{case}: {:?}", report.ends);
    let adversaries: BTreeSet<Did> = adversaries.iter().cloned().collect();
    let blamed: Vec<_> = report.accused().difference(&adversaries).cloned().collect();
    assert!(blamed.is_empty(), "{case}: honest {blamed:?} accused: {:?} {:?}", report.rejections, report.faults);
    assert!(matches!(simulation.service().machine().phase(), Phase::Completed { .. }), "{case}");
}

/// A cohort that goes through every phase of [`PHASES`]: the operator's transaction is late, and the last member's
/// partial signature never arrives.
pub fn through_every_phase() -> Simulation {
    let mut roles = honest(4);
    roles[3] = roles[3].clone().without(btcr2_aggregation_protocol::error::Slot::PartialSignature);
    let mut setup = setup(roles);
    setup.defer_transaction = 1;
    Simulation::new(4, setup)
}

pub fn config_of(simulation: &Simulation) -> ParticipantConfig {
    let node = &simulation.participants()[0];
    ParticipantConfig {
        did: node.identity().did().clone(),
        participant_key: node.participant_key().public_key(),
        communication_key: node.identity().public_key(),
        genesis_document: None,
        invite: None,
        timing: simulation.setup().timing,
        max_fee_rate: btcr2_aggregation_protocol::output::DEFAULT_MAX_FEE_RATE,
        beacons: simulation.setup().beacons.clone(),
        aggregator: Arc::clone(&simulation.setup().aggregator),
    }
}

pub mod bodies {
    //! One well-formed and harmless body of each type.

    use bitcoin::{Amount, ScriptBuf, Transaction, absolute::LockTime, transaction::Version};
    use btcr2_aggregation_protocol::{
        beacon::{BeaconData, BeaconType, CasAnnouncement},
        hash::SignalBytes,
        id::{CohortId, SessionId},
        identity::Identity,
        message::{
            Bytes, SharedBody,
            keygen::{CohortOptIn, CohortOptInAccept, CohortReady},
            sign::{
                AggregatedNonce, AuthorizationRequest, FallbackAuthorizationRequest, FallbackSignature,
                NonceContribution, SignatureAuthorization,
            },
            update::{DistributeAggregatedData, SubmitNonIncluded, SubmitUpdate, ValidationAck},
        },
        sim::Simulation,
    };
    use serde_json::json;

    pub fn cohort_id(simulation: &Simulation) -> CohortId {
        simulation.service().machine().config().terms.cohort_id.clone()
    }

    pub fn session_id(simulation: &Simulation) -> SessionId {
        simulation.service().session().map_or_else(
            || SessionId::parse("no-session-yet").unwrap(),
            |session| session.machine().task().session_id.clone(),
        )
    }

    pub fn opt_in(simulation: &Simulation, identity: &Identity) -> CohortOptIn {
        CohortOptIn {
            cohort_id: cohort_id(simulation),
            participant_pk: Bytes(identity.public_key().to_bytes()),
            communication_pk: Bytes(identity.public_key().to_bytes()),
            genesis_document: identity.genesis_document().cloned(),
            invite: None,
        }
    }

    pub fn of_members(simulation: &Simulation, identity: &Identity) -> Vec<SharedBody> {
        let (cohort_id, session_id) = (cohort_id(simulation), session_id(simulation));
        vec![
            opt_in(simulation, identity).into(),
            SubmitUpdate { cohort_id: cohort_id.clone(), signed_update: json!({"patch": []}).into() }.into(),
            SubmitNonIncluded { cohort_id: cohort_id.clone() }.into(),
            ValidationAck { cohort_id: cohort_id.clone(), approved: false }.into(),
            NonceContribution {
                cohort_id: cohort_id.clone(),
                session_id: session_id.clone(),
                nonce_contribution: Bytes([2; 66]),
            }
            .into(),
            SignatureAuthorization {
                cohort_id: cohort_id.clone(),
                session_id: session_id.clone(),
                partial_signature: Bytes([1; 32]),
            }
            .into(),
            FallbackSignature {
                cohort_id,
                session_id,
                signer_pk: Bytes(identity.public_key().x_only().to_bytes()),
                fallback_signature: Bytes([1; 64]),
            }
            .into(),
        ]
    }

    pub fn of_the_service(simulation: &Simulation) -> Vec<SharedBody> {
        let (cohort_id, session_id) = (cohort_id(simulation), session_id(simulation));
        let config = simulation.service().machine().config();
        let pending_tx =
            Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![], output: vec![] };
        let pending_tx = Transaction { input: vec![bitcoin::TxIn::default()], ..pending_tx };
        vec![
            config
                .terms
                .conditions
                .to_advert(cohort_id.clone(), config.terms.network, &config.terms.service_key)
                .into(),
            CohortOptInAccept { cohort_id: cohort_id.clone() }.into(),
            CohortReady { cohort_id: cohort_id.clone(), beacon_address: "bcrt1p".into(), cohort_keys: vec![] }
                .into(),
            DistributeAggregatedData::new(
                cohort_id.clone(),
                BeaconType::cas(),
                SignalBytes::from_bytes([0; 32]),
                &BeaconData::Cas(CasAnnouncement::default()),
            )
            .into(),
            AuthorizationRequest {
                cohort_id: cohort_id.clone(),
                session_id: session_id.clone(),
                pending_tx: pending_tx.clone(),
                prev_out_script_hex: ScriptBuf::new(),
                prev_out_value: Amount::ZERO,
                session_deadline: None,
            }
            .into(),
            AggregatedNonce {
                cohort_id: cohort_id.clone(),
                session_id: session_id.clone(),
                aggregated_nonce: Bytes([0; 66]),
            }
            .into(),
            FallbackAuthorizationRequest {
                cohort_id,
                session_id,
                pending_tx,
                prev_out_script_hex: ScriptBuf::new(),
                prev_out_value: Amount::ZERO,
                fallback_leaf_script_hex: ScriptBuf::new(),
            }
            .into(),
        ]
    }
}
