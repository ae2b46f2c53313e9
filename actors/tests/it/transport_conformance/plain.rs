//! A transport that is a plain async type, as a host would write one: a post office in this process, which stores letters
//! until they are delivered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use btcr2_aggregation_actors::{
    supervision::End,
    transport::{ConnectError, Connection, Delivery, Inbox, InboxClosed, Outbound, Transport, connection},
};
use btcr2_aggregation_protocol::{did::Did, identity::Identity, message::Message};
use tokio::sync::{Notify, mpsc::Receiver, watch};

/// The maximum number of letters that wait for one recipient.
const LETTERS: usize = 1024;

/// The post office. Clones share it.
#[derive(Clone, Default)]
pub struct Office(Arc<Mutex<BTreeMap<Did, PostBox>>>);

#[derive(Default)]
struct PostBox {
    letters: VecDeque<Letter>,
    /// The number of the connection that empties it.
    connection: u64,
    changed: watch::Sender<()>,
    cut: Arc<Notify>,
}

#[derive(Clone)]
struct Letter {
    from: Did,
    text: Arc<str>,
}

impl Office {
    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<Did, PostBox>) -> T) -> T {
        look(&mut self.0.lock().expect("no code panics with the lock"))
    }

    /// Breaks the connection of `did`.
    pub fn cut(&self, did: &Did) {
        self.with(|boxes| boxes[did].cut.notify_one());
    }

    /// Puts a letter into the box of `to`; returns whether there is one.
    pub fn post(&self, from: &Did, to: &Did, text: Arc<str>) -> bool {
        self.with(|boxes| boxes.get_mut(to).map(|post_box| post_box.put(from, text)).is_some())
    }
}

impl PostBox {
    fn put(&mut self, from: &Did, text: Arc<str>) {
        if self.letters.len() >= LETTERS {
            self.letters.pop_front();
        }
        self.letters.push_back(Letter { from: from.clone(), text });
        self.changed.send_replace(());
    }
}

#[async_trait]
impl Transport for Office {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let did = identity.did().clone();
        let line = self.with(|boxes| {
            let post_box = boxes.entry(did.clone()).or_default();
            post_box.connection += 1;
            let (number, cut, changed) =
                (post_box.connection, Arc::clone(&post_box.cut), post_box.changed.subscribe());
            Line { office: self.clone(), did, number, cut, changed }
        });
        Ok(connection::spawn(16, |outbox| line.run(outbox, inbox)))
    }
}

/// One identity's connection.
struct Line {
    office: Office,
    did: Did,
    number: u64,
    cut: Arc<Notify>,
    changed: watch::Receiver<()>,
}

impl Line {
    async fn run(mut self, mut outbox: Receiver<Outbound>, inbox: Inbox) -> End {
        let cut = Arc::clone(&self.cut);
        loop {
            // A cut comes between two letters: a letter that was delivered is out of the box.
            let carried = tokio::select! {
                Some(outbound) = outbox.recv() => self.send(outbound, &inbox).await,
                letter = self.letter() => self.deliver(letter, &inbox).await,
                () = cut.notified() => break,
            };
            if carried.is_err() {
                return End::Stopped;
            }
        }
        // What was accepted is not lost; what comes later waits in the link.
        outbox.close();
        while let Some(outbound) = outbox.recv().await {
            if self.send(outbound, &inbox).await.is_err() {
                break;
            }
        }
        End::Stopped
    }

    /// The first letter in our box, which stays there. A newer connection of the same identity has the box to itself.
    async fn letter(&mut self) -> Letter {
        loop {
            let first = self.office.with(|boxes| {
                let post_box = &boxes[&self.did];
                post_box.letters.front().filter(|_| post_box.connection == self.number).cloned()
            });
            match first {
                Some(letter) => return letter,
                None => self.changed.changed().await.expect("the box is there"),
            }
        }
    }

    async fn deliver(&self, Letter { from, text }: Letter, inbox: &Inbox) -> Result<(), InboxClosed> {
        let delivery = match Message::from_json(&text) {
            Ok(message) if message.from == from => Some(Delivery::Message(message.into())),
            Ok(_) => None,
            Err(error) => Some(Delivery::Undecodable { from, error }),
        };
        if let Some(delivery) = delivery {
            inbox.deliver(delivery).await?;
        }
        self.office.with(|boxes| boxes.get_mut(&self.did).map(|post_box| post_box.letters.pop_front()));
        Ok(())
    }

    async fn send(&self, outbound: Outbound, inbox: &Inbox) -> Result<(), InboxClosed> {
        let (to, body) = match outbound {
            Outbound::Direct { to, body, .. } => (Some(to), body),
            Outbound::Broadcast { body } => (None, body),
            Outbound::WithdrawAdvert { .. } => return Ok(()),
        };
        let message = Message::new(self.did.clone(), to, body);
        let text: Arc<str> = message.to_json().into();
        let Some(to) = message.to else {
            self.office.with(|boxes| {
                let others = boxes.iter_mut().filter(|(did, _)| **did != self.did);
                others.for_each(|(_, post_box)| post_box.put(&self.did, Arc::clone(&text)));
            });
            return Ok(());
        };
        if self.office.post(&self.did, &to, text) {
            return Ok(());
        }
        let reason = "there is no such box".to_owned();
        inbox.deliver(Delivery::Undeliverable { to, body: message.body, reason }).await
    }
}
