//! `invites`: the invites of a service, for its operator.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Failure,
    bans::{At, DirectoryArgs, Term, timestamp},
    fail,
    state::time,
};
use crate::{
    actors::{
        bans::end_of_ban,
        invites::{Invite, InviteBook, MOST_USES},
        runtime::Randomness,
        shared_table::SharedTableError,
    },
    config::Span,
    control::views,
    protocol::{
        invite::{InviteId, InviteToken},
        text::shown,
    },
    storage::INVITES,
};

/// How long an invite is valid by default.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Args)]
#[command(after_help = "For `serve --invites`. Give the token to a participant, who runs `join --invite TOKEN`.\n\
    The proof of a token in an opt-in is bound to the DID and the cohort: a relay or proxy cannot use it.")]
pub(super) struct InvitesArgs {
    #[command(subcommand)]
    command: InvitesCommand,
}

#[derive(Debug, Subcommand)]
enum InvitesCommand {
    /// Make an invite, and print its token
    New {
        /// How many DIDs it admits. A DID that it has admitted may join again until it expires
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_USES)))]
        uses: u32,
        /// The time until which it admits [default: for 7 days]
        #[command(flatten)]
        term: Term,
        /// A name for it in the list
        #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
        label: Option<String>,
        #[command(flatten)]
        args: DirectoryArgs,
    },
    /// List all invites, and the DIDs that they have admitted
    List {
        #[command(flatten)]
        args: DirectoryArgs,
    },
    /// Revoke an invite: it admits no more DIDs. Admitted DIDs stay in their cohorts
    Revoke {
        /// The identifier that `invites list` shows
        id: InviteId,
        #[command(flatten)]
        args: DirectoryArgs,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum InvitesFailure {
    #[error("{0} is not a directory: give the one of `serve --state`, or make it first")]
    NoDirectory(String),
    #[error("{0}: this time is in the past; --until takes a future time in UTC")]
    Over(String),
    #[error("there is no invite {0}: `invites list` shows all")]
    Unknown(InviteId),
    #[error(transparent)]
    Book(#[from] SharedTableError),
}

impl Failure for InvitesFailure {
    fn status(&self) -> u8 {
        if matches!(self, Self::Over(_)) { 2 } else { 1 }
    }
}

pub(super) fn main(args: &InvitesArgs) -> ExitCode {
    let outcome = match &args.command {
        InvitesCommand::New { uses, term, label, args } => new(*uses, term, label.clone(), args),
        InvitesCommand::List { args } => list(args),
        InvitesCommand::Revoke { id, args } => revoke(*id, args),
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn book(args: &DirectoryArgs) -> Result<InviteBook, InvitesFailure> {
    if !args.state.is_dir() {
        return Err(InvitesFailure::NoDirectory(args.state.display().to_string()));
    }
    Ok(InviteBook::open(&args.state.join(INVITES))?)
}

fn new(uses: u32, term: &Term, label: Option<String>, args: &DirectoryArgs) -> Result<(), InvitesFailure> {
    let now = timestamp(SystemTime::now());
    let expires = match (term.until, term.span) {
        (Some(At(at)), _) => at,
        (None, Some(Span(span))) => now + span,
        (None, None) => now + WEEK,
    };
    if expires <= now {
        return Err(InvitesFailure::Over(time(expires)));
    }
    let token = InviteToken::generate(&mut Randomness::System.for_actor("invite"));
    book(args)?.add(&token, Invite::new(&token, now, expires, uses, label))?;
    if args.json {
        let (id, token) = (token.id().to_string(), token.reveal());
        out!("{}", json!({ "invite": id, "token": token, "uses": uses, "expires": views::until(expires) }));
    } else {
        out!("{}", token.reveal());
    }
    Ok(())
}

fn list(args: &DirectoryArgs) -> Result<(), InvitesFailure> {
    let invites = book(args)?.list()?;
    let now = timestamp(SystemTime::now());
    if args.json {
        out!("{}", Value::from_iter(invites.iter().map(|(id, invite)| views::invite(id, invite, now))));
        return Ok(());
    }
    out!("{:<16}  {:<8}  {:>11}  {:<20}  LABEL", "INVITE", "STATE", "ADMITTED", "UNTIL");
    for (id, invite) in invites.iter() {
        let admitted = format!("{} of {}", invite.admitted.len(), invite.uses);
        let label = shown(invite.label.as_deref().unwrap_or_default());
        out!(
            "{id}  {:<8}  {admitted:>11}  {:<20}  {label}",
            views::invite_state(invite, now),
            end_of_ban(invite.expires)
        );
    }
    Ok(())
}

fn revoke(id: InviteId, args: &DirectoryArgs) -> Result<(), InvitesFailure> {
    if !book(args)?.revoke(id)? {
        return Err(InvitesFailure::Unknown(id));
    }
    if args.json {
        out!("{}", json!({ "invite": id.to_string(), "state": "revoked" }));
    } else {
        out!("invite {id} is revoked");
    }
    Ok(())
}
