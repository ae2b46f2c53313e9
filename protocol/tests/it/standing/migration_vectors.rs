//! `standing_migration.json`: the formats of migration, byte for byte. Written by this implementation (`STANDING_VECTORS=write`), as
//! `standing_formats.json` is.

use std::{env, fs, path::Path};

use btcr2_aggregation_protocol::{
    cohort::standing::{
        CohortContext, CoinRef, Opportunity, OpportunityKind, StandingBeacon, StandingTerms, Succession, Successor,
        message::{StandingAdvert, StandingMessage, SuccessorFormed},
    },
    hash::sha256,
    id::CohortId,
    key::{SecretKey, Signature},
    message::Bytes,
};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::cohort::{Cohort, NETWORK, rng};

fn opportunity(context: &CohortContext, cohort: &Cohort, kind: OpportunityKind) -> Value {
    let txid = bitcoin::hashes::Hash::from_byte_array(sha256(b"a coin"));
    let coins = if kind == OpportunityKind::Move { vec![CoinRef { txid, vout: 1, value: 70_000 }] } else { vec![] };
    let opportunity = Opportunity {
        number: 9,
        kind,
        respond_by: 1_800_000_600,
        roster_hash: cohort.roster.hash(),
        coins,
        rows: Vec::new(),
        row_count: cohort.roster.row_count(),
        transactions: Vec::new(),
        signature: Signature::from_bytes(&[0; 64]),
    };
    let digest = HEXLOWER.encode(&opportunity.digest(context));
    let opportunity = opportunity.sign(context, &SecretKey::from_bytes(&[3; 32]).unwrap(), &mut rng());
    json!({ "opportunity": opportunity, "digestHex": digest })
}

#[test]
fn the_formats_of_migration_are_as_recorded() {
    let key = SecretKey::from_bytes(&[3; 32]).unwrap();
    let old = Cohort::new(StandingTerms::new(StandingBeacon::Smt, NETWORK, 3, 5).proceeding(2), 3, 1);
    let new = Cohort::new(StandingTerms::new(StandingBeacon::Smt, NETWORK, 4, 5).proceeding(3), 4, 1);
    let (context, successor_id) = (old.roster.context(), CohortId::parse("successor-cohort").unwrap());
    let succession = Succession::sign(context, &successor_id, &key, &mut rng());
    let successor = Successor::sign(context, &successor_id, &new.terms, &new.output, &key, &mut rng());
    let advert = StandingAdvert {
        cohort_id: successor_id.clone(),
        communication_pk: Bytes(key.public_key().to_bytes()),
        terms: new.terms.clone(),
        succeeds: Some(Box::new(succession.clone())),
    };
    let formed = SuccessorFormed { cohort_id: context.cohort_id.clone(), successor: Box::new(successor.clone()) };
    assert!(succession.is_signed(NETWORK, &old.service, &successor_id));
    assert!(successor.is_signed(context, &key.public_key()));
    let made = json!({
        "description": "Formats of the migration of a standing cohort (docs/standing.md). The service's key is 03 repeated 32 times.",
        "oldContext": context,
        "successorId": successor_id,
        "successionDigestHex": HEXLOWER.encode(&Succession::digest(context, &successor_id)),
        "successorDigestHex": HEXLOWER.encode(&Successor::digest(context, &successor_id, new.output.address())),
        "advert": advert,
        "successorFormed": formed,
        "move": opportunity(context, &old, OpportunityKind::Move),
        "roster": opportunity(context, &old, OpportunityKind::Roster),
        "types": [StandingMessage::from(advert.clone()).short_type(), StandingMessage::from(formed.clone()).short_type()],
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/standing_migration.json");
    if env::var("STANDING_VECTORS").as_deref() == Ok("write") {
        fs::write(&path, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
    }
    let recorded: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(recorded, made);
}
