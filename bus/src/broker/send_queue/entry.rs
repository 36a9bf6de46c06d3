//! What goes into a queue, and what becomes of it.

use crate::{
    broker::{
        ledger::{DropReason, RowId},
        requests::RequestKey,
    },
    native::{Block, SubscriptionIds},
};

/// How a queue keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As values.
    Values,
    /// As they go on the wire.
    Wire,
    /// Small ones as on the wire, others as values.
    Local,
}

/// One queued message.
#[derive(Debug)]
pub struct Entry {
    /// Every subscription of the session it matches; the first one is this queue's.
    pub subscriptions: SubscriptionIds,
    /// The request it carries; `None` for a publish.
    pub request: Option<RequestKey>,
    /// The message.
    pub block: Block,
    /// Where it is counted.
    pub row: RowId,
}

impl Entry {
    /// What it counts for in a queue's bytes.
    pub(super) fn bytes(&self) -> usize {
        self.block.bytes() + beside_bytes(&self.subscriptions)
    }
}

/// What a message counts for beside its block: the numbers of the subscriptions that share it with this queue's own.
pub(super) fn beside_bytes(subscriptions: &[u32]) -> usize {
    size_of::<u32>() * subscriptions.len().saturating_sub(1)
}

/// What became of a pushed message.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the queue.
    Queued,
    /// It is in the queue, which is now full: its publisher must be held.
    QueuedAndFull,
    /// It was not taken.
    Refused,
    /// It was not taken, and the subscriber's session must end.
    Disconnect,
}

/// What became of a run of messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PushedRun {
    /// Those in the queue.
    pub queued: u64,
    /// Those not taken.
    pub refused: u64,
    /// The queue is full: the publisher must be held.
    pub full: bool,
    /// The subscriber's session must end.
    pub disconnect: bool,
}

/// A message that left the queue undelivered.
pub type Dropped = (RowId, Option<RequestKey>, DropReason);
