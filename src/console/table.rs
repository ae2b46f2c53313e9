//! The pages: path, template, and what of the API they need.

use percent_encoding::percent_decode_str;

/// A page.
pub(super) struct Page {
    /// The path below `/console`. A part in braces is any.
    pub(super) path: &'static str,
    /// The template, without its folder and ending.
    pub(super) template: &'static str,
    /// What it reads.
    pub(super) reads: &'static [Read],
}

/// A GET of the API.
pub(super) struct Read {
    /// The name of its answer in the template.
    pub(super) name: &'static str,
    /// The path below `/control/v1`, with the parts in braces of the page's.
    pub(super) path: &'static str,
    /// Which fields of the page's query are passed on.
    pub(super) query: &'static [&'static str],
    /// Whether the page is shown without it.
    pub(super) is_optional: bool,
}

const fn read(name: &'static str, path: &'static str) -> Read {
    Read { name, path, query: &[], is_optional: false }
}

const fn paged(name: &'static str, path: &'static str, query: &'static [&'static str]) -> Read {
    Read { name, path, query, is_optional: false }
}

impl Read {
    const fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }
}

const fn page(path: &'static str, template: &'static str, reads: &'static [Read]) -> Page {
    Page { path, template, reads }
}

/// All pages. A fixed part comes before one in braces.
#[rustfmt::skip]
pub(super) const PAGES: &[Page] = &[
    page("/", "overview", &[
        read("status", "/status"),
        read("alarms", "/alarms"),
        read("cohorts", "/cohorts"),
        read("standing", "/standing"),
        read("templates", "/templates"),
        read("admissions", "/admissions"),
        read("settings", "/settings"),
        read("coins", "/coins").optional(),
        read("ended", "/ended"),
    ]),
    page("/cohorts", "cohorts", &[
        read("cohorts", "/cohorts"),
        paged("ended", "/ended", &["limit"]),
        read("templates", "/templates"),
        read("coins", "/coins").optional(),
    ]),
    page("/cohorts/{cohortId}", "cohort", &[
        read("cohort", "/cohorts/{cohortId}"),
        // One that has ended has none.
        paged("members", "/cohorts/{cohortId}/members", &["after"]).optional(),
        read("timeline", "/cohorts/{cohortId}/timeline"),
        read("coin", "/coins/{cohortId}").optional(),
    ]),
    page("/standing", "standing", &[read("standing", "/standing"), read("templates", "/templates")]),
    page("/standing/{cohortId}", "standing-cohort", &[
        read("cohort", "/standing/{cohortId}"),
        read("seats", "/standing/{cohortId}/seats"),
        read("timeline", "/standing/{cohortId}/timeline"),
        paged("announcements", "/standing/{cohortId}/announcements", &["before"]).optional(),
        read("coins", "/coins").optional(),
    ]),
    page("/templates", "templates", &[read("templates", "/templates")]),
    page("/templates/new", "template-form", &[read("templates", "/templates")]),
    page("/templates/{name}", "template", &[
        read("template", "/templates/{name}"),
        read("cohorts", "/cohorts"),
        read("standing", "/standing"),
    ]),
    page("/templates/{name}/edit", "template-form", &[read("template", "/templates/{name}")]),
    page("/invites", "invites", &[read("invites", "/invites"), read("settings", "/settings")]),
    page("/admissions", "admissions", &[read("admissions", "/admissions"), read("settings", "/settings")]),
    page("/allow-list", "allow-list", &[read("allowed", "/allow-list"), read("settings", "/settings")]),
    page("/bans", "bans", &[paged("bans", "/bans", &["after"])]),
    page("/bans/{subject}", "ban", &[read("ban", "/bans/{subject}")]),
    page("/coins", "coins", &[read("coins", "/coins")]),
    page("/alarms", "alarms", &[read("alarms", "/alarms"), read("status", "/status")]),
    page("/audit", "audit", &[paged("audit", "/audit", &["before", "limit"])]),
    page("/settings", "settings", &[read("settings", "/settings"), read("status", "/status")]),
    page("/tokens", "tokens", &[read("tokens", "/tokens")]),
];

/// A page for a path, with what its parts in braces are.
pub(super) struct Found {
    pub(super) page: &'static Page,
    pub(super) params: Vec<(&'static str, String)>,
}

/// The page of a path below `/console`.
pub(super) fn find(path: &str) -> Option<Found> {
    PAGES.iter().find_map(|page| Some(Found { page, params: params(page.path, path)? }))
}

/// What the parts in braces are; `None` if the path is another one.
fn params(template: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let (named, given): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    if named.len() != given.len() {
        return None;
    }
    let mut found = Vec::new();
    for (named, given) in named.into_iter().zip(given) {
        match in_braces(named) {
            Some(name) => {
                let decoded = percent_decode_str(given).decode_utf8().ok().filter(|text| !text.is_empty())?;
                found.push((name, decoded.into_owned()));
            }
            None if named == given => {}
            None => return None,
        }
    }
    Some(found)
}

/// The name in a part in braces.
pub(super) fn in_braces(part: &str) -> Option<&str> {
    part.strip_prefix('{')?.strip_suffix('}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_finds_its_page() {
        let of = |path: &str| find(path).map(|found| (found.page.template, found.params));
        assert_eq!(of("/"), Some(("overview", vec![])));
        assert_eq!(of("/templates/new").unwrap().0, "template-form");
        assert_eq!(of("/bans/2001%3Adb8%3A%3A%2F64"), Some(("ban", vec![("subject", "2001:db8::/64".to_owned())])));
        for none in ["", "/none", "/cohorts/", "/cohorts/a/b", "/bans/%ff"] {
            assert!(of(none).is_none(), "{none}");
        }
    }
}
