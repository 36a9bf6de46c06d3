//! A storage in memory, for tests: every step of the real one, steps that fail when told, and what is kept to look at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    limits,
    storage::{
        DeliveryId, Leased, NewEntry, OpenDelivery, OutboxStorage, Outcome, Put, PutError, Settled, Step,
        StorageError, StorageFailure,
    },
};
use crate::{envelope::now_ns, peer::PeerName};

/// What a full outbox does with a further message. The policy `pause` is the outbox's own: to the storage it is `Reject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Refuses it.
    #[default]
    Reject,
    /// What is open of the oldest message of which nothing is leased becomes dead letters.
    OldestToDeadLetter,
}

/// Bounds of a [`MemoryStorage`]; zero stands for none.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// Messages that are not finished.
    pub pending_max: u64,
    /// Bytes of headers and payloads that are kept, dead letters included.
    pub bytes_max: u64,
    /// What happens to a message beyond `pending_max`.
    pub when_full: WhenFull,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { pending_max: limits::PENDING_MAX, bytes_max: 0, when_full: WhenFull::Reject }
    }
}

/// Which steps fail, counting those of every kind from now on; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// None.
    Never,
    /// This one.
    Once(u64),
    /// This one and all after it.
    From(u64),
    /// This one is done, and its answer is lost.
    Unanswered(u64),
    /// Every one that saves what became of attempts.
    Settles,
}

/// Where a delivery stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// It waits until it is due.
    Pending {
        /// In milliseconds since the Unix epoch.
        due_ms: u64,
    },
    /// An attempt has begun.
    Leased,
    /// The consumer has it.
    Acknowledged,
    /// There will be no attempt.
    Dead {
        /// Why.
        reason: String,
    },
}

/// A delivery as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDelivery {
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts that were begun and not taken back.
    pub attempts: u32,
    /// Why attempts failed, in order.
    pub reasons: Vec<String>,
}

/// A message as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptMessage {
    /// What was put.
    pub entry: NewEntry,
    /// When, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
    /// One for each consumer.
    pub deliveries: BTreeMap<PeerName, KeptDelivery>,
    /// Its payload is to be found damaged when it is leased.
    pub is_damaged: bool,
    /// What it counts for in the limit of bytes: nothing once it is finished.
    pub counted_bytes: u64,
}

impl KeptMessage {
    fn is_open(&self) -> bool {
        self.deliveries.values().any(KeptDelivery::is_open)
    }

    fn bytes(&self) -> u64 {
        (self.entry.payload.len() + self.entry.header.len()) as u64
    }
}

impl KeptDelivery {
    fn is_open(&self) -> bool {
        matches!(self.state, DeliveryState::Pending { .. } | DeliveryState::Leased)
    }
}

/// Messages in memory. It is gone with the last of its processes (see [`MemoryStorage::another_process`]).
#[derive(Debug)]
pub struct MemoryStorage {
    shared: Arc<Shared>,
    process: u64,
}

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<Kept>,
    /// Told when the sender ends.
    released: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    limits: MemoryLimits,
    messages: BTreeMap<u64, KeptMessage>,
    numbers: HashMap<Uuid, u64>,
    last_number: u64,
    open: BTreeSet<u64>,
    bytes: u64,
    sender: Option<u64>,
    processes: u64,
    steps: u64,
    failing_since: u64,
    failing: Option<Failing>,
}

/// The step that saves what became of attempts.
const SETTLE: &str = "settle";

/// What a failing step still does.
#[derive(PartialEq)]
enum Fate {
    Done,
    Undone,
    Unanswered,
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new(MemoryLimits::default())
    }
}

impl MemoryStorage {
    /// An empty one.
    pub fn new(limits: MemoryLimits) -> Self {
        let kept = Kept { limits, ..Kept::default() };
        Self { shared: Arc::new(Shared { kept: Mutex::new(kept), released: Notify::new() }), process: 0 }
    }

    /// Other bounds for what comes.
    pub fn set_limits(&self, limits: MemoryLimits) {
        self.kept().limits = limits;
    }

    /// The same messages as another process sees them.
    #[must_use]
    pub fn another_process(&self) -> Self {
        let mut kept = self.kept();
        kept.processes += 1;
        Self { shared: Arc::clone(&self.shared), process: kept.processes }
    }

    /// Lets steps fail, counting from now on.
    pub fn fail(&self, failing: Failing) {
        let mut kept = self.kept();
        (kept.failing_since, kept.failing) = (kept.steps, Some(failing));
    }

    /// How many steps were asked for.
    pub fn steps(&self) -> u64 {
        self.kept().steps
    }

    /// Everything that is kept, by number.
    pub fn messages(&self) -> BTreeMap<u64, KeptMessage> {
        self.kept().messages.clone()
    }

    /// Lets the payload of this message be found damaged when it is leased.
    pub fn damage(&self, number: u64) {
        if let Some(message) = self.kept().messages.get_mut(&number) {
            message.is_damaged = true;
        }
    }

    /// What the tool does: a dead letter is pending again, with no attempts.
    pub fn retry_dead_letter(&self, id: &DeliveryId) {
        let mut kept = self.kept();
        if let Some(delivery) = kept.delivery(id)
            && matches!(delivery.state, DeliveryState::Dead { .. })
        {
            (delivery.state, delivery.attempts) = (DeliveryState::Pending { due_ms: 0 }, 0);
            kept.open.insert(id.number);
        }
    }

    /// What the tool does: the message is kept no more, whatever state it is in.
    pub fn drop_message(&self, number: u64) {
        self.kept().remove(number);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step, or its failure.
    fn step<T>(&self, what: &str, work: impl FnOnce(&mut Kept) -> T) -> Result<T, StorageError> {
        let mut kept = self.kept();
        let fate = kept.next_fate(what == SETTLE);
        let failure = || StorageError {
            kind: StorageFailure::Disk,
            text: format!("cannot {what}: step {} was told to fail", kept.steps),
        };
        match fate {
            Fate::Done => Ok(work(&mut kept)),
            Fate::Undone => Err(failure()),
            Fate::Unanswered => {
                let failure = failure();
                work(&mut kept);
                Err(failure)
            }
        }
    }
}

impl Drop for MemoryStorage {
    fn drop(&mut self) {
        let mut kept = self.kept();
        if kept.sender == Some(self.process) {
            kept.sender = None;
            drop(kept);
            self.shared.released.notify_waiters();
        }
    }
}

impl Kept {
    fn next_fate(&mut self, is_settle: bool) -> Fate {
        self.steps += 1;
        let step = self.steps - self.failing_since;
        match self.failing {
            Some(Failing::Once(failing)) if failing == step => Fate::Undone,
            Some(Failing::From(failing)) if failing <= step => Fate::Undone,
            Some(Failing::Unanswered(failing)) if failing == step => Fate::Unanswered,
            Some(Failing::Settles) if is_settle => Fate::Undone,
            _ => Fate::Done,
        }
    }

    fn delivery(&mut self, id: &DeliveryId) -> Option<&mut KeptDelivery> {
        self.messages.get_mut(&id.number)?.deliveries.get_mut(&id.consumer)
    }

    fn remove(&mut self, number: u64) {
        if let Some(message) = self.messages.remove(&number) {
            self.bytes -= message.counted_bytes;
            self.open.remove(&number);
            self.numbers.remove(&message.entry.id);
        }
    }

    fn put(&mut self, entry: NewEntry) -> Result<Put, PutError> {
        if let Some(number) = self.numbers.get(&entry.id).copied() {
            let kept = &self.messages[&number].entry;
            let is_same = kept.topic == entry.topic && kept.payload == entry.payload;
            return match is_same {
                true => Ok(Put { number, again: true }),
                false => Err(PutError::OtherContent { id: entry.id }),
            };
        }
        let MemoryLimits { pending_max, bytes_max, when_full } = self.limits;
        let wanted = (entry.payload.len() + entry.header.len()) as u64;
        if bytes_max > 0 && self.bytes + wanted > bytes_max {
            return Err(PutError::BytesFull { current: self.bytes, wanted, max: bytes_max });
        }
        let current = self.open.len() as u64;
        if pending_max > 0 && current >= pending_max {
            match when_full {
                WhenFull::OldestToDeadLetter if self.oldest_to_dead_letter(pending_max) => {}
                _ => return Err(PutError::Full { current, max: pending_max }),
            }
        }
        self.last_number += 1;
        let number = self.last_number;
        let delivery =
            KeptDelivery { state: DeliveryState::Pending { due_ms: 0 }, attempts: 0, reasons: Vec::new() };
        let deliveries =
            entry.consumers.iter().map(|consumer| (consumer.clone(), delivery.clone())).collect();
        self.numbers.insert(entry.id, number);
        self.open.insert(number);
        self.bytes += wanted;
        let accepted_ms = now_ns() / 1_000_000;
        let message =
            KeptMessage { entry, accepted_ms, deliveries, is_damaged: false, counted_bytes: wanted };
        self.messages.insert(number, message);
        Ok(Put { number, again: false })
    }

    fn oldest_to_dead_letter(&mut self, pending_max: u64) -> bool {
        let is_leased = |message: &KeptMessage| {
            message.deliveries.values().any(|delivery| delivery.state == DeliveryState::Leased)
        };
        let oldest = self.open.iter().copied().find(|number| !is_leased(&self.messages[number]));
        let Some(message) = oldest.and_then(|number| self.messages.get_mut(&number)) else { return false };
        for delivery in message.deliveries.values_mut().filter(|delivery| delivery.is_open()) {
            let reason = format!("it was the oldest when the outbox was full ({pending_max} messages)");
            delivery.state = DeliveryState::Dead { reason };
        }
        oldest.is_some_and(|number| self.open.remove(&number))
    }

    fn lease(&mut self, ids: Vec<DeliveryId>) -> Vec<Leased> {
        let mut leased = Vec::new();
        for id in ids {
            let Some(message) = self.messages.get_mut(&id.number) else { continue };
            let Some(delivery) = message.deliveries.get_mut(&id.consumer) else { continue };
            if !matches!(delivery.state, DeliveryState::Pending { .. }) {
                continue;
            }
            if message.is_damaged {
                delivery.state = DeliveryState::Dead { reason: "the message cannot be read".to_owned() };
                if !message.is_open() {
                    self.open.remove(&id.number);
                }
                continue;
            }
            delivery.attempts += 1;
            delivery.state = DeliveryState::Leased;
            let attempt = delivery.attempts;
            let NewEntry { id: message_id, topic, origin, header, payload, .. } = message.entry.clone();
            let accepted_ms = message.accepted_ms;
            leased.push(Leased {
                id,
                attempt,
                message: message_id,
                topic,
                origin,
                accepted_ms,
                header,
                payload,
            });
        }
        leased
    }

    fn settle(&mut self, settled: Vec<Settled>) {
        for Settled { id, outcome } in settled {
            let Some(delivery) = self.delivery(&id) else { continue };
            if delivery.state != DeliveryState::Leased {
                continue;
            }
            delivery.state = match outcome {
                Outcome::Acknowledged => DeliveryState::Acknowledged,
                Outcome::Retry { due_ms, reason } => {
                    delivery.reasons.push(reason);
                    DeliveryState::Pending { due_ms }
                }
                Outcome::Dead { reason } => {
                    delivery.reasons.push(reason.clone());
                    DeliveryState::Dead { reason }
                }
                Outcome::Unsent => {
                    delivery.attempts -= 1;
                    DeliveryState::Pending { due_ms: 0 }
                }
            };
            let Some(message) = self.messages.get_mut(&id.number) else { continue };
            if !message.is_open() {
                self.open.remove(&id.number);
                let is_finished = |delivery: &KeptDelivery| delivery.state == DeliveryState::Acknowledged;
                if message.deliveries.values().all(is_finished) {
                    self.bytes -= std::mem::take(&mut message.counted_bytes);
                }
            }
        }
    }
}

impl OutboxStorage for MemoryStorage {
    fn put(&self, entry: NewEntry) -> Step<'_, Result<Put, PutError>> {
        let put = self.step("put", |kept| kept.put(entry)).unwrap_or_else(|error| Err(error.into()));
        Box::pin(std::future::ready(put))
    }

    fn become_sender(&self) -> Step<'_, Result<u64, StorageError>> {
        Box::pin(async move {
            loop {
                let released = self.shared.released.notified();
                {
                    let mut kept = self.kept();
                    if kept.sender.is_none_or(|sender| sender == self.process) {
                        kept.sender = Some(self.process);
                        break;
                    }
                }
                released.await;
            }
            self.step("take leases back", |kept| {
                let mut taken_back = 0;
                let deliveries =
                    kept.messages.values_mut().flat_map(|message| message.deliveries.values_mut());
                for delivery in deliveries.filter(|delivery| delivery.state == DeliveryState::Leased) {
                    delivery.state = DeliveryState::Pending { due_ms: 0 };
                    taken_back += 1;
                }
                taken_back
            })
        })
    }

    fn open_deliveries(
        &self,
        consumer: &PeerName,
        after: u64,
        limit: usize,
    ) -> Step<'_, Result<Vec<OpenDelivery>, StorageError>> {
        let read = self.step("read what is open", |kept| {
            let mut open = Vec::new();
            for number in kept.open.range(after.saturating_add(1)..) {
                let message = &kept.messages[number];
                let Some(delivery) = message.deliveries.get(consumer) else { continue };
                let due_ms = match delivery.state {
                    DeliveryState::Pending { due_ms } => due_ms,
                    DeliveryState::Leased => 0,
                    DeliveryState::Acknowledged | DeliveryState::Dead { .. } => continue,
                };
                if open.len() == limit {
                    break;
                }
                open.push(OpenDelivery {
                    id: DeliveryId { number: *number, consumer: consumer.clone() },
                    key: message.entry.key.clone(),
                    bytes: message.bytes(),
                    attempts: delivery.attempts,
                    due_ms,
                });
            }
            open
        });
        Box::pin(std::future::ready(read))
    }

    fn open_consumers(&self) -> Step<'_, Result<Vec<(PeerName, u64)>, StorageError>> {
        let read = self.step("read who is waited for", |kept| {
            let mut consumers = BTreeMap::new();
            let open = kept.open.iter().flat_map(|number| &kept.messages[number].deliveries);
            for (consumer, _) in open.filter(|(_, delivery)| delivery.is_open()) {
                *consumers.entry(consumer.clone()).or_insert(0) += 1;
            }
            consumers.into_iter().collect()
        });
        Box::pin(std::future::ready(read))
    }

    fn lease(&self, deliveries: Vec<DeliveryId>) -> Step<'_, Result<Vec<Leased>, StorageError>> {
        Box::pin(std::future::ready(self.step("lease", |kept| kept.lease(deliveries))))
    }

    fn settle(&self, settled: Vec<Settled>) -> Step<'_, Result<(), StorageError>> {
        Box::pin(std::future::ready(self.step(SETTLE, |kept| kept.settle(settled))))
    }
}
