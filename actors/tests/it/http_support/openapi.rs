//! The API's document, and the check that it names an answer.

use std::sync::LazyLock;

use serde_json::Value;

pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../src/transport/http/openapi.json")).unwrap());

/// The document's path template for `path`, which is relative to the scope and may have a query.
pub fn template(path: &str) -> Option<&'static str> {
    let path: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let fits = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        let fits = |(named, found): (&&str, &&str)| named == found || named.starts_with('{') && !found.is_empty();
        template.len() == path.len() && template.iter().zip(&path).all(fits)
    };
    DOCUMENT["paths"].as_object().unwrap().keys().map(String::as_str).find(|template| fits(template))
}

/// The document's response for this status, if any.
pub fn response(template: &str, method: &str, status: u16) -> Option<&'static Value> {
    DOCUMENT["paths"][template][method.to_lowercase()]["responses"].get(status.to_string())
}

/// The error codes that the document names for this response.
pub fn codes(response: &Value) -> Vec<&str> {
    let codes = &response["content"]["application/json"]["schema"]["properties"]["error"]["enum"];
    codes.as_array().map(|codes| codes.iter().map(|code| code.as_str().unwrap()).collect()).unwrap_or_default()
}

/// Panics if the document does not name this answer.
pub fn check(method: &str, path: &str, status: u16, kind: &str, body: &Value) {
    let known = template(path).filter(|template| DOCUMENT["paths"][template].get(method.to_lowercase()).is_some());
    let Some(template) = known else {
        assert_eq!(
            (status, &body["error"]),
            (404, &Value::from("not_found")),
            "{method} {path} is not in the document"
        );
        return;
    };
    let response = response(template, method, status);
    let response =
        response.unwrap_or_else(|| panic!("{method} {template}: {status} {body} is not in the document"));
    let Some(content) = response.get("content") else {
        return assert_eq!((kind, body), ("", &Value::Null), "{method} {template}: {status} has a body");
    };
    assert!(content.get(kind).is_some(), "{method} {template}: {status} as {kind} is not in the document");
    if let Some(code) = body["error"].as_str().filter(|_| status >= 400) {
        assert!(codes(response).contains(&code), "{method} {template}: {status} {code} is not in the document");
        assert_eq!(body.as_object().unwrap().len(), 1);
    } else {
        assert!(status < 400, "{method} {template}: {status} without a code");
    }
}
