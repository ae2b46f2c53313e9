//! The state of the running cohorts for lines for people: how many members have contributed, which are missing, and
//! whether a line has to name its cohort.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    actors::notice::{ParticipantNotice, ServiceNotice},
    bitcoin::notice::AnnouncementNotice,
    protocol::{did::Did, id::CohortId, output::BeaconOutput},
};

/// The most cohorts that are followed. Others are shown without counts.
const MOST: usize = 4096;

/// Up to this many missing members are named.
const NAMED: usize = 3;

/// The kinds of contributions; each member makes one of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Update,
    Verdict,
    SignOfLife,
    Nonce,
    Signature,
    Fallback,
}

/// The cohorts that have not ended, according to their notices.
#[derive(Debug, Default)]
pub(super) struct Board {
    cohorts: BTreeMap<CohortId, Cohort>,
    /// The signed cohorts whose announcement is followed.
    announcing: BTreeSet<CohortId>,
}

#[derive(Debug, Default)]
struct Cohort {
    members: BTreeSet<Did>,
    /// The number of members; `None` before it has formed.
    size: Option<usize>,
    /// The number of signatures that the fallback needs.
    threshold: Option<usize>,
    /// Whether members may have been admitted without a notice here, e.g. in a previous run.
    is_partly_known: bool,
    tallies: BTreeMap<Kind, Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    from: BTreeSet<Did>,
    /// Whether the phase was followed from its start.
    is_whole: bool,
}

impl Cohort {
    fn begin(&mut self, kinds: impl IntoIterator<Item = Kind>) {
        for kind in kinds {
            self.tallies.insert(kind, Tally { from: BTreeSet::new(), is_whole: true });
        }
    }

    fn has_formed(&mut self, output: &BeaconOutput) {
        self.size = Some(output.keys().len());
        self.threshold = output.fallback().map(|leaf| leaf.threshold());
    }

    /// Counts a contribution: ` (3 of 5); missing: A, B`.
    fn count(&mut self, kind: Kind, from: &Did) -> String {
        let tally = self.tallies.entry(kind).or_default();
        tally.from.insert(from.clone());
        let count = tally.from.len();
        let needed = match kind {
            Kind::Fallback => self.threshold,
            _ => self.size,
        };
        let at_least = if tally.is_whole { "" } else { "at least " };
        let mut text = match needed {
            Some(needed) if kind == Kind::Fallback => format!(" ({at_least}{count} of the {needed} that it takes)"),
            Some(needed) => format!(" ({at_least}{count} of {needed})"),
            None => format!(" ({at_least}{count})"),
        };
        // Names are shown only if all members are known: the others have not contributed.
        let is_known = tally.is_whole && self.size == Some(self.members.len());
        let enough = needed.is_some_and(|needed| count >= needed);
        let missing: Vec<_> = self.members.difference(&tally.from).map(Did::as_str).collect();
        if is_known && !enough && (1..=NAMED).contains(&missing.len()) {
            text += &format!("; missing: {}", missing.join(", "));
        }
        text
    }
}

impl Board {
    /// Follows a notice of a service. Returns the text to append to its line.
    pub(super) fn service(&mut self, step: &ServiceNotice) -> String {
        use ServiceNotice as N;
        let Some(cohort_id) = step.cohort_id() else { return String::new() };
        if let N::SigningComplete { .. } | N::CohortFailed { .. } = step {
            self.cohorts.remove(cohort_id);
            return String::new();
        }
        // A late notice of an ended cohort must not add the cohort again.
        let begins = matches!(
            step,
            N::CohortAdvertised { .. }
                | N::CohortRecovered { .. }
                | N::CohortReformed { .. }
                | N::KeygenComplete { .. }
        );
        if begins && self.cohorts.len() < MOST {
            self.cohorts.entry(cohort_id.clone()).or_default();
        }
        let Some(cohort) = self.cohorts.get_mut(cohort_id) else { return String::new() };
        match step {
            N::ParticipantAccepted { participant, .. } => {
                cohort.members.insert(participant.clone());
                let at_least = if cohort.is_partly_known { "at least " } else { "" };
                format!(" ({at_least}{} so far)", cohort.members.len())
            }
            N::CohortRecovered { output, .. } => {
                cohort.is_partly_known = true;
                if let Some(output) = output {
                    cohort.has_formed(output);
                }
                String::new()
            }
            N::KeygenComplete { output, .. } => {
                cohort.has_formed(output);
                cohort.begin([Kind::Update]);
                String::new()
            }
            N::DataDistributed { .. } => {
                cohort.begin([Kind::Verdict]);
                String::new()
            }
            N::PresenceRequested { .. } => {
                cohort.begin([Kind::SignOfLife]);
                String::new()
            }
            N::SigningStarted { .. } => {
                cohort.begin([Kind::Nonce, Kind::Signature]);
                String::new()
            }
            N::FallbackStarted { .. } => {
                cohort.begin([Kind::Fallback]);
                String::new()
            }
            N::UpdateReceived { participant, .. } => cohort.count(Kind::Update, participant),
            N::ValidationReceived { participant, approved: true, .. } => cohort.count(Kind::Verdict, participant),
            N::PresenceConfirmed { participant, .. } => cohort.count(Kind::SignOfLife, participant),
            N::NonceReceived { participant, .. } => cohort.count(Kind::Nonce, participant),
            N::PartialSignatureReceived { participant, .. } => cohort.count(Kind::Signature, participant),
            N::FallbackSignatureReceived { participant, .. } => cohort.count(Kind::Fallback, participant),
            _ => String::new(),
        }
    }

    /// Follows a notice of a participant.
    pub(super) fn participant(&mut self, step: &ParticipantNotice) {
        use ParticipantNotice as N;
        match step {
            N::CohortJoined { cohort_id, .. } | N::SessionRecovered { cohort_id, .. }
                if self.cohorts.len() < MOST =>
            {
                self.cohorts.entry(cohort_id.clone()).or_default();
            }
            N::CohortOver { cohort_id, .. } | N::CohortFailed { cohort_id, .. } => {
                self.cohorts.remove(cohort_id);
            }
            _ => {}
        }
    }

    /// Follows a notice of an announcement.
    pub(super) fn announcement(&mut self, step: &AnnouncementNotice) {
        use AnnouncementNotice as N;
        match step {
            N::AnnouncementBroadcast { cohort_id, .. } | N::AnnouncementConfirmed { cohort_id, .. }
                if self.announcing.len() < MOST =>
            {
                self.announcing.insert(cohort_id.clone());
            }
            N::AnnouncementFinal { cohort_id, .. } | N::AnnouncementFailed { cohort_id, .. } => {
                self.announcing.remove(cohort_id);
            }
            _ => {}
        }
    }

    /// Notices were lost: the counts are lower bounds.
    pub(super) fn missed(&mut self) {
        for cohort in self.cohorts.values_mut() {
            cohort.is_partly_known = true;
            cohort.tallies.values_mut().for_each(|tally| tally.is_whole = false);
        }
    }

    /// A line about a cohort: it names the cohort if other cohorts run.
    pub(super) fn name(&self, text: String, cohort_id: Option<&CohortId>) -> String {
        let Some(cohort_id) = cohort_id else { return text };
        let others = |id: &&CohortId| *id != cohort_id;
        let alone = !self.cohorts.keys().chain(&self.announcing).any(|id| others(&id));
        match text.strip_prefix("  ") {
            Some(rest) if !alone => format!("  cohort {cohort_id}: {rest}"),
            _ => text,
        }
    }
}

#[cfg(test)]
mod tests;
