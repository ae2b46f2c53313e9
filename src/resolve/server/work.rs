//! The work of one request, within the limits: from the cache, or by a resolution.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use ::bitcoin::BlockHash;
use actix_web::web::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{
    Shared,
    answer::{Answer, Refusal},
    chains::Connected,
    request::{Unfit, Wanted},
    shares::Share,
};
use crate::{
    bitcoin::chain::ChainError,
    protocol::resolution::{ResolutionError, ResolutionResult},
    resolve::Outcome,
};

/// What clients learn of a chain that cannot be read. The log has the reason, which names the operator's servers.
const UNREADABLE: &str = "the chain cannot be read now: try again later";

/// How often a problem of chains and stores is logged.
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// The last time at which a problem was logged, and how many were not since.
#[derive(Default)]
pub(super) struct Problems(Mutex<Option<(Instant, u64)>>);

impl Problems {
    /// Logs a problem, unless another one was logged a short time ago: clients decide how often this happens.
    fn log(&self, problem: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((at, omitted)) if at.elapsed() < LOG_PERIOD => *omitted += 1,
            _ => {
                let omitted = last.replace((Instant::now(), 0)).map_or(0, |(_, omitted)| omitted);
                tracing::warn!(problem, omitted, "a resolution lacked one of its sources");
            }
        }
    }
}

impl Shared {
    /// Answers a request. `shares` are the client's share of all requests, and of all bodies, for as long as there is work for it: the
    /// Sidecar Data of a body take several times its size until then.
    pub(super) async fn answer(
        self: &Arc<Self>,
        did: String,
        query: String,
        body: Bytes,
        shares: (Share, Option<Share>),
    ) -> Result<Arc<Answer>, Refusal> {
        let wanted = tokio::task::spawn_blocking(move || Wanted::read(&did, &query, &body));
        let wanted = match wanted.await {
            Ok(Ok(wanted)) => wanted,
            Ok(Err(Unfit::Refused(refusal))) => return Err(refusal),
            Ok(Err(Unfit::Failed(error))) => return Ok(Arc::new(Answer::failed(&error))),
            Err(error) => return Ok(self.internal(&format!("reading a request: {error}"))),
        };
        let chain = Arc::clone(self.chains.of(wanted.did.network())?);
        // On the main thread's runtime, to which the connections of the chain belong; it also finishes what a client does not
        // wait for any more, within its time.
        let shared = Arc::clone(self);
        let deadline = Instant::now() + self.limits.timeout;
        let work = async move {
            let _shares = shares;
            let work = shared.work(&chain, wanted, deadline);
            timeout_at(deadline, work).await.unwrap_or(Err(Refusal::Timeout))
        };
        match self.runtime.spawn(work).await {
            Ok(answer) => answer,
            Err(error) => Ok(self.internal(&format!("a resolution: {error}"))),
        }
    }

    async fn work(
        self: Arc<Self>,
        chain: &Arc<Connected>,
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<Arc<Answer>, Refusal> {
        let tip = match chain.sources.chain.tip().await {
            Ok(tip) => tip.block.hash,
            Err(error) => return Ok(self.unreadable(&error)),
        };
        // What is in the cache was resolved without Sidecar Data of a request.
        let is_shared = wanted.sidecar.is_none();
        let cached = |when_missing: bool| {
            let found = chain.cache().get(tip, &wanted.key).filter(|_| is_shared);
            if is_shared && (found.is_some() || when_missing) {
                self.measures.looked_up(found.is_some());
            }
            found
        };
        if let Some(answer) = cached(true) {
            return Ok(answer);
        }
        let permit = Arc::clone(&self.resolutions).acquire_owned().await.map_err(|_| Refusal::Stopping)?;
        // The one before may have been the same.
        if let Some(answer) = cached(false) {
            return Ok(answer);
        }
        let key = is_shared.then(|| wanted.key.clone());
        let begun = Instant::now();
        let (answer, tip_after) = self.resolve(chain, wanted, tip, deadline, permit).await?;
        self.measures.resolved_in(begun.elapsed());
        if let Some(key) = key.filter(|_| tip_after == Some(tip) && answer.is_lasting()) {
            chain.cache().put(tip, &key, &answer);
        }
        Ok(answer)
    }

    /// Resolves, and returns the tip after it.
    async fn resolve(
        self: &Arc<Self>,
        chain: &Arc<Connected>,
        wanted: Wanted,
        tip: BlockHash,
        deadline: Instant,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Arc<Answer>, Option<BlockHash>), Refusal> {
        let Wanted { did, options, sidecar, .. } = wanted;
        let (shared, chain) = (Arc::clone(self), Arc::clone(chain));
        let runtime = self.runtime.clone();
        // Documents are hashed and signatures are verified between the answers of the chain: not on a thread that others wait for.
        let work = move || {
            // Also when its client does not wait any more, it is one of the resolutions until it ends.
            let _permit = permit;
            runtime.block_on(timeout_at(deadline, async move {
                let (mut given, problems) = shared.local.of(&did, tip).await;
                shared.local_problems(&problems);
                if let Some(sidecar) = sidecar {
                    given.extend(sidecar);
                }
                let outcome = chain.sources.resolve(did, options, &given).await;
                (shared.answer_of(&outcome), chain.sources.chain.tip().await.ok().map(|tip| tip.block.hash))
            }))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(outcome) => outcome.map_err(|_| Refusal::Timeout),
            Err(error) => Ok((self.internal(&format!("a resolution: {error}")), None)),
        }
    }

    fn answer_of(&self, outcome: &Outcome) -> Arc<Answer> {
        for problem in &outcome.problems {
            self.problems.log(problem);
        }
        match &outcome.resolution.outcome {
            Err(error) if outcome.is_unreadable => self.internal(&error.to_string()),
            resolved => Arc::new(Answer::of(resolved.as_ref(), outcome.resolution.result())),
        }
    }

    fn unreadable(&self, error: &ChainError) -> Arc<Answer> {
        self.internal(&error.to_string())
    }

    /// An answer that does not show the reason, which is logged.
    fn internal(&self, reason: &str) -> Arc<Answer> {
        self.problems.log(reason);
        let error = ResolutionError::Discovery(UNREADABLE.to_owned());
        Arc::new(Answer::of(Err(&error), ResolutionResult::failed(&error)))
    }

    fn local_problems(&self, problems: &[String]) {
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        self.readiness.report("state", problem);
    }

    /// Whether new requests are refused.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
