//! Which DIDs the operator admits: every DID; or those that are listed, have an invite, or have coins.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use serde::Serialize;

use super::{desk::Desk, funds::Funds, switches::Switches};
use crate::{
    actors::{
        invites::{InviteBook, NotInvited, RedeemError},
        policy::Applicant,
        runtime::Clock,
        standing::policy::SeatApplicant,
    },
    error::ProgramError,
    events::Printer,
    inputs,
    protocol::{cohort::Member, did::Did, id::CohortId, invite::InviteProof},
    standing::operator::SeatAdmission,
};

/// The admission rules of the operator. Clones share their state.
#[derive(Clone)]
pub(crate) struct AdmissionRules {
    rules: Arc<Rules>,
    /// `None` until the chain is connected.
    funds: Option<Funds>,
}

/// What the rules are, for people who want to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Admission {
    /// Whether every DID is admitted.
    pub(crate) everyone: bool,
    /// Whether DIDs that the operator has listed are admitted.
    pub(crate) list: bool,
    /// Whether invites admit.
    pub(crate) invites: bool,
    /// The amount at its initial beacon addresses by which a KEY DID is admitted, in satoshi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) least_funds: Option<u64>,
    /// Whether the operator decides about each candidate.
    pub(crate) by_operator: bool,
    /// Whether a participant must prove that it has its signing key.
    pub(crate) proven_keys_only: bool,
}

impl Admission {
    /// Whether only DIDs are admitted that the operator has chosen before.
    pub(crate) const fn is_restricted(&self) -> bool {
        !self.everyone && self.least_funds.is_none()
    }
}

struct Rules {
    list: Option<AllowList>,
    /// Those of the state directory, if there is one.
    invites: Option<InviteBook>,
    switches: Switches,
    /// Where candidates wait for the operator.
    desk: Desk,
    clock: Clock,
    printer: Printer,
}

/// A file of DIDs.
struct AllowList {
    path: PathBuf,
    read: Mutex<Read>,
}

struct Read {
    stamp: Option<Stamp>,
    dids: Arc<BTreeSet<Did>>,
}

/// What shows that the file has changed: its modification time and length.
type Stamp = (SystemTime, u64);

impl AdmissionRules {
    /// Rules from the DIDs in the file `list` and from `invites`, as far as `switches` let them admit. Without both, and without
    /// [`Self::or_funded`], every DID is admitted.
    pub(super) fn new(
        list: Option<&Path>,
        invites: Option<InviteBook>,
        (switches, desk): (Switches, Desk),
        clock: Clock,
        printer: Printer,
    ) -> Result<Self, ProgramError> {
        let list = list.map(AllowList::open).transpose().map_err(ProgramError::Usage)?;
        Ok(Self { rules: Arc::new(Rules { list, invites, switches, desk, clock, printer }), funds: None })
    }

    /// The same rules, which also admit by `funds`.
    pub(super) fn or_funded(self, funds: Option<Funds>) -> Self {
        Self { funds, ..self }
    }

    /// The rules, for everyone: what an applicant learns from its refusal too.
    pub(super) fn describe(&self) -> Admission {
        let (list, invites) = (self.has_list(), self.invites().is_some());
        let values = self.rules.switches.values();
        Admission {
            everyone: !list && !invites && self.funds.is_none(),
            list,
            invites,
            least_funds: self.funds.as_ref().map(|funds| funds.minimum().to_sat()),
            by_operator: values.manual_admission,
            proven_keys_only: values.proven_keys_only,
        }
    }

    /// Reads the list again, whether or not its stamp has changed. Returns the path of the file, if there is one.
    pub(super) fn reload(&self) -> Option<Result<PathBuf, String>> {
        let list = self.rules.list.as_ref()?;
        Some(list.read_again().map(|()| list.path.clone()))
    }

    /// Whether `applicant` could be admitted. Answered from memory as a rule; no invite is counted.
    pub(super) fn screen(&self, cohort_id: &CohortId, applicant: &Applicant) -> Result<(), String> {
        if self.is_listed(&applicant.did) {
            return Ok(());
        }
        let (Some(book), Some(proof)) = (self.invites(), &applicant.invite) else {
            let Some(funds) = &self.funds else { return Err(self.refusal()) };
            return funds.screen(&applicant.did).map_err(|error| error.to_string());
        };
        // If the list cannot be read, `admit` reports it.
        let Ok(invites) = book.list() else { return Ok(()) };
        let invite = invites.get(&proof.id()).ok_or(NotInvited::Unknown);
        let checked =
            invite.and_then(|invite| invite.check(proof, cohort_id, &applicant.did, self.rules.clock.now()));
        checked.map_err(|error| error.to_string())
    }

    /// Whether `member` is admitted. If it is admitted by an invite, the invite is counted.
    pub(super) async fn admit(&self, cohort_id: &CohortId, member: &Member) -> Result<(), String> {
        if self.rules.switches.values().proven_keys_only && !member.holds_participant_key() {
            return Err(
                "nothing proves that this DID has participantPk: this service admits a participant only if it \
                        signs with the key by which it authenticates"
                    .to_owned(),
            );
        }
        if self.rules.switches.values().manual_admission {
            self.rules.desk.ask(cohort_id, &member.did, None, self.rules.clock.now()).await?;
        }
        if self.is_listed(&member.did) {
            return Ok(());
        }
        let (Some(book), Some(proof)) = (self.invites().cloned(), member.invite.clone()) else {
            let Some(funds) = &self.funds else { return Err(self.refusal()) };
            return funds.check(&member.did).await.map_err(|error| error.to_string());
        };
        self.redeem(book, proof, cohort_id, &member.did).await
    }

    /// Counts the use of an invite.
    async fn redeem(
        &self,
        book: InviteBook,
        proof: InviteProof,
        cohort_id: &CohortId,
        did: &Did,
    ) -> Result<(), String> {
        let (cohort_id, did, now) = (cohort_id.clone(), did.clone(), self.rules.clock.now());
        // The use is counted on disk.
        let redeeming = actix_rt::task::spawn_blocking(move || book.redeem(&proof, &cohort_id, &did, now));
        match redeeming.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(RedeemError::NotInvited(error))) => Err(error.to_string()),
            Ok(Err(error)) => {
                self.rules.printer.warn(&format!("a member with an invite is not admitted: {error}"));
                Err("the invite cannot be checked now; try the next cohort".to_owned())
            }
            Err(error) => {
                tracing::error!(%error, "an invite was not checked");
                Err("the invite cannot be checked now; try the next cohort".to_owned())
            }
        }
    }

    /// The DIDs by which a seat can be listed: that of the seat is of its cohort only.
    fn is_seat_listed(&self, applicant: &SeatApplicant) -> bool {
        [Some(&applicant.did), applicant.applies_as.as_ref()].into_iter().flatten().any(|did| self.is_listed(did))
    }

    fn seat_refusal(&self) -> String {
        match (self.has_list(), self.invites().is_some()) {
            (true, false) => {
                "the operator gives seats to the DIDs on its list: `join --standing --show-identity`, with an --identity that is on it"
            }
            (false, _) => "this service gives seats by invite: `join --standing --invite TOKEN`, with a token of its operator's",
            (true, true) => {
                "the operator gives seats to the DIDs on its list and by invite: `join --standing --show-identity`, or `--invite TOKEN`"
            }
        }
        .to_owned()
    }

    /// Whether this DID is listed, or every DID is admitted.
    fn is_listed(&self, did: &Did) -> bool {
        let of_file = self.rules.list.as_ref().is_some_and(|list| list.contains(did, &self.rules.printer));
        if of_file || self.rules.switches.values().allow_list && self.rules.switches.listed().contains(did) {
            return true;
        }
        !self.has_list() && self.invites().is_none() && self.funds.is_none()
    }

    /// Whether only listed DIDs are admitted without an invite.
    fn has_list(&self) -> bool {
        self.rules.list.is_some() || self.rules.switches.values().allow_list
    }

    /// The invites, if they admit.
    fn invites(&self) -> Option<&InviteBook> {
        self.rules.invites.as_ref().filter(|_| self.rules.switches.values().invites)
    }

    fn refusal(&self) -> String {
        match (self.has_list(), self.invites().is_some()) {
            (true, false) => "this DID is not on the operator's list",
            (false, _) => "this service admits by invite: `join --invite TOKEN`, with a token of its operator's",
            (true, true) => "this DID is not on the operator's list, and has no invite: `join --invite TOKEN`",
        }
        .to_owned()
    }
}

#[async_trait]
impl SeatAdmission for AdmissionRules {
    fn screen(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        if self.is_seat_listed(applicant) {
            return Ok(());
        }
        let (Some(book), Some(proof)) = (self.invites(), &applicant.invite) else {
            let (Some(funds), Some(did)) = (&self.funds, &applicant.applies_as) else {
                return Err(self.seat_refusal());
            };
            return funds.screen(did).map_err(|error| error.to_string());
        };
        // If the list cannot be read, `admit` reports it.
        let Ok(invites) = book.list() else { return Ok(()) };
        let invite = invites.get(&proof.id()).ok_or(NotInvited::Unknown);
        let checked =
            invite.and_then(|invite| invite.check(proof, cohort_id, &applicant.did, self.rules.clock.now()));
        checked.map_err(|error| error.to_string())
    }

    async fn admit(&self, cohort_id: &CohortId, applicant: &SeatApplicant) -> Result<(), String> {
        if self.rules.switches.values().manual_admission {
            let now = self.rules.clock.now();
            self.rules.desk.ask(cohort_id, &applicant.did, applicant.applies_as.as_ref(), now).await?;
        }
        if self.is_seat_listed(applicant) {
            return Ok(());
        }
        let (Some(book), Some(proof)) = (self.invites().cloned(), applicant.invite.clone()) else {
            let (Some(funds), Some(did)) = (&self.funds, &applicant.applies_as) else {
                return Err(self.seat_refusal());
            };
            return funds.check(did).await.map_err(|error| error.to_string());
        };
        self.redeem(book, proof, cohort_id, &applicant.did).await
    }

    async fn release(&self, applicant: &SeatApplicant) {
        let (Some(book), Some(proof)) = (self.rules.invites.clone(), &applicant.invite) else { return };
        let (id, did) = (proof.id(), applicant.did.clone());
        let releasing = actix_rt::task::spawn_blocking(move || book.release(id, &did));
        if let Ok(Err(error)) = releasing.await {
            self.rules.printer.warn(&format!("an invite is counted for a seat that was not given: {error}"));
        }
    }
}

impl AllowList {
    fn open(path: &Path) -> Result<Self, String> {
        let read = Mutex::new(Read { stamp: None, dids: Arc::default() });
        let list = Self { path: path.to_owned(), read };
        list.read_again()?;
        Ok(list)
    }

    /// Reads the file again if its stamp has changed. If the file can no longer be read, the list stays as it is; this
    /// is reported once for each change.
    fn contains(&self, did: &Did, printer: &Printer) -> bool {
        if self.stamp() != self.lock().stamp
            && let Err(problem) = self.read_again()
        {
            printer.warn(&format!("the list of DIDs that are admitted stays as it was: {problem}"));
        }
        self.lock().dids.contains(did)
    }

    fn read_again(&self) -> Result<(), String> {
        // The stamp is taken before the read: a later write is then noticed at the next check.
        let stamp = self.stamp();
        let dids = inputs::text(&self.path).map_err(|error| error.to_string()).and_then(|text| self.parse(&text));
        let mut read = self.lock();
        read.stamp = stamp;
        read.dids = Arc::new(dids?);
        Ok(())
    }

    fn parse(&self, text: &str) -> Result<BTreeSet<Did>, String> {
        let lines = text
            .lines()
            .enumerate()
            .map(|(number, line)| (number + 1, line.split_once('#').map_or(line, |(before, _)| before).trim()));
        lines
            .filter(|(_, line)| !line.is_empty())
            .map(|(number, line)| {
                let refuse =
                    |error| format!("{}, line {number}: a did:btcr2 DID expected: {error}", self.path.display());
                Did::parse(line).map_err(refuse)
            })
            .collect()
    }

    fn stamp(&self) -> Option<Stamp> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    fn lock(&self) -> MutexGuard<'_, Read> {
        // No code panics while the data is half changed.
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
