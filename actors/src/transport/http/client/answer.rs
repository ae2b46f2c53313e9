//! The meaning of a server's answer to a message. Only the protocol's own answers are final: any other answer may come
//! from an intermediary, which may be gone at the next attempt.

use btcr2_aggregation_protocol::text::is_unsafe;
use reqwest::{Response, StatusCode};
use serde_json::Value;

use crate::transport::http::Refusal;

/// How many bytes of an answer are read. The protocol's own have a few dozen bytes, the well-known document some
/// hundreds.
const MOST: usize = 8 << 10;

/// How many characters of an answer are reported.
const EXCERPT: usize = 200;

/// The part of an answer that is read, from any source.
#[derive(Default)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// Reads the beginning of an answer's body, as far as it arrives.
    pub(super) async fn read(mut response: Response) -> Self {
        let mut body = Vec::new();
        while body.len() < MOST
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(chunk.get(..MOST - body.len()).unwrap_or(&chunk));
        }
        Self(body)
    }

    /// The answer as a JSON object.
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.0).ok().filter(Value::is_object)
    }

    /// The code, if the answer is `{"error": "<code>"}`.
    pub(super) fn error(&self) -> Option<&'static str> {
        let json = self.json()?;
        let code = json["error"].as_str()?;
        Refusal::ALL.into_iter().map(Refusal::code).find(|known| *known == code)
    }
}

/// The fate of a message, according to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    /// The server has received it, and refuses it.
    Refused,
    /// The server has not accepted it.
    NotTaken,
    /// The server may have accepted it.
    Unknown,
}

/// The meaning of an answer to `POST /v1/messages`.
pub(super) fn verdict(status: StatusCode, answer: &Answer) -> Verdict {
    if status.is_success() {
        // A login page has status 200 too, and some firewalls send challenges with 202.
        let ok = answer.json().is_some_and(|json| json["ok"] == true);
        return if ok { Verdict::Accepted } else { Verdict::Unknown };
    }
    let error = answer.error();
    let refusal = Refusal::ALL
        .into_iter()
        .find(|refusal| refusal.status() == status.as_u16() && error.is_some_and(|code| code == refusal.code()));
    match (refusal, status.as_u16()) {
        // An intermediary has sent it twice: the server has seen this envelope.
        (Some(Refusal::Replay), _) | (None, 409) => Verdict::Unknown,
        (Some(Refusal::RateLimited | Refusal::Unavailable), _) => Verdict::NotTaken,
        // These answer other requests: the sender of the answer has not processed an envelope.
        (
            Some(
                Refusal::NotAnActor
                | Refusal::Unauthorized
                | Refusal::NotFound
                | Refusal::InvalidParameter
                | Refusal::NotEntitled,
            ),
            _,
        ) => Verdict::NotTaken,
        (Some(_), _) => Verdict::Refused,
        // A redirect, or a refusal by the intermediary's own rule: the message was not forwarded. After 408 it was not
        // received completely; with 503 there was no server to forward it to.
        (None, 300..=499 | 503) => Verdict::NotTaken,
        // A gateway that has forwarded it and got no answer, or an invalid one.
        (None, _) => Verdict::Unknown,
    }
}

/// An answer in one line, for display.
pub(super) fn reason(status: StatusCode, answer: &Answer) -> String {
    let text = excerpt(&String::from_utf8_lossy(&answer.0));
    if text.is_empty() { status.to_string() } else { format!("{status}: {text}") }
}

/// The beginning of a peer's text on one line, without characters that affect a terminal.
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
            // Not with another status, nor as one word of a text.
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
    fn a_message_that_may_be_accepted_is_not_reported_as_refused() {
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
