//! The terms of a standing cohort: which contradict themselves, and which a member does not accept.

use btcr2_aggregation_protocol::{
    cohort::standing::{Absent, Registration, StandingBeacon, StandingPolicy, StandingTerms, Updates},
    message::keygen::Cost,
};
use serde_json::Number;

use super::cohort::NETWORK;

type Change<T> = fn(&mut T);

fn terms() -> StandingTerms {
    StandingTerms::new(StandingBeacon::Smt, NETWORK, 2, 10)
}

fn proceeding() -> StandingTerms {
    terms().proceeding(1)
}

#[test]
fn each_contradiction_is_named_and_its_limit_allowed() {
    for terms in [terms(), proceeding()] {
        assert_eq!(terms.problems(), []);
    }
    let cases: [(StandingTerms, Change<StandingTerms>, &str); 27] = [
        (terms(), |t| (t.min_participants, t.max_participants) = (0, 1), "minParticipants"),
        (terms(), |t| t.min_participants = 11, "maxParticipants"),
        (terms(), |t| t.min_participants = 10, ""),
        (terms(), |t| (t.min_dids_per_participant, t.max_dids_per_participant) = (0, 0), "maxDidsPerParticipant"),
        (terms(), |t| t.min_dids_per_participant = 1_001, "maxDidsPerParticipant"),
        (terms(), |t| t.min_dids_per_participant = 1_000, ""),
        (terms(), |t| t.min_seconds_between_announcements = 0, "minSecondsBetweenAnnouncements"),
        (terms(), |t| t.max_seconds_between_announcements = Some(3_599), "maxSecondsBetweenAnnouncements"),
        (terms(), |t| t.max_seconds_between_announcements = Some(3_600), ""),
        (terms(), |t| t.pending_update_trigger = Some(0), "pendingUpdateTrigger"),
        (terms(), |t| t.pending_update_trigger = Some(11), "pendingUpdateTrigger"),
        (terms(), |t| t.pending_update_trigger = Some(10), ""),
        (terms(), |t| t.registration = Registration::Blind, "registration"),
        (terms(), |t| (t.registration, t.updates) = (Registration::Blind, Updates::Hash), ""),
        (
            StandingTerms::new(StandingBeacon::Cas, NETWORK, 2, 10),
            |t| (t.registration, t.updates) = (Registration::Blind, Updates::Hash),
            "registration",
        ),
        (terms(), |t| t.fallback_threshold = Some(1), "fallbackThreshold"),
        (terms(), |t| t.absent = Absent::Proceed, "fallbackThreshold"),
        (proceeding(), |t| t.fallback_threshold = Some(0), "fallbackThreshold"),
        (proceeding(), |t| t.fallback_threshold = Some(2), "fallbackThreshold"),
        (proceeding(), |t| t.max_participants = 1_000, "maxParticipants"),
        (proceeding(), |t| t.max_participants = 999, ""),
        (terms(), |t| t.respond_seconds = 0, "respondSeconds"),
        (terms(), |t| t.confirm_seconds = 0, "confirmSeconds"),
        (terms(), |t| t.max_fee_rate = 0, "maxFeeRate"),
        (terms(), |t| t.max_unconfirmed = 0, "maxUnconfirmed"),
        (terms(), |t| t.max_unconfirmed = 21, "maxUnconfirmed"),
        (terms(), |t| t.max_unconfirmed = 20, ""),
    ];
    for (number, (mut terms, change, field)) in cases.into_iter().enumerate() {
        change(&mut terms);
        let problems: Vec<_> = terms.problems().iter().map(|problem| problem.field).collect();
        assert_eq!(problems, if field.is_empty() { vec![] } else { vec![field] }, "case {number}");
    }
}

/// Of at least three seats, of which `threshold` can spend.
fn of_three(threshold: u16) -> StandingTerms {
    StandingTerms::new(StandingBeacon::Smt, NETWORK, 3, 10).proceeding(threshold)
}

fn costs(amount: &str) -> Option<Cost> {
    Some(Cost { amount: amount.parse::<Number>().unwrap(), unit: "sat".into(), basis: None })
}

#[test]
fn a_member_objects_beyond_each_limit_of_its_policy() {
    let cases: [(Change<StandingTerms>, Option<usize>, &str); 18] = [
        (|_| {}, Some(25), ""),
        (|_| {}, Some(26), "all of 26 seats would wait"),
        (|t| (t.min_participants, t.max_participants) = (26, 26), None, "all of 26 seats would wait"),
        // k of n: two of three seats are accepted, two of four are not, whatever k is possible.
        (|t| *t = of_three(2), Some(3), ""),
        (|t| *t = of_three(2), Some(4), "2 of 4 seats could end every DID"),
        (|t| *t = of_three(2), None, "2 of 10 seats could end every DID"),
        (|t| *t = StandingTerms::new(StandingBeacon::Smt, NETWORK, 21, 26).proceeding(20), Some(26), ""),
        (|t| t.max_fee_rate = 1_001, None, "fees of up to 1001 sat/vB"),
        (|t| t.max_fee_rate = 1_000, None, ""),
        (|t| t.max_operator_output = 50_001, None, "the operator takes up to 50001 sat"),
        (|t| t.max_operator_output = 50_000, None, ""),
        (|t| t.min_seconds_between_announcements = 1, None, ""),
        (|t| t.respond_seconds = 9, None, "less than 10 s to answer"),
        (|t| t.confirm_seconds = 10, None, ""),
        (|t| t.updates = Updates::Hash, None, ""),
        (|t| (t.registration, t.updates) = (Registration::Blind, Updates::Hash), None, "an index of a DID"),
        (|t| t.cost_of_enrollment = costs("1"), None, "joining costs more than 0"),
        (|t| t.cost_per_announcement = costs("0"), None, ""),
    ];
    for (number, (change, seats, objection)) in cases.into_iter().enumerate() {
        let mut terms = terms();
        change(&mut terms);
        let objections = StandingPolicy::default().objections(&terms, seats);
        match (&objections[..], objection) {
            ([], "") => {}
            ([one], expected) if !expected.is_empty() => assert!(one.contains(expected), "case {number}: {one}"),
            (found, _) => panic!("case {number}: {found:?}"),
        }
    }
}

#[test]
fn a_policy_decides_what_the_defaults_leave_open() {
    let objects = |change: Change<StandingPolicy>, terms: &StandingTerms| {
        let mut policy = StandingPolicy::default();
        change(&mut policy);
        !policy.objections(terms, None).is_empty()
    };
    assert!(objects(|policy| policy.least_seconds_between_announcements = 3_601, &terms()));
    assert!(!objects(|policy| policy.least_seconds_between_announcements = 3_600, &terms()));
    let hashes = StandingTerms { updates: Updates::Hash, ..terms() };
    assert!(objects(|policy| policy.accepts_hashes = false, &hashes));
    assert!(!objects(|policy| policy.accepts_hashes = false, &terms()), "it receives full updates");
    let blind = StandingTerms { registration: Registration::Blind, ..hashes };
    assert!(!objects(|policy| policy.accepts_blind = true, &blind));
    let paid = StandingTerms { cost_per_announcement: costs("2.5"), ..terms() };
    assert!(objects(|policy| policy.max_cost = 2.4, &paid));
    assert!(!objects(|policy| policy.max_cost = 2.5, &paid));
    // What contradicts itself is not accepted either.
    assert!(objects(|_| {}, &StandingTerms { max_unconfirmed: 0, ..terms() }));
}
