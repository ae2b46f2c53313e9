//! The consequences of a seat's events.

use std::{sync::Arc, time::Duration};

use actix::{ActorContext, AsyncContext, Context};
use bitcoin::OutPoint;
use btcr2_aggregation_protocol::{
    cohort::standing::{
        message::{PastAnnouncement, StandingMessage},
        seat::{Seat, SeatEffect, SeatEvent, SeatInput},
        signed_vsize,
    },
    error::{Reject, RejectCode},
    hash::sha256,
    machine::Machine,
};

use super::{fetch::Wanted, moving::prepared, seat::SeatActor};
use crate::{
    backoff::Backoff,
    chain::signal_of,
    engine::{Driven, Engine},
    journal::JournalError,
    standing::{
        compact,
        notice::SeatNotice,
        policy::{BoardToSign, UpdatesAsked},
    },
};

/// When a message is repeated that the service has not answered.
const RETRY: Backoff = Backoff { first: Duration::from_secs(5), longest: Duration::from_secs(600) };

impl SeatActor {
    /// The bytes of a board were fed: if the machine has verified them, the host is asked.
    pub(super) fn verified_bytes(&mut self, number: u64, bytes: Arc<Vec<u8>>, ctx: &mut Context<Self>) {
        self.bytes = Some((number, bytes));
        self.ask_if_verified(ctx);
    }

    /// Asks the host whether to sign, once the event that the board is verified is durable.
    fn ask_if_verified(&mut self, ctx: &mut Context<Self>) {
        let Some((number, bytes)) = self.bytes.clone() else { return };
        if let Some(ask) = self.engine.machine().ask_signing(number, &bytes) {
            self.bytes = None;
            self.perform(ask, ctx);
        }
    }

    /// Sends again what the service may have lost.
    pub(super) fn send_again(&mut self, ctx: &mut Context<Self>) {
        let again = self.engine.machine().resume().into_iter().filter(|effect| {
            matches!(effect, SeatEffect::Send(_) | SeatEffect::FetchBoard { .. } | SeatEffect::FetchRows { .. })
        });
        for effect in again.collect::<Vec<_>>() {
            self.perform(effect, ctx);
        }
    }

    /// Sends again what the service has not answered, with growing pauses, until it has.
    pub(super) fn arm_retry(&mut self, ctx: &mut Context<Self>) {
        if self.has_timer || !self.engine.machine().awaits_answer() {
            return;
        }
        self.has_timer = true;
        // Seats that have lost their service at the same time do not all come back in the same moment.
        let jitter = sha256(self.identity.did().as_str().as_bytes());
        let jitter = u32::from_be_bytes([jitter[0], jitter[1], jitter[2], jitter[3]]);
        let pause = RETRY.jittered(self.tries.saturating_add(1), jitter);
        ctx.run_later(pause, |actor, ctx| {
            actor.has_timer = false;
            if actor.engine.machine().awaits_answer() {
                actor.tries = actor.tries.saturating_add(1);
                actor.send_again(ctx);
            }
            actor.arm_retry(ctx);
        });
    }
}

impl Driven for SeatActor {
    type Machine = Seat;

    fn engine(&mut self) -> &mut Engine<Seat> {
        &mut self.engine
    }

    /// A seat has no deadlines.
    fn tick() -> SeatInput {
        SeatInput::RowsAsked(Vec::new())
    }

    /// What aggregates keys, verifies rows and boards, or makes leaves.
    fn is_heavy(_: &Seat, input: &SeatInput) -> bool {
        match input {
            SeatInput::Message(message) => {
                matches!(
                    message,
                    StandingMessage::StandingReady(_)
                        | StandingMessage::OpportunityOpened(_)
                        | StandingMessage::SuccessorFormed(_)
                )
            }
            SeatInput::RowsFetched { .. }
            | SeatInput::BoardFetched { .. }
            | SeatInput::ResponseSigned(_)
            | SeatInput::RowsAsked(_) => true,
            _ => false,
        }
    }

    fn observe(&mut self, event: &SeatEvent, _: &[SeatEffect], ctx: &mut Context<Self>) {
        self.tries = 0;
        let config = Arc::clone(self.engine.machine().config());
        let (seat, cohort_id) = (self.identity.did().clone(), config.cohort_id.clone());
        let notice = match event {
            SeatEvent::OptedIn { service, .. } => {
                SeatNotice::SeatAsked { seat, service: service.clone(), cohort_id }
            }
            SeatEvent::Accepted { .. } => SeatNotice::SeatAccepted { seat, cohort_id },
            SeatEvent::Refused { reason, .. } => {
                SeatNotice::SeatNotGiven { seat, cohort_id, reason: reason.clone() }
            }
            SeatEvent::Formed { output, .. } => {
                self.watch(ctx);
                self.after_restore(Self::after_formation, ctx);
                let (beacon_address, seats) = (output.address().to_owned(), output.keys().len());
                let spenders = config.terms.spenders(seats);
                SeatNotice::SeatFormed { seat, cohort_id, beacon_address, seats, spenders }
            }
            SeatEvent::RowsAcknowledged { from_number, registered, .. } => {
                if registered.is_empty() {
                    return;
                }
                let indexes = registered.iter().map(|(index, _)| *index).collect();
                SeatNotice::RowsAcknowledged { seat, cohort_id, indexes, from_number: *from_number }
            }
            SeatEvent::Responded { response, .. } => {
                let number = response.number;
                let updates = self.engine.machine().own_entries(number);
                let updates = updates.iter().filter(|entry| entry.update.is_some()).count();
                SeatNotice::Responded { seat, cohort_id, number, updates }
            }
            SeatEvent::Verified { .. } => return self.ask_if_verified(ctx),
            SeatEvent::Confirmed { number, refusal: Some(reason), .. } => {
                let (number, reason) = (*number, reason.clone());
                SeatNotice::SeatRefusedToSign { seat, cohort_id, number, reason }
            }
            SeatEvent::Confirmed { number, .. } => {
                let Some(txid) = self.engine.machine().txid_of(*number) else { return };
                SeatNotice::SeatSigned { seat, cohort_id, number: *number, txid }
            }
            SeatEvent::Restored { coins, .. } => {
                // Durable now. Without a coin there is nothing to wait for.
                self.waits_for_coins = coins.is_empty();
                self.report_restored();
                return self.report_settled();
            }
            SeatEvent::CoinSpent { coin, by, .. } => {
                self.report_settled();
                // What was not on it needs another number; so does what followed on it.
                self.claim(ctx);
                let outpoint = OutPoint::new(coin.txid, coin.vout);
                SeatNotice::CoinSpent { seat, cohort_id, outpoint, by: *by }
            }
            SeatEvent::NumberOver { .. } => return self.claim(ctx),
            SeatEvent::RosterConfirmed { .. } => {
                self.report_confirmed(ctx);
                return self.prepare_move(ctx);
            }
            SeatEvent::SuccessorNamed { successor, .. } => {
                self.prepare_move(ctx);
                let (successor, beacon_address) = (successor.cohort_id.clone(), successor.beacon_address.clone());
                SeatNotice::SuccessorKnown { seat, cohort_id, successor, beacon_address }
            }
            SeatEvent::MovePrepared { successor, registered, left, .. } => SeatNotice::MovePrepared {
                seat,
                cohort_id,
                successor: successor.clone(),
                registered: registered.clone(),
                left: left.clone(),
            },
            _ => return,
        };
        self.notify(notice);
    }

    fn perform(&mut self, effect: SeatEffect, ctx: &mut Context<Self>) {
        let policy = Arc::clone(&self.settings.policy);
        let (seat, cohort_id) = (self.identity.did().clone(), self.engine.machine().config().cohort_id.clone());
        match effect {
            SeatEffect::Send(message) => self.send(message),
            SeatEffect::AskUpdates { opportunity, committed, announced } => {
                let Some(view) = self.view() else { return };
                let (number, kind) = (opportunity.number, opportunity.kind);
                if !kind.announces() {
                    return self.feed(SeatInput::UpdatesDecided { number, updates: Vec::new() }, ctx);
                }
                let indexes = self.engine.machine().indexes().copied().collect();
                let move_to = self.move_of(kind);
                let asked = UpdatesAsked { opportunity, committed, announced, indexes, move_to };
                let question = async move {
                    let number = asked.opportunity.number;
                    let chosen = policy.chooses(&view, &asked).await;
                    let resolved =
                        chosen.resolved.into_iter().map(|(index, version)| SeatInput::Resolved { index, version });
                    let decided = SeatInput::UpdatesDecided { number, updates: chosen.updates };
                    // With the opportunity the seat may have learned of rows of its own.
                    let prepared = match &asked.move_to {
                        Some(move_to) => Some(prepared(&*policy, &view, move_to).await),
                        None => None,
                    };
                    resolved.chain(prepared).chain([decided]).collect()
                };
                self.ask(question, ctx);
            }
            SeatEffect::OpenNonces { number, inputs } => {
                let machine = self.engine.snapshot();
                let (Some(output), Some(context)) = (machine.output(), machine.context()) else { return };
                let key = Arc::clone(self.signer.key());
                let Some(rng) = self.engine.rng() else { return };
                let nonces = self.signer.open(number, inputs, output, rng);
                let Some(content) = machine.content(number, nonces) else { return };
                let response = Arc::new(content.sign(context, &key, rng));
                drop(machine);
                self.feed(SeatInput::ResponseSigned(response), ctx);
            }
            SeatEffect::FetchRows { from } => {
                self.fetch_rows(from);
            }
            SeatEffect::FetchBoard { number, hash } => {
                // The host has it, and decides; or it is on its way.
                if self.asked != Some(number) && !self.boards.is_signing(&hash) {
                    self.fetch_board(Wanted::Number(number), hash, ctx);
                }
            }
            SeatEffect::AskSigning { number, board, transaction, mode } => {
                self.asked = Some(number);
                let Some(view) = self.view() else { return };
                let machine = self.engine.machine();
                let (Some(opportunity), Some(output)) = (machine.opportunity(number), machine.output()) else {
                    return;
                };
                let (kind, coins) = (opportunity.kind, opportunity.coins.clone());
                let vsize = signed_vsize(&transaction, output, mode);
                let entries = machine.own_entries(number);
                let stored = self.settings.boards.put(&cohort_id, number, board.hash(), Arc::clone(board.bytes()));
                let question = async move {
                    // Not signed before it is stored: no other party has to have it.
                    if let Err(error) = stored.await {
                        tracing::error!(%error, "a board cannot be stored: its transaction is not signed");
                        return vec![SeatInput::SigningDecided {
                            number,
                            refusal: Some("the board cannot be stored".to_owned()),
                        }];
                    }
                    let board = BoardToSign { number, kind, coins, board, transaction, mode, vsize, entries };
                    let refusal = policy.signs(&view, &board).await.err();
                    vec![SeatInput::SigningDecided { number, refusal }]
                };
                self.ask(question, ctx);
            }
            SeatEffect::SignPartials { number, aggregated, sighashes } => {
                let machine = self.engine.snapshot();
                let Some(output) = machine.output() else { return };
                let partials = self.signer.sign_partials(number, output, &aggregated, &sighashes);
                drop(machine);
                self.feed(SeatInput::PartialsSigned { number, partials }, ctx);
            }
            SeatEffect::SignFallback { number, sighashes } => {
                let Some(rng) = self.engine.rng() else { return };
                let signatures = self.signer.sign_fallback(&sighashes, rng);
                self.feed(SeatInput::FallbackSigned { number, signatures }, ctx);
            }
            SeatEffect::Announced { number, transaction } => {
                let txid = transaction.compute_txid();
                self.notify(SeatNotice::Announced { seat, cohort_id, number, txid, transaction });
            }
            SeatEffect::Missed { number, transaction, board_hash } => {
                // A refresh announces nothing.
                if let Some(signal) = signal_of(&transaction) {
                    let txid = transaction.compute_txid();
                    self.missed(PastAnnouncement { number, txid, signal, board_hash }, ctx);
                }
            }
            SeatEffect::Registered { registered, released } => {
                self.notify(SeatNotice::Registered { seat, cohort_id, registered, released });
            }
            SeatEffect::NotRegistered(refused) => {
                self.notify(SeatNotice::NotRegistered { seat, cohort_id, refused });
            }
        }
    }

    fn refused(&mut self, reject: Reject, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        let number = machine.highest();
        if reject.peer.is_none()
            && reject.code == RejectCode::UpdateVerificationFailed
            && machine.is_choosing(number)
        {
            // The number goes on without what the host has chosen: its seat must not hold it up.
            let (seat, cohort_id) = (self.identity.did().clone(), machine.config().cohort_id.clone());
            self.notify(SeatNotice::UpdatesRefused { seat, cohort_id, number, reason: reject.detail });
            return self.feed(SeatInput::UpdatesDecided { number, updates: Vec::new() }, ctx);
        }
        if reject.peer.is_none() {
            return tracing::debug!(number, reject.detail, "an input does not fit any more");
        }
        self.reject(&reject);
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a seat cannot continue");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        self.arm_retry(ctx);
        let rows = self.engine.machine().roster().map_or(0, |roster| roster.row_count());
        compact(self, rows, Seat::saved, ctx);
    }
}
