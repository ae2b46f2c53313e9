//! One message of every type, with every field. There is no `..` here: a new field must get a value of its own.

use std::sync::Arc;

use btcr2_aggregation::protocol::{
    beacon::{BeaconType, CasAnnouncement, SmtProof},
    hash::{MessageDigest, SignalBytes},
    id::{CohortId, SessionId},
    identity::Identity,
    invite::InviteToken,
    message::{
        Body, Bytes, Message,
        control::{CohortEnded, Presence, PresenceRequest, SignedTransaction},
        keygen::{CohortAdvert, CohortOptIn, CohortOptInAccept, CohortReady, Cost, CostBasis, FundingModel},
        sign::{
            AggregatedNonce, AuthorizationRequest, FallbackAuthorizationRequest, FallbackSignature,
            NonceContribution, SignatureAuthorization,
        },
        update::{DistributeAggregatedData, SubmitNonIncluded, SubmitUpdate, ValidationAck},
    },
    network::Network,
};
use serde_json::{Value, json};

/// The subject of the messages of one cohort.
pub(super) struct Subject<'a> {
    pub(super) cohort_id: &'a CohortId,
    pub(super) session_id: SessionId,
    /// The owner of the keys in them.
    pub(super) of: &'a Identity,
}

/// The messages, in the order of [`Body::TYPES`].
pub(super) fn samples(Subject { cohort_id, session_id, of }: &Subject<'_>) -> Vec<Body> {
    let cohort_id = || (*cohort_id).clone();
    let session_id = || session_id.clone();
    let key = Bytes(of.public_key().to_bytes());
    let x_only = Bytes(of.public_key().x_only().to_bytes());
    let cost = || Some(Cost { amount: 5.into(), unit: "sat".to_owned(), basis: Some(CostBasis::PerDid) });
    let value = bitcoin::Amount::from_sat(1_000);
    let script = bitcoin::ScriptBuf::from_hex(&format!("5120{}", "01".repeat(32))).unwrap();
    let transaction = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn::default()],
        output: vec![bitcoin::TxOut { value, script_pubkey: script.clone() }],
    };
    let token = InviteToken::generate(&mut btcr2_aggregation::actors::runtime::Randomness::System.for_actor("x"));
    let hash = data_encoding::BASE64URL_NOPAD.encode(&[1; 32]);
    let cas: CasAnnouncement = serde_json::from_value(json!({ of.did().as_str(): hash })).unwrap();
    let smt: SmtProof = serde_json::from_value(
        json!({ "id": hash, "collapsed": hash, "hashes": [hash], "nonce": hash, "updateId": hash }),
    )
    .unwrap();
    let samples = vec![
        CohortAdvert {
            cohort_id: cohort_id(),
            network: Network::Regtest,
            communication_pk: key,
            beacon_type: BeaconType::cas(),
            min_participants: 1,
            max_participants: Some(1),
            min_dids_per_participant: Some(1),
            max_dids_per_participant: Some(1),
            cost_of_enrollment: cost(),
            cost_per_announcement: cost(),
            min_seconds_between_announcements: Some(1),
            max_seconds_between_announcements: Some(1),
            pending_update_trigger: Some(1),
            funding_model: Some(FundingModel::OperatorFunded),
            recovery_key: Some(of.public_key().x_only().to_string()),
            recovery_sequence: Some(144),
            fallback_threshold: Some(1),
        }
        .into(),
        CohortOptIn {
            cohort_id: cohort_id(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: Some(Arc::new(json!({ "id": "x", "verificationMethod": [{ "id": "#k" }] }))),
            invite: Some(token.prove(&cohort_id(), of.did())),
        }
        .into(),
        CohortOptInAccept { cohort_id: cohort_id() }.into(),
        CohortReady { cohort_id: cohort_id(), beacon_address: "bcrt1p".to_owned(), cohort_keys: vec![key] }.into(),
        SubmitUpdate { cohort_id: cohort_id(), signed_update: Arc::new(update()) }.into(),
        SubmitNonIncluded { cohort_id: cohort_id() }.into(),
        DistributeAggregatedData {
            cohort_id: cohort_id(),
            beacon_type: BeaconType::cas(),
            signal_bytes_hex: SignalBytes::from_bytes([1; 32]),
            cas_announcement: Some(cas),
            smt_proof: Some(smt),
            beacon_data: Some(json!({ "any": "thing" })),
        }
        .into(),
        ValidationAck { cohort_id: cohort_id(), approved: false }.into(),
        AuthorizationRequest {
            cohort_id: cohort_id(),
            session_id: session_id(),
            pending_tx: transaction.clone(),
            prev_out_script_hex: script.clone(),
            prev_out_value: value,
            session_deadline: Some(1),
        }
        .into(),
        NonceContribution { cohort_id: cohort_id(), session_id: session_id(), nonce_contribution: Bytes([2; 66]) }
            .into(),
        AggregatedNonce { cohort_id: cohort_id(), session_id: session_id(), aggregated_nonce: Bytes([2; 66]) }
            .into(),
        SignatureAuthorization {
            cohort_id: cohort_id(),
            session_id: session_id(),
            partial_signature: Bytes([1; 32]),
        }
        .into(),
        FallbackAuthorizationRequest {
            cohort_id: cohort_id(),
            session_id: session_id(),
            pending_tx: transaction.clone(),
            prev_out_script_hex: script.clone(),
            prev_out_value: value,
            fallback_leaf_script_hex: script,
        }
        .into(),
        FallbackSignature {
            cohort_id: cohort_id(),
            session_id: session_id(),
            signer_pk: x_only,
            fallback_signature: Bytes([1; 64]),
        }
        .into(),
        CohortEnded {
            cohort_id: cohort_id(),
            code: "X".to_owned(),
            reason: "x".to_owned(),
            at_fault: true,
            next_cohort_id: Some(CohortId::parse("next").unwrap()),
            signed: Some(SignedTransaction { tx: Arc::new(transaction), prev_out_value: value }),
            opt_in: Some(MessageDigest::from_bytes([1; 32])),
        }
        .into(),
        PresenceRequest { cohort_id: cohort_id() }.into(),
        Presence { cohort_id: cohort_id() }.into(),
    ];
    let types: Vec<_> = samples.iter().map(Body::short_type).collect();
    assert_eq!(types, Body::TYPES, "every type has a sample");
    samples
}

fn update() -> Value {
    json!({
        "@context": ["https://w3id.org/security/v2"], "patch": [{ "op": "add", "path": "/x", "value": "y" }],
        "sourceHash": "s", "targetHash": "t", "targetVersionId": 2,
        "proof": {
            "type": "DataIntegrityProof", "cryptosuite": "bip340-jcs-2025", "verificationMethod": "#k",
            "proofPurpose": "capabilityInvocation", "capability": "urn:zcap", "capabilityAction": "Write",
            "proofValue": "z1",
        },
    })
}

/// The message as JSON.
pub(super) fn message(body: Body, from: &Identity) -> Value {
    serde_json::from_str(&Message::new(from.did().clone(), None, body).to_json()).unwrap()
}
