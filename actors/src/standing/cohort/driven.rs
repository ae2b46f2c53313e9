//! The consequences of a standing cohort's events.

use std::sync::Arc;

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use bitcoin::OutPoint;
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Row,
        cohort::{CohortEffect, CohortEvent, CohortInput, LOW_BALANCE, StandingCohort},
        message::{AskedRow, StandingMessage},
        number::NumberEnd,
    },
    error::{Reject, RejectCode},
    hash::sha256,
    message::Body,
};

use super::{StandingCohortActor, Submit, number};
use crate::{
    engine::{Driven, Engine},
    journal::{JournalError, StreamId},
    standing::{compact, history::Fate, notice::StandingNotice},
    transport::{Outbound, send_in_turn},
};

/// How many messages with rows of one seat are checked at once: a check may read the chain for each row.
const MOST_CHECKS: usize = 16;

/// What distinguishes rows from others.
fn hash_of(rows: &[AskedRow]) -> [u8; 32] {
    let each = rows.iter().flat_map(|row| [&row.did_index.as_bytes()[..], &row.signature.to_bytes()].concat());
    sha256(&each.collect::<Vec<u8>>())
}

impl StandingCohortActor {
    /// Reports that a transaction has waited for so many blocks, and how it can be bumped: at the end of the chain, whose fees count for all.
    pub(super) fn report_waiting(&self, txid: bitcoin::Txid, blocks: u32) {
        let chain = self.engine.machine().unconfirmed();
        let first = chain.iter().find(|unconfirmed| unconfirmed.txid() == txid);
        let Some((first, last)) = first.zip(chain.last()) else { return };
        self.shared.notices.publish(StandingNotice::NumberUnconfirmed {
            cohort_id: self.cohort_id().clone(),
            number: first.number,
            txid,
            blocks,
            fee_rate: first.fee_rate(),
            last_number: last.number,
            bump: last.operator_output.map(|(outpoint, _)| outpoint),
            bump_value: last.operator_output.map(|(_, value)| value),
        });
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
                // None if its coin is gone: it pays for nothing.
                let announcements_left = self.engine.machine().affordable(balance).unwrap_or_default();
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
                // After the move the coin is not this cohort's.
                let is_low = announcements_left.1 < LOW_BALANCE && self.engine.machine().moved().is_none();
                let Some(output) = self.engine.machine().output().filter(|_| is_low) else { return };
                let beacon_address = output.address().to_owned();
                StandingNotice::BalanceLow { cohort_id, beacon_address, balance, announcements_left }
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
            CohortEvent::SeatAdmitted { did, .. } => {
                self.seat_admitted(did);
                StandingNotice::SeatAdmitted { cohort_id, seat: did.clone() }
            }
            CohortEvent::SeatAsked { did, .. } => return self.seat_asked(did),
            CohortEvent::SeatRefused { did, reason, .. } => {
                self.seat_refused(did);
                StandingNotice::SeatRefused { cohort_id, seat: did.clone(), reason: reason.clone() }
            }
            CohortEvent::Formed { at, output } => {
                self.shared.load.send(Outbound::WithdrawAdvert { cohort_id: cohort_id.clone() }, &self.outbound);
                self.settle_seats();
                self.release_admitted(ctx);
                self.watch(ctx);
                self.record_cohort(Some(*at), ctx);
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
            CohortEvent::SuccessorNamed { successor, .. } => StandingNotice::SuccessorNamed {
                cohort_id,
                successor: successor.cohort_id.clone(),
                beacon_address: successor.beacon_address.clone(),
            },
            CohortEvent::CoinArrived { coin, .. } => {
                let outpoint = OutPoint::new(coin.txid, coin.vout);
                StandingNotice::CoinArrived { cohort_id, outpoint, value: coin.value }
            }
            CohortEvent::NumberPlanned { opportunity, .. } => {
                let (number, kind, respond_by) = (opportunity.number, opportunity.kind, opportunity.respond_by);
                StandingNotice::NumberOpened { cohort_id, number, kind, respond_by }
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
            CohortEvent::Confirmed { number, .. } => {
                self.record_fates(ctx);
                StandingNotice::NumberConfirmed { cohort_id, number: *number }
            }
            CohortEvent::Voided { numbers, by, .. } if !numbers.is_empty() => {
                self.record_fate(numbers, Fate::Void, ctx);
                StandingNotice::NumbersVoid { cohort_id, numbers: numbers.clone(), by: *by }
            }
            CohortEvent::Saved(_)
            | CohortEvent::RowsRestored { .. }
            | CohortEvent::PendingReceived { .. }
            | CohortEvent::NumberOpened { .. }
            | CohortEvent::NumbersSkipped { .. }
            | CohortEvent::Held { .. }
            | CohortEvent::Voided { .. } => return,
        };
        self.shared.notices.publish(notice);
    }

    fn perform(&mut self, effect: CohortEffect, ctx: &mut Context<Self>) {
        let (policy, cohort_id) = (Arc::clone(&self.shared.policy), self.cohort_id().clone());
        match effect {
            CohortEffect::Broadcast(_) if self.quiet => {}
            CohortEffect::Broadcast(message) => {
                let outbound = Outbound::Broadcast { body: Body::from(message).into() };
                self.shared.load.send(outbound, &self.outbound);
            }
            CohortEffect::Send { to, message } => self.send(to, message),
            CohortEffect::AskAdmission { did, .. } => self.ask_admission(did, ctx),
            CohortEffect::CheckControl { from, rows } => {
                let Some(context) = self.engine.machine().roster().map(|roster| roster.context().clone()) else {
                    return;
                };
                let check = (from.clone(), hash_of(&rows));
                let of_seat = self.checks.iter().filter(|(of, _)| *of == from).count();
                if of_seat >= MOST_CHECKS || !self.checks.insert(check.clone()) {
                    // Being checked, or more than one seat may have checked at once: it sends them again.
                    return;
                }
                let question = async move {
                    let mut checked: Vec<(AskedRow, Option<String>)> = Vec::with_capacity(rows.len());
                    for row in rows {
                        let digest = Row::digest(&context, &row.did_index, row.action, row.serial);
                        let problem = policy.check_control(&cohort_id, &row, &digest).await.err();
                        checked.push((row, problem));
                    }
                    CohortInput::ControlChecked { from, rows: checked }
                };
                ctx.spawn(question.into_actor(self).map(move |input, actor, ctx| {
                    actor.checks.remove(&check);
                    actor.feed(input, ctx);
                }));
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
            CohortEffect::RunNumber(task) => {
                // The rows were checked before they were registered: seats of this process need not check them again.
                self.shared.reader.shared(Arc::clone(&task.roster));
                self.run_number(task, ctx);
            }
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
