//! A whole cohort whose journal is in a state directory.

use std::{sync::Arc, time::Duration};

use crate::common::{Operator, World, cohort, replay::assert_replays};
use btcr2_aggregation_actors::state::State;
use tempfile::TempDir;

#[test]
fn a_cohort_on_disk_completes_with_fewer_syncs_than_facts_and_replays_from_the_disk() {
    const MEMBERS: usize = 8;
    // The clock runs: it would jump while all actors wait for the disk.
    actix_rt::System::new().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let mut world = World::new();
        world.journal = Arc::new(state.journal());
        let mut service = world.service("service", Operator).await;
        let members = world.updaters(MEMBERS).await;
        let open = cohort(MEMBERS as u32);
        let cohort_id = service.open(open.clone()).await;
        let result = service.ear.completed(&cohort_id).await;
        let records = world.members.records(&cohort_id, MEMBERS).await;

        // A member's session continues for a while; its current records are enough to count the events.
        let summaries = state.streams().await.unwrap();
        let facts: u64 = summaries.iter().map(|stream| stream.size.as_ref().unwrap().records).sum();
        // The cohort, its signing session, and of each member the session and the memberships.
        assert_eq!(summaries.len(), 2 * MEMBERS + 2);
        assert!(state.commits() < facts / 2, "{} commits for {facts} facts", state.commits());

        // Members end after they have waited for a fallback request.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(24 * 3600)).await;
        tokio::time::resume();
        crate::common::settle().await;
        service.ear.received();
        drop(world.journal);
        state.close().await;

        let state = State::open(dir.path()).unwrap();
        world.journal = Arc::new(state.journal());
        assert_replays(&world, &service, &open, &cohort_id, &result, &members, &records).await;
    });
}
