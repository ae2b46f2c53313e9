//! WebSockets to relays: `ws://`, and `wss://` with the TLS of [`tls`](crate::transport::tls). The SDK's own sockets
//! only trust a list of authorities that is compiled in.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_wsocket::{ConnectionMode, Message, message::CloseFrame};
use futures::{Sink, StreamExt, future};
use nostr_sdk::{
    Url,
    pool::transport::{
        error::TransportError,
        websocket::{WebSocketSink, WebSocketStream, WebSocketTransport},
    },
    util::BoxedFuture,
};
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{self, protocol::WebSocketConfig},
};

use crate::transport::tls::{TlsError, Trust};

/// The maximum size of a relay's message: an event of a large cohort has at most 64 kB, those of other authors may be
/// larger.
const MAX_MESSAGE: usize = 8 << 20;

/// The maximum number of a relay's texts that are stored, and the maximum length of each.
const MOST_WORDS: usize = 32;
const LONGEST_WORDS: usize = 200;

/// A relay's texts for people: notices, the reasons of subscriptions that it closes, and answers that name no event,
/// which the SDK ignores.
#[derive(Clone, Debug, Default)]
pub(super) struct Words(Arc<Mutex<Vec<String>>>);

impl Words {
    fn note(&self, frame: &str) {
        // Any other message is an event, or an answer to one.
        if !["[\"NOTICE\"", "[\"CLOSED\"", "[\"OK\",\"\"", "[\"AUTH\""].iter().any(|begin| frame.starts_with(begin))
        {
            return;
        }
        let Ok(frame) = serde_json::from_str::<Vec<Value>>(frame) else { return };
        let text = |index: usize| frame.get(index).and_then(Value::as_str).unwrap_or_default();
        let words = match text(0) {
            "NOTICE" => format!("NOTICE {}", text(1)),
            // The relay confirms a subscription that we closed.
            "CLOSED" if text(2).is_empty() => return,
            "CLOSED" => format!("CLOSED {}", text(2)),
            "AUTH" => "AUTH (it asks who we are)".to_owned(),
            _ => format!("OK without an event: {}", text(3)),
        };
        let words = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_WORDS).collect();
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < MOST_WORDS && !noted.contains(&words) {
            noted.push(words);
        }
    }

    /// Its texts so far, each once.
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens sockets to relays.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    config: Arc<ClientConfig>,
    words: Words,
}

impl Sockets {
    /// Sockets to relays with these trusted certificates.
    pub(super) fn new(trust: &Trust) -> Result<Self, TlsError> {
        Ok(Self { config: Arc::new(trust.client_config()?), words: Words::default() })
    }

    /// The texts that were received on them.
    pub(super) const fn words(&self) -> &Words {
        &self.words
    }

    async fn open(&self, url: &Url) -> Result<(WebSocketSink, WebSocketStream), TransportError> {
        let problem = |problem: &str| TransportError::backend(io::Error::new(io::ErrorKind::InvalidInput, problem));
        let host = url.host_str().ok_or_else(|| problem("the URL names no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| problem("the URL names no port"))?;
        // An address in brackets is an IPv6 address.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, port)).await.map_err(TransportError::backend)?;
        // Events are small and answered one by one: waiting to fill a segment would only delay them.
        stream.set_nodelay(true).map_err(TransportError::backend)?;
        if url.scheme() == "wss" {
            let name = ServerName::try_from(host.to_owned()).map_err(TransportError::backend)?;
            let connector = TlsConnector::from(Arc::clone(&self.config));
            let stream = connector.connect(name, stream).await.map_err(TransportError::backend)?;
            upgrade(url, stream, self.words.clone()).await
        } else {
            upgrade(url, stream, self.words.clone()).await
        }
    }
}

impl WebSocketTransport for Sockets {
    fn support_ping(&self) -> bool {
        true
    }

    fn connect<'a>(
        &'a self,
        url: &'a Url,
        _: &'a ConnectionMode,
        patience: Duration,
    ) -> BoxedFuture<'a, Result<(WebSocketSink, WebSocketStream), TransportError>> {
        Box::pin(async move {
            let opened = timeout(patience, self.open(url)).await;
            opened.unwrap_or_else(|_| {
                let late = format!("no connection within {patience:?}");
                Err(TransportError::backend(io::Error::new(io::ErrorKind::TimedOut, late)))
            })
        })
    }
}

async fn upgrade<S>(url: &Url, stream: S, words: Words) -> Result<(WebSocketSink, WebSocketStream), TransportError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let upgraded = client_async_with_config(url.as_str(), stream, Some(limits)).await;
    let (socket, _) = upgraded.map_err(TransportError::backend)?;
    let (sink, stream) = socket.split();
    let stream = stream.filter_map(move |message| {
        if let Ok(tungstenite::Message::Text(text)) = &message {
            words.note(text);
        }
        future::ready(match message {
            Ok(message) => incoming(message).map(Ok),
            Err(error) => Some(Err(TransportError::backend(error))),
        })
    });
    Ok((Box::new(Outgoing(sink)), Box::pin(stream)))
}

/// A sink of the SDK's messages. It continues to answer after an error, as the SDK requires: `sink_map_err` of
/// `futures` panics then.
struct Outgoing<S>(S);

impl<S> Outgoing<S>
where
    S: Sink<tungstenite::Message, Error = tungstenite::Error> + Unpin,
{
    fn inner(&mut self) -> Pin<&mut S> {
        Pin::new(&mut self.0)
    }
}

impl<S> Sink<Message> for Outgoing<S>
where
    S: Sink<tungstenite::Message, Error = tungstenite::Error> + Unpin,
{
    type Error = TransportError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.inner().poll_ready(cx).map_err(TransportError::backend)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), TransportError> {
        self.inner().start_send(outgoing(message)).map_err(TransportError::backend)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.inner().poll_flush(cx).map_err(TransportError::backend)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.inner().poll_close(cx).map_err(TransportError::backend)
    }
}

fn outgoing(message: Message) -> tungstenite::Message {
    match message {
        Message::Text(text) => tungstenite::Message::text(text),
        Message::Binary(bytes) => tungstenite::Message::binary(bytes),
        Message::Ping(bytes) => tungstenite::Message::Ping(bytes.into()),
        Message::Pong(bytes) => tungstenite::Message::Pong(bytes.into()),
        Message::Close(frame) => tungstenite::Message::Close(frame.map(|frame| {
            tungstenite::protocol::CloseFrame { code: frame.code.into(), reason: frame.reason.into() }
        })),
    }
}

fn incoming(message: tungstenite::Message) -> Option<Message> {
    Some(match message {
        tungstenite::Message::Text(text) => Message::Text(text.as_str().to_owned()),
        tungstenite::Message::Binary(bytes) => Message::Binary(bytes.to_vec()),
        tungstenite::Message::Ping(bytes) => Message::Ping(bytes.to_vec()),
        tungstenite::Message::Pong(bytes) => Message::Pong(bytes.to_vec()),
        tungstenite::Message::Close(frame) => Message::Close(
            frame.map(|frame| CloseFrame { code: frame.code.into(), reason: frame.reason.as_str().to_owned() }),
        ),
        // Only produced by a socket that reads frames itself.
        tungstenite::Message::Frame(_) => return None,
    })
}
