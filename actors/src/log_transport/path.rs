//! Which events are raised by the log path itself: they must never enter it again.
//!
//! Recognised by construction, twice over: by where they come from (the module that raises them),
//! and by the thread or future they are raised in (marked by the log path's own code, so that the
//! libraries it calls are covered too).

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

thread_local! {
    static MARKED: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as part of the log path, for good.
pub fn mark_thread() {
    MARKED.set(true);
}

/// Does something as part of the log path: events that it raises do not enter the log.
pub fn on_log_path<T>(work: impl FnOnce() -> T) -> T {
    let _marked = Marked::enter();
    work()
}

/// Whether this thread is at work for the log path at this moment.
pub fn is_marked() -> bool {
    MARKED.get()
}

/// Whether an event of this target belongs to the log path: the bus, the store, transport and consumer.
pub fn is_own_target(target: &str) -> bool {
    let of = |module: &str| {
        target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    target.starts_with("interlock_actors::log_") || of("interlock_actors::store") || of("interlock_bus")
}

/// Marks the thread for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Marked {
    before: bool,
}

impl Marked {
    pub(crate) fn enter() -> Self {
        Self { before: MARKED.replace(true) }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        MARKED.set(self.before);
    }
}

/// A future at whose every poll the thread is marked.
#[derive(Debug)]
pub(crate) struct OnLogPath<F>(Pin<Box<F>>);

impl<F: Future> OnLogPath<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(Box::pin(future))
    }
}

impl<F: Future> Future for OnLogPath<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _marked = Marked::enter();
        self.0.as_mut().poll(context)
    }
}
