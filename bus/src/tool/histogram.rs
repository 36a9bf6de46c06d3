//! Percentiles of any number of times in bounded memory.

use std::time::Duration;

/// Times below this many nanoseconds have a bucket each; above, each power of two is split into half as many.
const EXACT: u64 = 256;
const BUCKETS: usize = bucket(u64::MAX) + 1;

/// Counts of times, each to within 1 %.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    shortest: Duration,
    longest: Duration,
    /// Of all, in nanoseconds, and of their squares.
    sum: f64,
    squares: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        let (shortest, longest) = (Duration::MAX, Duration::ZERO);
        Self { counts: vec![0; BUCKETS], count: 0, shortest, longest, sum: 0.0, squares: 0.0 }
    }
}

impl Histogram {
    pub(super) fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.shortest = self.shortest.min(time);
        self.longest = self.longest.max(time);
        self.sum += nanoseconds as f64;
        self.squares += (nanoseconds as f64).powi(2);
    }

    /// The shortest of all; zero of none.
    pub(super) fn shortest(&self) -> Duration {
        if self.count == 0 { Duration::ZERO } else { self.shortest }
    }

    /// The mean of all; zero of none.
    pub(super) fn mean(&self) -> Duration {
        Duration::from_nanos((self.sum / self.count.max(1) as f64) as u64)
    }

    /// The standard deviation of all, not of a sample; zero of none.
    pub(super) fn deviation(&self) -> Duration {
        let count = self.count.max(1) as f64;
        let variance = self.squares / count - (self.sum / count).powi(2);
        Duration::from_nanos(variance.max(0.0).sqrt() as u64)
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The time that this share of all did not exceed; zero of none.
    pub(super) fn percentile(&self, share: f64) -> Duration {
        let place = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= place {
                return Duration::from_nanos(last_of(bucket)).min(self.longest);
            }
        }
        self.longest
    }
}

const fn bucket(nanoseconds: u64) -> usize {
    let bits = 64 - nanoseconds.leading_zeros();
    let shift = bits.saturating_sub(EXACT.ilog2());
    (shift as u64 * (EXACT / 2) + (nanoseconds >> shift)) as usize
}

/// The longest time in a bucket.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / (EXACT / 2)).saturating_sub(1);
    let first = (bucket - shift * (EXACT / 2)) << shift;
    first + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_found_again_to_within_a_hundredth() {
        let mut time = 1u64;
        while time < u64::MAX / 3 {
            for nanoseconds in [time, time + time / 3, 2 * time - 1] {
                let last = last_of(bucket(nanoseconds));
                assert!(last >= nanoseconds && (last - nanoseconds) as f64 <= nanoseconds as f64 / 100.0);
                assert_eq!(bucket(last), bucket(nanoseconds));
                assert_ne!(bucket(last + 1), bucket(nanoseconds));
            }
            time *= 2;
        }
    }

    #[test]
    fn percentiles_are_the_places_of_sorted_times() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(0.5), Duration::ZERO);
        (1..=100).for_each(|time| histogram.add(Duration::from_nanos(time)));
        histogram.add(Duration::from_secs(7));
        assert_eq!(histogram.percentile(0.5), Duration::from_nanos(51));
        assert_eq!(histogram.percentile(0.9), Duration::from_nanos(91));
        assert_eq!(histogram.percentile(1.0), Duration::from_secs(7));
        assert_eq!(histogram.count(), 101);
    }

    #[test]
    fn mean_and_deviation_are_exact() {
        let mut histogram = Histogram::default();
        assert_eq!(
            (histogram.shortest(), histogram.mean(), histogram.deviation()),
            (Duration::ZERO, Duration::ZERO, Duration::ZERO)
        );
        [2, 4, 4, 4, 5, 5, 7, 9].into_iter().for_each(|time| histogram.add(Duration::from_micros(time)));
        let found = (histogram.shortest(), histogram.mean(), histogram.deviation());
        assert_eq!(found, (Duration::from_micros(2), Duration::from_micros(5), Duration::from_micros(2)));
    }
}
