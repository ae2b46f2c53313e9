//! Load for a service that runs elsewhere: participants join its next cohort over HTTP, and the cost for the service is
//! read from the operating system's statistics of its process.
//!
//! ```text
//! btcr2-aggregation serve --chain offline --min-participants 1000 --max-participants 1000 --beacon smt --cohorts 1 \
//!     --address-rate 100000 --address-burst 100000 &
//! cargo run --release --example load -- --url http://127.0.0.1:8080 --participants 1000 --pid $!
//! ```

#[path = "support/mod.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        handle::Participant,
        notice::{Notices, ParticipantNotice},
        policy::{ParticipantPolicy, UpdateRequest},
        runtime::{Clock, Randomness},
        transport::http::HttpClient,
    },
    protocol::{cohort::participant::Advert, update::Submission},
};
use clap::Parser;
use support::{Joiner, Outcome, identity, memory};
use tokio::sync::broadcast::error::RecvError;

/// Joins a service with many participants at once.
#[derive(Parser)]
struct Args {
    /// The URL of the service
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// How many join
    #[arg(long, default_value_t = 100)]
    participants: usize,
    /// How many of the service's cohorts each of them joins
    #[arg(long, default_value_t = 1)]
    cohorts: usize,
    /// The service's process, if it is on this machine: its processor time and memory are printed
    #[arg(long)]
    pid: Option<u32>,
}

/// Joins this many cohorts, and then no more: a service keeps advertising.
struct Few {
    joiner: Joiner,
    left: AtomicUsize,
}

#[async_trait]
impl ParticipantPolicy for Few {
    async fn should_join(&self, _: &Advert) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        self.joiner.update(request)
    }
}

/// The resources that the service has used so far.
#[derive(Clone, Copy, Default)]
struct Account {
    processor: Duration,
    resident: u64,
}

impl Account {
    fn of(pid: Option<u32>) -> Self {
        let Some(pid) = pid.map(|pid| pid.to_string()) else { return Self::default() };
        Self {
            processor: memory::processor_time_of(&pid).unwrap_or_default(),
            resident: memory::resident_of(&pid).unwrap_or_default(),
        }
    }
}

/// Prints the progress of all participants, and what it has cost the service since the last step.
struct Progress {
    participants: usize,
    pid: Option<u32>,
    before: Account,
    since: Instant,
    /// The resources of the service when every participant was connected and had joined. The rest is the cohort's.
    joined: Account,
}

impl Progress {
    fn step(&mut self, name: &str) {
        let now = Account::of(self.pid);
        println!(
            "| {name} | {:.2} s | {:.2} s | {} MB |",
            self.since.elapsed().as_secs_f64(),
            (now.processor - self.before.processor).as_secs_f64(),
            now.resident >> 20,
        );
        (self.before, self.since) = (now, Instant::now());
    }
}

/// The steps of every participant, in order.
const STEPS: [&str; 6] = ["joined", "accepted", "ready", "approved", "nonce sent", "complete"];

fn step(notice: &ParticipantNotice) -> Option<usize> {
    match notice {
        ParticipantNotice::CohortJoined { .. } => Some(0),
        ParticipantNotice::OptInAccepted { .. } => Some(1),
        ParticipantNotice::CohortReady { .. } => Some(2),
        ParticipantNotice::DataApproved { .. } => Some(3),
        ParticipantNotice::NonceSent { .. } => Some(4),
        ParticipantNotice::CohortComplete { .. } => Some(5),
        _ => None,
    }
}

async fn run(args: Args) -> Outcome<()> {
    let clock = Clock::system();
    let notices = Notices::new(1 << 17);
    let mut steps = notices.subscribe();
    println!("| all have | wall | processor time of the service | its memory |");
    println!("|---|--:|--:|--:|");
    let mut progress = Progress {
        participants: args.participants,
        pid: args.pid,
        before: Account::of(args.pid),
        since: Instant::now(),
        joined: Account::default(),
    };
    let (began, first) = (Instant::now(), progress.before);
    progress.step("not begun");
    for number in 0..args.participants {
        let me = identity(Randomness::System, &number.to_string());
        let client = HttpClient::new(&args.url, None, clock, Randomness::System)?;
        let joiner = Joiner { identity: me.clone(), randomness: Randomness::System };
        let policy = Few { joiner, left: AtomicUsize::new(args.cohorts) };
        let participant = Participant::builder(me, Arc::new(client), Arc::new(policy));
        participant.notices(notices.clone()).start().await?;
    }
    let mut taken = [0; STEPS.len()];
    while taken[STEPS.len() - 1] < progress.participants {
        let notice = match steps.recv().await {
            Ok(notice) => notice,
            Err(RecvError::Lagged(missed)) => return Err(format!("{missed} steps were not received").into()),
            Err(RecvError::Closed) => return Err("the participants are gone".into()),
        };
        if let ParticipantNotice::CohortFailed { reason, .. } = &*notice {
            return Err(reason.clone().into());
        }
        if let Some(step) = step(&notice) {
            taken[step] += 1;
            if taken[step] == progress.participants {
                progress.step(STEPS[step]);
                if step == 0 {
                    progress.joined = progress.before;
                }
            }
        }
    }
    let last = Account::of(args.pid);
    println!(
        "| in all | {:.2} s | {:.2} s | {} MB more, {} of them since all had joined |",
        began.elapsed().as_secs_f64(),
        (last.processor - first.processor).as_secs_f64(),
        last.resident.saturating_sub(first.resident) >> 20,
        last.resident.saturating_sub(progress.joined.resident) >> 20,
    );
    Ok(())
}

fn main() -> Outcome<()> {
    actix_rt::System::new().block_on(run(Args::parse()))
}
