//! The commands that show what an agent knows, and that decide.

use clap::Args;
use serde_json::Value;

use super::{MemberFailure, StateArgs};
use crate::{
    member::{control::Request, offline},
    protocol::{did::Did, text::shown},
};

#[derive(Args, Debug)]
pub(super) struct QueueArgs {
    #[command(flatten)]
    at: StateArgs,
    /// This DID's updates only
    #[arg(long, value_name = "DID")]
    did: Option<Did>,
    /// Also those that are resolvable, refused or cancelled
    #[arg(long)]
    all: bool,
}

#[derive(Args, Debug)]
pub(super) struct IdArgs {
    /// Its number
    #[arg(value_name = "ID")]
    id: u64,
    #[command(flatten)]
    at: StateArgs,
}

#[derive(Args, Debug)]
pub(super) struct RejectArgs {
    /// Its number
    #[arg(value_name = "ID")]
    id: u64,
    /// Why; the service sees it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    at: StateArgs,
}

#[derive(Args, Debug)]
pub(super) struct LogArgs {
    /// How many lines
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    most: usize,
    #[command(flatten)]
    at: StateArgs,
}

/// A field as text, escaped for a terminal.
pub(super) fn field(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => shown(text).into_owned(),
        Some(other) => shown(&other.to_string()).into_owned(),
    }
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) async fn status(args: &StateArgs) -> Result<(), MemberFailure> {
    let status = offline(&args.state, Request::Status).await?;
    if args.json {
        out!("{status}");
        return Ok(());
    }
    match status["running"].as_bool() {
        Some(true) => out!("running   process {}", field(&status, "pid")),
        _ => out!("running   no"),
    }
    for seat in list(&status["seats"]) {
        out!("seat      {}, {} DIDs", field(seat, "name"), field(seat, "dids"));
        for cohort in list(&seat["cohorts"]) {
            out!(
                "  cohort  {} of {}: {} {}, number {}, {} registered, {} may be announced",
                field(cohort, "cohortId"),
                field(cohort, "service"),
                field(cohort, "beaconType"),
                field(cohort, "beaconAddress"),
                field(cohort, "number"),
                field(cohort, "registered"),
                field(cohort, "mayBeAnnounced")
            );
            if cohort["successor"].is_string() {
                let moved = if cohort["hasMoved"] == true { "has moved" } else { "moves" };
                out!("          {moved} to cohort {}", field(cohort, "successor"));
            }
            if cohort["former"].as_u64().is_some_and(|former| former > 0) {
                out!(
                    "          {} DIDs have left: what is announced later is fetched for them too",
                    field(cohort, "former")
                );
            }
        }
    }
    let counts = status["queue"].as_object().into_iter().flatten();
    let counts: Vec<String> = counts.map(|(stage, count)| format!("{count} {stage}")).collect();
    out!("queue     {}", if counts.is_empty() { "empty".to_owned() } else { counts.join(", ") });
    if status["running"] == true {
        out!("pending   {}", field(&status, "pending"));
        if status["leaving"].as_u64().is_some_and(|leaving| leaving > 0) {
            out!("leaving   {} DIDs", field(&status, "leaving"));
        }
        for silent in list(&status["silent"]) {
            out!("silent    the service {}: {}", field(silent, "service"), field(silent, "problem"));
        }
        match status["backupAgeSeconds"].as_u64() {
            Some(age) => out!("backup    {} s old", age),
            None => out!("backup    none: `vault backup FILE`"),
        }
    }
    Ok(())
}

/// One line about an update.
fn update_line(item: &Value) -> String {
    let mut line = format!(
        "{:>4}  {:<10}  {}  version {}",
        field(item, "id"),
        field(item, "stage"),
        field(item, "did"),
        field(item, "versionId")
    );
    if item.get("number").is_some() {
        line.push_str(&format!("  number {} of {}", field(item, "number"), field(item, "cohortId")));
    }
    if item.get("reason").is_some() {
        line.push_str(&format!("  {}", field(item, "reason")));
    }
    line
}

/// The address by which a browser logs in. It has a secret, which is for the terminal alone.
pub(super) async fn console_url(args: &StateArgs) -> Result<(), MemberFailure> {
    let answer = offline(&args.state, Request::ConsoleUrl).await?;
    match args.json {
        true => out!("{answer}"),
        false => out!("{}", field(&answer, "url")),
    }
    Ok(())
}

pub(super) async fn backup(args: &StateArgs) -> Result<(), MemberFailure> {
    let answer = offline(&args.state, Request::Backup).await?;
    match args.json {
        true => out!("{answer}"),
        false => out!("{}", field(&answer, "file")),
    }
    Ok(())
}

pub(super) async fn show(args: IdArgs) -> Result<(), MemberFailure> {
    let item = offline(&args.at.state, Request::Show { id: args.id }).await?;
    if args.at.json {
        out!("{item}");
        return Ok(());
    }
    out!("{}", update_line(&item));
    match (item["diff"].as_str(), item["problem"].as_str()) {
        // Its lines are escaped already.
        (Some(diff), _) => out!("\n{diff}"),
        (None, Some(problem)) => out!("{}", shown(problem)),
        (None, None) => {}
    }
    Ok(())
}

pub(super) async fn queue(args: QueueArgs) -> Result<(), MemberFailure> {
    let items = offline(&args.at.state, Request::Queue { did: args.did, all: args.all }).await?;
    if args.at.json {
        out!("{items}");
        return Ok(());
    }
    if list(&items).next().is_none() {
        out!("no update waits");
    }
    list(&items).for_each(|item| out!("{}", update_line(item)));
    Ok(())
}

pub(super) async fn cancel(args: IdArgs) -> Result<(), MemberFailure> {
    let item = offline(&args.at.state, Request::Cancel { id: args.id }).await?;
    if args.at.json {
        out!("{item}")
    } else {
        out!("{}", update_line(&item))
    }
    Ok(())
}

pub(super) async fn log(args: LogArgs) -> Result<(), MemberFailure> {
    let entries = offline(&args.at.state, Request::Log { most: args.most }).await?;
    for entry in list(&entries) {
        if args.at.json {
            out!("{entry}");
            continue;
        }
        let fields = entry["entry"].as_object().into_iter().flatten().filter(|(name, _)| *name != "event");
        let fields: Vec<String> =
            fields.map(|(name, _)| format!("{name} {}", field(&entry["entry"], name))).collect();
        out!("{} {} {}", field(entry, "at"), field(&entry["entry"], "event"), fields.join(", "));
    }
    Ok(())
}

pub(super) async fn pending(args: &StateArgs) -> Result<(), MemberFailure> {
    let pending = offline(&args.state, Request::Pending).await?;
    if args.json {
        out!("{pending}");
        return Ok(());
    }
    if list(&pending).next().is_none() {
        out!("nothing waits for a decision");
    }
    for request in list(&pending) {
        let reasons: Vec<String> = list(&request["reasons"]).filter_map(Value::as_str).map(str::to_owned).collect();
        let inner = &request["request"];
        let number = inner.get("number").map_or_else(String::new, |number| format!("number {number} of "));
        out!(
            "{:>4}  {}  {number}cohort {}  {}",
            field(request, "id"),
            field(request, "kind"),
            field(inner, "cohortId"),
            shown(&reasons.join("; "))
        );
    }
    Ok(())
}

pub(super) async fn approve(args: IdArgs) -> Result<(), MemberFailure> {
    let done = offline(&args.at.state, Request::Approve { id: args.id }).await?;
    if args.at.json {
        out!("{done}")
    } else {
        out!("request {} is approved", args.id)
    }
    Ok(())
}

pub(super) async fn reject(args: RejectArgs) -> Result<(), MemberFailure> {
    let done = offline(&args.at.state, Request::Reject { id: args.id, reason: args.reason }).await?;
    if args.at.json {
        out!("{done}")
    } else {
        out!("request {} is rejected", args.id)
    }
    Ok(())
}

pub(super) async fn dids(args: &StateArgs) -> Result<(), MemberFailure> {
    let dids = offline(&args.state, Request::Dids).await?;
    if args.json {
        out!("{dids}");
        return Ok(());
    }
    for did in list(&dids) {
        let cohorts: Vec<String> =
            list(&did["registeredIn"]).filter_map(Value::as_str).map(str::to_owned).collect();
        let cohorts = if cohorts.is_empty() { "not registered".to_owned() } else { cohorts.join(", ") };
        let mut line = format!("{}  seat {}  {}", field(did, "did"), field(did, "seat"), shown(&cohorts));
        for exit in list(&did["exits"]) {
            line.push_str(&format!("  {} {}", field(exit, "step"), field(exit, "cohortId")));
        }
        for gap in list(&did["incomplete"]) {
            line.push_str(&format!("  data incomplete: {}", field(gap, "problem")));
        }
        out!("{line}");
    }
    Ok(())
}
