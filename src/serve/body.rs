//! The bodies of requests: bounded in size and time.

use std::time::Duration;

use actix_web::web::{Bytes, BytesMut, Payload};
use futures::StreamExt;

/// Why a body is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It is larger than allowed.
    TooLarge,
    /// It has not arrived in time, or not at all.
    Slow,
}

/// The whole body, if it is not larger than `most` bytes and arrives `within` that time. Of a larger one a part is read and discarded, so
/// that the client, which is still sending, receives the answer instead of a broken connection.
///
/// # Errors
/// [`Unread`].
pub(crate) async fn read(payload: Payload, most: usize, within: Duration) -> Result<Bytes, Unread> {
    tokio::time::timeout(within, read_all(payload, most)).await.unwrap_or(Err(Unread::Slow))
}

async fn read_all(mut payload: Payload, most: usize) -> Result<Bytes, Unread> {
    let (mut body, mut length) = (BytesMut::new(), 0);
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Unread::Slow)?;
        length += chunk.len();
        if length <= most {
            body.extend_from_slice(&chunk);
        } else {
            body = BytesMut::new();
        }
        if length > most.saturating_mul(4) {
            break;
        }
    }
    if length > most { Err(Unread::TooLarge) } else { Ok(body.freeze()) }
}
