//! Whole recorded rounds, with our service against the recorded members, and our members against the recorded
//! service.
//!
//! Each role must send exactly the recorded messages; and each machine's journal, written as JSON and read again,
//! must give the same machine.

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

/// Our service, its signing session, and the messages that the record expects of it.
struct ServiceRun {
    service: Did,
    cohort: Driven<ServiceCohort>,
    session: Option<Driven<SigningSession>>,
    /// The messages that each recipient is still to receive; `None` is a broadcast.
    expected: BTreeMap<Option<Did>, VecDeque<Value>>,
    randomness: Recorded,
    members: usize,
    transaction: Transaction,
    value: bitcoin::Amount,
    session_digests: Vec<MessageDigest>,
    /// The digests of our messages with an extension that the recorded service does not have.
    extended: Vec<MessageDigest>,
    transcript: Transcript,
}

impl ServiceRun {
    fn new(round: &Value) -> Self {
        let network: Network = text(&round["cohortConfig"]["network"]).parse().unwrap();
        let identity = identity(&round["service"], network);
        let messages = list(&round["messages"]);
        let recorded_advert = message(&messages[0]);
        let Body::CohortAdvert(advert) = (*recorded_advert.body).clone() else {
            panic!("the first message is the advert")
        };
        let beacons = BeaconRegistry::default();
        let conditions = Conditions::from_advert(&advert, &beacons).unwrap();
        // The conditions come from the advert. Each of its fields is the configured one:
        for (field, value) in round["cohortConfig"].as_object().unwrap() {
            assert_eq!(messages[0]["message"]["body"][field], *value, "{field}");
        }

        let mut expected: BTreeMap<Option<Did>, VecDeque<Value>> = BTreeMap::new();
        for entry in messages.iter().filter(|entry| entry["from"] == round["service"]["did"]) {
            let to = entry["to"].as_str().map(|to| to.parse().unwrap());
            expected.entry(to).or_default().push_back(entry["message"].clone());
        }

        // Drawn in this order: a nonce for each member (SMT only), in the order of their DIDs, then the session's
        // UUID.
        let participants = list(&round["participants"]);
        let mut nonces: Vec<(Did, Vec<u8>)> = participants
            .iter()
            .filter_map(|p| p["sidecar"].get("collapsed").and(p["sidecar"].get("nonce")).map(|nonce| (p, nonce)))
            .map(|(p, nonce)| (did(&p["did"]), BASE64URL_NOPAD.decode(text(nonce).as_bytes()).unwrap()))
            .collect();
        nonces.sort();
        let smt = advert.beacon_type.as_str() == "SMTBeacon";
        assert_eq!(nonces.len(), if smt { participants.len() } else { 0 }, "every SMT member has a nonce");
        let session_id = text(&round["sessionId"]).replace('-', "");
        let uuid = data_encoding::HEXLOWER.decode(session_id.as_bytes()).unwrap();
        let randomness = nonces.into_iter().map(|(_, nonce)| nonce).chain([uuid]).collect();

        let terms = CohortTerms {
            service: identity.did().clone(),
            service_key: identity.public_key(),
            cohort_id: advert.cohort_id.clone(),
            network,
            conditions,
            timing: Timing::default(),
            limits: Limits::default(),
            rules: PhaseRules::default(),
            lineage: Lineage::default(),
        };
        let config = ServiceConfig { terms: Arc::new(terms), beacons, aggregator: Arc::new(DirectAggregator) };
        Self {
            service: identity.did().clone(),
            cohort: Driven::new(ServiceCohort::new(Arc::new(config)).unwrap()),
            session: None,
            expected,
            randomness: Recorded(randomness),
            members: participants.len(),
            transaction: transaction(&round["outcome"]["unsignedTx"]),
            value: amount(&round["outcome"]["prevOutValue"]),
            session_digests: Vec::new(),
            extended: Vec::new(),
            transcript: Transcript::default(),
        }
    }

    fn sent(&mut self, to: Option<&Did>, body: &SharedBody) {
        // Our extensions are not in the recording of the TypeScript implementation.
        if body.is_control() {
            return;
        }
        let mut sent = json_of(&self.service, to, body);
        if let Body::AuthorizationRequest(_) = &**body {
            assert!(
                sent["body"].as_object_mut().unwrap().remove("sessionDeadline").is_some(),
                "members receive the deadline"
            );
            self.extended.push(Message::new(self.service.clone(), to.cloned(), body.clone()).digest());
        }
        let expected = self.expected.get_mut(&to.cloned()).and_then(VecDeque::pop_front);
        assert_eq!(Some(sent), expected, "to {to:?}");
    }

    /// Feeds the cohort and plays its host, as recorded.
    fn cohort(&mut self, input: ServiceInput) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let step = self.cohort.feed(&input, &mut self.randomness);
            // Effects belong to the last event of a step.
            for (position, event) in step.events.iter().enumerate() {
                let effects = if position + 1 == step.events.len() { &step.effects[..] } else { &[] };
                for digest in self.cohort.machine.transcript_entries(event, effects) {
                    self.transcript.push(digest);
                }
            }
            for effect in step.effects {
                match effect {
                    ServiceEffect::Broadcast(body) => self.sent(None, &body),
                    ServiceEffect::Send { to, body } => self.sent(Some(&to), &body),
                    ServiceEffect::AskAdmission(member) => inputs
                        .push_back(ServiceInput::AdmissionDecided { did: member.did.clone(), admission: Ok(()) }),
                    ServiceEffect::AskFinalization { admitted } if admitted == self.members => {
                        inputs.push_back(ServiceInput::Finalize);
                    }
                    ServiceEffect::AskFinalization { .. } | ServiceEffect::WithdrawAdvert => {}
                    ServiceEffect::AskTransaction { output, .. } => {
                        assert_eq!(output.address(), self.address().unwrap());
                        inputs.push_back(ServiceInput::TransactionProvided {
                            transaction: self.transaction.clone(),
                            value: self.value,
                        });
                    }
                    ServiceEffect::FormAgain(terms) => panic!("no recorded round fails, and yet: {terms:?}"),
                    ServiceEffect::StartSigning(task) => {
                        assert!(self.session.is_none(), "one session for each round");
                        let mut session = Driven::new(SigningSession::new(task));
                        session.now = self.cohort.now;
                        self.session = Some(session);
                        if let Some(finished) = self.session(&SessionInput::Open) {
                            inputs.push_back(finished);
                        }
                    }
                }
            }
        }
    }

    /// Feeds the session; returns its report to the cohort when it is finished.
    fn session(&mut self, input: &SessionInput) -> Option<ServiceInput> {
        let session = self.session.as_mut().expect("a signing session");
        let step = session.feed(input, &mut rng());
        self.cohort.now = session.now;
        for (position, event) in step.events.iter().enumerate() {
            let effects = if position + 1 == step.events.len() { &step.effects[..] } else { &[] };
            self.session_digests.extend(session.machine.transcript_entries(event, effects));
        }
        let mut finished = None;
        for effect in step.effects {
            match effect {
                SessionEffect::Send { to, body } => self.sent(Some(&to), &body),
                SessionEffect::Finished(outcome) => {
                    let digests = self.session_digests.clone();
                    assert!(finished.replace(ServiceInput::SigningFinished { outcome, digests }).is_none());
                }
            }
        }
        finished
    }

    fn address(&self) -> Option<&str> {
        self.cohort.machine.phase().formed().map(|formed| formed.output.address())
    }

    fn receive(&mut self, entry: &Value) {
        let message = message(entry);
        let Some(session) = &mut self.session else {
            self.cohort(ServiceInput::Message(message));
            return;
        };
        let fallback_signature = matches!(&*message.body, Body::FallbackSignature(_));
        // The recorded service waited for silent members, and so does ours.
        if fallback_signature
            && !matches!(session.machine.phase(), SessionPhase::Fallback { .. } | SessionPhase::Ended(_))
        {
            session.wait(&SessionInput::Tick, &mut rng());
            assert!(self.session(&SessionInput::Tick).is_none());
        }
        let session = self.session.as_mut().unwrap();
        if matches!(session.machine.phase(), SessionPhase::Ended(_)) {
            // More than k members sign the fallback. The last signatures come too late, which is not a fault and
            // changes nothing.
            assert!(fallback_signature, "only a fallback signature comes too late");
            let late = session.machine.decide(session.now, &SessionInput::Message(message), &mut rng());
            assert!(late.unwrap().is_empty());
            return;
        }
        if let Some(finished) = self.session(&SessionInput::Message(message)) {
            self.cohort(finished);
        }
    }
}

#[test]
fn our_service_conducts_every_recorded_round() {
    let mut paths = BTreeMap::new();
    let rounds = rounds();
    for round in &rounds {
        let name = text(&round["name"]);
        println!("round {name}");
        let mut run = ServiceRun::new(round);
        run.cohort(ServiceInput::Advertise);
        let mut received = 0;
        for entry in list(&round["messages"]).iter().filter(|entry| entry["from"] != round["service"]["did"]) {
            run.receive(entry);
            received += 1;
        }
        assert!(received > 0, "{name}");
        for (to, left) in &run.expected {
            assert!(left.is_empty(), "{name}: never sent to {to:?}: {left:?}");
        }
        assert!(run.randomness.0.is_empty(), "{name}: recorded randomness that was not drawn");

        let outcome = &round["outcome"];
        let Phase::Completed { formed, aggregated, outcome: signed } = run.cohort.machine.phase() else {
            panic!("{name}: {:?}", run.cohort.machine.phase());
        };
        let output = &formed.output;
        assert_eq!(output.address(), text(&outcome["beaconAddress"]), "{name}");
        assert_eq!(hex(output.script_pubkey()), text(&outcome["prevOutScript"]), "{name}");
        assert_eq!(output.internal_key().to_string(), text(&outcome["internalKey"]), "{name}");
        assert_eq!(hex(output.merkle_root().unwrap()), text(&outcome["tapMerkleRoot"]), "{name}");
        assert_eq!(hex(output.tap_tweak()), text(&outcome["tapTweak"]), "{name}");
        let keys: Vec<String> = output.keys().iter().map(ToString::to_string).collect();
        assert_eq!(serde_json::json!(keys), outcome["cohortKeys"], "{name}");
        assert_eq!(aggregated.aggregation.signal.to_string(), text(&outcome["signalBytes"]), "{name}");

        assert_eq!(signed.path.as_str(), text(&outcome["path"]), "{name}");
        *paths.entry(signed.path.as_str()).or_insert(0) += 1;
        let witness: Vec<String> = signed.transaction.input[0].witness.iter().map(hex).collect();
        assert_eq!(serde_json::json!(witness), outcome["witness"], "{name}");
        assert_eq!(serialize_hex(&signed.transaction), text(&outcome["signedTx"]), "{name}");
        assert_eq!(signed.transaction.compute_txid().to_string(), text(&outcome["txid"]), "{name}");
        assert!(consensus_accepts(&signed.transaction, &prevout(outcome)), "{name}");
        let signature = signed.signature.map(|signature| signature.to_string()).unwrap_or_default();
        assert_eq!(signature, text(&outcome["signature"]), "{name}");
        assert_eq!(signed.culprits, [], "{name}: silence is not a fault");
        let silent: Vec<Did> = match signed.path {
            SpendPath::KeyPath => Vec::new(),
            SpendPath::ScriptPath => vec![did(&list(&round["silent"])[0]["did"])],
        };
        assert_eq!(signed.holdouts, silent, "{name}");

        let session = run.session.as_ref().unwrap();
        assert_eq!(hex(session.machine.task().key_path_sighash()), text(&outcome["keyPathSighash"]), "{name}");
        assert_eq!(session.machine.task().session_id.as_str(), text(&round["sessionId"]), "{name}");
        assert!(
            matches!(session.machine.phase(), SessionPhase::Ended(SigningOutcome::Signed(ended)) if ended == signed),
            "{name}"
        );
        assert_eq!(session.machine.faults().iter().count(), 0, "{name}");
        assert_eq!(run.cohort.machine.faults().iter().count(), 0, "{name}");
        assert_eq!(run.cohort.machine.deadline(), None, "{name}: a cohort that ended waits for nothing");
        assert_eq!(session.machine.deadline(), None, "{name}");

        session.check_replay();
        run.cohort.check_replay();
        check_transcript(name, round, &run);
    }
    assert_eq!(paths.values().sum::<usize>(), rounds.len());
    assert_eq!(paths.keys().copied().collect::<Vec<_>>(), ["key-path", "script-path"]);
}

/// The transcript holds exactly the round's messages: those that the members sent, and ours. (The recorded service
/// sends to the members in another order than ours, and a message that came too late is only in the record.)
fn check_transcript(name: &str, round: &Value, run: &ServiceRun) {
    let late = list(&round["messages"])
        .iter()
        .filter(|entry| text(&entry["type"]).ends_with("/fallback_signature"))
        .skip(run.cohort.machine.phase().formed().unwrap().output.fallback().unwrap().threshold());
    let late: Vec<&Value> = late.map(|entry| &entry["seq"]).collect();
    let mut expected: Vec<MessageDigest> = list(&round["messages"])
        .iter()
        .filter(|entry| !late.contains(&&entry["seq"]))
        .filter(|entry| !text(&entry["type"]).ends_with("/authorization_request"))
        .map(|entry| message(entry).digest())
        .collect();
    expected.extend(&run.extended);
    let mut found: Vec<MessageDigest> = run.transcript.digests().to_vec();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "{name}");
}

/// One of our members, and the messages that the record expects of it.
struct MemberRun {
    service: Did,
    did: Did,
    cohort: Driven<ParticipantCohort>,
    signer: MemberSigner,
    nonce_randomness: Recorded,
    update: Option<SignedUpdate>,
    expected: VecDeque<Value>,
    /// The types of messages that the recorded member did not send.
    silent: Vec<String>,
    withheld: usize,
    key: SecretKey,
    signed_paths: Vec<SpendPath>,
}

impl MemberRun {
    fn new(round: &Value, participant: &Value, advert: Advert) -> Self {
        let identity = identity(participant, advert.network);
        let update = match text(&participant["role"]) {
            "submits" => {
                let update = SignedUpdate::from_value(participant["signedUpdate"].clone()).unwrap();
                assert_eq!(update.hash().to_string(), text(&participant["signedUpdateHash"]));
                Some(update)
            }
            "declines" => None,
            role => panic!("no role {role}"),
        };
        let expected = list(&round["messages"]).iter().filter(|entry| entry["from"] == participant["did"]);
        let silent =
            round["silent"].as_array().unwrap().iter().filter(|silent| silent["did"] == participant["did"]);
        let config = ParticipantConfig {
            did: identity.did().clone(),
            participant_key: identity.public_key(),
            communication_key: identity.public_key(),
            genesis_document: identity.genesis_document().cloned(),
            invite: None,
            timing: Timing::default(),
            max_fee_rate: DEFAULT_MAX_FEE_RATE,
            beacons: BeaconRegistry::default(),
            aggregator: Arc::new(DirectAggregator),
        };
        Self {
            service: advert.service.clone(),
            did: identity.did().clone(),
            cohort: Driven::new(ParticipantCohort::new(Arc::new(config), Arc::new(advert))),
            signer: MemberSigner::new(Arc::clone(identity.secret_key())),
            nonce_randomness: Recorded(VecDeque::from([unhex(&participant["nonceRand"])])),
            update,
            expected: expected.map(|entry| entry["message"].clone()).collect(),
            silent: silent.map(|silent| text(&silent["doesNotSend"]).to_owned()).collect(),
            withheld: 0,
            key: secret_key(&participant["secretKey"]),
            signed_paths: Vec::new(),
        }
    }

    fn sent(&mut self, to: &Did, body: &SharedBody) {
        assert_eq!(*to, self.service, "a member sends only to its service");
        if self.silent.iter().any(|kind| body.short_type().ends_with(kind.as_str())) {
            self.withheld += 1;
            return;
        }
        let sent = json_of(&self.did, Some(to), body);
        let mut expected =
            self.expected.pop_front().unwrap_or_else(|| panic!("{} was never sent: {sent}", self.did));
        if let Body::FallbackSignature(_) = &**body {
            // The auxiliary randomness differs, so the signature does; both must verify.
            let phase::Phase::Signing { round, request, .. } = self.cohort.machine.phase() else {
                panic!("{:?}", self.cohort.machine.phase());
            };
            let leaf = round.output.fallback().unwrap();
            let prevout =
                bitcoin::TxOut { value: request.value, script_pubkey: round.output.script_pubkey().to_owned() };
            let sighash = leaf.sighash(&request.transaction, &prevout).unwrap();
            for signature in [&sent, &expected] {
                let signature = &signature["body"]["fallbackSignature"]["__bytes"];
                let signature = text(signature).parse().unwrap();
                assert!(self.key.public_key().x_only().verify(&sighash, &signature), "{}", self.did);
            }
            expected["body"]["fallbackSignature"] = sent["body"]["fallbackSignature"].clone();
        }
        assert_eq!(sent, expected, "{}", self.did);
    }

    /// Feeds the member and plays its host: it joins, contributes as recorded, and approves checked data.
    fn feed(&mut self, input: ParticipantInput) {
        let mut rng = rng();
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.cohort.feed(&input, &mut rng).effects {
                inputs.push_back(match effect {
                    ParticipantEffect::Send { to, body } => {
                        self.sent(&to, &body);
                        continue;
                    }
                    ParticipantEffect::AskJoin => ParticipantInput::JoinDecided(true),
                    ParticipantEffect::AskUpdate { .. } => {
                        ParticipantInput::UpdateDecided(self.update.clone().map(Submission::from))
                    }
                    ParticipantEffect::AskValidation { verdict, .. } => {
                        verdict.unwrap_or_else(|reason| panic!("{}: {reason}", self.did));
                        ParticipantInput::ValidationDecided(true)
                    }
                    ParticipantEffect::AskSigning { path, .. } => {
                        assert_eq!(path, SpendPath::KeyPath);
                        ParticipantInput::SigningDecided(true)
                    }
                    ParticipantEffect::OpenNonce { session_id, output } => ParticipantInput::NonceOpened(
                        self.signer.open_nonce(&session_id, &output, &mut self.nonce_randomness),
                    ),
                    ParticipantEffect::SignPartial { session_id, output, aggregated, sighash } => {
                        self.signed_paths.push(SpendPath::KeyPath);
                        let signed = self.signer.sign_partial(&session_id, &output, &aggregated, &sighash);
                        ParticipantInput::PartialSigned(signed.unwrap())
                    }
                    ParticipantEffect::SignFallback { sighash } => {
                        self.signed_paths.push(SpendPath::ScriptPath);
                        let signature = self.signer.sign_fallback(&sighash, &mut rng);
                        ParticipantInput::FallbackSigned(Bytes(signature.to_bytes()))
                    }
                });
            }
        }
    }
}

fn check_record(who: &str, round: &Value, participant: &Value, run: &MemberRun) {
    let record = run.cohort.machine.record().unwrap_or_else(|| panic!("{who}: there is no record"));
    assert_eq!(record.included(), participant["completeIncluded"].as_bool().unwrap(), "{who}");
    assert_eq!(record.did, run.did, "{who}");
    assert_eq!(record.service, run.service, "{who}");
    assert_eq!(record.cohort_id.as_str(), text(&round["cohortId"]), "{who}");
    assert_eq!(record.signal.to_string(), text(&round["outcome"]["signalBytes"]), "{who}");
    assert_eq!(record.output.address(), text(&round["outcome"]["beaconAddress"]), "{who}");
    assert_eq!(record.update, run.update, "{who}");
    // The terms in the record give the output again.
    let again = BeaconOutput::new(
        Arc::clone(record.output.aggregation()),
        record.output.network(),
        &record.conditions.script_tree,
    );
    assert_eq!(again.unwrap(), record.output, "{who}");

    let genesis = participant["genesisDocument"].as_object().map(|_| &participant["genesisDocument"]);
    let mut expected = serde_json::json!({"@context": "https://btcr2.dev/context/v1"});
    if let Some(genesis) = genesis {
        expected["genesisDocument"] = genesis.clone();
    }
    if participant["completeIncluded"] == true {
        expected["updates"] = serde_json::json!([participant["signedUpdate"]]);
    }
    let kind = match text(&round["cohortConfig"]["beaconType"]) {
        "CASBeacon" => "casUpdates",
        "SMTBeacon" => "smtProofs",
        other => panic!("unknown beacon {other}"),
    };
    expected[kind] = serde_json::json!([participant["sidecar"]]);
    assert_eq!(record.sidecar(genesis), expected, "{who}");

    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<MemberRecord>(&text).unwrap(), record);
}

#[test]
fn our_members_take_part_in_every_recorded_round() {
    let (mut declined, mut external, mut withheld, mut fallback) = (0, 0, 0, 0);
    for round in &rounds() {
        for participant in list(&round["participants"]) {
            let who = format!("round {}, {}", text(&round["name"]), text(&participant["keyLabel"]));
            println!("{who}");
            let messages = list(&round["messages"]);
            let first = message(&messages[0]);
            let Body::CohortAdvert(body) = &*first.body else { panic!("{who}: the first message is the advert") };
            let advert = Advert::read(&first.from, body, &BeaconRegistry::default()).unwrap();
            let mut run = MemberRun::new(round, participant, advert);
            run.feed(ParticipantInput::Discover);

            let mut received = 0;
            for entry in messages.iter().filter(|entry| entry["from"] == round["service"]["did"]) {
                if entry["to"].is_null() || entry["to"] == participant["did"] {
                    let message = message(entry);
                    run.feed(ParticipantInput::Message(message.clone()));
                    received += 1;
                    // A repeated message, e.g. after a lost acknowledgement, changes nothing.
                    let before = run.cohort.machine.clone();
                    assert_eq!(
                        run.cohort.feed(&ParticipantInput::Message(message), &mut rng()).effects,
                        [],
                        "{who}"
                    );
                    assert_eq!(run.cohort.machine, before, "{who}");
                }
            }
            assert!(received > 5, "{who}");
            assert!(run.expected.is_empty(), "{who}: not sent: {:?}", run.expected);
            assert!(run.nonce_randomness.0.is_empty(), "{who}: no nonce was opened");
            let fallback_requested = messages.iter().any(|m| {
                m["to"] == participant["did"] && text(&m["type"]).ends_with("fallback_authorization_request")
            });
            assert_eq!(run.signed_paths.contains(&SpendPath::ScriptPath), fallback_requested, "{who}");
            assert_eq!(run.withheld, run.silent.len(), "{who}");
            check_record(&who, round, participant, &run);
            run.cohort.check_replay();

            // The record is unchanged after the end of the session, and after a restart.
            let record = run.cohort.machine.record();
            run.cohort.wait(&ParticipantInput::Tick, &mut rng());
            let ended = run.cohort.feed(&ParticipantInput::Tick, &mut rng());
            assert!(
                matches!(&ended.events[..], [ParticipantEvent::SessionEnded { reason: SessionEnd::Signed, .. }]),
                "{who}: {ended:?}"
            );
            assert_eq!(run.cohort.machine.record(), record, "{who}");
            assert_eq!(run.cohort.machine.deadline(), None, "{who}");
            run.cohort.check_replay();

            declined += usize::from(run.update.is_none());
            external += usize::from(participant["genesisDocument"].is_object());
            withheld += run.withheld;
            fallback += usize::from(fallback_requested);
        }
    }
    assert!(declined > 0 && external > 0 && withheld > 0 && fallback > 0, "the rounds show every role");
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
