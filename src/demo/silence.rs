//! The member that goes silent after the nonces: its connection drops signatures of every kind.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    actors::{
        supervision::End,
        transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent},
    },
    protocol::{identity::Identity, message::Body},
};

/// A transport that drops signatures.
pub(super) struct SilentAfterNonces(pub(super) Arc<dyn Transport>);

#[async_trait]
impl Transport for SilentAfterNonces {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let onward = self.0.connect(identity, inbox).await?;
        Ok(Box::new(Silence { onward }))
    }
}

struct Silence {
    onward: Box<dyn Connection>,
}

#[async_trait]
impl Connection for Silence {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        if let Outbound::Direct { body, .. } = &outbound
            && matches!(**body, Body::SignatureAuthorization(_) | Body::FallbackSignature(_))
        {
            return Ok(());
        }
        self.onward.try_send(outbound)
    }

    async fn ended(&self) -> End {
        self.onward.ended().await
    }
}
