//! Login with a token, and logout.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{RETRY_AFTER, SET_COOKIE},
    },
};
use serde_json::{Value, json};

use super::{FIRST, ROOT, about, error, fields, forms, html, now, page_of, see};
use crate::{
    control::{LoginRefusal, Refusal, Shared, Visit},
    html::part,
};

/// The page where one logs in, with the page that comes after it.
pub(super) fn with_next(next: &str, is_first: bool) -> String {
    match is_first {
        true => format!("{ROOT}/login"),
        false => format!("{ROOT}/login?next={}", part(next)),
    }
}

fn shown(shared: &Shared, status: StatusCode, problem: Option<&str>, next: &str) -> HttpResponse {
    let error = problem.map_or(Value::Null, |detail| json!({ "detail": detail }));
    let context = json!({ "root": ROOT, "about": about(shared), "error": error, "next": next });
    html(status, "console/login.html", &context)
}

/// The form.
pub(super) fn form(shared: &Shared, request: &HttpRequest) -> HttpResponse {
    let query = actix_web::web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    let query = query.map(actix_web::web::Query::into_inner).unwrap_or_default();
    let next = query.iter().find(|(name, _)| name == "next").and_then(|(_, next)| forms::local(next, ROOT));
    shown(shared, StatusCode::OK, None, next.as_deref().unwrap_or(FIRST))
}

/// A form was sent, but its session has ended.
pub(super) fn ended(shared: &Shared, request: &HttpRequest) -> HttpResponse {
    let back = super::act::referer(request).unwrap_or_else(|| FIRST.to_owned());
    shown(shared, StatusCode::UNAUTHORIZED, Some("the session has ended: log in again"), &back)
}

/// Logs in.
pub(super) async fn log_in(visit: Visit<'_>) -> HttpResponse {
    let (shared, request, origin) = (visit.shared, visit.request, visit.origin);
    // Otherwise a page of another site could log its visitor in as someone else.
    if forms::is_foreign(request.headers()) {
        return error(shared, None, &Refusal::Forbidden("the form is of a page of another site".to_owned()), FIRST);
    }
    let fields = match fields(visit).await {
        Ok(fields) => fields,
        Err(refusal) => return error(shared, None, &refusal, FIRST),
    };
    let next = page_of(&fields, "_next").unwrap_or_else(|| FIRST.to_owned());
    let (token, code) = (fields.get("token").unwrap_or_default(), fields.get("code").unwrap_or_default());
    let (Some(sessions), now) = (&shared.sessions, now(shared)) else {
        return error(shared, None, &Refusal::NotFound("there is no console".to_owned()), FIRST);
    };
    match shared.gate.log_in(origin, token, code, now) {
        Ok(login) => {
            // The one before it ends, and its identifier with it.
            if let Some(before) = sessions.find(request.headers(), now, true) {
                sessions.close(before.key);
            }
            let (_, cookie) = sessions.open(login, now);
            let mut response = see(&next);
            if let Ok(cookie) = cookie.parse() {
                response.headers_mut().insert(SET_COOKIE, cookie);
            }
            response
        }
        Err(refusal) => {
            let status = match &refusal {
                LoginRefusal::Token | LoginRefusal::Code => StatusCode::UNAUTHORIZED,
                LoginRefusal::Wait(_) => StatusCode::TOO_MANY_REQUESTS,
                LoginRefusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            let mut response = shown(shared, status, Some(&refusal.to_string()), &next);
            if let LoginRefusal::Wait(wait) = refusal {
                response.headers_mut().insert(RETRY_AFTER, (wait.as_secs() + 1).into());
            }
            response
        }
    }
}

/// Logs out.
pub(super) async fn log_out(visit: Visit<'_>) -> HttpResponse {
    let (shared, request) = (visit.shared, visit.request);
    let visitor = super::visitor(&visit);
    let (Some(visitor), Some(sessions)) = (visitor, &shared.sessions) else {
        return see(&with_next(FIRST, true));
    };
    let checked = match fields(visit).await {
        Ok(fields) => {
            let checked = visitor.session.check(request.headers(), Some(&fields));
            checked.map_err(|forged| Refusal::Forbidden(forged.to_string()))
        }
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = checked {
        return error(shared, Some(&visitor), &refusal, FIRST);
    }
    sessions.close(visitor.session.key);
    let mut response = see(&with_next(FIRST, true));
    if let Ok(cookie) = sessions.no_cookie().parse() {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}
