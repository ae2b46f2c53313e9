//! The terms of a standing cohort, fixed for the life of its address (docs/standing.md, "Formation and terms"), and what a member
//! accepts of them.

use serde::{Deserialize, Serialize};

use super::limits::{MAX_PART_BYTES, MAX_PEERS};
use crate::{
    beacon::BeaconType,
    cohort::conditions::ConditionProblem,
    message::keygen::Cost,
    names::named,
    network::Network,
    output::{MAX_FALLBACK_KEYS, ScriptTree},
    resolution::BeaconKind,
};

macro_rules! parsed {
    ($type:ident, $expected:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let found = Self::ALL.iter().find(|one| one.as_str() == text);
                found.copied().ok_or_else(|| serde::de::Error::custom(concat!($expected, " expected")))
            }
        }
    };
}

named! {
    /// The beacon of a standing cohort.
    StandingBeacon {
        /// A CAS Announcement.
        Cas = "CASBeacon",
        /// A sparse Merkle tree.
        Smt = "SMTBeacon",
    }
}
parsed!(StandingBeacon, "CASBeacon or SMTBeacon");

impl StandingBeacon {
    /// As resolvers know it.
    pub const fn kind(self) -> BeaconKind {
        match self {
            Self::Cas => BeaconKind::Cas,
            Self::Smt => BeaconKind::Smt,
        }
    }

    /// As messages of one-time cohorts name it.
    pub fn beacon_type(self) -> BeaconType {
        match self {
            Self::Cas => BeaconType::cas(),
            Self::Smt => BeaconType::smt(),
        }
    }
}

named! {
    /// What the service receives of an update.
    Updates {
        /// The update, which it verifies.
        Full = "full",
        /// Its hash; then only the member checks rules U.
        Hash = "hash",
    }
}
parsed!(Updates, "full or hash");

named! {
    /// Who may register an index.
    Registration {
        /// Who proves control of the DID.
        Proven = "proven",
        /// Every seat: the service sees indexes alone.
        Blind = "blind",
    }
}
parsed!(Registration, "proven or blind");

named! {
    /// What happens when a seat is absent.
    Absent {
        /// All wait for it: only all seats together can spend.
        Wait = "wait",
        /// After the deadline it counts as "no update", and k seats sign.
        Proceed = "proceed",
    }
}
parsed!(Absent, "wait or proceed");

/// The terms of a standing cohort. All are in its advert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StandingTerms {
    /// How updates are aggregated.
    pub beacon_type: StandingBeacon,
    /// The Bitcoin network.
    pub network: Network,
    /// The least number of seats.
    pub min_participants: u16,
    /// The greatest number of seats.
    pub max_participants: u16,
    /// The least number of DIDs of a seat, from the first opportunity on.
    pub min_dids_per_participant: u32,
    /// The greatest number of DIDs of a seat.
    pub max_dids_per_participant: u32,
    /// The shortest time between the openings of two announced opportunities, in seconds.
    pub min_seconds_between_announcements: u32,
    /// The longest time between two opportunities, in seconds, if any. It bounds opportunities: one without updates is not announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds_between_announcements: Option<u32>,
    /// The number of seats with pending updates at which an opportunity opens before the longest time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_update_trigger: Option<u16>,
    /// What the service receives of updates.
    pub updates: Updates,
    /// Who may register an index.
    pub registration: Registration,
    /// What happens when a seat is absent.
    pub absent: Absent,
    /// k, of a cohort that proceeds without absent seats; none in one that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_threshold: Option<u16>,
    /// How long a seat may take to respond to an opportunity, in seconds.
    pub respond_seconds: u32,
    /// How long a seat may take to confirm, in seconds.
    pub confirm_seconds: u32,
    /// The highest fee rate of an announcement, in sat/vB.
    pub max_fee_rate: u32,
    /// The most that the operator's own output of an announcement may hold, in satoshi.
    pub max_operator_output: u32,
    /// How many announcements may be unconfirmed at once, 1..=20.
    pub max_unconfirmed: u8,
    /// The price of joining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_of_enrollment: Option<Cost>,
    /// The price of each announcement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_per_announcement: Option<Cost>,
}

/// The most announcements that may be unconfirmed at once: nodes refuse longer chains.
pub const MAX_UNCONFIRMED: u8 = 20;

impl StandingTerms {
    /// Terms of a cohort of `min` to `max` seats that waits for every seat, with the defaults of everything else: announcements at
    /// least an hour apart, 1 to 1,000 DIDs of a seat, full updates, proven registration, ten minutes to respond and to confirm.
    pub fn new(beacon_type: StandingBeacon, network: Network, min: u16, max: u16) -> Self {
        Self {
            beacon_type,
            network,
            min_participants: min,
            max_participants: max,
            min_dids_per_participant: 1,
            max_dids_per_participant: 1_000,
            min_seconds_between_announcements: 3_600,
            max_seconds_between_announcements: None,
            pending_update_trigger: None,
            updates: Updates::Full,
            registration: Registration::Proven,
            absent: Absent::Wait,
            fallback_threshold: None,
            respond_seconds: 600,
            confirm_seconds: 600,
            max_fee_rate: 100,
            max_operator_output: 10_000,
            max_unconfirmed: 4,
            cost_of_enrollment: None,
            cost_per_announcement: None,
        }
    }

    /// The same terms of a cohort in which `threshold` seats proceed without the others.
    #[must_use]
    pub fn proceeding(mut self, threshold: u16) -> Self {
        (self.absent, self.fallback_threshold) = (Absent::Proceed, Some(threshold));
        self
    }

    /// Every contradiction in the terms. A service checks its own before it advertises them, a member those of an advert.
    pub fn problems(&self) -> Vec<ConditionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |wrong: bool, field: &'static str, problem: &str| {
            if wrong {
                problems.push(ConditionProblem { field, problem: problem.to_owned() });
            }
        };
        refuse(self.min_participants == 0, "minParticipants", "at least 1 expected");
        refuse(self.max_participants < self.min_participants, "maxParticipants", "below minParticipants");
        refuse(self.max_dids_per_participant == 0, "maxDidsPerParticipant", "at least 1 expected");
        refuse(
            self.max_dids_per_participant < self.min_dids_per_participant,
            "maxDidsPerParticipant",
            "below minDidsPerParticipant",
        );
        refuse(
            self.min_seconds_between_announcements == 0,
            "minSecondsBetweenAnnouncements",
            "at least 1 expected: it bounds what an announcement may cost",
        );
        refuse(
            self.max_seconds_between_announcements.is_some_and(|max| max < self.min_seconds_between_announcements),
            "maxSecondsBetweenAnnouncements",
            "below minSecondsBetweenAnnouncements",
        );
        refuse(self.pending_update_trigger == Some(0), "pendingUpdateTrigger", "at least 1 expected");
        refuse(
            self.pending_update_trigger.is_some_and(|trigger| trigger > self.max_participants),
            "pendingUpdateTrigger",
            "above maxParticipants: a seat counts once",
        );
        refuse(
            self.registration == Registration::Blind
                && (self.beacon_type != StandingBeacon::Smt || self.updates != Updates::Hash),
            "registration",
            "blind is possible with an SMTBeacon and updates: hash only",
        );
        match (self.absent, self.fallback_threshold) {
            (Absent::Wait, Some(_)) => {
                refuse(true, "fallbackThreshold", "not in a cohort that waits for every seat")
            }
            (Absent::Proceed, None) => refuse(true, "fallbackThreshold", "missing in a cohort that proceeds"),
            (Absent::Proceed, Some(k)) => {
                refuse(k == 0, "fallbackThreshold", "at least 1 expected");
                refuse(k >= self.min_participants, "fallbackThreshold", "below minParticipants expected");
                refuse(
                    usize::from(self.max_participants) > MAX_FALLBACK_KEYS,
                    "maxParticipants",
                    "at most 999 seats with a fallback",
                );
            }
            (Absent::Wait, None) => {}
        }
        for (field, seconds) in [("respondSeconds", self.respond_seconds), ("confirmSeconds", self.confirm_seconds)]
        {
            refuse(seconds == 0, field, "at least 1 expected");
        }
        refuse(self.max_fee_rate == 0, "maxFeeRate", "at least 1 expected");
        refuse(
            !(1..=MAX_UNCONFIRMED).contains(&self.max_unconfirmed),
            "maxUnconfirmed",
            "1 to 20 expected: nodes refuse longer chains",
        );
        problems
    }

    /// The script paths of the cohort's output.
    pub fn script_tree(&self) -> ScriptTree {
        match self.fallback_threshold {
            Some(threshold) => ScriptTree::FallbackOnly { threshold },
            None => ScriptTree::KeyPathOnly,
        }
    }

    /// About how long the longest message of a cohort of these terms is, in bytes of JSON: the keys of all seats with some DIDs, an opportunity with the signed
    /// transactions from the last confirmed coin, or a part of a board.
    pub fn longest_message(&self) -> usize {
        const FRAME: usize = 2_048;
        let seats = usize::from(self.max_participants);
        // Version, input, three outputs; then the witness: the script and control block, k signatures, empty pushes for the others.
        let witness = self.fallback_threshold.map_or(66, |k| 34 * seats + 40 + 65 * usize::from(k) + seats);
        let transactions = usize::from(self.max_unconfirmed) * 2 * (250 + witness);
        let rows = MAX_PART_BYTES.saturating_sub(transactions);
        (seats * 70 + seats.min(MAX_PEERS) * 80).max(transactions + rows).max(MAX_PART_BYTES) + FRAME
    }

    /// How many seats of `seats` can spend, and so can end every DID of the cohort: k, or all of them.
    pub fn spenders(&self, seats: usize) -> usize {
        self.fallback_threshold.map_or(seats, usize::from)
    }
}

/// What a member accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StandingPolicy {
    /// The least k/n: k seats together, the operator's own included, can spend and can end every DID.
    pub least_threshold: (u16, u16),
    /// The most seats of a cohort that waits for every one of them.
    pub most_seats_to_wait_for: u16,
    /// The highest fee rate, in sat/vB.
    pub max_fee_rate: u32,
    /// The most that the operator's output of an announcement may hold, in satoshi: it comes out of the shared coin.
    pub max_operator_output: u32,
    /// The shortest time between announcements that is accepted, in seconds.
    pub least_seconds_between_announcements: u32,
    /// The least time to respond and to confirm, in seconds.
    pub least_seconds_to_answer: u32,
    /// Whether the service may receive hashes only: then this member alone checks its updates.
    pub accepts_hashes: bool,
    /// Whether others may register an index without control of its DID.
    pub accepts_blind: bool,
    /// The most that joining, and each announcement, may cost, in the unit of the terms.
    pub max_cost: f64,
}

impl Default for StandingPolicy {
    fn default() -> Self {
        Self {
            least_threshold: (2, 3),
            most_seats_to_wait_for: 25,
            max_fee_rate: 1_000,
            max_operator_output: 50_000,
            least_seconds_between_announcements: 1,
            least_seconds_to_answer: 10,
            accepts_hashes: true,
            accepts_blind: false,
            max_cost: 0.0,
        }
    }
}

impl StandingPolicy {
    /// Why terms are not accepted; empty if they are. With the number of seats, once that is known; before, with the
    /// least one.
    pub fn objections(&self, terms: &StandingTerms, seats: Option<usize>) -> Vec<String> {
        let mut objections: Vec<String> = terms.problems().iter().map(ToString::to_string).collect();
        let mut object = |wrong: bool, objection: String| {
            if wrong {
                objections.push(objection);
            }
        };
        let seats = seats.unwrap_or_else(|| {
            usize::from(match terms.absent {
                Absent::Wait => terms.min_participants,
                // The least favourable: k is fixed, and more seats make k/n smaller.
                Absent::Proceed => terms.max_participants,
            })
        });
        let (k, (least, of)) = (terms.spenders(seats), self.least_threshold);
        object(
            k * usize::from(of) < seats * usize::from(least),
            format!(
                "{k} of {seats} seats could end every DID of the cohort; at least {least}/{of} of them are asked for"
            ),
        );
        object(
            terms.absent == Absent::Wait && seats > usize::from(self.most_seats_to_wait_for),
            format!(
                "all of {seats} seats would wait for each one; at most {} are accepted",
                self.most_seats_to_wait_for
            ),
        );
        object(
            terms.max_fee_rate > self.max_fee_rate,
            format!("fees of up to {} sat/vB; at most {} are accepted", terms.max_fee_rate, self.max_fee_rate),
        );
        object(
            terms.max_operator_output > self.max_operator_output,
            format!(
                "the operator takes up to {} sat of each announcement; at most {} are accepted",
                terms.max_operator_output, self.max_operator_output
            ),
        );
        object(
            terms.min_seconds_between_announcements < self.least_seconds_between_announcements,
            format!(
                "announcements {} s apart; at least {} s are asked for",
                terms.min_seconds_between_announcements, self.least_seconds_between_announcements
            ),
        );
        object(
            terms.respond_seconds.min(terms.confirm_seconds) < self.least_seconds_to_answer,
            format!("less than {} s to answer", self.least_seconds_to_answer),
        );
        object(
            terms.updates == Updates::Hash && !self.accepts_hashes,
            "the service would receive hashes of updates only, and check none".to_owned(),
        );
        object(
            terms.registration == Registration::Blind && !self.accepts_blind,
            "others could register an index of a DID that is not theirs".to_owned(),
        );
        for (what, cost) in
            [("joining", &terms.cost_of_enrollment), ("an announcement", &terms.cost_per_announcement)]
        {
            let amount = cost.as_ref().map(|cost| cost.amount.as_f64().unwrap_or(f64::INFINITY));
            object(
                amount.is_some_and(|amount| amount > self.max_cost),
                format!("{what} costs more than {}", self.max_cost),
            );
        }
        objections
    }
}
