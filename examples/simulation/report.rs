//! The results of a simulation.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use btcr2_aggregation::protocol::{beacon::BeaconType, cohort::event::SpendPath, hash::sha256, id::CohortId};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

/// The phases, in order.
pub(crate) const PHASES: [&str; 4] = ["enrolling", "updates", "validating", "signing"];

/// The messages in the order of a round; all others come last.
const MESSAGES: [&str; 15] = [
    "keygen/cohort_advert",
    "keygen/cohort_opt_in",
    "keygen/cohort_opt_in_accept",
    "keygen/cohort_ready",
    "update/submit_update",
    "update/submit_nonincluded",
    "update/distribute_aggregated_data",
    "update/validation_ack",
    "sign/authorization_request",
    "sign/nonce_contribution",
    "sign/aggregated_nonce",
    "sign/signature_authorization",
    "sign/fallback_authorization_request",
    "sign/fallback_signature",
    "control/cohort_ended",
];

/// The participants.
#[derive(Clone, Copy, Default)]
pub(crate) struct Population {
    pub(crate) participants: usize,
    pub(crate) silent: usize,
    pub(crate) declining: usize,
}

/// How a round ended.
pub(crate) enum End {
    Signed { path: SpendPath, signers: usize, txid: String },
    Failed { code: String, formed_again: bool },
}

/// A cohort, from its service's notices.
pub(crate) struct Round {
    /// Its number, and how often it was re-formed.
    pub(crate) name: (u32, u32),
    pub(crate) beacon: BeaconType,
    pub(crate) members: usize,
    /// When each phase started, and when the last one ended, since the start of the simulation.
    pub(crate) times: Vec<Duration>,
    pub(crate) end: Option<End>,
}

impl Round {
    pub(crate) fn is_signed(&self) -> bool {
        matches!(self.end, Some(End::Signed { .. }))
    }

    pub(crate) fn on_key_path(&self) -> bool {
        matches!(self.end, Some(End::Signed { path: SpendPath::KeyPath, .. }))
    }

    /// The duration of each completed phase.
    pub(crate) fn phase_times(&self) -> Vec<Duration> {
        self.times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    fn to_json(&self) -> Value {
        let times: Vec<_> = self.times.iter().map(Duration::as_millis).collect();
        let mut round = json!({
            "cohort": self.name.0, "again": self.name.1, "beacon": self.beacon, "members": self.members,
            "times": times,
        });
        match &self.end {
            Some(End::Signed { path, signers, txid }) => {
                round["end"] = json!({ "path": path.as_str(), "signers": signers, "txid": txid });
            }
            Some(End::Failed { code, .. }) => round["end"] = json!({ "failed": code }),
            None => {}
        }
        round
    }

    fn to_text(&self) -> String {
        let members = self.members;
        match &self.end {
            Some(End::Signed { path, signers, .. }) => format!("{members} signed by {signers} ({path})"),
            Some(End::Failed { code, formed_again: true }) => format!("{members} {code} -> "),
            Some(End::Failed { code, .. }) => format!("{members} {code}, given up"),
            None => format!("{members} still run"),
        }
    }
}

/// The results.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) population: Population,
    pub(crate) rounds: BTreeMap<CohortId, Round>,
    pub(crate) messages: BTreeMap<&'static str, u64>,
    pub(crate) lost: u64,
    /// Simulated time.
    pub(crate) elapsed: Duration,
    /// Real time.
    pub(crate) wall: Duration,
    /// The peak memory of the process, in bytes.
    pub(crate) peak: Option<u64>,
}

/// Minimum, median and maximum.
pub(crate) type Spread = [Duration; 3];

impl Report {
    /// In the order in which they were opened and re-formed.
    fn rounds(&self) -> Vec<&Round> {
        let mut rounds: Vec<_> = self.rounds.values().collect();
        rounds.sort_by_key(|round| round.name);
        rounds
    }

    /// The duration of each phase in signed rounds.
    pub(crate) fn phase_times(&self) -> Vec<(&'static str, Spread)> {
        let signed: Vec<_> =
            self.rounds.values().filter(|round| round.is_signed()).map(Round::phase_times).collect();
        let spread = |(phase, name): (usize, &&'static str)| {
            let mut times: Vec<_> = signed.iter().filter_map(|times| times.get(phase).copied()).collect();
            times.sort();
            let median = *times.get(times.len() / 2)?;
            Some((*name, [*times.first()?, median, *times.last()?]))
        };
        PHASES.iter().enumerate().filter_map(spread).collect()
    }

    /// The number of messages by type, in the order of a round.
    pub(crate) fn messages(&self) -> Vec<(&'static str, u64)> {
        let place = |kind| MESSAGES.iter().position(|message| *message == kind).unwrap_or(MESSAGES.len());
        let mut messages: Vec<_> = self.messages.iter().map(|(kind, count)| (*kind, *count)).collect();
        messages.sort_by_key(|(kind, _)| place(*kind));
        messages
    }

    /// Without values that depend on the machine: the same arguments give the same output.
    pub(crate) fn to_json(&self) -> Value {
        let rounds: Vec<_> = self.rounds().into_iter().map(Round::to_json).collect();
        let signed = self.rounds.values().filter(|round| round.is_signed()).count();
        let mut report = json!({
            "signed": signed, "failed": self.rounds.len() - signed, "messages": self.messages,
            "lost": self.lost, "elapsedMs": self.elapsed.as_millis(), "rounds": rounds,
        });
        let digest = sha256(report.to_string().as_bytes());
        report["digest"] = HEXLOWER.encode(&digest[..8]).into();
        report
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        write!(
            to,
            "\ncohort  beacon     members, and how it ended (-> formed again without those who had been silent)"
        )?;
        for round in self.rounds() {
            if round.name.1 == 0 {
                write!(to, "\n{:>6}  {:9}  ", round.name.0, round.beacon.as_str())?;
            }
            write!(to, "{}", round.to_text())?;
        }
        writeln!(to, "\n\nphase, in signed rounds     least   median     most")?;
        for (phase, times) in self.phase_times() {
            let [least, median, most] = times.map(|time| time.as_secs_f64());
            writeln!(to, "{phase:>23} {least:7.2}s {median:7.2}s {most:7.2}s")?;
        }
        writeln!(to, "\nmessages (a broadcast counts once)")?;
        for (kind, count) in self.messages() {
            writeln!(to, "{count:>10}  {kind}")?;
        }
        writeln!(to, "{:>10}  times one was lost, and sent again\n", self.lost)?;

        let signed: Vec<_> = self.rounds.values().filter(|round| round.is_signed()).collect();
        let by_all = signed.iter().filter(|round| round.on_key_path()).count();
        let Population { participants, silent, declining } = self.population;
        writeln!(
            to,
            "participants  {participants}: {silent} went silent at some step, {declining} declined to update"
        )?;
        writeln!(
            to,
            "cohorts       {} of {} signed: {by_all} by all members, {} by enough of them on the fallback path",
            signed.len(),
            self.rounds.values().filter(|round| round.name.1 == 0).count(),
            signed.len() - by_all,
        )?;
        let again = self.rounds.values().filter(|round| round.name.1 > 0).count();
        writeln!(to, "              {again} times one was formed again, without those who had been silent")?;
        writeln!(
            to,
            "time          {:.1} s simulated, {:.1} s on the wall, {} MB at most",
            self.elapsed.as_secs_f64(),
            self.wall.as_secs_f64(),
            self.peak.unwrap_or_default() >> 20,
        )?;
        write!(to, "digest        {}", self.to_json()["digest"].as_str().unwrap_or_default())
    }
}
