//! Services that cannot be reached: since when, and from which time on that is reported. What a DID needs of its cohort is at the member; what
//! it can do without its service is a rescue by its Singleton beacon, or an exit to another cohort.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use super::{config::SeatSettings, notice::MemberNotice, report::Reporter, tally::TABLE};
use crate::{
    actors::{
        runtime::Clock,
        state::{State, StateError, Table},
        transport::contact::Contacts,
    },
    protocol::time::Timestamp,
};

/// The keys of silent services in the member's table begin with it.
const PREFIX: &str = "silent/";

/// The longest time between two looks while a service is silent.
const LOOK: Duration = Duration::from_secs(60);

/// A service that cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Silent {
    /// Its name in the agent's file.
    pub service: String,
    /// Since when.
    pub since: Timestamp,
    /// Why, as far as that is known.
    pub problem: String,
    /// Whether it is silent for longer than the policy takes for a failure that passes.
    pub reported: bool,
}

/// The silent services in a state directory.
///
/// # Errors
/// [`StateError`] when it cannot be read.
pub(super) async fn silent(state: &State) -> Result<Vec<Silent>, StateError> {
    let page = state.table(TABLE).scan(PREFIX, None, usize::MAX).await?;
    Ok(page.entries.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
}

/// A service, and the addresses at which it is reached.
pub(super) struct Watched {
    name: String,
    peers: Vec<String>,
}

/// The services of the seeds, each once.
pub(super) fn watched(seats: &[SeatSettings]) -> Vec<Watched> {
    let mut watched: Vec<Watched> = Vec::new();
    for service in seats.iter().flat_map(|seat| &seat.services) {
        if watched.iter().any(|known| known.name == service.name) {
            continue;
        }
        let relays = service.nostr.iter().flat_map(|nostr| nostr.relays.iter().map(ToString::to_string));
        let peers = service.url.iter().cloned().chain(relays).collect();
        watched.push(Watched { name: service.name.clone(), peers });
    }
    watched
}

/// What watches the services of an agent.
pub(super) struct Silence {
    pub(super) services: Vec<Watched>,
    pub(super) contacts: Contacts,
    /// After which time silence is reported.
    pub(super) after: Duration,
    pub(super) table: Table,
    pub(super) reporter: Reporter,
    pub(super) clock: Clock,
}

impl Silence {
    /// Watches for as long as it is polled.
    pub(super) async fn follow(self) {
        let mut notices = self.contacts.subscribe();
        loop {
            let next = match self.look().await {
                Ok(next) => next,
                Err(problem) => return self.reporter.storage_failed(&problem),
            };
            tokio::select! {
                notice = notices.recv() => if matches!(notice, Err(RecvError::Closed)) {
                    return;
                },
                () = tokio::time::sleep(next.unwrap_or(LOOK)), if next.is_some() => {}
            }
        }
    }

    /// Why a service cannot be reached: none of its addresses can. `None` if one can; `Err` if that is not known yet.
    fn problem(&self, service: &Watched) -> Result<Option<String>, ()> {
        let mut problem = Err(());
        for peer in &service.peers {
            match self.contacts.reachability(peer) {
                Some(Ok(())) => return Ok(None),
                Some(Err(why)) => problem = Ok(Some(why)),
                None => {}
            }
        }
        problem
    }

    /// Records what has changed, and reports what is due. When to look again.
    async fn look(&self) -> Result<Option<Duration>, String> {
        let (now, mut next) = (self.clock.now(), None);
        for service in &self.services {
            let key = format!("{PREFIX}{}", service.name);
            let known = self.table.get(key.as_str()).await.map_err(|error| error.to_string())?;
            let known: Option<Silent> = known.and_then(|value| serde_json::from_slice(&value).ok());
            let problem = match self.problem(service) {
                Ok(Some(problem)) => problem,
                Ok(None) => {
                    if known.is_some() {
                        self.table.remove(key).await.map_err(|error| error.to_string())?;
                    }
                    if known.is_some_and(|known| known.reported) {
                        self.reporter.notice(&MemberNotice::ServiceAnswers { service: service.name.clone() });
                    }
                    continue;
                }
                // Not known in this run yet.
                Err(()) => {
                    next = known.map_or(next, |_| Some(LOOK));
                    continue;
                }
            };
            let (since, was_reported) = known.as_ref().map_or((now, false), |known| (known.since, known.reported));
            let for_long = now.since(since);
            let reported = was_reported || for_long >= self.after;
            let silent = Silent { service: service.name.clone(), since, problem, reported };
            if known.as_ref() != Some(&silent) {
                let value = serde_json::to_vec(&silent).map_err(|error| error.to_string())?;
                self.table.put(key, value).await.map_err(|error| error.to_string())?;
            }
            if reported && !was_reported {
                let Silent { service, problem, .. } = silent;
                let since = since.to_date().unwrap_or_default();
                self.reporter.notice(&MemberNotice::ServiceSilent { service, since, problem });
            }
            let wait = if reported { LOOK } else { self.after.saturating_sub(for_long).min(LOOK) };
            next = Some(next.map_or(wait, |known: Duration| known.min(wait)));
        }
        Ok(next)
    }
}
