//! A whole cohort in one heap: an Aggregation Service, its participants, a lossy network between them and a virtual clock.
//!
//! There is no wall clock and no operating-system randomness: everything comes from one seed, and the same seed is the
//! same run, byte for byte ([`Simulation::trace`]). Messages travel as text and are parsed when they arrive. Peers can
//! be honest, silent, or hostile: [`Simulation::tamper`] rewrites what a peer sends, [`Simulation::deliver`] puts a text
//! into a peer's hands in anybody's name. [`Simulation::assert_invariants`] says what must hold of every run, whatever
//! happened in it.
//!
//! ```
//! use btcr2_aggregation_protocol::sim::{Role, Setup, Simulation};
//!
//! let mut simulation = Simulation::new(7, Setup::new(vec![Role::default(), Role::decliner()]));
//! simulation.run();
//! simulation.assert_invariants();
//! assert!(simulation.report().signed.is_some());
//! ```

mod check;
mod network;
mod participant;
mod role;
mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use self::network::{Network as Wire, Packet};
pub use self::{
    network::Faults,
    participant::{NonceUse, ParticipantNode},
    role::{Role, SLOTS, UpdateChoice, Verdict, genesis_document},
    service::{ServiceNode, SessionNode},
};
use crate::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{
        Timing,
        conditions::Conditions,
        event::{CohortFailure, SessionEnd},
        participant::{ParticipantInput, phase::Phase as ParticipantPhase},
        service::{ServiceInput, phase::Phase as ServicePhase, rules::PhaseRules},
    },
    did::Did,
    error::{Fault, Reject, RejectCode, Slot},
    key::SecretKey,
    machine::Machine,
    message::{Body, DecodeError, Message},
    network::Network,
    output::{KeyAggregator, MemoizedAggregator, RecoverySequence, ScriptTree},
    signing::{Signed, session::SessionInput},
    time::Timestamp,
};

/// When every simulation starts.
pub const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The network of identifiers and addresses.
    pub network: Network,
    /// What the advert promises.
    pub conditions: Conditions,
    /// How long everybody waits.
    pub timing: Timing,
    /// What the service does when a phase cannot be completed.
    pub rules: PhaseRules,
    /// The beacon types that everybody knows.
    pub beacons: BeaconRegistry,
    /// Who aggregates keys.
    pub aggregator: Arc<dyn KeyAggregator>,
    /// The participants and how they behave.
    pub roles: Vec<Role>,
    /// What the network does.
    pub faults: Faults,
    /// Which opt-ins the operator refuses, counted from 0 in the order in which they arrive.
    pub refuses: BTreeSet<usize>,
    /// With how many members the operator forms the cohort before its enrollment ends; `None` waits for the end.
    pub finalize_at: Option<usize>,
    /// How many times the operator has no transaction yet.
    pub defer_transaction: u32,
}

impl Setup {
    /// A CAS cohort of these participants on regtest, with both leaves and a faultless network, that is formed when all
    /// of them are in.
    pub fn new(roles: Vec<Role>) -> Self {
        let recovery = SecretKey::from_bytes(&[7; 32]).expect("a small number is a scalar").public_key().x_only();
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: recovery,
            recovery_sequence: RecoverySequence::try_from(144).expect("in range"),
            fallback_threshold: None,
        };
        Self {
            network: Network::Regtest,
            conditions: Conditions::new(BeaconType::cas(), 1, tree),
            timing: Timing::default(),
            rules: PhaseRules::default(),
            beacons: BeaconRegistry::default(),
            aggregator: Arc::new(MemoizedAggregator::default()),
            finalize_at: Some(roles.len()),
            roles,
            faults: Faults::default(),
            refuses: BTreeSet::new(),
            defer_transaction: 0,
        }
    }

    /// The same with another beacon type.
    #[must_use]
    pub fn with_beacon(mut self, beacon_type: BeaconType) -> Self {
        self.conditions.beacon_type = beacon_type;
        self
    }
}

/// A message that a peer refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// When.
    pub at: Timestamp,
    /// Who refused it.
    pub by: Did,
    /// What it was refused for, and whom that names.
    pub reject: Reject,
}

/// How a simulation stands.
#[derive(Clone, Debug)]
pub struct Report {
    /// The name of the service's phase.
    pub phase: &'static str,
    /// Why the cohort failed, if it did.
    pub failure: Option<CohortFailure>,
    /// The signed transaction and how it came about, if there is one.
    pub signed: Option<Arc<Signed>>,
    /// What the service has on record against members.
    pub faults: Vec<Fault>,
    /// Every message that was refused, by whomever.
    pub rejections: Vec<Rejection>,
    /// Why each participant's session ended; `None` for those under way or never begun.
    pub ends: Vec<Option<SessionEnd>>,
}

impl Report {
    /// Everybody who is accused of something: by a fault, by an outcome that names a culprit, or by a refusal. Refusing
    /// what comes too late ([`RejectCode::WrongPhase`]) or finds no place ([`RejectCode::CohortFull`]) accuses nobody.
    pub fn accused(&self) -> BTreeSet<Did> {
        let harmless = [RejectCode::WrongPhase, RejectCode::CohortFull];
        let refused = self.rejections.iter().map(|rejection| &rejection.reject);
        let refused =
            refused.filter(|reject| !harmless.contains(&reject.code)).filter_map(|reject| reject.peer.clone());
        let mut accused: BTreeSet<Did> = self.faults.iter().map(|fault| fault.did.clone()).collect();
        accused.extend(refused);
        accused.extend(self.signed.iter().flat_map(|signed| signed.culprits.clone()));
        if let Some(CohortFailure::Signing { culprits, .. }) = &self.failure {
            accused.extend(culprits.iter().cloned());
        }
        accused
    }
}

/// Rewrites what a peer sends: the texts that go to the message's recipient instead of the message.
pub type Tamper = Box<dyn FnMut(&Message) -> Vec<String>>;

/// A cohort, its network and its clock.
pub struct Simulation {
    setup: Setup,
    now: Timestamp,
    rng: ChaCha8Rng,
    wire: Wire,
    service: ServiceNode,
    participants: Vec<ParticipantNode>,
    tampers: BTreeMap<Did, Tamper>,
    rejections: Vec<Rejection>,
    trace: Vec<String>,
}

impl Simulation {
    /// A simulation whose service has just broadcast its advert.
    ///
    /// # Panics
    /// When the setup's conditions cannot be advertised.
    pub fn new(seed: u64, setup: Setup) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let service = ServiceNode::new(&setup, &mut rng)
            .unwrap_or_else(|error| panic!("the setup's conditions cannot be advertised: {error}"));
        let participants =
            setup.roles.iter().map(|role| ParticipantNode::new(role.clone(), &setup, &mut rng)).collect();
        Self {
            setup,
            now: START,
            rng,
            wire: Wire::default(),
            service,
            participants,
            tampers: BTreeMap::new(),
            rejections: Vec::new(),
            trace: Vec::new(),
        }
    }

    /// What is simulated.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The virtual time.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The service.
    pub fn service(&self) -> &ServiceNode {
        &self.service
    }

    /// The participants, in the order of the setup's roles.
    pub fn participants(&self) -> &[ParticipantNode] {
        &self.participants
    }

    /// The identifier of a participant.
    ///
    /// # Panics
    /// When there is no such participant.
    pub fn did(&self, participant: usize) -> Did {
        self.participants[participant].identity.did().clone()
    }

    /// The randomness of the simulation, for what a test makes up.
    pub fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    /// Every delivery so far, as `time sender recipient text`: equal for equal seeds.
    pub fn trace(&self) -> &[String] {
        &self.trace
    }

    /// Every refusal so far.
    pub fn rejections(&self) -> &[Rejection] {
        &self.rejections
    }

    /// From now on everything that `peer` (the service or a participant) sends passes through `tamper`.
    pub fn tamper(&mut self, peer: &Did, tamper: impl FnMut(&Message) -> Vec<String> + 'static) {
        self.tampers.insert(peer.clone(), Box::new(tamper));
    }

    /// Runs until everybody has ended and nothing is under way.
    pub fn run(&mut self) {
        self.run_until(|_| false);
    }

    /// Runs until `done`, or until nothing can happen any more. Returns whether `done` was reached.
    pub fn run_until(&mut self, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            if !self.step() {
                return false;
            }
        }
    }

    /// Lets the next thing happen: a delivery, or a deadline. Returns `false` when there is none.
    pub fn step(&mut self) -> bool {
        if matches!(self.service.machine.phase(), ServicePhase::Planned) {
            self.service_input(ServiceInput::Advertise);
            return true;
        }
        let arrival = self.wire.next_arrival();
        let deadline = self.next_deadline();
        match (arrival, deadline) {
            (None, None) => return false,
            (Some(arrival), deadline) if deadline.is_none_or(|deadline| arrival <= deadline) => {
                self.now = self.now.max(arrival);
                if let Some(Packet { sender, recipient, text }) = self.wire.take_next() {
                    // A refusal is in the record; nobody waits for the answer.
                    let _ = self.deliver(&sender, &recipient, &text);
                }
            }
            (_, Some(deadline)) => {
                self.now = self.now.max(deadline);
                self.tick();
            }
            (Some(_), None) => unreachable!("an arrival without any deadline was taken above"),
        }
        true
    }

    /// Lets time pass, delivering what arrives and ticking what is due meanwhile.
    pub fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(next) = self.wire.next_arrival().into_iter().chain(self.next_deadline()).min()
            && next <= until
        {
            self.step();
        }
        self.now = until;
    }

    /// Ticks everybody now, due or not.
    pub fn tick(&mut self) {
        let before = self.next_deadline();
        let outgoing = self.service.tick(self.now, &self.setup, &mut self.rng);
        self.send(outgoing);
        for index in 0..self.participants.len() {
            let participant = &mut self.participants[index];
            let outgoing = participant.input(self.now, ParticipantInput::Tick, &mut self.rng).unwrap_or_default();
            self.send(outgoing);
        }
        let after = self.next_deadline();
        assert!(
            before.is_none_or(|before| before > self.now) || after != before,
            "a tick at the deadline must move it, or time stands still"
        );
    }

    /// Puts `text` into the hands of `recipient` at once. `sender` is who the transport has found it to be from.
    ///
    /// # Errors
    /// The refusal, which is recorded as well.
    ///
    /// # Panics
    /// When there is no such recipient.
    pub fn deliver(&mut self, sender: &Did, recipient: &Did, text: &str) -> Result<(), Reject> {
        self.trace.push(format!("{} {sender} {recipient} {text}", self.now.as_millis()));
        let result = match read(sender, text) {
            Ok(None) => return Ok(()),
            Ok(Some(message)) if recipient == self.service.identity.did() => {
                self.service.receive(self.now, message, &self.setup, &mut self.rng)
            }
            Ok(Some(message)) => {
                let participant = self.participants.iter_mut().find(|node| node.identity.did() == recipient);
                let participant = participant.expect("texts go to peers of the simulation");
                participant.receive(self.now, message, &mut self.rng)
            }
            Err(reject) => Err(reject),
        };
        match result {
            Ok(outgoing) => {
                self.send(outgoing);
                Ok(())
            }
            Err(reject) => {
                let rejection = Rejection { at: self.now, by: recipient.clone(), reject: reject.clone() };
                self.rejections.push(rejection);
                Err(reject)
            }
        }
    }

    /// [`deliver`](Self::deliver) of a message to the service, in its sender's own name.
    ///
    /// # Errors
    /// The refusal, which is recorded as well.
    pub fn deliver_to_service(&mut self, message: &Message) -> Result<(), Reject> {
        let service = self.service.identity.did().clone();
        self.deliver(&message.from, &service, &message.to_json())
    }

    /// The service's host speaks to its cohort's machine.
    ///
    /// # Panics
    /// When the machine refuses it.
    pub fn service_input(&mut self, input: ServiceInput) {
        let outgoing = self.service.cohort_input(self.now, input, &self.setup, &mut self.rng);
        self.send(outgoing.unwrap_or_else(|reject| panic!("the host's input was refused: {reject}")));
    }

    /// The service's host asks for the fallback path now.
    pub fn request_fallback(&mut self, reason: &str) {
        let input = SessionInput::Fallback(reason.to_owned());
        let outgoing = self.service.session_input(self.now, input, &self.setup, &mut self.rng);
        self.send(outgoing.unwrap_or_default());
    }

    /// A participant loses everything but its journal and its keys, and starts again.
    pub fn restart_participant(&mut self, participant: usize) {
        let outgoing = self.participants[participant].restart(self.now, &mut self.rng);
        self.send(outgoing);
    }

    /// How it stands.
    pub fn report(&self) -> Report {
        let phase = self.service.machine.phase();
        let cohort_faults = self.service.machine.faults().iter();
        let session_faults = self.service.sessions.iter().flat_map(|session| session.machine.faults().iter());
        Report {
            phase: phase.name(),
            failure: match phase {
                ServicePhase::Failed { reason, .. } => Some(reason.clone()),
                _ => None,
            },
            signed: match phase {
                ServicePhase::Completed { outcome, .. } => Some(Arc::clone(outcome)),
                _ => None,
            },
            faults: cohort_faults.chain(session_faults).cloned().collect(),
            rejections: self.rejections.clone(),
            ends: self
                .participants
                .iter()
                .map(|node| match node.machine.as_ref()?.phase() {
                    ParticipantPhase::Ended { reason, .. } => Some(reason.clone()),
                    _ => None,
                })
                .collect(),
        }
    }

    /// Whether every machine that began has ended.
    pub fn has_ended(&self) -> bool {
        self.service.machine.has_ended()
            && self.service.deadline().is_none()
            && self.participants.iter().all(|node| {
                node.machine
                    .as_ref()
                    .is_none_or(|machine| matches!(machine.phase(), ParticipantPhase::Ended { .. }))
            })
    }

    /// Checks what must hold of every run: every machine's journal, written and read again, leads to its very state; the
    /// coin was spent on one path only; no nonce was used for two signatures; every record proves its member's slot; the
    /// signed transaction's witness is valid.
    ///
    /// # Panics
    /// When one of these does not hold, saying which and for whom.
    pub fn assert_invariants(&self) {
        check::replay(self);
        check::one_path(self);
        check::nonces(self);
        check::records(self);
        check::signed_transaction(self);
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        let participants = self.participants.iter().filter_map(|node| node.machine.as_ref()?.deadline());
        participants.chain(self.service.deadline()).min()
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let texts = match self.tampers.get_mut(&message.from) {
                Some(tamper) => tamper(&message),
                None => vec![message.to_json()],
            };
            let recipients = match &message.to {
                Some(to) => vec![to.clone()],
                None => self.participants.iter().map(|node| node.identity.did().clone()).collect(),
            };
            for recipient in recipients {
                // A member that is no peer of the simulation (a stranger that a test made up) reads nothing.
                let known = recipient == *self.service.identity.did()
                    || self.participants.iter().any(|node| *node.identity.did() == recipient);
                for text in texts.iter().filter(|_| known) {
                    let sender = message.from.clone();
                    let packet = Packet { sender, recipient: recipient.clone(), text: text.clone() };
                    self.wire.send(self.now, packet, &self.setup.faults, &mut self.rng);
                }
            }
        }
    }
}

/// What a transport does with a text: unknown types are ignored, everything else that is wrong is the sender's fault.
fn read(sender: &Did, text: &str) -> Result<Option<Message>, Reject> {
    match Message::from_json(text) {
        Ok(message) if message.from != *sender => {
            Err(Reject::new(RejectCode::WrongSender, sender, "the message is in another's name"))
        }
        Ok(message) => Ok(Some(message)),
        Err(DecodeError::UnknownType(_)) => Ok(None),
        Err(error @ DecodeError::Version(_)) => Err(Reject::new(RejectCode::WrongVersion, sender, error)),
        Err(error) => Err(Reject::new(RejectCode::Malformed, sender, error)),
    }
}

/// The first input comes from outside and may be refused; the others are the host's own answers to what it was asked.
fn accept_first<E>(decided: Result<Vec<E>, Reject>, first: &mut bool) -> Result<Vec<E>, Reject> {
    if std::mem::take(first) {
        return decided;
    }
    Ok(decided.unwrap_or_else(|reject| panic!("a machine refused the answer that it asked its host for: {reject}")))
}

/// Which contribution a member's message is.
fn slot_of(body: &Body) -> Option<Slot> {
    Some(match body {
        Body::CohortOptIn(_) => Slot::OptIn,
        Body::SubmitUpdate(_) | Body::SubmitNonIncluded(_) => Slot::Update,
        Body::ValidationAck(_) => Slot::Validation,
        Body::NonceContribution(_) => Slot::Nonce,
        Body::SignatureAuthorization(_) => Slot::PartialSignature,
        Body::FallbackSignature(_) => Slot::FallbackSignature,
        _ => return None,
    })
}
