//! What an announcement costs: messages on the wire, boards that are read, journals that a restart reads. The figures are those of
//! `examples/standing.rs`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use btcr2_aggregation_actors::{
    journal::Journal,
    standing::notice::SeatNotice,
    supervision::End,
    transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent, memory::MemoryTransport},
};
use btcr2_aggregation_protocol::{
    cohort::standing::{SharedBoards, StandingBeacon},
    identity::Identity,
};

use super::{
    scene::{Party, Scene},
    world::{World, start_of_time, terms},
};
use crate::common::on_paused_clock;

const SEATS: usize = 5;

/// Counts the messages of a network by type.
#[derive(Clone, Default)]
struct Counting {
    network: MemoryTransport,
    counts: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

struct CountingConnection(Box<dyn Connection>, Counting);

#[async_trait]
impl Transport for Counting {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        Ok(Box::new(CountingConnection(self.network.connect(identity, inbox).await?, self.clone())))
    }
}

#[async_trait]
impl Connection for CountingConnection {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let kind = match &outbound {
            Outbound::Direct { body, .. } | Outbound::Broadcast { body } => Some(body.short_type()),
            Outbound::WithdrawAdvert { .. } => None,
        };
        self.0.try_send(outbound)?;
        if let Some(kind) = kind {
            *self.1.counts.lock().unwrap().entry(kind).or_default() += 1;
        }
        Ok(())
    }

    async fn ended(&self) -> End {
        self.0.ended().await
    }
}

/// A cohort whose seats are all in one process with their service, or all alone.
fn world(network: &Counting, shares: bool) -> World {
    let network = Arc::new(network.clone());
    let mut world = World::new(start_of_time(), network.clone(), network, SEATS);
    if shares {
        for seat in &mut world.seats {
            seat.settings.reader = Arc::clone(&world.standing.reader);
            seat.settings.boards = Arc::clone(&world.standing.boards);
        }
    }
    world
}

/// One update of each seat, until every seat has seen the announcement and it is final.
async fn announce(world: &mut World) {
    let coin = world.cohort().inspect().await.unwrap().coins()[0];
    world.seats.iter().for_each(|seat| seat.controller.wants(0));
    world.wants(0, 0).await;
    let (_, transaction) = world.signed().await;
    for seat in &mut world.seats {
        seat.until(|notice| matches!(notice, SeatNotice::Announced { .. }).then_some(())).await;
    }
    world.mine(&transaction, &[coin]).await;
}

/// The opportunity and its response, the request and its confirmation; and what reports the end. A seat that does not share the store of
/// its service fetches the board.
#[test]
fn an_announcement_takes_two_round_trips() {
    for shares in [true, false] {
        on_paused_clock(async move {
            let network = Counting::default();
            let mut world = world(&network, shares);
            world.form(terms(StandingBeacon::Smt, SEATS as u16)).await;
            network.counts.lock().unwrap().clear();
            announce(&mut world).await;
            let mut expected = BTreeMap::from([
                ("standing/pending", 1),
                ("standing/opportunity", SEATS),
                ("standing/response", SEATS),
                ("standing/confirmation_request", SEATS),
                ("standing/confirmation", SEATS),
                ("standing/number_ended", SEATS),
            ]);
            if !shares {
                expected.extend([("standing/board_request", SEATS), ("standing/board_part", SEATS)]);
            }
            assert_eq!(*network.counts.lock().unwrap(), expected, "{shares}");
        });
    }
}

/// Every seat gets the board that the service has made: nothing is parsed, and the tree is built once.
#[test]
fn in_one_process_a_board_is_read_once() {
    on_paused_clock(async {
        let mut world = world(&Counting::default(), true);
        world.form(terms(StandingBeacon::Smt, SEATS as u16)).await;
        announce(&mut world).await;
        let boards: Vec<_> = world.seats.iter().map(|seat| seat.controller.last_board().unwrap()).collect();
        assert!(boards.iter().all(|board| Arc::ptr_eq(board, &boards[0])));
        let rosters: Vec<_> = {
            let mut rosters = Vec::new();
            for seat in &world.seats {
                let machine = seat.member.as_ref().unwrap().inspect(&seat.did().await).await.unwrap();
                rosters.push(Arc::clone(machine.roster().unwrap()));
            }
            rosters
        };
        assert!(rosters.iter().all(|roster| Arc::ptr_eq(roster, &rosters[0])), "the rows are followed once");
        // A seat with a reader of its own reads the same.
        world.seats[0].stop().await;
        world.seats[0].settings.reader = Arc::new(SharedBoards::default());
        world.seats[0].start().await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        announce(&mut world).await;
        let own = world.seats[0].controller.last_board().unwrap();
        let shared = world.seats[1].controller.last_board().unwrap();
        assert!(!Arc::ptr_eq(&own, &shared));
        assert_eq!(own.bytes(), shared.bytes());
    });
}

async fn records(journal: &dyn Journal) -> (usize, usize) {
    let (mut records, mut bytes) = (0, 0);
    for stream in journal.streams().await.unwrap() {
        for record in journal.read(&stream).await.unwrap() {
            (records, bytes) = (records + 1, bytes + record.to_json().unwrap().len());
        }
    }
    (records, bytes)
}

/// After 200 announcements a restart reads a few hundred records, most of which are one state and what followed on it.
#[test]
fn a_restart_reads_a_bounded_journal() {
    on_paused_clock(async {
        let mut world = world(&Counting::default(), true);
        world.form(terms(StandingBeacon::Cas, SEATS as u16)).await;
        for _ in 0..200 {
            announce(&mut world).await;
            tokio::time::sleep(Duration::from_secs(61)).await;
        }
        let (count, bytes) = records(&*world.journal).await;
        assert!(count < 300 && bytes < 300_000, "{count} {bytes}");
        for seat in &world.seats {
            let (count, bytes) = records(&*seat.settings.journal).await;
            assert!(count < 300 && bytes < 600_000, "{count} {bytes}");
        }
        world.restart_service().await;
        assert_eq!(world.cohort().inspect().await.unwrap().last_number(), 200);
        for seat in 0..SEATS {
            world.seats[seat].stop().await;
            world.seats[seat].start().await;
        }
        announce(&mut world).await;
    });
}

#[test]
fn all_coins_of_an_address_are_asked_for_once_even_if_there_is_none() {
    on_paused_clock(async {
        let mut scene = Scene::new(&terms(StandingBeacon::Cas, 3), 3, Party::Service);
        scene.form().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(scene.chain.scans(), 4, "by the service and three seats");
        scene.deposit().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(scene.chain.scans(), 4);
    });
}
