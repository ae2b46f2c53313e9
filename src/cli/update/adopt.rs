//! `beacon adopt`: lists a cohort's beacon in the document, by an update that a Singleton beacon announces.

use std::process::ExitCode;

use ::bitcoin::{Address, address::NetworkUnchecked};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{
    super::{beacon::BeaconText, fail, keys_of},
    CommonArgs, UpdateArgs, UpdateFailure, Way,
    cohort::Cohort,
    prepare::{Start, check_call, finish, sources},
    record::Record,
    verbs::{AddBeaconArgs, Verb},
};
use crate::{
    bitcoin::chain::Signals,
    error::ProgramError,
    protocol::{
        did::Did,
        identity::Identity,
        patch::Patch,
        resolution::{BeaconKind, beacons},
    },
    resolve::Sources,
    singleton::places::places,
};

const EXAMPLES: &str = "\
Examples:
  What it means, and what would change; nothing is written:
    btcr2-aggregation beacon adopt 3f0ab4f2-... --identity alice.id --state alice \\
        --chain 'core=http://127.0.0.1:8332?cookie=/home/me/.bitcoin/.cookie'
  Announced at once from a Singleton beacon of the document, and followed to its sixth confirmation:
    btcr2-aggregation beacon adopt 3f0ab4f2-... --identity alice.id --state alice --chain ... --out adoption.json --send --wait
  For a DID that does not exist yet, at no cost (it prints the command):
    btcr2-aggregation beacon adopt alice/3f0ab4f2-....json

Exit status: 0 when the update is prepared (with --send announced, with --wait confirmed), or the document lists the beacon already; 1
when the DID is not resolved, a file cannot be used or the chain does not allow it; 2 when it is refused or called wrongly.";

#[derive(Debug, Args)]
pub(in crate::cli) struct BeaconArgs {
    #[command(subcommand)]
    command: BeaconCommand,
}

#[derive(Debug, Subcommand)]
enum BeaconCommand {
    /// List a cohort's beacon in the document
    ///
    /// Resolvers read only the beacons that a document lists already, so that a cohort cannot announce the update that adds its own
    /// beacon. This derives the cohort's address from its record, states what listing it means, prepares the update, and announces
    /// it from a Singleton beacon of the document (--send), or prints the command that does.
    Adopt(Box<AdoptArgs>),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct AdoptArgs {
    /// A cohort of --state, a file of `join --out`, or an operator's output.json
    #[arg(value_name = "COHORT|FILE")]
    cohort: String,
    /// With output.json, which does not state it: the type of the beacon
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<Kind>,
    /// The id of the beacon's service [default: from its type]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// The types of a cohort's beacon.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// CASBeacon
    Cas,
    /// SMTBeacon
    Smt,
}

impl Kind {
    const fn beacon(self) -> BeaconKind {
        match self {
            Self::Cas => BeaconKind::Cas,
            Self::Smt => BeaconKind::Smt,
        }
    }
}

/// Runs the command.
pub(in crate::cli) fn main(args: BeaconArgs) -> ExitCode {
    let BeaconCommand::Adopt(args) = args.command;
    match super::super::block_on(adopt(*args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

/// What is adopted.
struct Adoption {
    cohort: Cohort,
    kind: BeaconKind,
    address: Address,
}

impl Adoption {
    fn of(cohort: Cohort, given: Option<Kind>) -> Result<Self, UpdateFailure> {
        let given = given.map(Kind::beacon);
        let kind = match (&cohort.beacon_type, given) {
            (Some(stated), _) => BeaconKind::from_service_type(stated.as_str()).ok_or_else(|| {
                UpdateFailure::Refused(format!(
                    "cohort {} has a beacon of type {stated}, which resolvers do not know: listed in a document it would not be read",
                    cohort.id
                ))
            })?,
            (None, Some(given)) => given,
            (None, None) => {
                return Err(UpdateFailure::Refused(format!(
                    "{} does not state the type of the beacon: give --type cas or --type smt, as the operator's `serve --beacon` has it. \
                     A wrong one makes the DID unresolvable at the next signal",
                    cohort.from
                )));
            }
        };
        if given.is_some_and(|given| given != kind) {
            return Err(UpdateFailure::Refused(format!("--type: the cohort's beacon is a {kind}")));
        }
        let address = cohort.output.address().parse::<Address<NetworkUnchecked>>();
        let address =
            address.ok().and_then(|address| address.require_network(cohort.output.network().to_bitcoin()).ok());
        let address = address.ok_or_else(|| {
            UpdateFailure::Program(ProgramError::Internal("a derived address is not one of its network".to_owned()))
        })?;
        Ok(Self { cohort, kind, address })
    }

    /// What listing it means.
    fn explain(&self) {
        let Self { cohort, kind, address } = self;
        let output = &cohort.output;
        let members = output.keys().len();
        err!("cohort     {}, from {}", cohort.id, cohort.from);
        err!("beacon     {kind} {address}, derived from the keys of {members} members and the terms");
        let mut spenders = vec![format!("all {members} members together")];
        if let Some(fallback) = output.fallback().filter(|_| output.fallback_spendable()) {
            spenders.push(format!("any {} of them", fallback.threshold()));
        }
        if let Some(recovery) = output.recovery() {
            spenders.push(format!(
                "the operator's key {} alone, from a coin that is {} blocks old",
                recovery.key(),
                recovery.sequence().blocks()
            ));
        }
        err!("spent by   {}", spenders.join("; "));
        err!(
            "A beacon is part of a DID permanently: from the block of this update on resolvers need the data of every signal of its\n\
             address, also of those without an update of yours, and also after the beacon is removed (rule R-5). A party that can spend\n\
             there can announce there, and a signal whose data is not published makes the DID unresolvable: docs/trust.md."
        );
    }

    /// The command that makes a new DID with this beacon.
    fn minting(&self) -> String {
        let kind = match self.kind {
            BeaconKind::Smt => "smt",
            BeaconKind::Cas | BeaconKind::Singleton => "cas",
        };
        format!(
            "btcr2-aggregation identity new --external --beacon {},{kind} --network {} --out FILE",
            self.address,
            self.cohort.output.network()
        )
    }
}

async fn adopt(args: AdoptArgs) -> Result<bool, UpdateFailure> {
    let AdoptArgs { cohort, kind, id, mut common } = args;
    let adoption = Adoption::of(Cohort::find(&cohort, common.state.as_deref()).await?, kind)?;
    if common.announcement.send && common.out.is_none() {
        return Err(UpdateFailure::Refused(
            "--send announces what is written first: give --out FILE, where the update and the Sidecar Data are to be".to_owned(),
        ));
    }
    let network = adoption.cohort.output.network();
    if common.identity.is_none() && common.secret_env.is_none() {
        adoption.explain();
        return without_identity(&adoption, common).await;
    }
    let keys = keys_of(common.identity.as_deref(), common.secret_env.as_deref(), Some(network));
    let (identity, keys) = keys?;
    let did = identity.did().clone();
    check_member(&adoption, &identity)?;
    if common.out.is_some() && common.announce_by.is_none() {
        common.announce_by = Some(Way::Singleton);
    }
    let beacon = BeaconText::new(adoption.address.clone(), adoption.kind);
    let update = UpdateArgs { did, patch: None, verb: Some(Verb::AddBeacon(AddBeaconArgs { beacon, id })), common };
    check_call(&update)?;
    let start = Start::open(&update, &keys).await?;
    if is_listed(&adoption, &update, &start)? {
        return Ok(true);
    }
    adoption.explain();
    if places(&start.document, &update.did, Some(&keys)).is_empty() {
        return Err(UpdateFailure::Refused(format!(
            "the current document has no Singleton beacon that could announce the update: only a cohort whose address is listed already \
             can. At no cost a new DID can begin with the beacon: {}",
            adoption.minting()
        )));
    }
    check_membership(&adoption, &identity, update.common.allow_risky_document)?;
    let signals = signals(&adoption, &start.sources).await?;
    if !signals.seen.is_empty() {
        err!(
            "note: signals of the address that are in blocks already: {}. They do not count for this DID: their blocks are below the one \
             that will announce this update (rule R-4)",
            signals.seen.len()
        );
    }
    let known = known_patch(&adoption, &update, &start).await?;
    finish(&update, keys, start, known).await
}

/// The patch of an update of the next version that lists the beacon too, and that may be announced already: `join --add-beacon`
/// makes one. No other one of its version may be.
async fn known_patch(
    adoption: &Adoption,
    args: &UpdateArgs,
    start: &Start,
) -> Result<Option<Value>, UpdateFailure> {
    let Some(directory) = &args.common.state else { return Ok(None) };
    let record = Record::read(directory, &args.did).await?;
    let contents = record.contents();
    let superseded = &args.common.supersede;
    let approved = contents.entries.iter().filter(|entry| !superseded.contains(&entry.record.cohort_id));
    let alone = contents.prepared.iter().filter(|_| !superseded.iter().any(|id| id.as_str() == "singleton"));
    let updates = approved.filter_map(|entry| entry.record.update.as_ref()).chain(alone);
    let next = updates.filter(|update| update.target_version() == Some(start.version + 1));
    let listing = |patch: &Value| {
        let after = Patch::from_value(patch).and_then(|patch| patch.apply(&start.document)).ok()?;
        let mut listed = beacons(&after, args.did.network()).into_iter().flatten();
        listed.find(|beacon| beacon.address == adoption.address && beacon.kind == adoption.kind)
    };
    let known =
        next.filter_map(|update| update.value().get("patch")).find(|patch| listing(patch).is_some()).cloned();
    if known.is_some() {
        err!(
            "note: an update of this version that lists the beacon is known already: that one is announced, and no other"
        );
    }
    Ok(known)
}

/// Refuses the record of another member, and of another network.
fn check_member(adoption: &Adoption, identity: &Identity) -> Result<(), UpdateFailure> {
    let did: &Did = identity.did();
    let output = &adoption.cohort.output;
    if did.network() != output.network() {
        return Err(UpdateFailure::Refused(format!(
            "the cohort's address is on {}, and {did} on {}",
            output.network(),
            did.network()
        )));
    }
    if let Some(member) = adoption.cohort.member.as_ref().filter(|member| *member != did) {
        return Err(UpdateFailure::Refused(format!(
            "{} is the record of {member}, not of {did}",
            adoption.cohort.from
        )));
    }
    Ok(())
}

/// Refuses one that is not a member of the cohort, unless it takes that risk.
fn check_membership(adoption: &Adoption, identity: &Identity, allowed: bool) -> Result<(), UpdateFailure> {
    let (did, output) = (identity.did(), &adoption.cohort.output);
    if !output.keys().contains(&identity.public_key()) {
        let problem = format!(
            "no key of this cohort is the one that {did} began with: you are not one of its members, and cannot sign there. Others \
             decide what is announced, and you get no data of it unless they give it to you"
        );
        if !allowed {
            return Err(UpdateFailure::Refused(format!("{problem}; --allow-risky-document if that is intended")));
        }
        err!("warning: {problem}");
    }
    Ok(())
}

/// Whether the document lists the beacon already.
fn is_listed(adoption: &Adoption, args: &UpdateArgs, start: &Start) -> Result<bool, UpdateFailure> {
    let listed = beacons(&start.document, args.did.network()).into_iter().flatten();
    let Some(listed) = listed.into_iter().find(|beacon| beacon.address == adoption.address) else {
        return Ok(false);
    };
    if listed.kind != adoption.kind {
        return Err(UpdateFailure::Refused(format!(
            "the document lists {} as {} ({}), and the cohort's beacon is a {}: resolvers would misread its signals. Remove that one first",
            listed.address, listed.kind, listed.service, adoption.kind
        )));
    }
    if args.common.json {
        out!("{}", json!({ "did": args.did, "listed": listed, "versionId": start.version.to_string() }));
    } else {
        out!(
            "version {} of the document lists {listed} already, as {}: there is nothing to do",
            start.version,
            listed.service
        );
    }
    Ok(true)
}

async fn signals(adoption: &Adoption, sources: &Sources) -> Result<Signals, UpdateFailure> {
    let failed = |problem: String| UpdateFailure::Unresolved(format!("{}: {problem}", sources.chain_name));
    let script = adoption.address.script_pubkey();
    let found = sources.chain.signals(&[script], 0).await.map_err(|error| failed(error.to_string()))?;
    found.into_iter().next().ok_or_else(|| failed("no answer about the address".to_owned()))
}

/// Without an identity: how a DID that does not exist yet begins with the beacon.
async fn without_identity(adoption: &Adoption, common: CommonArgs) -> Result<bool, UpdateFailure> {
    let mut problem = None;
    if common.chain.is_some() {
        // Any DID of the network: only its chain is asked.
        let did = match &adoption.cohort.member {
            Some(did) => did.clone(),
            None => Did::from_genesis_hash([0; 32], adoption.cohort.output.network()),
        };
        let update = UpdateArgs { did, patch: None, verb: None, common };
        let count = signals(adoption, &sources(&update).await?).await?.seen.len();
        if count > 0 {
            problem = Some(match adoption.kind {
                BeaconKind::Smt => format!(
                    "signals of the address that are in blocks already: {count}. A DID that begins with it needs a proof of its own for each \
                     of them (rule R-5), which only the service can make: without them it does not resolve"
                ),
                _ => format!(
                    "signals of the address that are in blocks already: {count}. A DID that begins with it needs the CAS Announcement of \
                     each of them (rule R-5): without them it does not resolve. Members have those of their rounds (`sidecar`)"
                ),
            });
        }
    } else {
        err!(
            "note: give --chain to see whether the address has signals already: a new DID would need the data of each of them"
        );
    }
    if let Some(problem) = &problem {
        err!("warning: {problem}");
    }
    out!("{}", adoption.minting());
    err!(
        "This makes a new EXTERNAL DID whose genesis document lists the beacon, without any transaction. For a DID that exists already:"
    );
    err!("give --identity FILE, and --chain, to list the beacon in its document.");
    Ok(true)
}
