//! The lease by which an owner lets an actor run.
//!
//! An actor does not end when its owner does: its timers, or a decision on another thread, would keep it running for a
//! while. In the meantime its owner may have started another actor that writes the same stream of the journal. The
//! owner therefore holds a [`Lease`]; when it is dropped, the actor's task ends before it runs anything else.

use tokio_util::sync::{CancellationToken, DropGuard};

/// Held by the owner as long as the actor may run.
#[derive(Debug)]
pub(crate) struct Lease {
    token: CancellationToken,
    _guard: DropGuard,
}

impl Lease {
    pub(crate) fn new() -> Self {
        let token = CancellationToken::new();
        Self { _guard: token.clone().drop_guard(), token }
    }

    /// The actor's side.
    pub(crate) fn leased(&self) -> Leased {
        Leased(self.token.clone())
    }
}

/// The actor's side of a [`Lease`].
#[derive(Clone, Debug)]
pub(crate) struct Leased(CancellationToken);

impl Leased {
    /// Whether the owner has dropped its lease.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Ready when the owner has dropped its lease.
    pub(super) async fn over(self) {
        self.0.cancelled().await;
    }
}
