//! I: identifiers and first documents.

use btcr2_aggregation_protocol::{
    did::{Did, DidError},
    document::{self, DocumentError, PLACEHOLDER},
    key::SecretKey,
    network::Network,
};
use serde_json::{Value, json};

use super::controller::{Controller, key};

fn genesis(change: impl FnOnce(&mut Value)) -> (Did, Value) {
    let mut genesis = document::genesis_document(&key(7).public_key(), Network::Regtest);
    change(&mut genesis);
    (document::external_did(&genesis, Network::Regtest).unwrap(), genesis)
}

#[test]
fn i_01_an_identifier_has_one_encoding() {
    let did = Controller::new().did().to_string();
    assert_eq!(Did::parse(&did).unwrap().as_str(), did);
    assert!(Did::parse(&did.to_ascii_uppercase()).is_err());
    assert!(Did::parse(&format!("did:btcr2:{}", did[10..].to_ascii_uppercase())).is_err());
    let mut wrong = did.clone();
    let last = if wrong.pop() == Some('q') { 'p' } else { 'q' };
    wrong.push(last);
    assert!(matches!(Did::parse(&wrong), Err(DidError::Checksum)), "the checksum is wrong");
    // Reserved and custom networks.
    for nibble in 6..=15_u8 {
        let payload = [&[nibble], key(7).public_key().to_bytes().as_slice()].concat();
        let text = bech32::encode::<bech32::Bech32m>(bech32::Hrp::parse("k").unwrap(), &payload).unwrap();
        assert!(Did::parse(&format!("did:btcr2:{text}")).is_err(), "{nibble}");
    }
}

#[test]
fn i_02_genesis_hashes_to_the_did_and_has_the_placeholder() {
    let (did, good) = genesis(|_| {});
    assert!(document::initial_document(&did, Some(&good)).is_ok());
    let mut other = good.clone();
    other["note"] = json!(1);
    assert!(matches!(document::initial_document(&did, Some(&other)), Err(DocumentError::GenesisHash)));
    assert!(matches!(document::initial_document(&did, None), Err(DocumentError::GenesisDocumentMissing)));
    for id in [json!("did:btcr2:x"), json!(did), Value::Null] {
        let (did, named) = genesis(|genesis| genesis["id"] = id);
        assert!(matches!(document::initial_document(&did, Some(&named)), Err(DocumentError::Id)));
    }
}

#[test]
fn i_03_the_placeholder_is_replaced_everywhere() {
    let (did, genesis) = genesis(|genesis| {
        genesis["alsoKnownAs"] = json!([format!("https://example.org/?did={PLACEHOLDER}&x")]);
        genesis["note"] = json!({ format!("{PLACEHOLDER}/member"): format!("{PLACEHOLDER}{PLACEHOLDER}suffix") });
    });
    let document = document::initial_document(&did, Some(&genesis)).unwrap();
    assert_eq!(document["alsoKnownAs"], json!([format!("https://example.org/?did={did}&x")]));
    assert_eq!(document["note"], json!({ format!("{did}/member"): format!("{did}{did}suffix") }));
    assert!(!document.to_string().contains(PLACEHOLDER));
}

#[test]
fn i_04_the_first_document_conforms() {
    for change in [
        (|genesis: &mut Value| genesis["@context"] = json!(["https://www.w3.org/ns/did/v1.1"])) as fn(&mut Value),
        |genesis| genesis["verificationMethod"][0]["type"] = json!("JsonWebKey2020"),
        |genesis| genesis["service"] = json!("none"),
    ] {
        let (did, genesis) = genesis(change);
        let error = document::initial_document(&did, Some(&genesis)).unwrap_err();
        assert!(matches!(error, DocumentError::NotConformant(_)), "{error}");
        let key = SecretKey::from_bytes(&[7; 32]).unwrap();
        let identity = btcr2_aggregation_protocol::identity::Identity::from_genesis(key, genesis, Network::Regtest);
        assert!(identity.is_err(), "no identity can start with it");
    }
}
