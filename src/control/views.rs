//! What is shown of bans and invites, by the API and by the commands that read the same files.

use serde_json::{Value, json};

use crate::{
    actors::{
        bans::{Conduct, Entry},
        invites::Invite,
        subject::Subject,
    },
    protocol::{invite::InviteId, time::Timestamp},
};

/// A time in UTC. A time outside of the calendar is shown as a number.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_date().unwrap_or_else(|| at.as_millis().to_string())
}

/// An end; `null` when there is none.
pub(crate) fn until(end: Timestamp) -> Value {
    if end == Timestamp::NEVER { Value::Null } else { time(end).into() }
}

/// Adds the subject: `did`, `address` or `invite`.
pub(crate) fn named(subject: &Subject, mut about: Value) -> Value {
    let (field, name) = match subject {
        Subject::Did(did) => ("did", did.to_string()),
        Subject::Address(address) => ("address", address.to_string()),
        Subject::Invite(invite) => ("invite", invite.to_string()),
    };
    if let Value::Object(fields) = &mut about {
        fields.shift_insert(0, field.to_owned(), name.into());
    }
    about
}

/// A record of the ban list, without its offences.
pub(crate) fn ban(subject: &Subject, conduct: &Conduct, now: Timestamp) -> Value {
    let ban = conduct.ban(now);
    let summary = json!({
        "banned": ban.is_some(),
        "until": ban.map_or(Value::Null, until),
        "reason": conduct.reason,
        "offences": conduct.entries.len(),
    });
    named(subject, summary)
}

/// An offence, with its evidence.
pub(crate) fn offence(entry: &Entry) -> Value {
    let Entry { offence, cohort_id, number, at, detail, address, invite, evidence } = entry;
    let mut shown = json!({
        "offence": offence, "cohortId": cohort_id, "at": time(*at), "detail": detail, "address": address,
        "invite": invite, "evidence": evidence,
    });
    // Of standing cohorts only.
    if let Some(number) = number {
        shown["number"] = json!(number);
    }
    shown
}

/// The state of an invite.
pub(crate) fn invite_state(invite: &Invite, now: Timestamp) -> &'static str {
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

/// An invite, without its token.
pub(crate) fn invite(id: &InviteId, invite: &Invite, now: Timestamp) -> Value {
    json!({
        "invite": id.to_string(),
        "label": invite.label,
        "state": invite_state(invite, now),
        "expires": until(invite.expires),
        "uses": invite.uses,
        "admitted": invite.admitted,
    })
}
