//! Finds the announcements of a member's cohorts on the chain: whether a transaction with the approved signal spends
//! from the beacon address, and how many blocks confirm it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::bitcoin::{OutPoint, Transaction, Txid};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};

use crate::{
    bitcoin::{
        chain::{Chain, ChainError, ChainSource},
        ledger::{Ledger, read_spenders},
    },
    protocol::{id::CohortId, network::Network, sidecar::MemberRecord},
};

pub(crate) use crate::bitcoin::sighting::Sighting;

/// A chain that a member queries for the confirmations of the transactions that it has signed.
#[derive(Clone, Debug)]
pub struct ChainQuestions {
    /// The source of the chain.
    pub source: ChainSource,
    /// The poll interval.
    pub poll: Duration,
    /// The confirmations after which a transaction counts as announced; at least 1.
    pub confirmations: u32,
    /// How many of the last blocks are searched for transactions that previous runs have signed.
    pub look_back: u32,
}

impl ChainQuestions {
    /// The default poll interval.
    pub const POLL: Duration = Duration::from_secs(30);
    /// The default number of confirmations: that of a service.
    pub const CONFIRMATIONS: u32 = 6;
    /// The default number of blocks to search: about a day.
    pub const LOOK_BACK: u32 = 144;
}

/// A result of the queries.
#[derive(Debug)]
pub(super) enum News {
    /// The sighting of this cohort has changed.
    Sighted(CohortId, Sighting),
    /// The chain does not answer, for this reason; it is queried again.
    Silent(ChainError),
    /// The chain answers again.
    Answers,
    /// The chain cannot be used; the operator must act.
    Unusable(ChainError),
}

/// An announcement to find.
struct Wanted {
    record: Arc<MemberRecord>,
    /// The outputs that its transaction spends, if it was seen.
    spends: Vec<OutPoint>,
}

/// The queries about a member's cohorts, and their results.
pub(super) struct Confirmations {
    needed: u32,
    wanted: UnboundedSender<Wanted>,
    news: UnboundedReceiver<News>,
    /// The last sighting of each cohort.
    sighted: BTreeMap<CohortId, Sighting>,
}

impl Confirmations {
    /// Starts to query the chain. Stops when dropped.
    pub(super) fn start(questions: ChainQuestions, network: Network) -> Self {
        // Both channels are bounded in effect: they carry the member's own cohorts, and changes of their sightings.
        let (wanted, orders) = unbounded_channel();
        let (results, news) = unbounded_channel();
        let needed = questions.confirmations.max(1);
        actix_rt::spawn(ask(questions, network, orders, results));
        Self { needed, wanted, news, sighted: BTreeMap::new() }
    }

    /// The confirmations that are enough.
    pub(super) fn needed(&self) -> u32 {
        self.needed
    }

    /// Follows the announcement of that cohort from now on, until it has enough confirmations.
    pub(super) fn look_for(&self, record: &Arc<MemberRecord>, transaction: Option<&Transaction>) {
        let spends = transaction.iter().flat_map(|transaction| &transaction.input);
        let spends = spends.map(|input| input.previous_output).collect();
        // The task has ended and sent its reason.
        let _ = self.wanted.send(Wanted { record: Arc::clone(record), spends });
    }

    /// The next result.
    pub(super) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(News::Sighted(cohort_id, sighting)) => {
                self.sighted.insert(cohort_id.clone(), sighting);
                News::Sighted(cohort_id, sighting)
            }
            Some(news) => news,
            // The task ends only after it has reported that the chain cannot be used.
            None => std::future::pending().await,
        }
    }

    /// The last sighting of that cohort in this run.
    pub(super) fn sighting(&self, cohort_id: &CohortId) -> Option<Sighting> {
        self.sighted.get(cohort_id).copied()
    }

    /// Whether it will not change any more.
    pub(super) fn is_settled(&self, sighting: Sighting) -> bool {
        sighting.is_settled(self.needed)
    }
}

/// An announcement that is followed.
struct Followed {
    wanted: Wanted,
    ledger: Ledger,
    transactions: BTreeMap<Txid, Transaction>,
    reported: Option<Sighting>,
}

async fn ask(
    questions: ChainQuestions,
    network: Network,
    mut orders: UnboundedReceiver<Wanted>,
    results: UnboundedSender<News>,
) {
    let mut silent = false;
    let mut chain: Option<Arc<dyn Chain>> = None;
    let mut followed: BTreeMap<CohortId, Followed> = BTreeMap::new();
    let mut fresh: Vec<Wanted> = Vec::new();
    loop {
        // Connected before there is anything to find, so that errors of the chain are reported at the start.
        let connected = match &chain {
            Some(chain) => Ok(Arc::clone(chain)),
            None => questions.source.connect(network).await,
        };
        let outcome = match connected {
            Ok(connected) => {
                chain = Some(Arc::clone(&connected));
                poll(&*connected, &questions, &mut fresh, &mut followed, &results).await
            }
            Err(error) => Err(error),
        };
        let news = match outcome {
            Ok(()) => std::mem::take(&mut silent).then_some(News::Answers),
            Err(error) if !error.is_transient() => {
                let _ = results.send(News::Unusable(error));
                return;
            }
            Err(error) => (!std::mem::replace(&mut silent, true)).then_some(News::Silent(error)),
        };
        if news.is_some_and(|news| results.send(news).is_err()) {
            return;
        }
        let next = Instant::now() + questions.poll;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                order = orders.recv() => match order {
                    Some(wanted) => {
                        fresh.push(wanted);
                        // The first look is not delayed by the poll interval.
                        if !silent {
                            break;
                        }
                    }
                    None => return,
                },
            }
        }
    }
}

async fn poll(
    chain: &dyn Chain,
    questions: &ChainQuestions,
    fresh: &mut Vec<Wanted>,
    followed: &mut BTreeMap<CohortId, Followed>,
    results: &UnboundedSender<News>,
) -> Result<(), ChainError> {
    while let Some(wanted) = fresh.last() {
        let cohort_id = wanted.record.cohort_id.clone();
        let begun = match followed.contains_key(&cohort_id) {
            true => None,
            false => Some(begin(chain, wanted, questions.look_back).await?),
        };
        let Some(wanted) = fresh.pop() else { break };
        match (followed.get_mut(&cohort_id), begun) {
            (Some(known), _) if known.wanted.spends.is_empty() => known.wanted = wanted,
            (None, Some(ledger)) => {
                let new = Followed { wanted, ledger, transactions: BTreeMap::new(), reported: None };
                followed.insert(cohort_id, new);
            }
            _ => {}
        }
    }
    if followed.is_empty() {
        return Ok(());
    }
    let needed = questions.confirmations.max(1);
    let mut ledgers: Vec<_> = followed.values_mut().map(|followed| &mut followed.ledger).collect();
    let activities = Ledger::refresh_all(&mut ledgers, chain).await?;
    for (followed, activity) in followed.values_mut().zip(&activities) {
        read_spenders(chain, activity, &mut followed.transactions).await?;
    }
    let mut settled = Vec::new();
    for ((cohort_id, followed), activity) in followed.iter_mut().zip(&activities) {
        let Followed { wanted, transactions, .. } = &*followed;
        let sighting = Sighting::of(activity, transactions, wanted.record.signal, &wanted.spends, needed);
        if Some(sighting) == followed.reported || (followed.reported.is_none() && sighting == Sighting::Gone) {
            continue;
        }
        followed.reported = Some(sighting);
        let _ = results.send(News::Sighted(cohort_id.clone(), sighting));
        if sighting.is_settled(needed) {
            settled.push(cohort_id.clone());
        }
    }
    settled.iter().for_each(|cohort_id| drop(followed.remove(cohort_id)));
    Ok(())
}

/// A ledger that starts `look_back` blocks ago. It never lists the coins of the address: only spends matter.
async fn begin(chain: &dyn Chain, wanted: &Wanted, look_back: u32) -> Result<Ledger, ChainError> {
    let tip = chain.tip().await?;
    let script = wanted.record.output.script_pubkey().to_owned();
    let mut since = tip;
    since.block.height = tip.block.height.saturating_sub(look_back);
    since.block.hash = chain
        .block_hash(since.block.height)
        .await?
        .ok_or_else(|| ChainError::Unavailable(format!("block {} is gone", since.block.height)))?;
    Ok(Ledger::known(script, since, [], []))
}

/// The next result. Never ready without a chain.
pub(super) async fn next(confirmations: &mut Option<Confirmations>) -> News {
    match confirmations {
        Some(confirmations) => confirmations.next().await,
        None => std::future::pending().await,
    }
}
