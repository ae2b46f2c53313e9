//! Identifiers against `did.json`, and the round trip of every identifier.

use btcr2_aggregation_protocol::{
    did::{CustomNetworks, Did, DidError, Genesis},
    document::{self, DocumentError},
    hash::sha256,
    jcs,
    key::SecretKey,
    network::Network,
};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::{Value, json};

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("{field} of {case}"))
}

fn cases<'a>(vectors: &'a Value, list: &str) -> &'a [Value] {
    let cases = vectors[list].as_array().unwrap_or_else(|| panic!("{list} is a list"));
    assert!(!cases.is_empty(), "{list} is empty");
    cases
}

fn genesis_hex(did: &Did) -> (&'static str, String) {
    match did.genesis() {
        Genesis::Key(key) => ("k", key.to_string()),
        Genesis::External(hash) => ("x", HEXLOWER.encode(hash)),
    }
}

#[test]
fn valid_identifiers_decode_and_encode() {
    let vectors = crate::common::vectors("did");
    let (mut keys, mut externals) = (0, 0);
    for case in cases(&vectors, "valid") {
        let name = text(case, "did");
        let did = Did::parse(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(did.to_string(), name);
        assert_eq!(did.network().name(), text(case, "network"), "{name}");
        assert_eq!(u64::from(did.network().nibble()), case["networkNibble"], "{name}");
        assert_eq!(case["version"], 1, "{name}");
        assert_eq!(genesis_hex(&did), (text(case, "hrp"), text(case, "genesisBytes").to_owned()), "{name}");
        match text(case, "idType") {
            "KEY" => {
                keys += 1;
                let secret = HEXLOWER.decode(text(case, "secretKey").as_bytes()).unwrap();
                assert_eq!(sha256(text(case, "keyLabel").as_bytes()).as_slice(), secret, "{name}");
                let key = SecretKey::from_bytes(&secret.try_into().unwrap()).unwrap().public_key();
                assert_eq!(did.key(), Some(key), "{name}");
                assert_eq!(Did::from_key(key, did.network()), did, "{name}");
                assert_eq!(
                    document::genesis_key(&did, None).unwrap(),
                    (format!("{name}#initialKey"), key),
                    "{name}"
                );
            }
            "EXTERNAL" => {
                externals += 1;
                let genesis = &case["genesisDocument"];
                let canonical = String::from_utf8(jcs::canonicalize(genesis).unwrap()).unwrap();
                assert_eq!(canonical, text(case, "genesisDocumentCanonical"), "{name}");
                assert_eq!(did.key(), None, "{name}");
                assert_eq!(
                    HEXLOWER.encode(&document::genesis_hash(genesis).unwrap()),
                    text(case, "genesisBytes"),
                    "{name}"
                );
                assert_eq!(document::external_did(genesis, did.network()).unwrap(), did, "{name}");
                assert_eq!(document::initial_document(&did, Some(genesis)).unwrap()["id"], name, "{name}");
                let (method, key) = document::genesis_key(&did, Some(genesis)).unwrap();
                assert_eq!(method, format!("{name}#key-0"), "{name}");
                assert_eq!(
                    document::encode_multikey(&key),
                    text(&genesis["verificationMethod"][0], "publicKeyMultibase"),
                    "{name}"
                );
            }
            other => panic!("{name}: {other}"),
        }
    }
    assert!(keys > 0 && externals > 0);
}

#[test]
fn custom_networks_are_refused_unless_configured() {
    let vectors = crate::common::vectors("did");
    for case in cases(&vectors, "decodeOnly") {
        let name = text(case, "did");
        let nibble = u8::try_from(case["networkNibble"].as_u64().unwrap()).unwrap();
        assert_eq!(u64::from(nibble), case["network"].as_u64().unwrap() + 11, "{name}");
        assert_eq!(Did::parse(name), Err(DidError::Network(nibble)), "{name}");
        let other = if nibble == 15 { 12 } else { nibble + 1 };
        let other = CustomNetworks::default().with(other, Network::Regtest);
        assert_eq!(Did::parse_with(name, &other), Err(DidError::Network(nibble)), "{name}");
        let configured = CustomNetworks::default().with(nibble, Network::Signet);
        let did = Did::parse_with(name, &configured).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((did.as_str(), did.network()), (name, Network::Signet));
        assert_eq!(genesis_hex(&did), (text(case, "hrp"), text(case, "genesisBytes").to_owned()), "{name}");
    }
}

#[test]
fn reserved_network_values_cannot_be_configured() {
    let vectors = crate::common::vectors("did");
    let all = (0..=u8::MAX).fold(CustomNetworks::default(), |custom, nibble| custom.with(nibble, Network::Signet));
    let mut reserved = 0;
    for case in cases(&vectors, "invalid") {
        if text(case, "reason").starts_with("reserved network nibble") && !text(case, "reason").contains("15") {
            reserved += 1;
            assert!(Did::parse_with(text(case, "identifier"), &all).is_err(), "{case}");
        }
    }
    assert!(reserved > 0);
}

#[test]
fn invalid_identifiers_are_refused() {
    let vectors = crate::common::vectors("did");
    for case in cases(&vectors, "invalid") {
        let (identifier, reason) = (text(case, "identifier"), text(case, "reason"));
        assert!(Did::parse(identifier).is_err(), "{identifier:?}: {reason}");
        assert!(serde_json::from_value::<Did>(json!(identifier)).is_err(), "{identifier:?}: {reason}");
    }
}

#[test]
fn upper_case_identifiers_are_refused() {
    let vectors = crate::common::vectors("did");
    for case in cases(&vectors, "acceptedByReference") {
        let (identifier, reason) = (text(case, "identifier"), text(case, "reason"));
        assert_eq!(Did::parse(identifier), Err(DidError::Encoding), "{identifier}: {reason}");
        // Only the case is refused: in lower case the identifier gives the recorded values.
        let did = Did::parse(&identifier.to_lowercase()).unwrap_or_else(|error| panic!("{identifier}: {error}"));
        let decoded = &case["decoded"];
        assert_eq!(genesis_hex(&did), (text(decoded, "hrp"), text(decoded, "genesisBytes").to_owned()), "{reason}");
        assert_eq!(did.network().name(), text(decoded, "network"), "{reason}");
        assert_eq!(did.key().is_some(), decoded["idType"] == "KEY", "{reason}");
    }
}

/// A genesis document whose controller is `key`, changed by `change` before its hash is taken.
fn external(change: impl FnOnce(&mut Value)) -> (Did, Value) {
    let key = SecretKey::from_bytes(&sha256(b"controller")).unwrap_or_else(|error| panic!("{error}")).public_key();
    let mut genesis = json!({
        "id": "did:btcr2:_",
        "@context": document::DOCUMENT_CONTEXT,
        "verificationMethod": [
            {"id": "did:btcr2:_#key-0", "type": "Multikey", "controller": "did:btcr2:_",
             "publicKeyMultibase": document::encode_multikey(&key)},
        ],
        "capabilityInvocation": ["did:btcr2:_#key-0"],
    });
    change(&mut genesis);
    (document::external_did(&genesis, Network::Regtest).unwrap_or_else(|error| panic!("{error}")), genesis)
}

#[test]
fn an_external_identifier_requires_its_own_genesis_document() {
    let (did, genesis) = external(|_| ());
    assert!(document::genesis_key(&did, Some(&genesis)).is_ok());
    assert!(matches!(document::genesis_key(&did, None), Err(DocumentError::GenesisDocumentMissing)));
    let (_, other) = external(|genesis| genesis["note"] = json!("another"));
    assert!(matches!(document::genesis_key(&did, Some(&other)), Err(DocumentError::GenesisHash)));
    let (did, genesis) = external(|genesis| genesis["id"] = json!("did:btcr2:other"));
    assert!(matches!(document::initial_document(&did, Some(&genesis)), Err(DocumentError::Id)));
}

#[test]
fn a_usable_key_in_capability_invocation_may_update() {
    type Change = (&'static str, bool, Box<dyn Fn(&mut Value)>);
    let method = |genesis: &Value| genesis["verificationMethod"][0].clone();
    let changes: Vec<Change> = vec![
        ("no relationship", false, Box::new(|d| drop(d.as_object_mut().unwrap().remove("capabilityInvocation")))),
        ("empty relationship", false, Box::new(|d| d["capabilityInvocation"] = json!([]))),
        ("relationship is a string", false, Box::new(|d| d["capabilityInvocation"] = json!("did:btcr2:_#key-0"))),
        ("method is embedded", true, Box::new(move |d| d["capabilityInvocation"] = json!([method(d)]))),
        ("names no method", false, Box::new(|d| d["capabilityInvocation"] = json!(["did:btcr2:_#key-1"]))),
        ("relative reference", true, Box::new(|d| d["capabilityInvocation"] = json!(["#key-0"]))),
        ("relative method", true, Box::new(|d| d["verificationMethod"][0]["id"] = json!("#key-0"))),
        ("second of two", true, Box::new(|d| d["capabilityInvocation"] = json!(["#x", "did:btcr2:_#key-0"]))),
        (
            "under another relationship only",
            false,
            Box::new(|d| {
                d["authentication"] = json!(["did:btcr2:_#key-0"]);
                d["capabilityInvocation"] = json!([]);
            }),
        ),
        ("another type", false, Box::new(|d| d["verificationMethod"][0]["type"] = json!("JsonWebKey"))),
        ("not base58btc", false, Box::new(|d| d["verificationMethod"][0]["publicKeyMultibase"] = json!("mAAAA"))),
        (
            "another kind of key",
            false,
            Box::new(|d| {
                let key = "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
                d["verificationMethod"][0]["publicKeyMultibase"] = json!(key);
            }),
        ),
        (
            "long text",
            false,
            Box::new(|d| d["verificationMethod"][0]["publicKeyMultibase"] = json!("z".repeat(60_000))),
        ),
    ];
    for (name, may, change) in changes {
        let (did, genesis) = external(change);
        let found = document::genesis_key(&did, Some(&genesis));
        assert_eq!(found.is_ok(), may, "{name}: {found:?}");
        let Ok((method, key)) = found else { continue };
        assert!(method.starts_with(did.as_str()), "{name}: {method}");
        assert_eq!(document::genesis_method(&did, Some(&genesis), &key).unwrap(), method, "{name}");
        let other = SecretKey::from_bytes(&[0x33; 32]).unwrap().public_key();
        let refused = document::genesis_method(&did, Some(&genesis), &other);
        assert!(matches!(refused, Err(DocumentError::NotAMethodsKey { .. })), "{name}: {refused:?}");
    }
}

proptest! {
    #[test]
    fn every_identifier_round_trips(seed: [u8; 32], external: bool, network in 0..Network::ALL.len()) {
        let network = Network::ALL[network];
        let did = match SecretKey::from_bytes(&seed) {
            Ok(key) if !external => Did::from_key(key.public_key(), network),
            _ => Did::from_genesis_hash(seed, network),
        };
        let parsed: Did = did.as_str().parse().unwrap();
        prop_assert_eq!(&parsed, &did);
        prop_assert_eq!(parsed.genesis(), did.genesis());
        prop_assert_eq!(parsed.network(), network);
        prop_assert_eq!(serde_json::from_value::<Did>(serde_json::to_value(&did).unwrap()).unwrap(), did);
    }

    #[test]
    fn a_parsed_identifier_displays_as_its_text(text in "(did:btcr2:)?[kx]?1?[a-z0-9]{0,80}") {
        if let Ok(did) = Did::parse(&text) {
            prop_assert_eq!(did.to_string(), text);
        }
    }

    #[test]
    fn any_text_is_parsed_without_panic(text in any::<String>()) {
        let _ = Did::parse(&text);
        let _ = Did::parse(&format!("did:btcr2:{text}"));
        let _ = document::decode_multikey(&text);
    }

    #[test]
    fn one_changed_character_is_another_identifier_or_none(seed: [u8; 32], at: prop::sample::Index, to in "[a-z0-9]") {
        let did = Did::from_genesis_hash(seed, Network::Bitcoin);
        let mut changed = did.to_string();
        let at = "did:btcr2:".len() + at.index(changed.len() - "did:btcr2:".len());
        changed.replace_range(at..=at, &to);
        if changed != did.as_str() {
            prop_assert!(Did::parse(&changed).is_err());
        }
    }
}
