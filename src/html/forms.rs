//! Forms: what their fields mean as JSON, and whether a form is one of our own pages.
//!
//! # Fields
//!
//! `NAME` is a text, `NAME:int` a number, `NAME:bool` a truth value (`true`, `on`, `false`), `NAME:json` JSON, `NAME:lines` the lines of
//! a text as a list. `a.b` is the field `b` of the object `a`. An empty field is left out, and of two fields with one name the last one
//! counts (a hidden `false` before a checkbox). Names that begin with `_` are for the server: `_csrf`, `_next` and so on.

use actix_web::http::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use serde_json::{Map, Value};

/// The header by which browsers report whose page a request is of.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The most fields of a form, and of objects within objects.
const MOST_FIELDS: usize = 1_000;
const MOST_DEPTH: usize = 8;

/// The fields of a form as they were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, String)>);

/// A field that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// Its name, without its type.
    pub(crate) field: String,
    /// What was expected.
    pub(crate) detail: String,
}

impl Fields {
    /// Reads a body of the type `application/x-www-form-urlencoded`; `None` if it is not one.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let fields = actix_web::web::Query::<Vec<(String, String)>>::from_query(text).ok()?.into_inner();
        (fields.len() <= MOST_FIELDS).then_some(Self(fields))
    }

    /// The last field of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The last field of this name, whatever its type; it is removed with all others of the name.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let is_it = |found: &str| found.split(':').next() == Some(name);
        let value = self.0.iter().rev().find(|(found, _)| is_it(found)).map(|(_, value)| value.clone());
        self.0.retain(|(found, _)| !is_it(found));
        value
    }

    /// What was typed, by the names without types: for the form as it is shown again.
    pub(crate) fn typed(&self) -> Map<String, Value> {
        let own = self.0.iter().filter(|(name, _)| !name.starts_with('_'));
        own.map(|(name, value)| (split(name).0.to_owned(), value.clone().into())).collect()
    }

    /// The fields as an object.
    ///
    /// # Errors
    /// Every field that cannot be read.
    pub(crate) fn object(&self) -> Result<Map<String, Value>, Vec<FieldError>> {
        let (mut object, mut errors) = (Map::new(), Vec::new());
        for (index, (name, text)) in self.0.iter().enumerate() {
            let is_last = !self.0[index + 1..].iter().any(|(other, _)| split(other).0 == split(name).0);
            if name.starts_with('_') || !is_last {
                continue;
            }
            let (field, kind) = split(name);
            let refuse = |detail: String| FieldError { field: field.to_owned(), detail };
            let read = match value(kind, text) {
                Ok(Some(value)) => insert(&mut object, field, value).map_err(refuse),
                Ok(None) => Ok(()),
                Err(detail) => Err(refuse(detail)),
            };
            errors.extend(read.err());
        }
        if errors.is_empty() { Ok(object) } else { Err(errors) }
    }
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once(':').unwrap_or((name, ""))
}

fn value(kind: &str, text: &str) -> Result<Option<Value>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let trimmed = text.trim();
    Ok(Some(match kind {
        "" => text.replace("\r\n", "\n").into(),
        "int" => trimmed.parse::<i64>().map_err(|_| "a whole number expected".to_owned())?.into(),
        "bool" => match trimmed {
            "true" | "on" | "1" => true.into(),
            "false" | "off" | "0" => false.into(),
            _ => return Err("true or false expected".to_owned()),
        },
        "json" => serde_json::from_str(trimmed).map_err(|error| format!("JSON expected: {error}"))?,
        "lines" => trimmed.lines().map(str::trim).filter(|line| !line.is_empty()).collect(),
        _ => return Err(format!("the form is wrong: there is no type {kind}")),
    }))
}

/// Inserts a value at a name with dots.
fn insert(object: &mut Map<String, Value>, name: &str, value: Value) -> Result<(), String> {
    let wrong = || "the form is wrong: a name is a value and an object".to_owned();
    let mut parts: Vec<&str> = name.split('.').collect();
    let last = parts.pop().unwrap_or(name);
    if parts.len() > MOST_DEPTH {
        return Err("the form is wrong: too many dots".to_owned());
    }
    let mut at = object;
    for part in parts {
        let inner = at.entry(part).or_insert_with(|| Value::Object(Map::new()));
        at = inner.as_object_mut().ok_or_else(wrong)?;
    }
    match at.insert(last.to_owned(), value) {
        Some(_) => Err(wrong()),
        None => Ok(()),
    }
}

/// Whether a browser reports that a request was made by a page of another origin. Programs report nothing.
pub(crate) fn is_foreign(headers: &HeaderMap) -> bool {
    let one = |name: HeaderName| {
        let mut given = headers.get_all(name);
        match (given.next(), given.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
            _ => Err(()),
        }
    };
    let (Ok(site), Ok(origin), Ok(host)) = (one(FETCH_SITE), one(ORIGIN), one(HOST)) else { return true };
    // `none` is the user: a reload, or a bookmark.
    let is_foreign_site = site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let is_foreign_origin = origin.is_some_and(|origin| {
        let named = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        named.is_none() || named.map(str::to_ascii_lowercase) != host.map(str::to_ascii_lowercase)
    });
    is_foreign_site || is_foreign_origin
}

/// Whether a request is made by a web page at all, its own or another one.
pub(crate) fn is_of_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.get(FETCH_SITE).is_some_and(|site| site != "none")
}

/// A path below `root` to go to next; `None` if the text is anything else, e.g. a URL of another site.
pub(crate) fn local(next: &str, root: &str) -> Option<String> {
    // Browsers read `\` as `/`, drop tabs and line ends, and take `//host` as another site.
    let is_fine = |letter: char| letter.is_ascii_graphic() && letter != '\\';
    let rest = next.strip_prefix(root)?;
    let begins = rest.is_empty() || rest.starts_with(['/', '?', '#']);
    let path = next.split(['?', '#']).next().unwrap_or(next);
    let climbs = path.split('/').any(|part| {
        let plain = part.to_ascii_lowercase().replace("%2e", ".");
        plain == ".." || plain == "."
    });
    (begins
        && next.starts_with('/')
        && !next.starts_with("//")
        && !climbs
        && next.len() <= 2_000
        && next.chars().all(is_fine))
    .then(|| next.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use serde_json::json;

    use super::*;

    fn object(form: &str) -> Result<Value, Vec<FieldError>> {
        Fields::parse(form.as_bytes()).unwrap().object().map(Value::Object)
    }

    #[test]
    fn fields_have_types_nest_and_are_left_out_when_empty() {
        let form = "_csrf=x&_next=%2F&name=a%20b&terms.beacon=smt&terms.min-participants:int=3&terms.x.y:bool=on&cohorts:int=\
                    &list:lines=a%0D%0A%0D%0A+b&raw:json=%7B%22a%22%3Anull%7D&invites:bool=false&invites:bool=true&off:bool=false";
        let expected = json!({
            "name": "a b", "terms": { "beacon": "smt", "min-participants": 3, "x": { "y": true } }, "list": ["a", "b"],
            "raw": { "a": null }, "invites": true, "off": false,
        });
        assert_eq!(object(form).unwrap(), expected);
        let mut fields = Fields::parse(b"subject=a%2Fb&reason=x").unwrap();
        assert_eq!(fields.take("subject").as_deref(), Some("a/b"));
        assert_eq!(fields.object().unwrap(), *json!({ "reason": "x" }).as_object().unwrap());
        assert_eq!(fields.typed(), *json!({ "reason": "x" }).as_object().unwrap());
    }

    #[test]
    fn every_field_that_cannot_be_read_is_named() {
        let errors = object("a:int=x&b:bool=perhaps&c:json=%7B&d:what=1&e=1&e.f=2").unwrap_err();
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["a", "b", "c", "d", "e.f"]);
        let deep = format!("{}x=1", "a.".repeat(40));
        assert!(object(&deep).is_err());
        assert!(Fields::parse("a=1&".repeat(2_000).as_bytes()).is_none() && Fields::parse(&[0xff]).is_none());
    }

    #[test]
    fn a_form_of_another_page_is_noticed() {
        let foreign = |given: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
            }
            is_foreign(&headers)
        };
        let host = ("host", "localhost:8081");
        for own in [
            &[host][..],
            &[host, ("origin", "http://localhost:8081")],
            &[host, ("origin", "https://LOCALHOST:8081"), ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "none")],
        ] {
            assert!(!foreign(own), "{own:?}");
        }
        for other in [
            &[host, ("origin", "http://localhost:3000")][..],
            &[host, ("origin", "http://evil.example")],
            &[host, ("origin", "null")],
            &[host, ("origin", "http://localhost:8081.evil.example")],
            &[host, ("origin", "http://localhost:8081"), ("origin", "http://evil.example")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site"), ("origin", "http://localhost:8081")],
            &[("origin", "http://localhost:8081")],
        ] {
            assert!(foreign(other), "{other:?}");
        }
    }

    #[test]
    fn the_next_page_is_one_of_ours() {
        for fine in ["/console", "/console/", "/console/cohort/a%20b?x=1#y", "/console?x=/../"] {
            assert_eq!(local(fine, "/console").as_deref(), Some(fine));
        }
        for other in [
            "",
            "/",
            "//evil.example",
            "https://evil.example/console",
            "/consoles",
            "/console/../x",
            "/console/%2E./x",
            "/console\\x",
            "/console/\u{9}x",
            "/console/\r\nSet-Cookie: a=b",
            "javascript:alert(1)",
            "/console/é",
        ] {
            assert_eq!(local(other, "/console"), None, "{other}");
        }
        assert_eq!(local("//evil.example", ""), None);
        assert_eq!(local("/\\evil.example", ""), None);
        assert_eq!(local("/member", "").as_deref(), Some("/member"));
    }
}
