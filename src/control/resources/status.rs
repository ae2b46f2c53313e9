//! The service as a whole: who calls, whether it is ready, counts, alarms, and its events.

use actix_web::http::StatusCode;
use serde_json::{Map, Value, json};

use super::super::{
    answer::{Answer, Refusal, Reply, ok},
    call::Call,
    sse::Holder,
};

/// The description of the API.
const OPENAPI: &str = include_str!("../openapi.json");

/// The most metrics that are shown.
const MOST_METRICS: usize = 2_000;

pub(crate) async fn openapi(_: &Call) -> Answer {
    let document = serde_json::from_str(OPENAPI).map_err(|error| Refusal::Failed(error.to_string()))?;
    Ok(Reply::Json(StatusCode::OK, document))
}

pub(crate) async fn whoami(call: &Call) -> Answer {
    let who = &call.who;
    ok(json!({ "role": who.role, "label": who.label, "token": who.token, "from": who.from }))
}

pub(crate) async fn status(call: &Call) -> Answer {
    let shared = &call.shared;
    let problems = shared.parts.readiness.problems();
    let mut phases: Map<String, Value> = Map::new();
    let cohorts = shared.parts.service.cohorts().await;
    for cohort in &cohorts {
        let phase = cohort.inspect().await.map_or("ending", |machine| machine.phase().name());
        let count = phases.entry(phase.replace(' ', "-")).or_insert_with(|| json!(0));
        *count = json!(count.as_u64().unwrap_or(0) + 1);
    }
    ok(json!({
        "did": shared.parts.service.did(),
        "network": shared.parts.about.network,
        "version": env!("CARGO_PKG_VERSION"),
        "url": shared.parts.about.url,
        "relays": shared.parts.about.relays,
        "ready": problems.is_empty() && shared.parts.service.is_alive(),
        "problems": problems,
        "cohorts": cohorts.len(),
        "phases": phases,
        "standing": shared.parts.service.standing_cohorts().await.len(),
        "templates": shared.templates.names().len(),
        "admissions": shared.parts.desk.list().len(),
        "alarms": shared.parts.alarms.list().len(),
    }))
}

/// The values of the Prometheus text, without histograms.
pub(crate) async fn metrics(call: &Call) -> Answer {
    let text = call.shared.parts.metrics.to_text();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket"));
    let values = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), json!(value.parse::<f64>().ok()?)))
    });
    ok(json!({ "metrics": values.take(MOST_METRICS).collect::<Map<String, Value>>() }))
}

pub(crate) async fn alarms(call: &Call) -> Answer {
    ok(json!({ "alarms": call.shared.parts.alarms.list() }))
}

pub(crate) async fn events(call: &Call) -> Answer {
    let shared = &call.shared;
    let reader = shared.feed.read_from(call.last_event_id.as_deref());
    let session = shared.sessions.clone().zip(call.who.session);
    let holder =
        Holder { tokens: shared.tokens.clone(), clock: shared.parts.clock, token: call.who.token.clone(), session };
    let stream = shared.streams.open(reader, holder);
    stream.map(Reply::Events).ok_or(Refusal::Busy("too many streams of events are open"))
}
