//! What each relay did, counted.

use std::sync::{Arc, Mutex, PoisonError};

use nostr_sdk::RelayUrl;
use reqwest::Url;
use serde::Serialize;

/// A relay's address without what may be a password in it, for logs and reports.
pub(super) fn shown(url: &RelayUrl) -> String {
    let text = url.to_string();
    match Url::parse(&text) {
        Ok(mut url) if url.query().is_some() || !url.username().is_empty() || url.password().is_some() => {
            url.set_query(None);
            // These fail for addresses without a host only, which are no relay's.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => text,
    }
}

/// What one relay has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayReport {
    /// Its address.
    pub url: String,
    /// How many connections to it are open.
    pub connected: u64,
    /// Of these, the ones on which it has sent all that it had stored: what comes from now on comes at once.
    pub subscribed: u64,
    /// How many connections to it were made.
    pub connections: u64,
    /// How many ended, or could not be made.
    pub failures: u64,
    /// Events of ours that it accepted.
    pub accepted: u64,
    /// Events of ours that it refused.
    pub refused: u64,
    /// Events of ours of which it did not say what became of them.
    pub unanswered: u64,
    /// Events of others that it sent.
    pub received: u64,
    /// Of these, the ones that another relay had sent before, or it itself.
    pub duplicates: u64,
    /// Events of others that are no messages although they should be: without a valid signature, or not to be read.
    pub malformed: u64,
    /// What it last refused something for, or why its connection last ended.
    pub last_problem: Option<String>,
}

/// The relays' reports. Clones are the same reports.
#[derive(Clone)]
pub(super) struct Reports(Arc<Mutex<Vec<RelayReport>>>);

impl Reports {
    pub(super) fn new(urls: &[RelayUrl]) -> Self {
        let report = |url: &RelayUrl| RelayReport { url: shown(url), ..RelayReport::default() };
        Self(Arc::new(Mutex::new(urls.iter().map(report).collect())))
    }

    /// Adds something to the report of the relay with this number.
    pub(super) fn note(&self, relay: usize, note: impl FnOnce(&mut RelayReport)) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(report) = reports.get_mut(relay) {
            note(report);
        }
    }

    pub(super) fn all(&self) -> Vec<RelayReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_password_of_a_relay_is_shown() {
        let shown = |url: &str| shown(&RelayUrl::parse(url).unwrap());
        assert_eq!(shown("wss://relay.example"), "wss://relay.example");
        assert_eq!(shown("wss://relay.example/path/"), "wss://relay.example/path/");
        assert_eq!(shown("wss://me:hidden@relay.example/path?token=hidden"), "wss://relay.example/path");
    }
}
