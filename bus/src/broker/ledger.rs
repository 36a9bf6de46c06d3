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

/// Rows evicted at once.
const EVICTED_AT_ONCE: usize = 1024;

/// Rows that one turn of the broker may ask for before it counts in the first of them: one for each session, and more.
const ROWS_IN_HAND_MAX: u64 = 2 * limits::SESSIONS_MAX as u64;

/// When a place without a row was last counted in: later than any row that is looked for.
const EVICTED: u64 = u64::MAX;

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

/// The ledger of one broker epoch. About [`limits::LEDGER_ROWS_MAX`] rows: the longest idle ones
/// without queued messages are folded into the row `other`, so that the sums still hold.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: Vec<Row>,
    index: HashMap<RowKey, RowId>,
    /// Places of rows that were evicted; their keys are in no index.
    free: Vec<u32>,
    other: Counts,
    /// When it is worth looking for idle rows again.
    look_at: u64,
    clock: u64,
    evictions: u64,
    /// How often all rows were looked at.
    #[cfg(test)]
    looks: usize,
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
        if self.free.is_empty() && self.rows.len() >= limits::LEDGER_ROWS_MAX && self.clock >= self.look_at {
            self.evict();
        }
        let id = match self.free.pop() {
            Some(slot) => {
                self.rows[slot as usize] = row;
                RowId(slot)
            }
            None => {
                self.rows.push(row);
                RowId(self.rows.len() as u32 - 1)
            }
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

    /// Folds the rows that were left alone longest, many at once: finding them costs a look at all rows, and whoever
    /// keeps rows must look them up again. Rows with queued messages are still named by send queues, and those of the
    /// last turns may be in somebody's hand: if there are no others, the table grows, by as many as those at most.
    fn evict(&mut self) {
        #[cfg(test)]
        (self.looks += 1);
        let settled_at = self.clock.saturating_sub(ROWS_IN_HAND_MAX);
        let idle = self.rows.iter().enumerate();
        let idle = idle.filter(|(_, row)| row.counts.queued == 0 && row.touched < settled_at);
        let mut idle: Vec<(u64, usize)> = idle.map(|(slot, row)| (row.touched, slot)).collect();
        if idle.len() > EVICTED_AT_ONCE {
            idle.select_nth_unstable(EVICTED_AT_ONCE);
            idle.truncate(EVICTED_AT_ONCE);
        }
        self.look_at = self.clock + EVICTED_AT_ONCE as u64;
        for (_, slot) in idle {
            let row = &mut self.rows[slot];
            self.other.add(&row.counts);
            row.counts = Counts::default();
            row.touched = EVICTED;
            self.index.remove(&row.key);
            self.free.push(slot as u32);
            self.evictions += 1;
        }
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
        let rows = self.rows.iter().filter(|row| row.touched != EVICTED);
        rows.map(|row| (row.key.clone(), row.counts)).chain(others)
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

    #[test]
    fn a_row_more_looks_at_all_rows_seldom() {
        let mut ledger = Ledger::default();
        let topics = 3 * limits::LEDGER_ROWS_MAX;
        for topic in 0..topics {
            let row = ledger.row(key(topic));
            ledger.denied(row, 1);
        }
        assert!(ledger.looks <= topics / 500, "{} looks at all rows", ledger.looks);
        assert!(ledger.rows().count() <= limits::LEDGER_ROWS_MAX + 1);
        let published: u64 = ledger.rows().map(|(_, counts)| counts.published).sum();
        assert_eq!(published, topics as u64);
    }

    #[test]
    fn where_no_row_is_idle_the_table_grows_by_those_in_hand_and_is_looked_at_seldom() {
        let mut ledger = Ledger::default();
        for topic in 0..limits::LEDGER_ROWS_MAX {
            let row = ledger.row(key(topic));
            ledger.queued(row, 1);
        }
        // As many as a message to every session needs, before it is counted in the first of them.
        let in_hand = |session| ledger.row(key(limits::LEDGER_ROWS_MAX + session));
        let mut rows: Vec<RowId> = (0..limits::SESSIONS_MAX).map(in_hand).collect();
        assert_eq!(ledger.evictions(), 0, "one in hand was taken");
        assert!(ledger.looks <= limits::SESSIONS_MAX / 500, "{} looks at all rows", ledger.looks);
        rows.sort_unstable_by_key(|row| row.0);
        rows.dedup();
        assert_eq!(rows.len(), limits::SESSIONS_MAX, "each has its own");
    }
}
