//! The rows of standing cohorts: an actor of each kind panics once, and the cohort goes on announcing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::Actor;
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    beacon::did_index,
    cohort::standing::{
        RowAction, SeatSeed, StandingBeacon, StandingPolicy, StandingTerms, Updates,
        message::ControlProof,
        seat::{KnownVersions, SeatUpdate},
    },
    did::Did,
    hash::sha256,
    jcs::document_hash,
    key::Signature,
    network::Network,
};
use serde_json::json;
use tokio::sync::broadcast::Receiver;

use super::{MOMENTS, chain::EventfulChain, identity};
use crate::{
    runtime::Randomness,
    service::{OpenStanding, ServiceSettings},
    standing::{
        ChainView, MemberSettings, StandingSettings,
        notice::StandingNotice,
        policy::{
            BoardToSign, Control, RowWanted, SeatPolicy, SeatView, StandingOffer, UpdatesAsked, UpdatesChosen,
        },
    },
    supervision::{Vitals, sabotage},
    supervisor::{StartMember, StartService, Supervisor},
    transport::{Transport, memory::MemoryTransport},
    tree::{ROWS, Restart},
};

const SEATS: u16 = 3;

/// How long two announcements may take: an advert that is lost is repeated after a minute.
const PATIENCE: Duration = Duration::from_secs(150);

/// How many announcements follow each other.
const NUMBERS: usize = 2;

/// A controller of one DID, which always has an update.
struct Controller(Did);

#[async_trait]
impl SeatPolicy for Controller {
    async fn joins(&self, _: &StandingOffer) -> Result<(), String> {
        Ok(())
    }

    fn standing_policy(&self) -> StandingPolicy {
        StandingPolicy { least_threshold: (1, 2), least_seconds_to_answer: 1, ..StandingPolicy::default() }
    }

    async fn registers(&self, _: &SeatView) -> Vec<RowWanted> {
        vec![RowWanted { did: self.0.clone(), action: RowAction::Register }]
    }

    async fn proves(&self, _: &Did, _: &[u8; 32]) -> Option<Control> {
        let signature = Signature::from_bytes(&[0; 64]);
        let proof = ControlProof { verification_method: "#initialKey".to_owned(), signature };
        Some(Control { proof, genesis_document: None, sidecar: None })
    }

    async fn has_updates(&self, _: &SeatView, _: &KnownVersions) -> bool {
        true
    }

    async fn chooses(&self, _: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        let index = did_index(&self.0);
        let announced = asked.announced.iter().filter(|(of, _)| *of == index).map(|(_, version)| *version);
        let version = announced.max().unwrap_or(1) + 1;
        let hash = document_hash(&json!({ "did": self.0, "targetVersionId": version })).unwrap();
        let update = SeatUpdate { did: self.0.clone(), version, hash, full: None };
        UpdatesChosen { resolved: Vec::new(), updates: vec![update] }
    }

    async fn signs(&self, _: &SeatView, _: &BoardToSign) -> Result<(), String> {
        Ok(())
    }
}

struct World {
    vitals: Vitals,
    _supervisor: actix::Addr<Supervisor>,
    notices: Receiver<Arc<StandingNotice>>,
}

async fn world() -> World {
    let transport: Arc<dyn Transport> = Arc::new(MemoryTransport::new());
    let supervisor = Supervisor::default();
    let vitals = supervisor.vitals();
    let supervisor = supervisor.start();
    let view = || {
        let chain = ChainView::new(Arc::new(EventfulChain::new()));
        Some(ChainView { min_confirmations: 1, poll: Duration::from_millis(20), ..chain })
    };
    let operator = Arc::new(super::Operator(None));
    let mut settings = ServiceSettings::new(identity("service"), Arc::clone(&transport), operator);
    settings.standing = StandingSettings { chain: view(), ..StandingSettings::default() };
    let notices = settings.standing.notices.subscribe();
    let service = supervisor.send(StartService(settings)).await.unwrap();
    let mut terms = StandingTerms::new(StandingBeacon::Cas, Network::Regtest, SEATS, SEATS).proceeding(SEATS - 1);
    terms.updates = Updates::Hash;
    terms.min_seconds_between_announcements = 1;
    terms.max_seconds_between_announcements = Some(2);
    (terms.respond_seconds, terms.confirm_seconds) = (2, 2);
    for seat in 0..SEATS {
        let name = format!("seat {seat}");
        let seed = Arc::new(SeatSeed::from_bytes(sha256(name.as_bytes())));
        let controller = Arc::new(Controller(identity(&name).did().clone()));
        let mut settings = MemberSettings::new(seed, Network::Regtest, Arc::clone(&transport), controller);
        settings.chain = view();
        supervisor.send(StartMember(settings)).await.unwrap().unwrap();
    }
    // After the members: the next advert takes a while.
    service.send(OpenStanding { terms }).await.unwrap().unwrap();
    World { vitals, _supervisor: supervisor, notices }
}

impl World {
    async fn announces(mut self) {
        let mut signed = 0;
        while signed < NUMBERS {
            let notice = self.notices.recv().await.unwrap();
            // Shown when the test fails.
            println!("{notice:?}");
            signed += usize::from(matches!(&*notice, StandingNotice::NumberSigned { .. }));
        }
        assert_eq!(self.vitals.gone(), None);
    }
}

/// Announces twice while an actor of a kind panics; how often actors of each kind were polled.
fn life(panics: Option<(&'static str, u32)>) -> BTreeMap<&'static str, u32> {
    sabotage::plan(panics);
    actix_rt::System::new().block_on(async {
        let announced = tokio::time::timeout(PATIENCE, async { world().await.announces().await }).await;
        assert!(announced.is_ok(), "nothing is announced after {panics:?}");
    });
    sabotage::polls()
}

#[test]
fn a_standing_cohort_announces_after_a_panic() {
    let mut rng = Randomness::System.for_actor("moments");
    let polls = life(None);
    for kind in ["StandingCohort", "Number", "CoinWatch", "Member", "Seat"] {
        let row = ROWS.iter().find(|row| row.name == kind).unwrap();
        assert_ne!(row.restart, Restart::Never, "{kind}");
        let most = polls.get(kind).copied().unwrap_or_else(|| panic!("no {kind} runs: {polls:?}"));
        let mut panics = 0;
        // A member that loses the advert waits for the next one, which takes a minute: once is enough.
        let moments = if kind == "Member" { 1 } else { MOMENTS };
        for _ in 0..moments {
            let nth = if kind == "Member" { 1 } else { 1 + rand_core::RngCore::next_u32(&mut rng) % most };
            life(Some((kind, nth)));
            panics += u32::from(sabotage::has_panicked());
        }
        assert!(panics > 0, "{kind} was never polled often enough");
    }
}

#[test]
fn a_cohort_whose_watch_always_panics_is_given_up() {
    sabotage::plan(None);
    actix_rt::System::new().block_on(async {
        let mut world = world().await;
        sabotage::always("CoinWatch");
        let halted = async {
            loop {
                if let StandingNotice::StandingHalted { reason, .. } = &*world.notices.recv().await.unwrap() {
                    break reason.clone();
                }
            }
        };
        let reason = tokio::time::timeout(PATIENCE, halted).await.unwrap();
        assert!(reason.contains("watch of its beacon address"), "{reason}");
        assert!(reason.contains("panicked"), "{reason}");
    });
    sabotage::plan(None);
}
