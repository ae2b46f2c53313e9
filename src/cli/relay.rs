//! Relays: the settings that all commands share, and `relay check`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};

use crate::{
    actors::{
        runtime::{Clock, Randomness},
        transport::{
            nostr::{
                NostrConfig,
                check::{self, RelayCheck},
            },
            tls::Trust,
        },
    },
    config::{Period, Span},
    inputs,
};

/// Commands about Nostr relays.
#[derive(Args, Debug)]
pub(super) struct RelayArgs {
    #[command(subcommand)]
    command: RelayCommand,
}

#[derive(Debug, Subcommand)]
enum RelayCommand {
    /// Publish and read back the kinds and sizes of events that a cohort needs
    Check {
        /// The relay, wss://...
        url: String,
        /// Trust a wss relay only by the certificates in this PEM file, instead of the system's authorities
        #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CA")]
        tls_ca: Option<PathBuf>,
        /// The timeout of each check
        #[arg(long, value_name = "TIME", default_value = "10s")]
        timeout: Span,
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command: 0 when the relay does everything that a cohort needs, otherwise 1; 2 when the URL is not a
/// relay's.
pub(super) fn main(args: &RelayArgs) -> ExitCode {
    let RelayCommand::Check { url, tls_ca, timeout, json } = &args.command;
    let trust = match trust(tls_ca.as_deref()) {
        Ok(trust) => trust,
        Err(problem) => {
            err!("error: {problem}");
            return ExitCode::from(2);
        }
    };
    let mut rng = Randomness::System.for_actor("relay check");
    // The table shows the errors of the relay.
    let checking = async {
        check::check(url, &trust, Clock::system(), timeout.0.max(Duration::from_millis(1)), &mut rng).await
    };
    match super::block_on(checking) {
        Ok(outcome) => {
            let shown = if *json {
                serde_json::to_string(&outcome).map_err(|error| error.to_string())
            } else {
                Ok(table(&outcome))
            };
            out!("{}", shown.unwrap_or_else(|error| error));
            ExitCode::from(u8::from(!outcome.passed()))
        }
        Err(problem) => {
            err!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

/// The TLS certificates to trust, from the file of --tls-ca.
///
/// # Errors
/// What is wrong with the file, in words.
pub(super) fn trust(tls_ca: Option<&Path>) -> Result<Trust, String> {
    let Some(path) = tls_ca else { return Ok(Trust::system()) };
    let pem = inputs::pem(path, "a certificate").map_err(|error| error.to_string())?;
    Trust::only(pem.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))
}

fn table(outcome: &RelayCheck) -> String {
    let mut lines = vec![match (&outcome.problem, outcome.connect_ms) {
        (None, Some(time)) => format!("{}  connected in {time} ms", outcome.url),
        (problem, _) => format!("{}  NOT connected: {}", outcome.url, problem.as_deref().unwrap_or("no answer")),
    }];
    match outcome.limits.as_ref().and_then(serde_json::Value::as_object) {
        Some(limits) => {
            let limits: Vec<_> = limits.iter().map(|(name, value)| format!("{name} {value}")).collect();
            lines.push(format!("limits  {}", limits.join(", ")));
        }
        None => lines.push("limits  it states none".to_owned()),
    }
    lines.push(format!("{:42}{:>6}{:>9}{:>10}{:>11}  stored", "event", "kind", "bytes", "accepted", "delivered"));
    let time = |time: Option<u64>| time.map_or_else(|| "NO".to_owned(), |time| format!("{time} ms"));
    for probe in &outcome.probes {
        let stored = if probe.stored { "yes" } else { "NO" };
        let (accepted, delivered) = (time(probe.accepted_ms), time(probe.delivered_ms));
        lines.push(format!(
            "{:42}{:>6}{:>9}{accepted:>10}{delivered:>11}  {stored}  {}",
            probe.what,
            probe.kind,
            probe.bytes,
            probe.problem.as_deref().unwrap_or_default()
        ));
    }
    for words in &outcome.words {
        lines.push(format!("the relay reports  {words}"));
    }
    let yes = |yes: bool, no: &str| if yes { "yes".to_owned() } else { format!("no: {no}") };
    if let Some(over) = outcome.over_delivers {
        let only = yes(!over, "others are ignored here, but cost traffic");
        lines.push(format!("sends only what was asked for  {only}"));
    }
    if let Some(separates) = outcome.separates {
        let apart = yes(separates, "our names are unique, so it does not matter");
        lines.push(format!("separates subscriptions of one name on two connections  {apart}"));
    }
    if let Some(forgets) = outcome.forgets {
        let forgets = if forgets { "yes" } else { "no: late participants may try to join cohorts that are over" };
        lines.push(format!("forgets adverts when asked (NIP-09, not needed)  {forgets}"));
    }
    lines.push(if outcome.passed() { "fit for cohorts" } else { "NOT fit for every cohort" }.to_owned());
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// The settings of `serve` and `join` for relays.
pub(super) struct RelaySettings {
    pub(super) relays: Vec<String>,
    pub(super) look_back: Option<Span>,
    pub(super) timeout: Option<Period>,
    pub(super) publish_timeout: Option<Period>,
    pub(super) retry: Option<Period>,
    pub(super) trust: Trust,
}

impl RelaySettings {
    /// The transport's configuration; `None` when there are no relays, unless `another` will be added.
    ///
    /// # Errors
    /// What is missing or invalid, in words.
    pub(super) fn config(self, another: bool) -> Result<Option<NostrConfig>, String> {
        let Self { relays, look_back, timeout, publish_timeout, retry, trust } = self;
        if relays.is_empty() && !another {
            let given = [timeout, publish_timeout, retry];
            if look_back.is_some() || given.iter().any(Option::is_some) {
                return Err("no relays: settings for relays need at least one --relay URL".to_owned());
            }
            return Ok(None);
        }
        if relays.iter().any(|relay| relay.trim().is_empty()) {
            return Err("no relays: the list of --relay is empty".to_owned());
        }
        let mut config = NostrConfig::new(relays.iter().map(|relay| relay.trim().to_owned()));
        config.trust = trust;
        let set = |setting: &mut std::time::Duration, period: Option<Period>| {
            if let Some(Period(period)) = period {
                *setting = period;
            }
        };
        if let Some(Span(look_back)) = look_back {
            config.look_back = look_back;
        }
        set(&mut config.connect_timeout, timeout);
        set(&mut config.publish_timeout, publish_timeout);
        set(&mut config.first_backoff, retry);
        Ok(Some(config))
    }
}
