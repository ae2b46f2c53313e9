//! How an actor ended, and how its owner gets to know.

use std::borrow::Cow;

use super::Leased;

/// How an actor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its work was done.
    Finished,
    /// It stopped before that.
    Stopped,
    /// It stopped because the journal did not take its events.
    JournalFailed,
    /// It panicked, and is not restarted.
    Panicked,
    /// It cannot go on, for this reason.
    Failed(String),
}

impl End {
    /// What went wrong, if anything did.
    pub fn failure(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Finished => None,
            Self::Stopped => Some("the actor stopped".into()),
            Self::JournalFailed => Some("the journal failed".into()),
            Self::Panicked => Some("the actor panicked".into()),
            Self::Failed(reason) => Some(reason.clone().into()),
        }
    }
}

/// Notifies an actor's owner, once, that the actor is gone: when it is dropped, however that happens.
pub struct EndGuard {
    notify: Option<Box<dyn FnOnce(End)>>,
    /// How the actor ends unless it panics.
    end: End,
    leased: Option<Leased>,
}

impl EndGuard {
    /// A guard that calls `notify` when it is dropped.
    pub fn new(notify: impl FnOnce(End) + 'static) -> Self {
        Self { notify: Some(Box::new(notify)), end: End::Stopped, leased: None }
    }

    /// A guard of an actor that runs by a lease. An owner that has dropped the lease knows of the end, and is not notified.
    pub(crate) fn leased(leased: Leased, notify: impl FnOnce(End) + 'static) -> Self {
        Self { notify: Some(Box::new(notify)), end: End::Stopped, leased: Some(leased) }
    }

    /// The actor's work is done.
    pub fn finish(&mut self) {
        self.end = End::Finished;
    }

    /// The actor stops because the journal failed.
    pub(crate) fn journal_failed(&mut self) {
        self.end = End::JournalFailed;
    }

    /// The actor stops because it cannot go on.
    pub(crate) fn fail(&mut self, reason: impl Into<String>) {
        self.end = End::Failed(reason.into());
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        let end = std::mem::replace(&mut self.end, End::Stopped);
        let end = if std::thread::panicking() { End::Panicked } else { end };
        if let Some(notify) = self.notify.take()
            && !self.leased.as_ref().is_some_and(Leased::is_over)
        {
            notify(end);
        }
    }
}
