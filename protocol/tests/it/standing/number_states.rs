//! A number at the service, by itself: the parts of a response, the deadlines, the confirmations, and what is repeated.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bitcoin::{FeeRate, Transaction};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Absent, CoinRef, Mode, Opportunity, OpportunityKind, Response, StandingBeacon, StandingTerms, Updates,
        message::{Confirmation, MAX_PART_ENTRIES, ResponsePart, StandingMessage},
        number::{Confirmed, Number, NumberEffect, NumberEnd, NumberEvent, NumberInput, NumberTask, Why},
        sighashes,
    },
    did::Did,
    error::RejectCode,
    hash::sha256,
    key::{PublicKey, Signature},
    machine::{Machine, replay, step},
    message::Bytes,
    signing::nonce::SecretNonce,
    time::Timestamp,
};

use super::{
    cohort::{Cohort, NETWORK, did, rng, update},
    world::START,
};

const RESPOND: Duration = Duration::from_secs(600);

/// A cohort, and a number of it that is open.
struct Running {
    cohort: Cohort,
    number: Number,
}

impl Running {
    fn of(terms: StandingTerms, seats: usize, dids: usize, kind: OpportunityKind) -> Self {
        let cohort = Cohort::new(terms, seats, dids);
        let opportunity = Opportunity {
            number: 1,
            kind,
            respond_by: (START + RESPOND).as_secs(),
            roster_hash: cohort.roster.hash(),
            coins: vec![CoinRef::from(&cohort.coin(1_000_000, 0))],
            rows: Vec::new(),
            row_count: cohort.roster.row_count(),
            transactions: Vec::new(),
            signature: Signature::from_bytes(&[0; 64]),
        };
        let seats = cohort.keys.iter().enumerate().map(|(at, key)| (key.public_key(), did(1_000 + at)));
        let task = NumberTask {
            terms: Arc::new(cohort.terms.clone()),
            output: cohort.output.clone(),
            roster: Arc::new(cohort.roster.clone()),
            seats: seats.collect(),
            opportunity: Arc::new(opportunity),
            change: cohort.output.script_pubkey().to_owned(),
            by_fallback: cohort.terms.absent == Absent::Proceed,
        };
        let mut number = Number::new(Arc::new(task));
        step(&mut number, START, &NumberInput::Open, &mut rng()).unwrap();
        Self { cohort, number }
    }

    /// Of three seats, all of which sign.
    fn by_key() -> Self {
        let mut terms = StandingTerms::new(StandingBeacon::Smt, NETWORK, 1, 50);
        terms.updates = Updates::Hash;
        Self::of(terms, 3, 1, OpportunityKind::Announcement)
    }

    /// Of five seats, of which two sign.
    fn by_fallback() -> Self {
        let mut terms = StandingTerms::new(StandingBeacon::Smt, NETWORK, 3, 50).proceeding(2);
        terms.updates = Updates::Hash;
        Self::of(terms, 5, 1, OpportunityKind::Announcement)
    }

    fn seat(&self, at: usize) -> PublicKey {
        self.cohort.keys[at].public_key()
    }

    fn did(&self, at: usize) -> Did {
        self.number.task().seats[&self.seat(at)].clone()
    }

    fn parts(&self, at: usize) -> Vec<ResponsePart> {
        ResponsePart::split(self.cohort.roster.context(), &self.response(at), &BTreeMap::new())
    }

    fn response(&self, at: usize) -> Response {
        let of_seat = self.cohort.roster.len() / self.cohort.keys.len();
        let updated = match self.number.task().opportunity.kind {
            OpportunityKind::Announcement | OpportunityKind::Move => vec![at * of_seat],
            OpportunityKind::Refresh | OpportunityKind::Roster => Vec::new(),
        };
        let mut response = self.cohort.response(at, 1, &updated);
        if updated.is_empty() {
            response.entries.clear();
            let digest = response.hash(self.cohort.roster.context());
            response.signature = self.cohort.keys[at].sign(digest.as_bytes(), &mut rng());
        }
        response
    }

    fn decide(&self, at: usize, message: impl Into<StandingMessage>) -> Result<Vec<NumberEvent>, RejectCode> {
        let input = NumberInput::Message { from: self.did(at), message: Box::new(message.into()) };
        self.number.decide(START, &input, &mut rng()).map_err(|reject| reject.code)
    }

    fn feed(&mut self, at: usize, message: impl Into<StandingMessage>) {
        let events = self.decide(at, message).unwrap();
        self.number = replay(self.number.clone(), &events);
    }

    /// All seats respond, and the host names a price.
    fn confirming(mut self) -> Self {
        for at in 0..self.cohort.keys.len() {
            self.parts(at).into_iter().for_each(|part| self.feed(at, part));
        }
        let priced = NumberInput::Priced { rate: FeeRate::from_sat_per_vb_u32(2), operator: None };
        step(&mut self.number, START, &priced, &mut rng()).unwrap();
        self
    }

    fn confirmation(&self) -> Confirmation {
        Confirmation {
            cohort_id: self.cohort.roster.context().cohort_id.clone(),
            number: 1,
            board_hash: *self.number.board().unwrap().hash(),
            partial_signatures: None,
            fallback_signatures: None,
            refusal: None,
        }
    }

    fn request(&self) -> (Transaction, Vec<Bytes<66>>) {
        let request = self.number.resume().into_iter().find_map(|effect| match effect {
            NumberEffect::Send { message: StandingMessage::ConfirmationRequest(request), .. } => Some(request),
            _ => None,
        });
        request.map(|request| (request.pending_tx, request.aggregated_nonces)).unwrap()
    }

    fn digests(&self, mode: Mode) -> Vec<[u8; 32]> {
        let coins = self.number.task().opportunity.coins();
        sighashes(&self.request().0, &self.cohort.output, &coins, mode).unwrap()
    }

    fn partials(&self, at: usize) -> Confirmation {
        let (_, aggregated) = self.request();
        let key = &self.cohort.keys[at];
        let (nonce, _) =
            SecretNonce::from_seed(key, &self.cohort.output, &sha256(format!("nonce {at} 0").as_bytes()));
        let digest = self.digests(Mode::Key)[0];
        let partial = nonce.sign(key, &self.cohort.output, &aggregated[0], &digest).unwrap();
        Confirmation { partial_signatures: Some(vec![partial]), ..self.confirmation() }
    }

    fn fallback(&self, at: usize) -> Confirmation {
        let signatures = self.digests(Mode::Fallback);
        let signatures = signatures.iter().map(|digest| self.cohort.keys[at].sign(digest, &mut rng())).collect();
        Confirmation { fallback_signatures: Some(signatures), ..self.confirmation() }
    }

    fn refusal(&self) -> Confirmation {
        Confirmation { refusal: Some("not today".into()), ..self.confirmation() }
    }

    fn recipients(&self, effects: &[NumberEffect]) -> Vec<PublicKey> {
        let seats = &self.number.task().seats;
        let sent = effects.iter().filter_map(|effect| match effect {
            NumberEffect::Send { to, .. } => seats.iter().find(|(_, did)| *did == to).map(|(seat, _)| *seat),
            _ => None,
        });
        sent.collect()
    }
}

/// The states of a number by the key path, and of one by fallback, from the first to the last.
fn states() -> Vec<Number> {
    let mut states = Vec::new();
    for mode in [Mode::Key, Mode::Fallback] {
        let mut running = if mode == Mode::Key { Running::by_key() } else { Running::by_fallback() };
        let seats = running.cohort.keys.len();
        states.extend([Number::new(Arc::clone(running.number.task())), running.number.clone()]);
        for at in 0..seats {
            running.parts(at).into_iter().for_each(|part| running.feed(at, part));
            states.push(running.number.clone());
        }
        let priced = NumberInput::Priced { rate: FeeRate::from_sat_per_vb_u32(2), operator: None };
        step(&mut running.number, START, &priced, &mut rng()).unwrap();
        states.push(running.number.clone());
        for at in 0..if mode == Mode::Key { 3 } else { 2 } {
            let confirmation = if mode == Mode::Key { running.partials(at) } else { running.fallback(at) };
            running.feed(at, confirmation);
            states.push(running.number.clone());
        }
        assert!(matches!(running.number.end(), Some(NumberEnd::Signed { .. })));
    }
    states
}

#[test]
fn every_state_of_a_number_is_another_one() {
    let states = states();
    for (one, first) in states.iter().enumerate() {
        for (other, second) in states.iter().enumerate() {
            assert_eq!(first == second, one == other, "{first:?}\n{second:?}");
        }
    }
    // States that differ in one thing only.
    let mut running = Running::by_key();
    let mut part = running.parts(0).remove(0);
    part.parts = 2;
    let (at, seat) = (START, running.seat(0));
    let in_part = replay(running.number.clone(), [&NumberEvent::PartReceived { at, seat, part: Box::new(part) }]);
    assert_ne!(in_part, running.number);
    (0..2).for_each(|at| running.parts(at).into_iter().for_each(|part| running.feed(at, part)));
    let closed = [Mode::Key, Mode::Fallback].map(|mode| {
        let closed = NumberEvent::BoardClosed { at, mode };
        replay(running.number.clone(), [&closed])
    });
    assert_ne!(closed[0], closed[1]);
    let confirming = Running::by_key().confirming();
    let refused = NumberEvent::ConfirmationReceived { at, seat, confirmed: Confirmed::Refused("no".into()) };
    assert_ne!(replay(confirming.number.clone(), [&refused]), confirming.number);
}

#[test]
fn after_a_restart_the_open_effects_are_repeated() {
    let mut seen: Vec<NumberEffect> = Vec::new();
    for state in states() {
        let effects = state.resume();
        match (state.board(), state.end(), &effects[..]) {
            (None, None, []) => {}
            (Some(board), None, [NumberEffect::StoreBoard(stored), NumberEffect::AskPrice { signal, .. }]) => {
                assert_eq!((stored.hash(), *signal), (board.hash(), Some(board.signal())));
            }
            (Some(_), None, sent) => assert_eq!(sent.len(), state.awaited().len()),
            (_, Some(end), [NumberEffect::Report(reported)]) => assert_eq!(end, reported),
            other => panic!("{other:?}"),
        }
        assert_eq!(effects, state.resume());
        seen.extend(effects);
    }
    // Effects of different numbers, seats or modes differ.
    for (one, first) in seen.iter().enumerate() {
        let equal = seen.iter().skip(one + 1).filter(|other| *other == first).count();
        let repeats = matches!(first, NumberEffect::Send { .. });
        assert!(repeats || equal == 0, "{first:?}");
    }
}

#[test]
fn a_refresh_has_a_price_and_no_signal() {
    let mut terms = StandingTerms::new(StandingBeacon::Smt, NETWORK, 1, 50);
    terms.updates = Updates::Hash;
    let mut running = Running::of(terms, 2, 1, OpportunityKind::Refresh);
    (0..2).for_each(|at| running.parts(at).into_iter().for_each(|part| running.feed(at, part)));
    let effects = running.number.resume();
    assert!(matches!(effects[..], [_, NumberEffect::AskPrice { mode: Mode::Key, signal: None }]), "{effects:?}");
}

#[test]
fn a_number_waits_for_those_that_did_not_answer() {
    let mut running = Running::by_key();
    assert_eq!(running.number.awaited(), [0, 1, 2].map(|at| running.seat(at)));
    running.parts(1).into_iter().for_each(|part| running.feed(1, part));
    assert_eq!(running.number.awaited(), [0, 2].map(|at| running.seat(at)));
    let running = Running::by_key().confirming();
    let first = running.seat(0);
    let signature = Signature::from_bytes(&[1; 64]);
    for confirmed in [
        Confirmed::Partials(vec![Bytes([1; 32])]),
        Confirmed::Fallback(vec![signature]),
        Confirmed::Refused("not today".into()),
    ] {
        let event = NumberEvent::ConfirmationReceived { at: START, seat: first, confirmed };
        let number = replay(running.number.clone(), [&event]);
        let others = [1, 2].map(|at| running.seat(at));
        assert_eq!(number.awaited(), others);
        assert_eq!(running.recipients(&number.resume()), others);
        // A seat that has come back gets its own request only.
        assert_eq!(running.recipients(&number.send_again(&running.did(1))), [others[0]]);
        assert_eq!(number.send_again(&running.did(0)), []);
        assert_eq!(number.send_again(&did(7)), []);
    }
}

#[test]
fn a_number_ends_at_its_deadlines_and_not_before() {
    let tick = |number: &Number, at: Timestamp| number.decide(at, &NumberInput::Tick, &mut rng()).unwrap();
    let second = Duration::from_secs(1);
    let mut running = Running::by_key();
    let checked = |number: &Number, deadline: Timestamp, expected: &Why| {
        assert_eq!(number.deadline(), Some(deadline));
        assert_eq!((number.end(), tick(number, deadline - second)), (None, vec![]));
        let events = tick(number, deadline);
        let [NumberEvent::Ended { end: NumberEnd::Failed { why, .. }, .. }] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(why, expected);
        let ended = replay(number.clone(), &events);
        assert_eq!((ended.deadline(), ended.end().is_some()), (None, true));
        let abandoned = NumberInput::Abandoned { reason: "over".into() };
        assert_eq!(ended.decide(deadline, &abandoned, &mut rng()).unwrap_err().code, RejectCode::WrongPhase);
        assert_eq!(number.decide(START, &abandoned, &mut rng()).unwrap().len(), 1);
    };
    checked(&running.number, START + RESPOND, &Why::Absent);
    (0..3).for_each(|at| running.parts(at).into_iter().for_each(|part| running.feed(at, part)));
    let unpriced = Why::Abandoned("the host has named no fee rate in time".to_owned());
    checked(&running.number, START + RESPOND, &unpriced);
    checked(&Running::by_key().confirming().number, START + RESPOND, &Why::Unconfirmed);
}

/// A number in which each seat has 300 DIDs: two parts of a response.
fn large() -> Running {
    let mut terms = StandingTerms::new(StandingBeacon::Smt, NETWORK, 1, 50);
    terms.updates = Updates::Hash;
    terms.max_dids_per_participant = 300;
    Running::of(terms, 2, 300, OpportunityKind::Announcement)
}

#[test]
fn a_large_response_comes_in_parts() {
    let mut running = large();
    for at in 0..2 {
        let [first, last] = <[ResponsePart; 2]>::try_from(running.parts(at)).unwrap();
        assert_eq!((first.entries.len(), last.entries.len()), (MAX_PART_ENTRIES, 300 - MAX_PART_ENTRIES));
        // Begun again, e.g. after a restart of the seat.
        running.feed(at, first.clone());
        let events = running.decide(at, first).unwrap();
        assert!(matches!(events[..], [NumberEvent::PartReceived { .. }]), "{events:?}");
        assert!(!Number::is_journaled(&events[0]), "a seat could make the journal grow");
        running.number = replay(running.number.clone(), &events);
        let events = running.decide(at, last).unwrap();
        assert!(matches!(events[0], NumberEvent::ResponseReceived { .. }), "{events:?}");
        assert!(events.iter().all(Number::is_journaled));
        running.number = replay(running.number.clone(), &events);
    }
    assert!(running.number.board().is_some());
}

#[test]
fn parts_come_in_order_and_belong_together() {
    let mut running = large();
    let whole = running.parts(0).remove(0);
    let part = |part: u32, parts: u32, entries: usize| {
        let entries = whole.entries[..entries].to_vec();
        ResponsePart { part, parts, entries, ..whole.clone() }
    };
    let malformed = Err(RejectCode::Malformed);
    for wrong in [part(0, 3, 10), part(4, 3, 10), part(1, 301, 10)] {
        assert_eq!(running.decide(0, wrong), malformed);
    }
    let mut many = part(1, 3, 256);
    many.entries.push(many.entries[0].clone());
    assert_eq!(running.decide(0, many), malformed);
    assert_eq!(running.decide(0, part(2, 3, 10)), Err(RejectCode::WrongPhase), "the first is expected");
    assert!(running.decide(0, part(1, 300, 10)).is_ok());

    running.feed(0, part(1, 3, 100));
    running.feed(0, part(2, 3, 100));
    assert_eq!(running.decide(0, part(2, 3, 100)), Ok(vec![]), "repeated");
    let other = ResponsePart { response_hash: update(9), ..part(2, 3, 100) };
    assert_eq!(running.decide(0, other.clone()), Err(RejectCode::Equivocation));
    assert_eq!(running.decide(0, part(2, 4, 100)), Err(RejectCode::Equivocation));
    let again = ResponsePart { part: 1, ..other };
    assert!(matches!(running.decide(0, again).unwrap()[..], [NumberEvent::PartReceived { .. }]));
    // The last one, which lacks what the seat signs: as many entries as a seat may have, and one more.
    assert_eq!(running.decide(0, part(3, 3, 101)), malformed);
    let mut four = running;
    four.feed(0, part(1, 4, 100));
    four.feed(0, part(2, 4, 100));
    assert_eq!(four.decide(0, part(4, 4, 10)), Err(RejectCode::WrongPhase), "the third is expected");
    assert_eq!(four.decide(0, part(3, 4, 101)), malformed, "more than the seat may have");
    assert!(matches!(four.decide(0, part(3, 4, 100)).unwrap()[..], [NumberEvent::PartReceived { .. }]));
}

#[test]
fn a_repeated_response_is_harmless_and_another_equivocation() {
    let mut running = Running::by_key();
    let part = running.parts(0).remove(0);
    let other = ResponsePart { response_hash: update(9), ..part.clone() };
    running.feed(0, part.clone());
    assert_eq!(running.decide(0, part.clone()), Ok(vec![]));
    assert_eq!(running.decide(0, other.clone()), Err(RejectCode::Equivocation));
    let running = Running::by_key().confirming();
    assert_eq!(running.decide(0, part), Ok(vec![]));
    assert_eq!(running.decide(0, other), Err(RejectCode::WrongPhase));
}

#[test]
fn signatures_are_of_the_requested_kind_and_number() {
    let key = Running::by_key().confirming();
    assert!(key.decide(0, key.partials(0)).is_ok());
    let fallback = Running::by_fallback().confirming();
    assert!(fallback.decide(0, fallback.fallback(0)).is_ok());
    let partials = Confirmation { partial_signatures: Some(vec![Bytes([1; 32])]), ..fallback.confirmation() };
    assert_eq!(fallback.decide(0, partials), Err(RejectCode::Malformed));
    let signatures = fallback.fallback(0).fallback_signatures.unwrap();
    let of_key = Confirmation { fallback_signatures: Some(signatures.clone()), ..key.confirmation() };
    assert_eq!(key.decide(0, of_key), Err(RejectCode::Malformed));
    for wrong in [vec![], [signatures.clone(), signatures].concat()] {
        let confirmation = Confirmation { fallback_signatures: Some(wrong), ..fallback.confirmation() };
        assert_eq!(fallback.decide(0, confirmation), Err(RejectCode::BadFallbackSignature));
    }
    let of_another = Confirmation { number: 2, ..fallback.fallback(0) };
    assert_eq!(fallback.decide(0, of_another), Err(RejectCode::WrongCohort));
    let of_another = Confirmation { board_hash: update(9), ..fallback.fallback(0) };
    assert_eq!(fallback.decide(0, of_another), Err(RejectCode::WrongCohort));
}

#[test]
fn a_fallback_fails_when_too_few_are_left() {
    let mut running = Running::by_fallback().confirming();
    for at in 0..4 {
        let events = running.decide(at, running.refusal()).unwrap();
        // Two of five sign: three may refuse.
        assert_eq!(events.len(), if at < 3 { 1 } else { 2 }, "refusal {at}");
        running.number = replay(running.number.clone(), &events);
    }
    let Some(NumberEnd::Failed { why: Why::Refused, refused, .. }) = running.number.end() else { panic!() };
    assert_eq!(refused.keys().copied().collect::<Vec<_>>(), (0..4).map(|at| running.seat(at)).collect::<Vec<_>>());
    let key = Running::by_key().confirming();
    assert_eq!(key.decide(0, key.refusal()).unwrap().len(), 2, "the key path needs all of them");
    let expected: BTreeMap<_, _> = [(key.seat(0), "not today".to_owned())].into();
    let lost = Confirmation { refusal: Some(Confirmation::NONCE_LOST.into()), ..key.confirmation() };
    let events = key.decide(0, lost).unwrap();
    assert!(matches!(&events[1], NumberEvent::Ended { end: NumberEnd::Failed { why: Why::NonceLost, .. }, .. }));
    let events = key.decide(0, key.refusal()).unwrap();
    assert!(
        matches!(&events[1], NumberEvent::Ended { end: NumberEnd::Failed { refused, .. }, .. } if *refused == expected)
    );
}

/// A number that was opened by a clock that was days ahead would wait for days.
#[test]
fn a_number_does_not_wait_for_a_time_of_a_wrong_clock() {
    let later = START - Duration::from_secs(100_000);
    let is_open = |number: &Number, at| number.decide(at, &NumberInput::Tick, &mut rng()).unwrap().is_empty();
    let collecting = Running::by_fallback().number;
    assert!(is_open(&collecting, START - Duration::from_secs(30)), "a clock is corrected a little");
    assert!(!is_open(&collecting, later));
    let confirming = Running::by_fallback().confirming().number;
    assert!(is_open(&confirming, START - Duration::from_secs(30)));
    let events = confirming.decide(later, &NumberInput::Tick, &mut rng()).unwrap();
    assert!(matches!(&events[..], [NumberEvent::Ended { .. }]), "{events:?}");
}
