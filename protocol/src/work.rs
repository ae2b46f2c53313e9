//! Counts of what is done with the bytes of messages, for tests: most of the time that a service needs for a message,
//! besides curve work, is in these.

#[cfg(any(test, feature = "sim"))]
pub use self::counted::{Work, so_far};

/// The text of a message, or of an envelope, is parsed.
pub(crate) fn parsed() {
    #[cfg(any(test, feature = "sim"))]
    counted::count(|work| work.parses += 1);
}

/// A value is canonicalized.
pub(crate) fn canonicalized() {
    #[cfg(any(test, feature = "sim"))]
    counted::count(|work| work.canonicalizations += 1);
}

#[cfg(any(test, feature = "sim"))]
mod counted {
    use std::cell::Cell;

    /// What was done on this thread.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Work {
        /// How many JSON texts of messages or envelopes, or of parts of them, were parsed.
        pub parses: u32,
        /// How many values were canonicalized.
        pub canonicalizations: u32,
    }

    thread_local! {
        static WORK: Cell<Work> = Cell::default();
    }

    pub(super) fn count(change: impl FnOnce(&mut Work)) {
        WORK.with(|counted| {
            let mut work = counted.get();
            change(&mut work);
            counted.set(work);
        });
    }

    /// The counts of this thread.
    pub fn so_far() -> Work {
        WORK.get()
    }

    impl std::ops::Sub for Work {
        type Output = Self;

        fn sub(self, before: Self) -> Self {
            Self {
                parses: self.parses - before.parses,
                canonicalizations: self.canonicalizations - before.canonicalizations,
            }
        }
    }
}
