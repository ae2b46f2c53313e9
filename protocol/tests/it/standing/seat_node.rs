//! A seat of a standing cohort and its host, in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::Transaction;
use btcr2_aggregation_protocol::time::Timestamp;
use btcr2_aggregation_protocol::{
    beacon::did_index,
    cohort::standing::{
        BoardContent, Response, Row, RowAction, SeatSeed, SharedBoards, StandingPolicy, Updates,
        cohort::CohortConfig,
        message::{AskedRow, ControlProof, SeatOptIn, StandingMessage},
        seat::{Seat, SeatConfig, SeatEffect, SeatEvent, SeatInput, SeatUpdate},
    },
    did::Did,
    error::Reject,
    hash::{DidIndex, DocumentHash, sha256},
    jcs::document_hash,
    key::SecretKey,
    machine::{Machine, replay, step},
    message::Bytes,
    output::MemoizedAggregator,
    signing::nonce::SecretNonce,
};
use rand_chacha::ChaCha20Rng;
use serde_json::{Value, json};

use super::{
    cohort::NETWORK,
    service_node::{ServiceNode, through_journal},
};

/// A DID of a seat.
#[derive(Clone, Debug)]
pub struct Controlled {
    pub did: Did,
    pub index: DidIndex,
    /// The last version that is final.
    pub(super) version: u64,
    /// Whether its controller wants the next one.
    pub wants: bool,
    /// What the next version is; a host that has lost it makes another one.
    pub(super) salt: u64,
    /// The address of the successor, once it is registered there: its next update lists that address.
    pub(super) moves: Option<String>,
}

impl Controlled {
    pub(super) fn next(&self, salt: u64) -> (Value, DocumentHash) {
        let mut update = json!({ "did": self.did, "targetVersionId": self.version + 1, "salt": salt });
        if let Some(address) = &self.moves {
            update["beacon"] = json!(address);
        }
        let hash = document_hash(&update).unwrap();
        (update, hash)
    }
}

pub struct SeatNode {
    pub did: Did,
    pub key: SecretKey,
    pub config: Arc<SeatConfig>,
    pub(super) machine: Seat,
    pub events: Vec<SeatEvent>,
    /// In memory only.
    nonces: Option<(u64, Vec<SecretNonce>)>,
    pub dids: Vec<Controlled>,
    pub(super) boards: BTreeMap<u64, Arc<Vec<u8>>>,
    pub(super) announced: BTreeMap<u64, Arc<Transaction>>,
    pub(super) is_away: bool,
    /// Why it refuses every signature, if it does.
    pub(super) refuses: Option<String>,
    /// What it has signed: by number, the digests, with the mode's first letter.
    pub(super) signed: Vec<(u64, char, Vec<[u8; 32]>)>,
    pub(super) opened: Vec<Bytes<66>>,
    pub(super) responses: BTreeMap<u64, Arc<Response>>,
    pub(super) registered: Vec<DidIndex>,
    /// Why the machine did not take its host's updates.
    pub(super) refused_updates: Vec<Reject>,
}

impl SeatNode {
    pub(super) fn new(number: usize, cohort: &CohortConfig, dids: usize) -> Self {
        let seed = SeatSeed::from_bytes(sha256(format!("seat {number}").as_bytes()));
        let key = seed.seat_key(NETWORK, &cohort.service, &cohort.cohort_id).unwrap();
        let communication = seed.communication_key(NETWORK, &cohort.service, &cohort.cohort_id).unwrap();
        let config = Arc::new(SeatConfig {
            terms: Arc::clone(&cohort.terms),
            policy: StandingPolicy { least_threshold: (0, 1), ..StandingPolicy::default() },
            service: cohort.service.clone(),
            service_key: cohort.service_key,
            cohort_id: cohort.cohort_id.clone(),
            seat: key.public_key(),
            aggregator: Arc::new(MemoizedAggregator::default()),
            seed: Arc::new(seed),
            boards: Arc::new(SharedBoards::default()),
        });
        let controlled = |at: usize| {
            let did = super::cohort::did(number * 100 + at);
            let index = did_index(&did);
            Controlled { did, index, version: 1, wants: false, salt: 0, moves: None }
        };
        Self {
            did: Did::from_key(communication.public_key(), NETWORK),
            key,
            machine: Seat::new(Arc::clone(&config)),
            config,
            events: Vec::new(),
            nonces: None,
            dids: (0..dids).map(controlled).collect(),
            boards: BTreeMap::new(),
            announced: BTreeMap::new(),
            is_away: false,
            refuses: None,
            signed: Vec::new(),
            opened: Vec::new(),
            responses: BTreeMap::new(),
            registered: Vec::new(),
            refused_updates: Vec::new(),
        }
    }

    pub(super) fn opt_in(&self, rng: &mut ChaCha20Rng) -> SeatOptIn {
        SeatOptIn::sign(&self.config.service, &self.config.cohort_id, &self.did, &self.key, rng)
    }

    /// Answers an advert.
    pub(super) fn joins(
        &mut self,
        now: Timestamp,
        service: &ServiceNode,
        rng: &mut ChaCha20Rng,
    ) -> Vec<StandingMessage> {
        let opt_in = self.opt_in(rng);
        // It has asked before.
        self.feed(now, &SeatInput::OptIn(opt_in), service, rng).unwrap_or_default()
    }

    /// A row for one of its DIDs, with a proof of control.
    pub(super) fn row(&self, index: DidIndex, action: RowAction, serial: u64, rng: &mut ChaCha20Rng) -> AskedRow {
        let row = Row::sign(self.machine.context().unwrap(), &self.key, index, action, serial, rng);
        AskedRow {
            did_index: index,
            action,
            serial,
            signature: row.signature,
            did: None,
            // The service's host is a double that looks at its presence only.
            proof: Some(ControlProof { verification_method: "#initialKey".to_owned(), signature: row.signature }),
            genesis_document: None,
            sidecar: None,
        }
    }

    pub(super) fn feed(
        &mut self,
        now: Timestamp,
        input: &SeatInput,
        service: &ServiceNode,
        rng: &mut ChaCha20Rng,
    ) -> Result<Vec<StandingMessage>, Reject> {
        let step = step(&mut self.machine, now, input, rng)?;
        self.events.extend(step.events);
        Ok(self.perform(now, step.effects, service, rng))
    }

    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        message: &StandingMessage,
        service: &ServiceNode,
        rng: &mut ChaCha20Rng,
    ) -> Result<Vec<StandingMessage>, Reject> {
        let mut outgoing = Vec::new();
        let again = self.machine.again(message);
        outgoing.extend(self.perform(now, again, service, rng));
        match self.feed(now, &SeatInput::Message(message.clone()), service, rng) {
            Ok(more) => outgoing.extend(more),
            // What it returns is sent all the same.
            Err(reject) if outgoing.is_empty() => return Err(reject),
            Err(_) => {}
        }
        Ok(outgoing)
    }

    /// What it sends again after its connection was broken.
    pub(super) fn reconnected(
        &mut self,
        now: Timestamp,
        service: &ServiceNode,
        rng: &mut ChaCha20Rng,
    ) -> Vec<StandingMessage> {
        let resumed = self.machine.resume();
        let again = resumed.into_iter().filter(|effect| {
            matches!(effect, SeatEffect::Send(_) | SeatEffect::FetchBoard { .. } | SeatEffect::FetchRows { .. })
        });
        let mut outgoing = self.perform(now, again.collect(), service, rng);
        if self.dids.iter().any(|controlled| controlled.wants) && self.machine.context().is_some() {
            outgoing.push(self.machine.pending());
        }
        outgoing
    }

    fn updates(
        &self,
        committed: &[(DidIndex, u64, DocumentHash)],
        announced: &BTreeSet<(DidIndex, u64)>,
        is_move: bool,
    ) -> Vec<SeatUpdate> {
        let registered: Vec<DidIndex> = self.machine.indexes().copied().collect();
        let of = |controlled: &Controlled| {
            let version = controlled.version + 1;
            // It is on its way to a block.
            if announced.contains(&(controlled.index, version)) {
                return None;
            }
            let known = committed.iter().find(|(index, of, _)| (*index, *of) == (controlled.index, version));
            let (update, hash) = match known {
                // What may be announced already is announced again, identically.
                Some((.., hash)) => {
                    let salts = (0..=controlled.salt).map(|salt| controlled.next(salt));
                    salts.into_iter().find(|(_, made)| made == hash)?
                }
                // Only the next update is that of the move: no other one follows here.
                None if if is_move {
                    controlled.moves.is_some()
                } else {
                    controlled.wants && controlled.moves.is_none()
                } =>
                {
                    controlled.next(controlled.salt)
                }
                None => return None,
            };
            let full = (self.config.terms.updates == Updates::Full).then_some(update);
            Some(SeatUpdate { did: controlled.did.clone(), version, hash, full })
        };
        self.dids.iter().filter(|controlled| registered.contains(&controlled.index)).filter_map(of).collect()
    }

    fn perform(
        &mut self,
        now: Timestamp,
        effects: Vec<SeatEffect>,
        service: &ServiceNode,
        rng: &mut ChaCha20Rng,
    ) -> Vec<StandingMessage> {
        let mut outgoing = Vec::new();
        for effect in effects {
            let input = match effect {
                SeatEffect::Send(message) => {
                    outgoing.push(message);
                    continue;
                }
                SeatEffect::AskUpdates { opportunity, committed, announced } => {
                    let is_move =
                        opportunity.kind == btcr2_aggregation_protocol::cohort::standing::OpportunityKind::Move;
                    let announces = opportunity.kind.announces();
                    let updates =
                        if announces { self.updates(&committed, &announced, is_move) } else { Vec::new() };
                    let number = opportunity.number;
                    match self.feed(now, &SeatInput::UpdatesDecided { number, updates }, service, rng) {
                        Ok(more) => {
                            outgoing.extend(more);
                            continue;
                        }
                        Err(reject) => self.refused_updates.push(reject),
                    }
                    SeatInput::UpdatesDecided { number, updates: Vec::new() }
                }
                SeatEffect::OpenNonces { number, inputs } => {
                    let output = self.machine.output().unwrap().clone();
                    let (secret, public): (Vec<_>, Vec<_>) =
                        (0..inputs).map(|_| SecretNonce::generate(&self.key, &output, rng)).unzip();
                    self.nonces = Some((number, secret));
                    self.opened.extend(public.iter().copied());
                    let content = self.machine.content(number, public).unwrap();
                    let response = content.sign(self.machine.context().unwrap(), &self.key, rng);
                    let response = Arc::new(response);
                    assert!(self.responses.insert(number, Arc::clone(&response)).is_none(), "two responses");
                    SeatInput::ResponseSigned(response)
                }
                SeatEffect::FetchRows { from } => {
                    if service.is_down {
                        continue;
                    }
                    let fetched = SeatInput::RowsFetched { rows: service.cohort.rows_from(from).to_vec() };
                    // A late one is refused.
                    outgoing.extend(self.feed(now, &fetched, service, rng).unwrap_or_default());
                    continue;
                }
                SeatEffect::FetchBoard { number, hash } => {
                    let Some(bytes) = service.boards.get(&hash).filter(|_| !service.is_down).cloned() else {
                        continue;
                    };
                    let fetched = SeatInput::BoardFetched { number, bytes: Arc::clone(&bytes) };
                    match self.feed(now, &fetched, service, rng) {
                        Ok(more) => outgoing.extend(more),
                        // It waits for the right ones.
                        Err(_) => continue,
                    }
                    let ask = self.machine.ask_signing(number, &bytes);
                    outgoing.extend(self.perform(now, ask.into_iter().collect(), service, rng));
                    continue;
                }
                SeatEffect::AskSigning { number, board, .. } => {
                    self.boards.insert(number, Arc::clone(board.bytes()));
                    SeatInput::SigningDecided { number, refusal: self.refuses.clone() }
                }
                SeatEffect::SignPartials { number, aggregated, sighashes } => {
                    let output = self.machine.output().unwrap().clone();
                    let nonces = self.nonces.take().filter(|(of, _)| *of == number);
                    let partials = nonces.map(|(_, nonces)| {
                        self.signed.push((number, 'k', sighashes.clone()));
                        let each = nonces.into_iter().zip(&aggregated).zip(&sighashes);
                        each.map(|((nonce, aggregated), digest)| {
                            nonce.sign(&self.key, &output, aggregated, digest).unwrap()
                        })
                        .collect()
                    });
                    SeatInput::PartialsSigned { number, partials }
                }
                SeatEffect::SignFallback { number, sighashes } => {
                    self.nonces = None;
                    self.signed.push((number, 'f', sighashes.clone()));
                    let signatures = sighashes.iter().map(|digest| self.key.sign(digest, rng)).collect();
                    SeatInput::FallbackSigned { number, signatures }
                }
                SeatEffect::Announced { number, transaction } => {
                    assert!(self.boards.contains_key(&number), "announced, and not stored");
                    self.announced.insert(number, transaction);
                    continue;
                }
                SeatEffect::Missed { number, transaction, board_hash } => {
                    let Some(bytes) = service.boards.get(&board_hash) else { continue };
                    let content: BoardContent = serde_json::from_slice(bytes).unwrap();
                    if content.signal(self.config.terms.beacon_type) == super::world::signal_of(&transaction) {
                        self.boards.entry(number).or_insert_with(|| Arc::clone(bytes));
                        self.announced.insert(number, transaction);
                    }
                    continue;
                }
                SeatEffect::Registered { registered, released } => {
                    self.registered.extend(registered);
                    self.registered.retain(|index| !released.contains(index));
                    continue;
                }
                SeatEffect::NotRegistered(_) => continue,
            };
            outgoing.extend(self.feed(now, &input, service, rng).unwrap());
        }
        outgoing
    }

    /// Only its journal and what its host has stored stay; its secret nonces do not.
    pub(super) fn crash(&mut self) {
        self.nonces = None;
        // Every other time the journal was replaced by what it leads to.
        if self.events.len() % 2 == 1
            && let Some(saved) = self.machine.saved()
        {
            let replayed = replay(Seat::new(Arc::clone(&self.config)), &through_journal(&[saved]));
            assert_eq!(replayed, self.machine, "{}: saved", self.did);
            self.machine = replayed;
            return;
        }
        self.events = through_journal(&self.events);
        self.machine = replay(Seat::new(Arc::clone(&self.config)), &self.events);
    }

    /// Its journal is that of a backup.
    pub(super) fn restore(&mut self, backup: Vec<SeatEvent>) {
        self.nonces = None;
        self.events = through_journal(&backup);
        self.machine = replay(Seat::new(Arc::clone(&self.config)), &self.events);
    }

    pub(super) fn restart(
        &mut self,
        now: Timestamp,
        service: &ServiceNode,
        rng: &mut ChaCha20Rng,
    ) -> Vec<StandingMessage> {
        let effects = self.machine.resume();
        self.perform(now, effects, service, rng)
    }

    pub(super) fn assert_replays(&self) {
        let replayed = replay(Seat::new(Arc::clone(&self.config)), &through_journal(&self.events));
        assert_eq!(replayed, self.machine, "{}", self.did);
    }

    /// The content of a stored board.
    pub(super) fn board(&self, number: u64) -> BoardContent {
        serde_json::from_slice(&self.boards[&number]).unwrap()
    }
}
