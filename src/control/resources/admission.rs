//! Candidates that wait for the operator, and the DIDs that it lists.

use serde_json::{Value, json};

use super::{
    super::{
        answer::{Answer, Refusal, failed, invalid, ok},
        call::Call,
    },
    reason,
};
use crate::{inputs, protocol::did::Did};

/// The most listed DIDs that are shown.
const MOST_SHOWN: usize = 10_000;

pub(crate) async fn list(call: &Call) -> Answer {
    ok(json!({ "admissions": call.shared.parts.desk.list() }))
}

pub(crate) async fn admit(call: &Call) -> Answer {
    decide(call, "admission.admit", Ok(())).await
}

pub(crate) async fn refuse(call: &Call) -> Answer {
    let reason = reason(call, "the operator has refused it")?;
    decide(call, "admission.refuse", Err(reason)).await
}

async fn decide(call: &Call, action: &'static str, decision: Result<(), String>) -> Answer {
    let unknown = || call.unknown("candidate that waits");
    let id: u64 = call.named().parse().map_err(|_| unknown())?;
    let known =
        call.shared.parts.desk.list().into_iter().find(|candidate| candidate.id == id).ok_or_else(unknown)?;
    let request = json!({ "cohortId": known.cohort_id, "reason": decision.as_ref().err() });
    let work = async { call.shared.parts.desk.decide(id, decision).ok_or_else(unknown) };
    let candidate = call.change(action, Some(known.did.as_str()), request, work).await?;
    ok(json!(candidate))
}

pub(crate) async fn allowed(call: &Call) -> Answer {
    let listed = call.shared.settings.listed();
    let of_file = call.shared.parts.about.allow_list.clone();
    let in_file: Vec<String> = match &of_file {
        Some(path) => {
            let path = std::path::PathBuf::from(path);
            let text = super::super::call::blocking(move || inputs::text(&path)).await?;
            let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(before, _)| before).trim());
            lines.filter(|line| !line.is_empty()).take(MOST_SHOWN).map(str::to_owned).collect()
        }
        None => Vec::new(),
    };
    ok(json!({ "dids": *listed, "file": of_file, "inFile": in_file }))
}

fn did(call: &Call) -> Result<Did, Refusal> {
    Did::parse(call.named()).map_err(|error| invalid(Some("did"), format!("a did:btcr2 DID expected: {error}")))
}

pub(crate) async fn allow(call: &Call) -> Answer {
    let did = did(call)?;
    list_as(call, "allow-list.add", &did, true).await?;
    ok(json!({ "did": did, "listed": true }))
}

pub(crate) async fn disallow(call: &Call) -> Answer {
    let did = did(call)?;
    if !call.shared.settings.listed().contains(&did) {
        return Err(call.unknown("listed DID"));
    }
    list_as(call, "allow-list.remove", &did, false).await?;
    ok(json!({ "did": did, "listed": false }))
}

async fn list_as(call: &Call, action: &'static str, did: &Did, listed: bool) -> Result<(), Refusal> {
    let work = async { call.shared.settings.list(did, listed).await.map_err(failed)?.map_err(Refusal::Conflict) };
    call.change(action, Some(did.as_str()), Value::Null, work).await
}
