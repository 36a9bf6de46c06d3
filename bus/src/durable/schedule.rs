//! When a delivery is tried again, and when no more. Pure: the caller brings time and chance.

use std::time::Duration;

use super::limits;

/// How long is waited between two attempts, and how many there are.
///
/// The wait after attempt n is a random time up to `min(cap, base * 2^(n-1))` (full jitter): deliveries that failed
/// together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The longest wait after the first attempt.
    pub base: Duration,
    /// The longest wait after any attempt.
    pub cap: Duration,
    /// Attempts after whose failure a delivery becomes a dead letter; at least one.
    pub attempts_max: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { base: limits::RETRY_BASE, cap: limits::RETRY_CAP, attempts_max: limits::ATTEMPTS_MAX }
    }
}

impl Schedule {
    /// The longest wait after attempt `attempt`, counting from 1.
    pub fn longest_wait(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }

    /// The wait after attempt `attempt`; `chance` is evenly distributed over all its values.
    pub fn wait(&self, attempt: u32, chance: u64) -> Duration {
        let longest_ns = u64::try_from(self.longest_wait(attempt).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(longest_ns) * u128::from(chance)) >> 64) as u64)
    }

    /// Whether the failure of this attempt is the last one.
    pub fn is_last(&self, attempt: u32) -> bool {
        attempt >= self.attempts_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_wait_doubles_up_to_the_cap_and_ten_attempts_are_all() {
        let schedule = Schedule::default();
        let waits: Vec<u64> = (1..=10).map(|attempt| schedule.longest_wait(attempt).as_secs()).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        assert_eq!([9, 10, 11].map(|attempt| schedule.is_last(attempt)), [false, true, true]);
        assert_eq!(schedule.longest_wait(u32::MAX), schedule.cap);
    }

    #[test]
    fn the_wait_is_spread_over_all_of_its_length() {
        let schedule = Schedule { base: SECOND, cap: 60 * SECOND, attempts_max: 10 };
        assert_eq!(schedule.wait(3, 0), Duration::ZERO);
        assert_eq!(schedule.wait(3, 1 << 63), 2 * SECOND);
        assert!(schedule.wait(3, u64::MAX) < 4 * SECOND && schedule.wait(3, u64::MAX) > 3 * SECOND);
        let huge = Schedule { base: Duration::MAX, cap: Duration::MAX, attempts_max: 1 };
        assert!(huge.wait(9, u64::MAX) > 60 * SECOND);
    }
}
