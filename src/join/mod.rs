//! A participant as a program: it joins one cohort of a service, with an explicit policy, and keeps what it must keep.

mod alone;
mod ledger;
mod memberships;
mod place;
pub mod policy;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ::bitcoin::Txid;
use actix::Actor;
use serde_json::json;
use tokio::time::Instant;

pub use self::{
    alone::SingletonFallback,
    policy::{Idle, Intent, MemberPolicy, Terms},
};
use self::{
    ledger::Ledger,
    memberships::{Memberships, Outlook},
};
use crate::{
    actors::{
        notice::{Known, Notices, ParticipantNotice},
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
        id::CohortId,
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
    /// Whether lines for people begin with the time.
    pub times: bool,
    /// Whether to stop after the first cohort.
    pub exit_when_done: bool,
    /// How long to stay after signing at most. Without it: until the service says how the cohort ended, or until its own
    /// deadlines, or ours, have passed.
    pub linger: Option<Duration>,
    /// How long to wait for a first answer of any service; for ever when absent.
    pub connect_timeout: Option<Duration>,
    /// What to do in cohorts when our update is announced already.
    pub idle: Idle,
    /// Whether an update may do to its document what its controller may not mean.
    pub allow_risky: bool,
    /// Cohorts in which an update of ours was approved that will never be announced.
    pub superseded: Vec<CohortId>,
    /// The directory in which everything is kept that must outlive the program.
    pub state: Option<PathBuf>,
    /// Where the update is published before it is submitted.
    pub publication: Publication,
    /// What to do when no cohort announces the update.
    pub singleton_fallback: Option<SingletonFallback>,
}

/// Takes part until `stop` is ready, or the first cohort is over if that ends the program. Whether it was signed, as far as this
/// member has seen.
///
/// # Errors
/// [`ProgramError`] when it cannot start, or cannot write what must be kept.
pub async fn run(config: JoinConfig, stop: impl Future<Output = ()>) -> Result<bool, ProgramError> {
    let printer = Printer::new(config.json).with_times(config.times);
    if let Some(directory) = &config.out {
        std::fs::create_dir_all(directory)
            .map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    }
    printer.terms(&config.terms);
    let clock = Clock::system();
    let lost = "what it was signing is lost, and only the fallback can bring that cohort to an end";
    let keeping = Keeping::open(config.state.as_deref(), lost, &printer)?;
    let network = config.identity.did().network();
    keeping.belong_to("join", &config.identity, network, config.terms.to_json(), &printer).await?;
    let outcome = take_part(&config, &keeping, clock, printer, stop).await;
    keeping.close().await;
    outcome
}

async fn take_part(
    config: &JoinConfig,
    keeping: &Keeping,
    clock: Clock,
    printer: Printer,
    stop: impl Future<Output = ()>,
) -> Result<bool, ProgramError> {
    let state = |error: &dyn std::fmt::Display| ProgramError::State(error.to_string());
    let contacts = Contacts::default();
    let reporting = printer.clone().follow(contacts.subscribe());
    let transport = transport(config, clock, &contacts)?;
    let mut entries = Vec::new();
    if let Some(vault) = keeping.vault() {
        for key in vault.list(config.identity.did()).await.map_err(|error| state(&error))? {
            entries.extend(vault.get(&key).await.map_err(|error| state(&error))?);
        }
    }
    // Before the sessions are: what our update is in already decides what they may say.
    let earlier =
        memberships::earlier(&*keeping.journal(), config.identity.did()).await.map_err(|error| state(&error))?;
    let ledger = Ledger::new(config.identity.clone(), config.superseded.clone(), entries);
    for session in &earlier {
        if let Some(update) = &session.approved {
            ledger.approved(&session.cohort_id, update);
        }
        if session.seen {
            ledger.announced(&session.cohort_id);
        }
    }
    let policy = MemberPolicy::new(
        config.identity.clone(),
        config.service_did.clone(),
        config.terms.clone(),
        config.intent.clone(),
        config.publication.clone(),
        printer.clone(),
    )
    .having_said(ledger, config.idle);
    for session in earlier.iter().filter(|session| !session.ended) {
        policy.is_in(&session.cohort_id, session.answered);
    }
    let risks = policy.risks();
    if !config.allow_risky && !risks.is_empty() {
        let risks: Vec<_> = risks.iter().map(ToString::to_string).collect();
        return Err(ProgramError::Usage(format!("{}; --allow-risky-update if that is meant", risks.join("; "))));
    }
    if let Err(refusal) = policy.check()? {
        let result = json!({ "event": "result", "ok": false, "reason": refusal });
        printer.result(&result, &refusal);
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
            "version {version} of the DID is announced in cohort {cohort_id} already: no cohort is joined (--idle decline takes \
             part without an update)"
        ));
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
    let memberships = Memberships::new(participant, &earlier, config.timing.phase_timeout);
    let mut member = Member {
        config,
        keeping,
        printer: printer.clone(),
        policy,
        memberships,
        known: BTreeMap::new(),
        formed: BTreeSet::new(),
    };
    let connected = connected(config.connect_timeout, contacts);
    tokio::pin!(stop, reporting, connected);
    // After our signature: how long we stay at most, and for what.
    let mut linger: Option<(Instant, CohortId)> = None;
    loop {
        let next = tokio::select! {
            next = steps.next() => next,
            never = &mut reporting => match never {},
            () = &mut stop => return Ok(true),
            problem = &mut connected => {
                let result = json!({ "event": "result", "ok": false, "reason": problem });
                printer.result(&result, &problem);
                return Ok(false);
            }
            () = member.memberships.disappointed() => {
                let reason = "the cohort that was to take the failed one's place did not come";
                if member.memberships.give_up() == Outlook::Nothing {
                    printer.result(&json!({ "event": "result", "ok": false, "reason": reason }), reason);
                    if member.nothing()? {
                        return Ok(false);
                    }
                }
                continue;
            }
            () = until(linger.as_ref().map(|(until, _)| *until)) => {
                if let Some((_, cohort_id)) = linger.take() {
                    member.report(&cohort_id, Known::SignedByUs);
                }
                return Ok(false);
            }
        };
        let step = match next {
            Some(Next::Step(step)) => step,
            Some(Next::Missed(missed) | Next::Lost(missed)) => {
                printer.missed(missed);
                continue;
            }
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

/// Whether the program goes on after a step.
enum Turn {
    GoOn,
    /// A signature of ours is out in that cohort.
    Signed(CohortId),
    /// What was asked for is done, or will not be.
    Over(bool),
}

/// What the program knows of its cohorts.
struct Member<'a> {
    config: &'a JoinConfig,
    keeping: &'a Keeping,
    printer: Printer,
    policy: MemberPolicy,
    memberships: Memberships,
    /// What was approved, and its transaction where it was seen.
    known: BTreeMap<CohortId, (Arc<MemberRecord>, Option<Txid>)>,
    /// The cohorts that have formed and are not over.
    formed: BTreeSet<CohortId>,
}

impl Member<'_> {
    async fn follow(&mut self, step: &ParticipantNotice) -> Result<Turn, ProgramError> {
        // Before it is told: what was told is kept.
        match step {
            ParticipantNotice::DataApproved { record, .. } => {
                keep_in_vault(self.config, self.keeping, record, None).await?;
                self.policy.approved(record);
                self.known.entry(record.cohort_id.clone()).or_insert_with(|| (Arc::clone(record), None));
            }
            ParticipantNotice::SignatureSent { record, .. } => {
                keep(self.config, self.keeping, record, None).await?
            }
            ParticipantNotice::CohortComplete { record, txid, .. } => {
                keep(self.config, self.keeping, record, Some(*txid)).await?;
                self.policy.approved(record);
                self.policy.announced(record);
                self.known.insert(record.cohort_id.clone(), (Arc::clone(record), Some(*txid)));
            }
            _ => {}
        }
        self.printer.participant_step(step);
        self.memberships.follow(step);
        Ok(match step {
            ParticipantNotice::OptInAccepted { cohort_id, .. } => {
                self.policy.is_accepted(cohort_id);
                Turn::GoOn
            }
            ParticipantNotice::CohortReady { cohort_id, .. } => {
                self.policy.is_formed(cohort_id);
                self.formed.insert(cohort_id.clone());
                Turn::GoOn
            }
            ParticipantNotice::SignatureSent { cohort_id, .. } if !self.memberships.had_ended(cohort_id) => {
                self.formed.insert(cohort_id.clone());
                Turn::Signed(cohort_id.clone())
            }
            ParticipantNotice::CohortOver { cohort_id, known, .. } => {
                // Whoever is told of an end is told once: put away before it is said.
                self.memberships.archive(cohort_id).await;
                self.over(cohort_id, *known)
            }
            ParticipantNotice::CohortFailed { reason, cohort_id, signed, end, .. } => {
                self.memberships.archive(cohort_id).await;
                self.failed(cohort_id, reason, *signed, end)?
            }
            _ => Turn::GoOn,
        })
    }

    fn over(&mut self, cohort_id: &CohortId, known: Known) -> Turn {
        self.formed.remove(cohort_id);
        self.policy.is_free_again(cohort_id);
        let earlier = self.memberships.leave(cohort_id);
        let ok = self.report(cohort_id, known);
        self.known.remove(cohort_id);
        // Another cohort that has formed needs our signature as well.
        match earlier {
            true => self.told(cohort_id),
            false if self.config.exit_when_done && self.formed.is_empty() => Turn::Over(ok),
            false => Turn::GoOn,
        }
    }

    /// An end that an earlier run was told was told again. When nothing else is left, and nothing to say, that was all.
    fn told(&mut self, cohort_id: &CohortId) -> Turn {
        if self.memberships.is_told(cohort_id)
            && self.config.exit_when_done
            && self.config.idle == Idle::Skip
            && let Some(done) = self.policy.done()
        {
            announced_before(&done, &self.printer);
            return Turn::Over(true);
        }
        Turn::GoOn
    }

    fn failed(
        &mut self,
        cohort_id: &CohortId,
        reason: &str,
        signed: bool,
        end: &SessionEnd,
    ) -> Result<Turn, ProgramError> {
        self.formed.remove(cohort_id);
        self.known.remove(cohort_id);
        self.policy.is_free_again(cohort_id);
        let next = match end {
            SessionEnd::EndedByService { next, .. } => next.as_ref(),
            _ => None,
        };
        let earlier = self.memberships.had_ended(cohort_id);
        if self.memberships.failed(cohort_id, next) == Outlook::GoOn && !earlier {
            return Ok(Turn::GoOn);
        }
        let event = if earlier { "earlier" } else { "result" };
        let known = if signed { "signed-by-us" } else { "failed" };
        let result =
            json!({ "event": event, "ok": false, "known": known, "cohortId": cohort_id, "reason": reason });
        let but = if signed { ". Our signature is out: it can still be announced" } else { "" };
        self.printer.result(&result, &format!("cohort {cohort_id} failed: {reason}{but}"));
        if earlier {
            return Ok(self.told(cohort_id));
        }
        Ok(if self.nothing()? { Turn::Over(false) } else { Turn::GoOn })
    }

    /// How a cohort ended: whether its signed transaction was seen. An end that an earlier run was told is not one of this run.
    fn report(&self, cohort_id: &CohortId, known: Known) -> bool {
        let ok = known == Known::Seen;
        let event = if self.memberships.had_ended(cohort_id) { "earlier" } else { "result" };
        let Some((record, txid)) = self.known.get(cohort_id) else {
            let text = "the cohort is over, and we have approved nothing in it";
            let result =
                json!({ "event": event, "ok": false, "known": known, "cohortId": cohort_id, "reason": text });
            self.printer.result(&result, &format!("cohort {cohort_id}: {text}"));
            return false;
        };
        let mut result = json!({
            "event": event,
            "ok": ok,
            "known": known,
            "cohortId": cohort_id,
            "beaconAddress": record.output.address(),
            "included": record.included(),
            "sidecar": record.sidecar(self.config.identity.genesis_document().map(|document| &**document)),
        });
        if let Some(txid) = txid {
            result["txid"] = json!(txid);
        }
        let what = if record.included() { "our update is in" } else { "we declined; our proof of that is in" };
        let signal = &record.signal;
        let text = match (known, txid) {
            (Known::Seen, Some(txid)) => {
                format!(
                    "{what} the signal {signal}, and its transaction {txid} is signed; see the chain for its confirmations"
                )
            }
            (Known::Reported, _) => format!(
                "{what} the signal {signal}; the service says that its transaction is signed, and has not shown it"
            ),
            _ => format!(
                "{what} the signal {signal}, and our signature is out; whether it is announced is NOT known. Watch {} \
                 (btcr2-aggregation watch)",
                record.output.address()
            ),
        };
        self.printer.result(&result, &format!("cohort {cohort_id}: {text}"));
        ok
    }

    /// No cohort will announce: the member's own announcement is written, if that is wanted. Whether that ends the program.
    fn nothing(&self) -> Result<bool, ProgramError> {
        alone::fall_back(self.config, &self.policy, &self.printer)?;
        Ok(self.config.exit_when_done)
    }
}

/// There is nothing to do: the update was announced in this cohort, as this version.
fn announced_before((cohort_id, version): &(CohortId, u64), printer: &Printer) {
    let result = json!({ "event": "result", "ok": true, "known": "announced-before", "cohortId": cohort_id });
    let text =
        format!("version {version} of the DID is announced in cohort {cohort_id} already: there is nothing to do");
    printer.result(&result, &text);
}

/// Ready at that time; never without one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Ready, with what is wrong, when `timeout` has passed and no service or relay has answered; else never.
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

/// Keeps what was approved in the state directory: from then on it may be announced, whether this program hears of it or not.
async fn keep_in_vault(
    config: &JoinConfig,
    keeping: &Keeping,
    record: &MemberRecord,
    txid: Option<Txid>,
) -> Result<(), ProgramError> {
    let Some(vault) = keeping.vault() else { return Ok(()) };
    let genesis_document = config.identity.genesis_document().map(|document| (**document).clone());
    let entry = VaultEntry { record: record.clone(), genesis_document, transcript: None, txid };
    vault.put(entry).await.map_err(|error| ProgramError::State(error.to_string()))
}

/// Writes `<cohort>.json`: the DID, whether it is included, the sidecar, and the terms of the cohort.
async fn keep(
    config: &JoinConfig,
    keeping: &Keeping,
    record: &MemberRecord,
    txid: Option<Txid>,
) -> Result<(), ProgramError> {
    keep_in_vault(config, keeping, record, txid).await?;
    let Some(directory) = &config.out else { return Ok(()) };
    let mut kept = record.to_file(config.identity.genesis_document().map(|document| &**document));
    kept["cohort"] = json!({
        "cohortId": record.cohort_id,
        "service": record.service,
        "beaconAddress": record.output.address(),
        "signalHex": record.signal,
        "conditions": record.conditions,
        "output": record.output,
        // Absent while the signed transaction was not seen.
        "txid": txid,
    });
    let path = directory.join(format!("{}.json", file_name(&record.cohort_id)));
    let io_error = |error: io::Error| ProgramError::Io { what: path.display().to_string(), error };
    let text = serde_json::to_string_pretty(&kept).map_err(|error| io_error(error.into()))?;
    write_whole(&path, (text + "\n").as_bytes()).map_err(io_error)
}
