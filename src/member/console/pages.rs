//! The pages, and what their forms ask for. Each is made of answers of the control socket.

use actix_web::{HttpResponse, http::StatusCode, web::Query};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{super::control::Request, site::Visit};
use crate::{
    cost::WalletKind,
    html::{forms::Fields, headers::see},
    protocol::{cohort::standing::StandingTerms, did::Did},
    words,
};

/// How many entries of the log are shown.
const LOG: usize = 200;

/// The most updates of a request that are explained in full.
const MOST_EXPLAINED: usize = 20;

type Shown = Result<(&'static str, Value), (StatusCode, String)>;

fn refused(problem: String) -> (StatusCode, String) {
    (StatusCode::CONFLICT, problem)
}

fn missing() -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, "There is no such page, or what it was about is decided or gone.".to_owned())
}

/// The page of a path.
pub(super) async fn show(visit: &Visit<'_>) -> HttpResponse {
    let path = visit.request.path();
    let shown = match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        [""] => overview(visit).await,
        ["requests", id] => request(visit, id).await,
        ["dids"] => dids(visit).await,
        ["dids", did] => one_did(visit, did).await,
        ["queue"] => queue(visit).await,
        ["queue", id] => update(visit, id).await,
        ["costs"] => costs(visit).await,
        ["log"] => log(visit).await,
        _ => Err(missing()),
    };
    match shown {
        Ok((template, context)) => visit.page(StatusCode::OK, template, context),
        Err((status, problem)) => visit.problem(status, &problem),
    }
}

async fn ask(visit: &Visit<'_>, request: Request) -> Result<Value, (StatusCode, String)> {
    visit.shared.calls.ask(request).await.map_err(refused)
}

async fn overview(visit: &Visit<'_>) -> Shown {
    let (status, pending) = (ask(visit, Request::Status).await?, ask(visit, Request::Pending).await?);
    Ok(("member/overview.html", json!({ "status": status, "pending": pending })))
}

/// A request that waits, with what the updates in it change.
async fn request(visit: &Visit<'_>, id: &str) -> Shown {
    let id: u64 = id.parse().map_err(|_| missing())?;
    let pending = ask(visit, Request::Pending).await?;
    let pending = pending.as_array().into_iter().flatten().find(|one| one["id"] == id).cloned();
    let pending = pending.ok_or_else(missing)?;
    let queue = ask(visit, Request::Queue { did: None, all: true }).await?;
    let mut updates = Vec::new();
    for wanted in pending["request"]["updates"].as_array().into_iter().flatten() {
        let known = queue.as_array().into_iter().flatten().find(|one| one["update"] == wanted["update"]);
        let explained = match known.and_then(|one| one["id"].as_u64()).filter(|_| updates.len() < MOST_EXPLAINED) {
            Some(id) => visit
                .shared
                .calls
                .ask(Request::Show { id })
                .await
                .unwrap_or_else(|problem| json!({ "problem": problem })),
            None => Value::Null,
        };
        updates.push(json!({ "did": wanted["did"], "update": wanted["update"], "explained": explained }));
    }
    let terms = serde_json::from_value::<StandingTerms>(pending["request"]["terms"].clone());
    let words = terms.map(|terms| words::of_standing(&terms)).unwrap_or_default();
    Ok(("member/request.html", json!({ "pending": pending, "updates": updates, "words": words })))
}

async fn dids(visit: &Visit<'_>) -> Shown {
    Ok(("member/dids.html", json!({ "dids": ask(visit, Request::Dids).await? })))
}

async fn one_did(visit: &Visit<'_>, did: &str) -> Shown {
    let did =
        percent_decode_str(did).decode_utf8().ok().and_then(|did| Did::parse(&did).ok()).ok_or_else(missing)?;
    let dids = ask(visit, Request::Dids).await?;
    let known = dids.as_array().into_iter().flatten().find(|one| one["did"] == json!(did)).cloned();
    let known = known.ok_or_else(missing)?;
    // The chain may not answer: the rest is shown all the same.
    let document = visit.shared.calls.ask(Request::Document { did: did.clone() }).await;
    let document = document.unwrap_or_else(|problem| json!({ "problem": problem }));
    let is_checked = Query::<Vec<(String, String)>>::from_query(visit.request.query_string())
        .is_ok_and(|query| query.iter().any(|(name, _)| name == "check"));
    let report = match is_checked {
        true => visit
            .shared
            .calls
            .ask(Request::Check { did: did.clone() })
            .await
            .unwrap_or_else(|problem| json!({ "problem": problem })),
        false => Value::Null,
    };
    let queue = ask(visit, Request::Queue { did: Some(did.clone()), all: true }).await?;
    let context = json!({ "did": did, "known": known, "current": document, "report": report, "queue": queue });
    Ok(("member/did.html", context))
}

async fn queue(visit: &Visit<'_>) -> Shown {
    Ok(("member/queue.html", json!({ "queue": ask(visit, Request::Queue { did: None, all: true }).await? })))
}

async fn update(visit: &Visit<'_>, id: &str) -> Shown {
    let id: u64 = id.parse().map_err(|_| missing())?;
    Ok(("member/update.html", json!({ "one": ask(visit, Request::Show { id }).await? })))
}

async fn costs(visit: &Visit<'_>) -> Shown {
    let report = ask(visit, Request::Costs { wallet: WalletKind::default() }).await?;
    Ok(("member/costs.html", json!({ "report": report })))
}

async fn log(visit: &Visit<'_>) -> Shown {
    let log = ask(visit, Request::Log { most: LOG }).await?;
    let newest: Vec<Value> = log.as_array().into_iter().flatten().rev().cloned().collect();
    Ok(("member/log.html", json!({ "log": newest })))
}

/// What a form asks for, then the next page.
pub(super) async fn act(visit: &Visit<'_>, fields: &Fields) -> HttpResponse {
    let id = || fields.get("id").and_then(|id| id.parse::<u64>().ok()).unwrap_or(u64::MAX);
    let (request, next, done) = match visit.request.path() {
        "/approve" => (Request::Approve { id: id() }, "/", "It is approved."),
        "/reject" => {
            let reason = fields.get("reason").map(str::trim).filter(|reason| !reason.is_empty());
            let reason = reason.unwrap_or("it was rejected on the member's page").to_owned();
            (Request::Reject { id: id(), reason: Some(reason) }, "/", "It is rejected.")
        }
        "/cancel" => (Request::Cancel { id: id() }, "/queue", "The update is taken back."),
        "/backup" => (Request::Backup, "/", "A backup is written, and verified."),
        _ => {
            let (status, problem) = missing();
            return visit.problem(status, &problem);
        }
    };
    match visit.shared.calls.ask(request).await {
        Ok(result) => {
            let flash = json!({ "message": done, "result": result });
            visit.shared.sessions.set_flash(visit.session.key, flash);
            see(next)
        }
        Err(problem) => visit.problem(StatusCode::CONFLICT, &problem),
    }
}
