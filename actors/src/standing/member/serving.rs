//! Boards that a seat gives to other seats: a service may have lost them, or be gone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::message::{BoardPart, BoardRequest, StandingMessage},
    did::Did,
    hash::DocumentHash,
    key::PublicKey,
    message::Body,
    time::Timestamp,
};

use super::seat::SeatActor;
use crate::{standing::boards::is_of, transport::Outbound};

/// The period in which parts are counted.
const PERIOD: Duration = Duration::from_secs(60);

/// The parts for one seat in a period: 42 MiB.
const PER_SEAT: u32 = 1_200;

/// The parts for all seats in a period.
const FOR_ALL: u32 = 4_800;

/// What was given to other seats.
#[derive(Debug, Default)]
pub(super) struct Serving {
    since: Timestamp,
    /// The parts in this period. Only seats that have proven themselves are counted, so that the roster bounds it.
    parts: BTreeMap<PublicKey, u32>,
    /// The last board.
    last: Option<(DocumentHash, Arc<Vec<u8>>)>,
}

impl Serving {
    fn may(&mut self, seat: &PublicKey, now: Timestamp) -> bool {
        if now.since(self.since) >= PERIOD || now < self.since {
            (self.since, self.parts) = (now, BTreeMap::new());
        }
        let total: u32 = self.parts.values().sum();
        let given = self.parts.entry(*seat).or_default();
        let may = *given < PER_SEAT && total < FOR_ALL;
        *given += u32::from(may);
        may
    }
}

impl SeatActor {
    /// Answers another seat of the cohort. A peer that is not one gets no answer.
    pub(super) fn serve_board(&mut self, from: Did, request: &BoardRequest, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        let (Some(context), Some(roster)) = (machine.context(), machine.roster()) else { return };
        let BoardRequest { board_hash, part, .. } = *request;
        let proof = request.seat.as_ref().filter(|proof| {
            request.cohort_id == context.cohort_id
                && roster.has_seat(&proof.seat)
                && proof.is_of(context, &from, &board_hash)
        });
        let Some(proof) = proof else {
            return tracing::debug!(%from, "a board was asked for without a seat");
        };
        if !self.serving.may(&proof.seat, self.settings.clock.now()) {
            return;
        }
        let cohort_id = context.cohort_id.clone();
        if let Some((_, bytes)) = self.serving.last.as_ref().filter(|(hash, _)| *hash == board_hash) {
            return self.give_part(from, BoardPart::of(&cohort_id, board_hash, bytes, part), board_hash);
        }
        let getting = self.settings.boards.get(&board_hash);
        ctx.spawn(getting.into_actor(self).map(move |got, actor, _| {
            let bytes = got.ok().flatten().filter(|bytes| is_of(&cohort_id, bytes));
            let found = bytes.as_ref().and_then(|bytes| BoardPart::of(&cohort_id, board_hash, bytes, part));
            if let Some(bytes) = bytes {
                actor.serving.last = Some((board_hash, bytes));
            }
            actor.give_part(from, found, board_hash);
        }));
    }

    fn give_part(&self, to: Did, part: Option<BoardPart>, board_hash: DocumentHash) {
        let cohort_id = &self.engine.machine().config().cohort_id;
        let part = part.unwrap_or_else(|| BoardPart::missing(cohort_id, board_hash));
        let body = Body::from(StandingMessage::from(part)).into();
        self.link.send(Outbound::Direct { to, body, until: None });
    }
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::key::SecretKey;

    use super::*;

    #[test]
    fn each_seat_and_all_together_get_so_many_parts() {
        let seat = |byte: u8| SecretKey::from_bytes(&[byte; 32]).expect("a key").public_key();
        let mut serving = Serving::default();
        let now = Timestamp::from_secs(1_750_000_000);
        let given = |serving: &mut Serving, byte, at| (0..5_000).filter(|_| serving.may(&seat(byte), at)).count();
        for byte in 1..=4 {
            assert_eq!(given(&mut serving, byte, now), 1_200);
        }
        assert_eq!(given(&mut serving, 5, now), 0, "all together");
        assert_eq!(given(&mut serving, 5, now + PERIOD), 1_200);
    }
}
