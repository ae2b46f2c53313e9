//! Our service against the recorded members.

use super::*;

/// Our service, its signing session, and the messages that the record expects of it.
struct ServiceRun {
    service: Did,
    cohort: Driven<ServiceCohort>,
    session: Option<Driven<SigningSession>>,
    /// The messages that each recipient is still to receive; `None` is a broadcast.
    expected: BTreeMap<Option<Did>, VecDeque<Value>>,
    randomness: Recorded,
    members: usize,
    transaction: Transaction,
    value: bitcoin::Amount,
    session_digests: Vec<MessageDigest>,
    /// The digests of our messages with an extension that the recorded service does not have.
    extended: Vec<MessageDigest>,
    transcript: Transcript,
}

impl ServiceRun {
    fn new(round: &Value) -> Self {
        let network: Network = text(&round["cohortConfig"]["network"]).parse().unwrap();
        let identity = identity(&round["service"], network);
        let messages = list(&round["messages"]);
        let recorded_advert = message(&messages[0]);
        let Body::CohortAdvert(advert) = (*recorded_advert.body).clone() else {
            panic!("the first message is the advert")
        };
        let beacons = BeaconRegistry::default();
        let conditions = Conditions::from_advert(&advert, &beacons).unwrap();
        // The conditions come from the advert. Each of its fields is the configured one:
        for (field, value) in round["cohortConfig"].as_object().unwrap() {
            assert_eq!(messages[0]["message"]["body"][field], *value, "{field}");
        }

        let mut expected: BTreeMap<Option<Did>, VecDeque<Value>> = BTreeMap::new();
        for entry in messages.iter().filter(|entry| entry["from"] == round["service"]["did"]) {
            let to = entry["to"].as_str().map(|to| to.parse().unwrap());
            expected.entry(to).or_default().push_back(entry["message"].clone());
        }

        // Drawn in this order: a nonce for each member (SMT only), in the order of their DIDs, then the session's
        // UUID.
        let participants = list(&round["participants"]);
        let mut nonces: Vec<(Did, Vec<u8>)> = participants
            .iter()
            .filter_map(|p| p["sidecar"].get("collapsed").and(p["sidecar"].get("nonce")).map(|nonce| (p, nonce)))
            .map(|(p, nonce)| (did(&p["did"]), BASE64URL_NOPAD.decode(text(nonce).as_bytes()).unwrap()))
            .collect();
        nonces.sort();
        let smt = advert.beacon_type.as_str() == "SMTBeacon";
        assert_eq!(nonces.len(), if smt { participants.len() } else { 0 }, "every SMT member has a nonce");
        let session_id = text(&round["sessionId"]).replace('-', "");
        let uuid = data_encoding::HEXLOWER.decode(session_id.as_bytes()).unwrap();
        let randomness = nonces.into_iter().map(|(_, nonce)| nonce).chain([uuid]).collect();

        let terms = CohortTerms {
            service: identity.did().clone(),
            service_key: identity.public_key(),
            cohort_id: advert.cohort_id.clone(),
            network,
            conditions,
            timing: Timing::default(),
            limits: Limits::default(),
            rules: PhaseRules::default(),
            lineage: Lineage::default(),
        };
        let config = ServiceConfig { terms: Arc::new(terms), beacons, aggregator: Arc::new(DirectAggregator) };
        Self {
            service: identity.did().clone(),
            cohort: Driven::new(ServiceCohort::new(Arc::new(config)).unwrap()),
            session: None,
            expected,
            randomness: Recorded(randomness),
            members: participants.len(),
            transaction: transaction(&round["outcome"]["unsignedTx"]),
            value: amount(&round["outcome"]["prevOutValue"]),
            session_digests: Vec::new(),
            extended: Vec::new(),
            transcript: Transcript::default(),
        }
    }

    fn sent(&mut self, to: Option<&Did>, body: &SharedBody) {
        // Our extensions are not in the recording of the TypeScript implementation.
        if body.is_control() {
            return;
        }
        let mut sent = json_of(&self.service, to, body);
        if let Body::AuthorizationRequest(_) = &**body {
            assert!(
                sent["body"].as_object_mut().unwrap().remove("sessionDeadline").is_some(),
                "members receive the deadline"
            );
            self.extended.push(Message::new(self.service.clone(), to.cloned(), body.clone()).digest());
        }
        let expected = self.expected.get_mut(&to.cloned()).and_then(VecDeque::pop_front);
        assert_eq!(Some(sent), expected, "to {to:?}");
    }

    /// Feeds the cohort and plays its host, as recorded.
    fn cohort(&mut self, input: ServiceInput) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let step = self.cohort.feed(&input, &mut self.randomness);
            // Effects belong to the last event of a step.
            for (position, event) in step.events.iter().enumerate() {
                let effects = if position + 1 == step.events.len() { &step.effects[..] } else { &[] };
                for digest in self.cohort.machine.transcript_entries(event, effects) {
                    self.transcript.push(digest);
                }
            }
            for effect in step.effects {
                match effect {
                    ServiceEffect::Broadcast(body) => self.sent(None, &body),
                    ServiceEffect::Send { to, body } => self.sent(Some(&to), &body),
                    ServiceEffect::AskAdmission(member) => inputs
                        .push_back(ServiceInput::AdmissionDecided { did: member.did.clone(), admission: Ok(()) }),
                    ServiceEffect::AskFinalization { admitted } if admitted == self.members => {
                        inputs.push_back(ServiceInput::Finalize);
                    }
                    ServiceEffect::AskFinalization { .. } | ServiceEffect::WithdrawAdvert => {}
                    ServiceEffect::AskTransaction { output, .. } => {
                        assert_eq!(output.address(), self.address().unwrap());
                        inputs.push_back(ServiceInput::TransactionProvided {
                            transaction: self.transaction.clone(),
                            value: self.value,
                        });
                    }
                    ServiceEffect::FormAgain(terms) => panic!("no recorded round fails, and yet: {terms:?}"),
                    ServiceEffect::StartSigning(task) => {
                        assert!(self.session.is_none(), "one session for each round");
                        let mut session = Driven::new(SigningSession::new(task));
                        session.now = self.cohort.now;
                        self.session = Some(session);
                        if let Some(finished) = self.session(&SessionInput::Open) {
                            inputs.push_back(finished);
                        }
                    }
                }
            }
        }
    }

    /// Feeds the session; returns its report to the cohort when it is finished.
    fn session(&mut self, input: &SessionInput) -> Option<ServiceInput> {
        let session = self.session.as_mut().expect("a signing session");
        let step = session.feed(input, &mut rng());
        self.cohort.now = session.now;
        for (position, event) in step.events.iter().enumerate() {
            let effects = if position + 1 == step.events.len() { &step.effects[..] } else { &[] };
            self.session_digests.extend(session.machine.transcript_entries(event, effects));
        }
        let mut finished = None;
        for effect in step.effects {
            match effect {
                SessionEffect::Send { to, body } => self.sent(Some(&to), &body),
                SessionEffect::Finished(outcome) => {
                    let digests = self.session_digests.clone();
                    assert!(finished.replace(ServiceInput::SigningFinished { outcome, digests }).is_none());
                }
            }
        }
        finished
    }

    fn address(&self) -> Option<&str> {
        self.cohort.machine.phase().formed().map(|formed| formed.output.address())
    }

    fn receive(&mut self, entry: &Value) {
        let message = message(entry);
        let Some(session) = &mut self.session else {
            self.cohort(ServiceInput::Message(message));
            return;
        };
        let fallback_signature = matches!(&*message.body, Body::FallbackSignature(_));
        // The recorded service waited for silent members, and so does ours.
        if fallback_signature
            && !matches!(session.machine.phase(), SessionPhase::Fallback { .. } | SessionPhase::Ended(_))
        {
            session.wait(&SessionInput::Tick, &mut rng());
            assert!(self.session(&SessionInput::Tick).is_none());
        }
        let session = self.session.as_mut().unwrap();
        if matches!(session.machine.phase(), SessionPhase::Ended(_)) {
            // More than k members sign the fallback. The last signatures come too late, which is not a fault and
            // changes nothing.
            assert!(fallback_signature, "only a fallback signature comes too late");
            let late = session.machine.decide(session.now, &SessionInput::Message(message), &mut rng());
            assert!(late.unwrap().is_empty());
            return;
        }
        if let Some(finished) = self.session(&SessionInput::Message(message)) {
            self.cohort(finished);
        }
    }
}

#[test]
fn our_service_conducts_every_recorded_round() {
    let mut paths = BTreeMap::new();
    let rounds = rounds();
    for round in &rounds {
        let name = text(&round["name"]);
        println!("round {name}");
        let mut run = ServiceRun::new(round);
        run.cohort(ServiceInput::Advertise);
        let mut received = 0;
        for entry in list(&round["messages"]).iter().filter(|entry| entry["from"] != round["service"]["did"]) {
            run.receive(entry);
            received += 1;
        }
        assert!(received > 0, "{name}");
        for (to, left) in &run.expected {
            assert!(left.is_empty(), "{name}: never sent to {to:?}: {left:?}");
        }
        assert!(run.randomness.0.is_empty(), "{name}: recorded randomness that was not drawn");

        let outcome = &round["outcome"];
        let Phase::Completed { formed, aggregated, outcome: signed } = run.cohort.machine.phase() else {
            panic!("{name}: {:?}", run.cohort.machine.phase());
        };
        let output = &formed.output;
        assert_eq!(output.address(), text(&outcome["beaconAddress"]), "{name}");
        assert_eq!(hex(output.script_pubkey()), text(&outcome["prevOutScript"]), "{name}");
        assert_eq!(output.internal_key().to_string(), text(&outcome["internalKey"]), "{name}");
        assert_eq!(hex(output.merkle_root().unwrap()), text(&outcome["tapMerkleRoot"]), "{name}");
        assert_eq!(hex(output.tap_tweak()), text(&outcome["tapTweak"]), "{name}");
        let keys: Vec<String> = output.keys().iter().map(ToString::to_string).collect();
        assert_eq!(serde_json::json!(keys), outcome["cohortKeys"], "{name}");
        assert_eq!(aggregated.aggregation.signal.to_string(), text(&outcome["signalBytes"]), "{name}");

        assert_eq!(signed.path.as_str(), text(&outcome["path"]), "{name}");
        *paths.entry(signed.path.as_str()).or_insert(0) += 1;
        let witness: Vec<String> = signed.transaction.input[0].witness.iter().map(hex).collect();
        assert_eq!(serde_json::json!(witness), outcome["witness"], "{name}");
        assert_eq!(serialize_hex(&signed.transaction), text(&outcome["signedTx"]), "{name}");
        assert_eq!(signed.transaction.compute_txid().to_string(), text(&outcome["txid"]), "{name}");
        assert!(consensus_accepts(&signed.transaction, &prevout(outcome)), "{name}");
        let signature = signed.signature.map(|signature| signature.to_string()).unwrap_or_default();
        assert_eq!(signature, text(&outcome["signature"]), "{name}");
        assert_eq!(signed.culprits, [], "{name}: silence is not a fault");
        let silent: Vec<Did> = match signed.path {
            SpendPath::KeyPath => Vec::new(),
            SpendPath::ScriptPath => vec![did(&list(&round["silent"])[0]["did"])],
        };
        assert_eq!(signed.holdouts, silent, "{name}");

        let session = run.session.as_ref().unwrap();
        assert_eq!(hex(session.machine.task().key_path_sighash()), text(&outcome["keyPathSighash"]), "{name}");
        assert_eq!(session.machine.task().session_id.as_str(), text(&round["sessionId"]), "{name}");
        assert!(
            matches!(session.machine.phase(), SessionPhase::Ended(SigningOutcome::Signed(ended)) if ended == signed),
            "{name}"
        );
        assert_eq!(session.machine.faults().iter().count(), 0, "{name}");
        assert_eq!(run.cohort.machine.faults().iter().count(), 0, "{name}");
        assert_eq!(run.cohort.machine.deadline(), None, "{name}: a cohort that ended waits for nothing");
        assert_eq!(session.machine.deadline(), None, "{name}");

        session.check_replay();
        run.cohort.check_replay();
        check_transcript(name, round, &run);
    }
    assert_eq!(paths.values().sum::<usize>(), rounds.len());
    assert_eq!(paths.keys().copied().collect::<Vec<_>>(), ["key-path", "script-path"]);
}

/// The transcript holds exactly the round's messages: those that the members sent, and ours. (The recorded service
/// sends to the members in another order than ours, and a message that came too late is only in the record.)
fn check_transcript(name: &str, round: &Value, run: &ServiceRun) {
    let late = list(&round["messages"])
        .iter()
        .filter(|entry| text(&entry["type"]).ends_with("/fallback_signature"))
        .skip(run.cohort.machine.phase().formed().unwrap().output.fallback().unwrap().threshold());
    let late: Vec<&Value> = late.map(|entry| &entry["seq"]).collect();
    let mut expected: Vec<MessageDigest> = list(&round["messages"])
        .iter()
        .filter(|entry| !late.contains(&&entry["seq"]))
        .filter(|entry| !text(&entry["type"]).ends_with("/authorization_request"))
        .map(|entry| message(entry).digest())
        .collect();
    expected.extend(&run.extended);
    let mut found: Vec<MessageDigest> = run.transcript.digests().to_vec();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "{name}");
}
