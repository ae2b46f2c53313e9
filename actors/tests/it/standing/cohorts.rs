//! Lives of standing cohorts in one process.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_actors::{
    standing::notice::{SeatNotice, StandingNotice},
    transport::memory::MemoryTransport,
};
use btcr2_aggregation_protocol::cohort::standing::{BoardContent, Mode, OpportunityKind, StandingBeacon, Updates};

use super::world::{World, change, start_of_time, terms, until};
use crate::common::on_paused_clock;

fn world(seats: usize) -> World {
    let network = Arc::new(MemoryTransport::new());
    World::new(start_of_time(), network.clone(), network, seats)
}

#[test]
fn a_cohort_announces_again_and_again() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        on_paused_clock(async {
            let mut world = world(3);
            world.form(terms(beacon, 3)).await;
            let mut coin = None;
            for round in 0..4 {
                let seat = round % 3;
                world.wants(seat, round % 2).await;
                let (number, transaction) = world.signed().await;
                assert_eq!(number, round as u64 + 1);
                let spent = coin.unwrap_or_else(|| {
                    let spent = transaction.input[0].previous_output;
                    btcr2_aggregation_protocol::cohort::standing::CoinRef {
                        txid: spent.txid,
                        vout: spent.vout,
                        value: 1_000_000,
                    }
                });
                assert_eq!(transaction.input[0].previous_output.txid, spent.txid, "the change of the one before");
                assert_eq!(transaction.input[0].witness.len(), 1, "by key path");
                for seat in &mut world.seats {
                    seat.until(|notice| {
                        matches!(notice, SeatNotice::Announced { number: of, .. } if *of == number).then_some(())
                    })
                    .await;
                }
                world.mine(&transaction, &[spent]).await;
                coin = Some(change(&transaction));
            }
            for seat in &world.seats {
                assert_eq!(seat.controller.boards(), [1, 2, 3, 4]);
            }
            // Every board is stored at the service, and gives what was announced.
            let listed = world.standing.boards.list(world.cohort().id(), 0, 100).await.unwrap();
            assert_eq!(listed.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
            let bytes = world.standing.boards.get(&listed[3].1).await.unwrap().unwrap();
            let content: BoardContent = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(content.roster.iter().map(|seat| seat.indexes.len()).sum::<usize>(), 6);
        });
    }
}

#[test]
fn a_document_may_list_the_beacon_when_k_seats_have_signed() {
    on_paused_clock(async {
        let mut world = world(3);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        // No number yet: the service alone has acknowledged the rows.
        let seat = world.seats[0].did().await;
        let machine = world.seats[0].member.as_ref().unwrap().inspect(&seat).await.unwrap();
        assert_eq!(machine.confirmed_indexes().count(), 0);
        drop(machine);
        // An idle number shows the roster.
        world.cohort().open_now(OpportunityKind::Announcement).await.unwrap();
        until(&mut world.notices, |notice| matches!(notice, StandingNotice::NumberIdle { .. }).then_some(())).await;
        for seat in &mut world.seats {
            let registered = seat
                .until(|notice| match notice {
                    SeatNotice::Registered { registered, .. } => Some(registered.len()),
                    _ => None,
                })
                .await;
            assert_eq!(registered, 2);
        }
        let again = world.cohort().open_now(OpportunityKind::Announcement).await;
        assert!(
            again.unwrap_err().to_string().contains("time between announcements"),
            "the cadence holds for the operator too"
        );
    });
}

#[test]
fn an_absent_seat_costs_a_deadline_and_is_told_later() {
    on_paused_clock(async {
        let mut world = world(3);
        let mut terms = terms(StandingBeacon::Smt, 3);
        terms.updates = Updates::Hash;
        world.form(terms).await;
        world.seats[2].stop().await;
        world.wants(0, 0).await;
        let (number, mode, absent) = until(&mut world.notices, |notice| match notice {
            StandingNotice::NumberSigned { number, mode, absent, .. } => Some((*number, *mode, absent.len())),
            _ => None,
        })
        .await;
        assert_eq!((number, mode, absent), (1, Mode::Fallback, 1));
        // It gets the board of what it has missed, and can make its proofs.
        world.seats[2].start().await;
        let missed = world.seats[2]
            .until(|notice| match notice {
                SeatNotice::Missed { number, .. } => Some(*number),
                _ => None,
            })
            .await;
        assert_eq!(missed, 1);
    });
}

#[test]
fn a_seat_that_refuses_costs_one_number() {
    on_paused_clock(async {
        let mut world = world(3);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        world.seats[1].controller.refuses(Some("not today"));
        world.wants(0, 0).await;
        let refused = until(&mut world.notices, |notice| match notice {
            StandingNotice::NumberFailed { refused, .. } => Some(refused.clone()),
            _ => None,
        })
        .await;
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].1, "not today");
        let (number, transaction) = world.signed().await;
        assert_eq!(number, 2);
        assert!(transaction.input[0].witness.len() > 1, "by fallback");
    });
}

#[test]
fn a_cohort_waits_for_its_cadence() {
    on_paused_clock(async {
        let mut world = world(3);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        world.wants(0, 0).await;
        world.signed().await;
        let first = tokio::time::Instant::now();
        world.wants(1, 0).await;
        world.signed().await;
        assert!(first.elapsed() >= Duration::from_secs(58), "{:?}", first.elapsed());
    });
}
