//! A standing cohort in memory: service, seats, a network that delays and loses, a chain.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bitcoin::{OutPoint, Transaction, Txid, hashes::Hash};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        BoardContent, CoinRef, Entry, RowAction, StandingTerms, cohort::CohortInput, message::StandingMessage,
        seat::SeatInput,
    },
    did::Did,
    error::Reject,
    hash::{DidIndex, DocumentHash, SignalBytes, sha256},
    message::{Body, Message},
    output::Coin,
    time::Timestamp,
};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::{
    seat_node::SeatNode,
    service_node::{Outgoing, ServiceNode},
};
use crate::bitcoin_support::consensus_accepts_all;

pub(super) const START: Timestamp = Timestamp::from_secs(1_800_000_000);

struct Packet {
    at: Timestamp,
    order: u64,
    /// `None` is the service.
    to: Option<usize>,
    from: Did,
    message: StandingMessage,
}

pub struct World {
    pub now: Timestamp,
    pub(super) rng: ChaCha20Rng,
    dice: ChaCha20Rng,
    pub service: ServiceNode,
    pub seats: Vec<SeatNode>,
    queue: Vec<Packet>,
    order: u64,
    /// Per mille.
    pub(super) loss: u64,
    pub(super) repeats: u64,
    /// Milliseconds.
    pub(super) max_delay: u64,
    pub(super) rejects: Vec<(String, Reject)>,
    /// In their order: each spends a coin that was there.
    pub(super) confirmed: Vec<Arc<Transaction>>,
    pub(super) coins: BTreeMap<OutPoint, u64>,
    deposits: u8,
}

impl World {
    /// A cohort of so many seats that has formed, with `dids` registered to each, and a coin.
    pub fn formed(seed: u64, terms: &StandingTerms, seats: usize, dids: usize) -> Self {
        Self::formed_with(seed, terms, seats, dids, 1_000_000)
    }

    /// The same with a coin of that value.
    pub fn formed_with(seed: u64, terms: &StandingTerms, seats: usize, dids: usize, value: u64) -> Self {
        let mut world = Self::enrolling(seed, terms, seats, dids);
        world.form();
        world.deposit(value);
        world
    }

    /// What was advertised forms, and all DIDs of its seats are registered.
    pub(super) fn form(&mut self) {
        self.run_until_quiet();
        // It has formed already if it is full.
        if let Ok(outgoing) = self.service.feed(self.now, &CohortInput::Finalize, &mut self.rng) {
            self.send_all(outgoing);
        }
        self.run_until_quiet();
        (0..self.seats.len()).for_each(|at| self.register(at));
        self.run_until_quiet();
    }

    pub(super) fn enrolling(seed: u64, terms: &StandingTerms, seats: usize, dids: usize) -> Self {
        let numbers: Vec<usize> = (0..seats).collect();
        let mut world = Self::of(seed, START, ServiceNode::new(terms), &numbers, dids);
        let outgoing = world.service.advert(world.now, &mut world.rng);
        world.send_all(outgoing);
        world
    }

    /// A cohort that is not advertised, with the seats of these numbers.
    pub(super) fn of(seed: u64, now: Timestamp, service: ServiceNode, numbers: &[usize], dids: usize) -> Self {
        let seats = numbers.iter().map(|number| SeatNode::new(*number, service.config(), dids)).collect();
        Self {
            now,
            rng: ChaCha20Rng::seed_from_u64(seed),
            dice: ChaCha20Rng::seed_from_u64(seed ^ 0xd1ce),
            service,
            seats,
            queue: Vec::new(),
            order: 0,
            loss: 0,
            repeats: 0,
            max_delay: 1_000,
            rejects: Vec::new(),
            confirmed: Vec::new(),
            coins: BTreeMap::new(),
            deposits: 0,
        }
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.dice.next_u64() % bound.max(1)
    }

    /// Registers all DIDs of a seat.
    pub(super) fn register(&mut self, at: usize) {
        let seat = &self.seats[at];
        let rows: Vec<_> = seat
            .dids
            .iter()
            .map(|controlled| seat.row(controlled.index, RowAction::Register, 1, &mut self.rng))
            .collect();
        self.feed_seat(at, &SeatInput::RowsAsked(rows));
    }

    /// A deposit that is final.
    pub(super) fn deposit(&mut self, value: u64) -> CoinRef {
        self.deposits += 1;
        let txid = Txid::from_byte_array(sha256(&[self.deposits]));
        let coin = CoinRef { txid, vout: 0, value };
        self.coins.insert(Coin::from(&coin).outpoint, value);
        let outgoing = self.service.feed(self.now, &CohortInput::CoinFound(coin), &mut self.rng).unwrap();
        self.send_all(outgoing);
        coin
    }

    pub(super) fn feed_seat(&mut self, at: usize, input: &SeatInput) {
        let outgoing = self.seats[at].feed(self.now, input, &self.service, &mut self.rng);
        let outgoing = outgoing.unwrap_or_else(|reject| panic!("{reject}"));
        self.send_from(at, outgoing);
    }

    pub(super) fn send_from(&mut self, at: usize, messages: Vec<StandingMessage>) {
        let from = self.seats[at].did.clone();
        for message in messages {
            self.post(None, &from, &message);
        }
    }

    pub(super) fn send_all(&mut self, outgoing: Vec<Outgoing>) {
        let from = self.service.did.clone();
        for one in outgoing {
            match one {
                Outgoing::ToAll(message) => {
                    (0..self.seats.len()).for_each(|at| self.post(Some(at), &from, &message));
                }
                Outgoing::To(did, message) => {
                    if let Some(at) = self.seats.iter().position(|seat| seat.did == did) {
                        self.post(Some(at), &from, &message);
                    }
                }
            }
        }
    }

    fn post(&mut self, to: Option<usize>, from: &Did, message: &StandingMessage) {
        // As text, as it travels.
        let sent = Message::new(from.clone(), None, Body::Standing(Box::new(message.clone())));
        let read = Message::from_json(&sent.to_json()).unwrap_or_else(|error| panic!("{message:?}: {error}"));
        let Body::Standing(message) = (*read.body).clone() else { panic!("{message:?}: read as another message") };
        let copies = 1 + u64::from(self.below(1_000) < self.repeats);
        for _ in 0..copies {
            if self.below(1_000) < self.loss {
                continue;
            }
            let at = self.now + Duration::from_millis(1 + self.below(self.max_delay));
            self.order += 1;
            let packet = Packet { at, order: self.order, to, from: from.clone(), message: (*message).clone() };
            self.queue.push(packet);
        }
    }

    /// Delivers the next message; returns whether there was one.
    fn deliver(&mut self) -> bool {
        let next = self.queue.iter().enumerate().min_by_key(|(_, packet)| (packet.at, packet.order));
        let Some((next, _)) = next else { return false };
        let packet = self.queue.swap_remove(next);
        self.now = self.now.max(packet.at);
        let name = packet.message.short_type();
        match packet.to {
            None if self.service.is_down => {}
            None => match self.service.receive(self.now, &packet.from, &packet.message, &mut self.rng) {
                Ok(outgoing) => self.send_all(outgoing),
                Err(reject) => self.rejects.push((format!("service: {name}"), reject)),
            },
            Some(at) if self.seats[at].is_away => {}
            Some(at) => {
                // An advert is answered by joining.
                if matches!(packet.message, StandingMessage::StandingAdvert(_)) {
                    let outgoing = self.seats[at].joins(self.now, &self.service, &mut self.rng);
                    self.send_from(at, outgoing);
                    return true;
                }
                let received = self.seats[at].receive(self.now, &packet.message, &self.service, &mut self.rng);
                match received {
                    Ok(outgoing) => self.send_from(at, outgoing),
                    Err(reject) => self.rejects.push((format!("seat {at}: {name}"), reject)),
                }
            }
        }
        true
    }

    /// Delivers until nothing is on its way; no time passes but that.
    pub fn run_until_quiet(&mut self) {
        let mut most = 100_000;
        while self.deliver() {
            most -= 1;
            assert!(most > 0, "messages without end");
        }
    }

    /// Lets time pass until `until`, with everything that is due.
    pub(super) fn run_until(&mut self, until: Timestamp) {
        let mut most = 100_000;
        loop {
            most -= 1;
            assert!(most > 0, "something happens without end");
            let packet = self.queue.iter().map(|packet| packet.at).min();
            let deadline = self.service.deadline().filter(|_| !self.service.is_down).map(|at| at.max(self.now));
            let next = match (packet, deadline) {
                (Some(packet), Some(deadline)) if deadline < packet => Err(deadline),
                (Some(packet), _) => Ok(packet),
                (None, Some(deadline)) => Err(deadline),
                (None, None) => break,
            };
            match next {
                Ok(at) if at <= until => drop(self.deliver()),
                Err(at) if at <= until => {
                    self.now = self.now.max(at);
                    let outgoing = self.service.tick(self.now, &mut self.rng);
                    self.send_all(outgoing);
                }
                _ => break,
            }
        }
        self.now = self.now.max(until);
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.run_until(self.now + Duration::from_secs(seconds));
    }

    /// The controllers of a seat want the next version of these DIDs.
    pub fn wants(&mut self, at: usize, dids: &[usize]) {
        for did in dids {
            self.seats[at].dids[*did].wants = true;
        }
        let pending = self.seats[at].machine.pending();
        if !self.seats[at].is_away {
            self.send_from(at, vec![pending]);
        }
    }

    /// A seat's connection is there again.
    pub(super) fn reconnect(&mut self, at: usize) {
        if self.seats[at].is_away || self.service.is_down {
            return;
        }
        let did = self.seats[at].did.clone();
        let outgoing = self.service.reconnected(self.now, &did, &mut self.rng);
        self.send_all(outgoing);
        let outgoing = self.seats[at].reconnected(self.now, &self.service, &mut self.rng);
        self.send_from(at, outgoing);
    }

    pub(super) fn crash_service(&mut self) {
        self.service.crash();
    }

    pub(super) fn restart_service(&mut self) {
        let outgoing = self.service.restart(self.now, &mut self.rng);
        self.send_all(outgoing);
    }

    pub(super) fn crash_seat(&mut self, at: usize) {
        self.seats[at].crash();
        let outgoing = self.seats[at].restart(self.now, &self.service, &mut self.rng);
        if !self.seats[at].is_away {
            self.send_from(at, outgoing);
        }
    }

    /// Confirms what is in the service's memory pool and can be, finally, and reports it to service and seats.
    pub(super) fn mine(&mut self) {
        let pool = self.service.mempool.clone();
        for transaction in pool {
            if self.confirmed.contains(&transaction) {
                continue;
            }
            let inputs: Vec<OutPoint> = transaction.input.iter().map(|input| input.previous_output).collect();
            if inputs.iter().all(|input| self.coins.contains_key(input)) {
                self.confirm(&transaction);
            }
        }
    }

    pub(super) fn confirm(&mut self, transaction: &Arc<Transaction>) {
        let output = self.service.cohort.output().unwrap().clone();
        let coins: Vec<CoinRef> = transaction
            .input
            .iter()
            .map(|input| {
                let value = self.coins.remove(&input.previous_output).expect("a coin that is there");
                CoinRef { txid: input.previous_output.txid, vout: input.previous_output.vout, value }
            })
            .collect();
        let prevouts: Vec<_> = coins.iter().map(|coin| Coin::from(coin).prevout(&output)).collect();
        assert!(consensus_accepts_all(transaction, &prevouts), "Bitcoin Core accepts {transaction:?}");
        let txid = transaction.compute_txid();
        for (vout, created) in (0..).zip(&transaction.output) {
            if created.script_pubkey == *output.script_pubkey() {
                self.coins.insert(OutPoint { txid, vout }, created.value.to_sat());
            }
        }
        self.confirmed.push(Arc::clone(transaction));
        for coin in &coins {
            if !self.service.is_down {
                let spent = CohortInput::Spent { coin: *coin, by: txid };
                let outgoing = self.service.feed(self.now, &spent, &mut self.rng).unwrap();
                self.send_all(outgoing);
            }
            for at in 0..self.seats.len() {
                let spent = SeatInput::Spent { coin: *coin, by: txid, signal: signal_of(transaction) };
                self.feed_seat(at, &spent);
            }
        }
        // Controllers follow the chain: what is final is the current version.
        let Some(content) = self.board_of(transaction) else { return };
        let mut resolved = Vec::new();
        for (at, seat) in self.seats.iter_mut().enumerate() {
            for controlled in &mut seat.dids {
                let response = content.responses.iter().find(|response| response.seat == seat.key.public_key());
                let number = content.number;
                let update =
                    updates_of(&seat.events, number).into_iter().find(|(index, ..)| *index == controlled.index);
                if let (Some(_), Some((_, version, _))) = (response, update)
                    && version == controlled.version + 1
                {
                    controlled.version = version;
                    controlled.wants = false;
                    controlled.salt += 1;
                    resolved.push((at, controlled.index, version));
                }
            }
        }
        for (at, index, version) in resolved {
            self.feed_seat(at, &SeatInput::Resolved { index, version });
        }
    }

    /// The board that a transaction announces.
    pub(super) fn board_of(&self, transaction: &Transaction) -> Option<BoardContent> {
        let signal = signal_of(transaction)?;
        let boards =
            self.service.boards.values().map(|bytes| serde_json::from_slice::<BoardContent>(bytes).unwrap());
        let mut matching = boards.filter(|content| signal_of_board(content) == signal);
        matching.next()
    }

    /// What must hold of every run.
    pub(super) fn assert_invariants(&self) {
        self.service.assert_replays();
        self.seats.iter().for_each(SeatNode::assert_replays);
        let mut nonces: Vec<_> = self.seats.iter().flat_map(|seat| &seat.opened).map(|nonce| nonce.0).collect();
        let opened = nonces.len();
        nonces.sort_unstable();
        nonces.dedup();
        assert_eq!(nonces.len(), opened, "a nonce was opened twice");
        for (at, seat) in self.seats.iter().enumerate() {
            // One number, one transaction, once.
            let mut numbers: Vec<u64> = seat.signed.iter().map(|(number, ..)| *number).collect();
            let signed = numbers.len();
            numbers.dedup();
            assert_eq!(numbers.len(), signed, "seat {at} has signed a number twice: {numbers:?}");
            for (number, ..) in &seat.signed {
                let content = seat.board(*number);
                let own = content.responses.iter().find(|response| response.seat == seat.key.public_key());
                assert_eq!(own, Some(&*seat.responses[number]), "seat {at} has signed for another response");
            }
        }
        self.assert_announcements();
    }

    /// Every announcement has under a DID what its seat has responded, and no two have different updates of one version.
    fn assert_announcements(&self) {
        let mut said: BTreeMap<(DidIndex, u64), DocumentHash> = BTreeMap::new();
        for transaction in &self.service.mempool {
            let Some(content) = self.board_of(transaction) else {
                assert!(signal_of(transaction).is_none(), "a signal without a board");
                continue;
            };
            for seat in &self.seats {
                let response = content.responses.iter().find(|response| response.seat == seat.key.public_key());
                if let Some(response) = response {
                    assert_eq!(*response, *seat.responses[&content.number], "not what the seat has responded");
                    for (index, version, hash) in updates_of(&seat.events, content.number) {
                        let first = *said.entry((index, version)).or_insert(hash);
                        assert_eq!(first, hash, "two updates of version {version} of {index}");
                    }
                }
            }
        }
    }
}

/// What a seat has committed to in a number.
pub(super) fn updates_of(
    events: &[btcr2_aggregation_protocol::cohort::standing::seat::SeatEvent],
    number: u64,
) -> Vec<(DidIndex, u64, DocumentHash)> {
    use btcr2_aggregation_protocol::cohort::standing::seat::SeatEvent;
    let committed = events.iter().find_map(|event| match event {
        SeatEvent::Committed { number: of, updates, .. } if *of == number => Some(updates.clone()),
        _ => None,
    });
    committed.unwrap_or_default()
}

pub fn signal_of(transaction: &Transaction) -> Option<SignalBytes> {
    let script = transaction.output.last()?.script_pubkey.as_bytes();
    Some(SignalBytes::from_bytes(script.strip_prefix(&[0x6a, 0x20])?.try_into().ok()?))
}

/// The signal that follows from a board, computed without the code under test.
pub fn signal_of_board(content: &BoardContent) -> SignalBytes {
    use btcr2_aggregation_protocol::beacon::{CasAnnouncement, SparseMerkleTree};
    let entries: Vec<&Entry> = content.responses.iter().flat_map(|response| &response.entries).collect();
    if entries.iter().any(|entry| matches!(entry, Entry::Smt { .. })) {
        let leaves = entries.iter().filter_map(|entry| match entry {
            Entry::Smt { did_index, leaf } => Some((*did_index.as_bytes(), *leaf.as_bytes())),
            Entry::Cas { .. } => None,
        });
        return SignalBytes::from_bytes(SparseMerkleTree::build(leaves.collect()).unwrap().root);
    }
    let map: CasAnnouncement = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Cas { did, update_hash } => Some((did.clone(), *update_hash)),
            Entry::Smt { .. } => None,
        })
        .collect();
    map.signal()
}
