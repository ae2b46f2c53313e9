//! What a server's answer to a message means. Only the protocol's own answers decide anything: everything else is somebody's in
//! between, who may be gone the next time.

use btcr2_aggregation_protocol::text::is_unsafe;
use reqwest::{Response, StatusCode};
use serde_json::Value;

use crate::transport::http::Refusal;

/// How much of an answer is read. The protocol's own are a few dozen bytes, the well-known document some hundreds.
const MOST: usize = 8 << 10;

/// How much of an answer is reported.
const EXCERPT: usize = 200;

/// What is read of an answer, whoever gave it.
#[derive(Default)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// The beginning of an answer's body, as far as it comes.
    pub(super) async fn read(mut response: Response) -> Self {
        let mut body = Vec::new();
        while body.len() < MOST
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(chunk.get(..MOST - body.len()).unwrap_or(&chunk));
        }
        Self(body)
    }

    /// The JSON object that it is.
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.0).ok().filter(Value::is_object)
    }

    /// The code, if it is `{"error": "<code>"}`.
    pub(super) fn error(&self) -> Option<&'static str> {
        let json = self.json()?;
        let code = json["error"].as_str()?;
        Refusal::ALL.into_iter().map(Refusal::code).find(|known| *known == code)
    }
}

/// What became of a message, by the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    /// The server has it, and does not want it.
    Refused,
    /// The server has not taken it.
    NotTaken,
    /// The server may have taken it.
    Unknown,
}

/// What an answer to `POST /v1/messages` means.
pub(super) fn verdict(status: StatusCode, answer: &Answer) -> Verdict {
    if status.is_success() {
        // A login page is 200 too, and some firewalls ask their riddles with 202.
        let ok = answer.json().is_some_and(|json| json["ok"] == true);
        return if ok { Verdict::Accepted } else { Verdict::Unknown };
    }
    let error = answer.error();
    let refusal = Refusal::ALL
        .into_iter()
        .find(|refusal| refusal.status() == status.as_u16() && error.is_some_and(|code| code == refusal.code()));
    match (refusal, status.as_u16()) {
        // One in between has sent it twice: the server has seen this envelope.
        (Some(Refusal::Replay), _) | (None, 409) => Verdict::Unknown,
        (Some(Refusal::RateLimited | Refusal::Unavailable), _) => Verdict::NotTaken,
        // These answer other requests: whoever says so has not looked at an envelope.
        (Some(Refusal::NotAnActor | Refusal::Unauthorized | Refusal::NotFound), _) => Verdict::NotTaken,
        (Some(_), _) => Verdict::Refused,
        // Who redirects, or refuses by a rule of its own, has not passed it on; who says 408 has not had all of it; and 503 is
        // that there is nobody to pass it on to.
        (None, 300..=499 | 503) => Verdict::NotTaken,
        // A gateway that has passed it on and got no answer, or no good one.
        (None, _) => Verdict::Unknown,
    }
}

/// An answer in one line, for people.
pub(super) fn reason(status: StatusCode, answer: &Answer) -> String {
    let text = excerpt(&String::from_utf8_lossy(&answer.0));
    if text.is_empty() { status.to_string() } else { format!("{status}: {text}") }
}

/// The beginning of a peer's words on one line, without what would do something to a terminal.
pub(super) fn excerpt(text: &str) -> String {
    let words =
        text.split(char::is_whitespace).map(|word| word.chars().filter(|c| !is_unsafe(*c)).collect::<String>());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    line.chars().take(EXCERPT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict_of(status: u16, body: &str) -> Verdict {
        verdict(StatusCode::from_u16(status).expect("a status"), &Answer(body.as_bytes().to_vec()))
    }

    #[test]
    fn only_the_protocols_own_answers_are_final() {
        let finals = [
            Refusal::PayloadTooLarge,
            Refusal::InvalidJson,
            Refusal::UnknownSender,
            Refusal::InvalidEnvelope,
            Refusal::MissingRecipient,
            Refusal::UnknownRecipient,
            Refusal::SenderMismatch,
            Refusal::MissingMessageType,
        ];
        for refusal in Refusal::ALL {
            let body = format!("{{\"error\":\"{}\"}}", refusal.code());
            let verdict = verdict_of(refusal.status(), &body);
            assert_eq!(verdict == Verdict::Refused, finals.contains(&refusal), "{refusal:?}");
            // Not with another status, nor as a word among others.
            assert_ne!(verdict_of(418, &body), Verdict::Refused, "{refusal:?}");
            let page = format!("<html>{}</html>", refusal.code());
            assert_ne!(verdict_of(refusal.status(), &page), Verdict::Refused, "{refusal:?}");
        }
        for body in
            ["", "null", "[]", "{}", "{\"error\":1}", "{\"error\":\"teapot\"}", "\"unknown_sender\"", "{\"error\":"]
        {
            for status in 300..600 {
                assert!(
                    !matches!(verdict_of(status, body), Verdict::Refused | Verdict::Accepted),
                    "{status} {body}"
                );
            }
        }
    }

    #[test]
    fn what_may_have_been_taken_is_told_from_what_was_not() {
        for status in [301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 408, 413, 429, 431, 451, 503] {
            assert_eq!(verdict_of(status, "<html>"), Verdict::NotTaken, "{status}");
        }
        for status in [200, 202, 204, 409, 500, 502, 504, 520, 524] {
            assert_eq!(verdict_of(status, "<html>"), Verdict::Unknown, "{status}");
        }
        assert_eq!(verdict_of(409, r#"{"error":"replay"}"#), Verdict::Unknown);
        assert_eq!(verdict_of(202, r#"{"ok":true}"#), Verdict::Accepted);
        assert_eq!(verdict_of(202, r#"{"ok":false}"#), Verdict::Unknown);
    }

    #[test]
    fn an_excerpt_is_one_short_line_without_controls() {
        assert_eq!(excerpt("<html>\r\n\t<h1>\u{1b}[31m403\u{202e} no</h1>\0"), "<html> <h1>[31m403 no</h1>");
        assert_eq!(excerpt(&"x ".repeat(1_000)).chars().count(), EXCERPT);
    }
}
