//! A member of a one-time cohort and its host, from its approval of the data on. Secret nonces are handles, as those of a seat.

use std::{rc::Rc, sync::Arc};

use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, SpendPath},
        participant::{ParticipantCohort, ParticipantEffect, ParticipantInput, phase::Phase},
    },
    did::Did,
    error::Reject,
    hash::sha256,
    key::SecretKey,
    machine::{Machine, replay, step},
    message::{Body, Bytes, Message},
    output::BeaconOutput,
    signing::nonce::SecretNonce,
    time::Timestamp,
};

use super::{NonceStore, Talk, rng};
use crate::{
    explore::process::{Input, Packet, Run, Way},
    standing::service_node::through_journal,
};

/// What does not change.
pub struct MemberFixed {
    pub place: usize,
    pub did: Did,
    pub key: Arc<SecretKey>,
    /// It has approved the data.
    pub approved: ParticipantCohort,
    pub store: NonceStore,
}

/// The use of a nonce.
#[derive(Clone, Debug, PartialEq)]
pub struct NonceUse {
    opening: u32,
    aggregated: Bytes<66>,
    sighash: [u8; 32],
}

/// What the test records of a member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    openings: u32,
    uses: Vec<NonceUse>,
    nonces_sent: Vec<Bytes<66>>,
    partials_sent: Vec<Bytes<32>>,
    /// The path and the digest of each signature.
    pub signed: Vec<(SpendPath, [u8; 32])>,
}

#[derive(Clone)]
pub struct MemberProcess {
    fixed: Rc<MemberFixed>,
    machine: ParticipantCohort,
    /// From the approval on.
    journal: Vec<ParticipantEvent>,
    nonce: Option<u32>,
    pub record: Record,
}

impl MemberProcess {
    pub fn new(fixed: MemberFixed) -> Self {
        let machine = fixed.approved.clone();
        Self { fixed: Rc::new(fixed), machine, journal: Vec::new(), nonce: None, record: Record::default() }
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.machine.phase(), Phase::Ended { .. })
    }

    pub fn machine(&self) -> &ParticipantCohort {
        &self.machine
    }

    pub fn did(&self) -> &Did {
        &self.fixed.did
    }

    pub fn text(&self) -> String {
        let seen = self.journal.iter().filter(|event| matches!(event, ParticipantEvent::NonceSeen { .. })).count();
        let (phase, transaction) = (self.machine.phase(), self.machine.seen());
        format!("{} {phase:?} {seen} {transaction:?} {:?} {:?}", self.fixed.place, self.nonce, self.record)
    }

    pub fn assert_same(&self, other: &Self) {
        assert_eq!(self.machine, other.machine);
    }

    pub fn crash(&mut self) {
        if self.fixed.store == NonceStore::Memory {
            self.nonce = None;
        }
        self.machine = self.replayed();
    }

    fn replayed(&self) -> ParticipantCohort {
        replay(self.fixed.approved.clone(), &through_journal(&self.journal))
    }

    pub fn check(&self) {
        assert_eq!(self.replayed(), self.machine, "the replay of a member's journal");
        let openings: Vec<u32> = self.record.uses.iter().map(|used| used.opening).collect();
        let is_used_once = openings.iter().enumerate().all(|(at, one)| !openings[..at].contains(one));
        assert!(is_used_once, "a nonce was used twice: {:?}", self.record.uses);
        assert!(self.record.nonces_sent.len() <= 1, "a nonce was sent twice");
        assert!(self.record.partials_sent.len() <= 1, "a partial signature was sent twice");
    }

    pub fn deadline(&self) -> Option<Timestamp> {
        self.machine.deadline()
    }

    pub fn feed(&mut self, now: Timestamp, input: Input<'_, Talk>, run: &mut Run<Talk>) {
        match input {
            // A message that comes too late is refused.
            Input::Packet(Packet { message: Talk::Wire(message), .. }) => {
                let _ = self.input(now, &ParticipantInput::Message(message.clone()), run);
            }
            Input::Packet(Packet { message: Talk::Decide, .. }) => {
                self.own(now, &ParticipantInput::SigningDecided(true), run)
            }
            Input::Refusal(_) => self.own(now, &ParticipantInput::SigningDecided(false), run),
            Input::Tick => self.own(now, &ParticipantInput::Tick, run),
            Input::Restarted => {
                self.own(now, &ParticipantInput::Resumed, run);
                if self.fixed.store == NonceStore::Memory {
                    self.own(now, &ParticipantInput::NonceLost, run);
                }
                let effects = self.machine.resume();
                self.perform(now, effects, run);
            }
            Input::Reconnected(_) => {}
        }
    }

    fn own(&mut self, now: Timestamp, input: &ParticipantInput, run: &mut Run<Talk>) {
        self.input(now, input, run).unwrap_or_else(|reject| panic!("the host's input: {reject}"));
    }

    fn input(&mut self, now: Timestamp, input: &ParticipantInput, run: &mut Run<Talk>) -> Result<(), Reject> {
        if run.is_crashed() {
            return Ok(());
        }
        let mut next = self.machine.clone();
        let step = step(&mut next, now, input, &mut rng())?;
        if step.events.is_empty() || run.operation() {
            self.machine = next;
            self.journal.extend(step.events);
            self.perform(now, step.effects, run);
        }
        Ok(())
    }

    fn perform(&mut self, now: Timestamp, effects: Vec<ParticipantEffect>, run: &mut Run<Talk>) {
        for effect in effects {
            if run.is_crashed() {
                return;
            }
            if let Some(answer) = self.answer(effect, run) {
                self.own(now, &answer, run);
            }
        }
    }

    fn answer(&mut self, effect: ParticipantEffect, run: &mut Run<Talk>) -> Option<ParticipantInput> {
        let place = self.fixed.place;
        match effect {
            ParticipantEffect::Send { to, body } => {
                let sent = run.operation();
                if sent {
                    match &*body {
                        Body::NonceContribution(body) => self.record.nonces_sent.push(body.nonce_contribution),
                        Body::SignatureAuthorization(body) => {
                            self.record.partials_sent.push(body.partial_signature)
                        }
                        _ => {}
                    }
                    let message = Talk::wire(&Message::new(self.fixed.did.clone(), Some(to), body));
                    run.sent(Packet { from: place, to: 0, way: Way::Wire, message });
                }
                None
            }
            ParticipantEffect::AskSigning { .. } => {
                run.send(Packet { from: place, to: place, way: Way::Question, message: Talk::Decide });
                None
            }
            ParticipantEffect::OpenNonce { output, .. } => {
                self.record.openings += 1;
                self.nonce = Some(self.record.openings);
                Some(ParticipantInput::NonceOpened(self.nonce(&output, self.record.openings).1))
            }
            ParticipantEffect::SignPartial { output, aggregated, sighash, .. } => {
                let nonce = match self.fixed.store {
                    NonceStore::Memory => self.nonce.take(),
                    NonceStore::File => self.nonce,
                };
                Some(nonce.map_or(ParticipantInput::NonceLost, |opening| {
                    self.record.uses.push(NonceUse { opening, aggregated, sighash });
                    self.record.signed.push((SpendPath::KeyPath, sighash));
                    let partial =
                        self.nonce(&output, opening).0.sign(&self.fixed.key, &output, &aggregated, &sighash);
                    ParticipantInput::PartialSigned(partial.expect("a valid aggregate nonce"))
                }))
            }
            ParticipantEffect::SignFallback { sighash } => {
                self.nonce = None;
                if !self.record.signed.contains(&(SpendPath::ScriptPath, sighash)) {
                    self.record.signed.push((SpendPath::ScriptPath, sighash));
                }
                let signature = self.fixed.key.sign(&sighash, &mut rng());
                Some(ParticipantInput::FallbackSigned(Bytes(signature.to_bytes())))
            }
            ParticipantEffect::AskJoin
            | ParticipantEffect::AskUpdate { .. }
            | ParticipantEffect::AskValidation { .. } => panic!("the member has approved the data"),
        }
    }

    fn nonce(&self, output: &BeaconOutput, opening: u32) -> (SecretNonce, Bytes<66>) {
        let seed = sha256(format!("nonce of member {} {opening}", self.fixed.place).as_bytes());
        SecretNonce::from_seed(&self.fixed.key, output, &seed)
    }
}
