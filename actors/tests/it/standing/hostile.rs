//! Hostile peers of standing cohorts, where the actors matter: floods, garbage, deaf seats, repeated messages. Those that concern the
//! machines alone are in the protocol's tests.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_actors::{
    handle::StandingError,
    journal::{Journal, StreamId},
    standing::notice::{SeatNotice, StandingNotice},
    transport::memory::MemoryTransport,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Absent, OpportunityKind, StandingBeacon, TransactionHex, Updates,
        message::{EndKind, NumberEndedNotice, Pending, ResponsePart, RowsRequest, SeatOptIn, StandingMessage},
    },
    did::Did,
    hash::{DocumentHash, sha256},
    id::CohortId,
    key::SecretKey,
    message::{Body, Message},
};
use tokio::time::Instant;

use super::{
    filter::{Filter, losing_first},
    world::{World, start_of_time, terms, until},
};
use crate::common::{NETWORK, identity, on_paused_clock, pass, settle};

fn world(network: &MemoryTransport, seats: usize) -> World {
    let network = Arc::new(network.clone());
    World::new(start_of_time(), network.clone(), network, seats)
}

fn text(from: &Did, to: &Did, message: StandingMessage) -> String {
    Message::new(from.clone(), Some(to.clone()), Body::Standing(Box::new(message))).to_json()
}

fn outsider(number: usize) -> (SecretKey, Did) {
    let key = SecretKey::from_bytes(&sha256(format!("outsider {number}").as_bytes())).unwrap();
    let did = Did::from_key(key.public_key(), NETWORK);
    (key, did)
}

async fn records(journal: &dyn Journal, stream: &StreamId) -> usize {
    journal.read(stream).await.unwrap().len()
}

/// Outsiders send, again and again, what seats and candidates send.
#[test]
fn floods_of_outsiders_change_nothing_for_the_seats() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let mut world = world(&network, 3);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        let (service, cohort_id) = (identity("service").did().clone(), world.cohort().id().clone());
        let stream = StreamId::of_standing(&cohort_id);
        let before = records(&*world.journal, &stream).await;
        let mut rng = crate::common::randomness("outsiders").for_actor("flood");
        for number in 0..500 {
            let (key, did) = outsider(number);
            let messages: [StandingMessage; 4] = [
                SeatOptIn::sign(&service, &cohort_id, &did, &key, &mut rng).into(),
                Pending { cohort_id: cohort_id.clone() }.into(),
                RowsRequest { cohort_id: cohort_id.clone(), after: 0 }.into(),
                ended(&cohort_id, 1, None, None),
            ];
            for message in messages {
                network.inject(&did, &service, &text(&did, &service, message));
            }
            network.inject(&did, &service, "not a message");
            settle().await;
        }
        assert_eq!(records(&*world.journal, &stream).await, before, "nothing of it is stored");
        world.wants(0, 0).await;
        assert_eq!(world.signed().await.0, 1);
        assert_eq!(world.cohort().inspect().await.unwrap().seats().count(), 3);
    });
}

/// Outsiders ask for seats while a cohort forms: no more of them wait than the terms bound, and none is given a seat.
#[test]
fn a_flood_of_candidates_is_bounded() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let mut world = world(&network, 3);
        let mut terms = terms(StandingBeacon::Cas, 3);
        terms.max_participants = 8;
        (terms.absent, terms.fallback_threshold) = (Absent::Wait, None);
        world.cohort = Some(world.start_service().await.open_standing(terms).await.unwrap());
        let (service, cohort_id) = (identity("service").did().clone(), world.cohort().id().clone());
        let mut rng = crate::common::randomness("outsiders").for_actor("candidates");
        for number in 0..200 {
            let (key, did) = outsider(number);
            let mut opt_in = SeatOptIn::sign(&service, &cohort_id, &did, &key, &mut rng);
            // Of a key that it does not have.
            opt_in.participant_pk = outsider(number + 1_000).0.public_key();
            network.inject(&did, &service, &text(&did, &service, opt_in.into()));
            settle().await;
        }
        for seat in &mut world.seats {
            seat.start().await;
        }
        for seat in &mut world.seats {
            seat.until(|notice| matches!(notice, SeatNotice::SeatAccepted { .. }).then_some(())).await;
        }
        world.cohort().finalize().await.unwrap();
        for seat in &mut world.seats {
            let seats = seat
                .until(|notice| match notice {
                    SeatNotice::SeatFormed { seats, .. } => Some(*seats),
                    _ => None,
                })
                .await;
            assert_eq!(seats, 3);
        }
    });
}

fn ended(
    cohort_id: &CohortId,
    number: u64,
    transaction: Option<TransactionHex>,
    board_hash: Option<DocumentHash>,
) -> StandingMessage {
    let end = if transaction.is_some() { EndKind::Announced } else { EndKind::Failed };
    NumberEndedNotice { cohort_id: cohort_id.clone(), number, end, reason: None, transaction, board_hash }.into()
}

#[test]
fn an_announcement_that_is_repeated_is_journaled_once() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let mut world = world(&network, 3);
        world.form(terms(StandingBeacon::Smt, 3)).await;
        world.seats[2].stop().await;
        world.wants(0, 0).await;
        let (board, transaction) = until(&mut world.notices, |notice| match notice {
            StandingNotice::NumberSigned { board_hash, transaction, .. } => {
                Some((*board_hash, Arc::clone(transaction)))
            }
            _ => None,
        })
        .await;
        // The first has signed it, the last one has missed it.
        world.seats[2].start().await;
        world.seats[2].until(|notice| matches!(notice, SeatNotice::Missed { .. }).then_some(())).await;
        pass(Duration::from_secs(10)).await;
        let (service, cohort_id) = (identity("service").did().clone(), world.cohort().id().clone());
        for place in [0, 2] {
            let seat = world.seats[place].did().await;
            let stream = StreamId::of_seat(&seat);
            let before = records(world.seats[place].journal(), &stream).await;
            for _ in 0..200 {
                for (number, board) in [(1, Some(board)), (1, Some(DocumentHash::from_bytes([7; 32])))] {
                    let repeated = ended(&cohort_id, number, Some(TransactionHex(Arc::clone(&transaction))), board);
                    network.inject(&service, &seat, &text(&service, &seat, repeated));
                }
                settle().await;
            }
            assert_eq!(records(world.seats[place].journal(), &stream).await, before, "seat {place}");
            let mut repeated = 0;
            while let Ok(notice) = world.seats[place].notices.try_recv() {
                repeated += usize::from(matches!(&*notice, SeatNotice::Missed { .. }));
            }
            assert_eq!(repeated, 0);
        }
    });
}

/// A seat that reads nothing, but is connected and sends, costs the others a deadline.
#[test]
fn a_seat_that_reads_nothing_stops_no_other() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let mut world = world(&network, 3);
        let deaf = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_deaf = Arc::clone(&deaf);
        let filter = Filter::new(
            Arc::new(network.clone()),
            |_| true,
            move |_| !is_deaf.load(std::sync::atomic::Ordering::SeqCst),
        );
        world.seats[2].over(Arc::new(filter));
        world.form(terms(StandingBeacon::Cas, 3)).await;
        deaf.store(true, std::sync::atomic::Ordering::SeqCst);
        for number in 1..=3 {
            let asked = Instant::now();
            world.wants(0, 0).await;
            world.wants(2, 0).await;
            let (signed, absent) = until(&mut world.notices, |notice| match notice {
                StandingNotice::NumberSigned { number, absent, .. } => Some((*number, absent.len())),
                _ => None,
            })
            .await;
            assert_eq!((signed, absent), (number, 1));
            assert!(asked.elapsed() <= Duration::from_secs(600 + 70), "{:?}", asked.elapsed());
            for (index, version) in world.seats[0].controller.confirmed() {
                let resolved = btcr2_aggregation_actors::standing::SeatRequest::Resolved { index, version };
                world.seats[0].request(resolved).await;
            }
        }
    });
}

/// What a seat can send that no honest one does is refused, and its valid response counts all the same.
#[test]
fn garbage_of_a_seat_is_refused_and_costs_nothing() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let mut world = world(&network, 3);
        let mut terms = terms(StandingBeacon::Smt, 3);
        terms.updates = Updates::Hash;
        world.form(terms).await;
        let (service, cohort_id) = (identity("service").did().clone(), world.cohort().id().clone());
        let hostile = world.seats[2].did().await;
        let empty = |part: u32, parts: u32| ResponsePart {
            cohort_id: cohort_id.clone(),
            number: 1,
            part,
            parts,
            response_hash: DocumentHash::from_bytes([9; 32]),
            entries: Vec::new(),
            updates: Vec::new(),
            roster_hash: None,
            has_updates: None,
            nonce_contributions: None,
            signature: None,
        };
        let inject = |message: StandingMessage| {
            network.inject(&hostile, &service, &text(&hostile, &service, message));
        };
        world.wants(0, 0).await;
        until(&mut world.notices, |notice| matches!(notice, StandingNotice::NumberOpened { .. }).then_some(()))
            .await;
        for part in [empty(0, 0), empty(1, u32::MAX), empty(7, 9), empty(2, 2), empty(1, 1)] {
            inject(part.into());
        }
        for _ in 0..200 {
            network.inject(&hostile, &service, &"{".repeat(4_096));
            network.inject(&hostile, &service, "[]");
            inject(empty(1, 2).into());
            settle().await;
        }
        let (number, transaction) = world.signed().await;
        assert_eq!(number, 1);
        assert_eq!(transaction.input[0].witness.len(), 1, "by all seats");
    });
}

/// Everything that the service has sent for a number, again, when a later one is over.
#[test]
fn replayed_messages_of_a_service_get_no_new_signature() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let filter = Filter::new(Arc::new(network.clone()), |_| true, |_| true);
        let mut world = World::new(start_of_time(), Arc::new(filter.clone()), Arc::new(network.clone()), 3);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        world.wants(0, 0).await;
        let (_, first) = world.signed().await;
        let replayed = filter.sent();
        world.seats[0].controller.confirmed();
        pass(Duration::from_secs(61)).await;
        world.wants(1, 0).await;
        let (_, second) = world.signed().await;
        assert_eq!(second.input[0].previous_output.txid, first.compute_txid());
        pass(Duration::from_secs(30)).await;
        let seat = world.seats[0].did().await;
        let stream = StreamId::of_seat(&seat);
        let before = records(world.seats[0].journal(), &stream).await;
        while world.seats[0].notices.try_recv().is_ok() {}
        let own = |message: &&Message| message.to.as_ref().is_none_or(|to| *to == seat);
        for message in replayed.iter().filter(own) {
            network.inject(&message.from, &seat, &message.to_json());
            settle().await;
        }
        pass(Duration::from_secs(30)).await;
        let after = records(world.seats[0].journal(), &stream).await;
        assert!(after <= before + 1, "{before} and {after} records");
        while let Ok(notice) = world.seats[0].notices.try_recv() {
            let signed = matches!(&*notice, SeatNotice::SeatSigned { .. } | SeatNotice::Responded { .. });
            assert!(!signed, "{notice:?}");
        }
    });
}

#[test]
fn a_cohort_that_cannot_form_yet_says_why() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let mut world = world(&network, 3);
        let cohort = world.start_service().await.open_standing(terms(StandingBeacon::Cas, 3)).await.unwrap();
        let refused = cohort.finalize().await.unwrap_err();
        assert!(matches!(refused, StandingError::Refused(_)), "{refused:?}");
        assert!(refused.to_string().contains("0 seats are admitted"), "{refused}");
        world.cohort = Some(cohort);
        for seat in &mut world.seats {
            seat.start().await;
        }
        for seat in &mut world.seats {
            seat.until(|notice| matches!(notice, SeatNotice::RowsAcknowledged { .. }).then_some(())).await;
        }
        let refused = world.cohort().finalize().await.unwrap_err();
        assert!(refused.to_string().contains("has formed already"), "{refused}");
        let refused = world.cohort().open_now(OpportunityKind::Announcement).await.unwrap_err();
        assert!(refused.to_string().contains("no coin"), "{refused}");
    });
}

/// One message of the enrolment is lost, on the way to the service or back: it comes again within seconds.
#[test]
fn a_lost_message_of_the_enrolment_is_sent_again_soon() {
    let kinds = [
        ("standing/cohort_advert", true),
        ("standing/opt_in", false),
        ("standing/opt_in_accept", true),
        ("standing/cohort_ready", true),
        ("standing/register", false),
        ("standing/registered", true),
    ];
    for (kind, by_service) in kinds {
        on_paused_clock(async {
            let network = MemoryTransport::new();
            let filter = Filter::new(Arc::new(network.clone()), losing_first(kind, 1), |_| true);
            let plain = Arc::new(network.clone());
            let mut world = match by_service {
                true => World::new(start_of_time(), Arc::new(filter.clone()), plain, 1),
                false => World::new(start_of_time(), plain, Arc::new(filter.clone()), 1),
            };
            let mut terms = terms(StandingBeacon::Cas, 2);
            (terms.min_participants, terms.max_participants) = (1, 1);
            (terms.absent, terms.fallback_threshold) = (Absent::Wait, None);
            // The seat is there before the first advert.
            world.seats[0].start().await;
            let began = Instant::now();
            world.cohort = Some(world.start_service().await.open_standing(terms).await.unwrap());
            let seat = &mut world.seats[0];
            seat.until(|notice| matches!(notice, SeatNotice::RowsAcknowledged { .. }).then_some(())).await;
            assert!(began.elapsed() < Duration::from_secs(20), "{kind}: {:?}", began.elapsed());
            // A seat that gets the cohort's keys needs no promise any more.
            assert!(filter.count(kind) >= 2 || kind == "standing/opt_in_accept", "{kind}");
        });
    }
}

/// A seat whose service is gone repeats its request less and less often.
#[test]
fn a_seat_repeats_its_request_with_growing_pauses() {
    on_paused_clock(async {
        let network = MemoryTransport::new();
        let filter =
            Filter::new(Arc::new(network.clone()), |body| body.short_type() != "standing/opt_in", |_| true);
        let mut world = World::new(start_of_time(), Arc::new(network.clone()), Arc::new(filter.clone()), 1);
        let cohort = world.start_service().await.open_standing(terms(StandingBeacon::Cas, 2)).await;
        world.seats[0].start().await;
        let seat = &mut world.seats[0];
        seat.until(|notice| matches!(notice, SeatNotice::SeatAsked { .. }).then_some(())).await;
        drop(cohort);
        world.service.take().unwrap().stop().await;
        pass(Duration::from_secs(24 * 3600)).await;
        let asked = filter.count("standing/opt_in");
        assert!((100..250).contains(&asked), "{asked} times in a day");
    });
}
