//! A DID that a controller has in standing cohorts.

use std::sync::Arc;

use crate::{controller::Keys, protocol::identity::Identity};

/// A DID and its keys.
#[derive(Clone)]
pub struct ControlledDid {
    /// The identity that it began with.
    pub identity: Identity,
    /// The keys that sign for it.
    pub keys: Arc<Keys>,
}
