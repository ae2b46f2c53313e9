//! Runs every point, a few at a time.

use std::{collections::BTreeMap, env, sync::Mutex, time::Instant};

use serde_json::Value;

use super::{MEMBERS, Point, Scenario, round::member_identity, tap::tally};
use crate::support::verify::{participant_result, service_result};

/// Without `CRASH_POINTS=all`, one of so many points is run.
const SAMPLE: usize = 7;

/// Rounds at once. They mostly wait.
const AT_ONCE: usize = 4;

/// The outcome of a round.
#[derive(Default)]
pub struct Outcome {
    /// What the process passed, when it was not killed.
    pub points: Vec<Point>,
    pub killed: bool,
    /// The lines of the process in both of its runs, to find the cause of a failure.
    pub steps: Vec<Value>,
    /// Each that was announced; more than one when it was announced again.
    pub results: Vec<Value>,
    /// By DID.
    pub records: BTreeMap<String, Value>,
}

impl Outcome {
    /// Whether the cohort is signed, and every honest member has reported its record. The silent one may have, too.
    pub fn is_complete(&self, scenario: &Scenario) -> bool {
        !self.results.is_empty() && honest(scenario).all(|did| self.records.contains_key(&did))
    }

    /// One transaction, valid, on `path` if that is known; and every honest member has what proves its slot.
    pub fn check(&self, scenario: &Scenario, path: Option<&str>) {
        let first = self.results.first().expect("the cohort completes");
        assert!(path.is_none_or(|path| first["path"] == path), "{first}\n{}", self.lines());
        assert!(self.results.iter().all(|result| result == first), "two outcomes: {:#?}", self.results);
        service_result(first, path.unwrap_or_else(|| first["path"].as_str().unwrap()));
        for did in honest(scenario) {
            participant_result(&self.records[&did], &did, first);
        }
    }

    fn lines(&self) -> String {
        self.steps.iter().map(|step| format!("{step}\n")).collect()
    }
}

/// The DIDs of the honest members.
fn honest(scenario: &Scenario) -> impl Iterator<Item = String> {
    let honest = (0..MEMBERS).filter(|member| !scenario.is_silent(*member));
    honest.map(|member| member_identity(member).did().to_string())
}

/// Runs `round` without a crash, and then once for each point that it passed, or for some of them.
pub fn run(who: &str, round: impl Fn(&Scenario, Option<Point>) -> Outcome + Sync) {
    let started = Instant::now();
    let all = env::var("CRASH_POINTS").is_ok_and(|points| points == "all");
    let only = env::var("CRASH_ONLY").ok();
    let mut tasks: Vec<(Scenario, Point)> = Vec::new();
    for scenario in Scenario::ALL {
        let points = round(&scenario, None).points;
        println!("{who}, {}: {:?}", scenario.name, tally(&points));
        tasks.extend(points.into_iter().map(|point| (scenario, point)));
    }
    if let Some(only) = only {
        tasks.retain(|(scenario, point)| format!("{} {point:?}", scenario.name).contains(&only));
    } else if !all {
        tasks = tasks.into_iter().skip(SAMPLE / 2).step_by(SAMPLE).collect();
    }
    let (queue, reached) = (Mutex::new(tasks.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some((scenario, point)) = queue.lock().unwrap().next() else { return };
                    // Printed before the run, so that the reader of a failure knows the point.
                    let failed = Named(format!("{who}, {} killed behind {point:?}", scenario.name));
                    let outcome = round(&scenario, Some(point));
                    if outcome.killed {
                        reached.lock().unwrap().push(point);
                    }
                    drop(failed);
                }
            });
        }
    });
    let reached = reached.into_inner().unwrap();
    println!("{who}: killed at {} points, {:?}, in {:.0?}", reached.len(), tally(&reached), started.elapsed());
    assert!(!reached.is_empty());
}

/// Prints the point if its round fails.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}
