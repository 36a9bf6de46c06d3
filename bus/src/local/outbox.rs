//! What an attached client has for the broker.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::Notify;

use super::lock;
use crate::{
    limits,
    native::{PublishParts, Record, batch::put_publish},
};

/// Empty batches kept for the next messages.
const SPARE_BATCHES_MAX: usize = 4;
/// Bytes of the records in one batch from which on the next message begins another.
const BATCH_BYTES: usize = limits::BATCH_BYTES;
/// Capacity of a batch: what comes last into it may have this much beyond [`BATCH_BYTES`] without a copy of all.
const BATCH_CAPACITY: usize = BATCH_BYTES + 2 * limits::LOCAL_COPY_BYTES_MAX;
/// Bytes that a record counts beyond its content: an empty one is not free.
const RECORD_BYTES: usize = size_of::<Part>();

/// What an attached client has for the broker, in order: filled by its threads, announced by the one that finds
/// it empty, and emptied part by part by the broker's thread. Bounded in bytes and in records.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    /// Told when a full outbox is half empty again, and when the session ends.
    pub(crate) space: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<Part>,
    bytes: usize,
    records: usize,
    /// The number of the last publish.
    sequence: u64,
    /// The broker knows that something is there.
    is_announced: bool,
    is_space_wanted: bool,
    is_closed: bool,
    spare: Vec<Vec<u8>>,
}

/// Records that are taken together.
#[derive(Debug)]
pub(crate) enum Part {
    /// Small messages, as in a batch of the wire, and their number.
    Batch(Vec<u8>, usize),
    /// Anything else; it shares the memory of its payload.
    Record(Record),
}

impl Part {
    /// What it counts.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch, _) => batch.len(),
            Self::Record(record) => RECORD_BYTES + record.bytes_hint(),
        }
    }

    fn records(&self) -> usize {
        match self {
            Self::Batch(_, records) => *records,
            Self::Record(_) => 1,
        }
    }
}

/// Which bound applies to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// That of messages: [`limits::OUTGOING_BYTES`] and [`limits::LOCAL_RECORDS_MAX`].
    Message,
    /// That of control records and last words: as many records more, and [`limits::CONTROL_QUEUE_BYTES`].
    Control,
}

/// Why something was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is full; [`Outbox::space`] is told when it is not any more.
    Full,
    /// The session is over.
    Closed,
    /// The header has this many bytes, above its limit.
    HeaderTooLarge(usize),
}

impl Waiting {
    fn admit(&mut self, bytes: usize, bound: Bound) -> Result<(), Refused> {
        let (bytes_max, records_max) = match bound {
            Bound::Message => (limits::OUTGOING_BYTES, limits::LOCAL_RECORDS_MAX),
            Bound::Control => {
                (limits::OUTGOING_BYTES + limits::CONTROL_QUEUE_BYTES, 2 * limits::LOCAL_RECORDS_MAX)
            }
        };
        if self.is_closed {
            return Err(Refused::Closed);
        }
        // An empty one takes a message of any legal size.
        if self.records > 0 && (self.bytes + bytes > bytes_max || self.records >= records_max) {
            self.is_space_wanted = true;
            return Err(Refused::Full);
        }
        Ok(())
    }

    fn push(&mut self, record: Record) {
        let part = Part::Record(record);
        self.bytes += part.bytes();
        self.records += 1;
        self.parts.push_back(part);
    }

    /// Whether the broker must be told of what was just added.
    fn must_announce(&mut self) -> bool {
        !std::mem::replace(&mut self.is_announced, true)
    }

    fn has_room(&self) -> bool {
        self.bytes <= limits::OUTGOING_BYTES / 2 && self.records <= limits::LOCAL_RECORDS_MAX / 2
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }

    /// Takes a publish; `numbered` learns its number first. `true` if the outbox must be announced.
    ///
    /// # Errors
    /// [`Refused`]; then it has no number.
    pub(crate) fn publish(
        &self,
        parts: &PublishParts<'_>,
        numbered: &mut dyn FnMut(u64),
    ) -> Result<bool, Refused> {
        let mut waiting = self.lock();
        waiting.admit(parts.payload.len(), Bound::Message)?;
        let sequence = waiting.sequence + 1;
        if parts.payload.len() > limits::LOCAL_COPY_BYTES_MAX {
            let block = parts.block(sequence).map_err(Refused::HeaderTooLarge)?;
            numbered(sequence);
            waiting.push(Record::Publish(block));
        } else {
            if !matches!(waiting.parts.back(), Some(Part::Batch(batch, _)) if batch.len() < BATCH_BYTES) {
                let batch = waiting.spare.pop().unwrap_or_else(|| Vec::with_capacity(BATCH_CAPACITY));
                waiting.parts.push_back(Part::Batch(batch, 0));
            }
            let Some(Part::Batch(batch, records)) = waiting.parts.back_mut() else {
                unreachable!("it was just added")
            };
            let before = batch.len();
            // A batch that is left empty by an error is filled by the next one.
            put_publish(parts, sequence, batch).map_err(Refused::HeaderTooLarge)?;
            let added = batch.len() - before;
            *records += 1;
            numbered(sequence);
            waiting.bytes += added;
            waiting.records += 1;
        }
        waiting.sequence = sequence;
        Ok(waiting.must_announce())
    }

    /// Takes a record, or gives it back. `true` if the outbox must be announced.
    pub(crate) fn send(&self, record: Record, bound: Bound) -> Result<bool, (Refused, Record)> {
        let mut waiting = self.lock();
        match waiting.admit(record.bytes_hint(), bound) {
            Ok(()) => waiting.push(record),
            Err(refused) => return Err((refused, record)),
        }
        Ok(waiting.must_announce())
    }

    /// Takes the last record, whatever waits, and nothing after it. `true` if the outbox must be announced.
    pub(crate) fn send_last(&self, record: Record) -> bool {
        let mut waiting = self.lock();
        if std::mem::replace(&mut waiting.is_closed, true) {
            return false;
        }
        waiting.push(record);
        waiting.must_announce()
    }

    /// The session is over: nothing is taken any more, and what waits is forgotten.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let parts = std::mem::take(&mut waiting.parts);
        (waiting.bytes, waiting.records) = (0, 0);
        drop(waiting);
        drop(parts);
    }

    /// The next part; with `None` whatever comes later is announced anew.
    pub(crate) fn next(&self) -> Option<Part> {
        let mut waiting = self.lock();
        let Some(part) = waiting.parts.pop_front() else {
            waiting.is_announced = false;
            return None;
        };
        waiting.bytes -= part.bytes();
        waiting.records -= part.records();
        let tells = waiting.is_space_wanted && waiting.has_room();
        if tells {
            waiting.is_space_wanted = false;
        }
        drop(waiting);
        if tells {
            self.space.notify_waiters();
        }
        Some(part)
    }

    /// Takes back the memory of a batch.
    pub(crate) fn give_back(&self, mut batch: Vec<u8>) {
        if batch.capacity() > 2 * BATCH_CAPACITY {
            return;
        }
        batch.clear();
        let mut waiting = self.lock();
        if waiting.spare.len() < SPARE_BATCHES_MAX && !waiting.is_closed {
            waiting.spare.push(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        envelope::Header,
        native::{BatchReader, Block, Incoming},
    };

    fn publish(outbox: &Outbox, payload_bytes: usize) -> Result<bool, Refused> {
        let (topic, header) = ("a/b".parse().unwrap(), Header::new());
        let payload = Bytes::from(vec![7; payload_bytes]);
        let parts =
            PublishParts { flags: 0, deadline_ms: 0, topic: &topic, header: &header, payload: &payload };
        outbox.publish(&parts, &mut |_| {})
    }

    fn credit(id: u64) -> Record {
        Record::Cancel { id }
    }

    /// Takes all: the numbers of publishes, and 1000 more than the id of each cancel.
    fn empty(outbox: &Outbox) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(part) = outbox.next() {
            match part {
                Part::Record(Record::Publish(block)) => seen.push(block.sequence),
                Part::Record(Record::Cancel { id }) => seen.push(1000 + id),
                Part::Record(Record::Goodbye { .. }) => seen.push(0),
                Part::Record(other) => panic!("{other:?}"),
                Part::Batch(batch, records) => {
                    let (mut rest, before) = (&batch[..], seen.len());
                    while let Some(Incoming::Publish(block)) =
                        BatchReader::default().next_in(&mut rest).unwrap()
                    {
                        seen.push(block.sequence);
                    }
                    assert_eq!(seen.len() - before, records);
                    outbox.give_back(batch);
                }
            }
        }
        seen
    }

    #[test]
    fn everything_leaves_in_the_order_in_which_it_came_whatever_its_size() {
        let outbox = Outbox::default();
        assert_eq!(publish(&outbox, 10), Ok(true), "it was empty");
        for size in [0, limits::LOCAL_COPY_BYTES_MAX, limits::LOCAL_COPY_BYTES_MAX + 1, 1 << 20, 5] {
            assert_eq!(publish(&outbox, size), Ok(false));
        }
        assert_eq!(outbox.send(credit(1), Bound::Control), Ok(false));
        assert_eq!(publish(&outbox, 1), Ok(false));
        assert_eq!(empty(&outbox), [1, 2, 3, 4, 5, 6, 1001, 7]);
        assert_eq!(publish(&outbox, 1), Ok(true), "it was found empty, so it is announced anew");
        assert_eq!(empty(&outbox), [8]);
    }

    #[test]
    fn a_refused_message_has_no_number_and_leaves_nothing() {
        let outbox = Outbox::default();
        publish(&outbox, 1).unwrap();
        let header = Header { user: vec![("k".into(), "v".repeat(70_000))], ..Header::new() };
        for payload in [Bytes::new(), Bytes::from(vec![0; 2000])] {
            let topic = "a".parse().unwrap();
            let parts =
                PublishParts { flags: 0, deadline_ms: 0, topic: &topic, header: &header, payload: &payload };
            let refused = outbox.publish(&parts, &mut |_| panic!("it is refused"));
            assert!(matches!(refused, Err(Refused::HeaderTooLarge(bytes)) if bytes > 70_000));
        }
        publish(&outbox, 1).unwrap();
        assert_eq!(empty(&outbox), [1, 2]);
    }

    #[test]
    fn it_is_full_by_bytes_or_by_records_and_control_goes_beyond() {
        for (size, most) in
            [(100 << 10, limits::OUTGOING_BYTES / (100 << 10)), (0, limits::LOCAL_RECORDS_MAX)]
        {
            let outbox = Outbox::default();
            let mut taken = 0;
            while publish(&outbox, size).is_ok() {
                taken += 1;
            }
            assert!((most / 2..=most).contains(&taken), "{taken} messages of {size} bytes");
            let record = Record::Publish(Block::new(&"a".parse().unwrap(), b"", &vec![0; size]));
            assert!(matches!(outbox.send(record, Bound::Message), Err((Refused::Full, _))));
            let mut control = 0;
            while outbox.send(credit(control), Bound::Control).is_ok() {
                control += 1;
            }
            assert!((1000..=2 * limits::LOCAL_RECORDS_MAX as u64).contains(&control), "{control} records");
            assert_eq!(empty(&outbox).len(), taken + control as usize);
        }
        assert_eq!(publish(&Outbox::default(), 2 * limits::OUTGOING_BYTES), Ok(true));
    }

    #[test]
    fn whoever_found_it_full_is_told_once_half_of_it_is_free() {
        let outbox = Outbox::default();
        while publish(&outbox, 100 << 10).is_ok() {}
        let mut told = std::pin::pin!(outbox.space.notified());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut left = 0;
        while told.as_mut().poll(&mut context).is_pending() {
            assert!(outbox.next().is_some());
            left += 100 << 10;
        }
        let half = limits::OUTGOING_BYTES / 2;
        assert!((half - (200 << 10)..=half + (200 << 10)).contains(&left), "{left} bytes had left");
    }

    #[test]
    fn the_last_record_follows_what_waits_and_a_session_that_is_over_takes_nothing() {
        let goodbye = || Record::Goodbye { code: "closing".to_owned(), text: String::new() };
        let outbox = Outbox::default();
        publish(&outbox, 1).unwrap();
        assert!(!outbox.send_last(goodbye()), "it is announced already");
        assert_eq!(publish(&outbox, 1), Err(Refused::Closed));
        assert!(!outbox.send_last(goodbye()));
        assert_eq!(empty(&outbox), [1, 0]);

        let outbox = Outbox::default();
        publish(&outbox, 1).unwrap();
        outbox.close();
        assert!(matches!(outbox.send(credit(1), Bound::Control), Err((Refused::Closed, _))));
        assert!(!outbox.send_last(goodbye()));
        assert!(empty(&outbox).is_empty());
    }
}
