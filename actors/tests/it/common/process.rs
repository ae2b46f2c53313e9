//! Actors that can be killed like a process.

use std::sync::Arc;

use actix::Actor;
use btcr2_aggregation_actors::{
    participant::ParticipantSettings,
    service::ServiceSettings,
    supervisor::{StartParticipant, StartService, Supervisor},
};
use btcr2_aggregation_protocol::identity::Identity;
use tokio::task::LocalSet;

use super::{Ear, Operator, Service, Updater, WAITING, World};

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
        let (identity, notices) = (settings.identity.clone(), settings.notices.clone());
        let (ear, events) = (Ear::new(&notices), settings.events(WAITING));
        let start = async { Supervisor::default().start().send(StartService(settings)).await.expect("it starts") };
        let address = self.run(start).await;
        Service { identity, address, notices, ear, events }
    }

    pub async fn participant(&self, settings: ParticipantSettings) {
        let start = async { Supervisor::default().start().send(StartParticipant(settings)).await };
        self.run(start).await.expect("it starts");
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
