//! `cost ledger`: what standing cohorts have cost.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::json;

use super::{ChainArg, Failure, fail, text};
use crate::{
    actors::state::{State, StateError},
    bitcoin::chain::ChainError,
    cost::WalletKind,
    costs::{
        CohortFacts, CostsError, Grouping, Report, children, csv_of_entries, csv_of_sums, json_of_sums, of_member,
        of_service,
    },
    error::ProgramError,
    member::{
        ROLE,
        control::{ControlError, Request, ask},
    },
    protocol::id::CohortId,
    storage,
};

/// How far the chain is searched for children if nothing else is asked for: a week.
const LOOK_BACK: u32 = 1_008;

#[derive(Debug, Args)]
#[command(
    after_help = "A service's ledger has the costs of all seats, a member's those of its own. Each follows from what that side has seen itself: where\n\
    both agree on a number, both have seen the same (but for the times, which are of their own clocks).\n\n\
    Origin `advertised`: the prices in the terms; nothing shows whether they were paid. Origin `chain`: what transactions took from the\n\
    shared coin. A fee is shared by updates, in an SMT cohort by the seats that have updates. `operator-output` is not lost: it is the operator's.\n\n\
    What is not known is `unknown`, in JSON null, and never 0. A child of the operator's output is not known here: --chain looks for it."
)]
pub(super) struct LedgerArgs {
    /// The state directory of `serve --standing`, `member` or `join --standing`
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// The sums by seat, DID, cohort or month [default: the entries in CSV, otherwise the seats]
    #[arg(long, value_enum)]
    by: Option<Grouping>,
    /// This cohort only
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    cohort: Option<CohortId>,
    /// What a member's own wallet would spend
    #[arg(long, value_enum, default_value_t)]
    wallet: WalletKind,
    /// Look here for children that bumped announcements: core=URL or esplora=URL
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<ChainArg>,
    /// With --chain: from this block on [default: 1008 blocks below the tip]
    #[arg(long, value_name = "HEIGHT", requires = "chain")]
    since: Option<u32>,
    /// Print CSV: the entries, or with --by the sums
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print one JSON object: announcements, entries, sums, and the comparison
    #[arg(long)]
    json: bool,
}

/// Why the costs are not shown.
#[derive(Debug, thiserror::Error)]
enum LedgerFailure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Agent(#[from] ControlError),
    #[error("the costs cannot be read: {0}")]
    Costs(#[from] CostsError),
    #[error("--chain: {0}")]
    Chain(#[from] ChainError),
}

impl Failure for LedgerFailure {
    fn status(&self) -> u8 {
        match self {
            Self::Program(error) => error.status(),
            _ => 1,
        }
    }
}

pub(super) fn main(args: &LedgerArgs) -> ExitCode {
    let outcome = crate::cli::block_on(ledger(args));
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

async fn ledger(args: &LedgerArgs) -> Result<(), LedgerFailure> {
    let mut report = report(args).await?;
    if let Some(cohort) = &args.cohort {
        report.ledger.announcements.retain(|one| one.cohort_id == *cohort);
        report.ledger.entries.retain(|one| one.cohort_id == *cohort);
        report.comparisons.retain(|one| one.cohort_id == *cohort);
    }
    let by = args.by.unwrap_or(Grouping::Seat);
    if args.json {
        let sums = report.ledger.sums(by);
        let total = json_of_sums(by, &[("all".to_owned(), report.ledger.total())].into());
        let value = json!({
            "announcements": report.ledger.announcements,
            "entries": report.ledger.entries,
            "by": by.as_str(),
            "sums": json_of_sums(by, &sums),
            "total": total[0]["lines"],
            "comparisons": report.comparisons,
        });
        out!("{value}");
    } else if args.csv {
        let csv = match args.by {
            Some(by) => csv_of_sums(by, &report.ledger.sums(by)),
            None => csv_of_entries(&report.ledger),
        };
        out!("{}", csv.trim_end_matches("\r\n"));
    } else {
        out!("{}", text::report(&report, by));
    }
    Ok(())
}

/// The report: by the agent if one runs with this directory, and otherwise from the directory.
async fn report(args: &LedgerArgs) -> Result<Report, LedgerFailure> {
    if args.chain.is_none()
        && let Some(answer) = ask(&args.state, &Request::Costs { wallet: args.wallet })?
    {
        let report = serde_json::from_value(answer);
        return report.map_err(|error| CostsError(format!("the agent's answer: {error}")).into());
    }
    let state = State::open_to_read(&args.state)?;
    let facts = facts(&state, args).await;
    state.close().await;
    Ok(Report::of(facts?, args.wallet))
}

async fn facts(state: &State, args: &LedgerArgs) -> Result<Vec<CohortFacts>, LedgerFailure> {
    let facts = match storage::role_of(state).await?.as_deref() {
        Some("serve") => of_service(state).await?,
        Some(ROLE | "join-standing") => of_member(state).await?,
        Some(other) => {
            let problem =
                format!("the state directory is in use with the command {other}, which has no standing cohorts");
            return Err(ProgramError::Usage(problem).into());
        }
        None => return Err(ProgramError::Usage("nothing has used this state directory yet".to_owned()).into()),
    };
    let Some(chain) = &args.chain else { return Ok(facts) };
    let mut facts = CohortFacts::merged(facts);
    let Some(network) = facts.first().map(|cohort| cohort.terms.network) else { return Ok(facts) };
    let failed = |error: &dyn std::fmt::Display| ProgramError::Usage(format!("--chain: {error}"));
    let chain =
        chain.source().map_err(|error| failed(&error))?.connect(network).await.map_err(|error| failed(&error))?;
    let since = match args.since {
        Some(since) => since,
        None => chain.tip().await?.block.height.saturating_sub(LOOK_BACK),
    };
    children::find(&mut facts, &*chain, since).await?;
    Ok(facts)
}
