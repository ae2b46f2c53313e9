//! `cas`: publishes and shows content by its hash.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::fail;
use crate::{
    cas::{Cas, CasError, Content, ContentHash, Location, MAX_CONTENT, Publication, PublicationReport},
    config::Span,
    error::ProgramError,
    inputs, output,
};

/// JSON text is larger than its canonical form, mostly by indentation.
const MAX_TEXT: u64 = 16 << 20;

/// The arguments of `cas`.
#[derive(Args, Debug)]
pub(super) struct CasArgs {
    #[command(subcommand)]
    command: CasCommand,
}

#[derive(Debug, Subcommand)]
enum CasCommand {
    /// Publish a file: the canonical form of a JSON document, so that it is found by its JSON Document Hash
    Put(PutArgs),
    /// Print the content of a hash, exactly as it was put, from the first store that gives it; it is verified
    Show(ShowArgs),
}

#[derive(Args, Debug)]
struct Stores {
    /// A store: dir=PATH, or ipfs=URL of an IPFS node's RPC API; may be given several times
    #[arg(long = "cas", value_name = "STORE", required = true)]
    cas: Vec<Location>,
    /// How long a request to an IPFS node may take
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: Span,
}

#[derive(Args, Debug)]
struct PutArgs {
    /// The file: an announcement, a signed update, or with --raw anything up to 1 MiB
    file: PathBuf,
    #[command(flatten)]
    stores: Stores,
    /// Put the file's bytes as they are, not the canonical form of its JSON
    #[arg(long)]
    raw: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// The hash: base64url as announcements name updates, hex as signals are written, or a CID (bafkrei...)
    // One hash in 64 begins with `-` in base64url.
    #[arg(allow_hyphen_values = true)]
    hash: ContentHash,
    #[command(flatten)]
    stores: Stores,
}

/// Runs the command: 0 when every store accepted the content, or one returned it; otherwise 1; 2 when it was called
/// wrongly.
pub(super) fn main(args: &CasArgs) -> ExitCode {
    let outcome = super::block_on(async {
        match &args.command {
            CasCommand::Put(args) => put(args).await,
            CasCommand::Show(args) => show(args).await,
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => fail(&error),
    }
}

impl Stores {
    fn open(&self) -> Result<Vec<Arc<dyn Cas>>, ProgramError> {
        let stores = self.cas.iter().map(|location| location.store(self.timeout.0));
        stores.collect::<Result<_, _>>().map_err(|error: CasError| ProgramError::Internal(error.to_string()))
    }
}

async fn put(args: &PutArgs) -> Result<bool, ProgramError> {
    let content = read(&args.file, args.raw)?;
    let publication = Publication { stores: args.stores.open()?, hold_on_failure: false };
    // No cohort waits for this publication, so a failure is not an error; the report shows it.
    let report = match publication.publish(std::slice::from_ref(&content)).await {
        Ok(report) => report,
        Err(held) => held.0,
    };
    let hash = content.hash();
    if args.json {
        out!("{}", put_json(&content, &report));
    } else {
        out!("hash   {hash}");
        out!("hex    {}", hash.hex());
        out!("cid    {}", hash.cid());
        out!("bytes  {}", content.bytes().len());
        for store in report.stores.iter().filter(|store| store.failure.is_none()) {
            out!("in     {}", store.store);
        }
    }
    for error in report.failures() {
        err!("error: {error}");
    }
    Ok(report.is_complete())
}

fn put_json(content: &Content, report: &PublicationReport) -> Value {
    let hash = content.hash();
    let stores: Vec<Value> = report
        .stores
        .iter()
        .map(|store| {
            let problem = store.failure.as_ref().map(|(_, error)| error.fault.to_string());
            json!({ "store": store.store, "ok": problem.is_none(), "problem": problem })
        })
        .collect();
    json!({
        "ok": report.is_complete(),
        "hash": hash,
        "hex": hash.hex(),
        "cid": hash.cid(),
        "bytes": content.bytes().len(),
        "stores": stores,
    })
}

async fn show(args: &ShowArgs) -> Result<bool, ProgramError> {
    for store in args.stores.open()? {
        match store.get(&args.hash).await {
            Ok(content) => {
                output::bytes(content.bytes());
                return Ok(true);
            }
            // Another store may have it.
            Err(error) => err!("error: {error}"),
        }
    }
    Ok(false)
}

fn read(path: &Path, raw: bool) -> Result<Content, ProgramError> {
    let usage = |problem: String| ProgramError::Usage(format!("{}: {problem}", path.display()));
    let limit = if raw { MAX_CONTENT as u64 } else { MAX_TEXT };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| usage(error.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(usage(format!("larger than {limit} bytes")));
    }
    if raw {
        return Content::new(bytes).map_err(|error| usage(error.to_string()));
    }
    let document: Value = inputs::json_of(&bytes)
        .map_err(|problem| usage(format!("{problem}; --raw puts a file's bytes as they are")))?;
    Content::document(&document).map_err(|error| usage(error.to_string()))
}
