//! A service of a standing cohort and its host, in memory.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction, TxOut};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        OpportunityKind, StandingTerms,
        cohort::{CohortConfig, CohortEffect, CohortEvent, CohortInput, StandingCohort},
        message::StandingMessage,
        number::{Number, NumberEffect, NumberEnd, NumberEvent, NumberInput},
    },
    did::Did,
    error::Reject,
    hash::DocumentHash,
    id::CohortId,
    key::{PublicKey, SecretKey},
    machine::{Machine, replay, step},
    output::MemoizedAggregator,
    time::Timestamp,
};
use rand_chacha::ChaCha20Rng;

use super::cohort::NETWORK;

/// Through JSON, as a journal stores it.
pub fn through_journal<E: serde::Serialize + serde::de::DeserializeOwned>(events: &[E]) -> Vec<E> {
    events.iter().map(|event| serde_json::from_str(&serde_json::to_string(event).unwrap()).unwrap()).collect()
}

pub(super) struct RunningNumber {
    pub(super) machine: Number,
    initial: Number,
    pub(super) events: Vec<NumberEvent>,
}

/// What leaves the service.
pub(super) enum Outgoing {
    ToAll(StandingMessage),
    To(Did, StandingMessage),
}

pub struct ServiceNode {
    pub did: Did,
    pub key: SecretKey,
    config: Arc<CohortConfig>,
    pub cohort: StandingCohort,
    pub events: Vec<CohortEvent>,
    pub(super) numbers: BTreeMap<u64, RunningNumber>,
    /// By hash: durable.
    pub(super) boards: BTreeMap<DocumentHash, Arc<Vec<u8>>>,
    /// What was to be broadcast, in order, each once.
    pub(super) mempool: Vec<Arc<Transaction>>,
    pub(super) is_down: bool,
    /// Who is not admitted.
    pub(super) refuses: Vec<Did>,
    pub(super) ends: BTreeMap<u64, NumberEnd>,
    pub(super) refused_responses: Vec<(PublicKey, String)>,
}

impl ServiceNode {
    pub(super) fn new(terms: &StandingTerms) -> Self {
        Self::named("standing-cohort", terms)
    }

    pub(super) fn named(cohort_id: &str, terms: &StandingTerms) -> Self {
        Self::of(3, cohort_id, terms)
    }

    /// The service whose key has this byte.
    pub(super) fn of(key: u8, cohort_id: &str, terms: &StandingTerms) -> Self {
        let key = SecretKey::from_bytes(&[key; 32]).unwrap();
        let did = Did::from_key(key.public_key(), NETWORK);
        let config = Arc::new(CohortConfig {
            terms: Arc::new(terms.clone()),
            service: did.clone(),
            service_key: key.public_key(),
            cohort_id: CohortId::parse(cohort_id).unwrap(),
            aggregator: Arc::new(MemoizedAggregator::default()),
        });
        Self {
            did,
            key,
            cohort: StandingCohort::new(Arc::clone(&config)).unwrap(),
            config,
            events: Vec::new(),
            numbers: BTreeMap::new(),
            boards: BTreeMap::new(),
            mempool: Vec::new(),
            is_down: false,
            refuses: Vec::new(),
            ends: BTreeMap::new(),
            refused_responses: Vec::new(),
        }
    }

    pub fn config(&self) -> &Arc<CohortConfig> {
        &self.config
    }

    pub(super) fn advert(&mut self, now: Timestamp, rng: &mut ChaCha20Rng) -> Vec<Outgoing> {
        self.feed(now, &CohortInput::Advertise, rng).unwrap()
    }

    /// An input of the cohort, and all that follows here.
    pub(super) fn feed(
        &mut self,
        now: Timestamp,
        input: &CohortInput,
        rng: &mut ChaCha20Rng,
    ) -> Result<Vec<Outgoing>, Reject> {
        let step = step(&mut self.cohort, now, input, rng)?;
        self.events.extend(step.events);
        Ok(self.perform(now, step.effects, rng))
    }

    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        from: &Did,
        message: &StandingMessage,
        rng: &mut ChaCha20Rng,
    ) -> Result<Vec<Outgoing>, Reject> {
        let number = match message {
            StandingMessage::ResponsePart(part) => Some(part.number),
            StandingMessage::Confirmation(confirmation) => Some(confirmation.number),
            _ => None,
        };
        if let Some(number) = number {
            let input = NumberInput::Message { from: from.clone(), message: Box::new(message.clone()) };
            return self.feed_number(now, number, &input, rng);
        }
        let input = CohortInput::Message { from: from.clone(), message: message.clone() };
        let mut outgoing = self.feed(now, &input, rng)?;
        if let Some(effect) = self.cohort.check_control(from, message) {
            outgoing.extend(self.perform(now, vec![effect], rng));
        }
        Ok(outgoing)
    }

    pub(super) fn feed_number(
        &mut self,
        now: Timestamp,
        number: u64,
        input: &NumberInput,
        rng: &mut ChaCha20Rng,
    ) -> Result<Vec<Outgoing>, Reject> {
        let Some(running) = self.numbers.get_mut(&number) else { return Ok(Vec::new()) };
        let step = step(&mut running.machine, now, input, rng)?;
        running.events.extend(step.events);
        Ok(self.perform_number(now, number, step.effects, rng))
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now: Timestamp, rng: &mut ChaCha20Rng) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        if let Some(number) = self.cohort.open_number() {
            outgoing.extend(self.feed_number(now, number, &NumberInput::Tick, rng).unwrap());
        }
        outgoing.extend(self.feed(now, &CohortInput::Tick, rng).unwrap());
        outgoing
    }

    /// The time of the next tick.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let open = self.cohort.open_number().and_then(|number| self.numbers.get(&number));
        [self.cohort.deadline(), open.and_then(|number| number.machine.deadline())].into_iter().flatten().min()
    }

    /// What a seat needs that has come back.
    pub(super) fn reconnected(&mut self, now: Timestamp, did: &Did, rng: &mut ChaCha20Rng) -> Vec<Outgoing> {
        let effects = self.cohort.send_again(did);
        let mut outgoing = self.perform(now, effects, rng);
        if let Some(number) = self.cohort.open_number()
            && let Some(running) = self.numbers.get(&number)
        {
            let effects = running.machine.send_again(did);
            outgoing.extend(self.perform_number(now, number, effects, rng));
        }
        outgoing
    }

    fn perform(&mut self, now: Timestamp, effects: Vec<CohortEffect>, rng: &mut ChaCha20Rng) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        for effect in effects {
            let input = match effect {
                CohortEffect::Broadcast(message) => {
                    outgoing.push(Outgoing::ToAll(message));
                    continue;
                }
                CohortEffect::Send { to, message } => {
                    outgoing.push(Outgoing::To(to, message));
                    continue;
                }
                CohortEffect::AskAdmission { did, .. } => {
                    let refusal = self.refuses.contains(&did).then(|| "not on the list".to_owned());
                    CohortInput::Admitted { did, refusal }
                }
                CohortEffect::CheckControl { from, rows } => {
                    let check = |row: &btcr2_aggregation_protocol::cohort::standing::message::AskedRow| {
                        row.proof.is_none().then(|| "control is not proven".to_owned())
                    };
                    let rows = rows.into_iter().map(|row| (row.clone(), check(&row))).collect();
                    CohortInput::ControlChecked { from, rows }
                }
                CohortEffect::SignOpportunity(opportunity) => {
                    let context = self.cohort.roster().unwrap().context();
                    let signed = (*opportunity).clone().sign(context, &self.key, rng);
                    CohortInput::OpportunitySigned(Arc::new(signed))
                }
                CohortEffect::RunNumber(task) => {
                    let number = task.opportunity.number;
                    if let Some(running) = self.numbers.get(&number) {
                        let effects = running.machine.resume();
                        outgoing.extend(self.perform_number(now, number, effects, rng));
                    } else {
                        let initial = Number::new(task);
                        let running = RunningNumber { machine: initial.clone(), initial, events: Vec::new() };
                        self.numbers.insert(number, running);
                        outgoing.extend(self.feed_number(now, number, &NumberInput::Open, rng).unwrap());
                    }
                    continue;
                }
                CohortEffect::Announce(transactions) => {
                    for transaction in transactions {
                        if !self.mempool.contains(&transaction) {
                            self.mempool.push(transaction);
                        }
                    }
                    continue;
                }
                CohortEffect::AbandonNumber { number, reason } => {
                    let abandoned = NumberInput::Abandoned { reason };
                    outgoing.extend(self.feed_number(now, number, &abandoned, rng).unwrap_or_default());
                    continue;
                }
                CohortEffect::Failed { .. } => continue,
            };
            outgoing.extend(self.feed(now, &input, rng).unwrap());
        }
        outgoing
    }

    fn perform_number(
        &mut self,
        now: Timestamp,
        number: u64,
        effects: Vec<NumberEffect>,
        rng: &mut ChaCha20Rng,
    ) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        for effect in effects {
            match effect {
                NumberEffect::CheckUpdates { seat, response_hash, updates } => {
                    // A double: resolvers refuse what has this field.
                    let bad = updates.iter().any(|(_, update)| update.get("isBad").is_some());
                    let problem = bad.then(|| "no resolver accepts it".to_owned());
                    let checked = NumberInput::UpdatesChecked { seat, response_hash, problem };
                    outgoing.extend(self.feed_number(now, number, &checked, rng).unwrap());
                }
                NumberEffect::ResponseRefused { seat, reason } => self.refused_responses.push((seat, reason)),
                NumberEffect::AskPrice { .. } => {
                    let operator = TxOut {
                        value: Amount::from_sat(1_000),
                        script_pubkey: ScriptBuf::from_hex("00140102030405060708090a0b0c0d0e0f1011121314").unwrap(),
                    };
                    let priced =
                        NumberInput::Priced { rate: FeeRate::from_sat_per_vb_u32(2), operator: Some(operator) };
                    outgoing.extend(self.feed_number(now, number, &priced, rng).unwrap());
                }
                NumberEffect::StoreBoard(board) => {
                    self.boards.insert(*board.hash(), Arc::clone(board.bytes()));
                }
                NumberEffect::Send { to, message } => outgoing.push(Outgoing::To(to, message)),
                NumberEffect::Report(end) => {
                    self.ends.insert(number, end.clone());
                    let ended = CohortInput::NumberEnded { number, end };
                    outgoing.extend(self.feed(now, &ended, rng).unwrap());
                }
            }
        }
        outgoing
    }

    /// Only what is durable stays: the journals, the boards, the transactions.
    pub(super) fn crash(&mut self) {
        self.is_down = true;
        self.events.retain(StandingCohort::is_journaled);
        let saved = self.cohort.saved().filter(|_| self.events.len() % 2 == 1);
        if let Some(saved) = saved {
            // The journal was replaced by what it leads to.
            let replayed =
                replay(StandingCohort::new(Arc::clone(&self.config)).unwrap(), &through_journal(&[saved]));
            assert_eq!(replayed, self.cohort, "saved");
            self.cohort = replayed;
        } else {
            self.events = through_journal(&self.events);
            self.cohort = replay(StandingCohort::new(Arc::clone(&self.config)).unwrap(), &self.events);
        }
        for running in self.numbers.values_mut() {
            running.events.retain(Number::is_journaled);
            running.events = through_journal(&running.events);
            running.machine = replay(running.initial.clone(), &running.events);
        }
    }

    pub(super) fn restart(&mut self, now: Timestamp, rng: &mut ChaCha20Rng) -> Vec<Outgoing> {
        self.is_down = false;
        let effects = self.cohort.resume();
        self.perform(now, effects, rng)
    }

    /// Every machine equals the replay of its journal.
    pub(super) fn assert_replays(&self) {
        let replayed =
            replay(StandingCohort::new(Arc::clone(&self.config)).unwrap(), &through_journal(&self.events));
        assert_eq!(replayed, self.cohort, "the cohort");
        for (number, running) in &self.numbers {
            let replayed = replay(running.initial.clone(), &through_journal(&running.events));
            assert_eq!(replayed, running.machine, "number {number}");
        }
    }

    pub(super) fn open_now(
        &mut self,
        now: Timestamp,
        kind: OpportunityKind,
        rng: &mut ChaCha20Rng,
    ) -> Vec<Outgoing> {
        self.feed(now, &CohortInput::OpenNow { kind }, rng).unwrap()
    }
}
