//! What a ledger is computed from.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::Txid;
use serde::{Deserialize, Serialize};

use crate::{
    actors::standing::history::{Fate, Paid},
    protocol::{
        cohort::standing::{BoardContent, CoinRef, Entry, OpportunityKind, StandingBeacon, StandingTerms},
        did::Did,
        hash::{DidIndex, DocumentHash},
        id::CohortId,
        key::PublicKey,
        time::Timestamp,
    },
};

/// An update of a DID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// The DID's index.
    pub index: DidIndex,
    /// The hash of the signed update.
    pub hash: DocumentHash,
}

/// The updates of a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoardUpdates {
    /// CAS: every update with its seat, in the order of the board.
    Listed(Vec<(PublicKey, Update)>),
    /// SMT: the seats that have updates. How many, and of which DIDs, only the seat can see.
    OfSeats(Vec<PublicKey>),
}

/// What a board shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardFacts {
    /// The registered indexes of each seat, in KeySort order.
    pub roster: BTreeMap<PublicKey, Vec<DidIndex>>,
    /// The seats without a response.
    pub absent: BTreeSet<PublicKey>,
    /// The updates.
    pub updates: BoardUpdates,
    /// The DIDs that it names.
    pub dids: BTreeMap<DidIndex, Did>,
}

impl BoardFacts {
    /// Reads the bytes of a board that was checked before it was stored; `None` if they are none.
    pub fn read(bytes: &[u8], beacon: StandingBeacon) -> Option<Self> {
        let content: BoardContent = serde_json::from_slice(bytes).ok()?;
        let mut dids = BTreeMap::new();
        let updates = match beacon {
            StandingBeacon::Cas => {
                let mut listed = Vec::new();
                for response in &content.responses {
                    for entry in &response.entries {
                        if let Entry::Cas { did, update_hash } = entry {
                            let index = entry.index();
                            dids.extend(Did::parse(did).ok().map(|did| (index, did)));
                            listed.push((response.seat, Update { index, hash: *update_hash }));
                        }
                    }
                }
                BoardUpdates::Listed(listed)
            }
            StandingBeacon::Smt => {
                let with_updates = content.responses.iter().filter(|response| response.has_updates);
                BoardUpdates::OfSeats(with_updates.map(|response| response.seat).collect())
            }
        };
        let answered: BTreeSet<PublicKey> = content.responses.iter().map(|response| response.seat).collect();
        let roster: BTreeMap<_, _> =
            content.roster.into_iter().map(|listed| (listed.seat, listed.indexes)).collect();
        let absent = roster.keys().filter(|seat| !answered.contains(seat)).copied().collect();
        Some(Self { roster, absent, updates, dids })
    }
}

/// What a child paid that bumps a transaction by the operator's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChildFee {
    /// It was not looked up, or it cannot be seen.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// A child, and its fee in satoshi.
    Paid(u64, Txid),
}

/// A number with a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct NumberFacts {
    /// The number.
    pub number: u64,
    /// When it was signed, if that was recorded.
    pub at: Option<Timestamp>,
    /// What its transaction does.
    pub kind: OpportunityKind,
    /// The transaction.
    pub txid: Txid,
    /// What has become of it.
    pub state: Fate,
    /// What it spends; empty if that is not known.
    pub coins: Vec<CoinRef>,
    /// What it takes from the coins, if that was recorded.
    pub paid: Option<Paid>,
    /// Its board, if it is here.
    pub board: Option<BoardFacts>,
    /// The updates of seats that the board of an SMT cohort does not show.
    pub updates: BTreeMap<PublicKey, Vec<Update>>,
    /// What a child has paid.
    pub child: ChildFee,
}

impl NumberFacts {
    /// The updates of a seat; `None` if they are not known.
    pub fn updates_of(&self, seat: &PublicKey) -> Option<Vec<Update>> {
        let board = self.board.as_ref()?;
        match &board.updates {
            BoardUpdates::Listed(listed) => {
                Some(listed.iter().filter(|(of, _)| of == seat).map(|(_, update)| *update).collect())
            }
            BoardUpdates::OfSeats(seats) if seats.contains(seat) => self.updates.get(seat).cloned(),
            BoardUpdates::OfSeats(_) => Some(Vec::new()),
        }
    }

    /// The same number, from another source.
    fn merge(&mut self, other: Self) {
        // Whatever the order is, the same remains.
        let rank = |state: Fate| match state {
            Fate::Unconfirmed => 0,
            Fate::Void => 1,
            Fate::Final => 2,
        };
        self.at = [self.at, other.at].into_iter().flatten().min();
        if rank(other.state) > rank(self.state) {
            self.state = other.state;
        }
        if other.coins.len() > self.coins.len() {
            self.coins = other.coins;
        }
        let key = |paid: &Paid| (paid.fee, paid.vsize, Reverse(paid.operator.is_some()));
        self.paid = [self.paid.take(), other.paid].into_iter().flatten().min_by_key(key);
        self.board = self.board.take().or(other.board);
        self.updates.extend(other.updates);
        self.child = self.child.max(other.child);
    }
}

/// The numbers without a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tries {
    /// No seat had an update.
    pub idle: u64,
    /// Seats were absent, or have refused: the next number has spent the same coin.
    pub failed: u64,
    /// What became of them is not known any more.
    pub unknown: u64,
}

/// A cohort.
#[derive(Clone, Debug, PartialEq)]
pub struct CohortFacts {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its service.
    pub service: Did,
    /// Its terms.
    pub terms: Arc<StandingTerms>,
    /// When it has formed, if that was recorded.
    pub formed_at: Option<Timestamp>,
    /// The seats whose costs these are, with their DIDs: all at the service, at a member its own.
    pub seats: BTreeMap<PublicKey, Did>,
    /// Whether these are the costs of all seats.
    pub is_service: bool,
    /// The DIDs that are known.
    pub dids: BTreeMap<DidIndex, Did>,
    /// The numbers with a transaction.
    pub numbers: Vec<NumberFacts>,
    /// Those without, as far as they are known.
    pub tries: Option<Tries>,
}

impl CohortFacts {
    /// Each cohort and each number once, in order, whatever the order of the facts is, and however often they are there.
    pub fn merged(all: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut cohorts: BTreeMap<CohortId, Self> = BTreeMap::new();
        for facts in all {
            match cohorts.get_mut(&facts.cohort_id) {
                Some(known) => {
                    known.formed_at = [known.formed_at, facts.formed_at].into_iter().flatten().min();
                    known.seats.extend(facts.seats);
                    known.is_service |= facts.is_service;
                    known.dids.extend(facts.dids);
                    known.numbers.extend(facts.numbers);
                    known.tries = known.tries.or(facts.tries);
                }
                None => {
                    cohorts.insert(facts.cohort_id.clone(), facts);
                }
            }
        }
        for cohort in cohorts.values_mut() {
            let mut numbers: BTreeMap<(u64, Txid), NumberFacts> = BTreeMap::new();
            for facts in std::mem::take(&mut cohort.numbers) {
                match numbers.get_mut(&(facts.number, facts.txid)) {
                    Some(known) => known.merge(facts),
                    None => {
                        numbers.insert((facts.number, facts.txid), facts);
                    }
                }
            }
            cohort.numbers = numbers.into_values().collect();
            let named: Vec<_> = cohort.numbers.iter().filter_map(|number| number.board.as_ref()).collect();
            let named: BTreeMap<_, _> = named.into_iter().flat_map(|board| board.dids.clone()).collect();
            cohort.dids.extend(named);
        }
        cohorts.into_values().collect()
    }
}
