//! Templates.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::{
    answer::{Answer, Refusal, failed, invalid, ok},
    call::Call,
    templates::{Advertising, Shown, Template, check_name, series_of, terms_view},
};
use crate::{
    protocol::{id::CohortId, message::Bytes},
    serve::{
        orders::{COMMAND_LINE, Order},
        terms::Terms,
    },
};

/// The most cohorts of one template that are advertised at once.
const MOST_PARALLEL: u32 = 100;

/// A template, as it is given.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    terms: Map<String, Value>,
    #[serde(default = "one")]
    parallel: u32,
    cohorts: Option<u32>,
}

const fn one() -> u32 {
    1
}

fn view(call: &Call, name: &str, shown: &Shown) -> Value {
    let Template { terms, parallel, cohorts, state } = &shown.template;
    let mut view = json!({
        "name": name,
        "source": if name == COMMAND_LINE { "command-line" } else { "control" },
        "state": state,
        "terms": terms,
        "parallel": parallel,
        "cohorts": cohorts,
        "opened": call.shared.parts.register.opened(name),
    });
    match &shown.terms {
        Ok(terms) => view["resolved"] = terms_view(terms),
        Err(problems) => view["problems"] = json!(problems),
    }
    view
}

fn known(call: &Call) -> Result<Shown, Refusal> {
    call.shared.templates.get(call.named()).ok_or_else(|| call.unknown("template"))
}

pub(crate) async fn list(call: &Call) -> Answer {
    let names = call.shared.templates.names();
    let shown = names.iter().filter_map(|name| Some(view(call, name, &call.shared.templates.get(name)?)));
    ok(json!({ "templates": shown.collect::<Vec<_>>() }))
}

pub(crate) async fn show(call: &Call) -> Answer {
    ok(view(call, call.named(), &known(call)?))
}

pub(crate) async fn check(call: &Call) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        terms: Map<String, Value>,
    }
    let body: Body = call.body()?;
    let terms = call.shared.templates.read(&body.terms).map_err(Refusal::Invalid)?;
    ok(json!({ "ok": true, "resolved": terms_view(&terms), "advert": advert(call, &terms) }))
}

/// What participants receive: the body of the advert, with a name in place of the cohort's identifier.
fn advert(call: &Call, terms: &Terms) -> Value {
    let parts = &call.shared.parts;
    let (Ok(cohort_id), Some(key)) = (CohortId::parse("COHORT"), parts.service.did().key()) else {
        return Value::Null;
    };
    match terms {
        Terms::Round(terms) => json!(terms.conditions().ok().map(|conditions| conditions.to_advert(
            cohort_id,
            parts.about.network,
            &key
        ))),
        Terms::Standing(standing) => json!({
            "cohortId": cohort_id, "communicationPk": Bytes(key.to_bytes()), "terms": standing.terms,
        }),
    }
}

pub(crate) async fn put(call: &Call) -> Answer {
    let name = call.named();
    check_name(name).map_err(|problem| invalid(Some("name"), problem))?;
    if name == COMMAND_LINE {
        return Err(Refusal::Conflict("this template is the command line's".to_owned()));
    }
    let Given { terms, parallel, cohorts } = call.body()?;
    let resolved = call.shared.templates.read(&terms).map_err(Refusal::Invalid)?;
    if !(1..=MOST_PARALLEL).contains(&parallel) {
        return Err(invalid(Some("parallel"), format!("1 to {MOST_PARALLEL} expected")));
    }
    if cohorts == Some(0) {
        return Err(invalid(Some("cohorts"), "at least 1 expected, or null"));
    }
    if matches!(resolved, Terms::Standing(_)) && (parallel != 1 || cohorts.is_some()) {
        return Err(invalid(Some("parallel"), "not of a standing cohort"));
    }
    let _changing = call.shared.changing.lock().await;
    if !call.shared.templates.has_room(name) {
        return Err(Refusal::Conflict("there are too many templates: remove one first".to_owned()));
    }
    let state = call.shared.templates.get(name).map_or(Advertising::Draft, |known| known.template.state);
    let template = Template { terms: terms.clone(), parallel, cohorts, state };
    let request = json!({ "terms": terms, "parallel": parallel, "cohorts": cohorts });
    let shown = Shown { template, terms: Ok(resolved) };
    call.change("template.put", Some(name), request, store(call, name, &shown)).await?;
    ok(view(call, name, &shown))
}

/// Stores a template, and runs its series as it is now.
async fn store(call: &Call, name: &str, shown: &Shown) -> Result<(), Refusal> {
    call.shared.templates.put(name, shown.template.clone()).await.map_err(failed)?;
    if let Some(series) = series_of(shown).map_err(Refusal::Invalid)? {
        let name = name.to_owned();
        call.shared.order(|done| Order::Run { name, series: Box::new(series), done }).await?;
    }
    Ok(())
}

pub(crate) async fn remove(call: &Call) -> Answer {
    let name = call.named();
    let _changing = call.shared.changing.lock().await;
    known(call)?;
    if name == COMMAND_LINE {
        return Err(Refusal::Conflict("this template is the command line's: pause it".to_owned()));
    }
    let work = async {
        let dropped = name.to_owned();
        call.shared.order(|done| Order::Drop { name: dropped, done }).await?;
        call.shared.templates.remove(name).await.map_err(failed)?;
        call.shared.parts.register.forget(name).await.map_err(failed)
    };
    call.change("template.remove", Some(name), Value::Null, work).await?;
    ok(json!({ "name": name, "removed": true }))
}

pub(crate) async fn advertise(call: &Call) -> Answer {
    switch(call, "template.advertise", Advertising::Advertised).await
}

pub(crate) async fn pause(call: &Call) -> Answer {
    switch(call, "template.pause", Advertising::Paused).await
}

async fn switch(call: &Call, action: &'static str, state: Advertising) -> Answer {
    let name = call.named();
    let _changing = call.shared.changing.lock().await;
    let mut shown = known(call)?;
    if let Ok(Terms::Standing(_)) = &shown.terms {
        let detail =
            "a standing cohort is opened once: POST /standing with this template; its advert is paused there"
                .to_owned();
        return Err(Refusal::Conflict(detail));
    }
    if let Err(problems) = &shown.terms {
        return Err(Refusal::Invalid(problems.clone()));
    }
    shown.template.state = state;
    call.change(action, Some(name), Value::Null, store(call, name, &shown)).await?;
    ok(view(call, name, &shown))
}
