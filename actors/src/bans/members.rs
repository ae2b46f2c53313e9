//! The records of all members, within bounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use btcr2_aggregation_protocol::{hash::sha256, time::Timestamp};
use data_encoding::HEXLOWER;

use super::{Bans, Conduct, Entry};
use crate::{shared_table::Edits, subject::Subject};

/// The maximum number of records. The longest silent member is removed first.
const MOST_MEMBERS: usize = 10_000;
const MOST_ENTRIES: usize = 16;
/// The maximum size of a message that is stored as evidence, in bytes. Of a larger message only the hash is stored.
const MOST_MESSAGE: usize = 64 << 10;
/// The maximum size of all stored evidence, in bytes. The evidence of the oldest offences is removed first.
const MOST_EVIDENCE: usize = 16 << 20;
/// How long a record without a ban is stored.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// A change to the list.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A member committed an offence.
    Record(Subject, Entry),
    /// The operator bans a subject.
    Add { subject: Subject, until: Timestamp, reason: Option<String> },
    /// The operator lifts a ban.
    Lift(Subject),
    /// Imports the record of an earlier version.
    Import(Subject, Conduct),
}

/// All records, by subject.
#[derive(Clone, Debug, Default)]
pub(super) struct Members(BTreeMap<Subject, Conduct>);

impl Members {
    pub(super) fn new(members: BTreeMap<Subject, Conduct>) -> Self {
        Self(members)
    }

    pub(super) fn all(&self) -> &BTreeMap<Subject, Conduct> {
        &self.0
    }

    /// Applies changes, and adds the subjects whose records they changed to `touched`.
    pub(super) fn apply_all(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        bans: &dyn Bans,
        touched: &mut BTreeSet<Subject>,
    ) {
        let mut latest = None;
        for change in changes {
            if let Change::Record(_, entry) = &change {
                latest = latest.max(Some(entry.at));
            }
            self.apply(change, bans, touched);
        }
        // Once for all of them: it looks at every record, and a failed cohort may have hundreds of silent members.
        if let Some(now) = latest {
            forget(&mut self.0, now, MOST_MEMBERS, touched);
        }
    }

    fn apply(&mut self, change: Change, bans: &dyn Bans, touched: &mut BTreeSet<Subject>) {
        match change {
            Change::Record(subject, entry) => {
                let (now, entry) = (entry.at, trimmed(entry));
                let conduct = self.0.entry(subject.clone()).or_default();
                // Another program may have recorded it first.
                if conduct.has(&entry) {
                    return;
                }
                conduct.entries.push(entry);
                if conduct.entries.len() > MOST_ENTRIES {
                    conduct.entries.remove(0);
                }
                if let Some(term) = bans.judge(&conduct.entries) {
                    conduct.banned_until = conduct.banned_until.max(Some(now + term));
                }
                touched.insert(subject);
            }
            Change::Add { subject, until, reason } => {
                let conduct = self.0.entry(subject.clone()).or_default();
                conduct.banned_until = Some(until);
                conduct.by_hand = true;
                conduct.reason = reason;
                touched.insert(subject);
            }
            Change::Lift(subject) => {
                self.0.remove(&subject);
                touched.insert(subject);
            }
            Change::Import(subject, conduct) => {
                self.0.entry(subject.clone()).or_insert(conduct);
                touched.insert(subject);
            }
        }
    }

    /// The database edits for the records of `touched`.
    pub(super) fn edits(&self, touched: &BTreeSet<Subject>) -> Edits {
        let value = |subject| self.0.get(subject).and_then(|conduct| serde_json::to_vec(conduct).ok());
        touched.iter().map(|subject| (subject.to_string(), value(subject))).collect()
    }
}

/// The entry without evidence that is too large to be stored; its `detail` then states that.
fn trimmed(mut entry: Entry) -> Entry {
    entry.evidence.retain(|evidence| {
        let text = evidence.text();
        let fits = text.len() <= MOST_MESSAGE;
        if !fits {
            let hash = HEXLOWER.encode(&sha256(text.as_bytes()));
            entry.detail.push_str(&format!("; a message of {} bytes was not stored, SHA-256 {hash}", text.len()));
        }
        fits
    });
    entry
}

/// Removes the records without a ban whose last offence is long ago, then the longest silent ones if there are too
/// many.
fn forget(members: &mut BTreeMap<Subject, Conduct>, now: Timestamp, most: usize, touched: &mut BTreeSet<Subject>) {
    let last = |conduct: &Conduct| conduct.entries.last().map_or(Timestamp::default(), |entry| entry.at);
    members.retain(|subject, conduct| {
        let stays = conduct.ban(now).is_some() || now.since(last(conduct)) < KEPT;
        if !stays {
            touched.insert(subject.clone());
        }
        stays
    });
    while members.len() > most {
        // Only records without an operator's ban are evicted; the operator bounds the number of its own bans.
        let evictable = members.iter().filter(|(_, conduct)| !conduct.by_hand || conduct.ban(now).is_none());
        let oldest = evictable.min_by_key(|(_, conduct)| (conduct.ban(now).is_some(), last(conduct)));
        let oldest = oldest.map(|(subject, _)| subject.clone());
        let Some(oldest) = oldest else { break };
        members.remove(&oldest);
        touched.insert(oldest);
    }
    let mut evidence: Vec<_> = members
        .iter_mut()
        .flat_map(|(subject, conduct)| conduct.entries.iter_mut().map(move |entry| (subject, entry)))
        .filter(|(_, entry)| !entry.evidence.is_empty())
        .collect();
    let size = |entry: &Entry| entry.evidence.iter().map(|evidence| evidence.text().len()).sum::<usize>();
    let mut bytes: usize = evidence.iter().map(|(_, entry)| size(entry)).sum();
    evidence.sort_by_key(|(_, entry)| entry.at);
    for (subject, entry) in evidence {
        if bytes <= MOST_EVIDENCE {
            break;
        }
        bytes -= size(entry);
        entry.evidence.clear();
        touched.insert(subject.clone());
    }
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::{id::CohortId, identity::Identity, key::SecretKey, network::Network};

    use super::*;
    use crate::{
        bans::{BanBook, NoBans, Offence},
        transport::Evidence,
    };

    const NOW: Timestamp = Timestamp::from_secs(1_750_000_000);

    fn did(byte: u8) -> Subject {
        let key = SecretKey::from_bytes(&[byte; 32]).expect("a key");
        Identity::from_key(key, Network::Regtest).did().into()
    }

    fn conduct(at: Timestamp, banned: bool, by_hand: bool) -> Conduct {
        let cohort_id = CohortId::parse("c").expect("a name");
        let entry = Entry {
            offence: Offence::Holdout,
            cohort_id,
            number: None,
            at,
            detail: String::new(),
            address: None,
            invite: None,
            evidence: Vec::new(),
        };
        Conduct { entries: vec![entry], banned_until: banned.then_some(Timestamp::NEVER), by_hand, reason: None }
    }

    #[test]
    fn unbanned_members_are_evicted_first_and_operator_bans_never() {
        let day = Duration::from_secs(24 * 3600);
        let mut members = BTreeMap::from([
            (did(1), conduct(NOW - day * 9, true, true)),
            (did(2), conduct(NOW - day * 8, true, false)),
            (did(3), conduct(NOW - day * 7, false, false)),
            (did(4), conduct(NOW, false, false)),
        ]);
        let left = |members: &mut BTreeMap<Subject, Conduct>, most| {
            forget(members, NOW, most, &mut BTreeSet::new());
            (1..=4).filter(|byte| members.contains_key(&did(*byte))).collect::<Vec<_>>()
        };
        assert_eq!(left(&mut members, 3), [1, 2, 4]);
        assert_eq!(left(&mut members, 2), [1, 2]);
        assert_eq!(left(&mut members, 1), [1]);
        assert_eq!(left(&mut members, 0), [1]);
    }

    #[test]
    fn only_the_hash_of_a_too_large_message_is_stored() {
        let book = BanBook::in_memory(std::sync::Arc::new(NoBans));
        let mut entry = conduct(NOW, false, false).entries.remove(0);
        let (small, large) = ("x".repeat(MOST_MESSAGE), "x".repeat(MOST_MESSAGE + 1));
        entry.evidence = [&small, &large].map(|text| Evidence::Envelope(text.as_str().into())).to_vec();
        book.record(did(1), entry);
        let entry = &book.list().expect("a book in memory")[&did(1)].entries[0];
        assert_eq!(entry.evidence, [Evidence::Envelope(small.as_str().into())]);
        assert!(entry.detail.contains("SHA-256"), "{}", entry.detail);
    }
}
