//! The machines without actors: this program moves every message itself, and answers what the machines ask. It uses the
//! protocol crate only, as a wallet, a browser participant or another runtime does.
//!
//! A machine decides about an input, and the events that follow are applied at once ([`step`] does both). A real host
//! stores the events before it performs the effects: after a crash, a replay of the events restores the machine.
//!
//! `cargo run --release --example by_hand`

use std::{collections::VecDeque, error::Error, sync::Arc};

use bitcoin::{Amount, FeeRate, OutPoint};
use btcr2_aggregation_protocol::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{
        Timing,
        conditions::Conditions,
        participant::{Advert, ParticipantCohort, ParticipantConfig, ParticipantEffect, ParticipantInput},
        service::{
            CohortTerms, Limits, Lineage, ServiceCohort, ServiceConfig, ServiceEffect, ServiceInput, phase::Phase,
            rules::PhaseRules,
        },
    },
    did::Did,
    id::CohortId,
    identity::Identity,
    key::SecretKey,
    machine::{Machine, apply_all, step},
    message::{Body, Bytes, Message},
    network::Network,
    output::{
        Change, Coin, DEFAULT_MAX_FEE_RATE, DirectAggregator, RecoverySequence, ScriptTree,
        build_beacon_transaction,
    },
    signing::{
        nonce::MemberSigner,
        session::{SessionEffect, SessionInput, SigningSession},
    },
    time::Timestamp,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Everything happens in one second.
const NOW: Timestamp = Timestamp::from_secs(1_750_000_000);

const NETWORK: Network = Network::Regtest;

/// The service: the machine of its cohort and, while it signs, that of the session.
struct Service {
    did: Did,
    cohort: ServiceCohort,
    session: Option<SigningSession>,
}

/// A member: its machine, once it has received the advert, and its secret key.
struct Member {
    identity: Identity,
    cohort: Option<ParticipantCohort>,
    signer: MemberSigner,
}

impl Service {
    fn new(members: u32, rng: &mut ChaCha20Rng) -> Outcome<Self> {
        let identity = Identity::from_key(SecretKey::generate(rng), NETWORK);
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: identity.public_key().x_only(),
            recovery_sequence: RecoverySequence::try_from(144)?,
            fallback_threshold: None,
        };
        let terms = CohortTerms {
            service: identity.did().clone(),
            service_key: identity.public_key(),
            cohort_id: CohortId::generate(rng),
            network: NETWORK,
            conditions: Conditions::new(BeaconType::cas(), members, tree),
            timing: Timing::default(),
            limits: Limits::default(),
            rules: PhaseRules::default(),
            lineage: Lineage::default(),
        };
        let (terms, beacons, aggregator) = (Arc::new(terms), BeaconRegistry::default(), Arc::new(DirectAggregator));
        let cohort = ServiceCohort::new(Arc::new(ServiceConfig { terms, beacons, aggregator }))?;
        Ok(Self { did: identity.did().clone(), cohort, session: None })
    }

    /// Passes a message to the machine that it is for. A `Reject` names the peer that is at fault, and changes nothing.
    fn receive(&mut self, message: Message, rng: &mut ChaCha20Rng) -> Outcome<Vec<Message>> {
        let is_for_session = matches!(
            &*message.body,
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_)
        );
        let mut out = Vec::new();
        if is_for_session {
            self.sign(SessionInput::Message(message), &mut out, rng)?;
        } else {
            self.feed(ServiceInput::Message(message), &mut out, rng)?;
        }
        Ok(out)
    }

    /// Feeds the cohort an input, performs the effects, and feeds it the answers.
    fn feed(&mut self, input: ServiceInput, out: &mut Vec<Message>, rng: &mut ChaCha20Rng) -> Outcome<()> {
        for effect in step(&mut self.cohort, NOW, &input, rng)?.effects {
            match effect {
                ServiceEffect::Broadcast(body) => out.push(Message::new(self.did.clone(), None, body)),
                ServiceEffect::Send { to, body } => out.push(Message::new(self.did.clone(), Some(to), body)),
                ServiceEffect::AskAdmission(member) => {
                    let input = ServiceInput::AdmissionDecided { did: member.did.clone(), admission: Ok(()) };
                    self.feed(input, out, rng)?;
                }
                ServiceEffect::AskFinalization { .. } => self.feed(ServiceInput::Finalize, out, rng)?,
                ServiceEffect::AskTransaction { output, signal } => {
                    // A coin that does not exist.
                    let (value, change) = (Amount::from_sat(100_000), Change::Beacon);
                    let (coin, rate) = (Coin { outpoint: OutPoint::null(), value }, FeeRate::BROADCAST_MIN);
                    let transaction = build_beacon_transaction(&output, &coin, &signal, rate, &change)?;
                    self.feed(ServiceInput::TransactionProvided { transaction, value }, out, rng)?;
                }
                ServiceEffect::StartSigning(task) => {
                    self.session = Some(SigningSession::new(task));
                    self.sign(SessionInput::Open, out, rng)?;
                }
                // Nothing is repeated here, and no cohort replaces another.
                ServiceEffect::WithdrawAdvert | ServiceEffect::FormAgain(_) => {}
            }
        }
        Ok(())
    }

    /// Feeds the signing session an input.
    fn sign(&mut self, input: SessionInput, out: &mut Vec<Message>, rng: &mut ChaCha20Rng) -> Outcome<()> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let events = session.decide(NOW, &input, rng)?;
        for effect in apply_all(session, &events) {
            match effect {
                SessionEffect::Send { to, body } => out.push(Message::new(self.did.clone(), Some(to), body)),
                SessionEffect::Finished(outcome) => {
                    // A host that signs the transcript collects `transcript_entries` of both machines.
                    self.feed(ServiceInput::SigningFinished { outcome, digests: Vec::new() }, out, rng)?;
                }
            }
        }
        Ok(())
    }
}

impl Member {
    fn new(rng: &mut ChaCha20Rng) -> Self {
        let identity = Identity::from_key(SecretKey::generate(rng), NETWORK);
        let signer = MemberSigner::new(Arc::clone(identity.secret_key()));
        Self { identity, cohort: None, signer }
    }

    fn receive(&mut self, message: Message, rng: &mut ChaCha20Rng) -> Outcome<Vec<Message>> {
        let mut out = Vec::new();
        let input = match &*message.body {
            Body::CohortAdvert(body) if self.cohort.is_none() => {
                let config = ParticipantConfig {
                    did: self.identity.did().clone(),
                    participant_key: self.identity.public_key(),
                    communication_key: self.identity.public_key(),
                    genesis_document: None,
                    invite: None,
                    timing: Timing::default(),
                    max_fee_rate: DEFAULT_MAX_FEE_RATE,
                    beacons: BeaconRegistry::default(),
                    aggregator: Arc::new(DirectAggregator),
                };
                let advert = Advert::read(&message.from, body, &config.beacons)?;
                self.cohort = Some(ParticipantCohort::new(Arc::new(config), Arc::new(advert)));
                ParticipantInput::Discover
            }
            _ => ParticipantInput::Message(message),
        };
        self.feed(input, &mut out, rng)?;
        Ok(out)
    }

    /// Feeds the machine an input, performs the effects, and feeds it the answers.
    fn feed(&mut self, input: ParticipantInput, out: &mut Vec<Message>, rng: &mut ChaCha20Rng) -> Outcome<()> {
        let Some(cohort) = &mut self.cohort else { return Ok(()) };
        for effect in step(cohort, NOW, &input, rng)?.effects {
            let answer = match effect {
                ParticipantEffect::Send { to, body } => {
                    out.push(Message::new(self.identity.did().clone(), Some(to), body));
                    continue;
                }
                ParticipantEffect::AskJoin => ParticipantInput::JoinDecided(true),
                // It declines, and signs nevertheless.
                ParticipantEffect::AskUpdate { .. } => ParticipantInput::UpdateDecided(None),
                ParticipantEffect::AskValidation { verdict, .. } => {
                    ParticipantInput::ValidationDecided(verdict.is_ok())
                }
                ParticipantEffect::AskSigning { .. } => ParticipantInput::SigningDecided(true),
                // The secret nonce stays in the signer, which uses it once.
                ParticipantEffect::OpenNonce { session_id, output } => {
                    ParticipantInput::NonceOpened(self.signer.open_nonce(&session_id, &output, rng))
                }
                ParticipantEffect::SignPartial { session_id, output, aggregated, sighash } => {
                    let signed = self.signer.sign_partial(&session_id, &output, &aggregated, &sighash);
                    ParticipantInput::PartialSigned(signed?)
                }
                ParticipantEffect::SignFallback { sighash } => {
                    ParticipantInput::FallbackSigned(Bytes(self.signer.sign_fallback(&sighash, rng).to_bytes()))
                }
            };
            self.feed(answer, out, rng)?;
        }
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let mut rng = ChaCha20Rng::from_os_rng();
    let mut service = Service::new(3, &mut rng)?;
    let mut members: Vec<_> = (0..3).map(|_| Member::new(&mut rng)).collect();
    let mut out = Vec::new();
    service.feed(ServiceInput::Advertise, &mut out, &mut rng)?;
    let mut messages = VecDeque::from(out);
    let mut moved = 0;
    while let Some(message) = messages.pop_front() {
        moved += 1;
        if message.to.as_ref() == Some(&service.did) {
            messages.extend(service.receive(message, &mut rng)?);
            continue;
        }
        // A message without a recipient is for all.
        for member in &mut members {
            if message.to.as_ref().is_none_or(|to| to == member.identity.did()) {
                messages.extend(member.receive(message.clone(), &mut rng)?);
            }
        }
    }
    let Phase::Completed { outcome, .. } = service.cohort.phase() else {
        return Err("the cohort is not signed".into());
    };
    println!("{moved} messages moved by hand");
    println!("transaction {}, signed by all ({})", outcome.transaction.compute_txid(), outcome.path);
    Ok(())
}
