//! The members that are blamed when a round fails.

use super::*;

/// A cohort whose members have all sent nonces and partial signatures.
struct Round {
    task: Arc<SigningTask>,
    dids: Vec<Did>,
    nonces: BTreeMap<Did, Bytes<66>>,
    partials: BTreeMap<Did, Bytes<32>>,
}

impl Round {
    fn new(n: usize) -> Self {
        let mut rng = rng();
        let keys = members(n);
        let output = output(&keys, &tree(None));
        let coin = coin(1_000_000);
        let signal = SignalBytes::from_bytes([7; 32]);
        let rate = FeeRate::from_sat_per_vb_u32(1);
        let tx = build_beacon_transaction(&output, &coin, &signal, rate, &Change::Beacon).unwrap();
        let dids: Vec<Did> = keys.iter().map(|key| Did::from_key(key.public_key(), Network::Regtest)).collect();
        let members = dids.iter().cloned().zip(keys.iter().map(SecretKey::public_key)).collect();
        let task = Arc::new(task(output.clone(), members, tx, coin.value));

        let mut signers: Vec<MemberSigner> = keys.into_iter().map(|key| MemberSigner::new(Arc::new(key))).collect();
        let nonces: BTreeMap<Did, Bytes<66>> = dids
            .iter()
            .zip(&mut signers)
            .map(|(did, signer)| (did.clone(), signer.open_nonce(&task.session_id, &output, &mut rng)))
            .collect();
        let sum = AggNonce::sum(nonces.values().map(|nonce| PubNonce::from_bytes(&nonce.0).unwrap()));
        let aggregated = Bytes(sum.into());
        let partials = dids
            .iter()
            .zip(&mut signers)
            .map(|(did, signer)| {
                let sighash = task.key_path_sighash();
                (did.clone(), signer.sign_partial(&task.session_id, &output, &aggregated, sighash).unwrap())
            })
            .collect();
        Self { task, dids, nonces, partials }
    }

    /// A session that has all nonces.
    fn with_nonces(&self) -> Run {
        let mut run = Run::open(SigningTask::clone(&self.task));
        for did in &self.dids {
            run.nonce(did, self.nonces[did]).unwrap();
        }
        run
    }

    /// Adds a different number to each culprit's partial signature, so that no two errors cancel out.
    fn partials_with(&self, culprits: &[usize]) -> BTreeMap<Did, Bytes<32>> {
        let mut partials = self.partials.clone();
        for index in culprits {
            let partial = partials.get_mut(&self.dids[*index]).unwrap();
            let mut error = [0; 32];
            error[30..].copy_from_slice(&(1 + *index as u16 * 7).to_be_bytes());
            let scalar = secp256k1::Scalar::from_be_bytes(error).unwrap();
            partial.0 =
                secp256k1::SecretKey::from_slice(&partial.0).unwrap().add_tweak(&scalar).unwrap().secret_bytes();
        }
        partials
    }

    fn sorted(&self, culprits: &[usize]) -> Vec<Did> {
        let mut dids: Vec<Did> = culprits.iter().map(|index| self.dids[*index].clone()).collect();
        dids.sort();
        dids
    }
}

fn culprit_sets(n: usize) -> Vec<Vec<usize>> {
    vec![vec![], vec![0], vec![n - 1], vec![5, 17], (0..n).collect(), (0..n).step_by(2).collect()]
}

#[test]
fn a_bad_partial_signature_is_not_stored_and_can_be_replaced() {
    let round = Round::new(33);
    for culprits in culprit_sets(33) {
        let mut run = round.with_nonces();
        let partials = round.partials_with(&culprits);
        for did in &round.dids {
            run.partial(did, partials[did]).unwrap();
        }
        let faults: Vec<_> = run.faults().into_iter().map(|(did, _)| did).collect();
        assert_eq!(faults, round.sorted(&culprits), "culprits {culprits:?}");
        assert_eq!(run.session.holdouts(), faults, "culprits {culprits:?}: only they are missing");
        for did in &faults {
            // The same invalid signature again is only rejected: it is already recorded.
            let again = run.partial(did, partials[did]).unwrap_err();
            assert_eq!((again.code, again.peer.as_ref()), (RejectCode::BadPartialSignature, Some(did)));
            run.partial(did, round.partials[did]).unwrap();
        }
        let signed = run.signed().unwrap_or_else(|| panic!("{culprits:?}: {:?}", run.session.phase()));
        assert!(consensus_accepts(&signed.transaction, &round.task.prevout()));
        assert_eq!(signed.culprits, [], "a valid signature clears its sender");
        run.check_replay();
    }
}

#[test]
fn members_without_a_valid_partial_signature_are_culprits() {
    let round = Round::new(5);
    let mut run = round.with_nonces();
    let partials = round.partials_with(&[1, 2]);
    for index in [0, 1, 2, 3] {
        run.partial(&round.dids[index], partials[&round.dids[index]]).unwrap();
    }
    run.partial(&round.dids[2], round.partials[&round.dids[2]]).unwrap();
    let deadline = run.session.deadline().unwrap();
    run.feed_at(deadline, SessionInput::Tick).unwrap();
    let SessionPhase::Fallback { holdouts, culprits, .. } = run.session.phase() else {
        panic!("{:?}", run.session.phase());
    };
    assert_eq!(holdouts, &round.sorted(&[4]), "the members that sent nothing");
    assert_eq!(culprits, &round.sorted(&[1]), "the members that sent only invalid signatures");
    let late = run.partial(&round.dids[1], round.partials[&round.dids[1]]);
    assert_eq!(late.unwrap_err().code, RejectCode::WrongPhase, "the latch is closed");
    run.check_replay();
}

#[test]
fn a_bad_nonce_is_not_stored_and_can_be_replaced() {
    let round = Round::new(3);
    let mut run = Run::open(SigningTask::clone(&round.task));
    let [first, second, third] = &round.dids[..] else { panic!() };
    run.nonce(first, round.nonces[first]).unwrap();
    run.nonce(second, Bytes([7; 66])).unwrap();
    assert_eq!(run.faults(), [(second.clone(), RejectCode::InvalidNonce)]);
    assert_eq!(run.nonce(second, Bytes([8; 66])).unwrap_err().code, RejectCode::InvalidNonce);
    run.nonce(third, round.nonces[third]).unwrap();
    assert_eq!(run.session.holdouts(), std::slice::from_ref(second));
    run.nonce(second, round.nonces[second]).unwrap();
    for did in &round.dids {
        run.partial(did, round.partials[did]).unwrap();
    }
    assert_eq!(run.signed().unwrap().culprits, []);
    run.check_replay();
}

#[test]
fn errors_that_cancel_out_are_found_one_by_one() {
    let round = Round::new(3);
    let shift = |partial: Bytes<32>, by: secp256k1::Scalar| {
        Bytes(secp256k1::SecretKey::from_slice(&partial.0).unwrap().add_tweak(&by).unwrap().secret_bytes())
    };
    let one = secp256k1::Scalar::ONE;
    let minus_one = secp256k1::SecretKey::from_slice(&one.to_be_bytes()).unwrap().negate().into();
    let mut run = round.with_nonces();
    run.partial(&round.dids[0], shift(round.partials[&round.dids[0]], one)).unwrap();
    run.partial(&round.dids[1], round.partials[&round.dids[1]]).unwrap();
    run.partial(&round.dids[2], shift(round.partials[&round.dids[2]], minus_one)).unwrap();
    assert!(run.signed().is_none());
    assert_eq!(run.session.holdouts(), round.sorted(&[0, 2]));
}

/// Versions before 0.2.0 stored partial signatures unverified.
#[test]
fn a_journal_with_unverified_partial_signatures_is_continued() {
    let round = Round::new(4);
    let mut run = round.with_nonces();
    let partials = round.partials_with(&[1]);
    for index in [0, 1, 2] {
        let did = round.dids[index].clone();
        let digest = partial_message(&round.task, &did, partials[&did]).digest();
        let event = SessionEvent::PartialSignatureReceived { signature: partials[&did], did, digest };
        run.session.apply(&event);
        run.journal.push(event);
    }
    run.partial(&round.dids[3], partials[&round.dids[3]]).unwrap();
    assert_eq!(run.faults(), [(round.dids[1].clone(), RejectCode::BadPartialSignature)]);
    assert_eq!(run.session.holdouts(), round.sorted(&[1]));
    run.partial(&round.dids[1], round.partials[&round.dids[1]]).unwrap();
    assert!(run.signed().is_some(), "{:?}", run.session.phase());
    run.check_replay();
}

#[test]
fn a_malformed_partial_signature_is_recorded_at_once() {
    let round = Round::new(3);
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    for number in [hex([0; 32]), order.to_owned(), hex([0xff; 32])] {
        let mut run = round.with_nonces();
        run.partial(&round.dids[1], bytes(&json!(number))).unwrap();
        assert_eq!(run.faults(), [(round.dids[1].clone(), RejectCode::BadPartialSignature)], "{number}");
        assert_eq!(run.session.holdouts().len(), 3, "{number}: nothing is stored");
        for did in &round.dids {
            run.partial(did, round.partials[did]).unwrap();
        }
        assert!(run.signed().is_some(), "{number}");
        run.check_replay();
    }
}
