//! Counts for each relay.

use std::sync::{Arc, Mutex, PoisonError};

use nostr_sdk::RelayUrl;
use reqwest::Url;
use serde::Serialize;

/// A relay's address without its parts that may be passwords, for logs and reports.
pub(super) fn shown(url: &RelayUrl) -> String {
    let text = url.to_string();
    match Url::parse(&text) {
        Ok(mut url) if url.query().is_some() || !url.username().is_empty() || url.password().is_some() => {
            url.set_query(None);
            // These only fail for addresses without a host, which are not a relay's.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => text,
    }
}

/// The counts of one relay so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RelayReport {
    /// Its address.
    pub url: String,
    /// The number of open connections to it.
    pub connected: u64,
    /// Of these, the ones on which it has sent all stored events: later events arrive at once.
    pub subscribed: u64,
    /// The number of connections made to it.
    pub connections: u64,
    /// The number of connections that ended, or could not be made.
    pub failures: u64,
    /// Events of ours that it accepted.
    pub accepted: u64,
    /// Events of ours that it refused.
    pub refused: u64,
    /// Events of ours that it did not answer.
    pub unanswered: u64,
    /// Events of other authors that it sent.
    pub received: u64,
    /// Of these, the ones that this or another relay had sent before.
    pub duplicates: u64,
    /// Events of other authors that should be messages and are not: without a valid signature, or not readable.
    pub malformed: u64,
    /// Its last reason for a refusal, or for the end of its connection.
    pub last_problem: Option<String>,
}

/// The reports of the relays. Clones share them.
#[derive(Clone)]
pub(super) struct Reports(Arc<Mutex<Vec<RelayReport>>>);

impl Reports {
    pub(super) fn new(urls: &[RelayUrl]) -> Self {
        let report = |url: &RelayUrl| RelayReport { url: shown(url), ..RelayReport::default() };
        Self(Arc::new(Mutex::new(urls.iter().map(report).collect())))
    }

    /// Updates the report of the relay with this number.
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
