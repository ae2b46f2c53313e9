//! Server-sent events of one client: those of the feed, while its token is accepted, and its session open.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::web::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, sleep};

use super::{feed::Reader, gate::Login, tokens::TokenBook};
use crate::{
    actors::runtime::Clock,
    html::session::{SessionKey, Sessions},
};

/// The most streams at once.
const MOST: usize = 64;

/// How often it is checked whether the token is still accepted.
const CHECK: Duration = Duration::from_secs(1);

/// How often a comment is sent: it prevents proxies from closing an idle stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The events of one client.
pub(crate) type EventStream = Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>>>>;

/// The streams that are open. Clones share the count.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<AtomicUsize>);

struct Open(Streams);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose stream it is.
pub(crate) struct Holder {
    pub(crate) tokens: TokenBook,
    pub(crate) clock: Clock,
    /// The identifier of the token; `None` for the owner of the socket.
    pub(crate) token: Option<String>,
    /// The session of its browser.
    pub(crate) session: Option<(Sessions<Login>, SessionKey)>,
}

impl Holder {
    fn is_accepted(&self) -> bool {
        let now = self.clock.now();
        let has_token = self.token.as_ref().is_none_or(|token| self.tokens.is_valid(token, now));
        has_token && self.session.as_ref().is_none_or(|(sessions, key)| sessions.is_open(*key, now))
    }
}

impl Streams {
    /// Opens a stream; `None` if too many are open.
    pub(crate) fn open(&self, reader: Reader, holder: Holder) -> Option<EventStream> {
        let taken = |open: usize| (open < MOST).then_some(open + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        let open = Open(self.clone());
        // So that the client knows at once that it is connected.
        let greeting = stream::once(async { Ok(Bytes::from_static(b"retry: 1000\n: connected\n\n")) });
        let events =
            stream::unfold((reader, holder, open, Instant::now()), async |(mut reader, holder, open, mut beat)| {
                loop {
                    if !holder.is_accepted() {
                        return None;
                    }
                    if let Some(piece) = reader.next() {
                        return Some((Ok(piece), (reader, holder, open, beat)));
                    }
                    if beat.elapsed() >= HEARTBEAT {
                        beat = Instant::now();
                        return Some((Ok(Bytes::from_static(b": heartbeat\n\n")), (reader, holder, open, beat)));
                    }
                    tokio::select! {
                        goes_on = reader.changed() => if !goes_on { return None },
                        () = sleep(CHECK) => {}
                    }
                }
            });
        Some(Box::pin(greeting.chain(events)))
    }
}
