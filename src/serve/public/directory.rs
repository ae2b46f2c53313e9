//! The directory: what the service offers and has announced, as one value. Both `GET /v1/directory` and the public page show it.
//!
//! It has nothing that a member's program would not be sent, or the chain does not show, and nothing of members and candidates.

use std::sync::Arc;

use ::bitcoin::{Address, Txid};
use serde::Serialize;
use serde_json::Value;

use super::{
    super::admission::{Admission, AdmissionRules},
    announced::{Announced, Ledger},
    joining::{Called, Join},
};
use crate::{
    actors::{
        announcement::Announcements,
        handle::{Service, StandingCohort},
        transport::http::{HttpServer, history::History},
    },
    bitcoin::{announcement::State, chain::BlockId},
    protocol::{
        cohort::standing::message::StandingMessage,
        did::Did,
        id::CohortId,
        message::{Body, SharedBody},
        network::Network,
        time::Timestamp,
    },
    words,
};

/// The version of the format.
const VERSION: u32 = 1;

/// The most open cohorts, standing cohorts, announcements on their way, and announcements of a page.
const MOST_OPEN: usize = 100;
const MOST_STANDING: usize = 100;
const MOST_PENDING: usize = 100;
pub(super) const PAGE: usize = 50;

/// How many announcements of a standing cohort are shown, and among how many numbers they are looked for.
const LAST: usize = 5;
const AMONG: u64 = 64;

/// The service.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    pub(crate) did: Did,
    pub(crate) network: Network,
    pub(crate) url: String,
    pub(crate) relays: Vec<String>,
}

/// The kind of a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    OneTime,
    Standing,
}

/// A cohort that is advertised.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenCohort {
    pub(crate) kind: Kind,
    pub(crate) cohort_id: CohortId,
    /// Whether only an invite, or the operator's list, admits. Then there are no terms here.
    pub(crate) by_invite: bool,
    /// The terms of the advert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) terms: Option<Value>,
    /// What they mean.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) in_words: Vec<String>,
    pub(crate) join: Join,
}

/// An announcement of a standing cohort.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) txid: String,
    /// `unconfirmed`, `final` or `void`.
    pub(crate) state: String,
}

/// A standing cohort that has formed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    pub(crate) cohort_id: CohortId,
    pub(crate) beacon_address: String,
    pub(crate) beacon_type: &'static str,
    pub(crate) seats: usize,
    /// The last number that was used.
    pub(crate) last_number: u64,
    /// The last announcements, the newest first.
    pub(crate) last_announcements: Vec<Numbered>,
    /// All of them, relative to the service's URL.
    pub(crate) announcements: String,
    /// The cohort to which it moves, or has moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) successor: Option<CohortId>,
}

/// How far an announcement of a one-time cohort is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Progress {
    Broadcast,
    Confirmed,
    Final,
}

/// An announcement of a one-time cohort.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Announcement {
    pub(crate) cohort_id: CohortId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) beacon_address: Option<String>,
    pub(crate) txid: Txid,
    pub(crate) state: Progress,
    /// At least so many.
    pub(crate) confirmations: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block: Option<BlockId>,
    /// When it was final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<Timestamp>,
}

/// Announcements, the newest first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Page {
    pub(crate) items: Vec<Announcement>,
    /// The `before` of the next page.
    pub(crate) next: Option<u64>,
}

/// The directory.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Directory {
    pub(crate) v: u32,
    pub(crate) service: About,
    pub(crate) admission: Admission,
    pub(crate) cohorts: Vec<OpenCohort>,
    /// How many more are advertised.
    pub(crate) more_cohorts: usize,
    /// How to wait for the next one-time cohort.
    pub(crate) join: Join,
    pub(crate) standing: Vec<Standing>,
    pub(crate) more_standing: usize,
    pub(crate) announcements: Page,
}

/// Where it comes from.
pub(crate) struct Origins {
    pub(crate) service: Service,
    pub(crate) announcements: Option<Announcements>,
    pub(crate) history: Option<Arc<dyn History>>,
    pub(crate) ledger: Ledger,
    pub(crate) admission: AdmissionRules,
}

impl Origins {
    /// What it is now.
    pub(super) async fn directory(&self, about: &About, server: &HttpServer) -> Directory {
        let admission = self.admission.describe();
        let (adverts, advertised) = server.adverts(MOST_OPEN).await;
        let called = Called {
            url: &about.url,
            did: &about.did,
            network: about.network,
            by_invite: admission.is_restricted(),
        };
        let cohorts: Vec<_> = adverts.iter().filter_map(|body| open_cohort(body, &called)).collect();
        let (standing, more_standing) = self.standing().await;
        let mut announcements = self.page(None, PAGE);
        let mut pending = self.pending(about.network).await;
        pending.append(&mut announcements.items);
        announcements.items = pending;
        Directory {
            v: VERSION,
            service: about.clone(),
            admission,
            more_cohorts: advertised.saturating_sub(adverts.len()),
            join: called.round(None, None),
            cohorts,
            standing,
            more_standing,
            announcements,
        }
    }

    /// A page of the announcements that are final.
    pub(super) fn page(&self, before: Option<u64>, most: usize) -> Page {
        let confirmations = self.announcements.as_ref().map_or(0, |known| known.rules().confirmations);
        let shown = |one: &Announced| Announcement {
            cohort_id: one.cohort_id.clone(),
            beacon_address: one.beacon_address.clone(),
            txid: one.txid,
            state: Progress::Final,
            confirmations,
            block: Some(one.block),
            at: Some(one.at),
        };
        let (page, next) = self.ledger.page(before, most);
        Page { items: page.iter().map(|(_, one)| shown(one)).collect(), next }
    }

    /// The announcements that are on their way, or whose end is not acknowledged yet.
    async fn pending(&self, network: Network) -> Vec<Announcement> {
        let Some(known) = &self.announcements else { return Vec::new() };
        let mut pending = Vec::new();
        for cohort_id in known.cohorts().await.unwrap_or_default().into_iter().take(MOST_PENDING) {
            let Ok(machine) = known.inspect(&cohort_id).await else { continue };
            let State::Announcing(announcing) = machine.state() else { continue };
            let address = Address::from_script(machine.script(), network.to_bitcoin());
            pending.push(Announcement {
                cohort_id,
                beacon_address: address.ok().map(|address| address.to_string()),
                txid: announcing.txid,
                state: if announcing.confirmed.is_some() { Progress::Confirmed } else { Progress::Broadcast },
                confirmations: announcing.confirmed.map_or(0, |(_, depth)| depth),
                block: announcing.confirmed.map(|(block, _)| block),
                at: None,
            });
        }
        // The one with the fewest confirmations is the newest.
        pending.sort_by_key(|one| (one.confirmations, one.txid));
        pending
    }

    /// The standing cohorts that have formed, and how many more there are.
    async fn standing(&self) -> (Vec<Standing>, usize) {
        let (mut standing, mut more) = (Vec::new(), 0);
        for cohort in self.service.standing_cohorts().await {
            match standing.len() < MOST_STANDING {
                true => standing.extend(self.one_standing(&cohort).await),
                false => more += 1,
            }
        }
        (standing, more)
    }

    async fn one_standing(&self, cohort: &StandingCohort) -> Option<Standing> {
        let machine = cohort.inspect().await?;
        let output = machine.output()?;
        let (cohort_id, last_number) = (cohort.id().clone(), machine.last_number());
        Some(Standing {
            beacon_address: output.address().to_string(),
            beacon_type: machine.config().terms.beacon_type.as_str(),
            seats: machine.seats().count(),
            last_number,
            last_announcements: self.last_announcements(&cohort_id, last_number).await,
            announcements: format!("v1/standing/{cohort_id}/announcements"),
            successor: machine.successor().map(|successor| successor.cohort_id.clone()),
            cohort_id,
        })
    }

    async fn last_announcements(&self, cohort_id: &CohortId, last: u64) -> Vec<Numbered> {
        let Some(history) = &self.history else { return Vec::new() };
        let most = usize::try_from(AMONG).unwrap_or(usize::MAX);
        // What cannot be read now is at its own route.
        let Ok(listed) = history.announcements(cohort_id, last.saturating_sub(AMONG), most).await else {
            return Vec::new();
        };
        let listed = listed["announcements"].as_array().into_iter().flatten().rev();
        let numbered = |one: &Value| {
            let text = |field: &str| one[field].as_str().map(str::to_owned);
            // A refresh announces nothing.
            one.get("signal")?;
            Some(Numbered { number: one["number"].as_u64()?, txid: text("txid")?, state: text("state")? })
        };
        listed.filter_map(numbered).take(LAST).collect()
    }
}

/// A cohort by its advert.
fn open_cohort(body: &SharedBody, called: &Called<'_>) -> Option<OpenCohort> {
    let is_open = !called.by_invite;
    match &**body {
        Body::CohortAdvert(advert) => Some(OpenCohort {
            kind: Kind::OneTime,
            cohort_id: advert.cohort_id.clone(),
            by_invite: called.by_invite,
            terms: is_open.then(|| terms(advert)).flatten(),
            in_words: if is_open { words::of_round(advert) } else { Vec::new() },
            join: called.round(Some(&advert.beacon_type), is_open.then_some(advert)),
        }),
        Body::Standing(message) => match &**message {
            StandingMessage::StandingAdvert(advert) => Some(OpenCohort {
                kind: Kind::Standing,
                cohort_id: advert.cohort_id.clone(),
                by_invite: called.by_invite,
                terms: is_open.then(|| terms(&advert.terms)).flatten(),
                in_words: if is_open { words::of_standing(&advert.terms) } else { Vec::new() },
                join: called.standing(is_open.then_some(&advert.terms)),
            }),
            _ => None,
        },
        _ => None,
    }
}

/// The terms as the advert has them, without what is stated elsewhere in the directory.
fn terms(advert: &impl Serialize) -> Option<Value> {
    let mut terms = serde_json::to_value(advert).ok()?;
    if let Value::Object(fields) = &mut terms {
        for name in ["cohortId", "network", "communicationPk"] {
            fields.shift_remove(name);
        }
    }
    Some(terms)
}
