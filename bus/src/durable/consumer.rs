//! Consuming durably: deliveries that wait until this consumer has said what became of them.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::{
    inbox::{Inbox, MemoryInbox},
    storage::StorageError,
    words,
};
use crate::{
    client::{Client, Request, ServeOptions, Service},
    envelope::{Message, Payload},
    error::{ReplyError, RequestError, SubscribeError},
    peer::PeerName,
    topic::TopicFilter,
};

/// How long the outbox may take to hear that a consumer serves. It finds out by itself, later.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(5);

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct ConsumeOptions {
    /// Where the ids of messages are kept whose effect has happened.
    pub inbox: Arc<dyn Inbox>,
    /// Deliveries in hand at a time; [`DurableConsumer::next`] waits beyond.
    pub concurrency: usize,
    /// Whose deliveries are taken; anybody else's are refused.
    pub outbox: PeerName,
}

impl Default for ConsumeOptions {
    /// A memory inbox, one delivery at a time, from the peer `outbox`.
    fn default() -> Self {
        let outbox = words::OUTBOX.parse().expect("the constant is a peer name");
        Self { inbox: Arc::new(MemoryInbox::default()), concurrency: 1, outbox }
    }
}

/// Deliveries of the topics that match a filter. Dropping it stops serving: what waits in it is tried again later.
#[derive(Debug)]
pub struct DurableConsumer {
    service: Service,
    prefix: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inbox: Arc<dyn Inbox>,
    outbox: PeerName,
    places: Arc<Semaphore>,
    in_hand: Mutex<HashSet<Uuid>>,
}

/// Why what became of a delivery did not reach the outbox. It comes again; after a [`DeliveryError::Inbox`] its effect may
/// happen again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// The inbox could not remember the message.
    #[error("the inbox could not remember `{id}`: {source}")]
    Inbox {
        /// The message.
        id: Uuid,
        /// The inbox's reason.
        source: StorageError,
    },
    /// The outbox does not wait for it any more, or cannot be reached.
    #[error("the outbox was not told: {0}")]
    NotTold(#[from] ReplyError),
}

/// One attempt to deliver one message. Dropping it without a word asks for another attempt.
pub struct Delivery {
    /// The message; its origin is the publisher.
    pub message: Message,
    /// Which attempt this is, counting from 1.
    pub attempt: u32,
    /// Its place in the order of acceptance.
    pub number: u64,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
    request: Request,
    hold: Hold,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Delivery")
            .field("topic", &self.message.topic)
            .field("origin", &self.message.origin)
            .field("number", &self.number)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// A place among those in hand, and the id that no second attempt may be worked on meanwhile.
struct Hold {
    shared: Arc<Shared>,
    id: Uuid,
    _place: OwnedSemaphorePermit,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.in_hand().remove(&self.id);
    }
}

impl Client {
    /// Consumes what is published durably on topics that match, as the consumer of this client's name: the outbox must
    /// have a route to it. It takes the rights to serve `inbox/OWN NAME/...` and to request `outbox/consume/v1`.
    ///
    /// When this returns, deliveries are routed here, and the outbox knows, if it runs. A session that was lost is renewed
    /// as for services, and the outbox is told again.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn consume_durable(
        &self,
        filter: &TopicFilter,
        options: ConsumeOptions,
    ) -> Result<DurableConsumer, SubscribeError> {
        let name = self.name().clone();
        let inbox_filter = words::inbox_filter(&name, filter).map_err(|_| SubscribeError::Option {
            filter: filter.clone(),
            option: "length with the name of its inbox in front",
            way_out: "use a shorter filter, for example `#`",
        })?;
        let announced = words::topic(words::CONSUME);
        let service = self.serve_announced(&inbox_filter, ServeOptions::default(), &announced).await?;
        match self.request(&announced, Payload::default(), ANNOUNCE_DEADLINE).await {
            Ok(_) | Err(RequestError::NoResponders { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, "the outbox was not told that `{name}` serves; it finds out at its next sweep");
            }
        }
        let ConsumeOptions { inbox, concurrency, outbox } = options;
        let places = Arc::new(Semaphore::new(concurrency.clamp(1, Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared { inbox, outbox, places, in_hand: Mutex::default() });
        Ok(DurableConsumer { service, prefix: format!("{}{name}/", words::INBOX), shared })
    }
}

impl DurableConsumer {
    /// The next delivery; `None` once the session has ended for good. What the inbox knows is acknowledged here and not
    /// given out.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            let places = Arc::clone(&self.shared.places);
            let place = places.acquire_owned().await.ok()?;
            let request = self.service.next().await?;
            if let Some(delivery) = self.take(request, place).await {
                return Some(delivery);
            }
        }
    }

    /// Why it has ended, if it has.
    pub fn end_reason(&self) -> Option<String> {
        self.service.end_reason()
    }

    async fn take(&self, request: Request, place: OwnedSemaphorePermit) -> Option<Delivery> {
        let id = request.message.header.id;
        let topic = request.message.topic.as_str().strip_prefix(&self.prefix).map(str::parse);
        let mark = request.message.header.delivery().cloned();
        let (Some(Ok(topic)), Some(mark)) = (topic, mark) else {
            refuse(request, "no_delivery", "this is no delivery of an outbox").await;
            return None;
        };
        if request.message.origin != self.shared.outbox {
            let text = format!("deliveries are taken from `{}` only", self.shared.outbox);
            tracing::warn!(origin = %request.message.origin, "{text}");
            refuse(request, "not_the_outbox", &text).await;
            return None;
        }
        if !self.shared.in_hand().insert(id) {
            refuse(request, "in_hand", "an earlier attempt of it is still in hand").await;
            return None;
        }
        let hold = Hold { shared: Arc::clone(&self.shared), id, _place: place };
        match self.shared.inbox.seen(id).await {
            Ok(false) => {}
            Ok(true) => {
                // Who does not hear of it asks again.
                let _ = request.end_empty().await;
                return None;
            }
            Err(error) => {
                tracing::error!(%id, %error, "the inbox cannot say whether a message was seen");
                refuse(request, "inbox", &error.to_string()).await;
                return None;
            }
        }
        let mut message = request.message.clone();
        (message.topic, message.origin) = (topic, mark.origin.clone());
        let (attempt, number, accepted_ms) = (mark.attempt, mark.number, mark.accepted_ms);
        Some(Delivery { message, attempt, number, accepted_ms, request, hold })
    }
}

impl Delivery {
    /// The effect has happened: the inbox remembers the message, and the outbox does not send it again.
    ///
    /// # Errors
    /// [`DeliveryError`].
    pub async fn ack(self) -> Result<(), DeliveryError> {
        let id = self.hold.id;
        if let Err(source) = self.hold.shared.inbox.record(id).await {
            refuse(self.request, "inbox", &source.to_string()).await;
            return Err(DeliveryError::Inbox { id, source });
        }
        Ok(self.request.end_empty().await?)
    }

    /// It did not work this time: the outbox sends it again by its schedule.
    ///
    /// # Errors
    /// [`DeliveryError::NotTold`].
    pub async fn retry(self, reason: &str) -> Result<(), DeliveryError> {
        Ok(self.request.fail(words::RETRY, reason).await?)
    }

    /// It will never work: the message becomes a dead letter with this reason.
    ///
    /// # Errors
    /// [`DeliveryError::NotTold`].
    pub async fn reject(self, reason: &str) -> Result<(), DeliveryError> {
        Ok(self.request.fail(words::REJECTED, reason).await?)
    }

    /// Says when the outbox does not wait for this attempt any more.
    pub fn cancelled(&self) -> crate::client::CancelToken {
        self.request.cancelled()
    }
}

impl Shared {
    fn in_hand(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who does not hear of it tries again as well.
async fn refuse(request: Request, code: &str, text: &str) {
    let _ = request.fail(code, text).await;
}
