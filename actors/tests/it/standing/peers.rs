//! Boards that a service has lost, or withholds: other seats have them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use btcr2_aggregation_actors::runtime::{Clock, Randomness};
use btcr2_aggregation_actors::{
    standing::{
        boards::{BoardError, BoardStore, MemoryBoards},
        notice::SeatNotice,
    },
    transport::{
        Delivery, Inbox, Outbound, Transport,
        memory::MemoryTransport,
        nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
    },
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        StandingBeacon,
        message::{BoardPart, BoardRequest, SeatProof, StandingMessage},
    },
    hash::DocumentHash,
    id::CohortId,
    identity::Identity,
    message::Body,
};
use futures::{FutureExt, future::BoxFuture};

use super::world::{Seat, World, announce, start_of_time, terms};
use crate::common::{identity, on_paused_clock};

const HAS: u8 = 0;
const LOST: u8 = 1;
const SILENT: u8 = 2;

/// The boards of a service, which it has, has lost, or does not give.
#[derive(Clone, Default)]
struct Faulty {
    boards: MemoryBoards,
    state: Arc<AtomicU8>,
    asked: Arc<Mutex<BTreeSet<DocumentHash>>>,
}

impl BoardStore for Faulty {
    fn put(
        &self,
        cohort_id: &CohortId,
        number: u64,
        hash: &DocumentHash,
        bytes: Arc<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), BoardError>> {
        self.boards.put(cohort_id, number, hash, bytes)
    }

    fn get(&self, hash: &DocumentHash) -> BoxFuture<'static, Result<Option<Arc<Vec<u8>>>, BoardError>> {
        self.asked.lock().unwrap().insert(*hash);
        match self.state.load(Ordering::SeqCst) {
            HAS => self.boards.get(hash),
            LOST => futures::future::ready(Ok(None)).boxed(),
            _ => futures::future::pending().boxed(),
        }
    }

    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<(u64, DocumentHash)>, BoardError>> {
        self.boards.list(cohort_id, after, most)
    }
}

/// The number of the next announcement that a seat has missed and got.
async fn missed(seat: &mut Seat) -> u64 {
    seat.until(|notice| match notice {
        SeatNotice::Missed { number, .. } => Some(*number),
        _ => None,
    })
    .await
}

fn faulty(world: &mut World) -> Faulty {
    let boards = Faulty::default();
    world.standing.boards = Arc::new(boards.clone());
    boards
}

#[test]
fn a_seat_gets_boards_from_others_that_the_service_has_lost() {
    for state in [LOST, SILENT] {
        on_paused_clock(async {
            let network = Arc::new(MemoryTransport::new());
            let mut world = World::new(start_of_time(), network.clone(), network, 3);
            let boards = faulty(&mut world);
            world.form(terms(StandingBeacon::Smt, 3)).await;
            world.seats[2].stop().await;
            let expected = announce(&mut world, &[0, 1]).await;
            boards.state.store(state, Ordering::SeqCst);
            world.seats[2].start().await;
            let mut got = vec![missed(&mut world.seats[2]).await, missed(&mut world.seats[2]).await];
            got.sort_unstable();
            assert_eq!(got, expected);
            assert!(!boards.asked.lock().unwrap().is_empty(), "the service is asked first");
            assert_eq!(world.seats[2].controller.missed().len(), 2);
        });
    }
}

#[test]
fn a_service_that_withholds_a_board_does_not_stop_a_number() {
    on_paused_clock(async {
        let network = Arc::new(MemoryTransport::new());
        let mut world = World::new(start_of_time(), network.clone(), network, 3);
        let boards = faulty(&mut world);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        // Seats of one process share no store here: without the service no seat has the new board.
        boards.state.store(LOST, Ordering::SeqCst);
        world.wants(0, 0).await;
        let failed = super::world::until(&mut world.notices, |notice| match notice {
            btcr2_aggregation_actors::standing::notice::StandingNotice::NumberFailed { number, .. } => {
                Some(*number)
            }
            _ => None,
        })
        .await;
        assert_eq!(failed, 1, "it ends at its deadline");
        boards.state.store(HAS, Ordering::SeqCst);
        assert_eq!(world.signed().await.0, 2);
    });
}

#[actix_rt::test]
async fn a_seat_gets_lost_boards_over_nostr() {
    let relay = EmbeddedRelay::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let transport = || {
        let config = NostrConfig::new(vec![relay.url().to_owned()]);
        Arc::new(NostrTransport::new(config, Clock::system(), Randomness::System).unwrap())
    };
    let mut world = World::new(Clock::system(), transport(), transport(), 3);
    let boards = faulty(&mut world);
    let mut terms = terms(StandingBeacon::Smt, 3);
    terms.min_seconds_between_announcements = 1;
    // As short as members accept.
    terms.respond_seconds = 10;
    world.form(terms).await;
    world.seats[2].stop().await;
    let expected = announce(&mut world, &[0]).await;
    boards.state.store(LOST, Ordering::SeqCst);
    world.seats[2].start().await;
    assert_eq!(missed(&mut world.seats[2]).await, expected[0]);
}

#[test]
fn a_seat_gives_boards_to_seats_of_its_cohort_only() {
    on_paused_clock(async {
        let network = Arc::new(MemoryTransport::new());
        let mut world = World::new(start_of_time(), network.clone(), network.clone(), 3);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        announce(&mut world, &[0]).await;
        let cohort_id = world.cohort().id().clone();
        let hash = world.standing.history.get(&cohort_id, 1).await.unwrap().unwrap().board_hash;
        let holder = world.seats[0].did().await;
        let machine = world.seats[0].member.as_ref().unwrap().inspect(&holder).await.unwrap();
        let context = machine.context().unwrap().clone();
        let (sender, mut received) = Inbox::channel(16);
        let outsider: Identity = identity("an outsider");
        let connection = network.connect(&outsider, sender).await.unwrap();
        let mut rng = crate::http_support::rng();
        let foreign = outsider.secret_key();
        let seat = world.seats[1].key(&cohort_id);
        let own = world.seats[1].identity(&cohort_id);
        let (other, unknown) = (DocumentHash::from_bytes([9; 32]), DocumentHash::from_bytes([8; 32]));
        let mut proof = |from: &Identity, board: &DocumentHash, key| {
            Some(SeatProof::sign(&context, from.did(), board, key, &mut rng))
        };
        let requests = [
            (hash, None),
            (hash, proof(&outsider, &hash, foreign)),
            // That of another sender, and of another board.
            (hash, proof(&own, &hash, &seat)),
            (hash, proof(&outsider, &other, &seat)),
            // These are answered.
            (unknown, proof(&outsider, &unknown, &seat)),
            (hash, proof(&outsider, &hash, &seat)),
        ];
        for (board_hash, seat) in requests {
            let request = BoardRequest { cohort_id: cohort_id.clone(), board_hash, part: 0, seat };
            let body = Body::from(StandingMessage::from(request)).into();
            connection.send(Outbound::Direct { to: holder.clone(), body, until: None }).await.unwrap();
        }
        let mut answers: Vec<BoardPart> = Vec::new();
        while answers.len() < 2 {
            let Some(Delivery::Message(message)) = received.recv().await else { continue };
            message.receipt.clone().confirm();
            let Body::Standing(standing) = &*message.body else { continue };
            if let StandingMessage::BoardPart(part) = &**standing {
                answers.push(part.clone());
            }
        }
        assert_eq!((answers[0].board_hash, answers[0].parts), (unknown, 0), "there is no such board");
        assert_eq!((answers[1].board_hash, answers[1].parts), (hash, 1));
        let bytes = world.standing.boards.get(&hash).await.unwrap().unwrap();
        assert_eq!(answers[1].decoded().unwrap(), *bytes);
    });
}
