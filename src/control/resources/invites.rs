//! Invites.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        answer::{Answer, Refusal, created, invalid, ok},
        call::{Call, blocking},
        views,
    },
    End, text,
};
use crate::{
    actors::{
        invites::{Invite, MOST_USES},
        runtime::Randomness,
    },
    protocol::invite::{InviteId, InviteToken},
};

/// How long an invite is valid by default.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

pub(crate) async fn list(call: &Call) -> Answer {
    let (invites, now) = (call.shared.parts.invites.clone(), call.now());
    let invites = blocking(move || invites.list()).await?;
    ok(json!({ "invites": invites.iter().map(|(id, invite)| views::invite(id, invite, now)).collect::<Vec<_>>() }))
}

pub(crate) async fn create(call: &Call) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default = "one")]
        uses: u32,
        until: Option<String>,
        #[serde(rename = "for")]
        span: Option<String>,
        label: Option<String>,
    }
    const fn one() -> u32 {
        1
    }
    let Body { uses, until, span, label } = call.body()?;
    if !(1..=MOST_USES).contains(&uses) {
        return Err(invalid(Some("uses"), format!("1 to {MOST_USES} expected")));
    }
    let now = call.now();
    let expires = End { until, span }.at(now)?.unwrap_or(now + WEEK);
    let label = text("label", label)?;
    let token = InviteToken::generate(&mut Randomness::System.for_actor("invite"));
    let id = token.id().to_string();
    let request = json!({ "uses": uses, "expires": views::until(expires), "label": label });
    let invite = Invite::new(&token, now, expires, uses, label);
    let text = token.reveal();
    let invites = call.shared.parts.invites.clone();
    let work = blocking(move || invites.add(&token, invite));
    call.change("invite.create", Some(&id), request, work).await?;
    // Behind `#`: a browser sends it to no one, so that it is in no log.
    let link =
        call.shared.parts.about.page.as_ref().map(|page| format!("{}/#invite={text}", page.trim_end_matches('/')));
    // The token is in this answer alone.
    created(json!({ "invite": id, "token": text, "link": link, "uses": uses, "expires": views::until(expires) }))
}

pub(crate) async fn revoke(call: &Call) -> Answer {
    let unknown = || call.unknown("invite");
    let id: InviteId = call.named().parse().map_err(|_| unknown())?;
    let invites = call.shared.parts.invites.clone();
    let known = blocking(move || invites.list()).await?;
    if !known.contains_key(&id) {
        return Err(unknown());
    }
    let invites = call.shared.parts.invites.clone();
    let work = async {
        let revoked = blocking(move || invites.revoke(id)).await?;
        if revoked { Ok(()) } else { Err::<(), Refusal>(unknown()) }
    };
    call.change("invite.revoke", Some(&id.to_string()), Value::Null, work).await?;
    ok(json!({ "invite": id.to_string(), "state": "revoked" }))
}
