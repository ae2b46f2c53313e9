//! What the agent has recorded whose state directory it is: the age of its backup, data that it cannot fetch, and silent services.

use std::time::Duration;

use super::{Code, Finding, Report, Status, View};
use crate::{
    member::{data::Gap, health::Records, silence::Silent},
    protocol::{text::shown, time::Timestamp},
};

/// How old a backup may be that lacks something, unless another age is given.
const MOST_AGE: Duration = Duration::from_secs(7 * 86_400);

pub(super) fn evaluate(view: &View<'_>, report: &mut Report) {
    let Some(records) = view.member else { return };
    report.add(backup(view, records));
    records.gaps.iter().for_each(|gap| report.add(incomplete(gap)));
    records.silent.iter().for_each(|silent| report.add(is_silent(silent)));
}

fn date(time: Timestamp) -> String {
    time.to_date().unwrap_or_else(|| "an unknown time".to_owned())
}

/// The age of the agent's backup. One that has everything may be old, unless an age is given.
fn backup(view: &View<'_>, records: &Records) -> Finding {
    const ADVICE: &str =
        "make one, and store it elsewhere: `vault backup FILE --state DIR`, or [backup] in the agent's file";
    let Some(at) = records.backup else {
        let text = "the agent has no backup: with its state directory the seats, the queue and the keys of minted DIDs would be lost";
        return Finding::warning(Code::NoBackup, text).advice(ADVICE);
    };
    let age = view.now.since(at);
    let lacks = records.changed.is_some_and(|changed| changed > at);
    let most = view.terms.max_backup_age;
    let is_old = age > most.unwrap_or(MOST_AGE) && (lacks || most.is_some());
    let has = if lacks { "lacks what has changed since" } else { "has everything" };
    let text =
        format!("the last verified backup of the agent is of {}, {} days ago, and {has}", date(at), days(age));
    match is_old {
        true => Finding::warning(Code::BackupOld, text).advice(ADVICE),
        false => Finding::ok(Code::Backup, text),
    }
}

fn days(age: Duration) -> u64 {
    age.as_secs() / 86_400
}

/// Data of an address that the DID has left.
fn incomplete(gap: &Gap) -> Finding {
    let Gap { cohort_id, since, tried, problem, is_missing } = gap;
    let what = match is_missing {
        true => "a signal is there whose data are missing: the DID does not resolve",
        false => "no signal is known yet whose data are missing",
    };
    let text = format!(
        "since {} the agent cannot fetch what cohort {cohort_id} has announced at the address that the DID has left (last try {}: {}): {what}",
        date(*since),
        date(*tried),
        shown(problem)
    );
    let advice = format!(
        "let the agent run: it tries again, and its seat asks other seats. Otherwise fetch it from any service or host that has the cohort: \
         `history --service URL --cohort {cohort_id} --did DID --identity SEAT --out DIR`"
    );
    let status = if *is_missing { Status::Problem } else { Status::Warning };
    Finding::new(Code::IncompleteData, status, text).cohort(Some(cohort_id)).advice(advice)
}

fn is_silent(silent: &Silent) -> Finding {
    let Silent { service, since, problem, .. } = silent;
    let text =
        format!("the service {} of the agent is silent since {}: {}", shown(service), date(*since), shown(problem));
    Finding::warning(Code::ServiceSilent, text).advice(
        "if it is gone, save the DIDs whose documents list its beacon: `member rescue DID`, or with --to the cohort of another service",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        check::Terms,
        protocol::{id::CohortId, identity::Identity, key::SecretKey, network::Network},
    };

    fn report(records: &Records, most: Option<Duration>) -> Report {
        let did = Identity::from_key(SecretKey::from_bytes(&[1; 32]).unwrap(), Network::Regtest).did().clone();
        let terms = Terms {
            min_conf: 6,
            warn_blocks: 144,
            max_backup_age: most,
            superseded: Vec::new(),
            accepted: std::collections::BTreeSet::new(),
        };
        let now = Timestamp::from_secs(100 * 86_400);
        let view = View {
            did: &did,
            now,
            terms: &terms,
            chain: Err("not asked"),
            vault: None,
            backup: None,
            keys: None,
            member: Some(records),
        };
        let mut report = Report::new(did.clone(), now);
        evaluate(&view, &mut report);
        report
    }

    fn code(records: &Records, most: Option<Duration>) -> Code {
        report(records, most).findings[0].code
    }

    #[test]
    fn a_backup_is_old_when_it_lacks_something_or_has_the_age_that_is_given() {
        let day = |day: u64| Some(Timestamp::from_secs(day * 86_400));
        let records = |backup, changed| Records { backup, changed, ..Records::default() };
        assert_eq!(code(&records(None, day(1)), None), Code::NoBackup);
        assert_eq!(code(&records(day(99), day(100)), None), Code::Backup, "of yesterday");
        assert_eq!(code(&records(day(90), day(95)), None), Code::BackupOld, "it lacks something for ten days");
        assert_eq!(code(&records(day(90), day(80)), None), Code::Backup, "nothing has happened since");
        assert_eq!(code(&records(day(90), day(80)), Some(Duration::from_secs(86_400))), Code::BackupOld);
    }

    #[test]
    fn gaps_and_silence_are_reported_with_what_to_do() {
        let at = Timestamp::from_secs(86_400);
        let gap = |is_missing| Gap {
            cohort_id: CohortId::parse("c").unwrap(),
            since: at,
            tried: at,
            problem: "refused".to_owned(),
            is_missing,
        };
        let silent = Silent { service: "one".to_owned(), since: at, problem: "refused".to_owned(), reported: true };
        let records = Records { gaps: vec![gap(false), gap(true)], silent: vec![silent], ..Records::default() };
        let found = report(&records, None).findings;
        let shown: Vec<_> = found.iter().skip(1).map(|finding| (finding.code, finding.status)).collect();
        let expected = [
            (Code::IncompleteData, Status::Warning),
            (Code::IncompleteData, Status::Problem),
            (Code::ServiceSilent, Status::Warning),
        ];
        assert_eq!(shown, expected);
        assert!(found.iter().all(|finding| finding.advice.is_some()), "{found:?}");
    }
}
