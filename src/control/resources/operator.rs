//! What concerns the operators themselves: settings, tokens, and the audit log.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    super::{
        answer::{Answer, Refusal, created, failed, invalid, ok},
        audit::MOST_ENTRIES,
        call::{Call, blocking},
        role::Role,
        settings,
        tokens::check_label,
        totp::TotpSecret,
    },
    End,
};

/// The entries of a page of the audit log unless another number is asked for.
const PAGE: u64 = 100;

pub(crate) async fn settings(call: &Call) -> Answer {
    ok(call.shared.settings.view().await)
}

pub(crate) async fn change_settings(call: &Call) -> Answer {
    let body: Map<String, Value> = call.body()?;
    let patch = settings::patch(&body).map_err(Refusal::Invalid)?;
    let work = async { call.shared.settings.change(patch).await.map_err(failed) };
    call.change("settings.change", None, json!(body), work).await?;
    call.shared.wake().await;
    settings(call).await
}

pub(crate) async fn tokens(call: &Call) -> Answer {
    let (tokens, now) = (call.shared.tokens.clone(), call.now());
    let tokens = blocking(move || tokens.list()).await?;
    ok(json!({ "tokens": tokens.iter().map(|(id, token)| token.view(id, now)).collect::<Vec<_>>() }))
}

pub(crate) async fn new_token(call: &Call) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        role: Role,
        label: String,
        until: Option<String>,
        #[serde(rename = "for")]
        span: Option<String>,
        #[serde(default)]
        totp: bool,
    }
    let Body { role, label, until, span, totp } = call.body()?;
    check_label(&label).map_err(|problem| invalid(Some("label"), problem))?;
    let now = call.now();
    let expires = End { until, span }.at(now)?;
    let until = expires.and_then(|expires| expires.to_date());
    let request = json!({ "role": role, "label": label, "expires": until, "totp": totp });
    let totp = totp.then(TotpSecret::generate);
    let tokens = call.shared.tokens.clone();
    let work = blocking(move || tokens.add(&label, role, now, expires, totp));
    let made = call.change("token.create", None, request, work).await?;
    let mut shown = made.token.view(&made.id, now);
    // The token is in this answer alone, and so is the secret of its second factor.
    shown["token"] = json!(&*made.text);
    if let Some(totp) = &made.token.totp {
        shown["otpauth"] = json!(&*totp.uri(&made.token.label));
    }
    created(shown)
}

pub(crate) async fn revoke_token(call: &Call) -> Answer {
    let (id, now) = (call.named().to_owned(), call.now());
    let tokens = call.shared.tokens.clone();
    let known = blocking(move || tokens.list()).await?;
    if known.get(&id).is_none_or(|token| token.revoked.is_some()) {
        return Err(call.unknown("valid token"));
    }
    let (tokens, of) = (call.shared.tokens.clone(), id.clone());
    let work = async {
        let revoked = blocking(move || tokens.revoke(&of, now)).await?;
        revoked.ok_or_else(|| call.unknown("valid token"))
    };
    let token = call.change("token.revoke", Some(&id), Value::Null, work).await?;
    ok(token.view(&id, now))
}

pub(crate) async fn audit(call: &Call) -> Answer {
    let before = call.number("before", u64::MAX)?;
    let most = call.number("limit", MOST_ENTRIES as u64)?.unwrap_or(PAGE);
    let most = usize::try_from(most).unwrap_or(MOST_ENTRIES);
    let audit = call.shared.audit.clone();
    let entries = blocking(move || audit.page(before, most)).await?;
    let last = entries.last().and_then(|entry| entry["n"].as_u64());
    let next = last.filter(|number| *number > 1 && entries.len() == most);
    ok(json!({ "entries": entries, "next": next }))
}
