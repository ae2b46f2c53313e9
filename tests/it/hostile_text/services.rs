//! The texts of a service, as `join` shows them: a real service, in whose streams each text of each message is hostile once, while
//! its member waits for that message.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
};

use actix_service::Service;
use actix_web::{App, HttpServer as WebServer, body::BodyStream, web::Bytes};
use btcr2_aggregation::{
    actors::{
        journal::MemoryJournal,
        transport::{
            Outbound,
            http::{self, HttpServer},
        },
    },
    protocol::{
        id::{CohortId, SessionId},
        message::{Body, SharedBody},
    },
};
use futures::{FutureExt, StreamExt, channel::mpsc, stream};
use serde_json::{Value, json};

use super::{
    LONGEST, Raw, Size, assert_harmless, places,
    samples::{Subject, message, samples},
    sealed, spoiled,
};
use crate::{
    round_support::{
        PATIENCE, Scenario,
        round::{cohort, service_identity, start_service, web_parts},
        tap::{Tap, Tapped},
    },
    support::{directory, identity, path, run},
};

/// A text of a message.
#[derive(Clone, Debug)]
struct Text {
    short_type: &'static str,
    place: String,
    /// Whether it is the name of a field there.
    is_name: bool,
    size: Size,
}

/// The message of the service after which the member gets one of this type: its own, or the one that fits best.
fn trigger(short_type: &'static str) -> &'static str {
    match short_type {
        "keygen/cohort_ready"
        | "keygen/cohort_opt_in_accept"
        | "update/distribute_aggregated_data"
        | "sign/authorization_request"
        | "sign/aggregated_nonce" => short_type,
        "sign/fallback_authorization_request" | "sign/fallback_signature" => "sign/aggregated_nonce",
        "control/cohort_ended" => "sign/authorization_request",
        "control/presence_request" => "update/distribute_aggregated_data",
        // Adverts that are directed, and messages that only members send.
        _ => "keygen/cohort_opt_in_accept",
    }
}

/// The streams of the readers, of both kinds, into which events can be inserted.
#[derive(Default)]
struct Streams {
    adverts: Mutex<Vec<mpsc::UnboundedSender<Bytes>>>,
    inboxes: Mutex<Vec<mpsc::UnboundedSender<Bytes>>>,
}

impl Streams {
    fn put(&self, streams: &Mutex<Vec<mpsc::UnboundedSender<Bytes>>>, event: &str, message: &Value, number: u64) {
        let envelope = sealed(message, &service_identity(), message["to"].as_str(), number);
        let bytes = Bytes::from(format!("event: {event}\ndata: {envelope}\n\n"));
        streams.lock().unwrap().retain(|stream| stream.unbounded_send(bytes.clone()).is_ok());
    }
}

/// Sends every text of every message in a hostile form, one in each cohort.
struct HostileService {
    streams: Arc<Streams>,
    texts: Vec<Text>,
    state: Mutex<Sent>,
}

#[derive(Default)]
struct Sent {
    /// Which text is hostile in which cohort.
    cohorts: BTreeMap<CohortId, usize>,
    sent: BTreeSet<usize>,
    number: u64,
}

impl HostileService {
    fn send_hostile(&self, body: &SharedBody, to: &str) {
        let mut state = self.state.lock().unwrap();
        let next = state.cohorts.len();
        let text = *state.cohorts.entry(body.cohort_id().clone()).or_insert(next);
        let Some(Text { short_type, place, is_name, size }) = self.texts.get(text) else { return };
        if trigger(short_type) != body.short_type() || !state.sent.insert(text) {
            return;
        }
        let real: Value = serde_json::from_str(body.json()).unwrap();
        let session_id = real["sessionId"].as_str().unwrap_or("session");
        let session_id = SessionId::parse(session_id).unwrap();
        let subject = Subject { cohort_id: body.cohort_id(), session_id, of: &service_identity() };
        let sample = samples(&subject).into_iter().find(|sample| sample.short_type() == *short_type).unwrap();
        let mut value = message(sample, &service_identity());
        value["to"] = json!(to);
        if *short_type == body.short_type() {
            // Nothing else is wrong with it.
            let fields = value["body"].as_object_mut().unwrap();
            fields.extend(real.as_object().unwrap().clone());
        }
        if *short_type == "control/cohort_ended" {
            // A message about another opt-in, or with a signed transaction, is another message.
            let fields = value["body"].as_object_mut().unwrap();
            fields.retain(|name, _| {
                !["optIn", "signed"].contains(&name.as_str()) || place.starts_with(&format!("/body/{name}"))
            });
        }
        state.number += 1;
        self.streams.put(&self.streams.inboxes, "message", &spoiled(&value, place, *is_name, *size), state.number);
    }
}

impl Tap for HostileService {
    fn rewrite(&self, outbound: Outbound) -> Vec<Outbound> {
        if let Outbound::Direct { to, body, .. } = &outbound {
            self.send_hostile(body, to.as_str());
        }
        vec![outbound]
    }
}

/// The service's web server, with inserted events.
fn open_web(server: &HttpServer, streams: &Arc<Streams>) -> String {
    let (mounted, streams) = (server.clone(), Arc::clone(streams));
    let app = move || {
        let streams = Arc::clone(&streams);
        App::new().configure(http::configure(&mounted)).wrap_fn(move |request, service| {
            let (sender, more) = mpsc::unbounded();
            match request.path() {
                "/v1/adverts" if request.method() == "GET" => streams.adverts.lock().unwrap().push(sender),
                path if path.ends_with("/inbox") => streams.inboxes.lock().unwrap().push(sender),
                _ => {}
            }
            service.call(request).map(|answer| {
                answer.map(|answer| {
                    answer.map_body(|_, body| {
                        let own = stream::unfold(Box::pin(body), |mut body| async {
                            let bytes = std::future::poll_fn(|cx| {
                                actix_web::body::MessageBody::poll_next(body.as_mut(), cx)
                            });
                            Some((bytes.await?.unwrap(), body))
                        });
                        // A reader without a stream of events gets none of these either: the sender is closed.
                        BodyStream::new(stream::select(own, more).map(Ok::<_, Infallible>).boxed_local())
                    })
                })
            })
        })
    };
    let web = WebServer::new(app).workers(1).shutdown_timeout(0).disable_signals().bind("127.0.0.1:0").unwrap();
    let address = web.addrs()[0];
    actix_rt::spawn(web.run());
    format!("http://{address}")
}

/// All texts of all messages, of this size; those of the header and the names in it once, for all types have the same.
fn texts(size: Size) -> Vec<Text> {
    let cohort_id = CohortId::parse("cohort").unwrap();
    let session_id = SessionId::parse("session").unwrap();
    let subject = Subject { cohort_id: &cohort_id, session_id, of: &service_identity() };
    let mut texts: Vec<Text> = Vec::new();
    for (sample, short_type) in samples(&subject).into_iter().zip(Body::TYPES) {
        let mut value = message(sample, &service_identity());
        value["to"] = json!("someone");
        let found = places(&value).into_iter();
        let of_type = found.filter(|(place, _)| place.starts_with("/body/") || texts.is_empty());
        let of_type: Vec<_> = of_type.map(|(place, is_name)| Text { short_type, place, is_name, size }).collect();
        texts.extend(of_type);
    }
    texts
}

/// A member that receives these texts, and some adverts if they are the first.
fn join_shows(directory: &Path, texts: &[Text], is_first: bool, format: &'static str, log: &'static str) {
    let (state, file) = (path(directory, "state"), identity(directory, "member"));
    let (stdout, stderr) = actix_rt::System::new().block_on(async {
        let server = HttpServer::start(web_parts());
        let streams = Arc::<Streams>::default();
        let place = open_web(&server, &streams);
        let (texts, count) = (texts.to_vec(), texts.len());
        let hostile = Arc::new(HostileService { streams: Arc::clone(&streams), texts, state: Mutex::default() });
        let tap: Arc<dyn Tap> = hostile.clone();
        let transport = Arc::new(Tapped { inner: Arc::new(server), taps: vec![tap] });
        let (service, mut running) = start_service(transport, Arc::new(MemoryJournal::new())).await;
        let arguments = [
            "join",
            "--service",
            &place,
            "--identity",
            &file,
            "--decline",
            "--state",
            &state,
            "--events",
            format,
            "--log",
            log,
        ];
        let program = Raw::start(&arguments);
        // Adverts first: those of the service come only then, so that the member reads these before.
        while streams.adverts.lock().unwrap().is_empty() || streams.inboxes.lock().unwrap().is_empty() {
            actix_rt::task::yield_now().await;
        }
        let adverts = hostile.texts.iter().filter(|text| text.short_type == Body::TYPES[0]);
        for (number, Text { place, is_name, size, .. }) in adverts.enumerate() {
            let cohort_id = CohortId::parse(&format!("hostile-advert-{number}")).unwrap();
            let session_id = SessionId::parse("session").unwrap();
            let subject = Subject { cohort_id: &cohort_id, session_id, of: &service_identity() };
            let advert = message(samples(&subject).remove(0), &service_identity());
            if advert.pointer(place).is_some() {
                let number = u64::try_from(number).unwrap() + (1 << 32);
                streams.put(&streams.adverts, "advert", &spoiled(&advert, place, *is_name, *size), number);
            }
        }
        // One cohort more than there are texts: when it completes, all texts were sent.
        for _ in 0..count {
            service.open(cohort(&Scenario::ALL[1], 1, PATIENCE, PATIENCE)).await.unwrap();
        }
        let until = tokio::time::Instant::now() + PATIENCE;
        while hostile.state.lock().unwrap().sent.len() < count {
            assert!(
                tokio::time::Instant::now() < until,
                "not sent: {:?}",
                hostile
                    .texts
                    .iter()
                    .enumerate()
                    .filter(|(text, _)| !hostile.state.lock().unwrap().sent.contains(text))
                    .map(|(_, text)| text)
                    .collect::<Vec<_>>()
            );
            // The output of the service is not tested here.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(50), running.notices.recv()).await;
        }
        let last = service.open(cohort(&Scenario::ALL[1], 1, PATIENCE, PATIENCE)).await.unwrap();
        let last = last.id().to_string();
        actix_rt::task::spawn_blocking(move || {
            let mut program = program;
            program.line_where("the last cohort", |line| line.contains(&last) && line.contains("over"));
            program.stop()
        })
        .await
        .unwrap()
    });
    assert!(!is_first || stdout.contains("passed over") || stdout.contains("cohort-passed-over"), "{stdout}");
    let ends = texts.iter().any(|text| text.place == "/body/reason");
    assert!(!ends || stdout.contains("the service ended the cohort"), "{stdout}");
    assert_harmless("the output of join", &stdout, LONGEST);
    assert_harmless("the log of join", &stderr, LONGEST);
    for line in stdout.lines().filter(|_| format == "json").chain(stderr.lines().filter(|_| log == "json")) {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let list = run(&["state", "list", "--state", &state, "--json"]).succeeded().stdout;
    assert_harmless("state list", &list, LONGEST);
    let streams: Value = serde_json::from_str(&list).unwrap();
    let cohorts: BTreeSet<_> =
        streams.as_array().unwrap().iter().map(|stream| stream["stream"].as_str().unwrap()).collect();
    for stream in cohorts {
        let cohort_id = stream.split('/').next_back().unwrap();
        let form: &[&str] = if format == "json" { &["--json"] } else { &[] };
        let shown = run(&[&["state", "show", cohort_id, "--state", &state], form].concat());
        assert_harmless("state show", &shown.all(), LONGEST);
    }
    let vault = run(&["vault", "list", "--state", &state]);
    assert_harmless("vault list", &vault.all(), LONGEST);
}

/// How many cohorts a member is in at a time: some of them do not continue.
const AT_ONCE: usize = 30;

fn joins_show(texts: &[Text], format: &'static str, log: &'static str) {
    for (number, texts) in texts.chunks(AT_ONCE).enumerate() {
        let directory = directory(&format!("hostile-text-join-{format}-{number}"));
        join_shows(&directory, texts, number == 0, format, log);
    }
}

#[test]
fn join_escapes_the_texts_of_a_service_in_json() {
    joins_show(&[texts(Size::Short), texts(Size::Long)].concat(), "json", "json");
}

#[test]
fn join_escapes_the_texts_of_a_service_in_lines() {
    // Lines are escaped as a whole, whatever is in them.
    let all = texts(Size::Short).into_iter().zip(texts(Size::Long)).enumerate();
    let mixed: Vec<_> = all.map(|(number, (short, long))| if number % 2 == 0 { short } else { long }).collect();
    joins_show(&mixed, "text", "text");
}
