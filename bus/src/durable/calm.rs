//! One wake for everything that happens between two turns of a future.
//!
//! Whoever commits a group of messages answers each of them, and each answer wakes who waits for it. Where many are waited for by
//! one thread that is a system call for each answer, on the thread that is to commit the next group.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// A future that is woken once between two polls, however often what it waits for wakes it.
pub(crate) struct Calm<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Who is to be woken; nobody once that has happened, until the next poll.
#[derive(Default)]
struct Bell(AtomicWaker);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

impl<F> Calm<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::<Bell>::default();
        Self { future: Box::pin(future), waker: Arc::clone(&bell).into(), bell }
    }
}

impl<F: Future> Future for Calm<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Before the poll: what happens from here on wakes.
        self.bell.0.register(context.waker());
        let Self { future, waker, .. } = &mut *self;
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn many_wakes_between_two_polls_are_one_and_one_during_a_poll_is_not_lost() {
        let count = Arc::<Count>::default();
        let outer = Waker::from(Arc::clone(&count));
        let mut inner = None;
        let mut calm = Calm::new(std::future::poll_fn(|context| {
            if inner.is_none() {
                context.waker().wake_by_ref();
            }
            inner = Some(context.waker().clone());
            Poll::<()>::Pending
        }));
        let poll = |calm: &mut Calm<_>| {
            assert!(Pin::new(calm).poll(&mut Context::from_waker(&outer)).is_pending());
        };
        poll(&mut calm);
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "woken during the poll");
        let bell = calm.waker.clone();
        bell.wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "it has not been polled since");
        poll(&mut calm);
        (0..10).for_each(|_| bell.wake_by_ref());
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }
}
