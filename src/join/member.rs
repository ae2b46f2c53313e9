//! The member's view of its cohorts: what it stores of them, how it reports their ends, and when it is done.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::Arc,
};

use ::bitcoin::{Transaction, Txid};
use futures::stream::FuturesUnordered;
use serde_json::json;

use super::{
    JoinConfig, MemberPolicy, alone,
    confirmations::{Confirmations, News, Sighting},
    ending::Resolution,
    ledger::Standing,
    memberships::Memberships,
    policy::Idle,
    report::{FailureReport, announced_before},
};
use crate::{
    actors::{
        notice::{Known, ParticipantNotice},
        state::vault::{Vault, VaultEntry},
    },
    error::ProgramError,
    events::Printer,
    files::{file_name, write_whole},
    protocol::{cohort::participant::membership::WithoutCohort, id::CohortId, sidecar::MemberRecord},
    storage::Storage,
};

/// Whether the program continues after a step.
pub(super) enum Turn {
    GoOn,
    /// The member's signature was sent in that cohort.
    Signed(CohortId),
    /// The request is fulfilled, or will not be.
    Over(bool),
}

/// The state of the member's cohorts.
pub(super) struct Member<'a> {
    pub(super) config: &'a JoinConfig,
    pub(super) storage: &'a Storage,
    pub(super) printer: Printer,
    pub(super) policy: MemberPolicy,
    pub(super) memberships: Memberships,
    pub(super) confirmations: Option<Confirmations>,
    /// The approved data, and the transaction if it was seen.
    pub(super) known: BTreeMap<CohortId, (Arc<MemberRecord>, Option<Txid>)>,
    /// The cohorts that are over, and whose transaction is not confirmed yet.
    waiting: BTreeMap<CohortId, Known>,
    /// The cohorts that are over, whose transaction is confirmed, and whose update is looked for as a resolver does it.
    pub(super) resolving: BTreeMap<CohortId, Known>,
    pub(super) resolutions: FuturesUnordered<Resolution>,
    /// The cohorts that have formed and are not over.
    formed: BTreeSet<CohortId>,
    /// Those of them in which the member's signature was sent.
    signed: BTreeSet<CohortId>,
    /// The latest cohorts that failed, and their results: reported if no other cohort is left.
    failures: VecDeque<(CohortId, FailureReport)>,
}

/// The number of failures that are stored. The notice of being left without a cohort follows at once.
const FAILURES: usize = 16;

impl<'a> Member<'a> {
    /// A member in the cohorts of its previous runs.
    pub(super) async fn new(
        config: &'a JoinConfig,
        storage: &'a Storage,
        printer: Printer,
        policy: MemberPolicy,
        memberships: Memberships,
        confirmations: Option<Confirmations>,
    ) -> Self {
        let formed = memberships.formed().await;
        let (known, waiting, signed, failures, resolving) = Default::default();
        let resolutions = FuturesUnordered::new();
        Self {
            config,
            storage,
            printer,
            policy,
            memberships,
            confirmations,
            known,
            waiting,
            resolving,
            resolutions,
            formed,
            signed,
            failures,
        }
    }

    /// Looks on the chain for transactions that previous runs have approved, and have not seen confirmed.
    pub(super) fn look_for_earlier(&mut self, entries: Vec<VaultEntry>) {
        let Some(confirmations) = &self.confirmations else { return };
        let waited_for = self.policy.waiting();
        for VaultEntry { record, txid, confirmed_height, .. } in entries {
            let cohort_id = record.cohort_id.clone();
            if confirmed_height.is_some() || record.update.is_none() || self.config.superseded.contains(&cohort_id)
            {
                continue;
            }
            let record = Arc::new(record);
            confirmations.look_for(&record, None);
            if waited_for.as_ref() == Some(&cohort_id) {
                self.printer.waits_for_confirmations(&cohort_id, txid, confirmations.needed());
                self.waiting.insert(cohort_id.clone(), Known::Seen);
            }
            self.known.insert(cohort_id, (record, txid));
        }
    }

    pub(super) async fn follow(&mut self, step: &ParticipantNotice) -> Result<Turn, ProgramError> {
        // Persisted before it is printed.
        match step {
            ParticipantNotice::DataApproved { record, .. } => {
                self.store_in_vault(record, None, None).await?;
                self.policy.approved(record);
                self.known.entry(record.cohort_id.clone()).or_insert_with(|| (Arc::clone(record), None));
            }
            ParticipantNotice::SignatureSent { record, .. } => {
                self.store(record, None, None).await?;
                self.look_for(record, None);
            }
            ParticipantNotice::CohortComplete { record, txid, transaction, .. } => {
                self.store(record, Some(*txid), None).await?;
                self.policy.approved(record);
                self.policy.is_seen(record, self.signed());
                self.known.insert(record.cohort_id.clone(), (Arc::clone(record), Some(*txid)));
                self.look_for(record, Some(transaction));
            }
            _ => {}
        }
        self.printer.participant_step(step);
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
                self.signed.insert(cohort_id.clone());
                Turn::Signed(cohort_id.clone())
            }
            ParticipantNotice::CohortOver { cohort_id, known, service, .. } => {
                // The end of a cohort is printed only once: archive it before it is printed.
                self.memberships.archive(service, cohort_id).await;
                self.over(cohort_id, *known).await?
            }
            ParticipantNotice::CohortFailed { reason, cohort_id, signed, service, .. } => {
                self.memberships.archive(service, cohort_id).await;
                self.failed(cohort_id, reason, *signed).await?
            }
            ParticipantNotice::WithoutCohort { cohort_id, cause, .. } => {
                self.without_cohort(cohort_id, *cause).await?
            }
            _ => Turn::GoOn,
        })
    }

    async fn over(&mut self, cohort_id: &CohortId, known: Known) -> Result<Turn, ProgramError> {
        self.formed.remove(cohort_id);
        self.signed.remove(cohort_id);
        let earlier = self.memberships.had_ended(cohort_id);
        if self.config.exit_when_done && !earlier {
            self.policy.joins_no_more();
        }
        self.policy.is_free_again(cohort_id);
        if !earlier && self.is_waited_for(cohort_id) {
            self.waits(cohort_id, known);
            return Ok(Turn::GoOn);
        }
        let lacks = self.known.get(cohort_id).is_some_and(|(record, _)| self.policy.lacks(record).is_some());
        let Some(ok) = self.end(self.event_of(cohort_id), cohort_id, known) else { return Ok(Turn::GoOn) };
        self.forget(cohort_id);
        if earlier {
            return Ok(self.repeated_end(cohort_id).await);
        }
        if lacks && self.formed.is_empty() {
            alone::fall_back(self.config, &self.policy, self.storage, &self.printer).await?;
        }
        Ok(self.reported(ok))
    }

    /// Removes a cohort that was reported, unless the chain may still change its end.
    pub(super) fn forget(&mut self, cohort_id: &CohortId) {
        self.policy.forget(cohort_id);
        if self.confirmations.is_none() || !self.is_waited_for(cohort_id) {
            self.known.remove(cohort_id);
        }
    }

    /// A cohort of a previous run whose transaction this run waits for.
    pub(super) fn waits_for(&self) -> Option<CohortId> {
        self.waiting.keys().next().cloned()
    }

    /// A result was printed: returns whether it was the last. Another cohort that has formed needs our signature as
    /// well.
    pub(super) fn reported(&self, ok: bool) -> Turn {
        let is_last = self.formed.is_empty() && self.waiting.is_empty() && self.resolving.is_empty();
        match self.config.exit_when_done && is_last {
            true => Turn::Over(ok),
            false => Turn::GoOn,
        }
    }

    /// A signed transaction counts as announced; with a chain, only when it is confirmed.
    fn signed(&self) -> Standing {
        if self.confirmations.is_some() { Standing::Signed } else { Standing::Announced }
    }

    fn look_for(&self, record: &Arc<MemberRecord>, transaction: Option<&Transaction>) {
        if let Some(confirmations) = &self.confirmations {
            confirmations.look_for(record, transaction);
        }
    }

    /// Whether the end of that cohort still depends on the chain.
    fn is_waited_for(&self, cohort_id: &CohortId) -> bool {
        let Some(confirmations) = &self.confirmations else { return false };
        let settled = confirmations.sighting(cohort_id).is_some_and(|sighting| confirmations.is_settled(sighting));
        self.known.contains_key(cohort_id) && !settled
    }

    /// Whether the announcement of that cohort is on the chain or in the mempool.
    fn is_in_sight(&self, cohort_id: &CohortId) -> bool {
        let sighting = self.confirmations.as_ref().and_then(|confirmations| confirmations.sighting(cohort_id));
        matches!(sighting, Some(Sighting::Mempool(_) | Sighting::Block { .. }))
    }

    fn waits(&mut self, cohort_id: &CohortId, known: Known) {
        let needed = self.confirmations.as_ref().map_or(0, Confirmations::needed);
        let txid = self.known.get(cohort_id).and_then(|(_, txid)| *txid);
        self.printer.waits_for_confirmations(cohort_id, txid, needed);
        self.waiting.insert(cohort_id.clone(), known);
    }

    /// Handles a result of the chain.
    pub(super) async fn handle(&mut self, news: News) -> Result<Turn, ProgramError> {
        let (cohort_id, sighting) = match news {
            News::Sighted(cohort_id, sighting) => (cohort_id, sighting),
            News::Silent(error) => {
                self.printer.warn(&format!("the chain does not answer: {error}; it is queried again"));
                return Ok(Turn::GoOn);
            }
            News::Answers => {
                self.printer.warn("the chain answers again");
                return Ok(Turn::GoOn);
            }
            News::Unusable(error) => return Err(ProgramError::Usage(format!("--chain: {error}"))),
        };
        let Some(confirmations) = &self.confirmations else { return Ok(Turn::GoOn) };
        let (needed, settled) = (confirmations.needed(), confirmations.is_settled(sighting));
        let Some((record, txid)) = self.known.get(&cohort_id).cloned() else { return Ok(Turn::GoOn) };
        match sighting {
            Sighting::Mempool(_) => self.policy.is_seen(&record, Standing::Signed),
            Sighting::Block { height, .. } if settled => {
                self.store(&record, txid, Some(height)).await?;
                self.policy.is_seen(&record, Standing::Announced);
            }
            Sighting::Block { .. } => self.policy.is_seen(&record, Standing::Signed),
            Sighting::Replaced(_) => self.policy.is_replaced(&cohort_id),
            Sighting::Gone => {}
        }
        self.printer.sighted(&cohort_id, sighting, needed);
        if !settled {
            return Ok(Turn::GoOn);
        }
        let known = match self.waiting.remove(&cohort_id) {
            Some(known) => known,
            // A previous run has signed it, and did not learn more.
            None if self.is_all_done_by(&cohort_id) => Known::SignedByUs,
            None => return Ok(Turn::GoOn),
        };
        self.settle().await?;
        let Some(ok) = self.end("result", &cohort_id, known) else { return Ok(Turn::GoOn) };
        self.policy.forget(&cohort_id);
        self.known.remove(&cohort_id);
        if !ok && self.formed.is_empty() {
            alone::fall_back(self.config, &self.policy, self.storage, &self.printer).await?;
        }
        Ok(self.reported(ok))
    }

    /// Whether nothing is left to do because that cohort, of a previous run, has announced our update.
    fn is_all_done_by(&self, cohort_id: &CohortId) -> bool {
        self.config.exit_when_done
            && self.config.idle == Idle::Skip
            && self.formed.is_empty()
            && self.policy.done().is_some_and(|(done, _)| done == *cohort_id)
    }

    /// The time to stay is over: reports what is known of that cohort, and of those that are not confirmed yet.
    pub(super) fn leave(&mut self, cohort_id: &CohortId) {
        let waiting = std::mem::take(&mut self.waiting);
        if !waiting.contains_key(cohort_id) && !self.resolving.contains_key(cohort_id) {
            self.report(cohort_id, Known::SignedByUs);
        }
        let resolving = std::mem::take(&mut self.resolving);
        for (cohort_id, known) in waiting.iter().chain(&resolving) {
            self.report(cohort_id, *known);
        }
    }

    /// The operator stops the program: returns whether it ends successfully. It does not while our signature is sent
    /// and the outcome is open: a caller that waits for a cohort's end must learn that it did not get one.
    pub(super) fn stopped(&self) -> bool {
        let open: Vec<&str> = self
            .signed
            .iter()
            .chain(self.waiting.keys())
            .chain(self.resolving.keys())
            .map(CohortId::as_str)
            .collect();
        if open.is_empty() {
            return true;
        }
        let text = format!(
            "stopped before the announcement was seen or confirmed: our signature was sent in {}",
            open.join(", ")
        );
        if self.config.exit_when_done {
            self.printer.result(&json!({ "event": "result", "ok": false, "reason": text }), &text);
            return false;
        }
        self.printer.warn(&text);
        true
    }

    /// A repeated notice of an end that a previous run received. If nothing else is left, and there is nothing to
    /// announce, it was the last.
    async fn repeated_end(&mut self, cohort_id: &CohortId) -> Turn {
        if self.memberships.end_is_repeated(cohort_id).await
            && self.config.exit_when_done
            && self.config.idle == Idle::Skip
            && let Some(done) = self.policy.done()
        {
            announced_before(&done, &self.printer);
            return Turn::Over(true);
        }
        Turn::GoOn
    }

    async fn failed(&mut self, cohort_id: &CohortId, reason: &str, signed: bool) -> Result<Turn, ProgramError> {
        self.formed.remove(cohort_id);
        self.signed.remove(cohort_id);
        self.policy.is_free_again(cohort_id);
        if signed && self.is_in_sight(cohort_id) {
            // The service is wrong, or does not know: the chain has our signal.
            return self.over(cohort_id, Known::SignedByUs).await;
        }
        self.policy.forget(cohort_id);
        if !signed || self.confirmations.is_none() {
            self.known.remove(cohort_id);
        }
        let report = FailureReport { reason: reason.to_owned(), signed };
        if self.memberships.had_ended(cohort_id) {
            report.print("earlier", cohort_id, &self.printer);
            return Ok(self.repeated_end(cohort_id).await);
        }
        if self.failures.len() >= FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back((cohort_id.clone(), report));
        Ok(Turn::GoOn)
    }

    /// No cohort is left: `cohort_id` failed, or is a successor that was not joined in time.
    async fn without_cohort(&mut self, cohort_id: &CohortId, cause: WithoutCohort) -> Result<Turn, ProgramError> {
        let failures = std::mem::take(&mut self.failures);
        match cause {
            WithoutCohort::CohortFailed => {
                let Some((_, report)) = failures.iter().rfind(|(failed, _)| failed == cohort_id) else {
                    // The chain has its announcement.
                    return Ok(Turn::GoOn);
                };
                report.print("result", cohort_id, &self.printer);
            }
            WithoutCohort::SuccessorMissed => {
                let reason = "the successor of the failed cohort was not advertised in time";
                self.printer.result(&json!({ "event": "result", "ok": false, "reason": reason }), reason);
            }
        }
        Ok(if self.no_cohort().await? { Turn::Over(false) } else { Turn::GoOn })
    }

    /// Stores the approved data in the state directory: it may be announced from then on, whether this program receives
    /// the result or not.
    async fn store_in_vault(
        &self,
        record: &MemberRecord,
        txid: Option<Txid>,
        confirmed_height: Option<u32>,
    ) -> Result<(), ProgramError> {
        let Some(vault) = self.storage.vault() else { return Ok(()) };
        let genesis_document = self.config.identity.genesis_document().map(|document| (**document).clone());
        let record = record.clone();
        let entry = VaultEntry { record, genesis_document, transcript: None, txid, confirmed_height };
        vault.put(entry).await.map_err(|error| ProgramError::State(error.to_string()))
    }

    /// Writes `<cohort>.json`: the DID, whether it is included, the sidecar, and the terms of the cohort.
    async fn store(
        &self,
        record: &MemberRecord,
        txid: Option<Txid>,
        confirmed_height: Option<u32>,
    ) -> Result<(), ProgramError> {
        self.store_in_vault(record, txid, confirmed_height).await?;
        let Some(directory) = &self.config.out else { return Ok(()) };
        let mut document = record.to_file(self.config.identity.genesis_document().map(|document| &**document));
        document["cohort"] = json!({
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
        let text = serde_json::to_string_pretty(&document).map_err(|error| io_error(error.into()))?;
        write_whole(&path, (text + "\n").as_bytes()).map_err(io_error)
    }

    /// No cohort will announce: writes the member's own announcement, if configured. Returns whether that ends the
    /// program.
    async fn no_cohort(&self) -> Result<bool, ProgramError> {
        alone::fall_back(self.config, &self.policy, self.storage, &self.printer).await?;
        Ok(self.config.exit_when_done)
    }
}
