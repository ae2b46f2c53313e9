//! The lines for people about the notices of services and participants.

use crate::{
    actors::{
        bans,
        notice::{Known, ParticipantNotice, ServiceNotice},
    },
    protocol::{cohort::participant::membership::WithoutCohort, did::Did, id::CohortId},
};

/// Whether the next line may overwrite this one in a terminal: the counts advance, and no error occurred.
pub(super) fn is_service_progress(step: &ServiceNotice) -> bool {
    use ServiceNotice as N;
    matches!(
        step,
        N::OptInReceived { .. }
            | N::ParticipantAccepted { .. }
            | N::UpdateReceived { .. }
            | N::ValidationReceived { approved: true, .. }
            | N::PresenceConfirmed { .. }
            | N::NonceReceived { .. }
            | N::PartialSignatureReceived { .. }
            | N::FallbackSignatureReceived { .. }
    )
}

/// Like [`is_service_progress`], for a participant's own notices.
pub(super) fn is_participant_progress(step: &ParticipantNotice) -> bool {
    use ParticipantNotice as N;
    matches!(
        step,
        N::OptInAccepted { .. }
            | N::UpdateSubmitted { .. }
            | N::ValidationRequested { problem: None, .. }
            | N::DataApproved { .. }
            | N::SigningRequested { .. }
            | N::NonceSent { .. }
    )
}

pub(super) fn service_text(step: &ServiceNotice) -> String {
    use ServiceNotice as N;
    match step {
        N::CohortAdvertised { cohort_id } => format!("cohort {cohort_id} is advertised"),
        N::OptInReceived { participant, .. } => format!("  {participant} wants to join"),
        N::ParticipantAccepted { participant, .. } => format!("  {participant} is a member"),
        N::ParticipantRefused { participant, reason, .. } => format!("  {participant} is refused: {reason}"),
        N::KeygenComplete { cohort_id, beacon_address, participants, .. } => {
            format!("cohort {cohort_id} has formed: {participants} members, {beacon_address}")
        }
        N::UpdateReceived { participant, included: true, .. } => format!("  {participant} sent its update"),
        N::UpdateReceived { participant, .. } => format!("  {participant} declined"),
        N::DataDistributed { cohort_id, signal } => format!("cohort {cohort_id} has its signal, {signal}"),
        N::ValidationReceived { participant, approved: true, .. } => format!("  {participant} approves"),
        N::ValidationReceived { participant, .. } => format!("  {participant} REJECTS the data"),
        N::ValidationComplete { cohort_id } => format!("cohort {cohort_id}: all members approve"),
        N::TransactionDeferred { reason, .. } => format!("  no transaction yet: {reason}"),
        N::SigningStarted { cohort_id, .. } => format!("cohort {cohort_id} signs"),
        N::NonceReceived { participant, .. } => format!("  {participant} sent its nonce"),
        N::PartialSignatureReceived { participant, .. } => format!("  {participant} signed"),
        N::FallbackStarted { cohort_id, reason, .. } => format!("cohort {cohort_id} falls back: {reason}"),
        N::FallbackSignatureReceived { participant, .. } => format!("  {participant} signed the fallback"),
        N::SigningComplete { cohort_id, path, txid, .. } => {
            format!("cohort {cohort_id} is complete: {txid} ({path})")
        }
        N::CohortFailed { cohort_id, code, reason, .. } => format!("cohort {cohort_id} FAILED ({code}): {reason}"),
        N::PhaseExtended { phase, .. } => format!("  more time for {phase}"),
        N::PresenceRequested { cohort_id } => format!("cohort {cohort_id}: are all members there?"),
        N::PresenceConfirmed { participant, .. } => format!("  {participant} is there"),
        N::CohortRecovered { cohort_id, phase, .. } => format!("cohort {cohort_id} continues: {phase}"),
        N::CohortRestarted { cohort_id, restarts } => {
            format!("cohort {cohort_id} was restarted after an internal error ({restarts} restarts lately)")
        }
        N::CohortReformed { cohort_id, predecessor, invited, excluded } => {
            let predecessor = predecessor.as_ref().map_or("another one", CohortId::as_str);
            format!(
                "cohort {cohort_id} replaces {predecessor}: {invited} members invited, {} left out",
                excluded.len()
            )
        }
        N::MemberBanned { participant, offence, until, .. } => {
            format!("  {participant} is banned until {} for {offence:?}", bans::end_of_ban(*until))
        }
        N::MessageRejected { from, code, detail, .. } => {
            format!("  refused from {}: {code}, {detail}", from.as_ref().map_or("unknown", Did::as_str))
        }
        N::MessageUndelivered { to, kind, reason, .. } => format!("  {kind} to {to} was not delivered: {reason}"),
        other => format!("  {}", <&str>::from(other)),
    }
}

pub(super) fn participant_text(step: &ParticipantNotice) -> String {
    use ParticipantNotice as N;
    match step {
        N::CohortDiscovered { cohort_id, service, .. } => format!("cohort {cohort_id} is offered by {service}"),
        N::CohortJoined { cohort_id, .. } => format!("joining cohort {cohort_id}"),
        N::OptInAccepted { .. } => "  admitted".to_owned(),
        N::CohortReady { beacon_address, .. } => {
            format!("  the cohort has formed: {beacon_address}, as derived here")
        }
        N::UpdateSubmitted { .. } => "  update submitted".to_owned(),
        N::UpdateRefused { reason, .. } => format!("  our update is NOT submitted, declining: {reason}"),
        N::UpdateDeclined { .. } => "  declined to update".to_owned(),
        N::ValidationRequested { problem: None, .. } => "  the aggregated data checks out".to_owned(),
        N::ValidationRequested { problem: Some(problem), .. } => {
            format!("  the aggregated data is WRONG: {problem}")
        }
        N::DataApproved { .. } => "  the aggregated data is approved".to_owned(),
        N::SigningRequested { .. } => "  the transaction checks out".to_owned(),
        N::NonceSent { .. } => "  nonce sent".to_owned(),
        N::NonceLost { .. } => "  the secret nonce is gone: only the fallback can be signed".to_owned(),
        N::FallbackRequested { .. } => "  the service asks for the fallback".to_owned(),
        N::SessionRecovered { cohort_id, phase, .. } => format!("cohort {cohort_id} continues for us: {phase}"),
        N::SessionRestarted { cohort_id, restarts, .. } => {
            format!("cohort {cohort_id} was restarted after an internal error ({restarts} restarts lately)")
        }
        N::CohortOver { cohort_id, known, .. } => match known {
            Known::Seen => format!("cohort {cohort_id} is over: its signed transaction was seen"),
            Known::Reported => {
                format!(
                    "cohort {cohort_id} is over: the service reports that it was signed, but does not send \
                     the transaction"
                )
            }
            Known::SignedByUs => format!("cohort {cohort_id} is over for us, and how it ended is not known"),
        },
        N::SignatureSent { cohort_id, .. } => format!("cohort {cohort_id}: our signature was sent"),
        N::CohortComplete { cohort_id, txid, .. } => {
            format!("cohort {cohort_id}: the signed transaction {txid} is as approved")
        }
        N::CohortFailed { cohort_id, reason, .. } => format!("cohort {cohort_id} ended for us: {reason}"),
        N::WithoutCohort { cause: WithoutCohort::CohortFailed, .. } => "no cohort is left".to_owned(),
        N::WithoutCohort { cohort_id, .. } => format!("no cohort is left: {cohort_id} was not advertised in time"),
        N::MessageRejected { from, code, detail, .. } => {
            format!("  refused from {}: {code}, {detail}", from.as_ref().map_or("unknown", Did::as_str))
        }
        N::MessageUnverified { reason, .. } => format!("  passed over: {reason}"),
        N::MessageUndelivered { kind, reason, .. } => format!("  {kind} was not delivered: {reason}"),
        other => format!("  {}", <&str>::from(other)),
    }
}
