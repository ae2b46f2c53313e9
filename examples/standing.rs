//! What an announcement of a standing cohort costs, compared with a one-time round of as many members: a table in Markdown.
//!
//! Times are processor times over all threads: other processes on the machine do not count. All seats are in this process, with their own
//! work: each builds and signs its update, verifies the opportunity, the board and the transaction, checks the data of its DIDs, and
//! signs. What several seats of one process compute of the same public bytes is computed once (`SharedBoards`), as the keys of the
//! round are aggregated once; with `--no-shared-boards` each seat reads the board itself, as on a machine of its own.
//!
//! ```text
//! cargo run --release --example standing -- --seats 100,999 --rounds
//! cargo run --release --example standing -- --seats 100 --dids 1000 --smt --hash
//! cargo run --release --example standing -- --seats 25 --dids 40 --announcements 10000 --restart
//! ```

#[path = "support/mod.rs"]
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use btcr2_aggregation::{
    actors::{journal::Journal, runtime::Clock, state::State},
    protocol::{beacon::BeaconType, cohort::standing::StandingBeacon, output::DirectAggregator},
};
use clap::Parser;
use support::{
    Cohort, Outcome, memory, seeded,
    standing::{Counts, START, Standing},
};

/// Measures announcements of standing cohorts.
#[derive(Parser)]
struct Args {
    /// How many seats
    #[arg(long, value_delimiter = ',', default_values_t = [25, 100])]
    seats: Vec<usize>,
    /// The DIDs of each seat
    #[arg(long, default_value_t = 1)]
    dids: usize,
    /// How many DIDs of each seat are updated in an announcement
    #[arg(long, default_value_t = 1)]
    updates: usize,
    /// How many announcements are measured, after a first one
    #[arg(long, default_value_t = 3)]
    announcements: u32,
    /// Aggregate with a sparse Merkle tree
    #[arg(long)]
    smt: bool,
    /// The service receives hashes, not updates
    #[arg(long)]
    hash: bool,
    /// Each seat reads the board itself
    #[arg(long)]
    no_shared_boards: bool,
    /// Compare with one-time rounds of as many members: with one key aggregation, and with one for each member
    #[arg(long)]
    rounds: bool,
    /// Compare with rounds with one key aggregation only: the others take half a minute at 999
    #[arg(long)]
    shared_rounds: bool,
    /// Stop and start everything from state directories, and measure how long that takes
    #[arg(long)]
    restart: bool,
    /// How often each type of message was sent
    #[arg(long)]
    messages: bool,
}

/// A step that was measured.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    processor: Duration,
    wall: Duration,
}

struct Meter(Duration, Instant);

impl Meter {
    fn start() -> Self {
        Self(memory::processor_time(), Instant::now())
    }

    fn cost(&self) -> Cost {
        Cost { processor: memory::processor_time() - self.0, wall: self.1.elapsed() }
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "?".to_owned(), |bytes| format!("{} MB", bytes >> 20))
}

/// The average cost of an announcement.
async fn standing(seats: usize, args: &Args) -> Outcome<Cost> {
    let clock = Clock::starting_at(START);
    let cohort = Standing {
        dids: args.dids,
        beacon: if args.smt { StandingBeacon::Smt } else { StandingBeacon::Cas },
        full: !args.hash,
        shares_boards: !args.no_shared_boards,
        ..Standing::of(seats, clock, seeded(seats as u64))
    };
    memory::forget_peak();
    let meter = Meter::start();
    let mut running = cohort.start().await?;
    let formed = meter.cost();
    let formed_peak = memory::peak();
    running.counts();
    // In the first number the seats check the rows of all others.
    running.want(args.updates);
    let meter = Meter::start();
    let transaction = running.announce().await?;
    let first = meter.cost();
    running.settle(&transaction).await?;
    memory::forget_peak();
    running.counts();
    let mut total = Cost::default();
    let mut counts = Counts::new();
    for _ in 0..args.announcements {
        running.want(args.updates);
        let meter = Meter::start();
        let transaction = running.announce().await?;
        let cost = meter.cost();
        (total.processor, total.wall) = (total.processor + cost.processor, total.wall + cost.wall);
        for (kind, count) in running.counts() {
            *counts.entry(kind).or_default() += count;
        }
        running.settle(&transaction).await?;
        running.counts();
    }
    let peak = memory::peak();
    let average = |time: Duration| time / args.announcements.max(1);
    let cost = Cost { processor: average(total.processor), wall: average(total.wall) };
    println!(
        "| {seats} | {} | {} | {} | {} | {} | {:.2} |",
        seats * args.dids,
        millis(cost.processor),
        millis(cost.wall),
        megabytes(peak),
        megabytes(memory::resident()),
        counts.values().sum::<u64>() as f64 / f64::from(args.announcements.max(1)) / seats as f64,
    );
    println!(
        "|  | formation and registration: {} ({}), {}; first announcement: {} ({}) | | | | | |",
        millis(formed.processor),
        millis(formed.wall),
        megabytes(formed_peak),
        millis(first.processor),
        millis(first.wall),
    );
    if args.messages {
        for (kind, count) in counts {
            let each = count as f64 / f64::from(args.announcements.max(1)) / seats as f64;
            println!("|  | {kind}: {each:.2} for each seat | | | | | |");
        }
    }
    if args.restart {
        let (records, bytes) = running.journals().await?;
        let dir = tempfile::tempdir()?;
        let open = |name: &str| {
            let journal: Arc<dyn Journal> =
                Arc::new(State::open(dir.path().join(name.replace(':', "-")))?.journal());
            Outcome::Ok(journal)
        };
        // A paused clock goes on while state directories are written to: every deadline would pass.
        tokio::time::resume();
        let meter = Meter::start();
        let (service, seats) = running.restart(open).await?;
        let restart = meter.cost();
        println!(
            "|  | restart: service {}, all seats {}, processor {}; {records} records, {bytes} bytes | | | | | |",
            millis(service),
            millis(seats),
            millis(restart.processor),
        );
        running.want(args.updates);
        running.announce().await?;
    }
    running.stop().await;
    Ok(cost)
}

/// The cost of a one-time round.
async fn round(members: usize, args: &Args, shares_keys: bool) -> Outcome<Cost> {
    let mut cohort = Cohort::seeded(members, seeded(members as u64));
    if args.smt {
        cohort.beacon_type = BeaconType::smt();
    }
    if !shares_keys {
        cohort.aggregator = Arc::new(DirectAggregator);
    }
    let mut running = cohort.start().await?;
    let meter = Meter::start();
    let result = running.round().await?;
    let cost = meter.cost();
    println!(
        "|  | one-time round, {}: {} ({}), {:.2} messages for each member | | | | | |",
        if shares_keys { "one key aggregation" } else { "a key aggregation for each member" },
        millis(cost.processor),
        millis(cost.wall),
        result.transcript.head.size as f64 / members as f64,
    );
    Ok(cost)
}

/// A system whose clock passes at once while nothing is done: a cohort waits between two announcements.
fn system() -> actix_rt::SystemRunner {
    actix_rt::System::with_tokio_rt(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().expect("a runtime")
    })
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    println!("| seats | DIDs | processor | wall | peak memory | memory | messages for each seat |");
    println!("|--:|--:|--:|--:|--:|--:|--:|");
    for &seats in &args.seats {
        // A new system for each, so that no state of the previous one is left.
        let announcement = system().block_on(standing(seats, &args))?;
        let kinds: &[bool] = if args.rounds {
            &[true, false]
        } else if args.shared_rounds {
            &[true]
        } else {
            &[]
        };
        for &shares_keys in kinds {
            let round = actix_rt::System::new().block_on(round(seats, &args, shares_keys))?;
            let ratio = round.processor.as_secs_f64() / announcement.processor.as_secs_f64();
            println!("|  | an announcement is 1/{ratio:.1} of it | | | | | |");
        }
    }
    Ok(())
}
