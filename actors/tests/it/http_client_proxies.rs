//! The HTTP client behind proxies: what an intermediary answers is never the server's word.

use std::{sync::Arc, time::Duration};

use crate::{
    common::{
        external_identity,
        fake_server::{Answer, FakeServer},
        identity,
        peers::{self, Peer, note},
    },
    http_client::{HASTY, SHORT, client, member, nonce, partial_signature, run, service},
};
use btcr2_aggregation_actors::{
    runtime::Clock,
    transport::contact::{ContactNotice, Contacts},
};
use serde_json::json;

const PAGE: &str = "<html>\r\n<h1>\u{1b}[31mNo entry</h1></html>";

/// Answers of an intermediary, which the server cannot have sent.
fn of_a_proxy() -> Vec<Answer> {
    let statuses = [400, 401, 403, 404, 405, 408, 413, 429, 503].map(|status| Answer::Status(status, PAGE));
    let json = Answer::Status(404, r#"{"error":"no such page"}"#);
    let moved = |status| Answer::Redirect(status, "http://127.0.0.1:9/elsewhere".to_owned());
    statuses.into_iter().chain([json]).chain([301, 302, 303, 307, 308].map(moved)).collect()
}

#[test]
fn an_answer_of_a_proxy_is_never_final() {
    run(async {
        let mut server = FakeServer::start();
        server.well_known(json!({ "idempotent": true }));
        // A gateway may have forwarded the message; a page in place of an answer carries no information.
        let unknown = [200, 202, 409, 500, 502, 504].map(|status| Answer::Status(status, PAGE));
        let answers: Vec<_> = of_a_proxy().into_iter().chain(unknown).collect();
        server.answer_posts(answers.clone());
        let mut member = Peer::start(identity("member"), Arc::new(client(&server, HASTY)));
        member.send(&service(), nonce());
        for _ in 0..=answers.len() {
            server.post().await;
        }
        member.send(&service(), note("next"));
        assert_eq!(server.post().await.json()["message"]["body"]["cohortId"], "next");
        assert!(member.rest().is_empty(), "all was delivered");
    });
}

#[test]
fn a_nonce_that_a_proxy_refused_is_sent_again_to_any_server() {
    run(async {
        let mut server = FakeServer::start();
        server.answer_posts(of_a_proxy());
        let mut member = Peer::start(identity("member"), Arc::new(client(&server, HASTY)));
        member.send(&service(), nonce());
        for _ in 0..=of_a_proxy().len() {
            server.post().await;
        }
        // The server may have received this message.
        server.answer_posts([Answer::Status(502, PAGE)]);
        member.send(&service(), partial_signature());
        assert!(member.undelivered().await.2.contains("must not be sent twice"));
    });
}

#[test]
fn a_proxys_well_known_document_is_not_the_servers_word() {
    run(async {
        let mut server = FakeServer::start();
        server.answer_posts([Answer::Status(502, PAGE)]);
        let asks = [Answer::Status(404, PAGE), Answer::Status(403, PAGE), Answer::Status(200, PAGE)];
        server.answer_well_known(asks);
        server.well_known(json!({ "idempotent": true }));
        let mut member = member(&server);
        member.send(&service(), nonce());
        server.post().await;
        server.post().await;
        assert!(member.rest().is_empty(), "the request was repeated until it was answered");
    });
}

#[test]
fn a_redirect_to_another_origin_is_not_followed() {
    run(async {
        let (mut server, mut other) = (FakeServer::start(), FakeServer::start());
        let there = |status| Answer::Redirect(status, format!("{}/v1/messages", other.url()));
        server.answer_posts([301, 302, 303, 307, 308].map(there));
        let inbox = Answer::Redirect(307, format!("{}/v1/actors/x/inbox", other.url()));
        server.answer_inbox([inbox.clone(), inbox]);
        let mut member = member(&server);
        member.send(&service(), note("first"));
        for _ in 0..6 {
            assert!(server.post().await.line.starts_with("POST "));
        }
        for _ in 0..3 {
            server.inbox().await;
        }
        assert_eq!((other.more_posts(), other.more_inboxes()), (0, 0));
        assert!(member.rest().is_empty());
    });
}

#[test]
fn a_post_is_redirected_within_its_origin_only_as_a_post() {
    run(async {
        let mut server = FakeServer::start();
        let here = |status| Answer::Redirect(status, "/v1/messages?again".to_owned());
        server.answer_posts([here(302), here(308)]);
        let mut member = member(&server);
        member.send(&service(), note("first"));
        let lines = [server.post().await, server.post().await, server.post().await].map(|post| post.line);
        assert!(lines[0] == lines[1] && lines[2].starts_with("POST /v1/messages?again "), "{lines:?}");
        assert!(member.rest().is_empty());
    });
}

#[test]
fn an_answer_of_an_intermediary_is_reported() {
    run(async {
        let server = FakeServer::start();
        server.answer_every_post(Answer::Status(403, PAGE));
        server.answer_inbox([Answer::Status(401, PAGE)]);
        server.answer_adverts([Answer::Status(200, PAGE)]);
        let contacts = Contacts::default();
        let mut notices = contacts.subscribe();
        let client = client(&server, SHORT).with_contacts(contacts);
        // Also for an EXTERNAL identity, whose inbox the server itself refuses without a report.
        let mut member = Peer::start(external_identity("external"), Arc::new(client));
        member.send_until(&service(), note("first"), Some(Clock::system().now() + Duration::from_millis(300)));
        let (_, _, reason) = member.undelivered().await;
        assert!(reason.contains("403 Forbidden: <html> <h1>[31mNo entry</h1></html>"), "{reason}");
        let mut reported = Vec::new();
        while reported.len() < 3 {
            let notice = peers::soon("a notice", notices.recv()).await.expect("a notice");
            reported.extend(matches!(notice, ContactNotice::Unreachable { .. }).then(|| notice.text()));
        }
        for words in ["(messages), trying again: 403", "(inbox), trying again: 401", "(adverts), trying again: 200"]
        {
            let found = reported
                .iter()
                .find(|text| text.contains(words))
                .unwrap_or_else(|| panic!("{words}: {reported:?}"));
            assert!(found.contains("No entry") && !found.contains(char::is_control), "{found}");
        }
    });
}
