//! The writer: one thread, which commits all pending jobs at once.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
};

use tokio::sync::oneshot;

use super::{
    database::{Change, Refused},
    error::StateError,
};

/// The approximate maximum size of one commit, so that the first of many jobs need not wait for all of them.
const COMMIT_BYTES: usize = 32 << 20;

/// The result of a job.
pub(super) type Outcome = Result<(), WriteError>;

/// Why a job was not written.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The job contradicts the stored data; other jobs are not affected.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nothing can be written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Changes that are written together, and the channel for the result.
pub(super) struct Job {
    pub(super) changes: Vec<Change>,
    answer: oneshot::Sender<Outcome>,
}

impl Job {
    /// Whether the caller only waits for its turn.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }
}

/// The queue of the writer thread. The thread ends, after all queued jobs, when this is [finished](Self::finish).
///
/// The queue is not bounded itself: it contains events and nonces whose callers wait, in bounded mailboxes and
/// requests, and the contents of the inboxes, which they bound.
pub(super) struct Writer {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts the thread. `commit` makes jobs durable, with an outcome for each, or fails permanently.
    pub(super) fn start<C>(commit: C) -> std::io::Result<Self>
    where
        C: FnMut(&[Job]) -> Result<Vec<Outcome>, StateError> + Send + 'static,
    {
        let (jobs, arriving) = mpsc::channel();
        let thread =
            thread::Builder::new().name("state-writer".to_owned()).spawn(move || run(&arriving, commit))?;
        Ok(Self { jobs, thread })
    }

    /// Queues a job. Jobs are written in this order. The receiver is only closed without an answer if the thread is
    /// gone.
    pub(super) fn queue(&self, changes: Vec<Change>) -> oneshot::Receiver<Outcome> {
        let (answer, answered) = oneshot::channel();
        // If the thread is gone, the answer's sender is dropped with the job.
        let _ = self.jobs.send(Job { changes, answer });
        answered
    }

    /// Waits until all queued jobs are written, and the thread has ended.
    pub(super) fn finish(self) {
        drop(self.jobs);
        // There is no panic to propagate: commits catch theirs.
        let _ = self.thread.join();
    }
}

fn run<C>(arriving: &Receiver<Job>, mut commit: C)
where
    C: FnMut(&[Job]) -> Result<Vec<Outcome>, StateError>,
{
    let mut failed: Option<StateError> = None;
    while let Ok(first) = arriving.recv() {
        let mut bytes = first.bytes();
        let mut jobs = vec![first];
        while bytes < COMMIT_BYTES
            && let Ok(job) = arriving.try_recv()
        {
            bytes += job.bytes();
            jobs.push(job);
        }
        let outcomes = match &failed {
            Some(error) => Err(error.clone()),
            None => commit(&jobs),
        };
        let outcomes = outcomes.unwrap_or_else(|error| {
            let error = failed.get_or_insert(error);
            jobs.iter().map(|_| Err(error.clone().into())).collect()
        });
        for (job, outcome) in jobs.into_iter().zip(outcomes) {
            // The caller may have stopped waiting.
            let _ = job.answer.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc, sync::atomic::AtomicUsize, sync::atomic::Ordering};

    use super::*;

    fn put(bytes: usize) -> Vec<Change> {
        vec![Change::Put { table: Arc::from("t"), key: vec![1], value: vec![0; bytes] }]
    }

    fn all_well(jobs: &[Job]) -> Result<Vec<Outcome>, StateError> {
        Ok(jobs.iter().map(|_| Ok(())).collect())
    }

    #[test]
    fn what_arrives_during_a_commit_goes_into_the_next_one() {
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let writer = Writer::start(move |jobs| {
            begun.send(jobs.len()).unwrap();
            // Closed when the test has finished.
            let _ = may_go_on.recv();
            all_well(jobs)
        });
        let writer = writer.unwrap();
        let first = writer.queue(put(1));
        assert_eq!(has_begun.recv().unwrap(), 1);
        let rest: Vec<_> = (0..1000).map(|_| writer.queue(put(1))).collect();
        drop(go_on);
        assert_eq!(has_begun.recv().unwrap(), 1000, "one commit for all jobs that arrived during the first");
        first.blocking_recv().unwrap().unwrap();
        assert!(rest.into_iter().all(|answer| answer.blocking_recv().unwrap().is_ok()));
        writer.finish();
        assert!(has_begun.recv().is_err(), "there was nothing left to commit");
    }

    #[test]
    fn the_size_of_one_commit_is_bounded() {
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let writer = Writer::start(move |jobs| {
            begun.send(jobs.len()).unwrap();
            let _ = may_go_on.recv();
            all_well(jobs)
        });
        let writer = writer.unwrap();
        drop(writer.queue(put(1)));
        has_begun.recv().unwrap();
        let answers: Vec<_> = (0..5).map(|_| writer.queue(put(COMMIT_BYTES / 2))).collect();
        drop(go_on);
        writer.finish();
        assert_eq!(has_begun.iter().collect::<Vec<_>>(), [2, 2, 1]);
        assert!(answers.into_iter().all(|answer| answer.blocking_recv().unwrap().is_ok()));
    }

    #[test]
    fn after_a_failure_nothing_is_acknowledged_any_more() {
        let commits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&commits);
        let writer = Writer::start(move |jobs| {
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                return all_well(jobs);
            }
            Err(StateError::Failed { dir: PathBuf::from("/state"), problem: "no space".to_owned() })
        });
        let writer = writer.unwrap();
        writer.queue(put(1)).blocking_recv().unwrap().unwrap();
        for _ in 0..3 {
            let error = writer.queue(put(1)).blocking_recv().unwrap().unwrap_err();
            assert!(error.to_string().contains("no space"), "{error}");
        }
        assert_eq!(commits.load(Ordering::SeqCst), 2, "no commit is attempted after the failure");
        writer.finish();
    }
}
