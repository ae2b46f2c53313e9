//! What resolvers need of announcements is stored in the files of the DIDs.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{MOST_UNSTORED, StandingController, Unstored};
use crate::{
    actors::standing::policy::MissedBoard,
    protocol::{
        beacon::{BeaconData, SmtNonce, smt_leaf},
        cohort::standing::{ArchivedProof, Board, seat::OwnEntry},
        did::Did,
        hash::DocumentHash,
        update::SignedUpdate,
    },
};

impl StandingController {
    /// Stores what an announcement has of each DID. What cannot be stored is tried again by [`Self::store_again`]: other seats may sign without
    /// this one.
    ///
    /// # Errors
    /// Why it cannot be stored, in words.
    pub fn store(&self, seat: &Did, number: u64, board: &Arc<Board>, entries: &[OwnEntry]) -> Result<(), String> {
        self.store_entries(board, entries).inspect_err(|_| {
            let mut unstored = self.unstored();
            unstored.insert((number, seat.clone()), (Arc::clone(board), entries.to_vec()));
            while unstored.len() > MOST_UNSTORED {
                unstored.pop_first();
            }
        })
    }

    /// Tries again to store what could not be stored. Returns the numbers of which it is stored now.
    pub fn store_again(&self) -> Vec<u64> {
        let waiting = self.unstored().clone();
        let stored = waiting.into_iter().filter(|(_, (board, entries))| self.store_entries(board, entries).is_ok());
        let stored: Vec<(u64, Did)> = stored.map(|(key, _)| key).collect();
        self.unstored().retain(|key, _| !stored.contains(key));
        stored.into_iter().map(|(number, _)| number).collect()
    }

    /// Whether something waits to be stored again.
    pub fn has_unstored(&self) -> bool {
        !self.unstored().is_empty()
    }

    fn unstored(&self) -> MutexGuard<'_, Unstored> {
        // Each change is one call.
        self.unstored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_entries(&self, board: &Board, entries: &[OwnEntry]) -> Result<(), String> {
        let dids = self.indexes();
        for entry in entries {
            let Some(did) = dids.get(&entry.index) else { continue };
            let data = board.data(&entry.index, entry.nonce.as_ref(), entry.update.as_ref());
            let data = data.ok_or_else(|| format!("the board does not prove the entry of {did}"))?;
            let update = match &entry.update {
                Some(hash) => {
                    let update = self.known_update(&entry.index, &|update| update.hash() == hash);
                    Some(update.ok_or_else(|| format!("the update of {did} is gone"))?)
                }
                None => None,
            };
            self.sidecars.add(did, Some(&data), update.as_ref().map(SignedUpdate::value))?;
        }
        Ok(())
    }

    /// Stores what an announcement without this seat has of each DID. Mostly there is no leaf, and a map has only entries of others; but others can sign
    /// what this seat has responded to.
    ///
    /// # Errors
    /// Why it cannot be stored, in words.
    pub(super) fn store_missed(&self, missed: &MissedBoard) -> Result<(), String> {
        let nonces: BTreeMap<_, _> = missed.nonces.iter().copied().collect();
        for (index, did) in &self.indexes() {
            let (data, update) = match missed.board.announcement() {
                Some(map) => {
                    let hash = map.get(did.as_str());
                    let update = hash.and_then(|hash| self.known_update(index, &|update| update.hash() == hash));
                    (BeaconData::Cas(map.clone()), update)
                }
                None => {
                    let ArchivedProof { mut proof, leaf } =
                        missed.board.proof(index).ok_or("the board is of another kind")?;
                    let mut update = None;
                    if let Some(leaf) = leaf {
                        let nonce =
                            nonces.get(index).ok_or_else(|| format!("the leaf of {did} is of another seat"))?;
                        let is = |hash: Option<&DocumentHash>| smt_leaf(Some(nonce), hash) == *leaf.as_bytes();
                        if !is(None) {
                            let found = self.known_update(index, &|update| is(Some(update.hash())));
                            update =
                                Some(found.ok_or_else(|| format!("the announced update of {did} is not here"))?);
                        }
                        proof.nonce = Some(SmtNonce::from(nonce.as_slice()));
                        proof.update_id = update.as_ref().map(|update| *update.hash());
                    }
                    (BeaconData::Smt(proof), update)
                }
            };
            self.sidecars.add(did, Some(&data), update.as_ref().map(SignedUpdate::value))?;
        }
        Ok(())
    }
}
