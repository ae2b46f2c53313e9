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

/// What was reported of a DID and is still true.
#[derive(Debug, Default)]
pub struct Changes(BTreeMap<Subject, Status>);

/// What makes two findings the same: their texts change with every block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    code: Code,
    about: About,
    /// Of those that have nothing else to be distinguished by, the text.
    text: Option<String>,
}

impl Subject {
    fn of(finding: &Finding) -> Self {
        let Finding { code, about, text, .. } = finding;
        let by_text = matches!(code, Code::Store | Code::VaultDamaged | Code::InvalidRecord | Code::UnusableBeacon);
        Self { code: *code, about: about.clone(), text: by_text.then(|| text.clone()) }
    }
}

impl Changes {
    /// The events for what is new in `report`. Beacons that are as they should be have none.
    pub fn since(&mut self, report: &Report) -> Vec<CheckNotice> {
        let mut now = BTreeMap::new();
        let mut notices = Vec::new();
        for finding in &report.findings {
            let key = Subject::of(finding);
            let status = if finding.accepted { Status::Ok } else { finding.status };
            let is_known = now.contains_key(&key) || self.0.get(&key) == Some(&status);
            let is_routine = finding.code == Code::Beacon;
            if !is_known && !is_routine {
                notices.push(CheckNotice::Finding { did: report.did.clone(), finding: finding.clone() });
            }
            now.insert(key, status);
        }
        let cleared = self.0.iter().filter(|(key, status)| **status != Status::Ok && !now.contains_key(key));
        notices.extend(cleared.map(|(Subject { code, about, .. }, _)| CheckNotice::FindingCleared {
            did: report.did.clone(),
            code: *code,
            about: about.clone(),
        }));
        self.0 = now;
        notices
    }
}
