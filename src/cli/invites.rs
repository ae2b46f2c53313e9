//! `invites`: who may come in without being on a list, for the operator of a service.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Failure,
    bans::{At, Place, Term, timestamp, until_json},
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
    protocol::{
        invite::{InviteId, InviteToken},
        text::shown,
        time::Timestamp,
    },
    storage::INVITES,
};

/// How long an invite admits, by default.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Args)]
#[command(
    after_help = "For `serve --invites`. Give the token to whom you invite, who runs `join --invite TOKEN`.\n\
    What an opt-in shows of a token is bound to the DID and the cohort: who carries it cannot use it."
)]
pub(super) struct InvitesArgs {
    #[command(subcommand)]
    command: InvitesCommand,
}

#[derive(Debug, Subcommand)]
enum InvitesCommand {
    /// Make an invite, and print its token
    New {
        /// How many DIDs it admits. One that it has admitted may come again until it expires
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_USES)))]
        uses: u32,
        /// Until when it admits [default: for 7 days]
        #[command(flatten)]
        term: Term,
        /// What to call it in the list
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// List all invites, and whom they have admitted
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Make an invite admit nobody any more. Whom it has admitted stays in the cohorts that it is in
    Revoke {
        /// Which: the identifier that `invites list` shows
        id: InviteId,
        #[command(flatten)]
        place: Place,
    },
}

/// Why a command could not do what it says.
#[derive(Debug, thiserror::Error)]
enum InvitesFailure {
    #[error("{0} is not a directory: give the one of `serve --state`, or make it first")]
    NoDirectory(String),
    #[error("{0}: this time is over already; --until takes a time to come, in UTC")]
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
        InvitesCommand::New { uses, term, label, place } => new(*uses, term, label.clone(), place),
        InvitesCommand::List { place } => list(place),
        InvitesCommand::Revoke { id, place } => revoke(*id, place),
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn book(place: &Place) -> Result<InviteBook, InvitesFailure> {
    if !place.state.is_dir() {
        return Err(InvitesFailure::NoDirectory(place.state.display().to_string()));
    }
    Ok(InviteBook::open(&place.state.join(INVITES))?)
}

fn new(uses: u32, term: &Term, label: Option<String>, place: &Place) -> Result<(), InvitesFailure> {
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
    book(place)?.add(&token, Invite::new(&token, now, expires, uses, label))?;
    if place.json {
        let (id, token) = (token.id().to_string(), token.reveal());
        out!("{}", json!({ "invite": id, "token": token, "uses": uses, "expires": until_json(expires) }));
    } else {
        out!("{}", token.reveal());
    }
    Ok(())
}

fn list(place: &Place) -> Result<(), InvitesFailure> {
    let invites = book(place)?.list()?;
    let now = timestamp(SystemTime::now());
    if place.json {
        let summary = |(id, invite): (&InviteId, &Invite)| {
            json!({
                "invite": id.to_string(),
                "label": invite.label,
                "state": state(invite, now),
                "expires": until_json(invite.expires),
                "uses": invite.uses,
                "admitted": invite.admitted,
            })
        };
        out!("{}", Value::from_iter(invites.iter().map(summary)));
        return Ok(());
    }
    out!("{:<16}  {:<8}  {:>11}  {:<20}  LABEL", "INVITE", "STATE", "ADMITTED", "UNTIL");
    for (id, invite) in invites.iter() {
        let admitted = format!("{} of {}", invite.admitted.len(), invite.uses);
        let label = shown(invite.label.as_deref().unwrap_or_default());
        out!("{id}  {:<8}  {admitted:>11}  {:<20}  {label}", state(invite, now), end_of_ban(invite.expires));
    }
    Ok(())
}

fn state(invite: &Invite, now: Timestamp) -> &'static str {
    if invite.revoked {
        "revoked"
    } else if now >= invite.expires {
        "expired"
    } else if invite.admitted.len() >= invite.uses as usize {
        "used up"
    } else {
        "open"
    }
}

fn revoke(id: InviteId, place: &Place) -> Result<(), InvitesFailure> {
    if !book(place)?.revoke(id)? {
        return Err(InvitesFailure::Unknown(id));
    }
    if place.json {
        out!("{}", json!({ "invite": id.to_string(), "state": "revoked" }));
    } else {
        out!("invite {id} admits nobody any more");
    }
    Ok(())
}
