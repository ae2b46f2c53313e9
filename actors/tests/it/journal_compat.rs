//! Journals of each schema version so far can be read, and lead to the recorded states.
//!
//! `fixtures/journal/v<schema>/<round>/` contains a whole round as it was stored: `cohort.jsonl`, `signing.jsonl` and
//! one member's `participant.jsonl`, one record in each line, and in `round.json` the round's parameters and end. A
//! version's fixtures are written once and never changed; when [`SCHEMA`] is incremented, those of the new version are
//! added with `cargo test -p btcr2-aggregation-actors --test it -- --ignored --exact journal_compat::write_fixtures`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::common::{
    Operator, Updater, World, cohort, external_identity, identity, on_paused_clock,
    tap::{Tap, no_signatures},
};
use btcr2_aggregation_actors::journal::{Record, SCHEMA, StreamId};
use btcr2_aggregation_protocol::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{
        Timing,
        conditions::Conditions,
        event::{ParticipantEvent, ServiceEvent, SessionEnd, SpendPath},
        participant::{ParticipantCohort, ParticipantConfig, ParticipantInput, phase::Phase as MemberPhase},
        service::{ServiceCohort, ServiceConfig, phase::Phase},
    },
    hash::SignalBytes,
    id::{CohortId, SessionId},
    machine::{Machine, replay},
    output::MemoizedAggregator,
    signing::{
        SigningOutcome,
        session::{SessionEvent, SessionPhase, SigningSession},
    },
    time::Timestamp,
};
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The parameters of a round, and its end.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Round {
    cohort_id: CohortId,
    session_id: SessionId,
    conditions: Conditions,
    path: SpendPath,
    txid: bitcoin::Txid,
    signal: SignalBytes,
}

/// The service of each round, and the member with an EXTERNAL DID whose journal is recorded; both are generated from
/// their names.
const SERVICE: &str = "service";
const MEMBER: &str = "external";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal")
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

fn events<E: Clone + DeserializeOwned + 'static>(round: &Path, role: &str) -> Vec<E> {
    let path = round.join(role).with_extension("jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let event = |(number, line): (usize, &str)| {
        let decoded = Record::from_json(line.as_bytes()).event();
        decoded.unwrap_or_else(|error| panic!("{}, line {}: {error}", path.display(), number + 1))
    };
    text.lines().enumerate().map(event).collect()
}

#[test]
fn journals_of_every_schema_version_lead_to_where_they_led() {
    let versions = directories(&fixtures());
    let names: Vec<_> = versions.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let expected: Vec<_> = (1..=SCHEMA).map(|version| format!("v{version}")).collect();
    assert_eq!(names, expected, "every version so far has its fixtures");
    for round in versions.iter().flat_map(|version| directories(version)) {
        replays(&round);
    }
}

fn replays(path: &Path) {
    let round: Round = serde_json::from_slice(&fs::read(path.join("round.json")).unwrap()).unwrap();
    let (beacons, aggregator) = (BeaconRegistry::default(), Arc::new(MemoizedAggregator::default()));
    let (service, member) = (identity(SERVICE), external_identity(MEMBER));

    let facts = events::<ServiceEvent>(path, "cohort");
    let Some(ServiceEvent::CohortAdvertised { terms, .. }) = facts.first() else { panic!("{}", path.display()) };
    assert_eq!((&terms.service, &terms.conditions), (service.did(), &round.conditions));
    let config = ServiceConfig { terms: Arc::clone(terms), beacons, aggregator };
    let mut cohort = ServiceCohort::new(Arc::new(config)).unwrap();
    let mut task = None;
    for event in &facts {
        cohort.apply(event);
        if let Phase::Signing { task: started, .. } = cohort.phase() {
            task = Some(Arc::clone(started));
        }
    }
    let Phase::Completed { outcome, aggregated, .. } = cohort.phase() else {
        panic!("{}: the cohort is in {:?}", path.display(), cohort.phase());
    };
    assert_eq!((outcome.path, outcome.transaction.compute_txid()), (round.path, round.txid));
    assert_eq!(aggregated.aggregation.signal, round.signal);

    let task = task.unwrap();
    assert_eq!(task.session_id, round.session_id);
    let session = replay(SigningSession::new(task), &events::<SessionEvent>(path, "signing"));
    let SessionPhase::Ended(SigningOutcome::Signed(signed)) = session.phase() else {
        panic!("{}: the session is in {:?}", path.display(), session.phase());
    };
    assert_eq!(signed, outcome, "the session and the cohort agree");

    let facts = events::<ParticipantEvent>(path, "participant");
    let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = facts.first() else {
        panic!("{}", path.display());
    };
    let session = replay(ParticipantCohort::new(Arc::new(config_of(&member)), Arc::clone(advert)), &facts);
    assert!(matches!(session.phase(), MemberPhase::Ended { .. }), "{}: {:?}", path.display(), session.phase());
    let record = session.record().expect("the member has its record");
    assert_eq!((record.cohort_id.clone(), record.signal), (round.cohort_id, round.signal));
    assert!(record.update.is_some());
}

/// Whether the events so far contain an update, or a tree, according to the rules of before October 2026.
fn is_outdated(facts: &[ServiceEvent]) -> bool {
    facts
        .iter()
        .any(|fact| matches!(fact, ServiceEvent::UpdateReceived { .. } | ServiceEvent::UpdatesAggregated { .. }))
}

/// A service is started again on a journal that version 0.1 wrote, after each of its records.
#[test]
fn a_cohort_of_an_earlier_edition_ends_with_that_reason() {
    for round in directories(&fixtures().join("v1")) {
        let facts = events::<ServiceEvent>(&round, "cohort");
        let text = fs::read_to_string(round.join("cohort.jsonl")).unwrap();
        let ended = facts.iter().position(|fact| matches!(fact, ServiceEvent::CohortCompleted { .. })).unwrap();
        let mut ends = 0;
        for length in 1..=ended {
            let (facts, lines) =
                (&facts[..length], text.lines().take(length).map(str::to_owned).collect::<Vec<_>>());
            let Some(ServiceEvent::CohortAdvertised { terms, .. }) = facts.first() else { panic!() };
            let cohort_id = terms.cohort_id.clone();
            let outdated = is_outdated(facts);
            on_paused_clock(async move {
                let world = World::new();
                let records = lines.iter().map(|line| Record::from_json(line.clone().into_bytes())).collect();
                world.journal.append(&StreamId::new(format!("cohort/{cohort_id}")), records).await.unwrap();
                let mut service = world.service(SERVICE, Operator).await;
                crate::common::pass(std::time::Duration::from_secs(1)).await;
                let names = service.ear.names(&cohort_id);
                assert_eq!(names.contains(&"cohort-failed".to_owned()), outdated, "after {length}: {names:?}");
                if outdated {
                    let failure = service.ear.failed(&cohort_id).await;
                    assert_eq!(failure.code(), "OUTDATED");
                    assert!(failure.to_string().contains("0.2.0"), "{failure}");
                }
            });
            ends += usize::from(outdated);
        }
        assert!(ends > 5, "{}", round.display());
    }
}

fn config_of(member: &btcr2_aggregation_protocol::identity::Identity) -> ParticipantConfig {
    ParticipantConfig {
        did: member.did().clone(),
        participant_key: member.public_key(),
        communication_key: member.public_key(),
        genesis_document: member.genesis_document().cloned(),
        invite: None,
        timing: Timing::default(),
        max_fee_rate: btcr2_aggregation_protocol::output::DEFAULT_MAX_FEE_RATE,
        beacons: BeaconRegistry::default(),
        aggregator: Arc::new(MemoizedAggregator::default()),
    }
}

/// The same for a member, unless it has sent a signature: then the service reports the outcome.
#[test]
fn a_membership_of_an_earlier_edition_ends_with_that_reason() {
    for round in directories(&fixtures().join("v1")) {
        let facts = events::<ParticipantEvent>(&round, "participant");
        let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = facts.first() else { panic!() };
        let member = external_identity(MEMBER);
        let mut cohort = ParticipantCohort::new(Arc::new(config_of(&member)), Arc::clone(advert));
        let mut ends = 0;
        for fact in &facts {
            cohort.apply(fact);
            let outdated = match cohort.phase() {
                MemberPhase::Submitted { .. } | MemberPhase::Validating { .. } | MemberPhase::Approved { .. } => {
                    true
                }
                MemberPhase::Signing { stage, .. } => !stage.has_signed(),
                _ => false,
            };
            let now = Timestamp::from_secs(1_800_000_000);
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
            let events = cohort.decide(now, &ParticipantInput::Resumed, &mut rng).unwrap();
            let end = ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::Outdated };
            let expected = if outdated { vec![end] } else { Vec::new() };
            assert_eq!(events, expected, "{} in {}", round.display(), cohort.phase().name());
            ends += usize::from(outdated);
        }
        assert!(ends >= 3, "{}", round.display());
    }
}

async fn store(world: &World, stream: String, path: &Path) {
    let records = world.journal.read(&StreamId::new(stream)).await.unwrap();
    assert!(!records.is_empty());
    let lines = records.iter().map(|record| String::from_utf8(record.to_json().unwrap()).unwrap() + "\n");
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// Runs a round of three, one of them silent after the nonces if the path is the fallback's, and writes its fixtures.
fn write_round(name: &str, beacon_type: BeaconType, path: SpendPath) {
    on_paused_clock(async {
        let directory = fixtures().join(format!("v{SCHEMA}")).join(name);
        fs::create_dir_all(&directory).unwrap();
        let mut world = World::new();
        let mut service = world.service(SERVICE, Operator).await;
        let (member, another, last) = (external_identity(MEMBER), identity("another"), identity("last"));
        world.participant(&member, Updater(member.clone())).await;
        world.participant(&another, Updater(another.clone())).await;
        match path {
            SpendPath::KeyPath => world.participant(&last, Updater(last.clone())).await,
            SpendPath::ScriptPath => {
                let silent = Tap::losing(&world.network, no_signatures);
                world.participant_on(&last, Updater(last.clone()), silent).await
            }
        };
        let mut open = cohort(3);
        open.conditions.beacon_type = beacon_type;
        let cohort_id = service.open(open.clone()).await;
        let result = service.ear.completed(&cohort_id).await;
        assert_eq!(result.signed.path, path);
        world.members.records(&cohort_id, 3).await;
        // Until the members have stopped waiting for a fallback request.
        crate::common::pass(std::time::Duration::from_secs(24 * 3600)).await;

        let streams = world.journal.streams().await.unwrap();
        let session = streams.iter().find_map(|stream| stream.as_str().strip_prefix("signing/")).unwrap();
        store(&world, format!("cohort/{cohort_id}"), &directory.join("cohort.jsonl")).await;
        store(&world, format!("signing/{session}"), &directory.join("signing.jsonl")).await;
        let stream = format!("participant/{}/{}/{cohort_id}", member.did(), service.did());
        store(&world, stream, &directory.join("participant.jsonl")).await;
        let round = Round {
            cohort_id,
            session_id: SessionId::parse(session).unwrap(),
            conditions: open.conditions,
            path,
            txid: result.signed.transaction.compute_txid(),
            signal: result.aggregation.signal,
        };
        fs::write(directory.join("round.json"), serde_json::to_string_pretty(&round).unwrap() + "\n").unwrap();
    });
}

/// The vault of a member of version 0.1, as `vault export` writes it; made from the journals of that version.
#[test]
#[ignore = "writes a fixture into the source tree"]
fn write_vault_of_version_0_1() {
    let member = external_identity(MEMBER);
    let entries = directories(&fixtures().join("v1")).into_iter().map(|round| {
        let facts = events::<ParticipantEvent>(&round, "participant");
        let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = facts.first() else { panic!() };
        let session = replay(ParticipantCohort::new(Arc::new(config_of(&member)), Arc::clone(advert)), &facts);
        let genesis_document = member.genesis_document().map(|document| (**document).clone());
        btcr2_aggregation_actors::state::vault::VaultEntry {
            record: session.record().unwrap(),
            genesis_document,
            transcript: None,
            txid: None,
            confirmed_height: None,
        }
    });
    let document = serde_json::json!({ "vaultVersion": 1, "entries": entries.collect::<Vec<_>>() });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vault-0.1.json");
    fs::write(path, serde_json::to_string_pretty(&document).unwrap() + "\n").unwrap();
}

#[test]
#[ignore = "writes the fixtures of the current schema version into the source tree"]
fn write_fixtures() {
    write_round("key-path", BeaconType::cas(), SpendPath::KeyPath);
    write_round("fallback", BeaconType::smt(), SpendPath::ScriptPath);
}
