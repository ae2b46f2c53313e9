//! From the request to the confirmation, and what becomes of the coin.

use std::sync::Arc;

use super::{Answer, Current, Decided, Seat, SeatEffect, SeatEvent, Seated, Stage};
use crate::{
    cohort::standing::{
        board::{Board, BoardProblem},
        message::{Confirmation, ConfirmationRequest, EndKind, NumberEndedNotice, StandingMessage},
        opportunity::OpportunityKind,
        transaction::{Mode, TransactionCheck, sighashes},
    },
    error::{Reject, RejectCode},
    hash::DidIndex,
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
            Stage::Choosing | Stage::Committed => {
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
            Stage::Idle { .. } | Stage::Over(_) => Ok(Vec::new()),
        }
    }

    /// The stored answer, for a request that is repeated with equal bytes; before there is one, its board is fetched again.
    pub fn answer_again(&self, request: &ConfirmationRequest) -> Option<SeatEffect> {
        match &self.current()?.stage {
            Stage::Requested { request: known } | Stage::Verified { request: known, .. } if **known == *request => {
                Some(SeatEffect::FetchBoard { number: known.number, hash: known.board_hash })
            }
            Stage::Confirmed { request: known, answer } | Stage::Over(Some((known, answer)))
                if **known == *request =>
            {
                Some(self.send_confirmation(known, answer))
            }
            _ => None,
        }
    }

    /// What is owed for a message that repeats an earlier one, and for one of a service that has forgotten something. To be asked before
    /// the message is fed.
    pub fn again(&self, message: &StandingMessage) -> Vec<SeatEffect> {
        match message {
            StandingMessage::ConfirmationRequest(request) => self.answer_again(request).into_iter().collect(),
            StandingMessage::OpportunityOpened(opened) => self.respond_again(&opened.opportunity),
            StandingMessage::NumberEndedNotice(notice) => {
                let idle = self.current().filter(|current| current.opportunity.number == notice.number);
                let idle = idle.filter(|current| matches!(current.stage, Stage::Idle { .. }));
                let is_idle = idle.is_some() && notice.end == EndKind::Idle;
                if is_idle { self.progress() } else { Vec::new() }
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn on_board(&self, now: Timestamp, number: u64, bytes: &Arc<Vec<u8>>) -> Decided {
        let seated = self.seated.as_ref().ok_or_else(|| Reject::out_of_phase("board", "not formed"))?;
        let current = self.stage_of(number, "board")?;
        let request = match &current.stage {
            Stage::Requested { request } => request,
            // Fetched again after a restart: the host is asked again.
            Stage::Verified { .. } => return Ok(Vec::new()),
            Stage::Idle { board_hash } => {
                let board = self.board(current, board_hash, bytes)?;
                let confirmed = self.confirmed_roster(now, seated, current, &board);
                return Ok(confirmed.into_iter().collect());
            }
            _ => return Err(Reject::out_of_phase("board", "not requested")),
        };
        let problem = |reject: Reject| {
            // The seat answers with its reason, which the operator can see; nothing is signed.
            let refusal = Some(reject.detail);
            Ok(vec![SeatEvent::Confirmed { at: now, number, partials: None, fallback: None, refusal }])
        };
        let board = match self.config.boards.read(bytes, &request.board_hash, self.place(current)) {
            Ok(board) => board,
            // Other bytes than those that were asked for: the right ones can still come.
            Err(BoardProblem::Hash { .. }) => {
                return Err(self.reject(RejectCode::DataMismatch, "the bytes are not the board that was asked for"));
            }
            Err(other) => return problem(self.reject(RejectCode::DataMismatch, other)),
        };
        if board.response(&self.config.seat) != current.response.as_deref() {
            return problem(
                self.reject(RejectCode::DataMismatch, "the board has another response of this seat, or none"),
            );
        }
        let announces = current.opportunity.kind.announces();
        if announces && !board.has_updates() {
            return problem(self.reject(RejectCode::DataMismatch, "no seat has an update: nothing is announced"));
        }
        let signal = announces.then(|| board.signal());
        let coins = current.opportunity.coins();
        let change = match self.change_of(seated, current, &request.pending_tx) {
            Ok(change) => change,
            Err(reject) => return problem(reject),
        };
        let check = TransactionCheck {
            terms: &self.config.terms,
            output: &seated.output,
            coins: &coins,
            signal: signal.as_ref(),
            change: &change,
            mode: request.mode,
        };
        if let Err(fault) = check.check(&request.pending_tx) {
            return problem(self.reject(RejectCode::TransactionMismatch, fault));
        }
        let all_responded = board.is_complete();
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
            Ok(sighashes) => {
                let txid = request.pending_tx.compute_txid();
                let verified = SeatEvent::Verified { at: now, number, signal, txid, sighashes };
                let confirmed = self.confirmed_roster(now, seated, current, &board);
                Ok(confirmed.into_iter().chain([verified]).collect())
            }
            Err(error) => problem(self.reject(RejectCode::TransactionMismatch, error)),
        }
    }

    /// What is new in a roster for which at least k seats have signed.
    fn confirmed_roster(
        &self,
        now: Timestamp,
        seated: &Seated,
        current: &Current,
        board: &Board,
    ) -> Option<SeatEvent> {
        let own = current.roster.indexes(&self.config.seat);
        let registered: Vec<DidIndex> = own.filter(|index| !seated.registered.contains(*index)).copied().collect();
        let is_own = |index: &DidIndex| current.roster.seat_of(index) == Some(&self.config.seat);
        let released: Vec<DidIndex> = seated.registered.iter().filter(|index| !is_own(index)).copied().collect();
        let enough = board.responses().len() >= self.config.terms.spenders(seated.output.keys().len());
        let number = current.opportunity.number;
        (enough && !(registered.is_empty() && released.is_empty())).then(|| SeatEvent::RosterConfirmed {
            at: now,
            number,
            registered,
            released,
        })
    }

    /// What the host is asked with a board that was verified: to store it and to decide.
    pub fn ask_signing(&self, number: u64, bytes: &Arc<Vec<u8>>) -> Option<SeatEffect> {
        let current = self.current().filter(|current| current.opportunity.number == number)?;
        let Stage::Verified { request, .. } = &current.stage else { return None };
        let board = self.board(current, &request.board_hash, bytes).ok()?;
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

    /// The service reports an end. A claim proves nothing: see [`SeatEffect::Announced`] and [`SeatEffect::Missed`].
    pub(super) fn on_end(&self, now: Timestamp, seated: &Seated, notice: &NumberEndedNotice) -> Vec<SeatEvent> {
        let transaction = match notice.end {
            EndKind::Announced => notice.transaction.as_ref().map(|transaction| Arc::clone(&transaction.0)),
            EndKind::Idle | EndKind::Failed | EndKind::Void => None,
        };
        let is_current = seated.current.as_ref().is_some_and(|current| {
            current.opportunity.number == notice.number
                && !matches!(current.stage, Stage::Idle { .. } | Stage::Over(_))
        });
        // A number that this seat was absent from: resolvers need its board all the same. A service may repeat it without end.
        let is_new = transaction.is_some() && !seated.ends.knows(notice.number);
        if !is_current && !is_new {
            return Vec::new();
        }
        let (number, board_hash, is_idle) = (notice.number, notice.board_hash, notice.end == EndKind::Idle);
        vec![SeatEvent::NumberOver { at: now, number, transaction, board_hash, is_idle }]
    }
}

impl Seated {
    pub(super) fn apply_confirming(&mut self, event: &SeatEvent) {
        match event {
            SeatEvent::RosterConfirmed { number, registered, released, .. } => {
                self.registered.extend(registered);
                self.registered.retain(|index| !released.contains(index));
                if let Some(current) = &mut self.current
                    && current.opportunity.number == *number
                    && matches!(current.stage, Stage::Idle { .. })
                {
                    current.stage = Stage::Over(None);
                }
            }
            SeatEvent::Restored { coins, updates, .. } => self.record.restored(coins, updates),
            SeatEvent::VersionResolved { index, version, .. } => self.record.resolved(*index, *version),
            SeatEvent::CoinSpent { coin, by, signal, .. } => self.record.spend(coin, *by, signal.as_ref()),
            SeatEvent::NumberOver { number, transaction, board_hash, is_idle, .. } => {
                if transaction.is_some() {
                    self.ends.report(*number);
                }
                let current = self.current.as_mut().filter(|current| current.opportunity.number == *number);
                let Some(current) = current else { return };
                let stage = std::mem::replace(&mut current.stage, Stage::Over(None));
                current.stage = match (stage, board_hash) {
                    (Stage::Responded, Some(board_hash)) if *is_idle => Stage::Idle { board_hash: *board_hash },
                    (Stage::Confirmed { request, answer }, _) => Stage::Over(Some((request, answer))),
                    (over @ Stage::Over(_), _) => over,
                    _ => Stage::Over(None),
                };
            }
            other => self.apply_stage(other),
        }
    }

    fn apply_stage(&mut self, event: &SeatEvent) {
        let Some(current) = &mut self.current else { return };
        let stage = std::mem::replace(&mut current.stage, Stage::Over(None));
        current.stage = match (event, stage) {
            (SeatEvent::Requested { request, .. }, Stage::Responded) => {
                Stage::Requested { request: Arc::clone(request) }
            }
            (SeatEvent::Verified { number, signal, txid, sighashes, .. }, Stage::Requested { request }) => {
                self.record.verified(*number, *txid, *signal, request.board_hash);
                Stage::Verified { request, sighashes: sighashes.clone() }
            }
            // The host has stored the board before it decides.
            (SeatEvent::SigningApproved { number, .. }, Stage::Verified { request, sighashes }) => {
                self.record.stored(*number);
                Stage::Approved { request, sighashes }
            }
            (
                SeatEvent::Confirmed { number, partials, fallback, refusal, .. },
                Stage::Requested { request } | Stage::Verified { request, .. } | Stage::Approved { request, .. },
            ) => {
                // So has it before it refuses; what is refused without it has no transaction in the record.
                self.record.stored(*number);
                if partials.is_some() || fallback.is_some() {
                    self.record.signed(*number);
                    if current.opportunity.kind == OpportunityKind::Move {
                        self.record.moves_in(*number);
                    }
                }
                let answer =
                    Answer { partials: partials.clone(), fallback: fallback.clone(), refusal: refusal.clone() };
                Stage::Confirmed { request, answer }
            }
            (_, stage) => stage,
        };
    }
}
