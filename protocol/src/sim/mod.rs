//! A whole cohort in one heap: an Aggregation Service, its participants, a lossy network between them and a virtual clock.
//!
//! There is no wall clock and no operating-system randomness: everything comes from one seed, and the same seed gives
//! the same run, byte for byte ([`Simulation::trace`]). Messages travel as text and are parsed on arrival. Peers can
//! be honest, silent, hostile, or down for a while: [`Simulation::tamper`] rewrites what a peer sends,
//! [`Simulation::deliver`] delivers a text to a peer in any sender's name. [`Simulation::assert_invariants`] checks
//! what must hold of every run, whatever happened in it.
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
mod cohort;
mod crash;
mod membership;
mod network;
mod participant;
mod report;
mod role;
mod service;
mod setup;

use std::{collections::BTreeMap, time::Duration};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use self::network::{Network as Wire, Packet};
pub use self::{
    cohort::{CohortNode, SessionNode},
    crash::{Crashes, PlannedCrash},
    network::Faults,
    participant::{NonceUse, ParticipantNode, Seat},
    report::{Mishaps, Rejection, Report},
    role::{Role, SLOTS, UpdateChoice, Verdict, genesis_document},
    service::ServiceNode,
    setup::{START, Setup},
};
use crate::{
    cohort::{
        Undelivered,
        participant::{ParticipantInput, phase::Phase as ParticipantPhase},
        service::ServiceInput,
    },
    did::Did,
    error::{Reject, RejectCode, Slot},
    message::{Body, DecodeError, Message},
    signing::session::SessionInput,
    time::Timestamp,
};

/// Rewrites what a peer sends: returns the texts that go to the message's recipient instead of the message.
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
        let roles = setup.roles.iter().enumerate();
        let participants =
            roles.map(|(place, role)| ParticipantNode::new(place, role.clone(), &setup, &mut rng)).collect();
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

    /// The setup of the simulation.
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

    /// The randomness of the simulation, for values that a test makes up.
    pub fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    /// Every delivery so far, as `time sender recipient text`: equal for equal seeds.
    pub fn trace(&self) -> &[String] {
        &self.trace
    }

    /// Every rejection so far.
    pub fn rejections(&self) -> &[Rejection] {
        &self.rejections
    }

    /// From now on everything that `peer` (the service or a participant) sends passes through `tamper`.
    pub fn tamper(&mut self, peer: &Did, tamper: impl FnMut(&Message) -> Vec<String> + 'static) {
        self.tampers.insert(peer.clone(), Box::new(tamper));
    }

    /// Sets what the service knows of its requests to a participant: why they do not reach it, or that they do.
    pub fn delivered(&mut self, participant: usize, why_not: Option<Undelivered>) {
        let did = self.did(participant);
        match why_not {
            Some(why) => drop(self.service.undelivered.insert(did, why)),
            None => drop(self.service.undelivered.remove(&did)),
        }
    }

    /// Runs until every machine has ended and no text is under way.
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

    /// Performs the next step: a restart, a delivery, or a deadline. Returns `false` when there is none.
    pub fn step(&mut self) -> bool {
        if self.service.latest().is_planned() && !self.service.process.is_down() {
            self.service_input(ServiceInput::Advertise);
            return true;
        }
        let next = [self.next_restart(), self.wire.next_arrival(), self.next_deadline()];
        let Some(at) = next.iter().flatten().min().copied() else { return false };
        self.now = self.now.max(at);
        match next {
            [Some(restart), _, _] if restart == at => self.resume_due(),
            [_, Some(arrival), _] if arrival == at => self.deliver_next(),
            _ => self.tick(),
        }
        true
    }

    fn deliver_next(&mut self) {
        let Some(Packet { sender, recipient, text }) = self.wire.take_next() else { return };
        if self.restarts_at(&recipient).is_none() {
            // A rejection is recorded; no peer waits for the answer.
            let _ = self.deliver(&sender, &recipient, &text);
        }
        // The recipient was down, or crashed before it acknowledged the text: the text is sent again.
        if let Some(restart) = self.restarts_at(&recipient) {
            let soon = restart + Duration::from_millis(1);
            self.wire.put(soon, Packet { sender, recipient, text });
        }
    }

    /// Advances the time. Delivers what arrives and ticks what is due meanwhile.
    pub fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        let next = |this: &Self| {
            [this.next_restart(), this.wire.next_arrival(), this.next_deadline()].into_iter().flatten().min()
        };
        while next(self).is_some_and(|next| next <= until) {
            self.step();
        }
        self.now = until;
    }

    /// Advances the time as if every process were down: nothing is delivered and no deadline is observed.
    pub fn skip(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    /// Ticks every machine now, due or not.
    pub fn tick(&mut self) {
        let before = self.next_deadline();
        if !self.service.process.is_down() {
            let outgoing = self.service.tick(self.now, &self.setup, &mut self.rng);
            self.send_of_service(outgoing);
        }
        for index in 0..self.participants.len() {
            if !self.participants[index].process.is_down() {
                let outgoing = self.participants[index].tick(self.now, &self.setup.crashes, &mut self.rng);
                self.send_of_participant(index, outgoing);
            }
        }
        let after = self.next_deadline();
        assert!(
            before.is_none_or(|before| before > self.now) || after != before,
            "a tick at the deadline must move it, or time stands still"
        );
    }

    /// Delivers `text` to `recipient` at once. `sender` is the sender that the transport has authenticated.
    ///
    /// # Errors
    /// The rejection, which is recorded as well.
    ///
    /// # Panics
    /// When there is no such recipient.
    pub fn deliver(&mut self, sender: &Did, recipient: &Did, text: &str) -> Result<(), Reject> {
        self.trace.push(format!("{} {sender} {recipient} {text}", self.now.as_millis()));
        let result = match read(sender, text) {
            Ok(None) => return Ok(()),
            Ok(Some(message)) if recipient == self.service.identity.did() => {
                let result = self.service.receive(self.now, message, &self.setup, &mut self.rng);
                result.map(|outgoing| self.send_of_service(outgoing))
            }
            Ok(Some(message)) => {
                let index = self.participants.iter().position(|node| node.identity.did() == recipient);
                let index = index.expect("texts go to peers of the simulation");
                let participant = &mut self.participants[index];
                let result = participant.receive(self.now, message, &self.setup.crashes, &mut self.rng);
                result.map(|outgoing| self.send_of_participant(index, outgoing))
            }
            Err(reject) => Err(reject),
        };
        match result {
            Ok(()) => Ok(()),
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
    /// The rejection, which is recorded as well.
    pub fn deliver_to_service(&mut self, message: &Message) -> Result<(), Reject> {
        let service = self.service.identity.did().clone();
        self.deliver(&message.from, &service, &message.to_json())
    }

    /// Feeds an input of the service's host to its cohort's machine.
    ///
    /// # Panics
    /// When the machine refuses it.
    pub fn service_input(&mut self, input: ServiceInput) {
        let outgoing = self.service.cohort_input(self.now, input, &self.setup, &mut self.rng);
        self.send_of_service(outgoing.unwrap_or_else(|reject| panic!("the host's input was refused: {reject}")));
    }

    /// Requests the fallback path now, as the service's host.
    pub fn request_fallback(&mut self, reason: &str) {
        let input = SessionInput::Fallback(reason.to_owned());
        let outgoing = self.service.session_input(self.now, input, &self.setup, &mut self.rng);
        self.send_of_service(outgoing.unwrap_or_default());
    }

    /// Feeds an input of a participant's host to the machine of its latest seat.
    ///
    /// # Panics
    /// When the machine refuses it, or there is none.
    pub fn participant_input(&mut self, participant: usize, input: ParticipantInput) {
        let node = &mut self.participants[participant];
        let seat = node.seats.len() - 1;
        let outgoing = node.input(self.now, seat, input, &self.setup.crashes, &mut self.rng);
        let outgoing = outgoing.unwrap_or_else(|reject| panic!("the host's input was refused: {reject}"));
        self.send_of_participant(participant, outgoing);
    }

    /// Restarts a participant. Only its journal and its keys remain.
    pub fn restart_participant(&mut self, participant: usize) {
        self.participants[participant].crash(self.now, &self.setup.crashes, &mut self.rng);
        self.resume_participant(participant);
    }

    /// Sets a participant's latest journal back to its first `kept` events, as an old backup does, and restarts the
    /// participant. Before it continues, its transport delivers `own_messages` to it.
    pub fn restore_participant(&mut self, participant: usize, kept: usize, own_messages: Vec<Message>) {
        let node = &mut self.participants[participant];
        node.restore(kept);
        node.crash(self.now, &self.setup.crashes, &mut self.rng);
        for message in own_messages {
            self.participant_input(participant, ParticipantInput::Seen(message));
        }
        self.resume_participant(participant);
    }

    /// Restarts the service. Only its journals and its keys remain.
    pub fn restart_service(&mut self) {
        self.service.crash(self.now, &self.setup, &mut self.rng);
        self.resume_service();
    }

    fn resume_participant(&mut self, index: usize) {
        let outgoing = self.participants[index].resume(self.now, &self.setup.crashes, &mut self.rng);
        self.send_of_participant(index, outgoing);
    }

    fn resume_service(&mut self) {
        let outgoing = self.service.resume(self.now, &self.setup, &mut self.rng);
        self.send_of_service(outgoing);
    }

    /// Restarts every process whose time has come.
    fn resume_due(&mut self) {
        let is_due = |restart: Option<Timestamp>| restart.is_some_and(|restart| restart <= self.now);
        let service = is_due(self.service.process.restarts_at());
        let restarts = self.participants.iter().map(|node| node.process.restarts_at());
        let participants: Vec<usize> =
            restarts.enumerate().filter(|(_, restart)| is_due(*restart)).map(|(index, _)| index).collect();
        if service {
            self.resume_service();
        }
        for index in participants {
            self.resume_participant(index);
        }
    }

    /// Whether every started machine has ended.
    pub fn has_ended(&self) -> bool {
        let ended = |phase: &ParticipantPhase| matches!(phase, ParticipantPhase::Ended { .. });
        let mut seats = self.participants.iter().flat_map(ParticipantNode::seats);
        self.service.cohorts.iter().all(|cohort| cohort.machine.has_ended() && cohort.deadline().is_none())
            && seats.all(|seat| ended(seat.machine.phase()))
    }

    /// Checks what must hold of every run: the journal of every machine, written and read back, gives its exact
    /// state; each participant is a member of the cohorts whose seats are open; the coin was spent on one path only; no nonce was used for two signatures; every record proves its
    /// member's slot; the witness of every signed transaction is valid; every cohort that was formed again is linked
    /// to its predecessor.
    ///
    /// # Panics
    /// When one of these does not hold, with the invariant and the peer.
    pub fn assert_invariants(&self) {
        check::replay(self);
        check::memberships(self);
        check::one_path(self);
        check::nonces(self);
        check::records(self);
        check::signed_transactions(self);
        check::lineage(self);
    }

    /// Checks only the memberships of the participants: that their journals give their state, and agree with the seats'.
    ///
    /// # Panics
    /// As [`assert_invariants`](Self::assert_invariants).
    pub fn assert_memberships(&self) {
        check::memberships(self);
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        let running = self.participants.iter().filter(|node| !node.process.is_down());
        let service = self.service.deadline().filter(|_| !self.service.process.is_down());
        running.filter_map(ParticipantNode::deadline).chain(service).min()
    }

    fn next_restart(&self) -> Option<Timestamp> {
        let participants = self.participants.iter().filter_map(|node| node.process.restarts_at());
        participants.chain(self.service.process.restarts_at()).min()
    }

    fn restarts_at(&self, peer: &Did) -> Option<Timestamp> {
        if peer == self.service.identity.did() {
            return self.service.process.restarts_at();
        }
        self.participants.iter().find(|node| node.identity.did() == peer)?.process.restarts_at()
    }

    fn send_of_service(&mut self, outgoing: Vec<Message>) {
        self.send(outgoing);
        if self.service.process.is_down() {
            self.wire.forget_half_of(self.service.identity.did(), &mut self.rng);
        }
    }

    fn send_of_participant(&mut self, index: usize, outgoing: Vec<Message>) {
        self.send(outgoing);
        if self.participants[index].process.is_down() {
            self.wire.forget_half_of(self.participants[index].identity.did(), &mut self.rng);
        }
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
                // A member that is not a peer of the simulation (an outsider that a test made up) receives nothing.
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

/// Parses a text as a transport does: unknown types are ignored, every other error is the sender's fault.
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

/// The first input comes from outside and may be rejected; the others are the host's own answers to the machine's
/// requests.
fn accept_first<E>(decided: Result<Vec<E>, Reject>, first: &mut bool) -> Result<Vec<E>, Reject> {
    if std::mem::take(first) {
        return decided;
    }
    Ok(decided.unwrap_or_else(|reject| panic!("a machine rejected its host's answer: {reject}")))
}

/// The contribution slot of a member's message.
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
