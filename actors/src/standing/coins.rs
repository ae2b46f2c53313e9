//! Looks at the chain for one beacon address: final deposits, and final spends with what they announce; and submits the signed transactions of
//! a cohort, again and again, until they are final.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient,
    Supervised, WrapFuture, dev::ContextFut,
};
use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};
use btcr2_aggregation_protocol::{chain::Tip, cohort::standing::CoinRef, hash::SignalBytes, machine::Machine};
use serde::{Deserialize, Serialize};

use super::settings::ChainView;
use crate::{
    chain::{Activity, ChainError, signal_of},
    engine::Driven,
    journal::{Journal, JournalError, Record, StreamId},
    supervision::{End, EndGuard, InTree, Lease, RestartIntensity, Restarts, replay, start_leased},
    transport::Receipt,
    tree::{self, Row},
};

/// A coin that was spent by a final transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FinalSpend {
    pub(crate) coin: CoinRef,
    pub(crate) by: Txid,
    /// What the transaction announces.
    pub(crate) signal: Option<SignalBytes>,
}

/// What a look has shown. It may repeat what an earlier one has shown.
#[derive(Clone, Debug, Default, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct ChainNews {
    /// Final outputs that nothing has spent yet.
    pub(crate) coins: Vec<CoinRef>,
    /// In the order of their blocks.
    pub(crate) spends: Vec<FinalSpend>,
    /// Transactions that the chain has refused, with the reason.
    pub(crate) refused: Vec<(Txid, String)>,
    /// Submitted transactions that are in no block, with the number of blocks since they were submitted.
    pub(crate) waiting: Vec<(Txid, u32)>,
    /// Confirmed when all of it is durable at its owner: only then is it not shown again after a restart.
    pub(crate) receipt: Receipt,
}

impl ChainNews {
    const fn is_empty(&self) -> bool {
        self.coins.is_empty() && self.spends.is_empty() && self.refused.is_empty() && self.waiting.is_empty()
    }
}

/// Feeds what follows from news; the receipt is confirmed when all of it is durable.
pub(crate) fn feed_all<A: Driven>(
    actor: &mut A,
    inputs: impl Iterator<Item = <A::Machine as Machine>::Input>,
    receipt: Receipt,
    ctx: &mut Context<A>,
) {
    let mut inputs = inputs.peekable();
    if inputs.peek().is_none() {
        return receipt.confirm();
    }
    while let Some(input) = inputs.next() {
        // Batches become durable in their order: the last one's receipt is that of all.
        let of_input = if inputs.peek().is_some() { Receipt::default() } else { receipt.clone() };
        actor.feed_received(input, of_input, ctx);
    }
}

/// Submit these transactions, in this order, until they are final.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Submit(pub(crate) Vec<Arc<Transaction>>);

/// Look now.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct LookNow;

/// The watch has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct WatchGone(pub(crate) End);

impl WatchGone {
    /// Without its watch the owner would never see a coin again: it ends too, and reports that.
    pub(crate) fn ends<A: Actor<Context = Context<A>>>(&self, owner: &mut EndGuard, ctx: &mut Context<A>) {
        if let Some(reason) = self.0.failure() {
            tracing::error!(%reason, "the watch of a beacon address has ended");
            owner.fail(format!("the watch of its beacon address: {reason}"));
            ctx.stop();
        }
    }
}

/// The height below which everything was reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LookedUpTo {
    height: u32,
}

pub(crate) struct CoinWatch {
    view: ChainView,
    script: ScriptBuf,
    journal: Arc<dyn Journal>,
    stream: StreamId,
    to: Recipient<ChainNews>,
    /// The height below which everything was reported; none before the journal was read.
    since: Option<u32>,
    /// The height that the journal has.
    recorded: Option<u32>,
    /// How much of the news is not durable at the owner.
    unconfirmed: usize,
    /// Whether the owner has lost some of it: only a new watch reads the blocks again.
    has_lost: bool,
    /// The outputs that were seen, with their values: a spend names only the output. None before the first look, which asks for older ones too.
    values: Option<BTreeMap<OutPoint, u64>>,
    reported: BTreeSet<OutPoint>,
    spent: BTreeSet<OutPoint>,
    submissions: Vec<Arc<Transaction>>,
    refusals: BTreeMap<Txid, String>,
    /// Of each submitted transaction that is in no block: the height when that was seen first, and when it was reported last.
    waiting: BTreeMap<Txid, (u32, u32)>,
    is_looking: bool,
    look_again: bool,
    /// Whether the last look failed, which is logged once.
    has_failed: bool,
    intensity: RestartIntensity,
    restarts: Restarts,
    guard: EndGuard,
}

impl CoinWatch {
    /// Starts the watch of an address, whose progress `stream` has. It runs until its owner drops the [`Lease`]; `gone` is called when it
    /// stops earlier.
    pub(crate) fn start(
        view: ChainView,
        script: ScriptBuf,
        (journal, stream): (Arc<dyn Journal>, StreamId),
        restarts: RestartIntensity,
        span: tracing::Span,
        to: Recipient<ChainNews>,
        gone: Recipient<WatchGone>,
    ) -> (Addr<Self>, Lease) {
        // An unbounded send: there is one for each watch.
        let gone = move |end| gone.do_send(WatchGone(end));
        start_leased(span, |_, leased| Self {
            view,
            script,
            journal,
            stream,
            to,
            since: None,
            recorded: None,
            unconfirmed: 0,
            has_lost: false,
            values: None,
            reported: BTreeSet::new(),
            spent: BTreeSet::new(),
            submissions: Vec::new(),
            refusals: BTreeMap::new(),
            waiting: BTreeMap::new(),
            is_looking: false,
            look_again: false,
            has_failed: false,
            intensity: restarts,
            restarts: Restarts::default(),
            guard: EndGuard::leased(leased, gone),
        })
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.is_looking, true) {
            self.look_again = true;
            return;
        }
        let (view, script, since) = (self.view.clone(), self.script.clone(), self.since);
        let (journal, stream) = (Arc::clone(&self.journal), self.stream.clone());
        let submissions = self.submissions.clone();
        let values = self.values.clone();
        let known = self.spent.clone();
        let looking = async move {
            let since = match since {
                Some(since) => Some(since),
                None => begin(&*journal, &stream).await.map_err(|error| error.to_string())?,
            };
            seen(&view, &script, since, &submissions, values, &known).await.map_err(|error| error.to_string())
        };
        ctx.spawn(looking.into_actor(self).map(|seen, actor, ctx| {
            actor.is_looking = false;
            match seen {
                Ok(seen) => actor.absorb(seen, ctx),
                Err(problem) => {
                    if !std::mem::replace(&mut actor.has_failed, true) {
                        tracing::warn!(problem, "the chain cannot be looked at, trying again");
                    }
                }
            }
            if std::mem::take(&mut actor.look_again) {
                return actor.look(ctx);
            }
            ctx.run_later(actor.view.poll, |actor, ctx| {
                // A look in between has its own next one.
                if !actor.is_looking {
                    actor.look(ctx);
                }
            });
        }));
    }

    fn absorb(&mut self, seen: Seen, ctx: &mut Context<Self>) {
        self.has_failed = false;
        self.values = Some(seen.values);
        let mut news = ChainNews::default();
        for spend in seen.spends {
            self.spent.insert(OutPoint::new(spend.coin.txid, spend.coin.vout));
            self.submissions.retain(|submitted| submitted.compute_txid() != spend.by);
            news.spends.push(spend);
        }
        news.coins.extend(seen.coins.into_iter().filter(|coin| self.reported.insert(outpoint(coin))));
        for (txid, problem) in seen.refused {
            if self.refusals.insert(txid, problem.clone()).as_ref() != Some(&problem) {
                news.refused.push((txid, problem));
            }
        }
        let heads = heads(&self.submissions, &seen.mined);
        news.waiting = overdue(&mut self.waiting, &heads, seen.tip.block.height, self.view.patience);
        // Everything below it is final, and reported.
        self.since = Some(seen.tip.block.height.saturating_sub(self.view.min_confirmations.max(1) - 1));
        if news.is_empty() {
            self.record(ctx);
        } else {
            let (receipt, confirmed) = Receipt::new();
            news.receipt = receipt;
            self.unconfirmed += 1;
            ctx.spawn(confirmed.into_actor(self).map(|confirmed, actor, ctx| {
                actor.unconfirmed -= 1;
                actor.has_lost |= confirmed.is_err();
                actor.record(ctx);
            }));
            // It waits for space: the next look does not.
            let sent = self.to.send(news);
            ctx.wait(
                async move {
                    // An actor that has ended needs nothing.
                    let _ = sent.await;
                }
                .into_actor(self),
            );
        }
    }
}

impl CoinWatch {
    /// Stores how far the chain was read, once everything below that is durable at the owner.
    fn record(&mut self, ctx: &mut Context<Self>) {
        let Some(height) = self.since.filter(|since| self.recorded != Some(*since)) else { return };
        if self.unconfirmed > 0 || self.has_lost {
            return;
        }
        self.recorded = Some(height);
        let replaced = self.journal.replace(&self.stream, vec![Record::new(LookedUpTo { height })]);
        ctx.spawn(
            async move {
                if let Err(error) = replaced.await {
                    tracing::error!(%error, "how far the chain was read cannot be stored");
                }
            }
            .into_actor(self),
        );
    }
}

/// The transactions that are in no block, and spend none that is in no block either: the others cannot be mined before those.
fn heads(submissions: &[Arc<Transaction>], mined: &BTreeSet<Txid>) -> BTreeSet<Txid> {
    let unmined: BTreeMap<Txid, &Transaction> = submissions
        .iter()
        .map(|submitted| (submitted.compute_txid(), &**submitted))
        .filter(|(txid, _)| !mined.contains(txid))
        .collect();
    let descends = |transaction: &Transaction| {
        transaction.input.iter().any(|input| unmined.contains_key(&input.previous_output.txid))
    };
    unmined.iter().filter(|(_, transaction)| !descends(transaction)).map(|(txid, _)| *txid).collect()
}

/// Those that have waited for so many blocks since they were reported last, with all blocks that they have waited for.
fn overdue(
    waiting: &mut BTreeMap<Txid, (u32, u32)>,
    heads: &BTreeSet<Txid>,
    height: u32,
    patience: u32,
) -> Vec<(Txid, u32)> {
    waiting.retain(|txid, _| heads.contains(txid));
    let mut overdue = Vec::new();
    for txid in heads {
        let (since, reported) = waiting.entry(*txid).or_insert((height, height));
        if height.saturating_sub(*reported) >= patience.max(1) {
            *reported = height;
            overdue.push((*txid, height.saturating_sub(*since)));
        }
    }
    overdue
}

fn outpoint(coin: &CoinRef) -> OutPoint {
    OutPoint::new(coin.txid, coin.vout)
}

/// What one look has shown.
struct Seen {
    tip: Tip,
    coins: Vec<CoinRef>,
    spends: Vec<FinalSpend>,
    refused: Vec<(Txid, String)>,
    /// What spends an output of the script, in a block.
    mined: BTreeSet<Txid>,
    values: BTreeMap<OutPoint, u64>,
}

/// The height at which the previous run has stopped.
async fn begin(journal: &dyn Journal, stream: &StreamId) -> Result<Option<u32>, JournalError> {
    let looked: Vec<LookedUpTo> = replay::events(journal, stream).await?;
    Ok(looked.last().map(|looked| looked.height))
}

async fn seen(
    view: &ChainView,
    script: &ScriptBuf,
    since: Option<u32>,
    submissions: &[Arc<Transaction>],
    values: Option<BTreeMap<OutPoint, u64>>,
    known: &BTreeSet<OutPoint>,
) -> Result<Seen, ChainError> {
    let mut refused = Vec::new();
    for transaction in submissions {
        match view.chain.submit(transaction).await {
            Ok(()) => {}
            Err(ChainError::Rejected(rejection)) => {
                refused.push((transaction.compute_txid(), rejection.to_string()))
            }
            Err(error) => return Err(error),
        }
    }
    let (is_first, mut values) = (values.is_none(), values.unwrap_or_default());
    let from = match since {
        Some(since) => since,
        None => view.chain.tip().await?.block.height.saturating_sub(view.look_back),
    };
    let Activity { tip, mut deposits, spends } = view.chain.activity(script, from).await?;
    if is_first {
        // Outputs of any age; what has spent older ones is in the blocks since then.
        let older = view.chain.coins(script).await?;
        deposits.extend(
            older.deposits.into_iter().filter(|coin| coin.place.block().is_some_and(|block| block.height < from)),
        );
    }
    let is_final = |block: &btcr2_aggregation_protocol::chain::BlockId| tip.depth(block) >= view.min_confirmations;
    let mut coins = Vec::new();
    for deposit in &deposits {
        values.insert(deposit.outpoint, deposit.value.to_sat());
    }
    let touched: BTreeSet<OutPoint> = spends.iter().map(|spend| spend.outpoint).collect();
    for deposit in &deposits {
        let settled = deposit.place.block().is_some_and(is_final) && !deposit.is_immature(&tip);
        if settled && !touched.contains(&deposit.outpoint) {
            let OutPoint { txid, vout } = deposit.outpoint;
            coins.push(CoinRef { txid, vout, value: deposit.value.to_sat() });
        }
    }
    let mined = spends.iter().filter(|spend| spend.place.block().is_some()).map(|spend| spend.by).collect();
    let mut settled: Vec<_> = spends
        .iter()
        .filter_map(|spend| Some((spend, *spend.place.block()?)))
        .filter(|(spend, block)| is_final(block) && !known.contains(&spend.outpoint))
        .collect();
    settled.sort_by_key(|(spend, block)| (block.height, spend.outpoint));
    let mut final_spends = Vec::with_capacity(settled.len());
    for (spend, block) in settled {
        let transaction = view.chain.transaction(&spend.by, Some(&block.hash)).await?;
        let OutPoint { txid, vout } = spend.outpoint;
        // One that was spent before the first look, and whose value is needed for nothing.
        let value = values.get(&spend.outpoint).copied().unwrap_or_default();
        let coin = CoinRef { txid, vout, value };
        final_spends.push(FinalSpend { coin, by: spend.by, signal: transaction.as_ref().and_then(signal_of) });
    }
    Ok(Seen { tip, coins, spends: final_spends, refused, mined, values })
}

impl Actor for CoinWatch {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

impl Supervised for CoinWatch {
    fn restarting(&mut self, ctx: &mut Self::Context) {
        // It begins again where its journal ends: what waited for receipts has ended with the panic.
        (self.is_looking, self.has_lost, self.unconfirmed) = (false, false, 0);
        (self.since, self.recorded) = (None, None);
        self.values = None;
        self.reported.clear();
        self.spent.clear();
        let now = crate::runtime::Clock::system().now();
        match self.restarts.pause(now, self.intensity, &mut self.guard) {
            Some(pause) => {
                tracing::error!(
                    restarts = self.restarts.count(),
                    "the watch of a beacon address panicked and restarts"
                );
                ctx.wait(tokio::time::sleep(pause).into_actor(self));
            }
            // Its guard reports that.
            None => ctx.stop(),
        }
    }
}

impl InTree for CoinWatch {
    const ROW: &'static Row = &tree::COIN_WATCH;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Submit> for CoinWatch {
    type Result = ();

    fn handle(&mut self, Submit(transactions): Submit, ctx: &mut Self::Context) {
        self.submissions = transactions;
        self.look(ctx);
    }
}

impl Handler<LookNow> for CoinWatch {
    type Result = ();

    fn handle(&mut self, _: LookNow, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bitcoin::{ScriptBuf, Sequence, TxIn, Witness, absolute::LockTime, transaction::Version};

    use super::*;

    fn spending(parent: Option<&Transaction>, number: u32) -> Arc<Transaction> {
        let input = parent.map(|parent| TxIn {
            previous_output: OutPoint::new(parent.compute_txid(), 0),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        });
        let lock_time = LockTime::from_consensus(number);
        Arc::new(Transaction {
            version: Version::TWO,
            lock_time,
            input: input.into_iter().collect(),
            output: Vec::new(),
        })
    }

    #[test]
    fn what_waits_is_reported_again_and_again_with_all_its_blocks() {
        let first = spending(None, 1);
        let second = spending(Some(&first), 2);
        let (one, two) = (first.compute_txid(), second.compute_txid());
        let submissions = [first, second];
        let mut waiting = BTreeMap::new();
        let mut at = |height, mined: &[Txid]| {
            let heads = heads(&submissions, &mined.iter().copied().collect());
            overdue(&mut waiting, &heads, height, 3)
        };
        assert_eq!(at(100, &[]), []);
        assert_eq!(at(102, &[]), []);
        assert_eq!(at(103, &[]), [(one, 3)], "its descendant waits for it");
        assert_eq!(at(105, &[]), []);
        assert_eq!(at(106, &[]), [(one, 6)]);
        assert_eq!(at(107, &[one]), []);
        assert_eq!(at(110, &[one]), [(two, 3)]);
        // A reorganization: both wait again, from now on.
        assert_eq!(at(111, &[]), []);
        assert_eq!(at(114, &[]), [(one, 3)]);
        assert_eq!(at(115, &[one, two]), []);
    }
}
