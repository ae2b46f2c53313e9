//! What a server does with the bytes of a message: they are parsed once and canonicalized once.

use btcr2_aggregation_actors::transport::{Delivery, http::HttpConfig};
use btcr2_aggregation_protocol::{
    hash::sha256,
    id::CohortId,
    jcs,
    message::{Body, Message, update::SubmitUpdate},
    update::SignedUpdate,
    work::{Work, so_far},
};
use serde_json::json;

use crate::http_support::{
    COHORT, external, identity, opt_in, paused, sealed, service,
    site::{OK, Site},
};

const ONCE: Work = Work { parses: 1, canonicalizations: 1 };

/// An update with content that is written in more ways than one.
fn update() -> Body {
    let update = json!({
        "targetVersionId": 2.0, "patch": [{ "op": "add", "value": { "\u{20ac}": 1.50, "a": null } }], "@context": ["x"],
    });
    SubmitUpdate { cohort_id: CohortId::parse(COHORT).unwrap(), signed_update: update.into() }.into()
}

#[test]
fn a_posted_update_is_parsed_once_and_canonicalized_once() {
    paused(async {
        let (site, mut deliveries) = Site::new(HttpConfig::default()).await;
        let alice = identity(1);
        let envelope = sealed(&alice, Some(service().did()), update(), site.now());
        let before = so_far();
        assert_eq!(site.post(envelope).await.outcome(), OK);
        let Ok(Delivery::Message(received)) = deliveries.try_recv() else { panic!("no message") };
        // As the cohort does.
        let (digest, update_of_it) = (received.digest(), received.body.signed_update().unwrap().unwrap());
        assert_eq!(so_far() - before, ONCE);

        let sent = Message::new(alice.did().clone(), Some(service().did().clone()), update());
        assert_eq!((&received.message, digest), (&sent, sent.digest()));
        let Body::SubmitUpdate(submit) = update() else { unreachable!() };
        let value = (*submit.signed_update).clone();
        assert_eq!(update_of_it.canonical_len(), jcs::canonicalize(&value).unwrap().len());
        assert_eq!(*update_of_it.hash().as_bytes(), sha256(&jcs::canonicalize(&value).unwrap()));
        assert_eq!(update_of_it, SignedUpdate::from_value(value).unwrap());
    });
}

#[test]
fn so_is_an_opt_in_that_proves_the_key_of_its_sender() {
    paused(async {
        let (site, mut deliveries) = Site::new(HttpConfig::default()).await;
        let x = external(1);
        let envelope = sealed(&x, Some(service().did()), opt_in(&x), site.now());
        let before = so_far();
        assert_eq!(site.post(envelope).await.outcome(), OK);
        let Ok(Delivery::Message(received)) = deliveries.try_recv() else { panic!("no message") };
        received.digest();
        let work = so_far() - before;
        assert_eq!(work.parses, 1);
        // The second is of the genesis document, whose hash is in the DID.
        assert_eq!(work.canonicalizations, 2);
    });
}
