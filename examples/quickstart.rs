//! The smallest whole cohort: a service and three participants in one process, and one signed transaction. Each
//! participant announces the cohort's address as a beacon of its DID.
//!
//! `cargo run --release --example quickstart`

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;

use btcr2_aggregation::{
    actors::{
        handle::{Participant, Service},
        runtime::Randomness,
        service::OpenCohort,
        transport::memory::MemoryTransport,
    },
    bitcoin::offline::OfflineOperator,
    protocol::beacon::BeaconType,
};

#[actix_rt::main]
async fn main() -> support::Outcome<()> {
    let network = Arc::new(MemoryTransport::new());
    // The operator spends a coin that does not exist; examples/regtest.rs spends a real one.
    let identity = support::identity(Randomness::System, "service");
    let recovery_key = identity.public_key().x_only();
    let service = Service::builder(identity, network.clone(), Arc::new(OfflineOperator)).start().await?;
    for name in ["alice", "bob", "carol"] {
        let policy = support::Joiner::new(support::identity(Randomness::System, name), Randomness::System);
        Participant::builder(policy.identity.clone(), network.clone(), Arc::new(policy)).start().await?;
    }
    let conditions = support::conditions(BeaconType::cas(), 3, recovery_key)?;
    let result = service.open(OpenCohort::new(conditions, support::NETWORK)).await?.outcome().await?;
    println!("address     {}", result.output.address());
    println!("signal      {}", result.aggregation.signal);
    println!("transaction {}, signed by all ({})", result.signed.transaction.compute_txid(), result.signed.path);
    Ok(())
}
