//! What waits for the socket: encoded batches, bounded, filled by callers and emptied by the client's thread.
//!
//! Batch when busy, never wait: the thread takes the front batch whenever the socket has room. While
//! the socket is busy, records gather in the last batch up to [`limits::BATCH_BYTES`].

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::{
    lane::lock,
    link::{Link, LinkError, Place},
};
use crate::{
    limits,
    native::{BatchWriter, Block, PublishParts, Record, batch::put_publish},
};

/// Batch buffers kept for reuse.
const SPARE_BUFFERS: usize = 8;

/// Bytes that records take in their batch beyond what they announce.
const FRAMING_BYTES: usize = 4;

/// Wakes the thread that empties the queue.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

impl Wake for mio::Waker {
    fn wake(&self) {
        if let Err(error) = mio::Waker::wake(self) {
            tracing::error!(%error, "the client's thread cannot be woken");
        }
    }
}

/// The queue of a remote link.
pub(crate) struct Outgoing {
    queue: Mutex<Queue>,
    waker: Arc<dyn Wake>,
    space: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whether a session takes records.
    open: bool,
    closing: bool,
    /// The thread waits and must be woken.
    sleeping: bool,
    /// Somebody was told that the queue is full.
    space_wanted: bool,
    control_overflowed: bool,
    control: VecDeque<Batch>,
    control_bytes: usize,
    messages: VecDeque<Batch>,
    messages_bytes: usize,
    /// Number of the front batch of `messages`.
    front: u64,
    sequence: u64,
    spare: Vec<Vec<u8>>,
}

/// Records that travel in one box.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// Publishes in it, to be counted if it is never sent.
    pub(crate) publishes: u64,
}

/// What the thread has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing; it may sleep.
    Nothing,
    /// All is sent and the client was closed.
    Close,
    /// The control lane is over its limit.
    Overflowed,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = lock(&self.queue);
        formatter
            .debug_struct("Outgoing")
            .field("open", &queue.open)
            .field("messages_bytes", &queue.messages_bytes)
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    pub(crate) fn new(waker: Arc<dyn Wake>) -> Self {
        Self { queue: Mutex::default(), waker, space: Notify::new() }
    }

    /// Takes the next box's worth: the front batch of each lane, control first.
    pub(crate) fn take(&self, control: &mut Batch, messages: &mut Batch) -> Result<(), Demand> {
        let mut queue = lock(&self.queue);
        queue.sleeping = false;
        if queue.control_overflowed {
            return Err(Demand::Overflowed);
        }
        queue.recycle(std::mem::take(control).bytes);
        queue.recycle(std::mem::take(messages).bytes);
        if let Some(batch) = queue.control.pop_front() {
            queue.control_bytes -= batch.bytes.len();
            *control = batch;
        }
        if let Some(batch) = queue.messages.pop_front() {
            queue.messages_bytes -= batch.bytes.len();
            queue.front += 1;
            *messages = batch;
        }
        let told = queue.space_wanted && queue.messages_bytes <= limits::OUTGOING_BYTES / 2;
        if told {
            queue.space_wanted = false;
        }
        let nothing = control.bytes.is_empty() && messages.bytes.is_empty();
        let closing = queue.closing;
        drop(queue);
        if told {
            self.space.notify_waiters();
        }
        match (nothing, closing) {
            (false, _) => Ok(()),
            (true, true) => Err(Demand::Close),
            (true, false) => Err(Demand::Nothing),
        }
    }

    /// Says that the thread is about to wait; `false` if there is something to do first.
    pub(crate) fn sleep(&self) -> bool {
        let mut queue = lock(&self.queue);
        queue.sleeping = queue.control.is_empty() && queue.messages.is_empty() && !queue.closing;
        queue.sleeping
    }

    /// Whether the client was closed by its owner.
    pub(crate) fn is_closing(&self) -> bool {
        lock(&self.queue).closing
    }

    /// The session is over. Returns how many publishes were never sent.
    pub(crate) fn end_session(&self) -> u64 {
        let mut queue = lock(&self.queue);
        let unsent = queue.messages.iter().map(|batch| batch.publishes).sum();
        queue.open = false;
        queue.control_overflowed = false;
        queue.front += queue.messages.len() as u64;
        queue.control.clear();
        queue.messages.clear();
        (queue.control_bytes, queue.messages_bytes) = (0, 0);
        drop(queue);
        self.space.notify_waiters();
        unsent
    }

    /// Adds a record to the messages and wakes the thread.
    fn push_message(&self, record: &Record) -> Place {
        let mut queue = lock(&self.queue);
        let place = queue.put_message(record);
        self.wake(queue);
        place
    }

    fn wake(&self, mut queue: std::sync::MutexGuard<'_, Queue>) {
        let sleeping = std::mem::take(&mut queue.sleeping);
        drop(queue);
        if sleeping {
            self.waker.wake();
        }
    }
}

impl Queue {
    fn recycle(&mut self, mut buffer: Vec<u8>) {
        let is_of_use = (1..=2 * limits::BATCH_BYTES).contains(&buffer.capacity());
        if self.spare.len() < SPARE_BUFFERS && is_of_use {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Whether a record of `bytes` must wait. An empty queue takes one of any size.
    fn is_full_for(&self, bytes: usize) -> bool {
        self.messages_bytes > 0 && self.messages_bytes + bytes > limits::OUTGOING_BYTES
    }

    fn batch_for(batches: &mut VecDeque<Batch>, spare: &mut Vec<Vec<u8>>, bytes: usize) {
        let fits = batches
            .back()
            .is_some_and(|batch| batch.bytes.len() + bytes + FRAMING_BYTES <= limits::BATCH_BYTES);
        if !fits {
            let bytes = spare.pop().unwrap_or_default();
            batches.push_back(Batch { bytes, publishes: 0 });
        }
    }

    /// The batch that takes a message record of `bytes`.
    fn message_batch(&mut self, bytes: usize) -> &mut Batch {
        Self::batch_for(&mut self.messages, &mut self.spare, bytes);
        self.messages.back_mut().expect("batch_for leaves one at least")
    }

    fn last_place(&self) -> Place {
        Place(self.front + self.messages.len() as u64 - 1)
    }

    fn put_message(&mut self, record: &Record) -> Place {
        let mut writer = BatchWriter::default();
        let before: usize = self.messages.back().map_or(0, |batch| batch.bytes.len());
        let batches_before = self.messages.len();
        let batch = self.message_batch(record.bytes_hint());
        writer.put(record, &mut batch.bytes);
        while writer.in_fragments() {
            // The record made a batch of its own, which took no byte yet.
            let batch = self.messages.back_mut().expect("message_batch leaves one at least");
            let batch = if batch.bytes.is_empty() {
                batch
            } else {
                self.messages.push_back(Batch::default());
                self.messages.back_mut().expect("one was just added")
            };
            writer.next_fragment(&mut batch.bytes);
        }
        let skip = batches_before.saturating_sub(1);
        let after: usize = self.messages.iter().skip(skip).map(|batch| batch.bytes.len()).sum();
        self.messages_bytes += after - before;
        self.last_place()
    }

    fn put_publish(&mut self, parts: &PublishParts<'_>, sequence: u64, guess: usize) -> Result<(), usize> {
        let batch = self.message_batch(guess);
        let before = batch.bytes.len();
        let written = put_publish(parts, sequence, &mut batch.bytes);
        let added = batch.bytes.len() - before;
        if before + added == 0 {
            self.messages.pop_back();
        }
        self.messages_bytes += added;
        written
    }

    fn put_control(&mut self, record: &Record) {
        Self::batch_for(&mut self.control, &mut self.spare, record.bytes_hint());
        let batch = self.control.back_mut().expect("batch_for leaves one at least");
        let before = batch.bytes.len();
        BatchWriter::default().put_control(record, &mut batch.bytes);
        self.control_bytes += batch.bytes.len() - before;
        self.control_overflowed |= self.control_bytes > limits::CONTROL_QUEUE_BYTES;
    }
}

impl Link for Outgoing {
    fn publish(&self, parts: &PublishParts<'_>, numbered: &mut dyn FnMut(u64)) -> Result<(), LinkError> {
        /// A header with nothing unusual in it; more is measured when it is written.
        const HEADER_GUESS_BYTES: usize = 160;
        let guess =
            Block::PREFIX_BYTES + parts.topic.as_str().len() + HEADER_GUESS_BYTES + parts.payload.len();
        let mut queue = lock(&self.queue);
        if !queue.open {
            return Err(LinkError::Closed);
        }
        if queue.is_full_for(guess) {
            queue.space_wanted = true;
            return Err(LinkError::Full);
        }
        let sequence = queue.sequence + 1;
        // The largest header must not lift it above the limit of one record.
        let written = if guess + limits::HEADER_BYTES_MAX > limits::RECORD_BYTES_MAX {
            parts.block(sequence).map(|block| {
                queue.put_message(&Record::Publish(block));
            })
        } else {
            queue.put_publish(parts, sequence, guess)
        };
        written.map_err(|bytes| LinkError::HeaderTooLarge { bytes })?;
        queue.messages.back_mut().expect("the publish was put into it").publishes += 1;
        queue.sequence = sequence;
        numbered(sequence);
        self.wake(queue);
        Ok(())
    }

    fn send(&self, record: Record) -> Result<Place, (LinkError, Record)> {
        let mut queue = lock(&self.queue);
        if !queue.open {
            return Err((LinkError::Closed, record));
        }
        if queue.is_full_for(record.bytes_hint()) {
            queue.space_wanted = true;
            return Err((LinkError::Full, record));
        }
        let place = queue.put_message(&record);
        self.wake(queue);
        Ok(place)
    }

    fn send_last(&self, record: Record) {
        if lock(&self.queue).open {
            self.push_message(&record);
        }
    }

    fn send_control(&self, record: Record) {
        let mut queue = lock(&self.queue);
        if queue.open {
            queue.put_control(&record);
            self.wake(queue);
        }
    }

    fn send_cancel(&self, id: u64, place: Place) {
        let mut queue = lock(&self.queue);
        if !queue.open {
            return;
        }
        let record = Record::Cancel { id };
        if place.0 < queue.front {
            queue.put_control(&record);
        } else {
            queue.put_message(&record);
        }
        self.wake(queue);
    }

    fn space(&self) -> &Notify {
        &self.space
    }

    fn begin_session(&self) {
        lock(&self.queue).open = true;
    }

    fn begin_close(&self) {
        let mut queue = lock(&self.queue);
        queue.open = false;
        queue.closing = true;
        queue.sleeping = true;
        self.wake(queue);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::{envelope::Header, native::BatchReader, topic::TopicName};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn open() -> (Outgoing, Arc<Wakes>) {
        let wakes = Arc::new(Wakes::default());
        let outgoing = Outgoing::new(Arc::clone(&wakes) as Arc<dyn Wake>);
        outgoing.begin_session();
        (outgoing, wakes)
    }

    fn publish(outgoing: &Outgoing, payload: &Bytes) -> Result<(), LinkError> {
        let topic: TopicName = "a".parse().unwrap();
        let header = Header::new();
        let parts = PublishParts { flags: 0, deadline_ms: 0, topic: &topic, header: &header, payload };
        outgoing.publish(&parts, &mut |_| {})
    }

    /// All boxes as lists of records, and what is demanded after them.
    fn boxes(outgoing: &Outgoing) -> (Vec<Vec<Record>>, Demand) {
        let (mut control, mut messages) = (Batch::default(), Batch::default());
        let mut reader = BatchReader::default();
        let mut boxes = Vec::new();
        loop {
            if let Err(demand) = outgoing.take(&mut control, &mut messages) {
                return (boxes, demand);
            }
            assert!(messages.bytes.len() <= limits::NATIVE_FRAME_BYTES_MAX);
            reader.begin([&control.bytes[..], &messages.bytes].concat().into());
            boxes.push(std::iter::from_fn(|| reader.next_record().unwrap()).collect());
        }
    }

    #[test]
    fn what_gathers_while_the_socket_is_busy_shares_boxes_and_control_goes_first() {
        let (outgoing, _) = open();
        for _ in 0..1000 {
            publish(&outgoing, &Bytes::from_static(&[7; 100])).unwrap();
        }
        outgoing.send_control(Record::Ping { number: 1, answer: true });
        let (boxes, demand) = boxes(&outgoing);
        assert_eq!(demand, Demand::Nothing);
        assert!(boxes.len() <= 4, "{} boxes", boxes.len());
        assert!(matches!(boxes[0][0], Record::Ping { .. }));
        let sequences: Vec<u64> = boxes
            .iter()
            .flatten()
            .filter_map(|record| match record {
                Record::Publish(block) => Some(block.sequence),
                _ => None,
            })
            .collect();
        assert_eq!(sequences, (1..=1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_sleeping_thread_is_woken_once() {
        let (outgoing, wakes) = open();
        assert!(outgoing.sleep());
        for _ in 0..3 {
            publish(&outgoing, &Bytes::new()).unwrap();
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(!outgoing.sleep(), "there is something to send");
    }

    #[test]
    fn a_full_queue_refuses_and_says_when_there_is_room_but_an_empty_one_takes_any_size() {
        let (outgoing, _) = open();
        let large = Bytes::from(vec![0; limits::OUTGOING_BYTES + 1]);
        publish(&outgoing, &large).unwrap();
        assert_eq!(publish(&outgoing, &Bytes::new()), Err(LinkError::Full));
        let room = outgoing.space().notified();
        let mut room = std::pin::pin!(room);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(room.as_mut().poll(&mut context).is_pending());
        let (boxes, _) = boxes(&outgoing);
        assert!(
            boxes
                .iter()
                .flatten()
                .any(|record| matches!(record, Record::Publish(block) if block.payload() == large))
        );
        assert!(room.as_mut().poll(&mut context).is_ready());
        publish(&outgoing, &Bytes::new()).unwrap();
    }

    #[test]
    fn a_cancel_never_overtakes_its_request() {
        let (outgoing, _) = open();
        let request = |id| Record::Request {
            id,
            subscription: 0,
            window: 1,
            block: Block::new(&"q".parse().unwrap(), b"", &[0; 100]),
        };
        let sent = outgoing.send(request(1)).unwrap();
        let _ = boxes(&outgoing);
        let waiting = outgoing.send(request(2)).unwrap();
        outgoing.send_cancel(2, waiting);
        outgoing.send_cancel(1, sent);
        let (boxes, _) = boxes(&outgoing);
        let order = [Record::Cancel { id: 1 }, request(2), Record::Cancel { id: 2 }];
        assert_eq!(boxes.concat(), order);
    }

    #[test]
    fn a_header_above_its_limit_leaves_no_trace() {
        let (outgoing, _) = open();
        let topic: TopicName = "a".parse().unwrap();
        let header = Header { user: vec![("k".into(), "v".repeat(70_000))], ..Header::new() };
        for payload in [Bytes::new(), Bytes::from(vec![0; 1 << 20])] {
            let parts =
                PublishParts { flags: 0, deadline_ms: 0, topic: &topic, header: &header, payload: &payload };
            let refused = outgoing.publish(&parts, &mut |_| panic!("it gets no number"));
            assert!(matches!(refused, Err(LinkError::HeaderTooLarge { .. })));
        }
        assert_eq!(boxes(&outgoing), (vec![], Demand::Nothing));
    }

    #[test]
    fn the_end_of_a_session_counts_what_was_never_sent_and_takes_nothing_more() {
        let (outgoing, _) = open();
        publish(&outgoing, &Bytes::new()).unwrap();
        publish(&outgoing, &Bytes::new()).unwrap();
        assert_eq!(outgoing.end_session(), 2);
        assert_eq!(publish(&outgoing, &Bytes::new()), Err(LinkError::Closed));
        assert_eq!(boxes(&outgoing), (vec![], Demand::Nothing));
    }

    #[test]
    fn closing_sends_what_is_there_and_then_demands_the_end() {
        let (outgoing, wakes) = open();
        publish(&outgoing, &Bytes::new()).unwrap();
        outgoing.begin_close();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        let (boxes, demand) = boxes(&outgoing);
        assert_eq!((boxes.concat().len(), demand), (1, Demand::Close));
    }

    #[test]
    fn control_records_nobody_takes_end_the_session() {
        let (outgoing, _) = open();
        let record = Record::Denied {
            operation: crate::native::Operation::Publish,
            reference: 0,
            code: String::new(),
            topic: String::new(),
            text: "x".repeat(60_000),
        };
        for _ in 0..=limits::CONTROL_QUEUE_BYTES / 60_000 {
            outgoing.send_control(record.clone());
        }
        assert_eq!(boxes(&outgoing), (vec![], Demand::Overflowed));
    }
}
