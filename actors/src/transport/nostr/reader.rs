//! Classifies a received event: new or a copy, a message or not, and its sender.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    did::Did,
    identity::Identity,
    key::{KeyError, PublicKey, XOnlyKey},
    message::{Body, DecodeError, Message},
    nostr::{Peer, ReadError, VerifiedEvent},
    remembered::Remembered,
    time::Timestamp,
};
use lru::LruCache;
use nostr_sdk::{Event, JsonUtil};

use super::{Introduced, config::NostrConfig, relay::Id};
use crate::transport::{
    Delivery, Evidence, Received,
    external::{ExternalKeys, at_least_one, key_in_opt_in},
};

/// The result of reading an event.
#[derive(Debug)]
pub(super) enum Read {
    /// It was read before, or is one of our own.
    Copy,
    /// It has no valid signature: its author is unknown.
    Malformed(String),
    /// It does not concern us: an ordinary note, or content that we cannot decrypt.
    Foreign(String),
    /// A delivery for the identity.
    Delivery(Delivery),
}

/// Reads events for one identity.
pub(super) struct Reader {
    identity: Identity,
    own: XOnlyKey,
    /// A message that was sent before this time is old: that its cohort has ended is not a fault.
    started: Timestamp,
    adverts_since: Option<Timestamp>,
    seen: Remembered<Id>,
    introduced: Introduced,
    external: ExternalKeys,
    /// The DIDs of the keys that have signed messages, to name the author of a forgery that has also sent a valid
    /// message.
    signers: LruCache<XOnlyKey, Did>,
    peers: LruCache<XOnlyKey, Arc<Peer>>,
}

/// The suffix of the type of nonce contributions.
const NONCE_TYPE: &str = "sign/nonce_contribution";

impl Reader {
    pub(super) fn new(
        identity: Identity,
        config: &NostrConfig,
        introduced: Introduced,
        started: Timestamp,
        adverts_since: Option<Timestamp>,
    ) -> Self {
        Self {
            own: identity.public_key().x_only(),
            identity,
            started,
            adverts_since,
            seen: Remembered::new(config.seen_events),
            introduced,
            external: ExternalKeys::new(config.external_keys),
            signers: LruCache::new(at_least_one(config.external_keys)),
            peers: LruCache::new(at_least_one(config.conversations)),
        }
    }

    /// The keys for writing to `did`, if its key is known. `is_member` if the message makes it a member, from now on.
    pub(super) fn peer(&mut self, did: &Did, is_member: bool) -> Option<Arc<Peer>> {
        if is_member && self.external.is_outsider(did) {
            self.external.remember_member(did);
        }
        let key = self.key_of(did)?.x_only();
        self.peer_with(&key).ok()
    }

    fn key_of(&self, did: &Did) -> Option<PublicKey> {
        self.external.key_of(did).or_else(|| self.introduced.key_of(did))
    }

    fn peer_with(&mut self, key: &XOnlyKey) -> Result<Arc<Peer>, KeyError> {
        if let Some(peer) = self.peers.get(key) {
            return Ok(Arc::clone(peer));
        }
        let peer = Arc::new(Peer::new(self.identity.secret_key(), *key)?);
        self.peers.put(*key, Arc::clone(&peer));
        Ok(peer)
    }

    pub(super) fn read(&mut self, event: &Event) -> Read {
        // Only events with a valid signature are remembered, so no peer can suppress one by sending a bad copy first.
        if self.seen.contains(&event.id) {
            return Read::Copy;
        }
        if event.pubkey.to_bytes() == self.own.to_bytes() {
            return self.own_nonce(event).map_or(Read::Copy, |message| Read::Delivery(Delivery::Own(message)));
        }
        let verified = match VerifiedEvent::verify(event) {
            Ok(verified) => verified,
            Err(error) => return Read::Malformed(error.to_string()),
        };
        let sender = verified.sender();
        let message = match verified.message(|key| self.peer_with(key).map(|peer| peer.conversation.clone())) {
            Ok(message) => message,
            Err(error) => {
                self.seen.insert(event.id);
                return self.unreadable(sender, error);
            }
        };
        // A sender whose key is not known yet may be introduced, and the event received again.
        if self.key_of(&message.from).is_some() || matches!(&*message.body, Body::CohortOptIn(_)) {
            self.seen.insert(event.id);
        }
        if !self.authenticates(sender, &message) {
            let problem = format!("{} is not who signed the event", message.from);
            let error = DecodeError::Field { field: "from".to_owned(), problem };
            // Never charged to the DID that the message names, but to the signer, if its DID is known.
            return Read::Delivery(match self.signers.peek(&sender).cloned() {
                Some(from) => Delivery::Undecodable { from, error },
                None => Delivery::Unverified { reason: error.to_string() },
            });
        }
        self.signers.put(sender, message.from.clone());
        let is_advert = message.body.is_advert();
        let ours = message.to.as_ref().map_or(is_advert, |to| to == self.identity.did());
        if !ours {
            let problem = "the message is for another recipient".to_owned();
            let error = DecodeError::Field { field: "to".to_owned(), problem };
            return Read::Delivery(Delivery::Undecodable { from: message.from, error });
        }
        let sent = verified.created_at();
        if is_advert && self.adverts_since.is_some_and(|since| sent.as_secs() < since.as_secs()) {
            return Read::Foreign("an advert of the past".to_owned());
        }
        let live = is_advert || sent.as_secs() >= self.started.as_secs();
        // Adverts need no evidence.
        let evidence = (!is_advert).then(|| Evidence::NostrEvent(event.as_json().into()));
        let message = Received { evidence, ..message.into() };
        Read::Delivery(if live { Delivery::Message(message) } else { Delivery::Stored { message, said: sent } })
    }

    /// A nonce that we sent. A relay has it even if our state directory is an older one, restored from a backup; no
    /// other message of our own needs to be read again.
    fn own_nonce(&mut self, event: &Event) -> Option<Message> {
        let mut tags = event.tags.iter().filter_map(|tag| match tag.as_slice() {
            [name, value, ..] => Some((name.as_str(), value.as_str())),
            _ => None,
        });
        if !tags.clone().any(|(name, value)| name == "t" && value.ends_with(NONCE_TYPE)) {
            return None;
        }
        let own = self.own.to_string();
        let recipient: XOnlyKey = tags.find(|(name, key)| *name == "p" && *key != own)?.1.parse().ok()?;
        let verified = VerifiedEvent::verify(event).ok()?;
        self.seen.insert(event.id);
        let message =
            verified.message(|_| self.peer_with(&recipient).map(|peer| peer.conversation.clone())).ok()?;
        (message.from == *self.identity.did()).then_some(message)
    }

    /// Whether the key belongs to the message's sender: it is in its DID, or its opt-in proves it.
    fn authenticates(&mut self, sender: XOnlyKey, message: &Message) -> bool {
        let from = &message.from;
        if let Some(key) = self.key_of(from) {
            return key.x_only() == sender;
        }
        match key_in_opt_in(from, message) {
            Some(key) if key.x_only() == sender => {
                self.external.remember_outsider(from, key);
                true
            }
            _ => false,
        }
    }

    /// A signed event that is not a message: the signer's fault, if its DID is known.
    fn unreadable(&self, sender: XOnlyKey, error: ReadError) -> Read {
        let problem = error.to_string();
        let (claimed, error) = match error {
            ReadError::Decode { error, claimed } => (claimed, error),
            ReadError::WrongKind { claimed, .. } => {
                (Some(claimed), DecodeError::Field { field: "type".to_owned(), problem })
            }
            // Content that we cannot decrypt may not be meant for us: gift wraps also use kind 1059.
            _ => return Read::Foreign(problem),
        };
        let proven =
            claimed.map(|did| *did).filter(|did| self.key_of(did).is_some_and(|key| key.x_only() == sender));
        match proven.or_else(|| self.signers.peek(&sender).cloned()) {
            Some(from) => Read::Delivery(Delivery::Undecodable { from, error }),
            None => Read::Foreign(error.to_string()),
        }
    }
}

/// The position of an event's message in a round, by its type.
pub(super) fn rank(event: &Event) -> usize {
    const ROUND: [&str; 14] = [
        "cohort_advert",
        "cohort_opt_in",
        "cohort_opt_in_accept",
        "cohort_ready",
        "submit_update",
        "submit_nonincluded",
        "distribute_aggregated_data",
        "validation_ack",
        "authorization_request",
        "nonce_contribution",
        "aggregated_nonce",
        "signature_authorization",
        "fallback_authorization_request",
        "fallback_signature",
    ];
    let kind = event.tags.iter().find(|tag| tag.as_slice().first().is_some_and(|name| name == "t"));
    let kind = kind.and_then(|tag| tag.content()).and_then(|uri| uri.rsplit('/').next());
    kind.and_then(|kind| ROUND.iter().position(|known| *known == kind)).unwrap_or(ROUND.len())
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::message::{Bytes, SharedBody};
    use btcr2_aggregation_protocol::{
        document,
        id::{CohortId, SessionId},
        key::SecretKey,
        message::{keygen::CohortOptIn, sign::NonceContribution, update::SubmitNonIncluded},
        network::Network,
        nostr::seal,
    };

    use super::*;
    use crate::runtime::Randomness;

    const NOW: Timestamp = Timestamp::from_secs(1_750_000_000);

    fn secret(byte: u8) -> SecretKey {
        SecretKey::from_bytes(&[byte; 32]).expect("a key")
    }

    fn key_did(byte: u8) -> Identity {
        Identity::from_key(secret(byte), Network::Regtest)
    }

    fn external(byte: u8) -> Identity {
        let genesis = document::genesis_document(&secret(byte).public_key(), Network::Regtest);
        Identity::from_genesis(secret(byte), genesis, Network::Regtest).expect("the document names the key")
    }

    fn reader(config: &NostrConfig) -> Reader {
        Reader::new(key_did(1), config, Introduced::default(), NOW, None)
    }

    fn config() -> NostrConfig {
        NostrConfig::new([])
    }

    fn declined() -> SharedBody {
        Body::from(SubmitNonIncluded { cohort_id: CohortId::parse("c").expect("a name") }).into()
    }

    /// The event that `signer` publishes for the reader in the name of `from`.
    fn event(signer: &Identity, from: &Identity, body: SharedBody, at: Timestamp) -> Event {
        let message = Message::new(from.did().clone(), Some(key_did(1).did().clone()), body);
        let peer = Peer::new(signer.secret_key(), key_did(1).public_key().x_only()).expect("keys");
        let mut rng = Randomness::Seeded([7; 32]).for_actor("events");
        seal(&message, signer.secret_key(), Some(&peer), at, &mut rng).expect("sealed")
    }

    fn opt_in(identity: &Identity) -> SharedBody {
        let key = Bytes(identity.public_key().to_bytes());
        let cohort_id = CohortId::parse("c").expect("a name");
        let genesis_document = identity.genesis_document().cloned();
        Body::from(CohortOptIn {
            cohort_id,
            participant_pk: key,
            communication_pk: key,
            genesis_document,
            invite: None,
        })
        .into()
    }

    fn is_message(read: &Read, from: &Identity) -> bool {
        matches!(read, Read::Delivery(Delivery::Message(message)) if message.from == *from.did())
    }

    #[test]
    fn a_bad_copy_does_not_suppress_the_good_one() {
        let (mut reader, sender) = (reader(&config()), key_did(2));
        let good = event(&sender, &sender, declined(), NOW);
        let mut bad = good.clone();
        bad.sig = event(&sender, &sender, declined(), NOW + std::time::Duration::from_secs(1)).sig;
        assert!(matches!(reader.read(&bad), Read::Malformed(_)));
        let first = reader.read(&good);
        assert!(is_message(&first, &sender), "{first:?}");
        for copy in [&good, &bad] {
            assert!(matches!(reader.read(copy), Read::Copy), "the second time it is a copy");
        }
    }

    #[test]
    fn memory_is_bounded_and_forgotten_events_are_read_again() {
        let few = NostrConfig { seen_events: 1, conversations: 1, external_keys: 1, ..config() };
        let mut reader = reader(&few);
        for _ in 0..2 {
            for byte in 2..6 {
                let sender = key_did(byte);
                let read = reader.read(&event(&sender, &sender, declined(), NOW));
                assert!(is_message(&read, &sender), "{read:?}");
            }
        }
        assert_eq!(reader.peers.len(), 1);
        assert_eq!(reader.signers.len(), 1);
    }

    #[test]
    fn our_own_events_are_not_read() {
        let (own, service) = (key_did(1), key_did(2));
        assert!(matches!(reader(&config()).read(&event(&own, &own, declined(), NOW)), Read::Copy));
        let nonce = NonceContribution {
            cohort_id: CohortId::parse("cohort").unwrap(),
            session_id: SessionId::parse("session").unwrap(),
            nonce_contribution: Bytes([2; 66]),
        };
        // Except for sent nonces, which our journal may not have.
        let message = Message::new(own.did().clone(), Some(service.did().clone()), nonce);
        let peer = Peer::new(own.secret_key(), service.public_key().x_only()).expect("keys");
        let mut rng = Randomness::Seeded([7; 32]).for_actor("events");
        let sent = seal(&message, own.secret_key(), Some(&peer), NOW, &mut rng).expect("sealed");
        let mut reader = reader(&config());
        let read = reader.read(&sent);
        assert!(matches!(&read, Read::Delivery(Delivery::Own(message)) if message.from == *own.did()), "{read:?}");
        assert!(matches!(reader.read(&sent), Read::Copy));
    }

    #[test]
    fn only_its_own_opt_in_proves_the_key_of_an_external_did() {
        let (mut reader, member, thief) = (reader(&config()), external(2), key_did(3));
        let unknown = reader.read(&event(&member, &member, declined(), NOW));
        assert!(matches!(unknown, Read::Delivery(Delivery::Unverified { .. })), "{unknown:?}");
        assert!(reader.peer(member.did(), true).is_none());

        // Another member's event with its opt-in proves nothing.
        let stolen = reader.read(&event(&thief, &member, opt_in(&member), NOW));
        assert!(matches!(stolen, Read::Delivery(Delivery::Unverified { .. })), "{stolen:?}");
        assert!(reader.peer(member.did(), true).is_none());

        let joined = reader.read(&event(&member, &member, opt_in(&member), NOW));
        assert!(is_message(&joined, &member), "{joined:?}");
        assert!(reader.peer(member.did(), true).is_some());
        let later = reader.read(&event(&member, &member, declined(), NOW + std::time::Duration::from_secs(9)));
        assert!(is_message(&later, &member), "{later:?}");
        let forged = reader.read(&event(&thief, &member, declined(), NOW));
        assert!(matches!(forged, Read::Delivery(Delivery::Unverified { .. })), "{forged:?}");
    }

    #[test]
    fn a_late_introduction_applies_to_all_connections() {
        let (introduced, member) = (Introduced::default(), external(2));
        let connect = || Reader::new(key_did(1), &config(), introduced.clone(), NOW, None);
        let mut reader = connect();
        let event = event(&member, &member, declined(), NOW);
        assert!(matches!(reader.read(&event), Read::Delivery(Delivery::Unverified { .. })));
        introduced.insert(member.did(), member.public_key());
        for reader in [&mut reader, &mut connect()] {
            let read = reader.read(&event);
            assert!(is_message(&read, &member), "{read:?}");
            assert!(matches!(reader.read(&event), Read::Copy));
            assert!(reader.peer(member.did(), true).is_some());
        }
    }

    #[test]
    fn a_reply_about_an_unknown_cohort_makes_no_member() {
        let few = NostrConfig { external_keys: 1, ..config() };
        let mut reader = reader(&few);
        let (outsider, member, other) = (external(2), external(3), external(4));
        for (identity, is_member) in [(&member, true), (&outsider, false), (&other, false)] {
            reader.read(&event(identity, identity, opt_in(identity), NOW));
            assert!(reader.peer(identity.did(), is_member).is_some());
        }
        assert!(reader.peer(outsider.did(), false).is_none(), "evicted by other outsiders");
        assert!(reader.peer(member.did(), false).is_some());
    }

    #[test]
    fn a_message_from_before_the_connection_is_marked_stored() {
        let (mut reader, sender) = (reader(&config()), key_did(2));
        let before = NOW - std::time::Duration::from_secs(1);
        let old = reader.read(&event(&sender, &sender, declined(), before));
        assert!(matches!(old, Read::Delivery(Delivery::Stored { said, .. }) if said == before), "{old:?}");
        let new = reader.read(&event(&sender, &sender, declined(), NOW));
        assert!(is_message(&new, &sender), "{new:?}");
    }

    #[test]
    fn a_message_has_the_event_that_proves_it_as_evidence() {
        let (mut reader, sender) = (reader(&config()), key_did(2));
        let event = event(&sender, &sender, declined(), NOW);
        let Read::Delivery(Delivery::Message(received)) = reader.read(&event) else { panic!("a message") };
        let Some(Evidence::NostrEvent(json)) = &received.evidence else { panic!("{received:?}") };
        // Verified elsewhere, with nothing else: that key has signed it, and every party that can decrypt it reads the
        // same message.
        let shown = Event::from_json(&**json).expect("an event");
        let verified = VerifiedEvent::verify(&shown).expect("signed");
        assert_eq!(verified.sender(), sender.public_key().x_only());
        let ours = Peer::new(key_did(1).secret_key(), sender.public_key().x_only()).expect("keys");
        let message = verified.message(|_| Ok::<_, KeyError>(ours.conversation.clone())).expect("readable");
        assert_eq!(message, received.message);
    }
}
