//! Warns of coins whose recovery timelock passes soon, or has passed: from then on members rely on the operator alone.
//!
//! It looks at the cohorts whose announcement the journal has, and at those of `--out` that were never signed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ::bitcoin::{Amount, OutPoint};

use crate::{
    actors::journal::{Journal, JournalError, StreamId},
    bitcoin::{
        announcement::{Announcement, AnnouncementEvent},
        chain::{Chain, ChainError},
        ledger::Ledger,
        notice::AnnouncementNotice,
        operator::ChainOperator,
        recovery::{CohortFile, Maturity, survey},
        watch::Watch,
    },
    files::file_name,
    protocol::{cohort::event::ServiceEvent, id::CohortId, machine, output::BeaconOutput},
};

/// How often to look, in polls of the chain, but at least once an hour.
const POLLS: u32 = 20;
const HOUR: Duration = Duration::from_secs(3600);

/// Behind this many blocks, listing an address is no more work than reading them.
const FAR_BEHIND: u32 = 1000;

/// Follows the coins of all cohorts that may have some.
pub(super) struct MaturityWatch {
    operator: ChainOperator,
    out: Option<PathBuf>,
    warn_blocks: u32,
    followed: BTreeMap<CohortId, Followed>,
    /// Those whose coin is spent for good.
    done: BTreeSet<CohortId>,
    /// What was said, as long as it is true.
    told: BTreeSet<(OutPoint, bool)>,
}

struct Followed {
    output: BeaconOutput,
    ledger: Ledger,
}

impl MaturityWatch {
    /// Warns `warn_blocks` before a timelock passes.
    pub(super) fn new(operator: ChainOperator, out: Option<PathBuf>, warn_blocks: u32) -> Self {
        Self { operator, out, warn_blocks, followed: BTreeMap::new(), done: BTreeSet::new(), told: BTreeSet::new() }
    }

    /// Looks again and again.
    pub(super) async fn run(mut self) {
        let every = HOUR.min(self.operator.settings().poll * POLLS);
        loop {
            match self.check().await {
                Ok(notices) => notices.into_iter().for_each(|notice| {
                    // Nobody listening is fine.
                    let _ = self.operator.settings().notices.send(Arc::new(notice));
                }),
                Err(error) => tracing::warn!(%error, "it is not known which coins can be recovered soon"),
            }
            tokio::time::sleep(every).await;
        }
    }

    /// What is new.
    async fn check(&mut self) -> Result<Vec<AnnouncementNotice>, ChainError> {
        let settings = self.operator.settings();
        let (journal, chain) = (Arc::clone(&settings.journal), Arc::clone(&settings.chain));
        if let Err(error) = self.find(&*journal, &*chain).await {
            tracing::warn!(%error, "cohorts are missing among those whose coins are followed");
        }
        let (mut news, mut told) = (Vec::new(), BTreeSet::new());
        for (cohort_id, followed) in &mut self.followed {
            let activity = followed.ledger.refresh(&*chain).await?;
            for coin in survey(&followed.output, &activity).unwrap_or_default() {
                if coin.spent_by.is_some() {
                    continue;
                }
                let (cohort_id, outpoint, value) = (cohort_id.clone(), coin.outpoint, coin.value);
                let notice = match coin.maturity {
                    Maturity::Waiting { height, blocks, expected } if blocks <= self.warn_blocks => {
                        AnnouncementNotice::RecoveryNear { cohort_id, outpoint, value, height, blocks, expected }
                    }
                    Maturity::Mature { height } => {
                        AnnouncementNotice::RecoveryPossible { cohort_id, outpoint, value, height }
                    }
                    Maturity::Waiting { .. } | Maturity::Unconfirmed => continue,
                };
                let subject = (outpoint, matches!(coin.maturity, Maturity::Mature { .. }));
                if !self.told.contains(&subject) {
                    news.push(notice);
                }
                told.insert(subject);
            }
        }
        self.told = told;
        Ok(news)
    }

    /// Takes in cohorts that are new, and leaves those whose coins are gone for good.
    async fn find(&mut self, journal: &dyn Journal, chain: &dyn Chain) -> Result<(), FindError> {
        let height = chain.tip().await?.block.height;
        let live = journal.streams().await?;
        let archived = journal.archived().await?.into_iter().map(|archived| archived.stream);
        let announced: BTreeSet<_> =
            live.into_iter().chain(archived).filter_map(|stream| Watch::cohort_of(&stream)).collect();
        for cohort_id in &announced {
            // One cohort's trouble is its own.
            if let Err(error) = self.find_one(journal, height, cohort_id).await {
                tracing::warn!(%cohort_id, %error, "it is not known when its coin can be recovered");
            }
        }
        for file in self.unsigned_of_out() {
            if announced.contains(&file.cohort_id) || self.followed.contains_key(&file.cohort_id) {
                continue;
            }
            let ledger = Ledger::new(file.output.script_pubkey().to_owned(), 0);
            self.followed.insert(file.cohort_id, Followed { output: file.output, ledger });
        }
        Ok(())
    }

    async fn find_one(
        &mut self,
        journal: &dyn Journal,
        height: u32,
        cohort_id: &CohortId,
    ) -> Result<(), FindError> {
        if self.done.contains(cohort_id) {
            return Ok(());
        }
        let events = events(journal, cohort_id).await?;
        let announcement = machine::replay(Announcement::new(Arc::clone(self.operator.rules())), &events);
        let sight = announcement.sight();
        if announcement.has_ended() && sight.unspent() == Amount::ZERO {
            self.followed.remove(cohort_id);
            self.done.insert(cohort_id.clone());
            return Ok(());
        }
        // Nothing may have been seen yet.
        let Some(tip) = sight.tip.filter(|_| !self.followed.contains_key(cohort_id)) else { return Ok(()) };
        let Some(output) = self.output(journal, cohort_id).await? else { return Ok(()) };
        let script = output.script_pubkey().to_owned();
        let ledger = if height.saturating_sub(tip.block.height) > FAR_BEHIND {
            Ledger::new(script, 0)
        } else {
            let (deposits, spends) = (sight.deposits.values().copied(), sight.spends.values().copied());
            Ledger::known(script, tip, deposits, spends)
        };
        self.followed.insert(cohort_id.clone(), Followed { output, ledger });
        Ok(())
    }

    /// A cohort's output: from its own stream, or from `--out` when that was pruned.
    async fn output(
        &self,
        journal: &dyn Journal,
        cohort_id: &CohortId,
    ) -> Result<Option<BeaconOutput>, JournalError> {
        for record in journal.read(&StreamId::of_cohort(cohort_id)).await? {
            if let Ok(ServiceEvent::KeysAggregated { output, .. }) = record.event() {
                return Ok(Some(output));
            }
        }
        let path = self.out.as_ref().map(|out| out.join(file_name(cohort_id)).join(CohortFile::NAME));
        Ok(path.and_then(|path| read(&path)).map(|file| file.output))
    }

    /// The cohorts in `--out` that have no result: what was signed is seen to by its announcement.
    fn unsigned_of_out(&self) -> Vec<CohortFile> {
        let Some(out) = &self.out else { return Vec::new() };
        let Ok(entries) = fs::read_dir(out) else { return Vec::new() };
        let directories = entries.filter_map(|entry| Some(entry.ok()?.path()));
        directories
            .filter(|directory| !directory.join("result.json").exists())
            .filter_map(|directory| read(&directory.join(CohortFile::NAME)))
            .collect()
    }
}

fn read(path: &std::path::Path) -> Option<CohortFile> {
    let text = fs::read(path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "not a cohort's output");
            None
        }
    }
}

async fn events(journal: &dyn Journal, cohort_id: &CohortId) -> Result<Vec<AnnouncementEvent>, FindError> {
    let records = journal.read(&Watch::stream(cohort_id)).await?;
    let events: Result<_, _> = records.iter().map(|record| record.event()).collect();
    events.map_err(FindError::Unreadable)
}

/// Why not all cohorts were found.
#[derive(Debug, thiserror::Error)]
enum FindError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a fact of its announcement does not read: {0}")]
    Unreadable(serde_json::Error),
}
