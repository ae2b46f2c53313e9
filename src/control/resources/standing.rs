//! Standing cohorts.

use std::{future::Future, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        answer::{Answer, Refusal, created, failed, invalid, ok},
        call::Call,
    },
    Source, reason,
};
use crate::{
    actors::handle::{StandingCohort, StandingError},
    protocol::{
        cohort::standing::{
            CoinRef, OpportunityKind,
            cohort::{StandingCohort as Machine, Unconfirmed},
            number::Number,
        },
        time::Timestamp,
    },
    serve::{register::CohortRecord, terms::Terms},
};

/// The most announcements of one page.
const MOST_ANNOUNCEMENTS: u64 = 100;

fn refused(error: StandingError) -> Refusal {
    match error {
        StandingError::Refused(reject) => Refusal::Conflict(reject.detail),
        StandingError::Unknown => Refusal::NotFound("there is no such running standing cohort".to_owned()),
        error => Refusal::Failed(error.to_string()),
    }
}

fn coin(coin: &CoinRef) -> Value {
    json!({ "outpoint": format!("{}:{}", coin.txid, coin.vout), "value": coin.value })
}

fn unconfirmed(one: &Unconfirmed) -> Value {
    json!({
        "number": one.number, "txid": one.txid(), "feeRate": one.fee_rate(),
        "bump": one.operator_output.map(|(outpoint, value)| json!({ "outpoint": outpoint, "value": value })),
    })
}

/// What is shown of one, with its coins.
pub(super) fn view(call: &Call, machine: &Machine) -> Value {
    let config = machine.config();
    let record = call.shared.parts.register.get(&config.cohort_id).unwrap_or_default();
    let has_formed = machine.has_formed();
    let coins = machine.coins();
    let next = coins.first().map_or(0, |coin| coin.value);
    let (by_key, by_fallback) = machine.affordable(next).unzip();
    let candidates: Vec<bool> = machine.candidates().map(|(_, admitted)| admitted).collect();
    json!({
        "cohortId": config.cohort_id,
        "template": record.template,
        "state": if has_formed { "formed" } else { "enrolling" },
        "paused": record.paused && !has_formed,
        "held": machine.is_held(),
        "candidates": candidates.len(),
        "admitted": candidates.iter().filter(|admitted| **admitted).count(),
        "seats": machine.seats().count(),
        "dids": machine.roster().map_or(0, |roster| roster.len()),
        "beaconAddress": machine.output().map(|output| output.address()),
        "openNumber": machine.open_number(),
        "lastNumber": machine.last_number(),
        "coins": coins.iter().map(coin).collect::<Vec<_>>(),
        "unconfirmed": machine.unconfirmed().iter().map(unconfirmed).collect::<Vec<_>>(),
        "announcementsLeft": by_key.zip(by_fallback).map(|(by_key, by_fallback)| json!({ "byKey": by_key, "byFallback": by_fallback })),
        "successor": machine.successor().map(|successor| json!(successor.cohort_id)),
        "terms": *config.terms,
    })
}

/// One that runs, and its machine.
async fn running(call: &Call) -> Result<(StandingCohort, Arc<Machine>), Refusal> {
    let cohort = call.shared.parts.service.standing_cohort(&call.cohort_id()?);
    let machine = cohort.inspect().await.ok_or_else(|| call.unknown("running standing cohort"))?;
    Ok((cohort, machine))
}

pub(crate) async fn list(call: &Call) -> Answer {
    let mut shown = Vec::new();
    for cohort in call.shared.parts.service.standing_cohorts().await {
        if let Some(machine) = cohort.inspect().await {
            shown.push(view(call, &machine));
        }
    }
    ok(json!({ "standing": shown }))
}

pub(crate) async fn show(call: &Call) -> Answer {
    let (cohort, machine) = running(call).await?;
    let mut shown = view(call, &machine);
    drop(machine);
    shown["open"] = json!(cohort.inspect_number().await.map(|number| open_number(&number)));
    ok(shown)
}

/// What is shown of the number that is open.
fn open_number(number: &Number) -> Value {
    let task = number.task();
    let dids = number.awaited().iter().filter_map(|seat| task.seats.get(seat)).collect::<Vec<_>>();
    let stage = match (number.is_planned(), number.end(), number.board()) {
        (true, ..) => "planned",
        (_, Some(_), _) => "ended",
        (_, _, Some(_)) => "confirming",
        (_, _, None) => "responding",
    };
    let respond_by = Timestamp::from_secs(task.opportunity.respond_by);
    json!({
        "number": task.opportunity.number, "kind": task.opportunity.kind, "stage": stage, "respondBy": respond_by, "awaited": dids,
    })
}

pub(crate) async fn seats(call: &Call) -> Answer {
    let (cohort, machine) = running(call).await?;
    let applies_as = |did| machine.credentials(did).applicant;
    let candidates = machine.candidates().map(|(did, admitted)| {
        let admission = if admitted { "admitted" } else { "pending" };
        json!({ "did": did, "admission": admission, "appliesAs": applies_as(did) })
    });
    let roster = machine.roster();
    let seats = machine.seats().map(|(key, did)| {
        let dids = roster.map_or(0, |roster| roster.indexes(key).len());
        let has_left = roster.is_some_and(|roster| roster.has_left(key));
        json!({ "did": did, "admission": "admitted", "appliesAs": applies_as(did), "seatKey": key, "dids": dids, "left": has_left })
    });
    let seats: Vec<Value> = candidates.chain(seats).collect();
    ok(json!({ "cohortId": cohort.id(), "seats": seats }))
}

/// What one has announced, the last first: a page before the number `before`.
pub(crate) async fn announcements(call: &Call) -> Answer {
    let most = call.number("limit", MOST_ANNOUNCEMENTS)?.unwrap_or(MOST_ANNOUNCEMENTS);
    let (cohort, machine) = running(call).await?;
    let before = call.number("before", u64::MAX)?.unwrap_or_else(|| machine.last_number().saturating_add(1));
    drop(machine);
    // Numbers without a transaction are not listed: a page may have fewer.
    let after = before.saturating_sub(most + 1);
    let listed = call.shared.parts.history.list(cohort.id(), after, usize::try_from(most).unwrap_or(usize::MAX));
    let mut listed = listed.await.map_err(failed)?;
    listed.retain(|announced| announced.number < before);
    listed.reverse();
    let next = (after > 0).then_some(after + 1);
    ok(json!({ "cohortId": cohort.id(), "announcements": listed, "next": next }))
}

pub(crate) async fn create(call: &Call) -> Answer {
    let source: Source = call.body()?;
    let request = call.body.clone().unwrap_or_default();
    let (terms, template) = source.terms(call)?;
    let Terms::Standing(standing) = terms else {
        return Err(invalid(
            Some("standing"),
            "these are terms of a one-time cohort: POST /cohorts, or `\"standing\": true`",
        ));
    };
    let target = template.clone();
    let work = async {
        let opened = call.shared.parts.service.open_standing(standing.terms).await;
        let cohort = opened.map_err(|error| Refusal::Conflict(error.to_string()))?;
        call.shared.parts.standing.set_output(cohort.id(), standing.output).await.map_err(failed)?;
        let record = CohortRecord { template, paused: false };
        call.shared.parts.register.add(cohort.id(), record).await.map_err(failed)?;
        Ok(cohort)
    };
    let cohort = call.change("standing.create", target.as_deref(), request, work).await?;
    created(match cohort.inspect().await {
        Some(machine) => view(call, &machine),
        None => json!({ "cohortId": cohort.id(), "template": target }),
    })
}

/// Asks a cohort for something, and shows it.
async fn ask<F>(
    call: &Call,
    action: &'static str,
    request: Value,
    asking: impl FnOnce(StandingCohort) -> F,
) -> Answer
where
    F: Future<Output = Result<(), StandingError>>,
{
    let (cohort, machine) = running(call).await?;
    drop(machine);
    let target = cohort.id().clone();
    let asked = asking(cohort);
    let work = async { asked.await.map_err(refused) };
    call.change(action, Some(target.as_str()), request, work).await?;
    ok(json!({ "cohortId": target, "ok": true }))
}

pub(crate) async fn pause(call: &Call) -> Answer {
    set_advertised(call, "standing.pause", false).await
}

pub(crate) async fn resume(call: &Call) -> Answer {
    set_advertised(call, "standing.resume", true).await
}

async fn set_advertised(call: &Call, action: &'static str, advertised: bool) -> Answer {
    let answer = ask(call, action, Value::Null, |cohort| async move { cohort.advertise(advertised).await }).await?;
    let cohort_id = call.cohort_id()?;
    let record = call.shared.parts.register.get(&cohort_id).unwrap_or_default();
    call.shared
        .parts
        .register
        .set(&cohort_id, CohortRecord { paused: !advertised, ..record })
        .await
        .map_err(failed)?;
    Ok(answer)
}

pub(crate) async fn finalize(call: &Call) -> Answer {
    ask(call, "standing.finalize", Value::Null, |cohort| async move { cohort.finalize().await }).await
}

pub(crate) async fn cancel(call: &Call) -> Answer {
    let reason = reason(call, "the operator has cancelled the cohort")?;
    let request = json!({ "reason": reason });
    let answer = ask(call, "standing.cancel", request, |cohort| async move { cohort.cancel(reason).await }).await?;
    call.shared.parts.register.replace(&call.cohort_id()?, None).await.map_err(failed)?;
    Ok(answer)
}

pub(crate) async fn trigger(call: &Call) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        kind: Kind,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        #[default]
        Announcement,
        Refresh,
        Move,
        Roster,
    }
    let body: Body = call.body()?;
    let kind = match body.kind {
        Kind::Announcement => OpportunityKind::Announcement,
        Kind::Refresh => OpportunityKind::Refresh,
        Kind::Move => OpportunityKind::Move,
        Kind::Roster => OpportunityKind::Roster,
    };
    let request = call.body.clone().unwrap_or_default();
    ask(call, "standing.trigger", request, |cohort| async move { cohort.open_now(kind).await }).await
}

pub(crate) async fn hold(call: &Call) -> Answer {
    ask(call, "standing.hold", Value::Null, |cohort| async move { cohort.hold(true).await }).await
}

pub(crate) async fn release(call: &Call) -> Answer {
    ask(call, "standing.release", Value::Null, |cohort| async move { cohort.hold(false).await }).await
}
