//! Relays: the settings that all commands share, and `relay check`.

use crate::{actors::transport::nostr::NostrConfig, config::Span};

/// What `serve` and `join` are told about relays.
pub(super) struct RelaySettings {
    pub(super) relays: Vec<String>,
    pub(super) look_back: Option<Span>,
    pub(super) timeout: Option<Span>,
    pub(super) publish_timeout: Option<Span>,
    pub(super) retry: Option<Span>,
}

impl RelaySettings {
    /// The transport's configuration; `None` when there are no relays, unless `another` will be added.
    ///
    /// # Errors
    /// What is missing, or cannot work, in words.
    pub(super) fn config(self, another: bool) -> Result<Option<NostrConfig>, String> {
        let Self { relays, look_back, timeout, publish_timeout, retry } = self;
        if relays.is_empty() && !another {
            let given = [look_back, timeout, publish_timeout, retry];
            if given.iter().any(Option::is_some) {
                return Err("no relays: settings for relays need at least one --relay URL".to_owned());
            }
            return Ok(None);
        }
        if relays.iter().any(|relay| relay.trim().is_empty()) {
            return Err("no relays: the list of --relay is empty".to_owned());
        }
        let mut config = NostrConfig::new(relays.iter().map(|relay| relay.trim().to_owned()));
        let set = |setting: &mut std::time::Duration, span: Option<Span>| {
            if let Some(span) = span {
                *setting = span.0;
            }
        };
        set(&mut config.look_back, look_back);
        set(&mut config.connect_timeout, timeout);
        set(&mut config.publish_timeout, publish_timeout);
        set(&mut config.first_backoff, retry);
        Ok(Some(config))
    }
}
