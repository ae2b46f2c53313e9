//! The machine: what it needs next, and what becomes of the answers.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bitcoin::Address;

use super::{
    data::{Data, Genesis},
    error::ResolutionError,
    history::{Event, Ignored, IgnoredSignal, Source},
    need::{Content, ContentKind, Key, Need, NotNeeded},
    options::ResolutionOptions,
    result::{Resolution, Resolved},
    sidecar::SidecarData,
    signal::{Beacon, BeaconSignal, Block, Signal},
    state::{Pause, State},
};
use crate::{
    did::{self, Did},
    document::{DocumentError, initial_document},
    hash::DocumentHash,
    jcs,
};

/// What a resolver wants.
#[derive(Debug)]
pub enum Next<'a> {
    /// These, in any order. Each is to be answered once.
    Needs(Vec<Need>),
    /// Nothing more.
    Done(&'a Resolution),
}

/// The resolution of one identifier; see the [module](super).
pub struct Resolver {
    did: Did,
    options: ResolutionOptions,
    data: Data,
    needs: BTreeMap<Key, Need>,
    stage: Stage,
    round: u32,
    history: Vec<Event>,
    #[cfg(feature = "sim")]
    leaves_invocation_target_aside: bool,
}

/// What the answers are for that are awaited.
enum Stage {
    /// The first document.
    Genesis,
    /// The signals of new addresses, in the order of the document.
    Signals(Box<State>, Vec<Scan>),
    /// What these signals say.
    Data(Box<State>, Vec<Arc<BeaconSignal>>),
    Done(Resolution),
}

/// An address, and its signals when they are there.
struct Scan {
    beacon: Arc<Beacon>,
    answer: Option<(Vec<Signal>, Source)>,
}

/// Where a stage leads.
type Progress = Result<Progressed, ResolutionError>;

enum Progressed {
    To(Stage),
    End(Resolved),
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("did", &self.did).field("next", &self.next()).finish_non_exhaustive()
    }
}

impl Resolver {
    /// Begins to resolve `did`. Nothing of the Sidecar Data is judged that nothing refers to (rule R-15).
    pub fn new(did: Did, options: ResolutionOptions, sidecar: SidecarData) -> Self {
        let genesis_hash = match did.genesis() {
            did::Genesis::Key(_) => None,
            did::Genesis::External(hash) => Some(*hash),
        };
        let mut resolver = Self {
            data: Data::new(&did, genesis_hash, sidecar),
            did,
            options,
            needs: BTreeMap::new(),
            stage: Stage::Genesis,
            round: 0,
            history: Vec::new(),
            #[cfg(feature = "sim")]
            leaves_invocation_target_aside: false,
        };
        resolver.advance();
        resolver
    }

    /// The identifier.
    pub const fn did(&self) -> &Did {
        &self.did
    }

    /// What the resolver needs, or the outcome. It goes on when everything that it needs is there: from the same
    /// answers follows the same resolution, in whatever order they come.
    pub fn next(&self) -> Next<'_> {
        match &self.stage {
            Stage::Done(resolution) => Next::Done(resolution),
            _ => Next::Needs(self.needs.values().cloned().collect()),
        }
    }

    /// The finished resolution; the resolver itself as long as it needs something.
    ///
    /// # Errors
    /// The resolver, unfinished.
    #[allow(clippy::result_large_err, reason = "a resolver is not an error that travels")]
    pub fn into_resolution(self) -> Result<Resolution, Self> {
        match self.stage {
            Stage::Done(resolution) => Ok(resolution),
            _ => Err(self),
        }
    }

    /// Answers [`Need::Signals`]: all signals of `address`, confirmed or not. They are sorted by height; those of one
    /// block are to be given in its order. `source` names the chain's source in the history.
    ///
    /// # Errors
    /// [`NotNeeded`].
    pub fn provide_signals(
        &mut self,
        address: &Address,
        signals: Vec<Signal>,
        source: &str,
    ) -> Result<(), NotNeeded> {
        self.needs.remove(&Key::Signals(address.clone())).ok_or(NotNeeded)?;
        if let Stage::Signals(_, scans) = &mut self.stage
            && let Some(scan) = scans.iter_mut().find(|scan| scan.beacon.address == *address)
        {
            scan.answer = Some((signals, Source::Caller(source.into())));
        }
        self.advance();
        Ok(())
    }

    /// Answers every [`Need::Content`] of that hash. `source` names the content's source in the history.
    ///
    /// # Errors
    /// [`NotNeeded`].
    pub fn provide_content(
        &mut self,
        hash: &DocumentHash,
        content: Content,
        source: &str,
    ) -> Result<(), NotNeeded> {
        let mut kinds = ContentKind::ALL.to_vec();
        kinds.retain(|kind| self.needs.remove(&Key::Content(*kind, *hash)).is_some());
        let Some((last, others)) = kinds.split_last() else { return Err(NotNeeded) };
        let source = Source::Caller(source.into());
        for kind in others {
            self.data.supply(*kind, *hash, content.clone(), source.clone());
        }
        self.data.supply(*last, *hash, content, source);
        self.advance();
        Ok(())
    }

    /// Ends the resolution with `INTERNAL_ERROR`: the chain or a content store cannot be read to the end. `problem`
    /// states why, in a sentence. A finished resolution stays as it is.
    pub fn give_up(&mut self, problem: &str) {
        if !matches!(self.stage, Stage::Done(_)) {
            self.finish(Err(ResolutionError::Discovery(problem.to_owned())));
        }
    }

    /// Does not ask for an `invocationTarget` (rule U-4), and for nothing less else: public test cases were recorded
    /// before that rule. To be called before anything is provided. For tests.
    #[doc(hidden)]
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn leaving_invocation_target_aside(mut self) -> Self {
        self.leaves_invocation_target_aside = true;
        if let Stage::Signals(state, _) = &mut self.stage {
            state.leaves_invocation_target_aside = true;
        }
        self
    }

    /// Goes on for as long as nothing is needed.
    fn advance(&mut self) {
        while self.needs.is_empty() {
            let progress = match std::mem::replace(&mut self.stage, Stage::Genesis) {
                Stage::Genesis => self.establish(),
                Stage::Signals(state, scans) => self.take_signals(state, scans),
                Stage::Data(state, signals) => self.read(state, signals),
                Stage::Done(resolution) => {
                    self.stage = Stage::Done(resolution);
                    return;
                }
            };
            match progress {
                Ok(Progressed::To(stage)) => self.stage = stage,
                Ok(Progressed::End(resolved)) => self.finish(Ok(resolved)),
                Err(error) => self.finish(Err(error)),
            }
        }
    }

    fn finish(&mut self, outcome: Result<Resolved, ResolutionError>) {
        self.needs.clear();
        let history = std::mem::take(&mut self.history);
        self.stage = Stage::Done(Resolution { did: self.did.clone(), outcome, history });
    }

    /// The first document (rules I-2 to I-4).
    fn establish(&mut self) -> Progress {
        let (document, source) = match self.did.genesis() {
            did::Genesis::Key(_) => (initial_document(&self.did, None), Source::Identifier),
            did::Genesis::External(hash) => {
                let hash = DocumentHash::from_bytes(*hash);
                match self.data.genesis() {
                    Genesis::Unknown => {
                        self.need(Need::content(ContentKind::GenesisDocument, hash, None));
                        return Ok(Progressed::To(Stage::Genesis));
                    }
                    Genesis::Absent => return Err(ResolutionError::GenesisMissing { hash }),
                    Genesis::Document(document, source) => {
                        // One that nests deeper than JSON text can was not read from any source.
                        let document = jcs::check(document, jcs::MAX_DEPTH - 1)
                            .map_err(DocumentError::NotCanonical)
                            .and_then(|()| initial_document(&self.did, Some(document)));
                        (document, source.clone())
                    }
                }
            }
        };
        let mut document = document.map_err(|error| ResolutionError::Genesis(Arc::new(error)))?;
        jcs::unify_numbers(&mut document);
        self.history.push(Event::InitialDocument { source });
        let mut state = Box::new(State::new(&self.did, document));
        #[cfg(feature = "sim")]
        {
            state.leaves_invocation_target_aside = self.leaves_invocation_target_aside;
        }
        self.report_unusable(&mut state);
        self.scan(state)
    }

    /// Asks for the signals of new addresses, if there are any (rule R-3).
    fn scan(&mut self, mut state: Box<State>) -> Progress {
        let beacons = state.take_unscanned();
        let round = self.round.saturating_add(1);
        if beacons.is_empty() {
            return self.run(state);
        }
        if let Some(limit) = self.options.max_discovery_rounds.filter(|limit| round > limit.get()) {
            return Err(ResolutionError::TooManyRounds { limit: limit.get() });
        }
        self.round = round;
        let mut scans = Vec::with_capacity(beacons.len());
        for beacon in beacons {
            let beacon = Arc::new(beacon);
            self.need(Need::Signals { round, beacon: beacon.clone() });
            scans.push(Scan { beacon, answer: None });
        }
        Ok(Progressed::To(Stage::Signals(state, scans)))
    }

    /// Which signals count (rules ).
    fn take_signals(&mut self, state: Box<State>, scans: Vec<Scan>) -> Progress {
        let (mut counted, mut first_error) = (Vec::new(), None);
        for Scan { beacon, answer } in scans {
            // Every scan was a need, and none is left.
            let Some((mut signals, source)) = answer else { continue };
            signals.sort_by_key(|signal| signal.height);
            let (before, mut ignored) = (counted.len(), Vec::new());
            for signal in signals {
                let Signal { txid, bytes, height, confirmations, .. } = signal;
                let ignore = |reason| IgnoredSignal { txid, height, confirmations, reason };
                if u64::from(confirmations.unwrap_or_default()) < self.options.min_conf {
                    ignored.push(ignore(Ignored::TooFewConfirmations));
                    continue;
                }
                let beacon = beacon.clone();
                match Block::of(&signal) {
                    Some(block) if block.height < state.height() => ignored.push(ignore(Ignored::BelowHeight)),
                    Some(block) => counted.push(Arc::new(BeaconSignal { beacon, txid, bytes, block })),
                    None => {
                        first_error.get_or_insert(ResolutionError::BlockUnknown { txid, beacon });
                    }
                }
            }
            let signals = counted.len() - before;
            self.history.push(Event::Scanned { round: self.round, beacon, source, signals, ignored });
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(Progressed::To(Stage::Data(state, counted))),
        }
    }

    /// What the signals announce. All are read, also behind one that fails: a caller that looks for what is missing finds all
    /// of it.
    fn read(&mut self, mut state: Box<State>, signals: Vec<Arc<BeaconSignal>>) -> Progress {
        let mut readings = Vec::with_capacity(signals.len());
        for signal in &signals {
            match self.data.read(signal) {
                Ok(reading) => readings.push(reading),
                Err(need) => self.need(need),
            }
        }
        if !self.needs.is_empty() {
            return Ok(Progressed::To(Stage::Data(state, signals)));
        }
        let mut first_error = None;
        for (signal, reading) in signals.into_iter().zip(readings) {
            let (event, said) = reading.into_event(self.round, signal.clone());
            self.history.push(event);
            match said {
                Ok(Some(announced)) => state.push(signal, announced),
                Ok(None) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => self.run(state),
        }
    }

    fn run(&mut self, mut state: Box<State>) -> Progress {
        let pause = state.run(&self.options.version, &mut self.history);
        self.report_unusable(&mut state);
        match pause? {
            Pause::Scan => self.scan(state),
            Pause::End(resolved) => Ok(Progressed::End(resolved)),
        }
    }

    fn report_unusable(&mut self, state: &mut State) {
        let round = self.round;
        self.history.extend(state.take_unusable().into_iter().map(|beacon| Event::Unusable { round, beacon }));
    }

    fn need(&mut self, need: Need) {
        self.needs.entry(need.key()).or_insert(need);
    }
}
