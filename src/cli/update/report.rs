//! What the controller is shown, and what is written.

use serde_json::{Value, json};

use super::{super::state::write_new, CommonArgs, UpdateFailure, Way, announce, by_singleton};
use crate::{
    controller::{Keys, diff},
    error::ProgramError,
    protocol::{
        did::Did,
        document::{InitialBeacon, InitialBeaconKind, invocation_methods},
        key::PublicKey,
        resolution::{Beacon, BeaconKind, UnusableBeacon, beacons},
        text::shown,
        update::SignedUpdate,
    },
};

/// A prepared update.
pub(super) struct Prepared<'a> {
    pub(super) did: &'a Did,
    pub(super) update: SignedUpdate,
    /// What a resolver needs, the update included.
    pub(super) sidecar: Value,
    /// The document that the update starts from, and its version.
    pub(super) source: &'a Value,
    pub(super) version: u64,
    /// The document that it leads to.
    pub(super) target: &'a Value,
    pub(super) signer: &'a str,
    pub(super) keys: &'a Keys,
    pub(super) notes: Vec<String>,
}

/// Where the update can be announced: the beacons of the current document.
fn places(document: &Value, did: &Did) -> impl Iterator<Item = Result<Beacon, UnusableBeacon>> {
    beacons(document, did.network()).into_iter()
}

/// Which of the keys that may update a document, or its DID began with, a Singleton beacon belongs to.
fn owner(beacon: &Beacon, candidates: &[PublicKey], did: &Did) -> Option<(PublicKey, InitialBeaconKind)> {
    let pairs = candidates.iter().flat_map(|key| InitialBeaconKind::ALL.map(|kind| (*key, kind)));
    let mut pairs = pairs.filter(|_| beacon.kind == BeaconKind::Singleton);
    pairs.find(|(key, kind)| InitialBeacon::new(*key, did.network(), *kind).address() == &beacon.address)
}

/// The verb's notes, and those about the document.
pub(super) fn notes(
    common: &CommonArgs,
    mut notes: Vec<String>,
    source: &Value,
    target: &Value,
    keys: &Keys,
    key_is_new: bool,
) -> Vec<String> {
    let keys_of = |document: &Value| invocation_methods(document).map(|(_, key)| key).collect::<Vec<_>>();
    let (before, after) = (keys_of(source), keys_of(target));
    let deactivated = target.get("deactivated") == Some(&Value::Bool(true));
    let gone: Vec<PublicKey> = before.into_iter().filter(|key| !after.contains(key)).collect();
    if let Some(did) = target.get("id").and_then(Value::as_str).and_then(|id| id.parse::<Did>().ok())
        && !deactivated
    {
        let old = places(target, &did).flatten().filter(|beacon| owner(beacon, &gone, &did).is_some());
        let old: Vec<String> = old.map(|beacon| beacon.address.to_string()).collect();
        if !old.is_empty() {
            notes.push(format!(
                "Singleton beacons of the document belong to a key that can no longer sign updates: {}. Keep that key, or replace the \
                 beacons. A party that has the key can announce there, and a signal without data makes the DID unresolvable (rule R-5)",
                old.join(", ")
            ));
        }
    }
    if !deactivated && !key_is_new && !after.iter().any(|key| keys.key_of(key).is_some()) && !after.is_empty() {
        notes.push(format!("no key of {} can sign the update after this one", keys.name()));
    }
    if common.gives_out() && common.state.is_none() && common.queue.is_none() {
        notes.push(
            "without --state DIR nothing remembers this update: never announce another one of its version, which would end the \
             DID (LATE_PUBLISHING)"
                .to_owned(),
        );
    }
    notes
}

/// Writes and prints the update.
pub(super) fn give_out(common: &CommonArgs, prepared: &Prepared<'_>) -> Result<(), UpdateFailure> {
    let value = prepared.to_json();
    let internal = |error: serde_json::Error| ProgramError::Internal(error.to_string());
    if let Some(path) = &common.out {
        let text = serde_json::to_string_pretty(&value).map_err(internal)?;
        write_new(path, &text).map_err(|error| ProgramError::Io { what: path.display().to_string(), error })?;
    }
    if common.json {
        out!("{}", serde_json::to_string(&value).map_err(internal)?);
    } else {
        out!("{}", prepared.to_text(common.gives_out()));
    }
    for note in &prepared.notes {
        err!("note: {note}");
    }
    match &common.out {
        Some(path) => err!("written  {}", path.display()),
        None if common.json || common.queue.is_some() => {}
        None => err!("nothing is written: --out FILE or --json gives the signed update"),
    }
    match common.announce_by {
        Some(Way::Singleton) if common.announcement.send => {}
        Some(Way::Singleton) => err!("{}", by_singleton::command(common, prepared)),
        Some(Way::Cohort) => err!("{}", announce::by_cohort(common, prepared)),
        None => {}
    }
    Ok(())
}

impl Prepared<'_> {
    fn to_json(&self) -> Value {
        json!({
            "did": self.did,
            "versionId": (self.version + 1).to_string(),
            "verificationMethod": self.signer,
            "updateHash": self.update.hash(),
            "announceAt": places(self.source, self.did).flatten().collect::<Vec<_>>(),
            "notes": self.notes,
            "update": self.update,
            "sourceDocument": self.source,
            "targetDocument": self.target,
            "sidecar": self.sidecar,
        })
    }

    /// Without the update's hash where that is of a signature that is dropped.
    fn to_text(&self, given_out: bool) -> String {
        let mut lines = vec![
            format!("did        {}", self.did),
            format!("version    {} -> {}", self.version, self.version + 1),
            format!("signed by  {}, a key of {}", shown(self.signer), self.keys.name()),
        ];
        if given_out {
            lines.push(format!("update     {}", self.update.hash()));
        }
        lines.push(String::new());
        lines.push(diff(self.source, self.target));
        lines.push("Beacons of your current document, where this update can be announced:".to_owned());
        let mut count = 0;
        for place in places(self.source, self.did) {
            match place {
                Ok(beacon) => {
                    count += 1;
                    let own = owner(&beacon, &self.known_keys(), self.did).map_or("", |_| ", of your own key");
                    // The DID is in the first line already.
                    let service = beacon.service.strip_prefix(self.did.as_str()).unwrap_or(&beacon.service);
                    lines.push(format!("  {} {} ({service}){own}", beacon.kind, beacon.address));
                }
                Err(UnusableBeacon { service, kind, endpoint, .. }) => {
                    lines.push(format!(
                        "  {kind} {service} cannot be used: {endpoint} is not an address of the DID's network"
                    ));
                }
            }
        }
        lines.push(match count {
            0 => "None: this update cannot be announced anywhere.".to_owned(),
            _ => "A cohort whose address is not among them would not be found by resolvers (rule R-4).".to_owned(),
        });
        lines.join("\n")
    }

    /// The public keys of Singleton beacons that the controller can sign for.
    fn known_keys(&self) -> Vec<PublicKey> {
        let listed = invocation_methods(self.source).map(|(_, key)| key).chain(self.did.key());
        listed.filter(|key| self.keys.key_of(key).is_some()).collect()
    }
}
