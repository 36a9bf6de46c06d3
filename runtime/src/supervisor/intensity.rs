//! How many failures are too many. Pure: the time is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Failures within [`PERIOD`] that a child may have; one more spends the budget.
pub const INTENSITY: usize = 5;

/// The period of [`INTENSITY`].
pub const PERIOD: Duration = Duration::from_secs(30);

/// Failures without [`HEALTHY_AFTER`] of health in between that spend the budget. It catches what is too slow for
/// the intensity: a child that fails its 30 s start deadline again and again.
pub const UNHEALTHY_FAILURES: u32 = 10;

/// A child that has been ready this long is healthy: its failures and its backoff are forgotten.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What a failure leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within the budget.
    Restart,
    /// The budget is spent.
    GiveUp,
}

/// OTP's intensity and period: at most so many failures within so long.
#[derive(Clone, Debug)]
pub struct Intensity {
    failures_max: usize,
    period: Duration,
    /// Times of the failures within the period, oldest first; at most `failures_max + 1`.
    failures: VecDeque<Instant>,
}

impl Intensity {
    /// Gives up at failure number `failures_max + 1` within `period`.
    pub fn new(failures_max: usize, period: Duration) -> Self {
        Self { failures_max, period, failures: VecDeque::new() }
    }

    /// Records a failure. `at` must not lie before an earlier one.
    pub fn record(&mut self, at: Instant) -> Verdict {
        self.failures.push_back(at);
        while self.failures.front().is_some_and(|&first| at.duration_since(first) > self.period) {
            self.failures.pop_front();
        }
        if self.failures.len() <= self.failures_max {
            return Verdict::Restart;
        }
        self.failures.pop_front();
        Verdict::GiveUp
    }

    /// Failures that count at `at`.
    pub fn count(&self, at: Instant) -> usize {
        let counts = |&&failure: &&Instant| at.saturating_duration_since(failure) <= self.period;
        self.failures.iter().filter(counts).count()
    }
}

/// The whole budget of one child: the intensity, and the failures without health in between.
#[derive(Clone, Debug)]
pub struct Budget {
    intensity: Intensity,
    unhealthy_failures: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { intensity: Intensity::new(INTENSITY, PERIOD), unhealthy_failures: 0 }
    }
}

impl Budget {
    /// Records a failure of a child that had been ready for `ready_for` (zero if it never was).
    pub fn record(&mut self, at: Instant, ready_for: Duration) -> Verdict {
        if ready_for >= HEALTHY_AFTER {
            self.unhealthy_failures = 0;
        }
        self.unhealthy_failures += 1;
        match self.intensity.record(at) {
            Verdict::Restart if self.unhealthy_failures < UNHEALTHY_FAILURES => Verdict::Restart,
            _ => Verdict::GiveUp,
        }
    }

    /// Failures that count at `at`: within [`PERIOD`], and in a row without health.
    pub fn used(&self, at: Instant) -> (usize, u32) {
        (self.intensity.count(at), self.unhealthy_failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_gives_up_on_the_fourth_failure_in_five_seconds() {
        let start = Instant::now();
        let mut intensity = Intensity::new(3, Duration::from_secs(5));
        let mut failure_at = |seconds| intensity.record(start + Duration::from_secs(seconds));

        assert_eq!(failure_at(0), Verdict::Restart);
        assert_eq!(failure_at(1), Verdict::Restart);
        assert_eq!(failure_at(2), Verdict::Restart);
        assert_eq!(failure_at(3), Verdict::GiveUp);
    }

    #[test]
    fn failures_older_than_the_period_are_forgotten() {
        let start = Instant::now();
        let mut intensity = Intensity::new(1, Duration::from_secs(5));
        for seconds in [0, 6, 12, 18] {
            assert_eq!(intensity.record(start + Duration::from_secs(seconds)), Verdict::Restart);
        }
        assert_eq!(intensity.record(start + Duration::from_secs(23)), Verdict::GiveUp);
    }

    #[test]
    fn ten_slow_failures_without_health_spend_the_budget() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let mut verdicts =
            (0..10).map(|n| budget.record(start + Duration::from_secs(31 * n), Duration::ZERO));
        assert!(verdicts.by_ref().take(9).all(|verdict| verdict == Verdict::Restart));
        assert_eq!(verdicts.next(), Some(Verdict::GiveUp));
    }

    #[test]
    fn a_minute_of_health_begins_the_count_again() {
        let start = Instant::now();
        let mut budget = Budget::default();
        for n in 0..100 {
            let ready_for = if n % 9 == 0 { HEALTHY_AFTER } else { Duration::ZERO };
            assert_eq!(
                budget.record(start + Duration::from_secs(61 * n), ready_for),
                Verdict::Restart,
                "{n}"
            );
        }
    }
}
