//! Two standing cohorts of one service, of which the second succeeds the first.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::OutPoint;
use btcr2_aggregation_protocol::{
    cohort::standing::{
        CoinRef, OpportunityKind, StandingTerms, Succession, Successor,
        cohort::CohortInput,
        number::NumberEnd,
        seat::{SeatEvent, SeatInput},
    },
    error::Reject,
    hash::{DidIndex, DocumentHash},
};

use super::{
    seat_node::SeatNode,
    service_node::ServiceNode,
    world::{World, updates_of},
};

pub(super) const SUCCESSOR: &str = "successor-cohort";

pub(super) struct Migration {
    pub(super) old: World,
    pub(super) new: World,
    /// How many transactions of the old cohort have paid to the new one.
    arrived: usize,
}

impl Migration {
    /// The successor of a formed cohort: seats of the old one with these numbers, and others, each with the same DIDs. It has formed, and
    /// a roster number has shown each seat that its indexes are registered.
    pub(super) fn new(seed: u64, old: World, terms: &StandingTerms, numbers: &[usize]) -> Self {
        let dids = old.seats[0].dids.len();
        let service = ServiceNode::named(SUCCESSOR, terms);
        let mut new = World::of(seed ^ 0x5cc, old.now, service, numbers, dids);
        let context = old.service.cohort.roster().unwrap().context();
        let cohort_id = new.service.config().cohort_id.clone();
        let succession = Succession::sign(context, &cohort_id, &new.service.key, &mut new.rng);
        let advertise = CohortInput::AdvertiseSuccessor(succession);
        let outgoing = new.service.feed(new.now, &advertise, &mut new.rng).unwrap();
        new.send_all(outgoing);
        new.form();
        let outgoing = new.service.open_now(new.now, OpportunityKind::Roster, &mut new.rng);
        new.send_all(outgoing);
        new.run_until_quiet();
        Self { old, new, arrived: 0 }
    }

    /// The successor, signed by the service.
    pub(super) fn successor(&mut self) -> Successor {
        let Self { old, new, .. } = self;
        let context = old.service.cohort.roster().unwrap().context();
        let config = new.service.config();
        let output = new.service.cohort.output().unwrap();
        Successor::sign(context, &config.cohort_id, &config.terms, output, &old.service.key, &mut old.rng)
    }

    /// The old cohort's service names it to its seats.
    pub(super) fn name(&mut self) {
        let named = CohortInput::SuccessorFormed(Arc::new(self.successor()));
        let outgoing = self.old.service.feed(self.old.now, &named, &mut self.old.rng).unwrap();
        self.old.send_all(outgoing);
        self.old.run_until_quiet();
    }

    /// The place of an old seat in the new cohort.
    pub(super) fn place_of(&self, at: usize) -> Option<usize> {
        let did = &self.old.seats[at].dids[0].did;
        self.new.seats.iter().position(|seat| seat.dids[0].did == *did)
    }

    /// An old seat that knows the successor prepares the move of what is registered there; the rest stays.
    pub(super) fn prepare(&mut self, at: usize) {
        let place = self.place_of(at);
        let registered: Vec<DidIndex> =
            place.map_or_else(Vec::new, |place| self.new.seats[place].registered.clone());
        let old = &mut self.old.seats[at];
        let Some(successor) = old.machine.successor().cloned() else { return };
        // Before the first number the machine does not know its own rows yet.
        let former = old.machine.former_indexes();
        let own = old.dids.iter().map(|controlled| controlled.index).filter(|index| !former.contains(index));
        let own: Vec<DidIndex> = own.collect();
        let (registered, left): (Vec<_>, Vec<_>) = own.into_iter().partition(|index| registered.contains(index));
        for controlled in old.dids.iter_mut().filter(|one| registered.contains(&one.index)) {
            // Another update of it may be on its way: then it moves after that one.
            let is_free = old.machine.committed().iter().all(|(index, ..)| *index != controlled.index);
            if is_free && controlled.moves.is_none() {
                controlled.moves = Some(successor.beacon_address.clone());
            }
        }
        let prepared = SeatInput::MovePrepared { successor: successor.cohort_id.clone(), registered, left };
        self.old.feed_seat(at, &prepared);
    }

    pub(super) fn prepare_all(&mut self) {
        (0..self.old.seats.len()).for_each(|at| self.prepare(at));
    }

    /// The operator opens a number of the old cohort.
    pub(super) fn open(&mut self, kind: OpportunityKind) -> Result<(), Reject> {
        let old = &mut self.old;
        let outgoing = old.service.feed(old.now, &CohortInput::OpenNow { kind }, &mut old.rng)?;
        old.send_all(outgoing);
        Ok(())
    }

    /// The number whose transaction moves, if it is signed.
    pub(super) fn moved(&self) -> Option<u64> {
        self.old.service.cohort.moved()
    }

    /// What is in the old service's memory pool is final. What it pays to the successor is a coin there, and what it announces is
    /// the current version there.
    pub(super) fn mine(&mut self) {
        self.old.mine();
        let Self { old, new, arrived } = self;
        let script = new.service.cohort.output().unwrap().script_pubkey().to_owned();
        for transaction in old.confirmed.iter().skip(std::mem::replace(arrived, old.confirmed.len())) {
            let txid = transaction.compute_txid();
            for (vout, output) in (0..).zip(&transaction.output).filter(|(_, one)| one.script_pubkey == script) {
                let coin = CoinRef { txid, vout, value: output.value.to_sat() };
                new.coins.insert(OutPoint { txid, vout }, coin.value);
                let outgoing = new.service.feed(new.now, &CohortInput::CoinFound(coin), &mut new.rng).unwrap();
                new.send_all(outgoing);
            }
        }
        new.mine();
        for at in 0..self.old.seats.len() {
            let Some(place) = self.place_of(at) else { continue };
            for did in 0..self.old.seats[at].dids.len() {
                let (index, version) = (self.old.seats[at].dids[did].index, self.old.seats[at].dids[did].version);
                if self.new.seats[place].dids[did].version < version {
                    self.new.seats[place].dids[did].version = version;
                    self.new.feed_seat(place, &SeatInput::Resolved { index, version });
                }
            }
        }
    }

    /// Both let time pass.
    pub(super) fn pass(&mut self, seconds: u64) {
        self.old.pass(seconds);
        self.new.pass(seconds);
    }

    /// What must hold: of each cohort, and of both. No two announcements, of any cohort, have different updates of one version; and the old
    /// one announces nothing that does not descend from the coin of the move.
    pub(super) fn assert_invariants(&self) {
        self.old.assert_invariants();
        self.new.assert_invariants();
        let mut announced: BTreeMap<(DidIndex, u64), DocumentHash> = BTreeMap::new();
        for world in [&self.old, &self.new] {
            for content in world.service.mempool.iter().filter_map(|transaction| world.board_of(transaction)) {
                let has_responded = |seat: &&SeatNode| {
                    content.responses.iter().any(|response| response.seat == seat.key.public_key())
                };
                for seat in world.seats.iter().filter(has_responded) {
                    for (index, version, hash) in updates_of(&seat.events, content.number) {
                        let first = *announced.entry((index, version)).or_insert(hash);
                        assert_eq!(first, hash, "two updates of version {version} of {index}");
                    }
                }
            }
        }
        let Some(moved) = self.moved() else { return };
        let later = self.old.service.ends.range(moved + 1..);
        for (number, _) in later.filter(|(_, end)| matches!(end, NumberEnd::Signed { .. })) {
            let opened = self.old.service.numbers[number].machine.task().opportunity.kind;
            assert_eq!(opened, OpportunityKind::Refresh, "the old cohort announces no more");
        }
        // A seat that has signed the move has moved each of its DIDs, or left it by its own decision.
        for seat in &self.old.seats {
            if !seat.signed.iter().any(|(number, ..)| *number == moved) {
                continue;
            }
            let prepared = seat.events.iter().rev().find_map(|event| match event {
                SeatEvent::MovePrepared { registered, left, .. } => Some((registered, left)),
                _ => None,
            });
            // A seat whose DIDs have all left has nothing to prepare.
            let none = (&Vec::new(), &Vec::new());
            let (registered, left) = prepared.unwrap_or(none);
            let updates = updates_of(&seat.events, moved);
            assert!(
                updates.iter().all(|(index, ..)| registered.contains(index)),
                "moved, and not registered there"
            );
            let content = seat.board(moved);
            let own = content.roster.iter().find(|listed| listed.seat == seat.key.public_key()).unwrap();
            for index in &own.indexes {
                assert!(updates.iter().any(|(of, ..)| of == index) || left.contains(index), "{index} is stranded");
            }
        }
    }
}
