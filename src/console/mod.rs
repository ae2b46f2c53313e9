//! The operator's console: pages of a running service for a browser, beside the control API and by means of it.
//!
//! ```text
//!  control/site ─▶ mod.rs ─┬▶ login   a token (and a code) opens a session; logout ends it
//!                          ├▶ view    a page of table.rs: reads the API, renders the template
//!                          └▶ act     a form: one call of the API, then the next page
//! ```
//!
//! Nothing is decided here: what may be seen and done is what the API answers to the token that has logged in. All of it works without a
//! script. `console.js` adds what a page cannot do without one: it is refreshed when something happens.
//!
//! # Pages
//!
//! `table.rs` lists them: path, template, and which GETs of the API it needs, by the names that their answers have in the template.
//! Beside these the context of every template has:
//!
//! | name | value |
//! |---|---|
//! | `root` | `/console`: URLs begin with it |
//! | `page` | `path` (of this page, without the query), `url` (with it), `template` |
//! | `params` | the parts in braces of its path: `params.cohortId` |
//! | `query` | the fields of the query: `{% if query.before %}` |
//! | `about` | the service: `did`, `network`, `version`, `url` (may be null), `relays` |
//! | `me` | who is logged in: `label`, `role`, `token` (its identifier), `from`, `can.operate`, `can.admin` |
//! | `csrf` | the token that every form needs: `<input type="hidden" name="_csrf" value="{{ csrf }}">` |
//! | `now` | the time, in milliseconds |
//! | `flash` | null, or once after a form: `message`, `action`, `result` (the API's answer), `shown` (see `_show`) |
//! | `error` | null, or why the form that was sent is refused: `status`, `code`, `detail`, `problems` (each `field`, `detail`) |
//! | `form` | what was typed into it: `action`, and `fields` by their names without types; empty if no form was refused or shown |
//!
//! An answer that the role may not read, or that is not there, is null if the table has it as optional; otherwise `error.html` is shown:
//! `error` as above, `back` a path, and no answers. `login.html` has `root`, `error` (null or `detail`), `next`, `about`.
//!
//! # Forms
//!
//! `<form method="post" action="{{ root }}/do/METHOD/PATH">` calls `METHOD /control/v1/PATH`. Fields become the body, as
//! `html/forms.rs` describes (`min:int`, `on:bool`, `list:lines`, `raw:json`, `terms.beacon`). A field whose name is in braces in the
//! path goes there: `do/PUT/bans/{subject}` takes the field `subject`. `?only=terms` sends no other fields than these (comma separated).
//! The fields that begin with `_` are not sent:
//!
//! | field | what it does |
//! |---|---|
//! | `_csrf` | needed |
//! | `_next` | the page to show when it is done, below `/console`; `{cohortId}` is a text of the API's answer. Default: the page of the form |
//! | `_done` | the message that it shows. Default: `Done.` |
//! | `_back` | the page of the form: it is shown again with `error` and `form` if the API refuses. Default: the `Referer`, else `_next` |
//! | `_show` | the page `_back` is shown at once, with the answer in `flash.result`: for calls that change nothing (previews) |
//!
//! # Scripts
//!
//! A region with `id` and `data-live` is replaced by that of the page as it is now (`page.url`: after a refused form that is not the address
//! of the document), after events of `/control/v1/events`. A browser opens few connections to one host: the stream is closed while the
//! page is hidden. A script's
//! request for a page sends `X-Background: 1`: it does not count as use of the session, does not take the `flash`, and is answered with
//! 401 when the session has ended. Scripts that change something by the API send the header `X-CSRF-Token`.

mod act;
mod login;
mod table;
mod view;

use std::time::Duration;

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    http::{Method, StatusCode},
};
use futures::future::LocalBoxFuture;
use serde_json::{Value, json};

use crate::{
    control::{Login, Pages, Refusal, Shared, Visit, Who},
    html::{
        self, assets,
        forms::{self, Fields},
        headers::{self, BACKGROUND, see},
        session::Open,
    },
    protocol::time::Timestamp,
};

/// How long a session may be idle by default.
pub(crate) const IDLE: Duration = Duration::from_secs(30 * 60);

/// Where the console is.
const ROOT: &str = "/console";

/// The page that is shown first.
const FIRST: &str = "/console/";

/// The console.
pub(crate) struct Console;

impl Pages for Console {
    fn answer<'a>(&'a self, visit: Visit<'a>) -> LocalBoxFuture<'a, HttpResponse> {
        Box::pin(answer(visit))
    }
}

/// A browser that has logged in.
struct Visitor {
    who: Who,
    session: Open<Login>,
}

async fn answer(visit: Visit<'_>) -> HttpResponse {
    let (shared, request) = (visit.shared, visit.request);
    let Some(path) = request.path().strip_prefix(ROOT) else {
        return if request.path() == "/" { see(FIRST) } else { missing(shared) };
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match path {
        "" => see(FIRST),
        "/login" if reads => login::form(shared, request),
        "/login" => login::log_in(visit).await,
        "/logout" if !reads => login::log_out(visit).await,
        path if path.strip_prefix("/assets/").is_some() => {
            path.strip_prefix("/assets/").and_then(assets::answer).unwrap_or_else(|| missing(shared))
        }
        path => match visitor(&visit) {
            Some(visitor) if reads => view::page(shared, &visitor, request).await,
            Some(visitor) => act::act(visit, &visitor).await,
            None if request.headers().contains_key(BACKGROUND) => {
                error(shared, None, &Refusal::Unauthorized, FIRST)
            }
            None if reads => see(&login::with_next(path_and_query(request), path == "/")),
            None => login::ended(shared, request),
        },
    }
}

/// Who is logged in.
fn visitor(visit: &Visit<'_>) -> Option<Visitor> {
    let headers = visit.request.headers();
    let is_background = headers.contains_key(BACKGROUND);
    let found = visit.shared.gate.session(visit.origin, headers, now(visit.shared), is_background);
    found.map(|(who, session)| Visitor { who, session })
}

fn now(shared: &Shared) -> Timestamp {
    shared.parts.clock.now()
}

fn path_and_query(request: &HttpRequest) -> &str {
    request.uri().path_and_query().map_or(FIRST, |whole| whole.as_str())
}

/// A page.
fn html(status: StatusCode, template: &str, context: &Value) -> HttpResponse {
    match html::render(template, context) {
        Ok(text) => headers::page(&mut HttpResponse::build(status)).body(text),
        Err(error) => {
            tracing::error!(%error, "a page of the console has failed");
            let text = "<!doctype html><title>Error</title><h1>This page has failed</h1><p>The log of the service has the reason.</p>";
            headers::page(&mut HttpResponse::InternalServerError()).body(text)
        }
    }
}

/// What every page knows of the service.
fn about(shared: &Shared) -> Value {
    let about = &shared.parts.about;
    json!({
        "did": shared.parts.service.did(), "network": about.network, "version": env!("CARGO_PKG_VERSION"), "url": about.url,
        "relays": about.relays,
    })
}

/// Why something is refused, as pages show it.
fn problem(refusal: &Refusal) -> Value {
    let (status, code) = refusal.code();
    let problems = match refusal {
        Refusal::Invalid(problems) => json!(problems),
        _ => json!([]),
    };
    json!({ "status": status.as_u16(), "code": code, "detail": refusal.detail(), "problems": problems })
}

/// The page that shows why something is refused.
fn error(shared: &Shared, visitor: Option<&Visitor>, refusal: &Refusal, back: &str) -> HttpResponse {
    let mut context = json!({ "root": ROOT, "about": about(shared), "error": problem(refusal), "back": back, "me": null, "csrf": "" });
    if let Some(visitor) = visitor {
        context["me"] = view::me(&visitor.who);
        context["csrf"] = json!(*visitor.session.csrf);
    }
    html(refusal.code().0, "console/error.html", &context)
}

fn missing(shared: &Shared) -> HttpResponse {
    error(shared, None, &Refusal::NotFound("there is no such page".to_owned()), FIRST)
}

/// The fields of a form.
async fn fields(visit: Visit<'_>) -> Result<Fields, Refusal> {
    let is_form = visit.request.content_type().eq_ignore_ascii_case("application/x-www-form-urlencoded");
    let body = visit.body().await?;
    let fields = Fields::parse(&body).filter(|_| is_form || body.is_empty());
    fields.ok_or_else(|| Refusal::NotJson("a form expected".to_owned()))
}

/// The page that a field names, if it is one of the console.
fn page_of(fields: &Fields, name: &str) -> Option<String> {
    fields.get(name).and_then(|path| forms::local(path, ROOT))
}
