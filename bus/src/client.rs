//! The client: publish, subscribe, request, serve, over an encrypted socket or inside the broker's process.
//!
//! | file | noun |
//! |---|---|
//! | `options` | what can be chosen |
//! | `subscription`, `service`, `reply_stream` | what a subscriber, a server, a requester holds |
//! | `core` | the state, whatever the link: records in, records out |
//! | `lane` | the queue of one subscription and its credit |
//! | `gate` | topics that may not be published now |
//! | `readiness` | who receives a topic, probes, publishers that wait for their consumers |
//! | `received` | from the wire's blocks to messages |
//! | `link` | what the core needs of a link, and what it tells about it |
//! | `attached` | the link into a broker in the same process |
//! | `outgoing`, `wire` | the link over a socket: what waits to be written, and the threads that read and write |
//! | `remote`, `session`, `readers`, `socket` | the same: the client's own thread, one session, who reads it, the socket |

mod attached;
mod core;
#[cfg(test)]
mod core_tests;
mod gate;
mod intake;
mod lane;
mod link;
#[cfg(test)]
mod link_tests;
mod options;
mod outgoing;
#[cfg(test)]
mod race_tests;
mod readers;
pub mod readiness;
mod received;
mod remote;
mod reply_stream;
mod service;
mod session;
mod socket;
mod subscription;
mod will;
mod wire;

pub(crate) use self::core::Core;
pub use link::LinkState;
pub use options::{Ack, ConnectOptions, PublishOptions, ServeOptions, SubscribeOptions};
pub use readiness::{GateOptions, GatedPublisher, WaitError};
pub use reply_stream::ReplyStream;
pub use service::{CancelToken, Request, Service};
pub use subscription::{Event, Subscription};

use std::{
    future::poll_fn,
    sync::{Arc, Mutex},
    task::Poll,
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use self::{
    core::{AckFailure, Handle},
    subscription::Consumer,
};
use crate::{
    blocking,
    envelope::{Message, Payload},
    error::{ConnectError, Denial, PublishError, RequestError, SubscribeError},
    native::SubscribeSpec,
    peer::PeerName,
    schema::Schema,
    topic::{TopicFilter, TopicName},
};

/// A session with the broker, renewed when it is lost. Clones are the same client; it closes when the
/// last clone and everything that came from it (subscriptions, services, requests, streams) is
/// dropped. Use [`Client::close`] to be sure that what was published has left.
///
/// Needs no executor: its futures can be awaited anywhere, or with [`blocking::wait`].
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
}

impl Client {
    /// Opens the first session. Ends in a client that is ready or in an error, within the timeout of
    /// the options.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(options: ConnectOptions) -> Result<Self, ConnectError> {
        let will = options.will.clone();
        let (core, thread, outcome) = remote::start(options)?;
        // From here on dropping the client closes it, also if this future is dropped.
        let client = Self::from_core(core, Some(thread));
        outcome.await.unwrap_or(Err(ConnectError::ThreadLost))?;
        if let Some((topic, payload, retain)) = will {
            let taken = client.set_will(&topic, payload, retain).await;
            taken.map_err(|source| ConnectError::Will { topic, source: Box::new(source) })?;
        }
        Ok(client)
    }

    /// [`Client::connect`] for threads without an executor.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect_blocking(options: ConnectOptions) -> Result<Self, ConnectError> {
        blocking::wait(Self::connect(options))
    }

    fn from_core(core: Arc<Core>, thread: Option<JoinHandle<()>>) -> Self {
        Self { handle: Arc::new(Handle { core, thread: Mutex::new(thread) }) }
    }

    fn core(&self) -> &Core {
        &self.handle.core
    }

    /// Who the broker says we are.
    pub fn name(&self) -> &PeerName {
        self.core().name().expect("a client is handed out with its name known")
    }

    /// Publishes: the message is in the bounded outgoing queue when this returns. It is lost if the link
    /// is lost before it has left; [`Client::publish_acknowledged`] says what became of it.
    ///
    /// # Errors
    /// [`PublishError`], with the payload.
    pub fn publish(&self, topic: &TopicName, payload: Payload) -> Result<(), PublishError> {
        self.publish_with(topic, payload, &PublishOptions::default())
    }

    /// [`Client::publish`] with options.
    ///
    /// # Errors
    /// [`PublishError`], with the payload.
    pub fn publish_with(
        &self,
        topic: &TopicName,
        payload: Payload,
        options: &PublishOptions,
    ) -> Result<(), PublishError> {
        self.core().publish(topic, payload, options, None)
    }

    /// Publishes, waiting while the topic is held or the outgoing queue is full.
    ///
    /// # Errors
    /// [`PublishError`] other than `Held` and `Full`.
    pub async fn publish_waiting(
        &self,
        topic: &TopicName,
        mut payload: Payload,
        options: &PublishOptions,
    ) -> Result<(), PublishError> {
        // The first attempt pays for no listening.
        payload = match self.publish_with(topic, payload, options) {
            Err(PublishError::Held { payload, .. } | PublishError::Full { payload }) => payload,
            other => return other,
        };
        loop {
            let released = self.core().gate.released().notified();
            let room = self.core().link().space().notified();
            match self.publish_with(topic, payload, options) {
                Err(PublishError::Held { payload: back, .. }) => {
                    payload = back;
                    released.await;
                }
                Err(PublishError::Full { payload: back }) => {
                    payload = back;
                    room.await;
                    yield_once().await;
                }
                other => return other,
            }
        }
    }

    /// Publishes and waits for the broker's word that the message is in the queues of all matching
    /// subscribers.
    ///
    /// # Errors
    /// [`PublishError`], with the payload.
    pub async fn publish_acknowledged(
        &self,
        topic: &TopicName,
        payload: Payload,
        options: PublishOptions,
    ) -> Result<Ack, PublishError> {
        let (waiter, answer) = oneshot::channel();
        self.core().publish(topic, payload.clone(), &options, Some(waiter))?;
        match answer.await {
            Ok(Ok(ack)) => Ok(ack),
            Ok(Err(AckFailure::Denied(denial))) => Err(PublishError::Denied { payload, denial }),
            Ok(Err(AckFailure::Lost(reason))) => Err(PublishError::Unconfirmed { payload, reason }),
            Err(_) => {
                let reason = "the session ended meanwhile".to_owned();
                Err(PublishError::Unconfirmed { payload, reason })
            }
        }
    }

    /// Subscribes. When this returns, the subscription is in the broker's routing table: whatever is
    /// published from now on and permitted will come.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn subscribe(
        &self,
        filter: &TopicFilter,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        let spec = options.spec(self.core().next_subscription(), filter)?;
        let (consumer, from_sequence) = self.consume(filter, spec, None).await?;
        Ok(Subscription::new(consumer, filter.clone(), from_sequence))
    }

    /// Serves requests on topics that match. When this returns, requests are routed to it.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn serve(
        &self,
        filter: &TopicFilter,
        options: ServeOptions,
    ) -> Result<Service, SubscribeError> {
        let spec = options.spec(self.core().next_subscription(), filter)?;
        let (consumer, _) = self.consume(filter, spec, None).await?;
        Ok(Service::new(consumer, filter.clone()))
    }

    /// [`Client::serve`] that requests `announced` in each later session that serves again.
    pub(crate) async fn serve_announced(
        &self,
        filter: &TopicFilter,
        options: ServeOptions,
        announced: &TopicName,
    ) -> Result<Service, SubscribeError> {
        let spec = options.spec(self.core().next_subscription(), filter)?;
        let (consumer, _) = self.consume(filter, spec, Some(announced)).await?;
        Ok(Service::new(consumer, filter.clone()))
    }

    async fn consume(
        &self,
        filter: &TopicFilter,
        spec: SubscribeSpec,
        announced: Option<&TopicName>,
    ) -> Result<(Consumer, u64), SubscribeError> {
        let (lane, answer) = self.core().subscribe(filter, spec, announced)?;
        // Unsubscribes if this future is dropped before the answer.
        let consumer = Consumer::new(Arc::clone(&self.handle), lane);
        match answer.await {
            Ok(Ok(from_sequence)) => Ok((consumer, from_sequence)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SubscribeError::NotConnected { reason: "the session ended meanwhile".to_owned() }),
        }
    }

    /// Asks and waits for the answer; of an answer in parts, the last one.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request(
        &self,
        topic: &TopicName,
        payload: Payload,
        deadline: Duration,
    ) -> Result<Message, RequestError> {
        self.request_stream(topic, payload, deadline).await?.last().await
    }

    /// Asks and gives the parts of the answer as they come. Whatever happens, the stream ends.
    ///
    /// # Errors
    /// [`RequestError`] if the request could not be sent.
    pub async fn request_stream(
        &self,
        topic: &TopicName,
        payload: Payload,
        deadline: Duration,
    ) -> Result<ReplyStream, RequestError> {
        let (id, queue) = self.core().request(topic, payload, deadline).await?;
        Ok(ReplyStream::new(Arc::clone(&self.handle), queue, id, topic.clone(), deadline))
    }

    /// [`Client::request_stream`] with the bytes of a header that is there already.
    pub(crate) async fn request_as_it_is(
        &self,
        topic: &TopicName,
        header: &[u8],
        payload: Bytes,
        deadline: Duration,
    ) -> Result<ReplyStream, RequestError> {
        let (id, queue) = self.core().request_as_it_is(topic, header, payload, deadline).await?;
        Ok(ReplyStream::new(Arc::clone(&self.handle), queue, id, topic.clone(), deadline))
    }

    /// Registers a schema with the broker, in this session and all later ones, and gives its
    /// fingerprint: put it into the payloads that it describes, and the tool can show them.
    pub fn register_schema(&self, schema: &Schema) -> u64 {
        let fingerprint = schema.fingerprint();
        self.core().register_schema(fingerprint, schema.record());
        fingerprint
    }

    /// How long the broker takes to answer, through everything that is queued as control.
    ///
    /// # Errors
    /// [`RequestError::Disconnected`].
    pub async fn ping(&self) -> Result<Duration, RequestError> {
        self.core().ping().await.map_err(|_| RequestError::Disconnected)
    }

    /// Where the client stands, and every change of it.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.core().watch()
    }

    /// Why no further session will be made; `None` while one is there or tried.
    pub fn closed_reason(&self) -> Option<String> {
        self.core().closed_reason()
    }

    /// What the broker refused to this client.
    pub fn denials(&self) -> Vec<Denial> {
        self.core().gate.denials()
    }

    /// Sends what is queued, says goodbye and waits until the broker has heard it, for a few seconds at most.
    pub async fn close(&self) {
        self.core().link().begin_close();
        let mut state = self.watch();
        // The sender lives in the core, which we hold.
        let _ = state.wait_for(|state| *state == LinkState::Closed).await;
        let thread = lane::lock(&self.handle.thread).take();
        if let Some(thread) = thread {
            // It has said its last word; a panic in it was reported by the panic hook.
            let _ = thread.join();
        }
    }

    /// [`Client::close`] for threads without an executor.
    pub fn close_blocking(&self) {
        blocking::wait(self.close());
    }
}

/// Lets others run once.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
