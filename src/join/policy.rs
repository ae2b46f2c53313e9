//! The decisions of a member of the `join` program: which cohorts, on which terms, with which update.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use serde_json::Value;

pub use super::decision::{Intent, Making, SignError, Source, sign};
use super::{
    decision::{Beacon, Chosen, Decision, LastResolved, NoUpdate},
    ledger::{Ledger, NextUpdate, Standing, of},
    memberships::Earlier,
    slot::Slot,
    terms::Terms,
};
use crate::{
    actors::{
        policy::{ParticipantPolicy, UpdateRequest},
        runtime::Clock,
    },
    cas::{Content, Publication},
    controller::{Current, CurrentError, Settled},
    error::ProgramError,
    events::Printer,
    protocol::{
        cohort::participant::Advert,
        did::Did,
        id::CohortId,
        identity::Identity,
        invite::InviteToken,
        sidecar::MemberRecord,
        update::{SignedUpdate, Submission, refuse_expiring},
    },
};

/// What a member does in cohorts when its update is already announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// It does not join.
    #[default]
    Skip,
    /// It takes part without an update.
    Decline,
}

/// The policy of a member. Clones share the member's slot.
#[derive(Clone)]
pub struct MemberPolicy {
    identity: Identity,
    service: Option<Did>,
    terms: Terms,
    intent: Intent,
    making: Making,
    idle: Idle,
    invite: Option<InviteToken>,
    publication: Publication,
    printer: Printer,
    clock: Clock,
    slot: Arc<Slot>,
    ledger: Arc<Ledger>,
    resolved: Arc<LastResolved>,
    /// Why the update was held back in a cohort that goes on without it.
    withheld: Arc<Mutex<BTreeMap<CohortId, String>>>,
    /// The beacon that this run has announced.
    added: Arc<OnceLock<CohortId>>,
    /// How many adverts were not joined without waiting.
    passed_over: Arc<AtomicUsize>,
    /// Whether the program ends when its cohorts have ended.
    is_ending: Arc<AtomicBool>,
}

/// How many of these adverts are printed.
const PASSED_OVER_SHOWN: usize = 16;

impl MemberPolicy {
    /// A member that joins `service`, or any service, on `terms`, and has not announced anything yet.
    pub fn new(
        identity: Identity,
        service: Option<Did>,
        terms: Terms,
        intent: Intent,
        publication: Publication,
        printer: Printer,
    ) -> Self {
        let initial = identity.initial_document().unwrap_or_default();
        let ledger = Arc::new(Ledger::new(initial, Vec::new(), Vec::new(), []));
        let (slot, added, passed_over, is_ending, resolved, withheld) = Default::default();
        let (idle, invite, clock) = (Idle::default(), None, Clock::system());
        let making = Making::of(&identity);
        Self {
            identity,
            service,
            terms,
            intent,
            making,
            idle,
            invite,
            publication,
            printer,
            clock,
            slot,
            ledger,
            resolved,
            withheld,
            added,
            passed_over,
            is_ending,
        }
    }

    /// Opts in with this invite.
    pub(super) fn invited_by(self, invite: Option<InviteToken>) -> Self {
        Self { invite, ..self }
    }

    /// Makes its update in this way.
    pub(super) fn making(self, making: Making) -> Self {
        Self { making, ..self }
    }

    /// Starts with the updates in `ledger`. `idle` applies when nothing is left to announce.
    pub(super) fn with_ledger(self, ledger: Ledger, idle: Idle) -> Self {
        Self { ledger: Arc::new(ledger), idle, ..self }
    }

    fn decision(&self) -> Decision<'_> {
        Decision {
            did: self.identity.did(),
            intent: &self.intent,
            making: &self.making,
            ledger: &self.ledger,
            resolved: self.resolved.get(),
        }
    }

    /// Resolves the current document, if there is a chain. The updates of the ledger are then what that shows. A chain that does
    /// not answer is asked again.
    pub(super) async fn resolve(&self) -> Result<Option<Current>, CurrentError> {
        self.shown(self.making.current().await?)
    }

    /// The same in a single attempt, however long it takes.
    pub(super) async fn resolve_once(&self) -> Result<Option<Current>, CurrentError> {
        self.shown(self.making.current_once().await?)
    }

    fn shown(&self, current: Option<Current>) -> Result<Option<Current>, CurrentError> {
        if let Some(current) = &current {
            let warnings = self.resolved.renew(current, &self.making, &self.ledger);
            warnings.iter().for_each(|warning| self.printer.warn(warning));
        }
        Ok(current)
    }

    /// Whether an update starts from a document that a chain shows.
    pub(super) fn resolves(&self) -> bool {
        self.making.resolving.is_some() && !matches!(self.intent, Intent::Decline)
    }

    /// Checks that the update can be announced, as far as that is known before a cohort is.
    ///
    /// # Errors
    /// The update leads to a document that no resolver would accept. The inner error: another update of this version may
    /// be announced.
    pub(super) fn check(&self) -> Result<Result<(), String>, ProgramError> {
        let decision = self.decision();
        if self.resolves() && decision.resolved.is_none() {
            // Checked when a cohort asks for the update: the chain did not answer yet.
            return Ok(Ok(()));
        }
        match decision.next_update() {
            Some(NextUpdate::Next { document, version }) => match decision.made(&document, version) {
                Ok(_) => Ok(Ok(())),
                Err(error) => Err(ProgramError::Usage(format!("the update cannot be announced: {error}"))),
            },
            Some(NextUpdate::Blocked(reason)) => Ok(Err(reason)),
            Some(NextUpdate::Done { .. } | NextUpdate::Waiting { .. } | NextUpdate::Again { .. }) | None => {
                Ok(Ok(()))
            }
        }
    }

    /// Why the program must not go on: an open session of an earlier run would sign an update that must not be announced.
    pub(super) fn contradicted(&self, earlier: &[Earlier]) -> Option<String> {
        earlier.iter().filter(|session| !session.ended).find_map(|session| {
            let reason = self.ledger.refuses(&session.cohort_id, session.submitted.as_ref()?)?;
            let cohort_id = &session.cohort_id;
            Some(format!(
                "our update was submitted in cohort {cohort_id}, which is not over, and {reason}: this program would sign it there. \
                 `state export {cohort_id} --forget --out FILE` takes that session out of the state directory"
            ))
        })
    }

    /// Effects that the controller may not intend: of the update on the document, or of the document that it starts
    /// from.
    pub(super) fn risks(&self) -> Vec<String> {
        let decision = self.decision();
        if self.resolves() && decision.resolved.is_none() { Vec::new() } else { decision.all_risks() }
    }

    /// The cohort in which the update is announced, and the version to which it led.
    pub(super) fn done(&self) -> Option<(CohortId, u64)> {
        match self.decision().next_update() {
            Some(NextUpdate::Done { cohort_id, version }) => Some((cohort_id, version)),
            _ => None,
        }
    }

    /// The cohort in which the update is signed, and not confirmed yet.
    pub(super) fn waiting(&self) -> Option<CohortId> {
        match self.decision().next_update() {
            Some(NextUpdate::Waiting { cohort_id }) => Some(cohort_id),
            _ => None,
        }
    }

    /// The update to announce without a cohort, and the document that it starts from: the same update that a cohort may have
    /// announced. `None` if it depends on a cohort, or is announced.
    ///
    /// # Errors
    /// The update cannot be made.
    pub(super) async fn alone(&self) -> Result<Option<(SignedUpdate, Value)>, ProgramError> {
        let text = |reason: &dyn Display| format!("the update cannot be announced alone: {reason}");
        let refuse = |reason: String| ProgramError::Usage(text(&reason));
        self.resolve().await.map_err(|error| match error.is_transient() {
            true => ProgramError::Io { what: "the chain".to_owned(), error: io::Error::other(text(&error)) },
            false => refuse(error.to_string()),
        })?;
        let decision = self.decision();
        let update = match decision.next_update() {
            Some(NextUpdate::Again { update, document, version }) => {
                decision.verified(&update, &document, version).map_err(refuse)?;
                Some((update, document))
            }
            Some(NextUpdate::Next { document, version }) => {
                decision.made(&document, version).map_err(refuse)?.map(|update| (update, document))
            }
            Some(NextUpdate::Done { .. } | NextUpdate::Waiting { .. }) | None => None,
            Some(NextUpdate::Blocked(reason)) => return Err(ProgramError::Usage(reason)),
        };
        if let Some((update, _)) = update.as_ref().filter(|_| !self.making.allow_risky) {
            refuse_expiring(update, self.clock.now()).map_err(|error| refuse(error.to_string()))?;
        }
        Ok(update)
    }

    /// What is settled of the member's updates.
    pub(super) fn settled(&self) -> Vec<Settled> {
        self.ledger.settled()
    }

    fn held_back(&self) -> MutexGuard<'_, BTreeMap<CohortId, String>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the update that was to be announced is not, if it is missing in that record.
    pub(super) fn lacks(&self, record: &MemberRecord) -> Option<String> {
        if record.included() {
            return None;
        }
        if let Some(reason) = self.held_back().get(&record.cohort_id) {
            return Some(reason.clone());
        }
        // The reason was printed by an earlier run.
        let next = self.decision().next_update();
        let is_left = matches!(next, Some(NextUpdate::Next { .. } | NextUpdate::Blocked(_)));
        is_left.then(|| "it was held back in this cohort".to_owned())
    }

    /// Whether the last resolution has applied the update of that cohort.
    pub(super) fn is_in_force(&self, cohort_id: &CohortId, update: &SignedUpdate) -> bool {
        self.ledger.is_in_force(cohort_id, update)
    }

    /// The confirmations with which a signal counts; 1 without a chain.
    pub(super) fn min_conf(&self) -> u32 {
        self.making.resolving.as_ref().map_or(1, |resolving| resolving.min_conf())
    }

    /// Whether updates count as announced that no resolver finds.
    pub(super) fn allows_unlisted(&self) -> bool {
        self.making.allow_unlisted
    }

    /// The member approved this data: its update may be announced from now on.
    pub(super) fn approved(&self, record: &MemberRecord) {
        if let Some(update) = &record.update {
            self.ledger.approved(&record.cohort_id, update);
        }
        if let Some(resolving) = &self.making.resolving {
            // What a record writes are lists.
            let sidecar = record.sidecar(self.identity.genesis_document().map(|document| &**document));
            let _ = resolving.learn(sidecar, &format!("cohort {}", record.cohort_id));
        }
    }

    /// The transaction of that cohort was seen, or is confirmed.
    pub(super) fn is_seen(&self, record: &MemberRecord, standing: Standing) {
        self.ledger.advance(&record.cohort_id, standing);
        if record.included() && self.slot.is_updating(&record.cohort_id) {
            let _ = self.added.set(record.cohort_id.clone());
        }
    }

    /// Its transaction will never be confirmed.
    pub(super) fn is_replaced(&self, cohort_id: &CohortId) {
        self.ledger.never(cohort_id);
    }

    /// The update was given to its controller, to be announced without a cohort.
    pub(super) fn is_prepared(&self, update: &SignedUpdate) {
        self.ledger.prepares(update);
    }

    /// The cohort has formed.
    pub(super) fn is_formed(&self, cohort_id: &CohortId) {
        self.slot.formed(cohort_id);
    }

    /// The cohort has accepted this member.
    pub fn is_accepted(&self, cohort_id: &CohortId) {
        self.slot.accepted(cohort_id);
    }

    /// The cohort was joined in a previous run: no other cohort is joined beside it. With `answered`, our update was
    /// submitted in it: no other cohort gets one.
    pub fn is_in(&self, cohort_id: &CohortId, answered: bool) {
        self.slot.resume(cohort_id, answered);
    }

    /// The cohort is over for this member: the next one may be joined.
    pub fn is_free_again(&self, cohort_id: &CohortId) {
        self.slot.leave(cohort_id);
    }

    /// No other cohort is joined from now on: the program ends with those that it is in, and must not be missing in another.
    pub(super) fn joins_no_more(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// The cohort was reported: what is remembered of it has no further use.
    pub(super) fn forget(&self, cohort_id: &CohortId) {
        self.held_back().remove(cohort_id);
    }

    /// Whether the advert is from the named service and on acceptable terms.
    fn accept(&self, advert: &Advert) -> Result<(), String> {
        if self.service.as_ref().is_some_and(|service| *service != advert.service) {
            return Err("its service is not the one that was named".to_owned());
        }
        self.terms.accept(&advert.conditions)
    }

    fn judge(&self, advert: &Advert) -> Result<(), String> {
        self.accept(advert)?;
        let announced = match (&self.intent, self.added.get()) {
            (Intent::AddBeacon { .. }, Some(cohort_id)) => Some(cohort_id.clone()),
            _ => self.done().map(|(cohort_id, _)| cohort_id).or_else(|| self.waiting()),
        };
        match announced {
            Some(cohort_id) if self.idle == Idle::Skip => Err(format!(
                "our update is announced {} (--idle decline takes part without an update)",
                of(&cohort_id)
            )),
            _ => self.check().unwrap_or_else(|error| Err(error.to_string())),
        }
    }

    /// Publishes the update, if configured.
    ///
    /// # Errors
    /// Why that failed, and the update must not be announced.
    async fn publish(&self, update: &SignedUpdate) -> Result<(), String> {
        let content = Content::try_from(update).map_err(|error| format!("the update is not published: {error}"))?;
        let published = self.publication.publish(&[content]).await;
        let report = published.map_err(|incomplete| format!("the update is not published: {incomplete}"))?;
        for failure in report.failures() {
            self.printer.warn(&format!("the update is not published everywhere: {failure}"));
        }
        Ok(())
    }

    /// The update to submit, or why there is none.
    async fn choose(&self, request: &UpdateRequest) -> Result<Chosen, NoUpdate> {
        if let (Intent::AddBeacon { .. }, Some(cohort_id)) = (&self.intent, self.added.get()) {
            return Err(NoUpdate::Idle(format!("a beacon was added in cohort {cohort_id}")));
        }
        if self.resolves() {
            let current = self.resolve().await;
            current.map_err(|error| NoUpdate::Withheld(format!("the current document is not known: {error}")))?;
        }
        let beacon = Beacon {
            cohort_id: &request.advert.cohort_id,
            beacon_type: request.advert.conditions.beacon_type.as_str(),
            address: request.output.address(),
        };
        self.decision().choose(beacon, self.clock.now())
    }

    fn holds_back(&self, cohort_id: &CohortId, address: &str, reason: String) {
        self.printer.withholds(cohort_id, address, &reason);
        // Another cohort may get it.
        self.slot.release(cohort_id);
        self.held_back().insert(cohort_id.clone(), reason);
    }
}

#[async_trait]
impl ParticipantPolicy for MemberPolicy {
    fn invite(&self) -> Option<InviteToken> {
        self.invite.clone()
    }

    fn considers(&self, advert: &Advert) -> bool {
        let Err(reason) = self.accept(advert) else { return true };
        // Enough to show that a name or a term is wrong. More would let any advertiser fill the output.
        if self.passed_over.fetch_add(1, Ordering::Relaxed) < PASSED_OVER_SHOWN {
            self.printer.passed_over(&advert.cohort_id, &advert.service, &reason);
        }
        false
    }

    async fn should_join(&self, advert: &Advert) -> bool {
        let verdict = match self.judge(advert) {
            // The advert waits for its turn instead of being refused, because the policy is asked only once about it.
            Ok(()) if self.slot.take(&advert.cohort_id).await => {
                // An update that was announced meanwhile must not be announced again.
                let verdict = self.judge(advert);
                if verdict.is_err() {
                    self.slot.leave(&advert.cohort_id);
                }
                verdict
            }
            Ok(()) => Err("too many other cohorts wait for their turn".to_owned()),
            refused => refused,
        };
        match verdict {
            // The program has reported its result, or is about to: nothing is printed after that.
            _ if self.is_ending.load(Ordering::Relaxed) => {
                self.slot.leave(&advert.cohort_id);
                false
            }
            Ok(()) => true,
            Err(reason) => {
                self.printer.passed_over(&advert.cohort_id, &advert.service, &reason);
                false
            }
        }
    }

    async fn should_rejoin(&self, advert: &Advert) -> bool {
        // The terms were accepted before; the slot is free again as soon as the old cohort's end is known.
        self.should_join(advert).await
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        if !self.slot.may_update(&request.advert.cohort_id) {
            self.printer.warn("our update is in another cohort already: declining in this one");
            return None;
        }
        let (cohort_id, address) = (&request.advert.cohort_id, request.output.address());
        // The cohort must not wait for an update that cannot be made: the member declines.
        match self.choose(request).await {
            Ok(chosen) => match self.publish(&chosen.submission.update).await {
                Ok(()) => {
                    self.printer.submits(cohort_id, address, chosen.version, chosen.is_resolved, chosen.is_listed);
                    Some(chosen.submission)
                }
                Err(reason) => {
                    self.holds_back(cohort_id, address, reason);
                    None
                }
            },
            Err(_) if matches!(self.intent, Intent::Decline) => None,
            Err(NoUpdate::Idle(reason)) => {
                self.printer.warn(&format!("no update of ours is submitted, declining: {reason}"));
                None
            }
            Err(NoUpdate::Withheld(reason)) => {
                self.holds_back(cohort_id, address, reason);
                None
            }
        }
    }
}
