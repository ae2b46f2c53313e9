//! Watches coins after the cohorts: warns of coins whose recovery timelock passes soon, or has passed (members then
//! depend on the operator alone), and watches the addresses of ended announcements for deposits and spends.
//!
//! It follows the cohorts whose announcement is in the journal, and those in `--out` that were never signed. The cost
//! is low: every few polls, the new blocks are read once for all cohorts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ::bitcoin::{Amount, OutPoint, Txid};

use crate::{
    actors::{
        announcement::Announcements,
        journal::{Journal, JournalError, StreamId, StreamKind},
    },
    bitcoin::{
        announcement::{Announcement, AnnouncementEvent},
        chain::{Activity, Chain, ChainError, Deposit, Spend, signal_of},
        ledger::Ledger,
        notice::{AnnouncementNotice, foreign_spend},
        recovery::{CohortFile, Maturity, survey},
    },
    files::file_name,
    protocol::{cohort::event::ServiceEvent, id::CohortId, machine, output::BeaconOutput},
};

/// The interval in polls of the chain; at most an hour.
const POLLS: u32 = 20;
const HOUR: Duration = Duration::from_secs(3600);

/// Beyond this many blocks, listing an address costs no more than reading the blocks.
const FAR_BEHIND: u32 = 1000;

/// Follows the coins of all cohorts that may have coins.
pub(super) struct MaturityWatch {
    announcements: Announcements,
    out: Option<PathBuf>,
    warn_blocks: u32,
    followed: BTreeMap<CohortId, Followed>,
    /// Cohorts whose output is no longer known.
    done: BTreeSet<CohortId>,
    /// The warnings that were sent and are still true.
    sent: BTreeSet<(OutPoint, bool)>,
}

struct Followed {
    output: BeaconOutput,
    ledger: Ledger,
    /// The state of the address after its announcement has ended. Until then the announcement's own watch reports.
    after: Option<After>,
}

/// What is expected at the address of an ended announcement.
struct After {
    deposits: BTreeSet<OutPoint>,
    spends: BTreeSet<(OutPoint, Txid)>,
    /// The transactions that its members were asked to sign, and equivalent ones.
    transactions: BTreeSet<Txid>,
}

impl After {
    fn of(announcement: &Announcement) -> Option<Self> {
        announcement.has_ended().then(|| Self {
            deposits: announcement.sight().deposits.keys().copied().collect(),
            spends: BTreeSet::new(),
            transactions: announcement.known_transactions(),
        })
    }

    /// The deposits and spends to report. `others` are the transactions of other announcements at the address.
    fn news(&mut self, activity: &Activity, others: &BTreeSet<Txid>) -> (Vec<Deposit>, Vec<Spend>) {
        // Deposits that are already spent are reported too, with their spends.
        let deposits: Vec<_> =
            activity.deposits.iter().filter(|one| !self.deposits.contains(&one.outpoint)).copied().collect();
        let known = |spend: &&Spend| {
            self.transactions.contains(&spend.by)
                || others.contains(&spend.by)
                || self.spends.contains(&(spend.outpoint, spend.by))
        };
        let spends: Vec<_> = activity.spends.iter().filter(|spend| !known(spend)).copied().collect();
        self.deposits.extend(activity.deposits.iter().map(|deposit| deposit.outpoint));
        self.spends = activity.spends.iter().map(|spend| (spend.outpoint, spend.by)).collect();
        (deposits, spends)
    }
}

impl MaturityWatch {
    /// Warns `warn_blocks` before a timelock passes.
    pub(super) fn new(announcements: Announcements, out: Option<PathBuf>, warn_blocks: u32) -> Self {
        Self {
            announcements,
            out,
            warn_blocks,
            followed: BTreeMap::new(),
            done: BTreeSet::new(),
            sent: BTreeSet::new(),
        }
    }

    /// Repeats the check without end.
    pub(super) async fn run(mut self) {
        let every = HOUR.min(self.announcements.settings().poll * POLLS);
        loop {
            match self.check().await {
                Ok(notices) => notices.into_iter().for_each(|notice| self.announcements.publish(notice)),
                Err(error) => tracing::warn!(%error, "it is not known which coins can be recovered soon"),
            }
            tokio::time::sleep(every).await;
        }
    }

    /// The new warnings and spends.
    async fn check(&mut self) -> Result<Vec<AnnouncementNotice>, ChainError> {
        let settings = self.announcements.settings();
        let (journal, chain) = (Arc::clone(&settings.journal), Arc::clone(&settings.chain));
        if let Err(error) = self.find(&*journal, &*chain).await {
            tracing::warn!(%error, "cohorts are missing among those whose coins are followed");
        }
        let (mut news, mut sent) = (Vec::new(), BTreeSet::new());
        let claims = Arc::clone(&self.announcements.settings().claims);
        let mut ledgers: Vec<_> = self.followed.values_mut().map(|followed| &mut followed.ledger).collect();
        let activities = Ledger::refresh_all(&mut ledgers, &*chain).await?;
        for ((cohort_id, followed), activity) in self.followed.iter_mut().zip(activities) {
            if let Some(after) = &mut followed.after {
                let others = claims.others(cohort_id, followed.output.script_pubkey()).transactions;
                let (deposits, spends) = after.news(&activity, &others);
                news.extend(deposits.iter().map(|deposit| AnnouncementNotice::LateDeposit {
                    cohort_id: cohort_id.clone(),
                    outpoint: deposit.outpoint,
                    value: deposit.value,
                    block: deposit.place.block().copied(),
                }));
                for spend in spends {
                    news.extend(look_into(&*chain, cohort_id, &followed.output, &spend).await);
                }
            }
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
                if !self.sent.contains(&subject) {
                    news.push(notice);
                }
                sent.insert(subject);
            }
        }
        self.sent = sent;
        Ok(news)
    }

    /// Adds new cohorts, and removes those whose coins are permanently gone.
    async fn find(&mut self, journal: &dyn Journal, chain: &dyn Chain) -> Result<(), FindError> {
        let height = chain.tip().await?.block.height;
        let live = journal.streams().await?;
        let archived = journal.archived().await?.into_iter().map(|archived| archived.stream);
        let cohort_of = |stream: StreamId| match stream.kind() {
            StreamKind::Announcement(cohort_id) => Some(cohort_id),
            _ => None,
        };
        let announced: BTreeSet<_> = live.into_iter().chain(archived).filter_map(cohort_of).collect();
        for cohort_id in &announced {
            // An error of one cohort does not affect the others.
            if let Err(error) = self.find_one(journal, height, cohort_id).await {
                tracing::warn!(%cohort_id, %error, "it is not known when its coin can be recovered");
            }
        }
        for file in self.unsigned_of_out() {
            if announced.contains(&file.cohort_id) || self.followed.contains_key(&file.cohort_id) {
                continue;
            }
            let ledger = Ledger::new(file.output.script_pubkey().to_owned(), 0);
            self.followed.insert(file.cohort_id, Followed { output: file.output, ledger, after: None });
        }
        Ok(())
    }

    async fn find_one(
        &mut self,
        journal: &dyn Journal,
        height: u32,
        cohort_id: &CohortId,
    ) -> Result<(), FindError> {
        let settled = self.followed.get(cohort_id).is_some_and(|followed| followed.after.is_some());
        if settled || self.done.contains(cohort_id) {
            return Ok(());
        }
        let events = events(journal, cohort_id).await?;
        let announcement = machine::replay(Announcement::new(Arc::clone(self.announcements.rules())), &events);
        let (sight, after) = (announcement.sight(), After::of(&announcement));
        if let Some(followed) = self.followed.get_mut(cohort_id) {
            followed.after = after;
            return Ok(());
        }
        // No block has been seen yet.
        let Some(tip) = sight.tip else { return Ok(()) };
        let Some(output) = self.output(journal, cohort_id).await? else {
            if after.is_some() {
                self.done.insert(cohort_id.clone());
            }
            return Ok(());
        };
        let script = output.script_pubkey().to_owned();
        let is_far = height.saturating_sub(tip.block.height) > FAR_BEHIND;
        let ledger = if is_far && after.is_some() && sight.unspent() == Amount::ZERO {
            // The cohort has no coins: what arrived meanwhile is not worth a scan.
            Ledger::unlisted(script, FAR_BEHIND)
        } else if is_far {
            Ledger::new(script, 0)
        } else {
            let (deposits, spends) = (sight.deposits.values().copied(), sight.spends.values().copied());
            Ledger::known(script, tip, deposits, spends)
        };
        self.followed.insert(cohort_id.clone(), Followed { output, ledger, after });
        Ok(())
    }

    /// A cohort's output: from its own stream, or from `--out` if the stream was pruned.
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

    /// The cohorts in `--out` that have no result. Signed cohorts are followed by their announcement.
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

/// Classifies a spend that no member was asked to sign: the operator's own recovery, or an alarm.
async fn look_into(
    chain: &dyn Chain,
    cohort_id: &CohortId,
    output: &BeaconOutput,
    spend: &Spend,
) -> Vec<AnnouncementNotice> {
    let block = spend.place.block();
    let found = chain.transaction(&spend.by, block.map(|block| &block.hash)).await.ok().flatten();
    let leaf = found
        .iter()
        .flat_map(|transaction| &transaction.input)
        .find_map(|input| input.witness.taproot_leaf_script().filter(|_| input.previous_output == spend.outpoint));
    if leaf.is_some_and(|leaf| output.recovery().is_some_and(|recovery| *recovery.script() == *leaf.script)) {
        return vec![AnnouncementNotice::CoinRecovered {
            cohort_id: cohort_id.clone(),
            outpoint: spend.outpoint,
            by: spend.by,
            block: block.copied(),
        }];
    }
    let signal = found.as_ref().and_then(signal_of);
    let signal = signal.map(|signal| AnnouncementNotice::ForeignSignal {
        cohort_id: cohort_id.clone(),
        by: spend.by,
        signal,
    });
    std::iter::once(foreign_spend(cohort_id, spend)).chain(signal).collect()
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
    let records = journal.read(&StreamId::of_announcement(cohort_id)).await?;
    let events: Result<_, _> = records.iter().map(|record| record.event()).collect();
    events.map_err(FindError::Unreadable)
}

/// Why some cohorts were not found.
#[derive(Debug, thiserror::Error)]
enum FindError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a fact of its announcement does not read: {0}")]
    Unreadable(serde_json::Error),
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::bitcoin::{
        ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime, transaction::Version,
    };
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;
    use crate::{
        actors::{
            announcement::AnnouncementSettings,
            journal::{MemoryJournal, Record},
        },
        bitcoin::{
            announcement::{AnnouncementFailure, Rules},
            chain::MemoryChain,
            recovery::plan,
        },
        protocol::{
            key::SecretKey,
            network::Network,
            output::{Change, KeyAggregation, RecoverySequence, ScriptTree},
            time::Timestamp,
        },
    };

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn output() -> BeaconOutput {
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: key(9).public_key().x_only(),
            recovery_sequence: RecoverySequence::try_from(100).unwrap(),
            fallback_threshold: None,
        };
        let aggregation = KeyAggregation::new([1, 2, 3].map(|byte| key(byte).public_key())).unwrap();
        BeaconOutput::new(Arc::new(aggregation), Network::Regtest, &tree).unwrap()
    }

    fn names(news: &[AnnouncementNotice]) -> Vec<String> {
        news.iter()
            .map(|notice| serde_json::to_value(notice).unwrap()["event"].as_str().unwrap().to_owned())
            .collect()
    }

    #[tokio::test]
    async fn the_address_of_an_announcement_that_has_ended_stays_watched() {
        let (chain, output, elsewhere) = (MemoryChain::new(), output(), ScriptBuf::new_op_return([1]));
        chain.mine(5, &elsewhere);
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap();
        let (at, script) = (Timestamp::from_secs(1), output.script_pubkey().to_owned());
        let events = [
            AnnouncementEvent::WatchStarted { at, script: script.clone(), deadline: at },
            AnnouncementEvent::TipSeen { at, tip: chain.tip().await.unwrap() },
            AnnouncementEvent::Failed { at, failure: AnnouncementFailure::NotFunded },
        ];
        let records = events.map(Record::new).into();
        journal.append(&StreamId::of_announcement(&cohort_id), records).await.unwrap();
        let out = tempfile::tempdir().unwrap();
        CohortFile { cohort_id, output: output.clone() }.write_to(out.path()).unwrap();
        let settings = AnnouncementSettings::new(Arc::new(chain.clone()), Network::Regtest, journal);
        let announcements = Announcements::new(settings, Rules::new(Change::Beacon));
        let mut watch = MaturityWatch::new(announcements, Some(out.path().to_owned()), 4);
        assert_eq!(names(&watch.check().await.unwrap()), [""; 0]);

        let coins = chain.mine(2, &script);
        assert_eq!(names(&watch.check().await.unwrap()), ["late-deposit", "late-deposit"]);
        assert_eq!(names(&watch.check().await.unwrap()), [""; 0]);

        // A foreign transaction spends one, and announces something.
        let spend = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: coins[0],
                script_sig: ScriptBuf::new(),
                sequence: Sequence::MAX,
                witness: Witness::new(),
            }],
            output: vec![TxOut { value: Amount::from_sat(1), script_pubkey: ScriptBuf::new_op_return([7; 32]) }],
        };
        chain.submit(&spend).await.unwrap();
        assert_eq!(names(&watch.check().await.unwrap()), ["foreign-spend", "foreign-signal"]);
        chain.mine(1, &elsewhere);
        assert_eq!(names(&watch.check().await.unwrap()), [""; 0]);

        // The other one matures, and the operator recovers it.
        chain.mine(94, &elsewhere);
        assert_eq!(names(&watch.check().await.unwrap()), ["recovery-near"]);
        chain.mine(4, &elsewhere);
        assert_eq!(names(&watch.check().await.unwrap()), ["recovery-possible"]);
        let coins = survey(&output, &chain.coins(&script).await.unwrap()).unwrap();
        let to = output.address();
        let rate = ::bitcoin::FeeRate::BROADCAST_MIN;
        let made = plan(&output, &coins, to, rate, &key(9), &mut ChaCha20Rng::from_seed([1; 32]));
        chain.submit(made[0].transaction.as_ref().unwrap()).await.unwrap();
        assert_eq!(names(&watch.check().await.unwrap()), ["late-deposit", "coin-recovered"]);
        assert_eq!(chain.scans(), 1, "only for this test");
    }
}
