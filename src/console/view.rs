//! A page: what it reads of the API, and its template.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode},
};
use serde_json::{Map, Value, json};

use super::{
    BACKGROUND, FIRST, ROOT, Visitor, about, error, html, now, path_and_query,
    table::{self, Found, in_braces},
};
use crate::{
    control::{self, Refusal, Role, Shared, Who},
    html::part,
};

/// What a page shows of a form that was sent.
#[derive(Default)]
pub(super) struct Sent {
    /// Why it is refused.
    pub(super) error: Option<Refusal>,
    /// What it is, and what was typed.
    pub(super) action: String,
    pub(super) fields: Map<String, Value>,
    /// What was done, if it is shown at once.
    pub(super) flash: Option<Value>,
}

/// Who is logged in, as templates show it.
pub(super) fn me(who: &Who) -> Value {
    json!({
        "label": who.label, "role": who.role, "token": who.token, "from": who.from,
        "can": { "operate": who.role >= Role::Operator, "admin": who.role >= Role::Admin },
    })
}

/// The answer to a request for a page.
pub(super) async fn page(shared: &Arc<Shared>, visitor: &Visitor, request: &HttpRequest) -> HttpResponse {
    let flash = match (request.headers().contains_key(BACKGROUND), &shared.sessions) {
        (false, Some(sessions)) => sessions.take_flash(visitor.session.key),
        _ => None,
    };
    let url = path_and_query(request);
    match render(shared, visitor, url, Sent { flash, ..Sent::default() }).await {
        Ok(response) => response,
        Err(refusal) => error(shared, Some(visitor), &refusal, FIRST),
    }
}

/// Renders the page of a path and query of the console.
///
/// # Errors
/// [`Refusal`] if something that it needs is refused, or if there is no such page.
pub(super) async fn render(
    shared: &Arc<Shared>,
    visitor: &Visitor,
    url: &str,
    sent: Sent,
) -> Result<HttpResponse, Refusal> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let query = actix_web::web::Query::<BTreeMap<String, String>>::from_query(query);
    let query = query.map_err(|_| Refusal::NotFound("the query cannot be read".to_owned()))?.into_inner();
    let found = path.strip_prefix(ROOT).and_then(table::find);
    let found = found.ok_or_else(|| Refusal::NotFound("there is no such page".to_owned()))?;
    let answers = read_all(shared, visitor, &found, &query).await?;
    let params: BTreeMap<&str, &str> = found.params.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let status = sent.error.as_ref().map_or(StatusCode::OK, |refusal| refusal.code().0);
    let mut context = json!({
        "root": ROOT,
        "page": { "path": path, "url": url, "template": found.page.template },
        "params": params,
        "query": query,
        "about": about(shared),
        "me": me(&visitor.who),
        "csrf": *visitor.session.csrf,
        "now": now(shared),
        "flash": sent.flash,
        "error": sent.error.as_ref().map(super::problem),
        "form": { "action": sent.action, "fields": sent.fields },
    });
    for (name, answer) in answers {
        context[name] = answer;
    }
    Ok(html(status, &format!("console/{}.html", found.page.template), &context))
}

async fn read_all(
    shared: &Arc<Shared>,
    visitor: &Visitor,
    found: &Found,
    query: &BTreeMap<String, String>,
) -> Result<Vec<(&'static str, Value)>, Refusal> {
    let mut answers = Vec::with_capacity(found.page.reads.len());
    for read in found.page.reads {
        let parts = read.path.split('/').map(|named| match in_braces(named) {
            Some(name) => {
                let value = found.params.iter().find(|(found, _)| *found == name);
                value.map_or_else(String::new, |(_, value)| part(value))
            }
            None => named.to_owned(),
        });
        let path = parts.collect::<Vec<_>>().join("/");
        let passed = query.iter().filter(|(name, value)| read.query.contains(&name.as_str()) && !value.is_empty());
        let passed = passed.map(|(name, value)| (name.clone(), value.clone())).collect();
        let answer = control::call(shared, &visitor.who, &Method::GET, &path, passed, None).await;
        answers.push((
            read.name,
            match answer {
                Ok(answer) => answer,
                Err(_) if read.is_optional => Value::Null,
                Err(refusal) => return Err(refusal),
            },
        ));
    }
    Ok(answers)
}
