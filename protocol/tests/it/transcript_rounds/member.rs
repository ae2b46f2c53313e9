//! Our members against the recorded service.

use super::*;

/// One of our members, and the messages that the record expects of it.
struct MemberRun {
    service: Did,
    did: Did,
    cohort: Driven<ParticipantCohort>,
    signer: MemberSigner,
    nonce_randomness: Recorded,
    update: Option<SignedUpdate>,
    expected: VecDeque<Value>,
    /// The types of messages that the recorded member did not send.
    silent: Vec<String>,
    withheld: usize,
    key: SecretKey,
    signed_paths: Vec<SpendPath>,
}

impl MemberRun {
    fn new(round: &Value, participant: &Value, advert: Advert) -> Self {
        let identity = identity(participant, advert.network);
        let update = match text(&participant["role"]) {
            "submits" => {
                let update = SignedUpdate::from_value(participant["signedUpdate"].clone()).unwrap();
                assert_eq!(update.hash().to_string(), text(&participant["signedUpdateHash"]));
                Some(update)
            }
            "declines" => None,
            role => panic!("no role {role}"),
        };
        let expected = list(&round["messages"]).iter().filter(|entry| entry["from"] == participant["did"]);
        let silent =
            round["silent"].as_array().unwrap().iter().filter(|silent| silent["did"] == participant["did"]);
        let config = ParticipantConfig {
            did: identity.did().clone(),
            participant_key: identity.public_key(),
            communication_key: identity.public_key(),
            genesis_document: identity.genesis_document().cloned(),
            invite: None,
            timing: Timing::default(),
            max_fee_rate: DEFAULT_MAX_FEE_RATE,
            beacons: BeaconRegistry::default(),
            aggregator: Arc::new(DirectAggregator),
        };
        Self {
            service: advert.service.clone(),
            did: identity.did().clone(),
            cohort: Driven::new(ParticipantCohort::new(Arc::new(config), Arc::new(advert))),
            signer: MemberSigner::new(Arc::clone(identity.secret_key())),
            nonce_randomness: Recorded(VecDeque::from([unhex(&participant["nonceRand"])])),
            update,
            expected: expected.map(|entry| entry["message"].clone()).collect(),
            silent: silent.map(|silent| text(&silent["doesNotSend"]).to_owned()).collect(),
            withheld: 0,
            key: secret_key(&participant["secretKey"]),
            signed_paths: Vec::new(),
        }
    }

    fn sent(&mut self, to: &Did, body: &SharedBody) {
        assert_eq!(*to, self.service, "a member sends only to its service");
        if self.silent.iter().any(|kind| body.short_type().ends_with(kind.as_str())) {
            self.withheld += 1;
            return;
        }
        let sent = json_of(&self.did, Some(to), body);
        let mut expected =
            self.expected.pop_front().unwrap_or_else(|| panic!("{} was never sent: {sent}", self.did));
        if let Body::FallbackSignature(_) = &**body {
            // The auxiliary randomness differs, so the signature does; both must verify.
            let phase::Phase::Signing { round, request, .. } = self.cohort.machine.phase() else {
                panic!("{:?}", self.cohort.machine.phase());
            };
            let leaf = round.output.fallback().unwrap();
            let prevout =
                bitcoin::TxOut { value: request.value, script_pubkey: round.output.script_pubkey().to_owned() };
            let sighash = leaf.sighash(&request.transaction, &prevout).unwrap();
            for signature in [&sent, &expected] {
                let signature = &signature["body"]["fallbackSignature"]["__bytes"];
                let signature = text(signature).parse().unwrap();
                assert!(self.key.public_key().x_only().verify(&sighash, &signature), "{}", self.did);
            }
            expected["body"]["fallbackSignature"] = sent["body"]["fallbackSignature"].clone();
        }
        assert_eq!(sent, expected, "{}", self.did);
    }

    /// Feeds the member and plays its host: it joins, contributes as recorded, and approves checked data.
    fn feed(&mut self, input: ParticipantInput) {
        let mut rng = rng();
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.cohort.feed(&input, &mut rng).effects {
                inputs.push_back(match effect {
                    ParticipantEffect::Send { to, body } => {
                        self.sent(&to, &body);
                        continue;
                    }
                    ParticipantEffect::AskJoin => ParticipantInput::JoinDecided(true),
                    ParticipantEffect::AskUpdate { .. } => {
                        ParticipantInput::UpdateDecided(self.update.clone().map(Submission::from))
                    }
                    ParticipantEffect::AskValidation { verdict, .. } => {
                        verdict.unwrap_or_else(|reason| panic!("{}: {reason}", self.did));
                        ParticipantInput::ValidationDecided(true)
                    }
                    ParticipantEffect::AskSigning { path, .. } => {
                        assert_eq!(path, SpendPath::KeyPath);
                        ParticipantInput::SigningDecided(true)
                    }
                    ParticipantEffect::OpenNonce { session_id, output } => ParticipantInput::NonceOpened(
                        self.signer.open_nonce(&session_id, &output, &mut self.nonce_randomness),
                    ),
                    ParticipantEffect::SignPartial { session_id, output, aggregated, sighash } => {
                        self.signed_paths.push(SpendPath::KeyPath);
                        let signed = self.signer.sign_partial(&session_id, &output, &aggregated, &sighash);
                        ParticipantInput::PartialSigned(signed.unwrap())
                    }
                    ParticipantEffect::SignFallback { sighash } => {
                        self.signed_paths.push(SpendPath::ScriptPath);
                        let signature = self.signer.sign_fallback(&sighash, &mut rng);
                        ParticipantInput::FallbackSigned(Bytes(signature.to_bytes()))
                    }
                });
            }
        }
    }
}

fn check_record(who: &str, round: &Value, participant: &Value, run: &MemberRun) {
    let record = run.cohort.machine.record().unwrap_or_else(|| panic!("{who}: there is no record"));
    assert_eq!(record.included(), participant["completeIncluded"].as_bool().unwrap(), "{who}");
    assert_eq!(record.did, run.did, "{who}");
    assert_eq!(record.service, run.service, "{who}");
    assert_eq!(record.cohort_id.as_str(), text(&round["cohortId"]), "{who}");
    assert_eq!(record.signal.to_string(), text(&round["outcome"]["signalBytes"]), "{who}");
    assert_eq!(record.output.address(), text(&round["outcome"]["beaconAddress"]), "{who}");
    assert_eq!(record.update, run.update, "{who}");
    // The terms in the record give the output again.
    let again = BeaconOutput::new(
        Arc::clone(record.output.aggregation()),
        record.output.network(),
        &record.conditions.script_tree,
    );
    assert_eq!(again.unwrap(), record.output, "{who}");

    let genesis = participant["genesisDocument"].as_object().map(|_| &participant["genesisDocument"]);
    let mut expected = serde_json::json!({"@context": "https://btcr2.dev/context/v1"});
    if let Some(genesis) = genesis {
        expected["genesisDocument"] = genesis.clone();
    }
    if participant["completeIncluded"] == true {
        expected["updates"] = serde_json::json!([participant["signedUpdate"]]);
    }
    let kind = match text(&round["cohortConfig"]["beaconType"]) {
        "CASBeacon" => "casUpdates",
        "SMTBeacon" => "smtProofs",
        other => panic!("unknown beacon {other}"),
    };
    expected[kind] = serde_json::json!([participant["sidecar"]]);
    assert_eq!(record.sidecar(genesis), expected, "{who}");

    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<MemberRecord>(&text).unwrap(), record);
}

#[test]
fn our_members_take_part_in_every_recorded_round() {
    let (mut declined, mut external, mut withheld, mut fallback) = (0, 0, 0, 0);
    for round in &rounds() {
        for participant in list(&round["participants"]) {
            let who = format!("round {}, {}", text(&round["name"]), text(&participant["keyLabel"]));
            println!("{who}");
            let messages = list(&round["messages"]);
            let first = message(&messages[0]);
            let Body::CohortAdvert(body) = &*first.body else { panic!("{who}: the first message is the advert") };
            let advert = Advert::read(&first.from, body, &BeaconRegistry::default()).unwrap();
            let mut run = MemberRun::new(round, participant, advert);
            run.feed(ParticipantInput::Discover);

            let mut received = 0;
            for entry in messages.iter().filter(|entry| entry["from"] == round["service"]["did"]) {
                if entry["to"].is_null() || entry["to"] == participant["did"] {
                    let message = message(entry);
                    run.feed(ParticipantInput::Message(message.clone()));
                    received += 1;
                    // A repeated message, e.g. after a lost acknowledgement, changes nothing.
                    let before = run.cohort.machine.clone();
                    assert_eq!(
                        run.cohort.feed(&ParticipantInput::Message(message), &mut rng()).effects,
                        [],
                        "{who}"
                    );
                    assert_eq!(run.cohort.machine, before, "{who}");
                }
            }
            assert!(received > 5, "{who}");
            assert!(run.expected.is_empty(), "{who}: not sent: {:?}", run.expected);
            assert!(run.nonce_randomness.0.is_empty(), "{who}: no nonce was opened");
            let fallback_requested = messages.iter().any(|m| {
                m["to"] == participant["did"] && text(&m["type"]).ends_with("fallback_authorization_request")
            });
            assert_eq!(run.signed_paths.contains(&SpendPath::ScriptPath), fallback_requested, "{who}");
            assert_eq!(run.withheld, run.silent.len(), "{who}");
            check_record(&who, round, participant, &run);
            run.cohort.check_replay();

            // The record is unchanged after the end of the session, and after a restart.
            let record = run.cohort.machine.record();
            run.cohort.wait(&ParticipantInput::Tick, &mut rng());
            let ended = run.cohort.feed(&ParticipantInput::Tick, &mut rng());
            assert!(
                matches!(&ended.events[..], [ParticipantEvent::SessionEnded { reason: SessionEnd::Signed, .. }]),
                "{who}: {ended:?}"
            );
            assert_eq!(run.cohort.machine.record(), record, "{who}");
            assert_eq!(run.cohort.machine.deadline(), None, "{who}");
            run.cohort.check_replay();

            declined += usize::from(run.update.is_none());
            external += usize::from(participant["genesisDocument"].is_object());
            withheld += run.withheld;
            fallback += usize::from(fallback_requested);
        }
    }
    assert!(declined > 0 && external > 0 && withheld > 0 && fallback > 0, "the rounds show every role");
}
