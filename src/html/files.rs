//! The files that are embedded. A new one needs its line here; a test compares.

use std::path::Path;

macro_rules! embed {
    ($as:ident $folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, $as!(concat!($folder, $name)))),*]
    };
}

/// The templates.
pub(super) const TEMPLATES: &[(&str, &str)] = embed![include_str "templates/":
    "console/admissions.html",
    "console/alarms.html",
    "console/allow-list.html",
    "console/audit.html",
    "console/ban.html",
    "console/bans.html",
    "console/base.html",
    "console/cohort.html",
    "console/cohorts.html",
    "console/coin.html",
    "console/coins.html",
    "console/ended.html",
    "console/error.html",
    "console/happenings.html",
    "console/invites.html",
    "console/login.html",
    "console/meaning.html",
    "console/overview.html",
    "console/parts.html",
    "console/settings.html",
    "console/standing-cohort.html",
    "console/standing.html",
    "console/template-form.html",
    "console/template.html",
    "console/templates.html",
    "console/terms.html",
    "console/tokens.html",
    "member/base.html",
    "member/costs.html",
    "member/did.html",
    "member/dids.html",
    "member/error.html",
    "member/log.html",
    "member/login.html",
    "member/overview.html",
    "member/parts.html",
    "member/queue.html",
    "member/request.html",
    "member/update.html",
    "public/index.html",
];

/// The assets.
pub(super) const ASSETS: &[(&str, &[u8])] = &[
    ("console.css", include_bytes!("assets/console.css")),
    ("console.js", include_bytes!("assets/console.js")),
    ("mark.svg", include_bytes!("assets/mark.svg")),
    ("member.js", include_bytes!("assets/member.js")),
    ("pages.css", include_bytes!("assets/pages.css")),
    ("public.js", include_bytes!("assets/public.js")),
];

/// The folder to read files from instead: for those who write templates, in debug builds.
#[cfg(debug_assertions)]
pub(super) fn folder() -> Option<&'static Path> {
    use std::{path::PathBuf, sync::OnceLock};
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| std::env::var_os("BTCR2_HTML_DIR").map(PathBuf::from)).as_deref()
}

/// Release builds have what is embedded.
#[cfg(not(debug_assertions))]
pub(super) const fn folder() -> Option<&'static Path> {
    None
}
