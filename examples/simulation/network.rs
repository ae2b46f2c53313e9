//! The network of a simulation: messages take time, are lost and sent again, and some members go silent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        supervision::End,
        transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent, memory::MemoryTransport},
    },
    protocol::{did::Did, hash::sha256_concat, identity::Identity, message::Body},
};

/// How long a sender waits until it sends a lost message again, like TCP's first timeout.
const RESEND_AFTER: Duration = Duration::from_secs(1);

/// The number of messages, by type, and of losses.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) messages: BTreeMap<&'static str, u64>,
    pub(crate) lost: u64,
    /// How often each message was sent between two parties: a repeated message has a different delay and loss.
    sent: BTreeMap<String, u64>,
}

/// A network. Clones share it.
#[derive(Clone)]
pub(crate) struct SimNetwork {
    pub(crate) seed: u64,
    pub(crate) latency: Duration,
    pub(crate) loss: f64,
    pub(crate) memory: MemoryTransport,
    pub(crate) counts: Arc<Mutex<Counts>>,
}

impl SimNetwork {
    pub(crate) fn with_counts<T>(&self, look: impl FnOnce(&mut Counts) -> T) -> T {
        look(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The delay of a message. It follows from the message and its parties, not from the order in which actors run, so
    /// that the same seed gives the same result.
    fn delay(&self, from: &Did, to: Option<&Did>, body: &Body) -> Duration {
        let to = to.map_or("broadcast", Did::as_str);
        let what = format!("{from} {to} {} {}", body.cohort_id(), body.short_type());
        self.with_counts(|counts| {
            *counts.messages.entry(body.short_type()).or_default() += 1;
            let nth = counts.sent.entry(what.clone()).or_default();
            *nth += 1;
            let fate = |attempt: u32| unit(self.seed, &format!("{what} {nth} {attempt}"));
            let lost = (1..10).take_while(|&attempt| fate(attempt) < self.loss).count() as u32;
            counts.lost += u64::from(lost);
            RESEND_AFTER * lost + self.latency.mul_f64(0.5 + fate(0))
        })
    }
}

/// A number from 0 to 1 that follows from the seed and the name.
pub(crate) fn unit(seed: u64, name: &str) -> f64 {
    let hash = sha256_concat(&[&seed.to_be_bytes(), name.as_bytes()]);
    let bytes = hash.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    f64::from(bytes) / (f64::from(u32::MAX) + 1.0)
}

/// The step of a round to which a member's message belongs.
pub(crate) fn step(body: &Body) -> Option<usize> {
    match body {
        Body::CohortOptIn(_) => Some(0),
        Body::SubmitUpdate(_) | Body::SubmitNonIncluded(_) => Some(1),
        Body::ValidationAck(_) => Some(2),
        Body::NonceContribution(_) => Some(3),
        Body::SignatureAuthorization(_) | Body::FallbackSignature(_) => Some(4),
        _ => None,
    }
}

/// The number of steps.
pub(crate) const STEPS: usize = 5;

/// The network from the view of one participant.
pub(crate) struct Access {
    pub(crate) network: SimNetwork,
    /// From this step on the participant is silent.
    pub(crate) silent_from: Option<usize>,
}

#[async_trait]
impl Transport for Access {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let onward = self.network.memory.connect(identity, inbox).await?;
        let (network, from) = (self.network.clone(), identity.did().clone());
        Ok(Box::new(Wire { network, from, silent_from: self.silent_from, onward: Arc::from(onward) }))
    }
}

struct Wire {
    network: SimNetwork,
    from: Did,
    silent_from: Option<usize>,
    onward: Arc<dyn Connection>,
}

#[async_trait]
impl Connection for Wire {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let (to, body) = match &outbound {
            Outbound::Direct { to, body, .. } => (Some(to), body),
            Outbound::Broadcast { body } => (None, body),
            Outbound::WithdrawAdvert { .. } => return self.onward.try_send(outbound),
        };
        let is_silent = self.silent_from.zip(step(body)).is_some_and(|(from, now)| now >= from);
        if !is_silent {
            let delay = self.network.delay(&self.from, to, body);
            let onward = Arc::downgrade(&self.onward);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                // A message that is still on its way when the connection ends is lost.
                if let Some(onward) = onward.upgrade() {
                    let _ = onward.send(outbound).await;
                }
            });
        }
        Ok(())
    }

    async fn ended(&self) -> End {
        self.onward.ended().await
    }
}
