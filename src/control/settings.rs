//! Settings that the operator changes while the service runs, and the DIDs that it lists: persisted, over those of the command line.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use crate::{
    actors::state::{State, Table},
    error::ProgramError,
    protocol::did::Did,
    serve::{
        register::{entries, put, remove},
        switches::{Switches, Values},
        terms::Problem,
    },
};

/// The tables in a state directory.
const SETTINGS: &str = "control-settings";
const ALLOWED: &str = "control-allowed";

/// The key of the settings in their table.
const KEY: &str = "settings";

/// The most listed DIDs. A longer list is a file (`--allow-list`).
const MOST_LISTED: usize = 10_000;

/// What was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Overrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    invites: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_list: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proven_keys_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manual_admission: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adverts: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_live_cohorts: Option<u32>,
}

impl Overrides {
    fn over(self, base: Values) -> Values {
        Values {
            invites: self.invites.unwrap_or(base.invites),
            allow_list: self.allow_list.unwrap_or(base.allow_list),
            proven_keys_only: self.proven_keys_only.unwrap_or(base.proven_keys_only),
            manual_admission: self.manual_admission.unwrap_or(base.manual_admission),
            adverts: self.adverts.unwrap_or(base.adverts),
            max_live_cohorts: self.max_live_cohorts.unwrap_or(base.max_live_cohorts),
        }
    }
}

/// The settings of a service. Clones share them.
#[derive(Clone)]
pub(crate) struct Settings(Arc<Inner>);

struct Inner {
    settings: Table,
    allowed: Table,
    /// Those of the command line.
    base: Values,
    switches: Switches,
    /// Locked for the whole of a change.
    overrides: Mutex<Overrides>,
}

/// A change that was checked.
pub(crate) struct Patch(Vec<(&'static str, Value)>);

/// Checks a change: an object with the settings to change; `null` is the command line's again.
pub(crate) fn patch(body: &Map<String, Value>) -> Result<Patch, Vec<Problem>> {
    const SWITCHES: [&str; 5] = ["invites", "allow-list", "proven-keys-only", "manual-admission", "adverts"];
    const NUMBER: &str = "max-live-cohorts";
    let (mut changes, mut problems) = (Vec::new(), Vec::new());
    for (name, value) in body {
        let refuse = |detail: &str| Problem { field: Some(name.clone()), detail: detail.to_owned() };
        if let Some(known) = SWITCHES.iter().find(|known| **known == name.as_str()) {
            match value {
                Value::Bool(_) | Value::Null => changes.push((*known, value.clone())),
                _ => problems.push(refuse("true, false or null expected")),
            }
        } else if name == NUMBER {
            let is_fine = value.is_null() || value.as_u64().is_some_and(|number| (1..=1_000_000).contains(&number));
            if is_fine {
                changes.push((NUMBER, value.clone()));
            } else {
                problems.push(refuse("a number from 1 to 1000000 or null expected"));
            }
        } else {
            problems.push(refuse("there is no such setting, or it needs a restart"));
        }
    }
    if changes.is_empty() && problems.is_empty() {
        problems.push(Problem { field: None, detail: "an object with at least one setting expected".to_owned() });
    }
    if problems.is_empty() { Ok(Patch(changes)) } else { Err(problems) }
}

impl Settings {
    /// The settings in a state directory over `base`, applied to `switches`.
    pub(crate) async fn open(state: &State, base: Values, switches: Switches) -> Result<Self, ProgramError> {
        let (settings, allowed) = (state.table(SETTINGS), state.table(ALLOWED));
        let overrides: BTreeMap<String, Overrides> = entries(&settings).await?;
        let overrides = overrides.get(KEY).copied().unwrap_or_default();
        switches.set(overrides.over(base));
        let listed: BTreeMap<String, Value> = entries(&allowed).await?;
        switches.list(listed.keys().filter_map(|did| Did::parse(did).ok()).collect());
        Ok(Self(Arc::new(Inner { settings, allowed, base, switches, overrides: Mutex::new(overrides) })))
    }

    /// What they are now, and which of them were changed.
    pub(crate) async fn view(&self) -> Value {
        let overrides = *self.0.overrides.lock().await;
        let Values { invites, allow_list, proven_keys_only, manual_admission, adverts, max_live_cohorts } =
            self.0.switches.values();
        json!({
            "settings": {
                "invites": invites, "allow-list": allow_list, "proven-keys-only": proven_keys_only,
                "manual-admission": manual_admission, "adverts": adverts, "max-live-cohorts": max_live_cohorts,
            },
            "changed": overrides,
        })
    }

    /// Changes settings; durable when this returns.
    pub(crate) async fn change(&self, Patch(changes): Patch) -> Result<(), ProgramError> {
        let mut overrides = self.0.overrides.lock().await;
        let mut next = *overrides;
        for (name, value) in changes {
            match name {
                "invites" => next.invites = value.as_bool(),
                "allow-list" => next.allow_list = value.as_bool(),
                "proven-keys-only" => next.proven_keys_only = value.as_bool(),
                "manual-admission" => next.manual_admission = value.as_bool(),
                "adverts" => next.adverts = value.as_bool(),
                _ => next.max_live_cohorts = value.as_u64().and_then(|number| u32::try_from(number).ok()),
            }
        }
        put(&self.0.settings, KEY, &next).await?;
        *overrides = next;
        self.0.switches.set(next.over(self.0.base));
        Ok(())
    }

    /// The listed DIDs.
    pub(crate) fn listed(&self) -> Arc<BTreeSet<Did>> {
        self.0.switches.listed()
    }

    /// Lists a DID, or removes it from the list; durable when this returns.
    ///
    /// # Errors
    /// The inner one when the list is full.
    pub(crate) async fn list(&self, did: &Did, listed: bool) -> Result<Result<(), String>, ProgramError> {
        // One change at a time.
        let _changing = self.0.overrides.lock().await;
        let mut dids = (*self.0.switches.listed()).clone();
        if listed {
            if dids.len() >= MOST_LISTED && !dids.contains(did) {
                return Ok(Err(format!("{MOST_LISTED} DIDs are listed: use a file (--allow-list) for more")));
            }
            put(&self.0.allowed, did.as_str(), &json!({})).await?;
            dids.insert(did.clone());
        } else {
            remove(&self.0.allowed, did.as_str()).await?;
            dids.remove(did);
        }
        self.0.switches.list(dids);
        Ok(Ok(()))
    }
}
