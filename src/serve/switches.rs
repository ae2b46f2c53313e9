//! The settings of a service that its operator can change while it runs.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use crate::protocol::did::Did;

/// The settings, and the DIDs that the operator has listed beside those of the file. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Switches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Whether invites admit.
    invites: AtomicBool,
    /// Whether listed DIDs are admitted, and others are not.
    list: AtomicBool,
    proven_keys_only: AtomicBool,
    /// Whether each candidate waits for the operator.
    manual: AtomicBool,
    /// Whether new cohorts are advertised.
    adverts: AtomicBool,
    max_live: AtomicU32,
    listed: RwLock<Arc<BTreeSet<Did>>>,
}

/// The values of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Values {
    /// Whether invites admit.
    pub(crate) invites: bool,
    /// Whether the allow-list of the control API is used.
    pub(crate) allow_list: bool,
    /// Whether a participant must prove that it has its signing key.
    pub(crate) proven_keys_only: bool,
    /// Whether each candidate waits for the operator's decision.
    pub(crate) manual_admission: bool,
    /// Whether new cohorts are advertised.
    pub(crate) adverts: bool,
    /// The most cohorts that run at once.
    pub(crate) max_live_cohorts: u32,
}

impl Switches {
    pub(crate) fn new(values: Values) -> Self {
        let switches = Self(Arc::new(Inner {
            invites: AtomicBool::default(),
            list: AtomicBool::default(),
            proven_keys_only: AtomicBool::default(),
            manual: AtomicBool::default(),
            adverts: AtomicBool::default(),
            max_live: AtomicU32::default(),
            listed: RwLock::default(),
        }));
        switches.set(values);
        switches
    }

    /// Changes all of them. Each is read by itself, so that their order does not matter.
    pub(crate) fn set(&self, values: Values) {
        let Inner { invites, list, proven_keys_only, manual, adverts, max_live, .. } = &*self.0;
        invites.store(values.invites, Ordering::Relaxed);
        list.store(values.allow_list, Ordering::Relaxed);
        proven_keys_only.store(values.proven_keys_only, Ordering::Relaxed);
        manual.store(values.manual_admission, Ordering::Relaxed);
        adverts.store(values.adverts, Ordering::Relaxed);
        max_live.store(values.max_live_cohorts, Ordering::Relaxed);
    }

    /// What they are now.
    pub(crate) fn values(&self) -> Values {
        let Inner { invites, list, proven_keys_only, manual, adverts, max_live, .. } = &*self.0;
        Values {
            invites: invites.load(Ordering::Relaxed),
            allow_list: list.load(Ordering::Relaxed),
            proven_keys_only: proven_keys_only.load(Ordering::Relaxed),
            manual_admission: manual.load(Ordering::Relaxed),
            adverts: adverts.load(Ordering::Relaxed),
            max_live_cohorts: max_live.load(Ordering::Relaxed),
        }
    }

    /// Replaces the listed DIDs.
    pub(crate) fn list(&self, dids: BTreeSet<Did>) {
        *self.0.listed.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(dids);
    }

    /// The listed DIDs.
    pub(crate) fn listed(&self) -> Arc<BTreeSet<Did>> {
        Arc::clone(&self.0.listed.read().unwrap_or_else(PoisonError::into_inner))
    }
}
