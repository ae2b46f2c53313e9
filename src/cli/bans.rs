//! `bans`: the offences and bans of a service, for its operator.

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
        bans::{BanBook, BanBookError, DefaultBans, Entry, end_of_ban},
        subject::Subject,
        transport::Evidence,
    },
    config::Span,
    control::views,
    protocol::{
        text::{shown, shown_within},
        time::Timestamp,
    },
    storage::BANS,
};

#[derive(Debug, Args)]
#[command(after_help = "A running service applies changes at once: it need not be stopped.\n\
    An offence is recorded with the messages that the member signed, and dropped after 90 days without a ban.")]
pub(super) struct BansArgs {
    #[command(subcommand)]
    command: BansCommand,
}

#[derive(Debug, Subcommand)]
enum BansCommand {
    /// List everyone with a ban or a recorded offence
    List {
        #[command(flatten)]
        args: DirectoryArgs,
    },
    /// Show the record of one subject, with its signed messages as evidence
    Show {
        /// A DID, a network address (of IPv6 its /64), or invite:ID
        subject: Subject,
        #[command(flatten)]
        args: DirectoryArgs,
    },
    /// Refuse a subject in new cohorts, permanently or for some time. Its present cohorts continue
    Add {
        /// A DID, a network address (of IPv6 its /64; every DID at it), or invite:ID (every DID that joins by it)
        subject: Subject,
        #[command(flatten)]
        term: Term,
        /// The reason, for readers of the list
        #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
        reason: Option<String>,
        #[command(flatten)]
        args: DirectoryArgs,
    },
    /// Admit a subject again, and delete its record
    Lift {
        /// A DID, a network address (of IPv6 its /64; every DID at it), or invite:ID (every DID that joins by it)
        subject: Subject,
        #[command(flatten)]
        args: DirectoryArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct DirectoryArgs {
    /// The service's state directory
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    pub(super) state: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct Term {
    /// Until this time: 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<At>,
    /// For this time from now on: 7d, 12h
    #[arg(long = "for", value_name = "SPAN")]
    pub(super) span: Option<Span>,
}

/// A time as people write it, in UTC.
#[derive(Clone, Copy, Debug)]
pub(super) struct At(pub(super) Timestamp);

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339_weak(text.trim())
            .map(|at| Self(timestamp(at)))
            .map_err(|error| format!("a time in UTC expected, e.g. 2027-01-31T12:00:00Z: {error}"))
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum BansFailure {
    #[error("{} is not a directory: give the one of `serve --state`", .0.display())]
    NoDirectory(PathBuf),
    #[error("{0}: the end of the ban is in the past; --until takes a future time in UTC")]
    Over(String),
    #[error("there is no record of {0}: `bans list` shows all")]
    Unknown(Subject),
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
        BansCommand::List { args } => list(args),
        BansCommand::Show { subject, args } => show(subject, args),
        BansCommand::Add { subject, term, reason, args } => add(subject, term, reason.clone(), args),
        BansCommand::Lift { subject, args } => lift(subject, args),
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::default() + at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn book(args: &DirectoryArgs) -> Result<BanBook, BansFailure> {
    if !args.state.is_dir() {
        return Err(BansFailure::NoDirectory(args.state.clone()));
    }
    Ok(BanBook::open(&args.state.join(BANS), Arc::new(DefaultBans))?)
}

fn list(args: &DirectoryArgs) -> Result<(), BansFailure> {
    let members = book(args)?.list()?;
    let now = timestamp(SystemTime::now());
    if args.json {
        out!("{}", Value::from_iter(members.iter().map(|(subject, conduct)| views::ban(subject, conduct, now))));
        return Ok(());
    }
    out!("{:<20}  {:>8}  WHO", "BANNED UNTIL", "OFFENCES");
    for (subject, conduct) in &members {
        let until = conduct.ban(now).map_or_else(|| "-".to_owned(), end_of_ban);
        let reason = conduct.reason.as_deref().map(|reason| format!("  ({})", shown(reason)));
        out!("{until:<20}  {:>8}  {subject}{}", conduct.entries.len(), reason.unwrap_or_default());
    }
    Ok(())
}

fn show(subject: &Subject, args: &DirectoryArgs) -> Result<(), BansFailure> {
    let members = book(args)?.list()?;
    let conduct = members.get(subject).ok_or_else(|| BansFailure::Unknown(subject.clone()))?;
    let now = timestamp(SystemTime::now());
    if args.json {
        let mut shown = views::ban(subject, conduct, now);
        shown["offences"] = Value::from_iter(conduct.entries.iter().map(views::offence));
        out!("{shown}");
        return Ok(());
    }
    out!("{subject}");
    match conduct.ban(now) {
        Some(ban) => out!("banned until {}", end_of_ban(ban)),
        None => out!("not banned"),
    }
    if let Some(reason) = &conduct.reason {
        out!("by the operator: {}", shown(reason));
    }
    for Entry { offence, cohort_id, number, at, detail, address, invite, evidence } in &conduct.entries {
        let cohort_id = shown(cohort_id.as_str());
        let number = number.map_or_else(String::new, |number| format!(", number {number}"));
        out!("{}  {} in cohort {cohort_id}{number}: {}", time(*at), kebab(offence), shown(detail));
        if let Some(address) = address {
            out!("    from: {address}");
        }
        if let Some(invite) = invite {
            out!("    invited by: invite:{invite}");
        }
        for signed in evidence {
            let (Evidence::Envelope(json) | Evidence::NostrEvent(json)) = signed;
            // Not cut: it is the evidence.
            out!("    signed: {}", shown_within(json, usize::MAX));
        }
    }
    Ok(())
}

fn add(subject: &Subject, term: &Term, reason: Option<String>, args: &DirectoryArgs) -> Result<(), BansFailure> {
    let now = timestamp(SystemTime::now());
    let end = match (term.until, term.span) {
        (Some(At(at)), _) => at,
        (None, Some(Span(span))) => now + span,
        (None, None) => Timestamp::NEVER,
    };
    if end <= now {
        return Err(BansFailure::Over(time(end)));
    }
    book(args)?.add(subject.clone(), end, reason)?;
    if args.json {
        out!("{}", views::named(subject, json!({ "banned": true, "until": views::until(end) })));
    } else {
        out!("{subject} is banned until {}", end_of_ban(end));
    }
    Ok(())
}

fn lift(subject: &Subject, args: &DirectoryArgs) -> Result<(), BansFailure> {
    if !book(args)?.lift(subject.clone())? {
        return Err(BansFailure::Unknown(subject.clone()));
    }
    if args.json {
        out!("{}", views::named(subject, json!({ "banned": false })));
    } else {
        out!("{subject} is admitted again");
    }
    Ok(())
}

/// The name of an offence in JSON.
fn kebab(offence: &impl serde::Serialize) -> String {
    let name = serde_json::to_value(offence).ok();
    name.as_ref().and_then(Value::as_str).unwrap_or("an offence").to_owned()
}
