//! The send queue towards one subscription, and what happens when it is full.
//!
//! Pure: messages go in with [`SendQueue::push`] and [`SendQueue::push_run`], out with [`SendQueue::pop`] and
//! [`SendQueue::take_records`] as far as the credit window reaches, and are settled by [`SendQueue::credit`]. Every
//! message that leaves in another way is handed back with its ledger row.
//!
//! | form | for | a message is |
//! |---|---|---|
//! | [`Form::Values`] | the policy `latest_only` | an [`Entry`], sharing its publisher's memory, found by its topic in one step |
//! | [`Form::Wire`] | sessions over a socket | copied once, as a record of the batch it will leave in; requests and large messages are entries |
//! | [`Form::Local`] | clients in the broker's process | the same, but what is large begins at [`limits::LOCAL_COPY_BYTES_MAX`] |

use std::collections::VecDeque;

use super::{
    ledger::{DropReason, RowId},
    requests::RequestKey,
};
use crate::{
    limits,
    native::{Block, BlockView, Overflow, Record, SubscriptionIds},
    zmtp::Draft,
};

mod chunk;
mod latest;
mod losses;

pub use chunk::SpareChunks;
use chunk::{CHUNKED_BLOCK_BYTES_MAX, Chunk, Run, Runs};
use latest::Latest;
use losses::Losses;

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
    fn bytes(&self) -> usize {
        self.block.bytes() + beside_bytes(&self.subscriptions)
    }
}

/// What a message counts for beside its block: the numbers of the subscriptions that share it with this queue's own.
fn beside_bytes(subscriptions: &[u32]) -> usize {
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

#[derive(Debug)]
enum Item {
    Entry(Entry),
    Chunk(Chunk),
}

impl Item {
    fn messages(&self) -> usize {
        match self {
            Self::Entry(_) => 1,
            Self::Chunk(chunk) => chunk.messages(),
        }
    }

    fn request(&self) -> Option<RequestKey> {
        #[cfg(test)]
        tests::REQUESTS_LOOKED_AT.set(tests::REQUESTS_LOOKED_AT.get() + 1);
        match self {
            Self::Entry(entry) => entry.request,
            Self::Chunk(_) => None,
        }
    }
}

/// A bounded queue. An empty queue takes one message of any legal size.
#[derive(Debug)]
pub struct SendQueue {
    overflow: Overflow,
    form: Form,
    messages_max: usize,
    bytes_max: usize,
    window_bytes: u64,
    items: VecDeque<Item>,
    /// Instead of `items`, with the policy `latest_only`.
    latest: Option<Box<Latest>>,
    /// Messages in `items` or `latest`.
    messages: usize,
    /// Requests in `items`.
    requests: usize,
    /// What they count for: their blocks, and the numbers of the subscriptions that share them.
    bytes: usize,
    /// Sent and not yet credited.
    in_flight: Runs,
    in_flight_bytes: u64,
    credited: u64,
    sent: u64,
    /// Messages lost since the last gap was reported, and where.
    losses: Losses,
    /// Publishers that were held since it last had room: what each has on its way is still taken.
    held_publishers: usize,
}

impl SendQueue {
    /// A queue with these bounds; zero stands for the default of [`limits`].
    pub fn new(overflow: Overflow, form: Form, messages_max: u32, bytes_max: u32) -> Self {
        let or_default = |value: u32, default: usize| if value == 0 { default } else { value as usize };
        Self {
            overflow,
            form: if overflow == Overflow::LatestOnly { Form::Values } else { form },
            messages_max: or_default(messages_max, limits::SEND_QUEUE_MESSAGES),
            bytes_max: or_default(bytes_max, limits::SEND_QUEUE_BYTES),
            window_bytes: limits::CREDIT_WINDOW_BYTES,
            items: VecDeque::new(),
            latest: (overflow == Overflow::LatestOnly).then(Box::default),
            messages: 0,
            requests: 0,
            bytes: 0,
            in_flight: Runs::default(),
            in_flight_bytes: 0,
            credited: 0,
            sent: 0,
            losses: Losses::default(),
            held_publishers: 0,
        }
    }

    /// Sets the bytes that may be sent and not yet credited.
    #[cfg(test)]
    pub fn set_window(&mut self, bytes: u64) {
        self.window_bytes = bytes;
    }

    /// A publisher was told to hold: what it has on its way will come.
    pub fn expect_overrun(&mut self) {
        self.held_publishers += 1;
    }

    /// Held publishers were released.
    pub fn forget_overruns(&mut self) {
        self.held_publishers = 0;
    }

    /// Whether more has come than publishers that obey can have had on their way when they were held.
    fn is_overrun(&self) -> bool {
        self.bytes >= self.bytes_max + self.held_publishers.max(1) * limits::OVERRUN_BYTES
    }

    /// Takes a message or says why not; whatever had to make room is pushed onto `dropped`.
    pub fn push(&mut self, entry: Entry, spare: &mut SpareChunks, dropped: &mut Vec<Dropped>) -> Pushed {
        if entry.request.is_none() {
            self.replace(&entry, dropped);
        }
        let bytes = entry.bytes();
        if let Some(refused) = self.make_room(bytes, &entry.subscriptions, spare, dropped) {
            return refused;
        }
        self.add(entry, spare);
        if self.must_hold() { Pushed::QueuedAndFull } else { Pushed::Queued }
    }

    fn add(&mut self, entry: Entry, spare: &mut SpareChunks) {
        // What has a deadline stays an entry, so that it can be looked at when its turn comes.
        let is_plain = entry.request.is_none() && entry.block.deadline_ms == 0;
        if is_plain && self.takes_as_bytes(entry.block.bytes()) {
            self.append_run(&entry.subscriptions, entry.row, std::iter::once(entry.block.view()), spare);
        } else {
            self.messages += 1;
            self.bytes += entry.bytes();
            match &mut self.latest {
                Some(latest) => latest.push(entry),
                None => {
                    self.requests += usize::from(entry.request.is_some());
                    self.items.push_back(Item::Entry(entry));
                }
            }
        }
    }

    /// Takes messages of one publisher and topic as [`SendQueue::push`] would take each of them. `blocks`
    /// is asked twice; the queue [takes them as bytes](SendQueue::takes_as_bytes).
    pub fn push_run<'a>(
        &mut self,
        subscriptions: &[u32],
        row: RowId,
        blocks: impl Iterator<Item = BlockView<'a>> + Clone,
        spare: &mut SpareChunks,
        dropped: &mut Vec<Dropped>,
    ) -> PushedRun {
        debug_assert!(blocks.clone().all(|block| self.takes_as_bytes(block.bytes())));
        let (mut pushed, beside) = (PushedRun::default(), beside_bytes(subscriptions));
        let (count, bytes) =
            blocks.clone().fold((0, 0), |(count, bytes), block| (count + 1, bytes + block.bytes() + beside));
        if self.messages + count <= self.messages_max && self.bytes + bytes <= self.bytes_max {
            self.append_run(subscriptions, row, blocks, spare);
            pushed.queued = count as u64;
        } else {
            for block in blocks {
                match self.make_room(block.bytes() + beside, subscriptions, spare, dropped) {
                    None => {
                        self.append_run(subscriptions, row, std::iter::once(block), spare);
                        pushed.queued += 1;
                    }
                    Some(refused) => {
                        pushed.refused += 1;
                        pushed.disconnect |= refused == Pushed::Disconnect;
                    }
                }
            }
        }
        pushed.full = self.must_hold();
        pushed
    }

    /// Bytes of a block that [`SendQueue::push_run`] takes at most.
    pub const RUN_BLOCK_BYTES_MAX: usize = CHUNKED_BLOCK_BYTES_MAX;

    /// Whether a block of `bytes` is kept as it goes on the wire.
    pub fn takes_as_bytes(&self, bytes: usize) -> bool {
        /// Prefix, topic and header, as they usually are.
        const NAMES_BYTES: usize = 256;
        bytes
            <= match self.form {
                Form::Values => return false,
                Form::Wire => CHUNKED_BLOCK_BYTES_MAX,
                Form::Local => limits::LOCAL_COPY_BYTES_MAX + NAMES_BYTES,
            }
    }

    /// Appends blocks in wire form, to as many chunks as it takes.
    fn append_run<'a>(
        &mut self,
        subscriptions: &[u32],
        row: RowId,
        mut blocks: impl Iterator<Item = BlockView<'a>>,
        spare: &mut SpareChunks,
    ) {
        let (mut next, beside) = (blocks.next(), beside_bytes(subscriptions));
        while let Some(first) = next {
            let bytes = first.bytes() + beside;
            if !matches!(self.items.back(), Some(Item::Chunk(chunk)) if chunk.has_room_for(bytes)) {
                self.items.push_back(Item::Chunk(spare.take()));
            }
            let Some(Item::Chunk(chunk)) = self.items.back_mut() else { unreachable!("it was just added") };
            let mut run = Run { row, messages: 0, bytes: 0 };
            while let Some(block) = next
                && (run.messages == 0 || chunk.has_room_for(block.bytes() + beside))
            {
                chunk.put(subscriptions, &block);
                run.messages += 1;
                run.bytes += (block.bytes() + beside) as u64;
                next = blocks.next();
            }
            chunk.count(run);
            self.messages += run.messages as usize;
            self.bytes += run.bytes as usize;
        }
    }

    /// Makes room for a message of `bytes` as the policy says, or says why there is none.
    fn make_room(
        &mut self,
        bytes: usize,
        subscriptions: &[u32],
        spare: &mut SpareChunks,
        dropped: &mut Vec<Dropped>,
    ) -> Option<Pushed> {
        if !self.is_full_for(bytes) {
            return None;
        }
        match self.overflow {
            Overflow::DropOldest => {
                while self.is_full_for(bytes) {
                    let Some(oldest) = self.drop_front(spare) else { break };
                    dropped.push(oldest);
                }
                None
            }
            // Whatever its own bounds are: what held publishers have on their way must not be lost.
            Overflow::Wait if !self.is_overrun() => None,
            Overflow::Disconnect => Some(Pushed::Disconnect),
            Overflow::DropNewest | Overflow::LatestOnly | Overflow::Wait => {
                self.losses.behind(self.behind_last(), subscriptions);
                Some(Pushed::Refused)
            }
        }
    }

    /// Whether a block of `bytes` fits only if something else goes, or somebody is held. An empty queue takes any.
    pub fn is_full_for(&self, bytes: usize) -> bool {
        self.messages > 0 && (self.messages >= self.messages_max || self.bytes + bytes > self.bytes_max)
    }

    /// Whether publishers must be held: well before the queue is full, so that what waits stays in the
    /// processor's cache.
    pub fn must_hold(&self) -> bool {
        self.overflow == Overflow::Wait
            && (self.messages >= self.messages_max || self.bytes > self.hold_bytes())
    }

    fn hold_bytes(&self) -> usize {
        self.bytes_max.min(limits::HOLD_BYTES)
    }

    fn drop_front(&mut self, spare: &mut SpareChunks) -> Option<Dropped> {
        let Some(Item::Chunk(chunk)) = self.items.front_mut() else {
            let entry = self.take_front_entry()?;
            self.losses.in_front(&entry.subscriptions);
            return Some((entry.row, entry.request, DropReason::SlowConsumer));
        };
        self.losses.in_front(&chunk.front_subscriptions());
        let run = chunk.drop_front()?;
        self.bytes -= run.bytes as usize;
        self.messages -= 1;
        self.losses.pass(1);
        self.remove_spent_front(spare);
        Some((run.row, None, DropReason::SlowConsumer))
    }

    /// Removes the chunk in front if nothing of it waits.
    fn remove_spent_front(&mut self, spare: &mut SpareChunks) {
        if matches!(self.items.front(), Some(Item::Chunk(chunk)) if chunk.messages() == 0)
            && let Some(Item::Chunk(chunk)) = self.items.pop_front()
        {
            spare.give(chunk);
        }
    }

    /// The place for losses behind the last message, counted from the front.
    fn behind_last(&self) -> usize {
        self.latest.as_ref().map_or(self.messages, |latest| latest.behind_last())
    }

    /// Drops the queued message of the same topic, if the policy is `latest_only`.
    fn replace(&mut self, newer: &Entry, dropped: &mut Vec<Dropped>) {
        let losses = &mut self.losses;
        let older = self.latest.as_mut().and_then(|latest| latest.take_topic(newer.block.topic(), losses));
        let Some((older, place)) = older else { return };
        losses.beside(place, &older.subscriptions);
        self.messages -= 1;
        self.bytes -= older.bytes();
        dropped.push((older.row, None, DropReason::Replaced));
    }

    /// Takes out what other subscriptions share and was not sent yet.
    pub fn take_shared(&mut self, spare: &mut SpareChunks) -> Vec<Entry> {
        self.take_out(spare, |entry| entry.subscriptions.len() > 1)
    }

    /// Takes out what `goes` says yes to and was not sent yet.
    pub fn take_out(&mut self, spare: &mut SpareChunks, goes: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        if let Some(latest) = &mut self.latest {
            let out = latest.take_out(&mut self.losses, goes);
            self.messages -= out.len();
            self.bytes -= out.iter().map(Entry::bytes).sum::<usize>();
            return out;
        }
        let (mut out, mut kept, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut sort = |entry: Entry| match goes(&entry) {
            true => {
                places.push(out.len() + kept.len());
                out.push(entry);
            }
            false => kept.push(entry),
        };
        for item in self.items.drain(..) {
            match item {
                Item::Entry(entry) => sort(entry),
                Item::Chunk(mut chunk) => {
                    while let Some((Record::Deliver { subscriptions, block }, run)) = chunk.pop() {
                        sort(Entry { subscriptions, request: None, block, row: run.row });
                    }
                    spare.give(chunk);
                }
            }
        }
        self.losses.taken_out(&places);
        (self.messages, self.requests, self.bytes) = (0, 0, 0);
        kept.into_iter().for_each(|entry| self.add(entry, spare));
        out
    }

    /// Takes back a request that was not sent yet, as if it had been dropped.
    pub fn withdraw(&mut self, request: RequestKey) -> Option<RowId> {
        let entry = match &mut self.latest {
            Some(latest) => latest.take_request(request, &mut self.losses)?,
            None => {
                let at = self.place_of(request)?;
                let before = match self.has_only_requests() {
                    true => at,
                    false => self.items.iter().take(at).map(Item::messages).sum(),
                };
                self.losses.taken_out(&[before]);
                let Some(Item::Entry(entry)) = self.items.remove(at) else { return None };
                self.requests -= 1;
                entry
            }
        };
        self.messages -= 1;
        self.bytes -= entry.bytes();
        Some(entry.row)
    }

    /// Where a request is. Requests come in the order of their numbers, so where nothing else waits, as where they are
    /// served, it is found by halves; a probe among other messages is looked for.
    fn place_of(&self, request: RequestKey) -> Option<usize> {
        match self.has_only_requests() {
            true => self.items.binary_search_by_key(&Some(request), Item::request).ok(),
            false if self.requests == 0 => None,
            false => self.items.iter().position(|item| item.request() == Some(request)),
        }
    }

    fn has_only_requests(&self) -> bool {
        self.requests == self.items.len()
    }

    /// The message whose turn it is, if it is kept as a value.
    fn front_entry(&self) -> Option<&Entry> {
        match self.items.front() {
            Some(Item::Entry(entry)) => Some(entry),
            Some(Item::Chunk(_)) => None,
            None => self.latest.as_ref().and_then(|latest| latest.front()),
        }
    }

    /// Takes what [`SendQueue::front_entry`] shows.
    fn take_front_entry(&mut self) -> Option<Entry> {
        let entry = match &mut self.latest {
            Some(latest) => latest.pop_front(&mut self.losses)?,
            None => {
                let Some(Item::Entry(entry)) = self.items.pop_front_if(|item| matches!(item, Item::Entry(_)))
                else {
                    return None;
                };
                self.requests -= usize::from(entry.request.is_some());
                self.losses.pass(1);
                entry
            }
        };
        self.messages -= 1;
        self.bytes -= entry.bytes();
        Some(entry)
    }

    /// Whether the message whose turn it is has waited beyond its deadline.
    pub fn is_front_expired(&self, now_ms: u64) -> bool {
        // Requests have a deadline of their own, which ends them wherever they are.
        let is_late = |entry: &Entry| {
            entry.request.is_none() && entry.block.deadline_ms != 0 && entry.block.deadline_ms <= now_ms
        };
        self.front_entry().is_some_and(is_late)
    }

    /// Drops the messages whose turn it is and that nobody wants any more. No gap: it is what their publisher asked for.
    pub fn drop_expired(&mut self, now_ms: u64, dropped: &mut Vec<Dropped>) {
        while self.is_front_expired(now_ms)
            && let Some(entry) = self.take_front_entry()
        {
            dropped.push((entry.row, None, DropReason::Expired));
        }
    }

    /// The next message to send as a value, if there is one and the window has room for it.
    pub fn pop(&mut self, spare: &mut SpareChunks) -> Option<Entry> {
        if !self.can_pop() {
            return None;
        }
        let Some(Item::Chunk(chunk)) = self.items.front_mut() else {
            let entry = self.take_front_entry()?;
            self.note_sent(Run { row: entry.row, messages: 1, bytes: entry.bytes() as u64 });
            return Some(entry);
        };
        let (Record::Deliver { subscriptions, block }, run) = chunk.pop()? else { return None };
        self.note_left_chunk(run, spare);
        Some(Entry { subscriptions, request: None, block, row: run.row })
    }

    /// One message has left the chunk in front to be sent.
    fn note_left_chunk(&mut self, run: Run, spare: &mut SpareChunks) {
        self.remove_spent_front(spare);
        self.messages -= 1;
        self.bytes -= run.bytes as usize;
        self.losses.pass(1);
        self.note_sent(run);
    }

    /// One message is in flight.
    fn note_sent(&mut self, run: Run) {
        self.sent += 1;
        self.in_flight_bytes += run.bytes;
        self.in_flight.add(run);
    }

    /// Shows `act` the next message to send and takes it; `false` if there is none.
    pub fn pop_view(&mut self, spare: &mut SpareChunks, act: impl FnOnce(&BlockView<'_>)) -> bool {
        if !self.can_pop() {
            return false;
        }
        let Some(Item::Chunk(chunk)) = self.items.front_mut() else {
            return self.pop(spare).map(|entry| act(&entry.block.view())).is_some();
        };
        let Some(run) = chunk.pop_view(act) else { return false };
        self.note_left_chunk(run, spare);
        true
    }

    /// Whether [`SendQueue::take_records`] would give something.
    pub fn has_records_next(&self) -> bool {
        self.can_pop() && matches!(self.items.front(), Some(Item::Chunk(_)))
    }

    /// Appends the next messages to send to a batch, as many as stand together, with none lost between them, and
    /// as the window has room for. Returns how many.
    pub fn take_records(&mut self, out: &mut Vec<u8>, spare: &mut SpareChunks) -> u64 {
        let room = self.window_bytes.saturating_sub(self.in_flight_bytes);
        let Some(Item::Chunk(chunk)) = self.items.front_mut().filter(|_| room > 0) else { return 0 };
        let (in_flight, mut bytes) = (&mut self.in_flight, 0);
        let messages = chunk.take(room, self.losses.next_after(), out, |run| {
            bytes += run.bytes;
            in_flight.add(run);
        });
        self.remove_spent_front(spare);
        self.messages -= messages as usize;
        self.losses.pass(messages);
        self.bytes -= bytes as usize;
        self.in_flight_bytes += bytes;
        self.sent += messages;
        messages
    }

    /// Lets `act` take the next messages to send as a batch of their own, if they fill one, none was lost in front of them
    /// or between them, and the window has room for all of it. Returns how many; zero if `act` was not called or has left them.
    pub fn take_batch(&mut self, spare: &mut SpareChunks, act: impl FnOnce(&mut Draft) -> bool) -> u64 {
        let room = self.window_bytes.saturating_sub(self.in_flight_bytes);
        let Some(Item::Chunk(chunk)) = self.items.front_mut() else { return 0 };
        if self.losses.is_due()
            || chunk.messages() as u64 > self.losses.next_after()
            || !chunk.whole(room).is_some_and(act)
        {
            return 0;
        }
        let (messages, bytes) = (chunk.messages() as u64, chunk.bytes());
        chunk.drain().for_each(|run| self.in_flight.add(run));
        if let Some(Item::Chunk(chunk)) = self.items.pop_front() {
            spare.give(chunk);
        }
        self.messages -= messages as usize;
        self.losses.pass(messages);
        self.bytes -= bytes as usize;
        self.in_flight_bytes += bytes;
        self.sent += messages;
        messages
    }

    /// Whether [`SendQueue::pop`] would give something.
    pub fn can_pop(&self) -> bool {
        self.messages > 0 && self.in_flight_bytes < self.window_bytes
    }

    /// Settles messages up to `total`, counted since the queue began; a total beyond what was sent
    /// counts as what was sent. Calls `settle` for each row.
    pub fn credit(&mut self, total: u64, mut settle: impl FnMut(RowId, u64)) {
        let mut newly = total.min(self.sent).saturating_sub(self.credited);
        self.credited += newly;
        while newly > 0
            && let Some(run) = self.in_flight.take(newly)
        {
            settle(run.row, run.messages);
            self.in_flight_bytes -= run.bytes;
            newly -= run.messages;
        }
    }

    /// Settles `messages` more, for sessions whose deliveries the broker itself sees end.
    pub fn credit_more(&mut self, messages: u64, settle: impl FnMut(RowId, u64)) {
        self.credit(self.credited + messages, settle);
    }

    /// Gives back everything that was not delivered.
    pub fn abandon(&mut self, mut settle: impl FnMut(RowId, u64)) {
        self.in_flight.drain().for_each(|run| settle(run.row, run.messages));
        for item in self.items.drain(..) {
            match item {
                Item::Entry(entry) => settle(entry.row, 1),
                Item::Chunk(mut chunk) => chunk.drain().for_each(|run| settle(run.row, run.messages)),
            }
        }
        let latest = self.latest.iter_mut().flat_map(|latest| latest.drain());
        latest.for_each(|entry| settle(entry.row, 1));
        (self.messages, self.requests, self.bytes, self.in_flight_bytes) = (0, 0, 0, 0);
    }

    /// How many messages were lost since the last call that other subscriptions of the session were to
    /// share, by subscription: this queue's policy is not theirs, so they are told of replaced ones too.
    pub fn take_lost_beside(&mut self) -> Vec<(u32, u64)> {
        self.losses.take_beside()
    }

    /// Notes messages of this queue's own subscription that were lost in the queue of another, which has ended.
    pub fn lose_elsewhere(&mut self, count: u64) {
        self.losses.elsewhere(self.behind_last(), count);
    }

    /// What one subscription has lost in front of the message that is next, or behind the last one; this queue's own
    /// stands under `id`.
    pub fn take_loss(&mut self, id: u32) -> Option<(u32, u64)> {
        self.losses.take(id)
    }

    /// Whether there is something to send: a message, or a loss that none is in front of and none will follow.
    pub fn has_output(&self) -> bool {
        self.can_pop() || (self.messages == 0 && self.losses.is_due())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Whether a queue for which publishers were held has room again: half of it is free.
    pub fn has_room(&self) -> bool {
        self.messages <= self.messages_max / 2 && self.bytes <= self.hold_bytes() / 2
    }

    /// What is lost when it is full.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// How many messages and bytes may wait.
    pub fn bounds(&self) -> (usize, usize) {
        (self.messages_max, self.bytes_max)
    }

    /// Messages waiting, and sent but not credited.
    pub fn depth(&self) -> u64 {
        self.messages as u64 + self.sent - self.credited
    }

    /// Bytes waiting, and sent but not credited.
    pub fn depth_bytes(&self) -> u64 {
        self.bytes as u64 + self.in_flight_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::ledger::{Ledger, RowKey};

    thread_local! {
        pub(super) static REQUESTS_LOOKED_AT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    fn requests_looked_at() -> u64 {
        REQUESTS_LOOKED_AT.get()
    }

    fn topics_looked_at() -> u64 {
        crate::native::block::TOPICS_LOOKED_AT.get()
    }

    const FORMS: [Form; 3] = [Form::Values, Form::Wire, Form::Local];

    fn row() -> RowId {
        Ledger::default().row(RowKey { publisher: None, topic: None, subscriber: None })
    }

    fn entry_of(topic: &str, payload: &[u8]) -> Entry {
        let block = Block::new(&topic.parse().unwrap(), b"", payload);
        Entry { subscriptions: SubscriptionIds::from_slice(&[1]), request: None, block, row: row() }
    }

    fn push(queue: &mut SendQueue, entry: Entry) -> Pushed {
        queue.push(entry, &mut SpareChunks::default(), &mut Vec::new())
    }

    fn pop(queue: &mut SendQueue) -> Option<Entry> {
        queue.pop(&mut SpareChunks::default())
    }

    fn numbers(queue: &mut SendQueue) -> Vec<u8> {
        std::iter::from_fn(|| pop(queue)).map(|entry| entry.block.payload()[0]).collect()
    }

    fn pushed(overflow: Overflow, form: Form, topics: &[&str]) -> (SendQueue, Vec<Pushed>, usize) {
        let mut queue = SendQueue::new(overflow, form, 2, 0);
        let (mut spare, mut dropped) = (SpareChunks::default(), Vec::new());
        let outcomes = topics
            .iter()
            .enumerate()
            .map(|(number, topic)| queue.push(entry_of(topic, &[number as u8]), &mut spare, &mut dropped))
            .collect();
        (queue, outcomes, dropped.len())
    }

    #[test]
    fn each_overflow_policy_loses_what_its_name_says() {
        let topics = ["a", "b", "a", "b"];
        // What is kept, how many made room, how many are missing in front of it and behind it.
        let table = [
            (Overflow::DropNewest, vec![0, 1], 0, (0, 2)),
            (Overflow::DropOldest, vec![2, 3], 2, (2, 0)),
            (Overflow::LatestOnly, vec![2, 3], 2, (0, 0)),
            (Overflow::Wait, vec![0, 1, 2, 3], 0, (0, 0)),
        ];
        let missing = |queue: &mut SendQueue| {
            std::iter::from_fn(|| queue.take_loss(1)).map(|(_, count)| count).sum::<u64>()
        };
        for (overflow, kept, made_room, lost) in table {
            for form in FORMS {
                let (mut queue, _, dropped) = pushed(overflow, form, &topics);
                let (in_front, kept_here) = (missing(&mut queue), numbers(&mut queue));
                let seen = (kept_here, dropped, (in_front, missing(&mut queue)));
                assert_eq!(seen, (kept.clone(), made_room, lost), "{overflow:?} {form:?}");
            }
        }
        for form in FORMS {
            let (_, outcomes, _) = pushed(Overflow::Disconnect, form, &topics);
            assert_eq!(outcomes[2], Pushed::Disconnect);
        }
    }

    #[test]
    fn wait_says_when_the_publisher_must_be_held_and_loses_nothing_of_what_is_on_its_way() {
        for form in FORMS {
            let (_, outcomes, _) = pushed(Overflow::Wait, form, &["a", "a", "a", "a", "a"]);
            use Pushed::{Queued, QueuedAndFull};
            assert_eq!(outcomes, [Queued, QueuedAndFull, QueuedAndFull, QueuedAndFull, QueuedAndFull]);
        }
    }

    #[test]
    fn wait_takes_as_much_as_the_publishers_it_holds_can_have_on_their_way_and_no_more() {
        let payload = vec![0; 256 << 10];
        for publishers in [1, 3] {
            let mut queue = SendQueue::new(Overflow::Wait, Form::Wire, 2, 1 << 20);
            (0..publishers).for_each(|_| queue.expect_overrun());
            let mut taken = 0;
            while push(&mut queue, entry_of("a", &payload)) != Pushed::Refused {
                taken += payload.len();
            }
            let bound = (1 << 20) + publishers * limits::OVERRUN_BYTES;
            assert!((bound - payload.len()..=bound + payload.len()).contains(&taken), "{taken} of {bound}");
        }
    }

    #[test]
    fn publishers_are_held_long_before_the_bytes_of_a_waiting_queue_are_used_up() {
        let mut queue = SendQueue::new(Overflow::Wait, Form::Wire, 0, 0);
        let payload = vec![0; 16 << 10];
        let mut taken = 0;
        while push(&mut queue, entry_of("a", &payload)) == Pushed::Queued {
            taken += payload.len();
        }
        assert!((limits::HOLD_BYTES / 2..=limits::HOLD_BYTES).contains(&taken), "{taken} bytes");
        while push(&mut queue, entry_of("a", &payload)) == Pushed::QueuedAndFull {
            taken += payload.len();
        }
        assert!(taken >= limits::SEND_QUEUE_BYTES + limits::OVERRUN_BYTES - (1 << 20), "{taken} bytes");
    }

    #[test]
    fn an_empty_queue_takes_one_message_of_any_size() {
        for form in FORMS {
            let mut queue = SendQueue::new(Overflow::DropNewest, form, 10, 10);
            assert_eq!(push(&mut queue, entry_of("a", &[0])), Pushed::Queued);
            assert_eq!(push(&mut queue, entry_of("a", &[1])), Pushed::Refused);
        }
    }

    #[test]
    fn the_numbers_of_overlapping_subscriptions_count_in_the_bytes_of_a_queue() {
        let shared = |beside: u32| {
            let subscriptions = (1..=1 + beside).collect();
            Entry { subscriptions, ..entry_of("a", &[0]) }
        };
        let plain_bytes = shared(0).block.bytes();
        for form in FORMS {
            // Room for four that nobody shares, or for one that 20 do.
            let bytes_max = 4 * plain_bytes;
            let mut queue = SendQueue::new(Overflow::DropNewest, form, 0, bytes_max as u32);
            assert_eq!(push(&mut queue, shared(20)), Pushed::Queued);
            assert_eq!(queue.depth_bytes(), plain_bytes as u64 + 80);
            assert_eq!(push(&mut queue, shared(0)), Pushed::Refused, "{form:?}");
            assert!(pop(&mut queue).is_some());
            assert_eq!((queue.bytes, queue.depth_bytes()), (0, plain_bytes as u64 + 80), "in flight");
            queue.credit(1, |_, _| {});
            assert_eq!(queue.depth_bytes(), 0);
            assert!((0..4).all(|_| push(&mut queue, shared(0)) == Pushed::Queued));
        }
        let mut queue = SendQueue::new(Overflow::DropOldest, Form::Wire, 0, 4 * plain_bytes as u32);
        let (entry, mut dropped) = (shared(20), Vec::new());
        let run = std::iter::repeat_n(entry.block.view(), 3);
        queue.push_run(&entry.subscriptions, entry.row, run, &mut SpareChunks::default(), &mut dropped);
        assert_eq!((queue.depth(), queue.depth_bytes(), dropped.len()), (1, plain_bytes as u64 + 80, 2));
    }

    #[test]
    fn credit_settles_in_order_and_never_more_than_was_sent() {
        for form in FORMS {
            let (mut queue, _, _) = pushed(Overflow::DropNewest, form, &["a", "b"]);
            pop(&mut queue);
            let mut settled = 0;
            queue.credit(100, |_, messages| settled += messages);
            assert_eq!((settled, queue.depth()), (1, 1));
            queue.credit(50, |_, messages| settled += messages);
            assert_eq!(settled, 1, "a total that falls settles nothing");
            pop(&mut queue);
            queue.abandon(|_, messages| settled += messages);
            assert_eq!((settled, queue.depth_bytes()), (2, 0));
        }
    }

    #[test]
    fn nothing_is_sent_beyond_the_credit_window() {
        let payload = vec![0; limits::CREDIT_WINDOW_BYTES as usize / 4];
        let mut queue = SendQueue::new(Overflow::DropNewest, Form::Values, 0, u32::MAX);
        assert!((0..8).all(|_| push(&mut queue, entry_of("a", &payload)) == Pushed::Queued));
        let sent = std::iter::from_fn(|| pop(&mut queue)).count();
        assert_eq!(sent, 4);
        queue.credit(1, |_, _| {});
        assert!(pop(&mut queue).is_some() && pop(&mut queue).is_none());

        let mut queue = SendQueue::new(Overflow::DropNewest, Form::Wire, 0, u32::MAX);
        assert!((0..10_000).all(|_| push(&mut queue, entry_of("a", &payload[..1000])) == Pushed::Queued));
        let (mut out, mut spare, mut sent) = (Vec::new(), SpareChunks::default(), 0);
        while queue.has_records_next() {
            sent += queue.take_records(&mut out, &mut spare);
        }
        let window = limits::CREDIT_WINDOW_BYTES / 1025 + 1;
        assert_eq!((sent, queue.depth()), (window, 10_000));
    }

    #[test]
    fn records_taken_together_are_those_taken_one_by_one() {
        let fill = || {
            let mut queue = SendQueue::new(Overflow::DropOldest, Form::Wire, 500, 0);
            for number in 0..700usize {
                let payload = vec![number as u8; number * 7 % 999];
                push(&mut queue, entry_of(["a", "b/c"][number / 3 % 2], &payload));
            }
            queue
        };
        let (mut together, mut single, mut spare) = (fill(), fill(), SpareChunks::default());
        let mut batch = Vec::new();
        let mut taken = 0;
        while together.has_records_next() {
            taken += together.take_records(&mut batch, &mut spare);
        }
        let mut reader = crate::native::BatchReader::default();
        reader.begin(batch.into());
        let mut seen = 0;
        while let Some(Record::Deliver { block, .. }) = reader.next_record().unwrap() {
            assert_eq!(Some(block), pop(&mut single).map(|entry| entry.block));
            seen += 1;
        }
        assert_eq!((seen, taken, pop(&mut single).is_none()), (500, 500, true));
        assert_eq!(together.depth_bytes(), single.depth_bytes());
        together.credit(500, |_, _| {});
        assert_eq!((together.depth(), together.depth_bytes()), (0, 0));
    }

    #[test]
    fn a_batch_taken_whole_is_its_records_and_one_begun_or_left_or_beyond_the_window_is_not_taken() {
        let fill = |messages: usize, messages_max| {
            let mut queue = SendQueue::new(Overflow::DropOldest, Form::Wire, messages_max, u32::MAX);
            for number in 0..messages {
                let payload = vec![number as u8; 500 + number * 7 % 999];
                push(&mut queue, entry_of(["a", "b/c"][number / 3 % 2], &payload));
            }
            queue
        };
        let mut spare = SpareChunks::default();
        // The front batch has lost its first messages.
        let (mut queue, mut records) = (fill(700, 500), fill(700, 500));
        assert_eq!(queue.take_loss(1), Some((1, 200)));
        assert_eq!(queue.take_batch(&mut spare, |_| unreachable!("it was begun")), 0);
        let (mut taken, mut expected, mut wholes) = (Vec::new(), Vec::new(), 0);
        while queue.has_records_next() {
            assert_eq!(queue.take_batch(&mut spare, |_| false), 0, "it was left");
            let whole = queue.take_batch(&mut spare, |draft| {
                taken.extend_from_slice(draft.body());
                draft.clear();
                true
            });
            wholes += usize::from(whole > 0);
            if whole == 0 {
                queue.take_records(&mut taken, &mut spare);
            }
        }
        while records.take_records(&mut expected, &mut spare) > 0 {}
        assert!(wholes > 3 && taken == expected, "{wholes} batches, {} bytes", taken.len());
        assert_eq!((queue.depth(), queue.depth_bytes()), (records.depth(), records.depth_bytes()));
        let (mut settled, mut rows) = (0, 0);
        queue.credit(400, |_, messages| settled += messages);
        records.credit(400, |_, messages| rows += messages);
        assert_eq!((settled, queue.depth(), queue.depth_bytes()), (rows, 100, records.depth_bytes()));

        let mut queue = fill(20_000, 0);
        while queue.take_batch(&mut spare, |_| true) > 0 {}
        assert!(queue.in_flight_bytes <= limits::CREDIT_WINDOW_BYTES);
        assert!(queue.take_records(&mut taken, &mut spare) > 0, "the last batch goes in part");
        assert!(queue.in_flight_bytes >= limits::CREDIT_WINDOW_BYTES);
    }

    #[test]
    fn a_batch_with_a_loss_in_front_or_inside_is_not_taken_whole() {
        let (mut queue, mut spare) =
            (SendQueue::new(Overflow::DropNewest, Form::Wire, 100, 0), SpareChunks::default());
        let add = |queue: &mut SendQueue, count: usize| {
            for _ in 0..count {
                push(queue, entry_of("a", &[7; 1000]));
            }
        };
        add(&mut queue, 102);
        let first = queue.take_batch(&mut spare, |_| true);
        assert!((30..80).contains(&first), "{first} of 100 messages fill a batch");
        add(&mut queue, first as usize);
        assert_eq!(queue.take_batch(&mut spare, |_| unreachable!("two were lost inside")), 0);
        assert_eq!(
            (queue.take_records(&mut Vec::new(), &mut spare), queue.take_loss(1)),
            (100 - first, Some((1, 2)))
        );
        let mut rest = 0;
        while queue.has_records_next() {
            assert_eq!(queue.take_loss(1), None);
            rest += queue.take_records(&mut Vec::new(), &mut spare);
        }
        assert_eq!(rest, first);

        add(&mut queue, 101);
        let whole = queue.take_batch(&mut spare, |_| true);
        queue.take_records(&mut Vec::new(), &mut spare);
        assert_eq!(whole, first);
        assert_eq!(
            (queue.is_empty(), queue.take_loss(1)),
            (true, Some((1, 1))),
            "what follows the last batch"
        );
    }

    /// A full queue with one message of each of `topics` topics.
    fn latest_of(topics: usize) -> SendQueue {
        let mut queue = SendQueue::new(Overflow::LatestOnly, Form::Wire, topics as u32, 0);
        for number in 0..topics {
            assert_eq!(push(&mut queue, entry_of(&format!("t/{number}"), b"old")), Pushed::Queued);
        }
        queue
    }

    #[test]
    fn a_newer_message_finds_the_one_it_replaces_without_looking_at_the_others() {
        const TOPICS: usize = 2000;
        let mut queue = latest_of(TOPICS);
        assert_eq!(push(&mut queue, entry_of("one/more", b"")), Pushed::Refused);
        // From the back, the front and the middle.
        for number in (0..TOPICS).map(|number| number * 7 % TOPICS) {
            let entry = entry_of(&format!("t/{number}"), b"new");
            let looked_at = topics_looked_at();
            assert_eq!(push(&mut queue, entry), Pushed::Queued);
            assert!(topics_looked_at() - looked_at <= 4, "topic {number}");
        }
        let mut order = Vec::new();
        while let Some(entry) = pop(&mut queue) {
            assert_eq!(entry.block.payload(), "new");
            order.push(String::from_utf8(entry.block.topic().to_vec()).unwrap());
            queue.credit(u64::MAX, |_, _| {});
        }
        let expected = (0..TOPICS).map(|number| format!("t/{}", number * 7 % TOPICS));
        assert!(order.into_iter().eq(expected), "in the order in which they were replaced");
    }

    #[test]
    fn what_was_lost_behind_a_replaced_message_is_told_behind_the_one_before_it() {
        let mut queue = latest_of(3);
        let refuse = |queue: &mut SendQueue| {
            assert_eq!(push(queue, entry_of("one/more", b"")), Pushed::Refused);
        };
        // t/0 t/1 t/2 (lost)
        refuse(&mut queue);
        push(&mut queue, entry_of("t/2", b"new"));
        // t/0 t/1 (lost) t/2 (lost)
        refuse(&mut queue);
        push(&mut queue, entry_of("t/1", b"new"));
        // t/0 (lost) t/2 (lost) t/1
        let mut seen = Vec::new();
        while let Some(entry) = pop(&mut queue) {
            let topic = String::from_utf8(entry.block.topic().to_vec()).unwrap();
            seen.push((topic, queue.take_loss(1).map(|(_, count)| count)));
        }
        let expected = [("t/0", Some(1)), ("t/2", Some(1)), ("t/1", None)];
        assert_eq!(seen, expected.map(|(topic, lost)| (topic.to_owned(), lost)));

        // Where all are taken out it is due at once.
        let mut queue = latest_of(3);
        refuse(&mut queue);
        let out = queue.take_out(&mut SpareChunks::default(), |_| true);
        assert_eq!((out.len(), queue.is_empty(), queue.take_loss(1)), (3, true, Some((1, 1))));
        assert_eq!((queue.depth(), queue.depth_bytes()), (0, 0));
    }

    #[test]
    fn a_request_that_is_withdrawn_is_found_by_halves_and_the_others_stay_in_order() {
        const REQUESTS: u64 = 4096;
        for overflow in [Overflow::DropNewest, Overflow::LatestOnly] {
            let mut queue = SendQueue::new(overflow, Form::Wire, 0, 0);
            let request = |number| Entry { request: Some(RequestKey(number)), ..entry_of("a", b"") };
            (0..REQUESTS).for_each(|number| assert_eq!(push(&mut queue, request(number)), Pushed::Queued));
            let looked_at = requests_looked_at();
            for number in (0..REQUESTS).rev().filter(|number| number % 4 != 0) {
                assert!(queue.withdraw(RequestKey(number)).is_some());
                assert!(queue.withdraw(RequestKey(number)).is_none());
            }
            let each = (requests_looked_at() - looked_at) / REQUESTS;
            assert!(each <= 2 * 13, "{each} looked at for each");
            let left = std::iter::from_fn(|| pop(&mut queue)).map(|entry| entry.request);
            assert!(left.eq((0..REQUESTS).step_by(4).map(|number| Some(RequestKey(number)))), "{overflow:?}");
            assert_eq!((queue.is_empty(), queue.requests), (true, 0));
        }
        // A probe stands among other messages.
        let mut queue = SendQueue::new(Overflow::DropNewest, Form::Wire, 0, 0);
        let probe = Entry { request: Some(RequestKey(7)), ..entry_of("a", b"probe") };
        push(&mut queue, entry_of("a", b"1"));
        push(&mut queue, probe);
        push(&mut queue, entry_of("a", b"2"));
        assert!(queue.withdraw(RequestKey(8)).is_none() && queue.withdraw(RequestKey(7)).is_some());
        assert_eq!(numbers(&mut queue), b"12");
    }

    #[test]
    fn memory_of_queues_that_ran_empty_is_reused_and_bounded() {
        let mut spare = SpareChunks::default();
        let mut queue = SendQueue::new(Overflow::DropNewest, Form::Wire, 0, 0);
        for _ in 0..100 {
            (0..2000).for_each(|_| {
                queue.push(entry_of("a", &[0; 1000]), &mut spare, &mut Vec::new());
            });
            while queue.take_records(&mut Vec::new(), &mut spare) > 0 {
                queue.credit(u64::MAX, |_, _| {});
            }
        }
        assert!(queue.items.is_empty());
        assert!(spare.bytes() <= 2 << 20, "{} bytes are kept", spare.bytes());
    }
}
