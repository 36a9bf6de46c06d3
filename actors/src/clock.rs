//! The clock of an actor: that of the machine, or one that a test moves by hand.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// What time it is for an actor: for its ticks, and for [`Context::now`](crate::context::Context::now),
/// [`Context::sleep`](crate::context::Context::sleep) and [`Context::timeout`](crate::context::Context::timeout).
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// One that stands still until it is moved. Clones are the same clock.
    Manual(ManualClock),
}

/// See [`Clock::Manual`].
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Manual>);

#[derive(Debug)]
struct Manual {
    now: watch::Sender<Instant>,
    /// Up to when is slept; one entry for each sleeper.
    sleeps: Mutex<Vec<Instant>>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self(Arc::new(Manual { now: watch::Sender::new(Instant::now()), sleeps: Mutex::default() }))
    }
}

impl ManualClock {
    /// Moves it on. Whoever sleeps until then, or earlier, wakes up; a tick that is due runs once, however often it would have.
    pub fn advance(&self, by: Duration) {
        self.0.now.send_modify(|now| *now += by);
    }

    /// How many sleep until a time that has not come.
    pub fn sleepers(&self) -> usize {
        let now = *self.0.now.borrow();
        self.0.sleeps().iter().filter(|&&until| until > now).count()
    }
}

impl Manual {
    fn sleeps(&self) -> MutexGuard<'_, Vec<Instant>> {
        // No code that can panic runs under this lock.
        self.sleeps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who sleeps; dropped when that has ended or was given up.
struct Sleep<'a>(&'a Manual, Instant);

impl<'a> Sleep<'a> {
    fn begin(clock: &'a Manual, until: Instant) -> Self {
        clock.sleeps().push(until);
        Self(clock, until)
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        let mut sleeps = self.0.sleeps();
        if let Some(place) = sleeps.iter().position(|until| *until == self.1) {
            sleeps.swap_remove(place);
        }
    }
}

impl Clock {
    /// The time.
    pub fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::Manual(clock) => *clock.0.now.borrow(),
        }
    }

    /// Returns at `at`, or at once if that has passed.
    pub async fn sleep_until(&self, at: Instant) {
        match self {
            Self::System => tokio::time::sleep_until(at.into()).await,
            Self::Manual(clock) => {
                let _sleep = Sleep::begin(&clock.0, at);
                let mut times = clock.0.now.subscribe();
                // Cannot fail: the sender is `self`.
                let _ = times.wait_for(|now| *now >= at).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_clock_that_is_moved_by_hand_wakes_those_whose_time_has_come_and_nobody_else() {
        let manual = ManualClock::default();
        let clock = Clock::Manual(manual.clone());
        let (begin, second) = (clock.now(), Duration::from_secs(1));
        let mut early = Box::pin(clock.sleep_until(begin + second));
        let mut late = Box::pin(clock.sleep_until(begin + 2 * second));
        assert!((&mut early).now_or_never().is_none() && (&mut late).now_or_never().is_none());
        assert_eq!(manual.sleepers(), 2);
        manual.advance(second);
        assert!((&mut early).now_or_never().is_some() && (&mut late).now_or_never().is_none());
        assert_eq!((clock.now(), manual.sleepers()), (begin + second, 1));
        manual.advance(second);
        assert_eq!(manual.sleepers(), 0);
        assert!(late.now_or_never().is_some());
    }
}
