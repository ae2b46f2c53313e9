//! A service with a standing cohort, and members with a seat each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bitcoin::{FeeRate, Transaction, Txid, hashes::Hash};
use btcr2_aggregation_actors::{
    bans::{BanBook, DefaultBans},
    handle::{Member, Service, StandingCohort},
    journal::{Journal, MemoryJournal},
    runtime::{Clock, Randomness},
    standing::{
        MemberSettings, SeatRequest, StandingSettings,
        boards::{BoardStore, MemoryBoards},
        notice::{SeatNotice, StandingNotice},
        policy::{
            BoardToSign, Control, DefaultStandingPolicy, MissedBoard, RowWanted, SeatPolicy, SeatView,
            StandingOffer, UpdatesAsked, UpdatesChosen,
        },
    },
    transport::Transport,
};
use btcr2_aggregation_protocol::{
    beacon::did_index,
    cohort::standing::{
        Board, CoinRef, RowAction, SeatSeed, StandingPolicy, StandingTerms, Updates,
        cohort::CohortInput,
        message::ControlProof,
        seat::{KnownVersions, SeatUpdate},
    },
    did::Did,
    hash::{DidIndex, sha256},
    id::CohortId,
    identity::Identity,
    invite::InviteToken,
    jcs::document_hash,
    key::{SecretKey, Signature},
    time::Timestamp,
};
use serde_json::json;
use tokio::sync::broadcast;

use crate::common::{NETWORK, Operator, identity};

/// The DIDs of a seat, and what their controller wants.
pub(super) struct Controller {
    pub(super) dids: Vec<Did>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The version of each DID that is final.
    versions: BTreeMap<DidIndex, u64>,
    /// Those that want the next one.
    wants: BTreeSet<DidIndex>,
    refuses: Option<String>,
    boards: Vec<u64>,
    last_board: Option<Arc<Board>>,
    missed: Vec<u64>,
    cannot_store: bool,
    invite: Option<InviteToken>,
    applies_as: Option<Identity>,
}

/// The identity of a DID of a member.
pub(super) fn did_identity(member: usize, at: usize) -> Identity {
    let key = SecretKey::from_bytes(&sha256(format!("did {member} {at}").as_bytes())).unwrap();
    Identity::from_key(key, NETWORK)
}

pub(super) fn index(did: &Did) -> DidIndex {
    did_index(did)
}

impl Controller {
    fn new(member: usize, dids: usize) -> Self {
        let did = |at: usize| did_identity(member, at).did().clone();
        Self { dids: (0..dids).map(did).collect(), state: Mutex::default() }
    }

    pub(super) fn wants(&self, at: usize) {
        self.state.lock().unwrap().wants.insert(index(&self.dids[at]));
    }

    pub(super) fn refuses(&self, reason: Option<&str>) {
        self.state.lock().unwrap().refuses = reason.map(ToOwned::to_owned);
    }

    /// What was wanted is final.
    pub(super) fn confirmed(&self) -> Vec<(DidIndex, u64)> {
        let mut state = self.state.lock().unwrap();
        let wanted = std::mem::take(&mut state.wants);
        let confirmed = wanted.into_iter().map(|index| {
            let version = state.versions.get(&index).copied().unwrap_or(1) + 1;
            (index, version)
        });
        let confirmed: Vec<_> = confirmed.collect();
        state.versions.extend(confirmed.iter().copied());
        confirmed
    }

    /// With what it asks for a seat.
    pub(super) fn applies(&self, invite: Option<InviteToken>, applies_as: Option<Identity>) {
        let mut state = self.state.lock().unwrap();
        (state.invite, state.applies_as) = (invite, applies_as);
    }

    /// The numbers that were announced without it, as its host was asked to store them.
    pub(super) fn missed(&self) -> Vec<u64> {
        self.state.lock().unwrap().missed.clone()
    }

    /// Whether the host can store what it has missed.
    pub(super) fn stores(&self, stores: bool) {
        self.state.lock().unwrap().cannot_store = !stores;
    }

    pub(super) fn boards(&self) -> Vec<u64> {
        self.state.lock().unwrap().boards.clone()
    }

    /// The board that the seat was asked to sign last.
    pub(super) fn last_board(&self) -> Option<Arc<Board>> {
        self.state.lock().unwrap().last_board.clone()
    }
}

/// Accepts a fallback of half of the seats.
pub(super) fn lenient() -> StandingPolicy {
    StandingPolicy { least_threshold: (1, 2), ..StandingPolicy::default() }
}

/// All these DIDs are to be registered.
pub(super) fn all_of(dids: &[Did]) -> Vec<RowWanted> {
    dids.iter().map(|did| RowWanted { did: did.clone(), action: RowAction::Register }).collect()
}

/// A proof of control, for services that check none.
pub(super) fn unproven() -> Control {
    let proof =
        ControlProof { verification_method: "#initialKey".to_owned(), signature: Signature::from_bytes(&[0; 64]) };
    Control { proof, genesis_document: None, sidecar: None }
}

#[async_trait]
impl SeatPolicy for Controller {
    async fn joins(&self, _: &StandingOffer) -> Result<(), String> {
        Ok(())
    }

    fn standing_policy(&self) -> StandingPolicy {
        lenient()
    }

    async fn registers(&self, _: &SeatView) -> Vec<RowWanted> {
        all_of(&self.dids)
    }

    async fn proves(&self, _: &Did, _: &[u8; 32]) -> Option<Control> {
        Some(unproven())
    }

    async fn has_updates(&self, _: &SeatView, known: &KnownVersions) -> bool {
        let state = self.state.lock().unwrap();
        let next = |index: &DidIndex| state.versions.get(index).copied().unwrap_or(1) + 1;
        state.wants.iter().any(|index| known.needs_number(index, next(index)))
    }

    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        let mut state = self.state.lock().unwrap();
        // In a move each DID that is registered at the successor wants its address.
        let address = asked.move_to.as_ref().map(|move_to| move_to.successor.beacon_address.clone());
        if let Some(move_to) = &asked.move_to {
            state.wants.clone_from(&move_to.indexes);
        }
        let update = |did: &Did| {
            let index = index(did);
            let version = state.versions.get(&index).copied().unwrap_or(1) + 1;
            if !state.wants.contains(&index) || asked.announced.contains(&(index, version)) {
                return None;
            }
            let mut update = json!({ "did": did, "targetVersionId": version });
            if let Some(address) = &address {
                update["beacon"] = json!(address);
            }
            let hash = document_hash(&update).unwrap();
            let full = (seat.terms.updates == Updates::Full).then_some(update);
            Some(SeatUpdate { did: did.clone(), version, hash, full })
        };
        UpdatesChosen { resolved: Vec::new(), updates: self.dids.iter().filter_map(update).collect() }
    }

    fn invite(&self) -> Option<InviteToken> {
        self.state.lock().unwrap().invite.clone()
    }

    fn applies_as(&self) -> Option<Identity> {
        self.state.lock().unwrap().applies_as.clone()
    }

    async fn missed(&self, _: &SeatView, missed: &MissedBoard) -> Result<(), String> {
        let mut state = self.state.lock().unwrap();
        if state.cannot_store {
            return Err("the disk is full".to_owned());
        }
        state.missed.push(missed.number);
        Ok(())
    }

    async fn signs(&self, _: &SeatView, board: &BoardToSign) -> Result<(), String> {
        let mut state = self.state.lock().unwrap();
        if let Some(refusal) = &state.refuses {
            return Err(refusal.clone());
        }
        state.boards.push(board.number);
        state.last_board = Some(Arc::clone(&board.board));
        Ok(())
    }
}

/// One member, which can be stopped and started again.
pub(super) struct Seat {
    pub(super) controller: Arc<Controller>,
    pub(super) settings: MemberSettings,
    pub(super) member: Option<Member>,
    pub(super) notices: broadcast::Receiver<Arc<SeatNotice>>,
}

impl Seat {
    /// Starts it, or starts it again.
    pub(super) async fn start(&mut self) {
        self.member = Some(Member::start(self.settings.clone()).await.unwrap());
    }

    pub(super) async fn stop(&mut self) {
        if let Some(member) = self.member.take() {
            member.stop().await;
        }
    }

    /// It is connected by this transport from its next start on.
    pub(super) fn over(&mut self, transport: Arc<dyn Transport>) {
        self.settings.transport = transport;
    }

    pub(super) fn journal(&self) -> &dyn Journal {
        &*self.settings.journal
    }

    pub(super) async fn did(&self) -> Did {
        self.member.as_ref().unwrap().seats().await[0].seat.clone()
    }

    /// Its seat in a cohort.
    pub(super) async fn did_in(&self, cohort: &StandingCohort) -> Did {
        let seats = self.member.as_ref().unwrap().seats().await;
        seats.iter().find(|seat| seat.cohort_id == *cohort.id()).unwrap().seat.clone()
    }

    /// The identity of its messages.
    pub(super) fn identity(&self, cohort_id: &CohortId) -> Identity {
        let service = identity("service");
        let key = self.settings.seed.communication_key(NETWORK, service.did(), cohort_id).unwrap();
        Identity::from_key(key, NETWORK)
    }

    /// The key with which it signs.
    pub(super) fn key(&self, cohort_id: &CohortId) -> SecretKey {
        self.settings.seed.seat_key(NETWORK, identity("service").did(), cohort_id).unwrap()
    }

    pub(super) async fn request(&self, request: SeatRequest) {
        let did = self.did().await;
        assert!(self.member.as_ref().unwrap().request(&did, request).await.unwrap());
    }

    /// Waits for a notice.
    pub(super) async fn until<T>(&mut self, found: impl FnMut(&SeatNotice) -> Option<T>) -> T {
        until(&mut self.notices, found).await
    }
}

/// Waits for a notice.
pub(super) async fn until<N: Clone + std::fmt::Debug, T>(
    notices: &mut broadcast::Receiver<Arc<N>>,
    mut found: impl FnMut(&N) -> Option<T>,
) -> T {
    loop {
        let notice = notices.recv().await.unwrap();
        if let Some(value) = found(&notice) {
            return value;
        }
    }
}

pub(super) struct World {
    pub(super) clock: Clock,
    pub(super) standing: StandingSettings,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) bans: BanBook,
    server: Arc<dyn Transport>,
    pub(super) service: Option<Service>,
    pub(super) cohort: Option<StandingCohort>,
    pub(super) notices: broadcast::Receiver<Arc<StandingNotice>>,
    pub(super) seats: Vec<Seat>,
    deposits: u8,
    /// What the next number spends, for [`announce`].
    coin: CoinRef,
}

/// Terms of a cohort of so many seats, of which all but one can proceed.
pub(super) fn terms(
    beacon: btcr2_aggregation_protocol::cohort::standing::StandingBeacon,
    seats: u16,
) -> StandingTerms {
    let mut terms = StandingTerms::new(beacon, NETWORK, seats, seats);
    terms.min_seconds_between_announcements = 60;
    terms.proceeding(seats - 1)
}

impl World {
    /// A service, and `seats` members with two DIDs each, that are not started.
    pub(super) fn new(clock: Clock, server: Arc<dyn Transport>, client: Arc<dyn Transport>, seats: usize) -> Self {
        Self::with_dids(clock, server, client, seats, 2)
    }

    pub(super) fn with_dids(
        clock: Clock,
        server: Arc<dyn Transport>,
        client: Arc<dyn Transport>,
        seats: usize,
        dids: usize,
    ) -> Self {
        let mut policy = DefaultStandingPolicy::default();
        policy.price.rate = FeeRate::from_sat_per_vb_u32(2);
        let boards: Arc<dyn BoardStore> = Arc::new(MemoryBoards::default());
        let standing = StandingSettings { policy: Arc::new(policy), boards, ..StandingSettings::default() };
        let seat = |number: usize| {
            let controller = Arc::new(Controller::new(number, dids));
            let seed = SeatSeed::from_bytes(sha256(format!("seat {number}").as_bytes()));
            let policy: Arc<dyn SeatPolicy> = Arc::clone(&controller) as _;
            let mut settings = MemberSettings::new(Arc::new(seed), NETWORK, Arc::clone(&client), policy);
            settings.clock = clock;
            let notices = settings.notices.subscribe();
            Seat { controller, settings, member: None, notices }
        };
        let notices = standing.notices.subscribe();
        Self {
            clock,
            standing,
            journal: Arc::new(MemoryJournal::new()),
            bans: BanBook::in_memory(Arc::new(DefaultBans)),
            server,
            service: None,
            cohort: None,
            notices,
            seats: (0..seats).map(seat).collect(),
            deposits: 0,
            coin: CoinRef { txid: Txid::from_byte_array([0; 32]), vout: 0, value: 0 },
        }
    }

    pub(super) async fn start_service(&mut self) -> &Service {
        let builder = Service::builder(identity("service"), Arc::clone(&self.server), Arc::new(Operator));
        let builder = builder.clock(self.clock).randomness(Randomness::System).journal(Arc::clone(&self.journal));
        let builder = builder.bans(self.bans.clone());
        self.service = Some(builder.standing(self.standing.clone()).start().await.unwrap());
        self.service.as_ref().unwrap()
    }

    /// Stops the service, and starts it again with the same journal and boards.
    pub(super) async fn restart_service(&mut self) {
        self.service.take().unwrap().stop().await;
        let id = self.cohort.as_ref().unwrap().id().clone();
        self.cohort = Some(self.start_service().await.standing_cohort(&id));
    }

    pub(super) fn cohort(&self) -> &StandingCohort {
        self.cohort.as_ref().unwrap()
    }

    /// The cohort forms, all DIDs are registered, and there is a coin.
    pub(super) async fn form(&mut self, terms: StandingTerms) {
        self.cohort = Some(self.start_service().await.open_standing(terms).await.unwrap());
        for seat in &mut self.seats {
            seat.start().await;
        }
        for seat in &mut self.seats {
            seat.until(|notice| matches!(notice, SeatNotice::RowsAcknowledged { .. }).then_some(())).await;
        }
        self.coin = self.deposit(1_000_000).await;
    }

    /// A final deposit.
    pub(super) async fn deposit(&mut self, value: u64) -> CoinRef {
        self.deposits += 1;
        let coin = CoinRef { txid: Txid::from_byte_array(sha256(&[self.deposits])), vout: 0, value };
        self.cohort().report(CohortInput::CoinFound(coin)).await.unwrap();
        coin
    }

    /// A member wants the next version of a DID.
    pub(super) async fn wants(&self, seat: usize, did: usize) {
        self.seats[seat].controller.wants(did);
        self.seats[seat].request(SeatRequest::Pending).await;
    }

    /// Waits for the next signed number.
    pub(super) async fn signed(&mut self) -> (u64, Arc<Transaction>) {
        until(&mut self.notices, |notice| match notice {
            StandingNotice::NumberSigned { number, transaction, .. } => Some((*number, Arc::clone(transaction))),
            _ => None,
        })
        .await
    }

    /// The transaction is final: it is reported to service and seats.
    pub(super) async fn mine(&self, transaction: &Transaction, spent: &[CoinRef]) {
        let by = transaction.compute_txid();
        let signal = btcr2_aggregation_actors::chain::signal_of(transaction);
        for coin in spent {
            self.cohort().report(CohortInput::Spent { coin: *coin, by }).await.unwrap();
            for seat in self.seats.iter().filter(|seat| seat.member.is_some()) {
                seat.request(SeatRequest::Spent { coin: *coin, by, signal }).await;
            }
        }
        for seat in &self.seats {
            for (index, version) in seat.controller.confirmed() {
                if seat.member.is_some() {
                    seat.request(SeatRequest::Resolved { index, version }).await;
                }
            }
        }
    }
}

/// The change of a transaction: the coin of the next one.
pub(super) fn change(transaction: &Transaction) -> CoinRef {
    CoinRef { txid: transaction.compute_txid(), vout: 0, value: transaction.output[0].value.to_sat() }
}

pub(super) fn start_of_time() -> Clock {
    Clock::starting_at(Timestamp::from_secs(1_750_000_000))
}

/// One announcement for each seat of `wanted`, for its first DID; each is final before the next one.
pub(super) async fn announce(world: &mut World, wanted: &[usize]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for seat in wanted {
        world.wants(*seat, 0).await;
        let (number, transaction) = world.signed().await;
        let spent = world.coin;
        world.coin = change(&transaction);
        world.mine(&transaction, &[spent]).await;
        until(&mut world.notices, |notice| {
            matches!(notice, StandingNotice::NumberConfirmed { number: of, .. } if *of == number).then_some(())
        })
        .await;
        numbers.push(number);
    }
    numbers
}
