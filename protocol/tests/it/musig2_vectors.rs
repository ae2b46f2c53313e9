//! The MuSig2 rounds of `musig2_round.json`, through the member's nonce and the coordinator's session; and the
//! members that are blamed when a round fails.
//!
//! `secretNonce` of the vectors is not compared: a [`SecretNonce`] can only sign once. The recorded public nonce and
//! partial signature show that the secret is the same.

mod blame;

use std::{collections::BTreeMap, sync::Arc};

use crate::bitcoin_support::{
    amount, cohort_output, coin, consensus_accepts, hex, list, members, output, prevout, rng, secret_key, text,
    transaction, tree, unhex,
};
use bitcoin::{FeeRate, Transaction, consensus::encode::serialize_hex};
use btcr2_aggregation_protocol::{
    cohort::{Timing, Unreached, event::SpendPath, service::rules::PhaseRules},
    did::Did,
    error::{Reject, RejectCode},
    hash::SignalBytes,
    id::{CohortId, SessionId},
    key::{PublicKey, SecretKey, Signature},
    machine::{Machine, replay, step},
    message::{
        Bytes, DecodeError, Message, SharedBody,
        sign::{NonceContribution, SignatureAuthorization},
    },
    network::Network,
    output::{BeaconOutput, Change, build_beacon_transaction, key_path_sighash},
    signing::{
        Signed, SigningOutcome, SigningTask, SigningTerms,
        nonce::{MemberSigner, PartialSignError, SecretNonce},
        session::{SessionEffect, SessionEvent, SessionInput, SessionPhase, SigningSession},
    },
    time::Timestamp,
};
use musig2::{AggNonce, PubNonce};
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp::from_secs(1_000_000);

fn bytes<const N: usize>(value: &Value) -> Bytes<N> {
    Bytes(unhex(value).try_into().unwrap())
}

fn public_key(value: &Value) -> PublicKey {
    text(value).parse().unwrap()
}

fn service() -> Did {
    Did::from_key(SecretKey::from_bytes(&[7; 32]).unwrap().public_key(), Network::Regtest)
}

fn task(
    output: BeaconOutput,
    members: BTreeMap<Did, PublicKey>,
    tx: Transaction,
    value: bitcoin::Amount,
) -> SigningTask {
    SigningTask::new(SigningTerms {
        cohort_id: CohortId::parse("cohort").unwrap(),
        session_id: SessionId::parse("session").unwrap(),
        service: service(),
        output,
        members,
        transaction: tx,
        value,
        timing: Timing::default(),
        rules: PhaseRules::default(),
        absent: Vec::new(),
        unreached: Unreached::default(),
    })
    .unwrap()
}

fn nonce_message(task: &SigningTask, from: &Did, nonce: Bytes<66>) -> Message {
    let body = NonceContribution {
        cohort_id: task.cohort_id.clone(),
        session_id: task.session_id.clone(),
        nonce_contribution: nonce,
    };
    Message::new(from.clone(), Some(task.service.clone()), body)
}

fn partial_message(task: &SigningTask, from: &Did, signature: Bytes<32>) -> Message {
    let body = SignatureAuthorization {
        cohort_id: task.cohort_id.clone(),
        session_id: task.session_id.clone(),
        partial_signature: signature,
    };
    Message::new(from.clone(), Some(task.service.clone()), body)
}

/// A session with its journal.
struct Run {
    initial: SigningSession,
    session: SigningSession,
    journal: Vec<SessionEvent>,
    effects: Vec<SessionEffect>,
}

impl Run {
    fn open(task: SigningTask) -> Self {
        let initial = SigningSession::new(Arc::new(task));
        let mut run = Self { session: initial.clone(), initial, journal: Vec::new(), effects: Vec::new() };
        run.feed(SessionInput::Open).unwrap();
        run
    }

    fn task(&self) -> Arc<SigningTask> {
        Arc::clone(self.session.task())
    }

    /// The events of the input. A rejection must not change the session.
    fn feed(&mut self, input: SessionInput) -> Result<Vec<SessionEvent>, Reject> {
        self.feed_at(NOW, input)
    }

    fn feed_at(&mut self, now: Timestamp, input: SessionInput) -> Result<Vec<SessionEvent>, Reject> {
        let before = self.session.clone();
        match step(&mut self.session, now, &input, &mut rng()) {
            Ok(step) => {
                self.journal.extend(step.events.iter().cloned());
                self.effects.extend(step.effects);
                Ok(step.events)
            }
            Err(reject) => {
                assert_eq!(self.session, before, "a refusal changes nothing");
                Err(reject)
            }
        }
    }

    fn nonce(&mut self, from: &Did, nonce: Bytes<66>) -> Result<Vec<SessionEvent>, Reject> {
        let message = nonce_message(&self.task(), from, nonce);
        self.feed(SessionInput::Message(message))
    }

    fn partial(&mut self, from: &Did, signature: Bytes<32>) -> Result<Vec<SessionEvent>, Reject> {
        let message = partial_message(&self.task(), from, signature);
        self.feed(SessionInput::Message(message))
    }

    fn signed(&self) -> Option<&Arc<Signed>> {
        match self.session.phase() {
            SessionPhase::Ended(SigningOutcome::Signed(signed)) => Some(signed),
            _ => None,
        }
    }

    fn faults(&self) -> Vec<(Did, RejectCode)> {
        self.session.faults().iter().map(|fault| (fault.did.clone(), fault.code)).collect()
    }

    fn sent(&self) -> impl Iterator<Item = (&Did, &SharedBody)> {
        self.effects.iter().filter_map(|effect| match effect {
            SessionEffect::Send { to, body } => Some((to, body)),
            SessionEffect::Finished(_) => None,
        })
    }

    /// The journal, written and read, gives the same session.
    fn check_replay(&self) {
        let text = serde_json::to_string(&self.journal).unwrap();
        let journal: Vec<SessionEvent> = serde_json::from_str(&text).unwrap();
        assert_eq!(journal, self.journal);
        assert_eq!(replay(self.initial.clone(), &journal), self.session);
    }
}

#[test]
fn every_round_is_signed_as_recorded() {
    let vectors = crate::common::vectors("musig2_round");
    for (index, case) in list(&vectors["cases"]).iter().enumerate() {
        let participants = list(&case["participants"]);
        let name = format!("case {index}, n = {}, {}", case["n"], case["cohort"]["network"]);
        assert_eq!(participants.len() as u64, case["n"].as_u64().unwrap(), "{name}");

        // The values that the keys and terms determine; `cohort_output` compares the others.
        let output = cohort_output(&case["cohort"]);
        let keys: Vec<String> = output.keys().iter().map(ToString::to_string).collect();
        assert_eq!(json!(keys), case["cohort"]["cohortKeys"], "{name}");
        assert_eq!(hex(output.script_pubkey()), text(&case["prevOutScript"]), "{name}");
        assert_eq!(output.output_key().to_string(), text(&case["outputKey"]), "{name}");
        let unsigned = transaction(&case["unsignedTx"]);
        let sighash = key_path_sighash(&unsigned, &prevout(case)).unwrap();
        assert_eq!(hex(sighash), text(&case["sighash"]), "{name}");

        // Each member: nonce and partial signature.
        let aggregated: Bytes<66> = bytes(&case["aggregatedNonce"]);
        for participant in participants {
            let who = format!("{name}, {}", text(&participant["keyLabel"]));
            let key = secret_key(&participant["secretKey"]);
            assert_eq!(key.public_key().to_string(), text(&participant["publicKey"]), "{who}");
            let place = output.aggregation().index_of(&key.public_key()).unwrap();
            assert_eq!(place as u64, participant["sortedIndex"].as_u64().unwrap(), "{who}");
            let seed = unhex(&participant["nonceRand"]).try_into().unwrap();
            let (secret, public) = SecretNonce::from_seed(&key, &output, &seed);
            assert_eq!(public, bytes(&participant["publicNonce"]), "{who}");
            let signature = secret.sign(&key, &output, &aggregated, &sighash).unwrap();
            assert_eq!(signature, bytes(&participant["partialSignature"]), "{who}");
        }

        // The coordinator, with the recorded nonces and partial signatures.
        let members: BTreeMap<Did, PublicKey> = participants
            .iter()
            .map(|participant| (text(&participant["did"]).parse().unwrap(), public_key(&participant["publicKey"])))
            .collect();
        assert_eq!(members.len(), participants.len(), "{name}");
        let mut run = Run::open(task(output, members.clone(), unsigned, amount(&case["prevOutValue"])));
        assert_eq!(run.task().key_path_sighash(), &sighash, "{name}");
        assert_eq!(run.session.holdouts().len(), participants.len(), "{name}");
        for participant in participants {
            let did: Did = text(&participant["did"]).parse().unwrap();
            run.nonce(&did, bytes(&participant["publicNonce"])).unwrap();
        }
        let SessionPhase::CollectingPartialSignatures { aggregated: found, .. } = run.session.phase() else {
            panic!("{name}: {:?}", run.session.phase());
        };
        assert_eq!(*found, aggregated, "{name}");
        for participant in participants {
            let did: Did = text(&participant["did"]).parse().unwrap();
            assert!(run.session.holdouts().contains(&did), "{name}");
            run.partial(&did, bytes(&participant["partialSignature"])).unwrap();
        }
        let signed = run.signed().unwrap_or_else(|| panic!("{name}: {:?}", run.session.phase()));
        assert_eq!(signed.path, SpendPath::KeyPath, "{name}");
        assert_eq!(signed.signature.unwrap().to_string(), text(&case["finalSignature"]), "{name}");
        assert_eq!(serialize_hex(&signed.transaction), text(&case["signedTx"]), "{name}");
        assert_eq!(signed.transaction.compute_txid().to_string(), text(&case["txid"]), "{name}");
        assert!(signed.signers.iter().eq(members.keys()), "{name}");
        assert!(consensus_accepts(&signed.transaction, &prevout(case)), "{name}");
        assert_eq!(run.session.deadline(), None, "{name}");
        assert_eq!(run.faults(), [], "{name}");
        // A request and an aggregate nonce for every member, and then the outcome for the cohort.
        let sent: Vec<_> = run.sent().map(|(to, body)| (to.clone(), body.short_type())).collect();
        let expected: Vec<_> = ["sign/authorization_request", "sign/aggregated_nonce"]
            .into_iter()
            .flat_map(|kind| members.keys().map(move |did| (did.clone(), kind)))
            .collect();
        assert_eq!(sent, expected, "{name}");
        let outcome = SigningOutcome::Signed(Arc::clone(signed));
        assert_eq!(run.effects.last(), Some(&SessionEffect::Finished(outcome)), "{name}");
        run.check_replay();
    }
}

/// The result of a recorded rejection in this implementation.
#[derive(Debug)]
enum Named {
    /// The message could not be decoded; its sender is the culprit.
    Unreadable(DecodeError),
    Recorded(Did, RejectCode),
    Unnamed,
}

fn messages_of(run: &Run, dids: &[Did], kind: &str, values: &[Value]) -> Vec<Result<Message, DecodeError>> {
    let (kind, field) = match kind {
        "nonce" => ("sign/nonce_contribution", "nonceContribution"),
        _ => ("sign/signature_authorization", "partialSignature"),
    };
    dids.iter()
        .zip(values)
        .map(|(did, value)| {
            let text = json!({
                "type": format!("https://btcr2.dev/aggregation/{kind}"), "version": 1, "to": run.task().service, "from": did,
                "body": {
                    "cohortId": run.task().cohort_id, "sessionId": run.task().session_id, field: {"__bytes": value},
                },
            });
            Message::from_json(&text.to_string())
        })
        .collect()
}

/// Feeds messages in order of the members; stops at the first one that is unreadable or rejected.
fn feed_all(run: &mut Run, messages: Vec<Result<Message, DecodeError>>) -> Vec<(usize, Named)> {
    let mut named = Vec::new();
    for (index, message) in messages.into_iter().enumerate() {
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                named.push((index, Named::Unreadable(error)));
                continue;
            }
        };
        if let Err(reject) = run.feed(SessionInput::Message(message)) {
            panic!("{reject}");
        }
    }
    named
}

#[test]
fn every_recorded_rejection_names_its_culprit() {
    let vectors = crate::common::vectors("musig2_round");
    let rejections = &vectors["rejections"];
    let output = cohort_output(&rejections["cohort"]);
    let keys: Vec<PublicKey> = list(&rejections["publicKeys"]).iter().map(public_key).collect();
    let dids: Vec<Did> = keys.iter().map(|key| Did::from_key(*key, output.network())).collect();
    for (key, public) in list(&rejections["secretKeys"]).iter().zip(&keys) {
        assert_eq!(secret_key(key).public_key(), *public);
    }
    let members: BTreeMap<Did, PublicKey> = dids.iter().cloned().zip(keys).collect();
    let good_nonces =
        list(&rejections["cases"]).iter().find(|case| case["name"] == "all good").unwrap()["publicNonces"].clone();

    let mut outcomes = [0, 0];
    for case in list(&rejections["cases"]) {
        let name = text(&case["name"]);
        let culprit = &dids[case["culprit"].as_u64().unwrap() as usize];
        let unsigned = transaction(&rejections["unsignedTx"]);
        let value = amount(&rejections["prevOutValue"]);
        let mut run = Run::open(task(output.clone(), members.clone(), unsigned, value));

        // The two cases of a wrong length are recorded without nonces: a valid one is shortened or extended.
        let mut nonces = case.get("publicNonces").unwrap_or(&good_nonces).clone();
        match name {
            "nonce 65 bytes" => nonces[1] = json!(text(&nonces[1])[2..]),
            "nonce 67 bytes" => nonces[1] = json!(format!("{}00", text(&nonces[1]))),
            _ => assert!(case.get("publicNonces").is_some(), "{name}"),
        }
        let messages = messages_of(&run, &dids, "nonce", list(&nonces));
        let mut named = feed_all(&mut run, messages);
        if let Some(aggregated) = case.get("aggregatedNonce") {
            assert!(named.is_empty(), "{name}: {named:?}");
            let SessionPhase::CollectingPartialSignatures { aggregated: found, .. } = run.session.phase() else {
                panic!("{name}: {:?}", run.session.phase());
            };
            assert_eq!(*found, bytes(aggregated), "{name}");
        }
        if let Some(partials) = case.get("partialSignatures") {
            let messages = messages_of(&run, &dids, "partial signature", list(partials));
            named.extend(feed_all(&mut run, messages));
        }
        named.extend(
            run.faults().into_iter().map(|(did, code)| {
                (dids.iter().position(|known| *known == did).unwrap(), Named::Recorded(did, code))
            }),
        );
        let named = match named.len() {
            0 => Named::Unnamed,
            1 => {
                let (index, named) = named.remove(0);
                assert_eq!(dids[index], *culprit, "{name}: {named:?}");
                named
            }
            _ => panic!("{name}: {named:?}"),
        };

        let rejected = case["rejected"].as_bool().unwrap();
        outcomes[usize::from(rejected)] += 1;
        if !rejected {
            assert!(matches!(named, Named::Unnamed), "{name}: {named:?}");
            let signed = run.signed().unwrap_or_else(|| panic!("{name}: {:?}", run.session.phase()));
            assert_eq!(signed.signature.unwrap().to_string(), text(&case["signature"]), "{name}");
            run.check_replay();
            continue;
        }
        assert!(run.signed().is_none(), "{name} must not be signed");
        let nonce_case = name.contains("nonce");
        match &named {
            Named::Unreadable(DecodeError::Field { field, .. }) => {
                let expected = if nonce_case { "body.nonceContribution" } else { "body.partialSignature" };
                assert_eq!(field, expected, "{name}");
                assert!(name.ends_with("bytes"), "{name}: decoding detects only a wrong length");
            }
            Named::Recorded(did, code) => {
                let expected = if nonce_case { RejectCode::InvalidNonce } else { RejectCode::BadPartialSignature };
                assert_eq!((did, *code), (culprit, expected), "{name}");
            }
            _ => panic!("{name}: {named:?}"),
        }
        // An invalid contribution is not stored, so its sender is still missing.
        assert_eq!(run.session.holdouts(), std::slice::from_ref(culprit), "{name}");
        run.check_replay();
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0);
}

#[test]
fn a_nonce_signs_once_and_for_one_session() {
    let keys = members(2);
    let output = output(&keys, &tree(None));
    let mut rng = rng();
    let aggregated = Bytes(
        AggNonce::sum(
            [SecretNonce::generate(&keys[1], &output, &mut rng).1]
                .map(|nonce| PubNonce::from_bytes(&nonce.0).unwrap()),
        )
        .into(),
    );
    let [one, other] = ["one", "other"].map(|id| SessionId::parse(id).unwrap());
    let mut signer = MemberSigner::new(Arc::new(SecretKey::from_bytes(&[9; 32]).unwrap()));
    let gone = Err(PartialSignError::NonceGone);
    assert_eq!(signer.sign_partial(&one, &output, &aggregated, &[1; 32]), gone, "no nonce was opened");

    let mut signer = MemberSigner::new(Arc::new(keys.into_iter().next().unwrap()));
    signer.open_nonce(&one, &output, &mut rng);
    assert!(signer.sign_partial(&one, &output, &aggregated, &[1; 32]).is_ok());
    assert_eq!(signer.sign_partial(&one, &output, &aggregated, &[1; 32]), gone, "it was used");

    signer.open_nonce(&one, &output, &mut rng);
    assert_eq!(signer.sign_partial(&other, &output, &aggregated, &[1; 32]), gone, "the nonce of another session");
    assert_eq!(signer.sign_partial(&one, &output, &aggregated, &[1; 32]), gone, "the attempt wiped it");

    signer.open_nonce(&one, &output, &mut rng);
    let bad = Bytes([5; 66]);
    assert_eq!(signer.sign_partial(&one, &output, &bad, &[1; 32]), Err(PartialSignError::AggregateNonce));
    assert_eq!(signer.sign_partial(&one, &output, &aggregated, &[1; 32]), gone, "a failed attempt consumes it too");

    signer.open_nonce(&one, &output, &mut rng);
    let signature: Signature = signer.sign_fallback(&[1; 32], &mut rng);
    assert!(members(1)[0].public_key().x_only().verify(&[1; 32], &signature));
    assert_eq!(signer.sign_partial(&one, &output, &aggregated, &[1; 32]), gone, "the fallback wipes it");
}
