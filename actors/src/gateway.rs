//! The gateway: HTTP for people and programs outside. The only place that names actix-web.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page |
//! | `/v1/conversations...`, `POST /v1/chat` | talking, and what was said |
//! | `/v1/bus/...` | topics, peers and the like; publish, request, subscribe |
//! | `GET /v1/socket` | the bus over a WebSocket; `gateway/SOCKET.md` |
//! | `/v1/logs...`, `/v1/admin/...` | the log; orders to the runtime |
//! | `POST /v1/chat/completions`, `POST /v1/embeddings`, `GET /v1/models` | what OpenAI's clients ask for |
//! | `GET /v1/status` | the tree |
//! | `GET /health/live`, `/health/ready`, `/health` | whether it lives, all is ready, it can be used |
//! | `GET /openapi.json`, `GET /docs/` | all of this, for programs and for people |
//!
//! Events of a turn: `started`, any number of `delta`, then exactly one `final` or `error`. A turn that cannot begin is
//! answered with an HTTP error instead. Errors are `{"error":{"code","message"}}`. Everything but the page,
//! liveness and the description of the interface needs a token (`admit.rs`) with the scope for it (`access.rs`).

mod access;
mod admin;
mod admit;
mod backups;
mod body;
mod boundary;
mod bus;
mod configuration;
mod conversations;
mod database;
mod document;
mod doorkeeper;
mod error;
mod exposition;
mod guarded;
mod hangup;
mod health;
mod history;
mod keys;
mod limits;
mod logs;
mod long;
mod metrics;
mod openai;
mod outbox;
mod page;
mod parameters;
mod port;
mod refusals;
mod secret;
mod server;
mod socket;
mod sse;
pub mod steward;
mod tls;
mod token;
mod token_routes;
pub mod tokens;
mod traffic;
mod turn;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use actix_web::{dev::ServerHandle, web};
use interlock_bus::{Client, PeerName, TopicName, client::LinkState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use access::{Attach, Scope};
pub use boundary::Boundary;
pub use limits::Rates;
pub use metrics::Numbers;
pub use outbox::OutboxKey;
pub use port::{Port, PortError};
pub use tls::{Tls, TlsError, TlsFiles};
pub use token::Token;

use self::{
    doorkeeper::{Doorkeeper, LOOK_EVERY},
    error::ApiError,
    limits::Addresses,
    metrics::NamedTopics,
    refusals::Refusals,
    steward::Steward,
    tokens::{Rights, TokenStore},
    traffic::Traffic,
};
use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
    intake::Intake,
    store::Store,
};

/// What a gateway is started with.
#[derive(Clone)]
pub struct Options {
    /// Where to listen.
    pub port: Arc<Port>,
    /// Threads that answer.
    pub workers: usize,
    /// Largest request body in bytes.
    pub body_bytes_max: usize,
    /// Answers streamed at the same time.
    pub streams_max: usize,
    /// For a request's head.
    pub head_timeout: Duration,
    /// For a request's body.
    pub body_timeout: Duration,
    /// For a client that takes nothing of its answer.
    pub write_timeout: Duration,
    /// For a whole turn.
    pub turn_timeout: Duration,
    /// The operator's token.
    pub token: Token,
    /// The peer that whoever has it is on the bus.
    pub operator: PeerName,
    /// Does in this process what is not asked for on the bus.
    pub steward: Arc<dyn Steward>,
    /// The tokens that were issued.
    pub tokens: TokenStore,
    /// What the peers of issued tokens may do.
    pub rights: Arc<Rights>,
    /// Gives the bearers of tokens their sessions on the bus.
    pub attach: Arc<Attach>,
    /// How often somebody may ask.
    pub rates: Rates,
    /// What we answer to, and whom.
    pub boundary: Boundary,
    /// With what; `None` is plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// Where the runtime says what weighs on each component; `None` if nobody does.
    pub load_topic: Option<TopicName>,
    /// Numbers that are in this process and not on the bus.
    pub numbers: Arc<dyn Fn() -> Numbers + Send + Sync>,
    /// While it is open new turns are taken.
    pub intake: Intake,
    /// Answers with the runtime's status.
    pub status_topic: TopicName,
    /// Where the runtime takes orders.
    pub orders: Orders,
    /// The store, where past conversations are read; `None` while it is not open.
    pub store: Arc<dyn Fn() -> Option<Store> + Send + Sync>,
    /// Where the outbox is, and its key.
    pub outbox: Arc<OutboxKey>,
}

/// Where the runtime takes orders.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Tells the status with the present load of each component.
    pub ps: TopicName,
    /// Tells what will be done with a component that fails.
    pub plan: TopicName,
    /// Tells of one component in words.
    pub explain: TopicName,
    /// Starts a component.
    pub start: TopicName,
    /// Stops a component.
    pub stop_component: TopicName,
    /// Restarts a component.
    pub restart: TopicName,
    /// Reads the configuration again.
    pub reload: TopicName,
    /// Tells and changes which log records are kept.
    pub log_levels: TopicName,
    /// Stops everything.
    pub stop: TopicName,
}

/// Looks at the tokens between two at the certificate.
const TLS_LOOK_TICKS: u32 = (tls::LOOK_EVERY.as_millis() / LOOK_EVERY.as_millis()) as u32;

impl Options {
    /// Where it listens, and what there is to say of that.
    fn describe(&self) -> String {
        let address = self.port.address();
        match &self.tls {
            Some(_) => format!("listening on https://{address}"),
            None if address.ip().is_loopback() => format!("listening on http://{address}"),
            None => format!("listening on http://{address} WITHOUT TLS: {UNPROTECTED}"),
        }
    }
}

/// What is to be said of a gateway without TLS that others reach.
pub const UNPROTECTED: &str =
    "tokens and conversations can be read on the way; set `gateway.tls_certificate` and `gateway.tls_key`";

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Options").field("port", &self.port).finish_non_exhaustive()
    }
}

/// What all workers share.
#[derive(Debug)]
struct Shared {
    options: Options,
    client: Client,
    doorkeeper: Arc<Doorkeeper>,
    refusals: Arc<Refusals>,
    addresses: Addresses,
    traffic: Traffic,
    named_topics: NamedTopics,
    streams: Arc<Semaphore>,
    /// Sockets whose client is not known yet.
    unknown_sockets: Arc<Semaphore>,
    stopping: Arc<watch::Sender<bool>>,
}

impl Shared {
    /// Returns when no new work is taken any more: what has no end of its own ends then.
    async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            () = self.options.intake.closed() => {}
            // The sender lives in what we are.
            _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
        }
    }

    /// The right to stream one answer.
    fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if *self.stopping.borrow() || !self.options.intake.is_open() {
            return Err(ApiError::Stopping);
        }
        let busy = |_| ApiError::Busy { limit: self.options.streams_max };
        Arc::clone(&self.streams).try_acquire_owned().map_err(busy)
    }
}

/// The gateway as an actor.
#[derive(Debug)]
pub struct Gateway {
    options: Options,
    running: Option<Running>,
    /// Looks so far.
    looks: u32,
    /// What is wrong with the certificate.
    tls_problem: Option<String>,
}

/// A server that answers.
#[derive(Debug)]
struct Running {
    server: ServerHandle,
    doorkeeper: Arc<Doorkeeper>,
    refusals: Arc<Refusals>,
    streams: Arc<Semaphore>,
    stopping: Arc<watch::Sender<bool>>,
}

impl Gateway {
    /// A gateway that listens once it is started.
    pub fn new(options: Options) -> Self {
        Self { options, running: None, looks: 0, tls_problem: None }
    }
}

impl Actor for Gateway {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let listener = self.options.port.open()?;
        let streams = Arc::new(Semaphore::new(self.options.streams_max));
        let stopping = Arc::new(watch::Sender::new(false));
        let Options { token, operator, tokens, attach, .. } = self.options.clone();
        let refusals = Arc::new(Refusals::new(tokens.audit()));
        let doorkeeper = Arc::new(Doorkeeper::new(token, operator, tokens, attach, self.options.rates.token));
        let shared = Shared {
            options: self.options.clone(),
            doorkeeper: Arc::clone(&doorkeeper),
            refusals: Arc::clone(&refusals),
            addresses: Addresses::new(self.options.rates),
            traffic: Traffic::default(),
            named_topics: NamedTopics::default(),
            client: context.client().clone(),
            streams: Arc::clone(&streams),
            unknown_sockets: Arc::new(Semaphore::new(socket::UNKNOWN_SOCKETS_MAX)),
            stopping: Arc::clone(&stopping),
        };
        let server = server::build(listener, web::Data::new(shared))?;
        self.running = Some(Running { server: server.handle(), streams, stopping, doorkeeper, refusals });
        context.spawn_background(async move {
            server.await.map_err(|error| Failure::from(error).context("the HTTP server ended"))
        });
        // A gateway subscribes to nothing, so nobody else would notice that its session is over.
        let mut link = context.client().watch();
        context.spawn_background(async move {
            let _ = link.wait_for(|state| *state == LinkState::Closed).await;
            Err(Failure::new("the gateway's session on the bus has ended"))
        });
        context.status(self.options.describe());
        Ok(())
    }

    async fn handle(&mut self, _input: Input, _context: &Context) -> Result<(), Failure> {
        // It subscribes to nothing and serves nothing on the bus.
        Ok(())
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(LOOK_EVERY)
    }

    /// Looks after the tokens.
    async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
        let Some(Running { doorkeeper, refusals, .. }) = &self.running else { return Ok(()) };
        doorkeeper.look_after();
        let tls = self.options.tls.clone().filter(|_| self.looks.is_multiple_of(TLS_LOOK_TICKS));
        self.looks = self.looks.wrapping_add(1);
        if let Some(tls) = tls {
            let problem = tokio::task::spawn_blocking(move || tls.look()).await?;
            if problem != self.tls_problem
                && let Some(problem) = &problem
            {
                tracing::error!("{problem}");
            }
            self.tls_problem = problem;
        }
        context.impaired(doorkeeper.problem().or_else(|| self.tls_problem.clone()));
        write_down(doorkeeper, refusals, false).await;
        Ok(())
    }

    /// Refuses new turns, lets running ones end, then closes what is left.
    async fn stopping(&mut self, context: &Context) -> Result<(), Failure> {
        let Some(Running { server, streams, stopping, doorkeeper, refusals }) = self.running.take() else {
            return Ok(());
        };
        stopping.send_replace(true);
        let left = self.options.streams_max - streams.available_permits();
        if left > 0 {
            context.progress(format!("waiting for {left} answers to end"));
        }
        let all = u32::try_from(self.options.streams_max).unwrap_or(u32::MAX);
        // Fails only if the semaphore is closed, which nobody does.
        let _ = streams.acquire_many(all).await;
        server.stop(false).await;
        self.options.port.close();
        write_down(&doorkeeper, &refusals, true).await;
        Ok(())
    }
}

/// Writes down which tokens were used and who was refused. Nothing depends on it.
async fn write_down(doorkeeper: &Arc<Doorkeeper>, refusals: &Arc<Refusals>, last: bool) {
    let (doorkeeper, refusals) = (Arc::clone(doorkeeper), Arc::clone(refusals));
    let written =
        tokio::task::spawn_blocking(move || doorkeeper.write_use(last).and(refusals.write(last))).await;
    if let Ok(Err(error)) = written {
        tracing::warn!(%error, "what was done with tokens is not written down");
    }
}
