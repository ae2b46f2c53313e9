//! A form: one call of the API, then the next page.

use std::collections::BTreeMap;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, header::REFERER},
};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{
    FIRST, ROOT, Visitor, error, fields, page_of, see,
    table::in_braces,
    view::{self, Sent},
};
use crate::{
    control::{self, Refusal, Visit},
    html::{
        forms::{self, Fields},
        part,
    },
    serve::terms::Problem,
};

/// Where forms are sent to, below the console.
const DO: &str = "/console/do/";

/// The longest answer of the API that is stored until the next page shows it, in bytes.
const MOST_RESULT: usize = 64 << 10;

/// The page that a request comes from, if it is one of the console.
pub(super) fn referer(request: &HttpRequest) -> Option<String> {
    let referer = request.headers().get(REFERER)?.to_str().ok()?;
    let (_, rest) = referer.split_once("://")?;
    let path = &rest[rest.find('/')?..];
    // Not one of a form's answer: it cannot be read again.
    forms::local(path, ROOT).filter(|path| !path.starts_with(DO))
}

/// What a form calls.
struct Target {
    method: Method,
    path: String,
    /// As the form names it: `PUT /bans/{subject}`.
    action: String,
}

fn target(path: &str, fields: &mut Fields) -> Option<Target> {
    let (method, named) = path.strip_prefix(DO)?.split_once('/')?;
    let method = match method {
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        "DELETE" => Method::DELETE,
        _ => return None,
    };
    let (mut path, mut action) = (String::new(), format!("{method} "));
    for given in named.split('/') {
        let decoded = percent_decode_str(given).decode_utf8().ok()?;
        let (of_path, of_action) = match in_braces(&decoded) {
            Some(name) => (part(fields.take(name).unwrap_or_default().trim()), format!("{{{name}}}")),
            None => (part(&decoded), decoded.into_owned()),
        };
        for (text, part) in [(&mut path, of_path), (&mut action, of_action)] {
            text.push('/');
            text.push_str(&part);
        }
    }
    Some(Target { method, path, action })
}

/// The answer to a form.
pub(super) async fn act(visit: Visit<'_>, visitor: &Visitor) -> HttpResponse {
    let (shared, request) = (visit.shared, visit.request);
    let refused = |refusal: Refusal, back: &str| error(shared, Some(visitor), &refusal, back);
    let mut fields = match fields(visit).await {
        Ok(fields) => fields,
        Err(refusal) => return refused(refusal, FIRST),
    };
    if let Err(forged) = visitor.session.check(request.headers(), Some(&fields)) {
        return refused(Refusal::Forbidden(forged.to_string()), FIRST);
    }
    let next = page_of(&fields, "_next");
    let back = page_of(&fields, "_back").or_else(|| referer(request)).or_else(|| next.clone());
    let back = back.unwrap_or_else(|| FIRST.to_owned());
    let next = next.unwrap_or_else(|| back.clone());
    let typed = fields.typed();
    let Some(target) = target(request.path(), &mut fields) else {
        return refused(Refusal::NotFound("there is no such form".to_owned()), &back);
    };
    let body = body(&fields, request.query_string());
    let answer = match body {
        Ok(body) => {
            control::call(shared, &visitor.who, &target.method, &target.path, BTreeMap::new(), Some(body)).await
        }
        Err(refusal) => Err(refusal),
    };
    let mut sent = Sent { action: target.action.clone(), fields: typed, ..Sent::default() };
    match answer {
        Ok(result) if fields.get("_show").is_some() => {
            sent.flash = Some(json!({ "message": null, "action": target.action, "result": result, "shown": true }));
            show(shared, visitor, &back, sent).await
        }
        Ok(result) => {
            let next = filled(&next, &result);
            let message = fields.get("_done").filter(|done| !done.trim().is_empty()).unwrap_or("Done.");
            let result = if result.to_string().len() > MOST_RESULT { Value::Null } else { result };
            let flash = json!({ "message": message, "action": target.action, "result": result, "shown": false });
            if let Some(sessions) = &shared.sessions {
                sessions.set_flash(visitor.session.key, flash);
            }
            see(&next)
        }
        Err(refusal) => {
            sent.error = Some(refusal);
            show(shared, visitor, &back, sent).await
        }
    }
}

/// The page of a form again, with what was typed; the page of the problem if that page cannot be shown.
async fn show(shared: &std::sync::Arc<control::Shared>, visitor: &Visitor, back: &str, sent: Sent) -> HttpResponse {
    let of_form = sent.error.clone();
    let shown = view::render(shared, visitor, back.split('#').next().unwrap_or(back), sent).await;
    shown.unwrap_or_else(|refusal| error(shared, Some(visitor), &of_form.unwrap_or(refusal), back))
}

/// The body of the call. `?only=a,b` leaves out all other fields.
fn body(fields: &Fields, query: &str) -> Result<Value, Refusal> {
    let mut object = fields.object().map_err(|errors| {
        let problem = |error: forms::FieldError| Problem { field: Some(error.field), detail: error.detail };
        Refusal::Invalid(errors.into_iter().map(problem).collect())
    })?;
    if let Some(only) = query.strip_prefix("only=") {
        let only: Vec<&str> = only.split(',').collect();
        object.retain(|name, _| only.contains(&name.as_str()));
    }
    Ok(Value::Object(object))
}

/// The next page: what it has in braces is a text of the answer.
fn filled(next: &str, result: &Value) -> String {
    let mut filled = String::with_capacity(next.len());
    let mut rest = next;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else { break };
        filled.push_str(before);
        filled.push_str(&part(result[name].as_str().unwrap_or_default()));
        rest = after;
    }
    filled.push_str(rest);
    filled
}
