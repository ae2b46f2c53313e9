//! The hold of an owner on an actor that writes a stream of the journal.
//!
//! An actor does not end when its owner does: its timers, or a decision on another thread, keep it going for a while. By then
//! another may stand in its place and write the same stream. So whoever starts such an actor keeps a [`Hold`], and the actor's
//! engine looks at its [`Held`] before it appends anything.

use std::sync::{Arc, Weak};

/// What the owner keeps for as long as the actor may write.
#[derive(Default)]
pub(crate) struct Hold(Arc<()>);

impl Hold {
    /// What the actor is given.
    pub(crate) fn held(&self) -> Held {
        Held(Arc::downgrade(&self.0))
    }
}

/// What the actor knows of its owner's hold.
#[derive(Clone)]
pub(crate) struct Held(Weak<()>);

impl Held {
    /// Whether the owner has let go: from then on the actor must write nothing.
    pub(crate) fn is_let_go(&self) -> bool {
        self.0.strong_count() == 0
    }
}
