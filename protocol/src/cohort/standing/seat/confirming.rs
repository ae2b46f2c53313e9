//! From the request to the confirmation, and what becomes of the coin.

use std::sync::Arc;

use super::{Answer, Decided, Seat, SeatEffect, SeatEvent, Seated, Stage};
use crate::{
    cohort::standing::{
        message::{Confirmation, ConfirmationRequest, EndKind, NumberEndedNotice},
        opportunity::OpportunityKind,
        transaction::{Mode, TransactionCheck, sighashes},
    },
    error::{Reject, RejectCode},
    key::Signature,
    message::Bytes,
    time::Timestamp,
};

impl Seat {
    pub(super) fn on_request(&self, now: Timestamp, seated: &Seated, request: &ConfirmationRequest) -> Decided {
        let refuse = |code, detail: &str| Err(self.reject(code, detail));
        let Some(current) = seated.current.as_ref().filter(|current| current.opportunity.number == request.number)
        else {
            return refuse(RejectCode::WrongPhase, "a request for a number that this seat has not answered");
        };
        match &current.stage {
            Stage::Responded => Ok(vec![SeatEvent::Requested { at: now, request: Arc::new(request.clone()) }]),
            Stage::Choosing | Stage::Committed { .. } => {
                refuse(RejectCode::WrongPhase, "a request before the response was sent")
            }
            Stage::Requested { request: known }
            | Stage::Verified { request: known, .. }
            | Stage::Approved { request: known, .. }
            | Stage::Confirmed { request: known, .. } => {
                if **known == *request {
                    Ok(Vec::new())
                } else {
                    refuse(
                        RejectCode::Equivocation,
                        "another request for this number: one number is one transaction",
                    )
                }
            }
            Stage::Over => Ok(Vec::new()),
        }
    }

    /// The stored answer, for a request that is repeated with equal bytes.
    pub fn answer_again(&self, request: &ConfirmationRequest) -> Option<SeatEffect> {
        match &self.current()?.stage {
            Stage::Confirmed { request: known, answer } if **known == *request => {
                Some(self.send_confirmation(known, answer))
            }
            _ => None,
        }
    }

    pub(super) fn on_board(&self, now: Timestamp, number: u64, bytes: &Arc<Vec<u8>>) -> Decided {
        let seated = self.seated.as_ref().ok_or_else(|| Reject::out_of_phase("board", "not formed"))?;
        let current = self.stage_of(number, "board")?;
        let request = match &current.stage {
            Stage::Requested { request } => request,
            // Fetched again after a restart: the host is asked again.
            Stage::Verified { .. } => return Ok(Vec::new()),
            _ => return Err(Reject::out_of_phase("board", "not requested")),
        };
        let problem = |reject: Reject| {
            // The seat answers with its reason, which the operator can see; nothing is signed.
            let refusal = Some(reject.detail);
            Ok(vec![SeatEvent::Confirmed { at: now, number, partials: None, fallback: None, refusal }])
        };
        let board = match self.board(current, &request.board_hash, bytes) {
            Ok(board) => board,
            Err(reject) => return problem(reject),
        };
        if board.response(&self.config.seat) != current.response.as_deref() {
            return problem(
                self.reject(RejectCode::DataMismatch, "the board has another response of this seat, or none"),
            );
        }
        let announces = current.opportunity.kind == OpportunityKind::Announcement;
        let signal = announces.then(|| board.signal());
        let coins = current.opportunity.coins();
        let check = TransactionCheck {
            terms: &self.config.terms,
            output: &seated.output,
            coins: &coins,
            signal: signal.as_ref(),
            change: seated.output.script_pubkey(),
            mode: request.mode,
        };
        if let Err(fault) = check.check(&request.pending_tx) {
            return problem(self.reject(RejectCode::TransactionMismatch, fault));
        }
        let all_responded = board.absent().next().is_none();
        let nonces = if request.mode == Mode::Key { coins.len() } else { 0 };
        if request.aggregated_nonces.len() != nonces || request.mode == Mode::Key && !all_responded {
            return problem(self.reject(RejectCode::DataMismatch, "the mode does not fit the board"));
        }
        let enough = self.config.terms.spenders(seated.output.keys().len());
        if request.mode == Mode::Fallback
            && (seated.output.fallback().is_none() || board.responses().len() < enough)
        {
            return problem(self.reject(RejectCode::DataMismatch, "too few responses, or no fallback"));
        }
        match sighashes(&request.pending_tx, &seated.output, &coins, request.mode) {
            Ok(sighashes) => Ok(vec![SeatEvent::Verified { at: now, number, signal, sighashes }]),
            Err(error) => problem(self.reject(RejectCode::TransactionMismatch, error)),
        }
    }

    /// What the host is asked with a board that was verified: to store it and to decide.
    pub fn ask_signing(&self, number: u64, bytes: &[u8]) -> Option<SeatEffect> {
        let current = self.current().filter(|current| current.opportunity.number == number)?;
        let Stage::Verified { request, .. } = &current.stage else { return None };
        let board = Arc::new(self.board(current, &request.board_hash, bytes).ok()?);
        Some(SeatEffect::AskSigning { number, board, transaction: request.pending_tx.clone(), mode: request.mode })
    }

    pub(super) fn on_decision(&self, now: Timestamp, number: u64, refusal: Option<&String>) -> Decided {
        let current = self.stage_of(number, "decision")?;
        if !matches!(current.stage, Stage::Verified { .. }) {
            return Err(Reject::out_of_phase("decision", "not verified"));
        }
        Ok(vec![match refusal {
            None => SeatEvent::SigningApproved { at: now, number },
            Some(reason) => SeatEvent::Confirmed {
                at: now,
                number,
                partials: None,
                fallback: None,
                refusal: Some(crate::text::shown_within(reason, 200).into_owned()),
            },
        }])
    }

    pub(super) fn sign(&self, number: u64, request: &ConfirmationRequest, sighashes: &[[u8; 32]]) -> SeatEffect {
        match request.mode {
            Mode::Key => SeatEffect::SignPartials {
                number,
                aggregated: request.aggregated_nonces.clone(),
                sighashes: sighashes.to_vec(),
            },
            Mode::Fallback => SeatEffect::SignFallback { number, sighashes: sighashes.to_vec() },
        }
    }

    pub(super) fn on_partials(&self, now: Timestamp, number: u64, partials: Option<&Vec<Bytes<32>>>) -> Decided {
        let current = self.stage_of(number, "partial signatures")?;
        if !matches!(&current.stage, Stage::Approved { request, .. } if request.mode == Mode::Key) {
            return Err(Reject::out_of_phase("partial signatures", "not approved"));
        }
        let refusal = partials.is_none().then(|| Confirmation::NONCE_LOST.to_owned());
        Ok(vec![SeatEvent::Confirmed { at: now, number, partials: partials.cloned(), fallback: None, refusal }])
    }

    pub(super) fn on_fallback(&self, now: Timestamp, number: u64, signatures: &[Signature]) -> Decided {
        let current = self.stage_of(number, "fallback signatures")?;
        if !matches!(&current.stage, Stage::Approved { request, .. } if request.mode == Mode::Fallback) {
            return Err(Reject::out_of_phase("fallback signatures", "not approved"));
        }
        let fallback = Some(signatures.to_vec());
        Ok(vec![SeatEvent::Confirmed { at: now, number, partials: None, fallback, refusal: None }])
    }

    pub(super) fn send_confirmation(&self, request: &ConfirmationRequest, answer: &Answer) -> SeatEffect {
        let confirmation = Confirmation {
            cohort_id: self.config.cohort_id.clone(),
            number: request.number,
            board_hash: request.board_hash,
            partial_signatures: answer.partials.clone(),
            fallback_signatures: answer.fallback.clone(),
            refusal: answer.refusal.clone(),
        };
        SeatEffect::Send(confirmation.into())
    }

    pub(super) fn on_end(&self, now: Timestamp, seated: &Seated, notice: &NumberEndedNotice) -> Vec<SeatEvent> {
        let Some(current) = seated.current.as_ref().filter(|current| current.opportunity.number == notice.number)
        else {
            return Vec::new();
        };
        let transaction = match (notice.end, &notice.transaction) {
            // A claim proves nothing: the transaction has to spend the coins, as the cohort signs.
            (EndKind::Announced, Some(transaction)) => {
                let coins = current.opportunity.coins();
                let spends = transaction.0.input.iter().map(|input| input.previous_output);
                spends.eq(coins.iter().map(|coin| coin.outpoint)).then(|| Arc::clone(&transaction.0))
            }
            _ => None,
        };
        if current.stage == Stage::Over && transaction.is_none() {
            return Vec::new();
        }
        vec![SeatEvent::NumberOver { at: now, number: notice.number, transaction, board_hash: notice.board_hash }]
    }
}

impl Seated {
    pub(super) fn apply_confirming(&mut self, event: &SeatEvent) {
        let Some(current) = &mut self.current else {
            if let SeatEvent::CoinSpent { coin, .. } = event {
                self.commitments.retain(|commitment| !commitment.coins.contains(coin));
            }
            return;
        };
        let stage = std::mem::replace(&mut current.stage, Stage::Over);
        current.stage = match (event, stage) {
            (SeatEvent::Requested { request, .. }, Stage::Responded) => {
                Stage::Requested { request: Arc::clone(request) }
            }
            (SeatEvent::Verified { number, signal, sighashes, .. }, Stage::Requested { request }) => {
                if let Some(signal) = signal {
                    self.signals.insert(*number, *signal);
                }
                Stage::Verified { request, sighashes: sighashes.clone() }
            }
            (SeatEvent::SigningApproved { .. }, Stage::Verified { request, sighashes }) => {
                Stage::Approved { request, sighashes }
            }
            (
                SeatEvent::Confirmed { partials, fallback, refusal, .. },
                Stage::Requested { request } | Stage::Verified { request, .. } | Stage::Approved { request, .. },
            ) => {
                let answer =
                    Answer { partials: partials.clone(), fallback: fallback.clone(), refusal: refusal.clone() };
                Stage::Confirmed { request, answer }
            }
            (SeatEvent::NumberOver { .. }, _) => Stage::Over,
            (_, stage) => stage,
        };
        if let SeatEvent::CoinSpent { coin, .. } = event {
            // Whatever spent it: the numbers of this coin are announced now, or never will be.
            self.commitments.retain(|commitment| !commitment.coins.contains(coin));
        }
    }
}
