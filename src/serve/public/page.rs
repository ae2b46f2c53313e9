//! The public page: the directory for people. It is complete without a script.

use actix_web::{HttpRequest, HttpResponse, http::header::CONTENT_TYPE, web::Query};
use serde::{Deserialize, Serialize};

use super::{
    Current, Public,
    directory::{Directory, PAGE, Page},
    routes::Document,
};
use crate::{
    actors::transport::http::{Refusal, admit, refuse},
    html::{self, headers},
};

/// How the page is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSettings {
    /// The base URL of a block explorer, to which transactions and addresses are links.
    pub explorer: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    before: Option<u64>,
}

/// What the template has.
#[derive(Serialize)]
struct Context<'a> {
    /// Relative, so that it is right behind a proxy with a path prefix too.
    root: &'static str,
    d: &'a Directory,
    page: &'a Page,
    is_older: bool,
    explorer: Option<&'a str>,
}

fn render(current: &Current, page: &Page, is_older: bool, settings: &PageSettings) -> Option<Document> {
    let explorer = settings.explorer.as_deref();
    let context = Context { root: ".", d: &current.directory, page, is_older, explorer };
    match html::render("public/index.html", &context) {
        Ok(text) => Some(Document::new(text)),
        Err(error) => {
            tracing::error!(%error, "the public page has failed");
            None
        }
    }
}

/// The answer to a request for the page.
pub(super) async fn page(
    public: &Public,
    settings: &PageSettings,
    request: &HttpRequest,
) -> Result<HttpResponse, HttpResponse> {
    let server = &public.server;
    admit(server, request).await?;
    let unavailable = || refuse(server, request, Refusal::Unavailable);
    let asked = Query::<Asked>::from_query(request.query_string())
        .map_err(|_| refuse(server, request, Refusal::InvalidParameter))?;
    let current = public.current().await.ok_or_else(unavailable)?;
    let older;
    let shown = match asked.before {
        // Made once for all clients of a second.
        None => current
            .page
            .get_or_init(|| render(&current, &current.directory.announcements, false, settings))
            .as_ref(),
        Some(before) => {
            let page = public.origins().ok_or_else(unavailable)?.page(Some(before), PAGE);
            older = render(&current, &page, true, settings);
            older.as_ref()
        }
    };
    let shown = shown.ok_or_else(unavailable)?;
    Ok(shown.answer(request, |response| {
        headers::secure(response).insert_header((CONTENT_TYPE, "text/html; charset=utf-8"));
    }))
}
