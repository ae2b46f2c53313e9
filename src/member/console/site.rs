//! What is served: who is admitted, and which page answers.

use std::{net::IpAddr, sync::Arc, time::Duration};

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    http::{
        Method, StatusCode,
        header::{HOST, HeaderValue, SET_COOKIE},
    },
    web::{self, Data, Payload, ServiceConfig},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{calls::Calls, pages, secrets::Secrets};
use crate::{
    actors::{
        runtime::Clock,
        transport::connections::{Connections, Proxies},
    },
    html::{
        self, assets,
        forms::{self, Fields},
        headers::{self, BACKGROUND, see},
        session::{Open, Sessions},
    },
    protocol::network::Network,
    serve::{body, web::Site},
};

/// The largest body of a form, in bytes, and how long it may take.
const MOST_BODY: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// No proxy is trusted: only this machine connects.
const PROXIES: Proxies = Proxies::None;

/// What all requests share.
pub(super) struct Shared {
    pub(super) calls: Calls,
    pub(super) sessions: Sessions<()>,
    pub(super) secrets: Secrets,
    pub(super) connections: Connections,
    pub(super) clock: Clock,
    pub(super) network: Network,
}

/// What is served.
#[derive(Clone)]
pub(super) struct MemberSite(pub(super) Arc<Shared>);

impl Site for MemberSite {
    fn connections(&self) -> &Connections {
        &self.0.connections
    }

    fn proxies(&self) -> &Proxies {
        &PROXIES
    }

    fn mount(&self, app: &mut ServiceConfig) {
        app.app_data(Data::from(Arc::clone(&self.0))).default_service(web::to(handle));
    }
}

/// A request of a browser that has logged in.
pub(super) struct Visit<'a> {
    pub(super) shared: &'a Shared,
    pub(super) request: &'a HttpRequest,
    pub(super) session: Open<()>,
    is_background: bool,
}

async fn handle(shared: Data<Shared>, request: HttpRequest, payload: Payload) -> HttpResponse {
    if !is_our_host(&request) {
        return text(StatusCode::MISDIRECTED_REQUEST, "The Host of the request is not this machine.");
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && *request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "This page has GET and POST.");
    }
    let path = request.path();
    if let Some(asset) = path.strip_prefix("/assets/") {
        return assets::answer(asset).unwrap_or_else(|| text(StatusCode::NOT_FOUND, "There is no such file."));
    }
    // A form of a page of another site could log its visitor in, too.
    if !reads && forms::is_foreign(request.headers()) {
        return text(StatusCode::FORBIDDEN, "The form is of a page of another site.");
    }
    if path == "/login" {
        return match reads {
            true => login(&shared, StatusCode::OK, None),
            false => log_in(&shared, &request, payload).await,
        };
    }
    let now = shared.clock.now();
    let is_background = request.headers().contains_key(BACKGROUND);
    let Some(session) = shared.sessions.find(request.headers(), now, is_background) else {
        return match reads && !is_background {
            true => see("/login"),
            false => login(&shared, StatusCode::UNAUTHORIZED, Some("The session has ended: log in again.")),
        };
    };
    let visit = Visit { shared: &shared, request: &request, session, is_background };
    if reads {
        return pages::show(&visit).await;
    }
    let Some(fields) = form(&request, payload).await else {
        return text(StatusCode::BAD_REQUEST, "A form expected.");
    };
    if let Err(forged) = visit.session.check(request.headers(), Some(&fields)) {
        return visit.problem(StatusCode::FORBIDDEN, &forged.to_string());
    }
    if path == "/logout" {
        shared.sessions.close(visit.session.key);
        let mut response = see("/login");
        set_cookie(&mut response, &shared.sessions.no_cookie());
        return response;
    }
    pages::act(&visit, &fields).await
}

/// Whether the page is called as this machine: a name of another party that leads here would let its pages in (DNS rebinding).
fn is_our_host(request: &HttpRequest) -> bool {
    let mut hosts = request.headers().get_all(HOST);
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
    if request.uri().authority().is_some_and(|authority| authority.as_str() != host) {
        return false;
    }
    // The port does not matter: a tunnel may have another one.
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

async fn form(request: &HttpRequest, payload: Payload) -> Option<Fields> {
    let is_form = request.content_type().eq_ignore_ascii_case("application/x-www-form-urlencoded");
    let body = body::read(payload, MOST_BODY, BODY_TIMEOUT).await.ok()?;
    is_form.then(|| Fields::parse(&body)).flatten()
}

fn login(shared: &Shared, status: StatusCode, problem: Option<&str>) -> HttpResponse {
    page(status, "member/login.html", &json!({ "root": "", "network": shared.network, "error": problem }))
}

async fn log_in(shared: &Shared, request: &HttpRequest, payload: Payload) -> HttpResponse {
    let now = shared.clock.now();
    let fields = form(request, payload).await.unwrap_or_default();
    if !shared.secrets.redeem(fields.get("secret").unwrap_or_default(), now) {
        let problem = "This secret does not work: each works once, and for a quarter of an hour. `member console-url` prints another.";
        return login(shared, StatusCode::UNAUTHORIZED, Some(problem));
    }
    // The one before it ends, and its identifier with it.
    if let Some(before) = shared.sessions.find(request.headers(), now, true) {
        shared.sessions.close(before.key);
    }
    let (_, cookie) = shared.sessions.open((), now);
    let mut response = see("/");
    set_cookie(&mut response, &cookie);
    response
}

fn set_cookie(response: &mut HttpResponse, cookie: &str) {
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
}

fn text(status: StatusCode, text: &'static str) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    headers::secure(&mut response).content_type("text/plain; charset=utf-8").body(text)
}

/// A page.
pub(super) fn page(status: StatusCode, template: &str, context: &impl Serialize) -> HttpResponse {
    match html::render(template, context) {
        Ok(shown) => headers::page(&mut HttpResponse::build(status)).body(shown),
        Err(error) => {
            tracing::error!(%error, "a page has failed");
            text(StatusCode::INTERNAL_SERVER_ERROR, "This page has failed. The log of the agent has the reason.")
        }
    }
}

impl Visit<'_> {
    /// A page for a browser that has logged in.
    pub(super) fn page(&self, status: StatusCode, template: &str, context: Value) -> HttpResponse {
        let mut context = context;
        context["root"] = json!("");
        context["path"] = json!(self.request.path());
        context["network"] = json!(self.shared.network);
        context["csrf"] = json!(*self.session.csrf);
        context["flash"] = match self.is_background {
            true => Value::Null,
            false => self.shared.sessions.take_flash(self.session.key).unwrap_or_default(),
        };
        page(status, template, &context)
    }

    /// The page that shows why something is not done.
    pub(super) fn problem(&self, status: StatusCode, detail: &str) -> HttpResponse {
        self.page(status, "member/error.html", json!({ "detail": detail }))
    }
}
