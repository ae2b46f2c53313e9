//! A participant as a program: it joins one cohort of a service, with an explicit policy, and keeps what it must keep.

mod alone;
mod memberships;
mod place;
pub mod policy;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use actix::Actor;
use serde_json::{Value, json};

use self::memberships::{Memberships, Outlook};
pub use self::{
    alone::SingletonFallback,
    policy::{Intent, MemberPolicy, Terms},
};
use crate::{
    actors::{
        notice::{Notices, ParticipantNotice},
        participant::ParticipantSettings,
        recovery::RestartIntensity,
        runtime::{Clock, Randomness},
        state::vault::{Vault, VaultEntry},
        supervisor::{StartParticipant, Supervisor},
        transport::{
            Transport,
            combined::CombinedTransport,
            contact::Contacts,
            http::{HttpClient, client::BaseUrlError},
            nostr::{NostrConfig, NostrTransport},
            tls::Trust,
        },
    },
    cas::Publication,
    error::ProgramError,
    events::Printer,
    files::{file_name, write_whole},
    keep::Keeping,
    protocol::{
        beacon::BeaconRegistry,
        cohort::{Timing, event::SessionEnd},
        did::Did,
        identity::Identity,
        output::DirectAggregator,
        sidecar::MemberRecord,
    },
    steps::{Next, Steps},
};

/// How many notices the program's own reader may fall behind.
const NOTICES: usize = 1 << 12;

/// What to join.
pub struct JoinConfig {
    /// Who joins.
    pub identity: Identity,
    /// The service's base URL, for one that serves HTTP.
    pub service: Option<String>,
    /// By which certificates an https service is trusted. (Relays: see [`NostrConfig::trust`].)
    pub trust: Trust,
    /// The relays on which to look for services.
    pub nostr: Option<NostrConfig>,
    /// The service's DID; without it, the first service whose terms are met.
    pub service_did: Option<Did>,
    /// What to announce.
    pub intent: Intent,
    /// The terms that are accepted.
    pub terms: Terms,
    /// How long to wait for the service.
    pub timing: Timing,
    /// Where to write what must be kept.
    pub out: Option<PathBuf>,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether to stop after the first cohort.
    pub exit_when_done: bool,
    /// How long to stay after signing, in case the service asks for the fallback, unless it says that the cohort is over.
    pub linger: Duration,
    /// The directory in which everything is kept that must outlive the program.
    pub state: Option<PathBuf>,
    /// Where the update is published before it is submitted.
    pub publication: Publication,
    /// What to do when no cohort announces the update.
    pub singleton_fallback: Option<SingletonFallback>,
}

/// Takes part until `stop` is ready, or the first cohort is over if that ends the program. Whether it was signed.
///
/// # Errors
/// [`ProgramError`] when it cannot start, or cannot write what must be kept.
pub async fn run(config: JoinConfig, stop: impl Future<Output = ()>) -> Result<bool, ProgramError> {
    let printer = Printer::new(config.json);
    if let Some(directory) = &config.out {
        std::fs::create_dir_all(directory)
            .map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    }
    printer.terms(&config.terms);
    let clock = Clock::system();
    let lost = "what it was signing is lost, and only the fallback can bring that cohort to an end";
    let keeping = Keeping::open(config.state.as_deref(), lost, printer)?;
    let contacts = Contacts::default();
    let reporting = printer.follow(contacts.subscribe());
    let transport = transport(&config, clock, &contacts)?;
    let policy = MemberPolicy::new(
        config.identity.clone(),
        config.service_did.clone(),
        config.terms.clone(),
        config.intent.clone(),
        config.publication.clone(),
        printer,
    );
    // Before the sessions are: what our update is in already decides what they may say.
    let earlier = memberships::earlier(&*keeping.journal(), config.identity.did())
        .await
        .map_err(|error| ProgramError::State(error.to_string()))?;
    for session in &earlier {
        policy.is_in(&session.cohort_id, session.answered);
    }
    let notices = Notices::new(NOTICES);
    let mut steps = Steps::of(notices.subscribe());
    let settings = ParticipantSettings {
        identity: config.identity.clone(),
        transport,
        policy: Arc::new(policy.clone()),
        timing: config.timing,
        max_fee_rate: config.terms.max_fee_rate,
        max_sessions: 64,
        beacons: BeaconRegistry::default(),
        aggregator: Arc::new(DirectAggregator),
        journal: keeping.journal(),
        clock,
        randomness: Randomness::System,
        notices,
        restarts: RestartIntensity::default(),
        retention: keeping.retention(),
    };
    let supervisor = Supervisor::default().start();
    let participant = supervisor
        .send(StartParticipant(settings))
        .await
        .map_err(|error| ProgramError::Internal(error.to_string()))?;
    let mut memberships = Memberships::new(participant, &earlier, config.timing.phase_timeout);
    let following = async {
        loop {
            let next = tokio::select! {
                next = steps.next() => next,
                () = memberships.disappointed() => {
                    let reason = "the cohort that was to take the failed one's place did not come";
                    if memberships.give_up() == Outlook::Nothing {
                        printer.result(&json!({ "event": "result", "ok": false, "reason": reason }), reason);
                        if let Some(end) = nothing(&config, printer)? {
                            return Ok(end);
                        }
                    }
                    continue;
                }
            };
            let step = match next {
                Some(Next::Step(step)) => step,
                Some(Next::Missed(missed) | Next::Lost(missed)) => {
                    printer.warn(&format!("{missed} events were not shown"));
                    continue;
                }
                None => return Err(ProgramError::Internal("the actors are gone".to_owned())),
            };
            if let ParticipantNotice::DataApproved { record, .. } = &*step {
                // Before it is told: what was told is kept.
                keep_in_vault(&config, &keeping, record).await?;
            }
            printer.participant_step(&step);
            memberships.follow(&step);
            match &*step {
                ParticipantNotice::CohortComplete { record, .. } => {
                    keep(&config, &keeping, record).await?;
                    if config.exit_when_done {
                        return Ok(Some(Arc::clone(record)));
                    }
                    printer.result(&result(&config, record), &text(record));
                    policy.is_free_again(&record.cohort_id);
                }
                ParticipantNotice::OptInAccepted { cohort_id, .. }
                | ParticipantNotice::CohortReady { cohort_id, .. } => {
                    policy.is_accepted(cohort_id);
                }
                ParticipantNotice::CohortOver { cohort_id, .. } => memberships.archive(cohort_id),
                ParticipantNotice::CohortFailed { reason, cohort_id, end, .. } => {
                    policy.is_free_again(cohort_id);
                    let next = match end {
                        SessionEnd::EndedByService { next, .. } => next.as_ref(),
                        _ => None,
                    };
                    if memberships.failed(cohort_id, next) == Outlook::GoOn {
                        continue;
                    }
                    let result = json!({ "event": "result", "ok": false, "cohortId": cohort_id, "reason": reason });
                    printer.result(&result, &format!("cohort {cohort_id} failed: {reason}"));
                    if let Some(end) = nothing(&config, printer)? {
                        return Ok(end);
                    }
                }
                _ => {}
            }
        }
    };
    tokio::pin!(stop, reporting);
    let record = tokio::select! {
        record = following => record?,
        never = &mut reporting => match never {},
        () = &mut stop => {
            keeping.close().await;
            return Ok(true);
        }
    };
    let Some(record) = record else {
        keeping.close().await;
        return Ok(false);
    };
    // Signed, but not done: if another member is missing, the service asks for the fallback now.
    printer.lingering(config.linger);
    let lingering = tokio::time::sleep(config.linger);
    tokio::pin!(lingering);
    loop {
        tokio::select! {
            () = &mut lingering => break,
            never = &mut reporting => match never {},
            () = &mut stop => break,
            step = steps.next() => match step {
                Some(Next::Step(step)) => {
                    printer.participant_step(&step);
                    if let ParticipantNotice::CohortOver { cohort_id, .. } | ParticipantNotice::CohortFailed { cohort_id, .. } = &*step
                        && *cohort_id == record.cohort_id
                    {
                        memberships.archive(cohort_id);
                        break;
                    }
                }
                Some(Next::Missed(_) | Next::Lost(_)) => {}
                None => break,
            },
        }
    }
    keeping.close().await;
    printer.result(&result(&config, &record), &text(&record));
    Ok(true)
}

/// No cohort will announce: the member's own announcement is written, if that is wanted, and the program ends, if it is to.
fn nothing(config: &JoinConfig, printer: Printer) -> Result<Option<Option<Arc<MemberRecord>>>, ProgramError> {
    alone::fall_back(config, printer)?;
    Ok(config.exit_when_done.then_some(None))
}

/// To the service, to the relays, or to both as one.
fn transport(config: &JoinConfig, clock: Clock, contacts: &Contacts) -> Result<Arc<dyn Transport>, ProgramError> {
    let mut transports: Vec<Arc<dyn Transport>> = Vec::new();
    if let Some(service) = &config.service {
        let usage = |error: BaseUrlError| ProgramError::Usage(error.to_string());
        let mut client =
            HttpClient::new(service, config.service_did.clone(), clock, Randomness::System).map_err(usage)?;
        client = client.trusting(&config.trust).map_err(usage)?.with_contacts(contacts.clone());
        transports.push(Arc::new(client));
    }
    if let Some(nostr) = &config.nostr {
        let nostr = NostrConfig { contacts: contacts.clone(), ..nostr.clone() };
        let nostr = NostrTransport::new(nostr, clock, Randomness::System)
            .map_err(|error| ProgramError::Usage(error.to_string()))?;
        transports.push(Arc::new(nostr));
    }
    match transports.len() {
        1 => Ok(transports.remove(0)),
        _ => match CombinedTransport::new(transports) {
            Some(combined) => Ok(Arc::new(combined)),
            None => Err(ProgramError::Usage("no service: neither a URL nor a relay".to_owned())),
        },
    }
}

fn result(config: &JoinConfig, record: &MemberRecord) -> Value {
    json!({
        "event": "result",
        "ok": true,
        "cohortId": record.cohort_id,
        "beaconAddress": record.output.address(),
        "included": record.included(),
        "sidecar": record.sidecar(config.identity.genesis_document().map(|document| &**document)),
    })
}

fn text(record: &MemberRecord) -> String {
    let what = if record.included() { "our update is in" } else { "we declined; our proof of that is in" };
    format!("cohort {}: {what} the signal {}", record.cohort_id, record.signal)
}

/// Keeps what was approved in the state directory: from then on it may be announced, whether this program hears of it or not.
async fn keep_in_vault(config: &JoinConfig, keeping: &Keeping, record: &MemberRecord) -> Result<(), ProgramError> {
    let Some(vault) = keeping.vault() else { return Ok(()) };
    let genesis_document = config.identity.genesis_document().map(|document| (**document).clone());
    let entry = VaultEntry { record: record.clone(), genesis_document, transcript: None };
    vault.put(entry).await.map_err(|error| ProgramError::State(error.to_string()))
}

/// Writes `<cohort>.json`: the DID, whether it is included, the sidecar, and the terms of the cohort.
async fn keep(config: &JoinConfig, keeping: &Keeping, record: &MemberRecord) -> Result<(), ProgramError> {
    keep_in_vault(config, keeping, record).await?;
    let Some(directory) = &config.out else { return Ok(()) };
    let mut kept = record.to_file(config.identity.genesis_document().map(|document| &**document));
    kept["cohort"] = json!({
        "cohortId": record.cohort_id,
        "service": record.service,
        "beaconAddress": record.output.address(),
        "signalHex": record.signal,
        "conditions": record.conditions,
        "output": record.output,
    });
    let path = directory.join(format!("{}.json", file_name(&record.cohort_id)));
    let io_error = |error: io::Error| ProgramError::Io { what: path.display().to_string(), error };
    let text = serde_json::to_string_pretty(&kept).map_err(|error| io_error(error.into()))?;
    write_whole(&path, (text + "\n").as_bytes()).map_err(io_error)
}
