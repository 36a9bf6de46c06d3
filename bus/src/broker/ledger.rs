//! The drop ledger: for each publisher, topic and subscriber,
//! `published = delivered + queued + dropped(reason) + denied`.
//!
//! Pure: the broker says what happened, the ledger counts. Nothing leaves a row but through one of
//! the terms, so a row that does not balance is a bug of the broker; `bus audit` prints such rows.

use std::collections::HashMap;

use serde::Serialize;

use crate::{limits, peer::PeerName, topic::TopicName};

/// Why a message was not delivered to one subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The send queue was full: the new message, or the older ones that made room for it.
    SlowConsumer,
    /// A newer message of the topic took its place (`latest_only`).
    Replaced,
    /// The subscriber's session ended before it was credited.
    Disconnected,
    /// The subscription ended before it was credited.
    Unsubscribed,
    /// Nobody subscribes to the topic.
    NoSubscriber,
    /// Its deadline had passed.
    Expired,
    /// It was larger than any message may be, in bytes or in frames.
    TooLarge,
}

/// All reasons, in the order of the tool's columns.
pub const DROP_REASONS: [DropReason; 7] = [
    DropReason::SlowConsumer,
    DropReason::Replaced,
    DropReason::Disconnected,
    DropReason::Unsubscribed,
    DropReason::NoSubscriber,
    DropReason::Expired,
    DropReason::TooLarge,
];

/// A row of the ledger, by number. Valid while the row's generation of routes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowId(u32);

/// Who, what, to whom. `None` stands for "nobody" as a subscriber and for "others" in the row that
/// evicted rows are folded into.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RowKey {
    /// The publisher's registered name.
    pub publisher: Option<PeerName>,
    /// The topic.
    pub topic: Option<TopicName>,
    /// The subscriber's registered name; `None` if nobody subscribes.
    pub subscriber: Option<PeerName>,
}

/// The counts of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages the publisher sent that concern this subscriber.
    pub published: u64,
    /// Credited by a native client, or written to the kernel for a stock one.
    pub delivered: u64,
    /// Those of `delivered` that were written to the kernel: nobody has said that they arrived.
    pub written: u64,
    /// In the send queue, or sent and not yet credited.
    pub queued: u64,
    /// Not permitted to the publisher or to the subscriber.
    pub denied: u64,
    /// By [`DROP_REASONS`].
    pub dropped: [u64; DROP_REASONS.len()],
}

impl Counts {
    /// Whether the terms add up.
    pub fn balances(&self) -> bool {
        self.published == self.delivered + self.queued + self.denied + self.dropped.iter().sum::<u64>()
    }

    pub(super) fn add(&mut self, other: &Counts) {
        self.published += other.published;
        self.delivered += other.delivered;
        self.written += other.written;
        self.queued += other.queued;
        self.denied += other.denied;
        self.dropped.iter_mut().zip(other.dropped).for_each(|(sum, count)| *sum += count);
    }
}

#[derive(Debug)]
struct Row {
    key: RowKey,
    counts: Counts,
    /// The ledger's clock when it was last counted in.
    touched: u64,
}

/// The ledger of one broker epoch. At most [`limits::LEDGER_ROWS_MAX`] rows: the longest idle one
/// without queued messages is folded into the row `other`, so that the sums still hold.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: Vec<Row>,
    index: HashMap<RowKey, RowId>,
    other: Counts,
    clock: u64,
    evictions: u64,
}

impl Ledger {
    /// The row of this key, made if it is new.
    pub fn row(&mut self, key: RowKey) -> RowId {
        // Whoever asks for several rows must not lose the first by asking for the last.
        self.clock += 1;
        if let Some(row) = self.index.get(&key).copied() {
            self.rows[row.0 as usize].touched = self.clock;
            return row;
        }
        let row = Row { key: key.clone(), counts: Counts::default(), touched: self.clock };
        let id = if self.rows.len() < limits::LEDGER_ROWS_MAX {
            self.rows.push(row);
            RowId(self.rows.len() as u32 - 1)
        } else {
            self.evict_for(row)
        };
        self.index.insert(key, id);
        id
    }

    /// What a row is about.
    pub fn key_of(&self, row: RowId) -> &RowKey {
        &self.rows[row.0 as usize].key
    }

    /// The counts of a row, if there is one.
    pub fn counts_of(&self, key: &RowKey) -> Option<Counts> {
        self.index.get(key).map(|row| self.rows[row.0 as usize].counts)
    }

    /// How often a row was given to another key. Whoever keeps [`RowId`]s must look them up again
    /// when this has changed.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    fn evict_for(&mut self, row: Row) -> RowId {
        // Rows with queued messages are still named by send queues. If all are, the table grows by
        // one: that is bounded by the send queues themselves.
        let idle = self.rows.iter().enumerate().filter(|(_, row)| row.counts.queued == 0);
        let Some(slot) = idle.min_by_key(|(_, row)| row.touched).map(|(slot, _)| slot) else {
            self.rows.push(row);
            return RowId(self.rows.len() as u32 - 1);
        };
        let evicted = std::mem::replace(&mut self.rows[slot], row);
        self.other.add(&evicted.counts);
        self.index.remove(&evicted.key);
        self.evictions += 1;
        RowId(slot as u32)
    }

    fn counts(&mut self, row: RowId) -> &mut Counts {
        self.clock += 1;
        let row = &mut self.rows[row.0 as usize];
        row.touched = self.clock;
        &mut row.counts
    }

    /// `messages` were published and are in the send queue.
    pub fn queued(&mut self, row: RowId, messages: u64) {
        let counts = self.counts(row);
        counts.published += messages;
        counts.queued += messages;
    }

    /// `messages` that were queued are delivered.
    pub fn delivered(&mut self, row: RowId, messages: u64) {
        let counts = self.counts(row);
        counts.queued -= messages;
        counts.delivered += messages;
    }

    /// `messages` that were queued were written to the kernel for a stock subscriber.
    pub fn written(&mut self, row: RowId, messages: u64) {
        self.delivered(row, messages);
        self.rows[row.0 as usize].counts.written += messages;
    }

    /// `messages` that were queued are dropped.
    pub fn dropped_from_queue(&mut self, row: RowId, messages: u64, reason: DropReason) {
        let counts = self.counts(row);
        counts.queued -= messages;
        counts.dropped[reason as usize] += messages;
    }

    /// `messages` that were queued may not be received any more.
    pub fn denied_from_queue(&mut self, row: RowId, messages: u64) {
        let counts = self.counts(row);
        counts.queued -= messages;
        counts.denied += messages;
    }

    /// `messages` were published and dropped at once.
    pub fn dropped(&mut self, row: RowId, messages: u64, reason: DropReason) {
        let counts = self.counts(row);
        counts.published += messages;
        counts.dropped[reason as usize] += messages;
    }

    /// `messages` were published and refused.
    pub fn denied(&mut self, row: RowId, messages: u64) {
        let counts = self.counts(row);
        counts.published += messages;
        counts.denied += messages;
    }

    /// All rows, and the sum of evicted ones under the key of three `None`s.
    pub fn rows(&self) -> impl Iterator<Item = (RowKey, Counts)> {
        let other = RowKey { publisher: None, topic: None, subscriber: None };
        let others = (self.evictions > 0).then_some((other, self.other));
        self.rows.iter().map(|row| (row.key.clone(), row.counts)).chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(topic: usize) -> RowKey {
        let name = |text: &str| Some(text.parse().unwrap());
        RowKey {
            publisher: name("a"),
            topic: Some(format!("t/{topic}").parse().unwrap()),
            subscriber: name("b"),
        }
    }

    #[test]
    fn every_way_out_of_the_queue_keeps_the_row_in_balance() {
        let mut ledger = Ledger::default();
        let row = ledger.row(key(0));
        ledger.queued(row, 8);
        ledger.delivered(row, 2);
        ledger.written(row, 3);
        ledger.dropped_from_queue(row, 1, DropReason::SlowConsumer);
        ledger.dropped(row, 1, DropReason::Expired);
        ledger.denied(row, 1);
        let (_, counts) = ledger.rows().next().unwrap();
        assert_eq!((counts.published, counts.queued, counts.denied), (10, 2, 1));
        assert_eq!((counts.delivered, counts.written), (5, 3));
        assert!(counts.balances());
    }

    #[test]
    fn evicted_rows_are_folded_so_that_the_sums_still_hold() {
        let mut ledger = Ledger::default();
        let busy = ledger.row(key(0));
        ledger.queued(busy, 1);
        let gone = ledger.row(key(1));
        ledger.queued(gone, 1);
        ledger.written(gone, 1);
        let topics = limits::LEDGER_ROWS_MAX + 10;
        for topic in 1..=topics {
            let row = ledger.row(key(topic));
            ledger.denied(row, 1);
        }
        let sum = |count: fn(Counts) -> u64| ledger.rows().map(|(_, counts)| count(counts)).sum::<u64>();
        assert_eq!(sum(|counts| counts.published), topics as u64 + 2);
        assert_eq!((sum(|counts| counts.delivered), sum(|counts| counts.written)), (1, 1));
        assert_eq!(ledger.row(key(0)), busy, "a row with queued messages is never evicted");
        assert!(ledger.rows().all(|(_, counts)| counts.balances()));
    }
}
