//! A participant's machine against any messages of its service.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, OnceLock},
    time::Duration,
};

use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::{
        Timing,
        participant::{Advert, ParticipantCohort, ParticipantConfig, ParticipantEffect, ParticipantInput},
    },
    hash::SignalBytes,
    identity::Identity,
    key::SecretKey,
    machine::{Machine, replay, step},
    message::{Body, Bytes, Message},
    output::DirectAggregator,
    signing::nonce::MemberSigner,
    time::Timestamp,
    update::{SignedUpdate, Submission},
};
use rand_chacha::ChaCha20Rng;
use serde_json::Value;

use crate::{NOW, rng};

/// Recorded rounds of the TypeScript implementation: the target is a member of the first round of each.
const ROUNDS: [&str; 4] = [
    include_str!("../../protocol/tests/vectors/transcript_cas.json"),
    include_str!("../../protocol/tests/vectors/transcript_smt.json"),
    include_str!("../../protocol/tests/vectors/transcript_fallback.json"),
    include_str!("../../protocol/tests/vectors/transcript_nonincluded.json"),
];

/// A round has six messages for each member; this is room for several of each.
const MAX_LINES: usize = 32;

/// The longest text that a message may cause.
const MAX_STEPS: usize = 8;

struct Member {
    machine: ParticipantCohort,
    key: Arc<SecretKey>,
    update: Option<SignedUpdate>,
    /// The messages of the recorded service to it, after the advert.
    received: Vec<String>,
}

fn members() -> &'static [Member] {
    static MEMBERS: OnceLock<Vec<Member>> = OnceLock::new();
    MEMBERS.get_or_init(|| ROUNDS.iter().map(|file| member(file)).collect())
}

fn member(file: &str) -> Member {
    let file: Value = serde_json::from_str(file).expect("the vectors are JSON");
    let round = &file["rounds"][0];
    let recorded = &round["participants"][0];
    let messages = round["messages"].as_array().expect("messages");
    let advert = Message::from_json(&messages[0]["message"].to_string()).expect("the advert");
    let beacons = BeaconRegistry::default();
    let advert = match &*advert.body {
        Body::CohortAdvert(body) => Advert::read(&advert.from, body, &beacons).expect("a good advert"),
        other => panic!("{} is not an advert", other.short_type()),
    };
    let key = SecretKey::from_hex(recorded["secretKey"].as_str().expect("a key")).expect("a key");
    let identity = match &recorded["genesisDocument"] {
        Value::Null => Identity::from_key(key, advert.network),
        document => Identity::from_genesis(key, document.clone(), advert.network).expect("its document"),
    };
    let config = ParticipantConfig {
        max_fee_rate: btcr2_aggregation_protocol::output::DEFAULT_MAX_FEE_RATE,
        did: identity.did().clone(),
        participant_key: identity.public_key(),
        communication_key: identity.public_key(),
        genesis_document: identity.genesis_document().cloned(),
        invite: None,
        timing: Timing::default(),
        beacons,
        aggregator: Arc::new(DirectAggregator),
    };
    let update = (recorded["role"] == "submits")
        .then(|| SignedUpdate::from_value(recorded["signedUpdate"].clone()).expect("an update"));
    let received = messages[1..].iter().filter(|entry| entry["to"] == recorded["did"]);
    Member {
        machine: ParticipantCohort::new(Arc::new(config), Arc::new(advert)),
        key: Arc::clone(identity.secret_key()),
        update,
        received: received.map(|entry| entry["message"].to_string()).collect(),
    }
}

/// The inputs that repeat the recorded rounds, for the corpus.
pub fn recorded() -> Vec<String> {
    let rounds = members().iter().enumerate();
    rounds.map(|(number, member)| format!("{number}\n{}", member.received.join("\n"))).collect()
}

/// The first line selects the member, each other one is a message of the service, or `t` for the next deadline, or `n` for
/// the loss of the secret nonce. In every case the member signs only a transaction that announces the signal that it has
/// verified; it uses no nonce twice; and its journal replays to the same machine.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let number = lines.next().and_then(|line| line.parse::<usize>().ok()).unwrap_or_default();
    let mut host = Host::new(&members()[number % members().len()]);
    host.feed(ParticipantInput::Discover);
    for line in lines.take(MAX_LINES) {
        match line {
            "t" => {
                host.now = host.machine.deadline().unwrap_or(host.now);
                host.feed(ParticipantInput::Tick);
            }
            "n" => host.feed(ParticipantInput::NonceLost),
            line => {
                let Ok(mut message) = Message::from_json(line) else { continue };
                // A message of another sender is refused at once, which is not worth a fuzzer's time.
                message.from = host.machine.advert().service.clone();
                host.feed(ParticipantInput::Message(message));
            }
        }
    }
    host.check_replay();
}

/// A host that agrees to every request.
struct Host {
    member: &'static Member,
    machine: ParticipantCohort,
    journal: Vec<<ParticipantCohort as Machine>::Event>,
    signer: MemberSigner,
    now: Timestamp,
    verified: Option<SignalBytes>,
    signed: BTreeSet<[u8; 66]>,
    nonce: Option<[u8; 66]>,
    /// One generator for the whole round: a new one would make the same nonce twice.
    rng: ChaCha20Rng,
}

impl Host {
    fn new(member: &'static Member) -> Self {
        Self {
            machine: member.machine.clone(),
            journal: Vec::new(),
            signer: MemberSigner::new(Arc::clone(&member.key)),
            now: NOW,
            verified: None,
            signed: BTreeSet::new(),
            nonce: None,
            rng: rng(),
            member,
        }
    }

    fn feed(&mut self, input: ParticipantInput) {
        let mut inputs = VecDeque::from([input]);
        for _ in 0..MAX_STEPS {
            let Some(input) = inputs.pop_front() else { return };
            self.now = self.now + Duration::from_millis(1);
            // A machine that rejects is unchanged: `decide` cannot change it.
            let Ok(step) = step(&mut self.machine, self.now, &input, &mut self.rng) else { continue };
            self.journal.extend(step.events);
            inputs.extend(step.effects.into_iter().filter_map(|effect| self.answer(effect)));
        }
        panic!("one input brings about no end of others");
    }

    fn answer(&mut self, effect: ParticipantEffect) -> Option<ParticipantInput> {
        match effect {
            ParticipantEffect::AskJoin => Some(ParticipantInput::JoinDecided(true)),
            ParticipantEffect::AskUpdate { .. } => {
                Some(ParticipantInput::UpdateDecided(self.member.update.clone().map(Submission::from)))
            }
            ParticipantEffect::AskValidation { verdict, .. } => {
                self.verified = verdict.ok();
                Some(ParticipantInput::ValidationDecided(true))
            }
            ParticipantEffect::AskSigning { transaction, .. } => {
                let signal = self.verified.expect("nothing is to be signed before the data was verified");
                let last = transaction.output.last().expect("a signal");
                assert_eq!(last.script_pubkey.as_bytes(), [&[0x6a, 0x20], signal.as_bytes().as_slice()].concat());
                assert_eq!(transaction.input.len(), 1);
                Some(ParticipantInput::SigningDecided(true))
            }
            ParticipantEffect::OpenNonce { session_id, output } => {
                let nonce = self.signer.open_nonce(&session_id, &output, &mut self.rng);
                self.nonce = Some(nonce.0);
                Some(ParticipantInput::NonceOpened(nonce))
            }
            ParticipantEffect::SignPartial { session_id, output, aggregated, sighash } => {
                match self.signer.sign_partial(&session_id, &output, &aggregated, &sighash) {
                    Ok(partial) => {
                        let nonce = self.nonce.expect("what signs was opened");
                        assert!(self.signed.insert(nonce), "a nonce was used twice");
                        Some(ParticipantInput::PartialSigned(partial))
                    }
                    Err(_) => Some(ParticipantInput::NonceLost),
                }
            }
            ParticipantEffect::SignFallback { sighash } => {
                let signature = self.signer.sign_fallback(&sighash, &mut self.rng);
                Some(ParticipantInput::FallbackSigned(Bytes(signature.to_bytes())))
            }
            _ => None,
        }
    }

    fn check_replay(&self) {
        let written = serde_json::to_vec(&self.journal).expect("events serialize");
        let read: Vec<_> = serde_json::from_slice(&written).expect("what we write are events");
        assert_eq!(read, self.journal);
        assert_eq!(replay(self.member.machine.clone(), &read), self.machine);
    }
}
