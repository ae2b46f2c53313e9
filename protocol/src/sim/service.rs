//! An Aggregation Service with one cohort, and its host.

use std::{collections::VecDeque, sync::Arc};

use bitcoin::{Amount, FeeRate, OutPoint, Txid, hashes::Hash};
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

use super::{Setup, accept_first};
use crate::{
    cohort::{
        event::ServiceEvent,
        service::{
            CohortTerms, Limits, Lineage, ServiceCohort, ServiceConfig, ServiceConfigError, ServiceEffect,
            ServiceInput,
        },
    },
    did::Did,
    error::{Fatal, Reject, Retry},
    hash::MessageDigest,
    id::CohortId,
    identity::Identity,
    key::SecretKey,
    machine::Machine,
    message::{Body, Message},
    output::{Change, Coin, build_beacon_transaction},
    signing::session::{SessionEffect, SessionEvent, SessionInput, SigningSession},
    time::Timestamp,
    transcript::Transcript,
};

/// A signing session with its journal.
pub struct SessionNode {
    pub(super) initial: SigningSession,
    pub(super) machine: SigningSession,
    pub(super) events: Vec<SessionEvent>,
    digests: Vec<MessageDigest>,
}

impl SessionNode {
    /// Its machine.
    pub fn machine(&self) -> &SigningSession {
        &self.machine
    }

    /// Its journal.
    pub fn events(&self) -> &[SessionEvent] {
        &self.events
    }
}

/// The service: its cohort's machine, the signing sessions, their journals, and a host that acts by the [`Setup`].
pub struct ServiceNode {
    pub(super) identity: Identity,
    pub(super) initial: ServiceCohort,
    pub(super) machine: ServiceCohort,
    pub(super) events: Vec<ServiceEvent>,
    pub(super) sessions: Vec<SessionNode>,
    transcript: Transcript,
    pub(super) coin: Coin,
    pub(super) admitted: usize,
    deferrals: u32,
    pub(super) opt_ins: usize,
    successor: Option<Arc<CohortTerms>>,
}

enum Input {
    Cohort(ServiceInput),
    Session(SessionInput),
}

impl ServiceNode {
    pub(super) fn new(setup: &Setup, rng: &mut ChaCha8Rng) -> Result<Self, ServiceConfigError> {
        let key = SecretKey::generate(rng);
        let identity = Identity::from_key(key, setup.network);
        let terms = CohortTerms {
            service: identity.did().clone(),
            service_key: identity.public_key(),
            cohort_id: CohortId::generate(rng),
            network: setup.network,
            conditions: setup.conditions.clone(),
            timing: setup.timing,
            limits: Limits::default(),
            rules: setup.rules.clone(),
            lineage: Lineage::default(),
        };
        let config = ServiceConfig {
            terms: Arc::new(terms),
            beacons: setup.beacons.clone(),
            aggregator: Arc::clone(&setup.aggregator),
        };
        let machine = ServiceCohort::new(Arc::new(config))?;
        let mut txid = [0; 32];
        rng.fill_bytes(&mut txid);
        let outpoint = OutPoint::new(Txid::from_byte_array(txid), 0);
        Ok(Self {
            identity,
            initial: machine.clone(),
            machine,
            events: Vec::new(),
            sessions: Vec::new(),
            transcript: Transcript::default(),
            coin: Coin { outpoint, value: Amount::from_sat(1_000_000) },
            admitted: 0,
            deferrals: 0,
            opt_ins: 0,
            successor: None,
        })
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its cohort's machine.
    pub fn machine(&self) -> &ServiceCohort {
        &self.machine
    }

    /// Its cohort's journal.
    pub fn events(&self) -> &[ServiceEvent] {
        &self.events
    }

    /// Its signing session, once there is one.
    pub fn session(&self) -> Option<&SessionNode> {
        self.sessions.last()
    }

    /// What was said in the round.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// The terms of the cohort that was to take the place of one that failed.
    pub fn successor(&self) -> Option<&Arc<CohortTerms>> {
        self.successor.as_ref()
    }

    /// The made-up coin that the transaction spends.
    pub fn coin(&self) -> &Coin {
        &self.coin
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let sessions = self.sessions.iter().filter_map(|session| session.machine.deadline());
        sessions.chain(self.machine.deadline()).min()
    }

    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        message: Message,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        let signing = matches!(
            &*message.body,
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_)
        );
        let input = if signing && !self.sessions.is_empty() {
            Input::Session(SessionInput::Message(message))
        } else {
            Input::Cohort(ServiceInput::Message(message))
        };
        self.run(now, input, setup, rng)
    }

    pub(super) fn cohort_input(
        &mut self,
        now: Timestamp,
        input: ServiceInput,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        self.run(now, Input::Cohort(input), setup, rng)
    }

    pub(super) fn session_input(
        &mut self,
        now: Timestamp,
        input: SessionInput,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        self.run(now, Input::Session(input), setup, rng)
    }

    pub(super) fn tick(&mut self, now: Timestamp, setup: &Setup, rng: &mut ChaCha8Rng) -> Vec<Message> {
        // The session first: the cohort's own deadline while signing is only the guard behind the session's.
        let mut outgoing = self.session_input(now, SessionInput::Tick, setup, rng).unwrap_or_default();
        outgoing.extend(self.cohort_input(now, ServiceInput::Tick, setup, rng).unwrap_or_default());
        outgoing
    }

    /// Feeds an input, and everything that the host answers to its effects. Only the first input can be refused: the
    /// others are our own host's answers.
    fn run(
        &mut self,
        now: Timestamp,
        input: Input,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        let mut outgoing = Vec::new();
        let mut inputs = VecDeque::from([input]);
        let mut first = true;
        while let Some(input) = inputs.pop_front() {
            match input {
                Input::Cohort(input) => {
                    let events = accept_first(self.machine.decide(now, &input, rng), &mut first)?;
                    for event in events {
                        self.machine.apply(&event);
                        let effects = self.machine.effects(&event);
                        for digest in self.machine.transcript_entries(&event, &effects) {
                            self.transcript.push(digest);
                        }
                        self.events.push(event);
                        for effect in effects {
                            self.perform(effect, setup, &mut inputs, &mut outgoing);
                        }
                    }
                }
                Input::Session(input) => {
                    let from = self.identity.did().clone();
                    let Some(session) = self.sessions.last_mut() else { continue };
                    let events = accept_first(session.machine.decide(now, &input, rng), &mut first)?;
                    for event in events {
                        session.machine.apply(&event);
                        let effects = session.machine.effects(&event);
                        session.digests.extend(session.machine.transcript_entries(&event, &effects));
                        session.events.push(event);
                        for effect in effects {
                            match effect {
                                SessionEffect::Send { to, body } => {
                                    outgoing.push(Message::new(from.clone(), Some(to), body));
                                }
                                SessionEffect::Finished(outcome) => {
                                    let digests = session.digests.clone();
                                    inputs.push_back(Input::Cohort(ServiceInput::SigningFinished {
                                        outcome,
                                        digests,
                                    }));
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(outgoing)
    }

    fn perform(
        &mut self,
        effect: ServiceEffect,
        setup: &Setup,
        inputs: &mut VecDeque<Input>,
        outgoing: &mut Vec<Message>,
    ) {
        let from = || self.identity.did().clone();
        match effect {
            // The simulated network keeps no adverts for those who come later.
            ServiceEffect::WithdrawAdvert => {}
            ServiceEffect::Broadcast(body) => outgoing.push(Message::new(from(), None, body)),
            ServiceEffect::Send { to, body } => outgoing.push(Message::new(from(), Some(to), body)),
            ServiceEffect::AskAdmission(member) => {
                let refused = setup.refuses.contains(&self.opt_ins);
                self.opt_ins += 1;
                let admission = if refused { Err("not this one".to_owned()) } else { Ok(()) };
                let did: Did = member.did.clone();
                inputs.push_back(Input::Cohort(ServiceInput::AdmissionDecided { did, admission }));
            }
            ServiceEffect::AskFinalization { admitted } => {
                self.admitted = admitted;
                if setup.finalize_at.is_some_and(|size| admitted >= size) {
                    inputs.push_back(Input::Cohort(ServiceInput::Finalize));
                }
            }
            ServiceEffect::AskTransaction { output, signal } => {
                let input = if self.deferrals < setup.defer_transaction {
                    self.deferrals += 1;
                    ServiceInput::TransactionUnavailable(Retry("the coin is not confirmed yet".to_owned()))
                } else {
                    let rate = FeeRate::from_sat_per_vb_u32(2);
                    match build_beacon_transaction(&output, &self.coin, &signal, rate, &Change::Beacon) {
                        Ok(transaction) => {
                            ServiceInput::TransactionProvided { transaction, value: self.coin.value }
                        }
                        Err(error) => ServiceInput::TransactionRefused(Fatal(error.to_string())),
                    }
                };
                inputs.push_back(Input::Cohort(input));
            }
            ServiceEffect::FormAgain(terms) => self.successor = Some(terms),
            ServiceEffect::StartSigning(task) => {
                let machine = SigningSession::new(task);
                self.sessions.push(SessionNode {
                    initial: machine.clone(),
                    machine,
                    events: Vec::new(),
                    digests: Vec::new(),
                });
                inputs.push_back(Input::Session(SessionInput::Open));
            }
        }
    }
}
