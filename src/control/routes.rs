//! The routes: method, path, role, and who answers. `openapi.json` describes them; a test compares both.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::http::Method;
use futures::future::LocalBoxFuture;
use percent_encoding::percent_decode_str;

use super::{
    answer::{Answer, Refusal},
    call::Call,
    resources::{admission, bans, cohorts, coins, invites, operator, standing, status, templates},
    role::{Role, Who},
    shared::Shared,
};

/// Where the API is mounted.
pub(crate) const BASE: &str = "/control/v1";

/// A route.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    /// The path below [`BASE`]. A part in braces is any.
    pub(crate) path: &'static str,
    /// The least role.
    pub(crate) role: Role,
    answer: for<'a> fn(&'a Call) -> LocalBoxFuture<'a, Answer>,
}

macro_rules! routes {
    ($($role:ident $method:literal $path:literal $module:ident::$function:ident;)*) => {
        /// All routes.
        pub(crate) const ROUTES: &[Route] = &[$(Route {
            method: $method,
            path: $path,
            role: Role::$role,
            answer: |call| Box::pin($module::$function(call)),
        },)*];
    };
}

routes! {
    Viewer "GET" "/openapi.json" status::openapi;
    Viewer "GET" "/whoami" status::whoami;
    Viewer "GET" "/status" status::status;
    Viewer "GET" "/metrics" status::metrics;
    Viewer "GET" "/alarms" status::alarms;
    Viewer "GET" "/events" status::events;
    Viewer "GET" "/templates" templates::list;
    Viewer "GET" "/templates/{name}" templates::show;
    Operator "PUT" "/templates/{name}" templates::put;
    Operator "DELETE" "/templates/{name}" templates::remove;
    Operator "POST" "/templates/{name}/advertise" templates::advertise;
    Operator "POST" "/templates/{name}/pause" templates::pause;
    Viewer "POST" "/terms/check" templates::check;
    Viewer "GET" "/cohorts" cohorts::list;
    Operator "POST" "/cohorts" cohorts::create;
    Viewer "GET" "/ended" cohorts::ended;
    Viewer "GET" "/cohorts/{cohortId}" cohorts::show;
    Viewer "GET" "/cohorts/{cohortId}/members" cohorts::members;
    Viewer "GET" "/cohorts/{cohortId}/timeline" cohorts::timeline;
    Operator "POST" "/cohorts/{cohortId}/pause" cohorts::pause;
    Operator "POST" "/cohorts/{cohortId}/resume" cohorts::resume;
    Operator "POST" "/cohorts/{cohortId}/finalize" cohorts::finalize;
    Operator "POST" "/cohorts/{cohortId}/extend" cohorts::extend;
    Operator "POST" "/cohorts/{cohortId}/cancel" cohorts::cancel;
    Viewer "GET" "/standing" standing::list;
    Operator "POST" "/standing" standing::create;
    Viewer "GET" "/standing/{cohortId}" standing::show;
    Viewer "GET" "/standing/{cohortId}/seats" standing::seats;
    Viewer "GET" "/standing/{cohortId}/timeline" cohorts::timeline;
    Viewer "GET" "/standing/{cohortId}/announcements" standing::announcements;
    Operator "POST" "/standing/{cohortId}/pause" standing::pause;
    Operator "POST" "/standing/{cohortId}/resume" standing::resume;
    Operator "POST" "/standing/{cohortId}/finalize" standing::finalize;
    Operator "POST" "/standing/{cohortId}/cancel" standing::cancel;
    Operator "POST" "/standing/{cohortId}/trigger" standing::trigger;
    Operator "POST" "/standing/{cohortId}/hold" standing::hold;
    Operator "POST" "/standing/{cohortId}/release" standing::release;
    Viewer "GET" "/admissions" admission::list;
    Operator "POST" "/admissions/{id}/admit" admission::admit;
    Operator "POST" "/admissions/{id}/refuse" admission::refuse;
    Viewer "GET" "/allow-list" admission::allowed;
    Operator "PUT" "/allow-list/{did}" admission::allow;
    Operator "DELETE" "/allow-list/{did}" admission::disallow;
    Viewer "GET" "/invites" invites::list;
    Operator "POST" "/invites" invites::create;
    Operator "DELETE" "/invites/{id}" invites::revoke;
    Viewer "GET" "/bans" bans::list;
    Viewer "GET" "/bans/{subject}" bans::show;
    Operator "PUT" "/bans/{subject}" bans::add;
    Operator "DELETE" "/bans/{subject}" bans::lift;
    Viewer "GET" "/coins" coins::list;
    Viewer "GET" "/coins/{cohortId}" coins::show;
    Operator "POST" "/coins/{cohortId}/bump" coins::bump;
    Operator "POST" "/coins/{cohortId}/hold" coins::hold;
    Operator "POST" "/coins/{cohortId}/release" coins::release;
    Viewer "GET" "/settings" operator::settings;
    Admin "PATCH" "/settings" operator::change_settings;
    Admin "GET" "/tokens" operator::tokens;
    Admin "POST" "/tokens" operator::new_token;
    Admin "DELETE" "/tokens/{id}" operator::revoke_token;
    Operator "GET" "/audit" operator::audit;
}

/// The parts of a path.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').skip(1)
}

/// What the parts in braces are; `None` if the path is another one.
fn captures(template: &str, path: &str) -> Option<Vec<String>> {
    if parts(template).count() != parts(path).count() {
        return None;
    }
    let mut found = Vec::new();
    for (named, given) in parts(template).zip(parts(path)) {
        if named.starts_with('{') {
            found.push(percent_decode_str(given).decode_utf8().ok().filter(|text| !text.is_empty())?.into_owned());
        } else if named != given {
            return None;
        }
    }
    Some(found)
}

/// A route for a request, and what its path names.
pub(crate) struct Found {
    pub(crate) route: &'static Route,
    captures: Vec<String>,
}

/// The route of a request.
///
/// # Errors
/// [`Refusal`] if there is none.
pub(crate) fn find(method: &Method, path: &str) -> Result<Found, Refusal> {
    let none = || Refusal::NotFound(format!("there is no such path: see {BASE}/openapi.json"));
    let path = path.strip_prefix(BASE).ok_or_else(none)?;
    let mut methods = Vec::new();
    for route in ROUTES {
        let Some(captures) = captures(route.path, path) else { continue };
        if route.method == method.as_str() {
            return Ok(Found { route, captures });
        }
        methods.push(route.method);
    }
    if methods.is_empty() { Err(none()) } else { Err(Refusal::Method(methods.join(", "))) }
}

impl Found {
    /// Whether the caller may.
    ///
    /// # Errors
    /// [`Refusal::Forbidden`].
    pub(crate) fn allows(&self, who: &Who) -> Result<(), Refusal> {
        if who.role >= self.route.role {
            return Ok(());
        }
        Err(Refusal::Forbidden(format!("the role {} is needed, and this token has {}", self.route.role, who.role)))
    }

    /// Whether a request has a body.
    pub(crate) fn takes_body(&self) -> bool {
        self.route.method != "GET"
    }

    /// Answers.
    pub(crate) async fn answer(
        self,
        shared: Arc<Shared>,
        who: Who,
        query: BTreeMap<String, String>,
        body: Option<serde_json::Value>,
        last_event_id: Option<String>,
    ) -> Answer {
        let call = Call { shared, who, captures: self.captures, query, body, last_event_id };
        (self.route.answer)(&call).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_describes_every_route_and_its_role() {
        let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in
                operations.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
            {
                let role = operation["x-role"].as_str().unwrap_or_else(|| panic!("{method} {path}: no x-role"));
                described.insert((method.to_uppercase(), path.clone(), role.to_owned()));
            }
        }
        let served: BTreeSet<_> = ROUTES
            .iter()
            .map(|route| (route.method.to_owned(), format!("{BASE}{}", route.path), route.role.to_string()))
            .collect();
        assert_eq!(described, served);
    }

    #[test]
    fn a_path_names_what_is_in_braces_and_nothing_else() {
        let found = find(&Method::GET, "/control/v1/bans/2001%3Adb8%3A%3A%2F64").unwrap();
        assert_eq!((found.route.path, found.captures), ("/bans/{subject}", vec!["2001:db8::/64".to_owned()]));
        assert!(
            matches!(find(&Method::DELETE, "/control/v1/cohorts"), Err(Refusal::Method(allowed)) if allowed == "GET, POST")
        );
        for path in [
            "/",
            "/control/v1",
            "/control/v1/",
            "/control/v1/cohorts/",
            "/control/v1/bans/a/b",
            "/control/v1/bans/%FF",
        ] {
            assert!(matches!(find(&Method::GET, path), Err(Refusal::NotFound(_))), "{path}");
        }
    }
}
