//! Actors that can be killed like a process.

use std::sync::Arc;

use btcr2_aggregation_protocol::identity::Identity;
use tokio::task::LocalSet;

use super::{Operator, ParticipantSettings, Service, ServiceSettings, Updater, World};

/// Its actors only run while the test waits in [`run`](Self::run). When it is dropped they end at once: no cleanup
/// runs, and the messages in mailboxes are lost.
pub struct Process(LocalSet);

impl Process {
    pub fn new() -> Self {
        Self(LocalSet::new())
    }

    /// Runs the process until `test` is done.
    pub async fn run<T>(&self, test: impl Future<Output = T>) -> T {
        self.0.run_until(test).await
    }

    pub async fn service(&self, settings: ServiceSettings) -> Service {
        self.run(settings.start()).await
    }

    pub async fn participant(&self, settings: ParticipantSettings) {
        self.run(settings.start()).await;
    }
}

/// A process with the service of that name, on the world's network and journal.
pub async fn service_of(world: &World) -> (Process, Service) {
    let process = Process::new();
    let mut settings = world.service_settings("service", Operator);
    settings.journal = Arc::clone(&world.journal);
    let service = process.service(settings).await;
    (process, service)
}

/// A process with one member, on the world's network and journal.
pub async fn member_of(world: &World, member: &Identity) -> Process {
    let process = Process::new();
    process.participant(world.participant_settings(member, Updater(member.clone()))).await;
    process
}
