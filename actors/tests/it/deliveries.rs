//! No member is blamed for a message that was not delivered to it, over any carrier; and a cohort is advertised where
//! it can be carried.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::common::{
    Operator, Service, ServiceSettings, Updater, World, cohort, identity, on_paused_clock,
    relays::{Mood, Moody, config, history, relay, transport},
    rounds::{members_on, quick, run, service_on},
    settle,
};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    notice::ServiceNotice,
    service::OpenCohort,
    subject::NetworkAddress,
    supervision::End,
    transport::{
        ConnectError, Connection, Delivery, Inbox, Outbound, Transport, combined::CombinedTransport,
        connection::spawn, memory::MemoryTransport,
    },
};
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    cohort::{
        event::{CohortFailure, SpendPath},
        service::rules::{Answer, PhaseRule, TimedPhase},
    },
    did::Did,
    identity::Identity,
    message::Body,
};
use tokio::sync::mpsc::Receiver;

/// Whether a message to a recipient is lost.
type Lost = dyn Fn(&Did, &Body) -> bool + Send + Sync;

/// A carrier that reports deliveries, knows every address, and loses the messages to some recipients.
#[derive(Clone)]
struct Carrier {
    network: MemoryTransport,
    lost: Arc<Lost>,
    limit: Option<usize>,
    adverts: Arc<Mutex<BTreeSet<String>>>,
}

impl Carrier {
    fn new(world: &World, lost: impl Fn(&Did, &Body) -> bool + Send + Sync + 'static) -> Self {
        Self { network: world.network.clone(), lost: Arc::new(lost), limit: None, adverts: Arc::default() }
    }
}

const ADDRESS: [u8; 4] = [203, 0, 113, 7];

#[async_trait]
impl Transport for Carrier {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let at_address = inbox.clone().map(|mut delivery| {
            if let Delivery::Message(received) = &mut delivery {
                received.address = Some(NetworkAddress::from(std::net::IpAddr::from(ADDRESS)));
            }
            delivery
        });
        let onward = self.network.connect(identity, at_address).await?;
        let carrier = self.clone();
        Ok(spawn(1024, |messages| carrier.carry(messages, inbox, onward)))
    }

    fn reports_delivery(&self) -> bool {
        true
    }

    fn member_limit(&self, _: &BeaconType, _: usize) -> Option<usize> {
        self.limit
    }
}

impl Carrier {
    async fn carry(self, mut messages: Receiver<Outbound>, inbox: Inbox, onward: Box<dyn Connection>) -> End {
        while let Some(outbound) = messages.recv().await {
            match &outbound {
                Outbound::Direct { to, body, .. } => {
                    if (self.lost)(to, body) {
                        continue;
                    }
                    let (cohort_id, kind) = (body.cohort_id().clone(), body.short_type());
                    let delivered = Delivery::Delivered { to: to.clone(), cohort_id, kind };
                    if inbox.deliver(delivered).await.is_err() {
                        break;
                    }
                }
                Outbound::Broadcast { body } => {
                    self.adverts.lock().unwrap().insert(body.cohort_id().to_string());
                }
                Outbound::WithdrawAdvert { .. } => {}
            }
            if onward.send(outbound).await.is_err() {
                break;
            }
        }
        End::Stopped
    }
}

fn with(world: &World, carrier: Carrier) -> ServiceSettings {
    ServiceSettings { transport: Arc::new(carrier), ..world.service_settings("service", Operator) }
}

fn refusals(service: &mut Service) -> Vec<String> {
    let received = service.ear.received();
    received
        .iter()
        .filter_map(|notice| match &**notice {
            ServiceNotice::ParticipantRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn members_that_never_fetch_are_left_out_and_cool_down() {
    on_paused_clock(async {
        let world = World::new();
        let absent: Vec<_> = (0..3).map(|number| identity(&format!("absent {number}"))).collect();
        let gone: BTreeSet<_> = absent.iter().map(|identity| identity.did().clone()).collect();
        let unfetched = gone.clone();
        let carrier = Carrier::new(&world, move |to, body| {
            unfetched.contains(to) && !matches!(body, Body::CohortOptInAccept(_) | Body::CohortEnded(_))
        });
        let settings = with(&world, carrier);
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        let members = world.updaters(2).await;
        for identity in &absent {
            world.participant(identity, Updater(identity.clone())).await;
        }
        let mut open = cohort(5);
        let reform = PhaseRule { timeout: None, extensions: 0, then: Answer::Reform };
        open.rules.set(TimedPhase::Updates, reform).unwrap();
        let first = service.open(open).await;
        let failure = service.ear.failed(&first).await;
        let unreached = failure.unreached().expect("the failure has unreached members").clone();
        assert_eq!(unreached.not_fetched.into_iter().collect::<BTreeSet<_>>(), gone);
        assert_eq!((failure.code(), failure.at_fault()), ("NOT_DELIVERED", Vec::new()));
        assert!(book.list().unwrap().is_empty(), "there are no offenders");
        // It is formed again with the other members, and waits for new ones.
        let next = service.ear.wait_for(|notice| match notice {
            ServiceNotice::CohortReformed { cohort_id, invited, excluded, .. } => {
                Some((cohort_id.clone(), *invited, excluded.clone()))
            }
            _ => None,
        });
        let (next, invited, excluded) = next.await;
        assert_eq!((invited, excluded.into_iter().collect::<BTreeSet<_>>()), (members.len(), gone.clone()));
        // An unrelated cohort: their DIDs cool down, and so does the address that all three share with other members.
        let other = identity("a newcomer of that address");
        world.participant(&other, Updater(other.clone())).await;
        let second = service.open(cohort(6)).await;
        settle().await;
        let refused = refusals(&mut service);
        let of = |kind: &str| refused.iter().filter(|reason| reason.starts_with(kind)).count();
        assert!(of("this DID did not fetch") >= gone.len(), "{refused:?}");
        assert!(of("this network address did not fetch") >= 1, "{refused:?}");
        assert_ne!(next, second);
        // After a while all are admitted.
        tokio::time::sleep(Duration::from_secs(601)).await;
        let third = service.open(cohort(6)).await;
        let formed =
            tokio::time::timeout(Duration::from_secs(60), service.ear.event(&third, "keygen-complete")).await;
        assert!(formed.is_ok(), "{:?} {:?}", service.ear.names(&third), refusals(&mut service));
    });
}

#[test]
fn an_undelivered_nonce_request_leads_to_a_fallback() {
    run(async {
        let good = relay().await;
        let relay = Moody::start(&good, Mood::RefusesType("sign/authorization_request")).await;
        let world = World::new();
        let nostr = || transport(config(&[&relay.url]), world.clock);
        let mut settings = world.service_settings("service", Operator);
        settings.transport = Arc::new(nostr());
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        let members = members_on(&world, 3, nostr).await;
        let cohort_id = service.open(quick(3)).await;
        let result = service.ear.completed(&cohort_id).await;
        assert_eq!((result.signed.path, result.signed.holdouts.len()), (SpendPath::ScriptPath, 0));
        let unreached = &result.signed.unreached;
        assert_eq!(unreached.not_carried.len(), members.len());
        assert!(unreached.carrier.as_ref().unwrap().contains("too large"), "{unreached:?}");
        assert!(book.list().unwrap().is_empty());
    });
}

#[test]
fn an_undelivered_signing_session_fails_and_names_the_carrier() {
    run(async {
        let good = relay().await;
        let relay = Moody::start(&good, Mood::RefusesType("authorization_request")).await;
        let world = World::new();
        let nostr = || transport(config(&[&relay.url]), world.clock);
        let mut settings = world.service_settings("service", Operator);
        settings.transport = Arc::new(nostr());
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        members_on(&world, 2, nostr).await;
        let mut open = quick(2);
        // The relay has to refuse it before that, on a machine that is busy with other tests too.
        open.timing.signing_timeout = Duration::from_secs(5);
        open.rules
            .set(TimedPhase::Fallback, PhaseRule { timeout: None, extensions: 0, then: Answer::Reform })
            .unwrap();
        let cohort_id = service.open(open).await;
        let failure = service.ear.failed(&cohort_id).await;
        assert!(matches!(failure, CohortFailure::Signing { .. }), "{failure:?}");
        assert_eq!(failure.at_fault(), []);
        assert!(failure.to_string().contains(relay.url.as_str()), "{failure}");
        assert_eq!(service.ear.count("cohort-reformed"), 0, "the same members would fail the same way");
        assert!(book.list().unwrap().is_empty());
    });
}

#[test]
fn what_one_relay_does_not_carry_another_does_and_is_not_advertised_on_the_first_any_more() {
    run(async {
        let (behind, good) = (relay().await, relay().await);
        let small = Moody::start(&behind, Mood::RefusesType("distribute_aggregated_data")).await;
        let mut world = World::new();
        let nostr = || transport(config(&[&small.url, good.url()]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        members_on(&world, 3, nostr).await;
        let first = crate::common::rounds::complete(&mut world, &mut service, quick(3), SpendPath::KeyPath).await;
        // A refusal has shown the limit.
        let many: OpenCohort = cohort(30);
        let second = service.open(many).await;
        service.ear.event(&second, "participant-accepted").await;
        let seen = |events: &[nostr_sdk::Event], cohort_id: &str| {
            events.iter().any(|event| event.content.contains("cohort_advert") && event.content.contains(cohort_id))
        };
        let (on_small, on_good) = (history(behind.url()).await, history(good.url()).await);
        assert!(seen(&on_good, second.as_str()) && !seen(&on_small, second.as_str()));
        assert!(service.ear.rejections().is_empty(), "{first}");
    });
}

#[test]
fn of_two_kinds_of_carriers_the_one_that_can_carry_a_cohort_gets_its_advert() {
    on_paused_clock(async {
        let world = World::new();
        let wide = Carrier::new(&world, |_, _| false);
        let narrow =
            Carrier { network: MemoryTransport::new(), limit: Some(3), adverts: Arc::default(), ..wide.clone() };
        let alone = service_on(&world, narrow.clone()).await;
        let refused = alone.refuses(cohort(4)).await.to_string();
        assert!(refused.contains("4 members cannot be served"), "{refused}");
        let both = CombinedTransport::new(vec![Arc::new(narrow.clone()), Arc::new(wide.clone())]).unwrap();
        let mut settings = world.service_settings("both", Operator);
        settings.transport = Arc::new(both);
        let mut service = settings.start().await;
        let (large, fits) = (service.open(cohort(4)).await, service.open(cohort(3)).await);
        let mut open_ended = cohort(2);
        open_ended.conditions.max_participants = None;
        let bounded = service.open(open_ended).await;
        settle().await;
        let all = [&large, &fits, &bounded].map(ToString::to_string);
        assert_eq!(*wide.adverts.lock().unwrap(), all.iter().cloned().collect());
        assert_eq!(
            *narrow.adverts.lock().unwrap(),
            all[1..].iter().cloned().collect(),
            "the others have three members at most"
        );
        let result = {
            world.updaters(4).await;
            service.ear.completed(&large).await
        };
        assert_eq!(result.signed.path, SpendPath::KeyPath);
    });
}
