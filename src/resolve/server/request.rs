//! What a request asks for: the DID, the options of the query and of the body, Sidecar Data, and the form of the answer.

use actix_web::{
    HttpRequest,
    http::header::{ACCEPT, Accept, Header},
    mime::Mime,
    web::Query,
};
use serde_json::{Map, Value};

use super::answer::{Form, Refusal};
use crate::{
    inputs,
    protocol::{
        did::Did,
        resolution::{
            DOCUMENT_MEDIA_TYPE, OptionsError, RESULT_MEDIA_TYPE, ResolutionError, ResolutionOptions, SidecarError,
        },
    },
    resolve::Given,
};

/// The media type of a result before it had one of its own, as Universal Resolver drivers know it.
const LINKED_RESULT: &str = "application/ld+json;profile=\"https://w3id.org/did-resolution\"";

/// The options of the method; others are not looked at.
const OPTIONS: [&str; 4] = ["versionId", "versionTime", "minConf", "maxDiscoveryRounds"];

/// The members of Sidecar Data, which belong under `sidecar` in a body.
const SIDECAR: [&str; 4] = ["genesisDocument", "updates", "casUpdates", "smtProofs"];

/// The most updates, announcements and proofs of a request: each takes some hundred bytes, however short it is.
const MAX_ENTRIES: usize = 10_000;

/// Why a request cannot be resolved.
#[derive(Debug)]
pub(super) enum Unfit {
    Refused(Refusal),
    Failed(ResolutionError),
}

impl<E: Into<ResolutionError>> From<E> for Unfit {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A request for a resolution.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) did: Did,
    pub(super) options: ResolutionOptions,
    /// The Sidecar Data of this request, for this request only.
    pub(super) sidecar: Option<Given>,
    /// What the answer depends on beside Sidecar Data: the DID and its options, in one text.
    pub(super) key: String,
}

impl Wanted {
    /// Reads the request. Large bodies take a while: not on a thread that others wait for.
    pub(super) fn read(did: &str, query: &str, body: &[u8]) -> Result<Self, Unfit> {
        let did = read_did(did)?;
        let mut options = query_options(query)?;
        let mut sidecar = None;
        if !body.is_empty() {
            let body = inputs::json_of(body).map_err(SidecarError::NotJson);
            let Value::Object(mut body) = body? else { return Err(OptionsError::NotAnObject.into()) };
            match body.remove("sidecar") {
                None if SIDECAR.iter().any(|name| body.contains_key(*name)) => {
                    let problem = "the members of Sidecar Data belong into the body's `sidecar`".to_owned();
                    return Err(SidecarError::NotJson(problem).into());
                }
                None | Some(Value::Null) => {}
                Some(data) => {
                    if entries(&data) > MAX_ENTRIES {
                        let problem = format!("more than {MAX_ENTRIES} entries");
                        return Err(SidecarError::NotJson(problem).into());
                    }
                    let mut given = Given::default();
                    given.add(data, "the request")?;
                    sidecar = Some(given);
                }
            }
            for name in OPTIONS {
                // In both places only if they agree.
                match (body.remove(name), options.get(name)) {
                    (Some(value), Some(other)) if value != *other => {
                        return Err(contradiction(name, other, &value).into());
                    }
                    (Some(value), _) => drop(options.insert(name.to_owned(), value)),
                    (None, _) => {}
                }
            }
        }
        // In one order, whatever that of the request is.
        let key = format!("{did} {}", Value::from_iter(OPTIONS.map(|name| options.get(name).cloned())));
        let options = Value::Object(options);
        Ok(Self { options: ResolutionOptions::from_value(&options)?, did, sidecar, key })
    }
}

/// The number of entries of Sidecar Data.
fn entries(data: &Value) -> usize {
    let lists = [Some(data), data.get("sidecar")]
        .into_iter()
        .flatten()
        .flat_map(|data| SIDECAR.iter().filter_map(|name| data.get(name)).filter_map(Value::as_array));
    lists.map(Vec::len).sum()
}

fn read_did(text: &str) -> Result<Did, Unfit> {
    let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    let other_method = text
        .strip_prefix("did:")
        .and_then(|rest| rest.split_once(':'))
        .is_some_and(|(method, rest)| is_method(method) && method != "btcr2" && !rest.is_empty());
    if other_method {
        return Err(Unfit::Refused(Refusal::OtherMethod));
    }
    Ok(Did::parse(&text)?)
}

/// Whether it is a method's name (DID Core: lower case letters and digits).
fn is_method(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The options of a query, in their JSON form.
fn query_options(query: &str) -> Result<Map<String, Value>, Unfit> {
    let pairs = Query::<Vec<(String, String)>>::from_query(query).map_err(|error| {
        // Malformed percent-encoding is of no option in particular.
        OptionsError::VersionId(format!("in a query that cannot be read ({error})"))
    })?;
    let mut options = Map::new();
    for (name, text) in pairs.into_inner() {
        if !OPTIONS.contains(&name.as_str()) {
            continue;
        }
        let is_number = matches!(name.as_str(), "minConf" | "maxDiscoveryRounds");
        let value = match text.parse::<u64>() {
            Ok(number) if is_number => Value::from(number),
            _ => Value::from(text),
        };
        if let Some(first) = options.get(&name) {
            return Err(contradiction(&name, first, &value).into());
        }
        options.insert(name, value);
    }
    Ok(options)
}

/// The error for an option that is given twice.
fn contradiction(name: &str, first: &Value, second: &Value) -> OptionsError {
    let shown: String = format!("given twice, as {first} and {second}").chars().take(200).collect();
    match name {
        "versionId" => OptionsError::VersionId(shown),
        "versionTime" => OptionsError::VersionTime(shown),
        "minConf" => OptionsError::MinConf(shown),
        _ => OptionsError::MaxDiscoveryRounds(shown),
    }
}

/// The form that the request accepts; by default the whole result.
pub(super) fn form(request: &HttpRequest) -> Result<Form, Refusal> {
    if !request.headers().contains_key(ACCEPT) {
        return Ok(Form::Result(RESULT_MEDIA_TYPE));
    }
    // A header that cannot be read states no wish.
    let Ok(Accept(mut accepted)) = Accept::parse(request) else { return Ok(Form::Result(RESULT_MEDIA_TYPE)) };
    if accepted.is_empty() {
        return Ok(Form::Result(RESULT_MEDIA_TYPE));
    }
    accepted.sort_by_key(|item| std::cmp::Reverse(item.quality));
    let wanted = accepted.iter().filter(|item| item.quality > actix_web::http::header::Quality::ZERO);
    wanted.filter_map(|item| form_of(&item.item)).next().ok_or(Refusal::NotAcceptable)
}

fn form_of(media_type: &Mime) -> Option<Form> {
    let profile = media_type.get_param("profile").map_or("", |profile| profile.as_str());
    Some(match media_type.essence_str() {
        "*/*" | "application/*" | RESULT_MEDIA_TYPE => Form::Result(RESULT_MEDIA_TYPE),
        // It describes itself: a client sees from its members that it is a result.
        "application/json" => Form::Result("application/json"),
        "application/ld+json" if profile.contains("did-resolution") => Form::Result(LINKED_RESULT),
        "application/ld+json" => Form::Document("application/ld+json"),
        DOCUMENT_MEDIA_TYPE => Form::Document(DOCUMENT_MEDIA_TYPE),
        "application/did+ld+json" => Form::Document("application/did+ld+json"),
        "application/did+json" => Form::Document("application/did+json"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use serde_json::json;

    use super::*;

    const DID: &str = "did:btcr2:k1qgph7nrekhzerkmsktp8l7rdtpxh2mw45xp6e90sjvxszpz6au0grssegjx6z";

    fn accepting(accept: &str) -> Result<Form, Refusal> {
        form(&TestRequest::get().insert_header((ACCEPT, accept)).to_http_request())
    }

    fn refused(did: &str, query: &str, body: &str) -> String {
        match Wanted::read(did, query, body.as_bytes()).unwrap_err() {
            Unfit::Refused(refusal) => format!("{refusal:?}"),
            Unfit::Failed(error) => format!("{}: {error}", error.code()),
        }
    }

    #[test]
    fn each_media_type_has_its_form() {
        for (accept, form) in [
            ("application/did-resolution", Form::Result(RESULT_MEDIA_TYPE)),
            ("application/did", Form::Document("application/did")),
            ("application/did+ld+json", Form::Document("application/did+ld+json")),
            ("application/ld+json", Form::Document("application/ld+json")),
            (LINKED_RESULT, Form::Result(LINKED_RESULT)),
            ("application/json", Form::Result("application/json")),
            ("*/*", Form::Result(RESULT_MEDIA_TYPE)),
            ("text/html, application/did;q=0.9, */*;q=0.1", Form::Document("application/did")),
            ("application/did;q=0.5, application/did-resolution", Form::Result(RESULT_MEDIA_TYPE)),
            ("application/did;q=0, application/json", Form::Result("application/json")),
            ("not a media type", Form::Result(RESULT_MEDIA_TYPE)),
        ] {
            assert_eq!(accepting(accept), Ok(form), "{accept}");
        }
        assert_eq!(form(&TestRequest::get().to_http_request()), Ok(Form::Result(RESULT_MEDIA_TYPE)));
        for none in ["text/html", "application/cbor, image/*", "application/did;q=0"] {
            assert_eq!(accepting(none), Err(Refusal::NotAcceptable), "{none}");
        }
    }

    #[test]
    fn options_come_from_the_query_and_the_body() {
        let options = json!({ "versionId": "2", "minConf": 1 });
        let expected = ResolutionOptions::from_value(&options).unwrap();
        for (query, body) in [
            ("versionId=2&minConf=1", String::new()),
            ("", options.to_string()),
            ("minConf=1&unknown=1&unknown=2", json!({ "versionId": "2", "other": [] }).to_string()),
            ("versionId=2", options.to_string()),
        ] {
            let wanted = Wanted::read(DID, query, body.as_bytes()).unwrap();
            assert_eq!(wanted.options, expected, "{query} {body}");
            assert!(wanted.sidecar.is_none());
            assert_eq!(wanted.key, format!("{DID} [\"2\",null,1,null]"));
        }
        let encoded = DID.replace(':', "%3A");
        assert_eq!(Wanted::read(&encoded, "", b"").unwrap().did.as_str(), DID);
        let wanted = Wanted::read(DID, "versionTime=2026-10-01T12%3A00%3A00Z", b"{\"sidecar\":{}}").unwrap();
        assert!(wanted.sidecar.is_some());
    }

    #[test]
    fn malformed_requests_have_their_codes() {
        let options = "INVALID_OPTIONS";
        for (did, query, body, part) in [
            ("did:btcr2:k1qqq", "", "", "INVALID_DID"),
            ("did:btcr2", "", "", "INVALID_DID"),
            ("", "", "", "INVALID_DID"),
            ("%ff%fe", "", "", "INVALID_DID"),
            ("did:web:example.org", "", "", "OtherMethod"),
            (DID, "versionId=two", "", options),
            (DID, "versionId=1&versionId=2", "", "given twice"),
            (DID, "versionId=1&versionTime=2026-10-01T12:00:00Z", "", options),
            (DID, "minConf=0", "", options),
            (DID, "minConf=-1", "", options),
            (DID, "minConf=six", "", options),
            (DID, "versionId=1", r#"{"versionId":"2"}"#, "given twice"),
            (DID, "", r#"{"versionId":2}"#, options),
            (DID, "", "[]", options),
            (DID, "", "no JSON", options),
            (DID, "", r#"{"updates":[]}"#, "`sidecar`"),
            (DID, "", r#"{"sidecar":[]}"#, options),
            (DID, "", r#"{"sidecar":{"updates":1}}"#, options),
        ] {
            let refused = refused(did, query, body);
            assert!(refused.contains(part), "{did} {query} {body}: {refused}");
        }
        let many = |list: &str| format!("{{\"sidecar\":{{{list:?}:[{}0]}}}}", "0,".repeat(MAX_ENTRIES));
        assert!(refused(DID, "", &many("updates")).contains("more than 10000 entries"));
        assert!(Wanted::read(DID, "", many("other").as_bytes()).is_ok());
        let deep = format!("{{\"sidecar\":{}", "[".repeat(100_000));
        assert!(refused(DID, "", &deep).contains(options));
    }
}
