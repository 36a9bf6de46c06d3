//! How long to wait before the next try. Pure: the randomness is an argument.

use std::time::Duration;

/// Upper bound of the first wait.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// Upper bound of every wait.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Exponential backoff with full jitter: each wait is drawn between zero and a bound that doubles.
///
/// Full jitter, because children that failed together (their broker went away) must not come back together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure. `random` is drawn evenly from 0.0 to 1.0.
    pub fn next(&mut self, random: f64) -> Duration {
        let bound = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random.clamp(0.0, 1.0))
    }

    /// The child was healthy: the next wait is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_from_200_ms_to_30_s_and_begins_again_after_health() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(bounds, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), BACKOFF_FIRST);
    }

    #[test]
    fn the_wait_is_drawn_from_the_whole_range() {
        let wait = |random| Backoff::default().next(random).as_millis();
        assert_eq!([wait(0.0), wait(0.25), wait(1.0)], [0, 50, 200]);
    }

    #[test]
    fn a_child_that_never_recovers_does_not_overflow_the_bound() {
        let mut backoff = Backoff { failures: u32::MAX - 1 };
        assert_eq!(backoff.next(1.0), BACKOFF_MAX);
        assert_eq!(backoff.next(1.0), BACKOFF_MAX);
    }
}
