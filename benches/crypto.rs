//! The cost of MuSig2: keys, nonces, and partial signatures, one by one and through the coordinator's session.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{hint::black_box, sync::Arc};

use bitcoin::{Amount, FeeRate, OutPoint};
use btcr2_aggregation::protocol::{
    cohort::{Timing, Unreached, service::rules::PhaseRules},
    hash::SignalBytes,
    id::{CohortId, SessionId},
    identity::Identity,
    machine::step,
    message::{
        Bytes, Message,
        sign::{NonceContribution, SignatureAuthorization},
    },
    network::Network,
    output::{BeaconOutput, Change, Coin, KeyAggregation, RecoverySequence, ScriptTree, build_beacon_transaction},
    signing::{
        SigningTask, SigningTerms,
        nonce::SecretNonce,
        session::{SessionInput, SessionPhase, SigningSession},
    },
    time::Timestamp,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use musig2::{AggNonce, CompactSignature, PartialSignature, PubNonce};

const SIZES: [usize; 6] = [2, 10, 100, 500, 1000, 5000];
const DIGEST: [u8; 32] = [7; 32];
const NOW: Timestamp = Timestamp::from_secs(1_000_000);

/// A session up to its partial signatures.
struct Session {
    members: Vec<Identity>,
    output: BeaconOutput,
    nonces: Vec<PubNonce>,
    aggregate: AggNonce,
    partials: Vec<PartialSignature>,
}

impl Session {
    fn of(members: usize) -> Self {
        let randomness = support::seeded(1);
        let members: Vec<_> = (0..members).map(|index| support::identity(randomness, &index.to_string())).collect();
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: members[0].public_key().x_only(),
            recovery_sequence: RecoverySequence::try_from(144).unwrap(),
            // The leaf of a large cohort could not be spent with all keys; it is not measured here.
            fallback_threshold: None,
        };
        let keys = KeyAggregation::new(members.iter().map(Identity::public_key)).unwrap();
        let output = BeaconOutput::new(Arc::new(keys), Network::Regtest, &tree).unwrap();
        let mut rng = randomness.for_actor("nonces");
        let made: Vec<_> =
            members.iter().map(|member| SecretNonce::generate(member.secret_key(), &output, &mut rng)).collect();
        let nonces: Vec<_> = made.iter().map(|(_, public)| PubNonce::from_bytes(&public.0).unwrap()).collect();
        let aggregate = AggNonce::sum(&nonces);
        let encoded = Bytes(aggregate.serialize());
        let partials = members
            .iter()
            .zip(made)
            .map(|(member, (nonce, _))| nonce.sign(member.secret_key(), &output, &encoded, &DIGEST).unwrap())
            .map(|partial| PartialSignature::from_slice(&partial.0).unwrap())
            .collect();
        Self { members, output, nonces, aggregate, partials }
    }

    /// The coordinator's session when it has all nonces, and the partial signatures that the members send it.
    fn coordinator(&self) -> (SigningSession, Vec<Message>) {
        let did = |index: usize| self.members[index].did().clone();
        let coin = Coin { outpoint: OutPoint::default(), value: Amount::from_sat(1_000_000) };
        let (signal, rate) = (SignalBytes::from_bytes([7; 32]), FeeRate::from_sat_per_vb_u32(1));
        let task = SigningTask::new(SigningTerms {
            cohort_id: CohortId::parse("cohort").unwrap(),
            session_id: SessionId::parse("session").unwrap(),
            service: did(0),
            output: self.output.clone(),
            members: self.members.iter().map(|member| (member.did().clone(), member.public_key())).collect(),
            transaction: build_beacon_transaction(&self.output, &coin, &signal, rate, &Change::Beacon).unwrap(),
            value: coin.value,
            timing: Timing::default(),
            rules: PhaseRules::default(),
            absent: Vec::new(),
            unreached: Unreached::default(),
        });
        let task = Arc::new(task.unwrap());
        let mut rng = support::seeded(2).for_actor("nonces");
        let made: Vec<_> = self
            .members
            .iter()
            .map(|member| SecretNonce::generate(member.secret_key(), &self.output, &mut rng))
            .collect();
        let mut machine = SigningSession::new(Arc::clone(&task));
        step(&mut machine, NOW, &SessionInput::Open, &mut rng).unwrap();
        let (cohort_id, session_id) = (task.cohort_id.clone(), task.session_id.clone());
        for (index, (_, nonce)) in made.iter().enumerate() {
            let body = NonceContribution {
                cohort_id: cohort_id.clone(),
                session_id: session_id.clone(),
                nonce_contribution: *nonce,
            };
            let message = Message::new(did(index), None, body);
            step(&mut machine, NOW, &SessionInput::Message(message), &mut rng).unwrap();
        }
        let SessionPhase::CollectingPartialSignatures { aggregated, .. } = machine.phase() else { panic!() };
        let aggregated = *aggregated;
        let messages = made.into_iter().enumerate().map(|(index, (nonce, _))| {
            let key = self.members[index].secret_key();
            let signature = nonce.sign(key, &self.output, &aggregated, task.key_path_sighash()).unwrap();
            let (cohort_id, session_id) = (cohort_id.clone(), session_id.clone());
            let body = SignatureAuthorization { cohort_id, session_id, partial_signature: signature };
            Message::new(did(index), None, body)
        });
        let messages = messages.collect();
        (machine, messages)
    }

    fn verify(&self, index: usize) -> bool {
        let key: musig2::secp::Point =
            musig2::secp::Point::from_slice(&self.members[index].public_key().to_bytes()).unwrap();
        let (context, partial) = (self.output.musig2_context(), self.partials[index]);
        musig2::verify_partial(context, partial, &self.aggregate, key, &self.nonces[index], DIGEST).is_ok()
    }
}

fn crypto(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crypto");
    group.sample_size(10);
    for size in SIZES {
        let session = std::cell::LazyCell::new(|| Session::of(size));
        group.bench_function(BenchmarkId::new("key_aggregation", size), |bencher| {
            let keys = session.output.keys().to_vec();
            bencher.iter(|| KeyAggregation::new(black_box(&keys).iter().copied()).unwrap());
        });
        group.bench_function(BenchmarkId::new("nonce_aggregation", size), |bencher| {
            let nonces = &session.nonces;
            bencher.iter(|| AggNonce::sum(black_box(nonces)));
        });
        group.bench_function(BenchmarkId::new("aggregate_optimistic", size), |bencher| {
            let session = &*session;
            bencher.iter(|| {
                let partials = session.partials.iter().copied();
                let context = session.output.musig2_context();
                musig2::aggregate_partial_signatures::<_, CompactSignature>(
                    context,
                    &session.aggregate,
                    partials,
                    DIGEST,
                )
                .unwrap()
            });
        });
        group.bench_function(BenchmarkId::new("verify_each", size), |bencher| {
            let session = &*session;
            bencher.iter(|| (0..size).filter(|&index| session.verify(index)).count());
        });
        // Each is verified when it arrives, the last one is aggregated with the others: all of the coordinator's work.
        group.bench_function(BenchmarkId::new("partials_on_arrival", size), |bencher| {
            let (machine, messages) = session.coordinator();
            bencher.iter_batched(
                || machine.clone(),
                |mut machine| {
                    let mut rng = support::seeded(1).for_actor("");
                    for message in &messages {
                        step(&mut machine, NOW, &SessionInput::Message(message.clone()), &mut rng).unwrap();
                    }
                    assert!(matches!(machine.phase(), SessionPhase::Ended(_)));
                },
                criterion::BatchSize::LargeInput,
            );
        });
    }
    let session = std::cell::LazyCell::new(|| Session::of(10));
    group.bench_function("partial_check", |bencher| {
        let session = &*session;
        bencher.iter(|| assert!(session.verify(black_box(3))));
    });
    group.finish();
}

criterion_group!(benches, crypto);
criterion_main!(benches);
