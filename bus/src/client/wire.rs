//! The session of a remote client, and the threads that use it.
//!
//! A record on its way passes no thread that it need not pass. Three kinds of threads use the session,
//! each for a moment under its lock:
//!
//! | thread | does |
//! |---|---|
//! | one that brings a record | seals and writes it, if it has the duty (see `outgoing.rs`) |
//! | one that waits in [`crate::blocking`] | reads, opens and hands over until it is notified; one at a time |
//! | the client's own | everything else: handshake, clocks, what the others leave, and reading while nobody waits |
//!
//! Locks: whoever reads takes the session's lock, then the locks of the core. Whoever writes may hold a lock
//! of the core, so it only tries the session's; if that is taken, it leaves the duty to its holder.
//!
//! While a thread waits on the socket, the client's own is not woken by it: its interest is taken back and given
//! again when the other leaves, which also tells of what came meanwhile. See `readers.rs` for when it is not.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, TryLockError},
    time::{Duration, Instant},
};

use mio::{Registry, Waker};

use super::{
    core::Core,
    lane::lock,
    outgoing::{Hands, Outgoing},
    readers::Leave,
    session::{End, Session, Written},
    socket::Socket,
};
use crate::blocking::{WaitEnd, Waiter};

/// How long what was consumed may go uncredited while its consumer waits for more: less is a box for
/// every message of a quiet publisher.
pub(super) const CREDIT_PAUSE: Duration = Duration::from_millis(1);

/// Boxes that a thread writes for others before it leaves the rest to the client's own.
const BORROWED_TURN_BATCHES: usize = 4;

/// The current session, if there is one that is shared, and what its users need.
pub(super) struct Wire {
    session: Mutex<Option<Session>>,
    registry: Registry,
    waker: Waker,
}

impl fmt::Debug for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(registry: Registry, waker: Waker) -> Self {
        Self { session: Mutex::new(None), registry, waker }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The session, for the client's own thread.
    pub(super) fn session(&self) -> MutexGuard<'_, Option<Session>> {
        lock(&self.session)
    }

    /// Shares a session whose handshake is over.
    pub(super) fn install(&self, session: Session, outgoing: &Outgoing) {
        *self.session() = Some(session);
        outgoing.share(true);
    }

    /// Takes the session back when it is over. Threads that wait on its socket see its end.
    pub(super) fn remove(&self, outgoing: &Outgoing) -> Option<Session> {
        outgoing.share(false);
        let session = self.session().take();
        session.inspect(Session::shut_down)
    }

    /// Notes that the session cannot go on, and has the client's own thread end it.
    fn end(&self, session: &mut Session, end: End) {
        session.set_end(end);
        Hands::wake(self);
    }

    /// Writes what is queued. The caller has the duty and does not keep it.
    fn write_queued(&self, session: &mut Session, outgoing: &Outgoing) {
        match session.write(outgoing, &self.registry, BORROWED_TURN_BATCHES) {
            Ok(Written::All | Written::Blocked) => {}
            // The goodbye is for the client's own thread, too.
            Ok(Written::More | Written::Close) => outgoing.leave_to_thread(),
            Err(end) => {
                outgoing.leave_to_thread();
                self.end(session, end);
            }
        }
    }

    /// Reads once, hands over, and writes what that brought about. `false`: there is nothing to wait for.
    fn read_once(&self, outgoing: &Outgoing, core: &Core) -> bool {
        let mut guard = self.session();
        let Some(session) = guard.as_mut().filter(|session| !session.has_end()) else { return false };
        session.set_readable();
        let (read, has_duty) = read(session, outgoing, core);
        if has_duty {
            self.write_queued(session, outgoing);
        }
        if session.has_new_broker_key() {
            Hands::wake(self);
        }
        match read {
            Ok(_) => true,
            Err(end) => {
                self.end(session, end);
                false
            }
        }
    }

    /// Writes what lies in the queue, with the credit that is owed if it is time or there is a box for it.
    fn flush(&self, outgoing: &Outgoing, core: &Core) {
        if let Some(since) = core.owes_credit_since()
            && (outgoing.is_filled() || since.elapsed() >= CREDIT_PAUSE)
        {
            core.send_owed_credit();
        }
        if outgoing.claim() {
            Hands::write(self, outgoing);
        }
    }
}

/// Reads, between the words that keep others from writing meanwhile. The flag: the caller has the duty to write.
pub(super) fn read(session: &mut Session, outgoing: &Outgoing, core: &Core) -> (Result<usize, End>, bool) {
    outgoing.begin_reading();
    let read = session.read(core);
    let has_duty = outgoing.end_reading(*read.as_ref().unwrap_or(&0), session.has_output());
    (read, has_duty)
}

impl Hands for Wire {
    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "the client's thread cannot be woken");
        }
    }

    fn write(&self, outgoing: &Outgoing) {
        let mut guard = match self.session.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return outgoing.leave_to_holder(),
        };
        match guard.as_mut().filter(|session| !session.has_end()) {
            Some(session) => self.write_queued(session, outgoing),
            None => outgoing.leave_to_thread(),
        }
    }

    fn wait(&self, outgoing: &Outgoing, core: &Core, waiter: &Waiter, deadline: Option<Instant>) -> bool {
        if !waiter.can_read() {
            return false;
        }
        self.flush(outgoing, core);
        let socket = {
            let mut guard = self.session();
            let Some(session) = guard.as_mut().filter(|session| !session.has_end()) else { return false };
            if !session.readers.enter() {
                return false;
            }
            session.set_read_by_thread(&self.registry, false);
            session.socket()
        };
        let leaving = Leaving { wire: self, outgoing, socket: Arc::clone(&socket) };
        loop {
            let credit_at = core.owes_credit_since().map(|since| since + CREDIT_PAUSE);
            let until = match (deadline, credit_at) {
                (Some(deadline), Some(credit_at)) => Some(deadline.min(credit_at)),
                (one, other) => one.or(other),
            };
            match waiter.wait_for(socket.as_fd(), until) {
                WaitEnd::Readable if !self.read_once(outgoing, core) => break,
                WaitEnd::Readable if waiter.is_notified() => break,
                WaitEnd::Readable => {}
                WaitEnd::Notified => break,
                WaitEnd::TimedOut => {
                    self.flush(outgoing, core);
                    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                        break;
                    }
                }
            }
        }
        drop(leaving);
        true
    }
}

/// Ends a thread's wait on the socket.
struct Leaving<'a> {
    wire: &'a Wire,
    outgoing: &'a Outgoing,
    socket: Arc<Socket>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut guard = self.wire.session();
        // A later session has been read by the client's own thread from its beginning.
        let Some(session) = guard.as_mut().filter(|session| Arc::ptr_eq(&session.socket(), &self.socket))
        else {
            return;
        };
        match session.readers.leave(Instant::now()) {
            Leave::GiveBack => session.set_read_by_thread(&self.wire.registry, true),
            Leave::Keep => self.outgoing.set_returning(true),
            Leave::KeepAndWake => {
                self.outgoing.begin_ticking();
                self.outgoing.set_returning(true);
                Hands::wake(self.wire);
            }
        }
    }
}
