//! `control`: the tokens and the audit log of a service's control API, on its state directory.

use std::{path::PathBuf, process::ExitCode, time::SystemTime};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Failure,
    bans::{At, DirectoryArgs, Term, timestamp},
    fail,
};
use crate::{
    actors::shared_table::SharedTableError,
    config::Span,
    control::{AuditLog, Change, MOST_ENTRIES, Role, TokenBook, TotpSecret, Who, check_label},
    html::qr,
    protocol::{text::shown, time::Timestamp},
};

const EXAMPLES: &str = "\
Examples:
  A token for a colleague, who uses it with `ctl --url ... --token-file FILE`; it is printed once:
    btcr2-aggregation control token new --role operator --label alice --state service > alice.token
  The same for the console alone, with the codes of a phone as a second factor:
    btcr2-aggregation control token new --role operator --label 'alice, browser' --totp --state service
  Who may do what, and what was done:
    btcr2-aggregation control token list --state service
    btcr2-aggregation control audit --state service

All of it works while the service runs, and takes effect at once. Roles: viewer (reads), operator (operates cohorts), admin (also
tokens and settings).";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ControlArgs {
    #[command(subcommand)]
    command: ControlCommand,
}

#[derive(Debug, Subcommand)]
enum ControlCommand {
    /// Make, list and revoke tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Show the audit log, the last entry first
    Audit {
        /// Show the entries before this number
        #[arg(long, value_name = "N")]
        before: Option<u64>,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=MOST_ENTRIES as u64))]
        limit: u64,
        #[command(flatten)]
        args: DirectoryArgs,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token, and print it once
    New {
        /// viewer, operator or admin
        #[arg(long)]
        role: Role,
        /// A name for it in the list and in the audit log
        #[arg(long, value_name = "TEXT")]
        label: String,
        /// When it expires [default: never]
        #[command(flatten)]
        term: Term,
        /// For the console alone: with a second factor, the codes of an authenticator program
        ///
        /// The QR code for that program, and its URI, go to standard error, once.
        #[arg(long)]
        totp: bool,
        #[command(flatten)]
        args: DirectoryArgs,
    },
    /// List all tokens
    List {
        #[command(flatten)]
        args: DirectoryArgs,
    },
    /// Revoke a token. Its open streams end
    Revoke {
        /// The identifier that `control token list` shows
        id: String,
        #[command(flatten)]
        args: DirectoryArgs,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum ControlFailure {
    #[error("{} is not a directory: give the one of `serve --state`", .0.display())]
    NoDirectory(PathBuf),
    #[error("--label: {0}")]
    Label(String),
    #[error("the end of the token is in the past; --until takes a future time in UTC")]
    Over,
    #[error("there is no valid token {0}: `control token list` shows all")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] SharedTableError),
}

impl Failure for ControlFailure {
    fn status(&self) -> u8 {
        if matches!(self, Self::Over | Self::Label(_)) { 2 } else { 1 }
    }
}

pub(super) fn main(args: &ControlArgs) -> ExitCode {
    let outcome = match &args.command {
        ControlCommand::Token { command: TokenCommand::New { role, label, term, totp, args } } => {
            new(*role, label, term, *totp, args)
        }
        ControlCommand::Token { command: TokenCommand::List { args } } => list(args),
        ControlCommand::Token { command: TokenCommand::Revoke { id, args } } => revoke(id, args),
        ControlCommand::Audit { before, limit, args } => audit(*before, *limit, args),
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

fn tokens(args: &DirectoryArgs) -> Result<TokenBook, ControlFailure> {
    if !args.state.is_dir() {
        return Err(ControlFailure::NoDirectory(args.state.clone()));
    }
    Ok(TokenBook::open(&args.state)?)
}

/// Who runs this command: a user who may write to the state directory may do anything.
fn who() -> Who {
    #[cfg(unix)]
    let from = {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata("/proc/self")
            .map_or_else(|_| "command".to_owned(), |own| format!("command, uid {}", own.uid()))
    };
    #[cfg(not(unix))]
    let from = "command".to_owned();
    Who { role: Role::Admin, token: None, label: "command".to_owned(), from, session: None }
}

fn record(args: &DirectoryArgs, change: &Change) -> Result<(), ControlFailure> {
    AuditLog::open(&args.state).append(&who(), now(), change)?;
    Ok(())
}

fn new(role: Role, label: &str, term: &Term, totp: bool, args: &DirectoryArgs) -> Result<(), ControlFailure> {
    check_label(label).map_err(ControlFailure::Label)?;
    let now = now();
    let expires = match (term.until, term.span) {
        (Some(At(at)), _) => Some(at),
        (None, Some(Span(span))) => Some(now + span),
        (None, None) => None,
    };
    if expires.is_some_and(|expires| expires <= now) {
        return Err(ControlFailure::Over);
    }
    let tokens = tokens(args)?;
    let until = expires.and_then(Timestamp::to_date);
    let request = json!({ "role": role, "label": label, "expires": until, "totp": totp });
    record(args, &Change { action: "token.create", target: None, request })?;
    let made = tokens.add(label, role, now, expires, totp.then(TotpSecret::generate))?;
    let otpauth = made.token.totp.as_ref().map(|totp| totp.uri(label));
    if args.json {
        let mut shown = made.token.view(&made.id, now);
        shown["token"] = json!(&*made.text);
        if let Some(otpauth) = &otpauth {
            shown["otpauth"] = json!(&**otpauth);
        }
        out!("{shown}");
        return Ok(());
    }
    if let Some(otpauth) = &otpauth {
        if let Ok(code) = qr::terminal(otpauth) {
            err!("{code}");
        }
        err!("the second factor, for an authenticator program: {}", &**otpauth);
    }
    out!("{}", &*made.text);
    Ok(())
}

fn list(args: &DirectoryArgs) -> Result<(), ControlFailure> {
    let (tokens, now) = (tokens(args)?.list()?, now());
    if args.json {
        out!("{}", Value::from_iter(tokens.iter().map(|(id, token)| token.view(id, now))));
        return Ok(());
    }
    out!("{:<16}  {:<8}  {:<7}  {:<20}  {:<20}  LABEL", "TOKEN", "ROLE", "STATE", "CREATED", "EXPIRES");
    for (id, token) in tokens.iter() {
        let view = token.view(id, now);
        let field = |name: &str| view[name].as_str().unwrap_or("-").to_owned();
        let (state, created, expires) = (field("state"), field("created"), field("expires"));
        out!("{id:<16}  {:<8}  {state:<7}  {created:<20}  {expires:<20}  {}", token.role, shown(&token.label));
    }
    Ok(())
}

fn revoke(id: &str, args: &DirectoryArgs) -> Result<(), ControlFailure> {
    let (tokens, now) = (tokens(args)?, now());
    if tokens.list()?.get(id).is_none_or(|token| token.revoked.is_some()) {
        return Err(ControlFailure::Unknown(id.to_owned()));
    }
    record(args, &Change { action: "token.revoke", target: Some(id.to_owned()), request: Value::Null })?;
    let token = tokens.revoke(id, now)?.ok_or_else(|| ControlFailure::Unknown(id.to_owned()))?;
    if args.json {
        out!("{}", token.view(id, now));
    } else {
        out!("token {id} ({}) is revoked", shown(&token.label));
    }
    Ok(())
}

fn audit(before: Option<u64>, limit: u64, args: &DirectoryArgs) -> Result<(), ControlFailure> {
    if !args.state.is_dir() {
        return Err(ControlFailure::NoDirectory(args.state.clone()));
    }
    let most = usize::try_from(limit).unwrap_or(MOST_ENTRIES);
    let entries = AuditLog::open(&args.state).page(before, most)?;
    if args.json {
        out!("{}", Value::from(entries));
        return Ok(());
    }
    for entry in &entries {
        out!("{}", super::ctl::audit_line(entry));
    }
    Ok(())
}
