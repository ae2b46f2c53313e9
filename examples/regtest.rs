//! Real coins: the operator of `bitcoin::operator` watches the address of the cohort, provides a transaction that spends
//! the deposit there, and follows the announcement into the chain of a regtest node.
//!
//! The host passes the service's decisive events to the operator, and acknowledges each when the operator has stored
//! what follows from it: so nothing is missed, whenever the host crashes.
//!
//! `cargo run --release --example regtest` needs a bitcoind: BITCOIND, or one in the PATH.

#[path = "support/mod.rs"]
mod support;

use std::{sync::Arc, time::Duration};

use btcr2_aggregation::{
    actors::{
        announcement::{AnnouncementSettings, Announcements, notice::AnnouncementNotice},
        events::Event,
        handle::{Participant, Service},
        journal::{Journal, MemoryJournal},
        notice::ServiceNotice,
        runtime::Randomness,
        service::OpenCohort,
        transport::memory::MemoryTransport,
    },
    bitcoin::{
        chain::{CoreAuth, CoreChain},
        operator::ChainOperator,
    },
    protocol::{
        announcement::{Rules, change::ChangeKey},
        beacon::BeaconType,
        identity::Identity,
        output::Change,
    },
};
use support::{NETWORK, Outcome, node::Node};

/// An operator of coins on the node's chain. Change goes to the service's own key, so that a stuck transaction can be
/// bumped.
fn operator(node: &Node, identity: &Identity, journal: Arc<dyn Journal>) -> ChainOperator {
    let change_key = Arc::new(ChangeKey::new(identity.secret_key()));
    let rules = Rules::new(Change::To(change_key.script_pubkey().to_owned()));
    let chain = Arc::new(CoreChain::new(node.url(), CoreAuth::Cookie(node.cookie())));
    let mut settings = AnnouncementSettings::new(chain, NETWORK, journal);
    settings.change_key = Some(change_key);
    settings.poll = Duration::from_millis(100);
    ChainOperator::new(Announcements::new(settings, rules))
}

async fn run(node: Node) -> Outcome<()> {
    // For a host that continues after a restart: the journal of a `State`.
    let journal = Arc::new(MemoryJournal::new());
    let identity = support::identity(Randomness::System, "service");
    let operator = operator(&node, &identity, journal.clone());
    let announcements = operator.announcements();
    let mut announced = announcements.events();
    announcements.resume().await?;
    let network = Arc::new(MemoryTransport::new());
    let builder = Service::builder(identity.clone(), network.clone(), Arc::new(operator.clone()));
    let service = builder.journal(journal).start().await?;
    for name in ["alice", "bob", "carol"] {
        let policy = support::Joiner::new(support::identity(Randomness::System, name), Randomness::System);
        Participant::builder(policy.identity.clone(), network.clone(), Arc::new(policy)).start().await?;
    }
    let conditions = support::conditions(BeaconType::cas(), 3, identity.public_key().x_only())?;
    service.open(OpenCohort::new(conditions, NETWORK)).await?;

    let mut events = service.events();
    loop {
        let notice = tokio::select! {
            Some((cursor, event)) = events.next() => {
                if let Event::Notice(notice) = event {
                    if let ServiceNotice::TransactionDeferred { reason, .. } = &*notice {
                        println!("deferred    {reason}");
                    }
                    operator.follow(&notice).await?;
                    events.ack(&cursor).await?;
                }
                continue;
            }
            Some((cursor, Event::Notice(notice))) = announced.next() => {
                // A host would store it first.
                announced.ack(&cursor).await?;
                notice
            }
        };
        match &*notice {
            AnnouncementNotice::FundingWanted { beacon_address, .. } => {
                println!("deposit     {beacon_address}");
                node.pay(beacon_address).await?;
            }
            AnnouncementNotice::AnnouncementBroadcast { txid, .. } => {
                println!("broadcast   {txid}");
                node.mine(6).await?;
            }
            AnnouncementNotice::AnnouncementFinal { txid, block, .. } => {
                println!("final       {txid} in block {}", block.height);
                break;
            }
            AnnouncementNotice::AnnouncementFailed { .. } => return Err(format!("{notice:?}").into()),
            _ => {}
        }
    }
    service.stop().await;
    announcements.stop().await;
    Ok(())
}

fn main() -> Outcome<()> {
    actix_rt::System::new().block_on(async {
        match Node::start().await? {
            Some(node) => run(node).await,
            None => {
                println!("skipped: no bitcoind (BITCOIND, PATH, ../shared/bin/bitcoind)");
                Ok(())
            }
        }
    })
}
