//! `cost estimate`: what a standing cohort would cost.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{SatPerVb, fail};
use crate::{
    cost::WalletKind,
    costs::{Estimate, Plan},
    error::ProgramError,
};

#[derive(Debug, Args)]
#[command(
    after_help = "The sizes are those of the transactions that the programs make. An announcement that fails costs nothing by itself: the next one spends\n\
    the same coin, by fallback if a seat was absent or has refused (--by-fallback). A KEY DID has to list the beacon by a Singleton transaction first;\n\
    an EXTERNAL DID whose genesis document lists it needs none (--registrations). Advertised prices and deposits are not in it."
)]
pub(super) struct EstimateArgs {
    /// The seats
    #[arg(long, value_name = "N", default_value_t = 10)]
    seats: u16,
    /// How many seats go on without the others; without it, all wait for every seat
    #[arg(long, value_name = "K")]
    threshold: Option<u16>,
    /// The DIDs of each seat
    #[arg(long, value_name = "N", default_value_t = 1)]
    dids: u64,
    /// The announcements
    #[arg(long, value_name = "N", default_value_t = 12)]
    announcements: u64,
    /// The updates in all of them [default: one of each DID in each announcement]
    #[arg(long, value_name = "N")]
    updates: Option<u64>,
    /// The DIDs that list the beacon by a Singleton transaction first [default: all]
    #[arg(long, value_name = "N")]
    registrations: Option<u64>,
    /// The announcements that are signed by fallback
    #[arg(long, value_name = "N", default_value_t = 0)]
    by_fallback: u64,
    /// Further announcements that only repeat updates
    #[arg(long, value_name = "N", default_value_t = 0)]
    repeats: u64,
    /// The transactions that join a deposit with the coin
    #[arg(long, value_name = "N", default_value_t = 0)]
    refreshes: u64,
    /// What the operator's output of each announcement holds
    #[arg(long, value_name = "SAT")]
    operator_output: Option<u64>,
    /// The announcements that a child of the operator's output bumps
    #[arg(long, value_name = "N", default_value_t = 0)]
    bumps: u64,
    /// The fee rate of all transactions, in sat/vB
    #[arg(long, value_name = "SAT/VB", default_value = "1")]
    fee_rate: SatPerVb,
    /// What the wallets of members and operator spend
    #[arg(long, value_enum, default_value_t)]
    wallet: WalletKind,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &EstimateArgs) -> ExitCode {
    let all = args.dids.saturating_mul(u64::from(args.seats));
    let plan = Plan {
        seats: args.seats,
        threshold: args.threshold,
        dids: args.dids,
        announcements: args.announcements,
        updates: args.updates.unwrap_or_else(|| all.saturating_mul(args.announcements)),
        registrations: args.registrations.unwrap_or(all),
        fallbacks: args.by_fallback,
        repeats: args.repeats,
        refreshes: args.refreshes,
        operator_output: args.operator_output,
        bumps: args.bumps,
        fee_rate: args.fee_rate.0.to_sat_per_kwu() as f64 / 250.0,
        wallet: args.wallet,
    };
    if let Err(problem) = plan.check() {
        return fail(&ProgramError::Usage(problem));
    }
    let estimate = plan.estimate();
    if args.json {
        out!("{}", json!(estimate));
    } else {
        out!("{}", text(&plan, &estimate));
    }
    ExitCode::SUCCESS
}

fn text(plan: &Plan, estimate: &Estimate) -> String {
    let fallback = estimate.by_fallback_vsize.map_or_else(String::new, |size| format!(", {size} vB by fallback"));
    let mut lines = vec![format!(
        "{} seats of {} DIDs: an announcement takes {} vB by key path{fallback}; a Singleton transaction {} vB",
        plan.seats, plan.dids, estimate.by_key_vsize, estimate.singleton_vsize
    )];
    lines.push(format!(
        "cohort      {} sat at {} sat/vB: announcements {} vB, children {} vB, registrations {} vB",
        estimate.paid,
        plan.fee_rate,
        estimate.announcements_vsize,
        estimate.children_vsize,
        estimate.registrations_vsize
    ));
    lines.push(format!(
        "singletons  {} sat: {} updates, {} vB",
        estimate.singletons, plan.updates, estimate.singletons_vsize
    ));
    lines.push(match estimate.saved {
        saved if saved >= 0 => format!("the cohort saves {saved} sat"),
        dearer => format!("the cohort is dearer by {} sat", dearer.unsigned_abs()),
    });
    if let Some(updates) = estimate.cheaper_from_updates_per_did {
        lines.push(format!("with so many transactions it is cheaper from {updates} updates of each DID on"));
    }
    if estimate.operator_outputs > 0 {
        lines.push(format!("beside that {} sat go to the operator's outputs", estimate.operator_outputs));
    }
    lines.join("\n")
}
