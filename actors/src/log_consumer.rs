//! The log consumer: subscribes to `logs/#`, writes in batches, answers for what is stored.
//!
//! It batches by taking what is there, writes that in one go, and gathers what comes meanwhile: no
//! timer decides. What it answers to a [`Confirm`] is true after a crash of anything: the records are
//! committed, or the asker sends them again.

use std::{
    cell::Cell,
    collections::{HashSet, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use interlock_bus::{
    Client, ContentType, Message, Payload, PublishError, SubscribeError,
    client::{Event as BusEvent, LinkState, Request, ServeOptions, Service, SubscribeOptions, Subscription},
    codec,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
    log_record::{
        CONFIRM_IDS_MAX, Confirm, Confirmed, ConsumerState, Level, LogRecord, Probe, ProbeAnswer, topic_level,
    },
    log_transport::{OnLogPath, STATUS_EVERY},
    store::{Appended, Refused, Store, StoreError},
    topics,
};

/// Records written in one call to the store.
const BATCH_RECORDS_MAX: usize = 2048;
/// Bytes of a message that is taken for a record; a longer one is noted, not kept.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Confirmations waiting for records. More are answered `busy`, and the asker begins again.
const CONFIRMS_WAITING_MAX: usize = 256;
/// Ids remembered as stored, to answer without a look into the store.
const RECENT_IDS_MAX: usize = 16_384;

/// Why a consumer cannot go on. Nobody was told of anything that is not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The broker does not let it subscribe or serve.
    #[error("the log consumer cannot take its place on the bus: {0}")]
    Subscribe(#[from] SubscribeError),
    /// It may not say that it is ready.
    #[error("the log consumer cannot announce itself: {0}")]
    Announce(#[source] PublishError),
    /// The session has ended for good.
    #[error("the session of the log consumer has ended: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
    /// The store does not take the records.
    #[error("log records cannot be stored: {0}")]
    Store(#[from] StoreError),
}

/// What a consumer has done since it started; its text is the component's status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerReport {
    /// Records that are new in the store.
    pub stored: u64,
    /// Records that were there already.
    pub duplicates: u64,
    /// Records the store can never take.
    pub refused: u64,
    /// Messages on `logs/#` that were no records and were kept as text.
    pub foreign: u64,
    /// Times at which messages were lost on the way; they are sent again by those who care.
    pub gaps: u64,
    /// Records that were sent to an incarnation before this one. They are sent again.
    pub strays: u64,
    /// Batches that the store took only at a later try.
    pub retried: u64,
}

impl fmt::Display for ConsumerReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stored, duplicates, refused, gaps, .. } = self;
        write!(formatter, "stored {stored}, duplicates {duplicates}, refused {refused}, gaps {gaps}")
    }
}

/// A question that waits for records.
struct Waiting {
    request: Request,
    missing: HashSet<Uuid>,
}

/// Everything that can wake the consumer.
enum Event {
    Stop,
    Link(LinkState),
    Confirm(Option<Request>),
    Probe(Option<Request>),
    /// The store has taken what was being written, or not.
    Written(Result<Appended, Refused<Vec<LogRecord>>>),
    /// The store can write again, so it may take what is held.
    StoreAgain,
    Log(Option<BusEvent>),
}

/// Records that go into the store together.
#[derive(Default)]
struct Batch {
    records: Vec<LogRecord>,
    /// Whether messages were lost before or among them.
    gap: bool,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && !self.gap
    }
}

type Append = Pin<Box<dyn Future<Output = Result<Appended, Refused<Vec<LogRecord>>>> + Send + Sync>>;

/// A batch on its way into the store. At most one is.
struct Writing {
    append: Append,
    ids: Vec<Uuid>,
    gap: bool,
    /// Whether the store has refused it before.
    again: bool,
}

/// A batch that the store has refused for now. Nothing more is taken from the bus meanwhile.
struct Held {
    batch: Batch,
    refusal: StoreError,
}

/// A consumer that has taken its place on the bus.
pub struct Consumer {
    id: Uuid,
    client: Client,
    store: Store,
    link: watch::Receiver<LinkState>,
    logs: Subscription,
    confirms: Service,
    probes: Service,
    waiting: Vec<Waiting>,
    gathered: Batch,
    writing: Option<Writing>,
    held: Option<Held>,
    recent: Recent,
    report: ConsumerReport,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Consumer")
            .field("id", &self.id)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// Subscribes, serves and announces itself, in this order: whoever gets an answer from it can
    /// rely on its subscription.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn start(client: Client, store: Store) -> Result<Self, ConsumerError> {
        OnLogPath::new(async {
            let link = client.watch();
            let logs =
                client.subscribe(&topics::filter(topics::LOGS_ALL), SubscribeOptions::default()).await?;
            let serve = |topic| {
                let (client, filter) = (client.clone(), topics::filter(topic));
                async move { client.serve(&filter, ServeOptions::default()).await }
            };
            let confirms = serve(topics::LOG_CONSUMER_CONFIRM).await?;
            let probes = serve(topics::LOG_CONSUMER_PROBE).await?;
            let consumer = Self {
                id: Uuid::now_v7(),
                client: client.clone(),
                store,
                link,
                logs,
                confirms,
                probes,
                waiting: Vec::new(),
                gathered: Batch::default(),
                writing: None,
                held: None,
                recent: Recent::default(),
                report: ConsumerReport::default(),
            };
            consumer.announce(true).await?;
            Ok(consumer)
        })
        .await
    }

    /// Consumes until `stop` ends; then what has arrived by that time. `report` is called after each batch.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn run(
        self,
        report: impl FnMut(ConsumerReport),
        stop: impl Future<Output = ()>,
    ) -> Result<(), ConsumerError> {
        OnLogPath::new(self.run_marked(report, stop)).await
    }

    async fn run_marked(
        mut self,
        mut report: impl FnMut(ConsumerReport),
        stop: impl Future<Output = ()>,
    ) -> Result<(), ConsumerError> {
        let mut stop = std::pin::pin!(stop);
        loop {
            let takes = self.held.is_none() && self.gathered.records.len() < BATCH_RECORDS_MAX;
            let written = async {
                match &mut self.writing {
                    Some(writing) => writing.append.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                () = stop.as_mut() => Event::Stop,
                changed = self.link.changed() => match changed {
                    Ok(()) => Event::Link(self.link.borrow_and_update().clone()),
                    Err(_) => Event::Link(LinkState::Closed),
                },
                request = self.probes.next() => Event::Probe(request),
                request = self.confirms.next() => Event::Confirm(request),
                outcome = written => Event::Written(outcome),
                () = self.store.writable(), if self.held.is_some() => Event::StoreAgain,
                event = self.logs.next(), if takes => Event::Log(event),
            };
            match event {
                Event::Stop => return self.finish().await,
                // The client has renewed the subscription with the session. Transports wait to hear of it.
                Event::Link(LinkState::Ready) => self.announce(true).await?,
                Event::Link(LinkState::Closed)
                | Event::Confirm(None)
                | Event::Probe(None)
                | Event::Log(None) => {
                    let reason = self.client.closed_reason().or_else(|| self.logs.end_reason());
                    return Err(ConsumerError::Closed {
                        reason: reason.unwrap_or_else(|| "it was closed".to_owned()),
                    });
                }
                Event::Link(_) => {}
                Event::Probe(Some(request)) => self.on_probe(request).await,
                Event::Confirm(Some(request)) => self.on_confirm(request).await?,
                Event::Written(outcome) => {
                    self.on_written(outcome).await?;
                    report(self.report);
                }
                Event::StoreAgain => self.write_next(),
                Event::Log(Some(event)) => {
                    self.gather(event);
                    self.write_next();
                }
            }
        }
    }

    /// Takes nothing new, stores what has arrived, answers everybody. What the store does not take now is not waited for:
    /// nobody was told that it is stored.
    async fn finish(mut self) -> Result<(), ConsumerError> {
        self.announce(false).await?;
        loop {
            self.write_next();
            if let Some(writing) = &mut self.writing {
                let outcome = writing.append.as_mut().await;
                self.on_written(outcome).await?;
                if let Some(held) = self.held.take() {
                    return Err(held.refusal.into());
                }
            } else if let Some(event) = self.logs.try_next() {
                self.gather(event);
            } else {
                return self.settle_waiting().await;
            }
        }
    }

    async fn announce(&self, ready: bool) -> Result<(), ConsumerError> {
        let state = ConsumerState { consumer: self.id, ready };
        let Ok(payload) = Payload::json(&state) else { return Ok(()) };
        let topic = topics::topic(topics::LOG_CONSUMER_STATE);
        match self.client.publish_waiting(&topic, payload, &Default::default()).await {
            // The next session will announce it.
            Ok(()) | Err(PublishError::NotConnected { .. }) => Ok(()),
            Err(error) => Err(ConsumerError::Announce(error)),
        }
    }

    async fn on_probe(&self, request: Request) {
        match topics::read::<Probe>(&request.message) {
            Ok(Probe { probe }) => answer(request, &ProbeAnswer { probe, consumer: self.id }).await,
            Err(error) => refuse(request, topics::code::BAD_REQUEST, &error.to_string()).await,
        }
    }

    async fn on_confirm(&mut self, request: Request) -> Result<(), ConsumerError> {
        let confirm = match topics::read::<Confirm>(&request.message) {
            Ok(confirm) if confirm.ids.len() <= CONFIRM_IDS_MAX => confirm,
            Ok(confirm) => {
                let text = format!("{} ids are too many; the limit is {CONFIRM_IDS_MAX}", confirm.ids.len());
                refuse(request, topics::code::BAD_REQUEST, &text).await;
                return Ok(());
            }
            Err(error) => {
                refuse(request, topics::code::BAD_REQUEST, &error.to_string()).await;
                return Ok(());
            }
        };
        let missing: HashSet<Uuid> = confirm.ids.into_iter().filter(|id| !self.recent.contains(id)).collect();
        self.waiting.retain(|waiting| !waiting.request.cancelled().is_cancelled());
        // Records published to an earlier incarnation do not come to this one: answer from the store.
        let will_come = confirm.consumer == self.id;
        if missing.is_empty() || !will_come {
            return self.settle(Waiting { request, missing }).await;
        }
        if self.waiting.len() >= CONFIRMS_WAITING_MAX {
            refuse(request, topics::code::BUSY, "too many confirmations are waiting").await;
            return Ok(());
        }
        self.waiting.push(Waiting { request, missing });
        Ok(())
    }

    /// Takes this event and those that are there already, as many as a batch holds.
    fn gather(&mut self, first: BusEvent) {
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                // Sent to an incarnation before this one; its sender learns that it is missing, and sends it again.
                BusEvent::Message(message)
                    if message.header.correlation.is_some_and(|consumer| consumer != self.id) =>
                {
                    self.report.strays += 1;
                }
                BusEvent::Message(message) => {
                    let record = self.record(&message);
                    self.gathered.records.push(record);
                }
                BusEvent::Gap { .. } => {
                    self.report.gaps += 1;
                    self.gathered.gap = true;
                }
            }
            next = match self.gathered.records.len() < BATCH_RECORDS_MAX {
                true => self.logs.try_next(),
                false => None,
            };
        }
    }

    /// Begins to write what is held, or else what is gathered, unless something is being written.
    fn write_next(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let (batch, again) = match self.held.take() {
            Some(held) => (held.batch, true),
            None => (std::mem::take(&mut self.gathered), false),
        };
        if batch.is_empty() {
            return;
        }
        let ids = batch.records.iter().map(|record| record.id).collect();
        let store = self.store.clone();
        // Waits for a place in the writer's queue.
        let append = Box::pin(async move { store.append_waiting(batch.records).await });
        self.writing = Some(Writing { append, ids, gap: batch.gap, again });
    }

    /// Answers whoever waited for what is stored now, and writes what has come meanwhile.
    async fn on_written(
        &mut self,
        outcome: Result<Appended, Refused<Vec<LogRecord>>>,
    ) -> Result<(), ConsumerError> {
        let Some(Writing { ids, gap, again, .. }) = self.writing.take() else { return Ok(()) };
        match outcome {
            Ok(appended) => self.count(appended, again),
            Err(Refused { error, work: Some(records) }) if may_pass(&error) => {
                if !again {
                    tracing::error!(%error, "log records wait for the store");
                }
                self.held = Some(Held { batch: Batch { records, gap }, refusal: error });
                return Ok(());
            }
            Err(Refused { error, .. }) => return Err(error.into()),
        }
        self.write_next();
        let stored: HashSet<Uuid> = ids.iter().copied().collect();
        for waiting in &mut self.waiting {
            waiting.missing.retain(|id| !stored.contains(id));
        }
        self.recent.extend(ids);
        if gap {
            // What was lost is unknown, so everybody who waits learns what is missing and sends it again.
            return self.settle_waiting().await;
        }
        let (done, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.missing.is_empty());
        self.waiting = waiting;
        let done: Vec<Waiting> = done;
        for waiting in done {
            self.settle(waiting).await?;
        }
        Ok(())
    }

    fn count(&mut self, appended: Appended, again: bool) {
        self.report.stored += appended.stored as u64;
        self.report.duplicates += appended.duplicates as u64;
        self.report.refused += appended.refused.len() as u64;
        self.report.retried += u64::from(again);
        for (id, reason) in appended.refused {
            tracing::error!(%id, %reason, "the store refuses a log record; it is lost");
        }
    }

    async fn settle_waiting(&mut self) -> Result<(), ConsumerError> {
        for waiting in std::mem::take(&mut self.waiting) {
            self.settle(waiting).await?;
        }
        Ok(())
    }

    /// Answers with what is missing, after a look into the store if anything seems to be.
    async fn settle(&self, waiting: Waiting) -> Result<(), ConsumerError> {
        let mut missing: Vec<Uuid> = waiting.missing.into_iter().collect();
        if !missing.is_empty() {
            let asked = missing.clone();
            let present = self.store.read(move |reader| reader.logs_present(&asked)).await?;
            missing.retain(|id| !present.contains(id));
        }
        answer(waiting.request, &Confirmed { missing, consumer: self.id }).await;
        Ok(())
    }

    /// What a message says, whoever sent it: a record, or a text that becomes one.
    ///
    /// Component and origin are what the broker vouches for (topic and session), not what the payload claims.
    fn record(&mut self, message: &Message) -> LogRecord {
        let is_json =
            matches!(message.header.content_type, ContentType::Json | ContentType::Text | ContentType::Bytes);
        let decoded = match message.payload.len() <= MESSAGE_BYTES_MAX {
            true if is_json => codec::from_json::<LogRecord>(&message.payload).ok(),
            true => message.decode().ok().or_else(|| earlier_record(&message.payload)),
            false => None,
        };
        let mut levels = message.topic.as_str().split('/').skip(1);
        let component = topic_level(levels.next().unwrap_or_default());
        let level = levels.last().and_then(|level| level.parse().ok());
        let mut record = decoded.unwrap_or_else(|| {
            self.report.foreign += 1;
            let text = match message.text() {
                Some(text) if text.len() <= MESSAGE_BYTES_MAX => text.to_owned(),
                _ => format!("({} bytes that are not a log record)", message.payload.len()),
            };
            let mut record = LogRecord::new(level.unwrap_or(Level::Info), &component, text);
            record.process = 0;
            if !message.header.id.is_nil() {
                record.id = message.header.id;
            }
            if message.header.published_at_ns != 0 {
                record.time_ns = message.header.published_at_ns;
            }
            record
        });
        record.component = component;
        record.origin = Some(message.origin.to_string());
        record
    }
}

/// The log consumer as a component. It is ready when its subscription is acknowledged and it is served.
#[derive(Debug)]
pub struct LogConsumer {
    store: Store,
    latest: Rc<Cell<ConsumerReport>>,
    told: Option<ConsumerReport>,
}

impl LogConsumer {
    /// A consumer that writes into `store`.
    pub fn new(store: Store) -> Self {
        Self { store, latest: Rc::default(), told: None }
    }
}

impl Actor for LogConsumer {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let consumer = Consumer::start(context.client().clone(), self.store.clone()).await?;
        let (latest, stopping) = (Rc::clone(&self.latest), context.stopping());
        context.spawn(async move { Ok(consumer.run(move |report| latest.set(report), stopping).await?) });
        Ok(())
    }

    async fn handle(&mut self, _input: Input, _context: &Context) -> Result<(), Failure> {
        // Everything comes to the consumer's own loop, which batches; this actor subscribes to nothing itself.
        Ok(())
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(STATUS_EVERY)
    }

    async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
        let latest = self.latest.get();
        if self.told != Some(latest) {
            context.status(latest.to_string());
            self.told = Some(latest);
        }
        Ok(())
    }
}

/// A record in bincode's format from before [`LogRecord::run`] and [`LogRecord::number`], which end it.
fn earlier_record(payload: &[u8]) -> Option<LogRecord> {
    let unknown = codec::to_bytes(&(0_u64, 0_u64)).ok()?;
    codec::from_bytes(&[payload, &unknown].concat()).ok()
}

/// Whether the store may take the same records later: another process lets go, the disk has space again.
fn may_pass(error: &StoreError) -> bool {
    error.is_transient()
        || matches!(
            error,
            StoreError::DiskFull { .. }
                | StoreError::ReadOnly { .. }
                | StoreError::Disk { .. }
                | StoreError::File { .. }
        )
}

/// The ids stored last.
#[derive(Default)]
struct Recent {
    order: VecDeque<Uuid>,
    known: HashSet<Uuid>,
}

impl Recent {
    fn contains(&self, id: &Uuid) -> bool {
        self.known.contains(id)
    }

    fn extend(&mut self, ids: Vec<Uuid>) {
        for id in ids {
            if self.known.insert(id) {
                self.order.push_back(id);
            }
        }
        while self.order.len() > RECENT_IDS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

async fn answer(request: Request, value: &impl serde::Serialize) {
    match Payload::json(value) {
        // Whoever asked is gone, and asks again from the next session.
        Ok(payload) => {
            let _ = request.end(payload).await;
        }
        Err(error) => refuse(request, "codec", &error.to_string()).await,
    }
}

async fn refuse(request: Request, code: &str, text: &str) {
    // As above: nobody is left to tell.
    let _ = request.fail(code, text).await;
}
