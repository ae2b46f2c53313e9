//! The routes: an answer is made once for all clients of a second, and is not sent again to those that have it.

use std::sync::Arc;

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{
        Method,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH},
    },
    web::{self, Bytes, Query, ServiceConfig},
};
use serde::Deserialize;

use super::{Public, directory::PAGE};
use crate::{
    actors::transport::http::{HttpServer, Refusal, admit, cors, not_found, refuse},
    html::assets,
    protocol::hash::sha256,
};

/// The most announcements of a page.
const MOST: usize = 100;

/// A browser must not guess another type.
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// A document, and what identifies its content.
pub(super) struct Document {
    pub(super) bytes: Bytes,
    etag: String,
}

impl Document {
    pub(super) fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let etag = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
        Self { bytes, etag: format!("\"{etag}\"") }
    }

    /// Whether the client has it.
    fn is_known(&self, request: &HttpRequest) -> bool {
        let known = request.headers().get_all(IF_NONE_MATCH).filter_map(|header| header.to_str().ok());
        known.flat_map(|header| header.split(',')).any(|etag| {
            let etag = etag.trim();
            etag == "*" || etag.trim_start_matches("W/") == self.etag
        })
    }

    /// The answer, with these headers too.
    pub(super) fn answer(
        &self,
        request: &HttpRequest,
        headers: impl FnOnce(&mut HttpResponseBuilder),
    ) -> HttpResponse {
        let is_known = self.is_known(request);
        let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response.insert_header((ETAG, self.etag.as_str())).insert_header((CACHE_CONTROL, "public, max-age=1"));
        headers(&mut response);
        if is_known { response.finish() } else { response.body(self.bytes.clone()) }
    }

    /// The answer of JSON, which pages of other sites may read as they may read the other routes.
    fn json(&self, server: &HttpServer, request: &HttpRequest) -> HttpResponse {
        self.answer(request, |response| {
            cors::allow(response, &server.config().cors, request.headers());
            response.insert_header((CONTENT_TYPE, "application/json")).insert_header((NOSNIFF, "nosniff"));
        })
    }
}

#[derive(Deserialize)]
struct Asked {
    before: Option<u64>,
    limit: Option<usize>,
}

async fn directory(public: &Public, request: &HttpRequest) -> Result<HttpResponse, HttpResponse> {
    let server = &public.server;
    admit(server, request).await?;
    let current = public.current().await.ok_or_else(|| refuse(server, request, Refusal::Unavailable))?;
    Ok(current.document.json(server, request))
}

async fn announcements(public: &Public, request: &HttpRequest) -> Result<HttpResponse, HttpResponse> {
    let server = &public.server;
    admit(server, request).await?;
    let unavailable = || refuse(server, request, Refusal::Unavailable);
    let asked = Query::<Asked>::from_query(request.query_string())
        .map_err(|_| refuse(server, request, Refusal::InvalidParameter))?;
    let most = asked.limit.unwrap_or(PAGE).clamp(1, MOST);
    let page = public.origins().ok_or_else(unavailable)?.page(asked.before, most);
    let bytes = serde_json::to_vec(&page).map_err(|_| unavailable())?;
    Ok(Document::new(bytes).json(server, request))
}

/// Adds the routes to an `App`, before those of the protocol.
pub(super) fn mount(app: &mut ServiceConfig, public: &Public) {
    macro_rules! route {
        ($path:literal, $handler:ident) => {
            let (asked, preflighted) = (public.clone(), public.clone());
            let read = move |request: HttpRequest| {
                let public = asked.clone();
                async move { $handler(&public, &request).await.unwrap_or_else(|refused| refused) }
            };
            let options = move |request: HttpRequest| {
                let answer = cors::preflight(&preflighted.server.config().cors, request.headers());
                async move { answer }
            };
            app.service(
                web::resource($path)
                    .route(web::get().to(read))
                    .route(web::method(Method::OPTIONS).to(options))
                    .default_service(not_found(&public.server)),
            );
        };
    }
    route!("/v1/directory", directory);
    route!("/v1/directory/announcements", announcements);
    let Some(settings) = public.page.clone() else { return };
    let shown = public.clone();
    let page = move |request: HttpRequest| {
        let (public, settings) = (shown.clone(), Arc::clone(&settings));
        async move { super::page::page(&public, &settings, &request).await.unwrap_or_else(|refused| refused) }
    };
    let server = public.server.clone();
    let asset = move |request: HttpRequest, name: web::Path<String>| {
        let answer = assets::answer(&name).unwrap_or_else(|| refuse(&server, &request, Refusal::NotFound));
        async move { answer }
    };
    let of_page = |path: &str| web::resource(path).default_service(not_found(&public.server));
    app.service(of_page("/").route(web::get().to(page.clone())).route(web::head().to(page)));
    app.service(of_page("/assets/{name}").route(web::get().to(asset)));
}
