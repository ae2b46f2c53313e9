//! The texts of members and others, as `serve` shows them.

use std::path::Path;

use btcr2_aggregation::{
    actors::transport::tls::Trust,
    protocol::{
        id::{CohortId, SessionId},
        message::{Body, Bytes, keygen::CohortOptIn},
    },
};
use serde_json::{Value, json};

use super::{
    LONGEST, Raw, assert_harmless, behind,
    samples::{Subject, message, samples},
    sealed, variants,
};
use crate::support::{directory, identity, path, run};

fn serve_shows(directory: &Path, format: &str, log: &str) {
    let state = path(directory, &format!("state-{format}"));
    let service = identity(directory, &format!("service-{format}"));
    let mut program = Raw::start(&[
        "serve",
        "--identity",
        &service,
        "--chain",
        "offline",
        "--listen",
        "127.0.0.1:0",
        "--events",
        format,
        "--log",
        log,
        "--min-participants",
        "1",
        "--cohorts",
        "1",
        "--state",
        &state,
        "--did-rate",
        "100000",
        "--did-burst",
        "100000",
    ]);
    let serving = program.line_with("http://");
    let url = format!("http://{}", behind(&serving, "http://"));
    let did = format!("did:btcr2:{}", behind(&program.seen, "did:btcr2:"));
    let advertised = program.line_with("advertised");
    let cohort_id = behind(&advertised, if format == "json" { "\"cohortId\":\"" } else { "cohort " }).to_owned();
    let cohort_id = CohortId::parse(&cohort_id).unwrap();
    let villain = crate::nostr_support::identity("villain");
    let member = {
        let key = Bytes(villain.public_key().to_bytes());
        let (participant_pk, communication_pk) = (key, key);
        let (cohort_id, genesis_document, invite) = (cohort_id.clone(), None, None);
        CohortOptIn { cohort_id, participant_pk, communication_pk, genesis_document, invite }
    };
    let value = |body: Body| {
        let mut value = message(body, &villain);
        value["to"] = json!(did);
        value
    };
    actix_rt::System::new().block_on(async {
        let client = Trust::system().http_client().unwrap().build().unwrap();
        let mut number = 0;
        let mut post = async |message: &Value| {
            number += 1;
            let body = sealed(message, &villain, Some(&did), number);
            client.post(format!("{url}/v1/messages")).body(body).send().await.unwrap().status().as_u16()
        };
        // From outside of the cohort, and then from inside.
        let session_id = SessionId::parse("session").unwrap();
        let subject = Subject { cohort_id: &cohort_id, session_id, of: &villain };
        let all = samples(&subject);
        let mut accepted = 0;
        for inside in [false, true] {
            if inside {
                assert_eq!(post(&value(member.clone().into())).await, 202);
            }
            for body in &all {
                for variant in variants(&value(body.clone())) {
                    accepted += u32::from(post(&variant).await == 202);
                }
            }
        }
        // The texts around a message, which are not authenticated.
        let envelope = sealed(&value(all[0].clone()), &villain, Some(&did), 0);
        for variant in variants(&serde_json::from_str(&envelope).unwrap()) {
            let refused = client.post(format!("{url}/v1/messages")).body(variant.to_string());
            let answer = refused.send().await.unwrap().text().await.unwrap();
            assert_harmless("an answer", &answer, LONGEST);
        }
        assert!(accepted > 100, "{accepted} have reached the service");
    });
    // Texts are escaped when they are shown, so it does not matter that the journal contains hostile ones.
    let shown = run(&["state", "show", cohort_id.as_str(), "--state", &state]).succeeded();
    assert_harmless("state show", &shown.all(), LONGEST);
    let (stdout, stderr) = program.stop();
    assert!(stdout.contains("refused from") || stdout.contains("message-rejected"), "{stdout}");
    assert_harmless("the output of serve", &stdout, LONGEST);
    assert_harmless("the log of serve", &stderr, LONGEST);
    for line in stdout.lines().filter(|_| format == "json").chain(stderr.lines().filter(|_| log == "json")) {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn serve_escapes_the_texts_of_members() {
    let directory = directory("hostile-text-serve");
    serve_shows(&directory, "json", "json");
    serve_shows(&directory, "text", "text");
}
