//! The answers to a member's POST: 202 when everything that it caused is durable, 503 when that cannot be promised.

use std::sync::Arc;

use crate::common::{
    Operator, Service, World, cohort, external_identity, identity,
    process::Process,
    rigged::{Act, Rigged},
};
use crate::http_support::{
    paused, sealed,
    site::{OK, Site, settle},
};
use btcr2_aggregation_actors::{
    journal::Journal,
    transport::{
        Delivery, Inbox, Transport,
        http::{HttpConfig, store::Rate},
    },
};
use btcr2_aggregation_protocol::{
    id::CohortId,
    identity::Identity,
    message::{Body, Bytes, keygen::CohortOptIn, update::SubmitNonIncluded},
};
use tokio::sync::{Semaphore, mpsc::UnboundedReceiver};

const UNAVAILABLE: (u16, &str) = (503, "unavailable");

fn opt_in(identity: &Identity, cohort_id: &CohortId) -> Body {
    let key = Bytes(identity.public_key().to_bytes());
    let genesis_document = identity.genesis_document().cloned();
    CohortOptIn {
        cohort_id: cohort_id.clone(),
        participant_pk: key,
        communication_pk: key,
        genesis_document,
        invite: None,
    }
    .into()
}

async fn site() -> (Site, UnboundedReceiver<Delivery>) {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    Site::new(HttpConfig { did_rate: rate, address_rate: rate, ..HttpConfig::default() }).await
}

/// A service behind `site`, in its own process.
async fn serve(world: &World, site: &Site, journal: Arc<dyn Journal>) -> (Process, Service) {
    let mut settings = world.service_settings("aggregator", Operator);
    settings.transport = Arc::new(site.server.clone());
    settings.clock = site.clock;
    settings.journal = journal;
    let process = Process::new();
    let service = process.service(settings).await;
    process.run(settle()).await;
    (process, service)
}

async fn post(site: &Site, from: &Identity, to: &Service, body: impl Into<Body>) -> (u16, String) {
    let answer = site.post(sealed(from, Some(to.did()), body.into(), site.now())).await;
    let (status, code) = answer.outcome();
    (status, code.to_owned())
}

fn is(outcome: &(u16, String), expected: (u16, &str)) -> bool {
    (outcome.0, outcome.1.as_str()) == expected
}

#[test]
fn a_post_is_answered_when_the_journal_has_answered_and_not_before() {
    paused(async {
        let (site, _deliveries) = site().await;
        let world = World::new();
        let gate = Arc::new(Semaphore::new(0));
        let delayed = Arc::clone(&gate);
        let journal = Rigged::new(move |_, records| match records.contains("OptInReceived") {
            true => Act::Hold(Arc::clone(&delayed)),
            false => Act::Pass,
        });
        let (process, service) = serve(&world, &site, Arc::new(journal)).await;
        process
            .run(async {
                let cohort_id = service.open(cohort(2)).await;
                let member = identity("member");
                let first = post(&site, &member, &service, opt_in(&member, &cohort_id));
                tokio::pin!(first);
                tokio::select! {
                    biased;
                    answer = &mut first => panic!("{answer:?} before the opt-in is durable"),
                    () = settle() => {}
                }
                // A repetition waits for the same append.
                let again = post(&site, &member, &service, opt_in(&member, &cohort_id));
                tokio::pin!(again);
                tokio::select! {
                    biased;
                    answer = &mut again => panic!("{answer:?} before the opt-in is durable"),
                    answer = &mut first => panic!("{answer:?} before the opt-in is durable"),
                    () = settle() => {}
                }
                gate.add_permits(1);
                assert!(is(&first.await, OK));
                assert!(is(&again.await, OK));
            })
            .await;
    });
}

#[test]
fn a_post_is_not_acknowledged_after_a_failed_append() {
    paused(async {
        let (site, _deliveries) = site().await;
        let world = World::new();
        let journal =
            Rigged::new(|_, records| if records.contains("OptInReceived") { Act::Fail } else { Act::Pass });
        let (process, mut service) = serve(&world, &site, Arc::new(journal)).await;
        process
            .run(async {
                let cohort_id = service.open(cohort(2)).await;
                let member = identity("member");
                for _ in 0..3 {
                    // It is not notified either that there is no such cohort: once the journal is repaired, the cohort
                    // continues.
                    let answer = post(&site, &member, &service, opt_in(&member, &cohort_id)).await;
                    assert!(is(&answer, UNAVAILABLE), "{answer:?}");
                    settle().await;
                }
                assert_eq!(service.ear.failed(&cohort_id).await.code(), "INTERNAL");
                let inbox = site.inbox(&member).await.ready().await;
                assert!(inbox.is_empty(), "{inbox:?}");
            })
            .await;
    });
}

#[test]
fn a_post_whose_actor_panics_is_accepted_when_repeated() {
    paused(async {
        let (site, _deliveries) = site().await;
        let world = World::new();
        let (journal, _) = Rigged::panicking("cohort/", "OptInReceived", 1, false);
        let (process, mut service) = serve(&world, &site, Arc::new(journal)).await;
        process
            .run(async {
                let cohort_id = service.open(cohort(2)).await;
                let member = identity("member");
                let answer = post(&site, &member, &service, opt_in(&member, &cohort_id)).await;
                assert!(is(&answer, UNAVAILABLE), "{answer:?}");
                let answer = post(&site, &member, &service, opt_in(&member, &cohort_id)).await;
                assert!(is(&answer, OK), "{answer:?}");
                service.ear.event(&cohort_id, "participant-accepted").await;
            })
            .await;
    });
}

#[test]
fn after_a_restart_external_members_are_known_without_their_opt_ins() {
    paused(async {
        let world = World::new();
        let member = external_identity("external");
        let (first, _deliveries) = site().await;
        let (process, mut service) = serve(&world, &first, Arc::clone(&world.journal)).await;
        let cohort_id = process.run(service.open(cohort(1))).await;
        process
            .run(async {
                let answer = post(&first, &member, &service, opt_in(&member, &cohort_id)).await;
                assert!(is(&answer, OK), "{answer:?}");
                service.ear.event(&cohort_id, "keygen-complete").await;
            })
            .await;
        drop(process);

        // Another server, which has never received a message of the member.
        let (second, _deliveries) = site().await;
        let decline = SubmitNonIncluded { cohort_id: cohort_id.clone() };
        let request = second.inbox_request(&member);
        assert!(second.open(request).await.next().await.is_none(), "its key is not known yet");
        let (process, mut service) = serve(&world, &second, Arc::clone(&world.journal)).await;
        process
            .run(async {
                let mut inbox = second.inbox(&member).await;
                let answer = post(&second, &member, &service, decline).await;
                assert!(is(&answer, OK), "{answer:?}");
                service.ear.event(&cohort_id, "data-distributed").await;
                assert!(!inbox.ready().await.is_empty(), "what is still needed is sent again");
                assert_eq!(service.live().await, [cohort_id]);
            })
            .await;
    });
}

#[test]
fn a_recipient_whose_actor_has_died_is_unavailable_and_not_unknown() {
    paused(async {
        let (site, _deliveries) = site().await;
        let (mortal, member) = (identity("mortal"), identity("member"));
        // It ends at the first message.
        let (inbox, mut messages) = Inbox::channel(8);
        actix_rt::spawn(async move { drop(messages.recv().await) });
        let _connection = site.server.connect(&mortal, inbox).await.unwrap();
        let cohort_id = CohortId::parse("a-cohort").unwrap();
        // The second request finds it stopped. A member gives up at "unknown recipient", and tries again at this
        // answer.
        for _ in 0..2 {
            let body: Body = SubmitNonIncluded { cohort_id: cohort_id.clone() }.into();
            let answer = site.post(sealed(&member, Some(mortal.did()), body, site.now())).await;
            assert_eq!(answer.outcome(), UNAVAILABLE);
            settle().await;
        }
    });
}
