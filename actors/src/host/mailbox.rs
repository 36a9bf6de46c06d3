//! The bounded queue in front of an actor. It outlives panics, blocked threads and incarnations.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use interlock_bus::Request;
use tokio::sync::Notify;

use crate::actor::{Failure, Input};

/// Inputs waiting for one actor. A further one waits in the bus, where the overflow policy of its subscription applies.
pub const MAILBOX_INPUTS_MAX: usize = 1024;

/// Bytes of the inputs waiting for one actor. An empty mailbox takes one input of any size.
pub const MAILBOX_BYTES_MAX: usize = 8 << 20;

/// What an input costs beside its payload: topic, header, place in the queue.
const PARCEL_BYTES: usize = 256;

/// Failures with the same input in hand after which it is set aside.
const CRASHES_MAX: u32 = 2;

/// The queue of one child, with the input that is in hand.
///
/// Invariants: at most one input is in hand; it stays here until [`Mailbox::finish`], so that a failure puts it back in front.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    /// An input arrived, or a source ended.
    changed: Notify,
    /// The last source that was carrying something fell silent, or the last input was handled.
    silent: Notify,
    /// Room was made.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The incarnation that may take inputs; those of an abandoned one are ignored.
    holder: u64,
    waiting: VecDeque<Parcel>,
    waiting_bytes: usize,
    in_hand: Option<Parcel>,
    /// Why a source of this mailbox ended, if one did by itself.
    lost: Option<Failure>,
    /// Sources that are carrying something and have not said yet that they wait for more.
    carrying: usize,
}

/// One input, and how many failures it has been in hand at.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// The input; the handler has a copy, or for a request a second hold.
    pub(crate) input: Box<Input>,
    /// What it is, for people.
    pub(crate) what: String,
    bytes: usize,
    /// Since when it waits here.
    since: Instant,
    /// Failures it was in hand at.
    pub(crate) crashes: u32,
}

/// What an idle mailbox yields.
#[derive(Debug)]
pub(crate) enum Next {
    /// An input, now in hand.
    Input { input: Box<Input>, what: String },
    /// A subscription ended by itself.
    Lost(Failure),
}

impl Mailbox {
    /// Queues an input, waiting for room first.
    pub(crate) async fn offer(&self, input: Input) {
        let mut parcel = Parcel::new(input);
        loop {
            let room = self.room.notified();
            match self.try_offer(parcel) {
                Ok(()) => return,
                Err(refused) => parcel = refused,
            }
            room.await;
        }
    }

    fn try_offer(&self, parcel: Parcel) -> Result<(), Parcel> {
        let mut state = self.lock();
        let fits = state.waiting.len() < MAILBOX_INPUTS_MAX
            && state.waiting_bytes + parcel.bytes <= MAILBOX_BYTES_MAX;
        if !fits && !state.waiting.is_empty() {
            return Err(parcel);
        }
        state.waiting_bytes += parcel.bytes;
        state.waiting.push_back(parcel);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Queues a gap, however full the mailbox is. The same one is not queued twice, so there is room for one of each source.
    pub(crate) fn note(&self, gap: Input) {
        let told = |parcel: &Parcel| match (&*parcel.input, &gap) {
            (Input::Gap { filter, reason, .. }, Input::Gap { filter: new, reason: why, .. }) => {
                filter == new && reason == why
            }
            _ => false,
        };
        let mut state = self.lock();
        if state.waiting.iter().any(told) {
            return;
        }
        let parcel = Parcel::new(gap);
        state.waiting_bytes += parcel.bytes;
        state.waiting.push_back(parcel);
        drop(state);
        self.changed.notify_one();
    }

    /// Takes out the requests that wait: their session has ended.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        let mut state = self.lock();
        let mut requests = Vec::new();
        for parcel in std::mem::take(&mut state.waiting) {
            match *parcel.input {
                Input::Request(request) => {
                    state.waiting_bytes -= parcel.bytes;
                    requests.push(request);
                }
                input => state.waiting.push_back(Parcel { input: Box::new(input), ..parcel }),
            }
        }
        drop(state);
        self.room.notify_one();
        requests
    }

    /// Hands the mailbox to an incarnation. What an earlier one does here from now on has no effect.
    pub(crate) fn open(&self, incarnation: u64) {
        let mut state = self.lock();
        state.holder = incarnation;
        state.lost = None;
    }

    /// Waits for the next input and takes it in hand.
    pub(crate) async fn next(&self, incarnation: u64) -> Next {
        loop {
            let changed = self.changed.notified();
            if let Some(next) = self.try_next(incarnation) {
                return next;
            }
            changed.await;
        }
    }

    fn try_next(&self, incarnation: u64) -> Option<Next> {
        let mut state = self.lock_for(incarnation)?;
        if let Some(failure) = state.lost.take() {
            return Some(Next::Lost(failure));
        }
        let parcel = state.waiting.pop_front()?;
        state.waiting_bytes -= parcel.bytes;
        let input = parcel.hand_out();
        let what = parcel.what.clone();
        state.in_hand = Some(parcel);
        drop(state);
        self.room.notify_one();
        Some(Next::Input { input, what })
    }

    /// Waits until nothing is queued and no source has anything more to carry here.
    pub(crate) async fn drained(&self) {
        loop {
            let silent = self.silent.notified();
            {
                let state = self.lock();
                if state.waiting.is_empty() && state.carrying == 0 {
                    return;
                }
            }
            silent.await;
        }
    }

    /// The input in hand was handled.
    pub(crate) fn finish(&self, incarnation: u64) {
        if let Some(mut state) = self.lock_for(incarnation) {
            state.in_hand = None;
        }
    }

    /// The incarnation failed. The input in hand goes back in front, or is returned to be set aside at its
    /// second failure.
    pub(crate) fn failed(&self, incarnation: u64) -> Option<Parcel> {
        let mut state = self.lock_for(incarnation)?;
        let mut parcel = state.in_hand.take()?;
        parcel.crashes += 1;
        if parcel.crashes >= CRASHES_MAX || !parcel.can_be_retried() {
            return Some(parcel);
        }
        state.put_back(parcel);
        None
    }

    /// The incarnation was stopped for a reason that is not its own: the input in hand goes back in front,
    /// without a mark.
    pub(crate) fn interrupted(&self, incarnation: u64) {
        if let Some(mut state) = self.lock_for(incarnation)
            && let Some(parcel) = state.in_hand.take()
            && parcel.can_be_retried()
        {
            state.put_back(parcel);
        }
    }

    /// A source ended by itself.
    pub(crate) fn lose(&self, failure: Failure) {
        self.lock().lost.get_or_insert(failure);
        self.changed.notify_one();
    }

    /// A source has something to carry.
    pub(crate) fn carrying(&self) {
        self.lock().carrying += 1;
    }

    /// A source waits for more.
    pub(crate) fn carried(&self) {
        let mut state = self.lock();
        state.carrying -= 1;
        let silent = state.carrying == 0;
        drop(state);
        if silent {
            self.silent.notify_one();
        }
    }

    /// How many inputs wait, the one in hand not counted, their bytes, and since when the oldest waits.
    pub(crate) fn depth(&self) -> (usize, usize, Option<Instant>) {
        let state = self.lock();
        (state.waiting.len(), state.waiting_bytes, state.waiting.front().map(|parcel| parcel.since))
    }

    fn lock_for(&self, incarnation: u64) -> Option<MutexGuard<'_, State>> {
        let state = self.lock();
        (state.holder == incarnation).then_some(state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock, and a poisoned queue is still the queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put_back(&mut self, parcel: Parcel) {
        self.waiting_bytes += parcel.bytes;
        self.waiting.push_front(parcel);
    }
}

impl Parcel {
    fn new(input: Input) -> Self {
        let (what, bytes) = match &input {
            Input::Message(message) => (format!("message on `{}`", message.topic), message.payload.len()),
            Input::Request(request) => {
                let message = &request.message;
                (format!("request on `{}` from `{}`", message.topic, message.origin), message.payload.len())
            }
            Input::Gap { filter, .. } => (format!("gap in `{filter}`"), 0),
        };
        Self { input: Box::new(input), what, bytes: bytes + PARCEL_BYTES, since: Instant::now(), crashes: 0 }
    }

    /// The input once more, for the handler.
    fn hand_out(&self) -> Box<Input> {
        Box::new(match &*self.input {
            Input::Message(message) => Input::Message(message.clone()),
            Input::Request(request) => Input::Request(request.hold()),
            Input::Gap { filter, count, reason } => {
                Input::Gap { filter: filter.clone(), count: *count, reason: reason.clone() }
            }
        })
    }

    /// A request that was answered, if only in part, is not handed out again: its requester would get two
    /// beginnings.
    fn can_be_retried(&self) -> bool {
        match &*self.input {
            Input::Request(request) => request.is_unanswered(),
            Input::Message(_) | Input::Gap { .. } => true,
        }
    }
}
