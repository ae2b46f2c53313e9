//! What the control socket answers.

use std::{path::PathBuf, rc::Rc, sync::Arc};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    agent::Wake,
    approval::Approvals,
    backup::{self, ContinuousBackups},
    console::Access,
    control::{MOST_LOG, Request, costs_of, counts, server::Backend, shown},
    data::{self, Keeping},
    details::{self, Checking},
    leaving::{self, Exits},
    minting::{self, Order},
    queue::{Queue, QueueError},
    report::{self, Reporter},
    rescue,
    settling::Seed,
    silence,
    tally::Tally,
};
use crate::{
    actors::{runtime::Clock, standing::boards::BoardStore, state::State},
    protocol::{beacon::did_index, network::Network},
};

/// The answers of a running agent.
pub(super) struct Desk {
    pub(super) reporter: Reporter,
    pub(super) state: State,
    pub(super) queue: Arc<Queue>,
    pub(super) approvals: Approvals,
    pub(super) tally: Arc<Tally>,
    pub(super) exits: Arc<Exits>,
    pub(super) keeping: Rc<Keeping>,
    pub(super) boards: Arc<dyn BoardStore>,
    pub(super) seeds: Vec<Seed>,
    pub(super) directory: PathBuf,
    pub(super) network: Network,
    pub(super) checking: Checking,
    pub(super) backups: Option<Arc<ContinuousBackups>>,
    /// How browsers log in, if there is a page.
    pub(super) access: Option<Access>,
    pub(super) wake: mpsc::Sender<Wake>,
}

impl Desk {
    /// A failed write ends this life of the agent.
    fn failed(&self, error: &QueueError) -> String {
        if let QueueError::Storage(problem) = error {
            self.reporter.storage_failed(problem);
        }
        error.to_string()
    }

    async fn status(&self) -> Result<Value, String> {
        let mut seats = Vec::new();
        for seed in &self.seeds {
            let mut cohorts = Vec::new();
            for seat in seed.member.seats().await {
                let Some(machine) = seed.member.inspect(&seat.seat).await else { continue };
                let terms = &machine.config().terms;
                cohorts.push(json!({
                    "service": seat.service,
                    "cohortId": seat.cohort_id,
                    "seat": seat.seat,
                    "beaconAddress": machine.output().map(|output| output.address()),
                    "beaconType": terms.beacon_type.as_str(),
                    "seats": machine.output().map(|output| output.keys().len()),
                    "number": machine.highest(),
                    "registered": machine.confirmed_indexes().count(),
                    "mayBeAnnounced": machine.committed().len(),
                    "former": machine.former_indexes().len(),
                    "successor": machine.successor().map(|successor| &successor.cohort_id),
                    "hasMoved": machine.has_moved(),
                }));
            }
            seats.push(json!({
                "name": seed.name, "dids": seed.controller.indexes().len(), "cohorts": cohorts,
            }));
        }
        let silent = silence::silent(&self.state).await.map_err(|error| error.to_string())?;
        let silent: Vec<_> = silent.into_iter().filter(|one| one.reported).collect();
        let last = backup::last(&self.state).await.map_err(|error| error.to_string())?;
        let age = last.map(|at| Clock::system().now().since(at).as_secs());
        Ok(json!({
            "running": true,
            "pid": std::process::id(),
            "seats": seats,
            "queue": counts(&self.queue.list()),
            "pending": self.approvals.pending().len(),
            "leaving": self.exits.open_ones().len(),
            "silent": silent,
            "backupAgeSeconds": age,
        }))
    }

    async fn dids(&self) -> Result<Value, String> {
        let mut all = Vec::new();
        for seed in &self.seeds {
            let mut registered = Vec::new();
            for seat in seed.member.seats().await {
                if let Some(machine) = seed.member.inspect(&seat.seat).await {
                    let indexes: std::collections::BTreeSet<_> = machine.confirmed_indexes().copied().collect();
                    registered.push((seat.cohort_id, indexes));
                }
            }
            for (index, did) in seed.controller.indexes() {
                let of_did = registered.iter().filter(|(_, indexes)| indexes.contains(&index));
                let cohorts: Vec<_> = of_did.map(|(cohort_id, _)| cohort_id.clone()).collect();
                let mut shown = json!({ "did": did, "seat": seed.name, "registeredIn": cohorts });
                let exits = self.exits.of(&index);
                if !exits.is_empty() {
                    let exit = |exit: &leaving::Exit| json!({ "cohortId": exit.cohort_id, "step": exit.step });
                    shown["exits"] = exits.iter().map(exit).collect();
                }
                let gaps = data::gaps(&self.state, &did).await.map_err(|error| error.to_string())?;
                if !gaps.is_empty() {
                    shown["incomplete"] = json!(gaps);
                }
                all.push(shown);
            }
        }
        Ok(json!(all))
    }
}

#[async_trait(?Send)]
impl Backend for Desk {
    async fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Status => self.status().await,
            Request::Queue { did, all } => Ok(shown(&self.queue.list(), did.as_ref(), all)),
            Request::Add { item } => {
                let index = did_index(&item.did);
                if !self.seeds.iter().any(|seed| seed.controller.indexes().contains_key(&index)) {
                    return Err(format!("{} is not a DID of this member", item.did));
                }
                let known = self.queue.list().len();
                let item = self.queue.add(*item).await.map_err(|error| self.failed(&error))?;
                if self.queue.list().len() != known {
                    self.reporter.update(&item);
                }
                // The loop has another reason to claim if there are so many.
                let _ = self.wake.try_send(Wake::Claim);
                Ok(item.summary())
            }
            Request::Cancel { id } => {
                let item = self.queue.cancel(id).await.map_err(|error| self.failed(&error))?;
                self.reporter.update(&item);
                Ok(item.summary())
            }
            Request::Log { most } => {
                let entries = report::entries(&self.state, most.min(MOST_LOG)).await;
                entries.map(Value::from).map_err(|error| error.to_string())
            }
            Request::Pending => Ok(json!(self.approvals.pending())),
            Request::Approve { id } => self.decide(id, Ok(())),
            Request::Reject { id, reason } => {
                let reason = reason.unwrap_or_else(|| "it was rejected by `member reject`".to_owned());
                self.decide(id, Err(reason))
            }
            Request::Dids => self.dids().await,
            Request::Costs { wallet } => {
                let report = costs_of(&self.state, wallet).await.map_err(|error| error.to_string())?;
                serde_json::to_value(report).map_err(|error| error.to_string())
            }
            Request::Show { id } => details::update(&self.seeds, &self.queue, id).await,
            Request::Document { did } => details::document(&self.seeds, &did).await,
            Request::Check { did } => details::check(&self.seeds, &self.checking, &did).await,
            Request::Backup => match &self.backups {
                Some(backups) => backups.write().await.map(|file| json!({ "file": file })),
                None => {
                    let problem =
                        "the agent's file has no [backup]: add it, or use `vault backup FILE --state DIR`";
                    Err(problem.to_owned())
                }
            },
            Request::ConsoleUrl => match &self.access {
                Some(access) => Ok(json!({ "url": *access.address() })),
                None => Err("the agent was started without --console".to_owned()),
            },
            Request::BackupMade { at } => {
                backup::record(&self.state, at).await.map_err(|error| error.to_string())?;
                Ok(json!({}))
            }
            Request::Mint { seat, cohort_id, names, no_singleton } => {
                let order = Order { seat, cohort_id, names, singleton: !no_singleton };
                minting::mint(&self.seeds, &*self.boards, &self.tally, &self.directory, self.network, order).await
            }
            Request::Leave { dids, all, cohort_id, to } => {
                let order = leaving::Order { dids, all, cohort_id, to };
                let left = leaving::leave(&self.seeds, &self.queue, &self.exits, &self.reporter, &order).await;
                let _ = self.wake.try_send(Wake::Claim);
                left
            }
            Request::Rescue { did, cohort_id, address, to, pending } => {
                let order = rescue::Order { did, cohort_id, address, to, pending };
                let agent = rescue::Agent {
                    seeds: &self.seeds,
                    queue: &self.queue,
                    exits: &self.exits,
                    keeping: &self.keeping,
                    reporter: &self.reporter,
                };
                let rescued = rescue::rescue(&agent, &order).await;
                let _ = self.wake.try_send(Wake::Claim);
                rescued
            }
        }
    }
}

impl Desk {
    fn decide(&self, id: u64, decision: Result<(), String>) -> Result<Value, String> {
        match self.approvals.decide(id, decision) {
            true => Ok(json!({ "id": id })),
            false => Err(format!("there is no request {id} that waits: it may be decided already")),
        }
    }
}
