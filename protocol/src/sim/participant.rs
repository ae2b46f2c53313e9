//! A participant and its host.

use std::{collections::VecDeque, sync::Arc};

use rand_chacha::ChaCha8Rng;

use super::{
    Setup, accept_first,
    role::{Role, UpdateChoice, Verdict},
};
use crate::{
    cohort::{
        event::ParticipantEvent,
        participant::{Advert, ParticipantCohort, ParticipantConfig, ParticipantEffect, ParticipantInput},
    },
    error::{Reject, RejectCode},
    id::SessionId,
    identity::Identity,
    key::SecretKey,
    machine::Machine,
    message::{Body, Bytes, Message},
    output::BeaconOutput,
    signing::nonce::MemberSigner,
    time::Timestamp,
    update::{SignedUpdate, add_beacon_service_patch, build_update, sign_update},
};

/// One request to sign with a secret nonce, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonceUse {
    /// The session for which the nonce was opened.
    pub session_id: SessionId,
    /// The public half of the nonce.
    pub nonce: Bytes<66>,
    /// The aggregate nonce.
    pub aggregated: Bytes<66>,
    /// What was to be signed.
    pub sighash: [u8; 32],
    /// The partial signature, if the nonce was still there.
    pub partial: Option<Bytes<32>>,
}

/// A participant: its machine, its journal, its signing hand, and a host that acts by its [`Role`].
pub struct ParticipantNode {
    pub(super) identity: Identity,
    pub(super) role: Role,
    pub(super) config: Arc<ParticipantConfig>,
    participant_key: Arc<SecretKey>,
    signer: MemberSigner,
    pub(super) initial: Option<ParticipantCohort>,
    pub(super) machine: Option<ParticipantCohort>,
    pub(super) events: Vec<ParticipantEvent>,
    pub(super) opened: Vec<(SessionId, Bytes<66>)>,
    pub(super) uses: Vec<NonceUse>,
    pub(super) update: Option<SignedUpdate>,
    pub(super) validation_requests: Vec<Result<crate::hash::SignalBytes, String>>,
}

impl ParticipantNode {
    pub(super) fn new(role: Role, setup: &Setup, rng: &mut ChaCha8Rng) -> Self {
        let key = SecretKey::generate(rng);
        let public = key.public_key();
        let identity = if role.external {
            Identity::from_genesis(key, super::role::genesis_document(&public), setup.network)
                .expect("the document was made for this key")
        } else {
            Identity::from_key(key, setup.network)
        };
        let participant_key =
            if role.separate_key { Arc::new(SecretKey::generate(rng)) } else { Arc::clone(identity.secret_key()) };
        let config = ParticipantConfig {
            did: identity.did().clone(),
            participant_key: participant_key.public_key(),
            communication_key: identity.public_key(),
            genesis_document: identity.genesis_document().cloned(),
            timing: setup.timing,
            beacons: setup.beacons.clone(),
            aggregator: Arc::clone(&setup.aggregator),
        };
        Self {
            signer: MemberSigner::new(Arc::clone(&participant_key)),
            participant_key,
            identity,
            role,
            config: Arc::new(config),
            initial: None,
            machine: None,
            events: Vec::new(),
            opened: Vec::new(),
            uses: Vec::new(),
            update: None,
            validation_requests: Vec::new(),
        }
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How it behaves.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The key that it signs transactions with.
    pub fn participant_key(&self) -> &Arc<SecretKey> {
        &self.participant_key
    }

    /// Its machine; `None` until an advert reached it.
    pub fn machine(&self) -> Option<&ParticipantCohort> {
        self.machine.as_ref()
    }

    /// Its journal.
    pub fn events(&self) -> &[ParticipantEvent] {
        &self.events
    }

    /// What it was told of the aggregated data, each time that its host was asked.
    pub fn verdicts(&self) -> &[Result<crate::hash::SignalBytes, String>] {
        &self.validation_requests
    }

    /// The nonces that it opened.
    pub fn opened_nonces(&self) -> &[(SessionId, Bytes<66>)] {
        &self.opened
    }

    /// The requests to sign with them.
    pub fn nonce_uses(&self) -> &[NonceUse] {
        &self.uses
    }

    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        message: Message,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        if self.machine.is_none() {
            let Body::CohortAdvert(body) = &*message.body else {
                return Err(Reject::new(RejectCode::WrongCohort, &message.from, "no such cohort is known here"));
            };
            let advert = Arc::new(Advert::read(&message.from, body, &self.config.beacons)?);
            let machine = ParticipantCohort::new(Arc::clone(&self.config), advert);
            self.initial = Some(machine.clone());
            self.machine = Some(machine);
            return self.input(now, ParticipantInput::Discover, rng);
        }
        self.input(now, ParticipantInput::Message(message), rng)
    }

    /// Feeds an input, and everything that the host answers to its effects.
    pub(super) fn input(
        &mut self,
        now: Timestamp,
        input: ParticipantInput,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Message>, Reject> {
        let mut outgoing = Vec::new();
        let mut inputs = VecDeque::from([input]);
        let mut first = true;
        while let Some(input) = inputs.pop_front() {
            let Some(machine) = &mut self.machine else { break };
            let events = accept_first(machine.decide(now, &input, rng), &mut first)?;
            let mut effects = Vec::new();
            for event in &events {
                machine.apply(event);
                effects.extend(machine.effects(event));
            }
            self.events.extend(events);
            for effect in effects {
                self.perform(effect, &mut inputs, &mut outgoing, rng);
            }
        }
        Ok(outgoing)
    }

    fn perform(
        &mut self,
        effect: ParticipantEffect,
        inputs: &mut VecDeque<ParticipantInput>,
        outgoing: &mut Vec<Message>,
        rng: &mut ChaCha8Rng,
    ) {
        match effect {
            ParticipantEffect::Send { to, body } => {
                if super::slot_of(&body).is_none_or(|slot| !self.role.withholds.contains(&slot)) {
                    outgoing.push(Message::new(self.identity.did().clone(), Some(to), body));
                }
            }
            ParticipantEffect::AskJoin => inputs.push_back(ParticipantInput::JoinDecided(self.role.joins)),
            ParticipantEffect::AskUpdate { output } => {
                self.update = match self.role.update {
                    UpdateChoice::Submit => Some(self.make_update(&output, rng)),
                    UpdateChoice::Decline => None,
                };
                inputs.push_back(ParticipantInput::UpdateDecided(self.update.clone()));
            }
            ParticipantEffect::AskValidation { verdict, .. } => {
                let approved = match self.role.verdict {
                    Verdict::Honest => verdict.is_ok(),
                    Verdict::Reject => false,
                    Verdict::Approve => true,
                };
                self.validation_requests.push(verdict);
                inputs.push_back(ParticipantInput::ValidationDecided(approved));
            }
            ParticipantEffect::AskSigning { .. } => {
                inputs.push_back(ParticipantInput::SigningDecided(self.role.signs));
            }
            ParticipantEffect::OpenNonce { session_id, output } => {
                let nonce = self.signer.open_nonce(&session_id, &output, rng);
                self.opened.push((session_id, nonce));
                inputs.push_back(ParticipantInput::NonceOpened(nonce));
            }
            ParticipantEffect::SignPartial { session_id, output, aggregated, sighash } => {
                let partial = self.signer.sign_partial(&session_id, &output, &aggregated, &sighash).ok();
                let opened = self.opened.iter().rev().find(|(opened_for, _)| *opened_for == session_id);
                if let Some((_, nonce)) = opened {
                    self.uses.push(NonceUse { session_id, nonce: *nonce, aggregated, sighash, partial });
                }
                inputs.push_back(partial.map_or(ParticipantInput::NonceLost, ParticipantInput::PartialSigned));
            }
            ParticipantEffect::SignFallback { sighash } => {
                let signature = self.signer.sign_fallback(&sighash, rng);
                inputs.push_back(ParticipantInput::FallbackSigned(Bytes(signature.to_bytes())));
            }
        }
    }

    /// Its update: the cohort's beacon in its document.
    pub fn make_update(&self, output: &BeaconOutput, rng: &mut ChaCha8Rng) -> SignedUpdate {
        let did = self.identity.did();
        let beacon_type = self.machine.as_ref().map(|machine| machine.advert().conditions.beacon_type.clone());
        let beacon_type = beacon_type.expect("a participant without a machine is not asked for an update");
        let initial = self.identity.initial_document().expect("an identity has a document");
        let patch = add_beacon_service_patch(did, beacon_type.as_str(), output.address());
        let update = build_update(&initial, 1, patch).expect("every initial document has services");
        sign_update(&update, did, self.identity.verification_method(), self.identity.secret_key(), rng)
            .expect("an update of version 2 has a canonical form")
    }

    /// Forgets everything but the journal, as a restart does. The secret nonce is gone.
    pub(super) fn restart(&mut self, now: Timestamp, rng: &mut ChaCha8Rng) -> Vec<Message> {
        self.signer = MemberSigner::new(Arc::clone(&self.participant_key));
        let Some(initial) = &self.initial else { return Vec::new() };
        self.machine = Some(crate::machine::replay(initial.clone(), &self.events));
        self.input(now, ParticipantInput::NonceLost, rng).unwrap_or_default()
    }
}
