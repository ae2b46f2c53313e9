//! The arguments of `ctl`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::control::Role;

const EXAMPLES: &str = "\
Examples (the service runs as `serve --control --state service ...`):
  What runs, and what happens:
    btcr2-aggregation ctl --state service status
    btcr2-aggregation ctl --state service events
  A cohort of three, once; its members join as ever; form it with those that are there:
    btcr2-aggregation ctl --state service cohort create --set min-participants=3
    btcr2-aggregation ctl --state service cohort finalize COHORT
  A template, from which cohorts are advertised one after the other:
    btcr2-aggregation ctl --state service template put weekly --set min-participants=5 --set beacon=smt
    btcr2-aggregation ctl --state service template advertise weekly
  A standing cohort, and an announcement now:
    btcr2-aggregation ctl --state service standing create --set standing=true --set min-participants=3
    btcr2-aggregation ctl --state service standing trigger COHORT
  From another machine, through a tunnel, with a token (`control token new`):
    btcr2-aggregation ctl --url http://127.0.0.1:8081 --token-file alice.token ban add did:btcr2:k1... --for 7d

Terms are the keys of `serve --config`, e.g. min-participants or phase-timeout; what is missing is as on the service's command line.
Exit status: 0 when it is done, 1 when the service refuses or cannot be reached, 2 when it was called wrongly.";

/// Operates a running service: cohorts, templates, invites, bans, coins, settings.
///
/// It talks to `serve --control` over the socket in the state directory, as its owner, or at a URL with a token. See docs/control.md.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct CtlArgs {
    /// The service's state directory, with its socket
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE", global = true)]
    pub(super) state: Option<PathBuf>,
    /// The socket, if it is elsewhere
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "url")]
    pub(super) socket: Option<PathBuf>,
    /// The URL of the API, instead of a socket
    #[arg(long, value_name = "URL", env = "BTCR2_CONTROL_URL", global = true)]
    pub(super) url: Option<String>,
    /// The file with a token
    #[arg(long, value_name = "FILE", env = "BTCR2_CONTROL_TOKEN_FILE", global = true)]
    pub(super) token_file: Option<PathBuf>,
    /// With an https URL: trust the certificates in this PEM file only
    #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CA", global = true)]
    pub(super) tls_ca: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: CtlCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CtlCommand {
    /// Show the service: whether it is ready, what runs
    Status,
    /// Show who calls, and in which role
    Whoami,
    /// Show counters and gauges
    Metrics,
    /// Show the last alarms
    Alarms,
    /// Print events as they come, from now on
    Events {
        /// Continue after the event with this id
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// End with the first event of this kind
        #[arg(long, value_name = "KIND")]
        until: Option<String>,
    },
    /// Templates: drafts of terms, and whether cohorts are advertised from them
    #[command(subcommand)]
    Template(TemplateCommand),
    /// One-time cohorts
    #[command(subcommand)]
    Cohort(CohortCommand),
    /// Standing cohorts
    #[command(subcommand)]
    Standing(StandingCommand),
    /// Candidates that wait for a decision (setting manual-admission)
    #[command(subcommand)]
    Admission(AdmissionCommand),
    /// The DIDs that are admitted (setting allow-list)
    #[command(subcommand)]
    Allow(AllowCommand),
    /// Invites
    #[command(subcommand)]
    Invite(InviteCommand),
    /// Bans and offences
    #[command(subcommand)]
    Ban(BanCommand),
    /// Deposits that are wanted, coins, announcements
    #[command(subcommand)]
    Coins(CoinsCommand),
    /// Settings that can change while the service runs
    #[command(subcommand)]
    Settings(SettingsCommand),
    /// Tokens for the API
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show the audit log, the last entry first
    Audit {
        /// Show the entries before this number
        #[arg(long, value_name = "N")]
        before: Option<u64>,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u64,
    },
}

/// Terms, as a file and as single settings, which come first.
#[derive(Debug, Args)]
pub(super) struct TermsArgs {
    /// A TOML or JSON file of terms
    #[arg(long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// A term, e.g. min-participants=3. May be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
}

/// Terms, or a template.
#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// Take the terms of this template
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "set"])]
    pub(super) template: Option<String>,
    #[command(flatten)]
    pub(super) terms: TermsArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum TemplateCommand {
    /// List all templates
    List,
    /// Show a template, and what its terms mean
    Show { name: String },
    /// Check terms without storing them
    Check {
        #[command(flatten)]
        terms: TermsArgs,
    },
    /// Store a template
    Put {
        name: String,
        #[command(flatten)]
        terms: TermsArgs,
        /// How many of its cohorts are advertised at once
        #[arg(long, value_name = "M", default_value_t = 1)]
        parallel: u32,
        /// How many cohorts there are in all [default: no end]
        #[arg(long, value_name = "N")]
        cohorts: Option<u32>,
    },
    /// Remove a template. Its cohorts continue
    Remove { name: String },
    /// Advertise cohorts of it, one after the other; also after a pause
    Advertise { name: String },
    /// Advertise none, and withdraw the adverts of its cohorts that have not formed
    Pause { name: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum CohortCommand {
    /// List the cohorts that run
    List,
    /// Show a cohort
    Show { id: String },
    /// List its candidates or members
    Members { id: String },
    /// Show what has happened in it lately
    Timeline { id: String },
    /// List the cohorts that have ended, the last first
    Ended,
    /// Advertise one cohort, on terms or on those of a template
    Create {
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Withdraw its advert. Participants that have seen it may still join
    Pause { id: String },
    /// Advertise it again
    Resume { id: String },
    /// Form it with the members that were admitted
    Finalize { id: String },
    /// Give its present phase more time
    Extend {
        id: String,
        /// How much, e.g. 30m
        #[arg(long, value_name = "TIME")]
        by: String,
    },
    /// End it; its members receive the reason
    Cancel {
        id: String,
        /// The reason
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// An announcement
    Announcement,
    /// One that joins all coins
    Refresh,
    /// The move to the successor
    Move,
    /// One that only shows the roster
    Roster,
}

#[derive(Debug, Subcommand)]
pub(super) enum StandingCommand {
    /// List the standing cohorts
    List,
    /// Show one, with its coins
    Show { id: String },
    /// List its candidates or seats
    Seats { id: String },
    /// Show what has happened in it lately
    Timeline { id: String },
    /// List what it has announced, the last first
    Announcements {
        id: String,
        /// Show those before this number
        #[arg(long, value_name = "N")]
        before: Option<u64>,
    },
    /// Advertise one, on terms or on those of a template
    Create {
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Withdraw its advert, before it has formed
    Pause { id: String },
    /// Advertise it again
    Resume { id: String },
    /// Form it of the seats that were admitted
    Finalize { id: String },
    /// End it, before it has formed
    Cancel {
        id: String,
        /// The reason
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Open a number now, as far as its terms allow that
    Trigger {
        id: String,
        /// What the number does
        #[arg(long, value_enum, default_value = "announcement")]
        kind: Kind,
    },
    /// Open no number until it is released
    Hold { id: String },
    /// Open numbers again
    Release { id: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum AdmissionCommand {
    /// List the candidates that wait
    List,
    /// Admit one
    Admit { id: u64 },
    /// Refuse one
    Refuse {
        id: u64,
        /// The reason, which it receives
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AllowCommand {
    /// List the DIDs
    List,
    /// List a DID
    Add { did: String },
    /// Remove a DID from the list
    Remove { did: String },
}

/// An end.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct EndArgs {
    /// Until this time: 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// For this time from now on: 7d, 12h
    #[arg(long = "for", value_name = "SPAN")]
    pub(super) span: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum InviteCommand {
    /// List all invites
    List,
    /// Make an invite, and print its token
    New {
        /// How many DIDs it admits
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
        /// A name for it in the list
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
        #[command(flatten)]
        end: EndArgs,
    },
    /// Revoke an invite
    Revoke { id: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum BanCommand {
    /// List everyone with a ban or a recorded offence
    List,
    /// Show a record, with its evidence
    Show { subject: String },
    /// Ban a DID, a network address, or invite:ID
    Add {
        subject: String,
        /// The reason, for readers of the list
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        end: EndArgs,
    },
    /// Lift a ban, and delete the record
    Lift { subject: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum CoinsCommand {
    /// List what is wanted, paid and on its way
    List,
    /// Show the announcement of one cohort
    Show { id: String },
    /// Bump the fee of a cohort's announcement now
    Bump {
        id: String,
        /// The rate to pay, in sat/vB [default: half more than now]
        #[arg(long, value_name = "RATE")]
        fee_rate: Option<f64>,
    },
    /// Hold a cohort's transaction back, also before it is signed; not once it is broadcast
    Hold { id: String },
    /// Broadcast a transaction that is held back
    Release { id: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum SettingsCommand {
    /// Show the settings
    Show,
    /// Change settings: KEY=VALUE; KEY=null is as on the command line again
    Set {
        #[arg(required = true, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// List all tokens
    List,
    /// Make a token, and print it once
    New {
        /// viewer, operator or admin
        #[arg(long)]
        role: Role,
        /// For the console alone: with a second factor, whose URI is in the answer
        #[arg(long)]
        totp: bool,
        /// A name for it
        #[arg(long, value_name = "TEXT")]
        label: String,
        #[command(flatten)]
        end: EndArgs,
    },
    /// Revoke a token
    Revoke { id: String },
}
