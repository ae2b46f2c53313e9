//! A controller of DIDs in standing cohorts, by a fixed policy: it registers all its DIDs, announces the signed updates that are in a
//! directory, and stores what resolvers need of every announcement.

mod storing;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde_json::Value;

use super::{resolver::Resolver, sidecars::Sidecars};
use crate::{
    actors::standing::policy::{
        BoardToSign, Control, MissedBoard, RowWanted, SeatPolicy, SeatView, StandingOffer, UpdatesAsked,
        UpdatesChosen,
    },
    controller::{Current, CurrentError, Keys, UpdateFile, current::Applied},
    events::Printer,
    inputs,
    protocol::{
        beacon::did_index,
        cohort::standing::{
            Board, OpportunityKind, RowAction, StandingPolicy, Updates,
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

/// A DID and its keys.
pub struct ControlledDid {
    /// The identity that it began with.
    pub identity: Identity,
    /// The keys that sign for it.
    pub keys: Arc<Keys>,
}

/// The controller.
pub struct StandingController {
    dids: BTreeMap<DidIndex, ControlledDid>,
    service: Option<Did>,
    policy: StandingPolicy,
    invite: Option<InviteToken>,
    applies_as: Option<Identity>,
    resolver: Resolver,
    /// The directory of signed updates, files of `update --out`.
    updates: Option<PathBuf>,
    sidecars: Sidecars,
    /// The version of each DID that was final when it was resolved last.
    finals: Mutex<BTreeMap<DidIndex, u64>>,
    unstored: Mutex<Unstored>,
    /// By seat and index.
    proofs: Mutex<BTreeMap<(Did, DidIndex), Proofs>>,
    printer: Printer,
}

/// How many updates of a DID other beacons have announced, and how many of them were known when a seat has proven control of it last.
#[derive(Clone, Copy, Debug, Default)]
struct Proofs {
    needed: usize,
    sent: usize,
    /// The version of the update that was submitted after that.
    tried: u64,
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
    /// The directory of signed updates.
    pub updates: Option<PathBuf>,
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
        let genesis = |controlled: &ControlledDid| {
            controlled.identity.genesis_document().map(|document| (**document).clone())
        };
        let of_did = |controlled: &ControlledDid| (controlled.identity.did().clone(), genesis(controlled));
        let sidecars = Sidecars::open(parts.out, parts.dids.iter().map(of_did))?;
        let dids =
            parts.dids.into_iter().map(|controlled| (did_index(controlled.identity.did()), controlled)).collect();
        let ControllerParts { service, policy, invite, applies_as, resolver, updates, printer, .. } = parts;
        Ok(Self {
            dids,
            service,
            policy,
            invite,
            applies_as,
            resolver,
            updates,
            sidecars,
            finals: Mutex::default(),
            unstored: Mutex::default(),
            proofs: Mutex::default(),
            printer,
        })
    }

    fn finals(&self) -> MutexGuard<'_, BTreeMap<DidIndex, u64>> {
        // Each change is one call.
        self.finals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, did: &Did, problem: &dyn std::fmt::Display) {
        self.printer.warn(&format!("{did}: {problem}"));
    }

    /// The current document of a DID, as resolvers give it.
    async fn current(&self, did: &Did) -> Result<Current, CurrentError> {
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

    /// The signed updates in the directory, by DID and version.
    fn prepared(&self) -> BTreeMap<(DidIndex, u64), SignedUpdate> {
        let Some(dir) = &self.updates else { return BTreeMap::new() };
        let (updates, problems) = updates_in(dir);
        problems.iter().for_each(|problem| self.printer.warn(problem));
        let keyed =
            |(did, update): (Did, SignedUpdate)| Some(((did_index(&did), update.target_version()?), update));
        let own = |((index, _), _): &((DidIndex, u64), SignedUpdate)| self.dids.contains_key(index);
        updates.into_iter().filter_map(keyed).filter(own).collect()
    }

    /// Whether the directory has an update that is not known to be final: files stay in it.
    fn has_prepared(&self, known: &KnownVersions) -> bool {
        let prepared = self.prepared();
        let finals = self.finals();
        let is_open = |index, version: &u64| finals.get(index).is_none_or(|known| version > known);
        prepared.keys().any(|(index, version)| is_open(index, version) && known.needs_number(index, *version))
    }

    /// The version of a DID that is final, and the update that may follow in this number.
    async fn choose(
        &self,
        seat: &SeatView,
        asked: &UpdatesAsked,
        prepared: &BTreeMap<(DidIndex, u64), SignedUpdate>,
        index: &DidIndex,
    ) -> Option<(u64, Option<SeatUpdate>)> {
        let did = self.dids.get(index)?.identity.did();
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
        let is_prepared = prepared.contains_key(&(*index, current.version + 1));
        if is_prepared && seat.terms.updates == Updates::Full && self.must_prove(seat, index, &current) {
            // Its update follows in the next number.
            return Some((current.version, None));
        }
        let (document, version) = (current.document, current.version);
        if asked.announced.contains(&(*index, version + 1)) {
            // An ancestor of the coins announces it.
            if prepared.contains_key(&(*index, version + 2)) {
                self.warn(
                    did,
                    &format!("the update of version {} waits until version {} is final", version + 2, version + 1),
                );
            }
            return Some((version, None));
        }
        let Some(update) = prepared.get(&(*index, version + 1)) else { return Some((version, None)) };
        let committed = asked.committed.iter().find(|(of, to, _)| of == index && *to == version + 1);
        if committed.is_some_and(|(.., hash)| hash != update.hash()) {
            self.warn(did, &format!("another update of version {} may still be announced", version + 1));
            return Some((version, None));
        }
        let beacon = seat.terms.beacon_type.as_str();
        // A signal counts for a document that lists its beacon in an earlier block (rule R-4).
        if !document::lists_beacon(&document, beacon, &seat.beacon_address) {
            self.warn(
                did,
                &format!("its current document does not list {} yet: the update waits", seat.beacon_address),
            );
            return Some((version, None));
        }
        let context = UpdateContext { did, document: &document, version, block: None };
        if let Err(problem) = verify_update(update, &context) {
            self.warn(did, &format!("the prepared update of version {} is not valid: {problem}", version + 1));
            return Some((version, None));
        }
        let full = (seat.terms.updates == Updates::Full).then(|| update.value().clone());
        let chosen = SeatUpdate { did: did.clone(), version: version + 1, hash: *update.hash(), full };
        Some((version, Some(chosen)))
    }

    /// Whether the service does not know yet what other beacons have announced of the DID since it was registered: it verifies updates, and
    /// refuses one that does not follow on what it knows.
    fn must_prove(&self, seat: &SeatView, index: &DidIndex, current: &Current) -> bool {
        let is_elsewhere = |applied: &&Applied| applied.signal.beacon.address.to_string() != seat.beacon_address;
        let elsewhere = current.applied.iter().filter(is_elsewhere).count();
        let mut proofs = self.proofs();
        let proof = proofs.entry((seat.seat.clone(), *index)).or_default();
        proof.needed = elsewhere;
        if elsewhere > 0 && proof.sent >= elsewhere {
            // Submitted before, and not announced: perhaps the service could not see what was proven.
            let tried = std::mem::replace(&mut proof.tried, current.version + 1);
            if tried == current.version + 1 {
                *proof = Proofs { needed: elsewhere, ..Proofs::default() };
            }
        }
        proof.needed > proof.sent
    }

    /// The DIDs of which a seat has to prove control once more. They count as proven now.
    pub fn to_prove(&self, seat: &Did) -> Vec<RowWanted> {
        let mut wanted = Vec::new();
        for ((of, index), proof) in self.proofs().iter_mut() {
            if of == seat
                && proof.needed > proof.sent
                && let Some(controlled) = self.dids.get(index)
            {
                proof.sent = proof.needed;
                wanted.push(RowWanted { did: controlled.identity.did().clone(), action: RowAction::Register });
            }
        }
        wanted
    }

    fn proofs(&self) -> MutexGuard<'_, BTreeMap<(Did, DidIndex), Proofs>> {
        // Each change is one call.
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The signed updates in a directory, each with its DID; and what is wrong with other files.
pub fn updates_in(dir: &Path) -> (Vec<(Did, SignedUpdate)>, Vec<String>) {
    let files = match std::fs::read_dir(dir) {
        Ok(files) => files,
        Err(error) => return (Vec::new(), vec![format!("{}: {error}", dir.display())]),
    };
    let (mut updates, mut problems) = (Vec::new(), Vec::new());
    for path in files.filter_map(|file| Some(file.ok()?.path())) {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read_update(&path) {
            Ok(Some(update)) => updates.push(update),
            Ok(None) => {
                problems.push(format!("{}: not a signed update (`update DID … --out FILE`)", path.display()));
            }
            Err(problem) => problems.push(format!("{}: {problem}", path.display())),
        }
    }
    (updates, problems)
}

/// The DID and the update of a file of `update --out`; none if it is something else.
fn read_update(path: &Path) -> Result<Option<(Did, SignedUpdate)>, String> {
    let value: Value = inputs::json(path).map_err(|error| error.to_string())?;
    let UpdateFile::Signed { update, .. } = UpdateFile::from_value(value)? else { return Ok(None) };
    let did = update.value().pointer("/proof/invocationTarget").and_then(Value::as_str);
    let did = did.ok_or("the update names no DID")?;
    Ok(Some((Did::parse(did).map_err(|error| error.to_string())?, update)))
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

    async fn registers(&self, _: &SeatView) -> Vec<RowWanted> {
        let row = |controlled: &ControlledDid| RowWanted {
            did: controlled.identity.did().clone(),
            action: RowAction::Register,
        };
        self.dids.values().map(row).collect()
    }

    async fn proves(&self, did: &Did, digest: &[u8; 32]) -> Option<Control> {
        let controlled = self.dids.get(&did_index(did))?;
        let current = match self.current(did).await {
            Ok(current) => current,
            Err(error) => {
                self.warn(did, &format!("its control cannot be proven: {error}"));
                let index = did_index(did);
                let of_did = |(key, proof): (&(Did, DidIndex), &mut Proofs)| {
                    if key.1 == index {
                        proof.sent = 0
                    }
                };
                self.proofs().iter_mut().for_each(of_did);
                return None;
            }
        };
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
        // Without its lists there is nothing that the service does not find itself.
        let sidecar = self.sidecars.get(did).filter(|_| current.version > 1);
        Some(Control { proof, genesis_document, sidecar })
    }

    async fn has_updates(&self, _: &SeatView, known: &KnownVersions) -> bool {
        self.has_prepared(known)
    }

    async fn chooses(&self, seat: &SeatView, asked: &UpdatesAsked) -> UpdatesChosen {
        let mut chosen = UpdatesChosen::default();
        if asked.opportunity.kind == OpportunityKind::Refresh {
            return chosen;
        }
        let prepared = self.prepared();
        let wanted: BTreeSet<DidIndex> = prepared.keys().map(|(index, _)| *index).collect();
        for index in wanted.iter().filter(|index| asked.indexes.contains(index)) {
            if let Some((version, update)) = self.choose(seat, asked, &prepared, index).await {
                self.finals().insert(*index, version);
                chosen.resolved.push((*index, version));
                chosen.updates.extend(update);
            }
        }
        chosen
    }

    async fn missed(&self, _: &SeatView, missed: &MissedBoard) -> Result<(), String> {
        self.store_missed(missed)
    }

    async fn signs(&self, seat: &SeatView, board: &BoardToSign) -> Result<(), String> {
        self.store(&seat.seat, board.number, &board.board, &board.entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{key::SecretKey, network::Network};

    #[test]
    fn an_update_that_is_final_opens_no_number() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::from_key(SecretKey::from_bytes(&[7; 32]).unwrap(), Network::Regtest);
        let did = identity.did().clone();
        let keys = Arc::new(Keys::of(&identity));
        let source = "esplora=http://127.0.0.1:1".parse().unwrap();
        let controller = StandingController::new(ControllerParts {
            dids: vec![ControlledDid { identity, keys }],
            service: None,
            policy: StandingPolicy::default(),
            invite: None,
            applies_as: None,
            resolver: Resolver { source, stores: Vec::new(), min_conf: 1 },
            updates: Some(dir.path().to_owned()),
            out: &dir.path().join("out"),
            printer: Printer::new(true),
        })
        .unwrap();
        let prepare = |version: u64| {
            let update =
                json!({ "patch": [], "targetVersionId": version, "proof": { "invocationTarget": did.as_str() } });
            std::fs::write(dir.path().join(format!("{version}.json")), update.to_string()).unwrap();
        };
        assert!(!controller.has_prepared(&KnownVersions::default()));
        prepare(2);
        assert!(controller.has_prepared(&KnownVersions::default()), "nothing is known of the DID yet");
        controller.finals().insert(did_index(&did), 1);
        assert!(controller.has_prepared(&KnownVersions::default()));
        controller.finals().insert(did_index(&did), 2);
        assert!(!controller.has_prepared(&KnownVersions::default()), "its file is still there");
        prepare(3);
        assert!(controller.has_prepared(&KnownVersions::default()));
    }
}
