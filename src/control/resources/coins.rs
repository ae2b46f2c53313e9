//! Coins and announcements: what is wanted, what is paid, what is on its way.

use ::bitcoin::{Amount, Denomination, FeeRate};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        answer::{Answer, Refusal, failed, invalid, ok},
        call::Call,
    },
    standing,
};
use crate::{
    actors::announcement::Announcements,
    bitcoin::{
        announcement::{Announcement, Input, Need, State},
        fees::sat_per_vb,
    },
    protocol::{
        cohort::standing::{Mode, announcement_vsize},
        id::CohortId,
    },
    serve::orders::Order,
};

/// The rate that the chain estimates, within the bounds of the operator.
async fn rate(announcements: &Announcements) -> FeeRate {
    let fees = announcements.rules().fees;
    let estimate = announcements.settings().chain.fee_estimate(fees.target()).await.ok().flatten();
    fees.first(estimate)
}

/// The state as a word.
const fn state(state: &State) -> &'static str {
    match state {
        State::Planned => "planned",
        State::Funding { .. } => "funding",
        State::Signing { .. } => "signing",
        State::Announcing(_) => "announcing",
        State::Final { .. } => "final",
        State::Failed { .. } => "failed",
    }
}

async fn view(call: &Call, cohort_id: &CohortId, announcement: &Announcement, rate: FeeRate) -> Value {
    let machine = call.shared.parts.service.cohort(cohort_id).inspect().await;
    let output = machine.as_ref().and_then(|machine| machine.phase().formed()).map(|formed| formed.output.clone());
    let mut shown = json!({ "cohortId": cohort_id, "state": state(announcement.state()) });
    if let Some(output) = &output {
        shown["beaconAddress"] = json!(output.address());
    }
    shown["unspent"] = json!(announcement.sight().unspent().to_sat());
    shown["held"] = json!(announcement.is_held());
    shown["inSight"] = json!(announcement.is_in_sight());
    match announcement.state() {
        State::Funding { deadline } => {
            shown["deadline"] = json!(deadline);
            let need = output.as_ref().and_then(|output| Need::of(output, announcement.rules(), rate).ok());
            shown["wanted"] = json!(need.map(|need| json!({
                "atLeast": need.at_least.to_sat(), "suggested": need.suggested.to_sat(), "feeRate": sat_per_vb(rate),
                "uri": output.as_ref().map(|output| uri(output.address(), Some(need.suggested))),
            })));
        }
        State::Signing { deadline, .. } => shown["deadline"] = json!(deadline),
        State::Announcing(announcing) => {
            let bump = announcing.bump();
            shown["txid"] = json!(announcing.txid);
            shown["fee"] = json!(bump.parent_fee.to_sat());
            shown["feeRate"] = json!(sat_per_vb(bump.rate()));
            shown["child"] = json!(announcing.child.as_ref().map(|child| child.transaction.compute_txid()));
            let of = announcement.rules().confirmations;
            shown["confirmed"] = json!(
                announcing.confirmed.map(|(block, depth)| json!({ "block": block, "depth": depth, "of": of }))
            );
            shown["bumpImpossible"] = json!(announcing.bump_impossible);
        }
        State::Final { txid, paid, .. } => {
            shown["txid"] = json!(txid);
            shown["fee"] = json!((paid.fee + paid.child_fee).to_sat());
        }
        State::Failed { failure } => shown["reason"] = json!(failure.to_string()),
        State::Planned => {}
    }
    shown
}

/// A payment as wallets read it (BIP 21), also from a QR code.
fn uri(address: &str, amount: Option<Amount>) -> String {
    match amount {
        Some(amount) => format!("bitcoin:{address}?amount={}", amount.display_in(Denomination::Bitcoin)),
        None => format!("bitcoin:{address}"),
    }
}

/// The announcement of one cohort.
pub(crate) async fn show(call: &Call) -> Answer {
    let cohort_id = call.cohort_id()?;
    let none = || Refusal::NotFound(format!("there is no announcement of cohort {cohort_id}"));
    let known = call.shared.parts.announcements.as_ref().ok_or_else(none)?;
    // Asked for another cohort, the book answers with a plan.
    let is_known = known.cohorts().await.map_err(failed)?.contains(&cohort_id);
    let announcement = known.inspect(&cohort_id).await.ok().filter(|_| is_known).ok_or_else(none)?;
    ok(view(call, &cohort_id, &announcement, rate(known).await).await)
}

pub(crate) async fn list(call: &Call) -> Answer {
    let (mut announcements, mut wanted_rate) = (Vec::new(), None);
    if let Some(known) = &call.shared.parts.announcements {
        let rate = rate(known).await;
        wanted_rate = Some(sat_per_vb(rate));
        for cohort_id in known.cohorts().await.map_err(failed)? {
            if let Ok(announcement) = known.inspect(&cohort_id).await {
                announcements.push(view(call, &cohort_id, &announcement, rate).await);
            }
        }
    }
    let mut cohorts = Vec::new();
    for cohort in call.shared.parts.service.standing_cohorts().await {
        let Some(machine) = cohort.inspect().await.filter(|machine| machine.has_formed()) else { continue };
        let mut shown = standing::view(call, &machine);
        let (terms, seats) = (&machine.config().terms, machine.seats().count());
        if let Value::Object(fields) = &mut shown {
            fields.retain(|name, _| {
                matches!(
                    name.as_str(),
                    "cohortId" | "beaconAddress" | "coins" | "unconfirmed" | "announcementsLeft"
                )
            });
        }
        shown["uri"] = json!(machine.output().map(|output| uri(output.address(), None)));
        shown["announcementVsize"] = json!({
            "byKey": announcement_vsize(terms, seats, Mode::Key), "byFallback": announcement_vsize(terms, seats, Mode::Fallback),
        });
        cohorts.push(shown);
    }
    ok(json!({ "feeRate": wanted_rate, "announcements": announcements, "standing": cohorts }))
}

pub(crate) async fn bump(call: &Call) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Body {
        fee_rate: Option<f64>,
    }
    let body: Body = call.body()?;
    let rate = match body.fee_rate {
        Some(rate) if rate.is_finite() && (1.0..=100_000.0).contains(&rate) => {
            // 1 sat/vB is 250 sat for a thousand weight units.
            Some(FeeRate::from_sat_per_kwu((rate * 250.0).ceil() as u64))
        }
        Some(_) => return Err(invalid(Some("feeRate"), "1 to 100000 sat/vB expected")),
        None => None,
    };
    order(call, "coins.bump", json!({ "feeRate": body.fee_rate }), Input::Bump { rate }).await
}

pub(crate) async fn hold(call: &Call) -> Answer {
    hold_or_release(call, true).await
}

pub(crate) async fn release(call: &Call) -> Answer {
    hold_or_release(call, false).await
}

async fn hold_or_release(call: &Call, held: bool) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {}
    let Body {} = call.body()?;
    order(call, if held { "coins.hold" } else { "coins.release" }, Value::Null, Input::Hold { held }).await
}

/// An order about the announcement that the path names.
async fn order(call: &Call, action: &'static str, request: Value, input: Input) -> Answer {
    let cohort_id = call.cohort_id()?;
    let known = match &call.shared.parts.announcements {
        Some(announcements) => announcements.cohorts().await.map_err(failed)?.contains(&cohort_id),
        None => false,
    };
    if !known {
        return Err(Refusal::NotFound(format!("there is no announcement of cohort {cohort_id}")));
    }
    let target = cohort_id.clone();
    let input = Box::new(input);
    let order = call.shared.order(|done| Order::Announcement { cohort_id, input, done });
    call.change(action, Some(target.as_str()), request, order).await?;
    ok(json!({ "cohortId": target, "ok": true }))
}
