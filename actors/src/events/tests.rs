use std::sync::Mutex;

use btcr2_aggregation_protocol::{
    cohort::event::CohortFailure,
    error::{Reject, RejectCode},
    id::CohortId,
};
use futures::FutureExt;

use super::*;
use crate::notice::ServiceNotice;

fn cohort(number: usize) -> CohortId {
    CohortId::parse(&format!("cohort-{number}")).unwrap()
}

fn step(number: usize) -> ServiceNotice {
    ServiceNotice::CohortAdvertised { cohort_id: cohort(number) }
}

fn end(number: usize) -> ServiceNotice {
    ServiceNotice::failed(cohort(number), &CohortFailure::Outdated, None)
}

/// A journal of cohorts that have ended.
#[derive(Default)]
struct Ended(Mutex<Vec<usize>>);

impl Ended {
    fn streams(&self) -> Vec<StreamId> {
        self.0.lock().unwrap().iter().map(|number| StreamId::of_cohort(&cohort(*number))).collect()
    }

    fn position(&self, stream: &StreamId) -> Option<usize> {
        self.streams().iter().position(|other| other == stream)
    }
}

impl Source<ServiceNotice> for Ended {
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        futures::future::ready(Ok(self.streams())).boxed()
    }

    fn read(&self, stream: StreamId) -> BoxFuture<'static, Result<Vec<ServiceNotice>, JournalError>> {
        let found = self.position(&stream).map(|position| self.0.lock().unwrap()[position]);
        // Not at once: the caller may give up meanwhile.
        async move {
            tokio::task::yield_now().await;
            Ok(found.map(end).into_iter().collect())
        }
        .boxed()
    }

    fn acknowledged(&self) -> BoxFuture<'static, Result<Vec<Position>, JournalError>> {
        futures::future::ready(Ok(Vec::new())).boxed()
    }

    fn acknowledge(&self, Position { stream, .. }: Position) -> BoxFuture<'static, Result<(), JournalError>> {
        if let Some(position) = self.position(&stream) {
            self.0.lock().unwrap().remove(position);
        }
        futures::future::ready(Ok(())).boxed()
    }
}

/// The ends among the next events, and the losses.
async fn drain(events: &mut Events<ServiceNotice>) -> (Vec<CohortId>, u64) {
    let (mut ends, mut lost) = (Vec::new(), 0);
    loop {
        // A reader that gives up at every chance, like a `select!` whose other branch is ready.
        let next = tokio::select! {
            biased;
            next = events.next() => next,
            () = tokio::task::yield_now(), if !ends.is_empty() => match events.next().now_or_never() {
                Some(next) => next,
                None if events.behind.as_ref().is_some_and(VecDeque::is_empty) && events.reread.is_empty() => None,
                None => continue,
            },
        };
        match next {
            Some((cursor, Event::Notice(notice))) if cursor.is_decisive() => {
                ends.extend(notice.cohort_id().cloned())
            }
            Some((_, Event::Gap(gap))) => lost += gap,
            Some(_) => {}
            None => return (ends, lost),
        }
    }
}

#[tokio::test]
async fn decisive_events_that_found_no_space_are_read_again() {
    let (notices, journal) = (Notices::new(1), Arc::new(Ended::default()));
    let mut events = follow(&notices, Arc::clone(&journal) as _, 8);
    const COHORTS: usize = 1_000;
    for number in 0..COHORTS {
        journal.0.lock().unwrap().push(number);
        notices.publish(step(number));
        notices.publish(end(number));
    }
    drop(notices);
    let (mut ends, lost) = drain(&mut events).await;
    assert!(lost > 0, "more was published than waits");
    let delivered = ends.len();
    ends.sort();
    ends.dedup();
    assert_eq!((ends.len(), delivered), (COHORTS, COHORTS), "each is delivered, and once");
}

#[tokio::test]
async fn transient_events_take_no_space_from_decisive_ones() {
    let (notices, journal) = (Notices::new(1), Arc::new(Ended::default()));
    let mut events = follow(&notices, journal, 8);
    for _ in 0..10_000 {
        notices.publish(step(0));
    }
    notices.publish(end(1));
    for _ in 0..10 {
        notices.publish(step(0));
    }
    drop(notices);
    let mut received = Vec::new();
    while let Some((_, event)) = events.next().await {
        received.push(match event {
            Event::Notice(notice) if notice.is_end() => "end".to_owned(),
            Event::Notice(_) => "step".to_owned(),
            Event::Gap(lost) => format!("gap of {lost}"),
        });
    }
    assert_eq!(received[..8], vec!["step"; 8]);
    assert_eq!(received[8..], ["gap of 9992", "end", "gap of 10"]);
}

#[tokio::test]
async fn rejected_messages_take_no_space_from_the_steps_of_cohorts() {
    let notices = Notices::new(1);
    let mut events = follow(&notices, Arc::new(Ended::default()), 8);
    for _ in 0..10_000 {
        let reject = Reject { code: RejectCode::Malformed, peer: None, detail: String::new() };
        notices.publish(ServiceNotice::rejected(None, &reject));
    }
    (0..3).for_each(|number| notices.publish(step(number)));
    drop(notices);
    let mut steps = 0;
    while let Some((_, event)) = events.next().await {
        steps += usize::from(matches!(event, Event::Notice(notice) if notice.cohort_id().is_some()));
    }
    assert_eq!(steps, 3);
}

#[tokio::test]
async fn a_later_stream_begins_with_what_is_not_acknowledged() {
    let (notices, journal) = (Notices::new(1), Arc::new(Ended::default()));
    *journal.0.lock().unwrap() = vec![1, 2];
    let source: Arc<dyn Source<ServiceNotice>> = journal;
    let mut events = follow_from_journal(&notices, Arc::clone(&source), 8);
    let (cursor, _) = events.next().await.unwrap();
    events.ack(&cursor).await.unwrap();
    drop(events);
    let mut events = follow_from_journal(&notices, source, 8);
    drop(notices);
    assert_eq!(drain(&mut events).await, (vec![cohort(2)], 0));
}
