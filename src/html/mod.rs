//! Pages: rendered here from templates, so that everything can be read and done without a script. The operator's console, the public
//! page and a member's page use it; each of them has a folder of templates in `templates/`.
//!
//! # Templates
//!
//! They are in the language of minijinja (Jinja2), in `templates/`, and embedded in the program; `files.rs` lists them. Every value is
//! escaped for HTML, and what hides or reorders text (controls, characters of direction) is shown as its code. Printing something that
//! is not there is an error; `{% if x.y %}` of something that is not there is false. In debug builds `BTCR2_HTML_DIR=src/html` reads
//! templates and assets from that folder at every request.
//!
//! | filter | what it makes |
//! |---|---|
//! | `sats`, `btc` | an amount in satoshis: `12,345 sat`, `0.00012345 BTC` |
//! | `count("member")`, `count("entry", "entries")` | `1 member`, `3 members` |
//! | `shell` | one argument of a POSIX shell, for commands that are shown for copying. Every text of other people needs it |
//! | `short` | a shortened identifier, the whole one in `title` |
//! | `date`, `ago` | `<time datetime>` of a time: milliseconds, or a text in RFC 3339; `ago` shows the distance from now |
//! | `span` | a length of time in milliseconds: `1h 30m` |
//! | `qr` | an inline SVG of a QR code |
//! | `json` | a value as JSON on several lines, which is a text: it is escaped as every other |
//! | `part` | a text as one part of a path in a URL |
//! | `asset` | the URL of an asset: `{{ "console.css"|asset }}`, below `root` of the context |
//!
//! # Assets
//!
//! Files in `assets/`. Their URL is `ROOT/assets/NAME.HASH.EXT`; browsers may store them without end.
//!
//! # Security
//!
//! [`headers`] has the headers of every page: no script, style or image of others, no inline script or style (so no `style=` and no
//! `onclick=` in templates either), no frames. [`session`] has the sessions of browsers, [`forms`] the checks of a form.

pub(crate) mod assets;
mod files;
mod filters;
pub(crate) mod forms;
pub(crate) mod headers;
pub(crate) mod qr;
pub(crate) mod session;

pub(crate) use filters::part;

use std::sync::LazyLock;

use minijinja::{AutoEscape, Environment, UndefinedBehavior, value::Serde};
use serde::Serialize;

/// A page that could not be rendered: a fault of ours.
#[derive(Debug, thiserror::Error)]
#[error("the page {template} cannot be rendered: {detail}")]
pub(crate) struct RenderError {
    template: String,
    detail: String,
}

/// The templates of a release, parsed once.
static EMBEDDED: LazyLock<Environment<'static>> = LazyLock::new(embedded);

/// Renders a template, e.g. `console/login.html`.
///
/// # Errors
/// [`RenderError`].
pub(crate) fn render(template: &str, context: &impl Serialize) -> Result<String, RenderError> {
    let rendered = match files::folder() {
        Some(folder) => rendered(&of_folder(folder), template, context),
        None => rendered(&EMBEDDED, template, context),
    };
    rendered.map_err(|error| RenderError {
        template: template.to_owned(),
        // The cause, and the place; not the values that `display_debug_info` would add.
        detail: std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    })
}

fn rendered(
    environment: &Environment<'_>,
    template: &str,
    context: &impl Serialize,
) -> Result<String, minijinja::Error> {
    environment.get_template(template)?.render(Serde(context))
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    // Strict where something is printed. A condition may ask for what an answer of the API does not always have.
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    environment.set_formatter(filters::format);
    environment.set_debug(false);
    filters::add(&mut environment);
    environment
}

fn embedded() -> Environment<'static> {
    let mut environment = environment();
    for (name, text) in files::TEMPLATES {
        if let Err(error) = environment.add_template(name, text) {
            // A test renders each; the page that lacks it is an error when it is asked for.
            tracing::error!(name, %error, "a template cannot be read");
        }
    }
    environment
}

fn of_folder(folder: &std::path::Path) -> Environment<'static> {
    let mut environment = environment();
    environment.set_loader(minijinja::path_loader(folder.join("templates")));
    environment
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_is_embedded_and_every_template_can_be_read() {
        fn all(folder: &std::path::Path, within: &str, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let name = format!("{within}{}", entry.file_name().to_str().unwrap());
                match entry.file_type().unwrap().is_dir() {
                    true => all(&entry.path(), &format!("{name}/"), found),
                    false => drop(found.insert(name)),
                }
            }
        }
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/html");
        let (mut templates, mut assets) = (BTreeSet::new(), BTreeSet::new());
        all(&here.join("templates"), "", &mut templates);
        all(&here.join("assets"), "", &mut assets);
        let embedded: BTreeSet<String> = files::TEMPLATES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(embedded, templates, "files.rs and the folder of templates differ");
        let embedded: BTreeSet<String> = files::ASSETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(embedded, assets, "files.rs and the folder of assets differ");
        for (name, text) in files::TEMPLATES {
            environment().add_template(name, text).unwrap_or_else(|error| panic!("{name}: {error}"));
            for refused in [" style=", " onclick=", "<style", "javascript:", "|safe"] {
                assert!(!text.contains(refused), "{name} has {refused:?}, which the policy of pages refuses");
            }
        }
    }
}
