//! A cohort of five seats moves to one of six, with one seat absent; a seat that would be left behind does not sign.

use std::sync::Arc;

use btcr2_aggregation_actors::{
    handle::StandingCohort,
    standing::{
        SeatRequest,
        notice::{SeatNotice, StandingNotice},
    },
    transport::{Transport, memory::MemoryTransport},
};
use btcr2_aggregation_protocol::cohort::standing::{
    CoinRef, Mode, OpportunityKind, StandingBeacon, StandingTerms, cohort::CohortInput,
};

use super::world::{World, change, start_of_time, terms, until};
use crate::common::on_paused_clock;

/// The first five members form a cohort; the others are not started.
async fn formed(world: &mut World, beacon: StandingBeacon) -> StandingCohort {
    let old = world.start_service().await.open_standing(terms(beacon, 5)).await.unwrap();
    world.cohort = Some(old.clone());
    for seat in &mut world.seats[..5] {
        seat.start().await;
    }
    for seat in &mut world.seats[..5] {
        seat.until(|notice| matches!(notice, SeatNotice::RowsAcknowledged { .. }).then_some(())).await;
    }
    world.deposit(1_000_000).await;
    // It shows the seats their own rows, too.
    old.open_now(OpportunityKind::Roster).await.unwrap();
    for seat in &mut world.seats[..5] {
        seat.until(|notice| matches!(notice, SeatNotice::Registered { .. }).then_some(())).await;
    }
    old
}

fn of_six(beacon: StandingBeacon) -> StandingTerms {
    let mut terms = terms(beacon, 6);
    terms.fallback_threshold = Some(4);
    terms
}

/// The successor forms, and shows each seat that its DIDs are registered; then its predecessor's seats know it.
async fn succeed(
    world: &mut World,
    old: &StandingCohort,
    terms: StandingTerms,
    members: &[usize],
) -> StandingCohort {
    let new = world.service.as_ref().unwrap().open_successor(terms, old).await.unwrap();
    for at in members {
        if world.seats[*at].member.is_none() {
            world.seats[*at].start().await;
        }
    }
    for at in members {
        let id = new.id().clone();
        world.seats[*at]
            .until(|notice| match notice {
                SeatNotice::RowsAcknowledged { cohort_id, .. } => (*cohort_id == id).then_some(()),
                _ => None,
            })
            .await;
    }
    new.open_now(OpportunityKind::Roster).await.unwrap();
    for at in members {
        let id = new.id().clone();
        let registered = world.seats[*at]
            .until(|notice| match notice {
                SeatNotice::Registered { cohort_id, registered, .. } => {
                    (*cohort_id == id).then_some(registered.len())
                }
                _ => None,
            })
            .await;
        assert_eq!(registered, 2, "without any coin");
    }
    old.name_successor(&new).await.unwrap();
    new
}

async fn prepared(world: &mut World, at: usize) -> usize {
    world.seats[at]
        .until(|notice| match notice {
            SeatNotice::MovePrepared { registered, .. } => Some(registered.len()),
            _ => None,
        })
        .await
}

async fn moves(network: Arc<dyn Transport>, client: Arc<dyn Transport>, beacon: StandingBeacon) {
    let mut world = World::new(start_of_time(), network, client, 7);
    let old = formed(&mut world, beacon).await;
    world.wants(0, 0).await;
    let (number, first) = world.signed().await;
    assert_eq!(number, 2);
    let spent = first.input[0].previous_output;
    let deposit = CoinRef { txid: spent.txid, vout: spent.vout, value: 1_000_000 };
    world.mine(&first, &[deposit]).await;
    // The fifth is away from now on. Two others join.
    world.seats[4].stop().await;
    let members = [0, 1, 2, 3, 5, 6];
    let new = succeed(&mut world, &old, of_six(beacon), &members).await;
    for at in 0..4 {
        assert_eq!(prepared(&mut world, at).await, 2);
    }
    let premature = new.open_now(OpportunityKind::Announcement).await;
    assert!(premature.is_err(), "it has no coin yet");
    // Within the cadence.
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    old.open_now(OpportunityKind::Move).await.unwrap();
    let (mode, moved) = until(&mut world.notices, |notice| match notice {
        StandingNotice::NumberSigned { mode, transaction, .. } => Some((*mode, Arc::clone(transaction))),
        _ => None,
    })
    .await;
    assert_eq!(mode, Mode::Fallback);
    let output = new.inspect().await.unwrap().output().unwrap().clone();
    assert_eq!(moved.output[0].script_pubkey, *output.script_pubkey(), "its change goes to the successor");
    // It is final: old and new cohort see it on the chain.
    let (coin, by) = (change(&first), moved.compute_txid());
    let signal = btcr2_aggregation_actors::chain::signal_of(&moved);
    old.report(CohortInput::Spent { coin, by }).await.unwrap();
    new.report(CohortInput::CoinFound(change(&moved))).await.unwrap();
    for at in 0..4 {
        let seat = &world.seats[at];
        let (in_old, in_new) = (seat.did_in(&old).await, seat.did_in(&new).await);
        let member = seat.member.as_ref().unwrap();
        member.request(&in_old, SeatRequest::Spent { coin, by, signal }).await.unwrap();
        let confirmed = seat.controller.confirmed();
        assert_eq!(confirmed.len(), 2, "both DIDs have moved");
        for (index, version) in confirmed {
            member.request(&in_old, SeatRequest::Resolved { index, version }).await.unwrap();
            member.request(&in_new, SeatRequest::Resolved { index, version }).await.unwrap();
        }
    }
    assert!(old.inspect().await.unwrap().is_move_final());
    let refused = old.open_now(OpportunityKind::Announcement).await.unwrap_err();
    assert!(refused.to_string().contains("announces no more"), "{refused}");
    // The successor goes on, with the coin of the move.
    let seat = &world.seats[0];
    seat.controller.wants(1);
    let in_new = seat.did_in(&new).await;
    seat.member.as_ref().unwrap().request(&in_new, SeatRequest::Pending).await.unwrap();
    let (_, next) = world.signed().await;
    assert_eq!(next.input[0].previous_output.txid, by);
    assert_eq!(next.input[0].witness.len(), 1, "by all of its seats");
}

#[test]
fn five_seats_move_to_a_cohort_of_six_with_one_absent() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        on_paused_clock(async move {
            let network = Arc::new(MemoryTransport::new());
            moves(network.clone(), network, beacon).await;
        });
    }
}

/// Service and members start again between the naming of the successor and the move.
#[test]
fn a_migration_goes_on_after_restarts() {
    on_paused_clock(async {
        let network = Arc::new(MemoryTransport::new());
        let mut world = World::new(start_of_time(), network.clone(), network, 6);
        let old = formed(&mut world, StandingBeacon::Cas).await;
        let new = succeed(&mut world, &old, of_six(StandingBeacon::Cas), &[0, 1, 2, 3, 4, 5]).await;
        for at in 0..5 {
            assert_eq!(prepared(&mut world, at).await, 2);
        }
        world.restart_service().await;
        for seat in &mut world.seats[..5] {
            seat.stop().await;
            seat.start().await;
        }
        let service = world.service.as_ref().unwrap();
        let (old, new) = (service.standing_cohort(old.id()), service.standing_cohort(new.id()));
        assert!(new.inspect().await.unwrap().succeeds().is_some());
        assert_eq!(old.inspect().await.unwrap().successor().unwrap().cohort_id, *new.id());
        old.open_now(OpportunityKind::Move).await.unwrap();
        let (_, moved) = world.signed().await;
        let output = new.inspect().await.unwrap().output().unwrap().clone();
        assert_eq!(moved.output[0].script_pubkey, *output.script_pubkey());
        assert_eq!(moved.input[0].witness.len(), 1, "by all seats");
        assert_eq!(world.seats[4].controller.confirmed().len(), 2);
    });
}

/// A member without a seat at the successor decides nothing by default: the others move without it.
#[test]
fn a_member_that_would_be_stranded_does_not_sign() {
    on_paused_clock(async {
        let network = Arc::new(MemoryTransport::new());
        let mut world = World::new(start_of_time(), network.clone(), network, 6);
        let old = formed(&mut world, StandingBeacon::Smt).await;
        let mut terms = of_six(StandingBeacon::Smt);
        (terms.min_participants, terms.max_participants) = (5, 5);
        // It is not there when the successor forms, and comes back.
        world.seats[4].stop().await;
        succeed(&mut world, &old, terms, &[0, 1, 2, 3, 5]).await;
        world.seats[4].start().await;
        for at in 0..4 {
            assert_eq!(prepared(&mut world, at).await, 2);
        }
        world.seats[4].until(|notice| matches!(notice, SeatNotice::SuccessorKnown { .. }).then_some(())).await;
        old.open_now(OpportunityKind::Move).await.unwrap();
        let reason = world.seats[4]
            .until(|notice| match notice {
                SeatNotice::SeatRefusedToSign { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .await;
        assert!(reason.contains("would be left"), "{reason}");
        let (number, moved) = world.signed().await;
        assert_eq!(number, 3, "the roster, the refused move, the move");
        assert!(moved.input[0].witness.len() > 1, "by the four others");
    });
}
