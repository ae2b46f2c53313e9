//! A controller of DIDs in standing cohorts, by a fixed policy: it registers all its DIDs, announces the updates of an [`UpdateSource`], and
//! stores what resolvers need of every announcement.

mod moving;
mod proving;
mod storing;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use self::{moving::Moves, proving::Proofs};
pub use super::controlled::ControlledDid;
use super::{
    history::{Fetched, HistoryClient, HistoryFailure, OwnSeat},
    resolver::Resolver,
    sidecars::Sidecars,
    updates::UpdateSource,
};
use crate::{
    actors::standing::{
        notice::SeatNotice,
        policy::{
            BoardToSign, Control, MissedBoard, MoveTo, RowWanted, SeatPolicy, SeatView, StandingOffer,
            UpdatesAsked, UpdatesChosen,
        },
    },
    controller::{Current, CurrentError},
    costs::{CostsError, SeatCosts},
    events::Printer,
    protocol::{
        beacon::did_index,
        cohort::standing::{
            Board, BoardContent, RowAction, StandingBeacon, StandingPolicy, Updates,
            message::ControlProof,
            seat::{KnownVersions, OwnEntry, SeatUpdate},
        },
        did::Did,
        document,
        hash::DidIndex,
        identity::Identity,
        invite::InviteToken,
        update::{SignedUpdate, UpdateContext, verify_update},
    },
    resolve::Given,
};

/// The controller.
pub struct StandingController {
    dids: Mutex<BTreeMap<DidIndex, ControlledDid>>,
    service: Option<Did>,
    policy: StandingPolicy,
    invite: Option<InviteToken>,
    applies_as: Option<Identity>,
    resolver: Resolver,
    updates: Arc<dyn UpdateSource>,
    sidecars: Sidecars,
    /// The updates that it has made itself.
    moves: Moves,
    /// The version of each DID that was final when it was resolved last.
    finals: Mutex<BTreeMap<DidIndex, u64>>,
    unstored: Mutex<Unstored>,
    /// By seat and index.
    proofs: Mutex<Proofs>,
    printer: Printer,
    /// Where it is recorded what announcements cost, if anywhere.
    costs: Option<SeatCosts>,
}

/// The boards of which not everything could be stored, by number and seat, with what the seat has put on them.
type Unstored = BTreeMap<(u64, Did), (Arc<Board>, Vec<OwnEntry>)>;

/// The most of them: a seat that cannot store one refuses to sign, so that others have to announce without it.
const MOST_UNSTORED: usize = 16;

/// The parts of a [`StandingController`].
pub struct ControllerParts<'a> {
    /// The DIDs.
    pub dids: Vec<ControlledDid>,
    /// The service; without it, the first whose terms are accepted.
    pub service: Option<Did>,
    /// What is accepted of terms.
    pub policy: StandingPolicy,
    /// An invite of the service's operator.
    pub invite: Option<InviteToken>,
    /// The identity as which seats are asked for, if services are to know it.
    pub applies_as: Option<Identity>,
    /// How DIDs are resolved.
    pub resolver: Resolver,
    /// The updates to announce.
    pub updates: Arc<dyn UpdateSource>,
    /// The directory in which every DID has its Sidecar Data.
    pub out: &'a Path,
    /// Where problems are reported.
    pub printer: Printer,
}

impl StandingController {
    /// A controller of these DIDs.
    ///
    /// # Errors
    /// Why the files in its output directory cannot be read, in words.
    pub fn new(parts: ControllerParts<'_>) -> Result<Self, String> {
        let sidecars = Sidecars::open(parts.out, parts.dids.iter().map(genesis))?;
        let dids =
            parts.dids.into_iter().map(|controlled| (did_index(controlled.identity.did()), controlled)).collect();
        let ControllerParts { service, policy, invite, applies_as, resolver, updates, printer, .. } = parts;
        let moves = Moves { dir: parts.out.join("moves") };
        Ok(Self {
            dids: Mutex::new(dids),
            service,
            policy,
            invite,
            applies_as,
            resolver,
            updates,
            sidecars,
            moves,
            finals: Mutex::default(),
            unstored: Mutex::default(),
            proofs: Mutex::default(),
            printer,
            costs: None,
        })
    }

    /// Records what announcements cost.
    #[must_use]
    pub fn with_costs(mut self, costs: Option<SeatCosts>) -> Self {
        self.costs = costs;
        self
    }

    /// Follows what becomes of the coins of cohorts, for the costs.
    pub async fn follow(&self, notice: &SeatNotice) {
        if let Some(costs) = &self.costs {
            self.recorded(costs.follow(notice).await);
        }
    }

    /// A ledger that lacks something is not worth the refusal of a signature.
    fn recorded(&self, outcome: Result<(), CostsError>) {
        if let Err(error) = outcome {
            self.printer.warn(&format!("what an announcement costs is not recorded: {error}"));
        }
    }

    fn dids(&self) -> MutexGuard<'_, BTreeMap<DidIndex, ControlledDid>> {
        // Each change is one call.
        self.dids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a DID. Rows of it are sent when its seats are asked to.
    ///
    /// # Errors
    /// Why its file in the output directory cannot be read or written, in words.
    pub fn add(&self, controlled: ControlledDid) -> Result<(), String> {
        let (did, document) = genesis(&controlled);
        let index = did_index(&did);
        self.sidecars.begin(did, document)?;
        self.dids().insert(index, controlled);
        Ok(())
    }

    /// Adds what resolvers need of an update that another beacon announces.
    ///
    /// # Errors
    /// Why it cannot be stored, in words.
    pub fn store_update(&self, did: &Did, update: &SignedUpdate) -> Result<(), String> {
        self.sidecars.add(did, None, Some(update.value()))
    }

    /// What is known of a DID, as Sidecar Data.
    pub fn sidecar(&self, did: &Did) -> Option<serde_json::Value> {
        self.sidecars.get(did)
    }

    /// One of its DIDs, with the keys that sign for this document.
    pub fn signer_of(&self, did: &Did, current: &Current) -> Option<ControlledDid> {
        self.controlled(&did_index(did), current)
    }

    /// Fetches what resolvers need of the announcements of a cohort for these DIDs.
    ///
    /// # Errors
    /// [`HistoryFailure`].
    pub async fn fetch(
        &self,
        client: &HistoryClient,
        dids: &[Did],
        seat: &OwnSeat,
    ) -> Result<Fetched, HistoryFailure> {
        client.fetch(dids, &self.sidecars, Some(seat)).await
    }

    /// The DIDs.
    pub fn indexes(&self) -> BTreeMap<DidIndex, Did> {
        self.dids().iter().map(|(index, controlled)| (*index, controlled.identity.did().clone())).collect()
    }

    /// One of its DIDs, with the keys that its file has now if those that are known may not sign for this document.
    fn controlled(&self, index: &DidIndex, current: &Current) -> Option<ControlledDid> {
        let mut controlled = self.dids().get(index)?.clone();
        if controlled.keys.signer(&current.document, current.version).is_err() {
            match controlled.keys.again() {
                Ok(Some(keys)) => {
                    controlled.keys = Arc::new(keys);
                    self.dids().insert(*index, controlled.clone());
                }
                Ok(None) => {}
                Err(error) => self.warn(controlled.identity.did(), &error),
            }
        }
        Some(controlled)
    }

    fn finals(&self) -> MutexGuard<'_, BTreeMap<DidIndex, u64>> {
        // Each change is one call.
        self.finals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, did: &Did, problem: &dyn std::fmt::Display) {
        self.printer.warn(&format!("{did}: {problem}"));
    }

    /// The current document of a DID, as resolvers give it.
    ///
    /// # Errors
    /// [`CurrentError`].
    pub async fn current(&self, did: &Did) -> Result<Current, CurrentError> {
        loop {
            let sidecar = self.sidecars.get(did);
            let mut given = Given::default();
            if let Some(sidecar) = sidecar.clone() {
                let read = given.add(sidecar, "the output directory");
                read.map_err(|error| CurrentError::Unreadable(error.to_string()))?;
            }
            let current = self.resolver.current(did, given).await;
            // An announcement may have got into a block, and its data into the files, since they were read.
            if current.is_ok() || sidecar == self.sidecars.get(did) {
                return current;
            }
        }
    }

    /// The version of a DID that is final, and the update that may follow in this number.
    async fn choose(
        &self,
        source: &dyn UpdateSource,
        seat: &SeatView,
        asked: &UpdatesAsked,
        index: &DidIndex,
    ) -> Option<(u64, Option<SeatUpdate>)> {
        let did = &self.dids().get(index)?.identity.did().clone();
        let current = match self.current(did).await {
            Ok(current) => current,
            Err(error) => {
                self.warn(did, &format!("no update of it is submitted: {error}"));
                return None;
            }
        };
        if let Some(unsettled) = &current.unsettled {
            self.warn(did, unsettled);
            return Some((current.version, None));
        }
        let is_prepared = source.follows(index, current.version);
        // A move does not come again. The service may know already what is proven again after a restart.
        let waits_for_proof = seat.terms.updates == Updates::Full && asked.move_to.is_none();
        if is_prepared && waits_for_proof && self.must_prove(seat, index, &current) {
            // Its update follows in the next number.
            return Some((current.version, None));
        }
        let version = current.version;
        if asked.announced.contains(&(*index, version + 1)) {
            // An ancestor of the coins announces it.
            if source.has(index, version + 2) {
                self.warn(
                    did,
                    &format!("the update of version {} waits until version {} is final", version + 2, version + 1),
                );
            }
            return Some((version, None));
        }
        let controlled = self.controlled(index, &current)?;
        let update = match source.next(seat, &controlled, &current).await {
            Ok(Some(update)) => update,
            Ok(None) => return Some((version, None)),
            Err(problem) => {
                self.warn(did, &problem);
                return Some((version, None));
            }
        };
        let document = &current.document;
        let committed = asked.committed.iter().find(|(of, to, _)| of == index && *to == version + 1);
        if committed.is_some_and(|(.., hash)| hash != update.hash()) {
            self.warn(did, &format!("another update of version {} may still be announced", version + 1));
            return Some((version, None));
        }
        let beacon = seat.terms.beacon_type.as_str();
        // A signal counts for a document that lists its beacon in an earlier block (rule R-4).
        if !document::lists_beacon(document, beacon, &seat.beacon_address) {
            self.warn(
                did,
                &format!("its current document does not list {} yet: the update waits", seat.beacon_address),
            );
            return Some((version, None));
        }
        let context = UpdateContext { did, document, version, block: None };
        if let Err(problem) = verify_update(&update, &context) {
            self.warn(did, &format!("the prepared update of version {} is not valid: {problem}", version + 1));
            return Some((version, None));
        }
        let full = (seat.terms.updates == Updates::Full).then(|| update.value().clone());
        let chosen = SeatUpdate { did: did.clone(), version: version + 1, hash: *update.hash(), full };
        Some((version, Some(chosen)))
    }

    /// Stores what a board has of DIDs that were registered after its announcement: no leaf, and in a map what others have.
    ///
    /// # Errors
    /// Why it cannot be stored, in words.
    pub fn store_earlier(
        &self,
        dids: &BTreeMap<DidIndex, Did>,
        beacon: StandingBeacon,
        bytes: &[u8],
    ) -> Result<(), String> {
        let content: BoardContent = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        for (index, did) in dids {
            let data = content.without_leaf(beacon, index).ok_or("the board has an entry of a new DID")?;
            self.sidecars.add(did, Some(&data), None)?;
        }
        Ok(())
    }
}

/// A DID with its genesis document.
fn genesis(controlled: &ControlledDid) -> (Did, Option<serde_json::Value>) {
    let document = controlled.identity.genesis_document().map(|document| (**document).clone());
    (controlled.identity.did().clone(), document)
}

#[async_trait]
impl SeatPolicy for StandingController {
    async fn joins(&self, offer: &StandingOffer) -> Result<(), String> {
        match &self.service {
            Some(service) if *service != offer.service => Err("another service".to_owned()),
            _ => Ok(()),
        }
    }

    fn invite(&self) -> Option<InviteToken> {
        self.invite.clone()
    }

    fn applies_as(&self) -> Option<Identity> {
        self.applies_as.clone()
    }

    fn standing_policy(&self) -> StandingPolicy {
        self.policy.clone()
    }

    async fn registers(&self, seat: &SeatView) -> Vec<RowWanted> {
        if let Some(costs) = &self.costs {
            self.recorded(costs.formed(seat).await);
        }
        let row = |controlled: &ControlledDid| RowWanted {
            did: controlled.identity.did().clone(),
            action: RowAction::Register,
        };
        self.dids().values().map(row).collect()
    }

    async fn proves(&self, did: &Did, digest: &[u8; 32]) -> Option<Control> {
        let index = did_index(did);
        let current = match self.current(did).await {
            Ok(current) => current,
            Err(error) => {
                self.warn(did, &format!("its control cannot be proven: {error}"));
                self.prove_again(&index);
                return None;
            }
        };
        let controlled = self.controlled(&index, &current)?;
        let (verification_method, key) = match controlled.keys.signer(&current.document, current.version) {
            Ok((method, key)) => (method, key),
            Err(error) => {
                self.warn(did, &error);
                return None;
            }
        };
        let mut rng = crate::actors::runtime::Randomness::System.for_actor("proof of control");
        let proof = ControlProof { verification_method, signature: key.sign(digest, &mut rng) };
        let genesis_document = controlled.identity.genesis_document().map(|document| (**document).clone());
        // Also of a first version: its genesis document may list an address at which others have announced.
        let sidecar = self.sidecars.get(did).filter(|_| !self.sidecars.is_empty(did));
        Some(Control { proof, genesis_document, sidecar })
    }

    async fn has_updates(&self, _: &SeatView, known: &KnownVersions) -> bool {
        let mut known = known.clone();
        for (index, version) in self.finals().iter() {
            let of_seat = known.finals.entry(*index).or_insert(*version);
            *of_seat = (*of_seat).max(*version);
        }
        let mine = self.dids().keys().copied().collect();
        self.updates.is_waiting(&mine, &known)
    }

    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        let mut chosen = UpdatesChosen::default();
        if !asked.opportunity.kind.announces() {
            return chosen;
        }
        // A move has updates of its own: another one would not lead to the new address.
        let changes = asked.move_to.as_ref().map(|move_to| self.address_changes(seat, move_to));
        let source: &dyn UpdateSource = match &changes {
            Some(changes) => changes,
            None => &*self.updates,
        };
        let mut wanted = source.wanted();
        wanted.retain(|index| asked.indexes.contains(index) && !self.updates.is_elsewhere(index));
        for index in &wanted {
            if let Some((version, update)) = self.choose(source, seat, asked, index).await {
                self.finals().insert(*index, version);
                chosen.resolved.push((*index, version));
                chosen.updates.extend(update);
            }
        }
        if let Err(problem) = self.updates.submits(seat, asked.opportunity.number, &chosen.updates).await {
            self.printer.warn(&format!("number {}: no update is submitted: {problem}", asked.opportunity.number));
            chosen.updates.clear();
        }
        chosen
    }

    async fn leaves_behind(&self, seat: &SeatView, move_to: &MoveTo) -> Vec<DidIndex> {
        let mut left = self.not_listed(seat, move_to).await;
        let mine = move_to.indexes.iter().chain(&move_to.others);
        left.extend(mine.filter(|index| self.updates.is_elsewhere(index)));
        left
    }

    async fn missed(&self, seat: &SeatView, missed: &MissedBoard) -> Result<(), String> {
        self.store_missed(missed)?;
        if let Some(costs) = &self.costs {
            self.recorded(costs.missed(seat, missed).await);
        }
        Ok(())
    }

    async fn signs(&self, seat: &SeatView, board: &BoardToSign) -> Result<(), String> {
        self.store(&seat.seat, board.number, &board.board, &board.entries)?;
        if let Some(costs) = &self.costs {
            self.recorded(costs.signs(seat, board, &self.indexes()).await);
        }
        Ok(())
    }
}
