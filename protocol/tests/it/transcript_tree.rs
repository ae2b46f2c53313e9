//! The transcript: the tree is that of RFC 6962, proofs are valid for one message and index, heads for one cohort.

use btcr2_aggregation_protocol::{
    hash::{MessageDigest, sha256, sha256_concat},
    key::SecretKey,
    transcript::{InclusionProof, SignedTranscriptHead, Transcript, TranscriptHead},
};
use proptest::prelude::*;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::json;

fn digest(number: u64) -> MessageDigest {
    MessageDigest::from_bytes(sha256(&number.to_be_bytes()))
}

fn transcript(size: u64) -> Transcript {
    let mut transcript = Transcript::default();
    (0..size).for_each(|number| transcript.push(digest(number)));
    transcript
}

/// MTH of RFC 6962, section 2.1: split at the largest power of two below the number of leaves.
fn mth(digests: &[MessageDigest]) -> [u8; 32] {
    match digests {
        [] => sha256(b""),
        [digest] => sha256_concat(&[&[0], digest.as_bytes()]),
        _ => {
            let (left, right) = digests.split_at(digests.len().next_power_of_two() / 2);
            sha256_concat(&[&[1], &mth(left), &mth(right)])
        }
    }
}

/// PATH of RFC 6962, section 2.1.1.
fn path(index: usize, digests: &[MessageDigest]) -> Vec<[u8; 32]> {
    if digests.len() <= 1 {
        return vec![];
    }
    let (left, right) = digests.split_at(digests.len().next_power_of_two() / 2);
    let (mut below, sibling) = if index < left.len() {
        (path(index, left), mth(right))
    } else {
        (path(index - left.len(), right), mth(left))
    };
    below.push(sibling);
    below
}

#[test]
fn the_tree_is_that_of_rfc_6962() {
    for size in 0..=70 {
        let transcript = transcript(size);
        let head = transcript.head();
        assert_eq!(head, TranscriptHead { root: mth(transcript.digests()), size }, "{size} messages");
        assert_eq!(transcript.len() as u64, size);
        assert_eq!(transcript.is_empty(), size == 0);
        for index in 0..transcript.len() {
            let proof = transcript.prove(index).expect("a proof of every message");
            assert_eq!(proof.hashes, path(index, transcript.digests()), "message {index} of {size}");
            assert!(proof.verify(&head, &digest(index as u64)), "message {index} of {size}");
        }
        assert_eq!(transcript.prove(transcript.len()), None);
        assert_eq!(transcript.prove(usize::MAX), None);
    }
}

#[test]
fn a_proof_is_valid_for_one_message_index_and_head() {
    for size in 1..=20 {
        let transcript = transcript(size);
        let head = transcript.head();
        for index in 0..size {
            let name = format!("message {index} of {size}");
            let proof = transcript.prove(index as usize).unwrap();
            let own = digest(index);
            assert!(!proof.verify(&head, &digest(size)), "{name}: another message");
            for other in (0..size + 3).filter(|other| *other != index) {
                let moved = InclusionProof { index: other, ..proof.clone() };
                assert!(!moved.verify(&head, &own), "{name}: at index {other}");
            }
            let mut surplus = proof.clone();
            surplus.hashes.push([0; 32]);
            assert!(!surplus.verify(&head, &own), "{name}: a surplus hash");
            for place in 0..proof.hashes.len() {
                let mut changed = proof.clone();
                changed.hashes[place][31] ^= 1;
                assert!(!changed.verify(&head, &own), "{name}: hash {place} changed");
                let mut shorter = proof.clone();
                shorter.hashes.remove(place);
                assert!(!shorter.verify(&head, &own), "{name}: hash {place} removed");
            }
            assert!(!proof.verify(&TranscriptHead { root: [0; 32], ..head }, &own), "{name}: another root");
        }
    }
}

#[test]
fn a_node_is_not_accepted_as_a_message() {
    let transcript = transcript(4);
    let head = transcript.head();
    // In a tree without domain separation, the parent of messages 0 and 1 would be a message of a tree of two.
    let inner = MessageDigest::from_bytes(mth(&transcript.digests()[..2]));
    let proof = InclusionProof { index: 0, hashes: vec![mth(&transcript.digests()[2..])] };
    assert!(!proof.verify(&TranscriptHead { size: 2, ..head }, &inner));
}

#[test]
fn any_change_to_the_messages_changes_the_head() {
    let head = transcript(9).head();
    assert_ne!(transcript(8).head(), head);
    assert_ne!(transcript(10).head(), head);
    let mut swapped = Transcript::default();
    [0, 1, 2, 4, 3, 5, 6, 7, 8].into_iter().for_each(|number| swapped.push(digest(number)));
    assert_ne!(swapped.head(), head);
    let mut changed = transcript(8);
    changed.push(digest(99));
    assert_ne!(changed.head(), head);
}

#[test]
fn an_empty_transcript_contains_no_message() {
    let head = Transcript::default().head();
    assert_eq!(head.size, 0);
    assert_eq!(
        json!(head),
        json!({"root": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": 0})
    );
    let proof = InclusionProof { index: 0, hashes: vec![] };
    assert!(!proof.verify(&head, &digest(0)));
    assert!(
        !proof.verify(&TranscriptHead { root: sha256_concat(&[&[0], digest(0).as_bytes()]), size: 0 }, &digest(0))
    );
}

#[test]
fn a_signed_head_is_valid_for_one_cohort_and_signer() {
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let key = SecretKey::generate(&mut rng);
    let service = key.public_key().x_only();
    let signed = transcript(5).head().sign(b"cohort 1", &key, &mut rng);
    assert!(signed.verify(b"cohort 1", &service));

    assert!(!signed.verify(b"cohort 2", &service));
    assert!(!signed.verify(b"", &service));
    assert!(!signed.verify(b"cohort 1", &SecretKey::generate(&mut rng).public_key().x_only()));
    let mut longer = signed;
    longer.head.size += 1;
    assert!(!longer.verify(b"cohort 1", &service));
    let mut other = signed;
    other.head.root[0] ^= 1;
    assert!(!other.verify(b"cohort 1", &service));
}

#[test]
fn heads_proofs_and_transcripts_survive_json() {
    let mut rng = ChaCha20Rng::from_seed([4; 32]);
    let transcript = transcript(6);
    let signed = transcript.head().sign(b"cohort", &SecretKey::generate(&mut rng), &mut rng);
    let text = serde_json::to_string(&signed).unwrap();
    assert_eq!(serde_json::from_str::<SignedTranscriptHead>(&text).unwrap(), signed);
    let proof = transcript.prove(4).unwrap();
    assert_eq!(serde_json::from_value::<InclusionProof>(json!(proof)).unwrap(), proof);
    assert_eq!(serde_json::from_value::<Transcript>(json!(transcript)).unwrap(), transcript);

    for bad in [json!({"index": 0, "hashes": ["00"]}), json!({"index": -1, "hashes": []}), json!({"index": 0})] {
        assert!(serde_json::from_value::<InclusionProof>(bad.clone()).is_err(), "{bad}");
    }
    assert!(serde_json::from_value::<TranscriptHead>(json!({"root": "zz", "size": 1})).is_err());
}

/// Indices and sizes around every value that could overflow.
fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..5,
        (0u64..5).prop_map(|n| u64::MAX - n),
        (0u32..64, 0u64..3).prop_map(|(bit, n)| (1u64 << bit).wrapping_add(n).wrapping_sub(1)),
    ]
}

proptest! {
    #[test]
    fn hostile_proofs_are_refused_without_a_panic(
        index in extreme(),
        size in extreme(),
        hashes in prop::collection::vec(any::<[u8; 32]>(), 0..70),
        root in any::<[u8; 32]>(),
    ) {
        let head = TranscriptHead { root, size };
        // Paths of every length, so that the right length is among them and the tree is walked.
        for length in 0..=hashes.len() {
            let proof = InclusionProof { index, hashes: hashes[..length].to_vec() };
            prop_assert!(!proof.verify(&head, &digest(0)));
        }
    }
}
