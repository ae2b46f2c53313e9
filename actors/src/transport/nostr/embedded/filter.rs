//! Checks outside of the relay itself: the request before the WebSocket, which may be for the information document
//! (NIP-11), and the messages of clients that the relay may receive.

use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::RelayLimits;

/// The maximum size of a request's head, in bytes, and the maximum number of its headers.
const HEAD: usize = 8 << 10;
const HEADERS: usize = 64;

/// The media type of the information document.
const INFORMATION: &str = "application/nostr+json";

/// The maximum number of subscriptions of one connection. Our connections have two.
pub(super) const SUBSCRIPTIONS: usize = 20;

/// The maximum length of a subscription's identifier, according to NIP-01.
pub(super) const SUBSCRIPTION_ID: usize = 64;

/// The maximum size of a message other than an event, in bytes. The relay stores the filters of every subscription.
const REQUEST: usize = 8 << 10;

/// The messages that clients may send. The library's relay also reconciles (`NEG-OPEN`), for which it stores a list of
/// all events for each of any number of names.
const REQUESTS: [&str; 4] = ["REQ", "CLOSE", "COUNT", "AUTH"];

/// Whether a client's message is forwarded to the relay. Its name must be written without escapes.
pub(super) fn is_forwarded(message: &str) -> bool {
    let name = message.trim_start().strip_prefix('[').map(str::trim_start).and_then(|rest| rest.strip_prefix('"'));
    match name.and_then(|rest| rest.split_once('"')) {
        Some(("EVENT", _)) => true,
        Some((name, _)) => REQUESTS.contains(&name) && message.len() <= REQUEST,
        None => false,
    }
}

/// The first request of a connection, as received.
pub(super) struct Head(Vec<u8>);

impl Head {
    /// Reads until the head is complete, is invalid, or is too long; the caller decides what it is.
    pub(super) async fn read(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = Vec::new();
        let mut chunk = [0; 1024];
        while head.len() < HEAD {
            let length = socket.read(&mut chunk).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.extend_from_slice(&chunk[..length]);
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            match httparse::Request::new(&mut headers).parse(&head) {
                Ok(httparse::Status::Partial) => {}
                Ok(httparse::Status::Complete(_)) | Err(_) => break,
            }
        }
        Ok(Self(head))
    }

    /// Whether it is a request for the information document.
    pub(super) fn asks_for_information(&self) -> bool {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        if !request.parse(&self.0).is_ok_and(|status| status.is_complete()) || request.method != Some("GET") {
            return false;
        }
        let has = |name: &str, value: &str| {
            request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).any(|header| {
                std::str::from_utf8(header.value).is_ok_and(|text| text.to_ascii_lowercase().contains(value))
            })
        };
        has("accept", INFORMATION) && !has("upgrade", "websocket")
    }

    /// The socket with the head put back.
    pub(super) fn before(self, socket: impl AsyncRead + AsyncWrite) -> impl AsyncRead + AsyncWrite + Unpin {
        let (read, write) = tokio::io::split(socket);
        tokio::io::join(AsyncReadExt::chain(io::Cursor::new(self.0), read), write)
    }
}

/// The relay's information document.
fn information(limits: &RelayLimits) -> Value {
    json!({
        "name": "btcr2-aggregation, embedded relay",
        "description": "Events of did:btcr2 cohorts, in memory, for as long as the service runs. Members of its cohorts are preferred.",
        "supported_nips": [1, 9, 11],
        "software": "btcr2-aggregation",
        "version": env!("CARGO_PKG_VERSION"),
        "limitation": {
            "max_message_length": limits.message_bytes(),
            "max_subscriptions": SUBSCRIPTIONS,
            "max_subid_length": SUBSCRIPTION_ID,
            "max_limit": limits.events,
            "default_limit": limits.events,
            "max_content_length": limits.content_chars(),
            "min_pow_difficulty": 0,
            "auth_required": false,
            "payment_required": false,
            "restricted_writes": false,
        },
    })
}

/// Answers a request for the information document.
pub(super) async fn inform(socket: &mut (impl AsyncWrite + Unpin), limits: &RelayLimits) -> io::Result<()> {
    let body = information(limits).to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {INFORMATION}\r\nContent-Length: {length}\r\nConnection: close\r\n\
         Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: *\r\nAccess-Control-Allow-Methods: GET\r\n\r\n"
    );
    socket.write_all((head + &body).as_bytes()).await?;
    socket.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_requests_without_escapes_are_forwarded() {
        for passed in
            [r#"["EVENT",{}]"#, r#" [ "REQ" ,"a",{}]"#, r#"["CLOSE","a"]"#, r#"["COUNT","a",{}]"#, r#"["AUTH",{}]"#]
        {
            assert!(is_forwarded(passed), "{passed}");
        }
        let long = format!(r#"["REQ","a",{{"ids":["{}"]}}]"#, "0".repeat(REQUEST));
        for dropped in [r#"["NEG-OPEN","a",{},""]"#, r#"["\u004eEG-OPEN","a"]"#, "", "[]", r#"{"EVENT":1}"#, &long]
        {
            assert!(!is_forwarded(dropped), "{dropped}");
        }
        assert!(is_forwarded(&format!(r#"["EVENT",{{"content":"{}"}}]"#, "x".repeat(10 * REQUEST))));
    }

    #[tokio::test]
    async fn a_head_is_read_as_far_as_it_goes() {
        for (text, asks) in [
            ("GET / HTTP/1.1\r\nhost: a\r\nACCEPT: text/html, Application/nostr+json\r\n\r\n", true),
            ("GET / HTTP/1.1\r\naccept: application/nostr+json\r\nupgrade: WebSocket\r\n\r\n", false),
            ("GET / HTTP/1.1\r\naccept: text/html\r\n\r\n", false),
            ("POST / HTTP/1.1\r\naccept: application/nostr+json\r\n\r\n", false),
            ("\u{16}\u{3}\u{1}garbage", false),
        ] {
            let head = Head::read(&mut text.as_bytes()).await.unwrap();
            assert_eq!(head.asks_for_information(), asks, "{text}");
            let mut again = Vec::new();
            let (socket, peer) = tokio::io::duplex(64);
            drop(peer);
            head.before(socket).read_to_end(&mut again).await.unwrap();
            assert_eq!(again, text.as_bytes());
        }
        let endless = "GET / HTTP/1.1\r\nx: ".to_owned() + &"y".repeat(2 * HEAD);
        assert!(Head::read(&mut endless.as_bytes()).await.unwrap().0.len() < HEAD + 1024);
        assert!(Head::read(&mut &b"GET / HT"[..]).await.is_err());
    }
}
