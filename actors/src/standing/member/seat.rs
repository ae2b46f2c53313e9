//! One seat as an actor: its machine, its signer, its host.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient, Supervised,
    WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        SeatSigner,
        message::StandingMessage,
        seat::{Enrolment, Seat, SeatEffect, SeatEvent, SeatInput},
    },
    error::Reject,
    hash::DidIndex,
    id::CohortId,
    identity::Identity,
    key::SecretKey,
    machine::Machine,
    message::Body,
};

use super::{
    MemberSettings,
    fetch::{BoardFetches, RowsFetch},
    history::HistoryRead,
    host::{Inspect, SeatRequest},
    moving::Confirmed,
    serving::Serving,
};
use crate::{
    engine::{Driven, Engine, Replayed},
    journal::StreamId,
    span,
    standing::{
        coins::{ChainNews, CoinWatch, FinalSpend, LookNow, WatchGone, feed_all},
        notice::SeatNotice,
        policy::SeatView,
    },
    supervision::{End, EndGuard, InTree, Lease, Leased, RestartIntensity, Restarts, replay, start_leased},
    transport::{Delivery, Inbox, Outbound, Received, link::Link, send_in_turn, undecodable},
    tree::{self, Row},
};

/// The keys of a seat.
pub(super) struct SeatKeys {
    /// The one that signs for it.
    pub(super) seat: Arc<SecretKey>,
    /// The identity of its messages.
    pub(super) identity: Identity,
}

/// How a seat's actor starts.
pub(super) enum StartMode {
    /// It asks for the seat.
    Fresh,
    /// At the end of its journal, with so many records.
    Resumed(usize),
    /// The actor panicked: its journal is replayed first.
    AfterPanic,
}

pub(crate) struct SeatActor {
    pub(super) engine: Engine<Seat>,
    pub(super) settings: Arc<MemberSettings>,
    pub(super) identity: Identity,
    pub(super) signer: SeatSigner,
    pub(super) link: Link,
    mode: StartMode,
    pub(super) boards: BoardFetches,
    pub(super) history: HistoryRead,
    pub(super) serving: Serving,
    pub(super) rows: Option<RowsFetch>,
    /// The last board that was fed to the machine, until the host is asked about it.
    pub(super) bytes: Option<(u64, Arc<Vec<u8>>)>,
    /// The number whose board the host was asked about.
    pub(super) asked: Option<u64>,
    /// How often the same was sent again without an answer, and whether that is due to happen again.
    pub(super) tries: u32,
    pub(super) has_timer: bool,
    coins: Option<(Addr<CoinWatch>, Lease)>,
    /// Is sent what this seat's cohort has confirmed.
    pub(super) member: Recipient<Confirmed>,
    /// What the cohorts of the member's other seats have confirmed.
    pub(super) confirmed_elsewhere: BTreeMap<CohortId, BTreeSet<DidIndex>>,
    /// Whether it waits for coins to be spent, after a restore from a backup.
    pub(super) waits_for_coins: bool,
    restarts: Restarts,
    pub(super) guard: EndGuard,
}

impl SeatActor {
    /// Starts the actor of a seat. It runs until its owner drops the [`Lease`]; `gone` is called when it stops earlier.
    pub(super) fn start(
        machine: Seat,
        keys: SeatKeys,
        mode: StartMode,
        settings: Arc<MemberSettings>,
        member: Recipient<Confirmed>,
        gone: impl FnOnce(End) + 'static,
    ) -> (Addr<Self>, Lease) {
        let did = keys.identity.did().clone();
        let span = span::seat(&machine.config().cohort_id, &did);
        start_leased(span, |ctx: &mut Context<Self>, leased: Leased| {
            let stream = StreamId::of_seat(&did);
            let rng = settings.randomness.for_actor(stream.as_str());
            let mut engine = Engine::new(machine, Arc::clone(&settings.journal), stream, settings.clock, rng);
            if let StartMode::Resumed(records) = mode {
                engine.restored(records);
            }
            let inbox = Inbox::of(ctx.address().recipient());
            let link = Link::start(Arc::clone(&settings.transport), keys.identity.clone(), inbox);
            Self {
                engine,
                settings,
                identity: keys.identity,
                signer: SeatSigner::new(keys.seat),
                link,
                mode,
                boards: BoardFetches::default(),
                history: HistoryRead::default(),
                serving: Serving::default(),
                rows: None,
                bytes: None,
                asked: None,
                tries: 0,
                has_timer: false,
                coins: None,
                member,
                confirmed_elsewhere: BTreeMap::new(),
                waits_for_coins: false,
                restarts: Restarts::default(),
                guard: EndGuard::leased(leased, gone),
            }
        })
    }

    pub(super) fn notify(&self, notice: SeatNotice) {
        self.settings.notices.publish(notice);
    }

    pub(super) fn reject(&self, reject: &Reject) {
        let cohort_id = &self.engine.machine().config().cohort_id;
        self.notify(SeatNotice::rejected(Some(self.identity.did()), Some(cohort_id), reject));
    }

    /// Sends a message to the service.
    pub(super) fn send(&self, message: StandingMessage) {
        let to = self.engine.machine().config().service.clone();
        self.link.send(Outbound::Direct { to, body: Body::from(message).into(), until: None });
    }

    /// What the host's policy sees of the seat, once the cohort has formed.
    pub(super) fn view(&self) -> Option<SeatView> {
        let machine = self.engine.machine();
        let config = machine.config();
        Some(SeatView {
            service: config.service.clone(),
            cohort_id: config.cohort_id.clone(),
            terms: Arc::clone(&config.terms),
            seat: self.identity.did().clone(),
            beacon_address: machine.output()?.address().to_owned(),
            key: config.seat,
        })
    }

    /// Asks the host a question and feeds its answer to the machine.
    pub(super) fn ask<F>(&mut self, question: F, ctx: &mut Context<Self>)
    where
        F: Future<Output = Vec<SeatInput>> + 'static,
    {
        ctx.spawn(question.into_actor(self).map(|answers, actor, ctx| {
            for input in answers {
                actor.feed(input, ctx);
            }
        }));
    }

    /// Continues where the journal ends.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        self.notify(SeatNotice::SeatRecovered {
            seat: self.identity.did().clone(),
            cohort_id: machine.config().cohort_id.clone(),
            beacon_address: machine.output().map(|output| output.address().to_owned()),
            number: machine.highest(),
        });
        // What it was refused for may have changed, e.g. it has an invite now.
        if matches!(machine.enrolment(), Enrolment::Refused(_)) {
            self.opt_in(ctx);
        }
        if self.engine.is_released() {
            // What was stated a moment ago is reported once it is durable.
            self.report_restored();
        }
        self.watch(ctx);
        self.resume(ctx);
        self.after_formation(ctx);
        self.report_confirmed(ctx);
        self.prepare_move(ctx);
        self.read_history(ctx);
        self.claim(ctx);
    }

    /// Watches the beacon address, once the cohort has formed.
    pub(super) fn watch(&mut self, ctx: &mut Context<Self>) {
        let (Some(view), Some(output)) = (&self.settings.chain, self.engine.machine().output()) else { return };
        if self.coins.is_some() {
            return;
        }
        let (view, script) = (view.clone(), output.script_pubkey().to_owned());
        let stream = StreamId::of_watch(self.identity.did().as_str());
        let records = (Arc::clone(&self.settings.journal), stream);
        let span = span::seat(&self.engine.machine().config().cohort_id, self.identity.did());
        let (restarts, to) = (self.settings.restarts, ctx.address());
        let gone = to.clone().recipient();
        self.coins = Some(CoinWatch::start(view, script, records, restarts, span, to.recipient(), gone));
    }

    /// Claims that there are updates, if the host has some.
    pub(super) fn claim(&mut self, ctx: &mut Context<Self>) {
        let Some(view) = self.view() else { return };
        let (policy, known) = (Arc::clone(&self.settings.policy), self.engine.machine().known_versions());
        let asking = async move { policy.has_updates(&view, &known).await };
        ctx.spawn(asking.into_actor(self).map(|has_updates, actor, _| {
            if has_updates {
                actor.send(actor.engine.machine().pending());
            }
        }));
    }

    fn on_message(&mut self, received: Received, ctx: &mut Context<Self>) {
        let Received { message, receipt, .. } = received;
        let Body::Standing(standing) = &*message.body else { return receipt.confirm() };
        if message.from != self.engine.machine().config().service {
            // Other seats ask for boards, and give them.
            match &**standing {
                StandingMessage::BoardRequest(request) => self.serve_board(message.from.clone(), request, ctx),
                StandingMessage::BoardPart(part) => self.on_board_part(&message.from, part, ctx),
                _ => {}
            }
            return receipt.confirm();
        }
        let standing = (**standing).clone();
        let again: Vec<SeatEffect> = match &standing {
            StandingMessage::BoardPart(part) => {
                receipt.confirm();
                return self.on_board_part(&message.from, part, ctx);
            }
            StandingMessage::RowsGiven(given) => {
                receipt.confirm();
                return self.on_rows(given.clone(), ctx);
            }
            StandingMessage::HistoryGiven(given) => {
                receipt.confirm();
                return self.on_history(given, ctx);
            }
            StandingMessage::StandingAdvert(_) => return receipt.confirm(),
            message => self.engine.machine().again(message),
        };
        for effect in again {
            self.perform(effect, ctx);
        }
        self.feed_received(SeatInput::Message(standing), receipt, ctx);
    }

    /// The connection is there again, and may have lost messages.
    fn reconnected(&mut self, ctx: &mut Context<Self>) {
        self.send_again(ctx);
        self.claim(ctx);
        self.read_history(ctx);
    }
}

impl Actor for SeatActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.keep_reading(ctx);
        match self.mode {
            StartMode::Fresh => self.opt_in(ctx),
            StartMode::Resumed(_) => self.after_restore(Self::go_on, ctx),
            StartMode::AfterPanic => self.restart_from_journal(ctx),
        }
    }
}

impl Supervised for SeatActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.mode = StartMode::AfterPanic;
        // Replaced at once: whatever the journal contains, secret nonces do not survive the panic.
        self.signer = SeatSigner::new(Arc::clone(self.signer.key()));
        (self.rows, self.bytes, self.coins, self.asked) = (None, None, None, None);
        (self.boards, self.history) = (BoardFetches::default(), HistoryRead::default());
        (self.tries, self.has_timer) = (0, false);
    }
}

impl InTree for SeatActor {
    const ROW: &'static Row = &tree::SEAT;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Replayed for SeatActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.settings.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, count: usize) {
        let cohort_id = self.engine.machine().config().cohort_id.clone();
        self.notify(SeatNotice::SeatRestarted { seat: self.identity.did().clone(), cohort_id, restarts: count });
    }

    fn restore(
        &mut self,
        events: Vec<SeatEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        if let Some(reason) = last {
            return Err(reason);
        }
        let config = Arc::clone(self.engine.machine().config());
        let machine = replay::caught(|| {
            let mut machine = Seat::new(config);
            events.iter().for_each(|event| machine.apply(event));
            machine
        })?;
        let rng = self.settings.randomness.for_actor(self.engine.stream().as_str());
        self.engine = self.engine.renewed(machine, rng);
        self.engine.restored(events.len());
        if *self.engine.machine().enrolment() == Enrolment::New {
            self.opt_in(ctx);
        } else {
            self.go_on(ctx);
        }
        Ok(())
    }
}

impl Handler<WatchGone> for SeatActor {
    type Result = ();

    fn handle(&mut self, gone: WatchGone, ctx: &mut Self::Context) {
        gone.ends(&mut self.guard, ctx);
    }
}

/// The cohort is advertised once more: its service may have lost the opt-in.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct AdvertisedAgain;

impl Handler<AdvertisedAgain> for SeatActor {
    type Result = ();

    fn handle(&mut self, _: AdvertisedAgain, ctx: &mut Self::Context) {
        if self.engine.machine().context().is_none() {
            self.send_again(ctx);
        }
    }
}

impl Handler<Delivery> for SeatActor {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, ctx: &mut Self::Context) {
        match delivery {
            Delivery::Message(received) | Delivery::Stored { message: received, .. } => {
                self.on_message(received, ctx)
            }
            Delivery::Undecodable { from, error } => {
                if let Some(reject) = undecodable(&from, &error) {
                    self.reject(&reject);
                }
            }
            Delivery::Interrupted { .. } | Delivery::Missed { .. } => self.reconnected(ctx),
            // The machine sends again what its service still needs.
            Delivery::Own(_)
            | Delivery::Unverified { .. }
            | Delivery::Delivered { .. }
            | Delivery::Delayed { .. }
            | Delivery::Undeliverable { .. } => {}
        }
    }
}

impl Handler<SeatRequest> for SeatActor {
    type Result = ();

    fn handle(&mut self, request: SeatRequest, ctx: &mut Self::Context) {
        match request {
            SeatRequest::Rows(rows) => self.register(rows, ctx),
            SeatRequest::Pending => {
                if self.engine.machine().output().is_some() {
                    self.send(self.engine.machine().pending());
                }
            }
            SeatRequest::Claim => self.claim(ctx),
            SeatRequest::Spent { coin, by, signal } => self.feed(SeatInput::Spent { coin, by, signal }, ctx),
            SeatRequest::Resolved { index, version } => self.feed(SeatInput::Resolved { index, version }, ctx),
            SeatRequest::RestoredFromBackup { coins, updates } => {
                self.feed(SeatInput::RestoredFromBackup { coins, updates }, ctx);
            }
            SeatRequest::Look => {
                if let Some((coins, _)) = &self.coins {
                    send_in_turn(coins, LookNow, ctx);
                }
            }
        }
    }
}

impl Handler<ChainNews> for SeatActor {
    type Result = ();

    fn handle(&mut self, news: ChainNews, ctx: &mut Self::Context) {
        let spent = |FinalSpend { coin, by, signal }| SeatInput::Spent { coin, by, signal };
        feed_all(self, news.spends.into_iter().map(spent), news.receipt, ctx);
    }
}

impl Handler<Inspect> for SeatActor {
    type Result = Arc<Seat>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        self.engine.snapshot()
    }
}
