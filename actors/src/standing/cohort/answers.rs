//! What arrives for a standing cohort: messages for its machine, for its number, and requests for rows and boards.

use std::{sync::Arc, time::Duration};

use actix::{AsyncContext, Context, Handler, WrapFuture, prelude::SendError};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        cohort::{CohortEffect, CohortInput},
        message::{
            BoardPart, BoardRequest, HistoryGiven, HistoryRequest, MAX_HISTORY, MAX_PART_ROWS, PastAnnouncement,
            RowsGiven, RowsRequest, StandingMessage,
        },
    },
    did::Did,
    error::{Reject, RejectCode},
    message::Body,
};

use super::{SeatMessage, StandingCohortActor, number::NumberMessage};
use crate::{
    backoff::Backoff,
    engine::Driven,
    standing::{
        boards::is_of,
        history::{Announced, Fate},
        notice::StandingNotice,
    },
    transport::Outbound,
};

/// When the advert of a cohort that has not formed is repeated: a peer that connects later would not receive it on every transport, and one may
/// be lost.
const ADVERT: Backoff = Backoff { first: Duration::from_secs(5), longest: Duration::from_secs(60) };

impl StandingCohortActor {
    /// Repeats the advert for the `count`th time, after its pause.
    pub(super) fn repeat_advert(&self, count: u32, ctx: &mut Context<Self>) {
        ctx.run_later(ADVERT.delay(count), move |actor, ctx| {
            let machine = actor.engine.machine();
            if machine.output().is_none() {
                let advert = CohortEffect::Broadcast(machine.advert());
                actor.perform(advert, ctx);
                actor.repeat_advert(count.saturating_add(1), ctx);
            }
        });
    }

    pub(super) fn reject(&self, reject: &Reject) {
        self.shared.notices.publish(StandingNotice::rejected(Some(self.cohort_id()), reject));
    }

    pub(super) fn is_seat(&self, from: &Did) -> bool {
        self.engine.machine().seats().any(|(_, did)| did == from)
    }

    fn answer_rows(&self, from: &Did, request: &RowsRequest) {
        let machine = self.engine.machine();
        let rows = machine.rows_from(request.after);
        let rows = rows.get(..MAX_PART_ROWS).unwrap_or(rows).to_vec();
        let given = RowsGiven { cohort_id: request.cohort_id.clone(), after: request.after, rows };
        self.send(from.clone(), given.into());
    }

    fn answer_board(&self, from: Did, request: BoardRequest, ctx: &mut Context<Self>) {
        let (getting, outbound) = (self.shared.boards.get(&request.board_hash), self.outbound.clone());
        let load = self.shared.load.clone();
        let answering = async move {
            let BoardRequest { cohort_id, board_hash, part, .. } = request;
            let part = match getting.await {
                Ok(Some(bytes)) if is_of(&cohort_id, &bytes) => BoardPart::of(&cohort_id, board_hash, &bytes, part),
                Ok(_) => None,
                Err(error) => {
                    tracing::error!(%error, "a board cannot be read");
                    None
                }
            };
            let part = part.unwrap_or_else(|| BoardPart::missing(&cohort_id, board_hash));
            let body = Body::from(StandingMessage::from(part)).into();
            load.send(Outbound::Direct { to: from, body, until: None }, &outbound);
        };
        ctx.spawn(answering.into_actor(self));
    }
}

impl StandingCohortActor {
    /// The announcements that a seat has missed. Those that can never be mined need no data.
    fn answer_history(&self, from: Did, request: &HistoryRequest, ctx: &mut Context<Self>) {
        let (history, cohort_id, after) =
            (Arc::clone(&self.shared.history), request.cohort_id.clone(), request.after);
        let (outbound, load) = (self.outbound.clone(), self.shared.load.clone());
        let answering = async move {
            let mut announcements: Vec<PastAnnouncement> = Vec::new();
            let mut last = after;
            // A page may have nothing that is needed.
            while announcements.len() < MAX_HISTORY {
                let listed = match history.list(&cohort_id, last, MAX_HISTORY).await {
                    Ok(listed) => listed,
                    Err(error) => return tracing::error!(%error, "history cannot be read"),
                };
                let Some(end) = listed.last() else { break };
                last = end.number;
                announcements.extend(listed.iter().filter_map(past));
            }
            announcements.truncate(MAX_HISTORY);
            let given = HistoryGiven { cohort_id, after, announcements };
            let body = Body::from(StandingMessage::from(given)).into();
            load.send(Outbound::Direct { to: from, body, until: None }, &outbound);
        };
        ctx.spawn(answering.into_actor(self));
    }
}

fn past(announced: &Announced) -> Option<PastAnnouncement> {
    let signal = announced.signal.filter(|_| announced.state != Fate::Void)?;
    let Announced { number, txid, board_hash, .. } = *announced;
    Some(PastAnnouncement { number, txid, signal, board_hash })
}

impl Handler<SeatMessage> for StandingCohortActor {
    type Result = ();

    fn handle(&mut self, SeatMessage(received): SeatMessage, ctx: &mut Self::Context) {
        if self.turns_away(&received) {
            return received.receipt.confirm();
        }
        let (message, receipt) = (&received.message, received.receipt.clone());
        let Body::Standing(standing) = &*message.body else { return receipt.confirm() };
        let from = message.from.clone();
        let number = match &**standing {
            StandingMessage::ResponsePart(part) => Some(part.number),
            StandingMessage::Confirmation(confirmation) => Some(confirmation.number),
            _ => None,
        };
        if let Some(number) = number {
            match &self.number {
                Some(running) if running.number == number => {
                    if let Err(SendError::Full(_)) = running.address.try_send(NumberMessage(received)) {
                        tracing::warn!(number, "a number's mailbox is full, a message was dropped");
                    }
                }
                // It is being started: without a receipt the sender sends the message again.
                None if self.engine.machine().open_number() == Some(number) => {}
                // Late, which is not a fault.
                _ => receipt.confirm(),
            }
            return;
        }
        match &**standing {
            StandingMessage::RowsRequest(request) if self.is_seat(&from) => {
                self.answer_rows(&from, request);
                receipt.confirm();
            }
            StandingMessage::BoardRequest(request) if self.is_seat(&from) => {
                self.answer_board(from, request.clone(), ctx);
                receipt.confirm();
            }
            StandingMessage::HistoryRequest(request) if self.is_seat(&from) => {
                self.answer_history(from, request, ctx);
                receipt.confirm();
            }
            StandingMessage::RowsRequest(_)
            | StandingMessage::BoardRequest(_)
            | StandingMessage::HistoryRequest(_) => {
                receipt.confirm();
                self.reject(&Reject::new(RejectCode::NotAMember, &from, "no seat of this cohort"));
            }
            message => {
                let machine = self.engine.machine();
                let mut owed = machine.answers_again(&from, message);
                owed.extend(machine.check_control(&from, message));
                let input = CohortInput::Message { from, message: message.clone() };
                self.feed_received(input, receipt, ctx);
                for effect in owed {
                    self.perform(effect, ctx);
                }
            }
        }
    }
}
