//! The machine of a standing cohort by itself: who gets a seat, what is sent again, and when a number opens.

use std::{sync::Arc, time::Duration};

use bitcoin::{
    Amount, ScriptBuf, Transaction, TxOut, Txid, absolute::LockTime, hashes::Hash, transaction::Version,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        CoinRef, Mode, Opportunity, OpportunityKind, Registration, Row, RowAction, StandingBeacon, StandingTerms,
        Updates,
        cohort::{CohortEffect, CohortEvent, CohortInput, Credentials, StandingCohort},
        message::{
            AskedRow, EndKind, MAX_PART_ENTRIES, MAX_PART_ROWS, OpportunityOpened, Pending, RegisterRows,
            SeatOptIn, StandingMessage,
        },
        number::{NumberEnd, Why},
    },
    did::Did,
    error::RejectCode,
    hash::{DidIndex, DocumentHash, sha256},
    key::{SecretKey, Signature},
    machine::{Machine, replay, step},
    time::Timestamp,
};

use super::{
    cohort::{NETWORK, did, rng, update},
    service_node::ServiceNode,
    world::{START, World},
};
use crate::bitcoin_support::member;

fn terms() -> StandingTerms {
    StandingTerms::new(StandingBeacon::Cas, NETWORK, 2, 3)
}

fn key(seat: usize) -> SecretKey {
    member(500 + seat)
}

struct Cohort {
    machine: StandingCohort,
    now: Timestamp,
}

impl Cohort {
    fn enrolling(terms: &StandingTerms) -> Self {
        let machine = StandingCohort::new(Arc::clone(ServiceNode::new(terms).config())).unwrap();
        Self { machine, now: START }
    }

    /// Three seats, each with two DIDs, and a coin.
    fn formed(terms: &StandingTerms) -> Self {
        let world = World::formed(60, terms, 3, 2);
        Self { machine: world.service.cohort, now: world.now }
    }

    fn decide(&self, input: &CohortInput) -> Result<Vec<CohortEvent>, RejectCode> {
        self.machine.decide(self.now, input, &mut rng()).map_err(|reject| reject.code)
    }

    fn receive(&self, from: &Did, message: impl Into<StandingMessage>) -> Result<Vec<CohortEvent>, RejectCode> {
        self.decide(&CohortInput::Message { from: from.clone(), message: message.into() })
    }

    fn feed(&mut self, input: &CohortInput) -> Vec<CohortEffect> {
        step(&mut self.machine, self.now, input, &mut rng()).unwrap().effects
    }

    fn apply(&mut self, event: &CohortEvent) -> Vec<CohortEffect> {
        self.machine.apply(event);
        self.machine.effects(event)
    }

    fn opt_in(&self, seat: usize, from: &Did) -> SeatOptIn {
        let config = self.machine.config();
        SeatOptIn::sign(&config.service, &config.cohort_id, from, &key(seat), &mut rng())
    }

    fn ask(&mut self, seat: usize) {
        let message = self.opt_in(seat, &did(seat)).into();
        self.feed(&CohortInput::Message { from: did(seat), message });
    }

    fn admit(&mut self, seat: usize, refusal: Option<&str>) -> Vec<CohortEffect> {
        self.feed(&CohortInput::Admitted { did: did(seat), refusal: refusal.map(str::to_owned) })
    }

    /// The DID of a seat.
    fn did(&self, seat: usize) -> Did {
        self.machine.seats().nth(seat).unwrap().1.clone()
    }

    fn coin(&self) -> CoinRef {
        self.machine.coins()[0]
    }

    fn pending(&mut self) {
        let cohort_id = self.machine.config().cohort_id.clone();
        self.feed(&CohortInput::Message { from: self.did(0), message: Pending { cohort_id }.into() });
    }

    fn open(&mut self) -> Arc<Opportunity> {
        let effects = self.feed(&CohortInput::OpenNow { kind: OpportunityKind::Announcement });
        let [CohortEffect::SignOpportunity(planned)] = &effects[..] else { panic!("{effects:?}") };
        let context = self.machine.roster().unwrap().context().clone();
        let signed =
            Arc::new((**planned).clone().sign(&context, &SecretKey::from_bytes(&[3; 32]).unwrap(), &mut rng()));
        self.feed(&CohortInput::OpportunitySigned(Arc::clone(&signed)));
        signed
    }

    fn end(&mut self, end: NumberEnd) -> Vec<CohortEffect> {
        let number = self.machine.open_number().unwrap();
        self.feed(&CohortInput::NumberEnded { number, end })
    }

    fn fail(&mut self) {
        self.end(NumberEnd::Failed { why: Why::Absent, absent: Vec::new(), refused: Default::default() });
    }
}

fn sent(effects: &[CohortEffect]) -> Vec<(Did, &StandingMessage)> {
    let one = |effect: &'_ CohortEffect| matches!(effect, CohortEffect::Send { .. });
    effects
        .iter()
        .filter(|effect| one(effect))
        .map(|effect| match effect {
            CohortEffect::Send { to, message } => (to.clone(), message),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_seat_is_asked_for_once_and_only_admitted_ones_form() {
    let mut cohort = Cohort::enrolling(&terms());
    (0..3).for_each(|seat| cohort.ask(seat));
    assert_eq!(cohort.receive(&did(0), cohort.opt_in(0, &did(0))), Ok(vec![]), "asked again");
    assert_eq!(cohort.receive(&did(0), cohort.opt_in(9, &did(0))), Err(RejectCode::Equivocation));
    let accepted = cohort.admit(0, None);
    assert!(matches!(sent(&accepted)[..], [(ref to, StandingMessage::SeatAccept(_))] if *to == did(0)));
    // After a restart the host is asked about the others.
    let asked: Vec<Did> = cohort
        .machine
        .resume()
        .into_iter()
        .filter_map(|effect| match effect {
            CohortEffect::AskAdmission { did, .. } => Some(did),
            _ => None,
        })
        .collect();
    assert_eq!(asked.len(), 2);
    assert!(!asked.contains(&did(0)));
    assert!(matches!(cohort.machine.resume()[0], CohortEffect::Broadcast(_)));
    // One that was refused may ask again.
    cohort.admit(1, Some("not on the list"));
    assert_eq!(cohort.receive(&did(1), cohort.opt_in(1, &did(1))).unwrap().len(), 1);
    cohort.ask(1);
    assert_eq!(cohort.decide(&CohortInput::Finalize), Err(RejectCode::WrongPhase), "two are needed");
    cohort.admit(1, None);
    let mut without = Cohort { machine: cohort.machine.clone(), now: cohort.now };
    without.feed(&CohortInput::Finalize);
    assert_eq!(without.machine.seats().count(), 2, "the third was not admitted");
    // With its maximum it forms by itself.
    cohort.admit(2, None);
    assert_eq!(cohort.machine.seats().count(), 3);
    for (from, seat, expected) in [
        (did(0), 0, Ok(vec![])),
        (did(1), 0, Err(RejectCode::WrongPhase)),
        (did(7), 7, Err(RejectCode::WrongPhase)),
    ] {
        assert_eq!(cohort.receive(&from, cohort.opt_in(seat, &from)), expected, "{from} asks for seat {seat}");
    }
    assert_ne!(cohort.machine, without.machine);
}

#[test]
fn four_times_as_many_candidates_as_seats_are_stored() {
    let mut cohort = Cohort::enrolling(&terms());
    (0..12).for_each(|seat| cohort.ask(seat));
    assert_eq!(cohort.receive(&did(12), cohort.opt_in(12, &did(12))), Err(RejectCode::CohortFull));
}

fn asked(serial: u64) -> AskedRow {
    AskedRow {
        did_index: DidIndex::from_bytes(sha256(&serial.to_be_bytes())),
        action: RowAction::Register,
        serial,
        signature: Signature::from_bytes(&[1; 64]),
        did: None,
        proof: None,
        genesis_document: None,
        sidecar: None,
    }
}

#[test]
fn rows_are_checked_for_control_where_it_has_to_be_proven() {
    let blind = StandingTerms {
        beacon_type: StandingBeacon::Smt,
        registration: Registration::Blind,
        updates: Updates::Hash,
        ..terms()
    };
    for (terms, proven) in [(terms(), true), (blind, false)] {
        let mut cohort = Cohort::enrolling(&terms);
        (0..3).for_each(|seat| cohort.ask(seat));
        (0..3).for_each(|seat| drop(cohort.admit(seat, None)));
        let register = |rows: usize| RegisterRows {
            cohort_id: cohort.machine.config().cohort_id.clone(),
            rows: (1..=rows as u64).map(asked).collect(),
        };
        let seat = cohort.did(0);
        for (rows, allowed) in [(0, false), (1, true), (MAX_PART_ENTRIES, true), (MAX_PART_ENTRIES + 1, false)] {
            match cohort.receive(&seat, register(rows)) {
                Err(code) => assert_eq!((code, allowed), (RejectCode::Malformed, false), "{rows}"),
                Ok(events) => assert_eq!((events.is_empty(), allowed), (proven, true), "{rows}"),
            }
        }
        let check = |from: &Did| cohort.machine.check_control(from, &register(1).into()).is_some();
        assert_eq!((check(&seat), check(&did(77))), (proven, false));
    }
}

#[test]
fn what_any_peer_can_cause_is_not_journaled() {
    let (at, from, seat) = (START, did(0), key(0).public_key());
    let settled = |registered: Vec<Row>| CohortEvent::RowsSettled {
        at,
        from: did(0),
        registered,
        known: Vec::new(),
        refused: Vec::new(),
    };
    let asked = asked(1);
    let (did_index, action, serial, signature) = (asked.did_index, asked.action, asked.serial, asked.signature);
    let row = Row { seat, did_index, action, serial, signature };
    for (event, journaled) in [
        (CohortEvent::SeatAsked { at, did: from.clone(), seat, credentials: Credentials::default() }, false),
        (CohortEvent::SeatRefused { at, did: from.clone(), reason: String::new() }, false),
        (CohortEvent::SeatAdmitted { at, did: from, seat, credentials: Credentials::default() }, true),
        (settled(Vec::new()), false),
        (settled(vec![row]), true),
    ] {
        assert_eq!(StandingCohort::is_journaled(&event), journaled, "{event:?}");
    }
}

#[test]
fn a_number_that_this_service_has_forgotten_is_not_used_again() {
    let mut cohort = Cohort::formed(&terms());
    let opportunity = cohort.open();
    cohort.fail();
    let config = Arc::clone(cohort.machine.config());
    let context = cohort.machine.roster().unwrap().context().clone();
    let opened = |number: u64, key: u8| {
        let key = SecretKey::from_bytes(&[key; 32]).unwrap();
        let opportunity = Opportunity { number, ..(*opportunity).clone() }.sign(&context, &key, &mut rng());
        OpportunityOpened { cohort_id: config.cohort_id.clone(), opportunity }
    };
    let seat = cohort.did(0);
    assert_eq!(cohort.receive(&seat, opened(1, 3)), Ok(vec![]), "known");
    assert_eq!(cohort.receive(&seat, opened(5, 4)), Ok(vec![]), "not by this service");
    let events = cohort.receive(&seat, opened(5, 3)).unwrap();
    assert!(matches!(events[..], [CohortEvent::NumbersSkipped { to: 5, .. }]), "{events:?}");
    cohort.machine = replay(cohort.machine, &events);
    assert_eq!(cohort.machine.last_number(), 5);
    assert_eq!(cohort.open().number, 6);
}

#[test]
fn a_seat_that_is_back_gets_keys_end_and_opportunity() {
    let mut cohort = Cohort::formed(&terms());
    let kinds = |cohort: &Cohort| {
        let effects = cohort.machine.send_again(&cohort.did(1));
        let of_seat = sent(&effects).iter().all(|(to, _)| *to == cohort.did(1));
        assert!(of_seat && effects.len() == sent(&effects).len());
        effects
            .iter()
            .filter_map(|effect| match effect {
                CohortEffect::Send { message, .. } => Some(message.short_type()),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(&cohort), ["standing/cohort_ready"]);
    assert_eq!(cohort.machine.send_again(&did(77)), []);
    cohort.open();
    assert_eq!(kinds(&cohort), ["standing/cohort_ready", "standing/opportunity"]);
    assert!(cohort.machine.resume().iter().any(|effect| matches!(effect, CohortEffect::RunNumber(_))));
    let ends = cohort.end(NumberEnd::Idle { board_hash: update(1), absent: Vec::new() });
    assert_eq!(sent(&ends).len(), 3);
    let StandingMessage::NumberEndedNotice(notice) = sent(&ends)[0].1 else { panic!("{ends:?}") };
    assert_eq!((notice.end, notice.board_hash, &notice.transaction), (EndKind::Idle, Some(update(1)), &None));
    assert_eq!(kinds(&cohort), ["standing/cohort_ready", "standing/number_ended"]);
    assert!(!cohort.machine.resume().iter().any(|effect| matches!(effect, CohortEffect::Announce(_))));
}

#[test]
fn a_coin_counts_once_and_an_unknown_one_not_at_all() {
    let mut cohort = Cohort::formed(&terms());
    let coin = cohort.coin();
    assert_eq!(cohort.decide(&CohortInput::CoinFound(coin)), Ok(vec![]));
    let by = Txid::from_byte_array([9; 32]);
    let unknown = CoinRef { vout: 7, ..coin };
    assert_eq!(cohort.decide(&CohortInput::Spent { coin: unknown, by }), Ok(vec![]));
    assert_eq!(cohort.machine.deadline(), None, "nothing asks for a number");
    // An open number on a coin that another transaction spends is abandoned.
    let other = CoinRef { vout: 1, ..coin };
    cohort.feed(&CohortInput::CoinFound(other));
    cohort.open();
    let spent = cohort.feed(&CohortInput::Spent { coin: other, by });
    let abandoned = |effects: &[CohortEffect]| {
        effects.iter().any(|effect| matches!(effect, CohortEffect::AbandonNumber { number: 1, .. }))
    };
    let first = cohort.machine.coins()[0];
    assert_eq!((first, abandoned(&spent)), (coin, other == coin));
    let spent = cohort.feed(&CohortInput::Spent { coin, by });
    assert!(abandoned(&spent), "{spent:?}");
    assert!(cohort.machine.coins().is_empty());
}

#[test]
fn the_operator_keeps_the_cadence_too() {
    let mut cohort = Cohort::formed(&StandingTerms { max_seconds_between_announcements: Some(7_200), ..terms() });
    let opened = cohort.now;
    cohort.open();
    let open = CohortInput::OpenNow { kind: OpportunityKind::Announcement };
    assert_eq!(cohort.decide(&open), Err(RejectCode::WrongPhase), "one is open");
    cohort.end(NumberEnd::Idle { board_hash: update(1), absent: Vec::new() });
    assert_eq!(cohort.machine.deadline(), Some(opened + Duration::from_secs(7_200)));
    let earliest = opened + Duration::from_secs(3_600);
    cohort.pending();
    assert_eq!(cohort.machine.deadline(), Some(earliest));
    for (now, allowed) in [(earliest - Duration::from_secs(1), false), (earliest, true)] {
        cohort.now = now;
        assert_eq!(cohort.decide(&open).is_ok(), allowed);
        assert_eq!(cohort.decide(&CohortInput::Tick).unwrap().is_empty(), !allowed);
    }
    // After a failure the same coins are tried again at once, until the third one.
    for failures in 1..=3 {
        cohort.open();
        cohort.fail();
        let paced = cohort.now + Duration::from_secs(3_600);
        let expected = if failures < 3 { Timestamp::default() } else { paced };
        assert_eq!(cohort.machine.deadline(), Some(expected), "{failures}");
        assert!(cohort.decide(&open).is_ok(), "the operator may");
    }
}

#[test]
fn a_refresh_joins_two_coins_and_is_tried_again() {
    let mut cohort = Cohort::formed(&terms());
    let refresh = CohortInput::OpenNow { kind: OpportunityKind::Refresh };
    assert_eq!(cohort.decide(&refresh), Err(RejectCode::WrongPhase), "one coin");
    let second = CoinRef { vout: 1, ..cohort.coin() };
    cohort.feed(&CohortInput::CoinFound(second));
    let kind = |events: &[CohortEvent]| match events {
        [CohortEvent::NumberPlanned { opportunity, .. }] => (opportunity.kind, opportunity.coins.len()),
        other => panic!("{other:?}"),
    };
    let announcement = CohortInput::OpenNow { kind: OpportunityKind::Announcement };
    assert_eq!(kind(&cohort.decide(&announcement).unwrap()), (OpportunityKind::Announcement, 1));
    let events = cohort.decide(&refresh).unwrap();
    assert_eq!(kind(&events), (OpportunityKind::Refresh, 2));
    cohort.machine = replay(cohort.machine, &events);
    cohort.fail();
    assert_eq!(kind(&cohort.decide(&announcement).unwrap()), (OpportunityKind::Refresh, 2), "the same coins again");
}

#[test]
fn an_opportunity_carries_new_rows_unless_there_are_many() {
    let mut cohort = Cohort::formed(&terms());
    let (seat, from) = (*cohort.machine.seats().next().unwrap().0, cohort.did(0));
    let settle = |cohort: &mut Cohort, serials: std::ops::Range<u64>| {
        let row = |serial| {
            let AskedRow { did_index, action, signature, .. } = asked(serial);
            Row { seat, did_index, action, serial, signature }
        };
        let registered: Vec<Row> = serials.map(row).collect();
        let (known, refused, from) = (Vec::new(), Vec::new(), from.clone());
        let at = cohort.now;
        cohort.apply(&CohortEvent::RowsSettled { at, from, registered, known, refused })
    };
    assert_eq!(cohort.open().rows.len(), 6, "those of the formation");
    cohort.fail();
    let answers = settle(&mut cohort, 1..257);
    let StandingMessage::RowsAnswered(answered) = sent(&answers)[0].1 else { panic!("{answers:?}") };
    assert_eq!((answered.from_number, answered.rows.len()), (2, 256));
    assert_eq!(cohort.open().rows.len(), 0, "each seat fetches them");
    cohort.fail();
    settle(&mut cohort, 1_000..1_128);
    assert_eq!(cohort.open().rows.len(), MAX_PART_ROWS);
    cohort.fail();
    settle(&mut cohort, 2_000..2_129);
    assert_eq!(cohort.open().rows.len(), 0, "each seat fetches them");
}

#[test]
fn an_index_changes_twice_between_two_numbers() {
    let world = World::formed(61, &terms(), 3, 1);
    let mut cohort = Cohort { machine: world.service.cohort.clone(), now: world.now };
    cohort.open();
    cohort.fail();
    let (node, mut rng) = (&world.seats[0], rng());
    let index = node.dids[0].index;
    let mut row = |action, serial| (node.row(index, action, serial, &mut rng), None);
    let rows = vec![row(RowAction::Unregister, 2), row(RowAction::Register, 3), row(RowAction::Unregister, 4)];
    let from = cohort.machine.seats().find(|(seat, _)| **seat == node.key.public_key()).unwrap().1.clone();
    let events = cohort.decide(&CohortInput::ControlChecked { from, rows }).unwrap();
    let [CohortEvent::RowsSettled { registered, refused, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((registered.len(), refused.len()), (2, 1));
    assert!(refused[0].2.contains("changed twice"), "{refused:?}");
}

#[test]
fn a_number_waits_for_the_least_dids_of_the_seats() {
    for (least, waits) in [(2, false), (3, true)] {
        let mut cohort = Cohort::formed(&StandingTerms { min_dids_per_participant: least, ..terms() });
        cohort.pending();
        assert_eq!(cohort.machine.deadline().is_none(), waits, "{least}");
    }
}

#[test]
fn a_planned_number_is_signed_before_it_runs() {
    let mut cohort = Cohort::formed(&terms());
    cohort.feed(&CohortInput::OpenNow { kind: OpportunityKind::Announcement });
    let effects = cohort.machine.resume();
    assert!(matches!(effects.last(), Some(CohortEffect::SignOpportunity(_))), "{effects:?}");
}

#[test]
fn what_a_void_number_announced_is_announced_again() {
    let mut cohort = Cohort::formed(&terms());
    let first = cohort.coin();
    let by = Txid::from_byte_array([9; 32]);
    for vout in [1, 2] {
        cohort.feed(&CohortInput::CoinFound(CoinRef { vout, value: 1_000, ..first }));
    }
    cohort.feed(&CohortInput::Spent { coin: CoinRef { vout: 1, value: 1_000, ..first }, by });
    assert_eq!(cohort.machine.deadline(), None, "no number was on that coin");
    cohort.open();
    let change = TxOut { value: Amount::from_sat(900), script_pubkey: ScriptBuf::new() };
    let transaction = Arc::new(Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: Vec::new(),
        output: vec![change],
    });
    let ends = cohort.end(NumberEnd::Signed {
        transaction: Arc::clone(&transaction),
        mode: Mode::Key,
        board_hash: update(1),
        signers: Vec::new(),
        absent: Vec::new(),
    });
    let StandingMessage::NumberEndedNotice(notice) = sent(&ends)[0].1 else { panic!("{ends:?}") };
    let announced = notice.transaction.as_ref().map(|transaction| &transaction.0);
    assert_eq!(
        (notice.end, notice.board_hash, announced),
        (EndKind::Announced, Some(update(1)), Some(&transaction))
    );
    assert_eq!(cohort.machine.deadline(), None, "every seat has what it wanted");
    let void = cohort.feed(&CohortInput::Spent { coin: first, by });
    assert_eq!(sent(&void).len(), 3);
    assert!(cohort.machine.deadline().is_some());
}

/// One that was opened by a clock that was days ahead would stop the cohort for days.
#[test]
fn a_number_of_a_wrong_clock_does_not_stop_the_next() {
    let mut cohort = Cohort::formed(&terms());
    cohort.open();
    cohort.end(NumberEnd::Idle { board_hash: DocumentHash::from_bytes(sha256(b"board")), absent: Vec::new() });
    cohort.pending();
    let begun = cohort.now;
    cohort.now = begun - Duration::from_secs(30);
    assert_eq!(cohort.decide(&CohortInput::Tick), Ok(vec![]), "a clock is corrected a little");
    cohort.now = begun - Duration::from_secs(100_000);
    let events = cohort.decide(&CohortInput::Tick).unwrap();
    assert!(matches!(&events[..], [CohortEvent::NumberPlanned { .. }]), "{events:?}");
    let by_operator = CohortInput::OpenNow { kind: OpportunityKind::Announcement };
    assert!(cohort.decide(&by_operator).is_ok());
    // One that ends when the clock is right paces the next one by that time.
    let mut cohort = Cohort::formed(&terms());
    cohort.open();
    cohort.now = cohort.now - Duration::from_secs(100_000);
    cohort.end(NumberEnd::Idle { board_hash: DocumentHash::from_bytes(sha256(b"board")), absent: Vec::new() });
    cohort.pending();
    let next = cohort.machine.deadline().unwrap();
    assert!(next <= cohort.now + Duration::from_secs(terms().min_seconds_between_announcements.into()));
}
