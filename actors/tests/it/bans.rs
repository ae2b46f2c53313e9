//! Offences are recorded with the signed messages, and the member is not admitted for as long as the operator's policy
//! decides.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::common::{
    Operator, Updater, World, cohort, identity, on_paused_clock, settle,
    tap::{Tap, no_signatures},
};
use crate::http_support::{
    paused, sealed,
    site::{OK, Site},
};
use btcr2_aggregation_actors::{
    bans::{BanBook, Bans, DefaultBans, Entry, NoBans, Offence},
    notice::ServiceNotice,
    runtime::Randomness,
    subject::Subject,
    transport::{
        Evidence,
        http::{HttpConfig, store::Rate},
    },
};
use btcr2_aggregation_protocol::{
    envelope::{Expected, ExpectedTo, ParsedEnvelope},
    error::RejectCode,
    id::CohortId,
    identity::Identity,
    invite::InviteToken,
    message::{
        Body, Bytes, Message,
        keygen::CohortOptIn,
        sign::NonceContribution,
        update::{SubmitNonIncluded, ValidationAck},
    },
    time::Timestamp,
};
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::from_secs(1_750_000_000);
const DAY: u64 = 24 * 3600;

fn entry(offence: Offence, cohort: &str, at: Timestamp) -> Entry {
    let cohort_id = CohortId::parse(cohort).unwrap();
    Entry {
        offence,
        cohort_id,
        number: None,
        at,
        detail: "a test".to_owned(),
        address: None,
        invite: None,
        evidence: Vec::new(),
    }
}

fn in_memory() -> BanBook {
    BanBook::in_memory(Arc::new(DefaultBans))
}

#[test]
fn a_member_that_equivocates_is_on_record_with_both_envelopes_and_is_not_admitted_again() {
    paused(async {
        let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let config = HttpConfig { did_rate: rate, address_rate: rate, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let world = World::new();
        let mut settings = world.service_settings("aggregator", Operator);
        settings.transport = Arc::new(site.server.clone());
        settings.clock = site.clock;
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        let (liar, honest) = (identity("liar"), identity("honest"));
        let post = async |from: &Identity, body: Body| {
            let envelope = sealed(from, Some(service.identity.did()), body, site.now());
            let answer = site.post(envelope.clone()).await;
            assert_eq!(answer.outcome(), OK);
            envelope
        };
        let opt_in = |member: &Identity, cohort_id: &CohortId| -> Body {
            let key = Bytes(member.public_key().to_bytes());
            let (participant_pk, communication_pk) = (key, key);
            CohortOptIn {
                cohort_id: cohort_id.clone(),
                participant_pk,
                communication_pk,
                genesis_document: None,
                invite: None,
            }
            .into()
        };
        let cohort_id = service.open(cohort(2)).await;
        for member in [&liar, &honest] {
            post(member, opt_in(member, &cohort_id)).await;
        }
        for member in [&liar, &honest] {
            post(member, SubmitNonIncluded { cohort_id: cohort_id.clone() }.into()).await;
        }
        settle().await;
        let verdict = |approved| ValidationAck { cohort_id: cohort_id.clone(), approved }.into();
        let posted = [post(&liar, verdict(true)).await, post(&liar, verdict(false)).await];
        settle().await;

        let conduct = book.list().unwrap().remove(&liar.did().into()).expect("it is recorded");
        assert_eq!(book.list().unwrap().len(), 1, "and no other member");
        let [entry] = &conduct.entries[..] else { panic!("{conduct:?}") };
        assert_eq!((entry.offence, &entry.cohort_id), (Offence::Equivocation, &cohort_id));
        // Verified independently, with nothing but the evidence: each was signed by that DID, for this service, and
        // they differ.
        let mut verdicts = BTreeSet::new();
        for (evidence, posted) in entry.evidence.iter().zip(&posted) {
            let Evidence::Envelope(text) = evidence else { panic!("{evidence:?}") };
            assert_eq!(**text, **posted);
            let envelope = ParsedEnvelope::parse(text).unwrap();
            let key = liar.did().key().unwrap().x_only();
            let to = ExpectedTo::Did(service.identity.did());
            let expected = Expected { from: Some(liar.did()), to, ..Expected::default() };
            envelope.verify(&key, envelope.timestamp().unwrap(), &expected).unwrap();
            let Body::ValidationAck(ack) = (*envelope.message().unwrap().body).clone() else { panic!("{text}") };
            assert_eq!(ack.cohort_id, cohort_id);
            verdicts.insert(ack.approved);
        }
        assert_eq!(verdicts, BTreeSet::from([false, true]));
        let until = conduct.ban(site.now()).expect("it is banned");
        assert_eq!(until.since(entry.at).as_secs(), 7 * DAY);
        let banned = service.ear.wait_for(|notice| match notice {
            ServiceNotice::MemberBanned { participant, offence, until, .. } => {
                Some((participant.clone(), *offence, *until))
            }
            _ => None,
        });
        assert_eq!(banned.await, (liar.did().clone(), Offence::Equivocation, until));

        // The next cohort forms without it, until the operator lifts the ban.
        let refused = service.open(cohort(2)).await;
        post_and_wait(&site, &service.identity, &liar, opt_in(&liar, &refused)).await;
        let reason = service
            .ear
            .wait_for(|notice| match notice {
                ServiceNotice::ParticipantRefused { participant, reason, .. } if participant == liar.did() => {
                    Some(reason.clone())
                }
                _ => None,
            })
            .await;
        assert!(reason.contains("banned"), "{reason}");
        assert!(book.lift(liar.did()).unwrap());
        let admitted = service.open(cohort(2)).await;
        post_and_wait(&site, &service.identity, &liar, opt_in(&liar, &admitted)).await;
        service.ear.event(&admitted, "participant-accepted").await;
    });
}

async fn post_and_wait(site: &Site, service: &Identity, from: &Identity, body: Body) {
    let answer = site.post(sealed(from, Some(service.did()), body, site.now())).await;
    assert_eq!(answer.outcome(), OK);
    settle().await;
}

#[test]
fn three_holdouts_are_a_ban_for_a_day() {
    on_paused_clock(async {
        let mut world = World::new();
        let settings = world.service_settings("service", Operator);
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        world.updaters(1).await;
        let silent = identity("silent");
        world.participant_on(&silent, Updater(silent.clone()), Tap::losing(&world.network, no_signatures)).await;
        for times in 1..=3 {
            let cohort_id = service.open(cohort(2)).await;
            // The fallback needs two of two as well.
            let _ = service.ear.end_of(&cohort_id).await;
            settle().await;
            let conduct = book.list().unwrap().remove(&silent.did().into()).expect("it is recorded");
            assert_eq!(conduct.entries.len(), times);
            assert!(conduct.entries.iter().all(|entry| entry.offence == Offence::Holdout));
            assert_eq!(conduct.banned_until.is_some(), times == 3);
        }
        let cohort_id = service.open(cohort(2)).await;
        service.ear.event(&cohort_id, "participant-refused").await;
        world.members.received();
        assert!(service.ear.rejections().iter().all(|(_, code)| *code != RejectCode::Equivocation));
    });
}

#[test]
fn the_policy_decides_for_how_long() {
    let did = identity("member").did().clone();
    let day = Duration::from_secs(DAY);
    let book = in_memory();
    assert_eq!(book.record(&did, entry(Offence::Holdout, "one", NOW)), None);
    assert_eq!(book.record(&did, entry(Offence::Holdout, "one", NOW)), None, "a repetition");
    assert_eq!(book.record(&did, entry(Offence::Holdout, "two", NOW + day * 20)), None);
    let third = NOW + day * 40;
    assert_eq!(book.record(&did, entry(Offence::Holdout, "three", third)), None, "the first is long ago");
    let until = book.record(&did, entry(Offence::Holdout, "four", third));
    assert_eq!(until, Some(third + day));
    let week = book.record(&did, entry(Offence::BadPartialSignature, "five", third));
    assert_eq!(week, Some(third + day * 7));
    assert_eq!(book.banned(&did, third + day * 7).unwrap(), None, "and then the ban is over");

    let lenient = BanBook::in_memory(Arc::new(NoBans));
    assert_eq!(lenient.record(&did, entry(Offence::Equivocation, "one", NOW)), None);
    assert_eq!(lenient.list().unwrap()[&Subject::from(&did)].entries.len(), 1, "it is recorded nevertheless");

    struct Stern;
    impl Bans for Stern {
        fn judge(&self, entries: &[Entry]) -> Option<Duration> {
            Some(Duration::from_secs(entries.len() as u64))
        }
    }
    let stern = BanBook::in_memory(Arc::new(Stern));
    let until = stern.record(&did, entry(Offence::Holdout, "one", NOW));
    assert_eq!(until, Some(NOW + Duration::from_secs(1)));
}

#[test]
fn all_programs_that_open_the_file_share_its_list() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("bans.redb");
    let open = || BanBook::open(&path, Arc::new(DefaultBans));
    let [running, command] = [open().unwrap(), open().unwrap()];
    let (one, other) = (Subject::from(identity("one").did()), Subject::from(identity("other").did()));
    assert!(running.list().unwrap().is_empty());
    command.add(one.clone(), Timestamp::NEVER, Some("by hand".to_owned())).unwrap();
    assert_eq!(running.banned(one.clone(), NOW).unwrap(), Some(Timestamp::NEVER));
    // It has not seen the other program's write yet when it records something.
    command.add("203.0.113.7".parse::<Subject>().unwrap(), NOW + Duration::from_secs(DAY), None).unwrap();
    running.record(other.clone(), entry(Offence::Equivocation, "cohort", NOW));
    assert!(running.flush());
    let listed = command.list().unwrap();
    assert_eq!(listed.len(), 3, "no change is lost");
    assert_eq!(listed, running.list().unwrap());
    assert_eq!(listed[&one].reason.as_deref(), Some("by hand"));
    assert!(command.lift(one.clone()).unwrap());
    assert!(!command.lift(one.clone()).unwrap(), "there is none any more");
    assert_eq!(running.banned(one, NOW).unwrap(), None);
    assert!(running.banned(other, NOW).unwrap().is_some());
    // Of one that it knows otherwise neither change is lost: to write its own view of it would strike the ban.
    let third = Subject::from(identity("third").did());
    command.add(third.clone(), Timestamp::NEVER, Some("by hand".to_owned())).unwrap();
    running.record(third.clone(), entry(Offence::Holdout, "cohort", NOW));
    assert!(running.flush());
    let listed = command.list().unwrap();
    assert_eq!(listed[&third].reason.as_deref(), Some("by hand"));
    assert_eq!(listed[&third].entries.len(), 1);
    // Read again, as after a restart.
    assert_eq!(open().unwrap().list().unwrap(), running.list().unwrap());
}

#[test]
fn a_file_that_is_something_else_is_reported_and_not_written_over() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("bans.redb");
    let open = || BanBook::open(&path, Arc::new(DefaultBans)).map(drop).map_err(|error| error.to_string());
    std::fs::write(&path, "{").unwrap();
    let error = open().unwrap_err();
    assert!(error.contains("bans.redb") && error.contains("move it away"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
    std::fs::remove_file(&path).unwrap();

    // Nor is the file of an earlier version accepted.
    let old = dir.path().join("bans.json");
    std::fs::write(&old, "[]").unwrap();
    let error = open().unwrap_err();
    assert!(error.contains("bans.json") && error.contains("not a ban list"), "{error}");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "[]");
}

#[test]
fn the_file_of_an_earlier_version_is_imported_once() {
    let dir = TempDir::new().unwrap();
    let (path, old) = (dir.path().join("bans.redb"), dir.path().join("bans.json"));
    let (banned, noted) = (identity("banned").did().clone(), identity("noted").did().clone());
    let json = serde_json::json!({
        banned.as_str(): { "bannedUntil": Timestamp::NEVER, "byHand": true, "reason": "a reason" },
        noted.as_str(): {
            "entries": [{ "offence": "holdout", "cohortId": "one", "at": NOW, "detail": "kept silent" }]
        },
    });
    std::fs::write(&old, json.to_string()).unwrap();
    let open = || BanBook::open(&path, Arc::new(DefaultBans)).unwrap();
    let book = open();
    assert_eq!(book.banned(&banned, NOW).unwrap(), Some(Timestamp::NEVER));
    assert_eq!(book.list().unwrap()[&Subject::from(&noted)].entries[0].offence, Offence::Holdout);
    assert!(!old.exists());
    book.lift(&banned).unwrap();
    assert_eq!(open().banned(&banned, NOW).unwrap(), None, "it is not imported again");
}

#[test]
fn bans_by_address_or_invite_leave_nothing_behind() {
    on_paused_clock(async {
        let world = World::new();
        let settings = world.service_settings("service", Operator);
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        let cohort_id = service.open(cohort(1)).await;
        let token = InviteToken::generate(&mut Randomness::Seeded([7; 32]).for_actor("invite"));
        book.add(Subject::Invite(token.id()), Timestamp::NEVER, None).unwrap();
        let member = identity("member");
        let key = Bytes(member.public_key().to_bytes());
        let opt_in = CohortOptIn {
            cohort_id: cohort_id.clone(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: None,
            invite: Some(token.prove(&cohort_id, member.did())),
        };
        let message = Message::new(member.did().clone(), Some(service.did().clone()), opt_in);
        world.network.inject(member.did(), service.did(), &message.to_json());
        settle().await;
        let names = service.ear.names(&cohort_id);
        assert_eq!(names[..2], ["cohort-advertised", "participant-refused"], "no opt-in");
        assert!(!names.iter().any(|name| *name == "opt-in-received"), "{names:?}");
        book.lift(Subject::Invite(token.id())).unwrap();
        world.network.inject(member.did(), service.did(), &message.to_json());
        service.ear.event(&cohort_id, "participant-accepted").await;
    });
}

#[test]
fn a_book_is_bounded() {
    let book = in_memory();
    let did = identity("member").did().clone();
    for number in 0..40 {
        book.record(&did, entry(Offence::Holdout, &format!("cohort-{number}"), NOW));
    }
    let entries = &book.list().unwrap()[&Subject::from(&did)].entries;
    assert_eq!((entries.len(), entries[15].cohort_id.as_str()), (16, "cohort-39"), "the latest are stored");

    // The stored evidence is bounded in all; the oldest is removed.
    for number in 0..300_u64 {
        let did = identity(&format!("liar {number}")).did().clone();
        let mut entry = entry(Offence::Equivocation, "cohort", NOW + Duration::from_secs(number));
        entry.evidence = vec![Evidence::Envelope("x".repeat(64 << 10).into())];
        book.record(&did, entry);
    }
    let list = book.list().unwrap();
    assert_eq!(list.len(), 301, "all offences are recorded");
    let evidence: usize =
        list.values().flat_map(|conduct| &conduct.entries).map(|entry| entry.evidence.len()).sum();
    assert_eq!(evidence, 256);
    assert_eq!(
        list[&identity("liar 299").did().into()].entries[0].evidence.len(),
        1,
        "the latest has its evidence"
    );

    // A member without offences for a quarter of a year is removed.
    let late = NOW + Duration::from_secs(100 * DAY);
    book.record(identity("late").did(), entry(Offence::Holdout, "cohort", late));
    assert_eq!(book.list().unwrap().len(), 1);
}

#[test]
fn an_unreadable_ban_list_delays_admissions() {
    on_paused_clock(async {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("bans.redb");
        let world = World::new();
        let mut settings = world.service_settings("service", Operator);
        settings.bans = BanBook::open(&path, Arc::new(DefaultBans)).unwrap();
        std::fs::write(&path, "no list").unwrap();
        let mut service = settings.start().await;
        world.updaters(1).await;
        let cohort_id = service.open(cohort(1)).await;
        crate::common::pass(Duration::from_secs(60)).await;
        assert_eq!(service.ear.names(&cohort_id), ["cohort-advertised", "opt-in-received"]);
        std::fs::remove_file(&path).unwrap();
        service.ear.completed(&cohort_id).await;
    });
}

#[test]
fn a_second_nonce_is_refused_and_not_charged() {
    on_paused_clock(async {
        let world = World::new();
        let settings = world.service_settings("service", Operator);
        let book = settings.bans.clone();
        let mut service = settings.start().await;
        let member = identity("restored");
        let lossy = Tap::losing(&world.network, |body| !matches!(body, Body::NonceContribution(_)));
        for identity in [&member, &identity("silent")] {
            world.participant_on(identity, Updater(identity.clone()), lossy.clone()).await;
        }
        let cohort_id = service.open(cohort(2)).await;
        let session_id = service
            .ear
            .wait_for(|notice| match notice {
                ServiceNotice::SigningStarted { session_id, .. } => Some(session_id.clone()),
                _ => None,
            })
            .await;
        settle().await;
        for name in ["before the backup", "after it"] {
            let point = crate::common::key(name).public_key().to_bytes();
            let nonce_contribution = Bytes([point, point].concat().try_into().unwrap());
            let (cohort_id, session_id) = (cohort_id.clone(), session_id.clone());
            let body = NonceContribution { cohort_id, session_id, nonce_contribution };
            let message = Message::new(member.did().clone(), Some(service.did().clone()), body);
            world.network.inject(member.did(), service.did(), &message.to_json());
            settle().await;
        }
        let refused = (member.did().clone(), RejectCode::Equivocation);
        assert!(service.ear.rejections().contains(&refused), "{:?}", service.ear.rejections());
        assert!(!book.list().unwrap().contains_key(&member.did().into()));
    });
}
