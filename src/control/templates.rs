//! Templates: drafts of terms, by name, and whether cohorts are advertised from them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    actors::state::{State, Table},
    error::ProgramError,
    serve::{
        orders::{COMMAND_LINE, Series},
        register::{entries, put, remove},
        terms::{Problem, Terms, TermsReader},
    },
};

/// The table in a state directory.
const TEMPLATES: &str = "control-templates";

/// The most templates.
const MOST: usize = 256;

/// The longest name, in bytes.
const MOST_NAME: usize = 64;

/// Whether cohorts are advertised from a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Advertising {
    /// Only when a cohort is asked for.
    #[default]
    Draft,
    /// One after the other.
    Advertised,
    /// Not now.
    Paused,
}

/// A template, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Template {
    /// The draft: terms by the keys of `serve --config`.
    #[serde(default)]
    pub(crate) terms: Map<String, Value>,
    /// How many of its cohorts are advertised at once.
    #[serde(default = "one")]
    pub(crate) parallel: u32,
    /// How many there are in all.
    #[serde(default)]
    pub(crate) cohorts: Option<u32>,
    /// Whether cohorts are advertised from it.
    #[serde(default)]
    pub(crate) state: Advertising,
}

const fn one() -> u32 {
    1
}

/// The templates of a service. Clones share them.
#[derive(Clone)]
pub(crate) struct TemplateBook(Arc<Inner>);

struct Inner {
    table: Table,
    reader: Arc<dyn TermsReader>,
    /// What the command line describes, which is the first template.
    command_line: Option<Terms>,
    known: Mutex<BTreeMap<String, Template>>,
}

/// A template with what it means now.
pub(crate) struct Shown {
    pub(crate) template: Template,
    pub(crate) terms: Result<Terms, Vec<Problem>>,
}

/// Why a name is none.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !begins || name.len() > MOST_NAME || !name.bytes().all(is_fine) {
        return Err(format!(
            "a name of 1 to {MOST_NAME} lower-case letters, digits, `-`, `_` and `.` expected, which begins with a letter or digit"
        ));
    }
    Ok(())
}

/// A template that cannot be read any more: its name, and why.
pub(crate) type Unreadable = (String, Vec<Problem>);

impl TemplateBook {
    /// The templates in a state directory, beside what the command line describes.
    pub(crate) async fn open(
        state: &State,
        reader: Arc<dyn TermsReader>,
        command_line: Option<Terms>,
    ) -> Result<Self, ProgramError> {
        let table = state.table(TEMPLATES);
        let known = Mutex::new(entries(&table).await?);
        Ok(Self(Arc::new(Inner { table, reader, command_line, known })))
    }

    /// Reads a draft.
    pub(crate) fn read(&self, draft: &Map<String, Value>) -> Result<Terms, Vec<Problem>> {
        self.0.reader.read(draft)
    }

    /// All names.
    pub(crate) fn names(&self) -> Vec<String> {
        let known = self.lock();
        let command_line = self.0.command_line.is_some() && !known.contains_key(COMMAND_LINE);
        let first = command_line.then(|| COMMAND_LINE.to_owned());
        // What is stored of the command line's is only whether it is paused.
        let others = known.keys().filter(|name| *name != COMMAND_LINE || self.0.command_line.is_some());
        first.into_iter().chain(others.cloned()).collect()
    }

    /// A template, and its terms.
    pub(crate) fn get(&self, name: &str) -> Option<Shown> {
        if name == COMMAND_LINE {
            let terms = self.0.command_line.clone()?;
            let stored = self.lock().get(name).map(|template| template.state);
            let state = stored.unwrap_or(Advertising::Advertised);
            let template = Template { terms: Map::new(), parallel: 1, cohorts: None, state };
            return Some(Shown { template, terms: Ok(terms) });
        }
        let template = self.lock().get(name)?.clone();
        let terms = self.read(&template.terms);
        Some(Shown { template, terms })
    }

    /// Whether a template is paused.
    pub(crate) fn is_paused(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|template| template.state == Advertising::Paused)
    }

    /// Stores a template; durable when this returns.
    pub(crate) async fn put(&self, name: &str, template: Template) -> Result<(), ProgramError> {
        put(&self.0.table, name, &template).await?;
        self.lock().insert(name.to_owned(), template);
        Ok(())
    }

    /// Whether one more fits.
    pub(crate) fn has_room(&self, name: &str) -> bool {
        let known = self.lock();
        known.len() < MOST || known.contains_key(name)
    }

    /// Removes a template.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), ProgramError> {
        remove(&self.0.table, name).await?;
        self.lock().remove(name);
        Ok(())
    }

    /// The series that run when the service starts, without the command line's, and the names of templates that cannot be read any more.
    pub(crate) fn series(&self) -> (BTreeMap<String, Series>, Vec<Unreadable>) {
        let (mut series, mut unreadable) = (BTreeMap::new(), Vec::new());
        for name in self.names().into_iter().filter(|name| name != COMMAND_LINE) {
            let Some(shown) = self.get(&name) else { continue };
            match series_of(&shown) {
                Ok(Some(one)) => drop(series.insert(name, one)),
                Ok(None) => {}
                Err(problems) => unreadable.push((name, problems)),
            }
        }
        (series, unreadable)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Template>> {
        // Each change is one call.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The series of a template; `None` if none runs, or if it is one of a standing cohort.
pub(crate) fn series_of(shown: &Shown) -> Result<Option<Series>, Vec<Problem>> {
    let Template { parallel, cohorts, state, .. } = shown.template;
    match (&shown.terms, state) {
        (_, Advertising::Draft) => Ok(None),
        (Err(problems), _) => Err(problems.clone()),
        (Ok(Terms::Standing(_)), _) => Ok(None),
        (Ok(Terms::Round(terms)), _) => {
            let is_paused = state == Advertising::Paused;
            Ok(Some(Series { terms: (**terms).clone(), parallel, cohorts, is_paused }))
        }
    }
}

/// What is shown of terms.
pub(crate) fn terms_view(terms: &Terms) -> Value {
    match terms {
        Terms::Round(terms) => json!({
            "kind": "cohort",
            "conditions": terms.conditions().ok(),
            "timing": terms.timing,
            "rules": terms.rules,
            "maxIsMargin": terms.max_is_margin,
        }),
        Terms::Standing(standing) => json!({
            "kind": "standing",
            "terms": standing.terms,
            "operatorOutput": standing.output.as_ref().map(|output| json!({
                "scriptHex": output.script_pubkey.to_hex_string(), "value": output.value.to_sat(),
            })),
        }),
    }
}
