//! The history of a resolution, for people: every address, every signal with what it announces and where its data was found,
//! and what provides the data that is missing.

use std::fmt::Write;

use super::{Given, Outcome};
use crate::{
    cas::ContentHash,
    protocol::{
        did::{Did, Genesis},
        hash::DocumentHash,
        resolution::{
            BeaconSignal, Event, Finding, Ignored, IgnoredSignal, MissingData, Resolution, ResolutionError,
            Resolved, Source, Step, UnusableBeacon,
        },
        text::shown,
        time::Timestamp,
    },
};

/// The history of `outcome`, in lines. `min_conf` is the number of confirmations that was asked for.
pub fn explain(outcome: &Outcome, given: &Given, min_conf: u64, chain_name: &str) -> String {
    let Outcome { resolution, tip, .. } = outcome;
    let mut text = Text { lines: String::new(), did: &resolution.did, given, min_conf };
    text.line(0, resolution.did.as_str());
    match tip {
        Some(tip) => text.line(0, &format!("chain {} at block {}", shown(chain_name), tip.block.height)),
        None => text.line(0, &format!("chain {}", shown(chain_name))),
    }
    resolution.history.iter().for_each(|event| text.event(event));
    text.end(resolution);
    text.lines
}

struct Text<'a> {
    lines: String,
    did: &'a Did,
    given: &'a Given,
    min_conf: u64,
}

impl Text<'_> {
    fn line(&mut self, depth: usize, text: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.lines, "{:indent$}{text}", "", indent = depth * 2);
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::InitialDocument { source } => {
                let genesis = match self.did.genesis() {
                    Genesis::External(hash) => Some(hash),
                    Genesis::Key(_) => None,
                };
                let source = self.source(source, genesis);
                self.line(0, &format!("\nThe initial document (version 1) is from {source}."));
            }
            Event::Unusable { beacon, .. } => {
                let UnusableBeacon { service, kind, endpoint, .. } = beacon;
                self.line(0, &format!("\n{kind} {service}: no address of the DID's network, left out: {endpoint}"));
            }
            Event::Scanned { beacon, signals, ignored, .. } => {
                let count = match signals + ignored.len() {
                    0 => "no signal".to_owned(),
                    1 => "1 signal".to_owned(),
                    count => format!("{count} signals"),
                };
                // The DID is in the first line already.
                let service = beacon.service.strip_prefix(self.did.as_str()).unwrap_or(&beacon.service);
                self.line(0, &format!("\n{} {} ({service}): {count}", beacon.kind, beacon.address));
                ignored.iter().for_each(|signal| self.ignored(signal));
            }
            Event::Signal { signal, finding, announcement, update, .. } => {
                self.signal(signal);
                self.finding(signal, finding, announcement.as_ref(), update.as_ref());
            }
            Event::Applied(step) => self.step(step, "is applied: this is now version"),
            Event::Duplicate(step) => self.step(step, "was applied before, and changes nothing: version"),
            Event::Dropped(step) => {
                self.step(step, "is dropped, for the document does not list its beacon any more: version");
            }
            Event::NotExamined(step) => self.step(step, "is not looked at, for the DID is deactivated: version"),
            other => self.line(0, &format!("\n{}", shown(&format!("{other:?}")))),
        }
    }

    fn ignored(&mut self, IgnoredSignal { txid, height, confirmations, reason, .. }: &IgnoredSignal) {
        let reason = match reason {
            Ignored::TooFewConfirmations => format!(
                "{} of {} confirmations; --min-conf {0} would count it",
                confirmations.unwrap_or_default(),
                self.min_conf
            ),
            Ignored::BelowHeight => {
                "its block is below that of the update that made the document list this address".to_owned()
            }
            other => format!("{other:?}"),
        };
        let block = height.map_or_else(|| "no block".to_owned(), |height| format!("block {height}"));
        self.line(1, &format!("{block}, transaction {txid}"));
        self.line(2, &format!("IGNORED: {reason}"));
    }

    fn signal(&mut self, signal: &BeaconSignal) {
        let BeaconSignal { beacon, txid, bytes, block, .. } = signal;
        let (time, confirmations) = (date(block.time), block.confirmations);
        self.line(
            0,
            &format!("\nBlock {}, {time}, {confirmations} confirmations: transaction {txid}", block.height),
        );
        self.line(1, &format!("signal {bytes} of {beacon}"));
    }

    fn finding(
        &mut self,
        signal: &BeaconSignal,
        finding: &Finding,
        announcement: Option<&Source>,
        update: Option<&Source>,
    ) {
        if let Some(source) = announcement {
            let source = self.source(source, Some(signal.bytes.as_bytes()));
            self.line(1, &format!("what it announces is from {source}"));
        }
        match finding {
            Finding::NoEntry => self.line(1, "it announces no update of this DID"),
            Finding::Update { hash, version } => {
                let source = update.map(|source| self.source(source, Some(hash.as_bytes())));
                let source = source.map_or_else(String::new, |source| format!(", from {source}"));
                self.line(1, &format!("update {hash} to version {version}{source}"));
            }
            Finding::Missing { missing } => self.line(1, &format!("MISSING: {missing}")),
            Finding::Invalid { reason } => self.line(1, &format!("INVALID: {}", shown(reason))),
            other => self.line(1, &shown(&format!("{other:?}"))),
        }
    }

    fn step(&mut self, Step { version, update, signal, .. }: &Step, what: &str) {
        self.line(0, &format!("\nThe update {update} of block {} {what} {version}.", signal.block.height));
    }

    /// The source by its name; of the Sidecar Data the file or the state directory.
    fn source(&self, source: &Source, hash: Option<&[u8; 32]>) -> String {
        let named = match source {
            Source::Identifier => return "the identifier".to_owned(),
            Source::Sidecar => hash.and_then(|hash| self.given.source_of(hash)),
            _ => None,
        };
        shown(&named.map_or_else(|| source.to_string(), str::to_owned)).into_owned()
    }

    fn end(&mut self, resolution: &Resolution) {
        match &resolution.outcome {
            Ok(Resolved { metadata, .. }) => {
                let deactivated = if metadata.deactivated { ": the DID is DEACTIVATED" } else { "" };
                self.line(0, &format!("\nResult: version {}{deactivated}", metadata.version_id));
            }
            Err(error) => {
                self.line(0, &format!("\nResult: {}: {error}", error.code()));
                let missing: Vec<MissingData> = resolution.missing().map(|missing| missing.data).collect();
                let mut written = Vec::new();
                for line in missing.iter().flat_map(|missing| remedy(*missing, &resolution.did)) {
                    if !written.contains(&line) {
                        self.line(1, &line);
                        written.push(line);
                    }
                }
                if let ResolutionError::GenesisMissing { hash } = error {
                    self.line(1, "Give the genesis document: --sidecar FILE, with it as its `genesisDocument`, or");
                    self.line(1, &in_a_store("the genesis document", hash));
                }
            }
        }
    }
}

/// The commands that provide what is missing.
fn remedy(missing: MissingData, did: &Did) -> Vec<String> {
    let controller = format!(
        "Its controller has it: --state DIR here, or btcr2-aggregation sidecar --did {did} --state DIR --out FILE there, and \
         then --sidecar FILE here."
    );
    match missing {
        MissingData::Update { hash } => vec![in_a_store("the update", &hash), controller],
        MissingData::Announcement { hash } => vec![in_a_store("the CAS Announcement", &hash), controller],
        MissingData::SmtProof { root } => {
            vec![format!("The SMT proof {root} is in no store, and no other member's proof will do."), controller]
        }
        MissingData::AnnouncementEntry { .. } => {
            vec!["Nothing helps: the announcement itself has an entry of the DID that is not a hash.".to_owned()]
        }
        // A later kind of missing data has its description already.
        _ => Vec::new(),
    }
}

fn in_a_store(what: &str, hash: &DocumentHash) -> String {
    let address = ContentHash::from(*hash);
    format!(
        "A store may have {what}: --cas STORE (btcr2-aggregation cas show {hash} --cas STORE; on IPFS {})",
        address.cid()
    )
}

fn date(seconds: u32) -> String {
    Timestamp::from_secs(seconds.into()).to_date().unwrap_or_default()
}
