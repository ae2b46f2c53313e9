//! The ban list.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        answer::{Answer, Refusal, invalid, ok},
        call::{Call, blocking},
        views,
    },
    End, text,
};
use crate::{actors::subject::Subject, protocol::time::Timestamp};

/// The most records of one page.
const MOST: u64 = 1_000;

fn subject(call: &Call) -> Result<Subject, Refusal> {
    call.named().parse().map_err(|error: crate::actors::subject::SubjectError| invalid(Some("subject"), error))
}

pub(crate) async fn list(call: &Call) -> Answer {
    let most = usize::try_from(call.number("limit", MOST)?.unwrap_or(MOST)).unwrap_or(usize::MAX);
    let after = call.query.get("after").cloned();
    let bans = call.shared.parts.bans.clone();
    let members = blocking(move || bans.list()).await?;
    let now = call.now();
    let mut page: Vec<(String, Value)> =
        members.iter().map(|(subject, conduct)| (subject.to_string(), views::ban(subject, conduct, now))).collect();
    page.sort_by(|(a, _), (b, _)| a.cmp(b));
    page.retain(|(name, _)| after.as_ref().is_none_or(|after| name > after));
    let next = page.get(most.saturating_sub(1)).filter(|_| page.len() > most).map(|(name, _)| name.clone());
    page.truncate(most);
    ok(json!({ "bans": page.into_iter().map(|(_, ban)| ban).collect::<Vec<_>>(), "next": next }))
}

pub(crate) async fn show(call: &Call) -> Answer {
    let (subject, bans, now) = (subject(call)?, call.shared.parts.bans.clone(), call.now());
    let members = blocking(move || bans.list()).await?;
    let conduct = members.get(&subject).ok_or_else(|| call.unknown("record of"))?;
    let mut shown = views::ban(&subject, conduct, now);
    shown["offences"] = Value::from_iter(conduct.entries.iter().map(views::offence));
    ok(shown)
}

pub(crate) async fn add(call: &Call) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        until: Option<String>,
        #[serde(rename = "for")]
        span: Option<String>,
        reason: Option<String>,
    }
    let subject = subject(call)?;
    let Body { until, span, reason } = call.body()?;
    let end = End { until, span }.at(call.now())?.unwrap_or(Timestamp::NEVER);
    let reason = text("reason", reason)?;
    let request = json!({ "until": views::until(end), "reason": reason });
    let (bans, of) = (call.shared.parts.bans.clone(), subject.clone());
    let work = blocking(move || bans.add(of, end, reason));
    call.change("ban.add", Some(&subject.to_string()), request, work).await?;
    ok(views::named(&subject, json!({ "banned": true, "until": views::until(end) })))
}

pub(crate) async fn lift(call: &Call) -> Answer {
    let subject = subject(call)?;
    let (bans, of) = (call.shared.parts.bans.clone(), subject.clone());
    if !blocking(move || bans.list()).await?.contains_key(&of) {
        return Err(call.unknown("record of"));
    }
    let bans = call.shared.parts.bans.clone();
    let work = async {
        let lifted = blocking(move || bans.lift(of)).await?;
        if lifted { Ok(()) } else { Err(call.unknown("record of")) }
    };
    call.change("ban.lift", Some(&subject.to_string()), Value::Null, work).await?;
    ok(views::named(&subject, json!({ "banned": false })))
}
