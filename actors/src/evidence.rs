//! The messages that members signed, stored while their cohort runs: the first message of each member for a slot, and
//! the first that differs. In memory only: messages from before a restart are lost, so the evidence of a fault that is
//! found later may be incomplete.

use std::collections::BTreeMap;

use btcr2_aggregation_protocol::{
    cohort::standing::message::StandingMessage, did::Did, error::Slot, message::Body,
};

use crate::transport::{Evidence, Received};

/// The signed messages of one cohort, at most two for each member and slot.
#[derive(Default)]
pub(crate) struct EvidenceBook(BTreeMap<(Did, Slot), Signed>);

struct Signed {
    first: Evidence,
    other: Option<Evidence>,
}

impl EvidenceBook {
    /// Stores the evidence of `received`, if it fills a slot. Call it for members only: the cohort bounds their number.
    pub(crate) fn record(&mut self, received: &Received) {
        let (Some(slot), Some(evidence)) = (slot_of(&received.body), &received.evidence) else { return };
        self.0
            .entry((received.from.clone(), slot))
            .and_modify(|signed| {
                // A third message must not replace the second: it could equal the first.
                if signed.first != *evidence && signed.other.is_none() {
                    signed.other = Some(evidence.clone());
                }
            })
            .or_insert_with(|| Signed { first: evidence.clone(), other: None });
    }

    /// The messages that `did` signed for `slot`.
    pub(crate) fn of(&self, did: &Did, slot: Slot) -> Vec<Evidence> {
        let signed = self.0.get(&(did.clone(), slot));
        signed.map_or_else(Vec::new, |signed| [&signed.first].into_iter().chain(&signed.other).cloned().collect())
    }
}

fn slot_of(body: &Body) -> Option<Slot> {
    Some(match body {
        Body::SubmitUpdate(_) | Body::SubmitNonIncluded(_) => Slot::Update,
        Body::ValidationAck(_) => Slot::Validation,
        Body::NonceContribution(_) => Slot::Nonce,
        Body::SignatureAuthorization(_) => Slot::PartialSignature,
        Body::FallbackSignature(_) => Slot::FallbackSignature,
        Body::Standing(standing) => match &**standing {
            // The last part has the signature of the whole response.
            StandingMessage::ResponsePart(part) if part.signature.is_some() => Slot::Update,
            StandingMessage::Confirmation(_) => Slot::PartialSignature,
            _ => return None,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::{
        id::CohortId,
        identity::Identity,
        key::SecretKey,
        message::{Message, update::SubmitNonIncluded},
        network::Network,
    };

    use super::*;

    #[test]
    fn the_first_two_differing_messages_remain_as_evidence() {
        let key = SecretKey::from_bytes(&[1; 32]).expect("a key");
        let did = Identity::from_key(key, Network::Regtest).did().clone();
        let mut book = EvidenceBook::default();
        let evidence = |text: &str| Evidence::Envelope(text.into());
        for text in ["a", "b", "a", "c"] {
            let body = SubmitNonIncluded { cohort_id: CohortId::parse("c").expect("a name") };
            let message = Message::new(did.clone(), None, body);
            book.record(&Received { evidence: Some(evidence(text)), ..message.into() });
        }
        assert_eq!(book.of(&did, Slot::Update), [evidence("a"), evidence("b")]);
    }
}
