//! A participant as a program: it joins one cohort of a service, with an explicit policy, and stores the results.

mod alone;
mod confirmations;
mod decision;
mod ending;
pub(crate) mod ledger;
mod member;
pub(crate) mod memberships;
pub mod policy;
mod report;
mod slot;
pub mod standing;
mod start;
mod terms;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use serde_json::json;
use tokio::time::Instant;

pub(crate) use self::confirmations::Sighting;
pub use self::{
    alone::SingletonFallback,
    confirmations::ChainQuestions,
    policy::{Idle, Intent, Making, MemberPolicy},
    terms::Terms,
};
use self::{
    confirmations::Confirmations,
    member::{Member, Turn},
    memberships::Memberships,
    report::announced_before,
};
use crate::{
    actors::{
        events::Event,
        handle::Participant,
        runtime::{Clock, Randomness},
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
    controller::Keys,
    error::ProgramError,
    events::Printer,
    protocol::{
        cohort::Timing, did::Did, id::CohortId, identity::Identity, invite::InviteToken, output::DirectAggregator,
    },
    resolve::Given,
    storage::Storage,
};

/// The configuration of a participant.
pub struct JoinConfig {
    /// The identity of the participant. Cohorts know it by the key that it began with.
    pub identity: Identity,
    /// The keys that sign its updates.
    pub keys: Arc<Keys>,
    /// The service's base URL, for one that serves HTTP.
    pub service: Option<String>,
    /// The certificates that an https service is trusted by. (Relays: see [`NostrConfig::trust`].)
    pub trust: Trust,
    /// The relays on which to find services.
    pub nostr: Option<NostrConfig>,
    /// The service's DID; without it, the first service whose terms are met.
    pub service_did: Option<Did>,
    /// An invite of the service's operator.
    pub invite: Option<InviteToken>,
    /// The update to announce.
    pub intent: Intent,
    /// The terms that are accepted.
    pub terms: Terms,
    /// The time limits.
    pub timing: Timing,
    /// The directory for files that must be stored.
    pub out: Option<PathBuf>,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether lines for people start with the time.
    pub times: bool,
    /// Whether to exit after the first cohort.
    pub exit_when_done: bool,
    /// The longest time to stay after signing. Without it: until the service reports how the cohort ended, or until its
    /// deadlines, or ours, have passed.
    pub linger: Option<Duration>,
    /// How long to wait for a first answer of any service; without limit when absent.
    pub connect_timeout: Option<Duration>,
    /// What to do in cohorts when our update is already announced.
    pub idle: Idle,
    /// Whether an update may have effects that its controller may not intend.
    pub allow_risky: bool,
    /// Whether an update may be announced where no resolver looks.
    pub allow_unlisted: bool,
    /// Sidecar Data beside those in the state directory.
    pub given: Given,
    /// The confirmations with which a signal counts in a resolution; without it, those of the chain.
    pub min_conf: Option<u32>,
    /// Cohorts in which an update of ours was approved that will never be announced.
    pub superseded: Vec<CohortId>,
    /// The directory for all state that must survive a restart.
    pub state: Option<PathBuf>,
    /// The chain on which signed transactions are confirmed. Without it, a transaction counts as announced when it is
    /// signed.
    pub chain: Option<ChainQuestions>,
    /// Where the update is published before it is submitted.
    pub publication: Publication,
    /// What to do when no cohort announces the update.
    pub singleton_fallback: Option<SingletonFallback>,
}

/// Takes part until `stop` is ready, or until the first cohort is over if that ends the program. Returns whether it was
/// signed, as far as this member has seen.
///
/// # Errors
/// [`ProgramError`] when it cannot start, or cannot write what must be stored.
pub async fn run(config: JoinConfig, stop: impl Future<Output = ()>) -> Result<bool, ProgramError> {
    let printer = Printer::new(config.json).with_times(config.times);
    if let Some(directory) = &config.out {
        std::fs::create_dir_all(directory)
            .map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    }
    printer.terms(&config.terms);
    let clock = Clock::system();
    let lost = "its signing session is lost, and only the fallback can complete that cohort";
    let storage = Storage::open(config.state.as_deref(), lost, &printer)?;
    let network = config.identity.did().network();
    storage.check_owner("join", &config.identity, network, config.terms.to_json(), &printer).await?;
    let outcome = take_part(&config, &storage, clock, printer, stop).await;
    storage.close().await;
    outcome
}

async fn take_part(
    config: &JoinConfig,
    storage: &Storage,
    clock: Clock,
    printer: Printer,
    stop: impl Future<Output = ()>,
) -> Result<bool, ProgramError> {
    let state = |error: &dyn std::fmt::Display| ProgramError::State(error.to_string());
    let contacts = Contacts::default();
    let reporting = printer.clone().follow(contacts.subscribe());
    let transport = transport(config, clock, &contacts)?;
    let contents = start::contents(config, storage).await?;
    // Read before the sessions start: where our update is already submitted limits what they may announce.
    // A session that cannot be read reports it when it starts.
    let (earlier, _) =
        memberships::earlier(&*storage.journal(), config.identity.did()).await.map_err(|error| state(&error))?;
    let ledger = start::ledger(config, &contents, &earlier);
    let policy = MemberPolicy::new(
        config.identity.clone(),
        config.service_did.clone(),
        config.terms.clone(),
        config.intent.clone(),
        config.publication.clone(),
        printer.clone(),
    )
    .making(start::making(config, &contents)?)
    .with_ledger(ledger, config.idle)
    .invited_by(config.invite.clone());
    for session in earlier.iter().filter(|session| !session.ended) {
        policy.is_in(&session.cohort_id, session.answered);
    }
    tokio::pin!(stop);
    let resolved = tokio::select! {
        resolved = start::resolve(config, &policy, &earlier, &printer) => resolved?,
        () = &mut stop => return Ok(true),
    };
    storage.settle(&policy.settled()).await?;
    if let Err(problem) = resolved {
        printer.result(&json!({ "event": "result", "ok": false, "reason": problem }), &problem);
        return Ok(false);
    }
    let risks = policy.risks();
    if !config.allow_risky && !risks.is_empty() {
        return Err(ProgramError::Usage(format!("{}; --allow-risky-update if that is intended", risks.join("; "))));
    }
    if let Some(refusal) = policy.contradicted(&earlier) {
        printer.result(&json!({ "event": "result", "ok": false, "reason": refusal }), &refusal);
        return Ok(false);
    }
    if let Err(refusal) = policy.check()? {
        let result = json!({ "event": "result", "ok": false, "reason": refusal });
        printer.result(&result, &refusal);
        return Ok(false);
    }
    if policy.waiting().is_some_and(|cohort_id| ledger::is_alone(&cohort_id))
        && config.exit_when_done
        && earlier.iter().all(|session| session.ended)
    {
        let reason = "the update is announced without a cohort, in a block that has too few confirmations yet: wait, \
                      and look again";
        printer.result(&json!({ "event": "result", "ok": false, "reason": reason }), reason);
        return Ok(false);
    }
    if let Some(done) = policy.done()
        && config.idle == Idle::Skip
    {
        if config.exit_when_done && earlier.is_empty() {
            announced_before(&done, &printer);
            return Ok(true);
        }
        let (cohort_id, version) = done;
        printer.warn(&format!(
            "version {version} of the DID is announced {} already: no cohort is joined (--idle decline takes \
             part without an update)",
            ledger::of(&cohort_id)
        ));
    }
    let builder = Participant::builder(config.identity.clone(), transport, Arc::new(policy.clone()))
        .timing(config.timing)
        .max_fee_rate(config.terms.max_fee_rate)
        .max_sessions(64)
        .aggregator(Arc::new(DirectAggregator))
        .clock(clock);
    let journal = storage.journal();
    let builder = if storage.is_durable() { builder.journal(journal) } else { builder.transient_journal(journal) };
    let participant = builder.start().await.map_err(|error| ProgramError::Internal(error.to_string()))?;
    let mut events = participant.events();
    let memberships = Memberships::new(participant, &earlier);
    let confirmations =
        config.chain.clone().map(|questions| Confirmations::start(questions, config.identity.did().network()));
    let mut member = Member::new(config, storage, printer.clone(), policy, memberships, confirmations).await;
    member.look_for_earlier(contents.entries);
    let connected = connected(config.connect_timeout, contacts);
    tokio::pin!(reporting, connected);
    // After our signature: the longest time to stay, and the cohort to stay for.
    let mut linger = config
        .linger
        .filter(|_| config.exit_when_done)
        .and_then(|time| Some((Instant::now() + time, member.waits_for()?)));
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            never = &mut reporting => match never {},
            () = &mut stop => return Ok(member.stopped()),
            news = confirmations::next(&mut member.confirmations) => match member.handle(news).await? {
                Turn::Over(ok) => return Ok(ok),
                _ => continue,
            },
            Some(resolved) = member.resolutions.next(), if !member.resolutions.is_empty() => {
                match member.resolved(resolved).await? {
                    Turn::Over(ok) => return Ok(ok),
                    _ => continue,
                }
            }
            problem = &mut connected => {
                let result = json!({ "event": "result", "ok": false, "reason": problem });
                printer.result(&result, &problem);
                return Ok(false);
            }
            () = until(linger.as_ref().map(|(until, _)| *until)) => {
                if let Some((_, cohort_id)) = linger.take() {
                    member.leave(&cohort_id);
                }
                return Ok(false);
            }
        };
        let step = match next {
            Some((_, Event::Notice(step))) => step,
            Some((_, Event::Gap(missed))) => {
                // The decisive ones among them follow.
                printer.missed(missed);
                continue;
            }
            Some(_) => continue,
            None => return Err(ProgramError::Internal("the actors are gone".to_owned())),
        };
        match member.follow(&step).await? {
            Turn::GoOn => {}
            Turn::Signed(cohort_id) => {
                if config.exit_when_done && linger.is_none() {
                    printer.lingering(config.linger);
                    linger = config.linger.map(|time| (Instant::now() + time, cohort_id));
                }
            }
            Turn::Over(ok) => return Ok(ok),
        }
    }
}

/// Ready at that time; never without one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Ready with the problem when `timeout` has passed and no service or relay has answered; otherwise never.
async fn connected(timeout: Option<Duration>, contacts: Contacts) -> String {
    let Some(timeout) = timeout else { return std::future::pending().await };
    if tokio::time::timeout(timeout, contacts.first()).await.is_ok() {
        return std::future::pending().await;
    }
    let time = humantime::format_duration(timeout);
    match contacts.problem() {
        Some(problem) => format!("no service has answered in {time} (--connect-timeout): {problem}"),
        None => format!("no service has answered in {time} (--connect-timeout)"),
    }
}

/// The transport to the service, to the relays, or to both as one.
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
