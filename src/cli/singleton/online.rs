//! With a chain: the document is resolved, its Singleton beacons and their coins are found, and the transaction can be sent.

use std::{path::Path, process::ExitCode, sync::Arc};

use ::bitcoin::{Transaction, Txid};
use serde_json::{Value, json};

use super::{
    super::{
        ChainArg, refuse_risky,
        resolve::{ResolveFailure, given},
        update::{Record, is_new, ledger_of},
    },
    SendArgs, SingletonArgs, SingletonFailure, UpdateFile, change, read_update, record, refuse_contradiction,
    refuse_expiring,
    report::Shown,
    send::{Announced, Sent, same_tip, send, wait},
    usage,
    values::CoinText,
};
use crate::{
    bitcoin::{
        chain::{BlockId, Chain},
        fees::sat_per_vb,
    },
    cas,
    controller::{Current, Keys, current::current},
    inputs,
    join::ledger::Ledger,
    protocol::{
        did::Did,
        document::{self, Concern},
        output::{Change, Coin},
        resolution::BeaconSignal,
        update::SignedUpdate,
    },
    resolve::{Given, Sources},
    singleton::{
        self,
        bump::{self, Bump, Replacement},
        choice::Wanted,
        order::{self, Made, New, Order},
        places::{Place, places},
        standing::{NotNext, Standing, standing},
    },
};

/// The chain, and the document that it leads to.
struct Online {
    chain: Arc<dyn Chain>,
    given: Given,
    /// The block up to which the document was resolved, or an earlier one.
    tip: BlockId,
    current: Current,
}

/// What is announced from a Singleton beacon of the current document.
pub(in crate::cli) struct Announcement<'a> {
    pub(in crate::cli) did: &'a Did,
    /// The current document, from which the update starts.
    pub(in crate::cli) document: &'a Value,
    pub(in crate::cli) update: &'a SignedUpdate,
    pub(in crate::cli) keys: Option<&'a Keys>,
    /// The Sidecar Data with which the document was resolved, and the confirmations with which signals counted.
    pub(in crate::cli) given: &'a Given,
    pub(in crate::cli) min_conf: u32,
    /// The block up to which it was resolved, or an earlier one.
    pub(in crate::cli) tip: BlockId,
    pub(in crate::cli) args: &'a SendArgs,
}

impl Online {
    /// Resolves the DID. `more` are Sidecar Data beside those that are given by flags.
    async fn open(
        args: &SingletonArgs,
        chain: &ChainArg,
        did: &Did,
        keys: Option<&Keys>,
        more: Vec<(Value, String)>,
    ) -> Result<Self, SingletonFailure> {
        let source = chain.source().map_err(ResolveFailure::from)?;
        let stores = args.cas.iter().map(|location| location.store(cas::DEFAULT_TIMEOUT));
        let stores = stores.collect::<Result<_, _>>().map_err(ResolveFailure::from)?;
        let states: Vec<_> = args.state.iter().filter(|directory| !is_new(directory)).cloned().collect();
        let mut given = given(&args.sidecars, &states, did).await?;
        let genesis = keys.and_then(|keys| Some((keys.genesis_document()?, keys.name())));
        let genesis = genesis.map(|(document, name)| (json!({ "genesisDocument": document }), name.to_owned()));
        for (value, name) in genesis.into_iter().chain(more) {
            given
                .add(value, &name)
                .map_err(|error| ResolveFailure::Sidecar { path: name.clone().into(), error })?;
        }
        let chain = source.connect(did.network()).await;
        let chain = chain.map_err(|error| SingletonFailure::Failed(format!("{source}: {error}")))?;
        let sources = Sources {
            chain: Arc::clone(&chain),
            chain_name: source.to_string(),
            stores,
            max_addresses: usize::MAX,
        };
        let tip = chain.tip().await?.block;
        let current = current(&sources, did, &given, args.min_conf).await?;
        for warning in &current.warnings {
            err!("warning: {warning}");
        }
        Ok(Self { chain, given, tip, current })
    }

    /// The initial document.
    fn initial(&self, did: &Did) -> Result<Value, SingletonFailure> {
        document::initial_document(did, self.given.genesis_document(did))
            .map_err(|error| SingletonFailure::Failed(error.to_string()))
    }

    /// What the state directory knows.
    async fn ledger(&self, args: &SingletonArgs, did: &Did) -> Result<Option<Ledger>, SingletonFailure> {
        let Some(directory) = &args.state else { return Ok(None) };
        let record = Record::read(directory, did).await?;
        record.check()?;
        Ok(Some(ledger_of(self.initial(did)?, &record, &args.supersede)))
    }

    /// Records an update that was found announced, so that no other one of its version follows.
    async fn record_announced(
        &self,
        args: &SingletonArgs,
        did: &Did,
        update: &SignedUpdate,
    ) -> Result<(), SingletonFailure> {
        if args.out.is_some() {
            err!("note: --out: nothing is written, because no transaction is made");
        }
        let Some(directory) = &args.state else { return Ok(()) };
        let Some(ledger) = self.ledger(args, did).await? else { return Ok(()) };
        if ledger.knows(update) {
            return Ok(());
        }
        if let Some(contradiction) = ledger.contradiction(update) {
            err!("warning: it is not recorded: {contradiction}. Never announce that one");
            return Ok(());
        }
        record(directory, did, self.initial(did)?, update, &args.supersede).await
    }

    /// Records the update before its transaction is returned or sent: it may be announced from then on.
    async fn record(
        &self,
        args: &SingletonArgs,
        did: &Did,
        ledger: Option<&Ledger>,
        update: &SignedUpdate,
    ) -> Result<(), SingletonFailure> {
        match (&args.state, ledger) {
            (Some(_), Some(ledger)) if ledger.knows(update) && args.supersede.is_empty() => Ok(()),
            (Some(directory), _) => record(directory, did, self.initial(did)?, update, &args.supersede).await,
            (None, _) => {
                err!(
                    "note: without --state DIR nothing remembers this update: never announce another one of its version, which would end \
                     the DID (LATE_PUBLISHING)"
                );
                Ok(())
            }
        }
    }
}

/// A transaction that is ready to be shown or sent.
struct Ready<'a> {
    did: &'a Did,
    update: &'a SignedUpdate,
    /// The beacons of the current document.
    listed: &'a [Place],
    ledger: Option<&'a Ledger>,
    new: &'a New,
    /// The transaction to send, if it is to be sent.
    signed: Option<&'a Transaction>,
}

impl Online {
    /// Records the update, writes the files, and sends the transaction, in this order: a crash between two of them forgets nothing
    /// that may be announced.
    async fn finish(&self, args: &SingletonArgs, ready: Ready<'_>) -> Result<ExitCode, SingletonFailure> {
        let Ready { did, update, listed, ledger, new, signed } = ready;
        same_tip(&*self.chain, self.tip).await?;
        self.record(args, did, ledger, update).await?;
        super::write(args, did, update, listed, Some(&new.prepared))?;
        let sent = match signed {
            Some(transaction) => {
                Some(send(&*self.chain, Announced::new(new, transaction), &args.announcement).await?)
            }
            None => None,
        };
        Ok(report(args, did, update, listed, Some(new), sent))
    }
}

/// Checks that resolvers would apply the update as the next one, `source` being the document that its file has. Otherwise
/// the signal that announces it already, and whether that counts.
fn announceable(
    args: &SingletonArgs,
    online: &Online,
    did: &Did,
    update: &SignedUpdate,
    source: Option<Value>,
) -> Result<Option<(Arc<BeaconSignal>, bool)>, SingletonFailure> {
    let current = &online.current;
    match standing(current, update, args.min_conf) {
        Ok(Standing::Next) => {}
        Ok(Standing::Announced { signal, counts }) => return Ok(Some((signal, counts))),
        Err(NotNext::Unsettled(reason)) if args.allow_risky_update => err!("warning: {reason}"),
        // Its document is not known to resolvers yet: it is checked as far as the file shows it.
        Err(NotNext::Ahead { target, .. }) if args.allow_risky_update => {
            let source = source.map(|document| (document, target - 1));
            singleton::check_update(did, update, source.as_ref())?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    let source = (current.document.clone(), current.version);
    singleton::check_update(did, update, Some(&source))?;
    Ok(None)
}

/// Announces the update of a file.
pub(super) async fn run(
    args: &SingletonArgs,
    chain: &ChainArg,
    path: &Path,
    did: &Did,
    keys: Option<&Keys>,
) -> Result<ExitCode, SingletonFailure> {
    let UpdateFile { update, source, sidecar } = read_update(path)?;
    let name = path.display().to_string();
    let mut more = vec![(json!({ "updates": [update.value()] }), name.clone())];
    more.extend(sidecar.map(|sidecar| (sidecar, name)));
    let online = Online::open(args, chain, did, keys, more).await?;
    let current = &online.current;
    let listed = places(&current.document, did, keys);
    if let Some(path) = &args.source_document {
        let document: Value = inputs::json(path).map_err(usage)?;
        if document != current.document {
            let version = current.version;
            return Err(usage(format!(
                "--source-document {} is not the current document, version {version}, as resolvers have it",
                path.display()
            )));
        }
    }

    if let Some((signal, counts)) = announceable(args, &online, did, &update, source)? {
        return announced_before(args, &online, did, &update, &signal, counts).await;
    }
    if update.target_version() == Some(current.version + 1) {
        let source = (current.document.clone(), current.version);
        let concerns: Vec<String> =
            singleton::concerns(did, &update, Some(&source))?.iter().map(Concern::to_string).collect();
        refuse_risky(&concerns, path, args.allow_risky_update)?;
    }
    refuse_expiring(args, &update)?;
    let ledger = online.ledger(args, did).await?;
    if let Some(ledger) = &ledger {
        refuse_contradiction(ledger, &update)?;
    }

    let coins: Vec<Coin> = args.coins.iter().map(|CoinText(coin)| *coin).collect();
    let change = change(args, did)?;
    let order = Order {
        did,
        document: &current.document,
        update: &update,
        keys,
        wanted: Wanted {
            service: args.announcement.service.as_deref(),
            kind: args.kind.map(super::values::Kind::beacon),
            coins: &coins,
        },
        rate: args.announcement.fee_rate.map(|rate| rate.0),
        change: &change,
        sign: args.sign || args.announcement.send,
        given: &online.given,
        min_conf: args.min_conf,
        allow_risky: args.allow_risky_update,
    };
    let new = match order::make(&*online.chain, &order).await? {
        Made::New(new) => new,
        Made::Waiting(waiting) => {
            err!(
                "the update waits in the mempool already, as {}: no second transaction is made. `singleton --bump` replaces it by one \
                 with a higher fee",
                waiting.unconfirmed.txid
            );
            online.record_announced(args, did, &update).await?;
            let sent = wait(&*online.chain, Announced::waiting(&waiting), &args.announcement).await?;
            return Ok(report(args, did, &update, &listed, None, Some(sent)));
        }
    };
    notes(&new);
    let signed = signed(&new, &args.announcement, args.sign)?;
    let ready = Ready { did, update: &update, listed: &listed, ledger: ledger.as_ref(), new: &new, signed };
    online.finish(args, ready).await
}

/// Replaces an announcement that waits in the mempool.
pub(super) async fn bump(
    args: &SingletonArgs,
    chain: &ChainArg,
    txid: Option<Txid>,
    did: &Did,
    keys: Option<&Keys>,
) -> Result<ExitCode, SingletonFailure> {
    let file = args.update.as_deref().map(read_update).transpose()?;
    let more = args.update.iter().zip(&file).flat_map(|(path, file)| {
        let name = path.display().to_string();
        let sidecar = file.sidecar.clone().map(|sidecar| (sidecar, name.clone()));
        sidecar.into_iter().chain([(json!({ "updates": [file.update.value()] }), name)])
    });
    let online = Online::open(args, chain, did, keys, more.collect()).await?;
    let listed = places(&online.current.document, did, keys);
    let order = Bump {
        did,
        document: &online.current.document,
        keys,
        txid,
        rate: args.announcement.fee_rate.map(|rate| rate.0),
        sign: args.sign || args.announcement.send,
    };
    let Replacement { replaced, old_fee, signal, new } = bump::make(&*online.chain, &order).await?;
    let ledger = online.ledger(args, did).await?;
    let (known, source) = match file {
        Some(file) if file.update.hash().as_bytes() == signal.as_bytes() => (Some(file.update), file.source),
        _ => (None, None),
    };
    let known = known.or_else(|| ledger.as_ref().and_then(|ledger| ledger.announced_by(&signal)));
    let Some(update) = known else {
        return Err(usage(format!(
            "{replaced} announces {signal}, which is not an update that is known here: give --update FILE, or the --state DIR in which \
             it is recorded"
        )));
    };
    // What has changed since it was announced may forbid it: in the mempool it may still be overtaken.
    if let Some((signal, _)) = announceable(args, &online, did, &update, source)? {
        return Err(usage(format!(
            "the update is announced already, by transaction {} in block {}: there is nothing to bump",
            signal.txid, signal.block.height
        )));
    }
    if let Some(ledger) = &ledger {
        refuse_contradiction(ledger, &update)?;
    }
    notes(&new);
    let signed = signed(&new, &args.announcement, args.sign)?;
    err!(
        "replaces {replaced}, which pays {} sat, by a transaction that pays {} sat ({} sat/vB)",
        old_fee.to_sat(),
        new.prepared.announcement.fee().to_sat(),
        sat_per_vb(crate::bitcoin::fees::rate_of(
            new.prepared.announcement.fee(),
            new.prepared.announcement.max_vsize()
        ))
    );
    let ready = Ready { did, update: &update, listed: &listed, ledger: ledger.as_ref(), new: &new, signed };
    online.finish(args, ready).await
}

/// Announces an update that has been checked and recorded, on the `chain` from which the document was resolved.
pub(in crate::cli) async fn announce(
    chain: &dyn Chain,
    announcement: &Announcement<'_>,
) -> Result<(Value, bool), SingletonFailure> {
    let Announcement { did, document, update, keys, given, min_conf, tip, args } = *announcement;
    let order = Order {
        did,
        document,
        update,
        keys,
        wanted: Wanted { service: args.service.as_deref(), ..Wanted::default() },
        rate: args.fee_rate.map(|rate| rate.0),
        change: &Change::Beacon,
        sign: true,
        given,
        min_conf,
        allow_risky: false,
    };
    let listed = places(document, did, keys);
    let (new, sent) = match order::make(chain, &order).await? {
        Made::New(new) => {
            notes(&new);
            same_tip(chain, tip).await?;
            let transaction = signed(&new, args, true)?.ok_or_else(|| usage("--send is missing"))?;
            let sent = send(chain, Announced::new(&new, transaction), args).await?;
            (Some(new), sent)
        }
        Made::Waiting(waiting) => {
            err!("the update waits in the mempool already, as {}", waiting.unconfirmed.txid);
            (None, wait(chain, Announced::waiting(&waiting), args).await?)
        }
    };
    let is_fine = sent.is_fine();
    let made = new.as_ref().map(|new| (&new.place, &new.prepared));
    let shown = Shown { did, update, places: &listed, made, sent: Some(sent) };
    err!("{}", shown.to_text());
    Ok((shown.to_json(), is_fine))
}

fn notes(new: &New) {
    new.notes.iter().for_each(|note| err!("note: {note}"));
}

/// The transaction to send, if it is to be sent. `wants_signature`: it is to be signed in any case.
fn signed<'a>(
    new: &'a New,
    args: &SendArgs,
    wants_signature: bool,
) -> Result<Option<&'a Transaction>, SingletonFailure> {
    match (args.send, &new.prepared.signed) {
        (false, None) if wants_signature => Err(usage(format!(
            "--sign: no key that is given here belongs to {} ({})",
            new.place.name(),
            new.place.address
        ))),
        (false, _) => Ok(None),
        (true, Some(transaction)) => Ok(Some(transaction)),
        (true, None) => Err(usage(format!(
            "--send: no key that is given here belongs to {} ({}). Without --send there is a PSBT for the wallet that has it",
            new.place.name(),
            new.place.address
        ))),
    }
}

/// The update is in a block already.
async fn announced_before(
    args: &SingletonArgs,
    online: &Online,
    did: &Did,
    update: &SignedUpdate,
    signal: &BeaconSignal,
    counts: bool,
) -> Result<ExitCode, SingletonFailure> {
    let BeaconSignal { beacon, txid, bytes, block, .. } = signal;
    let (has, height) = (block.confirmations, block.height);
    let state = if counts { "resolvers apply it" } else { "resolvers apply it when it is deeper" };
    err!(
        "the update is announced already, by transaction {txid} at {beacon} in block {height}, with {has} of {} confirmations: {state}. \
         No second transaction is made",
        args.min_conf
    );
    online.record_announced(args, did, update).await?;
    let sent = match args.announcement.wait {
        Some(_) => {
            let tip = online.chain.tip().await?;
            let hash = online.chain.block_hash(height).await?;
            let transaction = online.chain.transaction(txid, hash.as_ref()).await?;
            let transaction = transaction.ok_or_else(|| {
                SingletonFailure::Failed(format!(
                    "transaction {txid} is not in block {height} any more (tip {}): a reorganization; run this again",
                    tip.block.height
                ))
            })?;
            let announced = Announced {
                transaction: &transaction,
                script: beacon.address.script_pubkey(),
                signal: *bytes,
                since: Some(height),
            };
            wait(&*online.chain, announced, &args.announcement).await?
        }
        None => Sent {
            txid: *txid,
            end: Some(crate::singleton::follow::End::Confirmed { txid: *txid, height, confirmations: has }),
        },
    };
    Ok(report(args, did, update, &[], None, Some(sent)))
}

fn report(
    args: &SingletonArgs,
    did: &Did,
    update: &SignedUpdate,
    listed: &[Place],
    new: Option<&New>,
    sent: Option<Sent>,
) -> ExitCode {
    let is_fine = sent.as_ref().is_none_or(Sent::is_fine);
    let made = new.map(|new| (&new.place, &new.prepared));
    let shown = Shown { did, update, places: listed, made, sent };
    out!("{}", if args.json { shown.to_json().to_string() } else { shown.to_text() });
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
