//! The consequences of a standing cohort's events.

use std::sync::Arc;

use actix::{ActorContext, AsyncContext, Context, WrapFuture};
use bitcoin::OutPoint;
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Mode, Row,
        cohort::{CohortEffect, CohortEvent, CohortInput, StandingCohort},
        message::{AskedRow, StandingMessage},
        number::NumberEnd,
        signed_vsize,
    },
    error::{Reject, RejectCode},
    message::Body,
};

use super::{StandingCohortActor, Submit, number};
use crate::{
    engine::{Driven, Engine},
    journal::{JournalError, StreamId},
    standing::{compact, notice::StandingNotice},
    transport::{Outbound, send_in_turn},
};

/// A balance for fewer announcements by fallback than this is low.
const LOW: u64 = 3;

impl StandingCohortActor {
    /// How many announcements a balance pays for at this rate: by key path, and by fallback.
    fn affordable(&self, transaction: &bitcoin::Transaction, balance: u64, mode: Mode) -> (u64, u64) {
        let Some(output) = self.engine.machine().output() else { return (0, 0) };
        let taken = transaction.output.get(1).filter(|_| transaction.output.len() == 3);
        let taken = taken.map_or(0, |operator| operator.value.to_sat());
        let size = |mode| signed_vsize(transaction, output, mode);
        let rate = self.rate_of(transaction, size(mode)).max(1);
        let each = |mode| (size(mode) * rate + taken).max(1);
        // The last change must not be dust.
        let spendable = balance.saturating_sub(330);
        (spendable / each(Mode::Key), spendable / each(Mode::Fallback))
    }

    /// The fee rate of a transaction whose coin this cohort knows, in sat/vB, rounded up.
    fn rate_of(&self, transaction: &bitcoin::Transaction, vsize: u64) -> u64 {
        let spent = self.engine.machine().value_spent_by(transaction).unwrap_or_default();
        let paid: u64 = transaction.output.iter().map(|output| output.value.to_sat()).sum();
        spent.saturating_sub(paid).div_ceil(vsize.max(1))
    }

    fn number_ended(&self, number: u64, end: &NumberEnd) {
        let cohort_id = self.cohort_id().clone();
        let notice = match end.clone() {
            NumberEnd::Idle { absent, .. } => StandingNotice::NumberIdle { cohort_id, number, absent },
            NumberEnd::Failed { why, absent, refused } => StandingNotice::NumberFailed {
                cohort_id,
                number,
                reason: why.to_string(),
                absent,
                refused: refused.into_iter().collect(),
            },
            NumberEnd::Signed { transaction, mode, board_hash, absent, .. } => {
                let balance = transaction.output.first().map_or(0, |change| change.value.to_sat());
                let announcements_left = self.affordable(&transaction, balance, mode);
                let txid = transaction.compute_txid();
                let signed = StandingNotice::NumberSigned {
                    cohort_id: cohort_id.clone(),
                    number,
                    txid,
                    mode,
                    board_hash,
                    absent,
                    transaction,
                    balance,
                    announcements_left,
                };
                self.shared.notices.publish(signed);
                let left = announcements_left.1;
                let Some(output) = self.engine.machine().output().filter(|_| left < LOW) else { return };
                let beacon_address = output.address().to_owned();
                StandingNotice::BalanceLow { cohort_id, beacon_address, balance, announcements_left: left }
            }
        };
        self.shared.notices.publish(notice);
    }
}

impl Driven for StandingCohortActor {
    type Machine = StandingCohort;

    fn engine(&mut self) -> &mut Engine<StandingCohort> {
        &mut self.engine
    }

    fn tick() -> CohortInput {
        CohortInput::Tick
    }

    /// What aggregates keys, verifies the signatures of rows, or hashes a large roster.
    fn is_heavy(machine: &StandingCohort, input: &CohortInput) -> bool {
        let is_large = || machine.roster().is_some_and(|roster| roster.row_count() > 1_000);
        match input {
            CohortInput::Admitted { .. } | CohortInput::Finalize | CohortInput::ControlChecked { .. } => true,
            CohortInput::Message { message, .. } => {
                matches!(message, StandingMessage::RegisterRows(_) | StandingMessage::RowsReturned(_))
            }
            CohortInput::Tick | CohortInput::OpenNow { .. } => is_large(),
            _ => false,
        }
    }

    fn observe(&mut self, event: &CohortEvent, _: &[CohortEffect], ctx: &mut Context<Self>) {
        let cohort_id = self.cohort_id().clone();
        let notice = match event {
            CohortEvent::Advertised { .. } => StandingNotice::StandingAdvertised { cohort_id },
            CohortEvent::SeatAdmitted { did, .. } => StandingNotice::SeatAdmitted { cohort_id, seat: did.clone() },
            CohortEvent::SeatRefused { did, reason, .. } => {
                StandingNotice::SeatRefused { cohort_id, seat: did.clone(), reason: reason.clone() }
            }
            CohortEvent::Formed { output, .. } => {
                self.shared.load.send(Outbound::WithdrawAdvert { cohort_id: cohort_id.clone() }, &self.outbound);
                self.watch(ctx);
                let (beacon_address, seats) = (output.address().to_owned(), output.keys().len());
                StandingNotice::StandingFormed { cohort_id, beacon_address, seats }
            }
            CohortEvent::RowsSettled { from, registered, refused, .. } => {
                if registered.is_empty() && refused.is_empty() {
                    return;
                }
                let refused = refused.iter().map(|(index, _, why)| (*index, why.clone())).collect();
                let (seat, registered) = (from.clone(), registered.len());
                StandingNotice::RowsSettled { cohort_id, seat, registered, refused }
            }
            CohortEvent::CoinArrived { coin, .. } => {
                let outpoint = OutPoint::new(coin.txid, coin.vout);
                StandingNotice::CoinArrived { cohort_id, outpoint, value: coin.value }
            }
            CohortEvent::NumberPlanned { opportunity, .. } => {
                let (number, respond_by) = (opportunity.number, opportunity.respond_by);
                StandingNotice::NumberOpened { cohort_id, number, respond_by }
            }
            CohortEvent::NumberEnded { at, number, end } => {
                // Its machine is over; what follows from it is in the cohort's journal and on its board.
                let archived = self.shared.journal.archive(&StreamId::of_number(&cohort_id, *number), *at);
                let archiving = async move {
                    if let Err(error) = archived.await {
                        tracing::error!(%error, "the journal of a number cannot be archived");
                    }
                };
                ctx.spawn(archiving.into_actor(self));
                return self.number_ended(*number, end);
            }
            CohortEvent::Confirmed { number, .. } => StandingNotice::NumberConfirmed { cohort_id, number: *number },
            CohortEvent::Voided { numbers, by, .. } if !numbers.is_empty() => {
                StandingNotice::NumbersVoid { cohort_id, numbers: numbers.clone(), by: *by }
            }
            CohortEvent::SeatAsked { .. }
            | CohortEvent::Saved(_)
            | CohortEvent::RowsRestored { .. }
            | CohortEvent::PendingReceived { .. }
            | CohortEvent::NumberOpened { .. }
            | CohortEvent::NumbersSkipped { .. }
            | CohortEvent::Voided { .. } => return,
        };
        self.shared.notices.publish(notice);
    }

    fn perform(&mut self, effect: CohortEffect, ctx: &mut Context<Self>) {
        let (policy, cohort_id) = (Arc::clone(&self.shared.policy), self.cohort_id().clone());
        match effect {
            CohortEffect::Broadcast(message) => {
                let outbound = Outbound::Broadcast { body: Body::from(message).into() };
                self.shared.load.send(outbound, &self.outbound);
            }
            CohortEffect::Send { to, message } => self.send(to, message),
            CohortEffect::AskAdmission { did, seat } => {
                let question = async move {
                    let refusal = policy.admit(&cohort_id, &did, &seat).await.err();
                    Some(CohortInput::Admitted { did, refusal })
                };
                self.ask(question, ctx);
            }
            CohortEffect::CheckControl { from, rows } => {
                let Some(context) = self.engine.machine().roster().map(|roster| roster.context().clone()) else {
                    return;
                };
                let question = async move {
                    let mut checked: Vec<(AskedRow, Option<String>)> = Vec::with_capacity(rows.len());
                    for row in rows {
                        let digest = Row::digest(&context, &row.did_index, row.action, row.serial);
                        let problem = policy.check_control(&cohort_id, &row, &digest).await.err();
                        checked.push((row, problem));
                    }
                    Some(CohortInput::ControlChecked { from, rows: checked })
                };
                self.ask(question, ctx);
            }
            CohortEffect::SignOpportunity(opportunity) => {
                let Some(context) = self.engine.machine().roster().map(|roster| roster.context().clone()) else {
                    return;
                };
                let key = Arc::clone(self.shared.identity.secret_key());
                let Some(rng) = self.engine.rng() else { return };
                let signed = (*opportunity).clone().sign(&context, &key, rng);
                self.feed(CohortInput::OpportunitySigned(Arc::new(signed)), ctx);
            }
            CohortEffect::RunNumber(task) => self.run_number(task, ctx),
            CohortEffect::Announce(transactions) => {
                if let Some((coins, _)) = &self.coins {
                    send_in_turn(coins, Submit(transactions), ctx);
                }
            }
            CohortEffect::AbandonNumber { number, reason } => {
                if let Some(running) = self.number.as_ref().filter(|running| running.number == number) {
                    send_in_turn(&running.address, number::Abandon(reason), ctx);
                }
            }
            // The notice of the number's end has it.
            CohortEffect::Failed { .. } => {}
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        if self.is_host {
            self.refused = Some(reject);
            return;
        }
        // Repeated after a restart, or late.
        if reject.peer.is_none() || reject.code == RejectCode::WrongPhase {
            return tracing::debug!(cohort_id = %self.cohort_id(), reject.detail, "an input does not fit any more");
        }
        self.reject(&reject);
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a standing cohort cannot continue");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        let rows = self.engine.machine().roster().map_or(0, |roster| roster.row_count());
        compact(self, rows, StandingCohort::saved, ctx);
    }
}
