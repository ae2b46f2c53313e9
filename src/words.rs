//! What the terms of a cohort mean, for people who have not read the documentation.

use std::time::Duration;

use crate::{
    config::Span,
    protocol::{
        beacon::BeaconType,
        cohort::standing::{Absent, Registration, StandingBeacon, StandingTerms, Updates},
        message::keygen::{CohortAdvert, Cost, CostBasis},
        text::shown,
    },
};

const CAS: &str = "The announcement is a map that every reader can look at: it has the DIDs with an update, and the hash of each update. \
                   A DID without an update is not in it.";
const SMT: &str = "The announcement is the root of a tree: it shows nothing of a DID to a reader who does not have the proof of that DID.";

/// How many members, e.g. `2 to 5 members`.
fn many(least: u32, most: Option<u32>, one: &str) -> String {
    match most {
        Some(most) if most == least && most == 1 => format!("1 {one}"),
        Some(most) if most == least => format!("{most} {one}s"),
        Some(most) => format!("{least} to {most} {one}s"),
        None => format!("{least} {one}s or more"),
    }
}

fn time(seconds: u32) -> String {
    Span(Duration::from_secs(u64::from(seconds))).to_string()
}

/// A number of blocks as a time; about ten minutes each.
fn days(blocks: u32) -> String {
    match blocks {
        0..144 => format!("about {} hours", blocks.div_ceil(6).max(1)),
        144..288 => "about a day".to_owned(),
        _ => format!("about {} days", blocks / 144),
    }
}

fn cost(what: &str, cost: Option<&Cost>) -> Option<String> {
    let Cost { amount, unit, basis } = cost?;
    let each = match basis {
        Some(CostBasis::PerDid) => "for each DID",
        Some(CostBasis::PerParticipant) | None => "for each participant",
    };
    Some(format!("{what} costs {amount} {} {each}. How it is paid is between you and the operator.", shown(unit)))
}

/// The prices, or that there are none.
fn costs(joining: Option<&Cost>, announcing: Option<&Cost>) -> Vec<String> {
    let named = [cost("Joining", joining), cost("Each announcement", announcing)];
    let named: Vec<String> = named.into_iter().flatten().collect();
    if named.is_empty() {
        return vec!["The operator asks for no payment.".to_owned()];
    }
    named
}

/// The terms of a one-time cohort.
pub(crate) fn of_round(advert: &CohortAdvert) -> Vec<String> {
    let mut words = vec![format!(
        "One announcement: {} sign one Bitcoin transaction together, then the cohort is over.",
        many(advert.min_participants, advert.max_participants, "member")
    )];
    if advert.beacon_type == BeaconType::cas() {
        words.push(CAS.to_owned());
    } else if advert.beacon_type == BeaconType::smt() {
        words.push(SMT.to_owned());
    }
    match (&advert.recovery_sequence, advert.fallback_threshold) {
        (None, _) => words.push(
            "All members have to sign. There is no other way to spend the coin: if one of them is missing, it is lost.".to_owned(),
        ),
        (Some(blocks), threshold) => {
            words.push(match threshold {
                Some(k) => format!("All members sign together; if some are missing, any {k} of them are enough."),
                None => "All members sign together; if one is missing, the others are enough.".to_owned(),
            });
            words.push(format!(
                "{blocks} blocks ({}) after the deposit the operator can spend the coin alone. From then on it can announce from this \
                 address by itself. It cannot forge an update, but a DID whose document lists the address then does not resolve until \
                 the operator publishes what it has announced.",
                days(*blocks)
            ));
        }
    }
    words.push(
        "Leave your program running until it is done: a member that opts in and does not answer can be banned."
            .to_owned(),
    );
    words.push("The operator provides the coin and pays the transaction's fee.".to_owned());
    words.extend(costs(advert.cost_of_enrollment.as_ref(), advert.cost_per_announcement.as_ref()));
    words
}

/// The terms of a standing cohort.
pub(crate) fn of_standing(terms: &StandingTerms) -> Vec<String> {
    let (least, most) = (u32::from(terms.min_participants), u32::from(terms.max_participants));
    let mut words = vec![format!(
        "A standing cohort: {} share one beacon address, which announces again and again, for years. A seat has {}.",
        many(least, Some(most), "seat"),
        many(terms.min_dids_per_participant, Some(terms.max_dids_per_participant), "DID")
    )];
    let opening = match terms.max_seconds_between_announcements {
        Some(longest) => format!("; members are asked for updates at least every {}", time(longest)),
        None => String::new(),
    };
    words.push(format!(
        "Announcements are at least {} apart{opening}. Without updates there is none.",
        time(terms.min_seconds_between_announcements)
    ));
    words.push(match terms.beacon_type {
        StandingBeacon::Cas => CAS.to_owned(),
        StandingBeacon::Smt => SMT.to_owned(),
    });
    words.push(match terms.updates {
        Updates::Full => "The service receives each update, and checks it.".to_owned(),
        Updates::Hash => {
            "The service receives hashes of updates only: your own program alone checks your updates.".to_owned()
        }
    });
    words.push(match terms.registration {
        Registration::Proven => "A DID is registered only with proof of its control.".to_owned(),
        Registration::Blind => {
            "A DID is registered without proof of its control: another seat can take its place first.".to_owned()
        }
    });
    let spenders = terms.spenders(usize::from(terms.max_participants));
    words.push(match terms.absent {
        Absent::Proceed => format!(
            "A seat that does not answer within {} has no update in that announcement; {spenders} seats sign without it, for a larger fee.",
            time(terms.respond_seconds)
        ),
        Absent::Wait => "All seats have to sign each announcement: it waits for a seat that is absent.".to_owned(),
    });
    words.push(match terms.absent {
        Absent::Proceed => format!(
            "{spenders} of at most {most} seats together, the operator's own included, can spend the coin and can end every DID of the \
             cohort; fewer can do neither. The operator alone cannot, at any time."
        ),
        Absent::Wait => "Only all seats together can spend the coin, and can end every DID of the cohort.".to_owned(),
    });
    words.push(format!(
        "An announcement pays at most {} sat/vB, and at most {} sat to the operator, out of the shared coin.",
        terms.max_fee_rate, terms.max_operator_output
    ));
    words.push(
        "Your program has to run for as long as the seat exists: use the agent (`member`), with backups."
            .to_owned(),
    );
    words.extend(costs(terms.cost_of_enrollment.as_ref(), terms.cost_per_announcement.as_ref()));
    words
}
