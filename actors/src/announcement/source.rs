//! What a host receives of announcements from the journal, without their actors: their ends.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    announcement::{Announcement, AnnouncementEvent, Rules},
    machine,
    network::Network,
};
use futures::{FutureExt, future::BoxFuture};

use super::{
    AnnouncementSettings,
    notice::{self, AnnouncementNotice},
};
use crate::{
    events::{Decisive, Position, Source, Step, acknowledged},
    journal::{Journal, JournalError, StreamId, StreamKind},
    supervision::replay,
};

impl Decisive for AnnouncementNotice {
    fn position(&self) -> Option<Position> {
        let (cohort_id, step) = match self {
            Self::AnnouncementFailed { cohort_id, .. } => (cohort_id, Step::Unannounced),
            Self::AnnouncementFinal { cohort_id, .. } => (cohort_id, Step::Ended),
            _ => return None,
        };
        Some(Position { stream: StreamId::of_announcement(cohort_id), step })
    }

    fn is_caused_by_anyone(&self) -> bool {
        matches!(
            self,
            Self::DepositSeen { .. }
                | Self::DepositGone { .. }
                | Self::DepositTooSmall { .. }
                | Self::LateDeposit { .. }
        )
    }
}

/// The journal of announcements. Their streams remain live, see [`Announcements::resume`](super::Announcements::resume):
/// an acknowledged end is only recorded.
#[derive(Clone)]
pub(super) struct AnnouncementJournal {
    journal: Arc<dyn Journal>,
    network: Network,
    rules: Arc<Rules>,
}

impl AnnouncementJournal {
    pub(super) fn new(settings: &AnnouncementSettings, rules: &Arc<Rules>) -> Self {
        Self { journal: Arc::clone(&settings.journal), network: settings.network, rules: Arc::clone(rules) }
    }

    /// The end of an announcement, if it has ended.
    async fn end(self, stream: StreamId) -> Result<Option<AnnouncementNotice>, JournalError> {
        let StreamKind::Announcement(cohort_id) = stream.kind() else { return Ok(None) };
        let events: Vec<AnnouncementEvent> = replay::events(&*self.journal, &stream).await?;
        let machine = replay::caught(|| machine::replay(Announcement::new(self.rules), &events))
            .map_err(|problem| JournalError { stream, problem })?;
        if !machine.has_ended() {
            return Ok(None);
        }
        // No required amounts of a deposit are part of an end.
        let notice = |event| notice::of(&cohort_id, self.network, &machine, None, event);
        Ok(events.iter().rev().filter_map(notice).find(|notice| notice.position().is_some()))
    }
}

impl Source<AnnouncementNotice> for AnnouncementJournal {
    /// Without those of which the end is acknowledged.
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        let journal = Arc::clone(&self.journal);
        async move {
            let done = acknowledged::read(&*journal, is_announcement).await?;
            let done = done.into_iter().filter(|position| position.step == Step::Ended);
            let done: Vec<StreamId> = done.map(|position| position.stream).collect();
            let streams = journal.streams().await?.into_iter();
            // Both are in the order of their names.
            Ok(streams.filter(|stream| is_announcement(stream) && done.binary_search(stream).is_err()).collect())
        }
        .boxed()
    }

    fn read(&self, stream: StreamId) -> BoxFuture<'static, Result<Vec<AnnouncementNotice>, JournalError>> {
        let end = self.clone().end(stream);
        async move { Ok(end.await?.into_iter().collect()) }.boxed()
    }

    fn acknowledged(&self) -> BoxFuture<'static, Result<Vec<Position>, JournalError>> {
        let journal = Arc::clone(&self.journal);
        async move { acknowledged::read(&*journal, is_announcement).await }.boxed()
    }

    fn acknowledge(&self, position: Position) -> BoxFuture<'static, Result<(), JournalError>> {
        let journal = Arc::clone(&self.journal);
        async move { acknowledged::write(&*journal, &position).await }.boxed()
    }
}

fn is_announcement(stream: &StreamId) -> bool {
    matches!(stream.kind(), StreamKind::Announcement(_))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bitcoin::{Amount, BlockHash, ScriptBuf, Txid, hashes::Hash};
    use btcr2_aggregation_protocol::{
        announcement::AnnouncementFailure, chain::BlockId, id::CohortId, output::Change, time::Timestamp,
    };

    use super::*;
    use crate::{
        events::{self, Event, Events},
        journal::{MemoryJournal, Record},
        notice::Notices,
    };

    fn failed(cohort_id: &CohortId) -> AnnouncementNotice {
        AnnouncementNotice::AnnouncementFailed {
            cohort_id: cohort_id.clone(),
            failure: AnnouncementFailure::NotFunded,
            reason: AnnouncementFailure::NotFunded.to_string(),
            left: Amount::ZERO,
        }
    }

    fn final_at(cohort_id: &CohortId) -> AnnouncementNotice {
        AnnouncementNotice::AnnouncementFinal {
            cohort_id: cohort_id.clone(),
            txid: Txid::all_zeros(),
            block: BlockId { height: 7, hash: BlockHash::all_zeros() },
            left: Amount::ZERO,
            fee: Amount::ZERO,
            child_fee: Amount::ZERO,
            change: None,
        }
    }

    /// The ends among all events; the stream of notices is over.
    async fn ends(mut events: Events<AnnouncementNotice>, acknowledge: bool) -> Vec<AnnouncementNotice> {
        let mut ends = Vec::new();
        while let Some((cursor, event)) = events.next().await {
            if acknowledge {
                events.ack(&cursor).await.unwrap();
            }
            if let Event::Notice(notice) = event
                && cursor.is_decisive()
            {
                ends.push((*notice).clone());
            }
        }
        ends
    }

    #[tokio::test]
    async fn an_end_is_delivered_until_it_is_acknowledged() {
        let cohort_id = CohortId::parse("3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11").unwrap();
        let at = Timestamp::from_secs(1);
        let started = AnnouncementEvent::WatchStarted { at, script: ScriptBuf::new(), deadline: at };
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let stream = StreamId::of_announcement(&cohort_id);
        journal.append(&stream, vec![Record::new(started)]).await.unwrap();
        let source = || AnnouncementJournal {
            journal: Arc::clone(&journal),
            network: Network::Regtest,
            rules: Arc::new(Rules::new(Change::Beacon)),
        };
        let run = |published: Vec<AnnouncementNotice>| {
            let notices = Notices::new(1);
            let events = events::follow_from_journal(&notices, Arc::new(source()), 8);
            published.into_iter().for_each(|notice| notices.publish(notice));
            events
        };
        assert_eq!(ends(run(Vec::new()), false).await, [], "it has not ended");
        let failure = AnnouncementFailure::NotFunded;
        journal.append(&stream, vec![Record::new(AnnouncementEvent::Failed { at, failure })]).await.unwrap();
        let end = failed(&cohort_id);
        assert_eq!(ends(run(Vec::new()), false).await, std::slice::from_ref(&end));
        assert_eq!(ends(run(Vec::new()), true).await, std::slice::from_ref(&end));
        assert_eq!(ends(run(Vec::new()), false).await, []);
        // The transaction is announced nevertheless.
        let later = vec![end.clone(), final_at(&cohort_id), final_at(&cohort_id)];
        assert_eq!(ends(run(later), true).await, [end, final_at(&cohort_id)]);
        assert_eq!(source().streams().await.unwrap(), []);
        assert_eq!(ends(run(vec![final_at(&cohort_id)]), false).await, []);
    }
}
