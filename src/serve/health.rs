//! Whether the service can work now: its chain answers, a relay is connected, its state directory is writable.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::alarm::Alarms;
use crate::{actors::transport::nostr::NostrTransport, bitcoin::chain::Chain, metrics::http::Readiness};

/// The interval of the checks that cost nothing.
const LOOK: Duration = Duration::from_secs(1);

/// The interval of queries to the chain and of writes to the state directory, unless the chain is polled more often.
const PROBE: Duration = Duration::from_secs(15);

/// The time limit for the tip of the chain.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the service may be without a relay connection: relays come and go.
const GRACE: Duration = Duration::from_secs(10);

/// What is checked.
pub(super) struct Health {
    pub(super) readiness: Readiness,
    pub(super) alarms: Alarms,
    /// The chain, and its poll interval.
    pub(super) chain: Option<(Arc<dyn Chain>, Duration)>,
    pub(super) relays: Option<NostrTransport>,
    pub(super) state: Option<PathBuf>,
}

impl Health {
    /// Repeats the checks without end.
    pub(super) async fn watch(self) -> Infallible {
        let every = self.chain.as_ref().map_or(PROBE, |(_, poll)| PROBE.min(*poll));
        let (mut probe_at, mut connected_at) = (Instant::now(), Instant::now());
        let mut was_ready = true;
        loop {
            if let Some(relays) = &self.relays {
                if relays.relays().iter().any(|relay| relay.subscribed > 0) {
                    connected_at = Instant::now();
                }
                let lost = connected_at.elapsed() >= GRACE;
                let problem =
                    lost.then(|| format!("no relay is connected for {} s", connected_at.elapsed().as_secs()));
                self.readiness.report("relays", problem);
            }
            if Instant::now() >= probe_at {
                self.probe().await;
                probe_at = Instant::now() + every;
            }
            let problems = self.readiness.problems();
            if was_ready && !problems.is_empty() {
                self.alarms.not_ready(&problems);
            }
            was_ready = problems.is_empty();
            tokio::time::sleep(LOOK.min(every)).await;
        }
    }

    async fn probe(&self) {
        if let Some((chain, _)) = &self.chain {
            let problem = match tokio::time::timeout(PATIENCE, chain.tip()).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            self.readiness.report("chain", problem);
        }
        if let Some(directory) = self.state.clone() {
            // The disk may be slow.
            let written = tokio::task::spawn_blocking(move || write(&directory)).await;
            let problem = match written {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            self.readiness.report("state", problem);
        }
    }
}

/// Writes a file to the directory, and removes it.
fn write(directory: &Path) -> io::Result<()> {
    let file = directory.join("ready.probe");
    let written = fs::write(&file, [0; 4096]);
    let removed = fs::remove_file(&file);
    written.and(removed)
}
