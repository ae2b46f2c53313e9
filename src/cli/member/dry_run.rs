//! `member dry-run`: what the policy would do.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MemberFailure, settings};
use crate::{
    error::ProgramError,
    inputs,
    member::policy::{MoveRequest, Offer, Policy, SignRequest, Verdict},
    protocol::{cohort::standing::StandingTerms, did::Did, id::CohortId, text::shown},
};

#[derive(Args, Debug)]
pub(super) struct DryRunArgs {
    /// The TOML file of `member`
    #[arg(long, value_name = "FILE", env = "BTCR2_MEMBER_CONFIG")]
    config: PathBuf,
    /// An advert: JSON with `terms`, and `service` and `cohortId` if they are known. With `succeeds` it counts as the successor of a cohort in
    /// which the agent has a seat
    #[arg(long, value_name = "FILE", required_unless_present = "request", conflicts_with = "request")]
    advert: Option<PathBuf>,
    /// A request to sign or to move, as `member pending --json` shows it and a hook gets it
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// With --advert: in how many other cohorts of the service there are seats already
    #[arg(long, value_name = "N", default_value_t = 0)]
    cohorts: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The parts of an advert that count.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Advert {
    #[serde(default)]
    service: Option<Did>,
    #[serde(default)]
    cohort_id: Option<CohortId>,
    terms: StandingTerms,
    #[serde(default)]
    succeeds: Option<Value>,
}

fn usage(problem: impl std::fmt::Display) -> MemberFailure {
    ProgramError::Usage(problem.to_string()).into()
}

pub(super) fn dry_run(args: &DryRunArgs) -> Result<(), MemberFailure> {
    let policy = settings::policy(&args.config)?;
    let (what, verdict) = match (&args.advert, &args.request) {
        (Some(path), _) => {
            let mut value: Value = inputs::json(path).map_err(usage)?;
            // A request that `member pending` shows has the offer inside, a message of a service its body.
            for inner in ["request", "body"] {
                if let Some(found) = value.get_mut(inner).map(Value::take) {
                    value = found;
                }
            }
            let advert: Advert =
                serde_json::from_value(value).map_err(|error| usage(format!("{}: {error}", path.display())))?;
            ("join", on_advert(&policy, &advert, args.cohorts)?)
        }
        (None, Some(path)) => {
            let mut value: Value = inputs::json(path).map_err(usage)?;
            if let Some(found) = value.get_mut("request").map(Value::take) {
                value = found;
            }
            let wrong = |error: serde_json::Error| usage(format!("{}: {error}", path.display()));
            match value.get("successor") {
                Some(_) => {
                    let request: MoveRequest = serde_json::from_value(value).map_err(wrong)?;
                    ("move", policy.on_move(&request))
                }
                None => {
                    let request: SignRequest = serde_json::from_value(value).map_err(wrong)?;
                    ("sign", policy.on_request(&request))
                }
            }
        }
        (None, None) => return Err(usage("--advert FILE or --request FILE expected")),
    };
    let explained = policy.explain(&verdict);
    if args.json {
        let mut explained = explained;
        explained["kind"] = json!(what);
        out!("{explained}");
        return Ok(());
    }
    match &verdict {
        Verdict::Accept => out!("{what}: yes, by itself"),
        Verdict::Ask { reasons, held } => {
            let how = match policy.hook.first() {
                Some(command) => format!("the hook {command} is asked"),
                None => "you are asked (`member approve`)".to_owned(),
            };
            let until = match held {
                true => "and it waits until then".to_owned(),
                false => format!("and rejected after {}", humantime::format_duration(policy.timeout)),
            };
            out!("{what}: {} {}", shown(&how), until);
            reasons.iter().for_each(|reason| out!("  because {}", shown(reason)));
        }
        Verdict::Decline { reasons } => {
            out!("{what}: no");
            reasons.iter().for_each(|reason| out!("  because {}", shown(reason)));
        }
    }
    Ok(())
}

fn on_advert(policy: &Policy, advert: &Advert, cohorts: u32) -> Result<Verdict, MemberFailure> {
    let unknown = CohortId::parse("unknown").map_err(usage)?;
    let cohort_id = advert.cohort_id.as_ref().unwrap_or(&unknown);
    let succeeds = advert.succeeds.as_ref().is_some_and(|succeeds| !succeeds.is_null());
    let (service, terms) = (advert.service.as_ref(), &advert.terms);
    Ok(policy.on_offer(&Offer { service, cohort_id, terms, cohorts, succeeds }))
}
