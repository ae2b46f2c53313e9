//! What an announcement's actor does at the chain. It receives messages meanwhile, and serves them afterwards.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use bitcoin::{FeeRate, Transaction};
use btcr2_aggregation_protocol::{
    announcement::{Input, change::Child},
    chain::{Activity, ConfirmationTarget, Spend, block_time},
    hash::SignalBytes,
    id::CohortId,
};

use super::{
    actor::{AnnouncementActor, Look},
    look::look,
    notice::AnnouncementNotice,
};
use crate::{
    chain::{Chain, ChainError, signal_of},
    engine::Driven,
};

/// How long the chain may take for its fees before the address is published without the required amounts of a deposit.
const QUICKLY: Duration = Duration::from_secs(5);

/// A transaction to submit.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) transaction: Arc<Transaction>,
    /// The child that pays for it, still to be signed.
    pub(super) child: Option<Child>,
}

/// The fees that the chain asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fees {
    /// Its estimate.
    pub(super) estimate: Option<FeeRate>,
    /// The rate below which it accepts no transaction.
    pub(super) minimum: Option<FeeRate>,
}

impl Fees {
    /// The fees of `chain`. On an error there are none: floor and ceiling apply.
    async fn ask(chain: &dyn Chain, target: ConfirmationTarget, cohort_id: &CohortId) -> Self {
        let known = |answer: Result<Option<FeeRate>, ChainError>| match answer {
            Ok(rate) => rate,
            Err(error) => {
                tracing::warn!(%cohort_id, %error, "no fee estimate");
                None
            }
        };
        let estimate = known(chain.fee_estimate(target).await);
        Self { estimate, minimum: known(chain.minimum_fee().await) }
    }
}

/// The result of a look at the chain.
struct Seen {
    activity: Activity,
    since: u32,
    fees: Fees,
}

impl AnnouncementActor {
    /// Begins an errand; `done` receives its result.
    fn begin<T: 'static>(
        &mut self,
        errand: impl Future<Output = T> + 'static,
        ctx: &mut Context<Self>,
        done: impl FnOnce(&mut Self, T, &mut Context<Self>) + 'static,
    ) {
        let errand = errand.into_actor(self).map(|result, actor, ctx| {
            actor.work.errand = None;
            if !actor.engine.is_halted() {
                done(actor, result, ctx);
                actor.advance(ctx);
            }
        });
        self.work.errand = Some(ctx.spawn(errand));
    }

    pub(super) fn submit(&mut self, submission: Submission, ctx: &mut Context<Self>) {
        let chain = Arc::clone(&self.settings.chain);
        let Submission { transaction, child } = submission;
        let signed = child.as_ref().zip(self.settings.change_key.as_ref()).map(|(child, key)| key.sign(child));
        let errand = async move {
            let result = match &signed {
                Some(child) => chain.submit_package(&transaction, child).await,
                None => chain.submit(&transaction).await,
            };
            (signed.as_ref().unwrap_or(&transaction).compute_txid(), result)
        };
        self.begin(errand, ctx, |actor, (txid, result), ctx| {
            let result = match result {
                Ok(()) => Ok(()),
                Err(ChainError::Rejected(rejection)) => Err(rejection),
                // The machine submits it again if it stays out of sight.
                Err(error) => return actor.chain_failed(&error),
            };
            actor.feed(Input::Submitted { txid, result }, ctx);
        });
    }

    /// Reports the signal of a foreign spend, if it can be read. The spend itself was reported before, because a node
    /// may be slow.
    pub(super) fn look_into(&mut self, spend: Spend, ctx: &mut Context<Self>) {
        let chain = Arc::clone(&self.settings.chain);
        let errand = async move {
            let block = spend.place.block().map(|block| block.hash);
            let found = chain.transaction(&spend.by, block.as_ref()).await;
            found.ok().flatten().as_ref().and_then(signal_of)
        };
        self.begin(errand, ctx, move |actor, signal: Option<SignalBytes>, _| {
            if let Some(signal) = signal {
                let (cohort_id, by) = (actor.cohort_id.clone(), spend.by);
                actor.notify(AnnouncementNotice::ForeignSignal { cohort_id, by, signal });
            }
        });
    }

    /// Queries the fees, for a short time only.
    pub(super) fn ask_fees(&mut self, ctx: &mut Context<Self>) {
        let (chain, cohort_id) = (Arc::clone(&self.settings.chain), self.cohort_id.clone());
        let target = self.engine.machine().rules().fees.target();
        let errand = async move {
            let fees = tokio::time::timeout(QUICKLY, Fees::ask(&*chain, target, &cohort_id)).await;
            fees.unwrap_or_default()
        };
        self.begin(errand, ctx, |actor, fees, _| actor.fees = fees);
    }

    /// Queries the chain.
    pub(super) fn look(&mut self, ctx: &mut Context<Self>) {
        let (chain, cohort_id) = (Arc::clone(&self.settings.chain), self.cohort_id.clone());
        let (machine, is_young) = (self.engine.snapshot(), self.is_young());
        let errand = async move {
            let (activity, since) = look(&*chain, &machine, is_young).await?;
            let target = machine.rules().fees.target();
            Ok(Seen { activity, since, fees: Fees::ask(&*chain, target, &cohort_id).await })
        };
        self.begin(errand, ctx, Self::looked);
    }

    fn looked(&mut self, seen: Result<Seen, ChainError>, ctx: &mut Context<Self>) {
        self.work.look = Look::Taken;
        self.work.waiting.iter_mut().for_each(|waiting| waiting.was_asked = false);
        match seen {
            Ok(Seen { activity, since, fees }) => {
                if self.unreachable.take().is_some() {
                    self.notify(AnnouncementNotice::ChainAvailable { cohort_id: self.cohort_id.clone() });
                }
                self.fees = fees;
                let Fees { estimate, minimum } = fees;
                let script = self.engine.machine().script();
                let known = self.settings.claims.others(&self.cohort_id, script).transactions;
                self.feed(Input::Observed { activity, since, estimate, minimum, known }, ctx);
            }
            Err(error) => {
                // Any number of blocks may have come before the next look, which reads only the last ones of a new address.
                self.begun = None;
                self.chain_failed(&error);
            }
        }
    }

    /// Whether the address is so new that the blocks that are read anyway contain everything.
    fn is_young(&self) -> bool {
        let machine = self.engine.machine();
        let others = self.settings.claims.others(&self.cohort_id, machine.script());
        // Half of it, in case blocks come fast.
        let window = block_time(self.settings.network) * machine.rules().window() / 2;
        !others.exist && self.begun.is_some_and(|begun| begun.elapsed() < window)
    }

    fn chain_failed(&mut self, error: &ChainError) {
        tracing::warn!(cohort_id = %self.cohort_id, %error, "the chain does not answer");
        if self.unreachable.replace(error.to_string()).is_none() {
            let (cohort_id, problem) = (self.cohort_id.clone(), error.to_string());
            self.notify(AnnouncementNotice::ChainUnavailable { cohort_id, problem });
        }
    }
}
