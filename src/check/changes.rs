//! What has changed from one check to the next, as events.

use std::collections::BTreeMap;

use serde::Serialize;
use strum::VariantNames;

use super::{About, Code, Finding, Report, Status};
use crate::protocol::did::Did;

/// An event of `watch --check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "the names and types describe the fields")]
pub enum CheckNotice {
    /// A finding that is new, or whose status has changed.
    Finding {
        did: Did,
        #[serde(flatten)]
        finding: Finding,
    },
    /// A finding is not true any more.
    FindingCleared {
        did: Did,
        code: Code,
        #[serde(flatten)]
        about: About,
    },
}

impl CheckNotice {
    /// A line for people.
    pub fn text(&self) -> String {
        match self {
            Self::Finding { finding, .. } => {
                let advice =
                    finding.advice.as_ref().map_or_else(String::new, |advice| format!(". What to do: {advice}"));
                format!("{}: {}{advice}", label(finding), finding.text)
            }
            Self::FindingCleared { code, about, .. } => {
                let subject = serde_json::to_value(about).unwrap_or_default();
                let subject: Vec<String> = subject
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(_, value)| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                    .collect();
                let code = serde_json::to_value(code).unwrap_or_default();
                format!("cleared: {} {}", code.as_str().unwrap_or_default(), subject.join(" "))
                    .trim_end()
                    .to_owned()
            }
        }
    }
}

/// The status of a finding as it is printed.
pub(crate) fn label(finding: &Finding) -> &'static str {
    match finding.status {
        _ if finding.accepted => "accepted",
        Status::Ok => "ok",
        Status::Warning => "WARNING",
        Status::Unknown => "UNKNOWN",
        Status::Problem => "PROBLEM",
    }
}

/// What was reported of a DID and is still true, or may be.
#[derive(Debug, Default)]
pub struct Changes(BTreeMap<Subject, Known>);

/// What makes two findings the same: their texts change with every block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    code: Code,
    about: About,
    /// Of those that have nothing else to be distinguished by, the text.
    text: Option<String>,
}

/// How a finding was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    status: Status,
    state: Option<String>,
}

impl Subject {
    fn of(finding: &Finding) -> Self {
        let Finding { code, about, text, .. } = finding;
        let by_text = matches!(code, Code::Store | Code::VaultDamaged | Code::InvalidRecord | Code::UnusableBeacon);
        Self { code: *code, about: about.clone(), text: by_text.then(|| text.clone()) }
    }
}

impl Known {
    fn of(finding: &Finding) -> Self {
        let status = if finding.accepted { Status::Ok } else { finding.status };
        Self { status, state: finding.state.clone() }
    }
}

impl Changes {
    /// The events for what is new in `report`. Beacons that are as they should be have none. What could not be asked stays as it was
    /// reported: it is not cleared.
    pub fn since(&mut self, report: &Report) -> Vec<CheckNotice> {
        // Of several about the same the worst counts.
        let mut worst: BTreeMap<Subject, &Finding> = BTreeMap::new();
        for finding in &report.findings {
            let entry = worst.entry(Subject::of(finding)).or_insert(finding);
            if Known::of(finding).status > Known::of(entry).status {
                *entry = finding;
            }
        }
        let mut notices = Vec::new();
        for finding in &report.findings {
            let key = Subject::of(finding);
            let now = Known::of(finding);
            if worst.get(&key).is_none_or(|worst| !std::ptr::eq(*worst, finding)) {
                continue;
            }
            let before = self.0.get(&key);
            let is_open = !report.is_asked(key.code) && before.is_some_and(|before| before.status > now.status);
            if is_open || before == Some(&now) {
                continue;
            }
            if finding.code != Code::Beacon {
                notices.push(CheckNotice::Finding { did: report.did.clone(), finding: finding.clone() });
            }
            self.0.insert(key, now);
        }
        let gone = |key: &Subject| !worst.contains_key(key) && report.is_asked(key.code);
        let cleared = self.0.iter().filter(|(key, known)| known.status != Status::Ok && gone(key));
        notices.extend(cleared.map(|(Subject { code, about, .. }, _)| CheckNotice::FindingCleared {
            did: report.did.clone(),
            code: *code,
            about: about.clone(),
        }));
        self.0.retain(|key, _| !gone(key));
        notices
    }
}
