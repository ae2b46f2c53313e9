//! From signals to updates (rule C4, step 3b): what each signal announces for the DID, from the tables of the Sidecar
//! Data and what the caller has supplied.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::{
    error::{Missing, MissingData, ProofFault, ResolutionError},
    history::{Event, Finding, Source},
    need::{Content, ContentKind, Need},
    sidecar::{GivenUpdate, SidecarData, hash, read_update},
    signal::{BeaconKind, BeaconSignal},
};
use crate::{
    beacon::{SmtProof, smt_index},
    did::Did,
    hash::{DocumentHash, SmtHash, sha256},
    update::{self, SignedUpdate, UpdateError},
};

/// What is known about a hash that a signal commits to.
enum Answer<T> {
    /// What has this hash.
    Data(T),
    /// No source has it.
    Absent,
    /// What the caller gave has another hash.
    OtherHash(DocumentHash),
}

/// What an announcement has for the DID.
enum Entry {
    None,
    Update(DocumentHash),
    /// The DID's member is not a hash (rule C-2).
    NotAHash,
    /// It is not an announcement, but this.
    NotAnAnnouncement(String),
}

/// What a genesis document is.
pub(super) enum Genesis<'a> {
    Unknown,
    Absent,
    /// Whether it is the right one is its hash's to say.
    Document(&'a Value, &'a Source),
}

/// An update that a signal announces, and the version to which it leads.
pub(super) struct Announced {
    pub(super) update: SignedUpdate,
    pub(super) version: u64,
}

/// What a signal announces.
pub(super) struct Reading {
    said: Result<Option<Announced>, ResolutionError>,
    announcement: Option<Source>,
    update: Option<Source>,
}

impl Reading {
    /// The event, and what follows from it.
    pub(super) fn into_event(
        self,
        round: u32,
        signal: Arc<BeaconSignal>,
    ) -> (Event, Result<Option<Announced>, ResolutionError>) {
        let finding = match &self.said {
            Ok(None) => Finding::NoEntry,
            Ok(Some(announced)) => Finding::Update { hash: *announced.update.hash(), version: announced.version },
            Err(ResolutionError::Missing(missing)) => Finding::Missing { missing: missing.data },
            Err(error) => Finding::Invalid { reason: error.to_string() },
        };
        let event = Event::Signal { round, signal, finding, announcement: self.announcement, update: self.update };
        (event, self.said)
    }
}

/// Everything that can be looked up by a hash.
pub(super) struct Data {
    did: Did,
    genesis: Option<Answer<(Value, Source)>>,
    updates: BTreeMap<DocumentHash, (Answer<GivenUpdate>, Source)>,
    announcements: BTreeMap<DocumentHash, (Answer<Entry>, Source)>,
    proofs: BTreeMap<SmtHash, BTreeMap<DocumentHash, Value>>,
    /// What the proofs of a root say, once one was looked at: the update, or none.
    verdicts: BTreeMap<SmtHash, Result<Option<DocumentHash>, ProofFault>>,
}

impl Data {
    pub(super) fn new(did: &Did, genesis_hash: Option<[u8; 32]>, sidecar: SidecarData) -> Self {
        let SidecarData { mut genesis_documents, updates, announcements, proofs, .. } = sidecar;
        let right = genesis_documents
            .iter()
            .position(|document| hash(document).ok().map(|hash| *hash.as_bytes()) == genesis_hash)
            .unwrap_or_default();
        let genesis = (genesis_hash.is_some() && !genesis_documents.is_empty())
            .then(|| Answer::Data((genesis_documents.swap_remove(right), Source::Sidecar)));
        // Only the DID's own entry of an announcement is looked at, so that the rest need not be stored.
        let announcements = announcements.into_iter().map(|(hash, value)| (hash, Answer::Data(entry(&value, did))));
        let updates = updates.into_iter().map(|(hash, update)| (hash, Answer::Data(update)));
        Self {
            did: did.clone(),
            genesis,
            updates: updates.map(|(hash, answer)| (hash, (answer, Source::Sidecar))).collect(),
            announcements: announcements.map(|(hash, answer)| (hash, (answer, Source::Sidecar))).collect(),
            proofs,
            verdicts: BTreeMap::new(),
        }
    }

    pub(super) fn genesis(&self) -> Genesis<'_> {
        match &self.genesis {
            None => Genesis::Unknown,
            Some(Answer::Data((document, source))) => Genesis::Document(document, source),
            Some(Answer::Absent | Answer::OtherHash(_)) => Genesis::Absent,
        }
    }

    /// Stores the answer to a need.
    pub(super) fn supply(&mut self, kind: ContentKind, expected: DocumentHash, content: Content, source: Source) {
        let opened = open(expected, content);
        match kind {
            ContentKind::GenesisDocument => {
                self.genesis = Some(match opened {
                    Opened::Absent => Answer::Absent,
                    // No document has a hash then, and the identifier's least of all.
                    Opened::NotJson(_) => Answer::Data((Value::Null, source)),
                    Opened::Json(value) => Answer::Data((value, source)),
                });
            }
            ContentKind::Announcement => {
                let answer = match opened {
                    Opened::Absent => Answer::Absent,
                    Opened::NotJson(problem) => {
                        Answer::Data(Entry::NotAnAnnouncement(format!("not JSON: {problem}")))
                    }
                    Opened::Json(value) => match hash(&value) {
                        Ok(found) if found == expected => Answer::Data(entry(&value, &self.did)),
                        Ok(found) => Answer::OtherHash(found),
                        Err(error) => Answer::Data(Entry::NotAnAnnouncement(format!(
                            "JSON without a canonical form: {error}"
                        ))),
                    },
                };
                self.announcements.insert(expected, (answer, source));
            }
            ContentKind::Update => {
                let answer = match opened {
                    Opened::Absent => Answer::Absent,
                    Opened::NotJson(_) => Answer::Data(Err(Arc::new(UpdateError::NotAnObject))),
                    Opened::Json(value) => match read_update(value) {
                        Ok((found, update)) if found == expected => Answer::Data(update),
                        Ok((found, _)) => Answer::OtherHash(found),
                        Err(error) => Answer::Data(Err(Arc::new(UpdateError::NotCanonical(error)))),
                    },
                };
                self.updates.insert(expected, (answer, source));
            }
        }
    }

    /// What `signal` announces, or what has to be known first.
    pub(super) fn read(&mut self, signal: &Arc<BeaconSignal>) -> Result<Reading, Need> {
        let bytes = *signal.bytes.as_bytes();
        let mut announcement = None;
        let named = match signal.beacon.kind {
            BeaconKind::Singleton => Ok(Some(DocumentHash::from_bytes(bytes))),
            BeaconKind::Cas => self.announced(signal, DocumentHash::from_bytes(bytes), &mut announcement)?,
            BeaconKind::Smt => self.proven(signal, SmtHash::from_bytes(bytes), &mut announcement),
        };
        let mut source = None;
        let said = match named {
            Ok(Some(hash)) => self.update(signal, hash, &mut source)?.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        Ok(Reading { said, announcement, update: source })
    }

    fn announced(
        &self,
        signal: &Arc<BeaconSignal>,
        hash: DocumentHash,
        source: &mut Option<Source>,
    ) -> Result<Result<Option<DocumentHash>, ResolutionError>, Need> {
        let Some((answer, from)) = self.announcements.get(&hash) else {
            return Err(Need::content(ContentKind::Announcement, hash, Some(signal)));
        };
        if !matches!(answer, Answer::Absent) {
            *source = Some(from.clone());
        }
        let signal = signal.clone();
        Ok(match answer {
            Answer::Data(Entry::None) => Ok(None),
            Answer::Data(Entry::Update(update)) => Ok(Some(*update)),
            Answer::Data(Entry::NotAHash) => Err(missing(signal, MissingData::AnnouncementEntry { hash })),
            Answer::Data(Entry::NotAnAnnouncement(problem)) => {
                Err(ResolutionError::NotAnAnnouncement { signal, hash, problem: problem.clone() })
            }
            Answer::Absent => Err(missing(signal, MissingData::Announcement { hash })),
            Answer::OtherHash(found) => Err(ResolutionError::OtherHash {
                signal,
                content: "CAS Announcement",
                expected: hash,
                found: *found,
            }),
        })
    }

    fn proven(
        &mut self,
        signal: &Arc<BeaconSignal>,
        root: SmtHash,
        source: &mut Option<Source>,
    ) -> Result<Option<DocumentHash>, ResolutionError> {
        let Some(proofs) = self.proofs.get(&root) else {
            return Err(missing(signal.clone(), MissingData::SmtProof { root }));
        };
        *source = Some(Source::Sidecar);
        let verdict = self.verdicts.entry(root).or_insert_with(|| {
            let index = smt_index(&self.did);
            let mut verdicts = proofs.values().map(|proof| verify(proof, &index));
            let first = verdicts.next().unwrap_or_else(|| Err(ProofFault::Malformed(String::new())));
            // Another member's proof, or a damaged copy, does not hide the DID's own.
            if first.is_err() { verdicts.find(Result::is_ok).unwrap_or(first) } else { first }
        });
        verdict.clone().map_err(|reason| ResolutionError::SmtProof { signal: signal.clone(), reason })
    }

    fn update(
        &self,
        signal: &Arc<BeaconSignal>,
        hash: DocumentHash,
        source: &mut Option<Source>,
    ) -> Result<Result<Announced, ResolutionError>, Need> {
        let Some((answer, from)) = self.updates.get(&hash) else {
            return Err(Need::content(ContentKind::Update, hash, Some(signal)));
        };
        if !matches!(answer, Answer::Absent) {
            *source = Some(from.clone());
        }
        let signal = signal.clone();
        Ok(match answer {
            Answer::Data(Ok(update)) => match update::shape(update) {
                Ok(version) => Ok(Announced { update: update.clone(), version }),
                Err(error) => Err(ResolutionError::NotAnUpdate { signal, hash, error: Arc::new(error) }),
            },
            Answer::Data(Err(error)) => Err(ResolutionError::NotAnUpdate { signal, hash, error: error.clone() }),
            Answer::Absent => Err(missing(signal, MissingData::Update { hash })),
            Answer::OtherHash(found) => {
                Err(ResolutionError::OtherHash { signal, content: "update", expected: hash, found: *found })
            }
        })
    }
}

fn missing(signal: Arc<BeaconSignal>, data: MissingData) -> ResolutionError {
    ResolutionError::Missing(Missing { signal, data })
}

enum Opened {
    Absent,
    NotJson(String),
    Json(Value),
}

/// Bytes are hashed and compared before they are parsed; those of another hash are not what was asked for (rule C-5).
fn open(expected: DocumentHash, content: Content) -> Opened {
    match content {
        Content::Absent => Opened::Absent,
        Content::Bytes(bytes) if sha256(&bytes) != *expected.as_bytes() => Opened::Absent,
        Content::Bytes(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Opened::Json(value),
            Err(error) => Opened::NotJson(error.to_string()),
        },
        Content::Json(value) => Opened::Json(value),
    }
}

/// The DID's entry in an announcement (rules C-2 and C-3).
fn entry(announcement: &Value, did: &Did) -> Entry {
    let Some(entries) = announcement.as_object() else {
        return Entry::NotAnAnnouncement("JSON that is not an object".to_owned());
    };
    match entries.get(did.as_str()) {
        None => Entry::None,
        Some(value) => value.as_str().and_then(|text| text.parse().ok()).map_or(Entry::NotAHash, Entry::Update),
    }
}

fn verify(proof: &Value, index: &[u8; 32]) -> Result<Option<DocumentHash>, ProofFault> {
    use serde::Deserialize;
    let proof = SmtProof::deserialize(proof).map_err(|error| ProofFault::Malformed(error.to_string()))?;
    proof.verify(index).map_err(ProofFault::NotVerified)?;
    Ok(proof.update_id)
}
