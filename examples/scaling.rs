//! How the cost of a round grows with its members, compared with its floor: a table in Markdown, and a chart with
//! `--plot FILE.svg`.
//!
//! Times are processor times over all threads: other processes on the machine do not count. Every participant of the
//! cohort is in this process and does its own work, as on a machine of its own; with `--shared` one cache aggregates
//! the key list once for all of them.
//!
//! `cargo run --release --example scaling -- --sizes 2,10,50,100,200,500,1000`

#[path = "support/mod.rs"]
mod support;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use btcr2_aggregation::protocol::{beacon::BeaconType, output::DirectAggregator};
use clap::Parser;
use plotters::prelude::*;
use support::{Cohort, Outcome, floor::floor, memory, seeded};

/// Measures rounds of growing cohorts.
#[derive(Parser)]
struct Args {
    /// How many members
    #[arg(long, value_delimiter = ',', default_values_t = [2, 10, 50, 100, 200])]
    sizes: Vec<usize>,
    /// Aggregate with a sparse Merkle tree
    #[arg(long)]
    smt: bool,
    /// Aggregate the keys once for all, instead of once for each participant
    #[arg(long)]
    shared: bool,
    /// Draw the table into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// The minimum duration of a measurement.
const LEAST: Duration = Duration::from_millis(500);

struct Row {
    members: usize,
    round: Duration,
    floor: Duration,
    wall: Duration,
    peak: Option<u64>,
    messages: u64,
}

impl Row {
    async fn measure(members: usize, args: &Args) -> Outcome<Self> {
        let mut cohort = Cohort::seeded(members, seeded(members as u64));
        if args.smt {
            cohort.beacon_type = BeaconType::smt();
        }
        if !args.shared {
            cohort.aggregator = Arc::new(DirectAggregator);
        }
        let (identities, beacon) = (cohort.members.clone(), cohort.beacon_type.clone());
        let mut running = cohort.start().await?;
        memory::forget_peak();
        let (before, began, mut rounds) = (memory::processor_time(), Instant::now(), 0);
        let messages = loop {
            let result = running.round().await?;
            rounds += 1;
            if began.elapsed() >= LEAST {
                break result.transcript.head.size;
            }
        };
        let round = (memory::processor_time() - before) / rounds;
        let (wall, peak) = (began.elapsed() / rounds, memory::peak());
        let (before, began, mut floors) = (memory::processor_time(), Instant::now(), 0);
        while began.elapsed() < LEAST {
            floor(&identities, &beacon, args.shared)?;
            floors += 1;
        }
        let floor = (memory::processor_time() - before) / floors;
        Ok(Self { members, round, floor, wall, peak, messages: messages as u64 })
    }

    fn ratio(&self) -> f64 {
        self.round.as_secs_f64() / self.floor.as_secs_f64()
    }
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    println!("| n | round | floor | ratio | wall | peak memory | messages |");
    println!("|--:|--:|--:|--:|--:|--:|--:|");
    let mut rows = Vec::new();
    for &members in &args.sizes {
        // A new system for each, so that no state of the previous one is left.
        let row = actix_rt::System::new().block_on(Row::measure(members, &args))?;
        let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        println!(
            "| {members} | {} | {} | {:.2} | {} | {} | {} |",
            millis(row.round),
            millis(row.floor),
            row.ratio(),
            millis(row.wall),
            row.peak.map_or_else(|| "?".to_owned(), |bytes| format!("{} MB", bytes >> 20)),
            row.messages,
        );
        rows.push(row);
    }
    args.plot.map_or(Ok(()), |file| draw(&rows, &file))
}

/// Round and floor against members.
fn draw(rows: &[Row], file: &Path) -> Outcome<()> {
    let most = |of: fn(&Row) -> f64| rows.iter().map(of).fold(1.0, f64::max) * 1.1;
    let root = SVGBackend::new(file, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Processor time of a round (blue) and its floor (red)", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(
            0.0..most(|row| row.members as f64),
            0.0..most(|row| row.round.max(row.floor).as_secs_f64() * 1000.0),
        )?;
    chart.configure_mesh().x_desc("members").y_desc("milliseconds").draw()?;
    let line = |of: fn(&Row) -> Duration| {
        rows.iter().map(move |row| (row.members as f64, of(row).as_secs_f64() * 1000.0)).collect::<Vec<_>>()
    };
    chart.draw_series(LineSeries::new(line(|row| row.round), BLUE))?;
    chart.draw_series(LineSeries::new(line(|row| row.floor), RED))?;
    root.present()?;
    Ok(())
}
