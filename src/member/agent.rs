//! One life of the agent: from the opening of the state directory to its closing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    sync::Arc,
};

use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::sync::{broadcast::error::RecvError, mpsc};

use super::{
    approval::Approvals,
    backup::ContinuousBackups as Backups,
    config::{MemberConfig, ROLE},
    control::socket_of,
    data::Keeping,
    identities,
    leaving::{self, Exits},
    lives::End,
    notice::MemberNotice,
    queue::{Queue, Stage},
    report::{Log, Reporter},
    restored,
    seeds::{Parts, each_in_one_seat, minted, seed, stop_all},
    settling::{Seed, follow},
    silence::{Silence, watched},
    tally::{TABLE, Tally},
};
use crate::{
    actors::{
        handle::Member,
        notice::Notices,
        runtime::Clock,
        standing::{SeatRequest, boards::BoardStore, notice::SeatNotice},
        state::State,
        transport::contact::{ContactNotice, Contacts},
    },
    error::ProgramError,
    events::Printer,
    join::standing::{Filing, text},
    protocol::did::Did,
    storage::Storage,
    systemd,
};

/// How many notices may wait.
const NOTICES: usize = 1 << 14;

/// How many declined offers are remembered, each of which is reported once.
const MOST_DECLINED: usize = 1_000;

fn internal(error: impl std::fmt::Display) -> End {
    End::Refused(ProgramError::Internal(error.to_string()))
}

/// Lives until it is asked to stop, or cannot go on. `is_ready` is set as soon as it runs.
pub(super) async fn live(
    config: &MemberConfig,
    printer: &Printer,
    stop: Pin<&mut impl Future<Output = ()>>,
    is_ready: &mut bool,
) -> End {
    let storage = match Storage::open(Some(&config.state), "everything", printer) {
        Ok(storage) => storage,
        Err(error) => return End::Refused(error),
    };
    let end = match storage.state().cloned() {
        Some(state) => match Life::begin(config, printer, &storage, &state).await {
            Ok(mut life) => {
                *is_ready = true;
                let end = life.go_on(stop).await;
                life.stop().await;
                end
            }
            Err(end) => end,
        },
        None => internal("no state directory"),
    };
    storage.close().await;
    end
}

/// What runs.
pub(super) struct Life {
    pub(super) config: MemberConfig,
    pub(super) reporter: Reporter,
    pub(super) state: State,
    pub(super) queue: Arc<Queue>,
    pub(super) approvals: Approvals,
    tally: Arc<Tally>,
    exits: Arc<Exits>,
    pub(super) boards: Arc<dyn BoardStore>,
    pub(super) seeds: Vec<Seed>,
    notices: tokio::sync::broadcast::Receiver<Arc<SeatNotice>>,
    contacts: Contacts,
    /// What they report from the first attempt on, before anything is printed.
    reached: tokio::sync::broadcast::Receiver<ContactNotice>,
    backups: Option<Arc<Backups>>,
    /// The tasks beside the loop, which end with it.
    tasks: Vec<actix_rt::task::JoinHandle<()>>,
    #[cfg(unix)]
    page: Option<super::console::Serving>,
    declined: BTreeSet<(Did, String)>,
    restored: bool,
}

/// What other tasks want of the loop.
pub(super) enum Wake {
    /// Updates have come: the seats claim them.
    Claim,
}

impl Life {
    async fn begin(
        config: &MemberConfig,
        printer: &Printer,
        storage: &Storage,
        state: &State,
    ) -> Result<Self, End> {
        let clock = Clock::system();
        let policy = serde_json::to_value(&*config.policy).map_err(internal)?;
        storage.check_role(ROLE, "several".to_owned(), config.network, policy, printer).await?;
        let chain = config.chain.source.connect(config.network).await.map_err(|error| {
            let problem = format!("--chain: {error}");
            match error.is_transient() {
                // E.g. after a boot, when the node starts too.
                true => End::Interrupted(problem),
                false => End::Refused(ProgramError::Usage(problem)),
            }
        })?;
        let unreadable = |error: &dyn std::fmt::Display| End::Refused(ProgramError::State(error.to_string()));
        let queue = Arc::new(Queue::open(state, clock).await.map_err(|error| unreadable(&error))?);
        let log = Log::open(state, clock).await.map_err(|error| unreadable(&error))?;
        let reporter = Reporter::new(printer.clone(), log);
        let tally = Arc::new(Tally::open(state, clock).await.map_err(|error| unreadable(&error))?);
        let exits = Arc::new(Exits::open(state, clock).await.map_err(|error| unreadable(&error))?);
        let restored = restored::is_marked(state).await.map_err(|error| unreadable(&error))?;
        let approvals = Approvals::new(config.policy.hook.clone(), reporter.clone());
        let files = Self::files(config)?;
        super::backup::remember(state, config, &files).await.map_err(End::Interrupted)?;
        let backups =
            config.backup.clone().map(|settings| Arc::new(Backups::new(settings, state.clone(), reporter.clone())));
        let notices = Notices::new(NOTICES);
        let receiver = notices.subscribe();
        let contacts = Contacts::default();
        let reached = contacts.subscribe();
        let parts = Parts {
            storage,
            chain,
            queue: Arc::clone(&queue),
            reporter: reporter.clone(),
            approvals: approvals.clone(),
            tally: Arc::clone(&tally),
            exits: Arc::clone(&exits),
            backups: backups.clone(),
            notices,
            contacts: contacts.clone(),
            restored,
            clock,
        };
        let mut seeds = Vec::with_capacity(config.seats.len());
        for seat in &config.seats {
            match seed(config, seat, &parts).await {
                Ok(seed) => seeds.push(seed),
                Err(end) => {
                    stop_all(&seeds).await;
                    return Err(end);
                }
            }
        }
        if let Err(problem) = each_in_one_seat(&seeds) {
            stop_all(&seeds).await;
            return Err(ProgramError::Usage(problem).into());
        }
        Ok(Self {
            config: config.clone(),
            reporter,
            state: state.clone(),
            queue,
            approvals,
            tally,
            exits,
            boards: storage.boards(),
            seeds,
            notices: receiver,
            contacts,
            reached,
            backups,
            tasks: Vec::new(),
            #[cfg(unix)]
            page: None,
            declined: BTreeSet::new(),
            restored,
        })
    }

    /// The identity files of all seeds.
    fn files(config: &MemberConfig) -> Result<Vec<PathBuf>, End> {
        let mut files = config.files.clone();
        for seat in &config.seats {
            files.extend(identities::files(&seat.dids)?);
            files.extend(minted(config, &seat.name)?);
        }
        Ok(files)
    }

    /// Opens the control socket and starts what runs beside the loop.
    #[cfg(unix)]
    fn open_control(&mut self, wake: mpsc::Sender<Wake>) -> Result<String, End> {
        use super::control::server::Control;
        let path = socket_of(&self.config.state);
        let control = Control::open(&path).map_err(|error| {
            End::Refused(ProgramError::Io { what: format!("the control socket {}", path.display()), error })
        })?;
        let keeping = self.keep_data();
        let page = self.config.console.as_deref().map(|address| super::console::bind(address, &self.config));
        let page = page.transpose()?;
        let backend: Rc<dyn super::control::server::Backend> = Rc::new(super::desk::Desk {
            reporter: self.reporter.clone(),
            state: self.state.clone(),
            queue: Arc::clone(&self.queue),
            approvals: self.approvals.clone(),
            tally: Arc::clone(&self.tally),
            exits: Arc::clone(&self.exits),
            keeping,
            boards: Arc::clone(&self.boards),
            seeds: self.seeds.clone(),
            directory: self.config.state.clone(),
            network: self.config.network,
            checking: super::details::Checking::of(&self.config),
            backups: self.backups.clone(),
            access: page.as_ref().map(super::console::Bound::access),
            wake,
        });
        if let Some(page) = page {
            let (serving, answering) = page.open(Rc::clone(&backend), &self.reporter);
            self.page = Some(serving);
            self.tasks.push(actix_rt::spawn(answering));
        }
        self.tasks.push(actix_rt::spawn(control.serve(backend)));
        Ok(path.display().to_string())
    }

    #[cfg(not(unix))]
    fn open_control(&mut self, _: mpsc::Sender<Wake>) -> Result<String, End> {
        self.keep_data();
        Ok("none on this system".to_owned())
    }

    async fn go_on(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) -> End {
        let (wake, mut woken) = mpsc::channel(64);
        let socket = match self.open_control(wake) {
            Ok(socket) => socket,
            Err(end) => return end,
        };
        let reached = std::mem::replace(&mut self.reached, self.contacts.subscribe());
        let reporting = self.reporter.printer().clone().follow(reached);
        self.watch_services();
        if let Some(backups) = self.backups.clone() {
            self.tasks.push(actix_rt::spawn(async move { backups.follow().await }));
        }
        let dids = self.seeds.iter().map(|seed| seed.controller.indexes().len()).sum();
        let open = self.queue.open_items().len();
        self.reporter.notice(&MemberNotice::MemberReady { seats: self.seeds.len(), dids, open, socket });
        systemd::notify(&[sd_notify::NotifyState::Ready]);
        tokio::pin!(reporting);
        let members: Vec<Member> = self.seeds.iter().map(|seed| seed.member.clone()).collect();
        let mut failed: FuturesUnordered<_> =
            members.iter().map(|member| async move { member.failed().await }).collect();
        let mut looks: FuturesUnordered<LocalBoxFuture<'static, ()>> = FuturesUnordered::new();
        if self.restored {
            looks.push(self.settle_restored());
        }
        for seed in &self.seeds {
            let filing = Filing { member: &seed.member, boards: &*self.boards, controller: &seed.controller };
            filing.last_numbers(self.reporter.printer()).await;
        }
        // What a previous run has announced, whose notices may be lost.
        looks.push(self.look());
        let reporter = self.reporter.clone();
        loop {
            let has_unstored = self.seeds.iter().any(|seed| seed.controller.has_unstored());
            let is_leaving = !self.exits.open_ones().is_empty();
            let is_waiting = has_unstored || is_leaving || !self.queue.open_items().is_empty();
            let notice = tokio::select! {
                () = &mut stop => return End::Stopped,
                notice = self.notices.recv() => notice,
                never = &mut reporting => match never {},
                Some(gone) = failed.next() => {
                    return End::Interrupted(gone.to_string());
                }
                () = reporter.storage_has_failed() => {
                    return End::Interrupted("the state directory cannot be written to".to_owned());
                }
                Some(Wake::Claim) = woken.recv() => {
                    self.claim().await;
                    continue;
                }
                Some(()) = looks.next() => continue,
                // A service may have lost a claim, and resolvers return what is confirmed after a while. Without updates it sleeps.
                () = tokio::time::sleep(self.config.chain.poll), if is_waiting => {
                    self.try_again().await;
                    self.claim().await;
                    if looks.is_empty() {
                        if self.awaits_resolvers() {
                            looks.push(self.look());
                        }
                        if is_leaving {
                            looks.push(self.leave());
                        }
                    }
                    continue;
                }
            };
            match notice {
                Ok(notice) => {
                    if let Some(end) = self.handle(&notice, &mut looks).await {
                        return end;
                    }
                }
                Err(RecvError::Lagged(lost)) => self.reporter.printer().missed(lost),
                Err(RecvError::Closed) => return End::Interrupted("the seats are gone".to_owned()),
            }
        }
    }

    /// Whether an update is final that resolvers did not return yet, or is announced by a Singleton beacon, which no seat watches.
    fn awaits_resolvers(&self) -> bool {
        self.queue.open_items().iter().any(|item| item.stage == Stage::Confirmed || item.by_singleton)
    }

    /// Watches whether services can be reached.
    fn watch_services(&mut self) {
        let silence = Silence {
            services: watched(&self.config.seats),
            contacts: self.contacts.clone(),
            after: self.config.policy.silence,
            table: self.state.table(TABLE),
            reporter: self.reporter.clone(),
            clock: Clock::system(),
        };
        self.tasks.push(actix_rt::spawn(silence.follow()));
    }

    /// Fetches the data of addresses that DIDs have left.
    fn keep_data(&mut self) -> Rc<Keeping> {
        let settings = self.config.seats.iter().map(|seat| (seat.name.clone(), seat.clone()));
        let keeping = Keeping {
            seeds: self.seeds.clone(),
            exits: Arc::clone(&self.exits),
            settings: settings.collect(),
            network: self.config.network,
            table: self.state.table(TABLE),
            reporter: self.reporter.clone(),
            clock: Clock::system(),
        };
        let keeping = Rc::new(keeping);
        let following = Rc::clone(&keeping);
        self.tasks.push(actix_rt::spawn(async move { following.follow().await }));
        keeping
    }

    /// Takes the exits of DIDs further.
    fn leave(&self) -> LocalBoxFuture<'static, ()> {
        let (seeds, exits, reporter) = (self.seeds.clone(), Arc::clone(&self.exits), self.reporter.clone());
        async move { leaving::go_on(&seeds, &exits, &reporter).await }.boxed_local()
    }

    /// Stores what could not be stored, and proves control of DIDs where a service does not know their last version.
    async fn try_again(&self) {
        for seed in &self.seeds {
            for number in seed.controller.store_again() {
                self.reporter.printer().warn(&format!("number {number}: what resolvers need of it is written now"));
            }
            for seat in seed.member.seats().await {
                let rows = seed.controller.to_prove(&seat.seat);
                if !rows.is_empty() {
                    let _ = seed.member.request(&seat.seat, SeatRequest::Rows(rows)).await;
                }
            }
        }
    }

    /// Removes the mark of a restore when the seats have taken it up.
    fn settle_restored(&self) -> LocalBoxFuture<'static, ()> {
        let (state, seeds, reporter) = (self.state.clone(), self.seeds.clone(), self.reporter.clone());
        async move {
            if let Err(problem) = restored::settled(&state, &seeds).await {
                reporter.storage_failed(&problem);
            }
        }
        .boxed_local()
    }

    /// Asks resolvers for what was announced.
    fn look(&self) -> LocalBoxFuture<'static, ()> {
        let (seeds, reporter) = (self.seeds.clone(), self.reporter.clone());
        async move {
            for seed in &seeds {
                seed.look(&reporter).await;
            }
        }
        .boxed_local()
    }

    /// The seats notify their services that there are updates.
    async fn claim(&self) {
        for seed in &self.seeds {
            for seat in seed.member.seats().await {
                // A seat that has just ended needs none.
                let _ = seed.member.request(&seat.seat, SeatRequest::Claim).await;
            }
        }
    }

    async fn handle(
        &mut self,
        notice: &SeatNotice,
        looks: &mut FuturesUnordered<LocalBoxFuture<'static, ()>>,
    ) -> Option<End> {
        match notice {
            SeatNotice::OfferDeclined { service, cohort_id, reasons } => {
                // An advert is repeated.
                let key = (service.clone(), format!("{cohort_id} {}", reasons.join(" ")));
                if self.declined.len() >= MOST_DECLINED {
                    self.declined.clear();
                }
                if !self.declined.insert(key) {
                    return None;
                }
            }
            SeatNotice::SeatNotGiven { cohort_id, .. } => {
                if let Err(problem) = self.tally.leaves(cohort_id).await {
                    self.reporter.storage_failed(&problem);
                }
            }
            // What is there moves; new DIDs begin at the successor.
            SeatNotice::SuccessorKnown { cohort_id, .. } => {
                if let Err(problem) = self.tally.is_succeeded(cohort_id).await {
                    self.reporter.storage_failed(&problem);
                }
            }
            // A number shows that the other seats have these rows too; without updates it is idle and costs nothing.
            SeatNotice::RowsAcknowledged { seat, .. } => {
                for seed in &self.seeds {
                    let _ = seed.member.request(seat, SeatRequest::Pending).await;
                }
            }
            _ => {}
        }
        self.reporter.also_logged(notice, text(notice));
        if let SeatNotice::Registered { cohort_id, registered, .. } = notice
            && !registered.is_empty()
        {
            let known: BTreeMap<_, _> = self.seeds.iter().flat_map(|seed| seed.controller.indexes()).collect();
            let dids = registered.iter().filter_map(|index| known.get(index).cloned()).collect();
            self.reporter.notice(&MemberNotice::DidsRegistered { cohort_id: cohort_id.clone(), dids });
        }
        let first = self.seeds.first()?;
        // The records are those of the state directory, whichever seed it is.
        first.controller.follow(notice).await;
        if follow(notice, &first.source, &self.reporter).await {
            looks.push(self.look());
        }
        if let SeatNotice::SeatHalted { reason, .. } = notice
            && let Err(problem) = self.probe().await
        {
            return Some(End::Interrupted(format!("{reason}; {problem}")));
        }
        None
    }

    /// Whether the state directory can be written to.
    async fn probe(&self) -> Result<(), String> {
        let table = self.state.table(super::tally::TABLE);
        table.put("probe", Vec::new()).await.map_err(|error| error.to_string())
    }

    async fn stop(self) {
        #[cfg(unix)]
        if let Some(page) = self.page {
            page.stop().await;
        }
        self.tasks.iter().for_each(actix_rt::task::JoinHandle::abort);
        for task in self.tasks {
            // It was aborted: what it holds is gone now, the control socket too.
            let _ = task.await;
        }
        stop_all(&self.seeds).await;
    }
}
