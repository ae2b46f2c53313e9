//! Assets: styles, scripts and images, by URLs that contain a hash of the file.

use std::{borrow::Cow, collections::BTreeMap, sync::LazyLock};

use actix_web::{
    HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
};
use data_encoding::HEXLOWER;

use super::{files, headers};
use crate::protocol::hash::sha256;

/// The URL's name of each asset, which has the hash.
static NAMES: LazyLock<BTreeMap<&'static str, String>> =
    LazyLock::new(|| files::ASSETS.iter().map(|(name, bytes)| (*name, hashed(name, bytes))).collect());

fn hashed(name: &str, bytes: &[u8]) -> String {
    let hash = &HEXLOWER.encode(&sha256(bytes))[..16];
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, "txt"));
    format!("{stem}.{hash}.{extension}")
}

/// An asset as it is now.
fn read(name: &'static str, bytes: &'static [u8]) -> Cow<'static, [u8]> {
    let of_folder = files::folder().and_then(|folder| std::fs::read(folder.join("assets").join(name)).ok());
    of_folder.map_or(Cow::Borrowed(bytes), Cow::Owned)
}

/// The name of an asset in URLs.
pub(super) fn name(asset: &str) -> Option<String> {
    if files::folder().is_some() {
        let (name, bytes) = files::ASSETS.iter().find(|(name, _)| *name == asset)?;
        return Some(hashed(name, &read(name, bytes)));
    }
    NAMES.get(asset).cloned()
}

/// The answer to a request for an asset, by its name in the URL; `None` if there is none of this name.
pub(crate) fn answer(named: &str) -> Option<HttpResponse> {
    let (name, bytes) = files::ASSETS.iter().find(|(asset, _)| name(asset).as_deref() == Some(named))?;
    let content_type = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    };
    let mut response = HttpResponse::Ok();
    headers::secure(&mut response);
    response
        .insert_header((CONTENT_TYPE, content_type))
        .insert_header((CACHE_CONTROL, "public, max-age=31536000, immutable"));
    Some(response.body(read(name, bytes).into_owned()))
}
