//! Hostile peers against the programs, over HTTP and over relays: members that send invalid messages to `serve`, and a
//! service that sends invalid messages to `join`. Honest parties complete, or end with a precise reason.
//!
//! A hostile peer is an honest one whose transport changes its messages. `protocol/tests/it/hostile_*.rs` tests how a machine
//! responds to every kind of invalid message.

use std::sync::Arc;

use crate::nostr_support::{Program, Running};
use crate::round_support::{
    Over, PATIENCE, Scenario,
    round::{
        Door, cohort, member_identity, open_door, record, result, service_identity, start_member, start_service,
        transport_to,
    },
    tap::{Tap, Tapped},
    transcript::Transcript,
};
use crate::support::verify::{participant_result, service_result};
use btcr2_aggregation::{
    actors::{
        journal::MemoryJournal,
        notice::ServiceNotice,
        transport::{Inbox, Outbound, Transport},
    },
    protocol::{
        did::Did,
        hash::SignalBytes,
        identity::Identity,
        message::{Body, Bytes, SharedBody, control::CohortEnded, update::SubmitNonIncluded},
    },
};
use serde_json::{Value, json};

/// Replaces a message to `to`, or to any recipient, by others.
struct Rewriter<F> {
    to: Option<Did>,
    rewrite: F,
}

impl<F: Fn(&Body) -> Vec<Body> + Send + Sync> Tap for Rewriter<F> {
    fn rewrite(&self, outbound: Outbound) -> Vec<Outbound> {
        match outbound {
            Outbound::Direct { to, body, until } if self.to.as_ref().is_none_or(|only| *only == to) => {
                let bodies = (self.rewrite)(&body);
                let direct = |body: Body| Outbound::Direct { to: to.clone(), body: SharedBody::from(body), until };
                bodies.into_iter().map(direct).collect()
            }
            other => vec![other],
        }
    }
}

/// Changes the last byte: a different number, if it is one.
fn altered<const N: usize>(bytes: Bytes<N>) -> Bytes<N> {
    let mut altered = bytes.0;
    altered[N - 1] ^= 1;
    Bytes(altered)
}

/// A message that contradicts this one.
fn contradiction(body: &Body) -> Option<Body> {
    Some(match body {
        Body::CohortOptIn(opt_in) => {
            let mut other = opt_in.clone();
            other.participant_pk = Bytes(member_identity(3).public_key().to_bytes());
            other.into()
        }
        Body::SubmitUpdate(update) => SubmitNonIncluded { cohort_id: update.cohort_id.clone() }.into(),
        Body::ValidationAck(ack) => {
            let mut other = ack.clone();
            other.approved = !ack.approved;
            other.into()
        }
        Body::NonceContribution(nonce) => {
            // The same two points in the other order are a different nonce.
            let mut other = nonce.clone();
            other.nonce_contribution.0.rotate_left(33);
            other.into()
        }
        Body::SignatureAuthorization(partial) => {
            let mut other = partial.clone();
            other.partial_signature = altered(partial.partial_signature);
            other.into()
        }
        _ => return None,
    })
}

/// A cohort of a `serve` process with three honest members, on HTTP and on the relay, and a hostile one whose messages
/// `rewrite` replaces. The service, when it is done.
fn with_hostile_member(over: Over, more: &[&str], rewrite: fn(&Body) -> Vec<Body>) -> (Program, Value) {
    let arguments = [&["--listen", "127.0.0.1:0", "--fallback-threshold", "3"], more].concat();
    let Running { mut service, url, relay, .. } = crate::nostr_support::serve(4, &arguments);
    let place = |over| if over == Over::Http { url.clone().unwrap() } else { relay.clone() };
    let scenario = Scenario::ALL[0];
    let records = actix_rt::System::new().block_on(async {
        let mut members = Vec::new();
        for member in 0..4 {
            let over = if member == 0 || member == 2 { over } else { Over::Http };
            let inner = transport_to(over, &place(over));
            let taps: Vec<Arc<dyn Tap>> = match member {
                0 => vec![Arc::new(Rewriter { to: None, rewrite })],
                _ => Vec::new(),
            };
            let transport = Arc::new(Tapped { inner, taps });
            members.push(start_member(&scenario, member, transport, Arc::new(MemoryJournal::new())).await);
        }
        let mut records = Vec::new();
        for member in &mut members[1..] {
            let completes = async {
                loop {
                    if let Some(record) = record(&member.notices.recv().await.unwrap()) {
                        return record;
                    }
                }
            };
            records.push(tokio::time::timeout(PATIENCE, completes).await.expect("an honest member completes"));
        }
        // Until all its messages were received.
        let ended = actix_rt::task::spawn_blocking(move || {
            let result = service.event("result");
            service.succeeds();
            (service, result)
        });
        (records, ended.await.unwrap())
    });
    let (records, (service, result)) = records;
    for record in &records {
        participant_result(record, record["did"].as_str().unwrap(), &result);
    }
    (service, result)
}

fn events_of<'a>(service: &'a mut Program, event: &str) -> Vec<&'a Value> {
    service.listen().iter().filter(|line| line["event"] == event).collect()
}

fn in_both_ways(test: impl Fn(Over) + Copy + Send) {
    std::thread::scope(|scope| {
        for over in [Over::Http, Over::Nostr] {
            scope.spawn(move || test(over));
        }
    });
}

#[test]
fn an_equivocating_member_is_banned_and_does_no_harm() {
    in_both_ways(|over| {
        // Over a relay it may receive a nonce of its own that it has never opened; then it does not sign.
        let (mut service, result) = with_hostile_member(over, &["--signing-timeout", "6s"], |body| {
            [Some(body.clone()), contradiction(body)].into_iter().flatten().collect()
        });
        // The first message is used, so that nothing is lost.
        service_result(&result, result["path"].as_str().unwrap());
        let villain = json!(member_identity(0).did());
        let refused = events_of(&mut service, "message-rejected");
        let equivocations = refused.iter().filter(|refusal| refusal["code"] == "EQUIVOCATION").count();
        assert!(equivocations >= 3, "{over:?}: {refused:#?}");
        assert!(refused.iter().all(|refusal| refusal["from"] == villain), "{over:?}: {refused:#?}");
        let banned = events_of(&mut service, "member-banned");
        assert!(!banned.is_empty() && banned.iter().all(|ban| ban["participant"] == villain), "{banned:#?}");
    });
}

#[test]
fn an_invalid_partial_signature_leads_to_the_fallback() {
    in_both_ways(|over| {
        // Until then it could still send a valid one.
        let (mut service, result) = with_hostile_member(over, &["--signing-timeout", "4s"], |body| match body {
            Body::SignatureAuthorization(_) => contradiction(body).into_iter().collect(),
            body => vec![body.clone()],
        });
        service_result(&result, "script-path");
        assert_eq!(result["culprits"], json!([member_identity(0).did()]), "{over:?}");
        let banned = events_of(&mut service, "member-banned");
        assert_eq!(banned[0]["offence"], "bad-partial-signature", "{banned:#?}");
    });
}

#[test]
fn a_member_that_repeats_every_message_changes_nothing() {
    in_both_ways(|over| {
        let (mut service, result) = with_hostile_member(over, &[], |body| vec![body.clone(); 3]);
        service_result(&result, "key-path");
        let refused = events_of(&mut service, "message-rejected");
        assert!(refused.is_empty(), "{over:?}: {refused:#?}");
    });
}

/// A change of the messages of our service to the `join` process alone.
struct HostileService {
    over: Over,
    rewrite: fn(&Body) -> Vec<Body>,
    /// Whether another service reports the end of the cohort, as soon as it is formed.
    meddler: bool,
}

/// How a `join` process ended.
struct Joined {
    status: Option<i32>,
    lines: Vec<Value>,
    /// The cohort's result, if it had one.
    result: Option<Value>,
}

impl Joined {
    fn refusals(&self) -> Vec<&str> {
        let refused = self.lines.iter().filter(|line| line["event"] == "message-rejected");
        refused.map(|line| line["code"].as_str().unwrap()).collect()
    }

    fn last(&self) -> &Value {
        self.lines.last().unwrap()
    }
}

impl HostileService {
    /// A cohort of one other member, honest, and a `join` process.
    fn joined(self, more: &[&str]) -> Joined {
        let victim = crate::nostr_support::identity("victim");
        let more: Vec<String> = more.iter().map(|argument| (*argument).to_owned()).collect();
        actix_rt::System::new().block_on(async move {
            let Door { place, transport: inner, relay } = open_door(self.over).await;
            let transcript = Arc::new(Transcript::default());
            let rewriter = Rewriter { to: Some(victim.did().clone()), rewrite: self.rewrite };
            let taps: Vec<Arc<dyn Tap>> = vec![Arc::new(rewriter), transcript.clone()];
            let transport = Arc::new(Tapped { inner: Arc::clone(&inner), taps });
            let (service, mut running) = start_service(transport, Arc::new(MemoryJournal::new())).await;
            let open = cohort(&Scenario::ALL[0], 2, PATIENCE, PATIENCE);
            service.open(open).await.unwrap();
            let other = Arc::new(Tapped { inner: transport_to(self.over, &place), taps: Vec::new() });
            let _other = start_member(&Scenario::ALL[0], 0, other, Arc::new(MemoryJournal::new())).await;
            let ended = actix_rt::task::spawn_blocking(move || {
                let service = service_identity().did().to_string();
                let how = if self.over == Over::Http { "--service" } else { "--relay" };
                let mut arguments = vec!["join", how, &place, "--service-did", &service, "--add-beacon"];
                arguments.extend(["--exit-when-done", "--linger", "2s"]);
                arguments.extend(more.iter().map(String::as_str));
                let mut program = Program::start("victim", &arguments);
                let status = program.status();
                (status, program.listen().to_vec())
            });
            tokio::pin!(ended);
            let mut complete = None;
            let (status, lines) = loop {
                tokio::select! {
                    ended = &mut ended => break ended.unwrap(),
                    Ok(step) = running.notices.recv() => match &*step {
                        ServiceNotice::SigningComplete { cohort_id, result: signed, .. } => {
                            complete = Some(result(cohort_id, signed));
                        }
                        ServiceNotice::KeygenComplete { cohort_id, .. } if self.meddler => {
                            let meddler = crate::nostr_support::identity("another service");
                            let ended = CohortEnded {
                                cohort_id: cohort_id.clone(),
                                code: "CANCELLED".to_owned(),
                                reason: "no reason".to_owned(),
                                at_fault: true,
                                next_cohort_id: None,
                                signed: None, opt_in: None,
                            };
                            send_as(&*inner, &meddler, victim.did(), ended).await;
                        }
                        _ => {}
                    },
                }
            };
            transcript.check();
            drop(relay);
            Joined { status, lines, result: complete }
        })
    }
}

/// Sends a message in the name of `from`.
async fn send_as(transport: &dyn Transport, from: &Identity, to: &Did, body: impl Into<Body>) {
    let (inbox, unread) = Inbox::channel(1);
    let connection = transport.connect(from, inbox).await.unwrap();
    let body = SharedBody::from(body.into());
    connection.send(Outbound::Direct { to: to.clone(), body, until: None }).await.unwrap();
    // As long as the round runs.
    std::mem::forget((connection, unread));
}

/// Runs `join` against each false message: it refuses the message, reports which one, and exits with 1.
fn refuses(rewrite: fn(&Body) -> Vec<Body>, code: &str) {
    for over in [Over::Http, Over::Nostr] {
        let joined = HostileService { over, rewrite, meddler: false }.joined(&[
            "--phase-timeout",
            "2s",
            "--cohort-ttl",
            "6s",
        ]);
        assert_eq!(joined.status, Some(1), "{over:?}: {:#?}", joined.lines);
        assert!(joined.refusals().contains(&code), "{over:?}: {:#?}", joined.lines);
        assert_eq!((&joined.last()["event"], &joined.last()["ok"]), (&json!("result"), &json!(false)));
        assert!(joined.last()["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
        assert!(!joined.lines.iter().any(|line| line["event"] == "nonce-sent"), "{:#?}", joined.lines);
        assert_eq!(joined.result, None);
    }
}

#[test]
fn a_service_with_a_wrong_address_is_refused() {
    refuses(
        |body| match body {
            Body::CohortReady(ready) => {
                let mut other = ready.clone();
                other.beacon_address =
                    "bcrt1pqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqm3usuw".to_owned();
                vec![other.into()]
            }
            body => vec![body.clone()],
        },
        "ADDRESS_MISMATCH",
    );
}

#[test]
fn a_service_with_a_wrong_transaction_gets_no_nonce() {
    refuses(
        |body| match body {
            Body::AuthorizationRequest(request) => {
                let mut other = request.clone();
                other.pending_tx.output.reverse();
                vec![other.into()]
            }
            body => vec![body.clone()],
        },
        "TRANSACTION_MISMATCH",
    );
}

#[test]
fn data_with_a_wrong_signal_is_rejected_and_ends_the_cohort() {
    for over in [Over::Http, Over::Nostr] {
        let rewrite = |body: &Body| match body {
            Body::DistributeAggregatedData(data) => {
                let mut other = data.clone();
                other.signal_bytes_hex = SignalBytes::from_bytes([7; 32]);
                vec![other.into()]
            }
            body => vec![body.clone()],
        };
        let joined = HostileService { over, rewrite, meddler: false }.joined(&[]);
        assert_eq!(joined.status, Some(1), "{over:?}: {:#?}", joined.lines);
        let asked = joined.lines.iter().find(|line| line["event"] == "validation-requested").unwrap();
        assert!(asked["problem"].is_string(), "{asked}");
        assert_eq!(joined.last()["ok"], false, "{:#?}", joined.lines);
        assert_eq!(joined.result, None);
    }
}

#[test]
fn a_second_aggregate_nonce_and_a_foreign_end_change_nothing() {
    for over in [Over::Http, Over::Nostr] {
        let rewrite = |body: &Body| match body {
            Body::AggregatedNonce(nonce) => {
                let mut other = nonce.clone();
                other.aggregated_nonce.0.rotate_left(33);
                vec![nonce.clone().into(), other.into()]
            }
            body => vec![body.clone()],
        };
        let joined = HostileService { over, rewrite, meddler: true }.joined(&[]);
        assert_eq!(joined.status, Some(0), "{over:?}: {:#?}", joined.lines);
        let signed = joined.result.as_ref().unwrap();
        service_result(signed, "key-path");
        let victim = crate::nostr_support::identity("victim").did().to_string();
        participant_result(joined.last(), &victim, signed);
    }
}

#[test]
fn a_cohort_completes_despite_garbage_and_forged_senders() {
    use btcr2_aggregation::{
        actors::runtime::{Clock, Randomness},
        protocol::{
            envelope::SealedEnvelope,
            id::CohortId,
            message::Message,
            nostr::{Peer, seal},
        },
    };
    use nostr_sdk::{EventBuilder, Keys, Tag};

    let Running { mut service, url, relay, did } = crate::nostr_support::serve(2, &["--listen", "127.0.0.1:0"]);
    let url = url.unwrap();
    let cohort_id = service.event("cohort-advertised")["cohortId"].as_str().unwrap().to_owned();
    let (villain, victim) = (crate::nostr_support::identity("villain"), crate::nostr_support::identity("member 0"));
    let declined = SubmitNonIncluded { cohort_id: CohortId::parse(&cohort_id).unwrap() };
    let forged = Message::new(victim.did().clone(), Some(did.parse().unwrap()), declined);
    let (now, mut rng) = (Clock::system().now(), Randomness::System.for_actor("villain"));
    let envelope = SealedEnvelope::seal_with_rng(&forged, villain.secret_key(), now, &mut rng).unwrap().to_json();
    let statuses: Vec<u16> = actix_rt::System::new().block_on(async {
        let client =
            btcr2_aggregation::actors::transport::tls::Trust::system().http_client().unwrap().build().unwrap();
        let mut statuses = Vec::new();
        let deep = "[".repeat(60_000);
        let large = "x".repeat(70_000);
        for body in ["", "\u{0}\u{ff}garbage", "{}", "null", &deep, &large, &envelope, &forged.to_json()] {
            let answer = client.post(format!("{url}/v1/messages")).body(body.to_owned()).send().await.unwrap();
            statuses.push(answer.status().as_u16());
        }
        statuses
    });
    assert!(statuses.iter().all(|status| (400..500).contains(status)), "{statuses:?}");

    let keys = Keys::parse(&villain.secret_key().to_hex()).unwrap();
    let to_service =
        Tag::parse(["p".to_owned(), crate::nostr_support::identity("service").public_key().x_only().to_string()]);
    let to_service = to_service.unwrap();
    let plain =
        |content: &str| EventBuilder::text_note(content).tag(to_service.clone()).sign_with_keys(&keys).unwrap();
    let mine = Message::new(villain.did().clone(), forged.to.clone(), Body::clone(&forged.body));
    let version_2 = mine.to_json().replacen("\"version\":1", "\"version\":2", 1);
    assert_ne!(version_2, mine.to_json());
    let peer =
        Peer::new(villain.secret_key(), crate::nostr_support::identity("service").public_key().x_only()).unwrap();
    let stolen = seal(&forged, villain.secret_key(), Some(&peer), now, &mut rng).unwrap();
    let events = [plain("\u{0}garbage"), plain("{}"), plain(&"[".repeat(10_000)), plain(&version_2), stolen];
    crate::nostr_support::relay::publish(&relay, &events);
    let mut refused = Vec::new();
    while !["WRONG_VERSION", "WRONG_SENDER"].iter().all(|code| refused.iter().any(|refusal| refusal == code)) {
        let refusal = service.event("message-rejected");
        assert_ne!(refusal["from"], json!(victim.did()), "it has sent no such message: {refusal}");
        refused.push(refusal["code"].as_str().unwrap().to_owned());
    }

    let members = ["member 0", "member 1"].map(|name| {
        let place = if name == "member 0" { ["--service", &url] } else { ["--relay", &relay] };
        let did = ["join", "--service-did", &did, "--exit-when-done", "--add-beacon"];
        Program::start(name, &[&did[..], &place].concat())
    });
    service_result(&service.event("result"), "key-path");
    for mut member in members {
        assert_eq!(member.event("result")["ok"], true);
        member.succeeds();
    }
}
