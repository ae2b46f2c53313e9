//! Inputs, events and effects of a seat.

use std::{collections::BTreeSet, sync::Arc};

use bitcoin::{Transaction, Txid};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::saved::SavedSeat;
use crate::{
    cohort::standing::{
        board::Board,
        message::{AskedRow, ConfirmationRequest, SeatOptIn, StandingMessage},
        opportunity::{CoinRef, Opportunity},
        response::Response,
        roster::Row,
        successor::Successor,
        terms::StandingTerms,
        transaction::Mode,
    },
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes},
    id::CohortId,
    key::{PublicKey, Signature},
    message::Bytes,
    output::BeaconOutput,
    time::Timestamp,
};

/// An update that the host wants announced.
#[derive(Clone, Debug, PartialEq)]
pub struct SeatUpdate {
    /// The DID.
    pub did: Did,
    /// The version to which it leads.
    pub version: u64,
    /// The hash of the signed update.
    pub hash: DocumentHash,
    /// The signed update, in a cohort whose service receives updates; none in any other.
    pub full: Option<Value>,
}

/// An input of a seat.
#[derive(Clone, Debug, PartialEq)]
pub enum SeatInput {
    /// Ask for the seat, with this message, which the seat key has signed.
    OptIn(SeatOptIn),
    /// A message of the service, authenticated by its transport.
    Message(StandingMessage),
    /// The host's answer to [`SeatEffect::AskUpdates`]: the updates whose predecessor is final or is announced by an ancestor of the coins.
    UpdatesDecided {
        /// The number.
        number: u64,
        /// The updates, each of another DID.
        updates: Vec<SeatUpdate>,
    },
    /// The host's answer to [`SeatEffect::OpenNonces`].
    ResponseSigned(Arc<Response>),
    /// The host's answer to [`SeatEffect::FetchRows`].
    RowsFetched {
        /// All rows after those that this seat knows, up to the missed opportunity's.
        rows: Vec<Row>,
    },
    /// The host's answer to [`SeatEffect::FetchBoard`].
    BoardFetched {
        /// The number.
        number: u64,
        /// The bytes, as the service or another seat gave them.
        bytes: Arc<Vec<u8>>,
    },
    /// The host's answer to [`SeatEffect::AskSigning`]; the board is stored.
    SigningDecided {
        /// The number.
        number: u64,
        /// Why not, if not.
        refusal: Option<String>,
    },
    /// The host's answer to [`SeatEffect::SignPartials`].
    PartialsSigned {
        /// The number.
        number: u64,
        /// One for each input; none when the secret nonces are gone.
        partials: Option<Vec<Bytes<32>>>,
    },
    /// The host's answer to [`SeatEffect::SignFallback`].
    FallbackSigned {
        /// The number.
        number: u64,
        /// One for each input.
        signatures: Vec<Signature>,
    },
    /// Rows that the host wants registered, signed by the seat.
    RowsAsked(Vec<AskedRow>),
    /// The journal of this seat was restored from a backup: what happened after it is not known here. Until each of these coins is spent, only
    /// updates that are known here are submitted.
    RestoredFromBackup {
        /// Every coin that the address has now, in blocks and in the mempool.
        coins: Vec<CoinRef>,
        /// The updates in the backup: index, version and hash.
        updates: Vec<(DidIndex, u64, DocumentHash)>,
    },
    /// What the host has done to move: own indexes that are registered at the successor, to which this seat has a seat of its own; and those that
    /// it leaves behind. It replaces what was prepared before.
    MovePrepared {
        /// The successor.
        successor: CohortId,
        /// Registered there, and confirmed by its seats.
        registered: Vec<DidIndex>,
        /// Left behind: their DIDs move by their Singleton, or have left the address.
        left: Vec<DidIndex>,
    },
    /// Resolvers give this version of a DID of this seat, finally. Its host resolves before it chooses updates.
    Resolved {
        /// The index.
        index: DidIndex,
        /// The version.
        version: u64,
    },
    /// A transaction that spends a coin of the cohort is final.
    Spent {
        /// The coin.
        coin: CoinRef,
        /// By which transaction.
        by: Txid,
        /// What that announces, if anything.
        signal: Option<SignalBytes>,
    },
}

/// An event of a seat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SeatEvent {
    /// The seat was asked for. The journal begins with this, or with [`Saved`](Self::Saved).
    OptedIn {
        /// When.
        at: Timestamp,
        /// The terms of the cohort.
        terms: Arc<StandingTerms>,
        /// The service.
        service: Did,
        /// The request.
        opt_in: SeatOptIn,
    },
    /// The service has promised the seat.
    Accepted {
        /// When.
        at: Timestamp,
    },
    /// The service does not give the seat.
    Refused {
        /// When.
        at: Timestamp,
        /// Why.
        reason: String,
    },
    /// All that earlier events have led to: it replaces them in the journal.
    Saved(Box<SavedSeat>),
    /// The cohort has formed, with an output that follows from its keys.
    Formed {
        /// When.
        at: Timestamp,
        /// The output.
        output: BeaconOutput,
    },
    /// The service has named other seats, from which boards can be had that it does not have. Nothing proves that they are seats.
    PeersLearned {
        /// When.
        at: Timestamp,
        /// Their DIDs.
        peers: Vec<Did>,
    },
    /// Rows were sent.
    RowsSent {
        /// When.
        at: Timestamp,
        /// The rows.
        rows: Vec<AskedRow>,
    },
    /// The service has answered rows.
    RowsAcknowledged {
        /// When.
        at: Timestamp,
        /// The first number that covers them.
        from_number: u64,
        /// Index and serial of those that are registered.
        registered: Vec<(DidIndex, u64)>,
        /// Those that are not, with the reason.
        refused: Vec<(DidIndex, u64, String)>,
    },
    /// An opportunity before which this seat has missed rows.
    RowsMissed {
        /// When.
        at: Timestamp,
        /// The opportunity, signed by the service.
        opportunity: Arc<Opportunity>,
    },
    /// An opportunity that this seat answers.
    OpportunityAccepted {
        /// When.
        at: Timestamp,
        /// The opportunity, signed by the service.
        opportunity: Arc<Opportunity>,
        /// The rows that this seat did not know.
        rows: Arc<Vec<Row>>,
    },
    /// The host has chosen the updates. From here on each of them may be announced: other seats may sign by fallback.
    Committed {
        /// When.
        at: Timestamp,
        /// The number.
        number: u64,
        /// Index, version and hash of each.
        updates: Vec<(DidIndex, u64, DocumentHash)>,
        /// The DIDs, in the order of `updates`, and what the service receives of each.
        given: Vec<(Did, Option<Value>)>,
    },
    /// The journal was restored from a backup.
    Restored {
        /// When.
        at: Timestamp,
        /// Every coin that the address had then.
        coins: Vec<CoinRef>,
        /// The updates in the backup: index, version and hash.
        updates: Vec<(DidIndex, u64, DocumentHash)>,
    },
    /// The response is signed; from here on it is sent.
    Responded {
        /// When.
        at: Timestamp,
        /// The response.
        response: Arc<Response>,
    },
    /// A request for confirmation, the first for its number.
    Requested {
        /// When.
        at: Timestamp,
        /// The request.
        request: Arc<ConfirmationRequest>,
    },
    /// The board and the transaction are as they have to be.
    Verified {
        /// When.
        at: Timestamp,
        /// The number.
        number: u64,
        /// What is announced; nothing by a refresh.
        signal: Option<SignalBytes>,
        /// The transaction.
        txid: Txid,
        /// What is signed of each input.
        sighashes: Vec<[u8; 32]>,
    },
    /// At least k seats have signed a response for the roster of this number.
    RosterConfirmed {
        /// When.
        at: Timestamp,
        /// The number.
        number: u64,
        /// The own indexes in it that no such roster had before.
        registered: Vec<DidIndex>,
        /// Those that are not in it any more.
        released: Vec<DidIndex>,
    },
    /// The host has decided to sign.
    SigningApproved {
        /// When.
        at: Timestamp,
        /// The number.
        number: u64,
    },
    /// The seat has confirmed: its signatures, or its refusal. They are sent again when asked for, and never others.
    Confirmed {
        /// When.
        at: Timestamp,
        /// The number.
        number: u64,
        /// Partial signatures.
        partials: Option<Vec<Bytes<32>>>,
        /// Fallback signatures.
        fallback: Option<Vec<Signature>>,
        /// Why not.
        refusal: Option<String>,
    },
    /// The service reports that a number is over. Nothing follows but that nothing more is awaited.
    NumberOver {
        /// When.
        at: Timestamp,
        /// The number.
        number: u64,
        /// Its signed transaction, if the service sent one.
        transaction: Option<Arc<Transaction>>,
        /// Its board.
        board_hash: Option<DocumentHash>,
        /// Whether no seat had an update.
        is_idle: bool,
    },
    /// The service has named the cohort to which this one moves.
    SuccessorNamed {
        /// When.
        at: Timestamp,
        /// The successor, signed by the service.
        successor: Arc<Successor>,
        /// The output that follows from its keys.
        output: BeaconOutput,
    },
    /// The host has prepared the move of its DIDs.
    MovePrepared {
        /// When.
        at: Timestamp,
        /// The successor.
        successor: CohortId,
        /// The own indexes that are registered there.
        registered: Vec<DidIndex>,
        /// Those that are left behind.
        left: Vec<DidIndex>,
    },
    /// Resolvers give this version of a DID.
    VersionResolved {
        /// When.
        at: Timestamp,
        /// The index.
        index: DidIndex,
        /// The version.
        version: u64,
    },
    /// A coin was spent, finally: the numbers that spend it are announced, or never will be.
    CoinSpent {
        /// When.
        at: Timestamp,
        /// The coin.
        coin: CoinRef,
        /// By which transaction.
        by: Txid,
        /// What that announces.
        signal: Option<SignalBytes>,
    },
}

/// What a seat needs done.
#[derive(Clone, Debug)]
pub enum SeatEffect {
    /// Send to the service.
    Send(StandingMessage),
    /// Answer with [`SeatInput::UpdatesDecided`].
    AskUpdates {
        /// The opportunity.
        opportunity: Arc<Opportunity>,
        /// Updates that may be announced already: only the identical one of that version may be chosen.
        committed: Vec<(DidIndex, u64, DocumentHash)>,
        /// Index and version of those that an ancestor of the coins announces: the next version may follow, and announcing them
        /// again only costs.
        announced: BTreeSet<(DidIndex, u64)>,
    },
    /// Open a nonce for each input, wiping all others, and sign [`Seat::content`](super::Seat::content) with the seat key; answer with
    /// [`SeatInput::ResponseSigned`].
    OpenNonces {
        /// The number.
        number: u64,
        /// How many.
        inputs: usize,
    },
    /// Get the rows of the roster from this place on; answer with [`SeatInput::RowsFetched`].
    FetchRows {
        /// After so many.
        from: u64,
    },
    /// Get the board of this hash; answer with [`SeatInput::BoardFetched`].
    FetchBoard {
        /// The number.
        number: u64,
        /// The hash.
        hash: DocumentHash,
    },
    /// Store the board, durably; then answer with [`SeatInput::SigningDecided`].
    AskSigning {
        /// The number.
        number: u64,
        /// The board. It is kept without end, and served to others.
        board: Arc<Board>,
        /// The transaction.
        transaction: Transaction,
        /// How it is signed.
        mode: Mode,
    },
    /// Use the nonces of the number, once; answer with [`SeatInput::PartialsSigned`].
    SignPartials {
        /// The number.
        number: u64,
        /// The aggregate nonce of each input.
        aggregated: Vec<Bytes<66>>,
        /// What is signed of each input.
        sighashes: Vec<[u8; 32]>,
    },
    /// Sign with the seat key and wipe all nonces; answer with [`SeatInput::FallbackSigned`].
    SignFallback {
        /// The number.
        number: u64,
        /// What is signed of each input.
        sighashes: Vec<[u8; 32]>,
    },
    /// The transaction that this seat has verified is signed: its data is on the board that the host has stored.
    Announced {
        /// The number.
        number: u64,
        /// The signed transaction.
        transaction: Arc<Transaction>,
    },
    /// The service reports an announcement that this seat has not verified, or whose board its host has not stored. If the board of
    /// this hash gives the transaction's signal ([`BoardContent::signal`](crate::cohort::standing::BoardContent::signal)), the host
    /// has to store it: resolvers need it.
    Missed {
        /// The number.
        number: u64,
        /// The transaction, as the service sent it.
        transaction: Arc<Transaction>,
        /// The board's hash.
        board_hash: DocumentHash,
    },
    /// At least k seats have signed that these indexes are this seat's, or are not any more. Only now may a document list the beacon.
    Registered {
        /// Registered.
        registered: Vec<DidIndex>,
        /// Released.
        released: Vec<DidIndex>,
    },
    /// Rows were refused.
    NotRegistered(Vec<(DidIndex, String)>),
}

impl PartialEq for SeatEffect {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::AskSigning { number, board, transaction, mode },
                Self::AskSigning { number: n, board: b, transaction: t, mode: m },
            ) => (number, board.hash(), transaction, mode) == (n, b.hash(), t, m),
            // The others have no board, and print all that they are.
            _ => format!("{self:?}") == format!("{other:?}"),
        }
    }
}

/// The seat key of a row as it was sent.
pub(super) fn row_of(seat: PublicKey, asked: &AskedRow) -> Row {
    Row { seat, did_index: asked.did_index, action: asked.action, serial: asked.serial, signature: asked.signature }
}
