//! What all calls share.

use std::sync::atomic::AtomicBool;

use tokio::sync::{mpsc, oneshot};

use super::{
    answer::Refusal,
    audit::AuditLog,
    feed::Feed,
    gate::{Gate, Login},
    settings::Settings,
    sse::Streams,
    templates::TemplateBook,
    tokens::TokenBook,
};
use crate::{
    actors::{
        announcement::Announcements, bans::BanBook, handle::Service, invites::InviteBook, runtime::Clock,
        standing::history::HistoryStore, transport::connections::Connections,
    },
    html::session::Sessions,
    metrics::{Metrics, http::Readiness},
    protocol::network::Network,
    serve::{
        alarm::AlarmLog,
        desk::Desk,
        orders::{Done, Order},
        register::Register,
    },
    standing::operator::StandingOperator,
};

/// What does not change while the service runs.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) network: Network,
    /// The URL at which HTTP is served to the public.
    pub(crate) url: Option<String>,
    pub(crate) relays: Vec<String>,
    /// The file of `--allow-list`.
    pub(crate) allow_list: Option<String>,
    /// The URL of the page for controllers, if there is one.
    pub(crate) page: Option<String>,
}

/// The parts of the service that calls use.
pub(crate) struct Parts {
    pub(crate) about: About,
    pub(crate) service: Service,
    pub(crate) standing: std::sync::Arc<StandingOperator>,
    /// What standing cohorts have announced.
    pub(crate) history: std::sync::Arc<dyn HistoryStore>,
    pub(crate) announcements: Option<Announcements>,
    pub(crate) bans: BanBook,
    pub(crate) invites: InviteBook,
    pub(crate) desk: Desk,
    pub(crate) alarms: AlarmLog,
    pub(crate) register: Register,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) clock: Clock,
}

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) parts: Parts,
    pub(crate) tokens: TokenBook,
    pub(crate) audit: AuditLog,
    pub(crate) gate: Gate,
    /// The sessions of browsers, if there is a console.
    pub(crate) sessions: Option<Sessions<Login>>,
    pub(crate) templates: TemplateBook,
    pub(crate) settings: Settings,
    pub(crate) feed: Feed,
    pub(crate) streams: Streams,
    pub(crate) connections: Connections,
    pub(crate) stopping: AtomicBool,
    /// One template is changed at a time: its file and its series change together.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Gives an order to the loop that opens cohorts, and waits until it is obeyed.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] with the reason, if it cannot be obeyed; [`Refusal::Failed`] when the service stops.
    pub(crate) async fn order<T>(&self, order: impl FnOnce(Done<T>) -> Order) -> Result<T, Refusal> {
        let stopped = || Refusal::Failed("the service is stopping".to_owned());
        let (done, answered) = oneshot::channel();
        self.parts.orders.send(order(done)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?.map_err(Refusal::Conflict)
    }

    /// Makes that loop look at the settings again.
    pub(crate) async fn wake(&self) {
        // A service that stops opens nothing.
        let _ = self.parts.orders.send(Order::Wake).await;
    }
}
