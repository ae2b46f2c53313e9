//! Whole recorded rounds, with our service against the recorded members, and our members against the recorded
//! service.
//!
//! Each role must send exactly the recorded messages; and each machine's journal, written as JSON and read again,
//! must give the same machine.

mod member;
mod service;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::bitcoin_support::{
    amount, consensus_accepts, hex, list, prevout, rng, secret_key, text, transaction, unhex,
};
use bitcoin::{Transaction, consensus::encode::serialize_hex};
use btcr2_aggregation_protocol::{
    beacon::{AggregatedData, Aggregation, BeaconData, BeaconRegistry},
    cohort::{
        Timing, Unreached,
        conditions::Conditions,
        event::{CohortFailure, ParticipantEvent, ServiceEvent, SessionEnd, SpendPath},
        participant::{Advert, ParticipantCohort, ParticipantConfig, ParticipantEffect, ParticipantInput, phase},
        service::{
            CohortTerms, Limits, Lineage, ServiceCohort, ServiceConfig, ServiceEffect, ServiceInput,
            phase::Phase,
            rules::{PhaseRules, TimedPhase},
        },
    },
    did::Did,
    error::{Fault, RejectCode, Slot},
    hash::{MessageDigest, SignalBytes, sha256},
    identity::Identity,
    key::SecretKey,
    machine::{Machine, Step, replay, step},
    message::{Body, Bytes, Message, SharedBody},
    network::Network,
    output::{BeaconOutput, DEFAULT_MAX_FEE_RATE, DirectAggregator},
    sidecar::MemberRecord,
    signing::{
        SigningOutcome,
        nonce::MemberSigner,
        session::{SessionEffect, SessionEvent, SessionInput, SessionPhase, SigningSession},
    },
    time::Timestamp,
    transcript::Transcript,
    update::{Edition, SignedUpdate, Submission},
};
use data_encoding::BASE64URL_NOPAD;
use rand_core::{CryptoRng, RngCore};
use serde_json::Value;

const START: Timestamp = Timestamp::from_secs(1_000_000);

fn rounds() -> Vec<Value> {
    let files = ["transcript_cas", "transcript_smt", "transcript_nonincluded", "transcript_fallback"];
    files.iter().flat_map(|file| list(&crate::common::vectors(file)["rounds"]).to_vec()).collect()
}

fn did(value: &Value) -> Did {
    text(value).parse().unwrap_or_else(|error| panic!("{value}: {error}"))
}

/// A message of the record as it was received.
fn message(entry: &Value) -> Message {
    Message::from_json(&entry["message"].to_string())
        .unwrap_or_else(|error| panic!("seq {}: {error}", entry["seq"]))
}

fn json_of(from: &Did, to: Option<&Did>, body: &SharedBody) -> Value {
    serde_json::from_str(&Message::new(from.clone(), to.cloned(), body.clone()).to_json()).unwrap()
}

fn identity(record: &Value, network: Network) -> Identity {
    let key = secret_key(&record["secretKey"]);
    let identity = match record.get("genesisDocument") {
        None | Some(Value::Null) => Identity::from_key(key, network),
        Some(document) => Identity::from_genesis(key, document.clone(), network).unwrap(),
    };
    assert_eq!(identity.did().as_str(), text(&record["did"]));
    assert_eq!(identity.public_key().to_string(), text(&record["publicKey"]));
    identity
}

/// Randomness that reproduces a record: each request takes the next recorded bytes, which must have that length.
struct Recorded(VecDeque<Vec<u8>>);

impl RngCore for Recorded {
    fn next_u32(&mut self) -> u32 {
        panic!("the record has byte strings only")
    }

    fn next_u64(&mut self) -> u64 {
        panic!("the record has byte strings only")
    }

    fn fill_bytes(&mut self, dst: &mut [u8]) {
        dst.copy_from_slice(&self.0.pop_front().expect("more randomness was drawn than recorded"));
    }
}

impl CryptoRng for Recorded {}

/// A machine, its journal, and the time.
struct Driven<M: Machine> {
    initial: M,
    machine: M,
    journal: Vec<M::Event>,
    now: Timestamp,
}

impl<M: Machine> Driven<M> {
    fn new(initial: M) -> Self {
        Self { machine: initial.clone(), initial, journal: Vec::new(), now: START }
    }

    #[track_caller]
    fn feed(&mut self, input: &M::Input, rng: &mut dyn CryptoRng) -> Step<M> {
        self.now = self.now + Duration::from_millis(10);
        let step = step(&mut self.machine, self.now, input, rng).unwrap_or_else(|reject| panic!("{reject}"));
        self.journal.extend(step.events.iter().cloned());
        step
    }

    /// The tick just before the deadline does nothing; the tick at the deadline is the caller's.
    #[track_caller]
    fn wait(&mut self, tick: &M::Input, rng: &mut dyn CryptoRng) {
        let deadline = self.machine.deadline().expect("a waiting machine has a deadline");
        self.now = deadline - Duration::from_millis(11);
        assert_eq!(self.feed(tick, rng).events, [], "a tick before the deadline does nothing");
        self.now = deadline - Duration::from_millis(10);
    }

    #[track_caller]
    fn check_replay(&self) {
        let lines: Vec<String> = self.journal.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
        let read: Vec<M::Event> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        assert!(!read.is_empty());
        assert_eq!(read, self.journal);
        assert_eq!(replay(self.initial.clone(), &self.journal), self.machine);
        assert_eq!(replay(self.initial.clone(), &read), self.machine);
    }
}

#[test]
fn a_journal_preserves_every_number_of_an_update() {
    // A journal that changed a number when it is read back would change the update's hash, and with it the signal.
    let mut seed = sha256(b"numbers");
    for round in 0..2_000 {
        seed = sha256(&seed);
        let number = f64::from_bits(u64::from_be_bytes(seed[..8].try_into().unwrap()));
        if !number.is_finite() {
            continue;
        }
        let update = SignedUpdate::from_value(serde_json::json!({ "number": number })).unwrap();
        let event = ParticipantEvent::UpdateSubmitted { at: START, update };
        let text = serde_json::to_string(&event).unwrap();
        let read: ParticipantEvent = serde_json::from_str(&text).unwrap();
        assert_eq!(read, event, "round {round}: {text}");
    }
}

#[track_caller]
fn survive<E: PartialEq + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned>(events: &[E]) {
    for event in events {
        let text = serde_json::to_string(event).unwrap();
        let read: E = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(read, *event, "{text}");
    }
}

#[test]
fn events_outside_recorded_rounds_survive_the_journal() {
    let (at, did) = (START, Did::from_key(SecretKey::from_bytes(&[3; 32]).unwrap().public_key(), Network::Signet));
    let reason = || "a \"reason\"\n".to_owned();
    let dids = || vec![did.clone(), did.clone()];
    let unreached = || Unreached { not_carried: dids(), not_fetched: dids(), carrier: Some(reason()) };
    let fault = Fault { did: did.clone(), code: RejectCode::Equivocation, slot: Slot::Nonce, detail: reason() };
    let other = Arc::new(BeaconData::Other(Value::Null));
    let signal = SignalBytes::from_bytes([1; 32]);
    let per_member = AggregatedData::PerMember([(did.clone(), Arc::clone(&other))].into());
    survive(&[
        ServiceEvent::AdvertRepeated { at: Timestamp::NEVER },
        ServiceEvent::OptInDisplaced { fault: fault.clone(), by: did.clone() },
        ServiceEvent::MemberRefused { did: did.clone(), reason: reason() },
        ServiceEvent::UpdatesAggregated {
            at,
            aggregation: Arc::new(Aggregation { signal, data: per_member }),
            edition: Edition::CURRENT,
        },
        ServiceEvent::TransactionDeferred { retry_at: at, reason: reason() },
        ServiceEvent::TransactionRequested { at },
        ServiceEvent::FaultRecorded { fault: fault.clone() },
    ]);
    survive(
        &[
            CohortFailure::EnrollmentExpired { admitted: 0 },
            CohortFailure::UpdatesMissing { holdouts: dids() },
            CohortFailure::ValidationMissing { holdouts: dids() },
            CohortFailure::ValidationRejected { by: did.clone() },
            CohortFailure::Transaction { reason: reason() },
            CohortFailure::Signing {
                reason: reason(),
                holdouts: dids(),
                culprits: Vec::new(),
                equivocators: Vec::new(),
                unreached: unreached(),
            },
            CohortFailure::NotDelivered { unreached: unreached(), holdouts: dids() },
            CohortFailure::Outdated,
            CohortFailure::Cancelled { reason: reason() },
            CohortFailure::Internal { reason: reason() },
        ]
        .map(|reason| ServiceEvent::CohortFailed { at, reason, successor: None }),
    );
    survive(&[
        SessionEvent::FaultRecorded { fault },
        SessionEvent::PathChosen {
            at,
            path: SpendPath::ScriptPath,
            reason: Some(reason()),
            holdouts: dids(),
            unreached: unreached(),
        },
        SessionEvent::SessionFailed {
            at,
            phase: TimedPhase::Fallback,
            reason: reason(),
            holdouts: dids(),
            unreached: unreached(),
        },
    ]);
    survive(&[
        ParticipantEvent::DataReceived { at, data: Arc::clone(&other), verdict: Err(reason()) },
        ParticipantEvent::DataReceived { at, data: other, verdict: Ok(signal) },
        ParticipantEvent::UpdateRefused { at, reason: reason() },
        ParticipantEvent::ValidationSent { at, approved: false },
        ParticipantEvent::NonceLost { at },
        ParticipantEvent::FallbackRequested { at },
    ]);
    survive(
        &[
            SessionEnd::NotJoined,
            SessionEnd::Signed,
            SessionEnd::Completed { txid: bitcoin::hashes::Hash::all_zeros() },
            SessionEnd::DataRejected { reason: reason() },
            SessionEnd::SigningRefused,
            SessionEnd::TimedOut { phase: reason() },
            SessionEnd::Outdated,
            SessionEnd::Left,
        ]
        .map(|reason| ParticipantEvent::SessionEnded { at, reason }),
    );
}
