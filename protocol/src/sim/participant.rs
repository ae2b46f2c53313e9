//! A participant and its host.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use rand_chacha::ChaCha8Rng;

use super::{
    Setup, accept_first,
    crash::{Crashes, Fate, Process, through_journal},
    membership::MembershipNode,
    role::{Role, UpdateChoice, Verdict},
};
use crate::{
    cohort::{
        event::ParticipantEvent,
        participant::{
            Advert, ParticipantCohort, ParticipantConfig, ParticipantEffect, ParticipantInput,
            membership::{CohortKey, Membership, MembershipInput, Route, WithoutCohort},
        },
    },
    error::{Reject, Slot},
    id::{CohortId, SessionId},
    identity::Identity,
    key::SecretKey,
    machine::{Machine, replay},
    message::{Body, Bytes, Message},
    output::{BeaconOutput, DEFAULT_MAX_FEE_RATE},
    sidecar::MemberRecord,
    signing::nonce::MemberSigner,
    time::Timestamp,
    update::{Edit, SignedUpdate, Submission, UnsignedUpdate, add_beacon_service_patch, build_update, sign_update},
};

/// One request to sign with a secret nonce, and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonceUse {
    /// The session for which the nonce was opened.
    pub session_id: SessionId,
    /// The public half of the nonce.
    pub nonce: Bytes<66>,
    /// The aggregate nonce.
    pub aggregated: Bytes<66>,
    /// The digest to sign.
    pub sighash: [u8; 32],
    /// The partial signature, if the nonce was still available.
    pub partial: Option<Bytes<32>>,
}

/// A participant's side of one cohort: its machine, its journal, and its signer.
pub struct Seat {
    pub(super) initial: ParticipantCohort,
    pub(super) machine: ParticipantCohort,
    pub(super) events: Vec<ParticipantEvent>,
    pub(super) update: Option<SignedUpdate>,
    pub(super) stream: Stream,
    /// What its host has stored: it survives every crash.
    vault: Option<MemberRecord>,
    signer: MemberSigner,
}

/// The state of a seat's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// The seat is in use, or its end is not stored by the host.
    Live,
    /// The host has stored its end.
    Archived,
    /// Removed: the participant did not join.
    Removed,
}

impl Seat {
    /// The seat's machine.
    pub fn machine(&self) -> &ParticipantCohort {
        &self.machine
    }

    /// The seat's journal.
    pub fn events(&self) -> &[ParticipantEvent] {
        &self.events
    }

    /// What its host stored when it approved the data of this cohort: that may be announced from then on.
    pub fn vault(&self) -> Option<&MemberRecord> {
        self.vault.as_ref()
    }

    pub(super) fn cohort(&self) -> CohortKey {
        CohortKey::from(&**self.machine.advert())
    }
}

/// An input of one of a participant's machines.
pub(super) enum Input {
    Seat(usize, ParticipantInput),
    Membership(MembershipInput),
    /// A seat of a previous run performs its open effects.
    Resume(usize),
}

/// The inputs still to feed, the messages to send, and the refusal of a message.
#[derive(Default)]
pub(super) struct Work {
    pub(super) inputs: VecDeque<Input>,
    pub(super) outgoing: Vec<Message>,
    pub(super) refused: Option<Reject>,
}

/// A participant: its seats in the cohorts whose adverts it received, and a host that acts by its [`Role`].
pub struct ParticipantNode {
    pub(super) identity: Identity,
    pub(super) role: Role,
    pub(super) config: Arc<ParticipantConfig>,
    participant_key: Arc<SecretKey>,
    pub(super) seats: Vec<Seat>,
    pub(super) memberships: MembershipNode,
    /// When it was left without a cohort, and why.
    pub(super) left: Vec<(Timestamp, WithoutCohort)>,
    pub(super) process: Process,
    pub(super) opened: Vec<(SessionId, Bytes<66>)>,
    pub(super) uses: Vec<NonceUse>,
    /// The number of times that its machine sent a nonce or a partial signature, which may be sent once, by session.
    pub(super) sent: BTreeMap<(SessionId, Slot), usize>,
    pub(super) validation_requests: Vec<Result<crate::hash::SignalBytes, String>>,
}

impl ParticipantNode {
    pub(super) fn new(place: usize, role: Role, setup: &Setup, rng: &mut ChaCha8Rng) -> Self {
        let key = SecretKey::generate(rng);
        let public = key.public_key();
        let identity = if role.external {
            Identity::from_genesis(key, super::role::genesis_document(&public, setup.network), setup.network)
                .expect("the document was made for this key")
        } else {
            Identity::from_key(key, setup.network)
        };
        let participant_key =
            if role.separate_key { Arc::new(SecretKey::generate(rng)) } else { Arc::clone(identity.secret_key()) };
        let config = ParticipantConfig {
            max_fee_rate: DEFAULT_MAX_FEE_RATE,
            did: identity.did().clone(),
            participant_key: participant_key.public_key(),
            communication_key: identity.public_key(),
            genesis_document: identity.genesis_document().cloned(),
            invite: None,
            timing: setup.timing,
            beacons: setup.beacons.clone(),
            aggregator: Arc::clone(&setup.aggregator),
        };
        Self {
            memberships: MembershipNode::new(&config, setup),
            left: Vec::new(),
            participant_key,
            identity,
            role,
            config: Arc::new(config),
            seats: Vec::new(),
            process: Process::of(Some(place)),
            sent: BTreeMap::new(),
            opened: Vec::new(),
            uses: Vec::new(),
            validation_requests: Vec::new(),
        }
    }

    /// Its identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its role.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The key that it signs transactions with.
    pub fn participant_key(&self) -> &Arc<SecretKey> {
        &self.participant_key
    }

    /// Its seats, in the order in which it received the adverts.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Its seat in a cohort.
    pub fn seat(&self, cohort_id: &CohortId) -> Option<&Seat> {
        self.seats.iter().rev().find(|seat| seat.machine.advert().cohort_id == *cohort_id)
    }

    /// The machine of its latest seat; `None` until it received an advert.
    pub fn machine(&self) -> Option<&ParticipantCohort> {
        self.seats.last().map(|seat| &seat.machine)
    }

    /// The journal of its latest seat.
    pub fn events(&self) -> &[ParticipantEvent] {
        self.seats.last().map_or(&[], |seat| &seat.events)
    }

    /// The verdicts on the aggregated data with which its host was asked.
    pub fn verdicts(&self) -> &[Result<crate::hash::SignalBytes, String>] {
        &self.validation_requests
    }

    /// The nonces that it opened.
    pub fn opened_nonces(&self) -> &[(SessionId, Bytes<66>)] {
        &self.opened
    }

    /// The requests to sign with these nonces.
    pub fn nonce_uses(&self) -> &[NonceUse] {
        &self.uses
    }

    /// The number of its crashes.
    pub fn crashes(&self) -> u32 {
        self.process.crashes()
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let seats = self.seats.iter().filter_map(|seat| seat.machine.deadline());
        seats.chain(self.memberships.machine.deadline()).min()
    }

    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        message: Message,
        crashes: &Crashes,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        let cohort = CohortKey::of_message(&message);
        let route = self.memberships.machine.route(&message);
        let seat = self.live_seat(&cohort).filter(|_| route == Route::Session);
        let about = MembershipInput::Message { message: message.clone(), stored: false };
        let mut outgoing = self.feed(now, Input::Membership(about), crashes, rng)?;
        // A message that arrives as it crashes is not acknowledged, and is sent again.
        if let Some(seat) = seat
            && !self.process.is_down()
        {
            outgoing.extend(self.input(now, seat, ParticipantInput::Message(message), crashes, rng)?);
        }
        Ok(outgoing)
    }

    /// A seat for the cohort of this advert, which has not read it yet.
    pub(super) fn take_seat(&mut self, advert: Arc<Advert>) -> usize {
        let machine = ParticipantCohort::new(Arc::clone(&self.config), advert);
        self.seats.push(Seat {
            initial: machine.clone(),
            machine,
            events: Vec::new(),
            update: None,
            stream: Stream::Live,
            vault: None,
            signer: MemberSigner::new(Arc::clone(&self.participant_key)),
        });
        self.seats.len() - 1
    }

    pub(super) fn live_seat(&self, cohort: &CohortKey) -> Option<usize> {
        self.seats.iter().position(|seat| seat.stream == Stream::Live && seat.cohort() == *cohort)
    }

    pub(super) fn tick(&mut self, now: Timestamp, crashes: &Crashes, rng: &mut ChaCha8Rng) -> Vec<Message> {
        let mut outgoing = Vec::new();
        for index in 0..self.seats.len() {
            // It may crash in any of them.
            if !self.process.is_down() {
                outgoing.extend(self.input(now, index, ParticipantInput::Tick, crashes, rng).unwrap_or_default());
            }
        }
        if !self.process.is_down() {
            let tick = Input::Membership(MembershipInput::Tick);
            outgoing.extend(self.feed(now, tick, crashes, rng).unwrap_or_default());
        }
        outgoing
    }

    /// Feeds an input to a seat, and then the host's answers to the effects.
    pub(super) fn input(
        &mut self,
        now: Timestamp,
        seat: usize,
        input: ParticipantInput,
        crashes: &Crashes,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        self.feed(now, Input::Seat(seat, input), crashes, rng)
    }

    /// Feeds an input, and then what follows from it.
    pub(super) fn feed(
        &mut self,
        now: Timestamp,
        input: Input,
        crashes: &Crashes,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        let mut work = Work { inputs: VecDeque::from([input]), ..Work::default() };
        let mut first = true;
        while let Some(input) = work.inputs.pop_front() {
            let fate = match input {
                Input::Seat(seat, input) => {
                    let events = accept_first(self.seats[seat].machine.decide(now, &input, rng), &mut first)?;
                    let fate = if events.is_empty() { Fate::Performed } else { self.process.fate(crashes, rng) };
                    self.seat_events(seat, events, fate, &mut work, rng);
                    fate
                }
                Input::Membership(input) => {
                    let events = accept_first(self.memberships.machine.decide(now, &input, rng), &mut first)?;
                    let journaled = events.iter().any(Membership::is_journaled);
                    let fate = if journaled { self.process.fate(crashes, rng) } else { Fate::Performed };
                    self.membership_decided(now, events, fate, &mut work);
                    if let MembershipInput::SessionStopped { cohort, .. } = &input {
                        self.put_away(cohort, Stream::Archived);
                    }
                    fate
                }
                Input::Resume(seat) => {
                    self.resume_seat(seat, &mut work, rng);
                    Fate::Performed
                }
            };
            if fate != Fate::Performed {
                self.crash(now, crashes, rng);
                break;
            }
        }
        work.refused.map_or(Ok(work.outgoing), Err)
    }

    fn seat_events(
        &mut self,
        seat: usize,
        events: Vec<ParticipantEvent>,
        fate: Fate,
        work: &mut Work,
        rng: &mut ChaCha8Rng,
    ) {
        if fate == Fate::NotJournaled {
            return;
        }
        let mut effects = Vec::new();
        for event in &events {
            self.seats[seat].machine.apply(event);
            effects.extend(self.seats[seat].machine.effects(event));
        }
        if let Some(approved) = self.seats[seat].machine.approved() {
            self.seats[seat].vault = Some(approved);
        }
        for (_, effect) in effects.into_iter().enumerate().filter(|(at, _)| fate.performs(*at)) {
            self.perform(seat, effect, work, rng);
        }
        for event in &events {
            self.report_progress(seat, event, &mut work.inputs);
        }
        self.seats[seat].events.extend(events);
    }

    fn perform(&mut self, seat: usize, effect: ParticipantEffect, work: &mut Work, rng: &mut ChaCha8Rng) {
        let mut answer = |input| work.inputs.push_back(Input::Seat(seat, input));
        match effect {
            ParticipantEffect::Send { to, body } => {
                let once = match &*body {
                    Body::NonceContribution(body) => Some((body.session_id.clone(), Slot::Nonce)),
                    Body::SignatureAuthorization(body) => Some((body.session_id.clone(), Slot::PartialSignature)),
                    _ => None,
                };
                if let Some(once) = once {
                    *self.sent.entry(once).or_default() += 1;
                }
                if super::slot_of(&body).is_none_or(|slot| !self.role.withholds.contains(&slot)) {
                    work.outgoing.push(Message::new(self.identity.did().clone(), Some(to), body));
                }
            }
            ParticipantEffect::AskJoin => answer(ParticipantInput::JoinDecided(self.role.joins)),
            ParticipantEffect::AskUpdate { output } => {
                let submission = match &self.role.update {
                    UpdateChoice::Submit => Some(Submission::from(self.make_update(&output, rng))),
                    UpdateChoice::Next(edit) => Some(self.make_next_update(&output, edit, rng)),
                    UpdateChoice::Decline => None,
                };
                self.seats[seat].update = submission.as_ref().map(|submission| submission.update.clone());
                answer(ParticipantInput::UpdateDecided(submission));
            }
            ParticipantEffect::AskValidation { verdict, .. } => {
                let approved = match self.role.verdict {
                    Verdict::Honest => verdict.is_ok(),
                    Verdict::Reject => false,
                    Verdict::Approve => true,
                };
                self.validation_requests.push(verdict);
                answer(ParticipantInput::ValidationDecided(approved));
            }
            ParticipantEffect::AskSigning { .. } => {
                answer(ParticipantInput::SigningDecided(self.role.signs));
            }
            ParticipantEffect::OpenNonce { session_id, output } => {
                let nonce = self.seats[seat].signer.open_nonce(&session_id, &output, rng);
                self.opened.push((session_id, nonce));
                answer(ParticipantInput::NonceOpened(nonce));
            }
            ParticipantEffect::SignPartial { session_id, output, aggregated, sighash } => {
                let signer = &mut self.seats[seat].signer;
                let partial = signer.sign_partial(&session_id, &output, &aggregated, &sighash).ok();
                let opened = self.opened.iter().rev().find(|(opened_for, _)| *opened_for == session_id);
                if let Some((_, nonce)) = opened {
                    self.uses.push(NonceUse { session_id, nonce: *nonce, aggregated, sighash, partial });
                }
                answer(partial.map_or(ParticipantInput::NonceLost, ParticipantInput::PartialSigned));
            }
            ParticipantEffect::SignFallback { sighash } => {
                let signature = self.seats[seat].signer.sign_fallback(&sighash, rng);
                answer(ParticipantInput::FallbackSigned(Bytes(signature.to_bytes())));
            }
        }
    }

    /// The update of version 2, which adds the cohort's beacon to its document.
    pub fn make_update(&self, output: &BeaconOutput, rng: &mut ChaCha8Rng) -> SignedUpdate {
        self.sign(&self.with_beacon(output), rng)
    }

    /// The update of version 3, which makes a change to the document that [`Self::make_update`] leads to.
    pub fn make_next_update(&self, output: &BeaconOutput, edit: &Edit, rng: &mut ChaCha8Rng) -> Submission {
        let source = self.with_beacon(output).target_document().clone();
        let patch = edit.patch(&source).expect("the role's change fits the document");
        let update = build_update(&source, 2, patch).expect("the patch was made for the document");
        Submission { update: self.sign(&update, rng), source: Some((Arc::new(source), 2)) }
    }

    fn with_beacon(&self, output: &BeaconOutput) -> UnsignedUpdate {
        let beacon_type = self.machine().map(|machine| machine.advert().conditions.beacon_type.clone());
        let beacon_type = beacon_type.expect("a participant without a machine is not asked for an update");
        let initial = self.identity.initial_document().expect("an identity has a document");
        let patch = add_beacon_service_patch(self.identity.did(), beacon_type.as_str(), output.address());
        build_update(&initial, 1, patch).expect("every initial document has services")
    }

    fn sign(&self, update: &UnsignedUpdate, rng: &mut ChaCha8Rng) -> SignedUpdate {
        let identity = &self.identity;
        sign_update(update, identity.did(), identity.verification_method(), identity.secret_key(), rng)
            .expect("a built update has a canonical form")
    }

    /// Crashes it for a while. Only the journals remain: a seat without a journal is dropped, and the secret nonces
    /// are lost.
    pub(super) fn crash(&mut self, now: Timestamp, crashes: &Crashes, rng: &mut ChaCha8Rng) {
        self.process.crash(now, crashes, rng);
        self.memberships.restart();
        self.seats.retain(|seat| !seat.events.is_empty());
        for seat in &mut self.seats {
            seat.signer = MemberSigner::new(Arc::clone(&self.participant_key));
            seat.events = through_journal(&seat.events);
            if let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = seat.events.first() {
                seat.initial = ParticipantCohort::new(Arc::clone(&self.config), Arc::clone(advert));
            }
            seat.machine = replay(seat.initial.clone(), &seat.events);
        }
    }

    /// Restarts it: every seat that has not ended continues.
    pub(super) fn resume(&mut self, now: Timestamp, crashes: &Crashes, rng: &mut ChaCha8Rng) -> Vec<Message> {
        self.process.restart();
        let resumed = MembershipInput::Resumed(self.previous());
        self.feed(now, Input::Membership(resumed), crashes, rng).unwrap_or_default()
    }

    /// Performs the open effects of a seat of a previous run. An end is reported once more.
    fn resume_seat(&mut self, seat: usize, work: &mut Work, rng: &mut ChaCha8Rng) {
        for effect in self.seats[seat].machine.resume() {
            self.perform(seat, effect, work, rng);
        }
        if let Some(end @ ParticipantEvent::SessionEnded { .. }) = self.seats[seat].events.last().cloned() {
            self.report_progress(seat, &end, &mut work.inputs);
        }
    }

    /// Sets its latest journal back to its first `kept` events, as a backup does.
    pub(super) fn restore(&mut self, kept: usize) {
        if let Some(seat) = self.seats.last_mut() {
            seat.events.truncate(kept);
            seat.stream = Stream::Live;
        }
    }
}
