//! The two roles in this process, with any journals and transports.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App, HttpServer as WebServer};
use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        bans::{BanBook, NoBans},
        handle::{Participant, Service},
        journal::Journal,
        notice::{CohortResult, Notices, ParticipantNotice, ServiceNotice},
        policy::{ParticipantPolicy, SigningRequest, UpdateRequest},
        runtime::{Clock, Randomness},
        service::OpenCohort,
        transport::{
            Transport,
            http::{
                self, HttpClient, HttpConfig, HttpServer, client::Backoff, server::HttpServerParts, store::Rate,
            },
            nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
        },
    },
    bitcoin::{
        offline::OfflineOperator,
        verify::{bip340_accepts, consensus_accepts},
    },
    cas::Publication,
    events::Printer,
    join::{Intent, MemberPolicy, Terms},
    protocol::{
        cohort::{
            Timing,
            conditions::Conditions,
            participant::Advert,
            service::{
                Limits,
                rules::{Answer, PhaseRule, PhaseRules, TimedPhase},
            },
        },
        document,
        hash::sha256,
        id::CohortId,
        identity::Identity,
        key::SecretKey,
        network::Network,
        output::{RecoverySequence, ScriptTree},
        update::Submission,
    },
};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;

use super::{DECLINES, MEMBERS, Over, PATIENCE, Scenario};

fn key(name: &str) -> SecretKey {
    SecretKey::from_bytes(&sha256(name.as_bytes())).unwrap()
}

pub fn service_identity() -> Identity {
    Identity::from_key(key("service"), Network::Regtest)
}

/// KEY DIDs, and one EXTERNAL, whose key is known only from its opt-in.
pub fn member_identity(member: usize) -> Identity {
    let key = key(&format!("member {member}"));
    if member != 2 {
        return Identity::from_key(key, Network::Regtest);
    }
    let genesis = document::genesis_document(&key.public_key(), Network::Regtest);
    Identity::from_genesis(key, genesis, Network::Regtest).unwrap()
}

/// A role that runs.
pub struct Running<N> {
    pub notices: Receiver<Arc<N>>,
}

const NOTICES: usize = 1 << 12;

/// Starts a service whose cohorts of a previous run, if any, are restored when this returns.
pub async fn start_service(
    transport: Arc<dyn Transport>,
    journal: Arc<dyn Journal>,
) -> (Service, Running<ServiceNotice>) {
    let notices = Notices::new(NOTICES);
    let steps = notices.subscribe();
    let service = Service::builder(service_identity(), transport, Arc::new(OfflineOperator))
        .journal(journal)
        .notices(notices)
        .bans(BanBook::in_memory(Arc::new(NoBans)))
        .start()
        .await
        .unwrap();
    (service, Running { notices: steps })
}

/// The cohort of a scenario. Members have `nonces` to send their nonces, and `signatures` to sign with them, before the
/// service requests the fallback.
pub fn cohort(scenario: &Scenario, members: usize, nonces: Duration, signatures: Duration) -> OpenCohort {
    let script_tree = ScriptTree::FallbackAndRecovery {
        recovery_key: service_identity().public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(144).unwrap(),
        fallback_threshold: None,
    };
    let members = u32::try_from(members).unwrap();
    let mut conditions = Conditions::new(scenario.beacon(), members, script_tree);
    conditions.max_participants = Some(members);
    let mut rules = PhaseRules::default();
    let within = |timeout| PhaseRule { timeout: Some(timeout), extensions: 0, then: Answer::FallBack };
    rules.set(TimedPhase::Nonces, within(nonces)).unwrap();
    rules.set(TimedPhase::PartialSignatures, within(signatures)).unwrap();
    OpenCohort {
        conditions,
        network: Network::Regtest,
        timing: Timing { advert_repeat: Duration::from_secs(1), signing_timeout: PATIENCE, ..Timing::default() },
        limits: Limits::default(),
        rules,
    }
}

/// A member that never decides whether to sign, if it is to be the silent one.
struct Member {
    policy: MemberPolicy,
    silent: bool,
}

#[async_trait]
impl ParticipantPolicy for Member {
    async fn should_join(&self, advert: &Advert) -> bool {
        self.policy.should_join(advert).await
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        self.policy.provide_update(request).await
    }

    async fn approve_signing(&self, request: &SigningRequest) -> bool {
        if self.silent {
            std::future::pending::<()>().await;
        }
        self.policy.approve_signing(request).await
    }
}

/// Starts a member of a scenario's cohort.
pub async fn start_member(
    scenario: &Scenario,
    member: usize,
    transport: Arc<dyn Transport>,
    journal: Arc<dyn Journal>,
) -> Running<ParticipantNotice> {
    let identity = member_identity(member);
    let intent = if member == DECLINES { Intent::Decline } else { Intent::AddBeacon { source: None } };
    let service = service_identity().did().clone();
    let policy = MemberPolicy::new(
        identity.clone(),
        Some(service),
        Terms::default(),
        intent,
        Publication::default(),
        Printer::new(true),
    );
    let notices = Notices::new(NOTICES);
    let steps = notices.subscribe();
    let policy = Arc::new(Member { policy, silent: scenario.is_silent(member) });
    let builder =
        Participant::builder(identity, transport, policy).max_sessions(4).journal(journal).notices(notices);
    builder.start().await.unwrap();
    Running { notices: steps }
}

/// A connection to a relay, or to a service that serves HTTP.
pub fn transport_to(over: Over, place: &str) -> Arc<dyn Transport> {
    let (clock, randomness) = (Clock::system(), Randomness::System);
    let (first, longest) = (Duration::from_millis(50), Duration::from_millis(400));
    match over {
        Over::Http => {
            let client = HttpClient::new(place, Some(service_identity().did().clone()), clock, randomness).unwrap();
            Arc::new(client.with_backoff(Backoff { first, longest }))
        }
        Over::Nostr => {
            let config = NostrConfig {
                look_back: Duration::ZERO,
                first_backoff: first,
                longest_backoff: longest,
                ..NostrConfig::new([place.to_owned()])
            };
            Arc::new(NostrTransport::new(config, clock, randomness).unwrap())
        }
    }
}

/// The address at which members reach a service in this process.
pub struct Door {
    /// The relay's URL, or the web server's.
    pub place: String,
    /// The service's own transport.
    pub transport: Arc<dyn Transport>,
    /// It is reachable until this is dropped.
    pub relay: Option<EmbeddedRelay>,
}

/// Opens a relay, or a web server, on a free port.
pub async fn open_door(over: Over) -> Door {
    match over {
        Over::Nostr => {
            let relay = EmbeddedRelay::start(([127, 0, 0, 1], 0).into()).await.unwrap();
            let place = relay.url().to_owned();
            Door { transport: transport_to(over, &place), place, relay: Some(relay) }
        }
        Over::Http => {
            let server = HttpServer::start(web_parts());
            let (address, open) = open_web(&server);
            open();
            Door { place: format!("http://{address}"), transport: Arc::new(server), relay: None }
        }
    }
}

/// A web server's parts, for many connections of members from one address.
pub fn web_parts() -> HttpServerParts {
    let unlimited = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let config = HttpConfig { did_rate: unlimited, address_rate: unlimited, ..HttpConfig::default() };
    HttpServerParts::new(config, Clock::system())
}

/// Opens a web server on a free port: connections wait until the returned function is called.
pub fn open_web(server: &HttpServer) -> (SocketAddr, impl FnOnce() + use<>) {
    let mounted = server.clone();
    let web = WebServer::new(move || App::new().configure(http::configure(&mounted)))
        .workers(1)
        .shutdown_timeout(0)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
    let address = web.addrs()[0];
    (address, move || {
        actix_rt::spawn(web.run());
    })
}

/// A cohort's result as `serve` prints it: the fields that are verified.
pub fn result(cohort_id: &CohortId, result: &CohortResult) -> Value {
    use bitcoin::consensus::encode::serialize_hex;
    let CohortResult { output, signed, aggregation, .. } = result;
    let prevout = bitcoin::TxOut { value: signed.value, script_pubkey: output.script_pubkey().to_owned() };
    json!({
        "event": "result",
        "ok": true,
        "cohortId": cohort_id,
        "beaconAddress": output.address(),
        "path": signed.path,
        "signature": signed.signature.map(|signature| signature.to_string()).unwrap_or_default(),
        "txid": signed.transaction.compute_txid().to_string(),
        "txHex": serialize_hex(&signed.transaction),
        "prevout": { "scriptHex": prevout.script_pubkey.to_hex_string(), "value": prevout.value.to_sat() },
        "signalHex": aggregation.signal,
        "verified": {
            "bip340": bip340_accepts(signed, output, &prevout),
            "consensus": consensus_accepts(&signed.transaction, &prevout),
        },
    })
}

/// A member's record as `join` prints it.
pub fn record(notice: &ParticipantNotice) -> Option<Value> {
    let ParticipantNotice::SignatureSent { did, record, .. } = notice else { return None };
    let member = (0..MEMBERS).map(member_identity).find(|identity| identity.did() == did).unwrap();
    Some(json!({
        "event": "record",
        "ok": true,
        "did": did,
        "cohortId": record.cohort_id,
        "beaconAddress": record.output.address(),
        "included": record.included(),
        "sidecar": record.sidecar(member.genesis_document().map(|document| &**document)),
    }))
}
