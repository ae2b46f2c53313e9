//! What was announced, as it is served to every client, to seats, and to controllers of DIDs.

use std::sync::Arc;

use actix_web::test::TestRequest;
use btcr2_aggregation_actors::{
    bans::{Entry, Offence},
    standing::{
        StandingSettings,
        history::{Announced, CohortRecord, Fate, HistoryStore, MemoryHistory},
        notice::SeatNotice,
    },
    state::{State, boards::StateBoards, history::StateHistory},
    subject::Subject,
    transport::{
        http::{
            HttpConfig,
            history::{History, HistoryRefusal, announcements_path, board_path, map_path, proof_path},
        },
        memory::MemoryTransport,
    },
};
use btcr2_aggregation_protocol::{
    beacon::{CasAnnouncement, SmtProof, did_index, smt_leaf, zero_hash},
    cohort::standing::{OpportunityKind, StandingBeacon},
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes, sha256},
    id::CohortId,
    identity::Identity,
    request_auth::RequestAuthorization,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::world::{World, announce, did_identity, start_of_time, terms};
use crate::{
    common::{identity, on_paused_clock},
    http_support::site::Site,
};

fn world(seats: usize) -> World {
    let network = Arc::new(MemoryTransport::new());
    World::new(start_of_time(), network.clone(), network, seats)
}

/// A server beside the service, which serves what is stored.
async fn site(world: &World) -> Site {
    let (site, _) = Site::new(HttpConfig::default()).await;
    site.server.serve_history(Arc::new(world.standing.served_history()));
    site
}

fn signed(site: &Site, did: &Did, key: &Identity, path: &str) -> TestRequest {
    let mut rng = crate::http_support::rng();
    let signed = RequestAuthorization::sign(did, key.secret_key(), path, site.now(), &mut rng);
    TestRequest::get().uri(path).insert_header(("authorization", signed.to_string()))
}

async fn get(site: &Site, path: &str) -> (u16, Value) {
    let answer = site.ask(TestRequest::get().uri(path)).await;
    (answer.status, answer.body)
}

async fn get_as(site: &Site, identity: &Identity, path: &str) -> (u16, Value) {
    let answer = site.ask(signed(site, identity.did(), identity, path)).await;
    (answer.status, answer.body)
}

#[test]
fn announcements_and_maps_are_for_everybody() {
    on_paused_clock(async {
        let mut world = world(3);
        world.form(terms(StandingBeacon::Cas, 3)).await;
        assert_eq!(announce(&mut world, &[0, 1, 2]).await, [1, 2, 3]);
        let cohort_id = world.cohort().id().clone();
        // Of a service that has stopped, too: nothing but what is stored is needed.
        world.service.take().unwrap().stop().await;
        let site = site(&world).await;
        let (status, listed) = get(&site, &announcements_path("", &cohort_id)).await;
        assert_eq!((status, &listed["beaconType"], &listed["next"]), (200, &json!("CASBeacon"), &Value::Null));
        let announced: Vec<Announced> = serde_json::from_value(listed["announcements"].clone()).unwrap();
        assert_eq!(announced.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(announced.iter().all(|one| one.state == Fate::Final && one.kind == OpportunityKind::Announcement));
        assert!(announced.windows(2).all(|pair| pair[1].coins[0].txid == pair[0].txid), "each spends the change");
        for (seat, one) in announced.iter().enumerate() {
            let signal = one.signal.unwrap();
            let (status, map) = get(&site, &map_path("", &cohort_id, &signal)).await;
            assert_eq!(status, 200);
            let map: CasAnnouncement = serde_json::from_value(map).unwrap();
            assert_eq!(map.signal(), signal);
            assert!(map.get(world.seats[seat].controller.dids[0].as_str()).is_some());
        }
        // Pages.
        let page = format!("{}?limit=2", announcements_path("", &cohort_id));
        let (_, first) = get(&site, &page).await;
        assert_eq!((first["announcements"].as_array().unwrap().len(), &first["next"]), (2, &json!(2)));
        let (_, second) = get(&site, &format!("{page}&after=2")).await;
        assert_eq!((&second["announcements"][0]["number"], &second["next"]), (&json!(3), &Value::Null));
        // What there is not, and what a CAS cohort does not have.
        let other = CohortId::parse("another").unwrap();
        let unknown = SignalBytes::from_bytes([1; 32]);
        let index = did_index(did_identity(0, 0).did());
        for path in [
            announcements_path("", &other),
            map_path("", &cohort_id, &unknown),
            map_path("", &other, &announced[0].signal.unwrap()),
            proof_path("", &cohort_id, 1, &index),
            proof_path("", &cohort_id, 9, &index),
        ] {
            assert_eq!(get(&site, &path).await.0, 404, "{path}");
        }
    });
}

#[test]
fn a_leaf_is_for_its_seat_and_for_the_controller_of_its_did() {
    on_paused_clock(async {
        let mut world = world(3);
        world.form(terms(StandingBeacon::Smt, 3)).await;
        world.seats[2].stop().await;
        assert_eq!(announce(&mut world, &[0]).await, [1]);
        let cohort_id = world.cohort().id().clone();
        let site = site(&world).await;
        let path = |index: &DidIndex| proof_path("", &cohort_id, 1, index);
        // Without a leaf: of the seat that was absent, and of a DID that no seat has registered.
        let foreign = identity("a former member");
        for did in [world.seats[2].controller.dids[1].clone(), foreign.did().clone()] {
            let index = did_index(&did);
            let (status, answer) = get(&site, &path(&index)).await;
            assert_eq!((status, &answer["leaf"]), (200, &Value::Null));
            let proof: SmtProof = serde_json::from_value(answer["proof"].clone()).unwrap();
            assert_eq!(proof.root_for(index.as_bytes(), &zero_hash(0).unwrap()), Ok(proof.id));
            assert_eq!(proof.verify(index.as_bytes()), Ok(()), "as resolvers verify it");
        }
        // With one, updated or not.
        let (seat, other) = (world.seats[0].identity(&cohort_id), world.seats[1].identity(&cohort_id));
        for at in 0..2 {
            let controller = did_identity(0, at);
            let index = did_index(controller.did());
            assert_eq!(get(&site, &path(&index)).await.0, 401);
            assert_eq!(get_as(&site, &other, &path(&index)).await.0, 403, "another seat");
            assert_eq!(get_as(&site, &did_identity(0, 1 - at), &path(&index)).await.0, 403, "of another DID");
            let claimed = signed(&site, controller.did(), &other, &path(&index));
            assert_eq!(site.ask(claimed).await.status, 401, "by another key");
            let machine = {
                let did = world.seats[0].did().await;
                world.seats[0].member.as_ref().unwrap().inspect(&did).await.unwrap()
            };
            let entries = machine.own_entries(1);
            let entry = entries.iter().find(|entry| entry.index == index).unwrap();
            assert_eq!(entry.update.is_some(), at == 0);
            let leaf = smt_leaf(entry.nonce.as_ref().map(<[u8; 32]>::as_slice), entry.update.as_ref());
            for who in [&seat, &controller] {
                let (status, answer) = get_as(&site, who, &path(&index)).await;
                assert_eq!(status, 200);
                let proof: SmtProof = serde_json::from_value(answer["proof"].clone()).unwrap();
                assert_eq!(proof.root_for(index.as_bytes(), &leaf), Ok(proof.id));
                assert_eq!(answer["leaf"], json!(DocumentHash::from_bytes(leaf)));
            }
        }
    });
}

#[test]
fn boards_are_for_seats_whatever_they_have_done() {
    on_paused_clock(async {
        let mut world = world(3);
        world.form(terms(StandingBeacon::Smt, 3)).await;
        assert_eq!(announce(&mut world, &[0]).await, [1]);
        let cohort_id = world.cohort().id().clone();
        let seat = world.seats[1].identity(&cohort_id);
        // A ban does not end it.
        let entry = Entry {
            offence: Offence::Equivocation,
            cohort_id: cohort_id.clone(),
            number: Some(1),
            at: world.clock.now(),
            detail: "a test".to_owned(),
            address: None,
            invite: None,
            evidence: Vec::new(),
        };
        assert!(world.bans.record(Subject::from(seat.did()), entry).is_some());
        world.restart_service().await;
        let site = site(&world).await;
        let hash = world.standing.history.get(&cohort_id, 1).await.unwrap().unwrap().board_hash;
        let path = board_path("", &cohort_id, &hash);
        let bytes = world.standing.boards.get(&hash).await.unwrap().unwrap();
        let (status, board) = get_as(&site, &seat, &path).await;
        assert_eq!((status, board), (200, serde_json::from_slice(&bytes).unwrap()));
        assert_eq!(get(&site, &path).await.0, 401);
        let outsider = did_identity(1, 0);
        assert_eq!(
            get_as(&site, &outsider, &path).await.0,
            403,
            "the DID of a seat, not one that it has registered"
        );
        // A board of another cohort, which has no seat of this one.
        let stolen = br#"{"cohortId":"another","number":1}"#.to_vec();
        let other = DocumentHash::from_bytes(sha256(&stolen));
        let another = CohortId::parse("another").unwrap();
        world.standing.boards.put(&another, 1, &other, Arc::new(stolen)).await.unwrap();
        assert_eq!(get_as(&site, &seat, &board_path("", &cohort_id, &other)).await.0, 404);
        assert_eq!(get_as(&site, &seat, &board_path("", &another, &other)).await.0, 404);
    });
}

fn announced(number: u64) -> Announced {
    Announced {
        number,
        txid: bitcoin::hashes::Hash::from_byte_array(sha256(&number.to_be_bytes())),
        signal: Some(SignalBytes::from_bytes([number as u8; 32])),
        kind: OpportunityKind::Announcement,
        coins: Vec::new(),
        board_hash: DocumentHash::from_bytes([7; 32]),
        state: Fate::Unconfirmed,
        at: None,
        paid: None,
    }
}

fn id(name: &str) -> CohortId {
    CohortId::parse(name).unwrap()
}

async fn numbers(history: &dyn HistoryStore, cohort: &str, after: u64, most: usize) -> Vec<u64> {
    history.list(&id(cohort), after, most).await.unwrap().into_iter().map(|one| one.number).collect()
}

/// The conformance suite.
async fn conforms(history: &dyn HistoryStore) {
    let (a, unknown) = (id("a"), SignalBytes::from_bytes([99; 32]));
    assert_eq!(history.cohort(&a).await, Ok(None));
    assert_eq!(history.get(&a, 1).await, Ok(None));
    let seat = identity("seat");
    let record = CohortRecord {
        cohort_id: a.clone(),
        service: identity("service").did().clone(),
        beacon_address: "bcrt1p".to_owned(),
        terms: Arc::new(terms(StandingBeacon::Cas, 3)),
        seats: vec![(seat.public_key(), seat.did().clone())],
        formed_at: None,
    };
    history.put_cohort(record.clone()).await.unwrap();
    assert_eq!(history.cohort(&a).await, Ok(Some(record)));
    for number in [256, 3, 255, 1] {
        history.put(&a, announced(number)).await.unwrap();
    }
    history.put(&id("ab"), announced(2)).await.unwrap();
    // One number is one transaction.
    let other = Announced { board_hash: DocumentHash::from_bytes([8; 32]), ..announced(3) };
    history.put(&a, other).await.unwrap();
    assert_eq!(history.get(&a, 3).await, Ok(Some(announced(3))));
    assert_eq!(numbers(history, "a", 0, 9).await, [1, 3, 255, 256], "in the order of numbers");
    assert_eq!(numbers(history, "a", 1, 2).await, [3, 255]);
    assert_eq!(numbers(history, "ab", 0, 9).await, [2], "the beginning of a name is another one");
    assert!(numbers(history, "a", u64::MAX, 9).await.is_empty());
    history.settle(&a, 3, Fate::Final).await.unwrap();
    history.settle(&a, 4, Fate::Final).await.unwrap();
    let settled = Announced { state: Fate::Final, ..announced(3) };
    assert_eq!(history.get(&a, 3).await, Ok(Some(settled.clone())));
    assert_eq!(history.get(&a, 4).await, Ok(None), "nothing is made up");
    assert_eq!(history.by_signal(&a, &SignalBytes::from_bytes([3; 32])).await, Ok(Some(settled)));
    assert_eq!(history.by_signal(&a, &unknown).await, Ok(None));
    assert_eq!(history.by_signal(&id("ab"), &SignalBytes::from_bytes([3; 32])).await, Ok(None));
}

#[actix_rt::test]
async fn history_in_memory_conforms() {
    conforms(&MemoryHistory::default()).await;
}

#[actix_rt::test]
async fn history_in_a_state_directory_conforms_and_remains() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    conforms(&StateHistory::new(&state)).await;
    drop(state);
    let history = StateHistory::new(&State::open(dir.path()).unwrap());
    assert_eq!(numbers(&history, "a", 0, 9).await, [1, 3, 255, 256]);
    assert!(history.cohort(&id("a")).await.unwrap().is_some());
}

#[test]
fn history_is_served_from_a_state_directory_alone() {
    let dir = TempDir::new().unwrap();
    let (record, announced, boards) = on_paused_clock(async {
        let mut world = world(3);
        world.form(terms(StandingBeacon::Smt, 3)).await;
        announce(&mut world, &[0, 1]).await;
        let (id, history) = (world.cohort().id().clone(), &world.standing.history);
        let record = history.cohort(&id).await.unwrap().unwrap();
        let announced = history.list(&id, 0, 9).await.unwrap();
        let mut boards = Vec::new();
        for one in &announced {
            boards.push(world.standing.boards.get(&one.board_hash).await.unwrap().unwrap());
        }
        (record, announced, boards)
    });
    // As the service has written it, without the cohort's journal and without any actor.
    actix_rt::System::new().block_on(async {
        let state = State::open(dir.path()).unwrap();
        let settings = StandingSettings {
            boards: Arc::new(StateBoards::new(&state)),
            history: Arc::new(StateHistory::new(&state)),
            ..StandingSettings::default()
        };
        let cohort_id = record.cohort_id.clone();
        settings.history.put_cohort(record).await.unwrap();
        for (one, bytes) in announced.into_iter().zip(boards) {
            settings.boards.put(&cohort_id, one.number, &one.board_hash, bytes).await.unwrap();
            settings.history.put(&cohort_id, one).await.unwrap();
        }
        let history = settings.served_history();
        let listed = history.announcements(&cohort_id, 0, 9).await.unwrap();
        assert_eq!(listed["announcements"].as_array().unwrap().len(), 2);
        let index = did_index(identity("a former member").did());
        for number in 1..=2 {
            let served = history.proof(&cohort_id, number, &index).await.unwrap();
            assert!(!served.has_leaf, "of any index");
        }
        let registered = did_index(did_identity(0, 0).did());
        let served = history.proof(&cohort_id, 2, &registered).await.unwrap();
        assert!(served.has_leaf && served.seat.is_some());
        assert_eq!(history.proof(&cohort_id, 3, &index).await.unwrap_err(), HistoryRefusal::Unknown);
    });
}

#[test]
fn a_seat_that_was_away_for_long_gets_every_board() {
    on_paused_clock(async {
        for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
            let mut world = world(3);
            world.form(terms(beacon, 3)).await;
            let mut expected = announce(&mut world, &[0]).await;
            world.seats[2].stop().await;
            let missed = announce(&mut world, &[0, 1, 0, 1]).await;
            expected.extend(&missed);
            // Its host cannot store anything at first; nothing is lost by that.
            world.seats[2].controller.stores(false);
            world.seats[2].start().await;
            world.seats[2]
                .until(|notice| {
                    matches!(notice, SeatNotice::SeatRejected { detail, .. } if detail.contains("disk"))
                        .then_some(())
                })
                .await;
            world.seats[2].stop().await;
            world.seats[2].controller.stores(true);
            world.seats[2].start().await;
            let mut got = Vec::new();
            while got.len() < missed.len() {
                let number = world.seats[2]
                    .until(|notice| match notice {
                        SeatNotice::Missed { number, .. } => Some(*number),
                        _ => None,
                    })
                    .await;
                got.push(number);
            }
            got.sort_unstable();
            assert_eq!(got, missed);
            let mut stored = world.seats[2].controller.missed();
            stored.sort_unstable();
            assert_eq!(stored, missed, "each once");
            let boards = &world.seats[2].settings.boards;
            let listed = boards.list(world.cohort().id(), 0, 99).await.unwrap();
            let listed: Vec<u64> = listed.into_iter().map(|(number, _)| number).collect();
            assert!(expected.iter().all(|number| listed.contains(number)), "{listed:?} of {expected:?}");
        }
    });
}
