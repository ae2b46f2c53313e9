//! How an actor ended, and the notification of its owner.

use std::borrow::Cow;

use super::Leased;

/// How an actor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its work was done.
    Finished,
    /// It stopped before its work was done.
    Stopped,
    /// It stopped because the journal failed to append its events.
    JournalFailed,
    /// It panicked, and is not restarted.
    Panicked,
    /// It cannot continue, for this reason.
    Failed(String),
}

impl End {
    /// The failure, if it did not just finish.
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

/// Notifies an actor's owner once that the actor has ended: when this is dropped, for any reason.
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

    /// A guard of an actor that runs under a lease. An owner that has dropped the lease knows of the end, and is not
    /// notified.
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

    /// The actor stops because it cannot continue.
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
