//! Attachment in the same process: a session without a socket and without encryption. Permissions, counters
//! and limits are those of any other session.
//!
//! A client fills its [`Outbox`], small messages as the bytes of batches, and announces it once; the broker's
//! thread takes batch by batch until it is empty. What the broker has for the client goes to its
//! [`RecordSink`], small messages again as batches.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::{
    broker::{command::Command, hub::SessionId},
    native::Record,
};

mod outbox;

pub(crate) use outbox::{Bound, Outbox, Part, Refused};

/// What the broker needs of a client in its own process.
pub(crate) trait RecordSink: Send + Sync {
    /// Takes records, in order. Called on the broker's thread: must not block.
    fn on_records(&self, records: &mut Vec<Record>);

    /// Takes records that stand as in a batch of the wire. Called as [`RecordSink::on_records`] is.
    fn on_batch(&self, batch: Bytes);

    /// The session has ended; nothing follows. The code is that of a `goodbye`.
    fn on_closed(&self, code: &str, text: &str);
}

/// Outboxes that hold something, each once, and whose they are.
type Announced = VecDeque<(SessionId, Arc<Outbox>)>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way into the broker's thread: a bounded queue of commands, a list of outboxes, and a waker that is used
/// only if the thread sleeps.
#[derive(Clone)]
pub(crate) struct CommandQueue {
    commands: Sender<Command>,
    announced: Arc<Mutex<Announced>>,
    waker: Arc<mio::Waker>,
    sleeping: Arc<AtomicBool>,
}

impl fmt::Debug for CommandQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CommandQueue").field("waiting", &self.commands.len()).finish_non_exhaustive()
    }
}

impl CommandQueue {
    /// A queue of at most `commands_max` commands.
    pub(crate) fn new(waker: mio::Waker, commands_max: usize) -> (Self, CommandSource) {
        let (sender, receiver) = crossbeam_channel::bounded(commands_max);
        let sleeping = Arc::new(AtomicBool::new(false));
        let announced = Arc::default();
        let source = CommandSource {
            commands: receiver,
            announced: Arc::clone(&announced),
            sleeping: Arc::clone(&sleeping),
        };
        (Self { commands: sender, announced, waker: Arc::new(waker), sleeping }, source)
    }

    /// Hands over a command, or gives it back: the queue is full (`true`) or the broker has ended (`false`).
    pub(crate) fn send(&self, command: Command) -> Result<(), (Command, bool)> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) => (command, true),
            TrySendError::Disconnected(command) => (command, false),
        })?;
        self.wake();
        Ok(())
    }

    /// Says that an outbox is not empty any more.
    fn announce(&self, session: SessionId, outbox: Arc<Outbox>) {
        lock(&self.announced).push_back((session, outbox));
        self.wake();
    }

    fn wake(&self) {
        // Pairs with `CommandSource::about_to_sleep`: one side sees the other's write. Whoever finds the
        // thread awake only reads: many do, and a write would take the line from each other.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            // A waker that fails has lost its poll: the broker's thread has ended.
            let _ = self.waker.wake();
        }
    }
}

/// The broker's end of a [`CommandQueue`].
#[derive(Debug)]
pub(crate) struct CommandSource {
    commands: Receiver<Command>,
    announced: Arc<Mutex<Announced>>,
    sleeping: Arc<AtomicBool>,
}

impl CommandSource {
    /// The next command, if one waits.
    pub(crate) fn next(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// All outboxes that were announced.
    pub(crate) fn take_announced(&self) -> Announced {
        std::mem::take(&mut lock(&self.announced))
    }

    /// An outbox was not taken to its end: it comes again in the next turn.
    pub(crate) fn announce_again(&self, session: SessionId, outbox: Arc<Outbox>) {
        lock(&self.announced).push_back((session, outbox));
    }

    /// Announces that the thread is going to wait; `false` if it must not, because something has come.
    pub(crate) fn about_to_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.commands.is_empty() && lock(&self.announced).is_empty()
    }

    /// The thread is awake.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

/// A client's end of a session in the broker's process.
#[derive(Clone, Debug)]
pub(crate) struct LocalPort {
    session: SessionId,
    queue: CommandQueue,
}

impl LocalPort {
    pub(crate) fn new(session: SessionId, queue: CommandQueue) -> Self {
        Self { session, queue }
    }

    /// Has the broker look into the outbox.
    pub(crate) fn announce(&self, outbox: &Arc<Outbox>) {
        self.queue.announce(self.session, Arc::clone(outbox));
    }
}
