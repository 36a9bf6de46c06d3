//! Attachment in the same process: a session without a socket, without encryption, without a copy
//! of the payload. Permissions, counters and limits are those of any other session.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::{
    broker::{command::Command, hub::SessionId},
    native::Record,
};

/// What the broker needs of a client in its own process.
pub(crate) trait RecordSink: Send + Sync {
    /// Takes records, in order. Called on the broker's thread: must not block.
    fn on_records(&self, records: &mut Vec<Record>);

    /// The session has ended; nothing follows. The code is that of a `goodbye`.
    fn on_closed(&self, code: &str, text: &str);
}

/// The way into the broker's thread: a bounded queue, and a waker that is used only if the thread sleeps.
#[derive(Clone)]
pub(crate) struct CommandQueue {
    commands: Sender<Command>,
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
        let queue = Self { commands: sender, waker: Arc::new(waker), sleeping: Arc::clone(&sleeping) };
        (queue, CommandSource { commands: receiver, sleeping })
    }

    /// Hands over a command, or gives it back: the queue is full (`true`) or the broker has ended (`false`).
    pub(crate) fn send(&self, command: Command) -> Result<(), (Command, bool)> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) => (command, true),
            TrySendError::Disconnected(command) => (command, false),
        })?;
        // Pairs with `CommandSource::about_to_sleep`: one side sees the other's write.
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // A waker that fails has lost its poll: the broker's thread has ended.
            let _ = self.waker.wake();
        }
        Ok(())
    }
}

/// The broker's end of a [`CommandQueue`].
#[derive(Debug)]
pub(crate) struct CommandSource {
    commands: Receiver<Command>,
    sleeping: Arc<AtomicBool>,
}

impl CommandSource {
    /// The next command, if one waits.
    pub(crate) fn next(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Announces that the thread is going to wait; `false` if it must not, because a command has come.
    pub(crate) fn about_to_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        self.commands.is_empty()
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

    /// Hands a record to the broker; gives it back if its queue is full (`true`) or it has ended (`false`).
    pub(crate) fn send(&self, record: Record) -> Result<(), (Record, bool)> {
        self.queue.send(Command::Record(self.session, record)).map_err(|(command, full)| match command {
            Command::Record(_, record) => (record, full),
            _ => unreachable!("the queue gives back what it was given"),
        })
    }

    /// Ends the session.
    pub(crate) fn close(&self) {
        let mut command = Command::Detach(self.session);
        // A full queue is being emptied by the broker's thread, which never closes a port itself.
        while let Err((refused, true)) = self.queue.send(command) {
            command = refused;
            std::thread::yield_now();
        }
    }
}
