//! The calls that the arguments of `ctl` stand for.

use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::args::{
    AdmissionCommand, AllowCommand, BanCommand, CohortCommand, CoinsCommand, CtlCommand, EndArgs, InviteCommand,
    Kind, SettingsCommand, SourceArgs, StandingCommand, TemplateCommand, TermsArgs, TokenCommand,
};
use crate::{config, inputs};

/// What is asked of the API.
pub(super) enum Asked {
    /// A call.
    Call { method: &'static str, path: String, body: Option<Value> },
    /// The audit log.
    Audit { path: String },
    /// The events.
    Events { after: Option<String>, until: Option<String> },
}

/// An identifier as a part of a path.
fn part(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn get(path: impl Into<String>) -> Asked {
    Asked::Call { method: "GET", path: path.into(), body: None }
}

fn call(method: &'static str, path: impl Into<String>, body: Value) -> Asked {
    let body = if body.is_null() { None } else { Some(body) };
    Asked::Call { method, path: path.into(), body }
}

/// An object without the fields that are null.
fn object(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}

/// `KEY=VALUE`: a value that is JSON is that, another one is text.
fn pairs(given: &[String]) -> Result<Map<String, Value>, String> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text}: KEY=VALUE expected"))?;
        let value = match serde_json::from_str::<Value>(value) {
            Ok(Value::Object(_)) | Err(_) => Value::String(value.to_owned()),
            Ok(value) => value,
        };
        Ok((key.trim().to_owned(), value))
    };
    given.iter().map(pair).collect()
}

fn read(path: &Path) -> Result<Map<String, Value>, String> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return inputs::json(path).map_err(|error| error.to_string());
    }
    config::read(path).map_err(|error| error.to_string())
}

impl TermsArgs {
    fn terms(&self) -> Result<Map<String, Value>, String> {
        let mut terms = self.file.as_deref().map(read).transpose()?.unwrap_or_default();
        terms.extend(pairs(&self.set)?);
        Ok(terms)
    }
}

impl SourceArgs {
    fn body(&self) -> Result<Value, String> {
        Ok(match &self.template {
            Some(template) => json!({ "template": template }),
            None => json!({ "terms": self.terms.terms()? }),
        })
    }
}

impl EndArgs {
    fn over(&self, mut body: Value) -> Value {
        (body["until"], body["for"]) = (json!(self.until), json!(self.span));
        object(body)
    }
}

impl CtlCommand {
    /// The call.
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub(super) fn asked(self) -> Result<Asked, String> {
        Ok(match self {
            Self::Status => get("/status"),
            Self::Whoami => get("/whoami"),
            Self::Metrics => get("/metrics"),
            Self::Alarms => get("/alarms"),
            Self::Events { after, until } => Asked::Events { after, until },
            Self::Template(command) => command.asked()?,
            Self::Cohort(command) => command.asked()?,
            Self::Standing(command) => command.asked()?,
            Self::Admission(command) => match command {
                AdmissionCommand::List => get("/admissions"),
                AdmissionCommand::Admit { id } => call("POST", format!("/admissions/{id}/admit"), Value::Null),
                AdmissionCommand::Refuse { id, reason } => {
                    call("POST", format!("/admissions/{id}/refuse"), object(json!({ "reason": reason })))
                }
            },
            Self::Allow(command) => match command {
                AllowCommand::List => get("/allow-list"),
                AllowCommand::Add { did } => call("PUT", format!("/allow-list/{}", part(&did)), Value::Null),
                AllowCommand::Remove { did } => call("DELETE", format!("/allow-list/{}", part(&did)), Value::Null),
            },
            Self::Invite(command) => match command {
                InviteCommand::List => get("/invites"),
                InviteCommand::New { uses, label, end } => {
                    call("POST", "/invites", end.over(json!({ "uses": uses, "label": label })))
                }
                InviteCommand::Revoke { id } => call("DELETE", format!("/invites/{}", part(&id)), Value::Null),
            },
            Self::Ban(command) => match command {
                BanCommand::List => get("/bans"),
                BanCommand::Show { subject } => get(format!("/bans/{}", part(&subject))),
                BanCommand::Add { subject, reason, end } => {
                    call("PUT", format!("/bans/{}", part(&subject)), end.over(json!({ "reason": reason })))
                }
                BanCommand::Lift { subject } => call("DELETE", format!("/bans/{}", part(&subject)), Value::Null),
            },
            Self::Coins(command) => match command {
                CoinsCommand::List => get("/coins"),
                CoinsCommand::Show { id } => get(format!("/coins/{}", part(&id))),
                CoinsCommand::Bump { id, fee_rate } => {
                    call("POST", format!("/coins/{}/bump", part(&id)), object(json!({ "feeRate": fee_rate })))
                }
                CoinsCommand::Hold { id } => call("POST", format!("/coins/{}/hold", part(&id)), Value::Null),
                CoinsCommand::Release { id } => call("POST", format!("/coins/{}/release", part(&id)), Value::Null),
            },
            Self::Settings(command) => match command {
                SettingsCommand::Show => get("/settings"),
                SettingsCommand::Set { set } => call("PATCH", "/settings", pairs(&set)?.into()),
            },
            Self::Token(command) => match command {
                TokenCommand::List => get("/tokens"),
                TokenCommand::New { role, label, totp, end } => {
                    call("POST", "/tokens", end.over(json!({ "role": role, "label": label, "totp": totp })))
                }
                TokenCommand::Revoke { id } => call("DELETE", format!("/tokens/{}", part(&id)), Value::Null),
            },
            Self::Audit { before, limit } => {
                let before = before.map(|before| format!("&before={before}")).unwrap_or_default();
                Asked::Audit { path: format!("/audit?limit={limit}{before}") }
            }
        })
    }
}

impl TemplateCommand {
    fn asked(self) -> Result<Asked, String> {
        let at = |name: &str| format!("/templates/{}", part(name));
        Ok(match self {
            Self::List => get("/templates"),
            Self::Show { name } => get(at(&name)),
            Self::Check { terms } => call("POST", "/terms/check", json!({ "terms": terms.terms()? })),
            Self::Put { name, terms, parallel, cohorts } => {
                let body = json!({ "terms": terms.terms()?, "parallel": parallel, "cohorts": cohorts });
                call("PUT", at(&name), object(body))
            }
            Self::Remove { name } => call("DELETE", at(&name), Value::Null),
            Self::Advertise { name } => call("POST", format!("{}/advertise", at(&name)), Value::Null),
            Self::Pause { name } => call("POST", format!("{}/pause", at(&name)), Value::Null),
        })
    }
}

impl CohortCommand {
    fn asked(self) -> Result<Asked, String> {
        let at = |id: &str| format!("/cohorts/{}", part(id));
        let post = |id: &str, what: &str| call("POST", format!("{}/{what}", at(id)), Value::Null);
        Ok(match self {
            Self::List => get("/cohorts"),
            Self::Show { id } => get(at(&id)),
            Self::Members { id } => get(format!("{}/members", at(&id))),
            Self::Timeline { id } => get(format!("{}/timeline", at(&id))),
            Self::Ended => get("/ended"),
            Self::Create { source } => call("POST", "/cohorts", source.body()?),
            Self::Pause { id } => post(&id, "pause"),
            Self::Resume { id } => post(&id, "resume"),
            Self::Finalize { id } => post(&id, "finalize"),
            Self::Extend { id, by } => call("POST", format!("{}/extend", at(&id)), json!({ "by": by })),
            Self::Cancel { id, reason } => {
                call("POST", format!("{}/cancel", at(&id)), object(json!({ "reason": reason })))
            }
        })
    }
}

impl StandingCommand {
    fn asked(self) -> Result<Asked, String> {
        let at = |id: &str| format!("/standing/{}", part(id));
        let post = |id: &str, what: &str| call("POST", format!("{}/{what}", at(id)), Value::Null);
        Ok(match self {
            Self::List => get("/standing"),
            Self::Show { id } => get(at(&id)),
            Self::Seats { id } => get(format!("{}/seats", at(&id))),
            Self::Timeline { id } => get(format!("{}/timeline", at(&id))),
            Self::Announcements { id, before } => {
                let before = before.map(|before| format!("?before={before}")).unwrap_or_default();
                get(format!("{}/announcements{before}", at(&id)))
            }
            Self::Create { source } => call("POST", "/standing", source.body()?),
            Self::Pause { id } => post(&id, "pause"),
            Self::Resume { id } => post(&id, "resume"),
            Self::Finalize { id } => post(&id, "finalize"),
            Self::Cancel { id, reason } => {
                call("POST", format!("{}/cancel", at(&id)), object(json!({ "reason": reason })))
            }
            Self::Trigger { id, kind } => {
                let kind = match kind {
                    Kind::Announcement => "announcement",
                    Kind::Refresh => "refresh",
                    Kind::Move => "move",
                    Kind::Roster => "roster",
                };
                call("POST", format!("{}/trigger", at(&id)), json!({ "kind": kind }))
            }
            Self::Hold { id } => post(&id, "hold"),
            Self::Release { id } => post(&id, "release"),
        })
    }
}
