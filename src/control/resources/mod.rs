//! What the API shows and changes, a file for each kind.

pub(super) mod admission;
pub(super) mod bans;
pub(super) mod cohorts;
pub(super) mod coins;
pub(super) mod invites;
pub(super) mod operator;
pub(super) mod standing;
pub(super) mod status;
pub(super) mod templates;

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::{Refusal, invalid};
use crate::{
    config::Period,
    protocol::{text::shown_within, time::Timestamp},
    serve::terms::Terms,
};

use super::call::Call;

/// The longest reason or label, in characters.
const MOST_TEXT: usize = 500;

/// The longest time that a request may name.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A text of the operator, as members and logs see it.
fn text(field: &str, text: Option<String>) -> Result<Option<String>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    if text.chars().count() > MOST_TEXT {
        return Err(invalid(Some(field), format!("at most {MOST_TEXT} characters expected")));
    }
    Ok(Some(shown_within(&text, usize::MAX).into_owned()))
}

/// The reason in the body of a call that ends or refuses something; `default` if it has none.
fn reason(call: &Call, default: &str) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        reason: Option<String>,
    }
    let body: Body = call.body()?;
    Ok(text("reason", body.reason)?.unwrap_or_else(|| default.to_owned()))
}

/// A length of time: `90s`, `15m`.
fn period(field: &str, text: &str) -> Result<Duration, Refusal> {
    let Period(period) = text.parse().map_err(|error| invalid(Some(field), error))?;
    if period > LONGEST {
        return Err(invalid(Some(field), "a shorter time expected"));
    }
    Ok(period)
}

/// An end: a time in UTC, or a length of time from now on.
#[derive(Debug, Default, Deserialize)]
struct End {
    until: Option<String>,
    #[serde(rename = "for")]
    span: Option<String>,
}

impl End {
    /// The end; `None` if none is given.
    fn at(&self, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
        let end = match (&self.until, &self.span) {
            (Some(_), Some(_)) => return Err(invalid(Some("until"), "either `until` or `for` expected")),
            (Some(until), None) => {
                let at = humantime::parse_rfc3339_weak(until.trim())
                    .map_err(|error| invalid(Some("until"), format!("a time in UTC expected: {error}")))?;
                let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                Timestamp::default() + since
            }
            (None, Some(span)) => now + period("for", span)?,
            (None, None) => return Ok(None),
        };
        if end <= now {
            return Err(invalid(Some("until"), "a time in the future expected"));
        }
        Ok(Some(end))
    }
}

/// Terms of a request: those of a template, or its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    template: Option<String>,
    terms: Option<Map<String, Value>>,
}

impl Source {
    fn terms(self, call: &Call) -> Result<(Terms, Option<String>), Refusal> {
        match (self.template, self.terms) {
            (Some(name), None) => {
                let known = call.shared.templates.get(&name);
                let known = known.ok_or_else(|| invalid(Some("template"), "there is no template of this name"))?;
                Ok((known.terms.map_err(Refusal::Invalid)?, Some(name)))
            }
            (None, Some(draft)) => Ok((call.shared.templates.read(&draft).map_err(Refusal::Invalid)?, None)),
            _ => Err(invalid(None, "either `template` or `terms` expected")),
        }
    }
}
