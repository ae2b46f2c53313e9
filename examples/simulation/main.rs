//! Hundreds of participants and some cohorts at once, over a network that delays and loses messages.
//!
//! Time is virtual: it stands still while any actor computes, so that a run takes as long as its work, and the same
//! seed gives the same result. With `--real-time` it is real time. Keys follow from the seed: they are worthless.
//!
//! `cargo run --release --example simulation -- --help`

mod follow;
mod network;
mod plot;
mod report;
#[path = "../support/mod.rs"]
mod support;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        bans::{BanBook, NoBans},
        handle::{Participant, Service},
        notice::Notices,
        policy::{
            CohortView, FundedTransaction, ParticipantPolicy, PolicyError, ServicePolicy, TransactionRequest,
            UpdateRequest,
        },
        runtime::Clock,
        service::OpenCohort,
        transport::memory::MemoryTransport,
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::BeaconType,
        cohort::{Timing, conditions::Conditions, participant::Advert, service::rules::PhaseRules},
        identity::Identity,
        output::{MemoizedAggregator, ScriptTree},
        time::Timestamp,
        update::Submission,
    },
};
use clap::{Parser, ValueEnum};

use self::{
    network::{Access, STEPS, SimNetwork, unit},
    report::{Population, Report},
    support::{Joiner, NETWORK, Outcome, conditions, identity, seeded},
};

/// The beacon types of the cohorts.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Beacon {
    Cas,
    Smt,
    /// Both in turn.
    Mixed,
}

/// Simulates participants and cohorts.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// How many participants there are
    #[arg(long, default_value_t = 500)]
    participants: usize,
    /// How many cohorts are opened, one a second
    #[arg(long, default_value_t = 20)]
    cohorts: u32,
    /// How many cohorts each participant joins
    #[arg(long, default_value_t = 3)]
    join: usize,
    /// How long a message takes on average
    #[arg(long, default_value = "20ms", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// The share of messages that are lost, and sent again a second later
    #[arg(long, default_value_t = 0.02)]
    loss: f64,
    /// The share of participants that go silent, each from some step of its rounds on
    #[arg(long, default_value_t = 0.05)]
    dropout: f64,
    /// The share of participants that join and decline to update
    #[arg(long, default_value_t = 0.1)]
    decline: f64,
    #[arg(long, value_enum, default_value = "mixed")]
    beacon: Beacon,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Draw charts into this directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Use real time
    #[arg(long)]
    real_time: bool,
    /// Print the summary as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// The number of the advert's cohort, from 1: a condition that the protocol ignores (0 would be rejected).
fn number(conditions: &Conditions) -> u32 {
    conditions.pending_update_trigger.unwrap_or_default()
}

/// The plan of a participant.
struct Plan {
    joins: BTreeSet<u32>,
    declines: bool,
    /// From this step of each round on it sends no messages.
    silent_from: Option<usize>,
}

/// A participant with its plan.
struct Planner {
    joiner: Joiner,
    plan: Arc<Plan>,
}

#[async_trait]
impl ParticipantPolicy for Planner {
    async fn should_join(&self, advert: &Advert) -> bool {
        self.plan.joins.contains(&number(&advert.conditions))
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        if self.plan.declines { None } else { self.joiner.update(request) }
    }
}

/// An operator that waits for every participant, up to the enrollment limit.
struct Patient;

#[async_trait]
impl ServicePolicy for Patient {
    async fn finalize(&self, _: &CohortView) -> bool {
        false
    }

    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        OfflineOperator.beacon_transaction(request).await
    }
}

impl Args {
    /// The plan follows from the seed and the participant's number. Cohorts of low numbers are more popular, so that
    /// sizes differ.
    fn plan(&self, participant: usize) -> Plan {
        let luck = |what: &str| unit(self.seed, &format!("{what} {participant}"));
        let mut joins = BTreeSet::new();
        let most = self.join.min(self.cohorts as usize);
        for attempt in 0.. {
            if joins.len() >= most {
                break;
            }
            let luck = luck(&format!("join {attempt}"));
            joins.insert(1 + (luck * luck.sqrt() * f64::from(self.cohorts)) as u32);
        }
        let silent_from = (luck("dropout") < self.dropout).then(|| (luck("step") * STEPS as f64) as usize);
        Plan { joins, declines: luck("decline") < self.decline, silent_from }
    }

    fn beacon_type(&self, cohort: u32) -> BeaconType {
        match self.beacon {
            Beacon::Cas => BeaconType::cas(),
            Beacon::Smt => BeaconType::smt(),
            Beacon::Mixed if cohort.is_multiple_of(2) => BeaconType::cas(),
            Beacon::Mixed => BeaconType::smt(),
        }
    }

    fn timing(&self) -> Timing {
        Timing {
            cohort_ttl: Duration::from_secs(3600),
            phase_timeout: Duration::from_secs(60),
            signing_timeout: Duration::from_secs(30),
            advert_repeat: Duration::from_secs(10),
        }
    }

    /// A cohort for the participants that plan to join it; a fifth of them may be missing at the end, two fifths
    /// before.
    fn open(&self, cohort: u32, plans: &[Arc<Plan>], service: &Identity) -> Outcome<OpenCohort> {
        let planned = plans.iter().filter(|plan| plan.joins.contains(&cohort)).count().max(2);
        let mut conditions =
            conditions(self.beacon_type(cohort), u32::try_from(planned)?, service.public_key().x_only())?;
        conditions.min_participants = u32::try_from((planned * 3 / 5).max(2))?;
        if let ScriptTree::FallbackAndRecovery { fallback_threshold, .. } = &mut conditions.script_tree {
            *fallback_threshold = Some(u16::try_from((planned / 2).max(1))?);
        }
        conditions.pending_update_trigger = Some(cohort);
        let rules = PhaseRules::default().reforming();
        Ok(OpenCohort { timing: self.timing(), rules, ..OpenCohort::new(conditions, NETWORK) })
    }
}

async fn simulate(args: &Args) -> Outcome<Report> {
    let randomness = seeded(args.seed);
    let network = SimNetwork {
        seed: args.seed,
        latency: args.latency,
        loss: args.loss,
        memory: MemoryTransport::new(),
        counts: Arc::default(),
    };
    let clock = Clock::starting_at(Timestamp::from_secs(1_750_000_000));
    // Shared work is done once: every participant here derives the same addresses.
    let aggregator = Arc::new(MemoizedAggregator::default());
    let plans: Vec<_> = (0..args.participants).map(|participant| Arc::new(args.plan(participant))).collect();

    for (participant, plan) in plans.iter().enumerate() {
        let me = identity(randomness, &format!("participant {participant}"));
        let joiner = Joiner { identity: me.clone(), randomness };
        let policy = Planner { joiner, plan: Arc::clone(plan) };
        let access = Access { network: network.clone(), silent_from: plan.silent_from };
        let builder = Participant::builder(me, Arc::new(access), Arc::new(policy));
        let builder = builder.timing(args.timing()).max_sessions(args.cohorts as usize + args.join);
        builder.aggregator(aggregator.clone()).clock(clock).randomness(randomness).start().await?;
    }
    let me = identity(randomness, "service");
    let access = Access { network: network.clone(), silent_from: None };
    let notices = Notices::new(1 << 18);
    let steps = notices.subscribe();
    let builder = Service::builder(me.clone(), Arc::new(access), Arc::new(Patient)).aggregator(aggregator);
    let builder = builder.clock(clock).randomness(randomness).bans(BanBook::in_memory(Arc::new(NoBans)));
    let service = builder.notices(notices).start().await?;
    let mut opens = Vec::new();
    for cohort in 1..=args.cohorts {
        opens.push((cohort, args.open(cohort, &plans, &me)?));
    }
    let population = Population {
        participants: plans.len(),
        silent: plans.iter().filter(|plan| plan.silent_from.is_some()).count(),
        declining: plans.iter().filter(|plan| plan.declines).count(),
    };
    follow::follow(service, opens, steps, network, population, !args.json).await
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    if !args.json {
        let clock = if args.real_time {
            "the clock on the wall"
        } else {
            "a clock that stands still while any actor computes"
        };
        println!(
            "{} participants join {} of {} cohorts each, by {clock} (seed {}).\n",
            args.participants,
            args.join.min(args.cohorts as usize),
            args.cohorts,
            args.seed,
        );
    }
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        // It cannot fail: the first runtime of the process was built the same way.
        builder.enable_all().start_paused(!args.real_time).build().unwrap_or_else(|error| panic!("{error}"))
    };
    let report = actix_rt::System::with_tokio_rt(runtime).block_on(simulate(&args))?;
    if let Some(directory) = &args.plot {
        plot::draw(&report, directory)?;
    }
    if args.json {
        println!("{}", report.to_json());
    } else {
        println!("{}", report.to_text());
    }
    Ok(())
}
