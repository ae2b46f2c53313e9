//! All messages of members in a round, over all their runs; and whether a nonce was used twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use btcr2_aggregation::{
    actors::transport::{Delivery, Outbound},
    protocol::{did::Did, id::SessionId, message::Body},
};

use super::tap::Tap;

/// The contributions of one member in one signing session.
#[derive(Default)]
struct Contributions {
    nonces: BTreeSet<Vec<u8>>,
    signatures: BTreeSet<Vec<u8>>,
}

/// The nonces and partial signatures of all members.
#[derive(Default)]
pub struct Transcript(Mutex<BTreeMap<(Did, SessionId), Contributions>>);

impl Transcript {
    fn note(&self, by: &Did, body: &Body) {
        let mut sent = self.0.lock().unwrap();
        let session = |session: &SessionId| (by.clone(), session.clone());
        match body {
            Body::NonceContribution(nonce) => {
                let sent = sent.entry(session(&nonce.session_id)).or_default();
                sent.nonces.insert(nonce.nonce_contribution.0.to_vec());
            }
            Body::SignatureAuthorization(signature) => {
                let sent = sent.entry(session(&signature.session_id)).or_default();
                sent.signatures.insert(signature.partial_signature.0.to_vec());
            }
            _ => {}
        }
    }

    /// No nonce has two signatures, no session two nonces of a member that signed it, and no nonce comes again elsewhere.
    pub fn check(&self) {
        let mut nonces = BTreeSet::new();
        for ((did, session), sent) in &*self.0.lock().unwrap() {
            assert!(sent.signatures.len() <= 1, "{did} signed twice in session {session}");
            assert!(
                sent.signatures.is_empty() || sent.nonces.len() == 1,
                "{did}: two nonces, one signed: {session}"
            );
            for nonce in &sent.nonces {
                assert!(nonces.insert(nonce.clone()), "{did} sent a nonce again in session {session}");
            }
        }
    }

    /// How many nonces were sent.
    pub fn nonces(&self) -> usize {
        self.0.lock().unwrap().values().map(|sent| sent.nonces.len()).sum()
    }
}

impl Tap for Transcript {
    fn given(&self, by: &Did, outbound: &Outbound) {
        if let Outbound::Direct { body, .. } = outbound {
            self.note(by, body);
        }
    }

    fn arrived(&self, delivery: &Delivery) {
        match delivery {
            Delivery::Message(received) => self.note(&received.from, &received.body),
            Delivery::Stored { message, .. } => self.note(&message.from, &message.body),
            _ => {}
        }
    }
}
