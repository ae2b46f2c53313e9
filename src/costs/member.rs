//! The facts of a member: what its own seats have verified before they signed, in its state directory.
//!
//! They are recorded with the board of a number, before it is signed, and not taken from the service. What has become of a transaction
//! follows from which transaction has spent its coins.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use bitcoin::{OutPoint, Txid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    CostsError,
    facts::{BoardFacts, ChildFee, CohortFacts, NumberFacts, Update},
    service::board,
};
use crate::{
    actors::{
        runtime::Clock,
        standing::{
            history::{Fate, Paid},
            notice::SeatNotice,
            policy::{BoardToSign, MissedBoard, SeatView},
        },
        state::{State, Table},
    },
    protocol::{
        cohort::standing::{CoinRef, OpportunityKind, StandingTerms},
        did::Did,
        hash::{DidIndex, DocumentHash},
        id::CohortId,
        key::PublicKey,
        time::Timestamp,
    },
};

/// By seat.
const SEATS: &str = "costs-seats";
/// By seat, number and transaction.
const NUMBERS: &str = "costs-numbers";
/// By coin.
const SPENT: &str = "costs-spent";
/// By index.
const DIDS: &str = "costs-dids";

/// The tables, for backups.
pub(crate) const TABLES: [&str; 4] = [SEATS, NUMBERS, SPENT, DIDS];

/// How many entries are read at once.
const PAGE: usize = 1_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeatRecord {
    seat: Did,
    key: PublicKey,
    service: Did,
    cohort_id: CohortId,
    terms: Arc<StandingTerms>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    formed_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NumberRecord {
    seat: Did,
    number: u64,
    at: Timestamp,
    kind: OpportunityKind,
    txid: Txid,
    /// Not known of one that was announced without this seat.
    #[serde(default)]
    coins: Vec<CoinRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paid: Option<Paid>,
    board_hash: DocumentHash,
    /// The seat's own, if they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updates: Option<Vec<Update>>,
}

/// Stores what a member's seats have verified.
pub struct SeatCosts {
    state: State,
    clock: Clock,
    /// The DIDs whose names are stored.
    named: Mutex<BTreeSet<DidIndex>>,
}

fn written(value: &impl Serialize) -> Result<Vec<u8>, CostsError> {
    serde_json::to_vec(value).map_err(CostsError::of)
}

impl SeatCosts {
    /// In a state directory.
    pub fn new(state: &State, clock: Clock) -> Self {
        Self { state: state.clone(), clock, named: Mutex::default() }
    }

    /// Stores a value, unless there is one.
    async fn put_new(&self, table: &str, key: Vec<u8>, value: &impl Serialize) -> Result<(), CostsError> {
        let table: Table = self.state.table(table);
        if table.get(key.clone()).await.map_err(CostsError::of)?.is_none() {
            table.put(key, written(value)?).await.map_err(CostsError::of)?;
        }
        Ok(())
    }

    async fn seat(&self, view: &SeatView, formed_at: Option<Timestamp>) -> Result<(), CostsError> {
        let record = SeatRecord {
            seat: view.seat.clone(),
            key: view.key,
            service: view.service.clone(),
            cohort_id: view.cohort_id.clone(),
            terms: Arc::clone(&view.terms),
            formed_at,
        };
        self.put_new(SEATS, view.seat.as_str().as_bytes().to_vec(), &record).await
    }

    async fn number(&self, view: &SeatView, record: &NumberRecord) -> Result<(), CostsError> {
        // One from before this was recorded: when it has formed is not known.
        self.seat(view, None).await?;
        let key = format!("{}/{:020}/{}", record.seat, record.number, record.txid);
        self.put_new(NUMBERS, key.into_bytes(), record).await
    }

    /// The seat's cohort has formed.
    ///
    /// # Errors
    /// [`CostsError`] when it cannot be stored.
    pub async fn formed(&self, view: &SeatView) -> Result<(), CostsError> {
        self.seat(view, Some(self.clock.now())).await
    }

    /// The seat has verified a number, and is about to sign it.
    ///
    /// # Errors
    /// [`CostsError`] when it cannot be stored.
    pub async fn signs(
        &self,
        view: &SeatView,
        board: &BoardToSign,
        dids: &BTreeMap<DidIndex, Did>,
    ) -> Result<(), CostsError> {
        let update = |index: DidIndex, hash: Option<DocumentHash>| hash.map(|hash| Update { index, hash });
        let updates: Vec<Update> =
            board.entries.iter().filter_map(|entry| update(entry.index, entry.update)).collect();
        for entry in &board.entries {
            self.name(entry.index, dids).await?;
        }
        let record = NumberRecord {
            seat: view.seat.clone(),
            number: board.number,
            at: self.clock.now(),
            kind: board.kind,
            txid: board.transaction.compute_txid(),
            coins: board.coins.clone(),
            paid: Paid::of(&board.transaction, &board.coins, board.mode, board.vsize),
            board_hash: *board.board.hash(),
            updates: Some(updates),
        };
        self.number(view, &record).await
    }

    /// A number was announced without the seat: its coins and its transaction are not known here.
    ///
    /// # Errors
    /// [`CostsError`] when it cannot be stored.
    pub async fn missed(&self, view: &SeatView, missed: &MissedBoard) -> Result<(), CostsError> {
        let record = NumberRecord {
            seat: view.seat.clone(),
            number: missed.number,
            at: self.clock.now(),
            kind: OpportunityKind::Announcement,
            txid: missed.txid,
            coins: Vec::new(),
            paid: None,
            board_hash: missed.board_hash,
            updates: None,
        };
        self.number(view, &record).await
    }

    async fn name(&self, index: DidIndex, dids: &BTreeMap<DidIndex, Did>) -> Result<(), CostsError> {
        // Each change is one call.
        let is_named = self.named.lock().unwrap_or_else(PoisonError::into_inner).contains(&index);
        let Some(did) = dids.get(&index).filter(|_| !is_named) else { return Ok(()) };
        self.put_new(DIDS, index.as_bytes().to_vec(), did).await?;
        self.named.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
        Ok(())
    }

    /// Follows the coins of cohorts.
    ///
    /// # Errors
    /// [`CostsError`] when it cannot be stored.
    pub async fn follow(&self, notice: &SeatNotice) -> Result<(), CostsError> {
        let SeatNotice::CoinSpent { outpoint, by, .. } = notice else { return Ok(()) };
        // A reorganization may have another one confirmed.
        let put = self.state.table(SPENT).put(outpoint.to_string().into_bytes(), written(by)?);
        put.await.map_err(CostsError::of)
    }
}

async fn all<T: DeserializeOwned>(state: &State, table: &str) -> Result<Vec<(Vec<u8>, T)>, CostsError> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = state.table(table).scan(Vec::new(), after, PAGE).await.map_err(CostsError::of)?;
        if let Some(key) = page.damaged.first() {
            return Err(CostsError(format!("the entry {key:02x?} of {table} is damaged")));
        }
        for (key, value) in page.entries {
            all.push((key, serde_json::from_slice(&value).map_err(CostsError::of)?));
        }
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// The facts of all seats of a member.
///
/// # Errors
/// [`CostsError`] when the directory cannot be read.
pub async fn of_member(state: &State) -> Result<Vec<CohortFacts>, CostsError> {
    let spent = all::<Txid>(state, SPENT).await?.into_iter();
    let spent = spent.filter_map(|(key, by)| Some((std::str::from_utf8(&key).ok()?.parse().ok()?, by)));
    let spent: BTreeMap<OutPoint, Txid> = spent.collect();
    let dids = all::<Did>(state, DIDS).await?.into_iter();
    let dids: BTreeMap<DidIndex, Did> =
        dids.map(|(_, did)| (crate::protocol::beacon::did_index(&did), did)).collect();
    let mut numbers: BTreeMap<Did, Vec<NumberRecord>> = BTreeMap::new();
    for (_, record) in all::<NumberRecord>(state, NUMBERS).await? {
        numbers.entry(record.seat.clone()).or_default().push(record);
    }
    let mut facts = Vec::new();
    for (_, seat) in all::<SeatRecord>(state, SEATS).await? {
        let records = numbers.remove(&seat.seat).unwrap_or_default();
        let mut of_seat = Vec::with_capacity(records.len());
        for (record, fate) in records.iter().zip(fates(&records, &spent)) {
            let bytes = board(state, &record.board_hash).await?;
            of_seat.push(NumberFacts {
                number: record.number,
                at: Some(record.at),
                kind: record.kind,
                txid: record.txid,
                state: fate,
                coins: record.coins.clone(),
                paid: record.paid.clone(),
                board: bytes.and_then(|bytes| BoardFacts::read(&bytes, seat.terms.beacon_type)),
                updates: record.updates.clone().map(|updates| (seat.key, updates)).into_iter().collect(),
                child: ChildFee::Unknown,
            });
        }
        facts.push(CohortFacts {
            cohort_id: seat.cohort_id,
            service: seat.service,
            terms: seat.terms,
            formed_at: seat.formed_at,
            seats: BTreeMap::from([(seat.key, seat.seat)]),
            is_service: false,
            dids: dids.clone(),
            numbers: of_seat,
            tries: None,
        });
    }
    Ok(facts)
}

/// What has become of the numbers of a seat, in ascending order.
///
/// A number is final if it has spent its coins, or if a final one descends from it. It is void if another transaction has spent a coin of it, or of
/// one from which it descends. A later number on the same coin shows that it has failed, as long as neither is final.
fn fates(records: &[NumberRecord], spent: &BTreeMap<OutPoint, Txid>) -> Vec<Fate> {
    let outpoint = |coin: &CoinRef| OutPoint::new(coin.txid, coin.vout);
    let mut finals: BTreeSet<Txid> = spent.values().copied().collect();
    for record in records.iter().rev() {
        if finals.contains(&record.txid) {
            finals.extend(record.coins.iter().map(|coin| coin.txid));
        }
    }
    let mut spending: BTreeMap<OutPoint, Vec<usize>> = BTreeMap::new();
    for (place, record) in records.iter().enumerate() {
        record.coins.iter().for_each(|coin| spending.entry(outpoint(coin)).or_default().push(place));
    }
    let mut void: BTreeSet<Txid> = BTreeSet::new();
    let mut fates = Vec::with_capacity(records.len());
    for (place, record) in records.iter().enumerate() {
        let coins: BTreeSet<OutPoint> = record.coins.iter().map(outpoint).collect();
        let is_lost = coins
            .iter()
            .any(|coin| void.contains(&coin.txid) || spent.get(coin).is_some_and(|by| *by != record.txid));
        let others = coins.iter().flat_map(|coin| &spending[coin]).filter(|other| **other != place);
        let is_replaced = others.into_iter().any(|other| *other > place || finals.contains(&records[*other].txid));
        let fate = match (finals.contains(&record.txid), is_lost || is_replaced) {
            (true, _) => Fate::Final,
            (false, true) => Fate::Void,
            (false, false) => Fate::Unconfirmed,
        };
        if fate == Fate::Void {
            void.insert(record.txid);
        }
        fates.push(fate);
    }
    fates
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bitcoin::hashes::Hash;

    use super::*;
    use crate::protocol::{identity::Identity, key::SecretKey, network::Network};

    fn txid(byte: u8) -> Txid {
        Txid::from_byte_array([byte; 32])
    }

    /// A number whose transaction has its own byte, on the change of another one.
    fn record(number: u8, on: u8) -> NumberRecord {
        let seat = Identity::from_key(SecretKey::from_bytes(&[1; 32]).unwrap(), Network::Regtest).did().clone();
        NumberRecord {
            seat,
            number: u64::from(number),
            at: Timestamp::from_secs(u64::from(number)),
            kind: OpportunityKind::Announcement,
            txid: txid(number),
            coins: vec![CoinRef { txid: txid(on), vout: 0, value: 1_000 }],
            paid: None,
            board_hash: DocumentHash::from_bytes([number; 32]),
            updates: None,
        }
    }

    #[test]
    fn what_became_of_numbers_follows_from_who_spent_the_coins() {
        use Fate::{Final, Unconfirmed, Void};
        let spent = |pairs: &[(u8, u8)]| {
            pairs.iter().map(|(coin, by)| (OutPoint::new(txid(*coin), 0), txid(*by))).collect::<BTreeMap<_, _>>()
        };
        let chain = [record(1, 100), record(2, 1), record(3, 2)];
        assert_eq!(fates(&chain, &spent(&[])), [Unconfirmed; 3]);
        assert_eq!(fates(&chain, &spent(&[(100, 1)])), [Final, Unconfirmed, Unconfirmed]);
        // The notice of the first one was lost.
        assert_eq!(fates(&chain, &spent(&[(1, 2)])), [Final, Final, Unconfirmed]);
        assert_eq!(fates(&chain, &spent(&[(100, 77)])), [Void; 3], "and all that descends from it");
        // The first has failed, and the second spends the same coin; either may be the one that is mined.
        let again = [record(1, 100), record(2, 100)];
        assert_eq!(fates(&again, &spent(&[])), [Void, Unconfirmed]);
        assert_eq!(fates(&again, &spent(&[(100, 2)])), [Void, Final]);
        assert_eq!(fates(&again, &spent(&[(100, 1)])), [Final, Void]);
    }
}
