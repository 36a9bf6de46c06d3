//! What a subscriber holds.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use super::{
    core::Handle,
    lane::{Deliveries, Item, Lane},
    received::{DamagedMessage, TopicMemory},
};
use crate::{blocking, envelope::Message, error::NextError, topic::TopicFilter};

/// What a subscription gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A message.
    Message(Message),
    /// Messages that did not come, at this place in the order.
    Gap {
        /// How many; `None` if nobody knows.
        count: Option<u64>,
        /// A word: `slow_consumer`, `disconnected`, `damaged_message`.
        reason: String,
    },
}

/// Messages that match a filter, in the order in which the broker took them. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    consumer: Consumer,
    filter: TopicFilter,
    from_sequence: u64,
}

impl Subscription {
    pub(super) fn new(consumer: Consumer, filter: TopicFilter, from_sequence: u64) -> Self {
        Self { consumer, filter, from_sequence }
    }

    /// The next event; `None` once the subscription has ended, see [`Subscription::end_reason`].
    /// Losing the link does not end it: it is renewed, and a gap says that messages may be missing.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`Subscription::next`] for executors' own loops.
    /// `None` at the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            if let Some(read) = self.consumer.next_of_run() {
                return Poll::Ready(Some(self.event(read)));
            }
            let event = match self.consumer.poll_item(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Item::Gap { count, reason })) => Event::Gap { count, reason },
                Poll::Ready(Some(Item::Delivery { origin, block, ticket })) => {
                    self.consumer.settle(ticket, block.bytes());
                    let read = self.consumer.topics.message(origin, block);
                    self.event(read)
                }
                Poll::Ready(Some(Item::Deliveries(run))) => {
                    self.consumer.run = Some(run);
                    continue;
                }
                // A request to a subscription is a probe: the application has taken all that was before it.
                Poll::Ready(Some(Item::Request { block, ticket, served, .. })) => {
                    self.consumer.settle(ticket, block.bytes());
                    let core = &self.consumer.handle.core;
                    served.end_done(core.link());
                    core.forget_served(served.id);
                    continue;
                }
            };
            return Poll::Ready(Some(event));
        }
    }

    fn event(&self, read: Result<Message, DamagedMessage>) -> Event {
        match read {
            Ok(message) => Event::Message(message),
            Err(problem) => {
                tracing::warn!(filter = %self.filter, %problem, "a message cannot be read");
                Event::Gap { count: Some(1), reason: "damaged_message".to_owned() }
            }
        }
    }

    /// An event that is there already, without waiting.
    /// `None` if there is none, now or ever again.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.poll_next(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    /// Blocks the thread for the next event. Not for use inside an executor.
    ///
    /// # Errors
    /// [`NextError::TimedOut`] at the deadline, [`NextError::Closed`] once it has ended.
    pub fn next_blocking(&mut self, deadline: Instant) -> Result<Event, NextError> {
        blocking::wait_until(self.next(), deadline).ok_or(NextError::TimedOut)?.ok_or(NextError::Closed)
    }

    /// Its id in the session.
    pub fn id(&self) -> u32 {
        self.consumer.lane.id
    }

    /// What it matches.
    pub fn filter(&self) -> &TopicFilter {
        &self.filter
    }

    /// The broker's sequence from which delivery is certain, in the session it was made in.
    pub fn from_sequence(&self) -> u64 {
        self.from_sequence
    }

    /// Why it has ended, if it has.
    pub fn end_reason(&self) -> Option<String> {
        self.consumer.lane.end_reason()
    }
}

/// The consuming end of a lane, for subscriptions and services alike.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) handle: Arc<Handle>,
    pub(super) lane: Arc<Lane>,
    pub(super) topics: TopicMemory,
    /// Taken from the lane and not yet given out.
    taken: VecDeque<Item>,
    /// The run that messages are taken from now; it stood before those.
    run: Option<Deliveries>,
    /// Other lanes that get credit because of ours; flushed before waiting.
    owed: Vec<Arc<Lane>>,
}

impl Consumer {
    pub(super) fn new(handle: Arc<Handle>, lane: Arc<Lane>) -> Self {
        Self {
            handle,
            lane,
            topics: TopicMemory::default(),
            taken: VecDeque::new(),
            run: None,
            owed: Vec::new(),
        }
    }

    /// The next message of the run that was begun.
    fn next_of_run(&mut self) -> Option<Result<Message, DamagedMessage>> {
        let Self { run, lane, handle, topics, .. } = self;
        let Deliveries { origin, run: deliveries, session } = run.as_mut()?;
        let next = deliveries.next_with(|block, payload| {
            lane.count(*session, block.bytes(), handle.core.link());
            topics.message_of(origin.clone(), block, payload)
        });
        if next.is_none() {
            *run = None;
        }
        next
    }

    pub(super) fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        loop {
            if let Some(item) = self.taken.pop_front() {
                return Poll::Ready(Some(item));
            }
            match self.lane.poll_take(context, &mut self.taken) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(None),
                Poll::Pending => {
                    self.flush_credit();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Before waiting: the ledger must show all of what was consumed, at once or as soon as the thread that
    /// waits has seen that nothing more comes.
    fn flush_credit(&mut self) {
        let core = &self.handle.core;
        if blocking::awaits(core) {
            if !self.owed.is_empty() || self.lane.owes_credit() {
                core.owe_credit();
            }
        } else {
            self.lane.flush_credit(core.link(), false);
            self.owed.drain(..).for_each(|lane| lane.flush_credit(core.link(), false));
        }
    }

    pub(super) fn settle(&mut self, ticket: super::lane::Ticket, bytes: usize) {
        if let Some(lane) = self.lane.settle(ticket, bytes, self.handle.core.link())
            && !self.owed.iter().any(|owed| owed.id == lane.id)
        {
            self.owed.push(lane);
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let left = self.lane.abandon();
        for item in self.taken.drain(..).chain(left).collect::<Vec<_>>() {
            match item {
                Item::Delivery { block, ticket, .. } => self.settle_dropped(ticket, block.bytes()),
                Item::Request { block, ticket, served, .. } => {
                    self.settle_dropped(ticket, block.bytes());
                    served.end_dropped(self.handle.core.link());
                }
                Item::Deliveries(_) | Item::Gap { .. } => {}
            }
        }
        let link = self.handle.core.link();
        self.lane.flush_credit(link, true);
        self.owed.drain(..).for_each(|lane| lane.flush_credit(link, true));
        self.handle.core.unsubscribe(self.lane.id);
    }
}

impl Consumer {
    /// What was never consumed is not credited to its own lane: the broker counts it as dropped.
    /// Another lane that has consumed it is not left waiting for us.
    fn settle_dropped(&mut self, ticket: super::lane::Ticket, bytes: usize) {
        if let super::lane::Ticket::Shared(shared) = &ticket
            && shared.lane.id != self.lane.id
        {
            self.settle(ticket, bytes);
        }
    }
}
