//! The updates that the member has approved so far, and therefore may announce next.
//!
//! Two different updates of one version end a DID. An approved update can be announced from then on, whether the member
//! receives the result or not: a transaction that others have signed never expires. An approved update therefore counts
//! as possibly announced, until its transaction was seen, or until its controller states that it never will be
//! (`--supersede`). Meanwhile only the identical update is submitted again, which every resolver ignores as a duplicate
//! (rule R-8).
//!
//! A [resolution](Ledger::resolved) shows which of them are in force. Those of an applied version that are not were
//! superseded.

mod alone;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::{
    actors::state::vault::VaultEntry,
    controller::{Current, Settled, Settlement, standing::ALONE},
    protocol::{
        hash::{DocumentHash, SignalBytes},
        id::CohortId,
        patch::Patch,
        update::SignedUpdate,
    },
};

/// An update that was approved in a cohort.
#[derive(Clone, Debug)]
struct Approval {
    version: u64,
    update: SignedUpdate,
    cohort_id: CohortId,
    standing: Standing,
    /// Whether the last resolution did not apply it, although it counted as announced then.
    denied: bool,
}

impl Approval {
    fn settled(&self, outcome: Settlement) -> Settled {
        Settled { cohort_id: self.cohort_id.clone(), update: *self.update.hash(), outcome }
    }

    fn is_done(&self) -> bool {
        self.standing == Standing::Announced && !self.denied
    }
}

/// What a member wants to announce.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    /// This patch, in an update of its own.
    Patch(&'a Value),
    /// This update.
    Update(&'a SignedUpdate),
}

impl Wanted<'_> {
    /// Whether `update` announces the same.
    fn is(self, update: &SignedUpdate) -> bool {
        match self {
            Self::Patch(patch) => update.value().get("patch") == Some(patch),
            Self::Update(wanted) => {
                wanted == update
                    || matches!((wanted.unsigned_hash(), update.unsigned_hash()), (Ok(one), Ok(other)) if one == other)
            }
        }
    }
}

/// The progress of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Its data was approved: it may be announced from now on.
    Approved,
    /// Its transaction is signed, and there is a chain to confirm it.
    Signed,
    /// It counts as announced: confirmed where there is a chain to ask, else signed.
    Announced,
}

/// What the member may announce next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NextUpdate {
    /// Its update is announced: nothing is left to announce.
    Done {
        /// The cohort, or `singleton`.
        cohort_id: CohortId,
        /// The version to which it led.
        version: u64,
    },
    /// Its update is signed, and not confirmed yet: nothing is to be announced now.
    Waiting {
        /// The cohort.
        cohort_id: CohortId,
    },
    /// This update is possibly announced: it may be submitted again, and no other.
    Again {
        /// The update.
        update: SignedUpdate,
        /// The document that it starts from.
        document: Value,
        /// The version of the document.
        version: u64,
    },
    /// An update of this document and version may be announced.
    Next {
        /// The current document, as far as known.
        document: Value,
        /// Its version.
        version: u64,
    },
    /// Another update of the next version is possibly announced.
    Blocked(String),
}

/// Whether that stands for no cohort.
pub(super) fn is_alone(cohort_id: &CohortId) -> bool {
    cohort_id.as_str() == ALONE
}

/// Where an update was approved, for people.
pub(super) fn of(cohort_id: &CohortId) -> String {
    match cohort_id.as_str() {
        ALONE => "without a cohort (`singleton`)".to_owned(),
        _ => format!("in cohort {cohort_id}"),
    }
}

/// The updates of one member: those in its vault, and those of this run.
pub(crate) struct Ledger {
    /// The initial document of the DID.
    initial: Value,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Cohorts whose updates will never be announced, according to the controller. Only of what is known at the start: it did
    /// not speak of later ones.
    superseded: Vec<CohortId>,
    approvals: Vec<Approval>,
    /// Those in the sessions of a program that does not run now.
    submitted: Vec<(CohortId, SignedUpdate)>,
    settled: Vec<Settled>,
    /// Updates in blocks that are not deep enough, as of the last resolution, and that in words.
    young: Option<(Vec<DocumentHash>, String)>,
    /// Why another update of the next version may be in a block, as of the last resolution.
    unsettled: Option<String>,
}

impl State {
    fn settle(&mut self, settled: Settled) {
        self.settled.retain(|known| (&known.cohort_id, &known.update) != (&settled.cohort_id, &settled.update));
        self.settled.push(settled);
    }

    fn outcome(&self, cohort_id: &CohortId, update: &SignedUpdate) -> Option<Settlement> {
        let mut known = self.settled.iter();
        let known = known.find(|known| known.cohort_id == *cohort_id && known.update == *update.hash());
        known.map(|known| known.outcome)
    }
}

impl Ledger {
    /// The ledger of the vault's entries, of a member whose DID starts with the `initial` document. `settled` is what was
    /// settled before.
    pub(crate) fn new(
        initial: Value,
        superseded: Vec<CohortId>,
        settled: Vec<Settled>,
        entries: impl IntoIterator<Item = (VaultEntry, Standing)>,
    ) -> Self {
        let state = State { superseded, settled, ..State::default() };
        let ledger = Self { initial, state: Mutex::new(state) };
        for (VaultEntry { record, .. }, standing) in entries {
            if let Some(update) = &record.update {
                ledger.approved(&record.cohort_id, update);
            }
            ledger.advance(&record.cohort_id, standing);
        }
        ledger
    }

    /// All that is stored was added: what the controller said of earlier updates does not apply to later ones.
    pub(crate) fn loaded(&self) {
        self.state().superseded.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member approved data with this update.
    pub(crate) fn approved(&self, cohort_id: &CohortId, update: &SignedUpdate) {
        let Some(version) = update.target_version() else { return };
        let mut state = self.state();
        let (cohort_id, update) = (cohort_id.clone(), update.clone());
        let mut approval = Approval { version, update, cohort_id, standing: Standing::Approved, denied: false };
        if state.superseded.contains(&approval.cohort_id) {
            return state.settle(approval.settled(Settlement::Superseded));
        }
        match state.outcome(&approval.cohort_id, &approval.update) {
            Some(Settlement::Superseded) => return,
            Some(Settlement::InForce) => approval.standing = Standing::Announced,
            None => {}
        }
        let same = |known: &Approval| {
            // Without a cohort several may be prepared.
            let alone = is_alone(&approval.cohort_id);
            known.cohort_id == approval.cohort_id
                && known.version == version
                && (!alone || known.update == approval.update)
        };
        if !state.approvals.iter().any(same) {
            state.approvals.push(approval);
        }
    }

    /// Advances the update of that cohort to at least this standing.
    pub(crate) fn advance(&self, cohort_id: &CohortId, standing: Standing) {
        let mut state = self.state();
        for approval in state.approvals.iter_mut().filter(|approval| approval.cohort_id == *cohort_id) {
            if standing > approval.standing {
                (approval.standing, approval.denied) = (standing, false);
            }
        }
    }

    /// Another transaction spent the coin of that cohort: its update will never be announced.
    pub(super) fn never(&self, cohort_id: &CohortId) {
        let mut state = self.state();
        let approvals = std::mem::take(&mut state.approvals).into_iter();
        let (gone, rest): (Vec<_>, Vec<_>) = approvals.partition(|approval| approval.cohort_id == *cohort_id);
        state.approvals = rest;
        gone.iter().for_each(|approval| state.settle(approval.settled(Settlement::Superseded)));
    }

    /// What is settled of all updates that were ever approved.
    pub(crate) fn settled(&self) -> Vec<Settled> {
        self.state().settled.clone()
    }

    /// Whether a resolution has applied the update of that cohort.
    pub(super) fn is_in_force(&self, cohort_id: &CohortId, update: &SignedUpdate) -> bool {
        self.state().outcome(cohort_id, update) == Some(Settlement::InForce)
    }

    /// Applies what a resolution shows. `unsigned` has the unsigned hash of an applied update, if its data are known;
    /// `unlisted` is whether updates count as announced that no resolver finds. Returns what the controller should know.
    pub(super) fn resolved(
        &self,
        current: &Current,
        unsigned: impl Fn(&DocumentHash) -> Option<DocumentHash>,
        unlisted: bool,
    ) -> Vec<String> {
        let is_applied = |approval: &Approval| {
            current.applied.iter().any(|applied| {
                applied.hash == *approval.update.hash()
                    || unsigned(&applied.hash)
                        .is_some_and(|hash| approval.update.unsigned_hash().is_ok_and(|own| own == hash))
            })
        };
        let mut warnings = Vec::new();
        let mut state = self.state();
        state.young = current.young.as_ref().map(|young| {
            let hashes = young.applied.iter().map(|applied| applied.hash).collect();
            let Current { version, .. } = current;
            let text = format!(
                "an update to version {} is in a block with {} confirmations, too few to count: another one of version {} would \
                 end the DID; wait, or use --min-conf",
                young.version,
                young.confirmations,
                version + 1
            );
            (hashes, text)
        });
        state.unsettled.clone_from(&current.unsettled);
        let mut rest = Vec::new();
        for mut approval in std::mem::take(&mut state.approvals) {
            if is_applied(&approval) {
                (approval.standing, approval.denied) = (Standing::Announced, false);
                state.settle(approval.settled(Settlement::InForce));
            } else if approval.version <= current.version {
                warnings.push(format!(
                    "the update of version {} that was approved {} is not the one that resolvers have applied. It must never be \
                     announced at a beacon of the DID: that would end the DID",
                    approval.version,
                    of(&approval.cohort_id)
                ));
                state.settle(approval.settled(Settlement::Superseded));
                continue;
            } else {
                // In force once, and not any more: the chain was reorganized.
                if state.outcome(&approval.cohort_id, &approval.update) == Some(Settlement::InForce) {
                    state.settled.retain(|known| *known != approval.settled(Settlement::InForce));
                }
                approval.denied = approval.standing == Standing::Announced && !unlisted;
            }
            rest.push(approval);
        }
        state.approvals = rest;
        warnings
    }

    /// The controller takes the risk that another update of the next version is in a block: why there is one.
    pub(super) fn risk(&self) -> Option<String> {
        self.state().unsettled.take()
    }

    /// The document to which the announced updates lead, one after the other, and its version.
    pub(crate) fn current(&self) -> (Value, u64) {
        let mut document = self.initial.clone();
        let mut version = 1;
        let state = self.state();
        while let Some(next) = state
            .approvals
            .iter()
            .find(|approval| approval.standing == Standing::Announced && approval.version == version + 1)
        {
            let patched = next.update.value().get("patch").map(Patch::from_value);
            let Some(Ok(target)) = patched.and_then(Result::ok).map(|patch| patch.apply(&document)) else { break };
            (document, version) = (target, version + 1);
        }
        (document, version)
    }

    /// What is wrong with an update that starts from that document and version, as far as known; `None` if no update is
    /// announced.
    pub(crate) fn doubts(&self, document: &Value, version: u64) -> Option<String> {
        let (current, known) = self.current();
        if known == 1 && !self.state().approvals.iter().any(|approval| approval.standing == Standing::Announced) {
            return None;
        }
        if version != known {
            return Some(format!(
                "it starts from version {version}, and the announced updates in the vault lead to version {known}"
            ));
        }
        (*document != current)
            .then(|| format!("it starts from another document than that to which the announced updates in the vault lead (version {known})"))
    }

    /// Whether this update may already be announced.
    pub(crate) fn knows(&self, update: &SignedUpdate) -> bool {
        self.state().approvals.iter().any(|approval| approval.update == *update)
    }

    /// The update with this unsigned hash that may already be announced.
    pub(crate) fn equal(&self, unsigned: &DocumentHash) -> Option<SignedUpdate> {
        let state = self.state();
        let known = state.approvals.iter().map(|known| &known.update);
        let mut known = known.chain(state.submitted.iter().map(|(_, update)| update));
        known.find(|known| known.unsigned_hash().is_ok_and(|hash| hash == *unsigned)).cloned()
    }

    /// The update that a Singleton beacon announces by that signal.
    pub(crate) fn announced_by(&self, signal: &SignalBytes) -> Option<SignedUpdate> {
        let state = self.state();
        let known = state.approvals.iter().find(|known| known.update.hash().as_bytes() == signal.as_bytes());
        known.map(|known| known.update.clone())
    }

    /// Why this signed update must not be announced: another update of its version may be.
    pub(crate) fn contradiction(&self, update: &SignedUpdate) -> Option<String> {
        let version = update.target_version()?;
        let state = self.state();
        let other =
            state.approvals.iter().find(|approval| approval.version == version && approval.update != *update);
        let Some(other) = other else {
            let mut submitted = state.submitted.iter();
            let (cohort_id, _) =
                submitted.find(|(_, other)| other.target_version() == Some(version) && other != update)?;
            return Some(format!(
                "another update of version {version} was submitted in cohort {cohort_id}, where `join` goes on with it; two different \
                 updates of one version end a DID"
            ));
        };
        let what = match other.standing {
            Standing::Approved => "may be announced",
            Standing::Signed => "is signed",
            Standing::Announced => "is announced",
        };
        let place = of(&other.cohort_id);
        Some(format!(
            "another update of version {version} {what} {place}; two different updates of one version end a DID"
        ))
    }

    /// Why the update that was submitted in that cohort must not be signed there.
    pub(super) fn refuses(&self, cohort_id: &CohortId, update: &SignedUpdate) -> Option<String> {
        if self.state().outcome(cohort_id, update) == Some(Settlement::Superseded) {
            return Some(
                "it is superseded: it was stated, or found out, that it will never be announced".to_owned(),
            );
        }
        self.contradiction(update)
    }

    /// This update was submitted in a session of that cohort which may go on: it may be announced, unless it is superseded.
    pub(crate) fn submitted(&self, cohort_id: &CohortId, update: &SignedUpdate) {
        let mut state = self.state();
        if state.superseded.contains(cohort_id) {
            let outcome = Settlement::Superseded;
            state.settle(Settled { cohort_id: cohort_id.clone(), update: *update.hash(), outcome });
        } else if state.outcome(cohort_id, update) != Some(Settlement::Superseded) {
            state.submitted.push((cohort_id.clone(), update.clone()));
        }
    }

    /// What the member may announce next that wants to announce `wanted`, made from `source` if given: the document, and its
    /// version.
    pub(super) fn next_update(&self, wanted: Wanted<'_>, source: Option<&(Value, u64)>) -> NextUpdate {
        let (document, version) = source.cloned().unwrap_or_else(|| self.current());
        let state = self.state();
        let same = || state.approvals.iter().filter(|approval| wanted.is(&approval.update));
        if let Some(Approval { cohort_id, version, .. }) = same().find(|approval| approval.is_done()) {
            return NextUpdate::Done { cohort_id: cohort_id.clone(), version: *version };
        }
        if let Some((young, text)) = &state.young {
            return match same().find(|approval| young.contains(approval.update.hash())) {
                Some(Approval { cohort_id, .. }) => NextUpdate::Waiting { cohort_id: cohort_id.clone() },
                None => NextUpdate::Blocked(text.clone()),
            };
        }
        if let Some(Approval { cohort_id, .. }) = same().find(|approval| approval.standing == Standing::Signed) {
            return NextUpdate::Waiting { cohort_id: cohort_id.clone() };
        }
        if let Some(reason) = &state.unsettled {
            return NextUpdate::Blocked(format!("{reason}; --allow-risky-update announces this one all the same"));
        }
        let next = version.saturating_add(1);
        let mut open = state.approvals.iter().filter(|approval| approval.version == next);
        let other = open.clone().find(|approval| !wanted.is(&approval.update));
        match (other, open.next()) {
            (None, None) => NextUpdate::Next { document, version },
            (None, Some(same)) => NextUpdate::Again { update: same.update.clone(), document, version },
            (Some(other), _) => NextUpdate::Blocked(other.blocks(next)),
        }
    }
}

impl Approval {
    /// Why another update of version `next` must not be announced.
    fn blocks(&self, next: u64) -> String {
        let Self { cohort_id, .. } = self;
        match self.standing {
            Standing::Signed => format!(
                "another update is signed as version {next} in cohort {cohort_id}, and not confirmed yet: the \
                 next update has to start from that version; wait until it is confirmed"
            ),
            Standing::Announced if self.denied => format!(
                "another update of version {next} is confirmed {}, where resolvers did not find it. Announce that one at a beacon of \
                 the current document, or use --supersede {cohort_id} if it is to be dropped",
                of(cohort_id)
            ),
            Standing::Announced => format!(
                "another update is announced as version {next} {}: the next update has \
                 to start from that version (without --source-document it does)",
                of(cohort_id)
            ),
            Standing::Approved => format!(
                "another update of version {next} {} and may still be announced; two different updates of one version end a DID. \
                 {}, use --supersede {cohort_id}",
                if is_alone(cohort_id) {
                    "was given to its controller, to be announced without a cohort,".to_owned()
                } else {
                    format!("was approved in cohort {cohort_id}")
                },
                if is_alone(cohort_id) {
                    "If it was never announced and never will be"
                } else {
                    "If that cohort's coin is spent by another confirmed transaction"
                },
            ),
        }
    }
}

#[cfg(test)]
mod tests;
