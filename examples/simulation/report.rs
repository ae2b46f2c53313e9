//! What came of a simulation, and the table while it runs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant as WallInstant},
};

use actix::Addr;
use btcr2_aggregation::{
    actors::{
        notice::ServiceNotice as Notice,
        service::{AggregationService, OpenCohort},
    },
    protocol::{hash::sha256, id::CohortId},
};
use serde_json::{Value, json};
use tokio::{sync::broadcast::Receiver, time::Instant};

use crate::{
    network::SimNetwork,
    support::{Outcome, memory},
};

/// How often a line is added to the table.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The phases, in order.
pub(crate) const PHASES: [&str; 4] = ["enrolling", "updates", "validating", "signing"];

/// A cohort, as its service's notices tell of it.
pub(crate) struct Round {
    /// The number that it was opened under, and how often it was formed again since.
    pub(crate) name: (u32, u32),
    pub(crate) members: usize,
    /// When each phase began, and at last when it ended, since the beginning of the simulation.
    pub(crate) times: Vec<Duration>,
    /// How it ended.
    pub(crate) end: Option<String>,
}

/// What came of it.
pub(crate) struct Report {
    pub(crate) rounds: BTreeMap<CohortId, Round>,
    pub(crate) messages: BTreeMap<&'static str, u64>,
    pub(crate) lost: u64,
    /// By the clock of the simulation.
    pub(crate) elapsed: Duration,
    /// By the clock on the wall.
    wall: Duration,
}

struct Follower {
    report: Report,
    network: SimNetwork,
    began: Instant,
    began_wall: WallInstant,
    /// When the last line was added, and how many messages there had been.
    line: Option<(WallInstant, u64)>,
}

/// Opens the cohorts, one a second, and follows them to their end.
pub(crate) async fn follow(
    service: Addr<AggregationService>,
    opens: Vec<(u32, OpenCohort)>,
    mut steps: Receiver<Arc<Notice>>,
    network: SimNetwork,
    show: bool,
) -> Outcome<Report> {
    let report = Report {
        rounds: BTreeMap::new(),
        messages: BTreeMap::new(),
        lost: 0,
        elapsed: Duration::ZERO,
        wall: Duration::ZERO,
    };
    let began_wall = WallInstant::now();
    let line = show.then_some((began_wall, 0));
    let mut follower = Follower { report, network, began: Instant::now(), began_wall, line };
    if show {
        println!("   time    wall | enrolling updates validating signing signed failed |   msg/s    MB");
    }
    let mut opens = opens.into_iter().peekable();
    let mut next = Instant::now();
    while opens.peek().is_some() || follower.report.rounds.values().any(|round| round.end.is_none()) {
        tokio::select! {
            biased;
            step = steps.recv() => follower.step(&*step?),
            () = tokio::time::sleep_until(next), if opens.peek().is_some() => {
                if let Some((number, open)) = opens.next() {
                    let cohort_id = service.send(open).await??;
                    follower.opened(cohort_id, (number, 0));
                }
                next += Duration::from_secs(1);
            }
        }
        follower.show();
    }
    let Follower { mut report, network, began, began_wall, .. } = follower;
    report.elapsed = began.elapsed();
    report.wall = began_wall.elapsed();
    (report.messages, report.lost) = network.with_counts(|counts| (counts.messages.clone(), counts.lost));
    Ok(report)
}

impl Follower {
    fn opened(&mut self, cohort_id: CohortId, name: (u32, u32)) {
        let now = self.began.elapsed();
        self.report.rounds.insert(cohort_id, Round { name, members: 0, times: vec![now], end: None });
    }

    fn step(&mut self, step: &Notice) {
        let now = self.began.elapsed();
        let mut round = |cohort_id: &CohortId, phase: usize, members: Option<usize>| {
            if let Some(round) = self.report.rounds.get_mut(cohort_id) {
                // The fallback is signing too.
                if round.times.len() == phase {
                    round.times.push(now);
                }
                round.members = members.unwrap_or(round.members);
            }
        };
        match step {
            Notice::KeygenComplete { cohort_id, participants, .. } => round(cohort_id, 1, Some(*participants)),
            Notice::DataDistributed { cohort_id, .. } => round(cohort_id, 2, None),
            Notice::SigningStarted { cohort_id, .. } => round(cohort_id, 3, None),
            Notice::SigningComplete { cohort_id, path, result, .. } => {
                round(cohort_id, 4, None);
                self.ended(cohort_id, format!("{path}, {} signers", result.signed.signers.len()));
            }
            Notice::CohortFailed { cohort_id, code, next, .. } => {
                let again = self.report.rounds.get(cohort_id).map(|round| (round.name.0, round.name.1 + 1));
                self.ended(cohort_id, (*code).to_owned());
                if let Some((next, name)) = next.clone().zip(again) {
                    self.opened(next, name);
                }
            }
            _ => {}
        }
    }

    fn ended(&mut self, cohort_id: &CohortId, end: String) {
        if let Some(round) = self.report.rounds.get_mut(cohort_id) {
            round.end = Some(end);
        }
    }

    /// Adds a line to the table, now and then.
    fn show(&mut self) {
        let Some((last, messages)) = self.line.filter(|(last, _)| last.elapsed() >= LINE_EVERY) else { return };
        let said = self.network.with_counts(|counts| counts.messages.values().sum::<u64>());
        let rate = (said - messages) as f64 / last.elapsed().as_secs_f64();
        let rounds = || self.report.rounds.values();
        let phase =
            |phase: usize| rounds().filter(|round| round.end.is_none() && round.times.len() == phase + 1).count();
        let signed = rounds().filter(|round| round.is_signed()).count();
        let failed = rounds().filter(|round| round.end.is_some() && !round.is_signed()).count();
        println!(
            "{:6.1}s {:6.1}s | {:9} {:7} {:10} {:7} {:6} {:6} | {:7.0} {:5}",
            self.began.elapsed().as_secs_f64(),
            self.began_wall.elapsed().as_secs_f64(),
            phase(0),
            phase(1),
            phase(2),
            phase(3),
            signed,
            failed,
            rate,
            memory::resident().unwrap_or_default() >> 20,
        );
        self.line = Some((WallInstant::now(), said));
    }
}

impl Round {
    pub(crate) fn is_signed(&self) -> bool {
        self.times.len() == PHASES.len() + 1
    }

    /// How long each phase took that was completed.
    pub(crate) fn phase_times(&self) -> Vec<Duration> {
        self.times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

impl Report {
    fn signed(&self) -> usize {
        self.rounds.values().filter(|round| round.is_signed()).count()
    }

    /// The median of each phase's times, in the cohorts that were signed.
    pub(crate) fn medians(&self) -> Vec<Duration> {
        let signed: Vec<_> =
            self.rounds.values().filter(|round| round.is_signed()).map(Round::phase_times).collect();
        (0..PHASES.len())
            .filter_map(|phase| {
                let mut times: Vec<_> = signed.iter().map(|times| times[phase]).collect();
                times.sort();
                times.get(times.len() / 2).copied()
            })
            .collect()
    }

    /// Without what depends on the machine: the same for the same arguments.
    pub(crate) fn to_json(&self) -> Value {
        let mut rounds: Vec<_> = self.rounds.values().collect();
        rounds.sort_by_key(|round| round.name);
        let rounds: Vec<_> = rounds
            .iter()
            .map(|round| {
                let times: Vec<_> = round.times.iter().map(Duration::as_millis).collect();
                json!({
                    "cohort": round.name.0, "again": round.name.1, "members": round.members,
                    "end": round.end, "times": times,
                })
            })
            .collect();
        let digest = sha256(json!(rounds).to_string().as_bytes());
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        json!({
            "signed": self.signed(), "failed": self.rounds.len() - self.signed(), "messages": self.messages,
            "lost": self.lost, "elapsedMs": self.elapsed.as_millis(), "rounds": rounds, "digest": digest,
        })
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = String::from("\ncohort members  end\n");
        let mut rounds: Vec<_> = self.rounds.values().collect();
        rounds.sort_by_key(|round| round.name);
        for round in rounds {
            let (number, again) = round.name;
            let end = round.end.as_deref().unwrap_or("still runs");
            text +=
                &format!("{:>6} {:>7}  {end}\n", format!("{number}{}", "'".repeat(again as usize)), round.members);
        }
        text += "\nphase (median)\n";
        for (phase, time) in PHASES.iter().zip(self.medians()) {
            text += &format!("{phase:>12} {:7.2} s\n", time.as_secs_f64());
        }
        text += "\nmessages\n";
        for (kind, count) in &self.messages {
            text += &format!("{count:>12} {kind}\n");
        }
        text + &format!(
            "{:>12} lost, and said again\n\n{} signed, {} failed, in {:.1} s ({:.1} s on the wall), {} MB, digest {}",
            self.lost,
            self.signed(),
            self.rounds.len() - self.signed(),
            self.elapsed.as_secs_f64(),
            self.wall.as_secs_f64(),
            memory::resident().unwrap_or_default() >> 20,
            self.to_json()["digest"].as_str().unwrap_or_default(),
        )
    }
}
