//! The seeds of a running agent: each with its DIDs, its seats, and the services at which it takes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{
    approval::Approvals,
    backup::ContinuousBackups as Backups,
    config::{MINTED, MemberConfig, SeatSettings},
    identities,
    leaving::Exits,
    lives::End,
    queue::Queue,
    report::Reporter,
    seat::SeatAgent,
    settling::Seed,
    source::{BeforeSubmission, QueueSource},
    tally::Tally,
};
use crate::{
    actors::{
        handle::Member,
        notice::Notices,
        runtime::{Clock, Randomness},
        standing::{ChainView, MemberSettings, notice::SeatNotice},
        transport::{
            Transport,
            combined::CombinedTransport,
            contact::Contacts,
            http::HttpClient,
            nostr::{NostrConfig, NostrTransport},
        },
    },
    bitcoin::chain::Chain,
    costs::SeatCosts,
    error::ProgramError,
    protocol::beacon::did_index,
    standing::{
        controller::{ControllerParts, StandingController},
        resolver::Resolver,
    },
    storage::Storage,
};

/// The parts that the seeds share.
pub(super) struct Parts<'a> {
    pub(super) storage: &'a Storage,
    pub(super) chain: Arc<dyn Chain>,
    pub(super) queue: Arc<Queue>,
    pub(super) reporter: Reporter,
    pub(super) approvals: Approvals,
    pub(super) tally: Arc<Tally>,
    pub(super) exits: Arc<Exits>,
    pub(super) backups: Option<Arc<Backups>>,
    pub(super) notices: Notices<SeatNotice>,
    pub(super) contacts: Contacts,
    /// Whether the state directory was restored from a backup.
    pub(super) restored: bool,
    pub(super) clock: Clock,
}

/// Two seats that do not know of each other could announce two updates of one version.
pub(super) fn each_in_one_seat(seeds: &[Seed]) -> Result<(), String> {
    let mut seen = BTreeMap::new();
    for seed in seeds {
        for did in seed.controller.indexes().into_values() {
            if let Some(other) = seen.insert(did.clone(), &seed.name) {
                return Err(format!("{did} is in seat {other} and in seat {}: it may be in one only", seed.name));
            }
        }
    }
    Ok(())
}

/// Stops all seats.
pub(super) async fn stop_all(seeds: &[Seed]) {
    for seed in seeds {
        seed.member.stop().await;
    }
}

/// The identities that the agent has made for a seed.
pub(super) fn minted(config: &MemberConfig, seat: &str) -> Result<Vec<PathBuf>, ProgramError> {
    let directory = config.state.join(MINTED).join(seat);
    if directory.exists() { identities::files(&[directory]) } else { Ok(Vec::new()) }
}

/// Starts the seats of a seed.
pub(super) async fn seed(config: &MemberConfig, seat: &SeatSettings, parts: &Parts<'_>) -> Result<Seed, End> {
    let mut dids = Vec::new();
    let mut files = identities::files(&seat.dids)?;
    files.extend(minted(config, &seat.name)?);
    for path in files {
        let controlled = identities::read(&path)?;
        if controlled.identity.did().network() != config.network {
            let problem = format!("{}: a DID of another network than {}", path.display(), config.network);
            return Err(ProgramError::Usage(problem).into());
        }
        dids.push(controlled);
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = dids.iter().find(|one| !seen.insert(did_index(one.identity.did()))) {
        let problem = format!("{} is there twice in seat {}", twice.identity.did(), seat.name);
        return Err(ProgramError::Usage(problem).into());
    }
    let source = Arc::new(QueueSource {
        queue: Arc::clone(&parts.queue),
        reporter: parts.reporter.clone(),
        most_per_day: config.policy.most_updates_per_day,
        backup: parts.backups.clone().map(|backups| backups as Arc<dyn BeforeSubmission>),
        clock: parts.clock,
    });
    let controller = StandingController::new(ControllerParts {
        dids,
        service: None,
        policy: config.policy.terms.clone(),
        invite: seat.invite.clone(),
        applies_as: seat.applies_as.clone(),
        resolver: Resolver {
            source: config.chain.source.clone(),
            stores: config.stores.clone(),
            min_conf: config.min_conf,
        },
        updates: Arc::clone(&source) as _,
        out: &config.out,
        printer: parts.reporter.printer().clone(),
    });
    let costs = parts.storage.state().map(|state| SeatCosts::new(state, parts.clock));
    let controller = controller.map_err(|problem| End::Refused(ProgramError::State(problem)))?;
    let controller = Arc::new(controller.with_costs(costs));
    let agent = SeatAgent {
        name: seat.name.clone(),
        services: seat.services.iter().map(|service| service.did.clone()).collect(),
        controller: Arc::clone(&controller),
        policy: Arc::clone(&config.policy),
        approvals: parts.approvals.clone(),
        tally: Arc::clone(&parts.tally),
        exits: Arc::clone(&parts.exits),
        reporter: parts.reporter.clone(),
        moves: Mutex::default(),
    };
    let transport = transport(seat, parts.clock, &parts.contacts)?;
    let mut settings = MemberSettings::new(Arc::clone(&seat.seed), config.network, transport, Arc::new(agent));
    settings.boards = parts.storage.boards();
    settings.journal = parts.storage.journal();
    settings.notices = parts.notices.clone();
    settings.restored = parts.restored;
    (settings.clock, settings.randomness) = (parts.clock, Randomness::System);
    settings.chain = Some(ChainView {
        min_confirmations: config.chain.confirmations,
        poll: config.chain.poll,
        look_back: config.chain.look_back,
        ..ChainView::new(Arc::clone(&parts.chain))
    });
    let member = Member::start(settings).await.map_err(|error| End::Interrupted(error.to_string()))?;
    Ok(Seed { name: seat.name.clone(), member, controller, source })
}

/// All services of a seed as one transport.
fn transport(seat: &SeatSettings, clock: Clock, contacts: &Contacts) -> Result<Arc<dyn Transport>, ProgramError> {
    let mut transports: Vec<Arc<dyn Transport>> = Vec::new();
    for service in &seat.services {
        let usage =
            |error: &dyn std::fmt::Display| ProgramError::Usage(format!("service {}: {error}", service.name));
        if let Some(url) = &service.url {
            let client = HttpClient::new(url, service.did.clone(), clock, Randomness::System);
            let client =
                client.and_then(|client| client.trusting(&service.trust)).map_err(|error| usage(&error))?;
            transports.push(Arc::new(client.with_contacts(contacts.clone())));
        }
        if let Some(nostr) = &service.nostr {
            let nostr = NostrConfig { contacts: contacts.clone(), ..nostr.clone() };
            let nostr = NostrTransport::new(nostr, clock, Randomness::System).map_err(|error| usage(&error))?;
            transports.push(Arc::new(nostr));
        }
    }
    match (transports.len(), CombinedTransport::new(transports.clone())) {
        (1, _) => Ok(transports.remove(0)),
        (_, Some(combined)) => Ok(Arc::new(combined)),
        (_, None) => Err(ProgramError::Usage(format!("seat {} has no service", seat.name))),
    }
}
