//! What a member does by itself, what it asks for, and what it declines. [`Policy::on_offer`] and [`Policy::on_request`] are pure: the running
//! agent and `member dry-run` ask the same functions.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::explained::Explained;
use crate::protocol::{
    cohort::standing::{StandingBeacon, StandingPolicy, StandingTerms},
    did::Did,
    id::CohortId,
};

/// What happens to an offer that the policy does not accept by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// It is declined.
    #[default]
    Decline,
    /// It waits until a person approves or rejects it.
    Hold,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consent {
    /// By itself, within the limits of the policy.
    #[default]
    Auto,
    /// After it was approved.
    Ask,
    /// Never. Seats that exist go on; the DIDs of a cohort that moves stay, or leave by their Singletons.
    Never,
}

/// How an announcement is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signing {
    /// By itself, when the machine has verified it.
    #[default]
    Auto,
    /// After it was approved.
    Ask,
    /// The same, where updates of this member are in it; others are signed by itself.
    AskOwn,
}

/// The policy of a member.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// The limits of terms: what is beyond them is declined, whatever else is set.
    pub terms: StandingPolicy,
    /// The services whose cohorts are joined; all that are reached, if there are none.
    pub services: Vec<Did>,
    /// The type of the beacon; any, if there is none.
    pub beacon: Option<StandingBeacon>,
    /// The least number of seats that a cohort may have.
    pub least_seats: Option<u16>,
    /// The greatest number of seats that a cohort may have.
    pub most_seats: Option<u16>,
    /// In how many cohorts of one service a seed takes a seat.
    pub most_cohorts: u32,
    /// What happens to other offers.
    pub otherwise: Otherwise,
    /// Whether cohorts are joined, but for successors.
    pub join: Consent,
    /// Whether its cohorts are followed to their successors: a seat there, and the address change of each DID.
    #[serde(rename = "move")]
    pub moving: Consent,
    /// How announcements are signed.
    pub sign: Signing,
    /// How long a decision may take. An announcement that is not approved by then is not signed.
    pub timeout: Duration,
    /// How many announcements of one cohort are signed in 24 hours.
    pub most_announcements_per_day: Option<u32>,
    /// How many updates of one DID are submitted in 24 hours.
    pub most_updates_per_day: Option<u32>,
    /// After which time a service that cannot be reached is reported as silent.
    pub silence: Duration,
    /// The command that decides instead of a person, with its arguments.
    pub hook: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            terms: StandingPolicy::default(),
            services: Vec::new(),
            beacon: None,
            least_seats: None,
            most_seats: None,
            most_cohorts: 1,
            otherwise: Otherwise::default(),
            join: Consent::default(),
            moving: Consent::default(),
            sign: Signing::default(),
            timeout: Duration::from_secs(300),
            most_announcements_per_day: None,
            most_updates_per_day: None,
            silence: Duration::from_secs(86_400),
            hook: Vec::new(),
        }
    }
}

/// A cohort that is offered.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The service; none where that is not known.
    pub service: Option<&'a Did>,
    /// The cohort.
    pub cohort_id: &'a CohortId,
    /// Its terms.
    pub terms: &'a StandingTerms,
    /// In how many other cohorts of the service the seed has a seat, without those that have moved or that it succeeds.
    pub cohorts: u32,
    /// Whether it succeeds a cohort in which the seed has a seat.
    pub succeeds: bool,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Verdict {
    /// It is done.
    Accept,
    /// A person, or the hook, is asked.
    Ask {
        /// Why.
        reasons: Vec<String>,
        /// Whether it waits without end.
        held: bool,
    },
    /// It is not done.
    Decline {
        /// Why.
        reasons: Vec<String>,
    },
}

/// An announcement to sign, as the one who is asked for a decision gets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignRequest {
    /// The service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The seed of the seat, by its name.
    pub seat: String,
    /// The number.
    pub number: u64,
    /// The beacon address.
    pub beacon_address: String,
    /// `key` or `fallback`.
    pub mode: String,
    /// The transaction's id.
    pub txid: String,
    /// The outputs that are not the beacon's change and not the signal, in satoshi.
    pub operator_outputs: Vec<u64>,
    /// The updates of this member in it: DID and hash.
    pub updates: Vec<Value>,
    /// How many announcements of the cohort this seat has signed in the last 24 hours.
    pub signed_today: u32,
    /// The address of the successor to which it pays its change, for a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves_to: Option<String>,
    /// The transaction in parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<Explained>,
}

/// A move to a successor, as the one who is asked for a decision gets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveRequest {
    /// The service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The seed of the seat, by its name.
    pub seat: String,
    /// The number.
    pub number: u64,
    /// The cohort to which it moves.
    pub successor: CohortId,
    /// The beacon address that each document lists from then on.
    pub beacon_address: String,
    /// The DIDs that move.
    pub dids: Vec<Did>,
}

impl Policy {
    /// What is done with an offer.
    pub fn on_offer(&self, offer: &Offer<'_>) -> Verdict {
        let beyond = self.terms.objections(offer.terms, None);
        if !beyond.is_empty() {
            return Verdict::Decline { reasons: beyond };
        }
        let joining = if offer.succeeds { self.moving } else { self.join };
        if joining == Consent::Never {
            let reason = match offer.succeeds {
                true => "the policy follows no cohort to its successor",
                false => "the policy joins no cohorts",
            };
            return Verdict::Decline { reasons: vec![reason.to_owned()] };
        }
        let mut reasons = Vec::new();
        let mut object = |wrong: bool, reason: &dyn Fn() -> String| {
            if wrong {
                reasons.push(reason());
            }
        };
        let is_listed = offer.service.is_some_and(|service| self.services.contains(service));
        object(!self.services.is_empty() && !is_listed, &|| "the service is not in the policy's list".to_owned());
        object(self.beacon.is_some_and(|beacon| beacon != offer.terms.beacon_type), &|| {
            format!("the beacon is a {}", offer.terms.beacon_type.as_str())
        });
        object(self.least_seats.is_some_and(|least| offer.terms.min_participants < least), &|| {
            format!("the cohort may have {} seats only", offer.terms.min_participants)
        });
        object(self.most_seats.is_some_and(|most| offer.terms.max_participants > most), &|| {
            format!("the cohort may have {} seats", offer.terms.max_participants)
        });
        object(offer.cohorts >= self.most_cohorts, &|| {
            format!("there are seats in {} cohorts of the service already", offer.cohorts)
        });
        let asks = match offer.succeeds {
            true => "the policy asks before it follows a cohort to its successor",
            false => "the policy asks before it joins",
        };
        match (reasons.is_empty(), self.otherwise, joining) {
            (true, _, Consent::Auto) => Verdict::Accept,
            (true, ..) => Verdict::Ask { reasons: vec![asks.to_owned()], held: false },
            (false, Otherwise::Hold, _) => Verdict::Ask { reasons, held: true },
            (false, Otherwise::Decline, _) => Verdict::Decline { reasons },
        }
    }

    /// What is done with a request to sign.
    pub fn on_request(&self, request: &SignRequest) -> Verdict {
        if self.most_announcements_per_day.is_some_and(|most| request.signed_today >= most) {
            let reason = format!("{} announcements were signed in the last 24 hours", request.signed_today);
            return Verdict::Decline { reasons: vec![reason] };
        }
        let asks = match self.sign {
            Signing::Auto => false,
            Signing::Ask => true,
            Signing::AskOwn => !request.updates.is_empty(),
        };
        match asks {
            true => Verdict::Ask { reasons: vec!["the policy asks before it signs".to_owned()], held: false },
            false => Verdict::Accept,
        }
    }

    /// What is done when the DIDs of a seat are to move. The limits of terms apply to the successor too; its seats check them.
    pub fn on_move(&self, _: &MoveRequest) -> Verdict {
        match self.moving {
            Consent::Auto => Verdict::Accept,
            Consent::Ask => {
                Verdict::Ask { reasons: vec!["the policy asks before DIDs move".to_owned()], held: false }
            }
            Consent::Never => {
                Verdict::Decline { reasons: vec!["the policy follows no cohort to its successor".to_owned()] }
            }
        }
    }

    /// What a person is shown of a verdict.
    pub fn explain(&self, verdict: &Verdict) -> Value {
        let mut shown = json!(verdict);
        if matches!(verdict, Verdict::Ask { .. }) {
            shown["asks"] = match self.hook.first() {
                Some(command) => json!({ "hook": command, "timeoutSeconds": self.timeout.as_secs() }),
                None => json!({ "command": "member approve|reject", "timeoutSeconds": self.timeout.as_secs() }),
            };
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::protocol::{identity::Identity, key::SecretKey, network::Network};

    fn service(byte: u8) -> Did {
        Identity::from_key(SecretKey::from_bytes(&[byte; 32]).unwrap(), Network::Regtest).did().clone()
    }

    fn verdict(policy: &Policy, change: impl FnOnce(&mut StandingTerms), cohorts: u32) -> Verdict {
        let mut terms = StandingTerms::new(StandingBeacon::Cas, Network::Regtest, 3, 5).proceeding(2);
        (terms.fallback_threshold, terms.max_participants) = (Some(2), 3);
        change(&mut terms);
        let (service, cohort_id) = (service(1), CohortId::parse("c").unwrap());
        let succeeds = false;
        policy.on_offer(&Offer { service: Some(&service), cohort_id: &cohort_id, terms: &terms, cohorts, succeeds })
    }

    fn reasons(verdict: Verdict) -> Vec<String> {
        match verdict {
            Verdict::Accept => Vec::new(),
            Verdict::Ask { reasons, .. } | Verdict::Decline { reasons } => reasons,
        }
    }

    #[test]
    fn an_offer_is_accepted_within_every_limit_only() {
        let policy = Policy::default();
        assert_eq!(verdict(&policy, |_| {}, 0), Verdict::Accept);
        assert!(matches!(verdict(&policy, |_| {}, 1), Verdict::Decline { .. }), "one cohort of a service");
        assert_eq!(verdict(&Policy { most_cohorts: 2, ..policy.clone() }, |_| {}, 1), Verdict::Accept);
        let limits = [
            Policy { services: vec![service(2)], ..policy.clone() },
            Policy { beacon: Some(StandingBeacon::Smt), ..policy.clone() },
            Policy { least_seats: Some(4), ..policy.clone() },
            Policy { most_seats: Some(2), ..policy.clone() },
        ];
        for limited in limits {
            assert_eq!(reasons(verdict(&limited, |_| {}, 0)).len(), 1, "{limited:?}");
            let held = Policy { otherwise: Otherwise::Hold, ..limited };
            assert!(matches!(verdict(&held, |_| {}, 0), Verdict::Ask { held: true, .. }), "{held:?}");
        }
        assert_eq!(
            verdict(&Policy { services: vec![service(2), service(1)], ..policy.clone() }, |_| {}, 0),
            Verdict::Accept
        );
        // Beyond the limits of terms no person is asked.
        let held = Policy { otherwise: Otherwise::Hold, ..policy.clone() };
        assert!(matches!(verdict(&held, |terms| terms.max_fee_rate = 2_000, 0), Verdict::Decline { .. }));
        let asking = Policy { join: Consent::Ask, ..policy.clone() };
        assert!(matches!(verdict(&asking, |_| {}, 0), Verdict::Ask { held: false, .. }));
        let never = Policy { join: Consent::Never, ..policy };
        assert!(matches!(verdict(&never, |_| {}, 0), Verdict::Decline { .. }));
    }

    #[test]
    fn a_successor_is_followed_by_the_setting_for_moves_within_the_limits() {
        let terms = StandingTerms::new(StandingBeacon::Cas, Network::Regtest, 4, 4).proceeding(3);
        let (service, cohort_id) = (service(1), CohortId::parse("new").unwrap());
        let offer =
            Offer { service: Some(&service), cohort_id: &cohort_id, terms: &terms, cohorts: 0, succeeds: true };
        let request = MoveRequest {
            service: service.clone(),
            cohort_id: CohortId::parse("old").unwrap(),
            seat: "home".to_owned(),
            number: 3,
            successor: cohort_id.clone(),
            beacon_address: String::new(),
            dids: Vec::new(),
        };
        let policy = |moving| Policy { moving, join: Consent::Never, ..Policy::default() };
        assert_eq!(policy(Consent::Auto).on_offer(&offer), Verdict::Accept, "although it joins nothing else");
        assert_eq!(policy(Consent::Auto).on_move(&request), Verdict::Accept);
        for verdict in [policy(Consent::Ask).on_offer(&offer), policy(Consent::Ask).on_move(&request)] {
            assert!(matches!(verdict, Verdict::Ask { held: false, .. }), "{verdict:?}");
        }
        for verdict in [policy(Consent::Never).on_offer(&offer), policy(Consent::Never).on_move(&request)] {
            assert!(matches!(verdict, Verdict::Decline { .. }), "{verdict:?}");
        }
        let limited = Policy { most_seats: Some(3), ..policy(Consent::Auto) };
        assert!(matches!(limited.on_offer(&offer), Verdict::Decline { .. }));
    }

    #[test]
    fn an_announcement_is_signed_asked_for_or_beyond_the_day() {
        let request = |signed_today, updates| SignRequest {
            service: service(1),
            cohort_id: CohortId::parse("c").unwrap(),
            seat: "home".to_owned(),
            number: 1,
            beacon_address: String::new(),
            mode: "key".to_owned(),
            txid: String::new(),
            operator_outputs: Vec::new(),
            updates,
            signed_today,
            moves_to: None,
            transaction: None,
        };
        let policy = |sign| Policy { sign, most_announcements_per_day: Some(2), ..Policy::default() };
        let (none, own) = (Vec::new(), vec![json!({})]);
        assert_eq!(policy(Signing::Auto).on_request(&request(1, own.clone())), Verdict::Accept);
        assert!(matches!(policy(Signing::Auto).on_request(&request(2, none.clone())), Verdict::Decline { .. }));
        assert!(matches!(policy(Signing::Ask).on_request(&request(0, none.clone())), Verdict::Ask { .. }));
        assert_eq!(policy(Signing::AskOwn).on_request(&request(0, none)), Verdict::Accept);
        let asked = policy(Signing::AskOwn).on_request(&request(0, own));
        assert!(matches!(asked, Verdict::Ask { .. }));
        assert_eq!(policy(Signing::AskOwn).explain(&asked)["asks"]["timeoutSeconds"], 300);
    }
}
