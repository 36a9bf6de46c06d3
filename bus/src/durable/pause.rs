//! Pauses for futures that no executor runs: one thread of this process ends them, while there are any.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

static PAUSES: Pauses = Pauses { state: Mutex::new(State::new()), changed: Condvar::new() };

struct Pauses {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: Vec<(Instant, oneshot::Sender<()>)>,
    has_thread: bool,
}

impl State {
    const fn new() -> Self {
        Self { waiting: Vec::new(), has_thread: false }
    }
}

/// Ends after `length`. Gives `false`, at once, if there can be no thread.
pub(crate) async fn pause(length: Duration) -> bool {
    let Some(until) = Instant::now().checked_add(length) else { return false };
    let (over, is_over) = oneshot::channel();
    if !PAUSES.add(until, over) {
        return false;
    }
    is_over.await.is_ok()
}

impl Pauses {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&'static self, until: Instant, over: oneshot::Sender<()>) -> bool {
        let mut state = self.state();
        if !state.has_thread {
            let started = thread::Builder::new().name("interlock-pause".to_owned()).spawn(|| self.run());
            state.has_thread = started.is_ok();
        }
        if state.has_thread {
            state.waiting.push((until, over));
            self.changed.notify_one();
        }
        state.has_thread
    }

    /// Until nobody waits.
    fn run(&self) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            for (_, over) in state.waiting.extract_if(.., |(until, over)| *until <= now || over.is_closed()) {
                // Nobody waits for a pause that was given up.
                let _ = over.send(());
            }
            let Some(next) = state.waiting.iter().map(|(until, _)| *until).min() else {
                state.has_thread = false;
                return;
            };
            let waited = self.changed.wait_timeout(state, next.saturating_duration_since(now));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::wait;

    #[test]
    fn pauses_end_in_their_order_whoever_waits_and_the_thread_goes_and_comes_again() {
        for _ in 0..2 {
            let begun = Instant::now();
            let (long, short) = (Duration::from_millis(60), Duration::from_millis(20));
            let long = thread::spawn(move || (wait(pause(long)), begun.elapsed()));
            assert!(wait(pause(short)) && begun.elapsed() >= short);
            let (is_over, after) = long.join().unwrap();
            assert!(is_over && after >= Duration::from_millis(60), "{after:?}");
        }
    }
}
