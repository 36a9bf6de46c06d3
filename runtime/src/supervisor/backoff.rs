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
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random.clamp(0.0, 1.0))
    }

    /// The longest that the next wait can be.
    pub fn bound(&self) -> Duration {
        BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX)
    }

    /// The child was healthy: the next wait is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Where the randomness of a supervisor comes from. The same seed draws the same, so that a plan can say in advance
/// what will be waited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draws {
    /// Drawn by this seed.
    Seeded(u64),
    /// Always this, for tests.
    Always(f64),
}

impl Draws {
    /// Draw `number` of a child, even from 0.0 to 1.0.
    pub fn draw(self, child: usize, number: u64) -> f64 {
        match self {
            Self::Always(value) => value,
            Self::Seeded(seed) => {
                let bits = mix(mix(seed ^ child as u64) ^ number) >> 11;
                bits as f64 / (1_u64 << 53) as f64
            }
        }
    }
}

/// The finaliser of splitmix64: neighbours become strangers.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
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
    fn draws_are_even_and_repeat_with_their_seed() {
        let draws = Draws::Seeded(7);
        let mean = (0..10_000).map(|number| draws.draw(number as usize % 9, number)).sum::<f64>() / 10_000.0;
        assert!((0.49..0.51).contains(&mean), "{mean}");
        assert_eq!(draws.draw(3, 4), draws.draw(3, 4));
        assert_ne!(draws.draw(3, 4), draws.draw(4, 3));
        assert_ne!(draws.draw(3, 4), Draws::Seeded(8).draw(3, 4));
    }

    #[test]
    fn a_child_that_never_recovers_does_not_overflow_the_bound() {
        let mut backoff = Backoff { failures: u32::MAX - 1 };
        assert_eq!(backoff.next(1.0), BACKOFF_MAX);
        assert_eq!(backoff.next(1.0), BACKOFF_MAX);
    }
}
