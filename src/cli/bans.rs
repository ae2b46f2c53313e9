//! `bans`: whom a service does not admit, and why, for its operator.

use std::{
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Failure, fail, state::time};
use crate::{
    actors::{
        bans::{BanBook, BanBookError, Conduct, DefaultBans, Entry},
        transport::Evidence,
    },
    config::Span,
    keep::BANS,
    protocol::{did::Did, time::Timestamp},
};

#[derive(Debug, Args)]
#[command(after_help = "A service that runs takes notice at once: nothing needs to be stopped.\n\
    What a member did is on record with the messages that it signed, and is forgotten after 90 days without a ban.")]
pub(super) struct BansArgs {
    #[command(subcommand)]
    command: BansCommand,
}

#[derive(Debug, Subcommand)]
enum BansCommand {
    /// List everybody who is banned or has done something wrong
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show what a member did, with what it signed as evidence
    Show {
        /// The member
        did: Did,
        #[command(flatten)]
        place: Place,
    },
    /// Admit somebody to no more cohorts, for good or for some time. Those that it is in already go on
    Add {
        /// Whom
        did: Did,
        #[command(flatten)]
        term: Term,
        /// Why, for whoever reads the list later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Admit a member again, and strike its record
    Lift {
        /// Whom
        did: Did,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// The service's state directory
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Term {
    /// Until this time: 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    until: Option<At>,
    /// For so long from now on: 7d, 12h
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<Span>,
}

/// A time as people write it, in UTC.
#[derive(Clone, Copy, Debug)]
struct At(Timestamp);

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339_weak(text.trim())
            .map(|at| Self(timestamp(at)))
            .map_err(|error| format!("a time in UTC expected, 2027-01-31T12:00:00Z say: {error}"))
    }
}

/// Why a command could not do what it says.
#[derive(Debug, thiserror::Error)]
enum BansFailure {
    #[error("{} is no directory: name the one that `serve --state` keeps", .0.display())]
    NoDirectory(PathBuf),
    #[error("{0}: the end of the ban is over already; --until takes a time to come, in UTC")]
    Over(String),
    #[error("nothing is on record about {0}: `bans list` shows everybody")]
    Unknown(Did),
    #[error(transparent)]
    Book(#[from] BanBookError),
}

impl Failure for BansFailure {
    fn status(&self) -> u8 {
        if matches!(self, Self::Over(_)) { 2 } else { 1 }
    }
}

pub(super) fn main(args: &BansArgs) -> ExitCode {
    let outcome = match &args.command {
        BansCommand::List { place } => list(place),
        BansCommand::Show { did, place } => show(did, place),
        BansCommand::Add { did, term, reason, place } => add(did, term, reason.clone(), place),
        BansCommand::Lift { did, place } => lift(did, place),
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::default() + at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn book(place: &Place) -> Result<BanBook, BansFailure> {
    if !place.state.is_dir() {
        return Err(BansFailure::NoDirectory(place.state.clone()));
    }
    Ok(BanBook::in_file(place.state.join(BANS), Arc::new(DefaultBans)))
}

fn list(place: &Place) -> Result<(), BansFailure> {
    let members = book(place)?.list()?;
    let now = timestamp(SystemTime::now());
    if place.json {
        out!("{}", Value::from_iter(members.iter().map(|(did, conduct)| summary(did, conduct, now))));
        return Ok(());
    }
    out!("{:<20}  {:>8}  DID", "BANNED UNTIL", "OFFENCES");
    for (did, conduct) in &members {
        let until = conduct.ban(now).map_or_else(|| "-".to_owned(), until);
        let reason = conduct.reason.as_deref().map(|reason| format!("  ({})", reason.escape_debug()));
        out!("{until:<20}  {:>8}  {did}{}", conduct.entries.len(), reason.unwrap_or_default());
    }
    Ok(())
}

fn show(did: &Did, place: &Place) -> Result<(), BansFailure> {
    let members = book(place)?.list()?;
    let conduct = members.get(did).ok_or_else(|| BansFailure::Unknown(did.clone()))?;
    let now = timestamp(SystemTime::now());
    if place.json {
        let mut shown = summary(did, conduct, now);
        shown["offences"] = Value::from_iter(conduct.entries.iter().map(offence));
        out!("{shown}");
        return Ok(());
    }
    out!("{did}");
    match conduct.ban(now) {
        Some(ban) => out!("banned until {}", until(ban)),
        None => out!("not banned"),
    }
    if let Some(reason) = &conduct.reason {
        out!("by the operator: {}", reason.escape_debug());
    }
    for Entry { offence, cohort_id, at, detail, evidence } in &conduct.entries {
        let cohort_id = cohort_id.as_str().escape_debug();
        out!("{}  {} in cohort {cohort_id}: {}", time(*at), kebab(offence), detail.escape_debug());
        for signed in evidence {
            let (Evidence::Envelope(json) | Evidence::NostrEvent(json)) = signed;
            out!("    signed: {}", json.escape_debug());
        }
    }
    Ok(())
}

fn add(did: &Did, term: &Term, reason: Option<String>, place: &Place) -> Result<(), BansFailure> {
    let now = timestamp(SystemTime::now());
    let end = match (term.until, term.span) {
        (Some(At(at)), _) => at,
        (None, Some(Span(span))) => now + span,
        (None, None) => Timestamp::NEVER,
    };
    if end <= now {
        return Err(BansFailure::Over(time(end)));
    }
    book(place)?.add(did, end, reason)?;
    if place.json {
        out!("{}", json!({ "did": did, "banned": true, "until": until_json(end) }));
    } else {
        out!("{did} is banned until {}", until(end));
    }
    Ok(())
}

fn lift(did: &Did, place: &Place) -> Result<(), BansFailure> {
    if !book(place)?.lift(did)? {
        return Err(BansFailure::Unknown(did.clone()));
    }
    if place.json {
        out!("{}", json!({ "did": did, "banned": false }));
    } else {
        out!("{did} is admitted again");
    }
    Ok(())
}

fn summary(did: &Did, conduct: &Conduct, now: Timestamp) -> Value {
    let ban = conduct.ban(now);
    json!({
        "did": did,
        "banned": ban.is_some(),
        "until": ban.map_or(Value::Null, until_json),
        "reason": conduct.reason,
        "offences": conduct.entries.len(),
    })
}

fn offence(Entry { offence, cohort_id, at, detail, evidence }: &Entry) -> Value {
    json!({ "offence": offence, "cohortId": cohort_id, "at": time(*at), "detail": detail, "evidence": evidence })
}

/// The end of a ban for people.
fn until(end: Timestamp) -> String {
    if end == Timestamp::NEVER { "it is lifted".to_owned() } else { time(end) }
}

/// The end of a ban for machines: none when it is for good.
fn until_json(end: Timestamp) -> Value {
    if end == Timestamp::NEVER { Value::Null } else { time(end).into() }
}

/// An offence by the name that it has in JSON.
fn kebab(offence: &impl serde::Serialize) -> String {
    let name = serde_json::to_value(offence).ok();
    name.as_ref().and_then(Value::as_str).unwrap_or("an offence").to_owned()
}
