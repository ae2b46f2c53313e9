//! Relays that behave differently from ours, as real ones do: whole rounds complete nevertheless, and no member is
//! blamed.

use std::{collections::BTreeSet, time::Duration};

use crate::common::{
    Operator, World, cohort,
    peers::{Peer, note},
    relays::{Mood, Moody, absent, config, loopback, relay, subscribed, transport},
    rounds::{complete, members_on, quick, run, service_on},
};
use btcr2_aggregation_actors::transport::Delivery;
use btcr2_aggregation_protocol::cohort::event::SpendPath;
use nostr_relay_builder::{
    LocalRelay, RelayBuilder,
    builder::{RelayBuilderNip42, RelayBuilderNip42Mode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

#[test]
fn unrequested_events_are_not_a_fault() {
    run(async {
        let good = relay().await;
        let relay = Moody::start(&good, Mood::OverDelivers).await;
        let mut world = World::new();
        let nostr = || transport(config(&[&relay.url]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        members_on(&world, 3, nostr).await;
        complete(&mut world, &mut service, quick(3), SpendPath::KeyPath).await;
        assert_eq!(service.ear.rejections(), []);
        assert_eq!(world.members.rejections(), []);
        let subscriptions = relay.subscriptions.lock().unwrap().clone();
        let different: BTreeSet<_> = subscriptions.iter().collect();
        assert!(subscriptions.len() >= 8 && different.len() == subscriptions.len(), "{subscriptions:?}");
    });
}

#[test]
fn connections_ask_for_adverts_of_different_times() {
    run(async {
        let good = relay().await;
        let relay = Moody::start(&good, Mood::Keeps).await;
        let world = World::new();
        let nostr = transport(config(&[&relay.url]), world.clock);
        members_on(&world, 8, || nostr.clone()).await;
        subscribed(&nostr, 8).await;
        // A relay may give the same answer to the same question for a while.
        let filters = relay.filters.lock().unwrap().clone();
        let since: Vec<_> = filters.iter().filter_map(|filter| filter["since"].as_u64()).collect();
        let different: BTreeSet<_> = since.iter().collect();
        assert!(since.len() == 8 && different.len() > 2, "{since:?}");
    });
}

#[test]
fn a_relay_that_requests_authentication_is_answered() {
    run(async {
        let free = TcpListener::bind(loopback()).await.unwrap().local_addr().unwrap();
        let auth = RelayBuilderNip42 { mode: RelayBuilderNip42Mode::Both };
        let relay = LocalRelay::new(RelayBuilder::default().addr(free.ip()).port(free.port()).nip42(auth));
        relay.run().await.unwrap();
        let url = format!("ws://{free}");
        let mut world = World::new();
        let nostr = || transport(config(&[&url]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        members_on(&world, 2, nostr).await;
        complete(&mut world, &mut service, quick(2), SpendPath::KeyPath).await;
        relay.shutdown();
    });
}

#[test]
fn an_unreached_member_is_not_an_offender() {
    run(async {
        let good = relay().await;
        let relay = Moody::start(&good, Mood::RefusesType("distribute_aggregated_data")).await;
        let world = World::new();
        let nostr = || transport(config(&[&relay.url]), world.clock);
        let mut settings = world.service_settings("service", Operator);
        settings.transport = std::sync::Arc::new(nostr());
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        members_on(&world, 2, nostr).await;
        let mut open = quick(2);
        open.timing.phase_timeout = Duration::from_secs(3);
        let cohort_id = service.open(open).await;
        let failure = service.ear.failed(&cohort_id).await;
        assert_eq!((failure.code(), failure.at_fault()), ("NOT_DELIVERED", Vec::new()));
        let received = service.ear.received();
        let notices: Vec<_> = received.iter().map(|notice| serde_json::to_value(&**notice).unwrap()).collect();
        let failed = notices.iter().find(|notice| notice["event"] == "cohort-failed").expect("the cohort failed");
        let reason = failed["reason"].as_str().unwrap();
        assert!(reason.contains(relay.url.trim_end_matches('/')) && reason.contains("too large"), "{reason}");
        assert!(book.list().unwrap().is_empty(), "no member is a holdout");
    });
}

#[test]
fn what_a_relay_has_taken_is_delivered_and_what_none_has_is_not() {
    run(async {
        let good = relay().await;
        let world = World::new();
        let there = std::sync::Arc::new(transport(config(&[good.url()]), world.clock));
        let (sender, reader) = (crate::common::identity("sender"), crate::common::identity("reader"));
        let mut peer = Peer::start(sender.clone(), there);
        peer.send(reader.did(), note("first"));
        loop {
            match peer.carried().await {
                Delivery::Delivered { to, cohort_id, kind } => {
                    assert_eq!(
                        (&to, cohort_id.as_str(), kind),
                        (reader.did(), "first", "update/submit_nonincluded")
                    );
                    break;
                }
                // It was not connected yet.
                Delivery::Delayed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let url = absent().await;
        let nowhere = std::sync::Arc::new(transport(config(&[&url]), world.clock));
        let mut peer = Peer::start(sender, nowhere);
        peer.send(reader.did(), note("second"));
        let reported = peer.carried().await;
        let Delivery::Delayed { reason, .. } = &reported else { panic!("{reported:?}") };
        assert!(reason.contains(url.trim_end_matches('/')), "{reason}");
    });
}

/// A relay's information document, for any request.
async fn stating(document: &'static str) -> String {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    actix_rt::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4_096];
            let _ = stream.read(&mut request).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/nostr+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{document}",
                document.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[test]
fn a_cohort_that_no_relay_can_carry_is_not_opened() {
    run(async {
        let small = stating(r#"{"limitation":{"max_message_length":3000}}"#).await;
        let world = World::new();
        let nostr = transport(config(&[&small]), world.clock);
        nostr.learn().await;
        let service = service_on(&world, nostr).await;
        let refused = service.refuses(cohort(40)).await;
        assert!(refused.to_string().contains("40 members cannot be served"), "{refused}");
        service.open(cohort(2)).await;
        // Another relay accepts what this one refuses.
        let good = relay().await;
        let nostr = transport(config(&[&small, good.url()]), world.clock);
        nostr.learn().await;
        service_on(&world, nostr).await.open(cohort(40)).await;
    });
}
