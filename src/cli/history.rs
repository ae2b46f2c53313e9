//! `history`: what a standing cohort has announced, for DIDs that are in it or have left it.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use serde_json::json;

use super::{Failure, fail, join::standing::identities, keys_of, relay::trust};
use crate::{
    error::ProgramError,
    protocol::{cohort::standing::SeatSeed, did::Did, id::CohortId},
    standing::{
        history::{Fetched, HistoryClient, HistoryFailure, OwnSeat},
        sidecars::Sidecars,
        updates::updates_in,
    },
};

#[derive(Debug, Args)]
#[command(
    after_help = "A resolver needs data of every announcement of an address that a document lists, or has listed, without limit; and for an address \
    in a genesis document also of those before. Maps, and proofs that a DID has no leaf, are given to every client. The proof of a leaf is given to the \
    seat that has made it: give the seat's --identity, and the --updates that it has announced."
)]
pub(super) struct HistoryArgs {
    /// The base URL of the service
    #[arg(long, value_name = "URL", env = "BTCR2_SERVICE")]
    service: String,
    /// The cohort
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    cohort: CohortId,
    /// A DID; may be given several times
    #[arg(long, value_name = "DID", required_unless_present = "dids")]
    did: Vec<Did>,
    /// The DIDs of all identity files (*.id) in this directory
    #[arg(long, value_name = "DIR")]
    dids: Option<PathBuf>,
    /// The directory in which every DID has its Sidecar Data, as of `join --standing`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The identity file of the seat
    #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY")]
    identity: Option<PathBuf>,
    /// The directory of the signed updates that the seat has announced
    #[arg(long, value_name = "DIR", requires = "identity")]
    updates: Option<PathBuf>,
    /// Trust an https service by the certificates in this PEM file only
    #[arg(long, value_name = "FILE", env = "BTCR2_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Failure for HistoryFailure {
    fn status(&self) -> u8 {
        1
    }
}

pub(super) fn main(args: &HistoryArgs) -> ExitCode {
    super::block_on(async {
        match prepared(args) {
            Ok((client, dids, sidecars, seat)) => match client.fetch(&dids, &sidecars, seat.as_ref()).await {
                Ok(fetched) => report(args, &fetched),
                Err(error) => fail(&error),
            },
            Err(error) => fail(&error),
        }
    })
}

type Prepared = (HistoryClient, Vec<Did>, Sidecars, Option<OwnSeat>);

fn prepared(args: &HistoryArgs) -> Result<Prepared, ProgramError> {
    let usage = ProgramError::Usage;
    let trust = trust(args.tls_ca.as_deref()).map_err(usage)?;
    let client = HistoryClient::new(&args.service, args.cohort.clone(), &trust);
    let client = client.map_err(|error| usage(error.to_string()))?;
    let mut genesis = args.did.iter().map(|did| (did.clone(), None)).collect::<Vec<_>>();
    if let Some(directory) = &args.dids {
        for controlled in identities(directory)? {
            let document = controlled.identity.genesis_document().map(|document| (**document).clone());
            genesis.push((controlled.identity.did().clone(), document));
        }
    }
    let dids = genesis.iter().map(|(did, _)| did.clone()).collect();
    let sidecars = Sidecars::open(&args.out, genesis).map_err(usage)?;
    let seat = match &args.identity {
        Some(file) => {
            let (identity, _) = keys_of(Some(file), None, None).map_err(|error| usage(error.to_string()))?;
            let (updates, problems) = args.updates.as_deref().map(updates_in).unwrap_or_default();
            problems.iter().for_each(|problem| err!("warning: {problem}"));
            let (seed, network) =
                (Arc::new(SeatSeed::from_secret(identity.secret_key())), identity.did().network());
            Some(OwnSeat { seed, network, updates })
        }
        None => None,
    };
    Ok((client, dids, sidecars, seat))
}

fn report(args: &HistoryArgs, fetched: &Fetched) -> ExitCode {
    let Fetched { announcements, private } = fetched;
    if args.json {
        let private: Vec<_> = private
            .iter()
            .map(|(number, txid, did)| json!({ "number": number, "txid": txid, "did": did }))
            .collect();
        out!("{}", json!({ "announcements": announcements, "private": private }));
    } else {
        out!("{announcements} announcements: what resolvers need of them is in {}", args.out.display());
        for (number, _, did) in private {
            err!(
                "warning: number {number} has a leaf of {did}: its proof is for the seat that has made it (--identity)"
            );
        }
    }
    if private.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
