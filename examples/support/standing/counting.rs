//! A network in memory that counts the messages.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        supervision::End,
        transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent, memory::MemoryTransport},
    },
    protocol::identity::Identity,
};

use super::locked;

/// How often each type of message was sent.
pub type Counts = BTreeMap<&'static str, u64>;

/// Counts the messages of all connections.
#[derive(Clone)]
pub(super) struct Counting {
    pub(super) inner: Arc<MemoryTransport>,
    pub(super) counts: Arc<Mutex<Counts>>,
}

struct CountingConnection {
    inner: Box<dyn Connection>,
    counts: Arc<Mutex<Counts>>,
}

#[async_trait]
impl Transport for Counting {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let inner = self.inner.connect(identity, inbox).await?;
        Ok(Box::new(CountingConnection { inner, counts: Arc::clone(&self.counts) }))
    }
}

#[async_trait]
impl Connection for CountingConnection {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let kind = match &outbound {
            Outbound::Direct { body, .. } | Outbound::Broadcast { body } => Some(body.short_type()),
            Outbound::WithdrawAdvert { .. } => None,
        };
        self.inner.try_send(outbound)?;
        if let Some(kind) = kind {
            *locked(&self.counts).entry(kind).or_default() += 1;
        }
        Ok(())
    }

    async fn ended(&self) -> End {
        self.inner.ended().await
    }
}
