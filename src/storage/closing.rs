//! A journal that may be closed while actors still use it, at the end of a program.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::{
    FutureExt,
    future::{BoxFuture, pending},
};

use crate::{
    actors::journal::{Archived, Journal, JournalError, Record, StreamId},
    protocol::time::Timestamp,
};

/// Whether the program is closing its state directory. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct Closing(Arc<AtomicBool>);

impl Closing {
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Passes every call on until the program closes the directory. A later call, or one that fails because of the closing,
/// is never answered: it is not a failure of the journal, its caller is about to end, and the next start continues from
/// the state on disk.
pub(super) struct UntilClosed<J> {
    pub(super) journal: J,
    pub(super) closing: Closing,
}

impl<J: Journal> UntilClosed<J> {
    fn answer<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&J) -> BoxFuture<'static, Result<T, JournalError>>,
    ) -> BoxFuture<'static, Result<T, JournalError>> {
        if self.closing.has_begun() {
            return pending().boxed();
        }
        let (answer, closing) = (ask(&self.journal), self.closing.clone());
        async move {
            match answer.await {
                Err(_) if closing.has_begun() => pending().await,
                answer => answer,
            }
        }
        .boxed()
    }
}

impl<J: Journal> Journal for UntilClosed<J> {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        self.answer(|journal| journal.append(stream, records))
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.answer(|journal| journal.read(stream))
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.answer(Journal::streams)
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.answer(|journal| journal.archive(stream, at))
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.answer(Journal::archived)
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.answer(|journal| journal.remove(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::state::State;

    #[tokio::test]
    async fn what_comes_after_the_end_is_not_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let closing = Closing::default();
        let journal = UntilClosed { journal: state.journal(), closing: closing.clone() };
        let stream = StreamId::new("cohort/one");
        journal.append(&stream, vec![Record::from_json(&b"{}"[..])]).await.unwrap();
        // Called before the closing, and answered after it.
        closing.begin();
        state.close().await;
        assert!(journal.append(&stream, vec![Record::from_json(&b"{}"[..])]).now_or_never().is_none());
        let directly = UntilClosed { journal: journal.journal.clone(), closing: Closing::default() };
        let asked = directly.read(&stream);
        assert!(asked.await.is_err(), "before the closing, a failure is an error");
        let state = State::open(directory.path()).unwrap();
        assert_eq!(state.journal().read(&stream).await.unwrap().len(), 1);
    }
}
