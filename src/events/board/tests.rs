//! The lines for people about cohorts with several members, and about several cohorts.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use crate::{
    actors::notice::{Known, ParticipantNotice as P, ServiceNotice as N},
    bitcoin::notice::AnnouncementNotice as A,
    events::Printer,
    protocol::{
        cohort::service::phase::PhaseKind,
        did::Did,
        hash::SignalBytes,
        id::{CohortId, SessionId},
        identity::Identity,
        key::SecretKey,
        network::Network,
        output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
    },
};

fn member(number: u8) -> Identity {
    Identity::from_key(SecretKey::from_bytes(&[number; 32]).unwrap(), Network::Regtest)
}

fn did(number: u8) -> Did {
    member(number).did().clone()
}

fn output(members: u8, threshold: u16) -> Arc<BeaconOutput> {
    let aggregation = KeyAggregation::new((1..=members).map(|number| member(number).public_key())).unwrap();
    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key: member(1).public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(144).unwrap(),
        fallback_threshold: Some(threshold),
    };
    Arc::new(BeaconOutput::new(Arc::new(aggregation), Network::Regtest, &tree).unwrap())
}

/// A service with a cohort, from the operator's view.
struct Seen {
    printer: Printer,
    cohort_id: CohortId,
}

impl Seen {
    fn new(name: &str) -> Self {
        Self { printer: Printer::new(false), cohort_id: CohortId::parse(name).unwrap() }
    }

    fn beside(&self, name: &str) -> Self {
        Self { printer: self.printer.clone(), cohort_id: CohortId::parse(name).unwrap() }
    }

    fn line(&self, step: &N) -> String {
        self.printer.service_line(step).text
    }

    fn advertised(self) -> Self {
        self.line(&N::CohortAdvertised { cohort_id: self.cohort_id.clone() });
        self
    }

    /// Admits so many members, and forms the cohort.
    fn formed(self, members: u8) -> Self {
        for number in 1..=members {
            self.line(&N::ParticipantAccepted { cohort_id: self.cohort_id.clone(), participant: did(number) });
        }
        let output = output(members, 2);
        self.line(&N::KeygenComplete {
            cohort_id: self.cohort_id.clone(),
            beacon_address: output.address().to_owned(),
            participants: members.into(),
            output,
        });
        self
    }

    fn session(&self) -> SessionId {
        SessionId::parse("session").unwrap()
    }

    fn signs(&self) {
        self.line(&N::SigningStarted { cohort_id: self.cohort_id.clone(), session_id: self.session() });
    }

    fn nonce(&self, number: u8) -> String {
        let (cohort_id, session_id) = (self.cohort_id.clone(), self.session());
        self.line(&N::NonceReceived { cohort_id, session_id, participant: did(number) })
    }

    fn update(&self, number: u8, included: bool) -> String {
        self.line(&N::UpdateReceived { cohort_id: self.cohort_id.clone(), participant: did(number), included })
    }

    fn failed(&self) {
        let failure = crate::protocol::cohort::event::CohortFailure::Outdated;
        self.line(&N::CohortFailed {
            cohort_id: self.cohort_id.clone(),
            code: failure.code(),
            reason: failure.to_string(),
            failure,
            next: None,
        });
    }
}

#[test]
fn contributions_are_counted_and_the_last_missing_are_named() {
    let seen = Seen::new("one").advertised().formed(5);
    seen.signs();
    assert_eq!(seen.nonce(1), format!("  {} sent its nonce (1 of 5)", did(1)), "four names are too many");
    let missing = |numbers: &[u8]| {
        // In the order of their text, as everywhere.
        let mut names: Vec<_> = numbers.iter().map(|number| did(*number).to_string()).collect();
        names.sort();
        names.join(", ")
    };
    let expected = format!("  {} sent its nonce (2 of 5); missing: {}", did(2), missing(&[3, 4, 5]));
    assert_eq!(seen.nonce(2), expected);
    assert_eq!(seen.nonce(2), expected, "the same one again");
    assert!(seen.nonce(4).ends_with(&format!("(3 of 5); missing: {}", missing(&[3, 5]))));
    seen.nonce(3);
    assert_eq!(seen.nonce(5), format!("  {} sent its nonce (5 of 5)", did(5)));
}

#[test]
fn who_declines_is_not_missing_and_each_phase_counts_by_itself() {
    let seen = Seen::new("one").advertised().formed(2);
    assert!(seen.update(1, true).ends_with(&format!("sent its update (1 of 2); missing: {}", did(2))));
    assert!(seen.update(2, false).ends_with("declined (2 of 2)"));
    seen.line(&N::DataDistributed { cohort_id: seen.cohort_id.clone(), signal: SignalBytes::from_bytes([0; 32]) });
    let verdict = |participant, approved| {
        seen.line(&N::ValidationReceived { cohort_id: seen.cohort_id.clone(), participant, approved })
    };
    assert!(verdict(did(2), true).ends_with(&format!("approves (1 of 2); missing: {}", did(1))));
    assert!(verdict(did(1), false).ends_with("REJECTS the data"));
}

#[test]
fn the_fallback_is_counted_by_what_it_takes() {
    let seen = Seen::new("one").advertised().formed(3);
    let (cohort_id, session_id) = (seen.cohort_id.clone(), seen.session());
    let reason = "nonces are missing".to_owned();
    seen.line(&N::FallbackStarted { cohort_id, session_id, reason, holdouts: vec![did(3)] });
    let signed = |number| {
        let (cohort_id, session_id) = (seen.cohort_id.clone(), seen.session());
        seen.line(&N::FallbackSignatureReceived { cohort_id, session_id, participant: did(number) })
    };
    assert!(signed(1).contains("signed the fallback (1 of the 2 that it takes); missing: "));
    assert!(signed(2).ends_with("(2 of the 2 that it takes)"), "enough, and no member is missing");
}

#[test]
fn after_a_restart_nobody_is_named_who_may_have_contributed() {
    let seen = Seen::new("one");
    let recovered =
        |output| N::CohortRecovered { cohort_id: seen.cohort_id.clone(), phase: PhaseKind::Signing, output };
    seen.line(&recovered(Some(output(3, 2))));
    assert!(seen.nonce(1).ends_with("sent its nonce (at least 1 of 3)"));
    // A phase that starts now is followed from its start; the members are not known.
    seen.signs();
    assert!(seen.nonce(2).ends_with("sent its nonce (1 of 3)"));
}

#[test]
fn after_lost_notices_counts_are_lower_bounds() {
    let seen = Seen::new("one").advertised().formed(2);
    seen.signs();
    seen.nonce(1);
    seen.printer.board().missed();
    assert!(seen.nonce(2).ends_with("(at least 2 of 2)"));
}

#[test]
fn lines_name_their_cohort_while_several_run() {
    let one = Seen::new("one").advertised().formed(2);
    assert!(one.update(1, true).starts_with("  did:"));
    let two = one.beside("two").advertised();
    assert!(one.update(2, true).starts_with("  cohort one: did:"));
    let accepted = two.line(&N::ParticipantAccepted { cohort_id: two.cohort_id.clone(), participant: did(1) });
    assert_eq!(accepted, format!("  cohort two: {} is a member (1 so far)", did(1)));
    one.failed();
    let accepted = two.line(&N::ParticipantAccepted { cohort_id: two.cohort_id.clone(), participant: did(2) });
    assert_eq!(accepted, format!("  {} is a member (2 so far)", did(2)));
}

#[test]
fn a_cohort_that_has_ended_is_forgotten() {
    let seen = Seen::new("one").advertised().formed(2);
    seen.failed();
    assert!(seen.update(1, true).ends_with("sent its update"), "a late notice counts nothing");
    assert!(seen.printer.board().cohorts.is_empty());
}

#[test]
fn an_announcement_is_beside_the_next_cohort_until_it_is_final() {
    let seen = Seen::new("one");
    let txid: bitcoin::Txid = "11".repeat(32).parse().unwrap();
    let announced = CohortId::parse("signed").unwrap();
    seen.printer.announcement_step(&A::AnnouncementBroadcast { cohort_id: announced.clone(), txid });
    let seen = seen.advertised();
    let opt_in = N::OptInReceived { cohort_id: seen.cohort_id.clone(), participant: did(1) };
    assert!(seen.line(&opt_in).starts_with("  cohort one: "));
    let failure = crate::bitcoin::announcement::AnnouncementFailure::CoinGone;
    seen.printer.announcement_step(&A::AnnouncementFailed {
        cohort_id: announced,
        reason: failure.to_string(),
        failure,
        left: bitcoin::Amount::ZERO,
    });
    assert!(seen.line(&opt_in).starts_with("  did:"));
}

#[test]
fn a_participant_in_several_cohorts_is_told_which() {
    let printer = Printer::new(false);
    let cohort = |name: &str| CohortId::parse(name).unwrap();
    let line = |step: &P| printer.participant_line(step).text;
    line(&P::CohortJoined { did: did(1), cohort_id: cohort("one"), service: did(9) });
    let sent = P::NonceSent { did: did(1), cohort_id: cohort("one") };
    assert_eq!(line(&sent), "  nonce sent");
    line(&P::CohortJoined { did: did(1), cohort_id: cohort("two"), service: did(9) });
    assert_eq!(line(&sent), "  cohort one: nonce sent");
    let (cohort_id, known) = (cohort("two"), Known::Reported);
    line(&P::CohortOver { did: did(1), cohort_id, known, service: did(9) });
    assert_eq!(line(&sent), "  nonce sent");
}

#[test]
fn only_progress_is_overwritten_in_a_terminal() {
    let seen = Seen::new("one").advertised().formed(2);
    let verdict =
        |approved| N::ValidationReceived { cohort_id: seen.cohort_id.clone(), participant: did(1), approved };
    assert!(seen.printer.service_line(&verdict(true)).is_progress);
    assert!(!seen.printer.service_line(&verdict(false)).is_progress);
}
