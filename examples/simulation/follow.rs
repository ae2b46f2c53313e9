//! Opens the cohorts, follows them to their end, and shows their progress.

use std::{
    sync::Arc,
    time::{Duration, Instant as WallInstant},
};

use btcr2_aggregation::{
    actors::{handle::Service, notice::ServiceNotice as Notice, service::OpenCohort},
    protocol::{beacon::BeaconType, id::CohortId},
};
use tokio::{sync::broadcast::Receiver, time::Instant};

use crate::{
    network::SimNetwork,
    report::{End, Population, Report, Round},
    support::{Outcome, memory},
};

/// How often a line is added to the table, in real time.
const LINE_EVERY: Duration = Duration::from_millis(250);

/// How often a cohort is opened, in simulated time.
const OPEN_EVERY: Duration = Duration::from_secs(1);

struct Follower {
    report: Report,
    network: SimNetwork,
    began: Instant,
    began_wall: WallInstant,
    /// When the last line was added, and the number of messages at that time.
    line: Option<(WallInstant, u64)>,
}

/// Opens the cohorts one after another and follows them to their end, with a table if `show`.
pub(crate) async fn follow(
    service: Service,
    opens: Vec<(u32, OpenCohort)>,
    mut steps: Receiver<Arc<Notice>>,
    network: SimNetwork,
    population: Population,
    show: bool,
) -> Outcome<Report> {
    let began_wall = WallInstant::now();
    let report = Report { population, ..Report::default() };
    let line = show.then_some((began_wall, 0));
    let mut follower = Follower { report, network, began: Instant::now(), began_wall, line };
    if show {
        println!("            | cohorts by phase                                    | per second |");
        println!("   time    wall | enrolling updates validating signing signed failed | messages     MB");
    }
    let mut opens = opens.into_iter().peekable();
    let mut next = Instant::now();
    while opens.peek().is_some() || follower.report.rounds.values().any(|round| round.end.is_none()) {
        tokio::select! {
            biased;
            step = steps.recv() => follower.step(&*step?),
            () = tokio::time::sleep_until(next), if opens.peek().is_some() => {
                if let Some((number, open)) = opens.next() {
                    let beacon = open.conditions.beacon_type.clone();
                    let cohort_id = service.open(open).await?.id().clone();
                    follower.opened(cohort_id, (number, 0), beacon);
                }
                next += OPEN_EVERY;
            }
        }
        follower.show(LINE_EVERY);
    }
    follower.show(Duration::ZERO);
    let Follower { mut report, network, began, began_wall, .. } = follower;
    (report.elapsed, report.wall, report.peak) = (began.elapsed(), began_wall.elapsed(), memory::peak());
    (report.messages, report.lost) = network.with_counts(|counts| (counts.messages.clone(), counts.lost));
    Ok(report)
}

impl Follower {
    fn opened(&mut self, cohort_id: CohortId, name: (u32, u32), beacon: BeaconType) {
        let times = vec![self.began.elapsed()];
        self.report.rounds.insert(cohort_id, Round { name, beacon, members: 0, times, end: None });
    }

    /// A round has reached this phase.
    fn reached(&mut self, cohort_id: &CohortId, phase: usize) -> Option<&mut Round> {
        let now = self.began.elapsed();
        let round = self.report.rounds.get_mut(cohort_id)?;
        // The fallback is part of signing.
        if round.times.len() == phase {
            round.times.push(now);
        }
        Some(round)
    }

    fn step(&mut self, step: &Notice) {
        match step {
            Notice::KeygenComplete { cohort_id, participants, .. } => {
                if let Some(round) = self.reached(cohort_id, 1) {
                    round.members = *participants;
                }
            }
            Notice::DataDistributed { cohort_id, .. } => drop(self.reached(cohort_id, 2)),
            Notice::SigningStarted { cohort_id, .. } => drop(self.reached(cohort_id, 3)),
            Notice::SigningComplete { cohort_id, path, result, .. } => {
                if let Some(round) = self.reached(cohort_id, 4) {
                    let signers = result.signed.signers.len();
                    let txid = result.signed.transaction.compute_txid().to_string();
                    round.end = Some(End::Signed { path: *path, signers, txid });
                }
            }
            Notice::CohortFailed { cohort_id, code, next, .. } => {
                let Some(round) = self.report.rounds.get_mut(cohort_id) else { return };
                round.end = Some(End::Failed { code: (*code).to_owned(), formed_again: next.is_some() });
                let (name, beacon) = ((round.name.0, round.name.1 + 1), round.beacon.clone());
                if let Some(next) = next.clone() {
                    self.opened(next, name, beacon);
                }
            }
            _ => {}
        }
    }

    /// Adds a line to the table, if the last one is at least `age` old.
    fn show(&mut self, age: Duration) {
        let Some((last, before)) = self.line.filter(|(last, _)| last.elapsed() >= age) else { return };
        let said = self.network.with_counts(|counts| counts.messages.values().sum::<u64>());
        let rate = (said - before) as f64 / last.elapsed().as_secs_f64();
        let count =
            |which: &dyn Fn(&Round) -> bool| self.report.rounds.values().filter(|round| which(round)).count();
        let phase = |phase: usize| count(&|round| round.end.is_none() && round.times.len() == phase + 1);
        println!(
            "{:6.1}s {:6.1}s | {:9} {:7} {:10} {:7} {:6} {:6} | {:8.0} {:6}",
            self.began.elapsed().as_secs_f64(),
            self.began_wall.elapsed().as_secs_f64(),
            phase(0),
            phase(1),
            phase(2),
            phase(3),
            count(&Round::is_signed),
            count(&|round| round.end.is_some() && !round.is_signed()),
            rate,
            memory::resident().unwrap_or_default() >> 20,
        );
        self.line = Some((WallInstant::now(), said));
    }
}
