//! A seat that was restored from a backup: before it answers anything, it reads which coins the beacon address has. What it may have signed
//! since the backup spends one of them.

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use bitcoin::{OutPoint, Script};
use btcr2_aggregation_protocol::{
    cohort::standing::{CoinRef, seat::SeatInput},
    did::Did,
    id::CohortId,
};

use super::seat::SeatActor;
use crate::{
    chain::{Activity, ChainError},
    engine::Driven,
    standing::{ChainView, notice::SeatNotice},
};

/// The coins of the script that no final transaction has spent, those in the mempool included.
async fn unsettled(view: &ChainView, script: &Script) -> Result<Vec<CoinRef>, ChainError> {
    let least = view.min_confirmations.max(1);
    let since = view.chain.tip().await?.block.height.saturating_sub(least);
    // First the ones of any age that are unspent in blocks: what spends one of them afterwards is in the activity.
    let unspent = view.chain.coins(script).await?;
    let Activity { tip, deposits, spends } = view.chain.activity(script, since).await?;
    let is_final = |outpoint: &OutPoint| {
        spends.iter().any(|spend| {
            spend.outpoint == *outpoint && spend.place.block().is_some_and(|block| tip.depth(block) >= least)
        })
    };
    let found = unspent.deposits.iter().chain(&deposits).map(|coin| (coin.outpoint, coin.value.to_sat()));
    // What was spent in a block that is not deep enough; its value is needed for nothing.
    let spent = unspent.spends.iter().chain(&spends).map(|spend| (spend.outpoint, 0));
    let mut coins: Vec<(OutPoint, u64)> = found.chain(spent).filter(|(outpoint, _)| !is_final(outpoint)).collect();
    coins.sort_by_key(|(outpoint, value)| (*outpoint, std::cmp::Reverse(*value)));
    coins.dedup_by_key(|(outpoint, _)| *outpoint);
    let coin = |(OutPoint { txid, vout }, value)| CoinRef { txid, vout, value };
    Ok(coins.into_iter().map(coin).collect())
}

impl SeatActor {
    /// Takes up what a restore from a backup means for this seat, if its host has stated one; `then` follows when that is durable, and nothing
    /// is answered before.
    pub(super) fn after_restore(
        &mut self,
        then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
        ctx: &mut Context<Self>,
    ) {
        let view = self.settings.chain.clone().filter(|_| self.settings.restored);
        let script = self.engine.machine().output().map(|output| output.script_pubkey().to_owned());
        let Some((view, script)) = view.zip(script) else { return then(self, ctx) };
        let reading = async move {
            loop {
                match unsettled(&view, &script).await {
                    Ok(coins) => return coins,
                    Err(error) => {
                        tracing::warn!(%error, "a restored seat waits until the coins of its address can be read");
                        tokio::time::sleep(view.poll).await;
                    }
                }
            }
        };
        // Other messages wait: an opportunity must find what this seat must not do.
        ctx.wait(reading.into_actor(self).map(|coins, actor, ctx| {
            actor.feed(SeatInput::RestoredFromBackup { coins, updates: Vec::new() }, ctx);
            then(actor, ctx);
        }));
    }

    /// Reports for which coins a restored seat waits, if it does.
    pub(super) fn report_restored(&mut self) {
        let coins: Vec<OutPoint> = self.engine.machine().awaited_coins().collect();
        if !coins.is_empty() {
            self.waits_for_coins = true;
            let (seat, cohort_id) = self.place();
            self.notify(SeatNotice::SeatRestored { seat, cohort_id, coins });
        }
    }

    fn place(&self) -> (Did, CohortId) {
        (self.identity.did().clone(), self.engine.machine().config().cohort_id.clone())
    }

    /// Reports that nothing is awaited any more.
    pub(super) fn report_settled(&mut self) {
        if self.waits_for_coins && self.engine.machine().awaited_coins().next().is_none() {
            self.waits_for_coins = false;
            let (seat, cohort_id) = self.place();
            self.notify(SeatNotice::SeatSettled { seat, cohort_id });
        }
    }
}
