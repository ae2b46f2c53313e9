//! Invites of an operator: tokens that admit a number of DIDs until they expire.
//!
//! They are in a database file that several programs may read and change at the same time: the command that creates and
//! revokes them, and a running service.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use btcr2_aggregation_protocol::{
    did::Did,
    id::CohortId,
    invite::{InviteId, InviteProof, InviteToken},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::shared_table::{SharedTable, SharedTableError, Stamp, Values};

/// The maximum number of DIDs of one invite.
pub const MOST_USES: u32 = 10_000;

/// How long an expired invite remains in the list.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// An invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invite {
    /// The token against which opt-ins are checked. Only the owner of the state directory can read it.
    token: String,
    /// When it was created.
    pub created: Timestamp,
    /// When it expires.
    pub expires: Timestamp,
    /// The number of DIDs that it admits. A DID that was admitted may join again.
    pub uses: u32,
    /// The operator's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether it was revoked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
    /// The DIDs that it has admitted.
    #[serde(default)]
    pub admitted: BTreeSet<Did>,
}

impl Invite {
    /// An invite by `token`, for `uses` DIDs, at most [`MOST_USES`].
    pub fn new(
        token: &InviteToken,
        created: Timestamp,
        expires: Timestamp,
        uses: u32,
        label: Option<String>,
    ) -> Self {
        let (token, uses) = (token.reveal(), uses.min(MOST_USES));
        Self { token, created, expires, uses, label, revoked: false, admitted: BTreeSet::new() }
    }

    /// Checks that it admits `did` with this proof.
    ///
    /// # Errors
    /// [`NotInvited`], the reason.
    pub fn check(
        &self,
        proof: &InviteProof,
        cohort_id: &CohortId,
        did: &Did,
        now: Timestamp,
    ) -> Result<(), NotInvited> {
        let token: InviteToken = self.token.parse().map_err(|_| NotInvited::Unknown)?;
        if !token.verify(proof, cohort_id, did) {
            return Err(NotInvited::Unknown);
        }
        if self.revoked {
            return Err(NotInvited::Revoked);
        }
        if now >= self.expires {
            return Err(NotInvited::Expired);
        }
        let has_room = self.admitted.len() < self.uses as usize;
        if has_room || self.admitted.contains(did) { Ok(()) } else { Err(NotInvited::UsedUp) }
    }
}

/// Why an invite does not admit a DID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotInvited {
    /// There is no such invite, or the proof is for something else.
    #[error("the invite is not one of this service")]
    Unknown,
    /// It was revoked.
    #[error("the invite was revoked")]
    Revoked,
    /// It has expired.
    #[error("the invite has expired")]
    Expired,
    /// It has admitted its maximum number of DIDs.
    #[error("the invite is used up")]
    UsedUp,
}

/// Why a DID is not admitted by an invite.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedeemError {
    /// The invite does not admit it.
    #[error(transparent)]
    NotInvited(#[from] NotInvited),
    /// The list cannot be used.
    #[error(transparent)]
    Book(#[from] SharedTableError),
}

/// The invites of a service. Clones share the list.
#[derive(Clone, Debug)]
pub struct InviteBook(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: SharedTable,
    read: Mutex<Option<Read>>,
}

/// The list as it was last read.
#[derive(Clone, Debug)]
struct Read {
    stamp: Stamp,
    invites: Arc<BTreeMap<InviteId, Invite>>,
}

impl InviteBook {
    /// The invites in the database file `path`, which is created with the first invite.
    ///
    /// # Errors
    /// [`SharedTableError`] when the file is not a list of invites.
    pub fn open(path: &Path) -> Result<Self, SharedTableError> {
        let book = Self(Arc::new(Shared { table: SharedTable::new(path.to_owned()), read: Mutex::default() }));
        book.list()?;
        Ok(book)
    }

    /// All invites. Adding an invite removes those that expired long ago.
    ///
    /// # Errors
    /// [`SharedTableError`] when the file cannot be read.
    pub fn list(&self) -> Result<Arc<BTreeMap<InviteId, Invite>>, SharedTableError> {
        let stamp = self.0.table.stamp()?;
        if let Some(read) = self.lock().as_ref().filter(|read| read.stamp == stamp) {
            return Ok(Arc::clone(&read.invites));
        }
        let contents = self.0.table.read()?;
        let invites = Arc::new(parse(&contents.values).map_err(|problem| self.0.table.refuse(problem))?);
        *self.lock() = Some(Read { stamp: contents.stamp, invites: Arc::clone(&invites) });
        Ok(invites)
    }

    /// Adds an invite.
    ///
    /// # Errors
    /// [`SharedTableError`] when the file cannot be written.
    pub fn add(&self, token: &InviteToken, invite: Invite) -> Result<(), SharedTableError> {
        let (id, now) = (token.id(), invite.created);
        self.change(move |invites| {
            let over = |invite: &Invite| invite.expires != Timestamp::NEVER && now.since(invite.expires) > KEPT;
            let mut edits: Vec<_> =
                invites.iter().filter(|(_, invite)| over(invite)).map(|(id, _)| (*id, None)).collect();
            edits.push((id, Some(invite)));
            (edits, ())
        })
    }

    /// Revokes an invite; returns whether it exists. The DIDs that it has admitted remain in their cohorts.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn revoke(&self, id: InviteId) -> Result<bool, SharedTableError> {
        self.change(move |invites| match invites.get(&id) {
            Some(invite) => (vec![(id, Some(Invite { revoked: true, ..invite.clone() }))], true),
            None => (Vec::new(), false),
        })
    }

    /// Checks that `proof` admits `did`, and counts the DID as admitted. Waits for the disk if the DID is new.
    ///
    /// # Errors
    /// [`RedeemError`].
    pub fn redeem(
        &self,
        proof: &InviteProof,
        cohort_id: &CohortId,
        did: &Did,
        now: Timestamp,
    ) -> Result<(), RedeemError> {
        let known = self.list()?;
        let invite = known.get(&proof.id()).ok_or(NotInvited::Unknown)?;
        invite.check(proof, cohort_id, did, now)?;
        if invite.admitted.contains(did) {
            return Ok(());
        }
        // Checked again in the transaction, in which no other program can count a DID.
        let counted = self.change(|invites| {
            let Some(invite) = invites.get(&proof.id()) else { return (Vec::new(), Err(NotInvited::Unknown)) };
            if let Err(error) = invite.check(proof, cohort_id, did, now) {
                return (Vec::new(), Err(error));
            }
            let mut invite = invite.clone();
            invite.admitted.insert(did.clone());
            (vec![(proof.id(), Some(invite))], Ok(()))
        })?;
        Ok(counted?)
    }

    /// A DID that was admitted does not take part after all: it counts no more. Waits for the disk.
    ///
    /// # Errors
    /// [`SharedTableError`] when the file cannot be written.
    pub fn release(&self, id: InviteId, did: &Did) -> Result<(), SharedTableError> {
        self.change(|invites| match invites.get(&id) {
            Some(invite) if invite.admitted.contains(did) => {
                let mut invite = invite.clone();
                invite.admitted.remove(did);
                (vec![(id, Some(invite))], ())
            }
            _ => (Vec::new(), ()),
        })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&BTreeMap<InviteId, Invite>) -> (Vec<(InviteId, Option<Invite>)>, T),
    ) -> Result<T, SharedTableError> {
        // No change count is the maximum, so everything is read.
        let (answer, ..) = self.0.table.change(u64::MAX, |values| {
            let (edits, answer) = change(&values.map(parse).transpose()?.unwrap_or_default());
            let edits = edits.into_iter().map(|(id, invite)| {
                let value = invite.map(|invite| serde_json::to_vec(&invite).map_err(|error| error.to_string()));
                Ok((id.to_string(), value.transpose()?))
            });
            Ok((edits.collect::<Result<_, String>>()?, answer))
        })?;
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Read>> {
        // No code panics while the value is partly changed.
        self.0.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(values: &Values) -> Result<BTreeMap<InviteId, Invite>, String> {
    let parse = |(key, value): (&String, &Vec<u8>)| {
        let id = key.parse::<InviteId>().map_err(|error| error.to_string())?;
        Ok((id, serde_json::from_slice(value).map_err(|error| error.to_string())?))
    };
    let parsed: Result<_, String> = values.iter().map(parse).collect();
    parsed.map_err(|problem| format!("not a list of invites: {problem}"))
}
