//! The queue as the updates of a controller: what is submitted next for a DID, made again on a newer document where that is possible.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    queue::{Item, Queue, Stage},
    report::Reporter,
};
use crate::{
    actors::{
        runtime::{Clock, Randomness},
        standing::policy::SeatView,
    },
    controller::Current,
    protocol::{
        cohort::standing::{
            Updates,
            seat::{KnownVersions, SeatUpdate},
        },
        document,
        hash::{DidIndex, DocumentHash},
        update::{SignedUpdate, UpdateContext, build_update, sign_update, verify_update},
    },
    standing::{controller::ControlledDid, updates::UpdateSource},
};
use async_trait::async_trait;

/// What an update needs before it leaves the program, beside the state directory.
#[async_trait]
pub(super) trait BeforeSubmission: Send + Sync {
    /// The updates are in the queue, and about to be submitted.
    ///
    /// # Errors
    /// Why they must not be, in words.
    async fn ready(&self) -> Result<(), String>;
}

const DAY: Duration = Duration::from_secs(86_400);

/// The queue of one member, for the DIDs of its seats.
pub(super) struct QueueSource {
    /// The queue.
    pub(super) queue: Arc<Queue>,
    /// Where each step is reported.
    pub(super) reporter: Reporter,
    /// How many updates of a DID may be submitted in a day.
    pub(super) most_per_day: Option<u32>,
    /// The backup of a cohort whose service does not keep updates (standing.md, section 10).
    pub(super) backup: Option<Arc<dyn BeforeSubmission>>,
    /// The time.
    pub(super) clock: Clock,
}

/// What an item becomes by the document that is current now.
#[derive(Clone, Debug, PartialEq)]
enum Next {
    /// It is submitted as it is.
    Submit(SignedUpdate),
    /// The same change in another update is submitted.
    Rebuilt(Box<Item>),
    /// Resolvers return it.
    Done,
    /// It waits.
    Wait(String),
    /// It can never be announced.
    Refused(String),
}

/// Decides on an item. `may_begin` is whether the day's limit permits another update of the DID.
fn decide(item: &Item, of: &ControlledDid, current: &Current, may_begin: bool) -> Next {
    let hash = item.update.hash();
    if current.applied.iter().any(|applied| applied.hash == *hash) {
        return Next::Done;
    }
    if let Some(young) = &current.young
        && let Some(first) = young.applied.iter().find(|applied| applied.version == current.version + 1)
        && first.hash != *hash
    {
        return Next::Wait(format!("another update of version {} is in a block, and not final yet", first.version));
    }
    if item.by_singleton {
        return match item.version > current.version {
            true => Next::Wait("the Singleton beacon of the DID announces it".to_owned()),
            false => Next::Refused(format!("another update has led to version {}", item.version)),
        };
    }
    if item.may_be_announced && item.version > current.version {
        return match item.version == current.version + 1 {
            true => Next::Submit(item.update.clone()),
            false => Next::Wait(format!("version {} is not final yet", item.version - 1)),
        };
    }
    if !may_begin {
        return Next::Wait("the limit of updates of a day is reached".to_owned());
    }
    let context =
        UpdateContext { did: &item.did, document: &current.document, version: current.version, block: None };
    if item.version == current.version + 1 && verify_update(&item.update, &context).is_ok() {
        return Next::Submit(item.update.clone());
    }
    match rebuilt(item, of, current) {
        Ok(item) => Next::Rebuilt(Box::new(item)),
        Err(reason) => Next::Refused(reason),
    }
}

/// The same change, as an update of the current document.
fn rebuilt(item: &Item, of: &ControlledDid, current: &Current) -> Result<Item, String> {
    let (document, version) = (&current.document, current.version);
    let began = |problem: &dyn std::fmt::Display| {
        format!(
            "the document is of version {version} now, and the update was made for version {}: {problem}",
            item.version - 1
        )
    };
    let patch = item.change.on(document).map_err(|error| began(&error))?;
    let unsigned = build_update(document, version, patch).map_err(|error| began(&error))?;
    let target = unsigned.target_document();
    if target == document {
        return Err(began(&"it changes nothing any more"));
    }
    let concerns: Vec<String> = document::concerns(document, target).iter().map(ToString::to_string).collect();
    if !concerns.is_empty() && !item.allow_risky {
        return Err(began(&concerns.join("; ")));
    }
    let (method, key) = of.keys.signer(document, version).map_err(|error| error.to_string())?;
    let mut rng = Randomness::System.for_actor("update");
    let update = sign_update(&unsigned, &item.did, &method, key, &mut rng).map_err(|error| began(&error))?;
    Ok(Item {
        update,
        version: version + 1,
        stage: Stage::Queued,
        may_be_announced: false,
        place: None,
        submitted_at: None,
        reason: Some(format!("made again on version {version}")),
        rebuilt: item.rebuilt + 1,
        ..item.clone()
    })
}

impl QueueSource {
    /// Whether the day's limit permits another update of the DID of this item.
    fn may_begin(&self, item: &Item) -> bool {
        let Some(most) = self.most_per_day else { return true };
        let now = self.clock.now();
        let of_did = self.queue.list().into_iter().filter(|other| other.did == item.did && other.id != item.id);
        let begun = of_did.filter(|other| other.was_submitted_within(now, DAY)).count();
        u32::try_from(begun).is_ok_and(|begun| begun < most)
    }

    /// Stores a change of an item and reports it.
    async fn put(&self, item: Item) -> Result<(), String> {
        self.queue.put(item.clone()).await.map_err(|error| error.to_string())?;
        self.reporter.update(&item);
        Ok(())
    }

    /// Resolvers return these updates.
    ///
    /// # Errors
    /// Why that is not stored.
    pub(super) async fn settled(&self, did: &crate::protocol::did::Did, current: &Current) -> Result<(), String> {
        let applied: Vec<DocumentHash> = current.applied.iter().map(|applied| applied.hash).collect();
        let resolved = self.queue.resolved(did, &applied).await.map_err(|error| error.to_string())?;
        resolved.iter().for_each(|item| self.reporter.update(item));
        Ok(())
    }
}

#[async_trait]
impl UpdateSource for QueueSource {
    fn is_waiting(&self, dids: &BTreeSet<DidIndex>, known: &KnownVersions) -> bool {
        // An item may be made again for a later version: it waits as long as something of its DID is announced.
        let needs_number = |index| known.needs_number(index, u64::MAX);
        self.queue.waiting().iter().any(|index| dids.contains(index) && needs_number(index))
    }

    fn wanted(&self) -> BTreeSet<DidIndex> {
        // Also of what is announced: another document may be current, e.g. when the announcement was replaced.
        let open = self.queue.open_items();
        open.iter().map(|item| crate::protocol::beacon::did_index(&item.did)).collect()
    }

    async fn next(
        &self,
        _: &SeatView,
        of: &ControlledDid,
        current: &Current,
    ) -> Result<Option<SignedUpdate>, String> {
        let did = of.identity.did();
        // One after the other: the second is made for the document that the first one leads to. What may be announced already comes first.
        let mut items: Vec<Item> = self.queue.open_items().into_iter().filter(|item| item.did == *did).collect();
        items.sort_by_key(|item| (!item.may_be_announced, item.id));
        for item in items {
            match decide(&item, of, current, self.may_begin(&item)) {
                Next::Submit(update) => return Ok(Some(update)),
                Next::Rebuilt(item) => {
                    let update = item.update.clone();
                    self.put(*item).await?;
                    return Ok(Some(update));
                }
                Next::Done => self.settled(did, current).await?,
                Next::Wait(reason) => {
                    if item.reason.as_ref() != Some(&reason) {
                        self.put(Item { reason: Some(reason), ..item }).await?;
                    }
                    return Ok(None);
                }
                Next::Refused(reason) => {
                    self.put(Item { stage: Stage::Refused, reason: Some(reason), ..item }).await?;
                }
            }
        }
        Ok(None)
    }

    async fn submits(&self, seat: &SeatView, number: u64, chosen: &[SeatUpdate]) -> Result<(), String> {
        if chosen.is_empty() {
            return Ok(());
        }
        let hashes: Vec<DocumentHash> = chosen.iter().map(|update| update.hash).collect();
        let stored = self.queue.submitted(&seat.cohort_id, number, &hashes).await;
        let stored = stored.map_err(|error| {
            self.reporter.storage_failed(&error.to_string());
            error.to_string()
        })?;
        if seat.terms.updates == Updates::Hash
            && let Some(backup) = &self.backup
        {
            // No other party has the update then.
            backup.ready().await?;
        }
        stored.iter().for_each(|item| self.reporter.update(item));
        Ok(())
    }

    fn follows(&self, index: &DidIndex, _: u64) -> bool {
        self.queue.waiting().contains(index)
    }

    fn is_elsewhere(&self, index: &DidIndex) -> bool {
        self.queue.by_singleton(index).is_some()
    }

    fn of(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        self.queue.updates_of(index)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        controller::{Keys, current::Applied},
        member::queue::{Change, Place},
        protocol::{
            document::initial_document, id::CohortId, identity::Identity, key::SecretKey, network::Network,
            patch::Patch, time::Timestamp, update::Edit,
        },
    };

    fn controlled() -> ControlledDid {
        let identity = Identity::from_key(SecretKey::from_bytes(&[3; 32]).unwrap(), Network::Regtest);
        ControlledDid { keys: Arc::new(Keys::of(&identity)), identity }
    }

    fn current(of: &ControlledDid, version: u64, patch: Value) -> Current {
        let initial = initial_document(of.identity.did(), None).unwrap();
        let document = Patch::from_value(&patch).unwrap().apply(&initial).unwrap();
        Current { document, version, applied: Vec::new(), young: None, unsettled: None, warnings: Vec::new() }
    }

    fn item(of: &ControlledDid, at: &Current, change: Change) -> Item {
        let patch = change.on(&at.document).unwrap();
        let unsigned = build_update(&at.document, at.version, patch).unwrap();
        let (method, key) = of.keys.signer(&at.document, at.version).unwrap();
        let mut rng = Randomness::System.for_actor("test");
        let update = sign_update(&unsigned, of.identity.did(), &method, key, &mut rng).unwrap();
        Item {
            id: 1,
            did: of.identity.did().clone(),
            change,
            update,
            version: at.version + 1,
            allow_risky: false,
            stage: Stage::Queued,
            may_be_announced: false,
            by_singleton: false,
            place: None,
            reason: None,
            rebuilt: 0,
            added_at: Timestamp::from_secs(1),
            submitted_at: None,
            changed_at: Timestamp::from_secs(1),
        }
    }

    fn service(id: &str) -> Change {
        Change::Edit {
            change: Edit::AddService { id: id.to_owned(), kind: "X".to_owned(), endpoint: json!("https://x") },
        }
    }

    #[test]
    fn an_update_is_made_again_on_a_newer_document_and_only_while_it_was_not_submitted() {
        let of = controlled();
        let first = current(&of, 1, json!([]));
        let item = item(&of, &first, service("#one"));
        assert_eq!(decide(&item, &of, &first, true), Next::Submit(item.update.clone()));
        let newer = current(&of, 4, json!([{ "op": "add", "path": "/note", "value": 1 }]));
        let Next::Rebuilt(again) = decide(&item, &of, &newer, true) else { panic!() };
        assert_eq!((again.version, again.rebuilt), (5, 1));
        let context = UpdateContext { did: &item.did, document: &newer.document, version: 4, block: None };
        verify_update(&again.update, &context).unwrap();
        // The document has the service already, by another update.
        let has = current(&of, 2, item.change.on(&first.document).unwrap());
        let Next::Refused(reason) = decide(&item, &of, &has, true) else { panic!() };
        assert!(reason.contains("version 2 now") && reason.contains("already"), "{reason}");
        // One that may be announced: only the identical one, until another one of its version is final.
        let place = Place { cohort_id: CohortId::parse("c").unwrap(), number: 1, txid: None };
        let submitted = Item { may_be_announced: true, place: Some(place), ..item.clone() };
        assert_eq!(decide(&submitted, &of, &first, false), Next::Submit(item.update.clone()));
        let elsewhere = current(&of, 1, json!([{ "op": "add", "path": "/note", "value": 1 }]));
        assert_eq!(
            decide(&submitted, &of, &elsewhere, true),
            Next::Submit(item.update.clone()),
            "whatever the document is, it is not made again"
        );
        assert!(matches!(decide(&submitted, &of, &newer, true), Next::Rebuilt(_)));
        let later = Item { version: 3, ..submitted.clone() };
        assert!(matches!(decide(&later, &of, &first, true), Next::Wait(_)));
        // Its own beacon announces it: a cohort does not, and the change is not made again.
        let alone = Item { by_singleton: true, ..submitted };
        assert!(matches!(decide(&alone, &of, &first, true), Next::Wait(_)));
        assert!(matches!(decide(&alone, &of, &newer, true), Next::Refused(_)));
    }

    #[test]
    fn an_update_that_resolvers_return_is_done_and_one_behind_a_young_one_waits() {
        let of = controlled();
        let first = current(&of, 1, json!([]));
        let item = item(&of, &first, service("#one"));
        let applied = Applied::for_tests(2, *item.update.hash());
        let mut after = current(&of, 2, json!([]));
        after.applied.push(applied.clone());
        assert_eq!(decide(&item, &of, &after, true), Next::Done);
        let young = |hash| {
            let applied = vec![Applied { hash, ..applied.clone() }];
            let young = crate::controller::current::Young { version: 2, confirmations: 1, applied };
            Current { young: Some(young), ..first.clone() }
        };
        assert!(matches!(decide(&item, &of, &young(*item.update.hash()), true), Next::Submit(_)), "its own");
        let other = DocumentHash::from_bytes([9; 32]);
        assert!(matches!(decide(&item, &of, &young(other), true), Next::Wait(_)));
        assert!(matches!(decide(&item, &of, &first, false), Next::Wait(_)), "the day's limit");
    }

    #[test]
    fn a_change_that_became_a_risk_is_refused_unless_it_was_confirmed() {
        let of = controlled();
        let method = of.identity.verification_method().to_string();
        let key = SecretKey::from_bytes(&[9; 32]).unwrap().public_key();
        let added = Edit::AddKey {
            method: "#second".to_owned(),
            key,
            relationships: vec![crate::protocol::update::Relationship::CapabilityInvocation],
        };
        let initial = current(&of, 1, json!([]));
        let two_keys = current(&of, 2, added.patch(&initial.document).unwrap());
        let mine = item(&of, &two_keys, Change::Edit { change: Edit::RemoveKey { method } });
        // The other key is gone: without this one the DID could not be updated.
        let alone = current(&of, 3, json!([]));
        let Next::Refused(reason) = decide(&mine, &of, &alone, true) else { panic!() };
        assert!(reason.contains("version 3 now"), "{reason}");
        let confirmed = Item { allow_risky: true, ..mine };
        assert!(matches!(decide(&confirmed, &of, &alone, true), Next::Rebuilt(_)));
    }
}
