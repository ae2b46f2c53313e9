//! The cases of the public test suite and of the specification, from beginning to end: `SUITE_DIR`, or the copy in
//! this repository.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use bitcoin::{Address, address::NetworkUnchecked};
use btcr2_aggregation_protocol::{
    did::Did,
    hash::{SignalBytes, SmtHash},
    jcs,
    resolution::{
        Content, ErrorCode, Event, FailureRule, Finding, Need, Next, Resolution, ResolutionOptions, Resolver,
        SidecarData, Signal,
    },
};
use serde_json::{Value, json};

fn cases() -> Vec<Value> {
    let directory = env::var_os("SUITE_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/suite")), PathBuf::from);
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.iter().map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()).collect()
}

fn some<'a>(case: &'a Value, field: &str) -> Option<&'a Value> {
    case.get(field).filter(|value| !value.is_null())
}

type Chain = BTreeMap<String, Vec<Signal>>;

fn signal(bytes: SignalBytes, block: &Value) -> Signal {
    let number = |field: &str| Some(u32::try_from(block[field].as_u64().unwrap()).unwrap());
    Signal {
        txid: "ab".repeat(32).parse().unwrap(),
        bytes,
        height: number("height"),
        time: number("time"),
        mediantime: number("mediantime"),
        confirmations: Some(6),
    }
}

/// The recorded signal; where none was, one for each update, in the form in which the case has the data for it.
fn chain(case: &Value) -> Chain {
    let mut chain = Chain::new();
    if let Some(bytes) = some(case, "signalBytes") {
        let address = case["beacon"]["address"].as_str().unwrap().to_owned();
        let bytes = bytes.as_str().unwrap().parse().unwrap();
        chain.entry(address).or_default().push(signal(bytes, &case["block"]));
        return chain;
    }
    let mut announce = |kind: &str, bytes: [u8; 32], height: u32| {
        let service =
            case["genesisDocument"]["service"].as_array().unwrap().iter().find(|service| service["type"] == kind);
        let endpoint = service.unwrap()["serviceEndpoint"].as_str().unwrap();
        let address = endpoint.strip_prefix("bitcoin:").unwrap().to_owned();
        let block = json!({ "height": height, "time": 1_790_000_000, "mediantime": 1_790_000_000 });
        chain.entry(address).or_default().push(signal(SignalBytes::from_bytes(bytes), &block));
    };
    for (update, height) in case["updates"].as_array().unwrap().iter().zip(100..) {
        let hash = jcs::document_hash(update).unwrap();
        let text = json!(hash);
        match (some(case, "casAnnouncement"), some(case, "smtProof")) {
            (Some(map), _) if map[case["did"].as_str().unwrap()] == text => {
                announce("CASBeacon", jcs::hash(map).unwrap(), height);
            }
            (_, Some(proof)) if proof["updateId"] == text => announce("SMTBeacon", root(proof), height),
            _ => announce("SingletonBeacon", *hash.as_bytes(), height),
        }
    }
    if case["updates"].as_array().unwrap().is_empty() {
        announce("SMTBeacon", root(&case["smtProof"]), 100);
    }
    chain
}

fn root(proof: &Value) -> [u8; 32] {
    *proof["id"].as_str().unwrap().parse::<SmtHash>().unwrap().as_bytes()
}

fn resolver(case: &Value) -> Resolver {
    let did: Did = case["did"].as_str().unwrap().parse().unwrap();
    let sidecar = json!({
        "genesisDocument": case["genesisDocument"],
        "updates": case["updates"],
        "casUpdates": some(case, "casAnnouncement").into_iter().collect::<Vec<_>>(),
        "smtProofs": some(case, "smtProof").into_iter().collect::<Vec<_>>(),
    });
    Resolver::new(did, ResolutionOptions::default(), SidecarData::from_value(sidecar).unwrap())
}

fn drive(mut resolver: Resolver, mut chain: Chain) -> Resolution {
    // A signal that is asked for under no address would hide an error.
    let addresses: Vec<String> = chain.keys().cloned().collect();
    for address in addresses {
        let canonical = address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().to_string();
        let signals = chain.remove(&address).unwrap();
        chain.insert(canonical, signals);
    }
    loop {
        let needs = match resolver.next() {
            Next::Done(resolution) => {
                assert!(chain.is_empty(), "not asked for: {chain:?}");
                return resolution.clone();
            }
            Next::Needs(needs) => needs,
        };
        for need in needs {
            match need {
                Need::Signals { beacon, .. } => {
                    let signals = chain.remove(&beacon.address.to_string()).unwrap_or_default();
                    resolver.provide_signals(&beacon.address, signals, "recorded").unwrap();
                }
                Need::Content { hash, .. } => {
                    let _ = resolver.provide_content(&hash, Content::Absent, "nowhere");
                }
                need => panic!("{need:?}"),
            }
        }
    }
}

/// The failure rule of the check that the suite names as the first to fail.
fn rule(why: &str) -> Option<FailureRule> {
    Some(match why {
        "targetVersionId" => FailureRule::VersionSkip,
        "sourceHash" => FailureRule::SourceHashMismatch,
        "@context" => FailureRule::UpdateContextMismatch,
        "verificationMethod" => FailureRule::ProofMethodUnauthorized,
        "proofValue" | "cryptosuite" | "type" => FailureRule::ProofNotVerified,
        "proofPurpose" => FailureRule::ProofPurposeMismatch,
        "capabilityAction" => FailureRule::ProofCapabilityActionMismatch,
        "capability" => FailureRule::ProofCapabilityMismatch,
        "invocationTarget" => FailureRule::ProofInvocationTargetMismatch,
        "patch" => FailureRule::PatchApplyFailure,
        "id" => FailureRule::DocumentIdMismatch,
        "document" => FailureRule::DocumentNotConformant,
        "targetHash" => FailureRule::TargetHashMismatch,
        _ => return None,
    })
}

fn recorded_before_the_rule(case: &Value) -> bool {
    case["proofInvocationTarget"].as_str().is_some_and(|text| text.starts_with("absent"))
}

#[test]
fn every_case_resolves_as_it_states() {
    let (mut accepted, mut refused) = (0, 0);
    for case in cases().iter().filter(|case| some(case, "initialDocument").is_some()) {
        let name = case["name"].as_str().unwrap();
        let mut resolver = resolver(case);
        if recorded_before_the_rule(case) {
            resolver = resolver.leaving_invocation_target_aside();
        }
        let resolution = drive(resolver, chain(case));
        let expected = &case["expected"];
        match (&resolution.outcome, expected["result"].as_str().unwrap()) {
            (Ok(resolved), "accepted") => {
                accepted += 1;
                assert_eq!(expected["versionId"], resolved.metadata.version_id.to_string(), "{name}");
                assert_eq!(expected["deactivated"] == true, resolved.metadata.deactivated, "{name}");
                if resolved.metadata.version_id == 1 {
                    assert_eq!(
                        jcs::hash(&resolved.document).unwrap(),
                        jcs::hash(&case["initialDocument"]).unwrap(),
                        "{name}"
                    );
                }
            }
            (Err(error), "refused") => {
                refused += 1;
                assert_eq!(expected["error"], error.code().as_str(), "{name}: {error}");
                if let Some(rule) = rule(expected["why"].as_str().unwrap()) {
                    assert_eq!(error.rule(), Some(rule), "{name}: {error}");
                }
            }
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
    assert!(accepted >= 5 && refused >= 5, "{accepted} accepted, {refused} refused");
}

#[test]
fn what_was_recorded_before_rule_u_4_is_refused() {
    let mut refused = 0;
    for case in cases().iter().filter(|case| recorded_before_the_rule(case)) {
        let error = drive(resolver(case), chain(case)).outcome.unwrap_err();
        if case["expected"]["result"] == "accepted" {
            refused += 1;
            assert_eq!(error.code(), ErrorCode::InvalidDidUpdate, "{}: {error}", case["name"]);
            assert_eq!(error.rule(), Some(FailureRule::ProofInvocationTargetMismatch), "{}: {error}", case["name"]);
        }
    }
    assert!(refused >= 5, "{refused} refused");
}

/// Cases that are a proof alone, of a DID whose genesis document another case has.
#[test]
fn proofs_alone_are_read_as_they_state() {
    let (all, mut judged) = (cases(), 0);
    for case in all.iter().filter(|case| some(case, "initialDocument").is_none()) {
        let same = |other: &&Value| other["did"] == case["did"] && some(other, "genesisDocument").is_some();
        let Some(other) = all.iter().filter(same).find(|other| some(other, "smtProof").is_some()) else { continue };
        let mut whole = case.clone();
        whole["genesisDocument"] = other["genesisDocument"].clone();
        let resolution = drive(resolver(&whole), chain(&whole));
        let finding = resolution.history.iter().find_map(|event| match event {
            Event::Signal { finding, .. } => Some(finding.clone()),
            _ => None,
        });
        let name = &case["name"];
        judged += 1;
        match (case["expected"]["result"].as_str().unwrap(), finding.unwrap()) {
            ("accepted", Finding::NoEntry) => assert_eq!(some(&case["smtProof"], "updateId"), None, "{name}"),
            ("accepted", Finding::Missing { missing }) => {
                // The proof is right, and the update is not in the case.
                let update = json!(missing)["hash"].clone();
                assert_eq!(update, case["smtProof"]["updateId"], "{name}");
            }
            ("refused", Finding::Invalid { .. }) => {
                let error = resolution.outcome.unwrap_err();
                assert_eq!(case["expected"]["error"], error.code().as_str(), "{name}: {error}");
                assert_eq!(error.rule(), Some(FailureRule::SmtProofNotVerified), "{name}");
            }
            (_, finding) => panic!("{name}: {finding:?}"),
        }
    }
    assert!(judged >= 3, "{judged}");
}
