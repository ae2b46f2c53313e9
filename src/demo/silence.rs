//! The member that goes silent after the nonces: its connection drops signatures of every kind.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Recipient};
use async_trait::async_trait;

use crate::{
    actors::transport::{ConnectError, Delivery, Disconnected, Outbound, Transport},
    protocol::{identity::Identity, message::Body},
};

/// A transport that drops signatures.
pub(super) struct SilentAfterNonces(pub(super) Arc<dyn Transport>);

#[async_trait]
impl Transport for SilentAfterNonces {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let onward = self.0.connect(identity, inbox, keeper, connection).await?;
        Ok(Silence { onward }.start().recipient())
    }
}

struct Silence {
    onward: Recipient<Outbound>,
}

impl Actor for Silence {
    type Context = Context<Self>;
}

impl Handler<Outbound> for Silence {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, _: &mut Self::Context) {
        if let Outbound::Direct { body, .. } = &outbound
            && matches!(**body, Body::SignatureAuthorization(_) | Body::FallbackSignature(_))
        {
            return;
        }
        // A message that finds no room is lost, as any connection may lose one: its sender sends it again.
        if let Err(error) = self.onward.try_send(outbound) {
            tracing::warn!(%error, "a message was not passed on");
        }
    }
}
