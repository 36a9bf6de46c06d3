//! The queue of one subscription or service at the client, and the credit it gives.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use super::{link::Link, service::Served};
use crate::{
    limits,
    native::{Block, CreditScope, DeliverRun, Record},
    peer::PeerName,
};

/// Messages consumed before credit is sent although more are waiting; a quarter of what is usually on its way.
const CREDIT_MESSAGES: u64 = 1024;
/// Bytes consumed before credit is sent although more are waiting.
const CREDIT_BYTES: u64 = limits::CREDIT_WINDOW_BYTES / 4;

/// Bytes of earlier sessions that wait for a slow application when a new session begins.
const EARLIER_BYTES_MAX: u64 = 4 * limits::CREDIT_WINDOW_BYTES;

/// One thing that waits for the application.
#[derive(Debug)]
pub(crate) enum Item {
    /// A published message.
    Delivery {
        /// Who published it.
        origin: PeerName,
        /// The message.
        block: Block,
        /// Whom to credit once it has been consumed.
        ticket: Ticket,
    },
    /// Published messages that came in one piece for this lane alone.
    Deliveries(Deliveries),
    /// A request for this service.
    Request {
        /// Who asks.
        origin: PeerName,
        /// The question.
        block: Block,
        /// Its state.
        served: Arc<Served>,
        /// Whom to credit once it has been taken.
        ticket: Ticket,
    },
    /// Messages that did not come.
    Gap {
        /// How many; `None` if nobody knows.
        count: Option<u64>,
        /// Why.
        reason: String,
    },
}

impl Item {
    fn bytes(&self) -> u64 {
        match self {
            Self::Delivery { block, .. } | Self::Request { block, .. } => block.bytes() as u64,
            Self::Deliveries(Deliveries { run, .. }) => run.bytes() as u64,
            Self::Gap { .. } => 0,
        }
    }
}

/// Messages that are not taken apart before each one's turn.
#[derive(Debug)]
pub(crate) struct Deliveries {
    /// Who published them.
    pub(crate) origin: PeerName,
    /// They.
    pub(crate) run: DeliverRun,
    /// The session they came in.
    pub(crate) session: u32,
}

/// What is owed to the broker for one delivery.
#[derive(Clone, Debug)]
pub(crate) enum Ticket {
    /// It came for this lane alone.
    Own { session: u32 },
    /// Several lanes have it; the first is credited when the last has consumed it.
    Shared(Arc<SharedTicket>),
    /// The lane that would be credited is gone.
    Nobody,
}

/// The debt that several lanes share.
#[derive(Debug)]
pub(crate) struct SharedTicket {
    pub(crate) lane: Arc<Lane>,
    pub(crate) session: u32,
}

/// The client's end of one subscription.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) id: u32,
    queue: Mutex<Queue>,
    credit: Mutex<Credit>,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    waker: Option<Waker>,
    ended: Option<String>,
}

/// Totals of one session; a new session begins at zero.
#[derive(Debug, Default)]
struct Credit {
    session: u32,
    consumed: u64,
    sent: u64,
    bytes_since: u64,
}

/// Locks; a panic elsewhere leaves nothing half-done in these few statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    pub(crate) fn new(id: u32, session: u32) -> Self {
        Self { id, queue: Mutex::default(), credit: Mutex::new(Credit { session, ..Credit::default() }) }
    }

    /// Adds an item and wakes the consumer. Gaps of one reason in a row become one.
    pub(crate) fn push(&self, item: Item) {
        self.fill().push(item);
    }

    /// Adds several items and wakes the consumer once, when the guard is dropped.
    pub(crate) fn fill(&self) -> Filling<'_> {
        Filling { queue: Some(lock(&self.queue)) }
    }

    /// Takes all that waits. `Ready(false)` means that nothing will come any more.
    pub(crate) fn poll_take(&self, context: &mut Context<'_>, into: &mut VecDeque<Item>) -> Poll<bool> {
        let mut queue = lock(&self.queue);
        if !queue.items.is_empty() {
            std::mem::swap(&mut queue.items, into);
            return Poll::Ready(true);
        }
        if queue.ended.is_some() {
            return Poll::Ready(false);
        }
        if !queue.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            queue.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// No item will follow. What waits can still be taken.
    pub(crate) fn end(&self, reason: &str) {
        let mut queue = lock(&self.queue);
        queue.ended.get_or_insert_with(|| reason.to_owned());
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Why it has ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<String> {
        lock(&self.queue).ended.clone()
    }

    /// Ends it and takes what nobody will consume.
    pub(crate) fn abandon(&self) -> VecDeque<Item> {
        let mut queue = lock(&self.queue);
        queue.ended.get_or_insert_with(|| "dropped by its owner".to_owned());
        queue.waker = None;
        std::mem::take(&mut queue.items)
    }

    /// Starts the totals of a new session. What waits from earlier ones is bounded here, since their
    /// credit bounds it no more: requests are void, and of messages the last few windows stay.
    pub(crate) fn begin_session(&self, session: u32) {
        let mut queue = lock(&self.queue);
        queue.items.retain(|item| !matches!(item, Item::Request { .. }));
        let mut bytes: u64 = queue.items.iter().map(Item::bytes).sum();
        let mut forgot = false;
        while bytes > EARLIER_BYTES_MAX
            && let Some(item) = queue.items.pop_front()
        {
            bytes -= item.bytes();
            forgot = true;
        }
        if forgot {
            queue.items.push_front(Item::Gap { count: None, reason: "disconnected".to_owned() });
        }
        drop(queue);
        *lock(&self.credit) = Credit { session, ..Credit::default() };
    }

    /// Counts one delivery as consumed and sends credit if enough has come together.
    pub(crate) fn count(&self, session: u32, bytes: usize, link: &dyn Link) {
        let mut credit = lock(&self.credit);
        if credit.session != session {
            return;
        }
        credit.consumed += 1;
        credit.bytes_since += bytes as u64;
        if credit.consumed - credit.sent >= CREDIT_MESSAGES || credit.bytes_since >= CREDIT_BYTES {
            credit.send(self.id, link, false);
        }
    }

    /// Whether something was consumed and not credited.
    pub(crate) fn owes_credit(&self) -> bool {
        let credit = lock(&self.credit);
        credit.consumed > credit.sent
    }

    /// Sends the credit that is due. Called before the consumer waits. See [`Link::send_credit`].
    pub(crate) fn flush_credit(&self, link: &dyn Link, left: bool) {
        let mut credit = lock(&self.credit);
        if credit.consumed > credit.sent {
            credit.send(self.id, link, left);
        }
    }

    /// Settles what is owed for one item of this lane. If it is owed by another lane, whose consumer
    /// may be waiting already, that lane is returned: flush it before waiting.
    pub(crate) fn settle(&self, ticket: Ticket, bytes: usize, link: &dyn Link) -> Option<Arc<Lane>> {
        match ticket {
            Ticket::Own { session } => {
                self.count(session, bytes, link);
                None
            }
            Ticket::Shared(shared) => {
                let SharedTicket { lane, session } = Arc::into_inner(shared)?;
                lane.count(session, bytes, link);
                (lane.id != self.id).then_some(lane)
            }
            Ticket::Nobody => None,
        }
    }
}

/// The queue of a lane while items are added.
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    /// `None` only while it is dropped.
    queue: Option<MutexGuard<'a, Queue>>,
}

impl Filling<'_> {
    /// Adds an item; nothing after the end of the lane.
    pub(crate) fn push(&mut self, item: Item) {
        let Some(queue) = self.queue.as_mut().filter(|queue| queue.ended.is_none()) else { return };
        if let (Item::Gap { count, reason }, Some(Item::Gap { count: last_count, reason: last_reason })) =
            (&item, queue.items.back_mut())
            && reason == last_reason
        {
            *last_count = last_count.zip(*count).map(|(last, more)| last.saturating_add(more));
            return;
        }
        queue.items.push_back(item);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        let waker = if queue.items.is_empty() { None } else { queue.waker.take() };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Credit {
    /// The lock is held meanwhile, so that totals never go out in the wrong order.
    fn send(&mut self, id: u32, link: &dyn Link, left: bool) {
        self.sent = self.consumed;
        self.bytes_since = 0;
        let scope = CreditScope::Subscription { id, messages: self.consumed };
        link.send_credit(Record::Credit { scope }, left);
    }
}
