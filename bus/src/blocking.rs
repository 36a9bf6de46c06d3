//! Waiting for a future on a thread that has no executor. The futures of this crate need none: their
//! timers, if any, run on the client's own thread.
//!
//! A thread that waits here for something that comes from a broker over a socket reads that socket
//! itself, if nobody else does: the answer needs no other thread of this process. See
//! `client/wire.rs`.

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::client::Core;

/// Parks the thread until `future` ends. Not for use inside an executor: it blocks its thread.
pub fn wait<F: Future>(future: F) -> F::Output {
    match run(future, None) {
        Some(output) => output,
        None => unreachable!("without a deadline the loop ends with the future only"),
    }
}

/// Parks the thread until `future` ends or `deadline` has come; `None` in the latter case.
pub fn wait_until<F: Future>(future: F, deadline: Instant) -> Option<F::Output> {
    run(future, Some(deadline))
}

fn run<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    let turn = Turn::begin();
    let waker = Waker::from(Arc::clone(&turn.waiter));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        turn.waiter.begin_turn();
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let awaited = Turn::awaited();
        if turn.waiter.is_notified() {
            continue;
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return None;
        }
        if let Some(core) = awaited {
            if core.link().wait(&core, &turn.waiter, deadline) {
                continue;
            }
            core.send_owed_credit();
            core.link().flush();
        }
        turn.waiter.park(deadline);
    }
}

thread_local! {
    /// Made once for each thread.
    static WAITER: Arc<Waiter> = Arc::new(Waiter::new());
    /// What this thread waits for; `None` outside of this module.
    static AWAITED: RefCell<Option<Awaited>> = const { RefCell::new(None) };
}

/// Whose answers the future that is being polled waits for: the client that was last named first.
#[derive(Default)]
struct Awaited {
    core: Option<Arc<Core>>,
    /// Whether one was named since the last poll began.
    is_named: bool,
}

/// Says that the future polled on this thread goes on when something comes from this client's broker.
/// `true`: the thread is going to wait for it in this module, and sends the credit it owes.
pub(crate) fn awaits(core: &Arc<Core>) -> bool {
    let mut replaced = None;
    let name = |awaited: &RefCell<Option<Awaited>>| match &mut *awaited.borrow_mut() {
        None => false,
        Some(Awaited { core: Some(known), is_named }) if Arc::ptr_eq(known, core) => {
            *is_named = true;
            true
        }
        Some(Awaited { is_named: true, .. }) => false,
        Some(awaited) => {
            awaited.is_named = true;
            replaced = awaited.core.replace(Arc::clone(core));
            true
        }
    };
    // A thread that is ending waits no more.
    let is_first = AWAITED.try_with(name).unwrap_or(false);
    if let Some(core) = replaced {
        core.send_owed_credit();
        core.link().flush();
    }
    is_first
}

/// One call of [`run`]. Calls nest.
struct Turn {
    waiter: Arc<Waiter>,
    outer: Option<Awaited>,
}

impl Turn {
    fn begin() -> Self {
        let waiter = WAITER.try_with(Arc::clone).unwrap_or_else(|_| Arc::new(Waiter::new()));
        let outer = AWAITED.try_with(|awaited| awaited.replace(Some(Awaited::default())));
        Self { waiter, outer: outer.unwrap_or_default() }
    }

    /// The client to wait for. One that was named once stays until another is: a future may be polled
    /// without polling all it is made of.
    fn awaited() -> Option<Arc<Core>> {
        let take_note = |awaited: &RefCell<Option<Awaited>>| {
            let mut awaited = awaited.borrow_mut();
            let awaited = awaited.as_mut()?;
            awaited.is_named = false;
            awaited.core.clone()
        };
        AWAITED.try_with(take_note).ok()?
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let inner = AWAITED.try_with(|awaited| awaited.replace(self.outer.take()));
        // Used and dropped here, where nothing is borrowed: a client may close with it.
        if let Ok(Some(Awaited { core: Some(core), .. })) = inner {
            core.link().end_wait(&core);
        }
        // What woke the outer call meanwhile was taken by this one.
        self.waiter.notify();
    }
}

/// What a waiting thread is doing.
mod doing {
    pub(super) const POLLS_ITS_FUTURE: u8 = 0;
    pub(super) const IS_NOTIFIED: u8 = 1;
    pub(super) const IS_PARKED: u8 = 2;
    pub(super) const READS_SOCKET: u8 = 3;
}

/// A thread that waits, parked or on a socket, until somebody notifies it.
pub(crate) struct Waiter {
    doing: AtomicU8,
    thread: Thread,
    /// Ends its wait on a socket; made when it first waits for one.
    bell: OnceLock<Option<Bell>>,
}

struct Bell {
    rings: UnixStream,
    hears: UnixStream,
}

impl fmt::Debug for Waiter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Waiter").field("thread", &self.thread.id()).finish_non_exhaustive()
    }
}

/// Why a wait on a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// The socket can be read, or has ended.
    Readable,
    /// Somebody notified the thread, or interrupted it: it looks at its future again.
    Notified,
    /// The time is over.
    TimedOut,
}

impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

impl Waiter {
    fn new() -> Self {
        let doing = AtomicU8::new(doing::POLLS_ITS_FUTURE);
        Self { doing, thread: thread::current(), bell: OnceLock::new() }
    }

    fn notify(&self) {
        match self.doing.swap(doing::IS_NOTIFIED, Ordering::AcqRel) {
            doing::IS_PARKED => self.thread.unpark(),
            doing::READS_SOCKET => {
                if let Some(Some(bell)) = self.bell.get() {
                    // A full pipe is as loud.
                    let _ = (&bell.rings).write(&[0]);
                }
            }
            _ => {}
        }
    }

    /// The future is going to be polled: what was notified before is for it.
    fn begin_turn(&self) {
        self.doing.store(doing::POLLS_ITS_FUTURE, Ordering::Release);
    }

    pub(crate) fn is_notified(&self) -> bool {
        self.doing.load(Ordering::Acquire) == doing::IS_NOTIFIED
    }

    /// From polling to waiting; `false` if it was notified meanwhile.
    fn begin(&self, what: u8) -> bool {
        self.doing
            .compare_exchange(doing::POLLS_ITS_FUTURE, what, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Back from waiting, without losing a notification.
    fn end(&self, what: u8) {
        let _ =
            self.doing.compare_exchange(what, doing::POLLS_ITS_FUTURE, Ordering::AcqRel, Ordering::Acquire);
    }

    fn park(&self, deadline: Option<Instant>) {
        if !self.begin(doing::IS_PARKED) {
            return;
        }
        while !self.is_notified() {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(left) if left.is_zero() => break,
                Some(left) => thread::park_timeout(left),
            }
        }
        self.end(doing::IS_PARKED);
    }

    /// Whether it can wait on a socket at all.
    pub(crate) fn can_read(&self) -> bool {
        self.bell.get_or_init(Bell::new).is_some()
    }

    /// Waits until the socket can be read, somebody notifies the thread, or the time is over.
    pub(crate) fn wait_for(&self, socket: BorrowedFd<'_>, deadline: Option<Instant>) -> WaitEnd {
        let Some(bell) = self.bell.get_or_init(Bell::new) else { return WaitEnd::Notified };
        if !self.begin(doing::READS_SOCKET) {
            return WaitEnd::Notified;
        }
        let mut ends =
            [PollFd::new(socket, PollFlags::POLLIN), PollFd::new(bell.hears.as_fd(), PollFlags::POLLIN)];
        let polled = poll(&mut ends, timeout(deadline));
        self.end(doing::READS_SOCKET);
        let [socket_ready, bell_ready] = ends.map(|end| end.any() == Some(true));
        match polled {
            Ok(0) => return WaitEnd::TimedOut,
            Ok(_) => {}
            Err(_interrupted) => return WaitEnd::Notified,
        }
        if bell_ready {
            // A ring that comes later than its notification ends one wait too early, which does no harm.
            let _ = (&bell.hears).read(&mut [0; 64]);
        }
        if socket_ready { WaitEnd::Readable } else { WaitEnd::Notified }
    }
}

/// As `poll` wants it, rounded up.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    let left = left.saturating_add(Duration::from_nanos(999_999)).as_millis();
    PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
}

impl Bell {
    fn new() -> Option<Self> {
        let (rings, hears) = UnixStream::pair().ok()?;
        rings.set_nonblocking(true).ok()?;
        hears.set_nonblocking(true).ok()?;
        Some(Self { rings, hears })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_future_that_another_thread_completes_is_waited_for() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let sending = thread::spawn(move || sender.send(7));
        assert_eq!(wait(receiver), Ok(7));
        sending.join().unwrap().unwrap();
    }

    #[test]
    fn a_future_that_never_ends_is_given_up_at_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(1);
        assert_eq!(wait_until(std::future::pending::<()>(), deadline), None);
    }
}
