//! What the outbox needs of whoever keeps its messages. The bus knows no database: one is given to it.

use std::{fmt, future::Future, pin::Pin};

use bytes::Bytes;
use uuid::Uuid;

use crate::{peer::PeerName, topic::TopicName};

/// A step of the storage under way. It needs no particular executor, and dropping it does not undo the step.
pub type Step<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A message that is to be kept until every one of its consumers has acknowledged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The publisher's id of it; a second put with the same id is the same message.
    pub id: Uuid,
    /// What it was published on.
    pub topic: TopicName,
    /// Messages with the same key keep their order on the way to each consumer.
    pub key: String,
    /// Who published it.
    pub origin: PeerName,
    /// Its header as it stands on the wire.
    pub header: Bytes,
    /// Its payload.
    pub payload: Bytes,
    /// Who is to acknowledge it; at least one, none twice.
    pub consumers: Vec<PeerName>,
}

/// A message was accepted: it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Its place in the order of acceptance; rises, not without holes. Who sees a number sees all lower ones: none of them
    /// is committed later.
    pub number: u64,
    /// It was there before, with the same id and the same content: nothing was added.
    pub again: bool,
}

/// Why a message was not accepted. Nothing of it is kept then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// As many messages are unfinished as may be.
    #[error(
        "the outbox is full: {current} of {max} messages are unfinished; `interlock outbox list` shows what they wait for"
    )]
    Full {
        /// Messages that are not finished, in whatever state.
        current: u64,
        /// The limit.
        max: u64,
    },
    /// As many bytes are kept as may be, dead letters included.
    #[error(
        "the outbox is full: {current} bytes are kept and {wanted} more would be above {max}; `interlock dlq list` shows what could go"
    )]
    BytesFull {
        /// Bytes of payloads and headers that are kept.
        current: u64,
        /// Bytes of this message.
        wanted: u64,
        /// The limit.
        max: u64,
    },
    /// The file system is nearly full.
    #[error(
        "the disk is low: {free} bytes are free and {floor} are left alone; free some, or lower `outbox.disk_floor`"
    )]
    DiskLow {
        /// Bytes that are free.
        free: u64,
        /// The limit.
        floor: u64,
    },
    /// Another message has the same id.
    #[error("`{id}` was accepted before with another topic or payload; give each message an id of its own")]
    OtherContent {
        /// The id.
        id: Uuid,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why the storage could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct StorageError {
    /// What kind of failure.
    pub kind: StorageFailure,
    /// What was done to what, and the reason.
    pub text: String,
}

/// Kinds of failure, as callers tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageFailure {
    /// The disk is full or failed; what was asked for is not stored.
    Disk,
    /// Somebody else held it for too long, or too much waits for it.
    Busy,
    /// What is stored cannot be read.
    Damaged,
    /// It is closed.
    Closed,
}

/// One message on its way to one consumer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    /// The message's place in the order of acceptance.
    pub number: u64,
    /// To whom.
    pub consumer: PeerName,
}

/// A delivery that is not finished, without its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDelivery {
    /// Which one.
    pub id: DeliveryId,
    /// The message's ordering key.
    pub key: String,
    /// Bytes of its header and payload: how much of it may be in hand at once is judged before it is read.
    pub bytes: u64,
    /// Attempts that were begun.
    pub attempts: u32,
    /// When the next attempt is due, in milliseconds since the Unix epoch; zero for at once.
    pub due_ms: u64,
}

/// A delivery with its message, and an attempt of it that is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// Which one.
    pub id: DeliveryId,
    /// Which attempt this is, counting from 1.
    pub attempt: u32,
    /// The message's id.
    pub message: Uuid,
    /// What it was published on.
    pub topic: TopicName,
    /// Who published it.
    pub origin: PeerName,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
    /// Its header as it stands on the wire.
    pub header: Bytes,
    /// Its payload.
    pub payload: Bytes,
}

/// What became of a leased delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Which one.
    pub id: DeliveryId,
    /// What became of it.
    pub outcome: Outcome,
}

/// The end of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The consumer has acknowledged it. When all have, the message is finished.
    Acknowledged,
    /// The attempt failed; there will be another.
    Retry {
        /// When, in milliseconds since the Unix epoch.
        due_ms: u64,
        /// Why it failed.
        reason: String,
    },
    /// No further attempt: it becomes a dead letter.
    Dead {
        /// Why.
        reason: String,
    },
    /// Nothing was sent: the lease is taken back, and with it the attempt.
    Unsent,
}

/// Keeps the messages of an outbox.
///
/// Each step is one transaction: after a crash at any instant each delivery is in exactly one of the states pending, leased,
/// acknowledged and dead. What a step has returned `Ok` for outlives the machine's power. Several processes may put at the
/// same time; one at a time sends.
///
/// Attempts rise with each [`lease`](Self::lease), go back only with [`Outcome::Unsent`], and are kept with their times and
/// reasons until the message goes.
pub trait OutboxStorage: fmt::Debug + Send + Sync + 'static {
    /// Keeps a message. The limits are judged in the same transaction, over all processes.
    fn put(&self, entry: NewEntry) -> Step<'_, Result<Put, PutError>>;

    /// Waits until nobody else sends from this storage, and returns how many leases of those before were taken back to pending
    /// (their attempts stay counted). Holds until the storage is dropped or the process ends. A second call of the same
    /// storage only takes leases back.
    fn become_sender(&self) -> Step<'_, Result<u64, StorageError>>;

    /// Unfinished deliveries to one consumer whose number is above `after`, lowest first, at most `limit` of them; those that
    /// are leased are among them.
    fn open_deliveries(
        &self,
        consumer: &PeerName,
        after: u64,
        limit: usize,
    ) -> Step<'_, Result<Vec<OpenDelivery>, StorageError>>;

    /// All who have unfinished deliveries, with how many.
    fn open_consumers(&self) -> Step<'_, Result<Vec<(PeerName, u64)>, StorageError>>;

    /// Writes down that an attempt of each begins now, whenever it is due. Those that are not pending any more (somebody dropped them) are left out
    /// of the answer. One whose message cannot be read becomes a dead letter that says so, and is left out.
    fn lease(&self, deliveries: Vec<DeliveryId>) -> Step<'_, Result<Vec<Leased>, StorageError>>;

    /// Ends leases, all in one transaction. What is not leased (it was settled before, or somebody dropped it) stays as it is:
    /// a settle whose answer was lost is asked for again.
    fn settle(&self, settled: Vec<Settled>) -> Step<'_, Result<(), StorageError>>;
}
