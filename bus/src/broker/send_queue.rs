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
    native::{BlockView, Overflow, Record},
    zmtp::Draft,
};

mod chunk;
mod entry;
mod in_flight;
mod latest;
mod losses;
mod room;

pub use chunk::SpareChunks;
use chunk::{CHUNKED_BLOCK_BYTES_MAX, Chunk, Run};
use entry::beside_bytes;
pub use entry::{Dropped, Entry, Form, Pushed, PushedRun};
use in_flight::InFlight;
use latest::Latest;
use losses::Losses;

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
    in_flight: InFlight,
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
            items: VecDeque::new(),
            latest: (overflow == Overflow::LatestOnly).then(Box::default),
            messages: 0,
            requests: 0,
            bytes: 0,
            in_flight: InFlight::default(),
            losses: Losses::default(),
            held_publishers: 0,
        }
    }

    /// Sets the bytes that may be sent and not yet credited.
    #[cfg(test)]
    pub fn set_window(&mut self, bytes: u64) {
        self.in_flight.set_window(bytes);
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
            self.in_flight.add(Run { row: entry.row, messages: 1, bytes: entry.bytes() as u64 });
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
        let room = self.in_flight.room();
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
        messages
    }

    /// Lets `act` take the next messages to send as a batch of their own, if they fill one, none was lost in front of them
    /// or between them, and the window has room for all of it. Returns how many; zero if `act` was not called or has left them.
    pub fn take_batch(&mut self, spare: &mut SpareChunks, act: impl FnOnce(&mut Draft) -> bool) -> u64 {
        let room = self.in_flight.room();
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
        messages
    }

    /// Whether [`SendQueue::pop`] would give something.
    pub fn can_pop(&self) -> bool {
        self.messages > 0 && self.in_flight.room() > 0
    }

    /// Settles messages up to `total`, counted since the queue began; a total beyond what was sent
    /// counts as what was sent. Calls `settle` for each row.
    pub fn credit(&mut self, total: u64, settle: impl FnMut(RowId, u64)) {
        self.in_flight.credit(total, settle);
    }

    /// Settles `messages` more, for sessions whose deliveries the broker itself sees end.
    pub fn credit_more(&mut self, messages: u64, settle: impl FnMut(RowId, u64)) {
        self.in_flight.credit_more(messages, settle);
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
        (self.messages, self.requests, self.bytes) = (0, 0, 0);
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

    /// What is lost when it is full.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// How many messages and bytes may wait.
    pub fn bounds(&self) -> (usize, usize) {
        (self.messages_max, self.bytes_max)
    }

    /// Messages and bytes that wait and were not sent yet: what the bounds are for.
    pub fn waiting(&self) -> (usize, usize) {
        (self.messages, self.bytes)
    }

    /// Messages waiting, and sent but not credited.
    pub fn depth(&self) -> u64 {
        self.messages as u64 + self.in_flight.messages()
    }

    /// Bytes waiting, and sent but not credited.
    pub fn depth_bytes(&self) -> u64 {
        self.bytes as u64 + self.in_flight.bytes()
    }
}

#[cfg(test)]
mod tests;
