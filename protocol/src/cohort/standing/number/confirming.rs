//! From the board to the signed transaction.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{FeeRate, Transaction, TxOut};
use musig2::{AggNonce, PartialSignature, PubNonce};

use super::{Confirmed, Confirming, Decided, Number, NumberEffect, NumberEnd, NumberEvent, Phase, Why};
use crate::{
    cohort::standing::{
        message::{Confirmation, ConfirmationRequest, StandingMessage},
        opportunity::OpportunityKind,
        transaction::{
            Destinations, Mode, build_announcement, build_refresh, sighashes, with_fallback_signatures,
            with_key_signatures,
        },
    },
    did::Did,
    error::{Reject, RejectCode},
    key::{PublicKey, Signature},
    message::Bytes,
    signing::partial::PartialVerifier,
    time::Timestamp,
};

impl Confirming {
    fn has_answered(&self, seat: &PublicKey) -> bool {
        self.partials.contains_key(seat) || self.fallback.contains_key(seat) || self.refused.contains_key(seat)
    }

    pub(super) fn awaited(&self) -> Vec<PublicKey> {
        let seats = self.board.responses().iter().map(|response| response.seat);
        seats.filter(|seat| !self.has_answered(seat)).collect()
    }

    /// The end at the deadline.
    pub(super) fn lapsed(&self) -> NumberEnd {
        NumberEnd::failed(Why::Unconfirmed, self.awaited(), self.refused.clone())
    }

    /// The aggregate nonce of an input.
    fn nonce_of(&self, seat: &PublicKey, input: usize) -> Option<Bytes<66>> {
        self.board.response(seat)?.nonce_contributions.get(input).copied()
    }
}

impl Number {
    pub(super) fn ask_price(&self) -> Vec<NumberEffect> {
        let Phase::Pricing { board, mode, .. } = &self.phase else { return Vec::new() };
        let announces = self.task.opportunity.kind.announces();
        vec![
            NumberEffect::StoreBoard(Arc::clone(board)),
            NumberEffect::AskPrice { mode: *mode, signal: announces.then(|| board.signal()) },
        ]
    }

    pub(super) fn on_priced(&self, now: Timestamp, rate: FeeRate, operator: Option<&TxOut>) -> Decided {
        let Phase::Pricing { board, mode, .. } = &self.phase else {
            return Err(Reject::out_of_phase("price", "not pricing"));
        };
        let task = &self.task;
        let rate = rate.min(FeeRate::from_sat_per_vb_u32(task.terms.max_fee_rate));
        let destinations = Destinations { change: task.change.clone(), operator: operator.cloned() };
        let coins = task.coins();
        let built = match (task.opportunity.kind, coins.as_slice()) {
            (OpportunityKind::Announcement | OpportunityKind::Move, [coin]) => {
                build_announcement(&task.output, coin, &board.signal(), &destinations, *mode, rate)
            }
            (_, coins) => build_refresh(&task.output, coins, &destinations, *mode, rate),
        };
        let transaction = match built {
            Ok(transaction) => transaction,
            Err(error) => {
                let why = Why::Unfunded(error.to_string());
                return Ok(vec![NumberEvent::Ended {
                    at: now,
                    end: NumberEnd::failed(why, Vec::new(), BTreeMap::new()),
                }]);
            }
        };
        let aggregated = match mode {
            Mode::Fallback => Vec::new(),
            Mode::Key => (0..coins.len())
                .map(|input| {
                    let nonces = board.responses().iter().filter_map(|response| {
                        PubNonce::from_bytes(&response.nonce_contributions.get(input)?.0).ok()
                    });
                    Bytes(AggNonce::sum(nonces).into())
                })
                .collect(),
        };
        let until = now + std::time::Duration::from_secs(task.terms.confirm_seconds.into());
        Ok(vec![NumberEvent::RequestMade { at: now, until, transaction, aggregated }])
    }

    /// The request, to one seat or to all that have responded and not confirmed yet.
    pub(super) fn request(&self, only: Option<&PublicKey>) -> Vec<NumberEffect> {
        let Phase::Confirming(confirming) = &self.phase else { return Vec::new() };
        let request = ConfirmationRequest {
            cohort_id: self.task.roster.context().cohort_id.clone(),
            number: self.task.opportunity.number,
            board_hash: *confirming.board.hash(),
            mode: confirming.mode,
            pending_tx: confirming.transaction.clone(),
            confirm_by: confirming.until.as_secs(),
            aggregated_nonces: confirming.aggregated.clone(),
        };
        let seats = confirming.awaited().into_iter().filter(|seat| only.is_none_or(|only| only == seat));
        seats
            .filter_map(|seat| self.task.seats.get(&seat))
            .map(|to| NumberEffect::Send { to: to.clone(), message: StandingMessage::from(request.clone()) })
            .collect()
    }

    /// What a seat needs again that has come back, e.g. after a restart.
    pub fn send_again(&self, did: &Did) -> Vec<NumberEffect> {
        self.task.seat_of(did).map_or_else(Vec::new, |seat| self.request(Some(&seat)))
    }

    pub(super) fn on_confirmation(
        &self,
        now: Timestamp,
        seat: PublicKey,
        from: &Did,
        confirmation: &Confirmation,
    ) -> Decided {
        let reject = |code, detail: &str| Err(Reject::new(code, from, detail));
        let Phase::Confirming(confirming) = &self.phase else {
            // The first k signatures were enough, or the number has failed: a late one is harmless.
            return if matches!(self.phase, Phase::Ended { .. }) {
                Ok(Vec::new())
            } else {
                reject(RejectCode::WrongPhase, "no confirmation is awaited")
            };
        };
        if confirmation.number != self.task.opportunity.number
            || confirmation.board_hash != *confirming.board.hash()
        {
            return reject(RejectCode::WrongCohort, "a confirmation of another number or board");
        }
        if confirming.board.response(&seat).is_none() {
            return reject(RejectCode::NotAMember, "the seat has not responded to this number");
        }
        if confirming.has_answered(&seat) {
            return Ok(Vec::new());
        }
        let received = |confirmed| NumberEvent::ConfirmationReceived { at: now, seat, confirmed };
        match (&confirmation.partial_signatures, &confirmation.fallback_signatures, &confirmation.refusal) {
            (Some(partials), None, None) if confirming.mode == Mode::Key => {
                if !self.are_valid(confirming, &seat, partials) {
                    return reject(RejectCode::BadPartialSignature, "not valid for the seat's key and nonces");
                }
                let mut events = vec![received(Confirmed::Partials(partials.clone()))];
                if confirming.partials.len() + 1 == self.task.seats.len() {
                    let mut all = confirming.partials.clone();
                    all.insert(seat, partials.clone());
                    events.push(NumberEvent::Ended { at: now, end: self.by_key(confirming, &all) });
                }
                Ok(events)
            }
            (None, Some(signatures), None) if confirming.mode == Mode::Fallback => {
                let digests = self.digests(confirming);
                let valid = digests.len() == signatures.len()
                    && digests.iter().zip(signatures).all(|(digest, one)| seat.x_only().verify(digest, one));
                if !valid {
                    return reject(RejectCode::BadFallbackSignature, "not valid for the seat's key");
                }
                let mut events = vec![received(Confirmed::Fallback(signatures.clone()))];
                if confirming.fallback.len() + 1 == self.task.terms.spenders(self.task.seats.len()) {
                    let mut all = confirming.fallback.clone();
                    all.insert(seat, signatures.clone());
                    events.push(NumberEvent::Ended { at: now, end: self.by_fallback(confirming, &all) });
                }
                Ok(events)
            }
            (None, None, Some(reason)) => {
                let reason = crate::text::shown_within(reason, 200).into_owned();
                let mut events = vec![received(Confirmed::Refused(reason.clone()))];
                let mut refused = confirming.refused.clone();
                refused.insert(seat, reason.clone());
                let left = confirming.board.responses().len() - refused.len();
                let fails = match confirming.mode {
                    Mode::Key => true,
                    Mode::Fallback => left < self.task.terms.spenders(self.task.seats.len()),
                };
                if fails {
                    let lost = reason == Confirmation::NONCE_LOST;
                    let why = if lost { Why::NonceLost } else { Why::Refused };
                    events.push(NumberEvent::Ended { at: now, end: NumberEnd::failed(why, Vec::new(), refused) });
                }
                Ok(events)
            }
            _ => reject(RejectCode::Malformed, "signatures of the requested kind, or a refusal, expected"),
        }
    }

    fn digests(&self, confirming: &Confirming) -> Vec<[u8; 32]> {
        sighashes(&confirming.transaction, &self.task.output, &self.task.coins(), confirming.mode)
            .unwrap_or_default()
    }

    /// What verifies the partial signatures of each input; `None` for an input whose aggregate nonce is not valid.
    pub(super) fn verifiers(
        &self,
        transaction: &Transaction,
        mode: Mode,
        aggregated: &[Bytes<66>],
    ) -> Vec<Option<PartialVerifier>> {
        let digests = sighashes(transaction, &self.task.output, &self.task.coins(), mode).unwrap_or_default();
        let each = digests.into_iter().zip(aggregated);
        each.map(|(digest, aggregated)| PartialVerifier::new(&self.task.output, digest, aggregated)).collect()
    }

    fn are_valid(&self, confirming: &Confirming, seat: &PublicKey, partials: &[Bytes<32>]) -> bool {
        let each = confirming.verifiers.iter().zip(partials).enumerate();
        partials.len() == confirming.aggregated.len()
            && partials.len() == confirming.verifiers.len()
            && each.into_iter().all(|(input, (verifier, partial))| {
                let nonce = confirming.nonce_of(seat, input);
                partial.0 != [0; 32]
                    && verifier
                        .as_ref()
                        .zip(nonce)
                        .is_some_and(|(verifier, nonce)| verifier.verify(&self.task.output, seat, &nonce, partial))
            })
    }

    fn by_key(&self, confirming: &Confirming, partials: &BTreeMap<PublicKey, Vec<Bytes<32>>>) -> NumberEnd {
        let signature = |(input, (digest, aggregated)): (usize, ([u8; 32], &Bytes<66>))| {
            let nonce = AggNonce::from_bytes(&aggregated.0).ok()?;
            let of_input =
                partials.values().filter_map(|all| PartialSignature::from_slice(&all.get(input)?.0).ok());
            let signature: musig2::CompactSignature =
                musig2::aggregate_partial_signatures(self.task.output.musig2_context(), &nonce, of_input, digest)
                    .ok()?;
            let signature = Signature::from_bytes(&signature.serialize());
            // Verified again by the library whose rules the network applies.
            self.task.output.output_key().verify(&digest, &signature).then_some(signature)
        };
        let inputs = self.digests(confirming).into_iter().zip(&confirming.aggregated).enumerate();
        let signatures: Option<Vec<Signature>> = inputs.map(signature).collect();
        match signatures {
            Some(signatures) => self.signed(
                confirming,
                with_key_signatures(&confirming.transaction, &signatures),
                partials.keys().copied().collect(),
            ),
            None => NumberEnd::failed(Why::Unverified, Vec::new(), BTreeMap::new()),
        }
    }

    fn by_fallback(&self, confirming: &Confirming, all: &BTreeMap<PublicKey, Vec<Signature>>) -> NumberEnd {
        let signatures = all.iter().map(|(seat, signatures)| (seat.x_only(), signatures.clone())).collect();
        let digests = self.digests(confirming);
        match with_fallback_signatures(&confirming.transaction, &self.task.output, &digests, &signatures) {
            Ok(transaction) => self.signed(confirming, transaction, all.keys().copied().collect()),
            Err(_) => NumberEnd::failed(Why::Unverified, Vec::new(), BTreeMap::new()),
        }
    }

    fn signed(&self, confirming: &Confirming, transaction: Transaction, signers: Vec<PublicKey>) -> NumberEnd {
        NumberEnd::Signed {
            transaction: Arc::new(transaction),
            mode: confirming.mode,
            board_hash: *confirming.board.hash(),
            signers,
            absent: confirming.board.absent().copied().collect(),
        }
    }
}
