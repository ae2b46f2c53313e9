//! The facts in the state directory of a service: its history, the boards, and the journals of numbers that have ended without a transaction.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    CostsError,
    facts::{BoardFacts, ChildFee, CohortFacts, NumberFacts, Tries},
};
use crate::{
    actors::{
        journal::{Journal, StreamKind},
        standing::{
            boards::BoardStore,
            history::{Announced, CohortRecord, HistoryStore},
        },
        state::{State, boards::StateBoards, history::StateHistory, transfer::STANDING_DIDS},
    },
    protocol::{
        cohort::standing::number::{NumberEnd, NumberEvent},
        did::Did,
        hash::{DidIndex, DocumentHash},
        id::CohortId,
    },
};

/// How many numbers are read at once.
const PAGE: usize = 256;

/// The facts of all cohorts of a service.
///
/// # Errors
/// [`CostsError`] when the directory cannot be read.
pub async fn of_service(state: &State) -> Result<Vec<CohortFacts>, CostsError> {
    let history = StateHistory::new(state);
    let mut all = Vec::new();
    for record in history.cohorts().await.map_err(CostsError::of)? {
        let mut announced = Vec::new();
        loop {
            let after = announced.last().map_or(0, |last: &Announced| last.number);
            let page = history.list(&record.cohort_id, after, PAGE).await.map_err(CostsError::of)?;
            if page.is_empty() {
                break;
            }
            announced.extend(page);
        }
        all.push(cohort(state, record, announced).await?);
    }
    Ok(all)
}

async fn cohort(state: &State, record: CohortRecord, announced: Vec<Announced>) -> Result<CohortFacts, CostsError> {
    let beacon = record.terms.beacon_type;
    let tries = tries(state, &record.cohort_id, &announced).await?;
    let mut numbers = Vec::with_capacity(announced.len());
    for announced in announced {
        let board = board(state, &announced.board_hash).await?;
        numbers.push(NumberFacts {
            number: announced.number,
            at: announced.at,
            kind: announced.kind,
            txid: announced.txid,
            state: announced.state,
            coins: announced.coins,
            paid: announced.paid,
            board: board.and_then(|bytes| BoardFacts::read(&bytes, beacon)),
            updates: BTreeMap::new(),
            child: ChildFee::Unknown,
        });
    }
    let dids = dids(state, &numbers).await?;
    Ok(CohortFacts {
        cohort_id: record.cohort_id,
        service: record.service,
        terms: record.terms,
        formed_at: record.formed_at,
        seats: record.seats.into_iter().collect(),
        is_service: true,
        dids,
        numbers,
        tries: Some(tries),
    })
}

pub(super) async fn board(
    state: &State,
    hash: &DocumentHash,
) -> Result<Option<std::sync::Arc<Vec<u8>>>, CostsError> {
    StateBoards::new(state).get(hash).await.map_err(CostsError::of)
}

/// The registered DIDs that the operator knows.
async fn dids(state: &State, numbers: &[NumberFacts]) -> Result<BTreeMap<DidIndex, Did>, CostsError> {
    let rosters = numbers.iter().filter_map(|number| number.board.as_ref()).flat_map(|board| board.roster.values());
    let indexes: BTreeSet<DidIndex> = rosters.flatten().copied().collect();
    let table = state.table(STANDING_DIDS);
    let mut dids = BTreeMap::new();
    for index in indexes {
        let Some(bytes) = table.get(*index.as_bytes()).await.map_err(CostsError::of)? else { continue };
        let stored: Value = serde_json::from_slice(&bytes).map_err(CostsError::of)?;
        dids.extend(stored["did"].as_str().and_then(|did| Did::parse(did).ok()).map(|did| (index, did)));
    }
    Ok(dids)
}

/// What has become of the numbers without a transaction: their journals are archived, until `state prune` deletes them.
async fn tries(state: &State, cohort_id: &CohortId, announced: &[Announced]) -> Result<Tries, CostsError> {
    let signed: BTreeSet<u64> = announced.iter().map(|announced| announced.number).collect();
    let (mut tries, mut seen) = (Tries::default(), signed.clone());
    for summary in state.streams().await.map_err(CostsError::of)? {
        let StreamKind::Number { number, cohort_id: of } = summary.stream.kind() else { continue };
        if of != *cohort_id || signed.contains(&number) {
            continue;
        }
        let records = state.journal().read(&summary.stream).await.map_err(CostsError::of)?;
        // One that is open has no end.
        let last =
            records.last().map(|record| record.event::<NumberEvent>()).transpose().map_err(CostsError::of)?;
        match last {
            Some(NumberEvent::Ended { end: NumberEnd::Idle { .. }, .. }) => tries.idle += 1,
            Some(NumberEvent::Ended { end: NumberEnd::Failed { .. }, .. }) => tries.failed += 1,
            _ => {}
        }
        seen.insert(number);
    }
    let last = seen.last().copied().unwrap_or(0);
    tries.unknown = last - seen.iter().filter(|number| **number > 0).count() as u64;
    Ok(tries)
}
