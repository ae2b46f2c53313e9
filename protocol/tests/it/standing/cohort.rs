//! A standing cohort without machines: its seats, their keys, their DIDs.

use bitcoin::OutPoint;
use btcr2_aggregation_protocol::{
    beacon::did_index,
    cohort::standing::{
        BoardPlace, CohortContext, Entry, OpportunityKind, Response, ResponseContent, Roster, Row, RowAction,
        SeatSeed, StandingBeacon, StandingTerms,
    },
    did::Did,
    hash::{DidIndex, DocumentHash, sha256},
    id::CohortId,
    key::SecretKey,
    message::Bytes,
    network::Network,
    output::{BeaconOutput, Coin},
    signing::nonce::SecretNonce,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use crate::bitcoin_support::{aggregation, coin};

pub const NETWORK: Network = Network::Regtest;

pub(super) fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(17)
}

/// The DID of a controller.
pub(super) fn did(number: usize) -> Did {
    let key = SecretKey::from_bytes(&sha256(format!("controller {number}").as_bytes())).unwrap();
    Did::from_key(key.public_key(), NETWORK)
}

pub(super) fn index(number: usize) -> DidIndex {
    did_index(&did(number))
}

/// The hash of an update of a controller.
pub(super) fn update(number: usize) -> DocumentHash {
    DocumentHash::from_bytes(sha256(format!("update {number}").as_bytes()))
}

pub(super) struct Cohort {
    pub(super) terms: StandingTerms,
    pub(super) service: Did,
    pub(super) seeds: Vec<SeatSeed>,
    /// Of the seats, in KeySort order.
    pub(super) keys: Vec<SecretKey>,
    pub(super) output: BeaconOutput,
    pub(super) roster: Roster,
}

impl Cohort {
    /// Of so many seats; `dids` of them registered to each, numbered seat by seat.
    pub(super) fn new(terms: StandingTerms, seats: usize, dids: usize) -> Self {
        let service = Did::from_key(SecretKey::from_bytes(&[3; 32]).unwrap().public_key(), NETWORK);
        let cohort_id = CohortId::parse("standing-cohort").unwrap();
        let seed = |seat: usize| SeatSeed::from_bytes(sha256(format!("seat {seat}").as_bytes()));
        let of_cohort = cohort_id.clone();
        let key = |seed: &SeatSeed| seed.seat_key(NETWORK, &service, &of_cohort).unwrap();
        let mut seeds: Vec<SeatSeed> = (0..seats).map(seed).collect();
        seeds.sort_by_key(|seed| key(seed).public_key());
        let keys: Vec<SecretKey> = seeds.iter().map(key).collect();
        let output = BeaconOutput::new(aggregation(&keys), NETWORK, &terms.script_tree()).unwrap();
        let context = CohortContext {
            network: NETWORK,
            service: service.clone(),
            cohort_id,
            beacon_address: output.address().to_owned(),
        };
        let public = keys.iter().map(SecretKey::public_key);
        let roster = Roster::new(context, public, terms.max_dids_per_participant);
        let mut cohort = Self { terms, service, seeds, keys, output, roster };
        for number in 0..seats * dids {
            let row = cohort.row(number / dids, number, RowAction::Register, 1);
            cohort.roster.follow([&row]).unwrap();
        }
        cohort
    }

    pub(super) fn row(&self, seat: usize, number: usize, action: RowAction, serial: u64) -> Row {
        Row::sign(self.roster.context(), &self.keys[seat], index(number), action, serial, &mut rng())
    }

    /// The leaf nonce of a DID at that number.
    pub(super) fn nonce(&self, seat: usize, number: u64, did: usize) -> [u8; 32] {
        self.seeds[seat].leaf_nonce(&self.service, self.output.address(), number, &index(did))
    }

    /// A public nonce of a seat.
    pub(super) fn public_nonce(&self, seat: usize, input: usize) -> Bytes<66> {
        let seed = sha256(format!("nonce {seat} {input}").as_bytes());
        SecretNonce::from_seed(&self.keys[seat], &self.output, &seed).1
    }

    /// What a seat answers that has updates for `updated` of its DIDs.
    pub(super) fn content(&self, seat: usize, number: u64, updated: &[usize], inputs: usize) -> ResponseContent {
        let of_seat = |did: &usize| self.roster.seat_of(&index(*did)) == Some(&self.keys[seat].public_key());
        let dids: Vec<usize> = (0..1_000).take(self.roster.len() + 10).filter(of_seat).collect();
        let mut entries: Vec<Entry> = match self.terms.beacon_type {
            StandingBeacon::Cas => updated
                .iter()
                .map(|number| Entry::Cas { did: did(*number).as_str().to_owned(), update_hash: update(*number) })
                .collect(),
            StandingBeacon::Smt => dids
                .iter()
                .map(|did| {
                    let hash = updated.contains(did).then(|| update(*did));
                    Entry::leaf(index(*did), &self.nonce(seat, number, *did), hash.as_ref())
                })
                .collect(),
        };
        entries.sort();
        ResponseContent {
            number,
            roster_hash: self.roster.hash(),
            has_updates: !updated.is_empty(),
            entries,
            nonce_contributions: (0..inputs).map(|input| self.public_nonce(seat, input)).collect(),
        }
    }

    pub(super) fn response(&self, seat: usize, number: u64, updated: &[usize]) -> Response {
        self.content(seat, number, updated, 1).sign(self.roster.context(), &self.keys[seat], &mut rng())
    }

    pub(super) fn place<'a>(&'a self, roster_hash: &'a DocumentHash, number: u64) -> BoardPlace<'a> {
        BoardPlace {
            terms: &self.terms,
            roster: &self.roster,
            roster_hash,
            number,
            inputs: 1,
            kind: OpportunityKind::Announcement,
        }
    }

    /// A coin of the cohort.
    pub(super) fn coin(&self, sat: u64, vout: u32) -> Coin {
        let coin = coin(sat);
        Coin { outpoint: OutPoint { vout, ..coin.outpoint }, ..coin }
    }
}
