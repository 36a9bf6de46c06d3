//! The outbox: takes messages, keeps them, and sends each to its consumers until they have it.

use std::{collections::BTreeMap, fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::{
    calm::Calm,
    door::{Arrival, Door},
    error::DurableError,
    limits,
    report::OutboxReport,
    routes::Routes,
    schedule::Schedule,
    sender::Sender,
    storage::OutboxStorage,
    words::Accepted,
};
use crate::{
    client::Client,
    codec,
    envelope::{Header, Payload},
    error::SubscribeError,
    peer::PeerName,
    topic::TopicName,
};

/// What can be chosen of an outbox.
#[derive(Clone, Debug)]
pub struct OutboxOptions {
    /// When a delivery is tried again.
    pub schedule: Schedule,
    /// Whether a put waits for room when as many messages are unfinished as may be, until its deadline. Otherwise what the
    /// storage says stands.
    pub pauses: bool,
    /// Bytes of one payload with its header.
    pub message_bytes_max: u64,
    /// How often the storage is read anew, and absent consumers are tried.
    pub sweep_interval: Duration,
    /// How long one attempt may take.
    pub attempt_deadline: Duration,
    /// How long a consumer may be absent until what waits for it becomes dead letters; zero for ever. It counts from when
    /// this process found it absent.
    pub absent_max: Duration,
    /// Messages on their way to one consumer.
    pub in_flight_messages: usize,
    /// Bytes on their way to one consumer; at least one message.
    pub in_flight_bytes: u64,
    /// Open deliveries to one consumer that are known at a time.
    pub window: usize,
    /// How long is waited after a failure of the storage.
    pub storage_pause: Duration,
    /// How long what is in hand may take at a stop.
    pub grace: Duration,
}

impl Default for OutboxOptions {
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            pauses: false,
            message_bytes_max: limits::MESSAGE_BYTES_MAX,
            sweep_interval: limits::SWEEP_INTERVAL,
            attempt_deadline: limits::ATTEMPT_DEADLINE,
            absent_max: limits::ABSENT_MAX,
            in_flight_messages: limits::IN_FLIGHT_MESSAGES,
            in_flight_bytes: limits::IN_FLIGHT_BYTES,
            window: limits::WINDOW,
            storage_pause: limits::STORAGE_PAUSE,
            grace: limits::STOP_GRACE,
        }
    }
}

/// Why an outbox ended without being told to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The broker does not let it serve.
    #[error("the outbox cannot serve: {0}")]
    NotServing(#[from] SubscribeError),
    /// There will be no session with the broker any more.
    #[error("the outbox has lost the bus for good: {reason}")]
    BusLost {
        /// Why.
        reason: String,
    },
}

/// What an outbox left when it was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Deliveries that wait for the next start; `None` if the storage would not say.
    pub open: Option<u64>,
    /// Of them, those that were under way when the grace ended, by consumer.
    pub cut_off: BTreeMap<PeerName, u64>,
    /// Whether what became of all attempts is saved. Otherwise some are made again although they had ended.
    pub is_saved: bool,
}

impl Left {
    /// Whether the storage did what it was asked to at the end.
    pub fn is_certain(&self) -> bool {
        self.open.is_some() && self.is_saved
    }
}

/// A server on the bus that keeps messages until each of their consumers has acknowledged them. See [`crate::durable`].
#[derive(Debug)]
pub struct Outbox {
    client: Client,
    shared: Arc<Shared>,
}

/// What the outbox and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn OutboxStorage>,
    pub(crate) options: OutboxOptions,
    pub(crate) door: Door,
    pub(crate) look: Notify,
    pub(crate) report: watch::Sender<OutboxReport>,
}

/// Puts messages into an outbox of the same process, and says how it stands. Clones are the same.
#[derive(Clone)]
pub struct OutboxHandle {
    shared: Arc<Shared>,
    origin: PeerName,
}

impl fmt::Debug for OutboxHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OutboxHandle").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// How a message is published durably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableOptions {
    /// Its id; `None` for a fresh one. Who publishes it again after an answer that was lost gives the same id.
    pub id: Option<Uuid>,
    /// Messages with the same key reach each consumer in the order of their acceptance; `None`: the key is the topic.
    pub key: Option<String>,
    /// The header; `None` makes a fresh one for the payload. Content type and schema of the payload, and the id and key of
    /// these options, replace those of the header.
    pub header: Option<Header>,
}

impl DurableOptions {
    /// The header of `payload`.
    pub(crate) fn header_for(&self, payload: &Payload) -> Header {
        let mut header = match &self.header {
            None => Header::for_payload(payload),
            Some(header) => Header {
                content_type: payload.content_type.clone(),
                schema: payload.schema.or(header.schema),
                ..header.clone()
            },
        }
        .traced();
        if let Some(id) = self.id {
            header.id = id;
        }
        if header.id.is_nil() {
            header.id = Header::new().id;
        }
        if let Some(key) = &self.key {
            header.durable.get_or_insert_default().key = Some(key.clone());
        }
        header
    }
}

impl Outbox {
    /// An outbox that serves as `client`. Nothing happens before [`Outbox::run`].
    pub fn new(
        client: Client,
        storage: Arc<dyn OutboxStorage>,
        routes: Routes,
        options: OutboxOptions,
    ) -> Self {
        let door = Door::new(Arc::clone(&storage), routes, options.pauses, options.message_bytes_max);
        let report = watch::Sender::new(OutboxReport::default());
        Self { client, shared: Arc::new(Shared { storage, options, door, look: Notify::new(), report }) }
    }

    /// A handle; what is put with it has `origin` as its publisher.
    pub fn handle(&self, origin: PeerName) -> OutboxHandle {
        OutboxHandle { shared: Arc::clone(&self.shared), origin }
    }

    /// Serves and sends until `stopping` ends; then takes nothing new, gives what is in hand the grace of the options, and
    /// returns. `on_report` hears each change of how it stands. Needs tokio's timers. Dropping it leaves leases behind,
    /// which whoever sends next takes back.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn run(
        self,
        stopping: impl Future<Output = ()>,
        on_report: impl FnMut(&OutboxReport),
    ) -> Result<Left, OutboxError> {
        Calm::new(Sender::new(self.client, self.shared).run(pin!(stopping), on_report)).await
    }
}

impl OutboxHandle {
    /// Puts a message: it is on disk when this returns. Under the policy `pause` it waits for room, up to `deadline`.
    ///
    /// # Errors
    /// [`DurableError`].
    pub async fn put(
        &self,
        topic: &TopicName,
        payload: Payload,
        options: &DurableOptions,
        deadline: Duration,
    ) -> Result<Accepted, DurableError> {
        let header = options.header_for(&payload);
        let mut header_bytes = Vec::new();
        codec::put_header(&header, &mut header_bytes);
        let arrival = Arrival {
            id: header.id,
            topic: topic.clone(),
            key: header.key().map(str::to_owned),
            origin: self.origin.clone(),
            header: Bytes::from(header_bytes),
            payload: payload.bytes,
        };
        let given_up = tokio::time::sleep(deadline);
        self.shared.door.put(arrival, || given_up).await
    }

    /// Replaces the routes. What was accepted keeps its consumers.
    pub fn set_routes(&self, routes: Routes) {
        self.shared.door.set_routes(routes);
    }

    /// The stop that follows is no end: another outbox takes its place. Whoever is refused by it hears
    /// [`DurableError::Restarting`], upon which publishers try again by themselves.
    pub fn comes_back(&self) {
        self.shared.door.comes_back();
    }

    /// Has the storage read anew: somebody else has changed it.
    pub fn look(&self) {
        self.shared.look.notify_one();
    }

    /// How it stands.
    pub fn report(&self) -> OutboxReport {
        self.shared.report.borrow().clone()
    }

    /// How it stands, and every change.
    pub fn watch(&self) -> watch::Receiver<OutboxReport> {
        self.shared.report.subscribe()
    }
}
