//! The entry of a DID document by which others find an Aggregation Service. The did:btcr2 specification has no such entry: the format is
//! this project's, described in docs/http.md.

use serde_json::{Value, json};

use crate::protocol::did::Did;

/// The type of the entry.
pub const SERVICE_TYPE: &str = "Btcr2AggregationService";

/// The most relays that are read of one entry.
const MOST_RELAYS: usize = 32;

/// Where a service is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its base URL over HTTP.
    pub url: Option<String>,
    /// The Nostr relays over which it is reached.
    pub relays: Vec<String>,
}

impl ServiceEntry {
    /// The `serviceEndpoint`.
    pub fn endpoint(&self) -> Value {
        let mut endpoint = json!({});
        if let Some(url) = &self.url {
            endpoint["uri"] = json!(url);
        }
        if !self.relays.is_empty() {
            endpoint["relays"] = json!(self.relays);
        }
        endpoint
    }

    /// The entry, whose id ends with `name`.
    pub fn to_json(&self, did: &Did, name: &str) -> Value {
        json!({ "id": format!("{did}#{name}"), "type": SERVICE_TYPE, "serviceEndpoint": self.endpoint() })
    }

    /// The entries of a document. What is none of this format is left out: the document is another party's.
    pub fn all_of(document: &Value) -> Vec<Self> {
        let services = document["service"].as_array().into_iter().flatten();
        let is_ours = |service: &&Value| match &service["type"] {
            Value::String(kind) => kind == SERVICE_TYPE,
            Value::Array(kinds) => kinds.iter().any(|kind| kind == SERVICE_TYPE),
            _ => false,
        };
        let read = services.filter(is_ours).map(|service| Self::of_endpoint(&service["serviceEndpoint"]));
        read.filter(|entry| entry != &Self::default()).collect()
    }

    /// An endpoint: a URL, an object, or several of them.
    fn of_endpoint(endpoint: &Value) -> Self {
        let mut entry = Self::default();
        let parts = match endpoint {
            Value::Array(parts) => parts.iter().collect(),
            one => vec![one],
        };
        for part in parts {
            match part {
                Value::String(url) => entry.add(url),
                Value::Object(fields) => {
                    let relays = fields.get("relays").and_then(Value::as_array).into_iter().flatten();
                    fields
                        .get("uri")
                        .into_iter()
                        .chain(relays)
                        .filter_map(Value::as_str)
                        .for_each(|url| entry.add(url));
                }
                _ => {}
            }
        }
        entry
    }

    fn add(&mut self, url: &str) {
        let Ok(parsed) = reqwest::Url::parse(url) else { return };
        match parsed.scheme() {
            "http" | "https" if self.url.is_none() => self.url = Some(url.to_owned()),
            "ws" | "wss" if self.relays.len() < MOST_RELAYS => self.relays.push(url.to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocol::{key::SecretKey, network::Network};

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let key = SecretKey::from_hex(&"11".repeat(32)).unwrap();
        let did = Did::from_key(key.public_key(), Network::Regtest);
        let both = ServiceEntry {
            url: Some("https://service.example/x".to_owned()),
            relays: vec!["wss://relay.example".to_owned()],
        };
        let entry = both.to_json(&did, "aggregation");
        assert_eq!(entry["id"], format!("{did}#aggregation"));
        assert_eq!(ServiceEntry::all_of(&json!({ "service": [{ "type": "LinkedDomains" }, entry] })), [both]);
    }

    #[test]
    fn what_is_not_of_the_format_is_left_out() {
        let of = |endpoint: Value| {
            ServiceEntry::all_of(
                &json!({ "service": [{ "type": [SERVICE_TYPE, "X"], "serviceEndpoint": endpoint }] }),
            )
        };
        let read =
            of(json!(["https://a.example", "javascript:alert(1)", { "uri": "wss://r.example", "relays": [7] }]));
        assert_eq!(
            read,
            [ServiceEntry {
                url: Some("https://a.example".to_owned()),
                relays: vec!["wss://r.example".to_owned()]
            }]
        );
        assert_eq!(of(json!("file:///etc/passwd")), []);
        assert_eq!(of(json!(7)), []);
        assert_eq!(of(json!({ "relays": vec!["wss://r.example"; 100] }))[0].relays.len(), MOST_RELAYS);
        assert_eq!(ServiceEntry::all_of(&json!({ "service": { "type": SERVICE_TYPE } })), []);
    }
}
