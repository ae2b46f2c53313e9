//! What a host asks of a member and of its seats.

use std::sync::Arc;

use actix::{Handler, Message as ActixMessage, MessageResult, ResponseFuture};
use bitcoin::Txid;
use btcr2_aggregation_protocol::{
    cohort::standing::{CoinRef, seat::Seat},
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes},
    id::CohortId,
};

use super::MemberActor;
use crate::standing::policy::RowWanted;

/// A request for a seat.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
#[non_exhaustive]
pub enum SeatRequest {
    /// Register these DIDs, or release them. What is registered is proven again, by the current documents: a service that receives updates then
    /// knows those that were announced elsewhere.
    Rows(Vec<RowWanted>),
    /// There are updates to announce.
    Pending,
    /// Ask the host whether there are updates to announce, and claim so if there are.
    Claim,
    /// A coin of the cohort was spent, finally; for a member without a chain.
    Spent {
        /// The coin.
        coin: CoinRef,
        /// By which transaction.
        by: Txid,
        /// What that announces.
        signal: Option<SignalBytes>,
    },
    /// Resolvers give this version of a DID, finally.
    Resolved {
        /// The index.
        index: DidIndex,
        /// The version.
        version: u64,
    },
    /// The journal of the seat was restored from a backup.
    RestoredFromBackup {
        /// Every coin that the address has now, in blocks and in the mempool.
        coins: Vec<CoinRef>,
        /// The updates in the backup: index, version and hash.
        updates: Vec<(DidIndex, u64, DocumentHash)>,
    },
    /// Look at the chain now.
    Look,
}

/// A seat of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeatSummary {
    /// Its own DID.
    pub seat: Did,
    /// The service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
}

/// The seats of a member.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "Vec<SeatSummary>")]
pub(crate) struct LiveSeats;

/// Answered when the seats of previous runs are restored.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Restored;

/// A request for the seat with this DID. Answered with whether there is one.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "bool")]
pub(crate) struct ToSeat(pub(crate) Did, pub(crate) SeatRequest);

/// A snapshot of a seat.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Option<Arc<Seat>>")]
pub(crate) struct SeatSnapshot(pub(crate) Did);

/// A snapshot, from a seat's actor.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "Arc<Seat>")]
pub(super) struct Inspect;

impl Handler<LiveSeats> for MemberActor {
    type Result = MessageResult<LiveSeats>;

    fn handle(&mut self, _: LiveSeats, _: &mut Self::Context) -> Self::Result {
        let summary = |(did, child): (&Did, &super::Child)| SeatSummary {
            seat: did.clone(),
            service: child.service.clone(),
            cohort_id: child.cohort_id.clone(),
        };
        MessageResult(self.seats.iter().map(summary).collect())
    }
}

impl Handler<Restored> for MemberActor {
    type Result = ();

    fn handle(&mut self, _: Restored, _: &mut Self::Context) {}
}

impl Handler<ToSeat> for MemberActor {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, ToSeat(did, request): ToSeat, _: &mut Self::Context) -> Self::Result {
        let sending = self.seats.get(&did).map(|child| child.address.send(request));
        Box::pin(async move {
            match sending {
                Some(sending) => sending.await.is_ok(),
                None => false,
            }
        })
    }
}

impl Handler<SeatSnapshot> for MemberActor {
    type Result = ResponseFuture<Option<Arc<Seat>>>;

    fn handle(&mut self, SeatSnapshot(did): SeatSnapshot, _: &mut Self::Context) -> Self::Result {
        let asking = self.seats.get(&did).map(|child| child.address.send(Inspect));
        Box::pin(async move { asking?.await.ok() })
    }
}
