//! The only way into an outbox: the same for requests on the bus and for calls in its process.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    error::DurableError,
    limits,
    routes::Routes,
    storage::{NewEntry, OutboxStorage, Put},
    words::{self, Accepted},
};
use crate::{envelope::Header, limits as bus_limits, peer::PeerName, topic::TopicName};

/// Bytes by which the header of a delivery may exceed the publisher's.
const HEADER_BYTES_ADDED: usize = 256;

/// A message at the door.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// Nil for a fresh one.
    pub(crate) id: Uuid,
    pub(crate) topic: TopicName,
    pub(crate) key: Option<String>,
    pub(crate) origin: PeerName,
    pub(crate) header: Bytes,
    pub(crate) payload: Bytes,
}

/// What went through the door.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DoorCounts {
    pub(crate) accepted: u64,
    pub(crate) again: u64,
    /// By code.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Waiting for room at this moment.
    pub(crate) waiting: u64,
}

#[derive(Debug)]
pub(crate) struct Door {
    storage: Arc<dyn OutboxStorage>,
    /// Whether a put waits for room.
    pauses: bool,
    message_bytes_max: u64,
    state: Mutex<State>,
    /// Told when something was finished, when routes or limits change, and when the door closes.
    room: Notify,
    /// Told when something was accepted.
    pub(crate) news: Notify,
}

#[derive(Debug, Default)]
struct State {
    routes: Arc<Routes>,
    is_closed: bool,
    /// Whether another one opens when this one has closed.
    comes_back: bool,
    counts: DoorCounts,
    /// For whom something was accepted.
    news: BTreeSet<PeerName>,
}

impl Door {
    pub(crate) fn new(
        storage: Arc<dyn OutboxStorage>,
        routes: Routes,
        pauses: bool,
        message_bytes_max: u64,
    ) -> Self {
        let state = State { routes: Arc::new(routes), ..State::default() };
        let state = Mutex::new(state);
        Self { storage, pauses, message_bytes_max, state, room: Notify::new(), news: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Also who waits for room is judged by them from now on, and by limits of the storage that were changed before.
    pub(crate) fn set_routes(&self, routes: Routes) {
        self.state().routes = Arc::new(routes);
        self.room();
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.state().routes)
    }

    pub(crate) fn counts(&self) -> DoorCounts {
        self.state().counts.clone()
    }

    /// For whom something was accepted since the last call.
    pub(crate) fn take_news(&self) -> BTreeSet<PeerName> {
        std::mem::take(&mut self.state().news)
    }

    /// Something was finished: who waits for room may try.
    pub(crate) fn room(&self) {
        self.room.notify_waiters();
    }

    /// Refuses everything from now on.
    pub(crate) fn close(&self) {
        self.state().is_closed = true;
        self.room.notify_waiters();
    }

    /// Whoever is refused by the close that follows may try again soon.
    pub(crate) fn comes_back(&self) {
        self.state().comes_back = true;
    }

    /// Takes a message. Under the policy `pause` it waits for room, until `given_up`.
    pub(crate) async fn put<F: Future<Output = ()> + Send>(
        &self,
        mut arrival: Arrival,
        given_up: impl FnOnce() -> F + Send,
    ) -> Result<Accepted, DurableError> {
        if arrival.id.is_nil() {
            arrival.id = Header::new().id;
        }
        let outcome = match self.pauses {
            true => self.put_with_patience(arrival, given_up).await,
            false => match self.entry(arrival) {
                Ok(entry) => self.offer(entry).await,
                Err(error) => Err(error),
            },
        };
        let mut state = self.state();
        let counter = match &outcome {
            Ok(Accepted { again: false, .. }) => &mut state.counts.accepted,
            Ok(_) => &mut state.counts.again,
            Err(error) => state.counts.refused.entry(error.code().to_owned()).or_default(),
        };
        *counter += 1;
        outcome
    }

    /// Takes it if there is room.
    async fn offer(&self, entry: NewEntry) -> Result<Accepted, DurableError> {
        let (is_closed, comes_back) = {
            let state = self.state();
            (state.is_closed, state.comes_back)
        };
        match (is_closed, comes_back) {
            (false, _) => {}
            (true, true) => return Err(DurableError::Restarting),
            (true, false) => return Err(DurableError::ShuttingDown),
        }
        let (id, consumers) = (entry.id, entry.consumers.clone());
        let Put { number, again } = self.storage.put(entry).await?;
        // Also if it was there before: the answer that told of it may have been lost in here.
        self.state().news.extend(consumers);
        self.news.notify_one();
        Ok(Accepted { id, number, again })
    }

    /// Takes it when there is room; each try is judged by the routes and limits of its moment. In a box: few puts wait, and the others are smaller for it.
    fn put_with_patience<'a, F: Future<Output = ()> + Send + 'a>(
        &'a self,
        arrival: Arrival,
        given_up: impl FnOnce() -> F + Send + 'a,
    ) -> Pin<Box<dyn Future<Output = Result<Accepted, DurableError>> + Send + 'a>> {
        Box::pin(async move {
            let mut given_up = pin!(given_up());
            let mut place: Option<Place<'_>> = None;
            loop {
                let room = self.room.notified();
                let full = match self.offer(self.entry(arrival.clone())?).await {
                    Err(full @ DurableError::Full { .. }) => full,
                    end => return end,
                };
                if place.is_none() {
                    place = self.waiting_place();
                }
                if place.is_none() {
                    return Err(full);
                }
                // In this order: others who come and go make room again and again.
                if let Either::Left(_) = select(given_up.as_mut(), pin!(room)).await {
                    return Err(full);
                }
            }
        })
    }

    /// Counts a put that waits, if not too many do.
    fn waiting_place(&self) -> Option<Place<'_>> {
        let mut state = self.state();
        if state.counts.waiting >= limits::PUTS_WAITING as u64 {
            return None;
        }
        state.counts.waiting += 1;
        Some(Place(self))
    }

    /// What is to be kept, or why it cannot be.
    fn entry(&self, arrival: Arrival) -> Result<NewEntry, DurableError> {
        let Arrival { id, topic, key, origin, header, payload } = arrival;
        let invalid = |text: String| DurableError::Invalid { text };
        let bytes = (payload.len() + header.len()) as u64;
        if bytes > self.message_bytes_max {
            return Err(DurableError::TooLarge { bytes, limit: self.message_bytes_max });
        }
        let header_limit = bus_limits::HEADER_BYTES_MAX - HEADER_BYTES_ADDED;
        if header.len() > header_limit {
            let (bytes, limit) = (header.len() as u64, header_limit as u64);
            return Err(DurableError::TooLarge { bytes, limit });
        }
        let key = key.filter(|key| !key.is_empty()).unwrap_or_else(|| topic.to_string());
        if key.len() > limits::KEY_BYTES_MAX {
            let bytes = key.len();
            return Err(invalid(format!(
                "its ordering key is {bytes} bytes long; the limit is {} bytes",
                limits::KEY_BYTES_MAX
            )));
        }
        let consumers = self.routes().consumers(&topic);
        if consumers.is_empty() {
            return Err(DurableError::NoConsumers { topic: topic.to_string() });
        }
        if consumers.len() > limits::CONSUMERS_MAX {
            let text = format!(
                "{} consumers are named for it; the limit is {}",
                consumers.len(),
                limits::CONSUMERS_MAX
            );
            return Err(invalid(text));
        }
        for consumer in &consumers {
            words::inbox_topic(consumer, &topic)
                .map_err(|error| invalid(format!("it has no name at `{consumer}`: {error}")))?;
        }
        Ok(NewEntry { id, topic, key, origin, header, payload, consumers })
    }
}

/// How long a request that ends at `deadline_ms` (zero: after the usual time) may wait for room if its answer is to arrive
/// before: all but a quarter of the time, or but a second.
pub(crate) fn patience(deadline_ms: u64, now_ms: u64) -> Duration {
    let left = match deadline_ms {
        0 => bus_limits::REQUEST_TIMEOUT,
        _ => Duration::from_millis(deadline_ms.saturating_sub(now_ms)),
    };
    left - (left / 4).min(limits::ANSWER_MARGIN)
}

/// One of those who wait for room.
struct Place<'a>(&'a Door);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.state().counts.waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_waits_for_room_until_a_moment_before_its_deadline() {
        let ms = Duration::from_millis;
        assert_eq!(patience(60_000, 50_000), ms(9_000));
        assert_eq!(patience(60_000, 59_000), ms(750));
        assert_eq!(patience(60_000, 60_001), ms(0));
        assert_eq!(patience(0, 50_000), ms(59_000));
    }
}
