//! One-time cohorts.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        answer::{Answer, Refusal, created, failed, invalid, ok},
        call::Call,
        timeline::Signing,
    },
    Source, period, reason,
};
use crate::{
    actors::handle::Cohort,
    protocol::{
        cohort::service::{
            ServiceCohort,
            phase::{Admission, Phase},
        },
        id::CohortId,
    },
    serve::{orders::Order, register::CohortRecord, terms::Terms},
};

/// The most members of one page.
const MOST_MEMBERS: u64 = 1_000;

/// The most ended cohorts of one answer.
const MOST_ENDED: u64 = 1_000;

fn view(call: &Call, cohort_id: &CohortId, machine: &ServiceCohort) -> Value {
    let record = call.shared.parts.register.get(cohort_id).unwrap_or_default();
    let phase = machine.phase();
    let (members, admitted) = match phase {
        Phase::Enrolling(enrolling) => (enrolling.candidates.len(), enrolling.admitted()),
        phase => phase.formed().map_or((0, 0), |formed| (formed.members.len(), formed.members.len())),
    };
    let signing = signing(call, cohort_id, machine);
    json!({
        "cohortId": cohort_id,
        "template": record.template,
        "phase": phase.name().replace(' ', "-"),
        "deadline": phase.deadline(),
        "paused": record.paused && matches!(phase, Phase::Enrolling(_)),
        "candidates": members,
        "admitted": admitted,
        "waitingFor": match &signing {
            _ if !machine.is_signing() => Some(machine.holdouts().len()),
            Some(signing) => Some(members.saturating_sub(signing.given.len())),
            None => None,
        },
        "signing": signing.as_ref().map(|signing| signing.stage.as_str()),
        "needed": machine.config().terms.conditions.min_participants,
        "beaconAddress": phase.formed().map(|formed| formed.output.address()),
        "faults": machine.faults().iter().count(),
    })
}

/// The step of its signing, if it signs, and if that is known.
fn signing(call: &Call, cohort_id: &CohortId, machine: &ServiceCohort) -> Option<Signing> {
    let members = machine.phase().formed()?.members.len();
    call.shared.feed.timelines().signing(cohort_id.as_str(), members).filter(|_| machine.is_signing())
}

/// The members that the present phase waits for; `None` if that is not known, e.g. after a restart within signing.
fn awaited(call: &Call, cohort_id: &CohortId, machine: &ServiceCohort) -> Option<BTreeSet<String>> {
    if !machine.is_signing() {
        return Some(machine.holdouts().iter().map(ToString::to_string).collect());
    }
    let signing = signing(call, cohort_id, machine)?;
    let members = machine.phase().formed()?.members.keys().map(ToString::to_string);
    Some(members.filter(|did| !signing.given.contains(did)).collect())
}

/// A cohort that runs, and its machine.
async fn running(call: &Call) -> Result<(Cohort, Arc<ServiceCohort>), Refusal> {
    let cohort = call.shared.parts.service.cohort(&call.cohort_id()?);
    let machine = cohort.inspect().await.ok_or_else(|| call.unknown("running cohort"))?;
    Ok((cohort, machine))
}

pub(crate) async fn list(call: &Call) -> Answer {
    let mut shown = Vec::new();
    for cohort in call.shared.parts.service.cohorts().await {
        // One that has just ended is not shown.
        if let Some(machine) = cohort.inspect().await {
            shown.push(view(call, cohort.id(), &machine));
        }
    }
    ok(json!({ "cohorts": shown }))
}

/// Those that have ended, the last first.
pub(crate) async fn ended(call: &Call) -> Answer {
    let most = usize::try_from(call.number("limit", MOST_ENDED)?.unwrap_or(MOST_ENDED)).unwrap_or(usize::MAX);
    let mut ended = call.shared.parts.register.ends().list();
    ended.truncate(most);
    ok(json!({ "ended": ended }))
}

/// What has happened lately in one.
pub(crate) async fn timeline(call: &Call) -> Answer {
    let cohort_id = call.cohort_id()?;
    let known = call.shared.feed.timelines().events(cohort_id.as_str());
    let exists = async {
        let parts = &call.shared.parts;
        parts.register.ends().get(&cohort_id).is_some()
            || parts.service.cohort(&cohort_id).inspect().await.is_some()
            || parts.service.standing_cohort(&cohort_id).inspect().await.is_some()
    };
    match known {
        Some(events) => ok(json!({ "cohortId": cohort_id, "events": events })),
        None if exists.await => ok(json!({ "cohortId": cohort_id, "events": [] })),
        None => Err(call.unknown("cohort")),
    }
}

pub(crate) async fn show(call: &Call) -> Answer {
    let (cohort, machine) = match running(call).await {
        Ok(running) => running,
        Err(refusal) => {
            return call.shared.parts.register.ends().get(&call.cohort_id()?).ok_or(refusal).and_then(ok);
        }
    };
    let mut shown = view(call, cohort.id(), &machine);
    let terms = &machine.config().terms;
    shown["conditions"] = json!(terms.conditions);
    shown["timing"] = json!(terms.timing);
    shown["rules"] = json!(terms.rules);
    shown["lineage"] = json!(terms.lineage);
    ok(shown)
}

pub(crate) async fn members(call: &Call) -> Answer {
    let most = call.number("limit", MOST_MEMBERS)?.unwrap_or(MOST_MEMBERS);
    let after = call.query.get("after");
    let (cohort, machine) = running(call).await?;
    let waiting = awaited(call, cohort.id(), &machine);
    let last = call.shared.feed.timelines().contributions(cohort.id().as_str());
    let all: Vec<(String, Value)> = match machine.phase() {
        Phase::Enrolling(enrolling) => enrolling
            .candidates
            .iter()
            .map(|(did, (member, admission))| {
                let admission = match admission {
                    Admission::Pending => "pending",
                    Admission::Admitted => "admitted",
                    Admission::Refused => "refused",
                };
                let invite = member.invite.as_ref().map(|proof| proof.id().to_string());
                (did.to_string(), json!({ "did": did, "admission": admission, "invite": invite }))
            })
            .collect(),
        phase => phase
            .formed()
            .into_iter()
            .flat_map(|formed| formed.members.iter())
            .map(|(did, member)| {
                let invite = member.invite.as_ref().map(|proof| proof.id().to_string());
                let is_awaited = waiting.as_ref().map(|waiting| waiting.contains(did.as_str()));
                (
                    did.to_string(),
                    json!({ "did": did, "admission": "admitted", "invite": invite, "awaited": is_awaited }),
                )
            })
            .collect(),
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut page: Vec<(String, Value)> =
        all.into_iter().filter(|(did, _)| after.is_none_or(|after| did > after)).take(most + 1).collect();
    let has_more = page.len() > most;
    page.truncate(most);
    let next = has_more.then(|| page.last().map(|(did, _)| did.clone())).flatten();
    let members = page.into_iter().map(|(did, mut member)| {
        let last = last.get(&did).map(|last| json!({ "event": last.event, "at": last.at }));
        member["last"] = json!(last);
        member
    });
    let members: Vec<Value> = members.collect();
    ok(json!({ "cohortId": cohort.id(), "members": members, "next": next }))
}

pub(crate) async fn create(call: &Call) -> Answer {
    let source: Source = call.body()?;
    let request = call.body.clone().unwrap_or_default();
    let (terms, template) = source.terms(call)?;
    let Terms::Round(terms) = terms else {
        return Err(invalid(Some("terms"), "these are terms of a standing cohort: POST /standing"));
    };
    let target = template.clone();
    let order = call.shared.order(|done| Order::Open { terms, template, done });
    let cohort_id = call.change("cohort.create", target.as_deref(), request, order).await?;
    let machine = call.shared.parts.service.cohort(&cohort_id).inspect().await;
    created(match machine {
        Some(machine) => view(call, &cohort_id, &machine),
        None => json!({ "cohortId": cohort_id, "template": target, "phase": "ending" }),
    })
}

pub(crate) async fn pause(call: &Call) -> Answer {
    set_advertised(call, "cohort.pause", false).await
}

pub(crate) async fn resume(call: &Call) -> Answer {
    set_advertised(call, "cohort.resume", true).await
}

async fn set_advertised(call: &Call, action: &'static str, advertised: bool) -> Answer {
    let (cohort, machine) = running(call).await?;
    if !matches!(machine.phase(), Phase::Enrolling(_)) {
        return Err(Refusal::Conflict("the cohort admits no members any more: it has no advert".to_owned()));
    }
    drop(machine);
    let work = async {
        let record = call.shared.parts.register.get(cohort.id()).unwrap_or_default();
        let record = CohortRecord { paused: !advertised, ..record };
        // First: after a restart it is as the operator wanted it.
        call.shared.parts.register.set(cohort.id(), record).await.map_err(failed)?;
        cohort.advertise(advertised).await;
        Ok(())
    };
    call.change(action, Some(cohort.id().as_str()), Value::Null, work).await?;
    show(call).await
}

pub(crate) async fn finalize(call: &Call) -> Answer {
    let (cohort, machine) = running(call).await?;
    machine.may_form().map_err(|reject| Refusal::Conflict(reject.detail))?;
    drop(machine);
    let work = async {
        cohort.finalize().await;
        Ok(())
    };
    call.change("cohort.finalize", Some(cohort.id().as_str()), Value::Null, work).await?;
    ok(json!({ "cohortId": cohort.id(), "ok": true }))
}

pub(crate) async fn extend(call: &Call) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        by: String,
    }
    let body: Body = call.body()?;
    let by: Duration = period("by", &body.by)?;
    let (cohort, machine) = running(call).await?;
    drop(machine);
    let work = async {
        let extended = cohort.extend(by).await.ok_or_else(|| call.unknown("running cohort"))?;
        extended.map_err(|reject| Refusal::Conflict(reject.detail))
    };
    let until = call.change("cohort.extend", Some(cohort.id().as_str()), json!({ "by": body.by }), work).await?;
    ok(json!({ "cohortId": cohort.id(), "deadline": until }))
}

pub(crate) async fn cancel(call: &Call) -> Answer {
    let reason = reason(call, "the operator has cancelled the cohort")?;
    let (cohort, machine) = running(call).await?;
    if machine.has_ended() {
        return Err(Refusal::Conflict("the cohort has ended".to_owned()));
    }
    drop(machine);
    let request = json!({ "reason": reason });
    let work = async {
        cohort.cancel(reason).await;
        Ok(())
    };
    call.change("cohort.cancel", Some(cohort.id().as_str()), request, work).await?;
    ok(json!({ "cohortId": cohort.id(), "ok": true }))
}
