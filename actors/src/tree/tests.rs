//! Every row of the tree: an actor of its kind panics once, at a moment that is drawn, in a cohort that runs; and the cohort completes.

#![allow(clippy::unwrap_used)]

mod chain;
#[path = "../../tests/it/transport_conformance/plain.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the conformance suite")]
mod plain;
mod standing;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{Actor, Addr};
use actix_web::{App, HttpServer as WebServer};
use async_trait::async_trait;
use bitcoin::{Amount, FeeRate, OutPoint, Txid, hashes::Hash};
use btcr2_aggregation_protocol::{
    announcement::{Input, Rules, change::ChangeKey},
    beacon::BeaconType,
    cohort::{
        Timing,
        conditions::Conditions,
        participant::Advert,
        service::{Limits, rules::PhaseRules},
    },
    error::{Fatal, Retry},
    hash::sha256,
    identity::Identity,
    key::SecretKey,
    network::Network,
    output::{Change, Coin, RecoverySequence, ScriptTree, build_beacon_transaction},
    update::Submission,
};
use rand_core::RngCore;
use tokio::sync::broadcast::Receiver;

use self::chain::EventfulChain;
use super::{ROWS, Restart};
use crate::{
    announcement::{Address, AnnouncementSettings, Announcements, notice::AnnouncementNotice},
    journal::MemoryJournal,
    notice::{ParticipantNotice, ServiceNotice},
    participant::ParticipantSettings,
    policy::{FundedTransaction, ParticipantPolicy, PolicyError, ServicePolicy, TransactionRequest, UpdateRequest},
    runtime::{Clock, Randomness},
    service::{OpenCohort, ServiceSettings},
    supervision::{Vitals, sabotage},
    supervisor::{StartParticipant, StartService, Supervisor},
    transport::{
        Inbox, Transport,
        combined::CombinedTransport,
        http::{
            HttpConfig, HttpServer,
            client::{Backoff, HttpClient},
            configure,
            server::HttpServerParts,
        },
        memory::MemoryTransport,
        nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
    },
};

/// How long a round may take that goes on after a panic.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many moments are drawn for each kind.
const MOMENTS: u32 = 6;

/// Makes transactions up, unless it has announcements.
struct Operator(Option<Announcements>);

#[async_trait]
impl ServicePolicy for Operator {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        if let Some(announcements) = &self.0 {
            let TransactionRequest { cohort_id, output, signal, .. } = request;
            let retry = |problem: &dyn std::fmt::Display| PolicyError::Retry(Retry(problem.to_string()));
            let watched = announcements.watch(cohort_id, Address::Output(output.clone())).await;
            watched.map_err(|error| retry(&error))?;
            let prepared =
                announcements.prepare(cohort_id, output, *signal).await.map_err(|error| retry(&error))?;
            return Ok(FundedTransaction { transaction: prepared.transaction, value: prepared.coin.value });
        }
        let txid = Txid::from_byte_array(sha256(request.cohort_id.as_str().as_bytes()));
        let coin = Coin { outpoint: OutPoint { txid, vout: 0 }, value: Amount::from_sat(200_000) };
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let transaction = build_beacon_transaction(&request.output, &coin, &request.signal, rate, &Change::Beacon)
            .map_err(|error| Fatal(error.to_string()))?;
        Ok(FundedTransaction { transaction, value: coin.value })
    }
}

/// Joins everything, and announces nothing.
struct Decliner;

#[async_trait]
impl ParticipantPolicy for Decliner {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        None
    }
}

fn identity(name: &str) -> Identity {
    Identity::from_key(SecretKey::generate(&mut Randomness::System.for_actor(name)), Network::Regtest)
}

/// How a service and its members meet.
enum Carrier {
    Memory,
    /// A transport whose connections are not actors.
    Plain,
    Http,
    Nostr,
}

/// What a carrier consists of, for as long as it is there.
struct Way {
    server: Arc<dyn Transport>,
    client: Arc<dyn Transport>,
    _relay: Option<EmbeddedRelay>,
}

impl Carrier {
    async fn way(&self) -> Way {
        match self {
            Self::Memory => {
                // Combined, although there is one: a link between two links.
                let memory: Arc<dyn Transport> = Arc::new(MemoryTransport::new());
                let both: Arc<dyn Transport> = Arc::new(CombinedTransport::new(vec![memory]).unwrap());
                Way { server: Arc::clone(&both), client: both, _relay: None }
            }
            Self::Plain => {
                let office = Arc::new(plain::Office::default());
                Way { server: office.clone(), client: office, _relay: None }
            }
            Self::Http => {
                let server = HttpServer::start(HttpServerParts::new(HttpConfig::default(), Clock::system()));
                let mounted = server.clone();
                let web = WebServer::new(move || App::new().configure(configure(&mounted)));
                let web = web.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
                let url = format!("http://{}", web.addrs()[0]);
                actix_rt::spawn(web.run());
                let backoff = Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(100) };
                let client = HttpClient::new(&url, None, Clock::system(), Randomness::System).unwrap();
                Way { server: Arc::new(server), client: Arc::new(client.with_backoff(backoff)), _relay: None }
            }
            Self::Nostr => {
                let relay = EmbeddedRelay::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
                let transport = || {
                    let config = NostrConfig::new(vec![relay.url().to_owned()]);
                    Arc::new(NostrTransport::new(config, Clock::system(), Randomness::System).unwrap())
                };
                Way { server: transport(), client: transport(), _relay: Some(relay) }
            }
        }
    }
}

/// Announcements on a chain on which much happens.
fn announcements(vitals: Vitals) -> Announcements {
    let change_key = Arc::new(ChangeKey::new(identity("change").secret_key()));
    let rules = Rules::new(Change::To(change_key.script_pubkey().to_owned()));
    let (chain, journal) = (Arc::new(EventfulChain::new()), Arc::new(MemoryJournal::new()));
    let settings = AnnouncementSettings {
        change_key: Some(change_key),
        poll: Duration::from_millis(5),
        vitals,
        ..AnnouncementSettings::new(chain, Network::Regtest, journal)
    };
    Announcements::new(settings, rules)
}

struct World {
    announcements: Option<(Announcements, Receiver<Arc<AnnouncementNotice>>)>,
    vitals: Vitals,
    _supervisor: Addr<Supervisor>,
    service: Receiver<Arc<ServiceNotice>>,
    members: Vec<Receiver<Arc<ParticipantNotice>>>,
    _way: Way,
}

/// A service with an open cohort of two, and its members.
async fn world(carrier: &Carrier) -> World {
    let way = carrier.way().await;
    let supervisor = Supervisor::default();
    let vitals = supervisor.vitals();
    let supervisor = supervisor.start();
    let announcements = matches!(carrier, Carrier::Memory).then(|| announcements(vitals.clone()));
    let operator = Arc::new(Operator(announcements.clone()));
    let settings = ServiceSettings::new(identity("service"), Arc::clone(&way.server), operator);
    let notices = settings.notices.subscribe();
    let service = supervisor.send(StartService(settings)).await.unwrap();
    let mut members = Vec::new();
    for name in ["one", "two"] {
        let settings = ParticipantSettings::new(identity(name), Arc::clone(&way.client), Arc::new(Decliner));
        members.push(settings.notices.subscribe());
        supervisor.send(StartParticipant(settings)).await.unwrap();
    }
    let script_tree = ScriptTree::FallbackAndRecovery {
        recovery_key: identity("recovery").public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(144).unwrap(),
        fallback_threshold: Some(1),
    };
    let mut conditions = Conditions::new(BeaconType::cas(), 2, script_tree);
    conditions.max_participants = Some(2);
    let timing = Timing {
        advert_repeat: Duration::from_millis(500),
        signing_timeout: Duration::from_secs(3),
        ..Timing::default()
    };
    let (limits, rules) = (Limits::default(), PhaseRules::default());
    let open = OpenCohort { conditions, network: Network::Regtest, timing, limits, rules };
    service.send(open).await.unwrap().unwrap();
    let announcements = announcements.map(|announcements| {
        let steps = announcements.subscribe();
        (announcements, steps)
    });
    World { announcements, vitals, _supervisor: supervisor, service: notices, members, _way: way }
}

impl World {
    /// Waits until the service has the signed transaction, and with `all` each member too; and until it is announced, after
    /// a bump and a reorganization.
    async fn completes(mut self, all: bool) {
        let (cohort_id, result) = loop {
            if let ServiceNotice::SigningComplete { cohort_id, result, .. } = &*self.service.recv().await.unwrap() {
                break (cohort_id.clone(), Arc::clone(result));
            }
        };
        for member in self.members.iter_mut().take_while(|_| all) {
            while !matches!(&*member.recv().await.unwrap(), ParticipantNotice::CohortComplete { .. }) {}
        }
        if let Some((announcements, mut steps)) = self.announcements {
            let (transaction, value) = (result.signed.transaction.clone(), result.signed.value);
            let signed = Input::Signed { transaction, value };
            announcements.feed(&cohort_id, Some(&result.output), signed).await.unwrap().unwrap();
            for wanted in ["announcement-bumped", "announcement-unconfirmed", "announcement-final"] {
                while <&str>::from(&*steps.recv().await.unwrap()) != wanted {}
            }
            announcements.stop().await;
        }
        assert_eq!(self.vitals.gone(), None);
    }
}

/// Runs a cohort over `carrier` in which an actor of `kind` panics; how often actors of each kind were polled.
fn round(carrier: &Carrier, panics: Option<(&'static str, u32)>) -> BTreeMap<&'static str, u32> {
    sabotage::plan(panics);
    // What a connection was just sending when it panicked is sent again as long as the cohort runs. At its very end that may be the
    // signed transaction: then a member knows of its own signature only.
    let is_remade = |name| ROWS.iter().any(|row| row.name == name && row.restart == Restart::ByParent);
    let all = !panics.is_some_and(|(kind, _)| is_remade(kind));
    actix_rt::System::new().block_on(async {
        let completed = tokio::time::timeout(PATIENCE, async { world(carrier).await.completes(all).await }).await;
        assert!(completed.is_ok(), "the cohort does not complete after {panics:?}");
    });
    sabotage::polls()
}

/// Panics of every kind that `carrier` has, at moments that are drawn.
fn every_kind_panics_once(carrier: &Carrier, kinds: &[&'static str]) {
    let mut rng = Randomness::System.for_actor("moments");
    let polls = round(carrier, None);
    for kind in kinds {
        let row = ROWS.iter().find(|row| row.name == *kind).unwrap();
        assert_ne!(row.restart, Restart::Never, "{kind}");
        let most = polls.get(kind).copied().unwrap_or_else(|| panic!("no {kind} runs: {polls:?}"));
        let mut panics = 0;
        for _ in 0..MOMENTS {
            let nth = 1 + rng.next_u32() % most;
            round(carrier, Some((kind, nth)));
            panics += u32::from(sabotage::has_panicked());
        }
        assert!(panics > 0, "{kind} was never polled often enough");
    }
}

#[test]
fn a_cohort_completes_after_a_panic_in_memory() {
    let kinds =
        ["Service", "Cohort", "SigningSession", "Participant", "ParticipantSession", "Link", "MemoryConnection"];
    every_kind_panics_once(&Carrier::Memory, &[&kinds[..], &["Announcement"]].concat());
}

#[test]
fn a_cohort_completes_after_a_panic_over_a_plain_type() {
    every_kind_panics_once(&Carrier::Plain, &["TaskConnection", "Link"]);
}

#[test]
fn a_cohort_completes_after_a_panic_over_http() {
    let kinds = ["Hub", "Inbox", "HttpConnection", "Link", "Service", "Participant"];
    every_kind_panics_once(&Carrier::Http, &kinds);
}

#[test]
fn a_cohort_completes_after_a_panic_over_relays() {
    every_kind_panics_once(&Carrier::Nostr, &["NostrConnection", "Relay", "Link", "Service", "Participant"]);
}

#[test]
fn a_service_that_always_panics_is_given_up() {
    sabotage::plan(None);
    actix_rt::System::new().block_on(async {
        let world = world(&Carrier::Memory).await;
        sabotage::always("Service");
        let gone = tokio::time::timeout(PATIENCE, world.vitals.failed()).await.unwrap();
        assert!(gone.actor.starts_with("service did:btcr2:"), "{gone}");
        assert!(gone.reason.contains("panicked"), "{gone}");
    });
    sabotage::plan(None);
}

#[test]
fn an_announcement_that_always_panics_is_given_up() {
    sabotage::plan(None);
    actix_rt::System::new().block_on(async {
        let world = world(&Carrier::Memory).await;
        sabotage::always("Announcement");
        let gone = tokio::time::timeout(PATIENCE, world.vitals.failed()).await.unwrap();
        assert!(gone.actor.starts_with("announcement "), "{gone}");
        assert!(gone.reason.contains("panicked"), "{gone}");
    });
    sabotage::plan(None);
}

#[test]
fn a_hub_that_always_panics_is_given_up() {
    sabotage::plan(None);
    actix_rt::System::new().block_on(async {
        let vitals = Vitals::default();
        let parts = HttpServerParts::new(HttpConfig::default(), Clock::system());
        let server = HttpServer::start(HttpServerParts { vitals: vitals.clone(), ..parts });
        sabotage::always("Hub");
        assert!(server.connect(&identity("service"), Inbox::channel(1).0).await.is_err());
        let gone = tokio::time::timeout(PATIENCE, vitals.failed()).await.unwrap();
        assert_eq!(gone.actor, "HTTP server");
        assert!(gone.reason.contains("panicked"), "{gone}");
    });
    sabotage::plan(None);
}

#[test]
fn every_parent_has_a_row() {
    for row in ROWS {
        for parent in row.parents {
            assert!(ROWS.iter().any(|other| other.name == *parent), "{}: {parent}", row.name);
        }
    }
}
