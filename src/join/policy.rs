//! The decisions of a member of the `join` program: which cohorts, on which terms, with which update.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

use super::{
    ledger::{Ledger, NextUpdate, Standing},
    slot::Slot,
    terms::Terms,
};
use crate::{
    actors::policy::{ParticipantPolicy, UpdateRequest},
    cas::{Content, Publication},
    error::ProgramError,
    events::Printer,
    protocol::{
        cohort::participant::Advert,
        did::Did,
        document::{self, Concern},
        id::CohortId,
        identity::Identity,
        invite::InviteToken,
        patch::Patch,
        sidecar::MemberRecord,
        update::{SignedUpdate, Submission, UpdateError, add_beacon_service_patch, build_update, sign_update},
    },
};

/// The document that an update starts from, if it is not the initial one, and its version.
pub type Source = Option<(Value, u64)>;

/// What a member announces.
#[derive(Clone, Debug)]
pub enum Intent {
    /// A patch to its current document.
    Update {
        /// The JSON Patch (RFC 6902).
        patch: Value,
        /// The document that it starts from.
        source: Source,
    },
    /// The cohort's beacon, added to its current document.
    AddBeacon {
        /// The document that it starts from.
        source: Source,
    },
    /// No update.
    Decline,
}

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
    idle: Idle,
    invite: Option<InviteToken>,
    publication: Publication,
    printer: Printer,
    slot: Arc<Slot>,
    ledger: Arc<Ledger>,
    /// The beacon that this run has announced.
    added: Arc<OnceLock<CohortId>>,
    /// How many adverts were not joined without waiting.
    passed_over: Arc<AtomicUsize>,
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
        let ledger = Arc::new(Ledger::new(identity.initial_document().unwrap_or_default(), Vec::new(), []));
        let (slot, added, passed_over) = Default::default();
        let (idle, invite) = (Idle::default(), None);
        Self {
            identity,
            service,
            terms,
            intent,
            idle,
            invite,
            publication,
            printer,
            slot,
            ledger,
            added,
            passed_over,
        }
    }

    /// Opts in with this invite.
    pub(super) fn invited_by(self, invite: Option<InviteToken>) -> Self {
        Self { invite, ..self }
    }

    /// Starts with the updates in `ledger`. `idle` applies when nothing is left to announce.
    pub(super) fn with_ledger(self, ledger: Ledger, idle: Idle) -> Self {
        Self { ledger: Arc::new(ledger), idle, ..self }
    }

    /// Checks that the update can be announced, as far as that is known before a cohort is.
    ///
    /// # Errors
    /// The patch leads to a document that no resolver would accept. The inner error: another update of this version may
    /// be announced.
    pub(super) fn check(&self) -> Result<Result<(), String>, ProgramError> {
        let Intent::Update { patch, source } = &self.intent else { return Ok(Ok(())) };
        match self.next_update(patch, source) {
            NextUpdate::Next { document, version } => match self.sign(patch.clone(), source, document, version) {
                Ok(_) => Ok(Ok(())),
                Err(error) => Err(ProgramError::Usage(format!("the update cannot be made: {error}"))),
            },
            NextUpdate::Blocked(reason) => Ok(Err(reason)),
            NextUpdate::Done { .. } | NextUpdate::Waiting { .. } | NextUpdate::Again { .. } => Ok(Ok(())),
        }
    }

    /// Effects that the controller may not intend: of the update on the document, or of the document that it starts
    /// from.
    pub(super) fn risks(&self) -> Vec<String> {
        let source = match &self.intent {
            Intent::Update { source, .. } | Intent::AddBeacon { source } => source.as_ref(),
            Intent::Decline => None,
        };
        let mut risks: Vec<_> =
            source.and_then(|(document, version)| self.ledger.doubts(document, *version)).into_iter().collect();
        let Intent::Update { patch, source } = &self.intent else { return risks };
        let NextUpdate::Next { document, .. } = self.next_update(patch, source) else { return risks };
        // A patch that does not apply is refused for that reason.
        if let Ok(after) = Patch::from_value(patch).and_then(|patch| patch.apply(&document)) {
            risks.extend(document::concerns(&document, &after).iter().map(Concern::to_string));
        }
        risks
    }

    /// The cohort in which the update is announced, and the version to which it led.
    pub(super) fn done(&self) -> Option<(CohortId, u64)> {
        let Intent::Update { patch, source } = &self.intent else { return None };
        match self.next_update(patch, source) {
            NextUpdate::Done { cohort_id, version } => Some((cohort_id, version)),
            _ => None,
        }
    }

    /// The cohort in which the update is signed, and not confirmed yet.
    pub(super) fn waiting(&self) -> Option<CohortId> {
        let Intent::Update { patch, source } = &self.intent else { return None };
        match self.next_update(patch, source) {
            NextUpdate::Waiting { cohort_id } => Some(cohort_id),
            _ => None,
        }
    }

    /// The update to announce without a cohort: the same update that a cohort may have announced. `None` if it depends
    /// on a cohort, or is announced.
    ///
    /// # Errors
    /// The update cannot be made.
    pub(super) fn alone(&self) -> Result<Option<SignedUpdate>, ProgramError> {
        let Intent::Update { patch, source } = &self.intent else { return Ok(None) };
        match self.next_update(patch, source) {
            NextUpdate::Again { update, .. } => Ok(Some(update)),
            NextUpdate::Next { document, version } => self
                .sign(patch.clone(), source, document, version)
                .map(|submission| Some(submission.update))
                .map_err(|error| ProgramError::Usage(format!("the update cannot be made: {error}"))),
            NextUpdate::Done { .. } | NextUpdate::Waiting { .. } => Ok(None),
            NextUpdate::Blocked(reason) => Err(ProgramError::Usage(reason)),
        }
    }

    fn sign(
        &self,
        patch: Value,
        source: &Source,
        document: Value,
        version: u64,
    ) -> Result<Submission, UpdateError> {
        sign(&self.identity, patch, &starting_from(source, document, version))
    }

    fn next_update(&self, patch: &Value, source: &Source) -> NextUpdate {
        self.ledger.next_update(patch, source.as_ref(), |update| update.value().get("patch") == Some(patch))
    }

    /// The member approved this data: its update may be announced from now on.
    pub(super) fn approved(&self, record: &MemberRecord) {
        if let Some(update) = &record.update {
            self.ledger.approved(&record.cohort_id, update);
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
        self.ledger.prepared(update);
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
                "our update is announced in cohort {cohort_id} (--idle decline takes part without an update)"
            )),
            _ => self.check().unwrap_or_else(|error| Err(error.to_string())),
        }
    }

    /// Publishes the update, if configured. Returns `false` if that failed and the update must not be announced.
    async fn publish(&self, update: &SignedUpdate) -> bool {
        let published = match Content::try_from(update) {
            Ok(content) => self.publication.publish(&[content]).await.map_err(|incomplete| incomplete.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match published {
            Ok(report) => {
                for failure in report.failures() {
                    self.printer.warn(&format!("the update is not published everywhere: {failure}"));
                }
                true
            }
            Err(problem) => {
                self.printer.warn(&format!("the update is not published, declining: {problem}"));
                false
            }
        }
    }

    /// The update to submit, or why there is none.
    fn update(&self, request: &UpdateRequest) -> Result<Submission, String> {
        let (patch, source) = match &self.intent {
            Intent::Decline => return Err("as requested".to_owned()),
            Intent::Update { patch, source } => (patch.clone(), source),
            Intent::AddBeacon { source } => {
                if let Some(cohort_id) = self.added.get() {
                    return Err(format!("a beacon was added in cohort {cohort_id}"));
                }
                let beacon_type = request.advert.conditions.beacon_type.as_str();
                let did = self.identity.did();
                (add_beacon_service_patch(did, beacon_type, request.output.address()), source)
            }
        };
        match self.next_update(&patch, source) {
            NextUpdate::Done { cohort_id, version } => {
                Err(format!("version {version} is announced in cohort {cohort_id}"))
            }
            NextUpdate::Waiting { cohort_id } => Err(format!("it is signed in cohort {cohort_id}")),
            NextUpdate::Blocked(reason) => Err(reason),
            NextUpdate::Again { update, document, version } => {
                self.warn_unless_listed(&document, request);
                Ok(Submission { update, source: source_of(&starting_from(source, document, version)) })
            }
            NextUpdate::Next { document, version } => {
                self.warn_unless_listed(&document, request);
                self.sign(patch, source, document, version).map_err(|error| error.to_string())
            }
        }
    }

    /// Resolvers follow the beacons of the document that an update starts from, and no others (rule C4).
    fn warn_unless_listed(&self, document: &Value, request: &UpdateRequest) {
        let (beacon_type, address) = (request.advert.conditions.beacon_type.as_str(), request.output.address());
        if !document::lists_beacon(document, beacon_type, address) {
            self.printer.warn(&format!(
                "the document that our update starts from does not list {address} as a {beacon_type}: resolvers do not look there, and \
                 find the update only when it is announced from a listed beacon too (`singleton`)"
            ));
        }
    }
}

/// The source document that was given, or that follows from the vault; `None` for the initial one, which every resolver
/// knows.
fn starting_from(source: &Source, document: Value, version: u64) -> Source {
    (source.is_some() || version > 1).then_some((document, version))
}

fn source_of(source: &Source) -> Option<(Arc<Value>, u64)> {
    source.clone().map(|(document, version)| (Arc::new(document), version))
}

/// The update of `identity` with this patch, signed, and verified by every rule of the method.
///
/// # Errors
/// [`UpdateError`], with what no resolver would accept.
pub fn sign(identity: &Identity, patch: Value, source: &Source) -> Result<Submission, UpdateError> {
    // The constructors of an identity have validated this document.
    let initial = || identity.initial_document().unwrap_or(Value::Null);
    let (document, version) = source.clone().unwrap_or_else(|| (initial(), 1));
    let unsigned = build_update(&document, version, patch)?;
    let (method, key) = (identity.verification_method(), identity.secret_key());
    let update = sign_update(&unsigned, identity.did(), method, key, &mut same_bytes_again())?;
    Ok(Submission { update, source: source_of(source) })
}

/// Deterministic randomness for signatures on updates: signing the same update again gives the same hash, so that the
/// update in a cohort and the update that is announced alone after a failure are one document. BIP-340 is safe with any
/// auxiliary randomness, including none.
pub(super) fn same_bytes_again() -> ChaCha20Rng {
    ChaCha20Rng::from_seed([0; 32])
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
        match self.update(request) {
            Ok(submission) if !self.publish(&submission.update).await => None,
            Ok(submission) => Some(submission),
            Err(_) if matches!(self.intent, Intent::Decline) => None,
            Err(reason) => {
                // The cohort must not wait for an update that cannot be made.
                self.printer.warn(&format!("no update of ours is submitted, declining: {reason}"));
                None
            }
        }
    }
}
