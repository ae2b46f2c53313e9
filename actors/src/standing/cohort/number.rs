//! One number at its service as an actor: the opportunity and its signing session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient,
    Supervised, WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        message::Confirmation,
        number::{Confirmed, Number, NumberEffect, NumberEnd, NumberEvent, NumberInput, NumberTask},
    },
    did::Did,
    error::{Reject, RejectCode, Slot},
    machine::Machine,
    message::Body,
};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use super::{NumberReport, StandingShared, charges::Charge, record::announced};
use crate::{
    bans::Offence,
    engine::{Driven, Engine, Replayed},
    evidence::EvidenceBook,
    journal::{JournalError, StreamId},
    policy::PolicyError,
    span,
    standing::{
        boards::BoardError,
        notice::StandingNotice,
        policy::{PriceRequest, UpdatesToCheck},
    },
    supervision::{End, EndGuard, InTree, Lease, Leased, RestartIntensity, Restarts, replay, start_leased},
    transport::{Outbound, Received, link::Link},
    tree::{self, Row},
};

/// How long a host is left alone that cannot name a price.
const PRICE_AGAIN: Duration = Duration::from_secs(10);

/// A message of a seat for this number.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct NumberMessage(pub(super) Received);

/// Send again what this seat, or every seat, still needs.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
pub(super) struct SendAgain(pub(super) Option<Did>);

/// Give it up.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Abandon(pub(super) String);

/// A snapshot of the number.
#[derive(ActixMessage)]
#[rtype(result = "Arc<Number>")]
pub(crate) struct InspectNumber;

/// A number that runs. Its actor stops when this is dropped.
pub(super) struct RunningNumber {
    pub(super) number: u64,
    pub(super) address: Addr<NumberActor>,
    _lease: Lease,
}

type Stored = Shared<BoxFuture<'static, Result<(), BoardError>>>;

pub(super) struct NumberActor {
    engine: Engine<Number>,
    shared: Arc<StandingShared>,
    outbound: Link,
    parent: Recipient<NumberReport>,
    /// The board that is being stored: what follows from it waits.
    stored: Option<Stored>,
    /// The messages that seats have signed.
    evidence: EvidenceBook,
    /// What seats have done wrong; judged at the end.
    faults: BTreeMap<Did, (Offence, String)>,
    panicked: bool,
    restarts: Restarts,
    guard: EndGuard,
}

fn replayed(task: Arc<NumberTask>, events: &[NumberEvent]) -> Number {
    let mut machine = Number::new(task);
    events.iter().for_each(|event| machine.apply(event));
    machine
}

impl NumberActor {
    /// Starts the number of `task` after `events`.
    pub(super) fn start(
        task: Arc<NumberTask>,
        events: &[NumberEvent],
        shared: Arc<StandingShared>,
        outbound: Link,
        parent: Recipient<NumberReport>,
        gone: impl FnOnce(End) + 'static,
    ) -> RunningNumber {
        let number = task.opportunity.number;
        let cohort_id = task.roster.context().cohort_id.clone();
        let (address, _lease) = start_leased(span::number(&cohort_id, number), |_, leased: Leased| {
            let stream = StreamId::of_number(&cohort_id, number);
            let rng = shared.randomness.for_actor(stream.as_str());
            let machine = replayed(task, events);
            let engine = Engine::new(machine, Arc::clone(&shared.journal), stream, shared.clock, rng);
            Self {
                engine,
                shared,
                outbound,
                parent,
                stored: None,
                evidence: EvidenceBook::default(),
                faults: BTreeMap::new(),
                panicked: false,
                restarts: Restarts::default(),
                guard: EndGuard::leased(leased, gone),
            }
        });
        RunningNumber { number, address, _lease }
    }

    fn number(&self) -> u64 {
        self.engine.machine().task().opportunity.number
    }

    /// Opens the number, or continues where its journal ends.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        if self.engine.machine().is_planned() {
            self.feed(NumberInput::Open, ctx);
        } else {
            self.resume(ctx);
        }
    }

    /// Feeds the answer of `question`, which is asked when the board is stored.
    fn ask_then<F>(&mut self, question: F, ctx: &mut Context<Self>)
    where
        F: Future<Output = Option<NumberInput>> + 'static,
    {
        let stored = self.stored.clone();
        let asking = async move {
            if let Some(stored) = stored {
                stored.await?;
            }
            Ok::<_, BoardError>(question.await)
        };
        ctx.spawn(asking.into_actor(self).map(|answer, actor, ctx| match answer {
            Ok(Some(input)) => actor.feed(input, ctx),
            Ok(None) => {}
            Err(error) => actor.not_stored(&error, ctx),
        }));
    }

    /// What seats are charged with: a seat that has sent a valid signature in the end is not charged with an invalid one.
    fn charges(&self, end: &NumberEnd) -> Vec<Charge> {
        let seats = &self.engine.machine().task().seats;
        let has_signed = |did: &Did| match end {
            NumberEnd::Signed { signers, .. } => signers.iter().any(|signer| seats.get(signer) == Some(did)),
            NumberEnd::Idle { .. } | NumberEnd::Failed { .. } => false,
        };
        let charge = |(did, (offence, detail)): (&Did, &(Offence, String))| {
            let slots: &[Slot] = match offence {
                Offence::Equivocation => &[Slot::Update],
                _ => &[Slot::Update, Slot::PartialSignature],
            };
            let evidence = slots.iter().flat_map(|slot| self.evidence.of(did, *slot)).collect();
            Charge { seat: did.clone(), offence: *offence, detail: detail.clone(), evidence }
        };
        let charged = self
            .faults
            .iter()
            .filter(|(did, (offence, _))| *offence != Offence::BadPartialSignature || !has_signed(did));
        charged.map(charge).collect()
    }

    fn not_stored(&mut self, error: &BoardError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a board cannot be stored: nothing that depends on it is sent");
        self.guard.fail(error.to_string());
        ctx.stop();
    }
}

impl Actor for NumberActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.panicked { self.restart_from_journal(ctx) } else { self.go_on(ctx) }
    }
}

impl Supervised for NumberActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.panicked = true;
        self.stored = None;
    }
}

impl InTree for NumberActor {
    const ROW: &'static Row = &tree::NUMBER;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Replayed for NumberActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.shared.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, count: usize) {
        let cohort_id = self.engine.machine().task().roster.context().cohort_id.clone();
        self.shared.notices.publish(StandingNotice::StandingRestarted { cohort_id, restarts: count });
    }

    fn restore(
        &mut self,
        events: Vec<NumberEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        let task = Arc::clone(self.engine.machine().task());
        let machine = replay::caught(|| replayed(task, &events))?;
        let rng = self.shared.randomness.for_actor(self.engine.stream().as_str());
        self.engine = self.engine.renewed(machine, rng);
        match last {
            None => self.go_on(ctx),
            // The next number spends the same coin.
            Some(reason) => self.feed(NumberInput::Abandoned { reason }, ctx),
        }
        Ok(())
    }
}

impl Handler<NumberMessage> for NumberActor {
    type Result = ();

    fn handle(&mut self, NumberMessage(received): NumberMessage, ctx: &mut Self::Context) {
        let Body::Standing(message) = &*received.body else { return received.receipt.confirm() };
        if self.engine.machine().task().seat_of(&received.from).is_some() {
            self.evidence.record(&received);
        }
        let input = NumberInput::Message { from: received.from.clone(), message: message.clone() };
        self.feed_received(input, received.receipt, ctx);
    }
}

impl Handler<SendAgain> for NumberActor {
    type Result = ();

    fn handle(&mut self, SendAgain(only): SendAgain, ctx: &mut Self::Context) {
        let seats: Vec<Did> = match only {
            Some(did) => vec![did],
            None => self.engine.machine().task().seats.values().cloned().collect(),
        };
        for did in &seats {
            for effect in self.engine.machine().send_again(did) {
                self.perform(effect, ctx);
            }
        }
    }
}

impl Handler<Abandon> for NumberActor {
    type Result = ();

    fn handle(&mut self, Abandon(reason): Abandon, ctx: &mut Self::Context) {
        self.feed(NumberInput::Abandoned { reason }, ctx);
    }
}

impl Handler<InspectNumber> for NumberActor {
    type Result = Arc<Number>;

    fn handle(&mut self, _: InspectNumber, _: &mut Self::Context) -> Self::Result {
        self.engine.snapshot()
    }
}

impl Driven for NumberActor {
    type Machine = Number;

    fn engine(&mut self) -> &mut Engine<Number> {
        &mut self.engine
    }

    fn tick() -> NumberInput {
        NumberInput::Tick
    }

    /// What verifies signatures, or builds the map or the tree: everything but opening.
    fn is_heavy(_: &Number, input: &NumberInput) -> bool {
        !matches!(input, NumberInput::Open | NumberInput::Abandoned { .. })
    }

    fn observe(&mut self, event: &NumberEvent, _: &[NumberEffect], _: &mut Context<Self>) {
        if let NumberEvent::ConfirmationReceived { seat, confirmed: Confirmed::Refused(reason), .. } = event
            && reason != Confirmation::NONCE_LOST
            && let Some(did) = self.engine.machine().task().seats.get(seat).cloned()
        {
            self.faults.insert(did, (Offence::Rejection, reason.clone()));
        }
    }

    fn perform(&mut self, effect: NumberEffect, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        let (cohort_id, number) = (machine.task().roster.context().cohort_id.clone(), self.number());
        let policy = Arc::clone(&self.shared.policy);
        match effect {
            NumberEffect::CheckUpdates { seat, response_hash, updates } => {
                let updates = UpdatesToCheck { cohort_id, number, seat, updates };
                let question = async move {
                    let problem = policy.check_updates(&updates).await.err();
                    Some(NumberInput::UpdatesChecked { seat, response_hash, problem })
                };
                self.ask_then(question, ctx);
            }
            NumberEffect::ResponseRefused { seat, reason } => {
                self.shared.notices.publish(StandingNotice::ResponseRefused { cohort_id, number, seat, reason });
            }
            NumberEffect::AskPrice { mode, signal } => {
                let request = PriceRequest { cohort_id, number, mode, signal };
                let question = async move {
                    loop {
                        match policy.price(&request).await {
                            Ok(price) => {
                                return Some(NumberInput::Priced { rate: price.rate, operator: price.operator });
                            }
                            Err(PolicyError::Fatal(fatal)) => {
                                return Some(NumberInput::Abandoned { reason: fatal.0 });
                            }
                            // The number's deadline ends this.
                            Err(PolicyError::Retry(retry)) => {
                                tracing::info!(
                                    number,
                                    problem = retry.0,
                                    "no price for an announcement, asking again"
                                );
                                tokio::time::sleep(PRICE_AGAIN).await;
                            }
                        }
                    }
                };
                self.ask_then(question, ctx);
            }
            NumberEffect::StoreBoard(board) => {
                self.shared.reader.made(&board, machine.task().place());
                let stored = self.shared.boards.put(&cohort_id, number, board.hash(), Arc::clone(board.bytes()));
                self.stored = Some(stored.shared());
            }
            NumberEffect::Send { to, message } => {
                let until = machine.deadline();
                let outbound = Outbound::Direct { to, body: Body::from(message).into(), until };
                self.shared.load.send(outbound, &self.outbound);
            }
            NumberEffect::Report(end) => {
                let (parent, stored) = (self.parent.clone(), self.stored.clone());
                let charges = self.charges(&end);
                // Before the cohort may forget it.
                let recorded = announced(machine.task(), &end, self.shared.clock.now());
                let recorded = recorded.map(|announced| self.shared.history.put(&cohort_id, announced));
                let reporting = async move {
                    if let Some(stored) = stored {
                        stored.await?;
                    }
                    if let Some(recorded) = recorded {
                        recorded.await.map_err(|error| BoardError(error.to_string()))?;
                    }
                    // A cohort that has ended needs no report.
                    let _ = parent.send(NumberReport(number, end, charges)).await;
                    Ok::<_, BoardError>(())
                };
                ctx.spawn(reporting.into_actor(self).map(|reported, actor, ctx| match reported {
                    Ok(()) => {
                        actor.guard.finish();
                        ctx.stop();
                    }
                    Err(error) => actor.not_stored(&error, ctx),
                }));
            }
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        if reject.peer.is_none() || reject.code == RejectCode::WrongPhase {
            return tracing::debug!(number = self.number(), reject.detail, "an input does not fit any more");
        }
        let offence = match reject.code {
            RejectCode::BadPartialSignature | RejectCode::BadFallbackSignature => {
                Some(Offence::BadPartialSignature)
            }
            RejectCode::Equivocation => Some(Offence::Equivocation),
            _ => None,
        };
        let task = self.engine.machine().task();
        if let (Some(offence), Some(peer)) = (offence, &reject.peer)
            && task.seat_of(peer).is_some()
        {
            self.faults.insert(peer.clone(), (offence, reject.detail.clone()));
        }
        let cohort_id = &self.engine.machine().task().roster.context().cohort_id;
        self.shared.notices.publish(StandingNotice::rejected(Some(cohort_id), &reject));
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a number cannot continue");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, _: &mut Context<Self>) {}
}
