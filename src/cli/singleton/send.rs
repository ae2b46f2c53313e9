//! Broadcasts an announcement, and follows it.

use std::time::Duration;

use ::bitcoin::{ScriptBuf, Transaction, Txid};
use clap::Args;
use serde_json::{Value, json};

use super::{SingletonFailure, values::SatPerVb};
use crate::{
    bitcoin::chain::{BlockId, Chain, ChainError, Place, TransactionStatus},
    config::Period,
    join::ChainQuestions,
    protocol::hash::SignalBytes,
    singleton::{
        follow::{Change, End, Followed, follow},
        order::{New, Waiting},
    },
};

/// How often the chain is asked for a transaction that it has just taken.
const ATTEMPTS: u32 = 10;

/// The pause between two of these.
const PAUSE: Duration = Duration::from_secs(1);

/// How an update is announced by a Singleton beacon.
#[derive(Args, Debug)]
pub(in crate::cli) struct SendArgs {
    /// The Singleton beacon that announces: the id of its service, e.g. initialP2TR, or its address [default: the one that has
    /// coins; of several the one whose key is known and that holds most]
    #[arg(long, value_name = "ID", global = true, help_heading = "Announcement")]
    pub(in crate::cli) service: Option<String>,
    /// The fee rate in sat/vB, at least 1 [default: what --chain estimates, or 2]
    #[arg(long, value_name = "RATE", global = true, help_heading = "Announcement")]
    pub(in crate::cli) fee_rate: Option<SatPerVb>,
    /// Sign and broadcast the transaction, after it is verified by Bitcoin Core's consensus code and, with --state, the update
    /// is recorded
    #[arg(long, global = true, help_heading = "Announcement")]
    pub(in crate::cli) send: bool,
    /// With --send: wait until N blocks confirm it, 6 unless stated. Exit status 1 if another transaction takes its place
    #[arg(
        long, value_name = "N", global = true, help_heading = "Announcement", num_args = 0..=1,
        default_missing_value = "6", value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(in crate::cli) wait: Option<u32>,
    /// With --wait: how often to query the chain [default: 30s]
    #[arg(long, value_name = "TIME", global = true, help_heading = "Announcement", hide_short_help = true)]
    chain_poll: Option<Period>,
}

impl SendArgs {
    /// Whether one of them is given.
    pub(in crate::cli) const fn is_used(&self) -> bool {
        self.send
            || self.wait.is_some()
            || self.service.is_some()
            || self.fee_rate.is_some()
            || self.chain_poll.is_some()
    }

    /// Refuses a wrong call.
    pub(in crate::cli) fn check(&self) -> Result<(), String> {
        match self {
            Self { send: false, wait: Some(_), .. } => {
                Err("--wait is about a transaction that is sent: give --send".to_owned())
            }
            Self { wait: None, chain_poll: Some(_), .. } => Err("--chain-poll is about --wait".to_owned()),
            _ => Ok(()),
        }
    }
}

/// What became of a transaction.
#[derive(Debug)]
pub(in crate::cli) struct Sent {
    pub(super) txid: Txid,
    pub(super) end: Option<End>,
}

impl Sent {
    /// Whether it is where it was to be.
    pub(in crate::cli) const fn is_fine(&self) -> bool {
        !matches!(self.end, Some(End::Replaced(_)))
    }

    /// Its fields of the JSON result.
    pub(super) fn add_to(&self, result: &mut Value) {
        result["sent"] = json!(true);
        result["txid"] = json!(self.txid);
        match self.end {
            None => result["state"] = json!("mempool"),
            Some(End::Confirmed { txid, height, confirmations }) => {
                result["state"] = json!("confirmed");
                result["confirmed"] = json!({ "txid": txid, "height": height, "confirmations": confirmations });
            }
            Some(End::Replaced(by)) => {
                result["state"] = json!("replaced");
                result["replacedBy"] = json!(by);
            }
        }
    }

    /// A line for people.
    pub(super) fn line(&self) -> String {
        match self.end {
            None => format!("sent         {}, waits in the mempool", self.txid),
            Some(End::Confirmed { txid, height, confirmations }) => {
                format!("confirmed    {txid} in block {height}, {confirmations} blocks deep")
            }
            Some(End::Replaced(by)) => {
                format!(
                    "replaced     by {by}, which announces something else: {} will never be confirmed",
                    self.txid
                )
            }
        }
    }
}

/// Where a transaction of a Singleton beacon belongs.
pub(in crate::cli) struct Announced<'a> {
    pub(super) transaction: &'a Transaction,
    pub(super) script: ScriptBuf,
    pub(super) signal: SignalBytes,
    /// The height from which on it may be in a block; `None` for a new one.
    pub(super) since: Option<u32>,
}

impl<'a> Announced<'a> {
    /// A signed transaction that was made here.
    pub(super) fn new(new: &New, transaction: &'a Transaction) -> Self {
        let (script, signal) = (new.place.address.script_pubkey(), new.prepared.announcement.signal());
        Self { transaction, script, signal, since: None }
    }

    /// One that waits in the mempool.
    pub(super) fn waiting(Waiting { place, unconfirmed }: &'a Waiting) -> Self {
        let (script, signal) = (place.address.script_pubkey(), unconfirmed.signal);
        Self { transaction: &unconfirmed.transaction, script, signal, since: None }
    }
}

/// Refuses a transaction beside a block that has arrived since the document was resolved: what it announces is neither
/// in the document nor in the mempool.
pub(in crate::cli) async fn same_tip(chain: &dyn Chain, tip: BlockId) -> Result<(), SingletonFailure> {
    let now = chain.tip().await?.block;
    if now == tip {
        return Ok(());
    }
    Err(SingletonFailure::Failed(format!(
        "block {} has arrived since the document was resolved (at block {}), and may hold another announcement: run this again",
        now.height, tip.height
    )))
}

/// Broadcasts a signed transaction, which was verified, and waits for its confirmations if that is asked for.
pub(in crate::cli) async fn send(
    chain: &dyn Chain,
    announced: Announced<'_>,
    args: &SendArgs,
) -> Result<Sent, SingletonFailure> {
    let txid = announced.transaction.compute_txid();
    chain.submit(announced.transaction).await.map_err(|error| match error {
        ChainError::Rejected(rejection) => SingletonFailure::Failed(format!(
            "the node refuses transaction {txid}: {}. It is not sent",
            crate::protocol::text::shown(&rejection.reason)
        )),
        error => SingletonFailure::Failed(format!(
            "the chain: {error}. Whether transaction {txid} is sent is not known: the same command again finds out"
        )),
    })?;
    // From here on it is sent: no error may hide that.
    let sent = |error: SingletonFailure| {
        SingletonFailure::Failed(format!(
            "transaction {txid} is sent, the chain has taken it; what became of it is not known: {error}. The same command again finds \
             out, and announces nothing twice"
        ))
    };
    // The wait reports what has become of it: another transaction may be in a block before the first look.
    if !is_there(chain, &txid).await.map_err(sent)? && args.wait.is_none() {
        return Err(SingletonFailure::Failed(format!(
            "the chain has taken transaction {txid}, and does not have it: the same command again finds out"
        )));
    }
    wait(chain, announced, args).await.map_err(sent)
}

/// Whether the chain has a transaction that it has just taken, which is stated. A server that indexes may need some seconds.
async fn is_there(chain: &dyn Chain, txid: &Txid) -> Result<bool, SingletonFailure> {
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        match status(chain, txid).await {
            Ok(TransactionStatus::At(Place::Mempool)) => err!("{txid} is in the mempool"),
            Ok(TransactionStatus::At(Place::Block(block))) => err!("{txid} is in block {}", block.height),
            Ok(TransactionStatus::Unknown) => continue,
            Err(error) if error.is_transient() && attempt + 1 < ATTEMPTS => continue,
            Err(error) => return Err(error.into()),
        }
        return Ok(true);
    }
    Ok(false)
}

async fn status(chain: &dyn Chain, txid: &Txid) -> Result<TransactionStatus, ChainError> {
    let tip = chain.tip().await?;
    chain.status(txid, tip.block.height.saturating_sub(1)).await
}

/// Waits for the confirmations of a transaction that is sent, if that is asked for.
pub(in crate::cli) async fn wait(
    chain: &dyn Chain,
    announced: Announced<'_>,
    args: &SendArgs,
) -> Result<Sent, SingletonFailure> {
    let Announced { transaction, script, signal, since } = announced;
    let txid = transaction.compute_txid();
    let Some(needed) = args.wait else { return Ok(Sent { txid, end: None }) };
    let poll = args.chain_poll.map_or(ChainQuestions::POLL, |period| period.0);
    let followed = Followed { script, signal, transaction: transaction.clone(), since };
    let end = follow(chain, &followed, needed, poll, |change| err!("{}", text(change, txid, needed))).await?;
    Ok(Sent { txid, end: Some(end) })
}

fn text(change: &Change, ours: Txid, needed: u32) -> String {
    let undone = |was_in: &Option<u32>| {
        was_in.map(|height| format!("a reorganization has undone block {height}: ")).unwrap_or_default()
    };
    let other = |txid: &Txid| if *txid == ours { String::new() } else { format!(" (in place of {ours})") };
    match change {
        Change::Mempool { txid, was_in } => format!("{}{txid}{} waits in the mempool", undone(was_in), other(txid)),
        Change::Block { txid, height, confirmations, was_in } => format!(
            "{}{txid}{} is in block {height}: {confirmations} of {needed} confirmations",
            undone(was_in),
            other(txid)
        ),
        Change::Gone { was_in, refused: None } => {
            format!("{}{ours} is neither in a block nor in the mempool: it is sent again", undone(was_in))
        }
        Change::Gone { was_in, refused: Some(reason) } => format!(
            "{}{ours} is neither in a block nor in the mempool, and the node refuses it now: {}",
            undone(was_in),
            crate::protocol::text::shown(reason)
        ),
        Change::Rival { by, confirmations: 0 } => {
            format!("{by}, in the mempool, spends a coin of {ours} and announces something else")
        }
        Change::Rival { by, confirmations } => format!(
            "{by} spends a coin of {ours} and announces something else: it has {confirmations} of {needed} confirmations"
        ),
        Change::Silent(reason) => format!("warning: the chain does not answer, it is asked again: {reason}"),
        Change::Answers => "the chain answers again".to_owned(),
    }
}
