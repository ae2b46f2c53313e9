//! Nostr events and NIP-44 payloads against `nostr.json`, and rejections.

use btcr2_aggregation_protocol::{
    beacon::{BeaconData, BeaconType, CasAnnouncement},
    did::Did,
    hash::{DocumentHash, SignalBytes, sha256},
    id::CohortId,
    key::{PublicKey, SecretKey, XOnlyKey},
    message::{
        DecodeError, Message,
        update::{DistributeAggregatedData, SubmitNonIncluded},
    },
    network::Network,
    nostr::{
        ConversationKey, DecryptError, EventLimits, MAX_PLAINTEXT, Peer, ReadError, SealError, VerifiedEvent,
        is_plain, max_members, retract, seal,
    },
    time::Timestamp,
};
use data_encoding::{BASE64, HEXLOWER};
use nostr::{Event, JsonUtil, Kind, Tag, Tags};
use proptest::prelude::*;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use rand_core::{CryptoRng, RngCore};
use serde_json::Value;

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry[field].as_str().unwrap_or_else(|| panic!("{field} of {entry}"))
}

fn list<'a>(entry: &'a Value, field: &str) -> &'a [Value] {
    let list = entry[field].as_array().unwrap();
    assert!(!list.is_empty(), "an empty list proves nothing");
    list
}

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
}

struct Actor {
    did: Did,
    secret: SecretKey,
    public: PublicKey,
}

fn actor(vectors: &Value, name: &str) -> Actor {
    let entry = &vectors["actors"][name];
    Actor {
        did: text(entry, "did").parse().unwrap(),
        secret: SecretKey::from_hex(text(entry, "secretKey")).unwrap(),
        public: text(entry, "publicKey").parse().unwrap(),
    }
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(7)
}

/// Gives these bytes first, the recorded NIP-44 nonce, and zeros from then on.
struct Recorded(Vec<u8>);

impl RngCore for Recorded {
    fn next_u32(&mut self) -> u32 {
        unreachable!("no number is requested here")
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("no number is requested here")
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        out.fill(0);
        let taken = out.len().min(self.0.len());
        out[..taken].copy_from_slice(&self.0[..taken]);
        self.0.drain(..taken);
    }
}

impl CryptoRng for Recorded {}

fn read(event: &Event, own: &SecretKey) -> Result<(XOnlyKey, Message), ReadError> {
    let verified = VerifiedEvent::verify(event)?;
    Ok((verified.sender(), verified.message(|peer| ConversationKey::derive(own, peer))?))
}

#[test]
fn our_events_equal_the_recorded_ones_except_signatures() {
    let vectors = crate::common::vectors("nostr");
    for case in list(&vectors, "events") {
        let name = text(case, "name");
        let from = actor(&vectors, text(case, "from"));
        let to = case["to"].as_str().map(|to| actor(&vectors, to));
        let message = Message::from_json(text(case, "plaintext")).unwrap();
        assert_eq!(message.to_json(), text(case, "plaintext"), "{name}");
        let peer = to.as_ref().map(|to| Peer::new(&from.secret, to.public.x_only()).unwrap());
        let created_at = Timestamp::from_secs(case["created_at"].as_u64().unwrap());
        let mut rng = Recorded(case["nip44Nonce"].as_str().map(bytes::<32>).map_or_else(Vec::new, Vec::from));

        let event = seal(&message, &from.secret, peer.as_ref(), created_at, &mut rng).unwrap();

        let mut ours: Value = serde_json::from_str(&event.as_json()).unwrap();
        let mut recorded = case["event"].clone();
        for event in [&mut ours, &mut recorded] {
            event.as_object_mut().unwrap().remove("sig").unwrap();
        }
        assert_eq!(ours, recorded, "{name}");
        assert_eq!(event.id.to_bytes(), sha256(text(case, "eventIdPreimage").as_bytes()), "{name}");
        assert_eq!(event.verify(), Ok(()), "{name}");
    }
}

#[test]
fn recorded_events_verify_and_read_as_their_messages() {
    let vectors = crate::common::vectors("nostr");
    for case in list(&vectors, "events") {
        let name = text(case, "name");
        let from = actor(&vectors, text(case, "from"));
        // An advert is a broadcast: every key can read it.
        let reader = actor(&vectors, case["to"].as_str().unwrap_or("b"));
        let event = Event::from_json(case["event"].to_string()).unwrap();

        let (sender, message) = read(&event, &reader.secret).unwrap_or_else(|error| panic!("{name}: {error}"));

        assert_eq!(sender, from.public.x_only(), "{name}");
        assert_eq!(message.from, from.did, "{name}");
        assert_eq!(message.to_json(), text(case, "plaintext"), "{name}");
        assert_eq!(is_plain(&message.body), event.kind == Kind::TextNote, "{name}");
        if !is_plain(&message.body) {
            let third = SecretKey::from_bytes(&[9; 32]).unwrap();
            assert_eq!(read(&event, &third), Err(ReadError::Decrypt(DecryptError::Mac)), "{name}");
        }
    }
}

#[test]
fn payloads_encrypt_and_decrypt_as_recorded() {
    let vectors = crate::common::vectors("nostr");
    for case in list(&vectors, "nip44") {
        let (from, to) = (actor(&vectors, text(case, "from")), actor(&vectors, text(case, "to")));
        let there = ConversationKey::derive(&from.secret, &to.public.x_only()).unwrap();
        let back = ConversationKey::derive(&to.secret, &from.public.x_only()).unwrap();
        let recorded = ConversationKey::from_bytes(bytes(text(case, "conversationKey")));
        for key in [&there, &back, &recorded] {
            let mut rng = Recorded(bytes::<32>(text(case, "nonce")).to_vec());
            assert_eq!(key.encrypt(text(case, "plaintext"), &mut rng).unwrap(), text(case, "payload"));
            assert_eq!(key.decrypt(text(case, "payload")).unwrap(), text(case, "plaintext"));
        }
    }
}

#[test]
fn recorded_rejections_give_the_recorded_reason() {
    let vectors = crate::common::vectors("nostr");
    for case in list(&vectors, "nip44Rejections") {
        let key = ConversationKey::from_bytes(bytes(text(case, "conversationKey")));
        let expected = match text(case, "name") {
            "mac flipped" | "ciphertext flipped" | "nonce flipped" => vec![DecryptError::Mac],
            // The error depends on the place of the truncation.
            "truncated" => vec![DecryptError::Mac, DecryptError::Base64],
            "version 1" => vec![DecryptError::Version(1)],
            "version 3" => vec![DecryptError::Version(3)],
            "hash prefix" | "not base64" => vec![DecryptError::Base64],
            "empty" => vec![DecryptError::TooShort],
            other => panic!("no expectation for {other}"),
        };
        let refused = key.decrypt(text(case, "payload")).unwrap_err();
        assert!(expected.contains(&refused), "{}: {refused}", text(case, "name"));
    }
}

#[test]
fn invalid_payloads_without_vectors_are_refused() {
    let key = ConversationKey::from_bytes([3; 32]);
    let huge = "A".repeat(1 << 20);
    assert_eq!(key.decrypt(&huge), Err(DecryptError::TooLong));
    assert_eq!(key.decrypt(&BASE64.encode(&[2; 40])), Err(DecryptError::TooShort));
    assert_eq!(key.encrypt("", &mut rng()), Err(SealError::Empty));
}

fn declined(from: &SecretKey, to: &SecretKey) -> Message {
    let did = |key: &SecretKey| Did::from_key(key.public_key(), Network::Regtest);
    let cohort_id = CohortId::parse("c").unwrap();
    Message::new(did(from), Some(did(to)), SubmitNonIncluded { cohort_id })
}

fn keys() -> (SecretKey, SecretKey) {
    (SecretKey::from_bytes(&[1; 32]).unwrap(), SecretKey::from_bytes(&[2; 32]).unwrap())
}

#[test]
fn a_forged_event_is_refused_before_its_content_is_read() {
    let (from, to) = keys();
    let peer = Peer::new(&from, to.public_key().x_only()).unwrap();
    let event = seal(&declined(&from, &to), &from, Some(&peer), Timestamp::from_secs(1), &mut rng()).unwrap();
    assert!(read(&event, &to).is_ok());

    let mut content = event.clone();
    content.content = "not even base64".to_owned();
    assert_eq!(read(&content, &to), Err(ReadError::Id), "the id is the hash of the content");

    let mut tags = event.clone();
    tags.tags = Tags::from_list(event.tags.iter().rev().cloned().collect());
    assert_eq!(read(&tags, &to), Err(ReadError::Id), "and of the tags in their order");

    let mut kind = event.clone();
    kind.kind = Kind::from_u16(7);
    assert_eq!(read(&kind, &to), Err(ReadError::Id), "the kind is covered by the id too");

    // The id is correct, the signature is that of another event.
    let mut signature =
        seal(&declined(&from, &to), &from, Some(&peer), Timestamp::from_secs(2), &mut rng()).unwrap();
    signature.sig = event.sig;
    assert_eq!(read(&signature, &to), Err(ReadError::Signature));

    // Only the key is wrong.
    let mut author = event.clone();
    author.pubkey = nostr::PublicKey::from_byte_array(to.public_key().x_only().to_bytes());
    author.id =
        nostr::EventId::new(&author.pubkey, &author.created_at, &author.kind, &author.tags, &author.content);
    assert_eq!(read(&author, &to), Err(ReadError::Signature));
}

/// An event with any kind and content, correctly signed.
fn signed(key: &SecretKey, kind: u16, content: &str) -> Event {
    let pubkey = nostr::PublicKey::from_byte_array(key.public_key().x_only().to_bytes());
    let (created_at, kind) = (nostr::Timestamp::from_secs(1), Kind::from_u16(kind));
    let tags = Tags::from_list(vec![Tag::parse(["t", "x"]).unwrap()]);
    let id = nostr::EventId::new(&pubkey, &created_at, &kind, &tags, content);
    let signature = key.sign(id.as_bytes(), &mut rng()).to_bytes();
    let signature = nostr::secp256k1::schnorr::Signature::from_slice(&signature).unwrap();
    Event::new(id, pubkey, created_at, kind, tags, content, signature)
}

#[test]
fn signed_events_that_are_not_messages_are_refused() {
    let (from, to) = keys();
    let message = declined(&from, &to);
    let key = ConversationKey::derive(&from, &to.public_key().x_only()).unwrap();

    assert_eq!(read(&signed(&from, 7, "+"), &to), Err(ReadError::Kind(7)));
    assert_eq!(read(&signed(&from, 1059, "+"), &to), Err(ReadError::Decrypt(DecryptError::Base64)));
    // A confidential message in plain text is not accepted.
    let refused = read(&signed(&from, 1, &message.to_json()), &to).unwrap_err();
    assert!(
        matches!(refused, ReadError::WrongKind { kind: 1, ref claimed, .. } if **claimed == message.from),
        "{refused}"
    );

    // An ordinary note that mentions us.
    let refused = read(&signed(&from, 1, "hello"), &to).unwrap_err();
    assert!(matches!(refused, ReadError::Decode { claimed: None, .. }), "{refused}");

    let later = message.to_json().replace("\"version\":1", "\"version\":2");
    let refused = read(&signed(&from, 1059, &key.encrypt(&later, &mut rng()).unwrap()), &to).unwrap_err();
    let ReadError::Decode { error, claimed } = refused else { panic!("{refused}") };
    assert_eq!((error, claimed), (DecodeError::Version("2".to_owned()), Some(Box::new(message.from))));
}

#[test]
fn messages_longer_than_nip44_allows_are_refused() {
    let (from, to) = keys();
    let key = ConversationKey::derive(&from, &to.public_key().x_only()).unwrap();
    let longest = "x".repeat(MAX_PLAINTEXT);
    let payload = key.encrypt(&longest, &mut rng()).unwrap();
    assert_eq!(key.decrypt(&payload).unwrap(), longest);
    let refused = key.encrypt(&"x".repeat(MAX_PLAINTEXT + 1), &mut rng());
    assert_eq!(refused, Err(SealError::TooLong { bytes: MAX_PLAINTEXT + 1 }));

    let refused = seal(&declined(&from, &to), &from, None, Timestamp::from_secs(1), &mut rng());
    assert_eq!(refused.unwrap_err(), SealError::NoRecipient);
}

/// The distribution of a CAS announcement of `members` KEY DIDs.
fn distribution(from: &SecretKey, members: usize) -> Message {
    let did = |number: u64| {
        let mut secret = [1; 32];
        secret[..8].copy_from_slice(&number.to_be_bytes());
        Did::from_key(SecretKey::from_bytes(&secret).unwrap().public_key(), Network::Regtest)
    };
    let announcement: CasAnnouncement = (1..=members as u64)
        .map(|number| (did(number).to_string(), DocumentHash::from_bytes([0xff; 32])))
        .collect();
    let body = DistributeAggregatedData::new(
        CohortId::parse(&"c".repeat(64)).unwrap(),
        BeaconType::cas(),
        SignalBytes::from_bytes([1; 32]),
        &BeaconData::Cas(announcement),
    );
    Message::new(Did::from_key(from.public_key(), Network::Regtest), Some(did(1)), body)
}

#[test]
fn one_message_bounds_cas_cohorts_but_not_smt_cohorts() {
    let (from, to) = keys();
    let most = max_members(&BeaconType::cas()).unwrap();
    let peer = Peer::new(&from, to.public_key().x_only()).unwrap();
    let sealed =
        |members| seal(&distribution(&from, members), &from, Some(&peer), Timestamp::from_secs(1), &mut rng());
    assert!(sealed(most).is_ok(), "{most} members fit");
    assert!(matches!(sealed(most + 1), Err(SealError::TooLong { .. })), "{} do not", most + 1);
    assert_eq!(max_members(&BeaconType::smt()), None);
}

#[test]
fn a_relays_limits_bound_the_cohorts_that_it_can_carry() {
    let (from, to) = keys();
    let peer = Peer::new(&from, to.public_key().x_only()).unwrap();
    let size = |members| {
        let message = distribution(&from, members);
        let event = seal(&message, &from, Some(&peer), Timestamp::from_secs(1_700_000_000), &mut rng()).unwrap();
        (event.as_json().len() + r#"["EVENT",]"#.len(), event.content.len())
    };
    for limit in [3_000, 8_192, 16_384, 65_536] {
        let bytes = EventLimits { message_bytes: Some(limit), content_chars: None };
        let most = bytes.max_members(&BeaconType::cas()).unwrap();
        assert!(most > 0 && size(most).0 <= limit, "{most} members in {limit} bytes");
        // NIP-44 pads in steps, and the reserve for the rest of the event is small.
        assert!(size(most + most / 8 + 8).0 > limit, "{most} members in {limit} bytes");
        let chars = EventLimits { message_bytes: None, content_chars: Some(limit) };
        let most = chars.max_members(&BeaconType::cas()).unwrap();
        assert!(most > 0 && size(most).1 <= limit, "{most} members in {limit} characters");
    }
    let small = EventLimits { message_bytes: Some(1_000), content_chars: None };
    assert_eq!(small.max_members(&BeaconType::smt()), Some(0), "not even an update");
    let usual = EventLimits { message_bytes: Some(65_536), content_chars: None };
    // One message holds the keys of all members.
    assert!((500..800).contains(&usual.max_members(&BeaconType::smt()).unwrap()));
    assert_eq!(EventLimits::default().max_members(&BeaconType::smt()), None);
    assert_eq!(EventLimits::default().max_members(&BeaconType::cas()), max_members(&BeaconType::cas()));
}

proptest! {
    #[test]
    fn sealed_messages_round_trip(
        secrets in any::<[[u8; 32]; 2]>(),
        seed in any::<u64>(),
        at in 0..4_000_000_000_u64,
        cohort in "[!-~]{1,64}",
    ) {
        let keys = secrets.map(|secret| SecretKey::from_bytes(&secret));
        let [Ok(from), Ok(to)] = keys else { return Ok(()) };
        let mut message = declined(&from, &to);
        message.body = SubmitNonIncluded { cohort_id: CohortId::parse(&cohort).unwrap() }.into();
        let peer = Peer::new(&from, to.public_key().x_only()).unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let event = seal(&message, &from, Some(&peer), Timestamp::from_secs(at), &mut rng).unwrap();
        // In the form in which it is sent.
        let event = Event::from_json(event.as_json()).unwrap();
        let (sender, read) = read(&event, &to).unwrap();
        prop_assert_eq!(sender, from.public_key().x_only());
        prop_assert_eq!(read, message);
        prop_assert_eq!(event.created_at.as_secs(), at);
    }
}

#[test]
fn a_retraction_names_the_adverts_and_has_their_key() {
    let secret = SecretKey::from_bytes(&[3; 32]).unwrap();
    let adverts = [1, 2].map(|byte| nostr::EventId::from_byte_array([byte; 32]));
    let event = retract(&adverts, &secret, Timestamp::from_secs(1_750_000_000), &mut rng());
    let sender = VerifiedEvent::verify(&event).unwrap().sender();
    assert_eq!(sender, secret.public_key().x_only());
    assert_eq!((event.kind, event.content.as_str()), (Kind::EventDeletion, ""));
    let tags: Vec<_> = event.tags.iter().map(|tag| tag.as_slice().to_vec()).collect();
    assert_eq!(tags, [["e", &"01".repeat(32)], ["e", &"02".repeat(32)], ["k", "1"]]);
    // It is not read as a message.
    let read = VerifiedEvent::verify(&event).unwrap().message(|_| Err(()));
    assert_eq!(read, Err(ReadError::Kind(5)));
}
