//! A seat and its host. Secret nonces are handles: each is named by its number and by how often nonces were opened for it, from which
//! its randomness follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use bitcoin::Transaction;
use btcr2_aggregation_protocol::{
    cohort::standing::{
        CohortContext, Entry, Mode, OpportunityKind,
        message::StandingMessage,
        seat::{Seat, SeatEffect, SeatEvent, SeatInput, SeatUpdate},
        sighashes,
    },
    error::Reject,
    hash::{DocumentHash, sha256},
    machine::{Machine, replay, step},
    message::Bytes,
    signing::nonce::SecretNonce,
    time::Timestamp,
};

use super::{Boards, Talk, rng, same_rows};
use crate::{
    explore::{
        NonceStore,
        process::{Input, Packet, Run, Way},
    },
    standing::{
        seat_node::{Controlled, SeatNode},
        service_node::through_journal,
        world::{signal_of, signal_of_board},
    },
};

/// What does not change.
pub struct SeatFixed {
    pub place: usize,
    pub node: SeatNode,
    pub store: NonceStore,
    pub boards: Boards,
    /// The rows of the cohort.
    pub rows: Vec<btcr2_aggregation_protocol::cohort::standing::Row>,
}

/// A use of a nonce.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NonceUse {
    pub number: u64,
    pub opening: u32,
    pub input: usize,
}

/// A signature that was made, sent or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Signed {
    pub mode: Mode,
    pub digests: Vec<[u8; 32]>,
    pub transaction: Transaction,
}

/// What the test records of a seat; no part of it is available to machine or host, except the count of openings, which stands for fresh
/// randomness.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    openings: BTreeMap<u64, u32>,
    pub uses: Vec<NonceUse>,
    /// The hash of each response that was sent.
    pub responses: BTreeMap<u64, BTreeSet<DocumentHash>>,
    pub signed: BTreeMap<u64, Vec<Signed>>,
}

/// What the host has stored before it agreed to a signature.
#[derive(Clone, Debug, PartialEq)]
struct Agreed {
    board: DocumentHash,
    mode: Mode,
    transaction: Transaction,
}

#[derive(Clone)]
pub struct SeatProcess {
    pub fixed: Rc<SeatFixed>,
    machine: Seat,
    journal: Vec<SeatEvent>,
    /// The number, and which of its openings.
    nonces: Option<(u64, u32)>,
    /// Durable.
    boards: BTreeMap<u64, Agreed>,
    pub record: Record,
}

impl SeatProcess {
    pub fn new(fixed: SeatFixed) -> Self {
        let journal = fixed.node.events.clone();
        let machine = replay(Seat::new(Arc::clone(&fixed.node.config)), &journal);
        Self {
            fixed: Rc::new(fixed),
            machine,
            journal,
            nonces: None,
            boards: BTreeMap::new(),
            record: Record::default(),
        }
    }

    pub fn text(&self) -> String {
        format!("{} {:?} {:?} {:?} {:?}", self.fixed.place, self.machine, self.nonces, self.boards, self.record)
    }

    pub fn assert_same(&self, other: &Self) {
        assert_eq!(self.machine, other.machine);
    }

    pub fn crash(&mut self) {
        if self.fixed.store == NonceStore::Memory {
            self.nonces = None;
        }
        self.machine = self.replayed();
    }

    fn replayed(&self) -> Seat {
        replay(Seat::new(Arc::clone(&self.fixed.node.config)), &through_journal(&self.journal))
    }

    pub fn check(&self) {
        assert_eq!(self.replayed(), self.machine, "the replay of a seat's journal");
        for (number, responses) in &self.record.responses {
            assert_eq!(responses.len(), 1, "a second response to number {number}");
        }
        let mut uses = self.record.uses.clone();
        uses.sort();
        assert!(uses.windows(2).all(|pair| pair[0] != pair[1]), "a nonce was used twice: {uses:?}");
        for (number, signed) in &self.record.signed {
            assert_eq!(signed.len(), 1, "two transactions were signed for number {number}");
        }
    }

    pub fn feed(&mut self, now: Timestamp, input: Input<'_, Talk>, run: &mut Run<Talk>) {
        match input {
            Input::Packet(Packet { message, .. }) => match message {
                Talk::Wire(message) => self.receive(now, message, run),
                Talk::Rows { from } => {
                    let rows = self.fixed.rows[*from as usize..].to_vec();
                    // They may come too late.
                    let _ = self.input(now, &SeatInput::RowsFetched { rows }, run);
                }
                Talk::Board { number, hash } => {
                    let bytes = Arc::clone(&self.fixed.boards.borrow()[hash].0);
                    let fetched = SeatInput::BoardFetched { number: *number, bytes: Arc::clone(&bytes) };
                    if self.input(now, &fetched, run).is_ok() && !run.is_crashed() {
                        let ask = self.machine.ask_signing(*number, &bytes);
                        self.perform(now, ask.into_iter().collect(), run);
                    }
                }
                Talk::Decide { number } => self.decide(now, *number, None, run),
            },
            Input::Refusal(Packet { message: Talk::Decide { number }, .. }) => {
                self.decide(now, *number, Some("a refusal".to_owned()), run);
            }
            Input::Refusal(_) | Input::Tick => {}
            Input::Restarted => {
                let effects = self.machine.resume();
                self.perform(now, effects, run);
            }
            Input::Reconnected(_) => {
                let mut effects = self.machine.resume();
                effects.retain(|effect| {
                    matches!(
                        effect,
                        SeatEffect::Send(_) | SeatEffect::FetchBoard { .. } | SeatEffect::FetchRows { .. }
                    )
                });
                self.perform(now, effects, run);
            }
        }
    }

    fn decide(&mut self, now: Timestamp, number: u64, refusal: Option<String>, run: &mut Run<Talk>) {
        // The number may have ended meanwhile.
        let _ = self.input(now, &SeatInput::SigningDecided { number, refusal }, run);
    }

    fn receive(&mut self, now: Timestamp, message: &StandingMessage, run: &mut Run<Talk>) {
        let again = self.machine.again(message);
        self.perform(now, again, run);
        // A message that comes too late is refused.
        let _ = self.input(now, &SeatInput::Message(message.clone()), run);
    }

    fn input(&mut self, now: Timestamp, input: &SeatInput, run: &mut Run<Talk>) -> Result<(), Reject> {
        if run.is_crashed() {
            return Ok(());
        }
        let mut next = self.machine.clone();
        let step = step(&mut next, now, input, &mut rng(0))?;
        assert!(step.events.iter().all(Seat::is_journaled), "every event of a seat is journaled");
        if step.events.is_empty() || run.operation() {
            self.machine = next;
            self.journal.extend(step.events);
            self.perform(now, step.effects, run);
        }
        Ok(())
    }

    fn perform(&mut self, now: Timestamp, effects: Vec<SeatEffect>, run: &mut Run<Talk>) {
        for effect in effects {
            if run.is_crashed() {
                return;
            }
            if let Some(answer) = self.answer(effect, run) {
                self.input(now, &answer, run).unwrap_or_else(|reject| panic!("the host's answer: {reject}"));
            }
        }
    }

    fn answer(&mut self, effect: SeatEffect, run: &mut Run<Talk>) -> Option<SeatInput> {
        let local = |way, message| Packet { from: self.fixed.place, to: self.fixed.place, way, message };
        match effect {
            SeatEffect::Send(message) => {
                if let StandingMessage::ResponsePart(part) = &message {
                    self.record.responses.entry(part.number).or_default().insert(part.response_hash);
                }
                run.send(Packet { from: self.fixed.place, to: 0, way: Way::Wire, message: Talk::wire(&message) });
                None
            }
            SeatEffect::FetchRows { from } => {
                run.send(local(Way::Fetch, Talk::Rows { from }));
                None
            }
            SeatEffect::FetchBoard { number, hash } => {
                run.send(local(Way::Fetch, Talk::Board { number, hash }));
                None
            }
            SeatEffect::AskUpdates { opportunity, committed, announced } => {
                let is_announcement = opportunity.kind == OpportunityKind::Announcement;
                let wanted = self.fixed.node.dids.iter().filter(|one| is_announcement && one.wants);
                let updates = wanted.filter(|one| !announced.contains(&(one.index, 2))).map(|one| {
                    let known = committed.iter().find(|(index, version, _)| (*index, *version) == (one.index, 2));
                    let hash = known.map_or_else(|| update_of(one.did.as_str()), |(.., hash)| *hash);
                    SeatUpdate { did: one.did.clone(), version: 2, hash, full: None }
                });
                Some(SeatInput::UpdatesDecided { number: opportunity.number, updates: updates.collect() })
            }
            SeatEffect::OpenNonces { number, inputs } => {
                let opening = self.record.openings.entry(number).or_default();
                *opening += 1;
                self.nonces = Some((number, *opening));
                let opening = *opening;
                let nonces = (0..inputs).map(|input| self.nonce(number, opening, input).1).collect();
                let content = self.machine.content(number, nonces).expect("the seat has committed");
                let context = self.machine.context().expect("the cohort has formed");
                let key = &self.fixed.node.key;
                Some(SeatInput::ResponseSigned(Arc::new(content.sign(context, key, &mut rng(u64::from(opening))))))
            }
            SeatEffect::AskSigning { number, board, transaction, mode } => {
                if run.operation() {
                    self.boards.insert(number, Agreed { board: *board.hash(), mode, transaction });
                    run.send(local(Way::Question, Talk::Decide { number }));
                }
                None
            }
            SeatEffect::SignPartials { number, aggregated, sighashes } => {
                let nonces = match self.fixed.store {
                    NonceStore::Memory => self.nonces.take(),
                    NonceStore::File => self.nonces,
                };
                let nonces = nonces.filter(|(of, _)| *of == number);
                let partials = nonces.map(|(_, opening)| {
                    self.sign(number, Mode::Key, &sighashes);
                    let each = aggregated.iter().zip(&sighashes).enumerate();
                    each.map(|(input, (aggregated, digest))| {
                        self.record.uses.push(NonceUse { number, opening, input });
                        let output = self.machine.output().expect("the cohort has formed");
                        let (nonce, _) = self.nonce(number, opening, input);
                        nonce.sign(&self.fixed.node.key, output, aggregated, digest).expect("a valid aggregate")
                    })
                    .collect()
                });
                Some(SeatInput::PartialsSigned { number, partials })
            }
            SeatEffect::SignFallback { number, sighashes } => {
                self.nonces = None;
                self.sign(number, Mode::Fallback, &sighashes);
                let key = &self.fixed.node.key;
                let signatures = sighashes.iter().map(|digest| key.sign(digest, &mut rng(1))).collect();
                Some(SeatInput::FallbackSigned { number, signatures })
            }
            SeatEffect::Announced { number, transaction } => {
                let agreed = self.boards.get(&number).expect("an announcement whose board is not stored");
                let txid = agreed.transaction.compute_txid();
                assert_eq!(txid, transaction.compute_txid(), "another transaction was announced");
                None
            }
            SeatEffect::Missed { .. } | SeatEffect::Registered { .. } | SeatEffect::NotRegistered(_) => None,
        }
    }

    fn nonce(&self, number: u64, opening: u32, input: usize) -> (SecretNonce, Bytes<66>) {
        let seed = sha256(format!("nonce {} {number} {opening} {input}", self.fixed.place).as_bytes());
        let output = self.machine.output().expect("the cohort has formed");
        SecretNonce::from_seed(&self.fixed.node.key, output, &seed)
    }

    /// What must hold at each signature.
    fn sign(&mut self, number: u64, mode: Mode, digests: &[[u8; 32]]) {
        let Agreed { board, mode: agreed_mode, transaction } =
            self.boards.get(&number).expect("a signature without a stored board").clone();
        assert_eq!(mode, agreed_mode, "signed otherwise than agreed");
        let stored = self.fixed.boards.borrow();
        let (_, content) = &stored[&board];
        let seat = self.fixed.node.key.public_key();
        let own = content.responses.iter().filter(|response| response.seat == seat);
        let context = self.machine.context().expect("the cohort has formed");
        let own: BTreeSet<DocumentHash> = own.map(|response| response.hash(context)).collect();
        assert_eq!(Some(&own), self.record.responses.get(&number), "signed for another response than the own one");
        assert_eq!((content.number, signal_of(&transaction)), (number, Some(signal_of_board(content))));
        let opportunity = self.journal.iter().find_map(|event| match event {
            SeatEvent::OpportunityAccepted { opportunity, .. } if opportunity.number == number => Some(opportunity),
            _ => None,
        });
        let opportunity = opportunity.expect("an opportunity that was answered");
        same_rows(content, opportunity);
        let output = self.machine.output().expect("the cohort has formed");
        let expected = sighashes(&transaction, output, &opportunity.coins(), mode).unwrap();
        assert_eq!(digests, expected, "the digest of another transaction");
        drop(stored);
        let signed = Signed { mode, digests: digests.to_vec(), transaction };
        let of_number = self.record.signed.entry(number).or_default();
        // The same signature, made again after a crash, is one signature; a nonce that it used again is a violation of its own.
        if !of_number.contains(&signed) {
            of_number.push(signed);
        }
    }

    pub fn context(&self) -> &CohortContext {
        self.machine.context().expect("the cohort has formed")
    }

    /// The leaves of an SMT cohort's seat, computed from its seed.
    pub fn leaves(&self, number: u64, decided: &[DocumentHash]) -> Vec<Entry> {
        let leaf = |one: &Controlled| {
            let update = decided.iter().find(|hash| **hash == update_of(one.did.as_str()));
            Entry::leaf(one.index, &self.machine.leaf_nonce(number, &one.index), update)
        };
        let mut leaves: Vec<Entry> = self.fixed.node.dids.iter().map(leaf).collect();
        leaves.sort();
        leaves
    }

    /// What the seat has decided to announce in a number.
    pub fn committed(&self, number: u64) -> Vec<DocumentHash> {
        let of = |event: &SeatEvent| match event {
            SeatEvent::Committed { number: of, updates, .. } if *of == number => Some(updates.clone()),
            _ => None,
        };
        self.journal.iter().find_map(of).into_iter().flatten().map(|(.., hash)| hash).collect()
    }
}

/// The update that the controller of a DID wants.
pub fn update_of(did: &str) -> DocumentHash {
    DocumentHash::from_bytes(sha256(format!("update of {did}").as_bytes()))
}
