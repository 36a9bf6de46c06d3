//! What waits for the socket: encoded batches, bounded, filled by callers and emptied by whoever has the
//! duty to write.
//!
//! Batch when busy, never wait: a record that finds everything idle is written by the thread that brings
//! it. While somebody writes or reads, and shortly after, records gather in the last batch up to
//! [`limits::BATCH_BYTES`] and are written by the one who is at it, or by the client's thread.
//!
//! | duty | who writes | next |
//! |---|---|---|
//! | `Free` | nobody | the next record's thread takes it, or assigns it if the link is busy; a reader looks when it ends |
//! | `Assigned` | the client's thread, which has been woken; or who is sooner, before it waits | taken |
//! | `Taken` | one thread, which lets go only when it has seen the queue empty | free, blocked, assigned |
//! | `Blocked` | nobody: the socket is full | the client's thread takes it when the socket has room |
//!
//! All of this changes under the one lock of the queue, so no record is left lying.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    core::Core,
    lane::lock,
    link::{Link, LinkError, Place},
};
use crate::{
    blocking::Waiter,
    limits,
    native::{BatchWriter, Block, PublishParts, Record, batch::put_publish},
    zmtp::Draft,
};

/// Batch buffers kept for reuse.
const SPARE_BUFFERS: usize = 8;

/// Bytes that records take in their batch beyond what they announce.
const FRAMING_BYTES: usize = 4;

/// How long after a write the link counts as busy: what comes then shares a box, written by the client's
/// thread. About what it takes to write one; a sender that is slower than this never waits for another thread.
const BUSY_AFTER_WRITE: Duration = Duration::from_micros(20);

/// The same after several records came in at once: their answers belong into one box.
const BUSY_AFTER_BURST: Duration = Duration::from_micros(50);

/// What a thread that will wait again gathers of requests and answers before it writes: about half of what 64 of 128
/// bytes take, so that the others have work while it makes the rest. What travels as one box
/// leaves one process at work and all others waiting; smaller parts cost more boxes than they gain.
const CONVERSATION_BYTES: usize = 6 << 10;

thread_local! {
    /// The queue whose link this thread has just waited on in [`crate::blocking`], and will again.
    static RETURNS_TO: Cell<usize> = const { Cell::new(0) };
}

/// What empties the queue.
pub(crate) trait Hands: Send + Sync {
    /// Wakes the client's thread.
    fn wake(&self);

    /// Writes on this thread, which has the duty. Must not wait for another thread.
    fn write(&self, outgoing: &Outgoing);

    /// Reads and writes on this thread, which has nothing else to do, until `waiter` is notified or
    /// the deadline has come. `false` if it cannot, because another thread reads or there is no session.
    fn wait(&self, outgoing: &Outgoing, core: &Core, waiter: &Waiter, deadline: Option<Instant>) -> bool;
}

/// The queue of a remote link.
pub(crate) struct Outgoing {
    queue: Mutex<Queue>,
    hands: Arc<dyn Hands>,
    space: Notify,
}

/// Who empties the queue: see the table at the top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Duty {
    Free,
    #[default]
    Assigned,
    Taken,
    Blocked,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whether a session takes records.
    open: bool,
    closing: bool,
    duty: Duty,
    /// Whether any thread may have the duty, not only the client's own: the handshake is over.
    shared: bool,
    /// Threads that read: one has the session, another may wait for it. They look at the queue when they end.
    readers: u32,
    /// Until when the link counts as busy.
    busy_until: Option<Instant>,
    /// Whether the client's thread looks every millisecond, so that a thread that comes and goes may keep
    /// reading and writing to itself meanwhile.
    ticking: bool,
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
    spare: Vec<Draft>,
}

/// Records that travel in one box.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Draft,
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
    pub(crate) fn new(hands: Arc<dyn Hands>) -> Self {
        Self { queue: Mutex::default(), hands, space: Notify::new() }
    }

    /// Takes the next box's worth: the front batch of each lane, control first. Who asks has the duty; it
    /// is let go with [`Demand::Nothing`].
    pub(crate) fn take(&self, control: &mut Batch, messages: &mut Batch) -> Result<(), Demand> {
        let mut queue = lock(&self.queue);
        if queue.control_overflowed {
            return Err(Demand::Overflowed);
        }
        queue.recycle(std::mem::take(control).records);
        queue.recycle(std::mem::take(messages).records);
        if let Some(batch) = queue.control.pop_front() {
            queue.control_bytes -= batch.records.len();
            *control = batch;
        }
        if let Some(batch) = queue.messages.pop_front() {
            queue.messages_bytes -= batch.records.len();
            queue.front += 1;
            *messages = batch;
        }
        let told = queue.space_wanted && queue.messages_bytes <= limits::OUTGOING_BYTES / 2;
        if told {
            queue.space_wanted = false;
        }
        let nothing = control.records.is_empty() && messages.records.is_empty();
        let closing = queue.closing;
        if nothing && !closing {
            queue.duty = Duty::Free;
            queue.busy_until = Some(Instant::now() + BUSY_AFTER_WRITE);
        }
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

    /// Takes the duty if nobody is at it and there is something to do. The client's thread asks whenever
    /// it was woken: nothing stays assigned to it that it does not know of.
    pub(crate) fn claim(&self) -> bool {
        let mut queue = lock(&self.queue);
        if queue.readers == 0 && queue.claim() {
            return true;
        }
        if queue.duty == Duty::Assigned {
            // Nothing is left to do, or a reader looks when it ends.
            queue.duty = Duty::Free;
        }
        false
    }

    /// The socket takes no more. Said by who has the duty.
    pub(crate) fn block(&self) {
        lock(&self.queue).duty = Duty::Blocked;
    }

    /// The socket has room: takes the duty if it was blocked.
    pub(crate) fn unblock(&self) -> bool {
        let mut queue = lock(&self.queue);
        let was_blocked = queue.duty == Duty::Blocked;
        if was_blocked {
            queue.duty = Duty::Taken;
        }
        was_blocked
    }

    /// Leaves the duty to the client's thread. Said by who has it.
    pub(crate) fn leave_to_thread(&self) {
        lock(&self.queue).duty = Duty::Assigned;
        self.hands.wake();
    }

    /// Leaves the duty to whoever has the session now: a reader looks when it ends, otherwise the
    /// client's thread is woken. Said by who has it.
    pub(crate) fn leave_to_holder(&self) {
        let mut queue = lock(&self.queue);
        if queue.readers > 0 {
            queue.duty = Duty::Free;
            return;
        }
        drop(queue);
        self.leave_to_thread();
    }

    /// The client's thread looks every millisecond: see `readers.rs`.
    pub(crate) fn begin_ticking(&self) {
        lock(&self.queue).ticking = true;
    }

    /// It does so no more. `true`: something was left to it meanwhile.
    pub(crate) fn end_ticking(&self) -> bool {
        let mut queue = lock(&self.queue);
        std::mem::take(&mut queue.ticking) && queue.is_filled() && queue.duty == Duty::Free
    }

    /// This thread has come to the end of its wait and will be back for more, or (`false`) will not.
    pub(crate) fn set_returning(&self, returning: bool) {
        RETURNS_TO.set(if returning { std::ptr::from_ref(self).addr() } else { 0 });
    }

    /// Says that this thread, which has the session, is going to read.
    pub(crate) fn begin_reading(&self) {
        lock(&self.queue).readers += 1;
    }

    /// Says that it has read so many records, and whether the session has output of its own. `true`: it now has
    /// the duty.
    pub(crate) fn end_reading(&self, records: usize, has_output: bool) -> bool {
        let mut queue = lock(&self.queue);
        queue.readers -= 1;
        if records > 1 {
            queue.busy_until = Some(Instant::now() + BUSY_AFTER_BURST);
        }
        if has_output && matches!(queue.duty, Duty::Free | Duty::Assigned) {
            queue.duty = Duty::Taken;
            return true;
        }
        queue.shared && queue.claim()
    }

    /// Whether something waits to be written.
    pub(crate) fn is_filled(&self) -> bool {
        lock(&self.queue).is_filled()
    }

    /// From now on any thread may write and read (`true`), or only the client's own.
    pub(crate) fn share(&self, shared: bool) {
        lock(&self.queue).shared = shared;
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
        queue.shared = false;
        queue.ticking = false;
        // A thread that has the duty finds no session and leaves it to ours.
        if queue.duty != Duty::Taken {
            queue.duty = Duty::Assigned;
        }
        queue.control_overflowed = false;
        queue.front += queue.messages.len() as u64;
        queue.control.clear();
        queue.messages.clear();
        (queue.control_bytes, queue.messages_bytes) = (0, 0);
        drop(queue);
        self.space.notify_waiters();
        unsent
    }

    /// Adds a record to the messages and sees to it that it is written.
    fn push_message(&self, record: &Record) -> Place {
        let mut queue = lock(&self.queue);
        let place = queue.put_message(record);
        self.dispatch(queue, CONVERSATION_BYTES);
        place
    }

    /// Sees to it that what is in the queue is written. A thread that will wait again gathers so many bytes.
    fn dispatch(&self, mut queue: MutexGuard<'_, Queue>, gathers: usize) {
        if queue.duty != Duty::Free || queue.readers > 0 {
            return;
        }
        let is_idle = || queue.busy_until.is_none_or(|until| until <= Instant::now());
        let is_full = || queue.messages_bytes >= gathers;
        let returns = queue.ticking && RETURNS_TO.get() == std::ptr::from_ref(self).addr();
        if queue.shared && (is_idle() || (returns && is_full())) {
            queue.duty = Duty::Taken;
            drop(queue);
            self.hands.write(self);
        } else if returns {
            // It writes before it waits again. If it does not, the next tick finds what it left.
        } else {
            queue.duty = Duty::Assigned;
            drop(queue);
            self.hands.wake();
        }
    }
}

impl Queue {
    fn is_filled(&self) -> bool {
        !self.control.is_empty() || !self.messages.is_empty() || self.control_overflowed
    }

    fn claim(&mut self) -> bool {
        let is_claimed =
            matches!(self.duty, Duty::Free | Duty::Assigned) && (self.is_filled() || self.closing);
        if is_claimed {
            self.duty = Duty::Taken;
        }
        is_claimed
    }

    fn recycle(&mut self, mut buffer: Draft) {
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

    fn batch_for(batches: &mut VecDeque<Batch>, spare: &mut Vec<Draft>, bytes: usize) {
        let fits = batches
            .back()
            .is_some_and(|batch| batch.records.len() + bytes + FRAMING_BYTES <= limits::BATCH_BYTES);
        if !fits {
            let records = spare.pop().unwrap_or_default();
            batches.push_back(Batch { records, publishes: 0 });
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
        let before: usize = self.messages.back().map_or(0, |batch| batch.records.len());
        let batches_before = self.messages.len();
        let batch = self.message_batch(record.bytes_hint());
        writer.put(record, batch.records.tail());
        while writer.in_fragments() {
            // The record made a batch of its own, which took no byte yet.
            let batch = self.messages.back_mut().expect("message_batch leaves one at least");
            let batch = if batch.records.is_empty() {
                batch
            } else {
                self.messages.push_back(Batch::default());
                self.messages.back_mut().expect("one was just added")
            };
            writer.next_fragment(batch.records.tail());
        }
        let skip = batches_before.saturating_sub(1);
        let after: usize = self.messages.iter().skip(skip).map(|batch| batch.records.len()).sum();
        self.messages_bytes += after - before;
        self.last_place()
    }

    fn put_publish(&mut self, parts: &PublishParts<'_>, sequence: u64, guess: usize) -> Result<(), usize> {
        let batch = self.message_batch(guess);
        let before = batch.records.len();
        let written = put_publish(parts, sequence, batch.records.tail());
        let added = batch.records.len() - before;
        if before + added == 0 {
            self.messages.pop_back();
        }
        self.messages_bytes += added;
        written
    }

    fn put_control(&mut self, record: &Record) {
        Self::batch_for(&mut self.control, &mut self.spare, record.bytes_hint());
        let batch = self.control.back_mut().expect("batch_for leaves one at least");
        let before = batch.records.len();
        BatchWriter::default().put_control(record, batch.records.tail());
        self.control_bytes += batch.records.len() - before;
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
        self.dispatch(queue, limits::BATCH_BYTES);
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
        self.dispatch(queue, CONVERSATION_BYTES);
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
            self.dispatch(queue, CONVERSATION_BYTES);
        }
    }

    fn send_credit(&self, record: Record, left: bool) {
        let mut queue = lock(&self.queue);
        if !queue.open {
            return;
        }
        queue.put_control(&record);
        if !left && queue.duty == Duty::Free && queue.readers == 0 {
            queue.duty = Duty::Assigned;
            drop(queue);
            self.hands.wake();
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
        self.dispatch(queue, CONVERSATION_BYTES);
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
        drop(queue);
        self.hands.wake();
    }

    fn flush(&self) {
        let queue = lock(&self.queue);
        if queue.is_filled() {
            self.dispatch(queue, CONVERSATION_BYTES);
        }
    }

    fn plan_again(&self) {
        self.hands.wake();
    }

    fn wait(&self, core: &Core, waiter: &Waiter, deadline: Option<Instant>) -> bool {
        self.hands.wait(self, core, waiter, deadline)
    }

    fn end_wait(&self, core: &Core) {
        self.set_returning(false);
        // While the client's thread ticks, it sees to it: a thread may come back for each message.
        if !lock(&self.queue).ticking {
            core.send_owed_credit();
        }
        // Whether it was left to this thread or not: another one that is at it has the duty.
        if self.claim() {
            self.hands.write(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::{envelope::Header, native::BatchReader, topic::TopicName};

    /// Wakes and writes that were asked for. A write keeps the duty.
    #[derive(Default)]
    struct Wakes(AtomicUsize, AtomicUsize);

    impl Hands for Wakes {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn write(&self, _outgoing: &Outgoing) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }

        fn wait(&self, _: &Outgoing, _: &Core, _: &Waiter, _: Option<Instant>) -> bool {
            false
        }
    }

    fn open() -> (Outgoing, Arc<Wakes>) {
        let wakes = Arc::new(Wakes::default());
        let outgoing = Outgoing::new(Arc::clone(&wakes) as Arc<dyn Hands>);
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
            assert!(messages.records.len() <= limits::NATIVE_FRAME_BYTES_MAX);
            reader.begin([control.records.body(), messages.records.body()].concat().into());
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
        assert!(!outgoing.claim());
        for _ in 0..3 {
            publish(&outgoing, &Bytes::new()).unwrap();
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(outgoing.claim(), "there is something to send");
    }

    #[test]
    fn a_thread_that_will_wait_again_writes_requests_in_parts_and_publishes_in_whole_batches() {
        let (outgoing, wakes) = open();
        outgoing.share(true);
        outgoing.begin_ticking();
        outgoing.set_returning(true);
        let gathered = |add: &mut dyn FnMut()| {
            let _ = boxes(&outgoing);
            lock(&outgoing.queue).busy_until = Some(Instant::now() + Duration::from_secs(3600));
            let writes_before = wakes.1.load(Ordering::Relaxed);
            while wakes.1.load(Ordering::Relaxed) == writes_before {
                add();
            }
            lock(&outgoing.queue).messages_bytes
        };
        let block = Block::new(&"q".parse().unwrap(), b"", &[0; 100]);
        let mut id = 0;
        let requests = gathered(&mut || {
            id += 1;
            let request = Record::Request { id, subscription: 0, window: 1, block: block.clone() };
            outgoing.send(request).unwrap();
        });
        assert!((CONVERSATION_BYTES..CONVERSATION_BYTES + 300).contains(&requests), "{requests} bytes");
        let publishes = gathered(&mut || publish(&outgoing, &Bytes::from_static(&[0; 100])).unwrap());
        assert!((limits::BATCH_BYTES..limits::BATCH_BYTES + 300).contains(&publishes), "{publishes} bytes");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "nobody else is woken");
        outgoing.set_returning(false);
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
