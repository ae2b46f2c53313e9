//! From the request for a seat to the registration of its DIDs.

use std::sync::Arc;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    beacon::did_index,
    cohort::standing::{
        Registration, Row,
        message::{Applicant, AskedRow, SeatOptIn},
        seat::SeatInput,
    },
    hash::DidIndex,
    key::Signature,
};

use super::seat::SeatActor;
use crate::{
    engine::Driven,
    standing::{notice::SeatNotice, policy::RowWanted},
};

impl SeatActor {
    /// Asks for the seat, with what its host has to show.
    pub(super) fn opt_in(&mut self, ctx: &mut Context<Self>) {
        let config = Arc::clone(self.engine.machine().config());
        let did = self.identity.did().clone();
        let key = Arc::clone(self.signer.key());
        let Some(rng) = self.engine.rng() else { return };
        let (service, cohort_id) = (&config.service, &config.cohort_id);
        let mut opt_in = SeatOptIn::sign(service, cohort_id, &did, &key, rng);
        let policy = &self.settings.policy;
        opt_in.invite = policy.invite().map(|token| token.prove(cohort_id, &did));
        let applies_as = policy.applies_as();
        opt_in.applicant = applies_as.map(|identity| Applicant::sign(service, cohort_id, &did, &identity, rng));
        self.feed(SeatInput::OptIn(opt_in), ctx);
    }

    /// Registers what the host wants registered, once the cohort has formed, as far as that was not done before.
    pub(super) fn after_formation(&mut self, ctx: &mut Context<Self>) {
        let Some(view) = self.view() else { return };
        let policy = Arc::clone(&self.settings.policy);
        let asking = async move { policy.registers(&view).await };
        ctx.spawn(asking.into_actor(self).map(|mut rows, actor, ctx| {
            let machine = actor.engine.machine();
            rows.retain(|row| !machine.has_asked(&did_index(&row.did), row.action));
            if !rows.is_empty() {
                actor.register(rows, ctx);
            }
        }));
    }

    /// Registers DIDs, each with a proof of control where the terms ask for one.
    pub(super) fn register(&mut self, wanted: Vec<RowWanted>, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        let Some(context) = machine.context().cloned() else { return };
        let is_proven = machine.config().terms.registration == Registration::Proven;
        let rows: Vec<(RowWanted, DidIndex, u64, Option<Signature>)> = wanted
            .into_iter()
            .map(|row| {
                let index = did_index(&row.did);
                // What is registered is proven again.
                match machine.registered_row(&index).filter(|known| known.action == row.action) {
                    Some(known) => (row, index, known.serial, Some(known.signature)),
                    None => (row, index, machine.next_serial(&index), None),
                }
            })
            .collect();
        let policy = Arc::clone(&self.settings.policy);
        let proving = async move {
            let mut proven = Vec::with_capacity(rows.len());
            for (row, index, serial, known) in rows {
                let digest = Row::digest(&context, &index, row.action, serial);
                let control = if is_proven { policy.proves(&row.did, &digest).await } else { None };
                proven.push((row, index, serial, known, control));
            }
            (context, proven)
        };
        ctx.spawn(proving.into_actor(self).map(move |(context, proven), actor, ctx| {
            let key = Arc::clone(actor.signer.key());
            let mut asked = Vec::with_capacity(proven.len());
            let mut refused = Vec::new();
            for (row, index, serial, known, control) in proven {
                if is_proven && control.is_none() {
                    refused.push((index, "control of the DID cannot be proven here".to_owned()));
                    continue;
                }
                let Some(rng) = actor.engine.rng() else { return };
                let sign = || Row::sign(&context, &key, index, row.action, serial, rng).signature;
                let signature = known.unwrap_or_else(sign);
                let (proof, genesis_document, sidecar) = control.map_or((None, None, None), |control| {
                    (Some(control.proof), control.genesis_document, control.sidecar)
                });
                asked.push(AskedRow {
                    did_index: index,
                    action: row.action,
                    serial,
                    signature,
                    did: is_proven.then(|| row.did.as_str().to_owned()),
                    proof,
                    genesis_document,
                    sidecar,
                });
            }
            if !refused.is_empty() {
                let cohort_id = context.cohort_id.clone();
                actor.notify(SeatNotice::NotRegistered { seat: actor.identity.did().clone(), cohort_id, refused });
            }
            if !asked.is_empty() {
                actor.feed(SeatInput::RowsAsked(asked), ctx);
            }
        }));
    }
}
