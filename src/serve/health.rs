//! Whether the service can do its work now: its chain answers, a relay is connected, its state directory takes writes.

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

/// How often to look at what costs nothing.
const LOOK: Duration = Duration::from_secs(1);

/// How often to ask the chain and to write to the state directory, unless the chain is asked more often anyway.
const PROBE: Duration = Duration::from_secs(15);

/// How long a chain may take to say what its tip is.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long there may be no connection to any relay: they come and go.
const GRACE: Duration = Duration::from_secs(10);

/// What is looked at.
pub(super) struct Health {
    pub(super) readiness: Readiness,
    pub(super) alarms: Alarms,
    /// The chain, and how often the service asks it.
    pub(super) chain: Option<(Arc<dyn Chain>, Duration)>,
    pub(super) relays: Option<NostrTransport>,
    pub(super) state: Option<PathBuf>,
}

impl Health {
    /// Looks again and again.
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
            // A disk may take its time.
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

/// Writes something to the directory, and takes it away again.
fn write(directory: &Path) -> io::Result<()> {
    let file = directory.join("ready.probe");
    let written = fs::write(&file, [0; 4096]);
    let removed = fs::remove_file(&file);
    written.and(removed)
}
