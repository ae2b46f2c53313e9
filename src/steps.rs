//! A queue of notices for a program. Decisive notices are never dropped, however slow the reader is; the others, which
//! are only printed, may be.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};

use crate::bitcoin::notice::AnnouncementNotice;

/// How many notices that are only printed may wait.
const WAITING: usize = 1 << 14;

/// A notice of which some are decisive for the program that reads them. There are few of those: a handful per cohort.
pub(crate) trait Step: Clone + Send + Sync + 'static {
    /// Whether the notice must not be missed.
    fn is_decisive(&self) -> bool;
}

impl Step for AnnouncementNotice {
    fn is_decisive(&self) -> bool {
        // There are a few for each cohort and each problem with the chain, and the operator needs all of them.
        true
    }
}

/// An item of the queue.
#[derive(Debug)]
pub(crate) enum Next<N> {
    /// A notice.
    Step(Arc<N>),
    /// This many notices were dropped, none of them decisive.
    Missed(u64),
    /// This many notices of any kind were lost, because the program had no time to read.
    Lost(u64),
}

/// Notices in their order.
pub(crate) struct Steps<N> {
    queue: mpsc::UnboundedReceiver<Next<N>>,
    waiting: Arc<AtomicUsize>,
}

impl<N: Step> Steps<N> {
    /// The notices that `from` receives from now on. Needs a running actix `System`.
    pub(crate) fn of(mut from: broadcast::Receiver<Arc<N>>) -> Self {
        let (sender, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&waiting);
        actix_rt::spawn(async move {
            let mut missed = 0;
            loop {
                let next = match from.recv().await {
                    Ok(step) if !step.is_decisive() && counter.load(Ordering::Relaxed) >= WAITING => {
                        missed += 1;
                        continue;
                    }
                    Ok(step) => Next::Step(step),
                    Err(RecvError::Lagged(lost)) => Next::Lost(lost),
                    Err(RecvError::Closed) => break,
                };
                if missed > 0 {
                    let _ = sender.send(Next::Missed(std::mem::take(&mut missed)));
                }
                counter.fetch_add(1, Ordering::Relaxed);
                if sender.send(next).is_err() {
                    break;
                }
            }
        });
        Self { queue, waiting }
    }

    /// The next item; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Option<Next<N>> {
        let next = self.queue.recv().await?;
        if !matches!(next, Next::Missed(_)) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Number(usize);

    impl Step for Number {
        fn is_decisive(&self) -> bool {
            self.0 == usize::MAX
        }
    }

    #[actix_rt::test]
    async fn a_slow_reader_misses_nothing_that_matters() {
        let notices = broadcast::Sender::new(64);
        let mut steps = Steps::of(notices.subscribe());
        for number in 0..WAITING + 10 {
            notices.send(Arc::new(Number(number))).unwrap();
            tokio::task::yield_now().await;
        }
        notices.send(Arc::new(Number(usize::MAX))).unwrap();
        tokio::task::yield_now().await;
        for number in 0..WAITING {
            assert!(matches!(steps.next().await, Some(Next::Step(step)) if step.0 == number));
        }
        assert!(matches!(steps.next().await, Some(Next::Missed(10))));
        assert!(matches!(steps.next().await, Some(Next::Step(step)) if step.is_decisive()));
    }
}
